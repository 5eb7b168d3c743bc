//! Words that are taken back.

use super::*;

fn applied() -> Verdict {
    Verdict::Applied(answer(200, "by hand"))
}

async fn resolved(f: &Fixture, message: &str, verdict: Verdict) -> Fence {
    let fence = f.settled(refund(message), cannot_say()).await;
    f.resolve_by_force(fence.record, verdict).await.unwrap();
    fence
}

/// Released by two looks at the backend.
async fn seen_twice(f: &Fixture, message: &str) -> Fence {
    let fence = f.settled(refund(message), cannot_say()).await;
    f.hands.advance(MAY_RUN);
    for _ in 0..2 {
        f.sighted(fence.record, Seen::NotApplied).await.unwrap();
        f.hands.advance(SIGHTING_PAUSE);
    }
    assert_eq!(f.state(fence.record).await, State::Released);
    fence
}

pub(crate) async fn every_word_can_be_taken_back(open: Open) {
    let f = open.one().await;
    let mut fences = vec![
        resolved(&f, "applied", applied()).await,
        resolved(&f, "rejected", Verdict::Rejected(answer(500, "by hand"))).await,
        resolved(&f, "not applied", Verdict::NotApplied).await,
        seen_twice(&f, "seen twice").await,
    ];
    let seen = f.settled(refund("seen"), cannot_say()).await;
    f.sighted(seen.record, Seen::Applied(answer(200, "seen")))
        .await
        .unwrap();
    fences.push(seen);
    for fence in fences {
        let before = f.record(fence.record).await;
        let record = f.reopen(fence.record).await.unwrap();
        assert_eq!(
            (record.state, &record.answer, record.declared),
            (State::Unknown, &None, false)
        );
        assert_eq!(record.hold, Some(Hold::OutcomeUnknown));
        assert_eq!(record.attempt, before.attempt);
        assert!(record.version > before.version);
        let event = f.events(fence.record).await.pop().unwrap();
        let who = (
            "minh".to_owned(),
            "the statement was of another day".to_owned(),
        );
        assert_eq!((&*event.cause, event.by), ("reopened", Some(who)));
        assert_is!(
            f.claim(refund(&before.key.message)).await,
            ClaimOutcome::Held(_, Hold::OutcomeUnknown)
        );
        // Taken back once, there is nothing left to take back.
        assert_is!(f.reopen(fence.record).await, Err(ResolveError::NotDeclared));
        // And another word ends it again.
        f.resolve(fence.record, applied()).await.unwrap();
        assert_is!(
            f.claim(refund(&before.key.message)).await,
            ClaimOutcome::Done(..)
        );
    }
}

pub(crate) async fn the_backends_own_answer_stays(open: Open) {
    let f = open.one().await;
    let cases = [
        ("running", None),
        ("done", Some(success())),
        ("declined", Some(declined())),
        ("not sent", Some(not_applied())),
        ("unknown", Some(cannot_say())),
    ];
    for (message, settlement) in cases {
        let fence = f.come_to(refund(message), settlement).await;
        let before = f.record(fence.record).await;
        assert_is!(f.reopen(fence.record).await, Err(ResolveError::NotDeclared));
        let after = f.record(fence.record).await;
        assert_eq!(
            (after.state, after.version, after.answer),
            (before.state, before.version, before.answer)
        );
    }
    // A word that the backend's own answer came after is a word no longer.
    let fence = resolved(&f, "late", Verdict::NotApplied).await;
    f.settle(fence, success()).await;
    assert_is!(f.reopen(fence.record).await, Err(ResolveError::NotDeclared));
    let (_, second) = f.claimed_twice("again").await;
    assert_is!(
        f.reopen(second.record).await,
        Err(ResolveError::NotDeclared)
    );
    f.settle(second, success()).await;
    assert_is!(
        f.reopen(second.record).await,
        Err(ResolveError::NotDeclared)
    );
}

pub(crate) async fn reopening_compares_before_it_sets(open: Open) {
    let f = open.one().await;
    let fence = resolved(&f, "a", Verdict::NotApplied).await;
    let record = f.record(fence.record).await;
    let (state, attempt, version) = (record.state, record.attempt, record.version);
    let others = [
        (State::Unknown, attempt, version),
        (state, attempt + 1, version),
        (state, attempt, version - 1),
    ];
    for expected in others {
        let wish = Reopening {
            expected,
            ..reopening(&record)
        };
        assert_is!(f.ledger.reopen(wish).await, Err(ResolveError::Changed(now))
            if now.version == version);
    }
    let nowhere = Reopening {
        id: RecordId(u64::from(u32::MAX)),
        ..reopening(&record)
    };
    assert_is!(f.ledger.reopen(nowhere).await, Err(ResolveError::NotFound));
    // Claimed meanwhile: it runs, and the wish comes too late.
    let second = f.granted(refund("a")).await;
    assert_is!(f.ledger.reopen(reopening(&record)).await, Err(ResolveError::Changed(now))
        if now.state == State::Claimed);
    assert!(f.ledger.permit(second).await.is_ok());
}

pub(crate) async fn reopening_wants_name_and_reason(open: Open) {
    let f = open.one().await;
    let fence = resolved(&f, "a", applied()).await;
    let record = f.record(fence.record).await;
    let cases = [
        (String::new(), "why".to_owned()),
        ("minh".to_owned(), " \t".to_owned()),
        ("m".repeat(NAME_LIMIT + 1), "why".to_owned()),
        ("minh".to_owned(), "y".repeat(REASON_LIMIT + 1)),
    ];
    for (by, reason) in cases {
        let wish = Reopening {
            by,
            reason,
            ..reopening(&record)
        };
        assert_is!(f.ledger.reopen(wish).await, Err(ResolveError::NoReason));
    }
    assert_eq!(f.record(fence.record).await.version, record.version);
}

pub(crate) async fn a_claim_and_a_reopening_race_for_one_release(open: Open) {
    let f = open.one().await;
    let ledger = &f.ledger;
    for round in 0..30 {
        let message = round.to_string();
        let fence = resolved(&f, &message, Verdict::NotApplied).await;
        let record = f.record(fence.record).await;
        let (reopened, granted) = concurrency::two_at_once(
            async || ledger.reopen(reopening(&record)).await.is_ok(),
            async || {
                let outcome = ledger.claim(refund(&message)).await.unwrap();
                matches!(outcome, ClaimOutcome::Granted(..))
            },
        );
        assert_ne!(reopened, granted);
        let state = if granted {
            State::Claimed
        } else {
            State::Unknown
        };
        assert_eq!(f.state(fence.record).await, state);
    }
}

pub(crate) async fn only_a_person_or_an_answer_ends_what_was_taken_back(open: Open) {
    let f = open.one().await;
    let reopened = async |message| {
        let fence = resolved(&f, message, Verdict::NotApplied).await;
        f.reopen(fence.record).await.unwrap();
        fence
    };
    let fence = reopened("a").await;
    let settlements = [not_applied(), cannot_say()];
    for settlement in settlements {
        assert_eq!(
            f.settle(fence, settlement).await,
            Settled::Recorded(State::Unknown)
        );
    }
    f.hands.advance(MAY_RUN);
    let looks = [
        Seen::NotApplied,
        Seen::NotApplied,
        Seen::CantSay("probe_timeout".into()),
        Seen::Applied(answer(200, "seen")),
    ];
    for seen in looks {
        let record = f.sighted(fence.record, seen).await.unwrap();
        assert_eq!(record.state, State::Unknown);
        f.hands.advance(SIGHTING_PAUSE);
    }
    assert_is!(
        f.claim(refund("a")).await,
        ClaimOutcome::Held(_, Hold::OutcomeUnknown)
    );
    // The proof came too: a person sees it.
    let causes = f.events(fence.record).await;
    assert!(
        causes
            .iter()
            .any(|event| event.cause == "held:connect_refused")
    );
    f.resolve(fence.record, Verdict::NotApplied).await.unwrap();
    // Spoken of again, it is a record like any other.
    let second = f.settled(refund("a"), cannot_say()).await;
    assert_eq!(
        f.settle(second, not_applied()).await,
        Settled::Recorded(State::Released)
    );
    // The backend's own final answer is better than any word.
    for (message, settlement) in [("b", success()), ("c", declined())] {
        let fence = reopened(message).await;
        assert_eq!(
            f.settle(fence, settlement).await,
            Settled::Recorded(State::Done)
        );
    }
}

pub(crate) async fn an_unsent_attempt_leaves_the_word_standing(open: Open) {
    let f = open.one().await;
    // Released by the second attempt's proof, and still by what was said of the first.
    let (first, second) = f.claimed_twice("a").await;
    f.settle(second, not_applied()).await;
    let record = f.reopen(first.record).await.unwrap();
    assert_eq!((record.state, record.attempt), (State::Unknown, 2));
    // The second attempt's proof says nothing of the first.
    assert_eq!(
        f.settle(second, not_applied()).await,
        Settled::Recorded(State::Unknown)
    );
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Held(..));
    assert_eq!(f.settle(first, success()).await, Settled::Alarm);
    // Said by looks, the same.
    let first = seen_twice(&f, "b").await;
    f.settled(refund("b"), not_applied()).await;
    let record = f.reopen(first.record).await.unwrap();
    assert_eq!(record.state, State::Unknown);
}

pub(crate) async fn what_was_given_up_is_in_doubt_again(open: Open) {
    let f = open.one().await;
    f.settled(notice("a"), cannot_say()).await;
    let second = f.settled(notice("a"), cannot_say()).await;
    f.held(refund("a")).await;
    f.hands.advance(MAY_RUN);
    f.resolve(second.record, Verdict::NotApplied).await.unwrap();
    f.reopen(second.record).await.unwrap();
    assert_eq!(
        f.settle(second, not_applied()).await,
        Settled::Recorded(State::Unknown)
    );
    assert_is!(f.claim(notice("a")).await, ClaimOutcome::Held(..));
}

pub(crate) async fn what_it_was_held_for_holds_it_again(open: Open) {
    let f = open.one().await;
    f.settled(payment("sent", true), success()).await;
    for verdict in [
        Verdict::NotApplied,
        Verdict::Rejected(answer(500, "by hand")),
        applied(),
    ] {
        let message = format!("{verdict:?}");
        let id = f.held(payment(&message, true)).await;
        f.resolve(id, verdict).await.unwrap();
        let record = f.reopen(id).await.unwrap();
        assert_eq!(record.hold, Some(Hold::PossibleDuplicate));
        assert_is!(
            f.sighted(id, Seen::NotApplied).await,
            Err(ResolveError::NeverSent)
        );
        assert_is!(
            f.claim(payment(&message, true)).await,
            ClaimOutcome::Held(_, Hold::PossibleDuplicate)
        );
    }
    // Sent since, it is held for what became of that.
    let id = f.held(payment("let pass", true)).await;
    f.resolve(id, Verdict::NotApplied).await.unwrap();
    f.settled(payment("let pass", true), cannot_say()).await;
    f.resolve(id, applied()).await.unwrap();
    let record = f.reopen(id).await.unwrap();
    assert_eq!(record.hold, Some(Hold::OutcomeUnknown));

    let known = f.settled(refund("known"), not_applied()).await;
    f.quarantined().await;
    f.held(refund("known")).await;
    f.hands.advance(MAY_RUN);
    f.resolve(known.record, Verdict::NotApplied).await.unwrap();
    let record = f.reopen(known.record).await.unwrap();
    assert_eq!(record.hold, Some(Hold::LedgerGap));
    // The attempt that the ledger knows says nothing of those that it forgot.
    assert_eq!(
        f.settle(known, not_applied()).await,
        Settled::Recorded(State::Unknown)
    );
    f.lifted().await;
    assert_is!(
        f.claim(refund("known")).await,
        ClaimOutcome::Held(_, Hold::LedgerGap)
    );
}

pub(crate) async fn a_reopened_record_is_not_forgotten(open: Open) {
    let f = open.one().await;
    let fence = resolved(&f, "a", applied()).await;
    f.hands.advance(KEEP);
    f.reopen(fence.record).await.unwrap();
    assert_eq!(f.ledger.sweep(10).await.unwrap(), 0);
    f.resolve(fence.record, applied()).await.unwrap();
    assert_eq!(f.ledger.sweep(10).await.unwrap(), 0);
    let record = f.record(fence.record).await;
    assert_eq!(record.expires_at, f.now() + KEEP);
}
