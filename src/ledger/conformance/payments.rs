//! What claims see of other payments of the same amount.

use super::subjects::set_amount;
use super::*;

fn about(payment_id: &str, claim: Claim) -> Claim {
    let mut claim = claim;
    claim.key.message = format!("{payment_id}: {}", claim.key.message).into();
    if let Some(subject) = &mut claim.subject {
        subject.id = payment_id.into();
    }
    claim
}

/// Makes records of a payment in each way in which money may have moved, and in which it didn't.
/// Gives the payment's id, and which it is.
async fn all_siblings(f: &Fixture) -> Vec<(&'static str, bool)> {
    let first = |id: &str| about(id, payment("first", false));
    let lax = |id: &str| Claim {
        policy: Policy::Resend,
        ..first(id)
    };
    f.granted(first("running")).await;
    f.settled(first("taken"), success()).await;
    f.settled(first("unknown"), cannot_say()).await;
    f.settled(lax("given up"), cannot_say()).await;
    f.settled(lax("given up before"), cannot_say()).await;
    f.settled(lax("given up before"), not_applied()).await;
    f.settled(lax("declined in doubt"), cannot_say()).await;
    f.settled(lax("declined in doubt"), declined()).await;
    f.settled(first("not sent"), not_applied()).await;
    f.settled(first("declined"), declined()).await;
    let verdicts = [
        ("applied", Verdict::Applied(answer(200, "by hand"))),
        ("rejected", Verdict::Rejected(answer(500, "by hand"))),
        ("declared", Verdict::NotApplied),
    ];
    for (id, verdict) in verdicts {
        let fence = f.settled(first(id), cannot_say()).await;
        f.resolve_by_force(fence.record, verdict).await.unwrap();
    }
    let fence = f.settled(first("taken back"), cannot_say()).await;
    f.resolve_by_force(fence.record, Verdict::NotApplied)
        .await
        .unwrap();
    f.reopen(fence.record).await.unwrap();
    // The first attempt moved it, though the second was declined.
    let earlier = f.settled(first("alarmed"), cannot_say()).await;
    f.resolve_by_force(earlier.record, Verdict::NotApplied)
        .await
        .unwrap();
    f.settled(first("alarmed"), declined()).await;
    assert_eq!(f.settle(earlier, success()).await, Settled::Alarm);
    vec![
        ("running", true),
        ("taken", true),
        ("unknown", true),
        ("given up", true),
        ("given up before", true),
        ("declined in doubt", true),
        ("applied", true),
        ("taken back", true),
        ("alarmed", true),
        ("not sent", false),
        ("declined", false),
        ("rejected", false),
        ("declared", false),
        ("nothing of it", false),
    ]
}

pub(crate) async fn a_second_payment_is_marked(open: Open) {
    let f = open.one().await;
    for (id, moved) in all_siblings(&f).await {
        let ClaimOutcome::Granted(fence, marks) =
            f.claim(about(id, payment("second", false))).await
        else {
            panic!("{id}");
        };
        assert_eq!(marks.possible_duplicate, moved, "{id}");
        assert!(!marks.stale_event);
        assert_eq!(f.record(fence.record).await.marks, marks);
    }
}

pub(crate) async fn a_second_payment_is_held(open: Open) {
    let f = open.one().await;
    for (id, moved) in all_siblings(&f).await {
        let claim = about(id, payment("second", true));
        match f.claim(claim.clone()).await {
            ClaimOutcome::Held(record, Hold::PossibleDuplicate) if moved => {
                assert_is!(f.claim(claim).await,
                    ClaimOutcome::Held(again, Hold::PossibleDuplicate) if again == record);
                let record = f.record(record).await;
                assert_eq!((record.state, record.attempt), (State::Unknown, 0));
                assert!(record.marks.possible_duplicate);
                assert_eq!(record.hold, Some(Hold::PossibleDuplicate));
                assert_eq!(f.last_cause(record.id).await, "possible_duplicate");
            }
            ClaimOutcome::Granted(_, marks) if !moved => assert_eq!(marks, Marks::default()),
            other => panic!("{id}: {other:?}"),
        }
    }
}

pub(crate) async fn other_amounts_are_other_payments(open: Open) {
    let f = open.one().await;
    f.settled(payment("a", true), success()).await;
    for (number, amount) in ["150000", "150000.50", "-150000.5", ""].iter().enumerate() {
        let mut claim = payment(&number.to_string(), true);
        set_amount(&mut claim, amount);
        assert_eq!(f.marks(claim).await, Marks::default(), "{amount}");
    }
    assert_is!(f.claim(payment("b", true)).await, ClaimOutcome::Held(..));
}

pub(crate) async fn the_window_runs_from_the_last_change(open: Open) {
    let f = open.one().await;
    let second = Duration::from_secs(1);
    let fence = f.granted(payment("a", false)).await;
    f.hands.advance(DAY / 2);
    f.settle(fence, success()).await;
    f.hands.advance(DAY);
    assert!(f.marks(payment("b", false)).await.possible_duplicate);
    let again = f.running(payment("b", false)).await;
    f.settle(again, not_applied()).await;
    f.hands.advance(second);
    assert_eq!(f.marks(payment("b", false)).await, Marks::default());
    let mut wide = payment("c", false);
    set_window(&mut wide, 3 * DAY);
    assert!(f.marks(wide).await.possible_duplicate);
    // What seems to come later than now was just now.
    f.hands.set_back(10 * DAY);
    assert!(f.marks(payment("d", false)).await.possible_duplicate);
}

/// A ledger may file what it knows of payments by weeks: none of the window may fall between two of them.
pub(crate) async fn the_window_is_whole_wherever_a_week_begins(open: Open) {
    const WEEK: Duration = DAY.saturating_mul(7);
    let f = open.one().await;
    let second = Duration::from_secs(1);
    let windows = [DAY, WEEK, 3 * WEEK];
    let into_the_week = [Duration::ZERO, second, WEEK / 2, WEEK - second];
    for (window, into) in windows
        .iter()
        .flat_map(|window| into_the_week.map(|into| (*window, into)))
    {
        let case = format!("a window of {window:?}, {into:?} into a week");
        let since = f.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let begun = since.as_micros() % WEEK.as_micros();
        let begun = Duration::from_micros(u64::try_from(begun).unwrap());
        f.hands.advance(WEEK - begun + into);
        let of = |message: &str| {
            let mut claim = about(&case, payment(message, false));
            set_window(&mut claim, window);
            claim
        };
        f.settled(of("a"), success()).await;
        f.hands.advance(window);
        assert!(f.marks(of("b")).await.possible_duplicate, "{case}");
        let within = f.running(of("b")).await;
        f.settle(within, not_applied()).await;
        f.hands.advance(second);
        assert_eq!(f.marks(of("b")).await, Marks::default(), "{case}");
    }
}

fn set_window(claim: &mut Claim, to: Duration) {
    if let Some(SubjectRule::Payment { window, .. }) =
        claim.subject.as_mut().map(|subject| &mut subject.rule)
    {
        *window = to;
    }
}

pub(crate) async fn what_may_run_counts_beyond_the_window(open: Open) {
    let f = open.one().await;
    let narrow = |id: &str, message: &str| {
        let mut claim = about(id, payment(message, false));
        set_window(&mut claim, Duration::from_secs(10));
        claim
    };
    f.granted(narrow("running", "a")).await;
    let fence = f.granted(narrow("unknown", "a")).await;
    f.settle(fence, cannot_say()).await;
    f.hands.advance(MAY_RUN);
    for id in ["running", "unknown"] {
        assert!(f.marks(narrow(id, "b")).await.possible_duplicate, "{id}");
    }
    f.hands.advance(DAY);
    let second = f.running(narrow("unknown", "b")).await;
    f.settle(second, not_applied()).await;
    assert!(f.marks(narrow("running", "c")).await.possible_duplicate);
    assert!(!f.marks(narrow("unknown", "c")).await.possible_duplicate);
}

pub(crate) async fn long_held_siblings_are_found(open: Open) {
    let f = open.one().await;
    // First seen months ago, and moved only now.
    let fence = f.settled(payment("a", false), cannot_say()).await;
    f.hands.advance(100 * DAY);
    f.settle(fence, success()).await;
    assert!(f.marks(payment("b", false)).await.possible_duplicate);
    let fence = f.settled(about("2", payment("a", false)), not_applied());
    let fence = fence.await;
    f.hands.advance(200 * DAY);
    assert_eq!(
        f.granted(about("2", payment("a", false))).await.record,
        fence.record
    );
    let marks = f.marks(about("2", payment("b", false))).await;
    assert!(marks.possible_duplicate);
}

pub(crate) async fn a_released_one_sees_who_ran_meanwhile(open: Open) {
    let f = open.one().await;
    let first = f.settled(payment("a", false), not_applied()).await;
    assert_eq!(f.marks(payment("b", false)).await, Marks::default());
    let marks = f.marks(payment("a", false)).await;
    assert!(marks.possible_duplicate);
    assert_eq!(f.record(first.record).await.marks, marks);

    let held = |message| about("2", payment(message, true));
    let first = f.settled(held("a"), not_applied()).await;
    let second = f.granted(held("b")).await;
    assert_eq!(f.held(held("a")).await, first.record);
    let record = f.record(first.record).await;
    assert_eq!(record.hold, Some(Hold::PossibleDuplicate));
    assert_eq!(record.attempt, 1);
    // What is suspected wasn't sent: the other one isn't held for it.
    f.settle(second, not_applied()).await;
    assert_eq!(f.marks(held("b")).await, Marks::default());
    // What its own attempt says late doesn't let it pass.
    for settlement in [not_applied(), cannot_say()] {
        f.settle(first, settlement).await;
        assert_is!(
            f.claim(held("a")).await,
            ClaimOutcome::Held(_, Hold::PossibleDuplicate)
        );
    }
}

pub(crate) async fn a_person_lets_a_suspect_pass(open: Open) {
    let f = open.one().await;
    f.settled(payment("a", true), success()).await;
    let id = f.held(payment("b", true)).await;
    // Never sent, so that there is nothing to wait for, and nothing for a look to see.
    for seen in [
        Seen::NotApplied,
        Seen::CantSay("probe_failed".into()),
        Seen::Applied(answer(200, "the other one's")),
    ] {
        assert_is!(f.sighted(id, seen).await, Err(ResolveError::NeverSent));
    }
    f.resolve(id, Verdict::NotApplied).await.unwrap();
    let ClaimOutcome::Granted(fence, marks) = f.claim(payment("b", true)).await else {
        panic!("not granted");
    };
    assert!(fence.attempt == 1 && marks.possible_duplicate);
    // Unsent, it passes again: the person spoke of the message.
    f.settle(fence, not_applied()).await;
    let fence = f.granted(payment("b", true)).await;
    // From here on it is a record like any other.
    f.settle(fence, cannot_say()).await;
    assert_is!(
        f.claim(payment("b", true)).await,
        ClaimOutcome::Held(_, Hold::OutcomeUnknown)
    );
    f.hands.advance(MAY_RUN);
    let seen = f.sighted(id, Seen::Applied(answer(200, "seen"))).await;
    assert_eq!(seen.unwrap().state, State::Done);
}

pub(crate) async fn a_person_ends_a_suspect(open: Open) {
    let f = open.one().await;
    f.settled(payment("a", true), success()).await;
    let verdicts = [
        ("b", Verdict::Rejected(answer(500, "by hand"))),
        ("c", Verdict::Applied(answer(200, "by hand"))),
    ];
    for (message, verdict) in verdicts {
        let (Verdict::Rejected(kept) | Verdict::Applied(kept)) = verdict.clone() else {
            continue;
        };
        let id = f.held(payment(message, true)).await;
        f.resolve(id, verdict).await.unwrap();
        assert_is!(f.claim(payment(message, true)).await, ClaimOutcome::Done(_, given)
            if given == kept);
    }
}

pub(crate) async fn a_gap_may_have_moved_money(open: Open) {
    let f = open.one().await;
    f.settled(about("known", payment("a", false)), not_applied())
        .await;
    f.quarantined().await;
    let gap = f.held(about("new", payment("a", false))).await;
    let known = f.held(about("known", payment("a", false))).await;
    f.lifted().await;
    let marked = async |id: &str, message: &str| {
        let marks = f.marks(about(id, payment(message, false))).await;
        marks.possible_duplicate
    };
    assert!(marked("new", "b").await && marked("known", "b").await);
    for id in ["new", "known"] {
        let fence = f.running(about(id, payment("b", false))).await;
        f.settle(fence, not_applied()).await;
    }
    f.hands.advance(MAY_RUN);
    for id in [gap, known] {
        f.resolve(id, Verdict::NotApplied).await.unwrap();
    }
    assert!(!marked("new", "c").await && !marked("known", "c").await);
    for id in ["new", "known"] {
        let fence = f.running(about(id, payment("c", false))).await;
        f.settle(fence, not_applied()).await;
    }
    // The word taken back, both are gaps again.
    for id in [gap, known] {
        let record = f.reopen(id).await.unwrap();
        assert_eq!(record.hold, Some(Hold::LedgerGap));
    }
    assert!(marked("new", "d").await && marked("known", "d").await);
}

pub(crate) async fn two_at_once_never_both_pass_unmarked(open: Open) {
    let f = open.one().await;
    let ledger = &f.ledger;
    for round in 0..50 {
        let outcomes = concurrency::at_once(async |Owner(number)| {
            let hold = round % 2 == 0;
            let claim = about(
                &round.to_string(),
                payment(&format!("payment {number}"), hold),
            );
            let claim = Claim {
                owner: Owner(number),
                ..claim
            };
            ledger.claim(claim).await.unwrap()
        });
        let unmarked = outcomes.iter().filter(|outcome| {
            matches!(outcome, ClaimOutcome::Granted(_, marks) if !marks.possible_duplicate)
        });
        assert_eq!(unmarked.count(), 1);
        if round % 2 == 0 {
            let held = outcomes.iter().filter(|outcome| {
                matches!(outcome, ClaimOutcome::Held(_, Hold::PossibleDuplicate))
            });
            assert_eq!(held.count(), outcomes.len() - 1);
        }
    }
}
