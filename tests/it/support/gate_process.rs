//! The real binary, running: started with a configuration, watched through its standard output,
//! told by signals, and never left behind.
//!
//! Everything here blocks the calling thread. In an asynchronous test that itself serves the gate
//! (a backend on the same runtime, say), wait for the end in `tokio::task::spawn_blocking`.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// From the start of the process to its readiness.
const START_WITHIN: Duration = Duration::from_secs(20);
/// How long [`GateProcess::wait_for_line`] waits.
const LINE_WITHIN: Duration = Duration::from_secs(20);
/// How long [`GateProcess::terminate`] waits; a test whose drain takes longer uses
/// [`GateProcess::signal_terminate`] and [`GateProcess::wait`].
const END_WITHIN: Duration = Duration::from_secs(20);
/// Between two looks at something that can't be waited for.
const POLL: Duration = Duration::from_millis(10);
/// Limit of one probe of `/readyz`.
const PROBE_WITHIN: Duration = Duration::from_secs(2);

/// What a gate is started with: a directory of its own with the configuration and its secrets.
pub struct Setup {
    directory: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

impl Setup {
    /// A directory with this configuration as `tikigate.toml`.
    pub fn new(config_toml: &str) -> Self {
        let setup = Self {
            directory: tempfile::tempdir().unwrap(),
            environment: Vec::new(),
        };
        setup.file("tikigate.toml", config_toml.as_bytes())
    }

    /// Adds a file, mode 0600, which the configuration names by `name`.
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.directory.path().join(name))
            .unwrap();
        file.write_all(content).unwrap();
        self
    }

    /// Sets an environment variable for the gate.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The configuration's path, for other commands.
    pub fn config_path(&self) -> PathBuf {
        self.directory.path().join("tikigate.toml")
    }

    /// The binary with this command, the configuration and the environment of this set-up; nothing
    /// that the caller's own environment says about a gate gets through.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tikigate"));
        command.arg(name).arg("--config").arg(self.config_path());
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("TIKIGATE") {
                command.env_remove(variable);
            }
        }
        for (variable, value) in &self.environment {
            command.env(variable, value);
        }
        command
    }

    /// Starts `tikigate serve` and waits until it is ready.
    ///
    /// # Panics
    /// With all that the gate wrote, if it ends or is not ready in time.
    #[track_caller]
    pub fn start(self) -> GateProcess {
        let command = self.command("serve");
        GateProcess::launch(command, Arc::new(self)).unwrap_or_else(|fault| panic!("{fault}"))
    }
}

/// A gate that did not become ready.
#[derive(Debug)]
pub struct NotReady {
    /// How it ended, if it did.
    pub status: Option<ExitStatus>,
    /// What is wrong, with all that the gate wrote.
    pub text: String,
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A running gate. Dropping it kills the process.
pub struct GateProcess {
    child: Child,
    output: Arc<Output>,
    listening: Listening,
    setup: Arc<Setup>,
}

impl GateProcess {
    /// Starts a gate whose configuration needs no other file.
    #[track_caller]
    pub fn start(config_toml: &str) -> Self {
        Setup::new(config_toml).start()
    }

    /// Starts a gate by this command, which is one of `setup`'s or runs one, and waits until it is
    /// ready. Many lives can be led on one set-up, one after the other.
    ///
    /// # Errors
    /// The gate ended or was not ready in time.
    pub fn launch(mut command: Command, setup: Arc<Setup>) -> Result<Self, NotReady> {
        let deadline = Instant::now() + START_WITHIN;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} did not start: {error}"));
        let output = Arc::new(Output::default());
        Output::collect(&output, child.stdout.take(), Stream::Out);
        Output::collect(&output, child.stderr.take(), Stream::Err);
        // From here on the process is in a value whose drop ends it, whatever fails below.
        let mut gate = Self {
            child,
            output,
            listening: Listening::unknown(),
            setup,
        };
        let ready = match gate.wait_for_addresses(deadline) {
            Ok(listening) => {
                gate.listening = listening;
                gate.wait_until_ready(deadline)
            }
            Err(fault) => Err(fault),
        };
        match ready {
            Ok(()) => Ok(gate),
            Err(text) => {
                // One that is about to end says how within a moment; one that hangs never does.
                let status = gate.ends_within(Duration::from_secs(1));
                Err(NotReady { status, text })
            }
        }
    }

    /// Where Tiki's calls go.
    pub fn address(&self) -> SocketAddr {
        self.listening.server
    }

    /// Where probes, metrics and the ledger API answer.
    pub fn admin_address(&self) -> SocketAddr {
        self.listening.admin
    }

    /// The directory and the commands of this gate's configuration.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All lines of standard output so far.
    pub fn lines(&self) -> Vec<String> {
        self.output.state.lock().unwrap().out.clone()
    }

    /// All lines of standard error so far.
    pub fn error_lines(&self) -> Vec<String> {
        self.output.state.lock().unwrap().err.clone()
    }

    /// The first line of standard output, past or to come, for which `predicate` holds.
    ///
    /// # Panics
    /// With all that the gate wrote, if there is none within 20 seconds or the output ends before.
    #[track_caller]
    pub fn wait_for_line(&self, predicate: impl FnMut(&str) -> bool) -> String {
        match self.find_line(Instant::now() + LINE_WITHIN, predicate) {
            Some(line) => line,
            None => panic!("{}", self.fault("the gate never wrote the expected line")),
        }
    }

    /// Sends SIGTERM, on which a gate drains.
    pub fn signal_terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If the process has been waited for already.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        // Until it is waited for, an ended child keeps its id: nobody else can be hit.
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end of the process and of its output.
    ///
    /// # Panics
    /// With all that the gate wrote, if it still runs after `within`.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let Some(status) = self.ends_within(within) else {
            panic!("{}", self.fault("the gate did not end in time"));
        };
        self.wait_for_output();
        status
    }

    /// How the process ended; none if it still runs after `within`.
    pub fn ends_within(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || Instant::now() >= deadline {
                return ended;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends the gate as an orchestrator would, and says how it ended.
    ///
    /// # Panics
    /// With all that the gate wrote, if it still runs after 20 seconds.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal_terminate();
        self.wait(END_WITHIN)
    }

    /// Ends the process at once, as a crash would; does nothing if it has ended.
    pub fn kill(&mut self) {
        // Errors only say that there is nothing left to kill or to wait for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn wait_for_addresses(&self, deadline: Instant) -> Result<Listening, String> {
        let mut found = None;
        self.find_line(deadline, |line| {
            found = Listening::parse(line);
            found.is_some()
        });
        found.ok_or_else(|| self.fault("the gate never said where it listens"))
    }

    fn wait_until_ready(&mut self, deadline: Instant) -> Result<(), String> {
        loop {
            if probe(self.listening.admin, "/readyz") == Some(200) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                self.wait_for_output();
                return Err(self.fault(&format!("the gate ended before it was ready: {status}")));
            }
            if Instant::now() >= deadline {
                return Err(self.fault("the gate was not ready in time"));
            }
            std::thread::sleep(POLL);
        }
    }

    /// What an ended process wrote last may still be on its way through the reading threads.
    fn wait_for_output(&self) {
        self.find_line(Instant::now() + LINE_WITHIN, |_| false);
    }

    fn find_line(
        &self,
        deadline: Instant,
        mut predicate: impl FnMut(&str) -> bool,
    ) -> Option<String> {
        let mut seen = 0;
        let mut state = self.output.state.lock().unwrap();
        loop {
            while let Some(line) = state.out.get(seen) {
                seen += 1;
                if predicate(line) {
                    return Some(line.clone());
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.open == 0 || left.is_zero() {
                return None;
            }
            state = self.output.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn fault(&self, what: &str) -> String {
        format!(
            "{what}\n-- its output:\n{}\n-- its errors:\n{}",
            self.lines().join("\n"),
            self.error_lines().join("\n")
        )
    }
}

impl Drop for GateProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The line with which a gate says where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listening {
    server: SocketAddr,
    admin: SocketAddr,
}

impl Listening {
    fn unknown() -> Self {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            server: nowhere,
            admin: nowhere,
        }
    }

    /// Reads the line; any other is `None`.
    fn parse(line: &str) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        if value.get("message")? != "listening" {
            return None;
        }
        let address = |name: &str| value.get(name)?.as_str()?.parse().ok();
        Some(Self {
            server: address("server.address")?,
            admin: address("admin.address")?,
        })
    }
}

/// What a process wrote, line by line.
#[derive(Default)]
struct Output {
    state: Mutex<OutputState>,
    changed: Condvar,
}

#[derive(Default)]
struct OutputState {
    out: Vec<String>,
    err: Vec<String>,
    /// Streams that have not ended.
    open: usize,
}

#[derive(Clone, Copy)]
enum Stream {
    Out,
    Err,
}

impl Output {
    /// Reads a stream to its end in a thread of its own, so that the process never waits for a
    /// reader.
    fn collect(output: &Arc<Self>, stream: Option<impl Read + Send + 'static>, which: Stream) {
        let Some(stream) = stream else { return };
        output.state.lock().unwrap().open += 1;
        let output = Arc::clone(output);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
                let line = String::from_utf8_lossy(&bytes)
                    .trim_end_matches(['\r', '\n'])
                    .to_owned();
                bytes.clear();
                output.change(|state| match which {
                    Stream::Out => state.out.push(line),
                    Stream::Err => state.err.push(line),
                });
            }
            output.change(|state| state.open -= 1);
        });
    }

    fn change(&self, change: impl FnOnce(&mut OutputState)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }
}

/// The status of a GET, or `None` if there was no answer.
fn probe(address: SocketAddr, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect_timeout(&address, PROBE_WITHIN).ok()?;
    stream.set_read_timeout(Some(PROBE_WITHIN)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

mod tests {
    use std::net::TcpListener;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const LINE: &str = r#"{"timestamp":"2026-11-23T10:00:00Z","level":"INFO","message":"listening","server.address":"127.0.0.1:4001","admin.address":"[::1]:4002"}"#;

    #[test]
    fn the_listening_line_is_read() {
        let listening = Listening::parse(LINE).unwrap();
        assert_eq!(listening.server, "127.0.0.1:4001".parse().unwrap());
        assert_eq!(listening.admin, "[::1]:4002".parse().unwrap());
    }

    #[test]
    fn no_other_line_is_taken_for_it() {
        for line in [
            "",
            "listening",
            r#"{"message":"draining","server.address":"127.0.0.1:1","admin.address":"127.0.0.1:2"}"#,
            r#"{"message":"listening","server.address":"127.0.0.1:1"}"#,
            r#"{"message":"listening","server.address":"unix:/x","admin.address":"127.0.0.1:2"}"#,
        ] {
            assert_eq!(Listening::parse(line), None, "{line}");
        }
    }

    /// A process that behaves like a gate towards this helper, as far as a shell can.
    fn stand_in(script: &str) -> (Command, Arc<Setup>) {
        let setup = Arc::new(Setup::new("").file("stand-in.sh", script.as_bytes()));
        let mut command = Command::new("sh");
        command.arg(setup.directory().join("stand-in.sh"));
        (command, setup)
    }

    /// An admin listener that gives these statuses, one a connection.
    fn admin_with(statuses: &'static [u16]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for status in statuses {
                let (stream, _) = listener.accept().unwrap();
                let head: Vec<String> = BufReader::new(&stream)
                    .lines()
                    .map(Result::unwrap)
                    .take_while(|line| !line.is_empty())
                    .collect();
                assert_eq!(head[0], "GET /readyz HTTP/1.1");
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
                (&stream).write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    fn listening_line(admin: SocketAddr) -> String {
        format!(
            r#"{{"message":"listening","server.address":"127.0.0.1:4001","admin.address":"{admin}"}}"#
        )
    }

    #[test]
    fn a_gate_is_started_watched_and_ended() {
        let admin = admin_with(&[503, 200]);
        let (command, setup) = stand_in(&format!(
            "echo starting\necho '{}'\necho warned >&2\nexec sleep 60",
            listening_line(admin)
        ));
        let mut gate = GateProcess::launch(command, setup).unwrap();
        assert_eq!(gate.address(), "127.0.0.1:4001".parse().unwrap());
        assert_eq!(gate.admin_address(), admin);
        assert_eq!(gate.wait_for_line(|line| line == "starting"), "starting");
        let status = gate.terminate();
        assert_eq!(status.signal(), Some(Signal::TERM.as_raw()));
        assert_eq!(gate.lines().len(), 2);
        assert_eq!(gate.error_lines(), ["warned"]);
    }

    #[test]
    fn a_dropped_gate_is_gone() {
        let admin = admin_with(&[200]);
        let (command, setup) = stand_in(&format!(
            "echo '{}'\ntrap '' TERM\nexec sleep 60",
            listening_line(admin)
        ));
        let gate = GateProcess::launch(command, setup).unwrap();
        let pid = Pid::from_child(&gate.child);
        assert!(rustix::process::test_kill_process(pid).is_ok());
        drop(gate);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[test]
    fn a_gate_that_ends_early_shows_what_it_wrote() {
        let (command, setup) = stand_in("echo half a line\necho no such key >&2\nexit 78");
        let NotReady {
            status,
            text: fault,
        } = GateProcess::launch(command, setup).err().unwrap();
        assert_eq!(status.and_then(|status| status.code()), Some(78));
        assert!(fault.contains("half a line"), "{fault}");
        assert!(fault.contains("no such key"), "{fault}");

        let nobody = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let (command, setup) = stand_in(&format!(
            "echo '{}'\necho too bad >&2\nexit 3",
            listening_line(nobody)
        ));
        let fault = GateProcess::launch(command, setup).err().unwrap().text;
        assert!(fault.contains("ended before it was ready"), "{fault}");
        assert!(fault.contains("too bad"), "{fault}");
    }

    #[test]
    fn files_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;

        let setup = Setup::new("[server]").file("secret", b"s3cret");
        for name in ["tikigate.toml", "secret"] {
            let file = std::fs::metadata(setup.directory().join(name)).unwrap();
            assert_eq!(file.permissions().mode() & 0o777, 0o600, "{name}");
        }
    }
}
