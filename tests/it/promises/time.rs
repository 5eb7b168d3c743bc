//! Time windows, and what may still be answered outside them.

use std::time::Duration;

use tikigate::ledger::State;
use tikigate::tiki::Family;

use super::{HOUR, MILLISECOND, MINUTE, SECOND, assert_refused, changed, refused_for};
use crate::support::backend::{Answer, Backend, Behaviour};
use crate::support::gate::{CLIENT, Call, SECRET, TestGate, ipn, order_ipn, refund};

const FAILURE: &str = r#"{"data":null,"error":{"code":"1","message":"not now"}}"#;

/// Windows of their own for each family, and for one route.
const WINDOWS: &[(&str, &str)] = &[
    (
        "max_age = \"5m\"\nmax_ahead = \"1m\"",
        "max_age = { tiniapp = \"1m\", tikivip = \"5m\" }\nmax_ahead = { tiniapp = \"10s\", tikivip = \"1m\" }",
    ),
    (
        "name = \"order\"\n",
        "name = \"order\"\nmax_age = \"2m\"\nmax_ahead = { tikivip = \"5s\" }\n",
    ),
];

async fn agreeable() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

#[tokio::test]
async fn both_bounds_of_each_window_are_inside_it() {
    let backend = agreeable().await;
    let gate = TestGate::with(&changed(&backend.url(), WINDOWS)).await;
    let rows = [
        ("/tiki/refund", Family::TikiVip, MINUTE * 5, MINUTE),
        ("/tiki/refund", Family::TiniApp, MINUTE, SECOND * 10),
        ("/tiki/ipn", Family::TikiVip, MINUTE * 5, MINUTE),
        ("/tiki/any", Family::TiniApp, MINUTE, SECOND * 10),
        ("/tiki/order", Family::TikiVip, MINUTE * 2, SECOND * 5),
        ("/tiki/order", Family::TiniApp, MINUTE * 2, SECOND * 10),
    ];
    for (number, (path, family, max_age, max_ahead)) in rows.into_iter().enumerate() {
        let now = gate.now();
        let times = [
            ("age", now - max_age, 200, ""),
            ("old", now - max_age - MILLISECOND, 503, "too_old"),
            ("ahead", now + max_ahead, 200, ""),
            ("far", now + max_ahead + MILLISECOND, 503, "too_far_ahead"),
        ];
        for (name, at, status, reason) in times {
            let id = format!("{number}-{name}");
            let body = match path {
                "/tiki/refund" => refund(&id, "1"),
                "/tiki/ipn" => ipn(&id, "1"),
                "/tiki/order" => order_ipn(&id, "1"),
                _ => id.clone(),
            };
            let before = backend.requests().len();
            let call = Call::post_as((CLIENT, SECRET), family, path, body, at);
            let answer = gate.send(&call).await;
            assert_eq!(answer.status, status, "{path} {family:?} {name}");
            let forwarded = backend.requests().len() - before;
            assert_eq!(
                forwarded,
                usize::from(status == 200),
                "{path} {family:?} {name}"
            );
            if status == 503 {
                assert_refused(&answer, 503, "out_of_window");
                assert_eq!(
                    refused_for(&gate, reason),
                    number + 1,
                    "{path} {family:?} {name}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_call_from_outside_its_window_that_nobody_knows_is_never_forwarded() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    let now = gate.now();
    for at in [now - HOUR, now - HOUR * 43, now + HOUR] {
        for call in [
            Call::post("/tiki/refund", refund("r-1", "1"), at),
            Call::post("/tiki/ipn", ipn("p-1", "1"), at),
            Call::post("/tiki/order", order_ipn("m-1", "1"), at),
            Call::post("/tiki/any", "x", at),
            Call::get("/tiki/order-status?order=1", at),
        ] {
            for _ in 0..2 {
                let answer = gate.send(&call).await;
                assert_refused(&answer, 503, "out_of_window");
                assert_eq!(answer.header("retry-after"), Some("1"));
            }
        }
    }
    assert!(backend.bytes().is_empty());
    assert_eq!(gate.state("r-1").await, None);
}

#[tokio::test]
async fn a_clock_that_is_wrong_by_an_hour_costs_no_call() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    // The gate's clock is an hour behind: Tiki's calls seem to come from the future.
    let call = Call::post("/tiki/ipn", ipn("p-1", "1"), gate.now() + HOUR);
    assert_refused(&gate.send(&call).await, 503, "out_of_window");
    assert_eq!(refused_for(&gate, "too_far_ahead"), 1);
    // It is set right, and Tiki sends again.
    gate.advance(HOUR);
    assert_eq!(gate.send(&call).await.status, 200);

    // Now it goes an hour ahead: what comes in seems old, and is not lost either.
    let true_time = gate.now();
    gate.advance(HOUR);
    let call = Call::post("/tiki/ipn", ipn("p-2", "1"), true_time);
    assert_refused(&gate.send(&call).await, 503, "out_of_window");
    assert_eq!(refused_for(&gate, "too_old"), 1);
    assert_eq!(backend.requests().len(), 1);
    let series = r#"tikigate_refusals_total{route="ipn",error="out_of_window",reason="too_old"}"#;
    assert_eq!(gate.metric(series).await, 1.0);
    // Known messages are answered all the same.
    let known = Call::post("/tiki/ipn", ipn("p-1", "1"), true_time);
    assert_eq!(
        gate.send(&known).await.header("idempotency-replayed"),
        Some("true")
    );
}

/// What the backend does with each attempt, by the request id's first word.
fn by_name(seen: &crate::support::backend::Seen) -> Behaviour {
    let key = seen.header("idempotency-key").unwrap_or_default();
    let first = seen.header("x-tikigate-attempt") == Some("1");
    match key.split('-').next() {
        Some("declined") => Answer::json(422, r#"{"declined":true}"#).into(),
        Some("unknown") => Behaviour::Close,
        Some("released") if first => Answer::json(500, FAILURE).into(),
        _ => Answer::success().into(),
    }
}

#[tokio::test]
async fn a_known_key_outside_its_window_is_answered_from_the_ledger() {
    for later in [HOUR, HOUR * 45, Duration::from_secs(399 * 86_400)] {
        let backend = Backend::start(by_name).await;
        let gate = TestGate::start(&backend.url()).await;
        let mut calls = Vec::new();
        for (id, first) in [
            ("done", 200),
            ("declined", 422),
            ("unknown", 502),
            ("released", 500),
        ] {
            // The amount is that of a later call too, the signature is not.
            let call = gate.signed("/tiki/refund", &refund(id, "1000"));
            assert_eq!(gate.send(&call).await.status, first, "{id}");
            calls.push((id, call));
        }
        assert_eq!(backend.requests().len(), 4);
        gate.advance(later);
        let signed_anew = gate.now() - HOUR;
        for (id, call) in &calls {
            let anew = Call::post("/tiki/refund", refund(id, "1e3"), signed_anew);
            for call in [call, &anew] {
                let answer = gate.send(call).await;
                let replayed = answer.header("idempotency-replayed").is_some();
                match *id {
                    "done" => assert_eq!((answer.status, replayed), (200, true)),
                    "declined" => {
                        assert_eq!((answer.status, replayed), (422, true));
                        assert_eq!(answer.text(), r#"{"declined":true}"#);
                    }
                    "unknown" => assert_refused(&answer, 500, "outcome_unknown"),
                    _ => assert_eq!(answer.status, 200, "{}", answer.text()),
                }
            }
            let other = Call::post("/tiki/refund", refund(id, "7"), signed_anew);
            assert_refused(&gate.send(&other).await, 422, "conflict");
        }
        // The released one was sent again, once.
        let requests = backend.requests();
        assert_eq!(requests.len(), 5);
        assert_eq!(requests[4].header("idempotency-key"), Some("released"));
        assert_eq!(requests[4].header("x-tikigate-attempt"), Some("2"));
        assert_eq!(gate.state("released").await, Some(State::Done));
    }
}

#[tokio::test]
async fn resend_age_takes_old_calls_of_its_route_up_to_its_age() {
    let backend = agreeable().await;
    let rule = "name = \"refund\"\npath = \"/tiki/refund\"\nmethod = \"POST\"\npayload = \"refund\"\nclients = [\"wallet\"]\n";
    let with_age = format!("{rule}[routes.idempotency]\nresend_age = \"10h\"\n");
    let gate = TestGate::with(&changed(&backend.url(), &[(rule, &with_age)])).await;
    let now = gate.now();
    let at_most = Call::post("/tiki/refund", refund("r-1", "1"), now - HOUR * 10);
    let beyond = Call::post(
        "/tiki/refund",
        refund("r-2", "1"),
        now - HOUR * 10 - MILLISECOND,
    );
    let ahead = Call::post("/tiki/refund", refund("r-3", "1"), now + HOUR);
    let other_route = Call::post("/tiki/ipn", ipn("p-1", "1"), now - HOUR);
    assert_eq!(gate.send(&at_most).await.status, 200);
    for call in [&beyond, &ahead, &other_route] {
        assert_refused(&gate.send(call).await, 503, "out_of_window");
    }
    assert_eq!(backend.requests().len(), 1);
    // Nor does it make the signature good elsewhere.
    assert_refused(&gate.send(&at_most.to("/tiki/any")).await, 409, "replayed");
    // The same the other way round: taken by another route, it is none of this one's hours later.
    let taken = gate.signed("/tiki/any", &refund("r-4", "1"));
    assert_eq!(gate.send(&taken).await.status, 200);
    gate.advance(HOUR * 9);
    assert_refused(&gate.send(&taken.to("/tiki/refund")).await, 409, "replayed");
    assert_eq!(backend.requests().len(), 2);
}
