//! What became of attempts, in time or late.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use super::{Entry, Moment, Step, prefixed};
use crate::ledger::{Cause, Fence, Owner, PermitError, Policy, Settled, Settlement, State};

/// How long a [`crate::ledger::SendPermit`] is good for.
const PERMIT: Duration = Duration::from_secs(5);

/// For how long from now the attempt's first byte may go out.
pub(in crate::ledger) fn permit(
    entry: &Entry,
    fence: Fence,
    now: SystemTime,
) -> Result<Duration, PermitError> {
    let record = &entry.record;
    if record.state != State::Claimed || entry.fence() != fence || record.alarmed {
        return Err(PermitError::Fenced);
    }
    permit_until(record.may_run_until, now)
}

/// For how long a claim that holds until then is good for sending.
pub(in crate::ledger) fn permit_until(
    may_run_until: SystemTime,
    now: SystemTime,
) -> Result<Duration, PermitError> {
    // Past its time, "not applied" could be declared while the attempt runs.
    match may_run_until.duration_since(now) {
        Ok(left) if !left.is_zero() => Ok(left.min(PERMIT)),
        _ => Err(PermitError::Fenced),
    }
}

/// What became of an attempt, in time or late.
pub(in crate::ledger) fn settle(
    entry: &mut Entry,
    fence: Fence,
    settlement: Settlement,
    moment: Moment,
) -> Step<Settled> {
    let record = &entry.record;
    // Another attempt than the one that counts: overtaken, or one that the ledger has forgotten.
    if fence.attempt != record.attempt || fence.owner != record.owner {
        return settle_aside(entry, fence, settlement, moment);
    }
    match record.state {
        State::Claimed | State::Unknown => settle_open(entry, settlement, moment),
        State::Released => settle_released(entry, fence, settlement, moment),
        State::Done => settle_done(entry, fence, settlement, moment),
    }
}

/// Another attempt counts: nothing of this one changes the record's course, but a success next to
/// another try is money that may have moved twice.
fn settle_aside(
    entry: &mut Entry,
    fence: Fence,
    settlement: Settlement,
    moment: Moment,
) -> Step<Settled> {
    match &settlement {
        Settlement::Done(answer, cause)
            if answer.status.is_success()
                && entry.record.policy == Policy::Hold
                && fence.attempt > 0 =>
        {
            let cause = prefixed("alarm", cause);
            alarm(entry, fence, cause, moment)
        }
        _ => superseded(entry, fence, settlement, moment),
    }
}

fn alarm(entry: &mut Entry, fence: Fence, cause: Cause, moment: Moment) -> Step<Settled> {
    let first = !entry.record.alarmed;
    entry.record.alarmed = true;
    entry.gap = false;
    entry.suspected = false;
    entry.follow_hold();
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
    let resend = entry.record.policy == Policy::Resend;
    let releasable = !entry.record.alarmed
        && !entry.gap
        && !entry.reopened
        && !entry.suspected
        && (resend || !entry.given_up_before);
    let (state, cause) = match settlement {
        Settlement::Done(answer, cause) => {
            entry.given_up = false;
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
        // What isn't enough to release it is still worth a person's look.
        Settlement::Released(cause) if entry.record.state == State::Unknown => {
            let event = entry.note(entry.record.attempt, prefixed("held", &cause), moment.now);
            let was_given_up = std::mem::take(&mut entry.given_up);
            return Step {
                reply: Settled::Recorded(State::Unknown),
                event: Some(event),
                changed: was_given_up,
            };
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
        Settlement::Done(answer, cause) if !entry.record.declared || answer.status.is_success() => {
            entry.given_up = false;
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
        Settlement::Released(_) if !entry.record.declared => {
            Step::unchanged(Settled::Recorded(State::Released))
        }
        other => superseded(entry, fence, other, moment),
    }
}

/// A final answer never changes.
fn settle_done(
    entry: &mut Entry,
    fence: Fence,
    settlement: Settlement,
    moment: Moment,
) -> Step<Settled> {
    let Settlement::Done(answer, _) = &settlement else {
        return superseded(entry, fence, settlement, moment);
    };
    let kept = entry.record.answer.as_ref();
    if !entry.record.declared {
        if kept == Some(answer) {
            return Step::unchanged(Settled::Recorded(State::Done));
        }
        return superseded(entry, fence, settlement, moment);
    }
    // Tiki was told by a person's word that it was not done, and may ask again in other words.
    if kept.is_some_and(|kept| !kept.status.is_success()) {
        return settle_aside(entry, fence, settlement, moment);
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
pub(in crate::ledger) fn lapse(entry: &mut Entry, owner: Owner, moment: Moment) -> Step<bool> {
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
