//! Duplicates that overlap: one call to the backend, one answer for all.

use std::collections::HashSet;

use tikigate::ledger::State;

use super::{
    MINUTE, PATIENT, SECOND, access_lines, assert_refused, changed, read_all, refused_for,
    send_all, wait_for_authentic_calls,
};
use crate::support::backend::{Answer, Backend, Hold};
use crate::support::gate::{Call, TestGate, ipn, ipn_key, refund};
use crate::support::raw::RawAnswer;

/// A backend that answers nobody before the hold is released.
async fn holding() -> (Backend, Hold) {
    let hold = Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |seen| {
        let answer = Answer::json(201, &format!(r#"{{"data":{{"number":{}}}}}"#, seen.number));
        let answer = answer
            .header("Cache-Control", "no-store")
            .header("Expires", "0")
            .header("Set-Cookie", "legacy=1");
        crate::support::backend::Behaviour::from(answer).held(&held)
    })
    .await;
    (backend, hold)
}

/// All that a caller sees but the time.
fn seen_by_caller(answer: &RawAnswer) -> (u16, Vec<(String, String)>, String) {
    let fields = answer.head.fields.iter();
    let fields = fields.filter(|(name, _)| !name.eq_ignore_ascii_case("date"));
    (
        answer.status,
        fields.cloned().collect(),
        answer.text().to_owned(),
    )
}

async fn one_call_and_equal_answers(path: &str, body: &str) -> (TestGate, Backend) {
    let (backend, hold) = holding().await;
    let gate = TestGate::with(&changed(&backend.url(), PATIENT)).await;
    let calls = vec![gate.signed(path, body); 100];
    let clients = send_all(&gate, &calls).await;
    wait_for_authentic_calls(&gate, 100).await;
    hold.release();
    let answers = read_all(clients).await;

    assert_eq!(backend.requests().len(), 1, "calls on {path}");
    assert_eq!(backend.requests()[0].text(), body);
    let first = seen_by_caller(&answers[0]);
    assert_eq!(first.0, 201);
    assert_eq!(first.2, r#"{"data":{"number":0}}"#);
    for answer in &answers {
        assert_eq!(seen_by_caller(answer), first, "answers on {path}");
    }
    let workers: HashSet<String> = access_lines(&gate)
        .iter()
        .map(|line| line["tikigate.request_id"].as_str().unwrap()[..16].to_owned())
        .collect();
    assert_eq!(workers.len(), 2, "both workers took calls");
    (gate, backend)
}

#[tokio::test]
async fn a_hundred_duplicates_of_a_refund_are_one_call() {
    let (gate, _backend) = one_call_and_equal_answers("/tiki/refund", &refund("r-1", "1000")).await;
    assert_eq!(gate.state("r-1").await, Some(State::Done));
}

#[tokio::test]
async fn a_hundred_duplicates_of_an_ipn_are_one_call() {
    let (gate, _backend) = one_call_and_equal_answers("/tiki/ipn", &ipn("p-1", "1000")).await;
    assert_eq!(gate.state(&ipn_key("p-1")).await, Some(State::Done));
}

#[tokio::test]
async fn a_hundred_copies_of_one_signed_call_without_a_key_are_one_call() {
    let (gate, _backend) = one_call_and_equal_answers("/tiki/any", "no key in here").await;
    // Signed anew it is another call: nothing says that it is the same.
    gate.advance(SECOND);
    assert_eq!(gate.post("/tiki/any", "no key in here").await.status, 201);
}

#[tokio::test]
async fn duplicates_signed_anew_and_written_by_other_libraries_join() {
    let (backend, hold) = holding().await;
    let gate = TestGate::with(&changed(&backend.url(), PATIENT)).await;
    let first = refund("r-1", "1000");
    let written_anew = [
        first.clone(),
        // Sorted keys, as Go writes them.
        r#"{"reason":"Kh\u00e1ch \u0111\u1ed5i \u00fd","request_id":"r-1","tiki_transaction_id":"t-1","transaction_amount":1e3,"transaction_id":"p-1"}"#.to_owned(),
        // Indented, escapes where none are needed, another reason.
        "{\n  \"request_\\u0069d\": \"r\\u002d1\",\n  \"reason\": \"a\\/b\",\n  \"transaction_id\": \"\\u0070-1\",\n  \"tiki_transaction_id\": \"t-1\",\n  \"transaction_amount\": 1000.0\n}\n".to_owned(),
        // Fields that nobody listed.
        refund("r-1", "10.00E+2").replace("\"reason\"", "\"note\":[1],\"reason\""),
    ];
    let mut clients = send_all(&gate, &[gate.signed("/tiki/refund", &first)]).await;
    backend.wait_for_requests(1).await;
    for (number, body) in written_anew.iter().enumerate() {
        gate.advance(SECOND);
        let call = gate.signed("/tiki/refund", body);
        clients.extend(send_all(&gate, &[call]).await);
        wait_for_authentic_calls(&gate, number + 2).await;
    }
    hold.release();
    for answer in read_all(clients).await {
        assert_eq!(answer.text(), r#"{"data":{"number":0}}"#);
        assert_eq!(answer.header("idempotency-replayed"), None);
    }
    for body in &written_anew {
        let replay = gate.post("/tiki/refund", body).await;
        assert_eq!(
            (replay.status, replay.text()),
            (201, r#"{"data":{"number":0}}"#)
        );
        assert_eq!(replay.header("idempotency-replayed"), Some("true"));
    }
    assert_eq!(backend.requests().len(), 1);
    assert_eq!(backend.requests()[0].text(), first);
}

#[tokio::test]
async fn another_amount_under_a_running_key_is_a_conflict_and_is_not_sent() {
    let (backend, hold) = holding().await;
    let gate = TestGate::with(&changed(&backend.url(), PATIENT)).await;
    let first = gate.signed("/tiki/refund", &refund("r-1", "1000"));
    let clients = send_all(&gate, &[first]).await;
    backend.wait_for_requests(1).await;
    let others = [
        refund("r-1", "1001"),
        refund("r-1", "1000.0000000001"),
        refund("r-1", "1000").replace("\"p-1\"", "\"p-2\""),
        refund("r-1", "1000").replace("\"t-1\"", "\"t-2\""),
    ];
    for other in &others {
        let answer = gate.post("/tiki/refund", other).await;
        assert_refused(&answer, 422, "conflict");
    }
    hold.release();
    assert_eq!(read_all(clients).await[0].status, 201);
    for other in &others {
        let answer = gate.post("/tiki/refund", other).await;
        assert_refused(&answer, 422, "conflict");
    }
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test]
async fn duplicates_beyond_the_bound_are_told_to_come_again() {
    let (backend, hold) = holding().await;
    let gate = TestGate::with(&changed(&backend.url(), PATIENT)).await;
    let call = gate.signed("/tiki/refund", &refund("r-1", "1000"));
    let waiting = send_all(&gate, &vec![call.clone(); 257]).await;
    wait_for_authentic_calls(&gate, 257).await;
    for refused in 1..=5 {
        let answer = gate.send(&call).await;
        assert_refused(&answer, 503, "in_progress");
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(refused_for(&gate, "crowded"), refused);
    }
    hold.release();
    for answer in read_all(waiting).await {
        assert_eq!(answer.status, 201);
    }
    assert_eq!(gate.send(&call).await.status, 201);
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test]
async fn a_duplicate_outside_its_window_joins_what_runs_and_gets_what_is_known() {
    let (backend, hold) = holding().await;
    let gate = TestGate::with(&changed(&backend.url(), PATIENT)).await;
    let first = gate.signed("/tiki/refund", &refund("r-1", "1000"));
    let earlier = Call::post(
        "/tiki/refund",
        refund("r-1", "1e3"),
        gate.now() - MINUTE * 30,
    );
    let clients = send_all(&gate, std::slice::from_ref(&first)).await;
    backend.wait_for_requests(1).await;
    gate.advance(MINUTE * 10);
    let late = send_all(&gate, &[first.clone(), earlier.clone()]).await;
    wait_for_authentic_calls(&gate, 3).await;
    let other = Call::post("/tiki/refund", refund("r-1", "7"), gate.now() - MINUTE * 30);
    assert_refused(&gate.send(&other).await, 422, "conflict");
    hold.release();
    for answer in read_all(clients.into_iter().chain(late).collect()).await {
        assert_eq!(answer.text(), r#"{"data":{"number":0}}"#);
        assert_eq!(answer.header("idempotency-replayed"), None);
    }
    for call in [&first, &earlier] {
        let replay = gate.send(call).await;
        assert_eq!(
            (replay.status, replay.text()),
            (201, r#"{"data":{"number":0}}"#)
        );
        assert_eq!(replay.header("idempotency-replayed"), Some("true"));
    }
    assert_refused(&gate.send(&other).await, 422, "conflict");
    assert_eq!(backend.requests().len(), 1);
}
