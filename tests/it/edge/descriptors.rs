//! Open files: how many there may be, and getting over having no more.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;

use crate::server::harness::{Caller, eventually};
use crate::support::gate::{OTHER_SECRET, SECRET, usual};
use crate::support::gate_process::{GateProcess, Setup};

/// Answered by the gate alone: a backend's connection is a file, too.
const ELSEWHERE: &[u8] = b"GET /elsewhere HTTP/1.1\r\nhost: x\r\n\r\n";

fn setup(server: &str) -> Setup {
    let toml = usual("http://127.0.0.1:1").replace(
        "workers = 2",
        &format!("workers = 1\nheader_timeout = \"60s\"\n{server}"),
    );
    Setup::new(&toml)
        .file("secret", SECRET.as_bytes())
        .file("other-secret", OTHER_SECRET.as_bytes())
}

/// A gate that is started with these limits of open files.
fn start_limited(setup: Setup, soft: u64, hard: u64) -> GateProcess {
    let serve = setup.command("serve");
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={soft}:{hard}"));
    command.arg(serve.get_program()).args(serve.get_args());
    for (name, value) in serve.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    GateProcess::launch(command, Arc::new(setup)).unwrap_or_else(|fault| panic!("{fault}"))
}

fn limits(gate: &GateProcess) -> Vec<String> {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gate.pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words = line.unwrap().split_whitespace();
    words.skip(3).take(2).map(str::to_owned).collect()
}

fn open_files(gate: &GateProcess) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", gate.pid()));
    files.unwrap().count()
}

#[test]
fn the_limit_is_raised_as_far_as_it_goes() {
    let gate = start_limited(setup("max_connections = 100"), 128, 3000);
    assert_eq!(limits(&gate), ["3000", "3000"]);
    let warned = |gate: &GateProcess| {
        let lines = gate.lines();
        lines.iter().any(|line| line.contains("LimitNOFILE"))
    };
    assert!(!warned(&gate));
    let gate = start_limited(setup("max_connections = 100"), 128, 150);
    assert_eq!(limits(&gate), ["150", "150"]);
    assert!(warned(&gate), "{:#?}", gate.lines());
}

#[test]
fn without_free_descriptors_it_waits_and_recovers() {
    let gate = setup("max_connections = 100").start();
    let limit = open_files(&gate) + 6;
    let set = Command::new("prlimit")
        .args([
            format!("--pid={}", gate.pid()),
            format!("--nofile={limit}:{limit}"),
        ])
        .status();
    assert!(set.unwrap().success());

    let silent: Vec<TcpStream> = (0..20)
        .map(|_| TcpStream::connect(gate.address()).unwrap())
        .collect();
    gate.wait_for_line(|line| line.contains("accepting connections failed"));
    // Those that say nothing make room for one that does.
    let mut caller = Caller::new(TcpStream::connect(gate.address()).unwrap());
    caller.stream.write_all(ELSEWHERE).unwrap();
    assert!(caller.receive().0.starts_with("HTTP/1.1 404"));
    drop(silent);
    eventually(|| open_files(&gate) < limit - 3);
    let mut caller = Caller::new(TcpStream::connect(gate.address()).unwrap());
    caller.stream.write_all(ELSEWHERE).unwrap();
    assert!(caller.receive().0.starts_with("HTTP/1.1 404"));
}
