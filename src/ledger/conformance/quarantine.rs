//! A ledger that may have forgotten.

use super::*;

pub(crate) async fn absent_keys_are_held(open: Open) {
    let f = open.one().await;
    assert_eq!(f.ledger.quarantine().await.unwrap(), None);
    f.quarantined().await;
    assert_eq!(
        f.ledger.quarantine().await.unwrap().as_deref(),
        Some("restored from a backup")
    );
    let ClaimOutcome::Held(id, Hold::LedgerGap) = f.claim(refund("a")).await else {
        panic!("not held");
    };
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Held(again, Hold::LedgerGap)
        if again == id);
    let record = f.record(id).await;
    assert_eq!((record.state, record.attempt), (State::Unknown, 0));
    assert_eq!(f.last_cause(id).await, "ledger_gap");
    assert_eq!(f.ledger.stats().await.unwrap().records, [0, 0, 0, 1]);
    let dated = Claim {
        admission: Admission::KnownOnly,
        ..refund("b")
    };
    assert_is!(f.claim(dated).await, ClaimOutcome::Unfamiliar);
    assert_eq!(f.granted(notice("c")).await.attempt, 1);
}

pub(crate) async fn known_keys_are_not(open: Open) {
    let f = open.one().await;
    f.granted(refund("a")).await;
    f.settled(refund("b"), success()).await;
    f.settled(refund("c"), cannot_say()).await;
    f.settled(notice("d"), cannot_say()).await;
    f.quarantined().await;
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Running(_));
    assert_is!(f.claim(refund("b")).await, ClaimOutcome::Done(..));
    assert_is!(
        f.claim(refund("c")).await,
        ClaimOutcome::Held(_, Hold::OutcomeUnknown)
    );
    assert_eq!(f.granted(notice("d")).await.attempt, 2);
}

pub(crate) async fn gaps_are_resolved_one_by_one(open: Open) {
    let f = open.one().await;
    f.quarantined().await;
    let mut ids = Vec::new();
    for message in ["a", "b", "c"] {
        match f.claim(refund(message)).await {
            ClaimOutcome::Held(id, Hold::LedgerGap) => ids.push(id),
            other => panic!("{other:?}"),
        }
    }
    // What was forgotten may be running: the usual wait holds.
    assert_is!(
        f.resolve(ids[0], Verdict::NotApplied).await,
        Err(ResolveError::MayStillRun { .. })
    );
    f.hands.advance(MAY_RUN);
    f.resolve(ids[0], Verdict::NotApplied).await.unwrap();
    let fence = f.granted(refund("a")).await;
    assert_eq!(fence.attempt, 1);
    // From here on it is a record like any other.
    f.settle(fence, cannot_say()).await;
    assert_is!(
        f.claim(refund("a")).await,
        ClaimOutcome::Held(_, Hold::OutcomeUnknown)
    );
    assert_eq!(
        f.settle(fence, not_applied()).await,
        Settled::Recorded(State::Released)
    );
    f.resolve(ids[1], Verdict::Applied(answer(200, "by hand")))
        .await
        .unwrap();
    assert_is!(f.claim(refund("b")).await, ClaimOutcome::Done(..));

    f.lifted().await;
    assert_eq!(f.ledger.quarantine().await.unwrap(), None);
    assert_eq!(f.granted(refund("new")).await.attempt, 1);
    assert_is!(
        f.claim(refund("c")).await,
        ClaimOutcome::Held(_, Hold::LedgerGap)
    );
}

pub(crate) async fn keys_released_before_are_held(open: Open) {
    let f = open.one().await;
    let before = f.settled(refund("a"), not_applied()).await;
    f.settled(refund("b"), not_applied()).await;
    let running = f.granted(refund("c")).await;
    let other_running = f.granted(refund("d")).await;
    f.quarantined().await;
    assert_is!(
        f.claim(refund("a")).await,
        ClaimOutcome::Held(_, Hold::LedgerGap)
    );
    let record = f.record(before.record).await;
    assert_eq!((record.state, record.attempt), (State::Unknown, 1));
    // An attempt that the ledger knows says nothing about a later one that it forgot.
    assert_eq!(
        f.settle(before, not_applied()).await,
        Settled::Recorded(State::Unknown)
    );
    f.hands.advance(MAY_RUN);
    f.resolve(before.record, Verdict::NotApplied).await.unwrap();
    let fence = f.granted(refund("a")).await;
    assert_eq!(fence.attempt, 2);
    // Claimed before, it may have been released and claimed again before it was forgotten.
    f.settle(running, not_applied()).await;
    assert_is!(
        f.claim(refund("c")).await,
        ClaimOutcome::Held(_, Hold::LedgerGap)
    );
    f.settle(other_running, cannot_say()).await;
    f.settle(other_running, not_applied()).await;
    assert_is!(
        f.claim(refund("d")).await,
        ClaimOutcome::Held(_, Hold::LedgerGap)
    );
    // Claimed since: nothing about it was forgotten.
    f.settle(fence, not_applied()).await;
    assert_eq!(f.granted(refund("a")).await.attempt, 3);

    f.lifted().await;
    assert_eq!(f.granted(refund("b")).await.attempt, 2);
}

pub(crate) async fn a_gap_of_a_known_key_waits_for_what_was_forgotten(open: Open) {
    let f = open.one().await;
    let fence = f.settled(refund("a"), not_applied()).await;
    f.hands.advance(DAY);
    f.quarantined().await;
    f.claim(refund("a")).await;
    assert_is!(
        f.resolve(fence.record, Verdict::NotApplied).await,
        Err(ResolveError::MayStillRun { until }) if until == f.now() + MAY_RUN
    );
}

pub(crate) async fn lifting_wants_name_and_reason(open: Open) {
    let f = open.one().await;
    f.quarantined().await;
    for (by, reason) in [("", "why"), ("linh", "  ")] {
        let lifted = f.ledger.lift_quarantine(by.to_owned(), reason.to_owned());
        assert_is!(lifted.await, Err(LedgerError::Failed(_)));
    }
    assert_is!(
        f.claim(refund("a")).await,
        ClaimOutcome::Held(_, Hold::LedgerGap)
    );
}
