//! Where something may be otherwise than it looks: repeats, forgotten rows, other states, wrong clocks.

use super::*;

/// A backend that repeats an old posting, since its first answer was lost, must not undo a later one.
#[test]
fn a_repeat_does_not_undo_what_was_said_since() {
    for delivered in [false, true] {
        let mut bench = Bench::new();
        bench.post(Some("FAILURE"), "1000");
        bench.post(Some("SUCCESS"), "1000");
        if delivered {
            bench.turn(Step::Send, TAKEN);
        }
        let repeated = bench.post(Some("FAILURE"), "1000");
        assert!(
            matches!(repeated, Accepted::Conflict(DeliveryId(2), _)),
            "{repeated:?}"
        );
        assert_eq!(bench.get(DeliveryId(1)).state, State::Superseded);
        assert_ne!(bench.get(DeliveryId(2)).state, State::Superseded);
    }
    // Where the later one has ended without being delivered, the earlier may be opened again.
    let mut bench = Bench::new();
    bench.post(Some("FAILURE"), "1000");
    bench.post(Some("SUCCESS"), "1000");
    bench.turn(Step::Send, refused(ReplyCode::WrongAmount));
    assert_eq!(
        bench.post(Some("FAILURE"), "1000"),
        Accepted::Reopened(DeliveryId(1))
    );
}

/// What the store may have forgotten is not taken for new.
#[test]
fn in_quarantine_the_status_is_asked_of_what_is_posted_as_new() {
    let mut bench = Bench::new();
    bench.quarantined = true;
    bench.post(Some("SUCCESS"), "1000");
    bench.turn(Step::Ask, Report::Asked(Asked::Nothing(String::new())));
    bench.turn(
        Step::Ask,
        Report::Asked(Asked::Refused(ReplyCode::NotFound)),
    );
    // It may be refused for what was sent before the store forgot it.
    assert_eq!(
        bench.turn(Step::Send, refused(ReplyCode::WrongAmount)).step,
        Step::Ask
    );
    assert_eq!(
        bench.turn(Step::Ask, Report::Asked(Asked::Same)).outcome,
        Some(Outcome::Confirmed)
    );
}

#[test]
fn only_a_payment_that_was_made_is_refunded() {
    for status in ["PENDING", "FAILURE"] {
        let mut bench = Bench::new();
        bench.post(Some(status), "1000");
        let failed = bench
            .turn(Step::Send, refused(ReplyCode::WrongAmount))
            .clone();
        assert_eq!(failed.outcome, Some(Outcome::Refused(Some(5))));
        assert!(!failed.means_refund(), "{status}");
    }
    // Paid, if not as this notice says: that is for a person.
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    bench.turn(Step::Send, lost());
    bench.turn(Step::Send, refused(ReplyCode::WrongAmount));
    let mut paid = seen(TransactionStatus::Success);
    paid.amount = Decimal::parse("999").unwrap();
    let failed = bench.turn(Step::Ask, Report::Asked(Asked::Other(paid)));
    assert_eq!(failed.outcome, Some(Outcome::Contradicted));
    assert!(!failed.means_refund());
}

/// What Tiki took of another final state may be why it refuses this one.
#[test]
fn a_refusal_waits_for_the_status_where_another_state_may_have_been_taken() {
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    bench.turn(Step::Send, lost());
    bench.post(Some("FAILURE"), "1000");
    assert_eq!(
        bench.turn(Step::Send, refused(ReplyCode::Cancelled)).step,
        Step::Ask
    );
    // A pending one that was taken is no reason to refuse a final one.
    let mut bench = Bench::new();
    bench.post(Some("PENDING"), "1000");
    bench.turn(Step::Send, lost());
    bench.post(Some("SUCCESS"), "1000");
    let failed = bench.turn(Step::Send, refused(ReplyCode::Cancelled));
    assert_eq!(failed.outcome, Some(Outcome::Refused(Some(6))));
}

#[test]
fn a_pending_state_is_not_sent_behind_a_final_one_that_may_have_been_taken() {
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    bench.turn(Step::Send, lost());
    bench.word(1, false).unwrap();
    assert!(matches!(
        bench.post(Some("PENDING"), "1000"),
        Accepted::Conflict(DeliveryId(1), _)
    ));
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    bench.turn(Step::Send, refused(ReplyCode::WrongAmount));
    assert_eq!(
        bench.post(Some("PENDING"), "1000"),
        Accepted::Stored(DeliveryId(2))
    );
}

#[test]
fn what_goes_elsewhere_is_told_so_and_not_taken_for_the_same() {
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    let elsewhere = Posting {
        base_url: "https://elsewhere".to_owned(),
        ..posting(Some("SUCCESS"), "1000")
    };
    let tidings = bench.tidings();
    let accepted = rules::post(&mut bench.deliveries, &elsewhere, tidings);
    assert!(matches!(accepted, Ok(Accepted::Conflict(DeliveryId(1), _))));
    // A person's word lets it go there.
    bench.word(1, false).unwrap();
    let accepted = rules::post(&mut bench.deliveries, &elsewhere, tidings);
    assert_eq!(accepted.ok(), Some(Accepted::Reopened(DeliveryId(1))));
    assert_eq!(bench.deliveries[0].base_url, "https://elsewhere");
}

/// A telling that is answered late says nothing of a failure that came after it.
#[test]
fn a_second_failure_is_told_of_though_the_first_telling_is_heard_late() {
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    bench.turn(Step::Send, refused(ReplyCode::WrongAmount));
    let first = bench.deliveries[0].clone();
    // The backend posts it again before it answers.
    bench.post(Some("SUCCESS"), "1000");
    bench.turn(Step::Send, refused(ReplyCode::Cancelled));
    let tidings = bench.tidings();
    rules::told(&mut bench.deliveries[0], &first, true, POLICY, tidings);
    assert!(bench.deliveries[0].tell_at.is_some());
}

/// A clock that was far ahead, and one that stood for days.
#[test]
fn clocks_that_were_wrong_hold_nothing_back_and_give_nothing_up_untried() {
    let mut bench = Bench::new();
    let right = bench.now;
    bench.now += Duration::from_secs(365 * 86_400);
    bench.post(Some("SUCCESS"), "1000");
    bench.now = right;
    let tidings = bench.tidings();
    assert!(rules::take(&mut bench.deliveries, tidings).is_some());
    assert_eq!(bench.deliveries[0].opened_at, right);

    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    bench.now += 3 * POLICY.give_up_after;
    for _ in 0..TRIES - 1 {
        assert_eq!(bench.turn(Step::Send, UNCLEAR).state, State::Pending);
    }
    let last = bench.take().unwrap();
    assert_eq!(bench.record(last, UNCLEAR).outcome, Some(Outcome::GaveUp));
}

#[test]
fn what_no_account_delivers_is_given_up_in_its_time() {
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    let delivery = &mut bench.deliveries[0];
    assert!(!rules::give_up_held(delivery, POLICY, bench.now));
    let later = bench.now + POLICY.give_up_after;
    assert!(rules::give_up_held(delivery, POLICY, later));
    assert_eq!(
        (delivery.outcome, delivery.tell_at),
        (Some(Outcome::GaveUp), Some(later))
    );
}
