//! The answers of done records, by their message's hash: what a replay is answered from, without its
//! record. They follow the records, and are never changed by themselves.

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

/// What the list says of a claim's key.
pub(super) enum Listed {
    /// Nothing: a record of it, if there is one, is not listed.
    Nowhere,
    /// This is the key's record, which has to be looked at itself.
    Record(RecordId),
    /// All that the claim gets.
    Outcome(ClaimOutcome),
}

/// Looks for a claim's key, whose message has this hash.
pub(super) fn find(
    batch: &mut Batch<'_>,
    claim: &Claim,
    message_hash: i64,
) -> rusqlite::Result<Listed> {
    let select = batch.statement(
        "SELECT id, key_check, fingerprint, policy, keep, status, headers, body FROM answers \
         WHERE message_hash = ?1",
    )?;
    let found = select.query_row([message_hash], |row| listed(row, claim));
    Ok(found.optional()?.unwrap_or(Listed::Nowhere))
}

fn listed(row: &Row<'_>, claim: &Claim) -> rusqlite::Result<Listed> {
    if row.get_ref(1)?.as_blob()? != key_check(&claim.key) {
        return Ok(Listed::Nowhere);
    }
    let id = RecordId(row.get::<_, i64>(0)?.cast_unsigned());
    // What can't be read is told of the record itself.
    Ok(outcome(row, claim, id).unwrap_or(Listed::Record(id)))
}

/// What the record's claim gets.
fn outcome(row: &Row<'_>, claim: &Claim, id: RecordId) -> rusqlite::Result<Listed> {
    if row.get_ref(2)?.as_blob()? != claim.fingerprint.0 {
        return Ok(Listed::Outcome(ClaimOutcome::Conflict(id)));
    }
    // The claim changes the record.
    let stricter = claim.policy == Policy::Hold && row.get_ref(3)?.as_str()? != "hold";
    if stricter || micros_of(claim.keep) > row.get::<_, i64>(4)? {
        return Ok(Listed::Record(id));
    }
    let status = u16::try_from(row.get::<_, i64>(5)?).ok();
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let headers = match row.get_ref(6)?.as_str_or_null()? {
        Some(text) => headers_of(text),
        None => Some(Vec::new()),
    };
    let (Some(status), Some(headers)) = (status, headers) else {
        return Ok(Listed::Record(id));
    };
    let body = row.get_ref(7)?.as_blob_or_null()?.unwrap_or_default();
    let answer = KeptAnswer {
        status,
        headers,
        body: Bytes::copy_from_slice(body),
    };
    Ok(Listed::Outcome(ClaimOutcome::Done(id, answer)))
}

/// Lists a record's answer, takes it off the list, or lists it anew, as its state wants; `true` if it is
/// listed now and wasn't, or the other way round. To be called before the record is written.
pub(super) fn follow(batch: &mut Batch<'_>, stored: &mut Stored) -> rusqlite::Result<bool> {
    let record = &stored.entry.record;
    let wanted = record.state == State::Done && record.answer.is_some();
    if !wanted && !stored.listed {
        return Ok(false);
    }
    let was_listed = stored.listed;
    if was_listed {
        let delete = batch.statement("DELETE FROM answers WHERE message_hash = ?1 AND id = ?2")?;
        delete.execute(params![stored.message_hash, record.id.0.cast_signed()])?;
    }
    stored.listed = wanted && insert(batch, stored)?;
    Ok(stored.listed != was_listed)
}

/// Lists an answer; `false` where another record's has its place.
fn insert(batch: &mut Batch<'_>, stored: &Stored) -> rusqlite::Result<bool> {
    let record = &stored.entry.record;
    let Some(answer) = &record.answer else {
        return Ok(false);
    };
    let insert = batch.statement(
        "INSERT OR IGNORE INTO answers \
         (message_hash, id, key_check, fingerprint, policy, keep, status, headers, body) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    let inserted = insert.execute(params![
        stored.message_hash,
        record.id.0.cast_signed(),
        key_check(&record.key),
        record.fingerprint.0,
        policy_word(record.policy),
        keep_micros(&stored.entry),
        answer.status.as_u16(),
        answer_headers(record),
        &*answer.body,
    ])?;
    Ok(inserted == 1)
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

fn key_check(key: &Key) -> KeyCheck {
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
