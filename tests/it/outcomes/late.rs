//! Answers that come after Tiki got its own: recorded, and given when Tiki asks again.

use std::time::Duration;

use super::{
    Kind, SUCCESS, Stage, assert_refused, deadlines, events, last_line, replaced, settled,
};
use crate::support::backend::{Answer, Backend, Behaviour, Hold, OnConnect};
use crate::support::gate::{TestGate, refund};
use tikigate::ledger::{KeptAnswer, Resolution, State, Verdict};

const SOON: &str = "1s";

async fn impatient() -> (Stage, TestGate) {
    let stage = Stage::open().await;
    let gate = TestGate::with(&deadlines(&stage.backend.url(), SOON, "30s")).await;
    (stage, gate)
}

/// The backend answers the next calls when it is let go.
fn hold_back(stage: &Stage, answer: Answer) -> Hold {
    let hold = Hold::new();
    let held = Behaviour::from(answer.until_close()).held(&hold);
    stage.plays(OnConnect::Serve, held);
    hold
}

#[tokio::test]
async fn a_late_answer_is_recorded_and_given_to_the_next_try() {
    let (stage, gate) = impatient().await;
    for (answer, status, cause) in [
        (Answer::success(), 200, "success"),
        (Answer::json(422, SUCCESS), 422, "declined"),
    ] {
        for kind in [Kind::Hold, Kind::Resend] {
            let id = format!("{status}");
            let (call, key) = (kind.call(&gate, &id), kind.key(&id).unwrap());
            let before = stage.counts();
            let hold = hold_back(&stage, answer.clone());
            let first = gate.send(&call).await;
            assert_refused(&gate, kind, &first, (504, "upstream_timeout", ""));
            assert_eq!(gate.state(&key).await, Some(State::Claimed));
            hold.release();
            gate.wait_for_state(&key, State::Done).await;
            assert_eq!(
                events(&gate, &key).await,
                [
                    (State::Claimed, 1, "claimed".to_owned()),
                    (State::Done, 1, cause.to_owned())
                ]
            );
            settled(&gate).await;
            let again = gate.send(&call).await;
            assert_eq!((again.status, again.text()), (status, SUCCESS));
            assert_eq!(last_line(&gate, kind.route())["tikigate.replayed"], true);
            assert_eq!(again.header("idempotency-replayed"), Some("true"));
            assert_eq!(stage.counts(), (before.0 + 1, before.1 + 1), "sent once");
        }
    }
}

#[tokio::test]
async fn an_answer_that_begins_in_time_and_ends_late_is_late_too() {
    let (stage, gate) = impatient().await;
    let padded = Answer::success().header("X-Padding", &"x".repeat(100));
    let pause = Duration::from_millis(8);
    let drips = Behaviour::Drip(padded.until_close(), pause).and_then(Behaviour::Close);
    stage.plays(OnConnect::Serve, drips);
    let call = Kind::Hold.call(&gate, "r-1");
    assert_eq!(gate.send(&call).await.status, 504);
    gate.wait_for_state("r-1", State::Done).await;
    settled(&gate).await;
    let again = gate.send(&call).await;
    assert_eq!((again.status, again.text()), (200, SUCCESS));
    assert_eq!(stage.counts(), (1, 1));
}

#[tokio::test]
async fn a_late_answer_that_says_not_applied_lets_the_next_try_through() {
    let (stage, gate) = impatient().await;
    for kind in [Kind::Hold, Kind::Resend] {
        let (call, key) = (kind.call(&gate, "r-1"), kind.key("r-1").unwrap());
        let hold = hold_back(&stage, Answer::new(429));
        assert_eq!(gate.send(&call).await.status, 504);
        hold.release();
        gate.wait_for_state(&key, State::Released).await;
        settled(&gate).await;
        stage.succeeds();
        let again = gate.send(&call).await;
        assert_eq!(
            (again.status, again.header("idempotency-replayed")),
            (200, None)
        );
        let seen = stage.backend.requests().pop().unwrap();
        assert_eq!(seen.header("x-tikigate-attempt"), Some("2"));
    }
    assert_eq!(stage.counts(), (4, 4));
}

#[tokio::test]
async fn a_late_answer_that_says_nothing_holds_a_refund_alone() {
    let (stage, gate) = impatient().await;
    for (kind, state, status) in [
        (Kind::Hold, State::Unknown, 500),
        (Kind::Resend, State::Released, 200),
    ] {
        let (call, key) = (kind.call(&gate, "r-1"), kind.key("r-1").unwrap());
        let hold = hold_back(&stage, Answer::new(503));
        assert_eq!(gate.send(&call).await.status, 504);
        hold.release();
        gate.wait_for_state(&key, state).await;
        settled(&gate).await;
        stage.succeeds();
        assert_eq!(gate.send(&call).await.status, status);
    }
    assert_eq!(stage.counts(), (3, 3));
}

#[tokio::test]
async fn a_late_answer_on_a_route_without_keys_ends_its_signature() {
    let (stage, gate) = impatient().await;
    let hold = hold_back(&stage, Answer::success());
    let call = Kind::Post.call(&gate, "p-1");
    let first = gate.send(&call).await;
    assert_refused(&gate, Kind::Post, &first, (504, "upstream_timeout", ""));
    hold.release();
    settled(&gate).await;
    let again = gate.send(&call).await;
    assert_refused(&gate, Kind::Post, &again, (409, "replayed", "answered"));
    assert_eq!(stage.counts(), (1, 1));
}

#[tokio::test]
async fn a_duplicate_past_the_deadline_of_a_running_call_is_told_to_come_back() {
    let (stage, gate) = impatient().await;
    let hold = hold_back(&stage, Answer::success());
    let calls = [Kind::Hold, Kind::Resend, Kind::Post].map(|kind| (kind, kind.call(&gate, "r-1")));
    let [hold_call, resend_call, post_call] = &calls;
    // The first and the second of each: the second comes when the first was answered.
    for expected in [
        (504, "upstream_timeout", ""),
        (503, "in_progress", "deadline"),
    ] {
        let (first, second, third) = tokio::join!(
            gate.send(&hold_call.1),
            gate.send(&resend_call.1),
            gate.send(&post_call.1)
        );
        for ((kind, _), answer) in calls.iter().zip([first, second, third]) {
            assert_refused(&gate, *kind, &answer, expected);
            let retry_after = (expected.0 == 503).then_some("1");
            assert_eq!(answer.header("retry-after"), retry_after);
        }
    }
    // One that waits when the answer comes gets it.
    let waiting = gate.send(&hold_call.1);
    let release = async {
        tokio::task::yield_now().await;
        hold.release();
    };
    let (answer, ()) = tokio::join!(waiting, release);
    assert_eq!((answer.status, answer.text()), (200, SUCCESS));
    settled(&gate).await;
    assert_eq!(stage.counts(), (3, 3), "each was sent once");
}

#[tokio::test]
async fn a_running_call_keeps_its_place_though_its_caller_was_answered() {
    let stage = Stage::open().await;
    let toml = deadlines(&stage.backend.url(), SOON, "30s");
    let narrow = format!("answer_within = \"{SOON}\"\nmax_in_flight = 1");
    let toml = replaced(&toml, &[(&format!("answer_within = \"{SOON}\""), &narrow)]);
    let gate = TestGate::with(&toml).await;
    let hold = hold_back(&stage, Answer::success());
    let first = gate.send(&Kind::Hold.call(&gate, "r-1")).await;
    assert_eq!(first.status, 504);

    gate.log_text();
    let [hold_call, resend_call, post_call, get_call] =
        Kind::ALL.map(|kind| kind.call(&gate, "r-2"));
    let crowded: [_; 4] = tokio::join!(
        gate.send(&hold_call),
        gate.send(&resend_call),
        gate.send(&post_call),
        gate.send(&get_call)
    )
    .into();
    for (kind, answer) in Kind::ALL.into_iter().zip(crowded) {
        assert_refused(&gate, kind, &answer, (503, "overloaded", "upstream"));
        let Some(key) = kind.key("r-2") else { continue };
        // The claim is given back, so that the call may run later.
        gate.wait_for_state(&key, State::Released).await;
        let released = (State::Released, 1, "overloaded".to_owned());
        assert_eq!(events(&gate, &key).await.pop(), Some(released));
    }
    assert_eq!(stage.counts(), (1, 1), "nothing else was sent");

    hold.release();
    gate.wait_for_state("r-1", State::Done).await;
    settled(&gate).await;
    stage.succeeds();
    for kind in Kind::ALL {
        let answer = gate.send(&kind.call(&gate, "r-2")).await;
        assert_eq!(answer.status, 200, "{kind:?}: {}", answer.text());
        let attempt = if kind.key("r-2").is_some() { "2" } else { "1" };
        let seen = stage.backend.requests().pop().unwrap();
        assert_eq!(seen.header("x-tikigate-attempt"), Some(attempt));
    }
    assert_eq!(gate.send(&Kind::Hold.call(&gate, "r-1")).await.status, 200);
    assert_eq!(stage.counts(), (5, 5));
}

#[tokio::test]
async fn an_answer_that_the_ledger_did_not_keep_is_not_given() {
    let hold = Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |_| Behaviour::from(Answer::success()).held(&held)).await;
    let gate = TestGate::with(&deadlines(&backend.url(), "9s", "30s")).await;
    let call = gate.signed("/tiki/refund", &refund("r-overruled", "1"));
    let mut first = gate.connect().await;
    first.send(call.to_bytes()).await;
    backend.wait_for_requests(1).await;

    // Its owner is taken for dead while it waits, and a person rejects the refund.
    let record = gate.record("r-overruled").await.unwrap();
    assert_eq!(gate.ledger().lapse(record.owner).await, Ok(1));
    let unknown = gate.record("r-overruled").await.unwrap();
    let rejected = KeptAnswer {
        status: http::StatusCode::INTERNAL_SERVER_ERROR,
        headers: Vec::new(),
        body: bytes::Bytes::from_static(b"rejected"),
    };
    let resolution = Resolution {
        id: unknown.id,
        expected: (unknown.state, unknown.attempt, unknown.version),
        verdict: Verdict::Rejected(rejected),
        by: "ops".to_owned(),
        reason: "the customer was paid in cash".to_owned(),
        force: false,
    };
    gate.ledger().resolve(resolution).await.unwrap();

    hold.release();
    let late = first.read_answer().await;
    assert_eq!(
        (late.status, late.error_code().as_deref()),
        (503, Some("ledger_unavailable"))
    );
    let again = gate.send(&call).await;
    assert_eq!((again.status, again.text()), (500, "rejected"));
    assert_eq!(backend.requests().len(), 1);
}
