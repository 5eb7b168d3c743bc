//! The state machine, pure: an entry, a command and a moment give the entry's next state, an event
//! and a reply. Every store runs it inside its own lock or transaction.
//!
//! What the rules rest on, besides the diagram in the parent:
//! - An attempt is *overtaken* once a later one exists. It can't change the record any more; its
//!   success raises the alarm.
//! - A release counts only as far as it goes: a *declared* one is a person's word and yields to a
//!   success alone; one that *gave up* (resend) is no release for a claim that holds.
//! - An alarmed record, and one that a ledger gap hides, is never released by a settlement.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use super::{
    Admission, Cause, Claim, ClaimOutcome, Event, Fence, Hold, KeptAnswer, NAME_LIMIT, Owner,
    PermitError, Policy, REASON_LIMIT, Record, RecordId, Resolution, ResolveError, Settled,
    Settlement, State, Verdict,
};

/// How long a [`super::SendPermit`] is good for.
const PERMIT: Duration = Duration::from_secs(5);

/// Bytes of a cause that are kept; causes are short stable words.
const CAUSE_LIMIT: usize = 120;

/// A record with what only the rules need to know.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    /// How long the record is kept once done.
    pub(super) keep: Duration,
    /// It came to its state by a person's word.
    pub(super) declared: bool,
    /// The attempt was given up on [`Policy::Resend`]: nobody knows what became of it.
    pub(super) given_up: bool,
    /// So was an attempt before it.
    pub(super) given_up_before: bool,
    /// Held because the ledger may have forgotten a later attempt.
    pub(super) gap: bool,
    /// The ledger's generation when the record came to its state.
    pub(super) generation: u64,
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

/// Whether a claim may make a record of a key that the ledger doesn't know.
pub(super) fn admits(claim: &Claim) -> bool {
    claim.admission == Admission::Any
}

/// The first claim of a key; to be asked only where [`admits`] said yes.
pub(super) fn create(claim: Claim, id: RecordId, moment: Moment) -> (Entry, Step<ClaimOutcome>) {
    let gap = moment.quarantined && claim.policy == Policy::Hold;
    let (state, attempt, cause) = if gap {
        (State::Unknown, 0, "ledger_gap")
    } else {
        (State::Claimed, 1, "claimed")
    };
    let entry = Entry {
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
            may_run_until: later(moment.now, claim.may_run_for),
            expires_at: later(moment.now, claim.keep),
            alarmed: false,
            answer: None,
        },
        keep: claim.keep,
        declared: false,
        given_up: false,
        given_up_before: false,
        gap,
        generation: moment.generation,
    };
    let event = entry.note(attempt, Cow::Borrowed(cause), moment.now);
    let outcome = if gap {
        ClaimOutcome::Held(id, Hold::LedgerGap)
    } else {
        ClaimOutcome::Granted(entry.fence())
    };
    (entry, Step::changed(outcome, event))
}

/// A claim of a key that has a record.
pub(super) fn claim_again(entry: &mut Entry, claim: &Claim, moment: Moment) -> Step<ClaimOutcome> {
    let id = entry.record.id;
    if claim.fingerprint != entry.record.fingerprint {
        return Step::unchanged(ClaimOutcome::Conflict(id));
    }
    let tightened = entry.tighten(claim);
    let mut step = match (entry.record.state, &entry.record.answer) {
        (State::Done, Some(answer)) => Step::unchanged(ClaimOutcome::Done(id, answer.clone())),
        (State::Claimed, _) => Step::unchanged(ClaimOutcome::Running(entry.fence())),
        (State::Released, _) => claim_released(entry, claim, moment),
        // A done record without its answer can't be replayed and must not be run.
        (State::Unknown | State::Done, _) => {
            Step::unchanged(ClaimOutcome::Held(id, entry.hold_reason()))
        }
    };
    step.changed |= tightened;
    step
}

fn claim_released(entry: &mut Entry, claim: &Claim, moment: Moment) -> Step<ClaimOutcome> {
    let holds = entry.record.policy == Policy::Hold;
    let forgotten = moment.quarantined && entry.generation < moment.generation;
    if holds && (forgotten || entry.given_up || entry.given_up_before) {
        let cause = if forgotten {
            "ledger_gap"
        } else {
            "policy_now_holds"
        };
        entry.gap = forgotten;
        let event = entry.become_state(State::Unknown, Cow::Borrowed(cause), moment);
        let held = ClaimOutcome::Held(entry.record.id, entry.hold_reason());
        return Step::changed(held, event);
    }
    entry.given_up_before |= entry.given_up;
    entry.given_up = false;
    let record = &mut entry.record;
    record.attempt = record.attempt.saturating_add(1);
    record.owner = claim.owner;
    record.route = claim.route.clone();
    // An earlier attempt that was declared not applied by force may run longer than this one.
    record.may_run_until = record
        .may_run_until
        .max(later(moment.now, claim.may_run_for));
    record.expires_at = record.expires_at.max(later(moment.now, entry.keep));
    let event = entry.become_state(State::Claimed, Cow::Borrowed("claimed"), moment);
    Step::changed(ClaimOutcome::Granted(entry.fence()), event)
}

/// For how long from now the attempt's first byte may go out.
pub(super) fn permit(
    entry: &Entry,
    fence: Fence,
    now: SystemTime,
) -> Result<Duration, PermitError> {
    let record = &entry.record;
    if record.state != State::Claimed || entry.fence() != fence || record.alarmed {
        return Err(PermitError::Fenced);
    }
    // Past its time, "not applied" could be declared while the attempt runs.
    match record.may_run_until.duration_since(now) {
        Ok(left) if !left.is_zero() => Ok(left.min(PERMIT)),
        _ => Err(PermitError::Fenced),
    }
}

/// What became of an attempt, in time or late.
pub(super) fn settle(
    entry: &mut Entry,
    fence: Fence,
    settlement: Settlement,
    moment: Moment,
) -> Step<Settled> {
    let record = &entry.record;
    if fence.attempt == 0 || fence.attempt > record.attempt {
        return superseded(entry, fence, settlement, moment);
    }
    if fence.attempt < record.attempt {
        return settle_overtaken(entry, fence, settlement, moment);
    }
    if fence.owner != record.owner {
        return superseded(entry, fence, settlement, moment);
    }
    match record.state {
        State::Claimed | State::Unknown => settle_open(entry, settlement, moment),
        State::Released => settle_released(entry, fence, settlement, moment),
        State::Done => settle_done(entry, fence, settlement, moment),
    }
}

/// A later attempt exists: nothing of this one changes the record's course, but a success next to
/// another try is money that may have moved twice.
fn settle_overtaken(
    entry: &mut Entry,
    fence: Fence,
    settlement: Settlement,
    moment: Moment,
) -> Step<Settled> {
    let cause = match &settlement {
        Settlement::Done(answer, cause)
            if answer.status.is_success() && entry.record.policy == Policy::Hold =>
        {
            prefixed("alarm", cause)
        }
        _ => return superseded(entry, fence, settlement, moment),
    };
    let first = !entry.record.alarmed;
    entry.record.alarmed = true;
    if entry.record.state == State::Released {
        let mut event = entry.become_state(State::Unknown, cause, moment);
        event.attempt = fence.attempt;
        return Step::changed(Settled::Alarm, event);
    }
    let event = entry.note(fence.attempt, cause, moment.now);
    if !first {
        return Step::noted(Settled::Alarm, event);
    }
    entry.record.version += 1;
    Step::changed(Settled::Alarm, event)
}

/// The attempt counts and nobody has said yet what became of it.
fn settle_open(entry: &mut Entry, settlement: Settlement, moment: Moment) -> Step<Settled> {
    let releasable = !entry.record.alarmed && !entry.gap;
    let resend = entry.record.policy == Policy::Resend;
    let (state, cause) = match settlement {
        Settlement::Done(answer, cause) => {
            let event = entry.finish(answer, cause, moment);
            return Step::changed(Settled::Recorded(State::Done), event);
        }
        Settlement::Released(cause) if releasable => {
            entry.given_up = false;
            (State::Released, cause)
        }
        Settlement::Unknown(cause) if releasable && resend => {
            entry.given_up = true;
            (State::Released, cause)
        }
        Settlement::Released(cause) | Settlement::Unknown(cause) => (State::Unknown, cause),
    };
    if state == entry.record.state {
        return Step::unchanged(Settled::Recorded(state));
    }
    let event = entry.become_state(state, cause, moment);
    Step::changed(Settled::Recorded(state), event)
}

/// The attempt was released already, and nobody claimed since.
fn settle_released(
    entry: &mut Entry,
    fence: Fence,
    settlement: Settlement,
    moment: Moment,
) -> Step<Settled> {
    match settlement {
        // Against a person's "not applied" only a success counts: a decline agrees with it.
        Settlement::Done(answer, cause) if !entry.declared || answer.status.is_success() => {
            let event = entry.finish(answer, cause, moment);
            Step::changed(Settled::Recorded(State::Done), event)
        }
        Settlement::Released(cause) if entry.given_up => {
            entry.given_up = false;
            let event = entry.become_state(State::Released, cause, moment);
            Step::changed(Settled::Recorded(State::Released), event)
        }
        Settlement::Unknown(_) if entry.given_up => {
            Step::unchanged(Settled::Recorded(State::Released))
        }
        Settlement::Released(_) if !entry.declared => {
            Step::unchanged(Settled::Recorded(State::Released))
        }
        other => superseded(entry, fence, other, moment),
    }
}

/// A final answer never changes.
fn settle_done(
    entry: &Entry,
    fence: Fence,
    settlement: Settlement,
    moment: Moment,
) -> Step<Settled> {
    let same = match &settlement {
        Settlement::Done(answer, _) => entry.record.answer.as_ref() == Some(answer),
        Settlement::Released(_) | Settlement::Unknown(_) => false,
    };
    if same && !entry.declared {
        return Step::unchanged(Settled::Recorded(State::Done));
    }
    superseded(entry, fence, settlement, moment)
}

fn superseded(
    entry: &Entry,
    fence: Fence,
    settlement: Settlement,
    moment: Moment,
) -> Step<Settled> {
    let (Settlement::Done(_, cause) | Settlement::Released(cause) | Settlement::Unknown(cause)) =
        settlement;
    let event = entry.note(fence.attempt, prefixed("superseded", &cause), moment.now);
    Step::noted(Settled::Superseded(entry.record.state), event)
}

/// The owner is dead: `true` if the record was one of its claims.
pub(super) fn lapse(entry: &mut Entry, owner: Owner, moment: Moment) -> Step<bool> {
    if entry.record.state != State::Claimed || entry.record.owner != owner {
        return Step::unchanged(false);
    }
    let settlement = Settlement::Unknown(Cow::Borrowed("owner_lapsed"));
    let step = settle_open(entry, settlement, moment);
    Step {
        reply: true,
        event: step.event,
        changed: step.changed,
    }
}

/// Whether a person said who they are and why, within bounds.
pub(super) fn is_attributed(by: &str, reason: &str) -> bool {
    let within = |text: &str, limit| !text.trim().is_empty() && text.len() <= limit;
    within(by, NAME_LIMIT) && within(reason, REASON_LIMIT)
}

/// A person's word on an unknown record.
pub(super) fn resolve(
    entry: &mut Entry,
    resolution: Resolution,
    moment: Moment,
) -> Result<Step<()>, ResolveError> {
    if !is_attributed(&resolution.by, &resolution.reason) {
        return Err(ResolveError::NoReason);
    }
    let record = &entry.record;
    if resolution.expected != (record.state, record.attempt, record.version) {
        return Err(ResolveError::Changed(Box::new(record.clone())));
    }
    if record.state != State::Unknown {
        return Err(ResolveError::NotUnknown(record.state));
    }
    let mut event = match resolution.verdict {
        Verdict::Applied(answer) => entry.finish(answer, "resolved_applied".into(), moment),
        Verdict::Rejected(answer) => entry.finish(answer, "resolved_rejected".into(), moment),
        Verdict::NotApplied => entry.declare_not_applied(resolution.force, moment)?,
    };
    entry.declared = true;
    event.by = Some((resolution.by, resolution.reason));
    Ok(Step::changed((), event))
}

/// Whether the record has served its time.
pub(super) fn may_forget(record: &Record, now: SystemTime) -> bool {
    record.state == State::Done && record.expires_at <= now
}

impl Entry {
    fn fence(&self) -> Fence {
        Fence {
            record: self.record.id,
            owner: self.record.owner,
            attempt: self.record.attempt,
        }
    }

    fn hold_reason(&self) -> Hold {
        if self.gap {
            Hold::LedgerGap
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
        // The person speaks of the message, and so of every attempt at it.
        self.given_up = false;
        self.given_up_before = false;
        Ok(self.become_state(State::Released, cause.into(), moment))
    }

    fn become_state(&mut self, state: State, cause: Cause, moment: Moment) -> Event {
        let record = &mut self.record;
        record.state = state;
        record.version += 1;
        record.updated_at = moment.now;
        self.generation = moment.generation;
        self.declared = false;
        self.gap &= state == State::Unknown;
        self.note(self.record.attempt, cause, moment.now)
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
