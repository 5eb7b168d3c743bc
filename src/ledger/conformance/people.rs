//! What people, and the death of an owner, do to records.

use super::*;

pub(crate) async fn resolutions_end_an_unknown(open: Open) {
    let f = open.one().await;
    let by_hand = answer(200, "by hand");
    let refused = answer(422, "by hand");
    let cases = [
        (
            Verdict::Applied(by_hand.clone()),
            State::Done,
            Some(by_hand),
        ),
        (
            Verdict::Rejected(refused.clone()),
            State::Done,
            Some(refused),
        ),
        (Verdict::NotApplied, State::Released, None),
    ];
    let causes = [
        "resolved_applied",
        "resolved_rejected",
        "resolved_not_applied",
    ];
    for (number, (verdict, state, kept)) in cases.into_iter().enumerate() {
        let message = number.to_string();
        let fence = f.settled(refund(&message), cannot_say()).await;
        f.hands.advance(MAY_RUN);
        let before = f.record(fence.record).await;
        let record = f.resolve(fence.record, verdict).await.unwrap();
        assert_eq!((record.state, &record.answer), (state, &kept));
        assert!(record.version > before.version);
        let event = f.events(fence.record).await.pop().unwrap();
        let who = Some(("linh".to_owned(), "the bank's statement".to_owned()));
        assert_eq!((&*event.cause, event.by), (causes[number], who));
        match (f.claim(refund(&message)).await, kept) {
            (ClaimOutcome::Done(_, given), Some(kept)) => assert_eq!(given, kept),
            (ClaimOutcome::Granted(again, _), None) => assert_eq!(again.attempt, 2),
            (other, _) => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn resolving_compares_before_it_sets(open: Open) {
    let f = open.one().await;
    let fence = f.settled(refund("a"), cannot_say()).await;
    let seen = f.record(fence.record).await;
    let applied = Verdict::Applied(answer(200, "by hand"));
    let (state, attempt, version) = (seen.state, seen.attempt, seen.version);
    let others = [
        (State::Claimed, attempt, version),
        (state, attempt + 1, version),
        (state, attempt, version + 1),
        (state, attempt, version - 1),
    ];
    for expected in others {
        let resolution = Resolution {
            expected,
            ..word(&seen, applied.clone())
        };
        assert_is!(f.ledger.resolve(resolution).await, Err(ResolveError::Changed(now))
            if now.version == version);
    }
    f.settle(fence, success()).await;
    assert_is!(
        f.ledger.resolve(word(&seen, applied.clone())).await,
        Err(ResolveError::Changed(now)) if now.state == State::Done
    );

    f.granted(refund("b")).await;
    f.settled(refund("c"), not_applied()).await;
    let filter = Filter {
        limit: 10,
        ..Filter::default()
    };
    for record in f.ledger.list(filter).await.unwrap().records {
        assert_is!(f.ledger.resolve(word(&record, applied.clone())).await,
            Err(ResolveError::NotUnknown(state)) if state == record.state);
    }
    let nowhere = Resolution {
        id: RecordId(u64::from(u32::MAX)),
        ..word(&seen, applied)
    };
    assert_is!(f.ledger.resolve(nowhere).await, Err(ResolveError::NotFound));
}

pub(crate) async fn resolving_wants_name_and_reason(open: Open) {
    let f = open.one().await;
    let fence = f.settled(refund("a"), cannot_say()).await;
    let seen = f.record(fence.record).await;
    let cases = [
        (String::new(), "why".to_owned()),
        ("linh".to_owned(), " \n".to_owned()),
        ("l".repeat(NAME_LIMIT + 1), "why".to_owned()),
        ("linh".to_owned(), "y".repeat(REASON_LIMIT + 1)),
    ];
    for (by, reason) in cases {
        let resolution = Resolution {
            by,
            reason,
            ..word(&seen, Verdict::Applied(answer(200, "")))
        };
        assert_is!(
            f.ledger.resolve(resolution).await,
            Err(ResolveError::NoReason)
        );
    }
    assert_eq!(f.record(fence.record).await.version, seen.version);
}

pub(crate) async fn not_applied_waits_for_the_attempt(open: Open) {
    let f = open.one().await;
    let fence = f.granted(refund("a")).await;
    let until = f.now() + MAY_RUN;
    f.hands.advance(MAY_RUN - Duration::from_secs(1));
    f.settle(fence, cannot_say()).await;
    assert_is!(f.resolve(fence.record, Verdict::NotApplied).await,
        Err(ResolveError::MayStillRun { until: told }) if told == until);
    assert_eq!(f.state(fence.record).await, State::Unknown);
    let record = f
        .resolve_by_force(fence.record, Verdict::NotApplied)
        .await
        .unwrap();
    assert_eq!(record.state, State::Released);
    assert_eq!(
        f.last_cause(fence.record).await,
        "resolved_not_applied_forced"
    );

    // A shorter second attempt doesn't make the first one's time shorter.
    let short = Claim {
        may_run_for: Duration::ZERO,
        ..refund("a")
    };
    let second = f.settled(short, cannot_say()).await;
    assert_is!(
        f.resolve(second.record, Verdict::NotApplied).await,
        Err(ResolveError::MayStillRun { .. })
    );
    f.hands.advance(Duration::from_secs(1));
    f.resolve(second.record, Verdict::NotApplied).await.unwrap();
}

pub(crate) async fn lapse_takes_an_owners_claims(open: Open) {
    let f = open.one().await;
    let held = f.granted(refund("a")).await;
    let resent = f.granted(notice("b")).await;
    let done = f.settled(refund("c"), success()).await;
    let others = Claim {
        owner: TWO,
        ..refund("d")
    };
    let others = f.granted(others).await;
    assert_eq!(f.ledger.lapse(ONE).await.unwrap(), 2);
    assert_eq!(f.ledger.lapse(ONE).await.unwrap(), 0);
    let expected = [
        (held, State::Unknown),
        (resent, State::Released),
        (done, State::Done),
        (others, State::Claimed),
    ];
    for (fence, state) in expected {
        assert_eq!(f.state(fence.record).await, state);
    }
    assert_eq!(f.last_cause(held.record).await, "owner_lapsed");
    assert_eq!(f.last_cause(resent.record).await, "owner_lapsed");
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Held(..));
    assert_eq!(f.granted(notice("b")).await.attempt, 2);
    // The owner was alive after all.
    assert_eq!(
        f.settle(held, success()).await,
        Settled::Recorded(State::Done)
    );
}
