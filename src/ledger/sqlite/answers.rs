//! What a claim is to the record of its key, without reading all of that.
//!
//! Programs of before listed the answers of done records in a table of their own, by their message's hash.
//! Nothing is listed any more: of each message its hash alone goes to a random page, 200 of them to one,
//! where of the answers there were 25. What is listed in a file counts until its record changes or is forgotten.

use bytes::Bytes;
use http::StatusCode;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use sha2::{Digest as _, Sha256};

use super::rows::{Stored, answer_headers, keep_micros, policy_word};
use crate::ledger::texts::{headers_of, micros_of};
use crate::ledger::{Claim, ClaimOutcome, KeptAnswer, Key, Policy, RecordId, State};
use crate::store::sqlite::Batch;

/// With the 8 bytes of the message's hash, no two keys are alike.
type KeyCheck = [u8; 16];

/// What the file says of a claim's key.
pub(super) enum Found {
    /// No record has it.
    Nothing,
    /// This is the key's record, which has to be looked at itself.
    Record(RecordId),
    /// All that the claim gets.
    Outcome(ClaimOutcome),
}

// Both select the same of an answer, in the same order.
const LISTED: &str = "\
    SELECT id, fingerprint, policy, keep, status, headers, body \
    FROM answers WHERE message_hash = ?1 AND key_check = ?2";
const BY_KEY: &str = "\
    SELECT id, fingerprint, policy, keep, answer_status, answer_headers, answer_body, state \
    FROM records INDEXED BY records_by_message \
    WHERE message_hash = ?1 AND message = ?2 AND client = ?3 AND namespace = ?4 AND listed IS NULL";

/// Looks for a claim's key, whose message has this hash.
pub(super) fn find(
    batch: &mut Batch<'_>,
    claim: &Claim,
    message_hash: i64,
    any_listed: bool,
) -> rusqlite::Result<Found> {
    let key = &claim.key;
    if any_listed {
        let select = batch.statement(LISTED)?;
        let found = select.query_row(params![message_hash, key_check(key)], |row| {
            found(row, claim, State::Done)
        });
        if let Some(found) = found.optional()? {
            return Ok(found);
        }
    }
    let select = batch.statement(BY_KEY)?;
    let found = select.query_row(
        params![message_hash, &*key.message, &*key.client, &*key.namespace],
        |row| {
            let state = row.get_ref(7)?.as_str().unwrap_or_default().parse();
            found(row, claim, state.unwrap_or(State::Unknown))
        },
    );
    Ok(found.optional()?.unwrap_or(Found::Nothing))
}

/// Whether a program of before has listed answers that still count.
pub(super) fn any_listed(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM answers)", (), |row| {
        row.get(0)
    })
}

fn found(row: &Row<'_>, claim: &Claim, state: State) -> rusqlite::Result<Found> {
    let id = RecordId(row.get::<_, i64>(0)?.cast_unsigned());
    if state != State::Done {
        return Ok(Found::Record(id));
    }
    // What can't be read is told of the record itself.
    Ok(outcome(row, claim, id).unwrap_or(Found::Record(id)))
}

/// What a claim gets of the done record of its key.
fn outcome(row: &Row<'_>, claim: &Claim, id: RecordId) -> rusqlite::Result<Found> {
    if row.get_ref(1)?.as_blob()? != claim.fingerprint.0 {
        return Ok(Found::Outcome(ClaimOutcome::Conflict(id)));
    }
    // The claim changes the record.
    let stricter = claim.policy == Policy::Hold && row.get_ref(2)?.as_str()? != "hold";
    if stricter || micros_of(claim.keep) > row.get::<_, i64>(3)? {
        return Ok(Found::Record(id));
    }
    let status = u16::try_from(row.get::<_, i64>(4)?).ok();
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let headers = match row.get_ref(5)?.as_str_or_null()? {
        Some(text) => headers_of(text),
        None => Some(Vec::new()),
    };
    let (Some(status), Some(headers)) = (status, headers) else {
        return Ok(Found::Record(id));
    };
    let body = row.get_ref(6)?.as_blob_or_null()?.unwrap_or_default();
    let answer = KeptAnswer {
        status,
        headers,
        body: Bytes::copy_from_slice(body),
    };
    Ok(Found::Outcome(ClaimOutcome::Done(id, answer)))
}

/// Takes the answer of a record that changes off the list; `true` if it was there. To be called before the
/// record is written.
pub(super) fn unlist(batch: &mut Batch<'_>, stored: &mut Stored) -> rusqlite::Result<bool> {
    if !std::mem::take(&mut stored.listed) {
        return Ok(false);
    }
    let delete = batch.statement("DELETE FROM answers WHERE message_hash = ?1 AND id = ?2")?;
    let id = stored.entry.record.id.0.cast_signed();
    delete.execute(params![stored.message_hash, id])?;
    Ok(true)
}

/// What is wrong with a record's place on the list, or off it.
pub(super) fn faults(connection: &Connection, stored: &Stored) -> rusqlite::Result<Option<String>> {
    const ALIKE: &str = "
        SELECT id = ?2 AND key_check = ?3 AND fingerprint = ?4 AND policy = ?5 AND keep = ?6
            AND status IS ?7 AND headers IS ?8 AND body IS ?9, key_check = ?3, id
        FROM answers WHERE message_hash = ?1";
    let record = &stored.entry.record;
    let answer = record.answer.as_ref();
    let mut select = connection.prepare_cached(ALIKE)?;
    let found = select.query_row(
        params![
            stored.message_hash,
            record.id.0.cast_signed(),
            key_check(&record.key),
            record.fingerprint.0,
            policy_word(record.policy),
            keep_micros(&stored.entry),
            answer.map(|answer| answer.status.as_u16()),
            answer_headers(record),
            answer.map(|answer| &*answer.body),
        ],
        |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?)),
    );
    let found: Option<(bool, bool, i64)> = found.optional()?;
    Ok(match (stored.listed, found) {
        (true, Some((true, ..))) if record.state == State::Done => None,
        (true, Some((true, ..))) => Some("is not done and its answer is listed".to_owned()),
        (true, _) => Some("would not be answered with its own answer".to_owned()),
        (false, Some((_, true, other))) => Some(format!("and rec-{other} have the same key")),
        (false, _) => None,
    })
}

pub(super) fn key_check(key: &Key) -> KeyCheck {
    let mut digest = Sha256::new();
    for part in [&key.namespace, &key.client, &key.message] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    let digest: [u8; 32] = digest.finalize().into();
    let mut check = KeyCheck::default();
    check.copy_from_slice(&digest[..16]);
    check
}
