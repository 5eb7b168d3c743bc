//! A gate that is ended again and again with calls in flight, as a rollout does it: no answer is lost, and
//! nothing is called unknown that could have been an answer.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use tikigate::net::ListenAddress;
use tokio::task::JoinSet;

use crate::commands::{asking, run, setup, signed};
use crate::support::backend::{Answer, Backend, Behaviour};
use crate::support::gate::{changed, refund};
use crate::support::gate_process::{GateProcess, Setup};
use crate::support::in_time;
use crate::support::random::{self, Random};
use crate::support::raw::RawClient;

/// Runs in the usual mode; `TIKIGATE_DRAINS` sets another number.
const RUNS: u64 = 100;
/// Callers at once, each with one refund after the other.
const CALLERS: u64 = 6;

fn runs() -> u64 {
    std::env::var("TIKIGATE_DRAINS").map_or(RUNS, |runs| runs.parse().unwrap())
}

/// How a run's drain is begun.
#[derive(Clone, Copy, Debug)]
enum Begun {
    Signal(Signal),
    /// As a preStop hook does it.
    Command,
}

/// What one run's callers saw.
#[derive(Default)]
struct Seen {
    answered: Mutex<BTreeSet<String>>,
    /// Sent whole, and neither answered nor refused: what must not be.
    lost: Mutex<Vec<String>>,
}

/// Wants one refund after the other, each on the connection of the one before while it lasts, until the
/// gate takes no more.
async fn caller(address: ListenAddress, name: String, seen: Arc<Seen>) {
    let mut kept: Option<RawClient> = None;
    for number in 0.. {
        let key = format!("{name}-{number}");
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => match RawClient::connect_if_there(&address).await {
                Some(connection) => connection,
                // Nobody listens any more: the caller goes to another replica.
                None => return,
            },
        };
        let call = signed("/tiki/refund", &refund(&key, "1")).to_bytes();
        connection.send(&call).await;
        match connection.read_answer_or_end().await {
            Some(answer) if answer.status == 200 => {
                seen.answered.lock().unwrap().insert(key);
                if answer.header("connection") != Some("close") {
                    kept = Some(connection);
                }
            }
            // Refused in good order: Tiki sends it again, to a gate that lives.
            Some(answer) => assert_eq!(
                (answer.status, answer.error_code().as_deref()),
                (503, Some("draining")),
                "{key}: {}",
                answer.text()
            ),
            None => seen.lost.lock().unwrap().push(key),
        }
    }
}

/// The backend: each refund takes its time, and is booked.
async fn backend(booked: Arc<Mutex<Vec<String>>>, seed: u64) -> Backend {
    let number = AtomicU64::default();
    Backend::start(move |seen| {
        let value: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        let key = value["request_id"].as_str().unwrap().to_owned();
        booked.lock().unwrap().push(key);
        let number = number.fetch_add(1, Ordering::Relaxed);
        // Some take a while: a byte each millisecond.
        match Random::part(seed, &[number]).chance(20) {
            true => Behaviour::Drip(Answer::success(), Duration::from_millis(1)),
            false => Behaviour::from(Answer::success()),
        }
    })
    .await
}

/// Ends the gate while its callers are busy.
fn end(mut gate: GateProcess, begun: Begun) {
    match begun {
        Begun::Signal(signal) => gate.signal(signal),
        Begun::Command => {
            run(&mut asking(&gate, &["drain", "--within", "30"])).worked();
        }
    }
    let status = gate.wait(Duration::from_secs(30));
    assert_eq!(status.code(), Some(0), "{:?}", gate.lines());
    let lines = gate.lines();
    let gave_up = lines.iter().find(|line| line.contains("given up"));
    assert!(gave_up.is_none(), "{gave_up:?}");
}

fn patient(url: &str) -> String {
    changed(
        url,
        &[
            ("answer_within = \"1s\"", "answer_within = \"12s\""),
            ("settle_within = \"4s\"", "settle_within = \"14s\""),
            (
                "store = \"memory\"\nallow_volatile = true",
                "path = \"tikigate.db\"",
            ),
        ],
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_drains_lose_no_answer_and_make_no_unknown() {
    let seed = random::seed("drains");
    let booked = Arc::new(Mutex::new(Vec::new()));
    let backend = backend(Arc::clone(&booked), seed).await;
    // One ledger for all lives: nothing may be sent again in a later one.
    let setup: Arc<Setup> = Arc::new(setup(&patient(&backend.url())));
    let mut answered = BTreeSet::new();
    let (mut refused_runs, runs) = (0, runs());
    for number in 0..runs {
        let mut random = Random::part(seed, &[1, number]);
        let begun = match number % 3 {
            0 => Begun::Signal(Signal::TERM),
            1 => Begun::Signal(Signal::INT),
            _ => Begun::Command,
        };
        let started = {
            let setup = Arc::clone(&setup);
            tokio::task::spawn_blocking(move || GateProcess::launch(setup.command("serve"), setup))
        };
        let gate = started
            .await
            .unwrap()
            .unwrap_or_else(|fault| panic!("{fault}"));
        let address = ListenAddress::Tcp(gate.address());
        let seen = Arc::new(Seen::default());
        let mut callers = JoinSet::new();
        for place in 0..CALLERS {
            let name = format!("r-{number}-{place}");
            callers.spawn(caller(address.clone(), name, Arc::clone(&seen)));
        }
        // In the middle of it, wherever that is.
        let under_way = booked.lock().unwrap().len() + usize::try_from(random.below(30)).unwrap();
        in_time("calls in flight", async {
            while booked.lock().unwrap().len() <= under_way {
                tokio::task::yield_now().await;
            }
        })
        .await;
        tokio::task::spawn_blocking(move || end(gate, begun))
            .await
            .unwrap();
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
        let lost = std::mem::take(&mut *seen.lost.lock().unwrap());
        // A call that came to a connection while the gate was closing it was never read: the backend
        // must not have seen it.
        refused_runs += usize::from(!lost.is_empty());
        let booked = booked.lock().unwrap();
        for key in &lost {
            assert!(
                !booked.contains(key),
                "run {number}, {begun:?}: {key} was sent and not answered"
            );
        }
        answered.append(&mut seen.answered.lock().unwrap());
    }
    let booked = booked.lock().unwrap().clone();
    println!(
        "drains: {runs} runs, {} refunds answered, in {refused_runs} runs a caller met a closing connection",
        answered.len()
    );
    let once: BTreeSet<&String> = booked.iter().collect();
    assert_eq!(once.len(), booked.len(), "a refund was sent twice");
    let booked: BTreeSet<String> = booked.into_iter().collect();
    assert_eq!(answered, booked, "each that was sent was answered");

    let setup_of_last = Arc::clone(&setup);
    let listed = tokio::task::spawn_blocking(move || {
        let file = setup_of_last
            .directory()
            .join("tikigate.db")
            .display()
            .to_string();
        let mut list =
            crate::commands::tikigate(&["ledger", "list", "--state", "unknown", "--file", &file]);
        run(&mut list).worked()
    });
    let listed = listed.await.unwrap();
    assert!(!listed.contains("rec-"), "{listed}");
}

/// The same with a second signal: what is then at the backend is unknown, and is told to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once_and_tells_what_is_unknown() {
    let backend = Backend::start(|_| Behaviour::Silence).await;
    let setup = Arc::new(setup(&patient(&backend.url())));
    let gate = GateProcess::launch(setup.command("serve"), Arc::clone(&setup)).unwrap();
    let mut connection = RawClient::connect(&ListenAddress::Tcp(gate.address())).await;
    let call = signed("/tiki/refund", &refund("r-1", "1")).to_bytes();
    connection.send(&call).await;
    backend.wait_for_requests(1).await;

    let ended = tokio::task::spawn_blocking(move || {
        let mut gate = gate;
        gate.signal_terminate();
        gate.wait_for_line(|line| line.contains("draining: no new connections"));
        assert_eq!(
            gate.ends_within(Duration::from_millis(300)),
            None,
            "it waits"
        );
        gate.signal_terminate();
        assert_eq!(gate.wait(Duration::from_secs(10)).code(), Some(0));
        gate.wait_for_line(|line| line.contains("a second signal: the drain is cut short"))
    });
    let answer = connection.read_answer().await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    ended.await.unwrap();
    let again =
        tokio::task::spawn_blocking(move || GateProcess::launch(setup.command("serve"), setup));
    let again = again.await.unwrap().unwrap();
    let answer = crate::commands::post(again.address(), "/tiki/refund", &refund("r-1", "1")).await;
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (500, Some("outcome_unknown"))
    );
    assert_eq!(backend.requests().len(), 1);
}
