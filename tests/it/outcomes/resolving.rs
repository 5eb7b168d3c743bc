//! A person's word on a held refund, through the admin API.

use std::time::Duration;

use super::{AGREED, Kind, SUCCESS, Stage, assert_refused, events, one_worker};
use crate::support::backend::{Behaviour, OnConnect};
use crate::support::gate::{Call, TestGate, refund};
use crate::support::raw::{RawAnswer, exchange};
use serde_json::{Value, json};
use tikigate::ledger::State;

/// A refund that its backend lost.
struct Held {
    stage: Stage,
    gate: TestGate,
    call: Call,
    token: String,
    record: String,
}

impl Held {
    async fn new() -> Self {
        let stage = Stage::open().await;
        let gate = TestGate::with(&one_worker(&stage.backend.url())).await;
        let token = std::fs::read_to_string(gate.directory().join("admin.token")).unwrap();
        let call = Kind::Hold.call(&gate, "r-1");
        stage.plays(OnConnect::Serve, Behaviour::Close);
        assert_eq!(gate.send(&call).await.status, 502);
        stage.succeeds();
        let record = gate.record("r-1").await.unwrap().id.to_string();
        Self {
            stage,
            gate,
            call,
            token: token.trim().to_owned(),
            record,
        }
    }

    async fn api(&self, request: &str, token: &str, body: &str) -> RawAnswer {
        let request = format!(
            "{request} HTTP/1.1\r\nHost: localhost:{}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port(),
            body.len()
        );
        exchange(self.gate.admin_address(), request).await
    }

    fn port(&self) -> u16 {
        match self.gate.admin_address() {
            tikigate::net::ListenAddress::Tcp(address) => address.port(),
            tikigate::net::ListenAddress::Unix(_) => panic!("a TCP listener"),
        }
    }

    async fn resolve(&self, word: Value) -> RawAnswer {
        let request = format!("POST /api/ledger/{}/resolve", self.record);
        self.api(&request, &self.token, &word.to_string()).await
    }

    /// Asserts that Tiki, asking again, unchanged and anew, gets this from the ledger.
    async fn assert_answered(&self, status: u16, body: &Value) {
        let before = self.stage.counts();
        let anew = self.gate.signed("/tiki/refund", &refund("r-1", "1e3"));
        for call in [&self.call, &self.call, &anew] {
            let answer = self.gate.send(call).await;
            assert_eq!((answer.status, &answer.json()), (status, body));
            assert_eq!(answer.header("idempotency-replayed"), Some("true"));
            assert_eq!(answer.header("content-type"), Some("application/json"));
        }
        let log = self.gate.log();
        let replayed = log.iter().filter(|line| line["tikigate.replayed"] == true);
        assert_eq!(replayed.count(), 3);
        assert_eq!(self.stage.counts(), before, "nothing is sent");
        let replays = self
            .gate
            .metric(r#"tikigate_replays_total{route="refund"}"#);
        assert_eq!(replays.await, 3.0);
    }

    async fn assert_held(&self) {
        let before = self.stage.counts();
        let answer = self.gate.send(&self.call).await;
        let held = (500, "outcome_unknown", "outcome_unknown");
        assert_refused(&self.gate, Kind::Hold, &answer, held);
        assert_eq!(self.stage.counts(), before);
        assert_eq!(self.gate.state("r-1").await, Some(State::Unknown));
    }
}

#[tokio::test]
async fn a_refund_that_was_applied_is_answered_so_from_then_on() {
    let held = Held::new().await;
    held.assert_held().await;
    let series = r#"tikigate_ledger_records{state="unknown"}"#;
    assert_eq!(held.gate.metric(series).await, 1.0);
    let word =
        json!({"verdict": "applied", "reason": "seen in the bank's list", "by": "the day shift"});
    let resolved = held.resolve(word).await;
    assert_eq!(resolved.status, 200, "{}", resolved.text());
    assert_eq!(resolved.json()["data"]["state"], "done");
    let platform: Value = serde_json::from_str(SUCCESS).unwrap();
    held.assert_answered(200, &platform).await;
    assert_eq!(held.stage.counts(), (1, 1));
    assert_eq!(held.gate.metric(series).await, 0.0);
    assert_eq!(
        held.gate
            .metric(r#"tikigate_ledger_records{state="done"}"#)
            .await,
        1.0
    );

    let last = held.gate.events("r-1").await.pop().unwrap();
    assert_eq!(
        (last.state, last.attempt, &*last.cause),
        (State::Done, 1, "resolved_applied")
    );
    let (by, reason) = last.by.unwrap();
    assert!(by.ends_with("(for the day shift)"), "{by}");
    assert_eq!(reason, "seen in the bank's list");
}

#[tokio::test]
async fn a_refund_that_was_rejected_is_a_failure_from_then_on() {
    let held = Held::new().await;
    let word = json!({"verdict": "rejected", "reason": "the order does not exist"});
    assert_eq!(held.resolve(word).await.status, 200);
    let answer = held.gate.record("r-1").await.unwrap().answer.unwrap();
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        (&body["data"], &body["error"]["code"]),
        (&Value::Null, &json!("rejected"))
    );
    held.assert_answered(500, &body).await;
    assert_eq!(held.stage.counts(), (1, 1));
    assert_eq!(held.gate.state("r-1").await, Some(State::Done));
}

#[tokio::test]
async fn not_applied_is_not_believed_while_the_attempt_may_run() {
    let held = Held::new().await;
    let word = || json!({"verdict": "not_applied", "reason": "not in the bank's list"});
    // 30 s to settle and a quiet minute from the claim; what the gate's own time took is less.
    for (advance, status) in [(0, 409), (80, 409), (10, 200)] {
        held.gate.advance(Duration::from_secs(advance));
        let answer = held.resolve(word()).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        if status == 409 {
            assert_eq!(answer.error_code().as_deref(), Some("may_still_run"));
            held.assert_held().await;
        }
    }
    assert_sent_once_more(&held, "resolved_not_applied").await;
}

#[tokio::test]
async fn by_force_not_applied_is_believed_at_once() {
    let held = Held::new().await;
    let word =
        json!({"verdict": "not_applied", "reason": "the backend was never up", "force": true});
    assert_eq!(held.resolve(word).await.status, 200);
    assert_eq!(held.gate.state("r-1").await, Some(State::Released));
    assert_eq!(
        held.stage.counts(),
        (1, 1),
        "a word sends nothing by itself"
    );
    assert_sent_once_more(&held, "resolved_not_applied_forced").await;
}

/// The next try is attempt 2, and the last.
async fn assert_sent_once_more(held: &Held, cause: &str) {
    let answer = held.gate.send(&held.call).await;
    assert_eq!((answer.status, answer.text()), (200, AGREED));
    assert_eq!(answer.header("idempotency-replayed"), None);
    let seen = held.stage.backend.requests().pop().unwrap();
    assert_eq!(seen.header("x-tikigate-attempt"), Some("2"));
    assert_eq!(
        events(&held.gate, "r-1").await[1..],
        [
            (State::Unknown, 1, "upstream_closed".to_owned()),
            (State::Released, 1, cause.to_owned()),
            (State::Claimed, 2, "claimed".to_owned()),
            (State::Done, 2, "success".to_owned()),
        ]
    );
    let again = held.gate.send(&held.call).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(held.stage.counts(), (2, 2));
}

#[tokio::test]
async fn a_word_that_does_not_count_changes_nothing() {
    let held = Held::new().await;
    let path = format!("POST /api/ledger/{}/resolve", held.record);
    let applied = json!({"verdict": "applied", "reason": "x"});
    let stale = json!({
        "verdict": "applied", "reason": "x",
        "expected": {"state": "unknown", "attempt": 1, "version": 1},
    });
    for (token, word, status, code) in [
        ("guess", &applied, 401, "unauthorized"),
        (
            &*held.token,
            &json!({"verdict": "applied"}),
            422,
            "reason_required",
        ),
        (
            &*held.token,
            &json!({"verdict": "perhaps", "reason": "x"}),
            400,
            "malformed",
        ),
        (&*held.token, &stale, 409, "conflict"),
    ] {
        let answer = held.api(&path, token, &word.to_string()).await;
        assert_eq!(
            (answer.status, answer.error_code().as_deref()),
            (status, Some(code))
        );
    }
    held.assert_held().await;
    // Once it is resolved, no second word counts.
    assert_eq!(held.resolve(applied.clone()).await.status, 200);
    let second = held
        .resolve(json!({"verdict": "not_applied", "reason": "x", "force": true}))
        .await;
    assert_eq!(
        (second.status, second.error_code().as_deref()),
        (409, Some("not_unknown"))
    );
    assert_eq!(held.gate.state("r-1").await, Some(State::Done));
}

#[tokio::test]
async fn the_api_shows_what_happened_and_no_free_text_or_signature() {
    let held = Held::new().await;
    let list = held
        .api(
            "GET /api/ledger?state=unknown&route=refund",
            &held.token,
            "",
        )
        .await;
    let records = list.json()["data"]["records"].clone();
    assert_eq!(records.as_array().unwrap().len(), 1);
    assert_eq!(
        (&records[0]["key"], &records[0]["on_unknown"]),
        (&json!("r-1"), &json!("hold"))
    );
    let shown = held
        .api(&format!("GET /api/ledger/{}", held.record), &held.token, "")
        .await;
    let causes: Vec<_> = shown.json()["data"]["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["cause"].clone())
        .collect();
    assert_eq!(causes, ["claimed", "upstream_closed"]);
    assert_eq!(
        shown.json()["data"]["fields"]["tiki_transaction_id"],
        "t-1",
        "{}",
        shown.text()
    );
    for hidden in ["Khách", held.call.header("x-tikivip-signature")] {
        assert!(!shown.text().contains(hidden), "{hidden}");
    }
}
