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

use std::path::{Path, PathBuf};
use std::process::Command;

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

fn prometheus_directory() -> PathBuf {
    root().join(RULES).parent().map(Path::to_path_buf).unwrap()
}
