//! A ledger's file: backed up while its gate runs, put back, and looked into without a gate.

mod verify;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;

use super::{Ended, Running, command, post, run, setup, tikigate, token_file, until};
use crate::support::backend::{Answer, Backend, Behaviour};
use crate::support::disk::{Disk, Number};
use crate::support::gate::{refund, usual};
use crate::support::gate_process::Setup;

/// A configuration on SQLite, wherever the test's directory lies.
fn on_sqlite(backend: &str) -> String {
    let ledger = "store = \"memory\"\nallow_volatile = true";
    let sqlite = "store = \"sqlite\"\nallow_unsafe_filesystem = true";
    let usual = usual(backend);
    assert!(usual.contains(ledger), "the usual configuration changed");
    usual.replace(ledger, sqlite)
}

/// A backend that dies over each call as long as it is told to.
async fn backend() -> (Backend, Arc<AtomicBool>) {
    let dies = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&dies);
    let backend = Backend::start(move |_| match told.load(Ordering::SeqCst) {
        true => Behaviour::Close,
        false => Answer::success().into(),
    })
    .await;
    (backend, dies)
}

/// A gate that is stopped and started again on the same files.
struct Gate {
    setup: Setup,
    running: Option<Running>,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Gate {
    fn start(setup: Setup) -> Self {
        let nowhere = SocketAddr::from(([0; 4], 0));
        let mut gate = Self {
            setup,
            running: None,
            address: nowhere,
            admin: nowhere,
        };
        gate.start_again();
        gate
    }

    fn start_again(&mut self) {
        // What an earlier life said of its addresses is over.
        let _ = fs::remove_file(self.setup.directory().join("output"));
        let mut running = Running::start(&mut self.setup.command("serve"), &self.setup);
        (self.address, self.admin) = running.wait_for_addresses();
        running.wait_until_ready(&["--admin", &format!("http://{}", self.admin)]);
        self.running = Some(running);
    }

    /// Ends it as a crash would, with its log left behind.
    fn kill(&mut self) {
        drop(self.running.take());
        let log = database(&self.setup).with_extension("db-wal");
        assert!(fs::metadata(&log).unwrap().len() > 0, "no log was left");
    }

    fn terminate(&mut self) {
        let status = self.running.take().unwrap().terminate();
        assert!(status.success(), "{status}");
    }

    /// Runs a command against the running gate.
    fn ask(&self, line: &[&str]) -> Ended {
        let mut command = tikigate(line);
        command.args(["--admin", &format!("http://{}", self.admin)]);
        if line[0] != "probe" {
            let token = token_file(self.setup.directory());
            command.arg("--token-file").arg(token);
        }
        run(&mut command)
    }
}

async fn send(gate: &Gate, request_id: &str) -> (u16, Option<String>) {
    let body = refund(request_id, "150000");
    let answer = post(gate.address, "/tiki/refund", &body).await;
    (answer.status, answer.error_code())
}

fn held() -> (u16, Option<String>) {
    (500, Some("outcome_unknown".to_owned()))
}

/// A gate on SQLite, with `r-done` done and `r-dies` held.
async fn two_refunds() -> (Backend, Arc<AtomicBool>, Gate) {
    let (backend, dies) = backend().await;
    let gate = Gate::start(setup(&on_sqlite(&backend.url())));
    assert_eq!(send(&gate, "r-done").await, (200, None));
    dies.store(true, Ordering::SeqCst);
    assert_eq!(send(&gate, "r-dies").await.0, 502);
    dies.store(false, Ordering::SeqCst);
    assert_eq!(send(&gate, "r-dies").await, held());
    (backend, dies, gate)
}

fn database(setup: &Setup) -> PathBuf {
    setup.directory().join("tikigate.db")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `tikigate ledger` with the configuration.
fn ledger(setup: &Setup, line: &[&str]) -> Ended {
    run(&mut command(setup, &[&["ledger"], line].concat()))
}

/// `tikigate ledger` on a file, with the configuration.
fn on_file(setup: &Setup, file: &Path, line: &[&str]) -> Ended {
    ledger(setup, &[line, &["--file", text(file)]].concat())
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_gate_is_backed_up_and_the_backup_is_whole() {
    let (_backend, _, mut gate) = two_refunds().await;
    let away = tempfile::tempdir().unwrap();
    let backup = away.path().join("backup.db");
    let told = ledger(&gate.setup, &["backup", text(&backup)]).worked();
    assert!(told.contains("checked"), "{told}");
    assert_eq!(names_in(away.path()), ["backup.db"], "a backup is one file");
    let mode = fs::metadata(&backup).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // No log belongs to it: it can be read where nothing can be written.
    assert_eq!(fs::read(&backup).unwrap()[18..20], [1, 1]);

    let checked = run(&mut tikigate(&["ledger", "verify", text(&backup)])).worked();
    assert!(checked.ends_with("no faults\n"), "{checked}");
    assert_eq!(checked.matches("ok      ").count(), 6, "{checked}");

    // It is not overwritten, and neither is anything else.
    for target in [&backup, &gate.setup.config_path()] {
        let before = fs::read(target).unwrap();
        let told = ledger(&gate.setup, &["backup", text(target)]).failed(1);
        assert!(told.contains("is not overwritten"), "{told}");
        assert_eq!(fs::read(target).unwrap(), before);
    }
    // The gate has noticed nothing.
    assert_eq!(send(&gate, "r-done").await, (200, None));
    assert_eq!(send(&gate, "r-later").await, (200, None));

    // The backup is looked into by itself, without a configuration, and stays as it is.
    let before = fs::read(&backup).unwrap();
    let file = ["--file", text(&backup), "--time-zone", "UTC"];
    let read = |line: &[&str]| run(&mut tikigate(&[&["ledger"], line, &file].concat())).worked();
    let list = read(&["list"]);
    assert!(list.contains("r-done") && list.contains("r-dies"), "{list}");
    assert!(!list.contains("r-later"), "{list}");
    assert!(read(&["show", "r-dies"]).contains("upstream_closed"));
    assert!(read(&["quarantine"]).starts_with("no quarantine"));
    let table = read(&["export", "--from", "2020-01-01", "--to", "2100-01-01"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.contains(",150000,"), "the message's fields: {table}");
    assert_eq!(fs::read(&backup).unwrap(), before);
    assert_eq!(names_in(away.path()), ["backup.db"]);
    gate.terminate();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_taken_while_refunds_run() {
    let (_backend, _, mut gate) = two_refunds().await;
    let away = tempfile::tempdir().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (address, told) = (gate.address, Arc::clone(&stop));
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while !told.load(Ordering::SeqCst) {
            let body = refund(&format!("r-{sent}"), "150000");
            assert_eq!(post(address, "/tiki/refund", &body).await.status, 200);
            sent += 1;
        }
        sent
    });
    let mut seen: i64 = 0;
    for number in 0..5 {
        let backup = away.path().join(format!("{number}.db"));
        let mut line = command(&gate.setup, &["ledger", "backup", text(&backup)]);
        tokio::task::spawn_blocking(move || run(&mut line).worked())
            .await
            .unwrap();
        let file = Connection::open(&backup).unwrap();
        let records: i64 = file
            .query_row("SELECT count(*) FROM records", (), |row| row.get(0))
            .unwrap();
        assert!(records >= seen.max(2), "{records} after {seen}");
        seen = records;
    }
    stop.store(true, Ordering::SeqCst);
    let sent = sending.await.unwrap();
    assert!(seen <= sent + 2, "{seen} of {sent}");
    gate.terminate();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_ledger_holds_what_it_does_not_know() {
    let (backend, dies, mut gate) = two_refunds().await;
    let away = tempfile::tempdir().unwrap();
    let backup = away.path().join("backup.db");
    ledger(&gate.setup, &["backup", text(&backup)]).worked();
    assert_eq!(send(&gate, "r-later").await, (200, None));
    assert_eq!(backend.requests().len(), 3);

    // A running gate keeps its ledger.
    let told = ledger(&gate.setup, &["restore", text(&backup)]).failed(1);
    assert!(
        told.contains("another process uses this ledger (process "),
        "{told}"
    );
    gate.terminate();
    let old = fs::read(database(&gate.setup)).unwrap();
    let told = ledger(&gate.setup, &["restore", text(&backup)]).worked();
    assert!(
        told.contains("in quarantine: restored from a backup of 20"),
        "{told}"
    );
    let kept = told
        .lines()
        .find_map(|line| line.strip_prefix("what was there is kept as "));
    assert_eq!(fs::read(kept.unwrap()).unwrap(), old);
    let before_start = names_in(gate.setup.directory());

    gate.start_again();
    assert_eq!(
        before_start
            .iter()
            .filter(|name| name.contains("draft"))
            .count(),
        0,
        "{before_start:?}"
    );
    let ready = gate.ask(&["probe", "ready"]).worked();
    assert!(
        ready.contains("quarantine (restored from a backup of 20")
            && ready.contains("lift-quarantine"),
        "{ready}"
    );
    // What the backup knows is answered; what it doesn't is held, whether it was sent or not.
    assert_eq!(send(&gate, "r-done").await, (200, None));
    assert_eq!(send(&gate, "r-later").await, held());
    assert_eq!(send(&gate, "r-new").await, held());
    assert_eq!(
        backend.requests().len(),
        3,
        "nothing was sent a second time"
    );
    let list = gate.ask(&["ledger", "list", "--state", "unknown"]).worked();
    assert_eq!(list.matches("unknown (ledger_gap)").count(), 2, "{list}");
    // A number means one record for ever.
    let later = list.lines().find(|line| line.contains("r-later")).unwrap();
    let old_list = run(&mut tikigate(&["ledger", "list", "--file", kept.unwrap()])).worked();
    let number = later.split(' ').next().unwrap();
    assert!(
        !old_list
            .lines()
            .any(|line| line.starts_with(&format!("{number} "))),
        "{old_list}"
    );

    let lift = [
        "ledger",
        "lift-quarantine",
        "--reason",
        "compared the books",
        "--by",
        "linh",
    ];
    gate.ask(&lift).worked();
    assert!(
        gate.ask(&["ledger", "quarantine"])
            .worked()
            .starts_with("no quarantine")
    );
    assert!(gate.ask(&lift).failed(1).contains("(not_quarantined)"));
    assert_eq!(send(&gate, "r-newer").await, (200, None));
    assert_eq!(send(&gate, "r-later").await, held(), "it stays held");
    gate.ask(&[
        "ledger",
        "resolve",
        "r-later",
        "--applied",
        "--reason",
        "in the books",
    ])
    .worked();
    assert_eq!(send(&gate, "r-later").await, (200, None));
    assert_eq!(backend.requests().len(), 4);
    drop(dies);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_a_crash_left_goes_with_the_file_that_is_replaced() {
    let (backend, _, mut gate) = two_refunds().await;
    let away = tempfile::tempdir().unwrap();
    let backup = away.path().join("backup.db");
    ledger(&gate.setup, &["backup", text(&backup)]).worked();
    assert_eq!(send(&gate, "r-later").await, (200, None));
    gate.kill();
    let told = ledger(&gate.setup, &["restore", text(&backup)]).worked();
    let kept = (told.lines()).find_map(|line| line.strip_prefix("what was there is kept as "));
    let kept = [
        "ledger",
        "list",
        "--time-zone",
        "UTC",
        "--file",
        kept.unwrap(),
    ];
    assert!(run(&mut tikigate(&kept)).worked().contains("r-later"));
    let path = database(&gate.setup);
    let list = on_file(&gate.setup, &path, &["list"]).worked();
    assert!(
        list.contains("r-dies") && !list.contains("r-later"),
        "{list}"
    );
    ledger(&gate.setup, &["verify", text(&path)]).worked();
    gate.start_again();
    assert_eq!(send(&gate, "r-later").await, held());
    assert_eq!(backend.requests().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_whose_own_ledger_is_in_trouble_is_unready_until_it_is_over() {
    let (backend, _) = backend().await;
    let base = tempfile::tempdir().unwrap();
    let data = base.path().join("data");
    fs::create_dir(&data).unwrap();
    let path = format!("path = \"{}/tikigate.db\"", text(&data));
    let sqlite = "store = \"sqlite\"";
    let config = on_sqlite(&backend.url()).replace(sqlite, &format!("{sqlite}\n{path}"));
    let disk = Disk::new(data, base.path().join("shadow"));
    let setup = (disk.environment().into_iter()).fold(setup(&config), |setup, (name, value)| {
        setup.environment(&name, &value)
    });
    let gate = Gate::start(setup);
    assert_eq!(send(&gate, "r-1").await, (200, None));
    disk.tell(Number::NoSpace, 1);
    let refused = (503, Some("ledger_unavailable".to_owned()));
    assert_eq!(send(&gate, "r-new").await, refused);
    // The refund's time may be over before the store gives up; from then on it stays in trouble.
    let unready = || {
        let Ended { code, out, .. } = gate.ask(&["probe", "ready"]);
        (code == Some(1)).then_some(out)
    };
    let told = until(unready).expect("it stayed ready");
    assert!(
        told.starts_with("not ready: serving\nunready: ledger: "),
        "{told}"
    );
    for _ in 0..10 {
        assert!(unready().is_some(), "it takes nothing, and is ready");
    }
    assert_eq!(gate.ask(&["probe", "live"]).worked(), "live\n");
    disk.tell(Number::NoSpace, 0);
    let ready = until(|| (gate.ask(&["probe", "ready"]).code == Some(0)).then_some(()));
    assert!(ready.is_some(), "it never became ready again");
    assert_eq!(send(&gate, "r-new").await, (200, None));
    assert_eq!(backend.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_root_restores_belongs_to_the_gates_user() {
    let (_backend, _, mut gate) = two_refunds().await;
    let away = tempfile::tempdir().unwrap();
    let backup = away.path().join("backup.db");
    ledger(&gate.setup, &["backup", text(&backup)]).worked();
    gate.terminate();
    let path = database(&gate.setup);
    if std::os::unix::fs::chown(&path, Some(4242), Some(4243)).is_err() {
        return; // only root can give files away
    }
    let mark = path.with_extension("mark");
    fs::remove_file(&mark).unwrap();
    ledger(&gate.setup, &["restore", text(&backup)]).worked();
    for file in [&path, &mark, &path.with_extension("db.lock")] {
        let owner = fs::metadata(file).unwrap();
        assert_eq!(
            (owner.uid(), owner.gid()),
            (4242, 4243),
            "{}",
            file.display()
        );
        assert_eq!(
            owner.permissions().mode() & 0o777,
            0o600,
            "{}",
            file.display()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_sound_backup_is_not_restored() {
    let (_backend, _, mut gate) = two_refunds().await;
    let away = tempfile::tempdir().unwrap();
    let backup = away.path().join("backup.db");
    ledger(&gate.setup, &["backup", text(&backup)]).worked();
    gate.terminate();
    let path = database(&gate.setup);
    let before = (fs::read(&path).unwrap(), names_in(gate.setup.directory()));

    let foreign = away.path().join("foreign.db");
    let open = Connection::open(&foreign).unwrap();
    open.execute_batch("CREATE TABLE books (title TEXT)")
        .unwrap();
    drop(open);
    let words = away.path().join("words.txt");
    fs::write(&words, "no database, but a longer text than its header").unwrap();
    let empty = away.path().join("empty.db");
    fs::write(&empty, "").unwrap();
    let cut = away.path().join("cut.db");
    let whole = fs::read(&backup).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let changed = away.path().join("changed.db");
    fs::write(&changed, &whole).unwrap();
    let open = Connection::open(&changed).unwrap();
    open.execute("UPDATE records SET state = 'done'", ())
        .unwrap();
    drop(open);
    for (file, complaint) in [
        (away.path().join("none.db"), "there is no such file"),
        (foreign, "a SQLite file of another program"),
        (words, "this is no SQLite file"),
        (empty, "this file holds no ledger"),
        (cut, "malformed"),
        (changed, "is done and has no answer"),
    ] {
        let told = ledger(&gate.setup, &["restore", text(&file)]).failed(1);
        assert!(told.contains(complaint), "{}: {told}", file.display());
        assert_eq!(fs::read(&path).unwrap(), before.0, "{told}");
        let names = names_in(gate.setup.directory());
        let left: Vec<_> = names
            .iter()
            .filter(|name| !before.1.contains(name))
            .collect();
        assert!(left.is_empty(), "{left:?}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_without_its_gate_is_looked_into_and_changed() {
    let (backend, _, mut gate) = two_refunds().await;
    let path = database(&gate.setup);
    let reason = ["--reason", "in the books"];
    let resolve = [&["resolve", "r-dies", "--applied"], &reason[..]].concat();
    // A running gate is asked, and its file is left to it.
    for line in [&["list"][..], &["show", "r-dies"], &resolve] {
        let told = on_file(&gate.setup, &path, line).failed(1);
        assert!(
            told.contains("another process uses this ledger (process "),
            "{told}"
        );
    }
    gate.terminate();

    let list = on_file(&gate.setup, &path, &["list"]).worked();
    assert!(list.contains("r-dies") && list.contains("+07:00"), "{list}");
    let told = on_file(
        &gate.setup,
        &path,
        &[&resolve[..], &["--by", "linh"]].concat(),
    )
    .worked();
    assert!(told.contains("is now done: Tiki is answered 200"), "{told}");
    let shown = on_file(&gate.setup, &path, &["show", "r-dies"]).worked();
    assert!(
        shown.contains("offline (for linh): in the books"),
        "{shown}"
    );
    let told = on_file(&gate.setup, &path, &resolve).failed(1);
    assert!(told.contains("(not_unknown)"), "{told}");
    let reopen = [&["reopen", "r-dies"], &reason[..]].concat();
    on_file(&gate.setup, &path, &reopen).worked();
    on_file(&gate.setup, &path, &resolve).worked();
    let lift = [&["lift-quarantine"], &reason[..]].concat();
    let told = on_file(&gate.setup, &path, &lift).failed(1);
    assert!(told.contains("(not_quarantined)"), "{told}");
    let table = ["export", "--from", "2020-01-01", "--to", "2100-01-01"];
    let table = on_file(&gate.setup, &path, &table).worked();
    assert!(table.contains(",offline,"), "{table}");

    // The gate finds its ledger as it was left, without a gap.
    gate.start_again();
    assert!(
        gate.ask(&["ledger", "quarantine"])
            .worked()
            .starts_with("no quarantine")
    );
    assert_eq!(send(&gate, "r-dies").await, (200, None));
    assert_eq!(backend.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_changed_only_with_its_watermark() {
    let (_backend, _, mut gate) = two_refunds().await;
    let away = tempfile::tempdir().unwrap();
    let backup = away.path().join("backup.db");
    ledger(&gate.setup, &["backup", text(&backup)]).worked();
    gate.terminate();
    let resolve = ["resolve", "r-dies", "--applied", "--reason", "x"];
    let told = on_file(&gate.setup, &backup, &resolve).failed(64);
    assert!(
        told.contains("its watermark is needed") && told.contains("the configuration's ledger is"),
        "{told}"
    );
    let without = [&["ledger"], &resolve[..], &["--file", text(&backup)]].concat();
    let told = run(&mut tikigate(&without)).failed(64);
    assert!(told.contains("--config FILE"), "{told}");
    let send = [
        &resolve[..2],
        &["--not-applied", "--send-now", "--reason", "x"],
    ]
    .concat();
    let told = on_file(&gate.setup, &backup, &send).failed(64);
    assert!(told.contains("--send-now needs a running gate"), "{told}");

    for (line, complaint) in [
        (
            &["list", "--file", "/nonexistent.db"][..],
            "there is no such file",
        ),
        (&["verify", "/nonexistent.db"], "there is no such file"),
        (
            &["backup", "/nonexistent/backup.db"],
            "No such file or directory",
        ),
    ] {
        let told = ledger(&gate.setup, line).failed(1);
        assert!(told.contains(complaint), "{told}");
    }
    for (line, complaint) in [
        (
            &["list", "--file", "x", "--admin", "http://127.0.0.1:1"][..],
            "cannot be used with",
        ),
        (
            &["backup", "x", "--admin", "http://127.0.0.1:1"],
            "asks no gate",
        ),
        (
            &["restore", "x", "--file", "y"],
            "--file means nothing here",
        ),
        (&["verify", "x", "--token-file", "y"], "asks no gate"),
        (&["verify"], "<F>"),
        (&["backup"], "<F>"),
        (&["restore"], "<F>"),
    ] {
        let told = ledger(&gate.setup, line).failed(64);
        assert!(told.contains(complaint), "{told}");
    }
    // A ledger that is no file has none of this.
    let memory = setup(&usual("http://127.0.0.1:1"));
    let told = ledger(&memory, &["backup", text(&away.path().join("b.db"))]).failed(1);
    assert!(told.contains("in the gate's memory"), "{told}");
}
