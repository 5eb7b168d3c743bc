//! The files of `deploy/systemd/`: well-formed, with little exposure, and no stricter than the gate bears.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::commands::{NOBODY, post, serve_as_nobody, setup};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{refund, usual};
use crate::support::gate_process::GateProcess;
use crate::support::samples::root;

fn unit(name: &str) -> String {
    fs::read_to_string(root().join("deploy/systemd").join(name)).unwrap()
}

/// The values of a key of a unit, in their order.
fn values<'u>(unit: &'u str, key: &str) -> Vec<&'u str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value)
        .collect()
}

#[track_caller]
fn analyze(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .output()
        .unwrap();
    let told = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&told).into_owned(),
    )
}

#[test]
fn the_units_are_well_formed() {
    // Its program has to be there; everything else is checked as it is shipped.
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name).display().to_string();
    let service = unit("tikigate.service");
    let [start] = values(&service, "ExecStart")[..] else {
        panic!("one ExecStart");
    };
    let program = start.split(' ').next().unwrap();
    assert_eq!(program, "/usr/local/bin/tikigate");
    let here = service.replace(program, env!("CARGO_BIN_EXE_tikigate"));
    fs::write(place("tikigate.service"), here).unwrap();
    fs::write(place("tikigate.socket"), unit("tikigate.socket")).unwrap();
    let (well, told) = analyze(&[
        "verify",
        "--man=no",
        &place("tikigate.service"),
        &place("tikigate.socket"),
    ]);
    assert!(well && told.is_empty(), "{told}");
}

#[test]
fn the_service_is_exposed_as_little_as_two_in_ten() {
    let service = root().join("deploy/systemd/tikigate.service");
    let (well, told) = analyze(&[
        "security",
        "--offline=true",
        "--threshold=20",
        "--no-pager",
        &service.display().to_string(),
    ]);
    assert!(well && told.contains("Overall exposure level"), "{told}");
}

#[test]
fn the_user_is_made_with_the_ledgers_directory_as_its_home() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    let users = self::root().join("deploy/systemd/tikigate.sysusers");
    let made = Command::new("systemd-sysusers")
        .arg(format!("--root={}", root.path().display()))
        .arg(users)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let passwd = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    let [name, _, _, _, _, home, shell] = passwd.trim().split(':').collect::<Vec<_>>()[..] else {
        panic!("{passwd}");
    };
    let service = unit("tikigate.service");
    assert_eq!(values(&service, "User"), [name]);
    assert_eq!(values(&service, "WorkingDirectory"), [home]);
    assert!(shell.ends_with("nologin"), "{shell}");
}

/// A stop that is cut short makes unknowns of refunds that would have been answered.
#[test]
fn stopping_may_take_as_long_as_a_drain() {
    let service = unit("tikigate.service");
    let [stop] = values(&service, "TimeoutStopSec")[..] else {
        panic!("one TimeoutStopSec");
    };
    let defaults = tikigate::config::load(&root().join("config/minimal.toml"), &[]).unwrap();
    let server = &defaults.settings.server;
    // The gate takes 5 s at last for recording and closing.
    let drain = server.drain_delay + server.drain_within + Duration::from_secs(5);
    let stop = Duration::from_secs(stop.parse().unwrap());
    assert!(stop > drain, "{stop:?} {drain:?}");
}

/// The system calls that a unit's filter lets through, by systemd's own sets.
fn let_through(unit: &str) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for value in values(unit, "SystemCallFilter") {
        let (without, sets) = match value.strip_prefix('~') {
            Some(sets) => (true, sets),
            None => (false, value),
        };
        for call in sets.split(' ').flat_map(calls_of) {
            match without {
                true => allowed.remove(&call),
                false => allowed.insert(call),
            };
        }
    }
    allowed
}

fn calls_of(set: &str) -> Vec<String> {
    let (well, told) = analyze(&["syscall-filter", "--no-pager", set]);
    assert!(well, "{told}");
    let entries = told
        .lines()
        .filter(|line| line.starts_with(' '))
        .map(str::trim);
    let entries: Vec<&str> = entries.filter(|entry| !entry.starts_with('#')).collect();
    entries
        .into_iter()
        .flat_map(|entry| match entry.starts_with('@') {
            true => calls_of(entry),
            false => vec![entry.to_owned()],
        })
        .collect()
}

/// A whole life under `strace`: each of its calls is one that the filter lets through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_life_needs_no_system_call_that_the_unit_forbids() {
    let allowed = let_through(&unit("tikigate.service"));
    for usual in ["epoll_wait", "fsync", "fdatasync", "accept4", "sendto"] {
        assert!(allowed.contains(usual), "{usual} {allowed:?}");
    }
    for barred in ["mount", "ptrace", "setpriority", "reboot"] {
        assert!(!allowed.contains(barred), "{barred}");
    }

    let backend = Backend::start(|_| Answer::success().into()).await;
    // With all that lives in a unit: the ledger's file, and spans that go out.
    let toml = usual(&backend.url()).replace(
        "store = \"memory\"\nallow_volatile = true",
        "path = \"tikigate.db\"",
    ) + "[tracing]\nendpoint = \"http://127.0.0.1:9\"\nsample_percent = 100\n";
    assert!(toml.contains("tikigate.db"));
    let setup = std::sync::Arc::new(setup(&toml));
    let trace = setup.directory().join("trace");
    // As the unit's user: SQLite does more where it is root.
    let is_root = rustix::process::getuid().is_root();
    let serve = match is_root {
        true => serve_as_nobody(&setup),
        false => setup.command("serve"),
    };
    let mut strace = Command::new("strace");
    if is_root {
        strace.uid(NOBODY).gid(NOBODY);
    }
    strace
        // The tracer stands aside, so that signals go to the gate.
        .args(["-D", "-f", "-qq", "-o"])
        .arg(&trace)
        .arg(serve.get_program())
        .args(serve.get_args());
    let mut gate = GateProcess::launch(strace, setup).unwrap();
    for number in 0..3 {
        let body = refund(&format!("r-{number}"), "1");
        assert_eq!(
            post(gate.address(), "/tiki/refund", &body).await.status,
            200
        );
    }
    gate.signal(rustix::process::Signal::HUP);
    assert_eq!(gate.terminate().code(), Some(0));

    let text = fs::read_to_string(&trace).unwrap();
    let used: BTreeSet<&str> = text.lines().filter_map(call_of).collect();
    for expected in ["fsync", "listen", "prctl"] {
        assert!(used.contains(expected), "{expected} {used:?}");
    }
    let forbidden: Vec<&&str> = used
        .iter()
        .filter(|call| !allowed.contains(**call))
        .collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
}

/// The system call of a line of `strace -f -o`: `1234 fdatasync(7) = 0`.
fn call_of(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(' ')?;
    let rest = rest.trim_start();
    let rest = match rest.strip_prefix("<... ") {
        Some(resumed) => return resumed.split(' ').next(),
        None => rest,
    };
    let (name, _) = rest.split_once('(')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!name.is_empty() && name.bytes().all(plain)).then_some(name)
}
