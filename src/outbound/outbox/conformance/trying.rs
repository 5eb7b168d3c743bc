//! What is taken when, and what becomes of it.

use super::*;
use crate::outbound::outbox::rules::FLIGHT;
use crate::outbound::outbox::types::Outcome;
use crate::outbound::status::{Asked, Seen};

const SECOND: Duration = Duration::from_secs(1);

fn ids(flights: &[Flight]) -> Vec<DeliveryId> {
    flights.iter().map(|flight| flight.delivery.id).collect()
}

pub(crate) async fn what_is_due_is_taken_in_its_order(open: Open) {
    let f = open.one().await;
    assert_eq!(f.take(10).await.next_in, None);
    let mut posted = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        posted.push(f.paid(name).await);
        f.hands.advance(SECOND);
    }
    assert!(f.take(0).await.flights.is_empty());
    let two = f.take(2).await;
    assert_eq!(ids(&two.flights), posted[..2]);
    assert_eq!(two.next_in, Some(Duration::ZERO));
    let rest = f.take(10).await;
    assert_eq!(ids(&rest.flights), posted[2..]);
    assert_eq!(rest.next_in, None);
    assert!(f.take(10).await.flights.is_empty());
    let taken = f.get(posted[0]).await;
    assert_eq!((taken.flight, taken.tries), (1, 1));
    assert_eq!(taken.flying_until, Some(f.now() + FLIGHT));
    // What is put off is due in its time, and not before.
    for flight in two.flights {
        f.record(flight, UNCLEAR).await;
    }
    let taken = f.take(10).await;
    assert!(taken.flights.is_empty());
    let next_in = taken.next_in.unwrap();
    assert!(next_in > SECOND / 2 && next_in <= SECOND, "{next_in:?}");
    f.hands.advance(SECOND);
    assert_eq!(f.take(10).await.flights.len(), 2);
}

pub(crate) async fn one_of_a_transaction_at_a_time(open: Open) {
    let f = open.one().await;
    let pending = f.stored(posting("a", "PENDING", "1000")).await;
    let flight = f.flight().await;
    let paid = f.stored(posting("a", "SUCCESS", "1000")).await;
    let other = f.paid("b").await;
    let taken = f.take(10).await;
    // What waits for its sibling is not looked for again and again.
    assert_eq!((ids(&taken.flights), taken.next_in), (vec![other], None));
    assert_eq!(f.state(pending).await, State::Pending);
    assert_eq!(f.record(flight, UNCLEAR).await.state, State::Superseded);
    assert_eq!(f.flight().await.delivery.id, paid);
}

pub(crate) async fn those_that_wait_for_a_sibling_stand_in_nobodys_way(open: Open) {
    let f = open.one().await;
    for number in 0..40 {
        let name = number.to_string();
        f.stored(posting(&name, "PENDING", "1000")).await;
    }
    assert_eq!(f.take(40).await.flights.len(), 40);
    for number in 0..40 {
        f.paid(&number.to_string()).await;
    }
    f.hands.advance(SECOND);
    let free = f.paid("free").await;
    assert_eq!(ids(&f.take(1).await.flights), [free]);
}

pub(crate) async fn what_a_wrong_clock_put_off_is_due(open: Open) {
    const AHEAD: Duration = Duration::from_secs(365 * 86_400);
    let f = open.one().await;
    let id = f.paid("a").await;
    let flight = f.flight().await;
    f.hands.advance(AHEAD);
    assert_eq!(f.record(flight, UNCLEAR).await.state, State::Pending);
    f.hands.set_back(AHEAD);
    let other = f.paid("b").await;
    let mut taken = ids(&f.take(10).await.flights);
    taken.sort();
    assert_eq!(taken, [id, other]);
    assert!(f.take(10).await.flights.is_empty());
}

pub(crate) async fn answers_end_a_delivery(open: Open) {
    let f = open.one().await;
    let id = f.paid("a").await;
    let taken = f.turn(Step::Send, TAKEN).await;
    assert_eq!(
        (taken.state, taken.outcome),
        (State::Delivered, Some(Outcome::Taken))
    );
    assert_eq!(f.get(id).await, taken);
    f.paid("b").await;
    let failed = f.turn(Step::Send, refused()).await;
    let code = Some(ReplyCode::Cancelled.number());
    assert_eq!(
        (failed.state, failed.outcome),
        (State::Failed, Some(Outcome::Refused(code)))
    );
    assert_eq!(failed.tell_at, Some(f.now()));
    assert_eq!(f.get(failed.id).await, failed);
    let none = f.paid("c").await;
    let report = Report::Answered(IpnReply::Refused(None));
    f.turn(Step::Send, report).await;
    assert_eq!(f.get(none).await.outcome, Some(Outcome::Refused(None)));
}

pub(crate) async fn unclear_tries_are_made_again_and_then_asked_about(open: Open) {
    let f = open.one().await;
    let id = f.paid("a").await;
    f.turn(Step::Send, Report::NotSent("refused".to_owned()))
        .await;
    assert!(!f.get(id).await.maybe_taken);
    f.until_due(id).await;
    f.turn(Step::Send, UNCLEAR).await;
    f.until_due(id).await;
    f.turn(Step::Send, Report::NoAnswer("reset".to_owned()))
        .await;
    f.until_due(id).await;
    let seen = Seen {
        tiki_transaction_id: "T-a".to_owned(),
        transaction_id: "p-a".to_owned(),
        amount: Decimal::parse("1000").unwrap(),
        status: TransactionStatus::Pending,
    };
    let asked = f.turn(Step::Ask, Report::Asked(Asked::Pending(seen))).await;
    assert_eq!((asked.step, asked.tries, asked.asks), (Step::Send, 3, 1));
    f.until_due(id).await;
    // Refused, perhaps for an earlier try: the refusal waits for what the status says.
    let waits = f.turn(Step::Send, refused()).await;
    assert_eq!((waits.state, waits.step), (State::Pending, Step::Ask));
    let code = Some(ReplyCode::Cancelled.number());
    assert_eq!(f.get(id).await.refusal, Some(code));
    let ended = f.turn(Step::Ask, Report::Asked(Asked::Same)).await;
    assert_eq!(ended.outcome, Some(Outcome::Confirmed));
    let story = [
        "posted",
        "not_sent",
        "unclear",
        "no_answer",
        "asked_pending",
        "refused",
        "asked_same",
    ];
    assert_eq!(f.story(id).await, story);
}

pub(crate) async fn a_flight_that_never_began_goes_back(open: Open) {
    let f = open.one().await;
    let id = f.paid("a").await;
    let other = f.paid("b").await;
    let flights = f.take(10).await.flights;
    f.outbox.give_back(flights.clone()).await.unwrap();
    for id in [id, other] {
        let given = f.get(id).await;
        assert_eq!(
            (given.tries, given.flying_until, given.maybe_taken),
            (0, None, false)
        );
    }
    let again = f.take(10).await.flights;
    assert_eq!(ids(&again), [id, other]);
    assert_eq!(again[0].delivery.flight, 2);
    // What is not the newest gives nothing back.
    f.outbox.give_back(flights).await.unwrap();
    assert!(f.take(10).await.flights.is_empty());
    assert_eq!(f.get(id).await.tries, 1);
}

pub(crate) async fn a_lapsed_flight_may_have_been_taken(open: Open) {
    let f = open.one().await;
    let id = f.paid("a").await;
    f.flight().await;
    f.hands.advance(FLIGHT - Duration::from_micros(1));
    assert!(f.other.take(10).await.unwrap().flights.is_empty());
    f.hands.advance(Duration::from_micros(1));
    let mut taken = f.other.take(10).await.unwrap().flights;
    let again = taken.remove(0);
    assert!(again.delivery.maybe_taken);
    assert_eq!(
        (
            again.delivery.id,
            again.delivery.flight,
            again.delivery.tries
        ),
        (id, 2, 2)
    );
    assert_eq!(f.story(id).await, ["posted", "lapsed"]);
    // So a refusal is no reason for a refund any more.
    assert_eq!(f.record(again, refused()).await.step, Step::Ask);
}

pub(crate) async fn a_late_record_is_only_good_news(open: Open) {
    let f = open.one().await;
    let id = f.paid("a").await;
    let stale = f.flight().await;
    f.hands.advance(FLIGHT);
    let newer = f.flight().await;
    // The newer one is at Tiki: it says itself what became of it.
    for report in [refused(), UNCLEAR, TAKEN] {
        let kept = f.record(stale.clone(), report).await;
        assert_eq!((kept.state, kept.flight), (State::Pending, 2));
        assert_eq!(kept.flying_until, newer.delivery.flying_until);
    }
    f.record(newer, UNCLEAR).await;
    let before = f.get(id).await;
    assert_eq!(f.record(stale.clone(), refused()).await, before);
    let taken = f.record(stale, TAKEN).await;
    assert_eq!(
        (taken.state, taken.outcome),
        (State::Delivered, Some(Outcome::Taken))
    );
    assert_eq!(f.get(id).await, taken);
    assert_eq!(f.story(id).await.last().unwrap(), "taken_late");
}

pub(crate) async fn what_was_tried_of_another_amount_says_nothing(open: Open) {
    let f = open.one().await;
    let id = f.paid("a").await;
    let stale = f.flight().await;
    f.hands.advance(FLIGHT);
    f.outbox.word(id, word(false)).await.unwrap();
    let again = f.post(posting("a", "SUCCESS", "2000")).await;
    assert_eq!(again, Accepted::Reopened(id));
    let before = f.get(id).await;
    for report in [TAKEN, refused(), UNCLEAR] {
        assert_eq!(f.record(stale.clone(), report).await, before);
    }
    // What Tiki has is asked before anything is sent.
    assert_eq!(f.flight().await.delivery.step, Step::Ask);
}

pub(crate) async fn a_record_made_twice_counts_once(open: Open) {
    let f = open.one().await;
    for report in [TAKEN, refused()] {
        let id = f.paid(report.as_str()).await;
        let flight = f.flight().await;
        let once = f.record(flight.clone(), report.clone()).await;
        f.hands.advance(SECOND);
        assert_eq!(f.record(flight, report).await, once);
        assert_eq!(f.get(id).await, once);
    }
    let id = f.paid("a").await;
    let flight = f.flight().await;
    let once = f.record(flight.clone(), UNCLEAR).await;
    let twice = f.record(flight, UNCLEAR).await;
    assert_eq!((once.tries, twice.tries, twice.step), (1, 1, Step::Send));
    assert_eq!(f.get(id).await.flight, 1);
}

pub(crate) async fn what_takes_too_long_is_given_up(open: Open) {
    let f = open.one().await;
    let id = f.paid("a").await;
    f.turn(Step::Send, UNCLEAR).await;
    f.hands.advance(2 * SECOND);
    let flight = f.flight().await;
    f.hands.advance(POLICY.give_up_after - 3 * SECOND);
    f.record(flight, UNCLEAR).await;
    f.hands.advance(SECOND);
    let last = f.flight().await;
    assert_eq!(last.delivery.id, id);
    let ended = f.record(last, UNCLEAR).await;
    assert_eq!(
        (ended.state, ended.outcome),
        (State::Failed, Some(Outcome::GaveUp))
    );
    assert_eq!(f.outbox.to_tell(10).await.unwrap(), [f.get(id).await]);
}

pub(crate) async fn a_raised_generation_asks_first(open: Open) {
    let f = open.one().await;
    let Some(raise) = &f.raise else { return };
    let before = f.paid("before").await;
    raise().await;
    f.hands.advance(SECOND);
    let after = f.paid("after").await;
    let flights = f.take(10).await.flights;
    assert_eq!(ids(&flights), [before, after]);
    let steps: Vec<_> = flights.iter().map(|flight| flight.delivery.step).collect();
    // As long as nobody says what was forgotten, that goes for what is posted as new, too.
    assert_eq!(steps, [Step::Ask, Step::Ask]);
    assert!(flights.iter().all(|flight| flight.delivery.maybe_taken));
    // Tiki knows nothing of it: it is sent, now that this is known.
    let nothing = Report::Asked(Asked::Refused(ReplyCode::NotFound));
    f.record(flights[0].clone(), nothing).await;
    assert_eq!(f.turn(Step::Send, TAKEN).await.id, before);
}

pub(crate) async fn what_no_account_delivers_is_held(open: Open) {
    let f = open.one().await;
    let mut gone = posting("gone", "SUCCESS", "1000");
    gone.base_url = "https://tiki.example".to_owned();
    let held = f.stored(gone).await;
    let mut other = posting("other", "SUCCESS", "1000");
    other.client = "x".to_owned();
    f.stored(other).await;
    f.hands.advance(SECOND);
    let ours = f.paid("ours").await;
    let taken = f.take(10).await;
    assert_eq!((ids(&taken.flights), taken.next_in), (vec![ours], None));
    let stats = f.outbox.stats().await.unwrap();
    assert_eq!((stats.pending, stats.held), (3, 2));
    // Posted anew it goes where the account is now, once it has ended.
    f.outbox.word(held, word(false)).await.unwrap();
    assert_eq!(f.outbox.stats().await.unwrap().held, 1);
    let again = f.post(posting("gone", "SUCCESS", "1000")).await;
    assert_eq!(again, Accepted::Reopened(held));
    assert_eq!(f.flight().await.delivery.base_url, TIKI);
    assert_eq!(f.outbox.stats().await.unwrap().held, 1);
}

pub(crate) async fn held_ones_stand_in_nobodys_way(open: Open) {
    let f = open.one().await;
    for number in 0..40 {
        let mut gone = posting(&number.to_string(), "SUCCESS", "1000");
        gone.base_url = "https://tiki.example".to_owned();
        f.stored(gone).await;
    }
    f.hands.advance(SECOND);
    let free = f.paid("free").await;
    assert_eq!(ids(&f.take(1).await.flights), [free]);
    assert_eq!(f.outbox.stats().await.unwrap().held, 40);
}

pub(crate) async fn the_backend_is_told_until_it_hears(open: Open) {
    let f = open.one().await;
    let mut failed = Vec::new();
    for name in ["a", "b", "c"] {
        failed.push(f.paid(name).await);
        f.turn(Step::Send, refused()).await;
        f.hands.advance(SECOND);
    }
    let told = async || {
        let told = f.outbox.to_tell(10).await.unwrap();
        told.iter().map(|one| one.id).collect::<Vec<_>>()
    };
    assert_eq!(told().await, failed);
    assert_eq!(f.outbox.to_tell(2).await.unwrap().len(), 2);
    assert_eq!(f.outbox.stats().await.unwrap().untold, 3);
    f.outbox.told(f.get(failed[0]).await, true).await.unwrap();
    f.outbox.told(f.get(failed[1]).await, false).await.unwrap();
    assert_eq!(told().await, failed[2..]);
    assert_eq!(f.outbox.stats().await.unwrap().untold, 2);
    f.hands.advance(SECOND);
    assert_eq!(told().await, [failed[2], failed[1]]);
    assert_eq!(f.get(failed[1]).await.tellings, 1);
    assert_eq!(f.story(failed[0]).await.last().unwrap(), "told");
    // Said twice, as after an answer that was lost.
    f.outbox.told(f.get(failed[0]).await, true).await.unwrap();
    assert_eq!(f.story(failed[0]).await, ["posted", "refused", "told"]);
    // A person's word ends the telling.
    f.outbox.word(failed[2], word(false)).await.unwrap();
    assert_eq!(told().await, failed[1..2]);
}
