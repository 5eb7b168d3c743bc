//! One gate with its ledger in a file: the program is replaced, and put back, and replaced again.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use tikigate::cli::fake_tiki::{FakeTiki, Options, Transaction};
use tikigate::net::ListenAddress;

use super::{PREVIOUS_REVISION, REVISION, Version, blocking, migrations};
use crate::commands::{Ended, asking, post, run, setup, signed, tikigate};
use crate::crash::world::address_of_its_own;
use crate::support::backend::{Answer, Backend, Behaviour, Seen};
use crate::support::gate::{CLIENT, SECRET, changed, ipn, refund};
use crate::support::gate_process::{GateProcess, Setup};
use crate::support::in_time;
use crate::support::raw::{RawAnswer, RawClient, exchange};

/// The port of the outbound listener, on an address that no other test has.
const OUTBOUND: u16 = 8090;

/// A gate's files, its backend and its Tiki, which outlive its processes.
struct Place {
    setup: Arc<Setup>,
    backend: Backend,
    /// From then on the backend does all that it is asked.
    mended: Arc<AtomicBool>,
    tiki: Arc<FakeTiki>,
    ip: IpAddr,
    /// What was answered for good, by path and body: the answer as it is given again.
    told: BTreeMap<(&'static str, String), Told>,
}

/// An answer without what differs from call to call.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    start_line: String,
    fields: Vec<(String, String)>,
    body: String,
}

impl Told {
    fn of(answer: &RawAnswer) -> Self {
        let mut fields = answer.head.fields.clone();
        fields.retain(|(name, _)| {
            !name.eq_ignore_ascii_case("date") && !name.eq_ignore_ascii_case("x-request-id")
        });
        Self {
            start_line: answer.head.start_line.clone(),
            fields,
            body: answer.text().to_owned(),
        }
    }
}

/// Does with a message what its id says. Each answer is unlike all others: what is made up, or asked for
/// anew, is not what was answered.
fn behaviour(seen: &Seen, mended: bool) -> Behaviour {
    let number = seen.number;
    let done = format!(r#"{{"data":{{"status":"success","receipt":"số {number}"}}}}"#);
    let declined =
        format!(r#"{{"data":null,"error":{{"code":"declined","message":"no {number}"}}}}"#);
    let is = |word: &str| seen.text().contains(word);
    if mended || is("done") {
        Answer::json(200, &done).into()
    } else if is("declined") {
        Answer::json(422, &declined).into()
    } else if is("released") {
        let not_now = r#"{"data":null,"error":{"code":"1","message":"not now"}}"#;
        Answer::json(500, not_now).into()
    } else if is("unknown") {
        Behaviour::Close
    } else {
        Behaviour::Silence
    }
}

impl Place {
    async fn new() -> Self {
        let mended = Arc::new(AtomicBool::default());
        let told = Arc::clone(&mended);
        let script = move |seen: &Seen| behaviour(seen, told.load(Ordering::SeqCst));
        let backend = Backend::start(script).await;
        let options = Options::default().client(CLIENT, SECRET);
        let tiki = Arc::new(FakeTiki::start(options).await.unwrap());
        let ip = address_of_its_own();
        let outbound = format!(
            "[outbound]\nlisten = \"{ip}:{OUTBOUND}\"\nretry_after = \"20ms\"\n\
             longest_pause = \"200ms\"\n[[outbound.accounts]]\nclient = \"wallet\"\nbase_url = \"{}\"\n[log]",
            tiki.base_url()
        );
        let toml = changed(
            &backend.url(),
            &[
                (
                    "store = \"memory\"\nallow_volatile = true",
                    "path = \"tikigate.db\"",
                ),
                ("[log]", &outbound),
            ],
        );
        Self {
            setup: Arc::new(setup(&toml)),
            backend,
            mended,
            tiki,
            ip,
            told: BTreeMap::new(),
        }
    }

    fn database(&self) -> PathBuf {
        self.setup.directory().join("tikigate.db")
    }

    /// How many calls the backend got.
    fn heard(&self) -> usize {
        self.backend.requests().len()
    }

    /// A message that is answered for good, and the answer again, which is kept to compare with.
    async fn settle(&mut self, gate: &GateProcess, path: &'static str, body: String) {
        let heard = self.heard();
        let first = post(gate.address(), path, &body).await;
        assert!(first.status < 500, "{body}: {}", first.text());
        assert_eq!(first.header("idempotency-replayed"), None, "{body}");
        assert_eq!(self.heard(), heard + 1, "{body}");
        self.settled(gate, path, body.clone()).await;
        assert_eq!(self.told[&(path, body)].body, first.text());
        assert_eq!(self.heard(), heard + 1);
    }

    /// A message that has its answer, which is kept to compare with.
    async fn settled(&mut self, gate: &GateProcess, path: &'static str, body: String) {
        let again = post(gate.address(), path, &body).await;
        assert_eq!(again.header("idempotency-replayed"), Some("true"), "{body}");
        self.told.insert((path, body), Told::of(&again));
    }

    async fn settle_refund(&mut self, gate: &GateProcess, key: &str) {
        self.settle(gate, "/tiki/refund", refund(key, "150000"))
            .await;
    }

    /// Everything that was ever answered for good is answered so again, and the backend hears nothing of it.
    async fn assert_replays(&self, gate: &GateProcess) {
        let heard = self.heard();
        for ((path, body), told) in &self.told {
            let again = post(gate.address(), path, body).await;
            assert_eq!(&Told::of(&again), told, "{body}");
        }
        assert_eq!(self.heard(), heard, "the backend was called for a replay");
    }

    /// These refunds are held, and the backend hears nothing of them.
    async fn assert_held(&self, gate: &GateProcess, keys: &[&str]) {
        let heard = self.heard();
        for key in keys {
            let answer = send(gate, key).await;
            assert_eq!(
                answer.error_code().as_deref(),
                Some("outcome_unknown"),
                "{key}"
            );
            assert_eq!(answer.status, 500, "{key}");
        }
        assert_eq!(self.heard(), heard, "a held refund was sent");
    }

    /// Tiki goes, and the backend tells it of a payment, which the gate accepts.
    async fn leave_a_notice(&self, id: &str) {
        self.tiki.stop().await;
        let known = Transaction::pending(format!("t-{id}"), id, "1000", CLIENT);
        self.tiki.put_transaction(known.unwrap());
        let body = ipn(id, "1000");
        let call = format!(
            "POST /payment/ipn HTTP/1.1\r\nHost: gate\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let outbound = ListenAddress::Tcp(SocketAddr::new(self.ip, OUTBOUND));
        let answer = exchange(&outbound, call).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
    }

    /// Tiki is back, and gets the notice.
    async fn notice_is_delivered(&self, id: &str) {
        self.tiki.start_again().await.unwrap();
        let taken = || self.tiki.transaction(&format!("t-{id}")).unwrap().1;
        in_time("the notice to be delivered", async {
            while taken().success == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// The version in the file's header, and its revision: by a copy, as the last process left it.
    fn schema(&self) -> (i64, i64) {
        let copies = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(self.setup.directory()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with("tikigate.db") && path.is_file() {
                fs::copy(&path, copies.path().join(name)).unwrap();
            }
        }
        schema_of(&copies.path().join("tikigate.db"))
    }

    /// A command of now with the configuration.
    fn command(&self, line: &[&str]) -> Command {
        let mut command = self.setup.command(line[0]);
        command.args(&line[1..]);
        command
    }

    fn assert_sound(&self) {
        let file = self.database().display().to_string();
        let told = run(&mut tikigate(&["ledger", "verify", &file])).worked();
        assert!(told.ends_with("no faults\n"), "{told}");
    }
}

fn schema_of(file: &Path) -> (i64, i64) {
    let file = Connection::open(file).unwrap();
    let number = |statement: &str| file.query_row(statement, (), |row| row.get(0));
    let version = number("PRAGMA user_version").unwrap();
    // The first revision has no column for it.
    (version, number("SELECT revision FROM meta").unwrap_or(1))
}

async fn send(gate: &GateProcess, key: &str) -> RawAnswer {
    post(gate.address(), "/tiki/refund", &refund(key, "150000")).await
}

/// Runs a command of now against a gate.
async fn ask(gate: &GateProcess, line: &[&str]) -> Ended {
    let mut command = asking(gate, line);
    blocking(move || run(&mut command)).await
}

async fn resolve(gate: &GateProcess, key: &str, verdict: &[&str]) -> Ended {
    let line = [&["ledger", "resolve", key], verdict].concat();
    ask(gate, &[&line[..], &WHO].concat()).await
}

const WHO: [&str; 4] = ["--reason", "in the books", "--by", "linh"];

impl Place {
    /// A person takes back that a refund was applied, and says so again.
    async fn change_mind(&mut self, gate: &GateProcess, key: &str) {
        let line = ["ledger", "reopen", key];
        ask(gate, &[&line[..], &WHO].concat()).await.worked();
        self.assert_held(gate, &[key]).await;
        resolve(gate, key, &["--applied"]).await.worked();
        self.settled(gate, "/tiki/refund", refund(key, "150000"))
            .await;
    }
}

async fn terminate(mut gate: GateProcess) {
    let status = blocking(move || gate.terminate()).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_in_a_file_outlives_an_upgrade_and_the_way_back() {
    let mut place = Place::new().await;
    let held = ["unknown-1", "unknown-2", "unknown-3", "flight-1"];

    // The previous version leaves one of each kind, and is killed over a refund.
    let mut gate = Version::Previous.start(&place.setup).await;
    for key in ["done-1", "done-2", "declined-1"] {
        place.settle_refund(&gate, key).await;
    }
    place
        .settle(&gate, "/tiki/ipn", ipn("done-3", "1000"))
        .await;
    place
        .settle(&gate, "/tiki/ipn", ipn("declined-2", "1000"))
        .await;
    for key in &held[..3] {
        assert_eq!(send(&gate, key).await.status, 502, "{key}");
    }
    assert_eq!(send(&gate, "released-1").await.status, 500);
    place.assert_replays(&gate).await;
    place.assert_held(&gate, &held[..3]).await;
    place.leave_a_notice("n-1").await;
    let heard = place.heard();
    let mut connection = RawClient::connect(&ListenAddress::Tcp(gate.address())).await;
    let body = refund("flight-1", "150000");
    connection
        .send(signed("/tiki/refund", &body).to_bytes())
        .await;
    place.backend.wait_for_requests(heard + 1).await;
    gate.kill();
    assert!(migrations(&gate).is_empty());
    assert_eq!(place.schema(), (1, PREVIOUS_REVISION));

    // The new one takes it over.
    let gate = Version::Now.start(&place.setup).await;
    let told = migrations(&gate);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (&told[0]["from"], &told[0]["to"]),
        (&PREVIOUS_REVISION.into(), &REVISION.into())
    );
    place.assert_replays(&gate).await;
    place.assert_held(&gate, &held).await;
    assert_eq!(place.heard(), heard + 1);
    let list = ask(&gate, &["ledger", "list", "--state", "unknown"]).await;
    let list = list.worked();
    assert_eq!(list.matches("rec-").count(), held.len(), "{list}");

    // What nobody knows is resolved as before.
    place.mended.store(true, Ordering::SeqCst);
    resolve(&gate, "unknown-1", &["--applied"]).await.worked();
    place
        .settled(&gate, "/tiki/refund", refund("unknown-1", "150000"))
        .await;
    let refused = resolve(&gate, "unknown-2", &["--not-applied"]).await;
    assert!(refused.failed(1).contains("may still be running"));
    let forced = resolve(&gate, "unknown-2", &["--not-applied", "--force"]).await;
    forced.worked();
    resolve(&gate, "flight-1", &["--rejected"]).await.worked();
    place
        .settled(&gate, "/tiki/refund", refund("flight-1", "150000"))
        .await;
    assert_eq!(place.heard(), heard + 1, "a word of a person sends nothing");
    // And what may be tried again is: each by its next attempt.
    for key in ["unknown-2", "released-1"] {
        place.settle_refund(&gate, key).await;
        let requests = place.backend.requests();
        let attempt = requests.last().unwrap().header("x-tikigate-attempt");
        assert_eq!(attempt, Some("2"), "{key}");
    }
    place.settle_refund(&gate, "new-1").await;
    place.notice_is_delivered("n-1").await;
    place.leave_a_notice("n-2").await;
    place.assert_replays(&gate).await;
    terminate(gate).await;
    place.assert_sound();
    assert_eq!(place.schema(), (1, REVISION));

    // The previous one is put back, and goes on.
    let mut gate = Version::Previous.start(&place.setup).await;
    place.assert_replays(&gate).await;
    place.assert_held(&gate, &["unknown-3"]).await;
    place.change_mind(&gate, "unknown-1").await;
    place.settle_refund(&gate, "back-1").await;
    place
        .settle(&gate, "/tiki/ipn", ipn("back-2", "1000"))
        .await;
    place.notice_is_delivered("n-2").await;
    place.leave_a_notice("n-3").await;
    // Backups are the newer program's meanwhile: the previous one takes what was added for damage.
    let backup = place.setup.directory().join("backup.db");
    let copied = place.command(&["ledger", "backup", backup.to_str().unwrap()]);
    run(&mut { copied }).worked();
    assert_eq!(schema_of(&backup), (1, REVISION));
    gate.kill();
    assert_eq!(place.schema(), (1, REVISION));

    // And the new one again, which has nothing to bring up to date.
    let gate = Version::Now.start(&place.setup).await;
    assert!(migrations(&gate).is_empty());
    place.assert_replays(&gate).await;
    place.assert_held(&gate, &["unknown-3"]).await;
    place.change_mind(&gate, "unknown-1").await;
    resolve(&gate, "unknown-3", &["--applied"]).await.worked();
    place
        .settled(&gate, "/tiki/refund", refund("unknown-3", "150000"))
        .await;
    place.notice_is_delivered("n-3").await;
    place.settle_refund(&gate, "new-2").await;
    place.assert_replays(&gate).await;
    terminate(gate).await;
    place.assert_sound();
    for id in ["n-1", "n-2", "n-3"] {
        let taken = place.tiki.transaction(&format!("t-{id}")).unwrap().1;
        assert_eq!(taken.success, 1, "{id}");
    }
}

/// What `ledger backup` of the previous version wrote is listed, verified and put back by the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_the_previous_version_is_read_and_put_back() {
    let mut place = Place::new().await;
    let gate = Version::Previous.start(&place.setup).await;
    place.settle_refund(&gate, "done-1").await;
    place.settle_refund(&gate, "declined-1").await;
    assert_eq!(send(&gate, "unknown-1").await.status, 502);
    let away = tempfile::tempdir().unwrap();
    let backup = away.path().join("backup.db");
    let file = backup.to_str().unwrap().to_owned();
    let made = run(&mut Version::Previous.of(&place.command(&["ledger", "backup", &file])));
    assert!(made.worked().contains("checked"));
    assert_eq!(send(&gate, "done-later").await.status, 200);
    terminate(gate).await;
    assert_eq!(schema_of(&backup), (1, PREVIOUS_REVISION));

    // It is read as it is.
    let before = fs::read(&backup).unwrap();
    let list = ["ledger", "list", "--time-zone", "UTC", "--file", &file];
    let list = run(&mut tikigate(&list)).worked();
    for (key, state) in [
        ("done-1", "done"),
        ("declined-1", "done"),
        ("unknown-1", "unknown"),
    ] {
        let line = list.lines().find(|line| line.contains(key)).unwrap();
        assert!(line.contains(state), "{list}");
    }
    assert!(!list.contains("done-later"), "{list}");
    let checked = run(&mut tikigate(&["ledger", "verify", &file])).worked();
    assert!(checked.ends_with("no faults\n"), "{checked}");
    assert_eq!(fs::read(&backup).unwrap(), before);

    // Put back, it knows what it knew, and holds what may have been since.
    let told = run(&mut place.command(&["ledger", "restore", &file])).worked();
    assert!(
        told.contains("in quarantine: restored from a backup of 20"),
        "{told}"
    );
    assert_eq!(fs::read(&backup).unwrap(), before);
    let gate = Version::Now.start(&place.setup).await;
    place.assert_replays(&gate).await;
    place
        .assert_held(&gate, &["unknown-1", "done-later", "done-new"])
        .await;
    ask(
        &gate,
        &[
            "ledger",
            "lift-quarantine",
            "--reason",
            "compared the books",
            "--by",
            "linh",
        ],
    )
    .await
    .worked();
    resolve(&gate, "done-later", &["--applied"]).await.worked();
    place
        .settled(&gate, "/tiki/refund", refund("done-later", "150000"))
        .await;
    place.settle_refund(&gate, "done-newer").await;
    place.assert_replays(&gate).await;
    terminate(gate).await;
    place.assert_sound();
    assert_eq!(place.schema(), (1, REVISION));
}
