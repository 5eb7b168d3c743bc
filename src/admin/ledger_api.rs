//! The ledger, seen and resolved by people.

mod filter;
pub(super) mod words;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::answer::{self, Answer, Fault};
use super::handler::Desk;
use super::view;
use super::{SendNow, SendNowError};
use crate::ledger::{
    LedgerError, Record, RecordId, Reopening, Resolution, ResolveError, State, Verdict,
};
use words::{Lifting, Reopened, Resolved, Seen};

/// `GET /api/ledger`: records in the order of their ids, and where to go on. A page may be short or
/// empty and still not be the last: the ledger looks at a bounded number of records for each.
pub(super) async fn list(desk: &Desk, query: &str) -> Result<Answer, Fault> {
    let filter = filter::read(query)?;
    let page = ledger(desk.ask(desk.ledger.list(filter)).await?)?;
    let next = page.next.map(|next| next.to_string());
    let records: Vec<_> = page.records.iter().map(view::summary).collect();
    Ok(answer::data(json!({ "records": records, "next": next })))
}

/// `GET /api/ledger/{id}`: one record with its events.
pub(super) async fn show(desk: &Desk, id: RecordId) -> Result<Answer, Fault> {
    let record = get(desk, id).await?;
    let events = ledger(desk.ask(desk.ledger.events(id)).await?)?;
    Ok(answer::data(view::full(&record, &events)))
}

/// `POST /api/ledger/{id}/resolve`: ends an unknown record by the word of the token's holder, and,
/// where asked to, sends the kept call of one that was not applied.
pub(super) async fn resolve(
    desk: &Desk,
    id: RecordId,
    holder: &str,
    body: &[u8],
) -> Result<Answer, Fault> {
    let word: Resolved = words::read("resolution", body)?;
    let verdict = Verdict::from(word.verdict);
    if word.send_now && verdict != Verdict::NotApplied {
        let what = "`send_now` goes with the verdict \"not_applied\" only";
        return Err(Fault::Malformed(what.to_owned()));
    }
    let reason = words::reason(word.reason)?;
    let by = words::signed(holder, word.by)?;
    let resolution = Resolution {
        id,
        expected: expected(desk, id, word.expected).await?,
        verdict,
        by: by.clone(),
        reason: reason.clone(),
        force: word.force,
    };
    let resolved = desk.ask(desk.ledger.resolve(resolution)).await?;
    let record = resolved.map_err(refusal)?;
    tracing::info!(
        tikigate.record = %id, tikigate.by = by, tikigate.reason = reason,
        tikigate.state = record.state.as_str(), "record resolved through the admin API",
    );
    if !word.send_now {
        return Ok(answer::data(view::summary(&record)));
    }
    let sent = send_now(desk, id, &by).await;
    // What the resolution said holds, whatever sending came to: a look that fails hides nothing.
    let now = get(desk, id).await.unwrap_or(record);
    let mut told = view::summary(&now);
    told["send_now"] = sent;
    Ok(answer::data(told))
}

/// `POST /api/ledger/{id}/reopen`: takes a person's or a probe's word on a record back.
pub(super) async fn reopen(
    desk: &Desk,
    id: RecordId,
    holder: &str,
    body: &[u8],
) -> Result<Answer, Fault> {
    let word: Reopened = words::read("reopening", body)?;
    let reason = words::reason(word.reason)?;
    let by = words::signed(holder, word.by)?;
    let reopening = Reopening {
        id,
        expected: expected(desk, id, word.expected).await?,
        by: by.clone(),
        reason: reason.clone(),
    };
    let reopened = desk.ask(desk.ledger.reopen(reopening)).await?;
    let record = reopened.map_err(refusal)?;
    tracing::info!(
        tikigate.record = %id, tikigate.by = by, tikigate.reason = reason,
        "record reopened through the admin API",
    );
    Ok(answer::data(view::summary(&record)))
}

/// `GET /api/ledger/quarantine`: whether keys that the ledger doesn't know are held, and why.
pub(super) async fn quarantine(desk: &Desk) -> Result<Answer, Fault> {
    let cause = ledger(desk.ask(desk.ledger.quarantine()).await?)?;
    Ok(answer::data(quarantine_json(cause.as_deref())))
}

/// `POST /api/ledger/quarantine/lift`: ends the quarantine by the word of the token's holder.
pub(super) async fn lift_quarantine(
    desk: &Desk,
    holder: &str,
    body: &[u8],
) -> Result<Answer, Fault> {
    let word: Lifting = words::read("lifting", body)?;
    let reason = words::reason(word.reason)?;
    let by = words::signed(holder, word.by)?;
    let cause = ledger(desk.ask(desk.ledger.quarantine()).await?)?;
    let cause = cause.ok_or(Fault::NotQuarantined)?;
    if word.expected.is_some_and(|seen| seen != cause) {
        return Err(Fault::OtherQuarantine(cause));
    }
    let lifted = desk.ledger.lift_quarantine(by.clone(), reason.clone());
    ledger(desk.ask(lifted).await?)?;
    tracing::warn!(
        tikigate.by = by,
        tikigate.reason = reason,
        tikigate.cause = cause,
        "quarantine lifted through the admin API",
    );
    quarantine(desk).await
}

fn quarantine_json(cause: Option<&str>) -> Value {
    json!({ "quarantined": cause.is_some(), "cause": cause })
}

/// Sends the kept call of a record that was just released, and tells what came of it.
///
/// The answer is waited for only so long; the call goes on and is recorded without anybody waiting.
async fn send_now(desk: &Desk, id: RecordId, by: &str) -> Value {
    let sending = timeout(desk.limits.send_within, desk.control.send_now(id)).await;
    match sending {
        Ok(Ok(SendNow { status, state })) => {
            let state = state.as_str();
            tracing::info!(
                tikigate.record = %id, tikigate.by = by, tikigate.state = state,
                http.response.status_code = status, "kept call sent through the admin API",
            );
            json!({ "outcome": "sent", "status": status, "state": state })
        }
        Ok(Err(error)) => {
            tracing::warn!(
                tikigate.record = %id, tikigate.by = by, %error,
                "a kept call was not sent through the admin API",
            );
            let code = match &error {
                SendNowError::NoRequest => "no_request",
                SendNowError::NotReleased(_) => "not_released",
                SendNowError::Unavailable(_) => "unavailable",
            };
            json!({ "outcome": "not_sent", "code": code, "message": error.to_string() })
        }
        Err(_) => {
            tracing::info!(
                tikigate.record = %id, tikigate.by = by,
                "a kept call is being sent; the admin API waits no longer",
            );
            json!({ "outcome": "running" })
        }
    }
}

/// What the person saw; whoever names nothing means the record as it is now.
async fn expected(
    desk: &Desk,
    id: RecordId,
    seen: Option<Seen>,
) -> Result<(State, u32, u64), Fault> {
    match seen {
        Some(seen) => Ok((filter::state(&seen.state)?, seen.attempt, seen.version)),
        None => {
            let now = get(desk, id).await?;
            Ok((now.state, now.attempt, now.version))
        }
    }
}

async fn get(desk: &Desk, id: RecordId) -> Result<Record, Fault> {
    ledger(desk.ask(desk.ledger.get(id)).await?)?.ok_or(Fault::NoSuchRecord)
}

/// The detail goes to the log, a stable sentence to the caller.
fn ledger<T>(answer: Result<T, LedgerError>) -> Result<T, Fault> {
    answer.map_err(|error| {
        tracing::warn!(%error, "the ledger refused the admin API");
        Fault::LedgerUnavailable
    })
}

fn refusal(error: ResolveError) -> Fault {
    match error {
        ResolveError::NotFound => Fault::NoSuchRecord,
        ResolveError::Changed(record) => Fault::Conflict(record),
        ResolveError::NotUnknown(state) => Fault::NotUnknown(state),
        ResolveError::MayStillRun { until } => Fault::MayStillRun(until),
        ResolveError::NoFurtherRelease => Fault::NoFurtherRelease,
        ResolveError::NotDeclared => Fault::NotDeclared,
        ResolveError::NeverSent => Fault::NeverSent,
        ResolveError::NoReason => Fault::ReasonRequired,
        ResolveError::Ledger(error) => {
            tracing::warn!(%error, "the ledger could not resolve a record");
            Fault::LedgerUnavailable
        }
    }
}
