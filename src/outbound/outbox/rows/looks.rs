//! What is asked of the deliveries, and changes nothing.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension as _, named_params};

use super::{COLUMNS, Sql, micros, read, time};
use crate::outbound::outbox::types::{Delivery, DeliveryId, Filter, Page, State, Stats};

/// Failed deliveries that the backend is to be told of.
pub(in crate::outbound::outbox) fn to_tell(
    connection: &Connection,
    limit: usize,
    now: SystemTime,
) -> Sql<Vec<Delivery>> {
    let mut select = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM outbox INDEXED BY outbox_to_tell \
         WHERE tell_at IS NOT NULL AND tell_at <= ?1 ORDER BY tell_at LIMIT ?2"
    ))?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = select.query_map((micros(now), limit), read)?;
    rows.collect()
}

/// Rows looked at for one page at most.
const LOOKED_AT: i64 = 10_000;

/// Deliveries in the order of their ids.
pub(in crate::outbound::outbox) fn list(connection: &Connection, filter: &Filter) -> Sql<Page> {
    // No row has a number beyond the column's.
    let after = filter
        .after
        .map_or(0, |id| i64::try_from(id.0).unwrap_or(i64::MAX));
    let end: Option<i64> = connection
        .prepare_cached("SELECT id FROM outbox WHERE id > ?1 ORDER BY id LIMIT 1 OFFSET ?2")?
        .query_row((after, LOOKED_AT), |row| row.get(0))
        .optional()?;
    let mut select = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM outbox WHERE id > :after AND id < coalesce(:end, id + 1) \
         AND (:state IS NULL OR state = :state) \
         AND (:id IS NULL OR tiki_transaction_id = :id OR transaction_id = :id) ORDER BY id LIMIT :most"
    ))?;
    let limit = filter.limit.max(1);
    let rows = select.query_map(
        named_params! {
            ":after": after,
            ":end": end,
            ":state": filter.state.map(State::as_str),
            ":id": filter.transaction,
            ":most": i64::try_from(limit + 1).unwrap_or(i64::MAX),
        },
        read,
    )?;
    let mut deliveries = rows.collect::<Sql<Vec<_>>>()?;
    let next = if deliveries.len() > limit {
        deliveries.truncate(limit);
        deliveries.last().map(|last| last.id)
    } else {
        end.map(|end| DeliveryId((end - 1).cast_unsigned()))
    };
    Ok(Page { deliveries, next })
}

/// Counts and ages.
pub(in crate::outbound::outbox) fn stats(connection: &Connection, now: SystemTime) -> Sql<Stats> {
    let count = |sql: &str| -> Sql<u64> {
        let count: i64 = connection
            .prepare_cached(sql)?
            .query_row((), |row| row.get(0))?;
        Ok(count.cast_unsigned())
    };
    let due = count(
        "SELECT count(*) FROM outbox INDEXED BY outbox_due WHERE state = 'pending' AND held = 0",
    )?;
    let over =
        count("SELECT count(*) FROM outbox INDEXED BY outbox_over WHERE state <> 'pending'")?;
    let all = count("SELECT count(*) FROM outbox")?;
    let held = all.saturating_sub(over + due);
    let oldest: Option<i64> = connection
        .prepare_cached(
            "SELECT min(opened_at) FROM outbox INDEXED BY outbox_waiting WHERE state = 'pending'",
        )?
        .query_row((), |row| row.get(0))?;
    Ok(Stats {
        pending: due + held,
        held,
        oldest: oldest.map_or(Duration::ZERO, |at| {
            now.duration_since(time(at)).unwrap_or_default()
        }),
        failed: count(
            "SELECT count(*) FROM outbox INDEXED BY outbox_failed WHERE state = 'failed'",
        )?,
        untold: count(
            "SELECT count(*) FROM outbox INDEXED BY outbox_to_tell WHERE tell_at IS NOT NULL",
        )?,
        bytes: count("SELECT bytes FROM outbox_total")?,
    })
}
