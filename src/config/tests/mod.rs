//! Tests of the whole way from text to settings.

mod between;
mod keys;
mod outbound;
mod overrides;
mod parts;
mod probe;
mod risks;
mod samples;
mod secrets;
mod stores;
mod subjects;
mod ten;
mod tls;
mod tracing;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::load::load_at;
use super::{Loaded, Problem, Settings};

/// What must never be seen.
const SECRET: &str = "s3cr3t-bytes-of-a-client";

/// A configuration without a problem.
const GOOD: &str = r#"
[server]
listen = "127.0.0.1:8080"

[upstreams.legacy]
url = "http://127.0.0.1:9000"

[[clients]]
id = "client-key-1"
name = "wallet"
secrets = [{ name = "now", file = "secret" }]

[[routes]]
name = "ipn"
path = "/ipn"
payload = "order_ipn"

[[routes]]
name = "refund"
path = "/refund"
payload = "refund"

[ledger]
store = "memory"
allow_volatile = true
"#;

/// [`GOOD`] with one piece of text changed.
fn good_but(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from:?} is not in the base text");
    GOOD.replacen(from, to, 1)
}

/// [`GOOD`] with keys added to a route.
fn route_with(name: &str, keys: &str) -> String {
    let line = format!("name = \"{name}\"\n");
    good_but(&line, &format!("{line}{keys}\n"))
}

/// [`GOOD`] with keys added below the header of a table that it has.
fn table_with(header: &str, keys: &str) -> String {
    good_but(&format!("{header}\n"), &format!("{header}\n{keys}\n"))
}

/// 2026-11-01T00:00:00Z
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_793_491_200)
}

/// A directory with secrets in files that only their owner can read.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "secret", format!("{SECRET}\n").as_bytes());
    write(directory.path(), "other", b"another-fake-secret");
    directory
}

fn write(directory: &Path, name: &str, content: &[u8]) {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn load_in(
    directory: &Path,
    text: &str,
    environment: &[(&str, &str)],
) -> Result<Loaded, Vec<Problem>> {
    let environment: Vec<(OsString, OsString)> = environment
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)))
        .collect();
    load_at(text, "test.toml", directory, &environment, now())
}

fn load(text: &str) -> Result<Loaded, Vec<Problem>> {
    load_in(directory().path(), text, &[])
}

/// The settings of a text that has neither errors nor warnings.
fn settings(text: &str) -> Settings {
    match load(text) {
        Ok(loaded) => {
            assert_eq!(loaded.warnings, []);
            loaded.settings
        }
        Err(problems) => panic!("{}", told(&problems)),
    }
}

fn told(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Asserts that exactly this is wrong, as an error, and returns it.
#[track_caller]
fn only_error(text: &str, code: &str, key: &str) -> Problem {
    match load(text) {
        Ok(_) => panic!("was accepted; expected {code} {key}"),
        Err(problems) => only(problems, code, key),
    }
}

/// Asserts that exactly this is odd, as a warning, and returns it.
#[track_caller]
fn only_warning(text: &str, code: &str, key: &str) -> Problem {
    match load(text) {
        Ok(loaded) => only(loaded.warnings, code, key),
        Err(problems) => panic!("{}", told(&problems)),
    }
}

#[track_caller]
fn only(mut problems: Vec<Problem>, code: &str, key: &str) -> Problem {
    assert_eq!(problems.len(), 1, "{}", told(&problems));
    let problem = problems.remove(0);
    assert_eq!(
        (problem.code, problem.key.as_str()),
        (code, key),
        "{problem}"
    );
    problem
}
