//! Who may run a message.

use super::*;

pub(crate) async fn first_claim_is_granted_and_then_runs(open: Open) {
    let f = open.one().await;
    let fence = f.granted(refund("a")).await;
    assert_eq!((fence.owner, fence.attempt), (ONE, 1));
    let other = Claim {
        owner: TWO,
        ..refund("a")
    };
    assert_is!(f.claim(other).await, ClaimOutcome::Running(running) if running == fence);
    let record = f.record(fence.record).await;
    assert_eq!(record.key, refund("a").key);
    assert_eq!(record.created_at, f.now());
    assert_eq!(record.may_run_until, f.now() + MAY_RUN);
}

pub(crate) async fn released_key_is_claimed_again(open: Open) {
    let f = open.one().await;
    let first = f.settled(refund("a"), not_applied()).await;
    let again = Claim {
        owner: TWO,
        route: "moved".into(),
        ..refund("a")
    };
    let second = f.granted(again).await;
    assert_eq!(second.record, first.record);
    assert_eq!((second.owner, second.attempt), (TWO, 2));
    assert_eq!(&*f.record(first.record).await.route, "moved");
}

pub(crate) async fn done_is_replayed(open: Open) {
    let f = open.one().await;
    let fence = f.settled(refund("a"), declined()).await;
    let dated = Claim {
        admission: Admission::KnownOnly,
        ..refund("a")
    };
    for claim in [refund("a"), dated] {
        let given = f.claim(claim).await;
        assert_is!(given, ClaimOutcome::Done(id, kept)
            if id == fence.record && kept == answer(422, "{\"error\":{}}"));
    }
}

pub(crate) async fn unknown_is_held(open: Open) {
    let f = open.one().await;
    let fence = f.settled(refund("a"), cannot_say()).await;
    // A laxer route changes nothing about it.
    for claim in [refund("a"), notice("a")] {
        assert_is!(f.claim(claim).await, ClaimOutcome::Held(id, Hold::OutcomeUnknown)
            if id == fence.record);
    }
}

pub(crate) async fn other_money_conflicts(open: Open) {
    let f = open.one().await;
    let running = f.granted(refund("running")).await;
    let released = f.settled(refund("released"), not_applied()).await;
    let done = f.settled(refund("done"), success()).await;
    let unknown = f.settled(refund("unknown"), cannot_say()).await;
    for fence in [running, released, done, unknown] {
        let before = f.record(fence.record).await;
        let other = Claim {
            fingerprint: Fingerprint([8; 32]),
            keep: 2 * KEEP,
            ..refund(&before.key.message)
        };
        assert_is!(f.claim(other).await, ClaimOutcome::Conflict(id) if id == fence.record);
        let after = f.record(fence.record).await;
        assert_eq!(
            (after.version, after.expires_at),
            (before.version, before.expires_at)
        );
    }
}

pub(crate) async fn keys_are_told_apart(open: Open) {
    let f = open.one().await;
    let keys = [
        ("n", "c", "ab"),
        ("n", "ca", "b"),
        ("nc", "a", "b"),
        ("n", "c", "AB"),
        ("n", "c", "ab "),
        ("n", "c", "a\u{300}b"),
    ];
    for (namespace, client, message) in keys {
        let key = Key {
            namespace: namespace.into(),
            client: client.into(),
            message: message.into(),
        };
        let claim = Claim {
            key,
            ..refund("any")
        };
        assert_eq!(f.granted(claim).await.attempt, 1);
    }
}

pub(crate) async fn only_known_makes_nothing(open: Open) {
    let f = open.one().await;
    let dated = |message| Claim {
        admission: Admission::KnownOnly,
        ..refund(message)
    };
    assert_is!(f.claim(dated("a")).await, ClaimOutcome::Unfamiliar);
    assert_eq!(f.ledger.stats().await.unwrap().records, [0; 4]);
    f.settled(refund("b"), not_applied()).await;
    assert_eq!(f.granted(dated("b")).await.attempt, 2);
}

pub(crate) async fn answers_only_claims_nothing(open: Open) {
    let f = open.one().await;
    let asking = |message| Claim {
        admission: Admission::AnswersOnly,
        ..refund(message)
    };
    assert_is!(f.claim(asking("a")).await, ClaimOutcome::Unfamiliar);
    assert_eq!(f.ledger.stats().await.unwrap().records, [0; 4]);
    let running = f.granted(refund("a")).await;
    assert_is!(f.claim(asking("a")).await, ClaimOutcome::Running(fence) if fence == running);
    f.settle(running, not_applied()).await;
    let before = f.record(running.record).await;
    assert_is!(f.claim(asking("a")).await, ClaimOutcome::Claimable);
    let after = f.record(running.record).await;
    assert_eq!((after.state, after.version), (before.state, before.version));
    let again = f.granted(refund("a")).await;
    assert_eq!(again.attempt, 2);
    f.settle(again, success()).await;
    assert_is!(f.claim(asking("a")).await, ClaimOutcome::Done(..));
    let other = Claim {
        fingerprint: Fingerprint([9; 32]),
        ..asking("a")
    };
    assert_is!(f.claim(other).await, ClaimOutcome::Conflict(_));
}

pub(crate) async fn stricter_policy_holds(open: Open) {
    let f = open.one().await;
    // Tightened while the attempt runs.
    let fence = f.granted(notice("a")).await;
    let before = f.record(fence.record).await.version;
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Running(_));
    let record = f.record(fence.record).await;
    assert_eq!(record.policy, Policy::Hold);
    assert!(record.version > before);
    assert_eq!(
        f.settle(fence, cannot_say()).await,
        Settled::Recorded(State::Unknown)
    );
    // Never loosened.
    f.settled(refund("b"), not_applied()).await;
    let fence = f.settled(notice("b"), cannot_say()).await;
    assert_eq!(f.state(fence.record).await, State::Unknown);
}

pub(crate) async fn given_up_is_no_release_for_a_hold(open: Open) {
    let f = open.one().await;
    let first = f.settled(notice("a"), cannot_say()).await;
    // Another attempt's proof says nothing about the first.
    let second = f.settled(notice("a"), not_applied()).await;
    assert_eq!(second.attempt, 2);
    assert_is!(
        f.claim(refund("a")).await,
        ClaimOutcome::Held(_, Hold::OutcomeUnknown)
    );
    assert_eq!(f.state(first.record).await, State::Unknown);
    f.hands.advance(MAY_RUN);
    f.resolve(first.record, Verdict::NotApplied).await.unwrap();
    assert_eq!(f.granted(refund("a")).await.attempt, 3);
}

pub(crate) async fn keep_is_only_extended(open: Open) {
    let f = open.one().await;
    let for_days = |days| Claim {
        keep: days * DAY,
        ..refund("a")
    };
    let fence = f.granted(for_days(10)).await;
    f.hands.advance(DAY);
    f.settle(fence, success()).await;
    let done_at = f.now();
    let expiry = async || f.record(fence.record).await.expires_at;
    assert_eq!(expiry().await, done_at + 10 * DAY);
    f.hands.advance(DAY);
    f.claim(for_days(5)).await;
    assert_eq!(expiry().await, done_at + 10 * DAY);
    f.claim(for_days(20)).await;
    assert_eq!(expiry().await, done_at + 20 * DAY);

    let longer = |days| Claim {
        keep: days * DAY,
        ..refund("b")
    };
    let fence = f.granted(longer(10)).await;
    f.claim(longer(30)).await;
    f.settle(fence, success()).await;
    let record = f.record(fence.record).await;
    assert_eq!(record.expires_at, f.now() + 30 * DAY);
}

pub(crate) async fn namespaces_keep_their_definition(open: Open) {
    let f = open.one().await;
    let definition = |key: &str| Definition {
        key: key.to_owned(),
        fingerprint: "/amount".to_owned(),
    };
    let define = |namespace: &str, key| f.ledger.define(namespace.into(), definition(key));
    define("refund", "/request_id").await.unwrap();
    define("refund", "/request_id").await.unwrap();
    define("order", "/message_id").await.unwrap();
    assert_is!(define("refund", "/id").await, Err(DefineError::Disagrees { stored })
        if stored == definition("/request_id"));
    define("refund", "/request_id").await.unwrap();
}
