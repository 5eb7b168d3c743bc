//! What only looks: on the reader's connection, each in a snapshot of its own.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension as _, params_from_iter, types::Value};

use crate::ledger::{
    Event, Filter, KeptRequest, LIST_LIMIT, LedgerError, Page, Record, RecordId, State, Stats,
};

use super::events::EventText;
use super::rows::{self, COLUMNS, Stored, Unreadable, hash};
use crate::ledger::texts::{micros, push_json, time_of};

type Looked<T> = rusqlite::Result<Result<T, LedgerError>>;

/// Rows that one page of a list looks at, so that a search through millions leaves the reader to
/// others in between.
const SCANNED: u64 = 20_000;

fn unreadable(error: &Unreadable) -> LedgerError {
    LedgerError::Failed(error.to_string())
}

fn stored(
    connection: &Connection,
    id: RecordId,
) -> rusqlite::Result<Result<Option<Stored>, Unreadable>> {
    let mut select = connection.prepare_cached(rows::BY_ID)?;
    let found = select.query_row([id.0.cast_signed()], |row| Ok(rows::read(row)));
    Ok(found.optional()?.transpose())
}

pub(super) fn get(connection: &Connection, id: RecordId) -> Looked<Option<Record>> {
    let found = stored(connection, id)?.map_err(|error| unreadable(&error));
    Ok(found.map(|found| found.map(|found| found.entry.record)))
}

pub(super) fn request(connection: &Connection, id: RecordId) -> Looked<Option<KeptRequest>> {
    let found = stored(connection, id)?.map_err(|error| unreadable(&error));
    Ok(found.map(|found| found.and_then(|found| found.entry.request)))
}

pub(super) fn events(connection: &Connection, id: RecordId) -> Looked<Vec<Event>> {
    let mut select = connection.prepare_cached("SELECT events FROM records WHERE id = ?1")?;
    let text = select.query_row([id.0.cast_signed()], |row| row.get(0));
    let text: Option<String> = text.optional()?;
    Ok(Ok(text.map_or_else(Vec::new, |text| {
        EventText::stored(text).told()
    })))
}

pub(super) fn quarantine(connection: &Connection) -> Looked<Option<String>> {
    let cause = connection.query_row("SELECT quarantine FROM meta", (), |row| row.get(0))?;
    Ok(Ok(cause))
}

/// Counts are kept with each batch. Of done records the one that expires first counts as the oldest,
/// as it is where all are kept equally long.
pub(super) fn stats(connection: &Connection, now: SystemTime) -> Looked<Stats> {
    let mut stats = Stats::default();
    let counts = connection.query_row(
        "SELECT claimed, released, done, unknown FROM meta",
        (),
        |row| Ok([row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?, row.get(3)?]),
    )?;
    for (state, count) in State::ALL.into_iter().zip(counts) {
        stats.records[state as usize] = count.cast_unsigned();
        let oldest: Option<i64> = match state {
            State::Done => connection
                .prepare_cached(
                    "SELECT updated_at FROM records INDEXED BY records_by_expiry \
                     WHERE state = 'done' ORDER BY expires_at LIMIT 1",
                )?
                .query_row((), |row| row.get(0))
                .optional()?,
            open => connection
                .prepare_cached(
                    "SELECT updated_at FROM records INDEXED BY records_open \
                     WHERE state = ?1 AND state <> 'done' ORDER BY updated_at LIMIT 1",
                )?
                .query_row([open.as_str()], |row| row.get(0))
                .optional()?,
        };
        if let Some(oldest) = oldest {
            let age = now.duration_since(time_of(oldest));
            stats.oldest[state as usize] = age.unwrap_or(Duration::ZERO);
        }
    }
    Ok(Ok(stats))
}

/// A page of records. Where nothing but the records themselves can tell which to show, it looks at
/// [`SCANNED`] of them and says where to go on.
pub(super) fn list(connection: &Connection, filter: &Filter) -> Looked<Page> {
    let limit = filter.limit.min(LIST_LIMIT);
    let after = filter
        .after
        .map_or(0, |RecordId(id)| id.min(i64::MAX.cast_unsigned()));
    if limit == 0 {
        return Ok(Ok(Page::default()));
    }
    let after = match filter.created_from {
        Some(from) => after.max(last_before(connection, micros(from))?),
        None => after,
    };
    let query = Query::new(filter, after, limit);
    let mut select = connection.prepare_cached(&query.sql)?;
    let mut found = select.query(params_from_iter(query.values))?;
    let mut page = Page::default();
    while let Some(row) = found.next()? {
        let record = match rows::read(row) {
            Ok(stored) => stored.entry.record,
            Err(error) => return Ok(Err(unreadable(&error))),
        };
        if page.records.len() == limit {
            page.next = page.records.last().map(|last| last.id);
            return Ok(Ok(page));
        }
        if passes(&record, filter) {
            page.records.push(record);
        }
    }
    if let Some(end) = query.end {
        let newest: Option<i64> =
            connection.query_row("SELECT max(id) FROM records", (), |row| row.get(0))?;
        let more = newest.unwrap_or(0).cast_unsigned() > end;
        page.next = more.then_some(RecordId(end));
        if more && past_the_end(connection, filter, end)? {
            page.next = None;
        }
    }
    Ok(Ok(page))
}

/// What the database is asked, and up to which id.
struct Query {
    sql: String,
    values: Vec<Value>,
    /// The last id that was looked at; none: all were.
    end: Option<u64>,
}

impl Query {
    fn new(filter: &Filter, after: u64, limit: usize) -> Self {
        let mut values = vec![Value::from(after.cast_signed())];
        let mut conditions = vec!["id > ?1".to_owned()];
        let mut add = |condition: &str, value: Value| {
            values.push(value);
            conditions.push(condition.replace('?', &format!("?{}", values.len())));
        };
        let mut end = None;
        match (&filter.key, filter.state) {
            (Some(key), _) => {
                add(
                    "id IN (SELECT id FROM answers WHERE message_hash = ? UNION ALL \
                     SELECT id FROM records INDEXED BY records_by_message \
                     WHERE message_hash = ? AND listed IS NULL)",
                    Value::from(hash(key)),
                );
                add("message = ?", Value::from(key.clone()));
            }
            // What isn't done is little, and has an index.
            (None, Some(state)) if state != State::Done => {
                add(
                    "id IN (SELECT id FROM records INDEXED BY records_open \
                     WHERE state = ? AND state <> 'done')",
                    Value::from(state.as_str().to_owned()),
                );
            }
            (None, _) => {
                let last = after.saturating_add(SCANNED);
                add("id <= ?", Value::from(last.cast_signed()));
                end = Some(last);
            }
        }
        if let Some(state) = filter.state {
            add("state = ?", Value::from(state.as_str().to_owned()));
        }
        if let Some(route) = &filter.route {
            add("route = ?", Value::from(route.clone()));
        }
        if let Some(query) = &filter.query {
            add("instr(message, ?) > 0", Value::from(query.clone()));
        }
        if let Some(reference) = &filter.reference {
            let mut quoted = String::new();
            push_json(&mut quoted, reference);
            add("instr(fields, ?) > 0", Value::from(quoted));
        }
        if let Some(until) = filter.created_until {
            add("created_at < ?", Value::from(micros(until)));
        }
        // Where a condition is told exactly only by the record, more than the page may be needed.
        let rows = if filter.reference.is_some() {
            String::new()
        } else {
            format!(" LIMIT {}", limit + 1)
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM records WHERE {} ORDER BY id{rows}",
            conditions.join(" AND ")
        );
        Self { sql, values, end }
    }
}

fn passes(record: &Record, filter: &Filter) -> bool {
    (filter.reference.as_deref()).is_none_or(|text| record.fields.mentions(text))
        && filter
            .created_from
            .is_none_or(|from| record.created_at >= from)
}

/// The last id of which all records up to it were made before `from`: ids follow time, but for a clock
/// that was set, which is why a day's worth is looked at besides.
fn last_before(connection: &Connection, from: i64) -> rusqlite::Result<u64> {
    const SLACK: i64 = 86_400 * 1_000_000;
    let newest: Option<i64> =
        connection.query_row("SELECT max(id) FROM records", (), |row| row.get(0))?;
    let mut select = connection
        .prepare_cached("SELECT id, created_at FROM records WHERE id >= ?1 ORDER BY id LIMIT 1")?;
    let (mut low, mut high) = (0, newest.unwrap_or(0) + 1);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        let found = select.query_row([middle], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        });
        match found.optional()? {
            Some((_, created)) if created < from.saturating_sub(SLACK) => low = middle,
            _ => high = middle,
        }
    }
    Ok(low.cast_unsigned())
}

/// Whether everything behind `end` was made after the filter's time, by more than a clock is set.
fn past_the_end(connection: &Connection, filter: &Filter, end: u64) -> rusqlite::Result<bool> {
    const SLACK: i64 = 86_400 * 1_000_000;
    let Some(until) = filter.created_until else {
        return Ok(false);
    };
    let mut select = connection
        .prepare_cached("SELECT created_at FROM records WHERE id > ?1 ORDER BY id LIMIT 1")?;
    let next: Option<i64> = select
        .query_row([end.cast_signed()], |row| row.get(0))
        .optional()?;
    Ok(next.is_none_or(|created| created > micros(until).saturating_add(SLACK)))
}
