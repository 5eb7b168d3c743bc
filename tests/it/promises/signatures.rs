//! One signature, one route; and on routes without keys, one final answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use tikigate::ledger::State;
use tikigate::tiki::Family;

use super::{MILLISECOND, MINUTE, SECOND, assert_refused, changed, refused_for, wait_for_log};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{CLIENT, Call, SECRET, TestGate, ipn, order_ipn, refund};

async fn agreeable() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

/// A backend that answers with a status that the test sets.
async fn answering(status: &Arc<AtomicU16>) -> Backend {
    let status = Arc::clone(status);
    Backend::start(move |_| Answer::new(status.load(Ordering::SeqCst)).into()).await
}

#[tokio::test]
async fn a_captured_refund_is_no_ipn() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    let unseen = gate.signed("/tiki/refund", &refund("r-1", "1000"));
    for path in ["/tiki/ipn", "/tiki/order"] {
        let answer = gate.send(&unseen.clone().to(path)).await;
        assert_refused(&answer, 422, "invalid_field");
    }
    // Even one that has all that an IPN needs.
    let both = refund("r-2", "1000").replace("\"reason\"", "\"status\":\"SUCCESS\",\"reason\"");
    let unseen = gate.signed("/tiki/refund", &both);
    let answer = gate.send(&unseen.to("/tiki/ipn")).await;
    assert_refused(&answer, 422, "invalid_field");
    assert!(backend.bytes().is_empty());
}

/// What can be sent to one of two routes alike, as far as the payload goes.
fn either_way() -> Vec<(&'static str, &'static str, String)> {
    vec![
        ("/tiki/refund", "/tiki/any", refund("r-1", "1000")),
        ("/tiki/ipn", "/tiki/any", ipn("p-1", "1000")),
        ("/tiki/order", "/tiki/any", order_ipn("m-1", "1000")),
        ("/tiki/any", "/tiki/refund", refund("r-2", "1000")),
        ("/tiki/any", "/tiki/ipn", ipn("p-2", "1000")),
        ("/tiki/any", "/tiki/order", order_ipn("m-2", "1000")),
    ]
}

#[tokio::test]
async fn a_signature_that_one_route_accepted_counts_on_no_other() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    for (number, (accepted, other, body)) in either_way().into_iter().enumerate() {
        let before = backend.requests().len();
        let call = gate.signed(accepted, &body);
        assert_eq!(gate.send(&call).await.status, 200, "{accepted}");
        let answer = gate.send(&call.clone().to(other)).await;
        assert_refused(&answer, 409, "replayed");
        assert_eq!(
            refused_for(&gate, "other_route"),
            number + 1,
            "{accepted} to {other}"
        );
        assert_eq!(backend.requests().len(), before + 1);
    }
    assert_eq!(gate.state("r-2").await, None);
}

#[tokio::test]
async fn a_signed_path_is_no_body_and_a_signed_body_no_path() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    let target = |number: u8| format!("/tiki/order-status?order={number}");

    let read = Call::get(&target(1), gate.now());
    assert_eq!(gate.send(&read).await.status, 200);
    let written = Call::post("/tiki/any", target(1), gate.now());
    assert_eq!(
        written.header("x-tikivip-signature"),
        read.header("x-tikivip-signature")
    );
    assert_refused(&gate.send(&written).await, 409, "replayed");

    let written = Call::post("/tiki/any", target(2), gate.now());
    assert_eq!(gate.send(&written).await.status, 200);
    let read = Call::get(&target(2), gate.now());
    assert_refused(&gate.send(&read).await, 409, "replayed");
    assert_eq!(backend.requests().len(), 2);
}

#[tokio::test]
async fn a_signature_is_one_whatever_family_its_headers_name() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    let at = gate.now();
    let of = |family| Call::post_as((CLIENT, SECRET), family, "/tiki/any", "x", at);
    assert_eq!(gate.send(&of(Family::TikiVip)).await.status, 200);
    assert_refused(&gate.send(&of(Family::TiniApp)).await, 409, "replayed");
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test]
async fn a_call_without_a_key_counts_once_when_it_was_answered_for_good() {
    for status in [200, 204, 400, 422] {
        let wanted = Arc::new(AtomicU16::new(status));
        let backend = answering(&wanted).await;
        let gate = TestGate::start(&backend.url()).await;
        let call = gate.signed("/tiki/any", "once");
        assert_eq!(gate.send(&call).await.status, status);
        assert_refused(&gate.send(&call).await, 409, "replayed");
        assert_eq!(refused_for(&gate, "answered"), 1);
        gate.advance(MINUTE * 5);
        assert_refused(&gate.send(&call).await, 409, "replayed");
        gate.advance(MINUTE * 2);
        assert_refused(&gate.send(&call).await, 503, "out_of_window");
        assert_eq!(backend.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_call_without_a_key_may_come_again_until_it_is_answered_for_good() {
    let status = Arc::new(AtomicU16::new(503));
    let backend = answering(&status).await;
    let gate = TestGate::start(&backend.url()).await;
    let call = gate.signed("/tiki/any", "again");
    for (number, (backend_says, caller_gets)) in
        [(503, 503), (500, 500), (302, 502), (429, 502), (200, 200)]
            .into_iter()
            .enumerate()
    {
        status.store(backend_says, Ordering::SeqCst);
        assert_eq!(gate.send(&call).await.status, caller_gets);
        assert_eq!(backend.requests().len(), number + 1);
    }
    assert_refused(&gate.send(&call).await, 409, "replayed");
    assert_eq!(backend.requests().len(), 5);
}

#[tokio::test]
async fn a_get_may_come_any_number_of_times_within_its_window() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    let call = Call::get("/tiki/order-status?order=1", gate.now());
    for _ in 0..5 {
        assert_eq!(gate.send(&call).await.status, 200);
        gate.advance(MINUTE);
    }
    assert_eq!(gate.send(&call).await.status, 200);
    gate.advance(MILLISECOND);
    assert_refused(&gate.send(&call).await, 503, "out_of_window");
    assert_eq!(backend.requests().len(), 6);
}

#[tokio::test]
async fn a_signature_is_remembered_to_the_last_moment_at_which_it_counts() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    // As far ahead as is taken: it stays inside its window for max_ahead and max_age.
    let ahead = gate.now() + MINUTE;
    let once = Call::post("/tiki/any", "once", ahead);
    let bound = Call::post("/tiki/refund", refund("r-1", "1"), ahead);
    assert_eq!(gate.send(&once).await.status, 200);
    assert_eq!(gate.send(&bound).await.status, 200);
    gate.advance(MINUTE * 6 - MILLISECOND);
    assert_refused(&gate.send(&once).await, 409, "replayed");
    assert_refused(
        &gate.send(&bound.clone().to("/tiki/any")).await,
        409,
        "replayed",
    );
    gate.advance(MILLISECOND);
    assert_refused(&gate.send(&once).await, 409, "replayed");
    assert_refused(&gate.send(&bound.to("/tiki/any")).await, 409, "replayed");
    assert_eq!(backend.requests().len(), 2);
}

#[tokio::test]
async fn a_signature_is_remembered_as_long_as_any_route_would_take_it() {
    let backend = agreeable().await;
    let toml = changed(
        &backend.url(),
        &[(
            "name = \"any\"\n",
            "name = \"any\"\nmax_age = \"15m\"\nmax_ahead = \"10m\"\n",
        )],
    );
    let gate = TestGate::with(&toml).await;
    let call = Call::post("/tiki/refund", refund("r-1", "1"), gate.now() + MINUTE);
    assert_eq!(gate.send(&call).await.status, 200);
    gate.advance(MINUTE * 15);
    let elsewhere = call.to("/tiki/any");
    assert_refused(&gate.send(&elsewhere).await, 409, "replayed");
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test]
async fn a_full_memory_of_signatures_refuses_until_there_is_room_again() {
    let backend = agreeable().await;
    let toml = changed(
        &backend.url(),
        &[("[signature]\n", "[signature]\nmax_remembered = 64\n")],
    );
    let gate = TestGate::with(&toml).await;
    let mut taken = Vec::new();
    let mut refused = Vec::new();
    for number in 0..200 {
        let body = refund(&format!("r-{number}"), "1");
        let call = gate.signed("/tiki/refund", &body);
        let answer = gate.send(&call).await;
        if answer.status == 200 {
            taken.push(call);
            continue;
        }
        assert_refused(&answer, 503, "overloaded");
        assert_eq!(answer.header("retry-after"), Some("1"));
        refused.push((format!("r-{number}"), body));
    }
    assert!(
        (1..=64).contains(&taken.len()),
        "{} were taken",
        taken.len()
    );
    assert_eq!(backend.requests().len(), taken.len());
    assert_eq!(gate.state(&refused[0].0).await, None);
    let reasons = |line: &serde_json::Value| line["tikigate.reason"] == "signatures";
    wait_for_log(&gate, "the reason", reasons).await;
    // What is remembered still counts.
    let replay = gate.send(&taken[0]).await;
    assert_eq!(
        (replay.status, replay.header("idempotency-replayed")),
        (200, Some("true"))
    );
    assert_refused(
        &gate.send(&taken[0].clone().to("/tiki/any")).await,
        409,
        "replayed",
    );

    gate.advance(MINUTE * 6 + SECOND);
    let (key, body) = &refused[0];
    assert_eq!(gate.post("/tiki/refund", body).await.status, 200);
    assert_eq!(gate.state(key).await, Some(State::Done));
}
