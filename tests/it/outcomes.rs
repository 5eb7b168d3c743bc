//! What a call comes to when the backend answers, misbehaves, is slow or is gone: in the ledger, for
//! Tiki, for the same call sent again, at the backend, in the log and in the metrics.

mod answers;
mod connections;
mod drain;
mod faults;
mod hang_up;
mod late;
mod resolving;
mod silence;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tikigate::ledger::State;

use crate::support::backend::{Answer, Backend, Behaviour, OnConnect};
use crate::support::gate::{Call, TestGate, ipn, ipn_key, refund, usual};
use crate::support::in_time;
use crate::support::raw::RawAnswer;

/// The body of the platform's success.
const SUCCESS: &str = r#"{"data":{"status":"success"}}"#;
/// The body of [`Stage::succeeds`], which every condition of these tests takes for a success.
const AGREED: &str = r#"{"code":0,"ok":true}"#;

/// The usual configuration with other deadlines.
fn deadlines(backend: &str, answer_within: &str, settle_within: &str) -> String {
    replaced(
        &usual(backend),
        &[
            ("connect_timeout = \"500ms\"", "connect_timeout = \"250ms\""),
            (
                "answer_within = \"1s\"",
                &format!("answer_within = \"{answer_within}\""),
            ),
            (
                "settle_within = \"4s\"",
                &format!("settle_within = \"{settle_within}\""),
            ),
        ],
    )
}

/// The usual configuration with deadlines that no test reaches.
fn patient(backend: &str) -> String {
    let patient = deadlines(backend, "14s", "30s");
    replaced(
        &patient,
        &[("connect_timeout = \"250ms\"", "connect_timeout = \"10s\"")],
    )
}

/// The same with one worker: one pool of connections, and one order of the log's lines.
fn one_worker(backend: &str) -> String {
    replaced(&patient(backend), &[("workers = 2", "workers = 1")])
}

/// With each of these replaced, which must be there.
fn replaced(toml: &str, replacements: &[(&str, &str)]) -> String {
    let mut toml = toml.to_owned();
    for (old, new) in replacements {
        assert!(toml.contains(old), "there is no {old} to replace");
        toml = toml.replace(old, new);
    }
    toml
}

/// A backend whose behaviour the test sets before each call.
struct Stage {
    backend: Backend,
    play: Arc<Mutex<(OnConnect, Behaviour)>>,
}

impl Stage {
    async fn open() -> Self {
        let play = Arc::new(Mutex::new((OnConnect::Serve, Behaviour::Close)));
        let (connects, requests) = (Arc::clone(&play), Arc::clone(&play));
        let backend = Backend::start_with(
            move |_| connects.lock().unwrap().0.clone(),
            move |_| requests.lock().unwrap().1.clone(),
        )
        .await;
        Self { backend, play }
    }

    /// From now on connections and requests are met like this.
    fn plays(&self, on_connect: OnConnect, on_request: Behaviour) {
        *self.play.lock().unwrap() = (on_connect, on_request);
    }

    /// From now on every call succeeds, and its connection ends with the answer.
    fn succeeds(&self) {
        let answer = Answer::json(200, AGREED).until_close();
        self.plays(OnConnect::Serve, answer.into());
    }

    /// Connections and whole requests so far.
    fn counts(&self) -> (usize, usize) {
        (
            self.backend.connections().len(),
            self.backend.requests().len(),
        )
    }
}

/// A kind of route of the usual configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `/tiki/refund`: an unknown outcome is held.
    Hold,
    /// `/tiki/ipn`: an unknown outcome is sent again.
    Resend,
    /// `/tiki/any`: no key, only the signature.
    Post,
    /// `/tiki/order-status`: changes nothing.
    Get,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Hold, Self::Resend, Self::Post, Self::Get];

    /// The route's name.
    fn route(self) -> &'static str {
        match self {
            Self::Hold => "refund",
            Self::Resend => "ipn",
            Self::Post => "any",
            Self::Get => "order-status",
        }
    }

    /// A call of this kind, signed now; `id` tells it from others.
    fn call(self, gate: &TestGate, id: &str) -> Call {
        match self {
            Self::Hold => gate.signed("/tiki/refund", &refund(id, "1000")),
            Self::Resend => gate.signed("/tiki/ipn", &ipn(id, "1000")),
            Self::Post => gate.signed("/tiki/any", id),
            Self::Get => Call::get(&format!("/tiki/order-status?id={id}"), gate.now()),
        }
    }

    /// Its key in the ledger.
    fn key(self, id: &str) -> Option<String> {
        match self {
            Self::Hold => Some(id.to_owned()),
            Self::Resend => Some(ipn_key(id)),
            Self::Post | Self::Get => None,
        }
    }
}

/// What became of a first attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settles {
    /// It got its final answer.
    Done,
    /// It did not happen.
    Released,
    /// Nobody can say.
    Doubtful,
}

/// What a first call comes to, wherever it shows.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    /// The status that Tiki gets.
    status: u16,
    /// The gate's own code, and its reason in the log; none where the backend's answer is passed on.
    refusal: Option<(&'static str, &'static str)>,
    settles: Settles,
    /// In the event log.
    cause: &'static str,
}

impl Outcome {
    const fn done(status: u16, cause: &'static str) -> Self {
        Self {
            status,
            refusal: None,
            settles: Settles::Done,
            cause,
        }
    }

    /// Certain that nothing was sent.
    const fn unreachable(reason: &'static str) -> Self {
        Self {
            status: 502,
            refusal: Some(("upstream_unreachable", reason)),
            settles: Settles::Released,
            cause: reason,
        }
    }

    /// Perhaps sent, and no whole answer.
    const fn lost(reason: &'static str) -> Self {
        Self {
            status: 502,
            refusal: Some(("upstream_failed", reason)),
            settles: Settles::Doubtful,
            cause: reason,
        }
    }

    /// An answer below 500 that says neither yes nor no.
    const fn unclear() -> Self {
        Self {
            status: 502,
            refusal: Some(("upstream_failed", "unclear")),
            settles: Settles::Doubtful,
            cause: "unclear_answer",
        }
    }

    /// An answer below 500 that says "not applied".
    const fn not_applied() -> Self {
        Self {
            status: 502,
            refusal: Some(("upstream_failed", "not_applied")),
            settles: Settles::Released,
            cause: "not_applied",
        }
    }

    /// A 5xx of the backend, passed on.
    const fn passed_on(status: u16, settles: Settles, cause: &'static str) -> Self {
        Self {
            status,
            refusal: None,
            settles,
            cause,
        }
    }

    /// The state of the record.
    fn state(&self, kind: Kind) -> State {
        match (self.settles, kind) {
            (Settles::Done, _) => State::Done,
            (Settles::Doubtful, Kind::Hold) => State::Unknown,
            (Settles::Released | Settles::Doubtful, _) => State::Released,
        }
    }
}

/// Looks for an outcome of a first call everywhere but at the backend.
async fn assert_first(
    gate: &TestGate,
    kind: Kind,
    id: &str,
    answer: &RawAnswer,
    outcome: &Outcome,
) {
    let context = format!("{id}: {outcome:?}, answered {:?}", answer.head);
    assert_eq!(answer.status, outcome.status, "{context}");
    assert_eq!(answer.header("idempotency-replayed"), None, "{context}");
    let line = last_line(gate, kind.route());
    assert_eq!(
        line["http.response.status_code"], outcome.status,
        "{context}"
    );
    if let Some((code, reason)) = outcome.refusal {
        assert_eq!(answer.error_code().as_deref(), Some(code), "{context}");
        assert_eq!(line["error.type"], code, "{context}");
        assert_eq!(
            line["tikigate.reason"].as_str().unwrap_or(""),
            reason,
            "{context}"
        );
    } else {
        assert_eq!(line["error.type"], Value::Null, "{context}");
    }
    let Some(key) = kind.key(id) else { return };
    assert_eq!(line["tikigate.idempotency_key"], key, "{context}");
    assert_eq!(line["tikigate.attempt"], 1, "{context}");
    let record = gate.record(&key).await.expect("a record");
    assert_eq!(
        (record.state, record.attempt),
        (outcome.state(kind), 1),
        "{context}"
    );
    assert_eq!(
        events(gate, &key).await,
        [
            (State::Claimed, 1, "claimed".to_owned()),
            (outcome.state(kind), 1, outcome.cause.to_owned()),
        ],
        "{context}"
    );
}

/// Sends the call again, unchanged, to a backend that would take it, and looks for what the outcome
/// of the first demands.
async fn assert_again(
    gate: &TestGate,
    stage: &Stage,
    kind: Kind,
    id: &str,
    call: &Call,
    (first, outcome): (&RawAnswer, &Outcome),
) {
    let context = format!("{id} again: {outcome:?}");
    stage.succeeds();
    let before = stage.counts();
    let answer = gate.send(call).await;
    let sends = match (kind, outcome.settles) {
        (Kind::Hold | Kind::Resend, Settles::Done) => {
            assert_same(&answer, first, &context);
            assert_eq!(
                answer.header("idempotency-replayed"),
                Some("true"),
                "{context}"
            );
            assert_eq!(last_line(gate, kind.route())["tikigate.replayed"], true);
            false
        }
        (Kind::Hold, Settles::Doubtful) => {
            assert_refused(
                gate,
                kind,
                &answer,
                (500, "outcome_unknown", "outcome_unknown"),
            );
            assert_eq!(gate.state(id).await, Some(State::Unknown), "{context}");
            false
        }
        (Kind::Post, Settles::Done) => {
            assert_refused(gate, kind, &answer, (409, "replayed", "answered"));
            false
        }
        _ => true,
    };
    if !sends {
        assert_eq!(stage.counts(), before, "{context}: nothing is sent");
        return;
    }
    assert_eq!(
        (answer.status, answer.text()),
        (200, AGREED),
        "{context}: {:?}",
        answer.head
    );
    assert_eq!(answer.header("idempotency-replayed"), None, "{context}");
    assert_eq!(
        stage.counts(),
        (before.0 + 1, before.1 + 1),
        "{context}: sent once"
    );
    let seen = stage.backend.requests().pop().unwrap();
    assert_eq!(seen.body, call.body, "{context}");
    let attempt = if kind.key(id).is_some() { "2" } else { "1" };
    assert_eq!(
        seen.header("x-tikigate-attempt"),
        Some(attempt),
        "{context}"
    );
    let Some(key) = kind.key(id) else { return };
    let all = events(gate, &key).await;
    assert_eq!(
        all[2..],
        [
            (State::Claimed, 2, "claimed".to_owned()),
            (State::Done, 2, "success".to_owned()),
        ],
        "{context}"
    );
    let third = gate.send(call).await;
    assert_same(&third, &answer, &context);
    assert_eq!(
        third.header("idempotency-replayed"),
        Some("true"),
        "{context}"
    );
    assert_eq!(stage.counts(), (before.0 + 1, before.1 + 1), "{context}");
}

/// A refusal with this status, code and, in the log, reason.
fn assert_refused(
    gate: &TestGate,
    kind: Kind,
    answer: &RawAnswer,
    (status, code, reason): (u16, &str, &str),
) {
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (status, Some(code)),
        "{}",
        answer.text()
    );
    assert_eq!(answer.json()["data"], Value::Null);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let line = last_line(gate, kind.route());
    assert_eq!(line["error.type"], code);
    assert_eq!(line["tikigate.reason"].as_str().unwrap_or(""), reason);
}

/// What is given again is what was given.
fn assert_same(again: &RawAnswer, first: &RawAnswer, context: &str) {
    assert_eq!(again.status, first.status, "{context}");
    assert_eq!(again.body, first.body, "{context}");
    for name in ["content-type", "content-encoding", "content-length"] {
        assert_eq!(again.header(name), first.header(name), "{context}: {name}");
    }
}

/// The log's last line about a call to this route. Each worker has a buffer of its own: with several
/// of them, only lines that were looked for one by one are in order.
fn last_line(gate: &TestGate, route: &str) -> Value {
    let text = gate.log_text();
    let mut lines = text.lines().rev().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line
    });
    lines
        .find(|line| line["message"] == "request" && line["http.route"] == route)
        .unwrap_or_else(|| panic!("no line about {route}"))
}

/// State, attempt and cause of each event of a key.
async fn events(gate: &TestGate, key: &str) -> Vec<(State, u32, String)> {
    let events = gate.events(key).await.into_iter();
    events
        .map(|event| (event.state, event.attempt, event.cause.into_owned()))
        .collect()
}

/// Waits until no call runs detached.
async fn settled(gate: &TestGate) {
    in_time("all calls to settle", async {
        while gate.app().running_calls() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
