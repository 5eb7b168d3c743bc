//! A caller that goes away changes nothing about a call that the gate has, and starts none that it
//! has not.

use std::time::Duration;

use super::{Kind, Stage, assert_refused, events, last_line, patient, settled};
use crate::support::backend::{Answer, Behaviour, Hold, OnConnect};
use crate::support::gate::{Call, TestGate};
use crate::support::in_time;
use crate::support::raw::RawClient;
use tikigate::ledger::State;
use tikigate::net::ListenAddress;

async fn open() -> (Stage, TestGate) {
    let stage = Stage::open().await;
    let gate = TestGate::with(&patient(&stage.backend.url())).await;
    (stage, gate)
}

/// How a caller goes away.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Closing,
    Resetting,
}

/// Sends these bytes, waits until `gone` is ready, and goes away.
async fn send_and_leave(gate: &TestGate, bytes: &[u8], leaves: Leaves, gone: impl Future) {
    let ListenAddress::Tcp(address) = gate.address() else {
        panic!("a TCP listener");
    };
    let mut caller = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut caller, bytes)
        .await
        .unwrap();
    gone.await;
    if matches!(leaves, Leaves::Resetting) {
        let now = Some(Duration::ZERO);
        socket2::SockRef::from(&caller).set_linger(now).unwrap();
    }
}

#[tokio::test]
async fn the_answer_that_its_caller_did_not_wait_for_is_recorded() {
    let (stage, gate) = open().await;
    for leaves in [Leaves::Closing, Leaves::Resetting] {
        for kind in [Kind::Hold, Kind::Resend] {
            let id = format!("{leaves:?}");
            let (call, key) = (kind.call(&gate, &id), kind.key(&id).unwrap());
            let hold = Hold::new();
            let answer = Answer::json(201, "\"made\"").until_close();
            stage.plays(OnConnect::Serve, Behaviour::from(answer).held(&hold));
            let before = stage.counts();
            let sent = stage.backend.wait_for_requests(before.1 + 1);
            send_and_leave(&gate, &call.to_bytes(), leaves, sent).await;
            assert_eq!(gate.state(&key).await, Some(State::Claimed));
            hold.release();
            gate.wait_for_state(&key, State::Done).await;
            settled(&gate).await;
            let again = gate.send(&call).await;
            assert_eq!((again.status, again.text()), (201, "\"made\""));
            assert_eq!(again.header("idempotency-replayed"), Some("true"));
            assert_eq!(stage.counts(), (before.0 + 1, before.1 + 1), "sent once");
            assert_eq!(events(&gate, &key).await.len(), 2);
        }
    }
}

#[tokio::test]
async fn a_resend_joins_the_call_of_a_caller_that_is_gone() {
    let (stage, gate) = open().await;
    let call = Kind::Hold.call(&gate, "r-1");
    let hold = Hold::new();
    let answer = Behaviour::from(Answer::success().until_close()).held(&hold);
    stage.plays(OnConnect::Serve, answer);
    let sent = stage.backend.wait_for_requests(1);
    send_and_leave(&gate, &call.to_bytes(), Leaves::Resetting, sent).await;
    let mut resend = gate.connect().await;
    resend.send(call.to_bytes()).await;
    assert!(resend.is_silent().await);
    hold.release();
    assert_eq!(resend.read_answer().await.status, 200);
    assert_eq!(stage.counts(), (1, 1));
}

#[tokio::test]
async fn a_caller_that_only_ends_its_side_gets_its_answer() {
    let (stage, gate) = open().await;
    let hold = Hold::new();
    let answer = Behaviour::from(Answer::success().until_close()).held(&hold);
    stage.plays(OnConnect::Serve, answer);
    let mut caller = gate.connect().await;
    caller.send(Kind::Hold.call(&gate, "r-1").to_bytes()).await;
    caller.end_sending().await;
    stage.backend.wait_for_requests(1).await;
    hold.release();
    assert_eq!(caller.read_answer().await.status, 200);
}

#[tokio::test]
async fn a_call_that_was_not_whole_was_never_made() {
    let (stage, gate) = open().await;
    stage.succeeds();
    let mut number = 0;
    for leaves in [Leaves::Closing, Leaves::Resetting] {
        for kind in [Kind::Hold, Kind::Resend, Kind::Post] {
            number += 1;
            let id = format!("{leaves:?}");
            let call = kind.call(&gate, &id);
            let whole = call.to_bytes();
            let half = &whole[..whole.len() - 1];
            send_and_leave(&gate, half, leaves, tokio::task::yield_now()).await;
            let lines = || {
                let lines = gate.log().into_iter();
                lines.filter(|line| line["message"] == "request").count()
            };
            in_time("the gate to notice", async {
                while lines() < 2 * number - 1 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
            assert!(
                [499, 503]
                    .map(|status| status.into())
                    .contains(&last_line(&gate, kind.route())["http.response.status_code"])
            );
            let before = stage.counts();
            assert_eq!(before.0, number - 1, "{kind:?}: nothing is sent");
            if let Some(key) = kind.key(&id) {
                assert_eq!(gate.state(&key).await, None);
            }
            // Whole, it is the first.
            assert_eq!(gate.send(&call).await.status, 200);
            let seen = stage.backend.requests().pop().unwrap();
            assert_eq!(seen.header("x-tikigate-attempt"), Some("1"));
        }
    }
}

#[tokio::test]
async fn a_body_that_ends_early_is_told_so_that_tiki_asks_again() {
    let (stage, gate) = open().await;
    let call = Kind::Hold.call(&gate, "r-1");
    let mut caller = cut_off(&gate, &call).await;
    let answer = caller.read_answer().await;
    assert_refused(
        &gate,
        Kind::Hold,
        &answer,
        (503, "body_timeout", "broken_off"),
    );
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(caller.is_closed().await);
    assert!(stage.backend.connections().is_empty());
    assert_eq!(gate.state("r-1").await, None);
}

async fn cut_off(gate: &TestGate, call: &Call) -> RawClient {
    let whole = call.to_bytes();
    let mut caller = gate.connect().await;
    caller.send(&whole[..whole.len() - 1]).await;
    caller.end_sending().await;
    caller
}
