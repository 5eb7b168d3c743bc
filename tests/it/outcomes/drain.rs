//! The end of a gate while calls are in flight.

use std::time::Duration;

use super::{Kind, SUCCESS, Stage, assert_refused, deadlines, events, patient, replaced, settled};
use crate::support::backend::{Answer, Behaviour, Hold, OnConnect};
use crate::support::gate::{Call, TestGate};
use crate::support::in_time;
use crate::support::raw::{RawAnswer, RawClient, exchange};
use tikigate::ledger::State;
use tikigate::net::ListenAddress;

/// A gate with calls in flight at a backend that answers when it is let go.
struct Busy {
    stage: Stage,
    gate: TestGate,
    hold: Hold,
    calls: Vec<(Kind, Call, RawClient)>,
}

impl Busy {
    async fn new(toml: impl Fn(&str) -> String, kinds: &[Kind]) -> Self {
        let stage = Stage::open().await;
        let gate = TestGate::with(&toml(&stage.backend.url())).await;
        let hold = Hold::new();
        let answer = Behaviour::from(Answer::success().until_close()).held(&hold);
        stage.plays(OnConnect::Serve, answer);
        let mut calls = Vec::new();
        for kind in kinds {
            let call = kind.call(&gate, "r-1");
            let mut caller = gate.connect().await;
            caller.send(call.to_bytes()).await;
            calls.push((*kind, call, caller));
        }
        stage.backend.wait_for_requests(kinds.len()).await;
        Self {
            stage,
            gate,
            hold,
            calls,
        }
    }

    async fn ended(&self) {
        in_time("the gate's end", self.gate.stopper().ended()).await;
    }
}

fn delayed(url: &str) -> String {
    replaced(
        &patient(url),
        &[("drain_delay = \"0s\"", "drain_delay = \"1s\"")],
    )
}

/// With a drain that gives up soon.
fn hasty(url: &str) -> String {
    replaced(
        &patient(url),
        &[("drain_within = \"20s\"", "drain_within = \"300ms\"")],
    )
}

async fn readyz(gate: &TestGate) -> RawAnswer {
    let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    exchange(gate.admin_address(), request).await
}

/// Waits until nobody listens any more.
async fn listener_closed(gate: &TestGate) {
    let ListenAddress::Tcp(address) = gate.address() else {
        panic!("a TCP listener");
    };
    in_time("the listener to close", async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn readiness_fails_first_then_the_listener_closes_and_calls_get_their_answers() {
    let mut busy = Busy::new(delayed, &Kind::ALL).await;
    let gate = &busy.gate;
    assert_eq!(readyz(gate).await.status, 200);
    gate.stopper().drain();
    // At once, while new calls are still taken.
    assert_eq!(readyz(gate).await.status, 503);
    let mut meanwhile = gate.connect().await;
    meanwhile
        .send(Kind::Hold.call(gate, "r-2").to_bytes())
        .await;
    busy.stage.backend.wait_for_requests(5).await;

    listener_closed(gate).await;
    assert_eq!(
        gate.state("r-1").await,
        Some(State::Claimed),
        "it still runs"
    );
    busy.hold.release();
    for (kind, _, caller) in &mut busy.calls {
        let answer = caller.read_answer().await;
        assert_eq!((answer.status, answer.text()), (200, SUCCESS), "{kind:?}");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(caller.is_closed().await);
    }
    assert_eq!(meanwhile.read_answer().await.status, 200);
    drop((std::mem::take(&mut busy.calls), meanwhile));
    busy.ended().await;
    for key in [
        "r-1".to_owned(),
        "r-2".to_owned(),
        Kind::Resend.key("r-1").unwrap(),
    ] {
        assert_eq!(busy.gate.state(&key).await, Some(State::Done), "{key}");
    }
    assert_eq!(busy.stage.backend.requests().len(), 5);
}

#[tokio::test]
async fn a_drain_can_be_asked_for_over_the_admin_listener() {
    let mut busy = Busy::new(patient, &[Kind::Hold]).await;
    let token = std::fs::read_to_string(busy.gate.directory().join("admin.token")).unwrap();
    let ListenAddress::Tcp(address) = busy.gate.admin_address() else {
        panic!("a TCP listener");
    };
    let request = format!(
        "POST /api/drain HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}",
        token.trim()
    );
    let accepted = exchange(busy.gate.admin_address(), request).await;
    assert!((200..300).contains(&accepted.status), "{}", accepted.text());
    listener_closed(&busy.gate).await;
    busy.hold.release();
    assert_eq!(busy.calls[0].2.read_answer().await.status, 200);
    busy.calls.clear();
    busy.ended().await;
}

#[tokio::test]
async fn a_late_answer_is_waited_for_though_its_caller_was_answered() {
    let toml = |url: &str| deadlines(url, "1s", "30s");
    let mut busy = Busy::new(toml, &[Kind::Hold, Kind::Resend]).await;
    for (_, _, caller) in &mut busy.calls {
        assert_eq!(caller.read_answer().await.status, 504);
    }
    busy.calls.clear();
    busy.gate.stopper().drain();
    listener_closed(&busy.gate).await;
    // Nobody is connected, and the gate stays for its calls.
    let early = tokio::time::timeout(Duration::from_millis(100), busy.gate.stopper().ended());
    assert!(early.await.is_err(), "the gate ended with calls in flight");
    assert_eq!(busy.gate.app().running_calls(), 2);
    busy.hold.release();
    busy.ended().await;
    assert_eq!(busy.gate.state("r-1").await, Some(State::Done));
    assert_eq!(
        busy.gate.state(&Kind::Resend.key("r-1").unwrap()).await,
        Some(State::Done)
    );
}

/// Each call was given up: its caller is told, and its record says that nobody knows.
async fn assert_abandoned(mut busy: Busy) {
    for (kind, _, caller) in &mut busy.calls {
        let answer = caller.read_answer().await;
        assert_refused(
            &busy.gate,
            *kind,
            &answer,
            (502, "upstream_failed", "abandoned"),
        );
        assert!(caller.is_closed().await, "{kind:?}");
    }
    busy.calls.clear();
    busy.ended().await;
    for (kind, state) in [
        (Kind::Hold, State::Unknown),
        (Kind::Resend, State::Released),
    ] {
        let key = kind.key("r-1").unwrap();
        assert_eq!(
            events(&busy.gate, &key).await,
            [
                (State::Claimed, 1, "claimed".to_owned()),
                (state, 1, "abandoned".to_owned()),
            ]
        );
    }
    // The backend's connections were closed with the calls.
    for connection in 0..busy.stage.counts().0 {
        busy.stage.backend.wait_for_end_of(connection).await;
    }
}

#[tokio::test]
async fn a_call_that_outlasts_the_drain_is_recorded_as_unknown() {
    let busy = Busy::new(hasty, &[Kind::Hold, Kind::Resend, Kind::Post]).await;
    busy.gate.stopper().drain();
    assert_abandoned(busy).await;
}

#[tokio::test]
async fn a_second_signal_ends_the_drain_at_once() {
    let busy = Busy::new(patient, &[Kind::Hold, Kind::Resend, Kind::Post]).await;
    busy.gate.stopper().drain();
    listener_closed(&busy.gate).await;
    assert_eq!(busy.gate.state("r-1").await, Some(State::Claimed));
    busy.gate.stopper().hurry();
    assert_abandoned(busy).await;
}

#[tokio::test]
async fn a_call_that_was_not_sent_by_the_end_of_the_drain_is_released() {
    let narrow = |url: &str| {
        let one = (
            "settle_within = \"30s\"",
            "settle_within = \"30s\"\nmax_in_flight = 1",
        );
        replaced(&hasty(url), &[one])
    };
    let mut busy = Busy::new(narrow, &[Kind::Hold]).await;
    let mut waiting = busy.gate.connect().await;
    waiting
        .send(Kind::Hold.call(&busy.gate, "r-2").to_bytes())
        .await;
    busy.gate.wait_for_state("r-2", State::Claimed).await;
    busy.gate.stopper().drain();
    let answer = waiting.read_answer().await;
    let code = answer.error_code();
    assert_eq!(
        (answer.status, code.as_deref()),
        (502, Some("upstream_unreachable"))
    );
    assert_eq!(busy.calls[0].2.read_answer().await.status, 502);
    busy.calls.clear();
    drop(waiting);
    busy.ended().await;
    assert_eq!(busy.gate.state("r-1").await, Some(State::Unknown));
    let released = (State::Released, 1, "not_sent".to_owned());
    assert_eq!(events(&busy.gate, "r-2").await.pop(), Some(released));
    assert_eq!(busy.stage.backend.requests().len(), 1);
}

#[tokio::test]
async fn an_answer_that_came_before_the_end_counts() {
    // The backend answers while the drain is running out; whatever wins, both sides say the same.
    for _ in 0..10 {
        let mut busy = Busy::new(patient, &[Kind::Hold]).await;
        busy.gate.stopper().drain();
        busy.hold.release();
        busy.stage.backend.wait_for_end_of(0).await;
        busy.gate.stopper().hurry();
        let answer = busy.calls[0].2.read_answer_or_end().await;
        busy.calls.clear();
        busy.ended().await;
        let state = busy.gate.state("r-1").await.unwrap();
        match answer.map(|answer| answer.status) {
            Some(200) => assert_eq!(state, State::Done),
            Some(502) => assert_eq!(state, State::Unknown),
            Some(other) => panic!("{other}"),
            None => assert!(matches!(state, State::Done | State::Unknown)),
        }
    }
}

#[tokio::test]
async fn a_call_that_begins_when_the_drain_has_begun_is_told_to_come_back() {
    let mut busy = Busy::new(patient, &[Kind::Hold]).await;
    let gate = &busy.gate;
    // One whose head is on its way, and one whose body is: that one was let in.
    let (late, begun) = (
        Kind::Hold.call(gate, "late"),
        Kind::Hold.call(gate, "begun"),
    );
    let (late, begun) = (late.to_bytes(), begun.to_bytes());
    let (late_half, late_rest) = late.split_at(40);
    let (begun_most, begun_rest) = begun.split_at(begun.len() - 1);
    let mut late_caller = gate.connect().await;
    late_caller.send(late_half).await;
    let mut begun_caller = gate.connect().await;
    begun_caller.send(begun_most).await;
    in_time("both to be seen", async {
        while gate.metric("tikigate_connections").await < 3.0
            || gate.metric("tikigate_in_flight").await < 2.0
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    gate.stopper().drain();
    listener_closed(gate).await;

    late_caller.send(late_rest).await;
    let answer = late_caller.read_answer().await;
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (503, Some("draining"))
    );
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(late_caller.is_closed().await);

    begun_caller.send(begun_rest).await;
    busy.stage.backend.wait_for_requests(2).await;
    busy.hold.release();
    assert_eq!(begun_caller.read_answer().await.status, 200);
    assert_eq!(busy.calls[0].2.read_answer().await.status, 200);
    drop((late_caller, begun_caller));
    busy.calls.clear();
    busy.ended().await;
    assert_eq!(busy.gate.state("late").await, None, "nothing was begun");
    assert_eq!(busy.gate.state("begun").await, Some(State::Done));
    let lines = busy.gate.log();
    let draining = lines.iter().filter(|line| line["error.type"] == "draining");
    assert_eq!(draining.count(), 1);
}

#[tokio::test]
async fn a_gate_without_calls_ends_at_once_and_closes_quiet_connections() {
    let busy = Busy::new(patient, &[]).await;
    busy.stage.succeeds();
    let mut quiet = busy.gate.connect().await;
    quiet
        .send(Kind::Get.call(&busy.gate, "r-1").to_bytes())
        .await;
    assert_eq!(quiet.read_answer().await.status, 200);
    settled(&busy.gate).await;
    busy.gate.stopper().drain();
    assert!(quiet.is_closed().await);
    drop(quiet);
    busy.ended().await;
}
