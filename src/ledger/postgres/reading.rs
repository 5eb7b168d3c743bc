//! What people and metrics ask.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::columns::{id_column, stored};
use super::rows::{self, ALL_COLUMNS, Columns, SHOWN_COLUMNS, entry};
use super::writing::Value;
use crate::ledger::{Event, Filter, KeptRequest, LIST_LIMIT, Page, Record, RecordId, State, Stats};
use crate::store::postgres::{Fault, Session};

/// Records of a page, each with its answer.
const PAGE: usize = 250;
/// Records that are looked at in one go, and for how long one list goes on looking.
const WINDOW: i64 = 5000;
const LOOK_FOR: Duration = Duration::from_millis(300);

static GET: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select {} from tikigate.record r where r.id = $1",
        *SHOWN_COLUMNS
    )
});

static GET_ALL: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select {} from tikigate.record r where r.id = $1",
        *ALL_COLUMNS
    )
});

/// One record.
pub(super) async fn get(session: &mut Session, id: RecordId) -> Result<Option<Record>, Fault> {
    let row = by_id(session, &GET, id).await?;
    row.as_ref().map(record).transpose()
}

/// A record's call.
pub(super) async fn request(
    session: &mut Session,
    id: RecordId,
) -> Result<Option<KeptRequest>, Fault> {
    let Some(row) = by_id(session, &GET_ALL, id).await? else {
        return Ok(None);
    };
    let (entry, _) = entry(&mut Columns::from(&row, 0))?;
    Ok(entry.request)
}

async fn by_id(
    session: &mut Session,
    statement: &'static str,
    id: RecordId,
) -> Result<Option<Row>, Fault> {
    let [statement] = session.prepare([statement]).await?;
    match id_column(id) {
        Some(id) => session.query_opt(&statement, &[&id]).await,
        None => Ok(None),
    }
}

fn record(row: &Row) -> Result<Record, Fault> {
    let (entry, _) = entry(&mut Columns::from(row, 0))?;
    Ok(entry.record)
}

/// Records in the order of their ids. Looks at a bounded number of them.
pub(super) async fn list(session: &mut Session, filter: &Filter) -> Result<Page, Fault> {
    let limit = filter.limit.min(LIST_LIMIT).min(PAGE);
    let mut page = Page::default();
    if limit == 0 {
        return Ok(page);
    }
    let after = filter.after.map_or(Some(-1), id_column);
    let Some(mut after) = after else {
        return Ok(page);
    };
    let until = Instant::now() + LOOK_FOR;
    loop {
        let window = window(session, filter, after).await?;
        let Some(last) = window.last else {
            page.next = None;
            return Ok(page);
        };
        let mut found = within(session, filter, after, last, limit + 1).await?;
        if found.len() > limit {
            found.truncate(limit);
            page.next = found.last().map(|record| record.id);
            page.records = found;
            return Ok(page);
        }
        let next = window.full.then_some(RecordId(last.cast_unsigned()));
        if !found.is_empty() || next.is_none() || Instant::now() > until {
            page.next = next;
            page.records = found;
            return Ok(page);
        }
        after = last;
    }
}

/// Some of the records that a list has to look at.
struct Window {
    last: Option<i64>,
    /// There may be more behind it.
    full: bool,
}

/// The next records by the filter's index, where it has one: a key or a reference finds its few at
/// once, and those that are not done are few as well.
async fn window(session: &Session, filter: &Filter, after: i64) -> Result<Window, Fault> {
    let (condition, word) = match (&filter.key, &filter.reference, filter.state) {
        (Some(key), _, _) => ("message = $3", stored(key)),
        (None, Some(reference), _) => ("field_texts @> array[$3]", stored(reference)),
        (None, None, Some(state)) if state != State::Done => {
            ("state = $3 and state <> 'done'", state.as_str().into())
        }
        _ => ("$3 = ''", "".into()),
    };
    let ask = format!(
        "select max(id), count(*) from (
            select id from tikigate.record where id > $1 and {condition} order by id limit $2) w"
    );
    let parameters: [(Value<'_>, Type); 3] = [
        (&after, Type::INT8),
        (&WINDOW, Type::INT8),
        (&word, Type::TEXT),
    ];
    let rows = session.query_once(&ask, &parameters).await?;
    let row = rows.first().ok_or(Fault::Corrupt("no window"))?;
    let mut columns = Columns::from(row, 0);
    Ok(Window {
        last: columns.take()?,
        full: columns.take::<i64>()? == WINDOW,
    })
}

/// The records of a window that pass the filter.
async fn within(
    session: &Session,
    filter: &Filter,
    after: i64,
    last: i64,
    limit: usize,
) -> Result<Vec<Record>, Fault> {
    let Filter {
        state,
        route,
        key,
        query,
        reference,
        created_from,
        created_until,
        after: _,
        limit: _,
    } = filter;
    let state = state.map(State::as_str);
    let key = key.as_deref().map(stored);
    let query = query.as_deref().map(stored);
    let reference = reference.as_deref().map(stored);
    let limit = limit as i64;
    let mut statement = format!(
        "select {} from tikigate.record r where r.id > $1 and r.id <= $2",
        *SHOWN_COLUMNS
    );
    let mut parameters: Vec<(Value<'_>, Type)> = vec![(&after, Type::INT8), (&last, Type::INT8)];
    let mut also = |condition: &str, value, kind| {
        parameters.push((value, kind));
        statement += " and ";
        statement += &condition.replace('?', &format!("${}", parameters.len()));
    };
    if let Some(state) = &state {
        also("r.state = ?", state, Type::TEXT);
    }
    if let Some(route) = route {
        also("r.route = ?", route, Type::TEXT);
    }
    if let Some(key) = &key {
        also("r.message = ?", key, Type::TEXT);
    }
    if let Some(query) = &query {
        also("position(? in r.message) > 0", query, Type::TEXT);
    }
    if let Some(reference) = &reference {
        also("r.field_texts @> array[?]", reference, Type::TEXT);
    }
    if let Some(from) = created_from {
        also("r.created_at >= ?", from, Type::TIMESTAMPTZ);
    }
    if let Some(until) = created_until {
        also("r.created_at < ?", until, Type::TIMESTAMPTZ);
    }
    parameters.push((&limit, Type::INT8));
    statement += &format!(" order by r.id limit ${}", parameters.len());
    let rows = session.query_once(&statement, &parameters).await?;
    rows.iter().map(record).collect()
}

/// A record's events, oldest first.
pub(super) async fn events(session: &mut Session, id: RecordId) -> Result<Vec<Event>, Fault> {
    const EVENTS: &str = "
        select number, at, attempt, state, cause, by_name, reason from tikigate.event
        where record = $1 order by number";
    let [events] = session.prepare([EVENTS]).await?;
    let Some(id) = id_column(id) else {
        return Ok(Vec::new());
    };
    rows::events(&session.query(&events, &[&id]).await?)
}

/// Counts, which are kept, and ages, which an index has at its ends.
pub(super) async fn stats(session: &mut Session, now: SystemTime) -> Result<Stats, Fault> {
    const STATS: &str = "
        select sum(claimed)::bigint, sum(released)::bigint, sum(done)::bigint, sum(unknown)::bigint,
            (select min(updated_at) from tikigate.record where state = 'claimed'),
            (select min(updated_at) from tikigate.record where state = 'released'),
            (select min(updated_at) from tikigate.record where state = 'done'),
            (select min(updated_at) from tikigate.record where state = 'unknown')
        from tikigate.record_count";
    let [statement] = session.prepare([STATS]).await?;
    let row = session.query_opt(&statement, &[]).await?;
    let row = row.ok_or(Fault::Corrupt("no counts"))?;
    let mut columns = Columns::from(&row, 0);
    let mut stats = Stats::default();
    for records in &mut stats.records {
        let count: i64 = columns.take()?;
        *records = u64::try_from(count).unwrap_or_default();
    }
    for oldest in &mut stats.oldest {
        let since: Option<SystemTime> = columns.take()?;
        let age = since.and_then(|since| now.duration_since(since).ok());
        *oldest = age.unwrap_or_default();
    }
    Ok(stats)
}

/// Why unknown keys are held, if they are.
pub(super) async fn quarantine(session: &mut Session) -> Result<Option<String>, Fault> {
    let [statement] = session
        .prepare(["select quarantine from tikigate.ledger"])
        .await?;
    let row = session.query_opt(&statement, &[]).await?;
    let row = row.ok_or(Fault::Corrupt("no ledger"))?;
    Columns::from(&row, 0).take()
}
