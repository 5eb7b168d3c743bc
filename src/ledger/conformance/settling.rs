//! What an owner says of its own attempt.

use super::*;

pub(crate) async fn each_class_has_its_state(open: Open) {
    let f = open.one().await;
    let cases = [
        (refund("a"), success(), State::Done),
        (refund("b"), declined(), State::Done),
        (refund("c"), not_applied(), State::Released),
        (refund("d"), cannot_say(), State::Unknown),
        (notice("e"), success(), State::Done),
        (notice("f"), not_applied(), State::Released),
        (notice("g"), cannot_say(), State::Released),
    ];
    for (claim, settlement, state) in cases {
        let fence = f.granted(claim).await;
        f.hands.advance(Duration::from_secs(1));
        let before = f.record(fence.record).await.version;
        assert_eq!(f.settle(fence, settlement).await, Settled::Recorded(state));
        let record = f.record(fence.record).await;
        assert_eq!((record.state, record.updated_at), (state, f.now()));
        assert!(record.version > before);
        assert_eq!(record.answer.is_some(), state == State::Done);
    }
}

pub(crate) async fn saying_it_again_changes_nothing(open: Open) {
    let f = open.one().await;
    let cases = [
        (refund("a"), success()),
        (refund("b"), declined()),
        (refund("c"), not_applied()),
        (refund("d"), cannot_say()),
        (notice("e"), cannot_say()),
    ];
    for (claim, settlement) in cases {
        let fence = f.granted(claim).await;
        let first = f.settle(fence, settlement.clone()).await;
        let before = f.record(fence.record).await;
        f.hands.advance(Duration::from_secs(1));
        assert_eq!(f.settle(fence, settlement).await, first);
        let after = f.record(fence.record).await;
        assert_eq!(
            (after.version, after.updated_at),
            (before.version, before.updated_at)
        );
        assert_eq!(f.events(fence.record).await.len(), 2);
    }
}

pub(crate) async fn strangers_settle_nothing(open: Open) {
    let f = open.one().await;
    let fence = f.granted(refund("a")).await;
    let strangers = [
        Fence {
            owner: TWO,
            ..fence
        },
        Fence {
            attempt: 2,
            ..fence
        },
        Fence {
            attempt: 0,
            ..fence
        },
    ];
    for stranger in strangers {
        for settlement in [declined(), not_applied(), cannot_say()] {
            assert_eq!(
                f.settle(stranger, settlement).await,
                Settled::Superseded(State::Claimed)
            );
        }
        assert_is!(f.ledger.permit(stranger).await, Err(PermitError::Fenced));
    }
    assert_eq!(f.state(fence.record).await, State::Claimed);
    // No attempt is numbered 0: no success of one is believed.
    let never = Fence {
        attempt: 0,
        ..fence
    };
    assert_eq!(
        f.settle(never, success()).await,
        Settled::Superseded(State::Claimed)
    );
    assert_eq!(f.last_cause(fence.record).await, "superseded:success");
    let nowhere = Fence {
        record: RecordId(u64::from(u32::MAX)),
        ..fence
    };
    assert_eq!(
        f.settle(nowhere, success()).await,
        Settled::Superseded(State::Done)
    );
    assert_is!(f.ledger.permit(nowhere).await, Err(PermitError::Fenced));
}

pub(crate) async fn final_answers_stay(open: Open) {
    let f = open.one().await;
    let fence = f.settled(refund("a"), success()).await;
    let before = f.record(fence.record).await;
    for settlement in [declined(), not_applied(), cannot_say()] {
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
    assert_eq!(f.events(fence.record).await.len(), 5);
}

pub(crate) async fn permits_follow_the_claim(open: Open) {
    let f = open.one().await;
    let fence = f.granted(refund("a")).await;
    let permit = f.ledger.permit(fence).await.unwrap();
    let from_now = permit
        .valid_until
        .saturating_duration_since(std::time::Instant::now());
    assert!(from_now > Duration::ZERO && from_now <= Duration::from_secs(5));
    f.settle(fence, not_applied()).await;
    assert_is!(f.ledger.permit(fence).await, Err(PermitError::Fenced));

    let second = f.granted(refund("a")).await;
    assert_is!(f.ledger.permit(fence).await, Err(PermitError::Fenced));
    assert!(f.ledger.permit(second).await.is_ok());
    f.ledger.lapse(ONE).await.unwrap();
    assert_is!(f.ledger.permit(second).await, Err(PermitError::Fenced));
}

pub(crate) async fn permits_end_with_the_time_that_was_asked_for(open: Open) {
    let f = open.one().await;
    let fence = f.granted(refund("a")).await;
    f.hands.advance(MAY_RUN - Duration::from_secs(1));
    let before = std::time::Instant::now();
    let permit = f.ledger.permit(fence).await.unwrap();
    assert!(permit.valid_until < before + Duration::from_secs(5));
    f.hands.advance(Duration::from_secs(1));
    assert_is!(f.ledger.permit(fence).await, Err(PermitError::Fenced));
    // What is known of it is still recorded.
    assert_eq!(
        f.settle(fence, not_applied()).await,
        Settled::Recorded(State::Released)
    );
}
