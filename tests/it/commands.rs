//! The real binary as its user meets it: started, asked, told by signals and by other commands.

mod check;
mod crash;
mod demo;
mod drain;
mod ledger;
mod metrics;
mod people;
mod probing;
mod serve;
mod sign;
mod start;
mod upkeep;
mod usage;

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use tikigate::net::ListenAddress;

use crate::support::gate::{Call, OTHER_SECRET, SECRET};
use crate::support::gate_process::{GateProcess, Setup};
use crate::support::raw::{RawAnswer, exchange};

/// A command, a start or an end may take this long on a busy machine.
const WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// Standard output of a command that must have worked.
    #[track_caller]
    pub(crate) fn worked(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.out
    }

    /// What a command that must have failed with this code wrote, both streams together.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self.out + &self.err
    }
}

/// The binary with these arguments; what the caller's environment says about a gate is left out.
pub(crate) fn tikigate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tikigate"));
    command.args(arguments);
    leave_out_settings(&mut command);
    command
}

fn leave_out_settings(command: &mut Command) {
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("TIKIGATE") {
            command.env_remove(variable);
        }
    }
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Ended {
    run_with(command, b"")
}

/// Runs a command to its end with this on standard input.
#[track_caller]
pub(crate) fn run_with(command: &mut Command, input: &[u8]) -> Ended {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
    let out = read_on(child.stdout.take().unwrap());
    let err = read_on(child.stderr.take().unwrap());
    // Whoever does not read its input has its reasons.
    let _ = child.stdin.take().unwrap().write_all(input);
    let status = end_of(&mut child).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("{command:?} still ran after {WITHIN:?}")
    });
    Ended {
        code: status.code(),
        out: out.join().unwrap(),
        err: err.join().unwrap(),
    }
}

fn read_on(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn end_of(child: &mut Child) -> Option<ExitStatus> {
    until(|| child.try_wait().unwrap())
}

/// Asks again and again until there is an answer, or none in time.
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + WITHIN;
    while Instant::now() < deadline {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        std::thread::sleep(POLL);
    }
    None
}

/// A configuration beside its secrets' files.
pub(crate) fn setup(toml: &str) -> Setup {
    Setup::new(toml)
        .file("secret", SECRET.as_bytes())
        .file("other-secret", OTHER_SECRET.as_bytes())
}

/// A setup's command with further arguments.
pub(crate) fn command(setup: &Setup, arguments: &[&str]) -> Command {
    let mut command = setup.command(arguments[0]);
    command.args(&arguments[1..]);
    command
}

/// Runs a command against a running gate, which it finds by its addresses and its token.
#[track_caller]
pub(crate) fn ask(gate: &GateProcess, arguments: &[&str]) -> Ended {
    run(&mut asking(gate, arguments))
}

/// The command that [`ask`] runs.
pub(crate) fn asking(gate: &GateProcess, arguments: &[&str]) -> Command {
    let token = token_file(gate.setup().directory());
    let admin = format!("http://{}", gate.admin_address());
    let mut command = tikigate(arguments);
    command.args(["--admin", &admin]);
    if arguments[0] != "probe" {
        command.arg("--token-file").arg(token);
    }
    command
}

pub(crate) fn token_file(directory: &Path) -> PathBuf {
    directory.join("admin.token")
}

/// A call of Tiki's, signed now.
pub(crate) fn signed(path: &str, body: &str) -> Call {
    Call::post(path, body, SystemTime::now())
}

/// Sends a call signed now.
pub(crate) async fn post(address: SocketAddr, path: &str, body: &str) -> RawAnswer {
    exchange(&ListenAddress::Tcp(address), signed(path, body).to_bytes()).await
}

/// Gets a path of the admin listener.
pub(crate) async fn get(admin: SocketAddr, path: &str) -> RawAnswer {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    exchange(&ListenAddress::Tcp(admin), request).await
}

/// A gate whose output goes where the test wants it, on any kind of listener. Dropping it kills it.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts it with standard output and error in a file.
    pub(crate) fn start(command: &mut Command, setup: &Setup) -> Self {
        let log = setup.directory().join("output");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        Self::start_as_it_is(command, log)
    }

    /// Starts it with the streams that the command was given.
    pub(crate) fn start_as_it_is(command: &mut Command, log: PathBuf) -> Self {
        let child = command.spawn().unwrap();
        Self { child, log }
    }

    /// Waits until `tikigate probe ready` with these arguments says so.
    #[track_caller]
    pub(crate) fn wait_until_ready(&mut self, probe: &[&str]) {
        let arguments = [&["probe", "ready"], probe].concat();
        let ready = until(|| {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the gate ended: {status}: {}", self.output());
            }
            (run(&mut tikigate(&arguments)).code == Some(0)).then_some(())
        });
        assert!(
            ready.is_some(),
            "the gate was not ready in time: {}",
            self.output()
        );
    }

    /// The addresses of the last `listening` line.
    #[track_caller]
    pub(crate) fn wait_for_addresses(&mut self) -> (SocketAddr, SocketAddr) {
        let addresses = until(|| {
            let output = self.output();
            let lines = output.lines().rev();
            let mut values = lines.filter_map(|line| serde_json::from_str(line).ok());
            let line: serde_json::Value =
                values.find(|line: &serde_json::Value| line["message"] == "listening")?;
            let address = |name: &str| line[name].as_str()?.parse().ok();
            Some((address("server.address")?, address("admin.address")?))
        });
        addresses
            .unwrap_or_else(|| panic!("the gate never said where it listens: {}", self.output()))
    }

    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        // Until it is waited for, an ended child keeps its id: nobody else can be hit.
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        end_of(&mut self.child)
            .unwrap_or_else(|| panic!("it still ran after {WITHIN:?}: {}", self.output()))
    }

    /// Sends SIGTERM and waits for the end.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors only say that there is nothing left to kill or to wait for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
