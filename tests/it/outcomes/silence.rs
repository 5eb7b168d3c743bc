//! A backend that never says the whole: past `answer_within`, past `settle_within`.

use super::{
    Kind, Outcome, Settles, Stage, assert_again, assert_first, deadlines, events, settled,
};
use crate::support::backend::{Answer, Behaviour, OnConnect, Then};
use crate::support::gate::TestGate;
use crate::support::raw::RawAnswer;
use tikigate::ledger::State;

/// Answered 504 in time, and doubtful once `settle_within` is over.
const SILENT: Outcome = Outcome {
    status: 504,
    refusal: Some(("upstream_timeout", "")),
    settles: Settles::Doubtful,
    cause: "upstream_timeout",
};

async fn assert_silent(name: &str, on_connect: OnConnect, on_request: Behaviour) {
    let stage = Stage::open().await;
    let gate = TestGate::with(&deadlines(&stage.backend.url(), "800ms", "2s")).await;
    stage.plays(on_connect, on_request);
    let id = |kind: Kind| format!("{name}-{}", kind.route());
    let [hold, resend, post, get] = Kind::ALL.map(|kind| kind.call(&gate, &id(kind)));
    let answers: [RawAnswer; 4] = tokio::join!(
        gate.send(&hold),
        gate.send(&resend),
        gate.send(&post),
        gate.send(&get)
    )
    .into();
    // Tiki has its answer, and the calls go on.
    for kind in [Kind::Hold, Kind::Resend] {
        let key = kind.key(&id(kind)).unwrap();
        assert_eq!(gate.state(&key).await, Some(State::Claimed), "{name}");
        assert_eq!(events(&gate, &key).await.len(), 1);
    }
    assert_eq!(stage.counts().0, 4, "{name}: one connection each");
    settled(&gate).await;
    // The gate gave the connections up.
    let calls = [hold, resend, post, get];
    for (kind, (call, first)) in Kind::ALL.into_iter().zip(calls.iter().zip(&answers)) {
        assert_first(&gate, kind, &id(kind), first, &SILENT).await;
        assert_again(&gate, &stage, kind, &id(kind), call, (first, &SILENT)).await;
    }
}

#[tokio::test]
async fn silence_is_no_answer() {
    assert_silent("silent", OnConnect::Serve, Behaviour::Silence).await;
}

#[tokio::test]
async fn a_backend_that_never_reads_may_have_got_it() {
    assert_silent("ignoring", OnConnect::Ignore, Behaviour::Silence).await;
}

#[tokio::test]
async fn half_an_answer_and_silence_is_no_answer() {
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345".to_vec();
    assert_silent(
        "half",
        OnConnect::Serve,
        Behaviour::Raw(half, Then::Silence),
    )
    .await;
}

#[tokio::test]
async fn a_body_that_drips_for_ever_is_no_answer() {
    let dripping = Answer::new(200).body("x".repeat(10_000));
    let pause = std::time::Duration::from_millis(20);
    assert_silent(
        "dripping",
        OnConnect::Serve,
        Behaviour::Drip(dripping, pause),
    )
    .await;
}
