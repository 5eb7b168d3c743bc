//! The state machine, pure: an entry, a command and a moment give the entry's next state, an event
//! and a reply. Every store runs it inside its own lock or transaction.
//!
//! What the rules rest on, besides the diagram in the parent:
//! - An attempt is *overtaken* once a later one exists. It can't change the record any more; its
//!   success raises the alarm.
//! - A release counts only as far as it goes: a *declared* one is somebody's word and yields to a
//!   success alone; one that *gave up* (resend) is no release for a claim that holds; and one that
//!   an earlier *generation* of the ledger made says nothing of what was forgotten since.
//! - An attempt's own proof speaks of that attempt. So an alarmed record, one that a ledger gap
//!   hides, one that holds with an earlier attempt given up, and one on which a word was taken back
//!   are never released by a settlement.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use super::{
    Cause, Claim, Event, Fence, Hold, KeptAnswer, KeptRequest, Policy, Record, ResolveError, State,
    Subject,
};

mod claiming;
mod settling;
mod words;

pub(super) use claiming::{Siblings, admits, claim_again, create};
pub(super) use settling::{lapse, permit, permit_until, settle};
pub(super) use words::{is_attributed, reopen, resolve, sighted};

/// Bytes of a cause that are kept; causes are short stable words.
const CAUSE_LIMIT: usize = 120;

/// A record with what only the rules need to know.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    /// How long the record is kept once done.
    pub(super) keep: Duration,
    /// The attempt was given up on [`Policy::Resend`]: nobody knows what became of it.
    pub(super) given_up: bool,
    /// So was an attempt before it.
    pub(super) given_up_before: bool,
    /// An attempt before it was released by a word, which can still be taken back.
    pub(super) word_before: bool,
    /// A word was taken back: only a person, or the backend's own final answer, ends the record.
    pub(super) reopened: bool,
    /// Held because the ledger may have forgotten a later attempt. Outlasts a word, which may be
    /// taken back.
    pub(super) gap: bool,
    /// The ledger's generation when the attempt was claimed, or the last word given.
    pub(super) generation: u64,
    /// The call, while it may have to be sent again.
    pub(super) request: Option<KeptRequest>,
    /// What the record is compared with others by; its rule as of the claim that made it.
    pub(super) subject: Option<Subject>,
    /// Held as a possible duplicate. Outlasts a word, which may be taken back.
    pub(super) suspected: bool,
    /// A person let it pass although it may be a duplicate.
    pub(super) cleared: bool,
    /// A stale event that was answered without being passed on.
    pub(super) dropped: bool,
    /// When a look at the backend first said "not applied", nothing else since.
    pub(super) absent_since: Option<SystemTime>,
    /// A look at the backend released the record once: only a person does again.
    pub(super) sightings_spent: bool,
}

/// When a command is carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) now: SystemTime,
    /// Raised whenever the ledger may have forgotten something.
    pub(super) generation: u64,
    /// Keys that the ledger doesn't know are held.
    pub(super) quarantined: bool,
}

/// What a command came to.
#[derive(Debug)]
pub(super) struct Step<T> {
    pub(super) reply: T,
    /// To be appended to the record's events.
    pub(super) event: Option<Event>,
    /// The entry is not what it was.
    pub(super) changed: bool,
}

impl<T> Step<T> {
    fn unchanged(reply: T) -> Self {
        Self {
            reply,
            event: None,
            changed: false,
        }
    }

    fn noted(reply: T, event: Event) -> Self {
        Self {
            reply,
            event: Some(event),
            changed: false,
        }
    }

    fn changed(reply: T, event: Event) -> Self {
        Self {
            reply,
            event: Some(event),
            changed: true,
        }
    }
}

/// Whether the record has served its time.
pub(super) fn may_forget(record: &Record, now: SystemTime) -> bool {
    record.state == State::Done && record.expires_at <= now
}

impl Entry {
    /// The right to run the attempt that counts.
    pub(super) fn fence(&self) -> Fence {
        Fence {
            record: self.record.id,
            owner: self.record.owner,
            attempt: self.record.attempt,
        }
    }

    /// The ledger may have forgotten what became of the record since.
    fn may_be_behind(&self, moment: Moment) -> bool {
        moment.quarantined && self.generation < moment.generation
    }

    fn must_be_as(&self, expected: (State, u32, u64)) -> Result<(), ResolveError> {
        let record = &self.record;
        if expected == (record.state, record.attempt, record.version) {
            return Ok(());
        }
        Err(ResolveError::Changed(Box::new(record.clone())))
    }

    /// Keeps what people see of a hold with the record.
    pub(super) fn follow_hold(&mut self) {
        let held = self.record.state == State::Unknown;
        self.record.hold = held.then(|| self.hold_reason());
    }

    fn hold_reason(&self) -> Hold {
        if self.gap {
            Hold::LedgerGap
        } else if self.suspected {
            Hold::PossibleDuplicate
        } else {
            Hold::OutcomeUnknown
        }
    }

    /// Takes over what is stricter or longer in a claim; `true` if anything was.
    fn tighten(&mut self, claim: &Claim) -> bool {
        let record = &mut self.record;
        let stricter = claim.policy == Policy::Hold && record.policy == Policy::Resend;
        let longer = claim.keep > self.keep;
        if stricter {
            record.policy = Policy::Hold;
        }
        if longer {
            self.keep = claim.keep;
            let expiry = later(record.updated_at, claim.keep);
            record.expires_at = record.expires_at.max(expiry);
        }
        if stricter || longer {
            record.version += 1;
        }
        stricter || longer
    }

    fn finish(&mut self, answer: KeptAnswer, cause: Cause, moment: Moment) -> Event {
        self.record.answer = Some(answer);
        self.request = None;
        self.reopened = false;
        self.record.expires_at = self.record.expires_at.max(later(moment.now, self.keep));
        self.become_state(State::Done, cause, moment)
    }

    fn declare_not_applied(&mut self, force: bool, moment: Moment) -> Result<Event, ResolveError> {
        let record = &self.record;
        if record.alarmed {
            return Err(ResolveError::NoFurtherRelease);
        }
        let until = record.may_run_until;
        if moment.now < until && !force {
            return Err(ResolveError::MayStillRun { until });
        }
        let cause = if force {
            "resolved_not_applied_forced"
        } else {
            "resolved_not_applied"
        };
        self.cleared |= self.suspected;
        Ok(self.become_state(State::Released, cause.into(), moment))
    }

    fn become_state(&mut self, state: State, cause: Cause, moment: Moment) -> Event {
        let record = &mut self.record;
        record.state = state;
        record.version += 1;
        record.updated_at = moment.now;
        record.declared = false;
        self.absent_since = None;
        self.follow_hold();
        self.note(self.record.attempt, cause, moment.now)
    }

    /// The record stands where it stands by a word, which speaks of the message and so of every
    /// attempt at it.
    fn rests_on_word(&mut self, moment: Moment) {
        self.record.declared = true;
        self.reopened = false;
        self.given_up = false;
        self.given_up_before = false;
        self.generation = moment.generation;
    }

    fn note(&self, attempt: u32, cause: Cause, at: SystemTime) -> Event {
        Event {
            at,
            attempt,
            state: self.record.state,
            cause: bounded(cause),
            by: None,
        }
    }
}

fn prefixed(what: &str, cause: &Cause) -> Cause {
    Cow::Owned(format!("{what}:{cause}"))
}

fn bounded(cause: Cause) -> Cause {
    if cause.len() <= CAUSE_LIMIT {
        return cause;
    }
    Cow::Owned(cause[..cause.floor_char_boundary(CAUSE_LIMIT)].to_owned())
}

/// `time + by`, or as late as can be told when that is beyond what the system can express.
fn later(time: SystemTime, by: Duration) -> SystemTime {
    const FAR: Duration = Duration::from_secs(200 * 366 * 86_400);
    time.checked_add(by.min(FAR)).unwrap_or(time)
}
