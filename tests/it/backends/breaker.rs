//! An address that fails is left alone, and nothing of a message is lost meanwhile.

use std::time::{Duration, Instant};

use tikigate::ledger::State;

use super::{ANY, FAILURES, IPN, Mood, PAUSE, REFUND, SECOND, assert_shut, config, gate, open};
use super::{ready, refusal, send_all, series, wait_for_metric};
use crate::support::backend::{Answer, Backend, Behaviour, Hold, Refusing};
use crate::support::gate::{Call, TestGate, ipn, ipn_key, refund};
use crate::support::in_time;

#[tokio::test]
async fn an_open_breaker_refuses_at_once_and_claims_nothing() {
    let mood = Mood::down();
    let backend = mood.backend().await;
    let gate = gate(&[backend.url()]).await;
    open(&gate).await;
    let before = backend.connections().len();
    let calls = [
        gate.signed(REFUND, &refund("r-1", "1000")),
        gate.signed(IPN, &ipn("p-1", "1000")),
        gate.signed(ANY, "{\"a\":1}"),
        Call::get("/tiki/order-status?id=1", gate.now()),
    ];
    for call in &calls {
        let after = assert_shut(&gate.send(call).await);
        assert!((4..=7).contains(&after), "{after}");
    }
    assert_eq!(gate.state("r-1").await, None);
    assert_eq!(gate.state(&ipn_key("p-1")).await, None);
    assert_eq!(backend.connections().len(), before, "nothing was sent");
    let refused = |route: &str| {
        format!(
            "tikigate_refusals_total{{route=\"{route}\",error=\"upstream_unavailable\",reason=\"breaker_open\"}}"
        )
    };
    assert_eq!(gate.metric(&refused("refund")).await, 1.0);
    assert_eq!(gate.metric(&refused("order-status")).await, 1.0);
    // It closes, and the very same calls go through: hours later, by then outside of their window.
    mood.recovers();
    gate.advance(Duration::from_secs(6 * 3600));
    for call in &calls[..3] {
        let answer = gate.send(call).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(gate.state("r-1").await, Some(State::Done));
}

#[tokio::test]
async fn its_state_is_shown() {
    let mood = Mood::down();
    let backend = mood.backend().await;
    let gate = gate(&[backend.url()]).await;
    let state = series("breaker_state", &backend.url());
    let opened = series("breaker_opened_total", &backend.url());
    assert_eq!(gate.metric(&series("healthy", &backend.url())).await, 1.0);
    assert_eq!(
        (gate.metric(&state).await, gate.metric(&opened).await),
        (0.0, 0.0)
    );
    open(&gate).await;
    assert_eq!(
        (gate.metric(&state).await, gate.metric(&opened).await),
        (2.0, 1.0)
    );
    let answer = ready(&gate).await;
    assert_eq!(answer.status, 200);
    let trouble = format!("upstream legacy: the breaker of {} is open", backend.url());
    assert!(answer.text().contains(&trouble), "{}", answer.text());
    gate.advance(PAUSE);
    assert_eq!(gate.metric(&state).await, 1.0);
    mood.recovers();
    assert_eq!(gate.post(ANY, "{\"trial\":1}").await.status, 200);
    assert_eq!(
        (gate.metric(&state).await, gate.metric(&opened).await),
        (0.0, 1.0)
    );
    assert!(!ready(&gate).await.text().contains("upstream legacy"));
}

/// What a call can come to, and whether it counts against the address.
#[tokio::test]
async fn only_a_missing_answer_and_the_statuses_of_a_gateway_count() {
    let answer = |status| Behaviour::from(Answer::new(status));
    for (what, behaviour, counts) in [
        ("502", answer(502), true),
        ("503", answer(503), true),
        ("504", answer(504), true),
        ("reset", Behaviour::Reset, true),
        ("closed", Behaviour::Close, true),
        ("cut off", Behaviour::half_a_body(), true),
        ("no HTTP", Behaviour::malformed(), true),
        ("500", answer(500), false),
        ("404", answer(404), false),
        ("429", answer(429), false),
        ("302", answer(302), false),
    ] {
        let backend = Mood::new(behaviour).backend().await;
        let gate = gate(&[backend.url()]).await;
        for number in 0..=FAILURES {
            gate.post(ANY, &format!("{{\"a\":{number}}}")).await;
        }
        let expected = if counts { FAILURES } else { FAILURES + 1 };
        assert_eq!(backend.requests().len(), expected, "{what}");
    }
    let gone = Refusing::bind();
    let gate = gate(&[gone.url()]).await;
    for number in 0..FAILURES {
        let answer = gate
            .post(REFUND, &refund(&format!("r-{number}"), "1"))
            .await;
        assert_eq!(refusal(&answer).1, "upstream_unreachable");
    }
    assert_shut(&gate.post(REFUND, &refund("r-9", "1")).await);
}

#[tokio::test]
async fn silence_counts_when_tiki_must_have_its_answer_and_not_later() {
    let hold = Hold::new();
    let backend = Mood::new(Behaviour::from(Answer::success()).held(&hold))
        .backend()
        .await;
    let config = config(&[backend.url()], "");
    let gate =
        TestGate::with(&config.replace("answer_within = \"9s\"", "answer_within = \"700ms\""))
            .await;
    let refunds = |number: usize| refund(&format!("r-{number}"), "1000");
    let calls = send_all(&gate, REFUND, (0..FAILURES).map(refunds)).await;
    for mut call in calls {
        assert_eq!(call.read_answer().await.status, 504);
    }
    // None of them has settled, and the breaker is open.
    assert_eq!(gate.state("r-0").await, Some(State::Claimed));
    assert_shut(&gate.post(REFUND, &refund("r-9", "1000")).await);
    // Their late answers are recorded and close nothing.
    hold.release();
    for number in 0..FAILURES {
        gate.wait_for_state(&format!("r-{number}"), State::Done)
            .await;
    }
    assert_shut(&gate.post(REFUND, &refund("r-9", "1000")).await);
    assert_eq!(gate.post(REFUND, &refunds(0)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_one_of_fifty_calls_tries() {
    let mood = Mood::down();
    let backend = mood.backend().await;
    let gate = gate(&[backend.url()]).await;
    open(&gate).await;
    let hold = Hold::new();
    mood.becomes(Behaviour::from(Answer::success()).held(&hold));
    gate.advance(PAUSE);
    let before = backend.requests().len();
    let bodies = (0..50).map(|number| refund(&format!("r-{number}"), "1000"));
    let calls = send_all(&gate, REFUND, bodies).await;
    let mut answers = Vec::new();
    for mut call in calls {
        answers.push(tokio::spawn(async move { call.read_answer().await }));
    }
    backend.wait_for_requests(before + 1).await;
    let refused = "tikigate_refusals_total{route=\"refund\",error=\"upstream_unavailable\",reason=\"breaker_open\"}";
    wait_for_metric(&gate, refused, 49.0).await;
    assert_eq!(backend.requests().len(), before + 1, "one trial");
    hold.release();
    let mut through = 0;
    for answer in answers {
        let answer = in_time("an answer", answer).await.unwrap();
        match answer.status {
            200 => through += 1,
            _ => assert_eq!(assert_shut(&answer), 1),
        }
    }
    assert_eq!(through, 1);
    assert_eq!(gate.post(REFUND, &refund("r-99", "1000")).await.status, 200);
}

#[tokio::test]
async fn a_trial_that_fails_opens_it_for_longer() {
    let backend = Mood::down().backend().await;
    let gate = gate(&[backend.url()]).await;
    open(&gate).await;
    gate.advance(PAUSE);
    let before = backend.requests().len();
    assert_eq!(gate.post(ANY, "{\"trial\":1}").await.status, 503);
    let after = assert_shut(&gate.post(ANY, "{\"trial\":2}").await);
    assert!((10..=13).contains(&after), "{after}");
    gate.advance(PAUSE);
    assert_shut(&gate.post(ANY, "{\"trial\":3}").await);
    assert_eq!(backend.requests().len(), before + 1);
}

#[tokio::test]
async fn what_the_ledger_knows_is_answered_while_it_is_open() {
    let mood = Mood::well();
    let backend = mood.backend().await;
    let gate = gate(&[backend.url()]).await;
    assert_eq!(gate.post(REFUND, &refund("done", "1")).await.status, 200);
    assert_eq!(gate.post(IPN, &ipn("done", "1")).await.status, 200);
    mood.becomes(Behaviour::Close);
    assert_eq!(gate.post(REFUND, &refund("held", "1")).await.status, 502);
    mood.becomes(Answer::new(503));
    // On a route that sends again its record is released.
    assert_eq!(gate.post(IPN, &ipn("again", "1")).await.status, 503);
    mood.becomes(Answer::json(429, "{}"));
    assert_eq!(
        gate.post(REFUND, &refund("released", "1")).await.status,
        502
    );
    mood.becomes(Answer::new(503));
    open(&gate).await;

    for (path, body) in [(REFUND, refund("done", "1")), (IPN, ipn("done", "1"))] {
        let answer = gate.post(path, &body).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("idempotency-replayed"), Some("true"));
    }
    let conflict = gate.post(REFUND, &refund("done", "2")).await;
    assert_eq!(refusal(&conflict).1, "conflict");
    let held = gate.post(REFUND, &refund("held", "1")).await;
    assert_eq!(refusal(&held).1, "outcome_unknown");
    let before = backend.requests().len();
    for (path, body, key) in [
        (IPN, ipn("again", "1"), ipn_key("again")),
        (REFUND, refund("released", "1"), "released".to_owned()),
    ] {
        let record = gate.record(&key).await.unwrap();
        assert_eq!(record.state, State::Released);
        assert_shut(&gate.post(path, &body).await);
        let after = gate.record(&key).await.unwrap();
        assert_eq!(
            (after.attempt, after.version),
            (record.attempt, record.version)
        );
    }
    // An old copy of a message that nobody knows is told that it is old.
    let old = Call::post(REFUND, refund("old", "1"), gate.now() - 600 * SECOND);
    assert_eq!(refusal(&gate.send(&old).await).1, "out_of_window");
    assert_eq!(backend.requests().len(), before);

    mood.recovers();
    gate.advance(PAUSE);
    for _ in 0..2 {
        let answer = gate.post(REFUND, &refund("released", "1")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let body = refund("released", "1");
    let requests = backend.requests();
    let ran = requests[before..].iter();
    assert_eq!(ran.filter(|seen| seen.text() == body).count(), 1);
}

/// Calls that wait for their turn when the breaker opens are not sent into the same trouble.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_the_queue_are_refused_when_it_opens() {
    let hold = Hold::new();
    let mood = Mood::new(Behaviour::from(Answer::new(503)).held(&hold));
    let backend = mood.backend().await;
    let config = config(&[backend.url()], "max_in_flight = 3");
    let gate = TestGate::with(&config).await;
    let bodies = (0..20).map(|number| refund(&format!("r-{number}"), "1000"));
    let calls = send_all(&gate, REFUND, bodies).await;
    backend.wait_for_requests(FAILURES).await;
    let waiting = series("in_flight", &backend.url());
    wait_for_metric(&gate, &waiting, 20.0).await;
    hold.release();
    let mut shut = 0;
    for mut call in calls {
        let answer = call.read_answer().await;
        assert_eq!(answer.status, 503);
        // The backend's own answers have no envelope.
        if !answer.body.is_empty() {
            assert_shut(&answer);
            shut += 1;
        }
    }
    // One that got its place when the second of three had failed may still have gone out.
    let sent = backend.requests().len();
    assert_eq!(shut + sent, 20);
    assert!(sent <= 2 * FAILURES, "{sent} were sent");
    assert_eq!(gate.metric(&waiting).await, 0.0);
    // What was claimed and not sent is released: it may come again.
    let mut released = 0;
    for number in 0..20 {
        released += usize::from(gate.state(&format!("r-{number}")).await == Some(State::Released));
    }
    assert_eq!(released, shut);
}

/// Nobody waits longer for a refusal than for the ledger.
#[tokio::test]
async fn a_refusal_takes_no_time_of_a_hanging_backend() {
    let backend = Backend::start(|_| Behaviour::Silence).await;
    let config = config(&[backend.url()], "");
    let gate =
        TestGate::with(&config.replace("answer_within = \"9s\"", "answer_within = \"2s\"")).await;
    let first = send_all(
        &gate,
        REFUND,
        (0..FAILURES).map(|n| refund(&format!("r-{n}"), "1")),
    )
    .await;
    for mut call in first {
        assert_eq!(call.read_answer().await.status, 504);
    }
    let started = Instant::now();
    assert_shut(&gate.post(REFUND, &refund("r-9", "1")).await);
    assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
}
