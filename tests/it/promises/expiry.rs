//! What the ledger forgets, what it never forgets, and what it does when it is full.

use tikigate::ledger::State;

use super::{DAY, HOUR, MILLISECOND, assert_refused, changed, refused_for};
use crate::support::backend::{Answer, Backend, Behaviour, Seen};
use crate::support::gate::{TestGate, ipn, ipn_key, refund};

const FAILURE: &str = r#"{"data":null,"error":{"code":"1","message":"not now"}}"#;

fn by_name(seen: &Seen) -> Behaviour {
    match seen.header("idempotency-key") {
        Some("declined") => Answer::new(422).into(),
        Some("unknown") => Behaviour::Close,
        Some("released") => Answer::json(500, FAILURE).into(),
        _ => Answer::success().into(),
    }
}

#[tokio::test]
async fn done_records_are_forgotten_after_their_time_and_unknown_ones_never() {
    let backend = Backend::start(by_name).await;
    let gate = TestGate::start(&backend.url()).await;
    let mut calls = Vec::new();
    for (id, status) in [
        ("done", 200),
        ("declined", 422),
        ("unknown", 502),
        ("released", 500),
    ] {
        let call = gate.signed("/tiki/refund", &refund(id, "1000"));
        assert_eq!(gate.send(&call).await.status, status);
        calls.push(call);
    }
    let notice = gate.signed("/tiki/ipn", &ipn("p-1", "1000"));
    assert_eq!(gate.send(&notice).await.status, 200);
    assert_eq!(backend.requests().len(), 5);

    gate.advance(DAY * 400 - MILLISECOND);
    assert_eq!(gate.ledger().sweep(1000).await, Ok(0));
    let replay = gate.send(&calls[0]).await;
    assert_eq!(
        (replay.status, replay.header("idempotency-replayed")),
        (200, Some("true"))
    );

    gate.advance(MILLISECOND);
    assert_eq!(gate.ledger().sweep(1000).await, Ok(3));
    for (id, state) in [
        ("done", None),
        ("declined", None),
        ("unknown", Some(State::Unknown)),
        ("released", Some(State::Released)),
    ] {
        assert_eq!(gate.state(id).await, state, "{id}");
    }
    assert_eq!(gate.state(&ipn_key("p-1")).await, None);
    // Nobody knows them any more, and their time is long over.
    for call in [&calls[0], &calls[1], &notice] {
        assert_refused(&gate.send(call).await, 503, "out_of_window");
    }
    assert_refused(&gate.send(&calls[2]).await, 500, "outcome_unknown");
    assert_eq!(backend.requests().len(), 5);

    gate.advance(DAY * 4000);
    assert_eq!(gate.ledger().sweep(1000).await, Ok(0));
    assert_refused(&gate.send(&calls[2]).await, 500, "outcome_unknown");
    let anew = gate.signed("/tiki/refund", &refund("unknown", "1000"));
    assert_refused(&gate.send(&anew).await, 500, "outcome_unknown");
    assert_eq!(backend.requests().len(), 5);
}

#[tokio::test]
async fn records_are_kept_from_their_answer_on_for_as_long_as_their_route_says() {
    let backend = Backend::start(by_name).await;
    let toml = changed(
        &backend.url(),
        &[(
            "payload = \"refund\"\nclients = [\"wallet\"]\n",
            "payload = \"refund\"\nclients = [\"wallet\"]\n[routes.idempotency]\nkeep = \"50h\"\n",
        )],
    );
    let gate = TestGate::with(&toml).await;
    assert_eq!(
        gate.post("/tiki/refund", &refund("r-1", "1")).await.status,
        200
    );
    assert_eq!(gate.post("/tiki/ipn", &ipn("p-1", "1")).await.status, 200);
    gate.advance(HOUR * 50 - MILLISECOND);
    assert_eq!(gate.ledger().sweep(1000).await, Ok(0));
    gate.advance(MILLISECOND);
    assert_eq!(gate.ledger().sweep(1000).await, Ok(1));
    assert_eq!(gate.state("r-1").await, None);
    assert_eq!(gate.state(&ipn_key("p-1")).await, Some(State::Done));
}

#[tokio::test]
async fn a_full_ledger_takes_no_new_key_and_answers_the_known_ones() {
    let backend = Backend::start(by_name).await;
    let toml = changed(
        &backend.url(),
        &[("[ledger]\n", "[ledger]\nmax_records = 3\n")],
    );
    let gate = TestGate::with(&toml).await;
    let known = [("done", 200), ("unknown", 502), ("released", 500)];
    for (id, status) in known {
        let answer = gate.post("/tiki/refund", &refund(id, "1")).await;
        assert_eq!(answer.status, status, "{id}");
    }
    let new = [
        gate.signed("/tiki/refund", &refund("new", "1")),
        gate.signed("/tiki/ipn", &ipn("new", "1")),
    ];
    for (number, call) in new.iter().enumerate() {
        let answer = gate.send(call).await;
        assert_refused(&answer, 503, "ledger_unavailable");
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(refused_for(&gate, "full"), number + 1);
    }
    assert_eq!(backend.requests().len(), 3);
    let replay = gate.post("/tiki/refund", &refund("done", "1")).await;
    assert_eq!(replay.header("idempotency-replayed"), Some("true"));
    let held = gate.post("/tiki/refund", &refund("unknown", "1")).await;
    assert_refused(&held, 500, "outcome_unknown");
    // A known key that was released needs no further room.
    assert_eq!(
        gate.post("/tiki/refund", &refund("released", "1"))
            .await
            .status,
        500
    );
    assert_eq!(backend.requests().len(), 4);
    assert_eq!(gate.post("/tiki/any", "no key").await.status, 200);

    // The done one's time is over: there is room for one more, and for no second.
    gate.advance(DAY * 400);
    assert_eq!(
        gate.post("/tiki/refund", &refund("new", "1")).await.status,
        200
    );
    let answer = gate.post("/tiki/refund", &refund("newer", "1")).await;
    assert_refused(&answer, 503, "ledger_unavailable");
}
