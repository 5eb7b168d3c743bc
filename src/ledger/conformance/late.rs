//! Answers that come after somebody gave up on them.

use super::*;

pub(crate) async fn late_answers_end_an_unknown(open: Open) {
    let f = open.one().await;
    let cases = [
        ("a", success(), State::Done),
        ("b", declined(), State::Done),
        ("c", not_applied(), State::Released),
    ];
    for (message, settlement, state) in cases {
        let fence = f.settled(refund(message), cannot_say()).await;
        assert_eq!(f.settle(fence, settlement).await, Settled::Recorded(state));
        assert_eq!(f.state(fence.record).await, state);
    }
    // On a resend policy the key is free, and still takes the answer while nobody claimed it.
    let fence = f.settled(notice("d"), cannot_say()).await;
    assert_eq!(
        f.settle(fence, declined()).await,
        Settled::Recorded(State::Done)
    );
    assert_is!(f.claim(notice("d")).await, ClaimOutcome::Done(..));
    // A late proof makes it a release for a claim that holds, too.
    let fence = f.settled(notice("e"), cannot_say()).await;
    for _ in 0..2 {
        assert_eq!(
            f.settle(fence, not_applied()).await,
            Settled::Recorded(State::Released)
        );
    }
    assert_eq!(f.events(fence.record).await.len(), 3);
    assert_eq!(f.granted(refund("e")).await.attempt, 2);
}

pub(crate) async fn late_answers_change_nothing_that_ended(open: Open) {
    let f = open.one().await;
    let verdicts = [
        (
            "a",
            Verdict::Applied(answer(200, "by hand")),
            [success(), not_applied()],
        ),
        (
            "b",
            Verdict::Rejected(answer(422, "by hand")),
            [declined(), not_applied()],
        ),
    ];
    for (message, verdict, others) in verdicts {
        let fence = f.settled(refund(message), cannot_say()).await;
        let before = f.resolve(fence.record, verdict).await.unwrap();
        let same = Settlement::Done(before.answer.clone().unwrap(), "same".into());
        let [first, second] = others;
        for settlement in [same, first, second, cannot_say()] {
            assert_eq!(
                f.settle(fence, settlement).await,
                Settled::Superseded(State::Done)
            );
        }
        let after = f.record(fence.record).await;
        assert_eq!(
            (after.version, after.answer),
            (before.version, before.answer)
        );
        let causes: Vec<_> = (f.events(fence.record).await.into_iter())
            .skip(3)
            .map(|event| event.cause)
            .collect();
        assert_eq!(causes[0], "superseded:same");
        assert_eq!(causes.len(), 4);
    }
}

pub(crate) async fn late_success_after_rejected_is_an_alarm(open: Open) {
    let f = open.one().await;
    let fence = f.settled(refund("a"), cannot_say()).await;
    let rejected = Verdict::Rejected(answer(422, "by hand"));
    let before = f.resolve(fence.record, rejected).await.unwrap();
    for _ in 0..2 {
        assert_eq!(f.settle(fence, success()).await, Settled::Alarm);
    }
    let after = f.record(fence.record).await;
    // What Tiki was told stays what it is told.
    assert_eq!((after.state, &after.answer), (State::Done, &before.answer));
    assert!(after.alarmed && after.version > before.version);
    assert_eq!(f.last_cause(fence.record).await, "alarm:success");
    // Taken back, it is not sent again either.
    f.reopen(fence.record).await.unwrap();
    f.hands.advance(MAY_RUN);
    assert_is!(
        f.resolve(fence.record, Verdict::NotApplied).await,
        Err(ResolveError::NoFurtherRelease)
    );
}

pub(crate) async fn success_of_a_forgotten_attempt_is_an_alarm(open: Open) {
    let f = open.one().await;
    let forgotten = |fence: Fence| {
        [
            Fence {
                owner: TWO,
                ..fence
            },
            Fence {
                attempt: fence.attempt + 1,
                ..fence
            },
        ]
    };
    for which in 0..2 {
        let message = format!("running {which}");
        let fence = f.granted(refund(&message)).await;
        let stranger = forgotten(fence)[which];
        assert_eq!(f.settle(stranger, success()).await, Settled::Alarm);
        assert_eq!(f.state(fence.record).await, State::Claimed);
        assert_is!(f.ledger.permit(fence).await, Err(PermitError::Fenced));

        let message = format!("released {which}");
        let fence = f.settled(refund(&message), not_applied()).await;
        let stranger = forgotten(fence)[which];
        assert_eq!(f.settle(stranger, success()).await, Settled::Alarm);
        assert_is!(f.claim(refund(&message)).await, ClaimOutcome::Held(..));
    }
}

pub(crate) async fn late_answers_after_not_applied(open: Open) {
    let f = open.one().await;
    let released = async |message| {
        let fence = f.settled(refund(message), cannot_say()).await;
        f.resolve_by_force(fence.record, Verdict::NotApplied)
            .await
            .unwrap();
        fence
    };
    let fence = released("a").await;
    assert_eq!(
        f.settle(fence, success()).await,
        Settled::Recorded(State::Done)
    );
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Done(..));
    // Nothing else stands against the person's word.
    let fence = released("b").await;
    for settlement in [declined(), not_applied(), cannot_say()] {
        assert_eq!(
            f.settle(fence, settlement).await,
            Settled::Superseded(State::Released)
        );
    }
    assert_eq!(f.granted(refund("b")).await.attempt, 2);
}

pub(crate) async fn late_success_beside_a_newer_attempt_is_an_alarm(open: Open) {
    let f = open.one().await;
    let cases = [
        ("claimed", None, State::Claimed),
        ("released", Some(not_applied()), State::Unknown),
        ("unknown", Some(cannot_say()), State::Unknown),
        ("done", Some(declined()), State::Done),
    ];
    for (message, newer, state) in cases {
        let (first, second) = f.claimed_twice(message).await;
        if let Some(newer) = newer {
            f.settle(second, newer).await;
        }
        let before = f.record(first.record).await;
        assert!(!before.alarmed);
        assert_eq!(f.settle(first, success()).await, Settled::Alarm);
        let after = f.record(first.record).await;
        assert!(after.alarmed && after.version > before.version);
        assert_eq!((after.state, after.attempt), (state, 2), "{message}");
        assert_eq!(after.answer, before.answer);
        let event = f.events(first.record).await.pop().unwrap();
        assert_eq!((event.attempt, &*event.cause), (1, "alarm:success"));
        assert_eq!(f.settle(first, success()).await, Settled::Alarm);
        assert_eq!(f.record(first.record).await.version, after.version);
        assert_is!(f.ledger.permit(second).await, Err(PermitError::Fenced));
    }
}

pub(crate) async fn alarmed_release_becomes_unknown(open: Open) {
    let f = open.one().await;
    let (first, second) = f.claimed_twice("a").await;
    f.settle(first, success()).await;
    assert_eq!(
        f.settle(second, not_applied()).await,
        Settled::Recorded(State::Unknown)
    );
    assert_eq!(
        f.settle(second, not_applied()).await,
        Settled::Recorded(State::Unknown)
    );
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Held(..));
    f.hands.advance(MAY_RUN);
    assert_is!(
        f.resolve(first.record, Verdict::NotApplied).await,
        Err(ResolveError::NoFurtherRelease)
    );
    assert_is!(
        f.resolve_by_force(first.record, Verdict::NotApplied).await,
        Err(ResolveError::NoFurtherRelease)
    );
    let applied = Verdict::Applied(answer(200, "by hand"));
    let record = f.resolve(first.record, applied).await.unwrap();
    assert_eq!((record.state, record.alarmed), (State::Done, true));
}

pub(crate) async fn alarmed_lapse_becomes_unknown(open: Open) {
    let f = open.one().await;
    let (first, second) = f.claimed_twice("a").await;
    f.settle(first, success()).await;
    assert_eq!(f.ledger.lapse(TWO).await.unwrap(), 1);
    assert_eq!(f.state(first.record).await, State::Unknown);
    // The newer attempt's own answer still ends it.
    assert_eq!(
        f.settle(second, success()).await,
        Settled::Recorded(State::Done)
    );
}

pub(crate) async fn overtaken_attempts_change_nothing(open: Open) {
    let f = open.one().await;
    let (first, second) = f.claimed_twice("a").await;
    let before = f.record(first.record).await;
    for settlement in [declined(), not_applied(), cannot_say()] {
        assert_eq!(
            f.settle(first, settlement).await,
            Settled::Superseded(State::Claimed)
        );
    }
    let after = f.record(first.record).await;
    assert_eq!((after.version, after.alarmed), (before.version, false));
    assert!(f.ledger.permit(second).await.is_ok());
    assert_eq!(
        f.settle(second, success()).await,
        Settled::Recorded(State::Done)
    );
}

pub(crate) async fn overtaken_resends_raise_no_alarm(open: Open) {
    let f = open.one().await;
    let first = f.settled(notice("a"), cannot_say()).await;
    let second = f.granted(notice("a")).await;
    assert_eq!(
        f.settle(first, success()).await,
        Settled::Superseded(State::Claimed)
    );
    assert!(!f.record(first.record).await.alarmed);
    assert_eq!(
        f.settle(second, not_applied()).await,
        Settled::Recorded(State::Released)
    );
}
