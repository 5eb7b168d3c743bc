//! What claims see of other messages about the same order.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// About an order of its own.
fn about(order: &str, claim: Claim) -> Claim {
    let mut claim = claim;
    claim.key.message = format!("{order}: {}", claim.key.message).into();
    if let Some(subject) = &mut claim.subject {
        subject.id = order.into();
    }
    claim
}

pub(crate) async fn an_event_older_than_one_passed_on_is_marked(open: Open) {
    let f = open.one().await;
    let newer = f.now() - DAY;
    let older = newer - Duration::from_millis(1);
    let cases = [
        ("running", None, true),
        ("taken", Some(success()), true),
        // It was passed on, whatever the backend said.
        ("declined", Some(declined()), true),
        // Given up: nobody knows whether the backend took it.
        ("given up", Some(cannot_say()), true),
        ("not sent", Some(not_applied()), false),
    ];
    for (order, settlement, stale) in cases {
        let claim = about(order, event("newer", newer, false));
        let first = f.come_to(claim, settlement).await;
        let same = f.marks(about(order, event("same", newer, true))).await;
        assert_eq!(same, Marks::default(), "{order}");
        // The one of the same time was passed on too: looked at without it.
        f.settle(
            f.running(about(order, event("same", newer, true))).await,
            not_applied(),
        )
        .await;
        let ClaimOutcome::Granted(fence, marks) =
            f.claim(about(order, event("older", older, false))).await
        else {
            panic!("{order}");
        };
        assert_eq!(marks.stale_event, stale, "{order}");
        assert_eq!(f.record(fence.record).await.marks, marks);
        assert_eq!(f.record(first.record).await.marks, Marks::default());
    }
}

pub(crate) async fn marks_are_the_attempts_own(open: Open) {
    let f = open.one().await;
    let newer = f.now();
    let older = newer - SECOND;
    let fence = f.settled(event("older", older, false), not_applied()).await;
    assert_eq!(f.record(fence.record).await.marks, Marks::default());
    let newest = f.granted(event("newer", newer, false)).await;
    let marks = f.marks(event("older", older, false)).await;
    assert!(marks.stale_event && !marks.possible_duplicate);
    assert_eq!(f.record(fence.record).await.marks, marks);
    // The newer one was not passed on after all.
    let again = f.running(event("older", older, false)).await;
    f.settle(again, not_applied()).await;
    f.settle(newest, not_applied()).await;
    let marks = f.marks(event("older", older, false)).await;
    assert_eq!(marks, Marks::default());
    assert_eq!(f.record(fence.record).await.marks, marks);
}

pub(crate) async fn an_attempt_in_doubt_counts_whatever_came_after(open: Open) {
    let f = open.one().await;
    let newer = f.now();
    // The first attempt may have been taken, though the second one was not.
    f.settled(event("newer", newer, false), cannot_say()).await;
    f.settled(event("newer", newer, false), not_applied()).await;
    assert!(
        f.marks(event("older", newer - SECOND, true))
            .await
            .stale_event
    );
}

pub(crate) async fn a_stale_event_is_dropped_beside_one_that_was_taken(open: Open) {
    let f = open.one().await;
    let newer = f.now();
    let older = newer - SECOND;
    let cases = [
        ("running", None, false),
        ("taken", Some(success()), true),
        ("declined", Some(declined()), false),
        ("given up", Some(cannot_say()), false),
        ("not sent", Some(not_applied()), false),
    ];
    for (order, settlement, dropped) in cases {
        let claim = about(order, event("newer", newer, false));
        f.come_to(claim, settlement).await;
        let claim = about(order, event("older", older, true));
        match f.claim(claim.clone()).await {
            ClaimOutcome::Dropped(id, kept) if dropped => {
                assert_eq!(kept.status, StatusCode::OK);
                assert_eq!(kept.body, crate::tiki::SUCCESS_BODY);
                let record = f.record(id).await;
                assert_eq!((record.state, record.attempt), (State::Done, 0));
                assert!(record.marks.stale_event && !record.declared);
                assert_eq!(record.answer.as_ref(), Some(&kept));
                assert_eq!(record.expires_at, f.now() + KEEP);
                assert_eq!(f.last_cause(id).await, "stale_event_dropped");
                // From now on it is answered like any other.
                assert_is!(f.claim(claim).await, ClaimOutcome::Done(again, given)
                    if again == id && given == kept);
                assert_is!(f.reopen(id).await, Err(ResolveError::NotDeclared));
            }
            ClaimOutcome::Granted(..) if !dropped => {}
            other => panic!("{order}: {other:?}"),
        }
    }
    // Of the same time, or told to pass stale ones on.
    let marks = f.marks(about("taken", event("same", newer, true))).await;
    assert!(!marks.stale_event);
    let marks = f.marks(about("taken", event("pass", older, false))).await;
    assert!(marks.stale_event);
}

pub(crate) async fn what_was_dropped_was_not_taken(open: Open) {
    let f = open.one().await;
    let newest = f.now();
    let times: Vec<_> = (0..3).map(|back| newest - back * SECOND).collect();
    let first = Claim {
        keep: 20 * DAY,
        ..event("0", times[0], true)
    };
    let taken = f.settled(first, success()).await;
    assert_is!(
        f.claim(event("1", times[1], true)).await,
        ClaimOutcome::Dropped(..)
    );
    f.hands.advance(10 * DAY);
    assert_is!(
        f.claim(event("2", times[2], true)).await,
        ClaimOutcome::Dropped(..)
    );
    // The one that was taken is forgotten, those that were dropped are still there.
    f.hands.advance(10 * DAY);
    let other = event("3", times[2] - SECOND, true);
    f.ledger.sweep(10).await.unwrap();
    assert!(f.ledger.get(taken.record).await.unwrap().is_none());
    assert_eq!(f.marks(other).await, Marks::default());
}

pub(crate) async fn a_released_event_is_dropped_when_a_newer_one_was_taken(open: Open) {
    let f = open.one().await;
    let newer = f.now();
    let older = newer - SECOND;
    let fence = f.settled(event("older", older, true), cannot_say()).await;
    f.settled(event("newer", newer, true), success()).await;
    let claim = event("older", older, true);
    assert_is!(f.claim(claim.clone()).await, ClaimOutcome::Dropped(id, _) if id == fence.record);
    let record = f.record(fence.record).await;
    assert_eq!((record.state, record.attempt), (State::Done, 1));
    assert!(record.marks.stale_event);
    // Its attempt answers late: what was answered stays.
    assert_eq!(
        f.settle(fence, declined()).await,
        Settled::Superseded(State::Done)
    );
    assert_is!(f.claim(claim).await, ClaimOutcome::Done(_, kept)
        if kept.status == StatusCode::OK);
}

pub(crate) async fn subjects_are_told_apart(open: Open) {
    let f = open.one().await;
    let newer = f.now();
    let older = newer - SECOND;
    f.settled(event("a", newer, true), success()).await;
    f.settled(payment("b", true), success()).await;
    let changes: [fn(&mut Claim); 6] = [
        |claim| claim.key.namespace = "other".into(),
        |claim| claim.key.client = "other".into(),
        |claim| set_subject(claim, "order 7"),
        |claim| set_subject(claim, "ORDER 7 \u{301}"),
        |claim| set_subject(claim, "order 7 \u{301} "),
        |claim| set_subject(claim, ""),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut claim = event(&format!("event {number}"), older, true);
        change(&mut claim);
        assert_eq!(f.marks(claim).await, Marks::default(), "{number}");
        let mut claim = payment(&format!("payment {number}"), true);
        change(&mut claim);
        assert_eq!(f.marks(claim).await, Marks::default(), "{number}");
    }
    // An event and a payment about the same id say nothing of each other.
    let mut claim = payment("c", true);
    set_subject(&mut claim, "order 7 \u{301}");
    assert_eq!(f.marks(claim).await, Marks::default());
    let mut claim = event("d", older, true);
    set_subject(&mut claim, "T-7");
    assert_eq!(f.marks(claim).await, Marks::default());
    // Nor does a message about nothing.
    assert_eq!(f.marks(notice("e")).await, Marks::default());
    assert_is!(
        f.claim(event("f", older, true)).await,
        ClaimOutcome::Dropped(..)
    );
}

fn set_subject(claim: &mut Claim, id: &str) {
    if let Some(subject) = &mut claim.subject {
        subject.id = id.into();
    }
}

pub(crate) async fn a_busy_subject_forgets_no_sibling(open: Open) {
    let f = open.one().await;
    let newest = f.now();
    f.settled(event("newest", newest, true), success()).await;
    let first = f.settled(payment("first", false), success()).await;
    for number in 0..300_u32 {
        let at = newest - number * SECOND - SECOND;
        assert!(
            f.marks(event(&number.to_string(), at, false))
                .await
                .stale_event
        );
        let mut other = payment(&format!("payment {number}"), false);
        set_amount(&mut other, &number.to_string());
        assert_eq!(f.marks(other).await, Marks::default());
    }
    assert_is!(
        f.claim(event("older", newest - SECOND, true)).await,
        ClaimOutcome::Dropped(..)
    );
    assert_is!(
        f.claim(payment("second", true)).await,
        ClaimOutcome::Held(..)
    );
    assert_eq!(f.record(first.record).await.marks, Marks::default());
}

pub(crate) fn set_amount(claim: &mut Claim, to: &str) {
    if let Some(SubjectRule::Payment { amount, .. }) =
        claim.subject.as_mut().map(|subject| &mut subject.rule)
    {
        *amount = to.into();
    }
}
