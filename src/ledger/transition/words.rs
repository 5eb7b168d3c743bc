//! What people, and looks at the backend, say of a record.

use super::{Entry, Moment, Step, prefixed};
use crate::ledger::{
    NAME_LIMIT, REASON_LIMIT, Reopening, Resolution, ResolveError, SIGHTING_PAUSE, Seen, Sighting,
    State, Verdict,
};

/// Whether a person said who they are and why, within bounds.
pub(in crate::ledger) fn is_attributed(by: &str, reason: &str) -> bool {
    let within = |text: &str, limit| !text.trim().is_empty() && text.len() <= limit;
    within(by, NAME_LIMIT) && within(reason, REASON_LIMIT)
}

/// A person's word on an unknown record.
pub(in crate::ledger) fn resolve(
    entry: &mut Entry,
    resolution: Resolution,
    moment: Moment,
) -> Result<Step<()>, ResolveError> {
    if !is_attributed(&resolution.by, &resolution.reason) {
        return Err(ResolveError::NoReason);
    }
    entry.must_be_as(resolution.expected)?;
    if entry.record.state != State::Unknown {
        return Err(ResolveError::NotUnknown(entry.record.state));
    }
    let mut event = match resolution.verdict {
        Verdict::Applied(answer) => entry.finish(answer, "resolved_applied".into(), moment),
        Verdict::Rejected(answer) => entry.finish(answer, "resolved_rejected".into(), moment),
        Verdict::NotApplied => entry.declare_not_applied(resolution.force, moment)?,
    };
    entry.rests_on_word(moment);
    event.by = Some((resolution.by, resolution.reason));
    Ok(Step::changed((), event))
}

/// A word taken back. What the record was held for before the word holds it again.
pub(in crate::ledger) fn reopen(
    entry: &mut Entry,
    reopening: Reopening,
    moment: Moment,
) -> Result<Step<()>, ResolveError> {
    if !is_attributed(&reopening.by, &reopening.reason) {
        return Err(ResolveError::NoReason);
    }
    entry.must_be_as(reopening.expected)?;
    // A later attempt that proved unsent leaves the record where the word has put it.
    let released_by_word = entry.record.state == State::Released && entry.word_before;
    if !entry.record.declared && !released_by_word {
        return Err(ResolveError::NotDeclared);
    }
    entry.record.answer = None;
    entry.cleared = false;
    entry.reopened = true;
    let mut event = entry.become_state(State::Unknown, "reopened".into(), moment);
    event.by = Some((reopening.by, reopening.reason));
    Ok(Step::changed((), event))
}

/// What a look at the backend said. See [`super::Sighting`] for how far it is trusted.
pub(in crate::ledger) fn sighted(
    entry: &mut Entry,
    sighting: Sighting,
    moment: Moment,
) -> Result<Step<()>, ResolveError> {
    entry.must_be_as(sighting.expected)?;
    if entry.record.state != State::Unknown {
        return Err(ResolveError::NotUnknown(entry.record.state));
    }
    if entry.suspected {
        return Err(ResolveError::NeverSent);
    }
    // A person who took a word back has seen more than a look sees.
    if entry.reopened {
        return Ok(Step::unchanged(()));
    }
    match sighting.seen {
        Seen::Applied(answer) => {
            let event = entry.finish(answer, "probe_applied".into(), moment);
            entry.rests_on_word(moment);
            Ok(Step::changed((), event))
        }
        Seen::NotApplied => Ok(sighted_absent(entry, moment)),
        Seen::CantSay(cause) => {
            let interrupted = entry.absent_since.take().is_some();
            if !interrupted {
                return Ok(Step::unchanged(()));
            }
            let event = entry.note(entry.record.attempt, prefixed("probe", &cause), moment.now);
            Ok(Step::changed((), event))
        }
    }
}

fn sighted_absent(entry: &mut Entry, moment: Moment) -> Step<()> {
    let attempt = entry.record.attempt;
    let over = entry.record.may_run_until <= moment.now;
    // While the attempt may run, or a later one that was forgotten, "not there" may only mean "not
    // there yet".
    let running = !over || entry.may_be_behind(moment);
    if running || entry.record.alarmed || entry.sightings_spent {
        return Step::unchanged(());
    }
    let Some(since) = entry.absent_since else {
        entry.absent_since = Some(moment.now);
        let event = entry.note(attempt, "probe_not_applied".into(), moment.now);
        return Step::changed((), event);
    };
    match moment.now.duration_since(since) {
        Ok(pause) if pause >= SIGHTING_PAUSE => {
            entry.sightings_spent = true;
            let event = entry.become_state(State::Released, "probe_not_applied".into(), moment);
            entry.rests_on_word(moment);
            Step::changed((), event)
        }
        Ok(_) => Step::unchanged(()),
        // The clock went back: the pause starts again.
        Err(_) => {
            entry.absent_since = Some(moment.now);
            let event = entry.note(attempt, "probe_not_applied".into(), moment.now);
            Step::changed((), event)
        }
    }
}
