//! A call that came in its time and was answered 5xx, or not at all, and comes again unchanged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tikigate::ledger::State;

use super::{HOUR, MILLISECOND, MINUTE, SECOND, assert_refused, changed, send_all, wait_for_log};
use crate::support::backend::{Answer, Backend, Behaviour, Hold};
use crate::support::gate::{Call, TestGate, ipn, refund};
use crate::support::in_time;

/// Calls that are refused now, and when each comes again.
struct Refused {
    calls: Vec<Call>,
}

impl Refused {
    fn signed(gate: &TestGate) -> Self {
        let calls = ["an-hour", "43-hours"].into_iter().flat_map(|when| {
            [
                gate.signed("/tiki/refund", &refund(when, "1000")),
                gate.signed("/tiki/ipn", &ipn(when, "1000")),
                gate.signed("/tiki/any", when),
            ]
        });
        Self {
            calls: calls.collect(),
        }
    }

    /// Half of them come again after an hour, the others after 43, and all are taken, once.
    async fn come_again(self, gate: &TestGate, backend: &Backend) {
        for (hours, calls) in [(1, &self.calls[..3]), (42, &self.calls[3..])] {
            gate.advance(HOUR * hours);
            for call in calls {
                let before = backend.requests().len();
                let answer = gate.send(call).await;
                assert_eq!(answer.status, 200, "{} {}", call.target, answer.text());
                assert_eq!(backend.requests().len(), before + 1, "{}", call.target);
                assert_eq!(backend.requests()[before].body, call.body);
                // A client's limit may have room for one a second.
                gate.advance(SECOND);
            }
        }
    }
}

async fn agreeable() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

/// One call a second for the usual client alone.
fn slow_client(backend: &str) -> String {
    let usual = "partner_code = \"VNPAY\"\nsecrets = [{ name = \"now\", file = \"secret\" }]\nrate = { per_second = 100000, burst = 100000 }";
    let slow = usual.replace("100000", "1");
    changed(backend, &[(usual, &slow)])
}

#[tokio::test]
async fn after_a_rate_limit() {
    let backend = agreeable().await;
    let gate = TestGate::with(&slow_client(&backend.url())).await;
    assert_eq!(gate.post("/tiki/any", "spends the limit").await.status, 200);
    let refused = Refused::signed(&gate);
    for call in &refused.calls {
        assert_refused(&gate.send(call).await, 503, "rate_limited");
    }
    assert_eq!(backend.requests().len(), 1);
    assert_eq!(gate.state("an-hour").await, None);
    refused.come_again(&gate, &backend).await;
}

#[tokio::test]
async fn after_a_limit_that_refused_it_unseen() {
    let backend = agreeable().await;
    let usual = "per_address = { per_second = 100000, burst = 100000 }";
    let slow = usual.replace("100000", "1");
    let gate = TestGate::with(&changed(&backend.url(), &[(usual, &slow)])).await;
    assert_eq!(gate.post("/tiki/any", "spends the limit").await.status, 200);
    let refused = Refused::signed(&gate);
    for call in &refused.calls {
        assert_refused(&gate.send(call).await, 503, "rate_limited");
    }
    // Seen at its time or not: a signature that is wrong stays wrong.
    let forged = gate
        .signed("/tiki/any", "forged")
        .with("x-tikivip-signature", &"a".repeat(64));
    assert_refused(&gate.send(&forged).await, 503, "rate_limited");
    let late = gate.signed("/tiki/any", "not seen at its time");
    assert_eq!(backend.requests().len(), 1);
    refused.come_again(&gate, &backend).await;
    gate.advance(SECOND);
    assert_refused(&gate.send(&forged).await, 401, "unauthenticated");
    gate.advance(SECOND);
    assert_refused(&gate.send(&late).await, 503, "out_of_window");
}

#[tokio::test]
async fn after_its_body_came_too_slowly() {
    let backend = agreeable().await;
    let gate = TestGate::with(&changed(
        &backend.url(),
        &[("workers = 2", "workers = 2\nbody_timeout = \"100ms\"")],
    ))
    .await;
    let call = gate.signed("/tiki/any", "a body in two parts");
    let bytes = call.to_bytes();
    let mut client = gate.connect().await;
    client.send(&bytes[..bytes.len() - 1]).await;
    assert_refused(&client.read_answer().await, 503, "body_timeout");
    gate.advance(HOUR);
    assert_eq!(gate.send(&call).await.status, 200);
    assert_eq!(backend.requests()[0].body, call.body);
}

#[tokio::test]
async fn after_the_backend_was_down() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("backend.sock");
    let url = format!("unix:{}", socket.display());
    let gate = TestGate::start(&url).await;
    let refused = Refused::signed(&gate);
    for call in &refused.calls {
        assert_refused(&gate.send(call).await, 502, "upstream_unreachable");
    }
    assert_eq!(gate.state("an-hour").await, Some(State::Released));
    let backend = Backend::start_unix(&socket, |_| Answer::success().into()).await;
    refused.come_again(&gate, &backend).await;
}

#[tokio::test]
async fn after_the_backend_had_too_much_to_do() {
    let hold = Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |_| Behaviour::from(Answer::success()).held(&held)).await;
    let toml = changed(
        &backend.url(),
        &[(
            "answer_within = \"1s\"",
            "answer_within = \"600ms\"\nmax_in_flight = 1",
        )],
    );
    let gate = TestGate::with(&toml).await;
    let busy = send_all(&gate, &[gate.signed("/tiki/any", "holds the only place")]).await;
    backend.wait_for_requests(1).await;
    let refused = Refused::signed(&gate);
    let waiting = send_all(&gate, &refused.calls).await;
    for mut client in waiting {
        assert_refused(&client.read_answer().await, 503, "overloaded");
    }
    assert_eq!(backend.requests().len(), 1);
    hold.release();
    drop(busy);
    refused.come_again(&gate, &backend).await;
}

#[tokio::test]
async fn after_the_backend_said_that_it_did_not_apply_it() {
    let well = Arc::new(AtomicBool::new(false));
    let now_well = Arc::clone(&well);
    let backend = Backend::start(move |_| {
        let status = if now_well.load(Ordering::SeqCst) {
            200
        } else {
            429
        };
        Answer::new(status).into()
    })
    .await;
    let gate = TestGate::start(&backend.url()).await;
    let refused = Refused::signed(&gate);
    for call in &refused.calls {
        assert_refused(&gate.send(call).await, 502, "upstream_failed");
    }
    well.store(true, Ordering::SeqCst);
    refused.come_again(&gate, &backend).await;
}

#[tokio::test]
async fn but_not_after_45_hours() {
    let backend = agreeable().await;
    let gate = TestGate::with(&slow_client(&backend.url())).await;
    assert_eq!(gate.post("/tiki/any", "spends the limit").await.status, 200);
    let refused = Refused::signed(&gate);
    for call in &refused.calls {
        assert_refused(&gate.send(call).await, 503, "rate_limited");
    }
    gate.advance(HOUR * 45);
    for call in &refused.calls {
        assert_refused(&gate.send(call).await, 503, "out_of_window");
        gate.advance(SECOND);
    }
    assert_eq!(backend.requests().len(), 1);
    assert_eq!(gate.state("an-hour").await, None);
}

#[tokio::test]
async fn a_refusal_outside_the_window_gives_no_right_to_come_again() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    let old = Call::post("/tiki/refund", refund("r-1", "1"), gate.now() - HOUR);
    for _ in 0..3 {
        assert_refused(&gate.send(&old).await, 503, "out_of_window");
        gate.advance(MINUTE);
    }
    assert!(backend.bytes().is_empty());
}

#[tokio::test]
async fn a_call_answered_5xx_counts_on_its_own_route_alone_and_once_for_good() {
    let backend = agreeable().await;
    let gate = TestGate::with(&slow_client(&backend.url())).await;
    assert_eq!(gate.post("/tiki/any", "spends the limit").await.status, 200);
    let keyed = gate.signed("/tiki/refund", &refund("r-1", "1"));
    let unkeyed = gate.signed("/tiki/any", "x");
    for call in [&keyed, &unkeyed] {
        assert_refused(&gate.send(call).await, 503, "rate_limited");
    }
    gate.advance(HOUR);
    assert_refused(&gate.send(&keyed.to("/tiki/any")).await, 409, "replayed");
    assert_eq!(gate.send(&unkeyed).await.status, 200);
    gate.advance(HOUR);
    assert_refused(&gate.send(&unkeyed).await, 409, "replayed");
    assert_eq!(backend.requests().len(), 2);
}

/// Hangs up on a call that the backend has, lets the backend answer with `status`, and waits until
/// the call is over.
async fn hang_up(path: &str, body: &str, status: u16) -> (TestGate, Backend, Call) {
    let hold = Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |seen| {
        let status = if seen.number == 0 { status } else { 200 };
        Behaviour::from(Answer::new(status)).held(&held)
    })
    .await;
    let gate = TestGate::with(&changed(&backend.url(), super::PATIENT)).await;
    let call = gate.signed(path, body);
    let clients = send_all(&gate, std::slice::from_ref(&call)).await;
    backend.wait_for_requests(1).await;
    drop(clients);
    hold.release();
    let over = |line: &serde_json::Value| line["message"] == "request";
    wait_for_log(&gate, "the end of the call", over).await;
    let settled = async {
        while gate.app().running_calls() > 0 {
            tokio::time::sleep(MILLISECOND).await;
        }
    };
    in_time("the detached call to settle", settled).await;
    (gate, backend, call)
}

#[tokio::test]
async fn after_the_caller_hung_up_on_a_try_that_failed() {
    for (path, body) in [
        ("/tiki/any", "no key".to_owned()),
        ("/tiki/ipn", ipn("p-1", "1")),
        ("/tiki/refund", refund("r-1", "1")),
    ] {
        let (gate, backend, call) = hang_up(path, &body, 429).await;
        gate.advance(HOUR * 43);
        assert_eq!(gate.send(&call).await.status, 200, "{path}");
        assert_eq!(backend.requests().len(), 2, "{path}");
    }
}

#[tokio::test]
async fn after_the_caller_hung_up_on_a_try_that_succeeded_nothing_is_sent_again() {
    for (path, body) in [
        ("/tiki/ipn", ipn("p-1", "1")),
        ("/tiki/refund", refund("r-1", "1")),
    ] {
        let (gate, backend, call) = hang_up(path, &body, 200).await;
        gate.advance(HOUR * 43);
        let answer = gate.send(&call).await;
        assert_eq!(
            (answer.status, answer.header("idempotency-replayed")),
            (200, Some("true"))
        );
        assert_eq!(backend.requests().len(), 1, "{path}");
    }
    let (gate, backend, call) = hang_up("/tiki/any", "no key", 200).await;
    assert_refused(&gate.send(&call).await, 409, "replayed");
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test]
async fn a_call_that_was_let_in_is_not_vouched_for_by_an_earlier_sight_of_it() {
    let backend = agreeable().await;
    let other_route =
        "[[routes]]\nname = \"any-too\"\npath = \"/tiki/any-too\"\npayload = \"any\"\n[ledger]";
    let gate = TestGate::with(&changed(
        &backend.url(),
        &[
            ("workers = 2", "workers = 2\nbody_timeout = \"100ms\""),
            ("[ledger]", other_route),
        ],
    ))
    .await;
    // Seen in time, once before and once after it was answered.
    let seen_before = gate.signed("/tiki/any", "seen before");
    let seen_after = gate.signed("/tiki/any", "seen after");
    let break_off = async |call: &Call| {
        let bytes = call.to_bytes();
        let mut client = gate.connect().await;
        client.send(&bytes[..bytes.len() - 1]).await;
        assert_refused(&client.read_answer().await, 503, "body_timeout");
    };
    break_off(&seen_before).await;
    assert_eq!(gate.send(&seen_before).await.status, 200);
    assert_eq!(gate.send(&seen_after).await.status, 200);
    gate.advance(MINUTE);
    break_off(&seen_after).await;
    gate.advance(7 * MINUTE);
    for call in [&seen_before, &seen_after] {
        assert_refused(&gate.send(call).await, 503, "out_of_window");
        let elsewhere = call.clone().to("/tiki/any-too");
        assert_refused(&gate.send(&elsewhere).await, 503, "out_of_window");
    }
    assert_eq!(backend.requests().len(), 2);
}
