//! A message that another process runs: waited for, and answered by what the ledger then says.

use std::time::Instant;

use tikigate::ledger::State;

use super::faulty_ledger::Fault;
use super::lab::Lab;
use super::{MILLISECOND, PATIENT, QUICK, SECOND};
use crate::support::backend::{Answer, Backend, Hold};
use crate::support::gate::refund;

const REFUND: &str = "/tiki/refund";

#[tokio::test]
async fn the_answer_of_another_process_is_waited_for_and_given() {
    let backend = Backend::start(|_| Answer::json(201, "{}").into()).await;
    let lab = Lab::start(&backend.url(), PATIENT);
    let body = refund("r-1", "1000");
    assert_eq!(lab.post(REFUND, &body).await.status, 201);

    // Asked twice before that: the store may wake those who wait too early.
    let (early, ended) = (Hold::new(), Hold::new());
    early.release();
    lab.ledger.next_claim(Fault::Elsewhere(early));
    lab.ledger.next_claim(Fault::Elsewhere(ended.clone()));
    let waiting = lab.begin(&lab.signed(REFUND, &body));
    lab.ledger.wait_for_claims(3).await;
    let joined = lab.begin(&lab.signed(REFUND, &body));
    tokio::time::sleep(50 * MILLISECOND).await;
    assert!(!waiting.is_finished() && !joined.is_finished());
    assert_eq!(lab.ledger.claims(), 3, "nobody asks without a reason");

    ended.release();
    for answer in [waiting.await.unwrap(), joined.await.unwrap()] {
        assert_eq!((answer.status, answer.replayed), (201, true));
    }
    assert_eq!(
        lab.ledger.claims(),
        4,
        "a duplicate waits with the first one"
    );
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test]
async fn what_was_released_elsewhere_is_sent() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let lab = Lab::start(&backend.url(), PATIENT);
    let ended = Hold::new();
    lab.ledger.next_claim(Fault::Elsewhere(ended.clone()));
    let waiting = lab.begin(&lab.signed(REFUND, &refund("r-1", "1000")));
    lab.ledger.wait_for_claims(1).await;
    assert_eq!(backend.requests().len(), 0);
    ended.release();
    assert_eq!(waiting.await.unwrap().status, 200);
    assert_eq!(backend.requests().len(), 1);
    assert_eq!(lab.state("r-1").await, Some(State::Done));
}

#[tokio::test]
async fn the_wait_ends_with_tikis_deadline_and_costs_nobody_a_permit() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let one_at_a_time = [
        QUICK,
        &[(
            r#"settle_within = "4s""#,
            "settle_within = \"4s\"\nmax_in_flight = 1",
        )],
    ]
    .concat();
    let lab = Lab::start(&backend.url(), &one_at_a_time);
    let never = Hold::new();
    lab.ledger.next_claim(Fault::Elsewhere(never.clone()));
    let waiting = lab.begin(&lab.signed(REFUND, &refund("r-1", "1000")));
    lab.ledger.wait_for_claims(1).await;
    let other = lab.post(REFUND, &refund("r-2", "1000")).await;
    assert_eq!(other.status, 200);
    assert!(!waiting.is_finished());
    assert!(waiting.await.unwrap().is(503, "in_progress"));
    assert_eq!(lab.state("r-1").await, None);
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test]
async fn the_wait_ends_with_the_gate() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let lab = Lab::start(&backend.url(), PATIENT);
    lab.ledger.next_claim(Fault::Elsewhere(Hold::new()));
    let waiting = lab.begin(&lab.signed(REFUND, &refund("r-1", "1000")));
    lab.ledger.wait_for_claims(1).await;
    let started = Instant::now();
    lab.common.calls().abandon();
    assert!(waiting.await.unwrap().is(503, "in_progress"));
    assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
    assert_eq!(backend.requests().len(), 0);
}
