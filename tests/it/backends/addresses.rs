//! Several addresses of one backend: who gets a call, and when it may go on to another.

use tikigate::ledger::State;

use super::{
    ANY, IPN, Mood, PAUSE, REFUND, bodies, gate, refusal, send_all, series, wait_for_metric,
};
use crate::support::backend::{Answer, Backend, Behaviour, Hold, OnConnect, Refusing};
use crate::support::gate::{ipn, refund};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_loaded_address_gets_the_call() {
    let hold = Hold::new();
    let slow = Mood::new(Behaviour::from(Answer::success()).held(&hold))
        .backend()
        .await;
    let quick = Mood::well().backend().await;
    let third = Mood::well().backend().await;
    let gate = gate(&[slow.url(), quick.url(), third.url()]).await;
    let mut number = 0;
    let mut held = Vec::new();
    while held.len() < 2 {
        // Until two hang at the slow one; the quick ones are idle again after each call.
        number += 1;
        let before = slow.requests().len();
        let calls = send_all(
            &gate,
            REFUND,
            std::iter::once(refund(&format!("h-{number}"), "1")),
        )
        .await;
        let in_flight = series("in_flight", &slow.url());
        for mut call in calls {
            tokio::select! {
                answer = call.read_answer() => assert_eq!(answer.status, 200),
                () = wait_for_metric(&gate, &in_flight, held.len() as f64 + 1.0) => {
                    slow.wait_for_requests(before + 1).await;
                    held.push(call);
                }
            }
        }
        if held.len() == 1 {
            break;
        }
    }
    let (quick_before, third_before) = (quick.requests().len(), third.requests().len());
    for number in 0..20 {
        let answer = gate
            .post(REFUND, &refund(&format!("r-{number}"), "1"))
            .await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(slow.requests().len(), 1, "it has a call already");
    let spread = [
        quick.requests().len() - quick_before,
        third.requests().len() - third_before,
    ];
    assert_eq!(spread.iter().sum::<usize>(), 20);
    assert!(
        spread.iter().all(|count| (6..=14).contains(count)),
        "{spread:?}"
    );
    hold.release();
    for mut call in held {
        assert_eq!(call.read_answer().await.status, 200);
    }
}

#[tokio::test]
async fn a_call_goes_on_to_another_address_when_there_is_no_connection() {
    let gone = Refusing::bind();
    let backend = Mood::well().backend().await;
    let gate = gate(&[gone.url(), backend.url()]).await;
    for number in 0..8 {
        for (path, body) in [
            (REFUND, refund(&format!("r-{number}"), "1")),
            (IPN, ipn(&format!("p-{number}"), "1")),
            (ANY, format!("{{\"a\":{number}}}")),
        ] {
            let answer = gate.post(path, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            // As the same attempt.
            assert_eq!(
                backend
                    .requests()
                    .last()
                    .unwrap()
                    .header("x-tikigate-attempt"),
                Some("1")
            );
        }
    }
    assert_eq!(backend.requests().len(), 24);
    // By then the other is left alone, and not only passed over.
    assert_eq!(
        gate.metric(&series("breaker_state", &gone.url())).await,
        2.0
    );
}

#[tokio::test]
async fn without_any_connection_the_call_was_not_sent() {
    let gone: Vec<Refusing> = (0..5).map(|_| Refusing::bind()).collect();
    let urls: Vec<String> = gone.iter().map(Refusing::url).collect();
    let gate = gate(&urls).await;
    let answer = gate.post(REFUND, &refund("r-1", "1")).await;
    assert_eq!(refusal(&answer).1, "upstream_unreachable");
    assert_eq!(gate.state("r-1").await, Some(State::Released));
    // Three tries, whatever the number of addresses.
    let mut tried = 0.0;
    for number in 0..12 {
        gate.post(REFUND, &refund(&format!("s-{number}"), "1"))
            .await;
    }
    for url in &urls {
        tried += gate.metric(&series("breaker_opened_total", url)).await;
    }
    assert_eq!(tried, 5.0, "all are open after 3 failures each");
}

/// Once a byte may have gone out, a refund belongs to the address that got it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_never_moves_once_a_byte_may_have_been_sent() {
    for (what, behaviour) in [
        ("reset", Behaviour::Reset),
        ("closed", Behaviour::Close),
        ("503", Answer::new(503).into()),
        ("cut off", Behaviour::half_a_body()),
    ] {
        let mood = Mood::new(behaviour);
        let (one, two) = (mood.backend().await, mood.backend().await);
        let gate = gate(&[one.url(), two.url()]).await;
        for number in 0..4 {
            let answer = gate
                .post(REFUND, &refund(&format!("r-{number}"), "1"))
                .await;
            assert!(answer.status >= 500, "{what}");
            let key = format!("r-{number}");
            assert_eq!(gate.state(&key).await, Some(State::Unknown), "{what}");
        }
        // Again, by Tiki; and once all is well.
        mood.recovers();
        gate.advance(PAUSE);
        for number in 0..4 {
            let answer = gate
                .post(REFUND, &refund(&format!("r-{number}"), "1"))
                .await;
            assert_eq!(refusal(&answer).1, "outcome_unknown");
        }
        let mut got = bodies(&one);
        got.extend(bodies(&two));
        got.sort_unstable();
        let all = got.len();
        got.dedup();
        assert_eq!((all, got.len()), (4, 4), "{what}: each was sent once");
        assert_eq!(one.requests().len(), 2, "{what}: they were spread");
    }
}

/// Nor does it where the other end broke off in the middle of the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_within_the_request_ends_the_call() {
    for behaviour in [Behaviour::Reset, Behaviour::Close] {
        let breaking = || {
            let behaviour = behaviour.clone();
            Backend::start_with(
                move |_| OnConnect::AfterHead(behaviour.clone()),
                |_| Answer::success().into(),
            )
        };
        let (one, two) = (breaking().await, breaking().await);
        let gate = gate(&[one.url(), two.url()]).await;
        for number in 0..4 {
            let key = format!("r-{number}");
            let answer = gate.post(REFUND, &refund(&key, "1")).await;
            assert_eq!(refusal(&answer).1, "upstream_failed");
            assert_eq!(gate.state(&key).await, Some(State::Unknown));
            assert_eq!(
                one.connections().len() + two.connections().len(),
                number + 1,
                "one connection for what may have been sent"
            );
        }
    }
}

#[tokio::test]
async fn an_open_address_costs_the_others_calls_nothing() {
    let mood = Mood::down();
    let (bad, good) = (mood.backend().await, Mood::well().backend().await);
    let gate = gate(&[bad.url(), good.url()]).await;
    let mut failed = 0;
    for number in 0..20 {
        let answer = gate.post(ANY, &format!("{{\"a\":{number}}}")).await;
        failed += usize::from(answer.status != 200);
    }
    assert_eq!((failed, bad.requests().len()), (3, 3));
    // One call tries it when its time has come, and then it has its share again.
    mood.recovers();
    gate.advance(PAUSE);
    for number in 0..10 {
        let answer = gate.post(ANY, &format!("{{\"b\":{number}}}")).await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(bad.requests().len(), 3 + 5);
}
