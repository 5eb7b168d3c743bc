//! What is shipped for watching a gate: alert rules, the dashboard, the page for people, and the
//! set-up for trying it out. `alerts` makes each alert's trouble happen.

mod alerts;
mod compose;
mod dashboard;
mod gates;
mod local;
mod prometheus;
mod promql;
mod rules;
mod shrink;
mod troubles;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::samples::root;

/// The rules, as they are shipped.
const RULES: &str = "deploy/prometheus/rules.yaml";
/// The dashboard.
const DASHBOARD: &str = "deploy/grafana/tikigate.json";

/// The text of a file of the repository.
#[track_caller]
fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a command to its end; what it wrote, on both outputs.
///
/// # Panics
/// With that, if it fails.
#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; `tests/run` installs what is missing")
    });
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}\n{text}");
    text
}

/// `promtool` in the directory of the rules.
fn promtool(arguments: &[&str]) -> String {
    let mut command = Command::new("promtool");
    succeeds(command.args(arguments).current_dir(prometheus_directory()))
}

/// YAML as JSON. Debian's docker-compose brings Python's PyYAML along.
fn from_yaml(yaml: &[u8]) -> Value {
    let mut python = Command::new("/usr/bin/python3")
        .args([
            "-c",
            "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin.buffer), sys.stdout)",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Python reads all of it before it writes.
    python.stdin.take().unwrap().write_all(yaml).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "PyYAML can't read it");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn prometheus_directory() -> PathBuf {
    root().join(RULES).parent().map(Path::to_path_buf).unwrap()
}
