//! Gates of two versions on one PostgreSQL ledger, as a rolling update and its rollback have them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::callers::{Seen, World};
use super::{MIGRATED, PREVIOUS_REVISION, REVISION, Version, blocking, migrations};
use crate::commands::{post, setup, signed};
use crate::support::backend::{self, Answer, Backend, Behaviour, Hold};
use crate::support::gate::{changed, refund};
use crate::support::gate_process::{GateProcess, Setup};
use crate::support::postgres::Server;
use crate::support::random::{self, Random};
use crate::support::raw::exchange_if_there;

/// Callers at once.
const CALLERS: u64 = 6;
/// Updates with their rollbacks; `TIKIGATE_ROLLS` sets another number.
const ROLLS: usize = 1;
/// Until every gate has found its server again.
const BACK_WITHIN: Duration = Duration::from_secs(30);

fn rolls() -> usize {
    std::env::var("TIKIGATE_ROLLS").map_or(ROLLS, |rolls| rolls.parse().unwrap())
}

/// A database on the server that tests share.
#[derive(Clone)]
struct Database(String);

impl Database {
    async fn new() -> Self {
        Self(blocking(|| Server::shared().create_database()).await)
    }

    async fn query(&self, statement: &str) -> String {
        let (database, statement) = (self.0.clone(), statement.to_owned());
        blocking(move || Server::shared().query(&database, &statement)).await
    }

    /// The version and the revision of its schema.
    async fn schema(&self) -> (i64, i64) {
        let schema = self
            .query(
                "select schema_version, coalesce((to_jsonb(ledger) ->> 'revision')::integer, 1)
                 from tikigate.ledger",
            )
            .await;
        let (version, revision) = schema.split_once('|').unwrap();
        (version.parse().unwrap(), revision.parse().unwrap())
    }

    /// The processes in which the server serves the gate of this name.
    async fn sessions(&self, gate: &str) -> String {
        self.query(&format!(
            "select pid from pg_stat_activity
             where application_name = '{gate}' and datname = current_database()"
        ))
        .await
    }

    /// A gate on it, whose sessions the server calls by this name.
    fn gate(&self, backend: &str, name: &str) -> Setup {
        let url = Server::shared().url(&self.0);
        let toml = changed(
            backend,
            &[
                (
                    "store = \"memory\"\nallow_volatile = true",
                    "store = \"postgres\"\nurl = { env = \"DATABASE_URL\" }\nconnections = 4\nlease = \"24s\"",
                ),
                // Long enough for a busy machine: nothing here is about deadlines.
                ("connect_timeout = \"500ms\"", "connect_timeout = \"5s\""),
                ("answer_within = \"1s\"", "answer_within = \"8s\""),
                ("settle_within = \"4s\"", "settle_within = \"14s\""),
                // In which callers notice that it goes.
                ("drain_delay = \"0s\"", "drain_delay = \"1s\""),
                (
                    "[admin]",
                    "[admin]\ntokens = [{ name = \"linh\", file = \"admin.token\" }]",
                ),
            ],
        );
        setup(&toml)
            .file("admin.token", b"the-token-of-the-gates-that-are-replaced")
            .environment("DATABASE_URL", &format!("{url}?application_name={name}"))
    }
}

/// Pays what it is asked, as often as it is asked: each payment has a receipt of its own.
async fn till(seed: u64) -> Backend {
    Backend::start(move |seen| {
        let number = seen.number as u64;
        let receipt = format!(r#"{{"data":{{"status":"success","receipt":"{number}"}}}}"#);
        let answer = Answer::json(200, &receipt);
        // Some take a while, a byte each millisecond: others come for the same meanwhile.
        match Random::part(seed, &[number]).chance(25) {
            true => Behaviour::Drip(answer, Duration::from_millis(1)),
            false => answer.into(),
        }
    })
    .await
}

/// How often each refund was paid, and by which attempt last.
fn book(backend: &Backend) -> BTreeMap<String, (u32, String)> {
    let mut book: BTreeMap<String, (u32, String)> = BTreeMap::new();
    for seen in backend.requests() {
        let entry = book.entry(key_of(&seen)).or_default();
        entry.0 += 1;
        seen.header("x-tikigate-attempt")
            .unwrap()
            .clone_into(&mut entry.1);
    }
    book
}

fn key_of(seen: &backend::Seen) -> String {
    let body: serde_json::Value = serde_json::from_str(seen.text()).unwrap();
    body["request_id"].as_str().unwrap().to_owned()
}

/// Both versions sent refunds that the other answered for, and had calls for one refund at once.
fn mixed(seen: &Seen) -> bool {
    let again = |pair| seen.again.get(&pair).map_or(0, |keys| keys.len());
    let there = again((Version::Previous, Version::Now));
    let back = again((Version::Now, Version::Previous));
    there >= 5 && back >= 5 && seen.at_both >= 5
}

fn busy(seen: &Seen) -> bool {
    seen.refunds.len() >= 20
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_and_its_rollback_refuse_nothing_and_send_nothing_twice() {
    let seed = random::seed("rolling");
    let began = Instant::now();
    let database = Database::new().await;
    let backend = till(seed).await;
    let world = World::new();
    let start = |version: Version| {
        let setup = database.gate(&backend.url(), "gate");
        let world = &world;
        async move { world.start(version, setup).await }
    };
    let mut running = vec![
        start(Version::Previous).await,
        start(Version::Previous).await,
    ];
    assert_eq!(database.schema().await, (1, PREVIOUS_REVISION));
    let calling = world.call(CALLERS, seed);
    world.see("calls before", busy).await;

    let mut migrated = 0;
    for to in [Version::Now, Version::Previous].repeat(rolls()) {
        for old in std::mem::take(&mut running) {
            let new = start(to).await;
            assert_eq!(database.schema().await, (1, REVISION));
            let lines = World::lines(&new);
            migrated += lines.iter().filter(|line| line.contains(MIGRATED)).count();
            let seen = world.see("both versions at work", mixed).await;
            println!(
                "rolling to {to:?}: {} refunds, {} at both at once, answered again {:?}",
                seen.refunds.len(),
                seen.at_both,
                seen.again
                    .iter()
                    .map(|(pair, keys)| (pair, keys.len()))
                    .collect::<Vec<_>>()
            );
            running.push(new);
            world.end(&old).await;
        }
        world.see("calls after", busy).await;
    }
    assert_eq!(migrated, 1, "one gate brings the schema up to date, once");
    world.finish(calling).await;

    let keys = world.ask_for_all_again().await;
    let book = book(&backend);
    for (key, (times, attempt)) in &book {
        assert_eq!((*times, attempt.as_str()), (1, "1"), "{key}");
    }
    let paid: BTreeSet<String> = book.into_keys().collect();
    assert_eq!(paid, keys, "all were paid, and no others");
    // Nothing is open, and nothing ever was unknown.
    let states = "select state, count(*) from tikigate.record group by state";
    let done = format!("done|{}", keys.len());
    assert_eq!(database.query(states).await, done);
    let doubts = "select count(*) from tikigate.event where state not in ('claimed', 'done')";
    assert_eq!(database.query(doubts).await, "0");
    println!(
        "rolling: {} refunds in {:.1?}, {} calls met a gate that was going",
        keys.len(),
        began.elapsed(),
        world.met_the_end()
    );
}

/// Sends a refund until it is answered for good; meanwhile the gate may only say that its ledger is away.
async fn send_until_answered(gate: &GateProcess, key: &str) -> (String, u32) {
    let deadline = Instant::now() + BACK_WITHIN;
    let mut refused = 0;
    loop {
        let answer = post(gate.address(), "/tiki/refund", &refund(key, "1")).await;
        if answer.status == 200 {
            return (answer.text().to_owned(), refused);
        }
        assert_eq!(answer.status, 503, "{key}: {}", answer.text());
        let code = answer.error_code();
        assert_eq!(code.as_deref(), Some("ledger_unavailable"), "{key}");
        assert!(Instant::now() < deadline, "{key}: it did not come back");
        refused += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A gate of the previous version that loses its connections opens new ones on the newer schema.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_previous_version_opens_new_sessions_on_the_newer_schema() {
    let database = Database::new().await;
    let hold = Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |seen| {
        let receipt = format!(r#"{{"data":{{"receipt":"{}"}}}}"#, seen.number);
        let answer = Behaviour::from(Answer::json(200, &receipt));
        match seen.text().contains("r-in-flight") {
            true => answer.held(&held),
            false => answer,
        }
    })
    .await;
    let gate = |version: Version, name: &'static str| {
        let setup = Arc::new(database.gate(&backend.url(), name));
        async move { version.start(&setup).await }
    };
    let previous = [
        gate(Version::Previous, "one").await,
        gate(Version::Previous, "two").await,
    ];
    let mut told = BTreeMap::new();
    for (number, gate) in previous.iter().enumerate() {
        let key = format!("r-{number}");
        let (answer, refused) = send_until_answered(gate, &key).await;
        assert_eq!(refused, 0);
        told.insert(key, answer);
    }
    assert_eq!(database.schema().await, (1, PREVIOUS_REVISION));
    let now = gate(Version::Now, "now").await;
    assert_eq!(migrations(&now).len(), 1);
    assert_eq!(database.schema().await, (1, REVISION));

    // One refund is at the backend when every session ends.
    let address = tikigate::net::ListenAddress::Tcp(previous[0].address());
    let in_flight = signed("/tiki/refund", &refund("r-in-flight", "1")).to_bytes();
    let in_flight = async move { exchange_if_there(&address, in_flight, BACK_WITHIN).await };
    let in_flight = tokio::spawn(in_flight);
    backend.wait_for_requests(previous.len() + 1).await;
    let mut before = Vec::new();
    for name in ["one", "two", "now"] {
        before.push(database.sessions(name).await);
    }
    let ended = database
        .query(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()",
        )
        .await;
    assert!(ended.parse::<u32>().unwrap() >= 3, "{ended} sessions");
    hold.release();
    let answer = in_flight.await.unwrap().expect("an answer");
    assert!(
        answer.status == 200 || answer.error_code().as_deref() == Some("ledger_unavailable"),
        "{}",
        answer.text()
    );

    let gates = [&previous[0], &previous[1], &now];
    for (number, gate) in gates.into_iter().enumerate() {
        let key = format!("r-back-{number}");
        let (answer, refused) = send_until_answered(gate, &key).await;
        println!("sessions: gate {number} refused {refused} calls before it was back");
        told.insert(key, answer);
    }
    let (answer, _) = send_until_answered(gates[0], "r-in-flight").await;
    told.insert("r-in-flight".to_owned(), answer);
    // Their leases go on.
    let beats = "select owner, beats from tikigate.owner order by owner";
    let before_beats = database.query(beats).await;
    assert_eq!(before_beats.lines().count(), gates.len());
    let deadline = Instant::now() + BACK_WITHIN;
    loop {
        let now = database.query(beats).await;
        let pairs = before_beats.lines().zip(now.lines());
        if pairs.into_iter().all(|(before, now)| before != now) {
            break;
        }
        assert!(Instant::now() < deadline, "{before_beats}, {now}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // They are other sessions than before.
    for (name, before) in ["one", "two", "now"].into_iter().zip(&before) {
        let after = database.sessions(name).await;
        assert!(!before.is_empty() && !after.is_empty(), "{name}");
        let stayed = after
            .lines()
            .find(|pid| before.lines().any(|old| old == *pid));
        assert_eq!(stayed, None, "{name}");
    }
    for gate in gates {
        for (key, answer) in &told {
            let again = post(gate.address(), "/tiki/refund", &refund(key, "1")).await;
            assert_eq!(
                (again.status, again.text()),
                (200, answer.as_str()),
                "{key}"
            );
        }
    }
    let book = book(&backend);
    assert_eq!(book.len(), told.len());
    for (key, (times, _)) in &book {
        assert_eq!(*times, 1, "{key}");
    }
    let open = "select count(*) from tikigate.record where state <> 'done'";
    assert_eq!(database.query(open).await, "0");
}
