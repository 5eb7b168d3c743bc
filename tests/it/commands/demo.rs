//! `tikigate demo`: the story it tells, and what it leaves behind.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::NamedTempFile;

use super::{Running, run, tikigate, until};

/// The demo with a directory for its files that nobody else uses.
fn demo(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = tikigate(&["demo"]);
    command.args(arguments).env("TMPDIR", directory);
    command
}

#[track_caller]
fn assert_clean(directory: &Path) {
    let left: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// What each scene says of itself, in order: the beginning of its line, and what stands on it.
const SCENES: [(&str, &[&str]); 29] = [
    ("signed by Tiki", &["200"]),
    (
        "one digit of the signature changed",
        &["401", "unauthenticated"],
    ),
    ("signed an hour ago", &["503", "out_of_window"]),
    ("from an unknown client", &["401", "unauthenticated"]),
    ("refund R-1 of", &["200"]),
    ("the same again", &["200", "Idempotency-Replayed: true"]),
    ("The backend's counter for R-1: 1.", &[]),
    ("R-1 again, with another amount", &["422", "conflict"]),
    ("refund R-2-slow", &["504", "upstream_timeout"]),
    ("sent again by Tiki", &["200"]),
    ("The backend's counter for R-2-slow: 1.", &[]),
    ("refund R-3-dies", &["502", "upstream_failed"]),
    ("sent again by Tiki", &["500", "outcome_unknown"]),
    ("$ tikigate ledger list --state unknown", &[]),
    ("$ tikigate ledger resolve R-3-dies --applied", &[]),
    ("sent again by Tiki", &["200"]),
    ("The backend's counter for R-3-dies: 1.", &[]),
    (
        "refund R-4-slow, sent again by Tiki",
        &["500", "outcome_unknown"],
    ),
    ("The backend's counter for R-4-slow: 1.", &[]),
    (
        "refund R-1 once more",
        &["200", "Idempotency-Replayed: true"],
    ),
    ("payment notice for TIKI-2001", &["202", "out-1"]),
    ("Tiki checked its signature", &["TIKI-2001", "SUCCESS"]),
    ("payment notice, with Tiki away", &["202", "out-2"]),
    ("$ tikigate outbox list --state pending", &[]),
    ("out-2", &["pending", "TIKI-2002"]),
    ("Tiki came back", &["TIKI-2002", "SUCCESS"]),
    ("a transaction's status", &["200"]),
    ("a webview's URL", &["200"]),
    ("Tiki believed each", &[]),
];

#[test]
fn the_story_is_told_to_its_end_and_nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let told = run(&mut demo(directory.path(), &["--once"])).worked();
    let mut lines = told.lines();
    for (scene, words) in SCENES {
        let line = lines.find(|line| line.trim_start().starts_with(scene));
        let line = line.unwrap_or_else(|| panic!("{scene} is missing or out of order: {told}"));
        for word in words {
            assert!(line.contains(word), "{word} is missing: {line}");
        }
    }
    let listed = told.lines().any(|line| {
        ["rec-", "unknown", "R-3-dies"]
            .iter()
            .all(|word| line.contains(word))
    });
    assert!(listed, "the list is not shown: {told}");
    assert!(told.contains("every call ended as it should"), "{told}");
    assert_clean(directory.path());
}

#[test]
fn a_demo_that_is_ended_in_the_middle_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM] {
        let directory = tempfile::tempdir().unwrap();
        let mut running = RunningDemo::start(directory.path());
        // The next scene waits a second for a slow backend.
        let told = running.wait_for("A backend slower than Tiki's patience");
        running.0.signal(signal);
        running.0.wait();
        assert!(
            is_gone(&gate_address(&told)),
            "{signal:?}: the gate was left behind"
        );
        assert_clean(directory.path());
    }
}

#[test]
fn it_stays_up_for_calls_of_ones_own_until_it_is_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let mut running = RunningDemo::start(directory.path());
    let told = running.wait_for("Its ledger: ");

    let call = told
        .lines()
        .find(|line| line.trim_start().starts_with("echo "))
        .unwrap();
    let mut sh = Command::new("sh");
    let binary = Path::new(env!("CARGO_BIN_EXE_tikigate")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    sh.args(["-c", call])
        .env("PATH", format!("{}:{path}", binary.display()));
    sh.env("NO_PROXY", "*").stderr(Stdio::null());
    let answer = run(&mut sh).worked();
    assert!(answer.contains("success"), "{call}: {answer}");

    let ledger = told
        .lines()
        .find_map(|line| line.strip_prefix("Its ledger: tikigate "))
        .unwrap();
    let words: Vec<_> = ledger.split(' ').collect();
    let listed = run(&mut tikigate(&words)).worked();
    assert!(listed.contains("R-mine"), "{listed}");

    let gate = gate_address(&told);
    assert!(!is_gone(&gate));
    let demo = &mut running.0;
    demo.signal(Signal::INT);
    assert_eq!(demo.wait().code(), Some(0), "{}", demo.output());
    assert!(is_gone(&gate), "the gate was left behind");
    assert_clean(directory.path());
}

/// A demo and the gate that it starts: a group of processes, which a failed test ends as a whole.
struct RunningDemo(
    Running,
    #[expect(dead_code, reason = "kept for as long as it is written to")] NamedTempFile,
);

impl RunningDemo {
    fn start(directory: &Path) -> Self {
        // Away from what is to be clean at the end.
        let log = NamedTempFile::new().unwrap();
        let mut command = demo(directory, &[]);
        command
            .stdout(log.reopen().unwrap())
            .stderr(log.reopen().unwrap());
        command.process_group(0);
        Self(
            Running::start_as_it_is(&mut command, log.path().to_owned()),
            log,
        )
    }

    /// All that it told, once these words are among it.
    #[track_caller]
    fn wait_for(&mut self, words: &str) -> String {
        let told = until(|| {
            let output = self.0.output();
            let ended = self.0.child().try_wait().unwrap();
            assert_eq!(ended, None, "{output}");
            output.contains(words).then_some(output)
        });
        told.unwrap_or_else(|| panic!("{words:?} is never told: {}", self.0.output()))
    }
}

impl Drop for RunningDemo {
    fn drop(&mut self) {
        // Until it is waited for, nobody else can have its id.
        if let Ok(None) = self.0.child().try_wait() {
            let _ = kill_process_group(Pid::from_child(self.0.child()), Signal::KILL);
        }
    }
}

fn gate_address(told: &str) -> String {
    let after = told.split("The gate listens on http://").nth(1).unwrap();
    after.split(',').next().unwrap().to_owned()
}

fn is_gone(address: &str) -> bool {
    std::net::TcpStream::connect(address).is_err()
}
