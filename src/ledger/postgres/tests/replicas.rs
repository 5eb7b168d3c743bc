//! Several gates on one database: leases, and who sees what of whom.

use super::super::changing::{dead_owners, lapse_if_dead};
use super::*;
use crate::ledger::conformance::{
    ONE, TWO, answer, assert_is, cannot_say, not_applied, notice, refund, settlement_of, success,
};
use crate::ledger::{Fingerprint, Hold, Policy, Subject, SubjectRule, Verdict};

/// Short, so that a test can wait for its end.
const SHORT: Duration = Duration::from_secs(1);
/// Nothing here waits longer for the other side.
const PATIENCE: Duration = Duration::from_secs(30);

fn gate(database: &Database, owner: Owner, lease: Duration) -> PostgresLedger {
    let store = Store::open(&database.settings()).unwrap();
    PostgresLedger::open(store, Clock::system(), lease, vec![owner])
}

fn claim_of(owner: Owner, claim: Claim) -> Claim {
    Claim { owner, ..claim }
}

async fn granted(ledger: &PostgresLedger, claim: Claim) -> Fence {
    match ledger.claim(claim).await.unwrap() {
        ClaimOutcome::Granted(fence, _) => fence,
        other => panic!("not granted: {other:?}"),
    }
}

async fn state(ledger: &PostgresLedger, fence: Fence) -> State {
    ledger.get(fence.record).await.unwrap().unwrap().state
}

async fn until(holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "it never came to pass");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_dead_gates_claims_are_ended_by_another() {
    let database = Database::take();
    let dead = gate(&database, ONE, SHORT);
    let held = granted(&dead, refund("a")).await;
    let resent = granted(&dead, notice("b")).await;
    let other = gate(&database, TWO, LEASE);
    let own = granted(&other, claim_of(TWO, refund("c"))).await;
    assert_is!(
        other.claim(claim_of(TWO, refund("a"))).await.unwrap(),
        ClaimOutcome::Running(fence) if fence == held
    );
    // It lives for longer than its lease, as long as it shows it.
    tokio::time::sleep(2 * SHORT).await;
    assert_eq!(state(&other, held).await, State::Claimed);

    dead.stop();
    // The other's own lease is long, and so are its rounds: one is made here.
    until(async || {
        let end = other.run(async |session, inner| {
            for owner in dead_owners(session).await? {
                lapse_if_dead(session, inner, owner).await?;
            }
            Ok(())
        });
        end.await.unwrap();
        state(&other, held).await == State::Unknown
    })
    .await;
    assert_eq!(state(&other, resent).await, State::Released);
    assert_eq!(state(&other, own).await, State::Claimed);
    let last = other.events(held.record).await.unwrap().pop().unwrap();
    assert_eq!(last.cause, "owner_lapsed");
    assert_eq!(other.stats().await.unwrap().records, [1, 1, 0, 1]);
}

#[tokio::test]
async fn every_gate_looks_for_the_dead_by_itself() {
    let database = Database::take();
    let dead = gate(&database, ONE, SHORT);
    let held = granted(&dead, refund("a")).await;
    dead.stop();
    let other = gate(&database, TWO, 4 * SHORT);
    until(async || state(&other, held).await == State::Unknown).await;
}

#[tokio::test]
async fn a_gate_that_closes_leaves_no_claim() {
    let database = Database::take();
    let closing = gate(&database, ONE, LEASE);
    let held = granted(&closing, refund("a")).await;
    closing.close().await;
    let other = gate(&database, TWO, LEASE);
    assert_eq!(state(&other, held).await, State::Unknown);
    let leases = "select count(*) from tikigate.owner where lease_until > clock_timestamp()";
    assert_eq!(database.query(leases), "1");
}

/// What the others see of a gate that was paused past its lease.
fn end_lease(database: &Database, owner: Owner) {
    let end = format!(
        "update tikigate.owner set lease_until = clock_timestamp() - interval '1 second' where owner = {}",
        owner.0
    );
    database.query(&end);
}

#[tokio::test]
async fn leave_to_send_ends_with_the_lease() {
    let database = Database::take();
    let paused = gate(&database, ONE, LEASE);
    let fence = granted(&paused, refund("a")).await;
    let short = "update tikigate.owner set lease_until = clock_timestamp() + interval '2 seconds'";
    let before = Instant::now();
    database.query(short);
    let permit = paused.permit(fence).await.unwrap();
    assert!(permit.valid_until > Instant::now());
    assert!(permit.valid_until <= before + PATIENCE.min(Duration::from_secs(4)));

    // Nobody has ended the claim yet, and still nothing goes out.
    end_lease(&database, ONE);
    assert_eq!(state(&paused, fence).await, State::Claimed);
    assert_is!(paused.permit(fence).await, Err(PermitError::Ledger(_)));
    assert_is!(paused.claim(refund("b")).await, Err(LedgerError::Failed(_)));
}

#[tokio::test]
async fn a_gate_stops_by_its_own_clock() {
    let database = Database::take();
    let gate = gate(&database, ONE, SHORT);
    let fence = granted(&gate, refund("a")).await;
    // Its signs of life are refused, and yet the database says that its lease is long.
    database.query(
        "revoke update on tikigate.owner from gate;
        update tikigate.owner set lease_until = clock_timestamp() + interval '1 hour'",
    );
    tokio::time::sleep(2 * SHORT).await;
    assert_is!(gate.permit(fence).await, Err(PermitError::Ledger(_)));
    assert_is!(gate.claim(refund("b")).await, Err(LedgerError::Failed(_)));
    assert!(gate.trouble().is_some());
    database.query("grant update on tikigate.owner to gate");
    // And goes on when they do.
    until(async || gate.trouble().is_none()).await;
    granted(&gate, refund("b")).await;
}

#[tokio::test]
async fn a_gate_that_comes_back_has_lost_its_claims_and_takes_new_ones() {
    let database = Database::take();
    let paused = gate(&database, ONE, LEASE);
    let other = gate(&database, TWO, LEASE);
    let sent = granted(&paused, refund("sent")).await;
    let unsent = granted(&paused, refund("unsent")).await;
    let resent = granted(&paused, notice("resent")).await;
    assert_eq!(other.lapse(ONE).await.unwrap(), 3);
    for fence in [sent, unsent, resent] {
        assert_is!(paused.permit(fence).await, Err(PermitError::Fenced));
    }
    // What it knows of its own attempts still counts.
    assert_eq!(
        paused.settle(sent, success()).await.unwrap(),
        Settled::Recorded(State::Done)
    );
    assert_eq!(
        paused.settle(unsent, not_applied()).await.unwrap(),
        Settled::Recorded(State::Released)
    );
    let newer = granted(&other, claim_of(TWO, notice("resent"))).await;
    assert_eq!(
        paused.settle(resent, success()).await.unwrap(),
        Settled::Superseded(State::Claimed)
    );
    assert_eq!(state(&other, newer).await, State::Claimed);
    granted(&paused, refund("new")).await;
}

#[tokio::test]
async fn a_person_decides_while_the_gate_is_paused() {
    let database = Database::take();
    let paused = gate(&database, ONE, LEASE);
    let other = gate(&database, TWO, LEASE);
    let fence = granted(&paused, refund("a")).await;
    other.lapse(ONE).await.unwrap();
    let seen = other.get(fence.record).await.unwrap().unwrap();
    let not_applied = |force| Resolution {
        force,
        ..crate::ledger::conformance::word(&seen, Verdict::NotApplied)
    };
    assert_is!(
        other.resolve(not_applied(false)).await,
        Err(ResolveError::MayStillRun { .. })
    );
    other.resolve(not_applied(true)).await.unwrap();
    let second = granted(&other, claim_of(TWO, refund("a"))).await;
    assert_eq!(second.attempt, 2);
    assert_is!(paused.permit(fence).await, Err(PermitError::Fenced));
    // The paused gate had sent it after all.
    assert_eq!(
        paused.settle(fence, success()).await.unwrap(),
        Settled::Alarm
    );
    assert_is!(other.permit(second).await, Err(PermitError::Fenced));
}

#[tokio::test]
async fn the_end_of_an_attempt_is_told_to_whoever_waits() {
    let database = Database::take();
    let runs = gate(&database, ONE, LEASE);
    let waits = gate(&database, TWO, LEASE);
    let mut told = waits.inner.ended.subscribe();
    // Nobody waits for these.
    for message in ["x", "y"] {
        let fence = granted(&runs, refund(message)).await;
        runs.claim(refund(message)).await.unwrap();
        runs.settle(fence, success()).await.unwrap();
    }
    let fence = granted(&runs, refund("a")).await;
    for _ in 0..2 {
        let claimed = waits.claim(claim_of(TWO, refund("a"))).await.unwrap();
        assert_is!(claimed, ClaimOutcome::Running(running) if running == fence);
    }
    let changed = waits.changed(fence);
    runs.settle(fence, settlement_of(200, "once"))
        .await
        .unwrap();
    let heard = tokio::time::timeout(PATIENCE, told.recv()).await;
    assert_eq!(heard.unwrap().unwrap(), fence.record);
    tokio::time::timeout(PATIENCE, changed).await.unwrap();
    let given = waits.claim(claim_of(TWO, refund("a"))).await.unwrap();
    assert_is!(given, ClaimOutcome::Done(_, kept) if kept == answer(200, "once"));
    assert!(told.try_recv().is_err(), "the others were told, too");
}

#[tokio::test]
async fn without_word_whoever_waits_looks_again() {
    let database = Database::take();
    let ledger = gate(&database, ONE, LEASE);
    let fence = granted(&ledger, refund("a")).await;
    let began = Instant::now();
    ledger.changed(fence).await;
    assert!(began.elapsed() >= LOOK_AGAIN);
}

fn second_refund(message: &str, owner: Owner, hold: bool) -> Claim {
    Claim {
        fingerprint: Fingerprint([9; 32]),
        subject: Some(Subject {
            id: "payment".into(),
            rule: SubjectRule::Payment {
                amount: "35000".into(),
                window: Duration::from_secs(86_400),
                hold,
            },
        }),
        ..claim_of(owner, refund(message))
    }
}

#[tokio::test]
async fn of_two_refunds_of_one_payment_at_two_gates_one_is_held() {
    let database = Database::take();
    let gates = [gate(&database, ONE, LEASE), gate(&database, TWO, LEASE)];
    for round in 0..20 {
        let of = |gate: usize| {
            let owner = [ONE, TWO][gate];
            let mut claim = second_refund(&format!("{round} {gate}"), owner, true);
            if let Some(subject) = &mut claim.subject {
                subject.id = format!("payment {round}").into();
            }
            gates[gate].claim(claim)
        };
        let (one, two) = tokio::join!(of(0), of(1));
        let outcomes = [one.unwrap(), two.unwrap()];
        let granted = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, ClaimOutcome::Granted(..)));
        assert_eq!(granted.count(), 1, "{outcomes:?}");
        let held = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, ClaimOutcome::Held(_, Hold::PossibleDuplicate)));
        assert_eq!(held.count(), 1, "{outcomes:?}");
    }
}

#[tokio::test]
async fn of_one_message_at_many_gates_one_is_granted() {
    let database = Database::take();
    let gates: Vec<_> = (0..4)
        .map(|owner| gate(&database, Owner(owner), LEASE))
        .collect();
    for round in 0..50 {
        let message = round.to_string();
        let claims: Vec<_> = gates
            .iter()
            .zip(0..)
            .map(|(gate, owner)| gate.claim(claim_of(Owner(owner), refund(&message))))
            .collect();
        let mut granted = 0;
        for claim in claims {
            granted += u32::from(matches!(claim.await.unwrap(), ClaimOutcome::Granted(..)));
        }
        assert_eq!(granted, 1);
    }
}

#[tokio::test]
async fn a_database_that_lost_a_gates_signs_is_not_believed() {
    let database = Database::take();
    let gate = gate(&database, ONE, SHORT);
    granted(&gate, refund("known")).await;
    for loss in [
        "delete from tikigate.owner",
        "update tikigate.owner set beats = 1",
    ] {
        until(async || {
            let beats = "select coalesce(max(beats), 0) > 3 from tikigate.owner";
            database.query(beats) == "t"
        })
        .await;
        database.query(loss);
        until(async || gate.quarantine().await.unwrap().is_some()).await;
        until(async || {
            gate.trouble()
                .is_some_and(|trouble| trouble.text.contains("earlier state"))
        })
        .await;
        until(async || {
            let claim = gate.claim(refund(&format!("after {loss}"))).await;
            matches!(claim, Ok(ClaimOutcome::Held(_, Hold::LedgerGap)))
        })
        .await;
        gate.lift_quarantine("linh".to_owned(), "compared".to_owned())
            .await
            .unwrap();
        assert_eq!(
            database.query(
                "select what, by_name, reason from tikigate.ledger_event order by number desc limit 1"
            ),
            "quarantine lifted|linh|compared"
        );
    }
}

#[tokio::test]
async fn another_ledgers_namespaces_are_refused_when_it_appears() {
    let database = Database::take();
    let definition = |key: &str| Definition {
        key: key.to_owned(),
        fingerprint: "/amount".to_owned(),
    };
    let gate = gate(&database, ONE, SHORT);
    gate.define("refund".into(), definition("/request_id"))
        .await
        .unwrap();
    database.query("update tikigate.namespace set key_fields = '/other'");
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and usename = 'gate'";
    database.query(end);
    until(async || {
        gate.trouble()
            .is_some_and(|trouble| trouble.text.contains("namespace refund"))
    })
    .await;
    assert_is!(gate.claim(refund("a")).await, Err(LedgerError::Failed(text))
        if text.contains("another definition"));
    database.query("update tikigate.namespace set key_fields = '/request_id'");
    until(async || gate.trouble().is_none()).await;
    granted(&gate, refund("a")).await;
}

#[tokio::test]
async fn people_can_read_it_with_psql() {
    let database = Database::take();
    let ledger = gate(&database, ONE, LEASE);
    let claim = Claim {
        policy: Policy::Hold,
        fields: crate::ledger::Fields([("transaction_id".into(), "T-1".to_owned())].into()),
        ..refund("hoàn-1")
    };
    let fence = granted(&ledger, claim).await;
    ledger.settle(fence, cannot_say()).await.unwrap();
    let shown = database.query(
        "select state, hold, client, message, field_names, field_texts, updated_at > created_at
            and updated_at < now() + interval '1 hour' from tikigate.records",
    );
    assert_eq!(
        shown,
        "unknown|outcome_unknown|wallet|hoàn-1|{transaction_id}|{T-1}|t"
    );
    let events = database.query("select state, cause from tikigate.event order by number");
    assert_eq!(events, "claimed|claimed\nunknown|upstream_reset");
}

#[tokio::test]
async fn lists_look_at_a_bounded_number_and_go_on() {
    let database = Database::take();
    let ledger = gate(&database, ONE, LEASE);
    let fence = granted(&ledger, refund("needle")).await;
    let many = "
        insert into tikigate.record
        select (jsonb_populate_record(r, jsonb_build_object(
            'id', r.id + n, 'message', 'hay ' || n, 'state', 'done', 'key_hash', '\\x' || md5(n::text))
        )).* from tikigate.record r, generate_series(1, 12000) n;
        update tikigate.record set id = id + 20000, field_texts = array['T-9'] where message = 'needle'";
    database.query(many);
    let needle = RecordId(fence.record.0 + 20000);
    let filters = [
        Filter {
            key: Some("needle".to_owned()),
            ..Filter::default()
        },
        Filter {
            query: Some("eedl".to_owned()),
            ..Filter::default()
        },
        Filter {
            reference: Some("T-9".to_owned()),
            ..Filter::default()
        },
        Filter {
            state: Some(State::Claimed),
            ..Filter::default()
        },
    ];
    for filter in filters {
        let mut filter = Filter {
            limit: 1000,
            ..filter
        };
        let mut found = Vec::new();
        loop {
            let page = ledger.list(filter.clone()).await.unwrap();
            found.extend(page.records.into_iter().map(|record| record.id));
            filter.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        assert_eq!(found, [needle], "{filter:?}");
    }
    // All of them, in pages.
    let mut filter = Filter {
        limit: 1000,
        ..Filter::default()
    };
    let mut seen = 0;
    loop {
        let page = ledger.list(filter.clone()).await.unwrap();
        assert!(page.records.is_sorted_by_key(|record| record.id));
        seen += page.records.len();
        filter.after = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(seen, 12001);
}
