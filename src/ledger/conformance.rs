//! What every store promises, as tests over any store.
//!
//! A store writes `suite!(path::to::open);` in its tests, where `open` is an async function that
//! gives a [`Fixture`] with an empty store on a manual clock. A store that outlives its process also
//! gives [`Fixture::reopen`] and writes `durable_suite!(path::to::open);`.

use std::any::Any;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

use super::*;
use crate::clock::{Clock, ManualClock};

pub(super) mod changing;
pub(super) mod claiming;
pub(super) mod closing;
pub(super) mod concurrency;
pub(super) mod durable;
pub(super) mod fields;
pub(super) mod history;
pub(super) mod keeping;
pub(super) mod late;
pub(super) mod payments;
pub(super) mod people;
pub(super) mod quarantine;
pub(super) mod reopening;
pub(super) mod settling;
pub(super) mod sightings;
pub(super) mod subjects;

macro_rules! suite {
    ($open:path) => {
        $crate::ledger::conformance::suite!(@ $open;
            changing: waiting_may_be_given_up, a_claim_after_the_end_sees_it;
            claiming: first_claim_is_granted_and_then_runs, released_key_is_claimed_again,
                done_is_replayed, unknown_is_held, other_money_conflicts, keys_are_told_apart,
                only_known_makes_nothing, answers_only_claims_nothing, stricter_policy_holds, given_up_is_no_release_for_a_hold,
                keep_is_only_extended, namespaces_keep_their_definition;
            concurrency: dropped_claim_goes_back, claim_dropped_while_pending_goes_back,
                one_of_many_threads_is_granted, threads_never_share_an_attempt;
            fields: fields_are_kept_as_they_came, records_are_found_by_a_field,
                records_are_found_by_their_time, records_are_found_by_their_key,
                filters_hold_together_and_pages_go_on, a_call_is_kept_until_its_record_is_done,
                held_calls_are_kept;
            history: random_histories_keep_the_promises;
            keeping: done_is_forgotten_after_its_time, nothing_else_is_forgotten,
                sweep_keeps_to_its_limit, list_is_in_order_and_filtered, stats_follow_every_change,
                events_tell_the_story, unknown_ids_have_nothing;
            closing: a_closed_store_refuses;
            late: late_answers_end_an_unknown, late_answers_change_nothing_that_ended,
                late_success_after_rejected_is_an_alarm,
                success_of_a_forgotten_attempt_is_an_alarm, late_answers_after_not_applied, late_success_beside_a_newer_attempt_is_an_alarm,
                alarmed_release_becomes_unknown, alarmed_lapse_becomes_unknown,
                overtaken_attempts_change_nothing, overtaken_resends_raise_no_alarm;
            payments: a_second_payment_is_marked, a_second_payment_is_held,
                other_amounts_are_other_payments, the_window_runs_from_the_last_change,
                the_window_is_whole_wherever_a_week_begins,
                what_may_run_counts_beyond_the_window, long_held_siblings_are_found,
                a_released_one_sees_who_ran_meanwhile, a_person_lets_a_suspect_pass,
                a_person_ends_a_suspect, a_gap_may_have_moved_money,
                two_at_once_never_both_pass_unmarked;
            people: resolutions_end_an_unknown, resolving_compares_before_it_sets,
                resolving_wants_name_and_reason, not_applied_waits_for_the_attempt,
                lapse_takes_an_owners_claims;
            quarantine: absent_keys_are_held, known_keys_are_not, gaps_are_resolved_one_by_one,
                keys_released_before_are_held,
                a_gap_of_a_known_key_waits_for_what_was_forgotten, lifting_wants_name_and_reason;
            reopening: every_word_can_be_taken_back, the_backends_own_answer_stays,
                reopening_compares_before_it_sets, reopening_wants_name_and_reason,
                a_claim_and_a_reopening_race_for_one_release,
                only_a_person_or_an_answer_ends_what_was_taken_back,
                an_unsent_attempt_leaves_the_word_standing, what_was_given_up_is_in_doubt_again,
                what_it_was_held_for_holds_it_again, a_reopened_record_is_not_forgotten;
            settling: each_class_has_its_state, saying_it_again_changes_nothing,
                strangers_settle_nothing, final_answers_stay, permits_follow_the_claim,
                permits_end_with_the_time_that_was_asked_for;
            sightings: applied_ends_it_at_once, not_applied_counts_twice_a_pause_apart,
                anything_between_starts_it_over, a_clock_that_goes_back_starts_it_over,
                not_applied_waits_for_the_attempt_to_be_over,
                a_look_releases_once_in_a_records_life,
                a_first_look_says_nothing_of_a_later_attempt,
                success_after_a_looks_release_is_believed, an_alarm_ends_what_looks_may_release,
                looks_compare_before_they_set, a_gap_can_be_looked_into,
                endless_looks_leave_bounded_events;
            subjects: an_event_older_than_one_passed_on_is_marked, marks_are_the_attempts_own,
                an_attempt_in_doubt_counts_whatever_came_after,
                a_stale_event_is_dropped_beside_one_that_was_taken,
                what_was_dropped_was_not_taken,
                a_released_event_is_dropped_when_a_newer_one_was_taken, subjects_are_told_apart,
                a_busy_subject_forgets_no_sibling;
        );
    };
    (@durable $open:path) => {
        $crate::ledger::conformance::suite!(@ $open;
            durable: what_was_kept_survives, answers_survive_byte_for_byte,
                claims_of_the_dead_are_ended, what_only_the_rules_know_survives,
                words_can_still_be_taken_back, sightings_survive, subjects_survive,
                quarantine_and_generation_survive, ids_are_never_given_again,
                definitions_survive, what_was_replied_survives_a_kill, many_lives_keep_the_counts;
        );
    };
    (@ $open:path; $($module:ident: $($test:ident),+;)+) => {
        $(mod $module {
            $(#[tokio::test]
            async fn $test() {
                $crate::ledger::conformance::$module::$test($crate::ledger::conformance::Open(
                    || Box::pin($open()),
                ))
                .await;
            })+
        })+
    };
}
pub(super) use suite;

/// The tests of a store that outlives its process.
macro_rules! durable_suite {
    ($open:path) => {
        $crate::ledger::conformance::suite!(@durable $open);
    };
}
pub(super) use durable_suite;

/// Makes empty stores.
#[derive(Clone, Copy)]
pub(super) struct Open(pub(super) fn() -> Pin<Box<dyn Future<Output = Fixture>>>);

impl Open {
    pub(super) async fn one(self) -> Fixture {
        (self.0)().await
    }
}

/// An empty store and the hands of its clock.
pub(super) struct Fixture {
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) clock: Clock,
    pub(super) hands: ManualClock,
    /// What must live as long as the store: a directory, a server.
    pub(super) _held: Box<dyn Any>,
    /// How the next process opens what this one leaves; none where it leaves nothing.
    pub(super) reopen: Option<Reopen>,
}

/// How a store's process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// In order: by [`Ledger::close`].
    Closed,
    /// At once, as by `kill -9`: nothing more is written.
    Killed,
}

/// Ends the process that uses a store, and starts the next one. Gets the old store still in use; how
/// it ends is up to the function, since only the store's author knows how to come close to a kill:
/// a copy of the files, a connection that is cut.
pub(super) type Reopen = Box<dyn Fn(End, Arc<dyn Ledger>) -> Starting>;

type Starting = Pin<Box<dyn Future<Output = Reopened>>>;

/// A store in its next process.
pub(super) struct Reopened {
    pub(super) ledger: Arc<dyn Ledger>,
    /// Claims of the dead process that were ended.
    pub(super) lapsed: u64,
}

pub(super) const ONE: Owner = Owner(1);
pub(super) const TWO: Owner = Owner(2);
pub(super) const MAY_RUN: Duration = Duration::from_secs(133);
pub(super) const DAY: Duration = Duration::from_secs(86_400);
pub(super) const KEEP: Duration = Duration::from_secs(400 * 86_400);

/// A claim that holds.
pub(super) fn refund(message: &str) -> Claim {
    Claim {
        key: Key {
            namespace: "refund".into(),
            client: "wallet".into(),
            message: message.into(),
        },
        fingerprint: Fingerprint([7; 32]),
        owner: ONE,
        admission: Admission::Any,
        policy: Policy::Hold,
        keep: KEEP,
        may_run_for: MAY_RUN,
        route: "refund".into(),
        fields: Fields::default(),
        request: None,
        subject: None,
    }
}

/// A claim that may be sent again.
pub(super) fn notice(message: &str) -> Claim {
    Claim {
        policy: Policy::Resend,
        route: "notice".into(),
        ..refund(message)
    }
}

/// An event about one order.
pub(super) fn event(message: &str, at: SystemTime, drop_stale: bool) -> Claim {
    Claim {
        subject: Some(Subject {
            id: "order 7 \u{301}".into(),
            rule: SubjectRule::Event { at, drop_stale },
        }),
        ..notice(message)
    }
}

/// A refund of one payment.
pub(super) fn payment(message: &str, hold: bool) -> Claim {
    Claim {
        subject: Some(Subject {
            id: "T-7".into(),
            rule: SubjectRule::Payment {
                amount: "150000.5".into(),
                window: DAY,
                hold,
            },
        }),
        ..refund(message)
    }
}

pub(super) fn answer(status: u16, body: &'static str) -> KeptAnswer {
    KeptAnswer {
        status: StatusCode::from_u16(status).unwrap(),
        headers: vec![(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )],
        body: Bytes::from_static(body.as_bytes()),
    }
}

pub(super) fn settlement_of(status: u16, body: &'static str) -> Settlement {
    Settlement::Done(answer(status, body), "success".into())
}

pub(super) fn success() -> Settlement {
    settlement_of(200, "{\"data\":{}}")
}

pub(super) fn declined() -> Settlement {
    Settlement::Done(answer(422, "{\"error\":{}}"), "declined".into())
}

pub(super) fn not_applied() -> Settlement {
    Settlement::Released("connect_refused".into())
}

pub(super) fn cannot_say() -> Settlement {
    Settlement::Unknown("upstream_reset".into())
}

/// A wish to take back a word on the record.
pub(super) fn reopening(record: &Record) -> Reopening {
    Reopening {
        id: record.id,
        expected: (record.state, record.attempt, record.version),
        by: "minh".to_owned(),
        reason: "the statement was of another day".to_owned(),
    }
}

pub(super) fn word(record: &Record, verdict: Verdict) -> Resolution {
    Resolution {
        id: record.id,
        expected: (record.state, record.attempt, record.version),
        verdict,
        by: "linh".to_owned(),
        reason: "the bank's statement".to_owned(),
        force: false,
    }
}

impl Fixture {
    /// The store's next process, after the one before it ended; says how many claims that one left.
    pub(super) async fn restart(&mut self, end: End) -> u64 {
        let reopen = self.reopen.as_ref().expect("a durable store");
        let limits = MemoryLimits {
            max_records: 0,
            max_bytes: 0,
        };
        let nothing = Arc::new(MemoryLedger::new(self.clock.clone(), limits));
        let old = std::mem::replace(&mut self.ledger, nothing);
        let Reopened { ledger, lapsed } = reopen(end, old).await;
        self.ledger = ledger;
        lapsed
    }

    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    pub(super) async fn claim(&self, claim: Claim) -> ClaimOutcome {
        self.ledger.claim(claim).await.unwrap()
    }

    /// The fence of a claim that must be granted.
    pub(super) async fn granted(&self, claim: Claim) -> Fence {
        match self.claim(claim).await {
            ClaimOutcome::Granted(fence, _) => fence,
            other => panic!("not granted: {other:?}"),
        }
    }

    /// A claim that was granted and settled, if it was.
    pub(super) async fn come_to(&self, claim: Claim, settlement: Option<Settlement>) -> Fence {
        let fence = self.granted(claim).await;
        if let Some(settlement) = settlement {
            self.settle(fence, settlement).await;
        }
        fence
    }

    /// The fence of the attempt that runs already.
    pub(super) async fn running(&self, claim: Claim) -> Fence {
        match self.claim(claim).await {
            ClaimOutcome::Running(fence) => fence,
            other => panic!("not running: {other:?}"),
        }
    }

    /// What the backend is told with a claim that must be granted.
    pub(super) async fn marks(&self, claim: Claim) -> Marks {
        match self.claim(claim).await {
            ClaimOutcome::Granted(_, marks) => marks,
            other => panic!("not granted: {other:?}"),
        }
    }

    /// The record of a claim that must be held.
    pub(super) async fn held(&self, claim: Claim) -> RecordId {
        match self.claim(claim).await {
            ClaimOutcome::Held(id, _) => id,
            other => panic!("not held: {other:?}"),
        }
    }

    pub(super) async fn settle(&self, fence: Fence, settlement: Settlement) -> Settled {
        self.ledger.settle(fence, settlement).await.unwrap()
    }

    /// A claim that was granted and settled.
    pub(super) async fn settled(&self, claim: Claim, settlement: Settlement) -> Fence {
        let fence = self.granted(claim).await;
        self.settle(fence, settlement).await;
        fence
    }

    pub(super) async fn record(&self, id: RecordId) -> Record {
        self.ledger.get(id).await.unwrap().unwrap()
    }

    pub(super) async fn state(&self, id: RecordId) -> State {
        self.record(id).await.state
    }

    pub(super) async fn resolve(
        &self,
        id: RecordId,
        verdict: Verdict,
    ) -> Result<Record, ResolveError> {
        let record = self.record(id).await;
        self.ledger.resolve(word(&record, verdict)).await
    }

    pub(super) async fn resolve_by_force(
        &self,
        id: RecordId,
        verdict: Verdict,
    ) -> Result<Record, ResolveError> {
        let resolution = Resolution {
            force: true,
            ..word(&self.record(id).await, verdict)
        };
        self.ledger.resolve(resolution).await
    }

    pub(super) async fn reopen(&self, id: RecordId) -> Result<Record, ResolveError> {
        let record = self.record(id).await;
        self.ledger.reopen(reopening(&record)).await
    }

    pub(super) async fn sighted(&self, id: RecordId, seen: Seen) -> Result<Record, ResolveError> {
        let record = self.record(id).await;
        let sighting = Sighting {
            id,
            expected: (record.state, record.attempt, record.version),
            seen,
        };
        self.ledger.sighted(sighting).await
    }

    pub(super) async fn quarantined(&self) {
        let cause = "restored from a backup".to_owned();
        self.ledger.enter_quarantine(cause).await.unwrap();
    }

    pub(super) async fn lifted(&self) {
        let (by, reason) = ("linh".to_owned(), "compared with the bank".to_owned());
        self.ledger.lift_quarantine(by, reason).await.unwrap();
    }

    /// Two attempts of a message: the first unknown and declared not applied, the second running.
    pub(super) async fn claimed_twice(&self, message: &str) -> (Fence, Fence) {
        let first = self.settled(refund(message), cannot_say()).await;
        self.resolve_by_force(first.record, Verdict::NotApplied)
            .await
            .unwrap();
        let second = Claim {
            owner: TWO,
            ..refund(message)
        };
        (first, self.granted(second).await)
    }

    pub(super) async fn events(&self, id: RecordId) -> Vec<Event> {
        self.ledger.events(id).await.unwrap()
    }

    pub(super) async fn last_cause(&self, id: RecordId) -> String {
        let events = self.events(id).await;
        events.last().unwrap().cause.to_string()
    }
}

/// Fails with the value when it isn't what the pattern says.
macro_rules! assert_is {
    ($value:expr, $pattern:pat $(if $guard:expr)?) => {
        match $value {
            $pattern $(if $guard)? => {}
            other => $crate::ledger::conformance::unlike(&other, stringify!($pattern)),
        }
    };
}
pub(super) use assert_is;

#[track_caller]
pub(super) fn unlike(value: &dyn Debug, pattern: &str) {
    panic!("{value:?} is not {pattern}");
}
