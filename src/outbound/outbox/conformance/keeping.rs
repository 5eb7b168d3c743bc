//! What people and metrics see, and what is forgotten.

use super::posting::all;
use super::*;
use crate::outbound::outbox::rules::FLIGHT;
use crate::outbound::outbox::types::{Stats, WordFault};

pub(crate) async fn lists_are_filtered_and_go_on(open: Open) {
    let f = open.one().await;
    let mut posted = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        posted.push(f.paid(name).await);
        if name == "b" {
            f.turn(Step::Send, TAKEN).await;
        } else {
            f.take(1).await;
        }
    }
    assert_eq!(f.listed(all()).await, posted);
    let delivered = Filter {
        state: Some(State::Delivered),
        ..all()
    };
    assert_eq!(f.listed(delivered).await, posted[1..2]);
    for id in ["T-d", "p-d"] {
        let transaction = Filter {
            transaction: Some(id.to_owned()),
            ..all()
        };
        assert_eq!(f.listed(transaction).await, posted[3..4]);
    }
    for nobodys in ["T", "\0", "' or true --"] {
        let transaction = Filter {
            transaction: Some(nobodys.to_owned()),
            ..all()
        };
        assert!(f.listed(transaction).await.is_empty());
    }
    let mut filter = Filter {
        limit: 2,
        state: Some(State::Pending),
        ..Filter::default()
    };
    let mut seen = Vec::new();
    loop {
        let page = f.outbox.list(filter.clone()).await.unwrap();
        assert!(page.deliveries.len() <= 2);
        seen.extend(page.deliveries.iter().map(|one| one.id));
        match page.next {
            Some(next) => filter.after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen, [posted[0], posted[2], posted[3], posted[4]]);
    // Beyond all numbers there is nothing, nor does it begin anew.
    for beyond in [i64::MAX as u64, u64::MAX] {
        let beyond = Filter {
            after: Some(DeliveryId(beyond)),
            ..all()
        };
        assert!(f.listed(beyond).await.is_empty());
    }
}

pub(crate) async fn words_are_checked(open: Open) {
    let f = open.one().await;
    let id = f.stored(posting("a", "PENDING", "1000")).await;
    let nobody = Word {
        by: " ".to_owned(),
        ..word(true)
    };
    let said = f.outbox.word(id, nobody).await;
    assert_eq!(said, Err(WordFault::Unattributed));
    let flight = f.flight().await;
    for retry in [true, false] {
        let said = f.outbox.word(id, word(retry)).await;
        assert_eq!(said, Err(WordFault::InFlight));
    }
    f.record(flight, TAKEN).await;
    for retry in [true, false] {
        let said = f.outbox.word(id, word(retry)).await;
        assert_eq!(said, Err(WordFault::Over(State::Delivered)));
    }
    let early = f.stored(posting("b", "PENDING", "1000")).await;
    let late = f.stored(posting("b", "SUCCESS", "1000")).await;
    assert_eq!(
        f.outbox.word(early, word(true)).await,
        Err(WordFault::Overtaken)
    );
    assert_eq!(
        f.outbox.word(early, word(false)).await,
        Err(WordFault::Over(State::Superseded))
    );
    let cancelled = f.outbox.word(late, word(false)).await.unwrap();
    assert_eq!(cancelled.state, State::Cancelled);
    assert_eq!(
        f.outbox.word(late, word(false)).await,
        Err(WordFault::Over(State::Cancelled))
    );
    assert_eq!(f.state(early).await, State::Superseded);
}

pub(crate) async fn a_persons_words_are_kept(open: Open) {
    let f = open.one().await;
    let id = f.paid("a").await;
    f.turn(Step::Send, UNCLEAR).await;
    let cancelled = f.outbox.word(id, word(false)).await.unwrap();
    assert_eq!(f.get(id).await, cancelled);
    let last = cancelled.events.last().unwrap();
    let said = (Some("linh"), Some("the bank's statement"));
    assert_eq!((last.by.as_deref(), last.detail.as_deref()), said);
    f.hands.advance(Duration::from_secs(60));
    assert!(f.take(10).await.flights.is_empty());
    let retried = f.outbox.word(id, word(true)).await.unwrap();
    assert_eq!(f.get(id).await, retried);
    // It may have been taken before: the status is asked.
    assert_eq!((retried.state, retried.step), (State::Pending, Step::Ask));
    assert_eq!(f.flight().await.delivery.id, id);
    // Whoever tried it is gone: a word counts, and so does what may have got through.
    f.hands.advance(FLIGHT);
    let retried = f.outbox.word(id, word(true)).await.unwrap();
    assert_eq!((retried.flying_until, retried.step), (None, Step::Ask));
    let story = ["posted", "unclear", "cancel", "retry", "lapsed", "retry"];
    assert_eq!(f.story(id).await, story);
}

pub(crate) async fn stats_count_every_state(open: Open) {
    let f = open.one().await;
    assert_eq!(f.outbox.stats().await.unwrap(), Stats::default());
    f.paid("taken").await;
    f.turn(Step::Send, TAKEN).await;
    f.paid("failed").await;
    f.turn(Step::Send, refused()).await;
    let told = f.paid("told").await;
    f.turn(Step::Send, refused()).await;
    f.outbox.told(f.get(told).await, true).await.unwrap();
    let cancelled = f.paid("cancelled").await;
    f.outbox.word(cancelled, word(false)).await.unwrap();
    f.stored(posting("p", "PENDING", "1000")).await;
    f.paid("p").await;
    f.hands.advance(Duration::from_secs(90));
    f.paid("young").await;
    f.take(1).await;
    let stats = f.outbox.stats().await.unwrap();
    assert_eq!(stats.oldest, Duration::from_secs(90));
    assert_eq!((stats.pending, stats.held), (2, 0));
    assert_eq!((stats.failed, stats.untold), (2, 1));
    assert_eq!(stats.bytes, 7 * (BODY.len() + OVERHEAD) as u64);
}

pub(crate) async fn over_ones_are_forgotten_in_time(open: Open) {
    let f = open.one().await;
    let mut over = Vec::new();
    for name in ["a", "b", "c"] {
        over.push(f.paid(name).await);
        f.turn(Step::Send, TAKEN).await;
        f.hands.advance(Duration::from_secs(1));
    }
    let failed = f.paid("failed").await;
    f.turn(Step::Send, refused()).await;
    let pending = f.paid("pending").await;
    f.hands.advance(KEEP - Duration::from_secs(1));
    assert_eq!(f.outbox.sweep(1).await, Ok(1));
    assert_eq!(f.outbox.get(over[0]).await, Ok(None));
    assert_eq!(f.outbox.sweep(100).await, Ok(1));
    assert_eq!(f.outbox.sweep(100).await, Ok(0));
    assert_eq!(f.listed(all()).await, [over[2], failed, pending]);
    f.hands.advance(KEEP);
    // Nobody has heard of the failure yet.
    assert_eq!(f.outbox.sweep(100).await, Ok(1));
    f.outbox.told(f.get(failed).await, true).await.unwrap();
    assert_eq!(f.outbox.sweep(100).await, Ok(1));
    assert_eq!(f.listed(all()).await, [pending]);
    let (kept, should) = f.bytes().await;
    assert_eq!(kept, should);
    // Numbers are never given again.
    assert!(f.paid("next").await > pending);
}

pub(crate) async fn unknown_ones_are_nobodys(open: Open) {
    let f = open.one().await;
    let id = f.paid("a").await;
    let flight = f.flight().await;
    f.record(flight.clone(), TAKEN).await;
    f.hands.advance(2 * KEEP);
    assert_eq!(f.outbox.sweep(10).await, Ok(1));
    assert_eq!(
        f.outbox.word(id, word(true)).await,
        Err(WordFault::NotFound)
    );
    assert_eq!(f.outbox.told(flight.delivery.clone(), true).await, Ok(()));
    assert_eq!(f.outbox.give_back(vec![flight.clone()]).await, Ok(()));
    assert_eq!(f.record(flight.clone(), TAKEN).await.id, id);
    for unknown in [DeliveryId(u64::MAX), DeliveryId(0)] {
        assert_eq!(f.outbox.get(unknown).await, Ok(None));
        assert_eq!(
            f.outbox.word(unknown, word(true)).await,
            Err(WordFault::NotFound)
        );
    }
    assert!(f.listed(all()).await.is_empty());
}
