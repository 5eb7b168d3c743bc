//! `deploy/local/up`: it brings all of it up, calls go through, and nothing is left when it is taken down.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tikigate::net::ListenAddress;
use tikigate::tiki::Family;

use super::{read, succeeds};
use crate::support::gate::Call;
use crate::support::raw::{RawAnswer, exchange};
use crate::support::samples::root;

/// The client of `deploy/local/tikigate.toml`.
const CLIENT: &str = "example-client-key";
const NAMES: [&str; 5] = ["gate", "admin", "backend", "postgres", "prometheus"];
const READY_WITHIN: Duration = Duration::from_secs(120);

/// The script, running.
struct Up {
    child: Child,
    directory: PathBuf,
    ports: Vec<u16>,
    _parent: tempfile::TempDir,
}

fn script(name: &str) -> Command {
    let mut command = Command::new(root().join("deploy/local").join(name));
    // What a test's own environment says about a gate must not get through.
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("TIKIGATE") {
            command.env_remove(variable);
        }
    }
    command.stdin(Stdio::null());
    command
}

impl Up {
    /// Starts it on these ports, without waiting.
    fn start(ports: Vec<u16>) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("local");
        let mut command = script("up");
        command.arg("--directory").arg(&directory);
        command.args(["--binary", env!("CARGO_BIN_EXE_tikigate")]);
        for (name, port) in NAMES.iter().zip(&ports) {
            command.args([format!("--{name}-port"), port.to_string()]);
        }
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        Self {
            child,
            directory,
            ports,
            _parent: parent,
        }
    }

    /// What it says until it is ready.
    fn wait_until_ready(&mut self) -> String {
        let mut said = String::new();
        let began = Instant::now();
        let mut lines = BufReader::new(self.child.stdout.take().unwrap()).lines();
        while let Some(Ok(line)) = lines.next() {
            said += &format!("{line}\n");
            if line.starts_with("Ctrl-C ends") {
                // Its pipe stays open for as long as it runs.
                std::thread::spawn(move || lines.for_each(drop));
                return said;
            }
            assert!(began.elapsed() < READY_WITHIN, "{said}");
        }
        panic!("it ended: {said}\n{}", self.errors());
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        let mut errors = self.child.stderr.take().unwrap();
        errors.read_to_string(&mut text).unwrap();
        text
    }

    fn address(&self, name: &str) -> ListenAddress {
        let at = NAMES.iter().position(|known| *known == name).unwrap();
        ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], self.ports[at])))
    }

    /// Ctrl-C: the whole of its process group gets it.
    fn interrupt(&self) {
        kill_process_group(Pid::from_child(&self.child), Signal::INT).unwrap();
    }

    /// Waits until a file in its directory has this text.
    fn wait_for(&self, file: &str, text: &str) {
        let path = self.directory.join(file);
        let deadline = Instant::now() + READY_WITHIN;
        while !std::fs::read_to_string(&path).is_ok_and(|read| read.contains(text)) {
            assert!(Instant::now() < deadline, "no {text} in {file}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Name, id and start of each process that it noted.
    fn started(&self) -> Vec<(String, u32, String)> {
        let list = std::fs::read_to_string(self.directory.join("started")).unwrap();
        let process = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            (
                words[0].to_owned(),
                words[1].parse().unwrap(),
                words[2].to_owned(),
            )
        };
        list.lines().map(process).collect()
    }

    async fn get(&self, name: &str, path: &str) -> RawAnswer {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        exchange(&self.address(name), request).await
    }
}

/// Whoever fails in between leaves nothing running.
impl Drop for Up {
    fn drop(&mut self) {
        let _ = script("down").arg(&self.directory).output();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_ports() -> Vec<u16> {
    let taken = NAMES.map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    taken
        .iter()
        .map(|port| port.local_addr().unwrap().port())
        .collect()
}

/// Whether a process runs that began then.
fn runs(pid: u32, start: &str) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[0] != "Z" && fields[19] == start
}

/// Every process whose command line has this text.
fn with_command_line(text: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let line = |entry: std::io::Result<std::fs::DirEntry>| {
        let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(text).then_some(line)
    };
    processes.filter_map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_through_and_nothing_is_left_when_it_is_taken_down() {
    let mut up = Up::start(free_ports());
    let (mut up, said) = tokio::task::spawn_blocking(move || {
        let said = up.wait_until_ready();
        (up, said)
    })
    .await
    .unwrap();
    assert!(
        said.contains("/tiki/refund | sh"),
        "what to type next: {said}"
    );
    assert!(
        said.contains("tikigate.json") || said.contains("/d/tikigate"),
        "{said}"
    );

    let secret = std::fs::read_to_string(up.directory.join("secrets/wallet.secret")).unwrap();
    let call = |path: &str, body: &str| {
        let client = (CLIENT, secret.trim_end());
        Call::post_as(
            client,
            Family::TikiVip,
            path,
            body.trim_end(),
            SystemTime::now(),
        )
    };
    let gate = up.address("gate");
    let (refund, ipn) = (
        read("deploy/local/refund.json"),
        read("deploy/local/ipn.json"),
    );
    for (path, body, replayed) in [
        ("/tiki/refund", &refund, None),
        ("/tiki/refund", &refund, Some("true")),
        ("/tiki/ipn", &ipn, None),
    ] {
        let answer = exchange(&gate, call(path, body).to_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("idempotency-replayed"), replayed);
    }
    let forged = call("/tiki/refund", &refund).with("x-tikivip-signature", &"0".repeat(64));
    assert_eq!(exchange(&gate, forged.to_bytes()).await.status, 401);

    // In the backend's book: the refund once.
    let book = up.get("backend", "/book").await.json();
    let entries = book.as_array().unwrap();
    let what: Vec<_> = entries
        .iter()
        .map(|entry| entry["what"].as_str().unwrap())
        .collect();
    assert_eq!(what, ["refund", "ipn"], "{book}");
    assert_eq!(entries[0]["key"], "r-1");
    // In the ledger, which is in PostgreSQL.
    let mut list = Command::new(env!("CARGO_BIN_EXE_tikigate"));
    list.args(["ledger", "list", "--format", "json", "--admin"])
        .arg(format!("http://{}", up.address("admin")))
        .arg("--token-file")
        .arg(up.directory.join("secrets/admin.token"));
    let records: Value = serde_json::from_str(&succeeds(&mut list)).unwrap();
    let mut states: Vec<_> = records["records"]
        .as_array()
        .unwrap_or_else(|| panic!("{records}"))
        .iter()
        .map(|record| {
            (
                record["route"].as_str().unwrap(),
                record["state"].as_str().unwrap(),
            )
        })
        .collect();
    states.sort_unstable();
    assert_eq!(states, [("ipn", "done"), ("refund", "done")]);
    // At Prometheus: the target is up, and the rules are there.
    let within = Instant::now() + Duration::from_secs(30);
    loop {
        let targets = up.get("prometheus", "/api/v1/targets").await.json();
        let target = &targets["data"]["activeTargets"][0];
        if target["health"] == "up" {
            assert_eq!(target["labels"]["job"], "tikigate");
            break;
        }
        assert!(Instant::now() < within, "{targets}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let rules = up.get("prometheus", "/api/v1/rules").await;
    assert!(rules.text().contains("TikigateRefundHeld"));

    let started = up.started();
    let names: Vec<_> = started.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(
        names[..5],
        ["up", "postgres", "backend", "gate", "prometheus"]
    );
    for (name, pid, start) in &started {
        assert!(runs(*pid, start), "{name} does not run");
    }
    let postgres = std::fs::read_to_string(up.directory.join("postgres-directory")).ok();
    let mut down = script("down");
    down.arg(&up.directory);
    tokio::task::spawn_blocking(move || succeeds(&mut down))
        .await
        .unwrap();
    up.child.wait().unwrap();
    for (name, pid, start) in &started {
        assert!(!runs(*pid, start), "{name} still runs");
    }
    assert!(!up.directory.exists());
    if let Some(postgres) = postgres {
        assert!(!Path::new(postgres.trim_end()).exists(), "{postgres}");
    }
    let place = up.directory.to_str().unwrap();
    let backend = format!("127.0.0.1:{}", up.ports[2]);
    for text in [place, &backend] {
        assert_eq!(
            with_command_line(text),
            Vec::<String>::new(),
            "left running"
        );
    }
}

#[test]
fn a_port_that_is_taken_is_named_and_nothing_is_started() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ports = free_ports();
    ports[2] = taken.local_addr().unwrap().port();
    let mut up = Up::start(ports.clone());
    let errors = up.errors();
    assert_eq!(up.child.wait().unwrap().code(), Some(1));
    assert!(
        errors.contains(&format!("port {} is taken", ports[2])),
        "{errors}"
    );
    assert!(errors.contains("--backend-port"), "{errors}");
    assert!(!up.directory.exists());
}

/// A gate that can't start: the script says why, and ends what it had started before.
#[test]
fn what_was_started_is_ended_when_something_does_not_come_up() {
    let mut up = Up::start(free_ports());
    // PostgreSQL takes its time: meanwhile the gate's configuration becomes wrong.
    up.wait_for("started", "postgres ");
    let started = up.started();
    std::fs::write(up.directory.join("tikigate.toml"), "[server\n").unwrap();
    let errors = up.errors();
    assert_eq!(up.child.wait().unwrap().code(), Some(1), "{errors}");
    assert!(errors.contains("gate did not become ready"), "{errors}");
    assert!(errors.contains("tikigate.toml"), "its log: {errors}");
    for (name, pid, start) in &started {
        assert!(name == "up" || !runs(*pid, start), "{name} still runs");
    }
    assert!(!up.directory.exists());
}

/// Somebody who is impatient.
#[test]
fn two_interrupts_end_all_of_it_too() {
    let mut up = Up::start(free_ports());
    up.wait_for("gate.log", "listening");
    let started = up.started();
    up.interrupt();
    up.wait_for("gate.log", "drain");
    up.interrupt();
    // 130, or what a program said that the interrupt met at its work.
    assert_ne!(up.child.wait().unwrap().code(), Some(0));
    for (name, pid, start) in &started {
        assert!(!runs(*pid, start), "{name} still runs");
    }
    assert!(!up.directory.exists());
}

#[test]
fn the_scripts_say_how_they_are_used() {
    for name in ["up", "down", "secrets"] {
        let said = succeeds(script(name).arg("--help"));
        assert!(
            said.starts_with(&format!("Usage: deploy/local/{name}")),
            "{said}"
        );
    }
    let output = script("up").arg("--no-such").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

/// Readable by their owner alone, kept when they are there, each of its own.
#[test]
fn secrets_are_made_once_and_for_one_reader() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let make = || {
        succeeds(
            script("secrets")
                .args(["--database-port", "5555"])
                .arg(directory.path()),
        );
        [
            "wallet.secret",
            "admin.token",
            "database.password",
            "database.url",
        ]
        .map(|name| {
            let path = directory.path().join(name);
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
            std::fs::read_to_string(path).unwrap()
        })
    };
    let made = make();
    assert_eq!(made, make());
    let [wallet, token, password, url] = made.map(|text| text.trim_end().to_owned());
    assert!(wallet.len() == 64 && token.len() == 64 && password.len() == 64);
    assert!(wallet != token && token != password);
    assert_eq!(
        url,
        format!("postgres://gate:{password}@127.0.0.1:5555/tikigate")
    );
}
