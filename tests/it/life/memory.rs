//! What of its secrets a gate leaves behind: no core, no memory that others can read, and nothing of a
//! secret that it does not use any more.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use crate::commands::{get, post, setup};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{changed, refund, usual};
use crate::support::gate_process::GateProcess;

const NOBODY: &str = "http://127.0.0.1:9";

#[test]
fn no_core_is_written_of_a_gate_whatever_the_limit_was() {
    let gate = setup(&usual(NOBODY)).start();
    let limits = fs::read_to_string(format!("/proc/{}/limits", gate.pid())).unwrap();
    let cores = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let words: Vec<&str> = cores.unwrap().split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{words:?}");
}

/// A process that may not be dumped belongs to root as far as tracing is concerned: that is how the
/// kernel shows it, and how it keeps others of the same user out.
#[test]
fn no_other_process_of_the_same_user_may_read_its_memory() {
    use std::os::unix::fs::{MetadataExt, chown};
    use std::os::unix::process::CommandExt;

    let own = rustix::process::getuid();
    if !own.is_root() {
        // Tests of the same user find it closed.
        let gate = setup(&usual(NOBODY)).start();
        File::open(format!("/proc/{}/mem", gate.pid())).unwrap_err();
        return;
    }
    // As root, by somebody else's eyes: the gate runs as another user, and so does a reader.
    const USER: u32 = 65532;
    let setup = setup(&usual(NOBODY));
    let directory = setup.directory().to_owned();
    for entry in fs::read_dir(&directory).unwrap() {
        chown(entry.unwrap().path(), Some(USER), Some(USER)).unwrap();
    }
    chown(&directory, Some(USER), Some(USER)).unwrap();
    let mut serve = setup.command("serve");
    serve.uid(USER).gid(USER);
    let gate = GateProcess::launch(serve, std::sync::Arc::new(setup)).unwrap();
    let memory = format!("/proc/{}/mem", gate.pid());
    assert_eq!(fs::metadata(&memory).unwrap().uid(), 0);
    let mut reader = std::process::Command::new("head");
    reader.args(["-c1", &memory]).uid(USER).gid(USER);
    let told = reader.output().unwrap();
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.contains("Permission denied"), "{told}");
}

/// How often these bytes stand in a process's memory.
fn occurrences(pid: u32, needle: &[u8]) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split(' ').next().unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|end| u64::from_str_radix(end, 16).unwrap());
        memory.seek(SeekFrom::Start(from)).unwrap();
        let mut bytes = Vec::new();
        // What is mapped but not there can't be read, and holds nothing.
        let _ = (&mut memory).take(to - from).read_to_end(&mut bytes);
        let finder = bytes.windows(needle.len());
        found += finder.filter(|window| *window == needle).count();
    }
    found
}

fn write_secret(gate: &GateProcess, name: &str, bytes: &[u8]) {
    let path = gate.setup().directory().join(name);
    let _ = fs::remove_file(&path);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
}

/// A secret of a client, a header's value, an admin's and an outbound token, and the private keys of a
/// listener: all replaced while the gate runs, and gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_secrets_that_were_rotated_out() {
    if !rustix::process::getuid().is_root() {
        // Nobody but root may look; that is tested above.
        return;
    }
    let backend = Backend::start(|_| Answer::success().into()).await;
    let toml = changed(
        &backend.url(),
        &[
            (
                "[admin]\n",
                "[admin]\ntokens = [{ name = \"linh\", file = \"admin-secret\" }]\n",
            ),
            (
                "secrets = [{ name = \"now\", file = \"secret\" }]",
                "secrets = [{ name = \"now\", file = \"secret\" }, { name = \"old\", file = \"old-secret\" }]",
            ),
        ],
    );
    let old = [
        (
            "old-secret",
            "an-old-secret-of-the-wallet-that-nobody-needs",
        ),
        (
            "admin-secret",
            "an-old-token-of-an-admin-0123456789abcdefgh",
        ),
    ];
    let mut setup = setup(&toml);
    for (name, text) in old {
        setup = setup.file(name, text.as_bytes());
    }
    let gate = setup.start();
    // Some use of what there is, so that copies would have been made.
    for number in 0..20 {
        let body = refund(&format!("r-{number}"), "1");
        assert_eq!(
            post(gate.address(), "/tiki/refund", &body).await.status,
            200
        );
    }
    let pid = gate.pid();

    for (number, (name, _)) in old.iter().enumerate() {
        write_secret(
            &gate,
            name,
            format!("new-{number}-{}", "x".repeat(40)).as_bytes(),
        );
    }
    let taken = "tikigate_config_reloads_total{outcome=\"taken\"} ";
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let metrics = get(gate.admin_address(), "/metrics").await;
        let count = metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(taken));
        if count.is_some_and(|count| count != "0") {
            break;
        }
        assert!(Instant::now() < deadline, "{}", metrics.text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Both workers have calls that begin with the new settings.
    for number in 20..60 {
        let body = refund(&format!("r-{number}"), "1");
        assert_eq!(
            post(gate.address(), "/tiki/refund", &body).await.status,
            200
        );
    }
    // The settings of before live as long as what began with them: a look at the backends, say.
    for (name, text) in old {
        let deadline = Instant::now() + Duration::from_secs(20);
        while occurrences(pid, text.as_bytes()) > 0 {
            assert!(Instant::now() < deadline, "{name} is still there");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // The way to look is right: what is in use is found.
    assert!(occurrences(pid, b"/tiki/refund") > 0);
}
