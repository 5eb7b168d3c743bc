//! Claims: the first one of a key, and those that come again.

use std::borrow::Cow;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};

use super::{Entry, Moment, Step, later};
use crate::ledger::{
    Admission, Claim, ClaimOutcome, KeptAnswer, Marks, Policy, Record, RecordId, State, SubjectRule,
};
use crate::tiki;

/// What other records about a claim's subject say, looked up by the store within the claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::ledger) struct Siblings {
    /// Time of the newest event that the backend took.
    pub(in crate::ledger) newest_taken: Option<SystemTime>,
    /// The same, with those that it declined, and that may be running or may have been taken.
    pub(in crate::ledger) newest_sent: Option<SystemTime>,
    /// Another record may have moved the same amount within the window.
    pub(in crate::ledger) same_amount: bool,
}

impl Siblings {
    /// Takes one other record with the same namespace, client and subject's id into account.
    pub(in crate::ledger) fn add(&mut self, other: &Entry, rule: &SubjectRule, now: SystemTime) {
        let Some(subject) = &other.subject else {
            return;
        };
        let record = &other.record;
        let ended = record.state == State::Done && !other.dropped;
        let taken =
            ended && (record.answer.as_ref()).is_some_and(|answer| answer.status.is_success());
        // Of an attempt before the one that counts, whatever became of that one.
        let in_doubt = other.given_up || other.given_up_before || record.alarmed;
        let maybe_taken = taken
            || in_doubt
            || record.state == State::Claimed
            || record.state == State::Unknown && record.attempt > 0 && !other.suspected;
        match (rule, &subject.rule) {
            (SubjectRule::Event { .. }, SubjectRule::Event { at, .. }) => {
                if taken {
                    self.newest_taken = self.newest_taken.max(Some(*at));
                }
                if maybe_taken || ended {
                    self.newest_sent = self.newest_sent.max(Some(*at));
                }
            }
            (
                SubjectRule::Payment { amount, window, .. },
                SubjectRule::Payment { amount: theirs, .. },
            ) => {
                // As long as an attempt may run, it may move the money.
                let last = if ended {
                    record.updated_at
                } else {
                    record.updated_at.max(record.may_run_until)
                };
                let long_ago = record.state != State::Claimed
                    && (now.duration_since(last)).is_ok_and(|age| age > *window);
                // A gap is another message that may have been sent before it was forgotten.
                let moved = maybe_taken || record.state == State::Unknown && other.gap;
                self.same_amount |= moved && !long_ago && amount == theirs;
            }
            _ => {}
        }
    }
}

/// Whether a claim may make a record of a key that the ledger doesn't know.
pub(in crate::ledger) fn admits(claim: &Claim) -> bool {
    claim.admission == Admission::Any
}

/// What a claim's subject makes of it.
enum Course {
    Run(Marks),
    Suspect,
    Drop,
}

fn course(claim: &Claim, siblings: Siblings, cleared: bool) -> Course {
    let Some(subject) = &claim.subject else {
        return Course::Run(Marks::default());
    };
    match &subject.rule {
        SubjectRule::Event { at, drop_stale } => {
            let older = |newest: Option<SystemTime>| newest.is_some_and(|newest| *at < newest);
            if *drop_stale && older(siblings.newest_taken) {
                return Course::Drop;
            }
            Course::Run(Marks {
                stale_event: older(siblings.newest_sent),
                possible_duplicate: false,
            })
        }
        SubjectRule::Payment { hold, .. } => {
            if *hold && siblings.same_amount && !cleared {
                return Course::Suspect;
            }
            Course::Run(Marks {
                stale_event: false,
                possible_duplicate: siblings.same_amount,
            })
        }
    }
}

/// The answer to a stale event that is not passed on (docs/protocol.md, "Answers").
fn dropped_answer() -> KeptAnswer {
    KeptAnswer {
        status: StatusCode::OK,
        headers: vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))],
        body: Bytes::from_static(tiki::SUCCESS_BODY.as_bytes()),
    }
}

/// The first claim of a key; to be asked only where [`admits`] said yes.
pub(in crate::ledger) fn create(
    claim: Claim,
    id: RecordId,
    siblings: Siblings,
    moment: Moment,
) -> (Entry, Step<ClaimOutcome>) {
    let gap = moment.quarantined && claim.policy == Policy::Hold;
    let course = course(&claim, siblings, false);
    let suspected = !gap && matches!(course, Course::Suspect);
    let dropped = !gap && matches!(course, Course::Drop);
    let marks = match course {
        Course::Run(marks) => marks,
        Course::Suspect => Marks {
            possible_duplicate: true,
            ..Marks::default()
        },
        Course::Drop => Marks {
            stale_event: true,
            ..Marks::default()
        },
    };
    let (state, attempt, cause) = if gap {
        (State::Unknown, 0, "ledger_gap")
    } else if suspected {
        (State::Unknown, 0, "possible_duplicate")
    } else if dropped {
        (State::Done, 0, "stale_event_dropped")
    } else {
        (State::Claimed, 1, "claimed")
    };
    let answer = dropped.then(dropped_answer);
    let mut entry = Entry {
        record: Record {
            id,
            key: claim.key,
            fingerprint: claim.fingerprint,
            state,
            attempt,
            version: 1,
            owner: claim.owner,
            policy: claim.policy,
            route: claim.route,
            created_at: moment.now,
            updated_at: moment.now,
            // For a gap: an attempt that was forgotten may be running just as long.
            may_run_until: if suspected || dropped {
                moment.now
            } else {
                later(moment.now, claim.may_run_for)
            },
            expires_at: later(moment.now, claim.keep),
            alarmed: false,
            answer: answer.clone(),
            fields: claim.fields,
            marks,
            hold: None,
            declared: false,
        },
        keep: claim.keep,
        given_up: false,
        given_up_before: false,
        word_before: false,
        reopened: false,
        gap,
        generation: moment.generation,
        request: claim.request.filter(|_| !dropped),
        subject: claim.subject,
        suspected,
        cleared: false,
        dropped,
        absent_since: None,
        sightings_spent: false,
    };
    entry.follow_hold();
    let event = entry.note(attempt, Cow::Borrowed(cause), moment.now);
    let outcome = match answer {
        Some(answer) => ClaimOutcome::Dropped(id, answer),
        None if state == State::Unknown => ClaimOutcome::Held(id, entry.hold_reason()),
        None => ClaimOutcome::Granted(entry.fence(), marks),
    };
    (entry, Step::changed(outcome, event))
}

/// A claim of a key that has a record.
pub(in crate::ledger) fn claim_again(
    entry: &mut Entry,
    claim: &Claim,
    siblings: Siblings,
    moment: Moment,
) -> Step<ClaimOutcome> {
    let id = entry.record.id;
    if claim.fingerprint != entry.record.fingerprint {
        return Step::unchanged(ClaimOutcome::Conflict(id));
    }
    let tightened = entry.tighten(claim);
    let supplied = supply(entry, claim);
    let mut step = match (entry.record.state, &entry.record.answer) {
        (State::Done, Some(answer)) => Step::unchanged(ClaimOutcome::Done(id, answer.clone())),
        (State::Claimed, _) => Step::unchanged(ClaimOutcome::Running(entry.fence())),
        (State::Released, _) if claim.admission == Admission::AnswersOnly => {
            Step::unchanged(ClaimOutcome::Claimable)
        }
        (State::Released, _) => claim_released(entry, claim, siblings, moment),
        // A done record without its answer can't be replayed and must not be run.
        (State::Unknown | State::Done, _) => {
            Step::unchanged(ClaimOutcome::Held(id, entry.hold_reason()))
        }
    };
    step.changed |= tightened | supplied;
    step
}

/// Keeps the call with a record that holds and has none, since it was made by a claim that didn't
/// hold or was reopened; `true` if it did.
fn supply(entry: &mut Entry, claim: &Claim) -> bool {
    let wanting = entry.request.is_none()
        && entry.record.policy == Policy::Hold
        && entry.record.state != State::Done;
    if wanting {
        entry.request = claim.request.clone();
    }
    wanting && entry.request.is_some()
}

fn claim_released(
    entry: &mut Entry,
    claim: &Claim,
    siblings: Siblings,
    moment: Moment,
) -> Step<ClaimOutcome> {
    let holds = entry.record.policy == Policy::Hold;
    let forgotten = entry.may_be_behind(moment);
    if holds && (forgotten || entry.given_up || entry.given_up_before) {
        let cause = if forgotten {
            // An attempt that was forgotten may be running just as long as this one might.
            let until = later(moment.now, claim.may_run_for);
            entry.record.may_run_until = entry.record.may_run_until.max(until);
            entry.generation = moment.generation;
            "ledger_gap"
        } else {
            "policy_now_holds"
        };
        entry.gap = forgotten;
        entry.suspected = false;
        let event = entry.become_state(State::Unknown, Cow::Borrowed(cause), moment);
        let held = ClaimOutcome::Held(entry.record.id, entry.hold_reason());
        return Step::changed(held, event);
    }
    let marks = match course(claim, siblings, entry.cleared) {
        Course::Run(marks) => marks,
        Course::Suspect => return suspect(entry, moment),
        Course::Drop => return drop_stale(entry, moment),
    };
    entry.given_up_before |= entry.given_up;
    entry.given_up = false;
    entry.word_before |= entry.record.declared;
    entry.gap = false;
    entry.suspected = false;
    entry.generation = moment.generation;
    let record = &mut entry.record;
    record.attempt = record.attempt.saturating_add(1);
    record.owner = claim.owner;
    record.route = claim.route.clone();
    record.marks = marks;
    // An earlier attempt that was declared not applied by force may run longer than this one.
    record.may_run_until = record
        .may_run_until
        .max(later(moment.now, claim.may_run_for));
    record.expires_at = record.expires_at.max(later(moment.now, entry.keep));
    if claim.request.is_some() {
        entry.request = claim.request.clone();
    }
    let event = entry.become_state(State::Claimed, Cow::Borrowed("claimed"), moment);
    Step::changed(ClaimOutcome::Granted(entry.fence(), marks), event)
}

/// Another message took the same money while this one was released.
fn suspect(entry: &mut Entry, moment: Moment) -> Step<ClaimOutcome> {
    entry.suspected = true;
    entry.gap = false;
    entry.record.marks.possible_duplicate = true;
    let event = entry.become_state(State::Unknown, "possible_duplicate".into(), moment);
    let held = ClaimOutcome::Held(entry.record.id, entry.hold_reason());
    Step::changed(held, event)
}

/// A newer event was taken while this one was released.
fn drop_stale(entry: &mut Entry, moment: Moment) -> Step<ClaimOutcome> {
    entry.dropped = true;
    entry.record.marks.stale_event = true;
    let answer = dropped_answer();
    let event = entry.finish(answer.clone(), "stale_event_dropped".into(), moment);
    Step::changed(ClaimOutcome::Dropped(entry.record.id, answer), event)
}
