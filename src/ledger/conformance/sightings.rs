//! How far a look at the backend is trusted.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn cannot_see() -> Seen {
    Seen::CantSay("probe_timeout".into())
}

/// An unknown record whose attempt is over.
async fn over(f: &Fixture, message: &str) -> Fence {
    let fence = f.settled(refund(message), cannot_say()).await;
    f.hands.advance(MAY_RUN);
    fence
}

async fn state_after(f: &Fixture, fence: Fence, seen: Seen) -> State {
    let record = f.sighted(fence.record, seen).await.unwrap();
    assert_eq!(record.state, f.state(fence.record).await);
    record.state
}

pub(crate) async fn applied_ends_it_at_once(open: Open) {
    let f = open.one().await;
    // Even while the attempt may run.
    let fence = f.settled(refund("a"), cannot_say()).await;
    let kept = answer(200, "seen");
    let record = f
        .sighted(fence.record, Seen::Applied(kept.clone()))
        .await
        .unwrap();
    assert_eq!((record.state, record.answer), (State::Done, Some(kept)));
    assert!(record.declared);
    assert_eq!(record.expires_at, f.now() + KEEP);
    let event = f.events(fence.record).await.pop().unwrap();
    assert_eq!((&*event.cause, event.by), ("probe_applied", None));
    // What the attempt itself says then is only noted.
    assert_eq!(
        f.settle(fence, declined()).await,
        Settled::Superseded(State::Done)
    );
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Done(_, kept)
        if kept == answer(200, "seen"));
}

pub(crate) async fn not_applied_counts_twice_a_pause_apart(open: Open) {
    let f = open.one().await;
    let fence = over(&f, "a").await;
    let before = f.record(fence.record).await;
    assert_eq!(
        state_after(&f, fence, Seen::NotApplied).await,
        State::Unknown
    );
    assert_eq!(f.last_cause(fence.record).await, "probe_not_applied");
    let after = f.record(fence.record).await;
    assert_eq!(after.updated_at, before.updated_at);
    f.hands.advance(SIGHTING_PAUSE - SECOND);
    for _ in 0..3 {
        assert_eq!(
            state_after(&f, fence, Seen::NotApplied).await,
            State::Unknown
        );
    }
    assert_eq!(f.events(fence.record).await.len(), 3);
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Held(..));
    f.hands.advance(SECOND);
    assert_eq!(
        state_after(&f, fence, Seen::NotApplied).await,
        State::Released
    );
    let record = f.record(fence.record).await;
    assert!(record.declared && record.version > after.version);
    assert_eq!(f.events(fence.record).await.len(), 4);
    assert_eq!(f.granted(refund("a")).await.attempt, 2);
}

pub(crate) async fn anything_between_starts_it_over(open: Open) {
    let f = open.one().await;
    let fence = over(&f, "a").await;
    // Said first, it changes nothing.
    state_after(&f, fence, cannot_see()).await;
    assert_eq!(f.events(fence.record).await.len(), 2);
    state_after(&f, fence, Seen::NotApplied).await;
    f.hands.advance(SIGHTING_PAUSE);
    assert_eq!(state_after(&f, fence, cannot_see()).await, State::Unknown);
    assert_eq!(f.last_cause(fence.record).await, "probe:probe_timeout");
    assert_eq!(
        state_after(&f, fence, Seen::NotApplied).await,
        State::Unknown
    );
    f.hands.advance(SIGHTING_PAUSE);
    assert_eq!(
        state_after(&f, fence, Seen::NotApplied).await,
        State::Released
    );
}

pub(crate) async fn a_clock_that_goes_back_starts_it_over(open: Open) {
    let f = open.one().await;
    let fence = over(&f, "a").await;
    f.hands.advance(SIGHTING_PAUSE);
    state_after(&f, fence, Seen::NotApplied).await;
    f.hands.set_back(SECOND);
    for _ in 0..2 {
        assert_eq!(
            state_after(&f, fence, Seen::NotApplied).await,
            State::Unknown
        );
    }
    f.hands.advance(SIGHTING_PAUSE);
    assert_eq!(
        state_after(&f, fence, Seen::NotApplied).await,
        State::Released
    );
}

pub(crate) async fn not_applied_waits_for_the_attempt_to_be_over(open: Open) {
    let f = open.one().await;
    let fence = f.settled(refund("a"), cannot_say()).await;
    f.hands.advance(MAY_RUN - SECOND);
    // "Not there" may be "not there yet": it is not even the first of two.
    state_after(&f, fence, Seen::NotApplied).await;
    f.hands.advance(SECOND + SIGHTING_PAUSE);
    assert_eq!(
        state_after(&f, fence, Seen::NotApplied).await,
        State::Unknown
    );
    f.hands.advance(SIGHTING_PAUSE);
    assert_eq!(
        state_after(&f, fence, Seen::NotApplied).await,
        State::Released
    );
}

pub(crate) async fn a_look_releases_once_in_a_records_life(open: Open) {
    let f = open.one().await;
    let fence = over(&f, "a").await;
    state_after(&f, fence, Seen::NotApplied).await;
    f.hands.advance(SIGHTING_PAUSE);
    state_after(&f, fence, Seen::NotApplied).await;
    let second = over(&f, "a").await;
    assert_eq!(second.attempt, 2);
    for _ in 0..3 {
        assert_eq!(
            state_after(&f, second, Seen::NotApplied).await,
            State::Unknown
        );
        f.hands.advance(SIGHTING_PAUSE);
    }
    // A person does, and that gives the look no further right.
    f.resolve(second.record, Verdict::NotApplied).await.unwrap();
    let third = over(&f, "a").await;
    for _ in 0..3 {
        assert_eq!(
            state_after(&f, third, Seen::NotApplied).await,
            State::Unknown
        );
        f.hands.advance(SIGHTING_PAUSE);
    }
    // "Applied" it may still say.
    let applied = Seen::Applied(answer(200, "seen"));
    assert_eq!(state_after(&f, third, applied).await, State::Done);
}

pub(crate) async fn a_first_look_says_nothing_of_a_later_attempt(open: Open) {
    let f = open.one().await;
    let fence = over(&f, "a").await;
    state_after(&f, fence, Seen::NotApplied).await;
    f.resolve(fence.record, Verdict::NotApplied).await.unwrap();
    let second = over(&f, "a").await;
    assert_eq!(
        state_after(&f, second, Seen::NotApplied).await,
        State::Unknown
    );
}

pub(crate) async fn success_after_a_looks_release_is_believed(open: Open) {
    let f = open.one().await;
    let released = async |message| {
        let fence = over(&f, message).await;
        state_after(&f, fence, Seen::NotApplied).await;
        f.hands.advance(SIGHTING_PAUSE);
        state_after(&f, fence, Seen::NotApplied).await;
        fence
    };
    let fence = released("a").await;
    assert_eq!(
        f.settle(fence, declined()).await,
        Settled::Superseded(State::Released)
    );
    assert_eq!(
        f.settle(fence, success()).await,
        Settled::Recorded(State::Done)
    );
    // Beside a newer attempt it is an alarm, and no look releases it any more.
    let fence = released("b").await;
    let second = f.settled(refund("b"), cannot_say()).await;
    assert_eq!(f.settle(fence, success()).await, Settled::Alarm);
    f.hands.advance(MAY_RUN);
    for _ in 0..3 {
        assert_eq!(
            state_after(&f, second, Seen::NotApplied).await,
            State::Unknown
        );
        f.hands.advance(SIGHTING_PAUSE);
    }
}

pub(crate) async fn an_alarm_ends_what_looks_may_release(open: Open) {
    let f = open.one().await;
    let (first, second) = f.claimed_twice("a").await;
    f.settle(second, cannot_say()).await;
    f.hands.advance(MAY_RUN);
    state_after(&f, second, Seen::NotApplied).await;
    f.settle(first, success()).await;
    f.hands.advance(SIGHTING_PAUSE);
    assert_eq!(
        state_after(&f, second, Seen::NotApplied).await,
        State::Unknown
    );
}

pub(crate) async fn looks_compare_before_they_set(open: Open) {
    let f = open.one().await;
    let fence = over(&f, "a").await;
    let record = f.record(fence.record).await;
    let (state, attempt, version) = (record.state, record.attempt, record.version);
    let others = [
        (State::Released, attempt, version),
        (state, attempt + 1, version),
        (state, attempt, version + 1),
    ];
    let seen = [
        Seen::NotApplied,
        cannot_see(),
        Seen::Applied(answer(200, "seen")),
    ];
    for expected in others {
        for seen in seen.clone() {
            let sighting = Sighting {
                id: record.id,
                expected,
                seen,
            };
            assert_is!(f.ledger.sighted(sighting).await, Err(ResolveError::Changed(now))
                if now.version == version);
        }
    }
    let nowhere = Sighting {
        id: RecordId(u64::from(u32::MAX)),
        expected: (state, attempt, version),
        seen: Seen::NotApplied,
    };
    assert_is!(f.ledger.sighted(nowhere).await, Err(ResolveError::NotFound));
    for (claim, settlement) in [
        (refund("running"), None),
        (refund("released"), Some(not_applied())),
        (refund("done"), Some(success())),
    ] {
        let fence = f.come_to(claim, settlement).await;
        for seen in seen.clone() {
            assert_is!(
                f.sighted(fence.record, seen).await,
                Err(ResolveError::NotUnknown(_))
            );
        }
    }
    assert_eq!(f.record(fence.record).await.version, version);
}

pub(crate) async fn a_gap_can_be_looked_into(open: Open) {
    let f = open.one().await;
    let old = f.settled(refund("old"), cannot_say()).await;
    f.hands.advance(MAY_RUN);
    f.quarantined().await;
    let gap = f.held(refund("a")).await;
    let other = f.held(refund("b")).await;
    let applied = Seen::Applied(answer(200, "seen"));
    assert_eq!(f.sighted(other, applied).await.unwrap().state, State::Done);
    // What was forgotten may be running.
    f.sighted(gap, Seen::NotApplied).await.unwrap();
    f.hands.advance(MAY_RUN);
    let not_yet = f.sighted(gap, Seen::NotApplied).await.unwrap();
    assert_eq!(not_yet.state, State::Unknown);
    f.hands.advance(SIGHTING_PAUSE);
    let record = f.sighted(gap, Seen::NotApplied).await.unwrap();
    assert_eq!(record.state, State::Released);
    assert_eq!(f.granted(refund("a")).await.attempt, 1);
    // Unknown before the ledger forgot: a later attempt of it may be running now.
    for _ in 0..3 {
        assert_eq!(state_after(&f, old, Seen::NotApplied).await, State::Unknown);
        f.hands.advance(SIGHTING_PAUSE);
    }
    f.lifted().await;
    state_after(&f, old, Seen::NotApplied).await;
    f.hands.advance(SIGHTING_PAUSE);
    assert_eq!(
        state_after(&f, old, Seen::NotApplied).await,
        State::Released
    );
}

pub(crate) async fn endless_looks_leave_bounded_events(open: Open) {
    let f = open.one().await;
    let fence = over(&f, "a").await;
    for _ in 0..200 {
        state_after(&f, fence, Seen::NotApplied).await;
        state_after(&f, fence, cannot_see()).await;
    }
    let events = f.events(fence.record).await;
    assert!(events.len() <= 100, "{}", events.len());
    assert_eq!(&*events[0].cause, "claimed");
    assert_eq!(&*events[events.len() - 1].cause, "probe:probe_timeout");
    assert!(
        (events.iter()).any(|event| event.cause.ends_with(" events not kept")),
        "{events:?}"
    );
}
