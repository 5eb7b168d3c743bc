//! What becomes of a notice that is posted.

use super::*;
use crate::outbound::outbox::rows::EVICTABLE_AFTER;

pub(crate) async fn a_notice_is_stored_once(open: Open) {
    let f = open.one().await;
    let id = f.paid("a").await;
    let again = posting("a", "SUCCESS", "1e3");
    assert_eq!(
        f.post(again.clone()).await,
        Accepted::Known(id, State::Pending)
    );
    let flight = f.flight().await;
    assert_eq!(
        f.post(again.clone()).await,
        Accepted::Known(id, State::Pending)
    );
    f.record(flight, TAKEN).await;
    assert_eq!(f.post(again).await, Accepted::Known(id, State::Delivered));
    assert_ne!(f.paid("b").await, id);
    assert_eq!(f.outbox.stats().await.unwrap().pending, 1);
}

pub(crate) async fn what_was_posted_comes_back_byte_for_byte(open: Open) {
    let f = open.one().await;
    let mut posted = posting("x", "FAILURE", "0.125");
    posted.expected.tiki_transaction_id = "Hoàn tiền 'T\"\\1; -- \u{10ffff}%_".to_owned();
    posted.expected.transaction_id = "p\u{2028}\u{1f4b8}$1 ".to_owned();
    posted.body = Bytes::from("{\"ghi chú\" : \"\u{1f4b8}\\u0000\" ,\"n\":1.0}\n".repeat(3000));
    let id = f.stored(posted.clone()).await;
    let kept = f.get(id).await;
    assert_eq!(kept.expected(), Some(posted.expected.clone()));
    assert_eq!((&*kept.client, &*kept.base_url), ("c", TIKI));
    assert_eq!((&*kept.amount, &*kept.status), ("0.125", "FAILURE"));
    assert_eq!(kept.body, posted.body);
    assert_eq!(
        (kept.state, kept.step, kept.flight),
        (State::Pending, Step::Send, 0)
    );
    assert_eq!(
        [
            kept.next_at,
            kept.created_at,
            kept.opened_at,
            kept.updated_at
        ],
        [f.now(); 4]
    );
    assert_eq!((kept.events.len(), &*kept.events[0].what), (1, "posted"));
    assert_eq!(kept.events[0].at, f.now());
    // A change leaves the rest as it was, and what is odd in it comes back, too.
    let why = "reset \u{2028} 'by' \"peer\"\\ \u{0} \n\u{85} again";
    let report = Report::NoAnswer(why.to_owned());
    let flight = f.flight().await;
    assert_eq!(flight.delivery, f.get(id).await);
    let tried = f.record(flight, report).await;
    let kept = f.get(id).await;
    assert_eq!(kept.events, tried.events);
    assert_eq!(kept.events.last().unwrap().detail.as_deref(), Some(why));
    assert_eq!(kept.body, posted.body);
    let by = "Linh \u{0}'\"\\\n";
    let reason = Word {
        by: by.to_owned(),
        reason: "vì \u{1f4b8}".to_owned(),
        retry: true,
    };
    f.outbox.word(id, reason).await.unwrap();
    assert_eq!(
        f.get(id).await.events.last().unwrap().by.as_deref(),
        Some(by)
    );
}

pub(crate) async fn contradictions_are_told(open: Open) {
    let f = open.one().await;
    let id = f.paid("a").await;
    let conflict = f.post(posting("a", "SUCCESS", "1001")).await;
    assert!(
        matches!(conflict, Accepted::Conflict(other, _) if other == id),
        "{conflict:?}"
    );
    let conflict = f.post(posting("a", "PENDING", "1000")).await;
    assert!(
        matches!(conflict, Accepted::Conflict(other, _) if other == id),
        "{conflict:?}"
    );
    assert_eq!(f.story(id).await, ["posted"]);
    // What a person took back contradicts nothing.
    f.outbox.word(id, word(false)).await.unwrap();
    let other = f.post(posting("a", "SUCCESS", "1001")).await;
    assert_eq!(other, Accepted::Reopened(id));
    assert_eq!(f.get(id).await.amount, "1001");
}

pub(crate) async fn later_states_supersede_earlier_ones(open: Open) {
    let f = open.one().await;
    let pending = f.stored(posting("a", "PENDING", "1000")).await;
    let paid = f.stored(posting("a", "SUCCESS", "1000")).await;
    assert_eq!(f.state(pending).await, State::Superseded);
    assert_eq!(f.flight().await.delivery.id, paid);
    let early = posting("a", "PENDING", "1000");
    assert_eq!(
        f.post(early).await,
        Accepted::Known(pending, State::Superseded)
    );
}

pub(crate) async fn what_ended_is_opened_again(open: Open) {
    let f = open.one().await;
    let id = f.paid("a").await;
    let failed = f.turn(Step::Send, refused()).await;
    assert_eq!(failed.state, State::Failed);
    f.hands.advance(Duration::from_secs(5));
    let mut again = posting("a", "SUCCESS", "1000");
    again.body = Bytes::from_static(b"{\"a\":  2}");
    assert_eq!(f.post(again.clone()).await, Accepted::Reopened(id));
    let kept = f.get(id).await;
    assert_eq!(
        (kept.state, kept.outcome, kept.tell_at),
        (State::Pending, None, None)
    );
    assert_eq!((kept.opened_at, kept.next_at), (f.now(), f.now()));
    assert_eq!(kept.body, again.body);
    assert_eq!(f.flight().await.delivery.id, id);
    let (kept, should) = f.bytes().await;
    assert_eq!(kept, should);
}

pub(crate) async fn what_is_over_makes_room(open: Open) {
    let f = open.with_room_for(3).await;
    let first = f.paid("a").await;
    f.turn(Step::Send, TAKEN).await;
    f.hands.advance(Duration::from_secs(1));
    let second = f.paid("b").await;
    let third = f.paid("c").await;
    assert_eq!(f.outbox.stats().await.unwrap().failed, 0);
    // What Tiki has is kept for a while: posted again, it must be known.
    assert_eq!(f.post(posting("d", "SUCCESS", "1")).await, Accepted::Full);
    f.hands.advance(EVICTABLE_AFTER + Duration::from_secs(1));
    // The delivered one goes, what is pending stays.
    let fourth = f.paid("d").await;
    assert_eq!(f.outbox.get(first).await, Ok(None));
    assert_eq!(f.post(posting("e", "SUCCESS", "1")).await, Accepted::Full);
    assert_eq!(f.listed(all()).await, [second, third, fourth]);
    let (kept, should) = f.bytes().await;
    assert_eq!(kept, should);
    // What is there already needs none.
    let known = f.post(posting("b", "SUCCESS", "1000")).await;
    assert_eq!(known, Accepted::Known(second, State::Pending));
}

pub(crate) async fn failed_ones_make_no_room(open: Open) {
    let f = open.with_room_for(2).await;
    let failed = f.paid("a").await;
    f.turn(Step::Send, refused()).await;
    let pending = f.stored(posting("b", "PENDING", "1000")).await;
    // Not even an earlier state of the same transaction is superseded by what isn't stored.
    assert_eq!(
        f.post(posting("b", "SUCCESS", "1000")).await,
        Accepted::Full
    );
    assert_eq!(f.state(pending).await, State::Pending);
    assert_eq!(
        f.post(posting("c", "SUCCESS", "1000")).await,
        Accepted::Full
    );
    assert_eq!(f.listed(all()).await, [failed, pending]);
}

pub(crate) async fn a_longer_body_needs_room_too(open: Open) {
    let f = open.with_room_for(2).await;
    let id = f.paid("a").await;
    f.turn(Step::Send, refused()).await;
    let other = f.paid("b").await;
    let mut longer = posting("a", "SUCCESS", "1000");
    longer.body = Bytes::from(vec![b' '; BODY.len() + 1]);
    assert_eq!(f.post(longer.clone()).await, Accepted::Full);
    assert_eq!(f.state(id).await, State::Failed);
    let as_long = posting("a", "SUCCESS", "1000");
    assert_eq!(f.post(as_long).await, Accepted::Reopened(id));
    // What makes room is never the one that is opened again.
    f.outbox.word(id, word(false)).await.unwrap();
    assert_eq!(f.post(longer.clone()).await, Accepted::Full);
    assert_eq!(f.state(id).await, State::Cancelled);
    f.outbox.word(other, word(false)).await.unwrap();
    assert_eq!(f.post(longer.clone()).await, Accepted::Reopened(id));
    assert_eq!(f.get(id).await.body, longer.body);
    assert_eq!(f.outbox.get(other).await, Ok(None));
    let (kept, should) = f.bytes().await;
    assert_eq!(kept, should);
}

pub(crate) async fn clients_are_told_apart(open: Open) {
    let f = open.one().await;
    let one = f.paid("a").await;
    let mut other = posting("a", "SUCCESS", "7");
    other.client = "d".to_owned();
    let other = f.stored(other).await;
    let flights = f.take(10).await.flights;
    let mut ids: Vec<_> = flights.iter().map(|flight| flight.delivery.id).collect();
    ids.sort();
    assert_eq!(ids, [one, other]);
}

pub(super) fn all() -> Filter {
    Filter {
        limit: 1000,
        ..Filter::default()
    }
}
