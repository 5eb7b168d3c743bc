//! What is kept, for how long, and how it is shown.

use super::*;

fn all() -> Filter {
    Filter {
        limit: 100,
        ..Filter::default()
    }
}

async fn listed(f: &Fixture, filter: Filter) -> Vec<RecordId> {
    let page = f.ledger.list(filter).await.unwrap();
    page.records.into_iter().map(|record| record.id).collect()
}

pub(crate) async fn done_is_forgotten_after_its_time(open: Open) {
    let f = open.one().await;
    let fence = f.settled(refund("a"), success()).await;
    let longer = Claim {
        keep: 2 * KEEP,
        ..refund("b")
    };
    f.settled(longer, success()).await;
    f.hands.advance(KEEP - Duration::from_secs(1));
    assert_eq!(f.ledger.sweep(100).await.unwrap(), 0);
    f.hands.advance(Duration::from_secs(1));
    // Past its time, it still holds until it is forgotten.
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Done(..));
    assert_eq!(f.ledger.sweep(100).await.unwrap(), 1);
    assert!(f.ledger.get(fence.record).await.unwrap().is_none());
    assert!(f.events(fence.record).await.is_empty());
    assert_eq!(
        f.settle(fence, success()).await,
        Settled::Superseded(State::Done)
    );
    let again = f.granted(refund("a")).await;
    assert_eq!(again.attempt, 1);
    assert_ne!(again.record, fence.record);
    assert_is!(f.claim(refund("b")).await, ClaimOutcome::Done(..));
}

pub(crate) async fn nothing_else_is_forgotten(open: Open) {
    let f = open.one().await;
    f.granted(refund("a")).await;
    f.settled(refund("b"), not_applied()).await;
    f.settled(refund("c"), cannot_say()).await;
    f.settled(notice("d"), cannot_say()).await;
    f.hands.advance(3 * KEEP);
    assert_eq!(f.ledger.sweep(100).await.unwrap(), 0);
    assert_eq!(f.ledger.stats().await.unwrap().records, [1, 2, 0, 1]);
    // Its time runs from when it is done.
    let fence = f.settled(refund("b"), success()).await;
    assert_eq!(f.record(fence.record).await.expires_at, f.now() + KEEP);
}

pub(crate) async fn sweep_keeps_to_its_limit(open: Open) {
    let f = open.one().await;
    for number in 0..50 {
        f.settled(refund(&number.to_string()), success()).await;
    }
    f.hands.advance(KEEP);
    let mut left = 50;
    for expected in [20, 20, 10, 0] {
        assert_eq!(f.ledger.sweep(20).await.unwrap(), expected);
        left -= expected;
        assert_eq!(f.ledger.stats().await.unwrap().records, [0, 0, left, 0]);
    }
}

pub(crate) async fn list_is_in_order_and_filtered(open: Open) {
    let f = open.one().await;
    let mut ids = Vec::new();
    for number in 0..30 {
        let fence = f.granted(refund(&format!("R-{number:02}"))).await;
        ids.push(fence.record);
    }
    let other = f.settled(notice("r-05"), cannot_say()).await.record;
    ids.push(other);
    assert!(ids.is_sorted());
    assert_eq!(listed(&f, all()).await, ids);
    let page = Filter {
        after: Some(ids[9]),
        limit: 5,
        ..all()
    };
    assert_eq!(listed(&f, page).await, ids[10..15]);
    let end = Filter {
        after: Some(other),
        ..all()
    };
    assert!(listed(&f, end).await.is_empty());
    let released = Filter {
        state: Some(State::Released),
        ..all()
    };
    assert_eq!(listed(&f, released).await, [other]);
    let route = Filter {
        route: Some("notice".to_owned()),
        ..all()
    };
    assert_eq!(listed(&f, route).await, [other]);
    let part = |query: &str| Filter {
        query: Some(query.to_owned()),
        ..all()
    };
    assert_eq!(listed(&f, part("R-05")).await, [ids[5]]);
    assert_eq!(listed(&f, part("-2")).await, ids[20..30]);
    assert!(listed(&f, part("%")).await.is_empty());
    assert!(listed(&f, Filter { limit: 0, ..all() }).await.is_empty());
}

pub(crate) async fn stats_follow_every_change(open: Open) {
    let f = open.one().await;
    let second = Duration::from_secs(1);
    let fence = f.granted(refund("a")).await;
    f.hands.advance(second);
    f.granted(refund("b")).await;
    f.hands.advance(second);
    let stats = f.ledger.stats().await.unwrap();
    assert_eq!(stats.records, [2, 0, 0, 0]);
    assert_eq!(stats.oldest[State::Claimed as usize], 2 * second);
    f.settle(fence, cannot_say()).await;
    f.hands.advance(second);
    let stats = f.ledger.stats().await.unwrap();
    assert_eq!(stats.records, [1, 0, 0, 1]);
    let zero = Duration::ZERO;
    assert_eq!(stats.oldest, [2 * second, zero, zero, second]);
    f.settle(fence, success()).await;
    f.settled(notice("c"), cannot_say()).await;
    f.hands.advance(second);
    // A replay doesn't make it younger.
    f.claim(refund("a")).await;
    let stats = f.ledger.stats().await.unwrap();
    assert_eq!(stats.records, [1, 1, 1, 0]);
    assert_eq!(stats.oldest, [3 * second, second, second, zero]);
}

pub(crate) async fn events_tell_the_story(open: Open) {
    let f = open.one().await;
    let start = f.now();
    let second = Duration::from_secs(1);
    let fence = f.granted(refund("a")).await;
    f.hands.advance(second);
    f.settle(fence, not_applied()).await;
    f.hands.advance(second);
    let fence = f.granted(refund("a")).await;
    f.hands.advance(second);
    f.settle(fence, success()).await;
    let told: Vec<_> = (f.events(fence.record).await.into_iter())
        .map(|event| {
            assert_eq!(event.by, None);
            let after = event.at.duration_since(start).unwrap().as_secs();
            (after, event.attempt, event.state, event.cause.into_owned())
        })
        .collect();
    let expected = [
        (0, 1, State::Claimed, "claimed"),
        (1, 1, State::Released, "connect_refused"),
        (2, 2, State::Claimed, "claimed"),
        (3, 2, State::Done, "success"),
    ];
    let expected: Vec<_> = (expected.into_iter())
        .map(|(after, attempt, state, cause)| (after, attempt, state, cause.to_owned()))
        .collect();
    assert_eq!(told, expected);
}

pub(crate) async fn unknown_ids_have_nothing(open: Open) {
    let f = open.one().await;
    for id in [RecordId(0), RecordId(1), RecordId(u64::from(u32::MAX))] {
        assert!(f.ledger.get(id).await.unwrap().is_none());
        assert!(f.events(id).await.is_empty());
    }
}
