//! Deliveries as rows of SQLite.

mod looks;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::rules::{self, FAR_AHEAD, OVERHEAD, Policy};
use super::types::{
    Accepted, Delivery, DeliveryId, Event, Flight, Outcome, Posting, Report, State, Step, Tidings,
    Word, WordFault,
};

pub(super) use looks::{list, stats, to_tell};

type Sql<T> = rusqlite::Result<T>;

const COLUMNS: &str = "id, client, base_url, tiki_transaction_id, transaction_id, status, amount, \
    state, step, place, tries, asks, maybe_taken, refusal, flight, flying_until, next_at, \
    created_at, opened_at, updated_at, generation, outcome, tell_at, tellings, events, body, held";

/// Deliveries that are over and forgotten at once to make room for a new one.
const EVICTED: i64 = 64;

/// What Tiki may have taken is kept for so long at least, however little room there is: a notice that is
/// posted again within it must be known.
pub(super) const EVICTABLE_AFTER: Duration = Duration::from_secs(48 * 3600);

/// Stores a notice, or finds the delivery that it is. Says whether anything was written.
pub(super) fn post(
    connection: &Connection,
    posting: &Posting,
    max_bytes: usize,
    tidings: Tidings,
) -> Sql<(Accepted, bool)> {
    let expected = &posting.expected;
    let mut siblings = siblings(
        connection,
        &posting.client,
        &expected.tiki_transaction_id,
        &expected.transaction_id,
    )?;
    let before = siblings.clone();
    let accepted = rules::post(&mut siblings, posting, tidings);
    let sum = |deliveries: &[Delivery]| deliveries.iter().map(size).sum::<usize>();
    let new = accepted.as_ref().err().map_or(0, |first| size(first));
    // What is opened again may have a longer body than before.
    let growth = (sum(&siblings) + new).saturating_sub(sum(&before));
    if growth > 0 && !make_room(connection, posting, growth, max_bytes, tidings.now)? {
        return Ok((Accepted::Full, true));
    }
    let accepted = match accepted {
        Ok(accepted) => accepted,
        Err(first) => Accepted::Stored(insert(connection, &first)?),
    };
    let changed = save_changed(connection, &before, &siblings)?;
    let wrote = changed || matches!(accepted, Accepted::Stored(_));
    Ok((accepted, wrote))
}

pub(super) fn size(delivery: &Delivery) -> usize {
    delivery.body.len() + OVERHEAD
}

/// Whether there is room for so many bytes, perhaps after forgetting what is over.
fn make_room(
    connection: &Connection,
    posting: &Posting,
    wanted: usize,
    max_bytes: usize,
    now: SystemTime,
) -> Sql<bool> {
    let most = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
    let fits = || -> Sql<bool> {
        let bytes: i64 = connection
            .prepare_cached("SELECT bytes FROM outbox_total")?
            .query_row((), |row| row.get(0))?;
        Ok(bytes.saturating_add(wanted) <= most)
    };
    if fits()? {
        return Ok(true);
    }
    // Not those of the transaction in hand, which are about to be written.
    let Posting {
        client, expected, ..
    } = posting;
    let (tiki_transaction_id, transaction_id) =
        (&expected.tiki_transaction_id, &expected.transaction_id);
    let horizon = micros(
        now.checked_sub(EVICTABLE_AFTER)
            .unwrap_or(SystemTime::UNIX_EPOCH),
    );
    let evicted = connection
        .prepare_cached(
            "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox INDEXED BY outbox_unsent \
             WHERE (state = 'cancelled' OR state = 'superseded') AND maybe_taken = 0 AND NOT \
             (tiki_transaction_id = ?1 AND transaction_id = ?2 AND client = ?3) \
             ORDER BY updated_at LIMIT ?4)",
        )?
        .execute((tiki_transaction_id, transaction_id, client, EVICTED))?;
    if evicted == 0 {
        connection
            .prepare_cached(
                "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox INDEXED BY outbox_over \
                 WHERE state <> 'pending' AND state <> 'failed' AND updated_at < ?5 AND NOT \
                 (tiki_transaction_id = ?1 AND transaction_id = ?2 AND client = ?3) \
                 ORDER BY updated_at LIMIT ?4)",
            )?
            .execute((
                tiki_transaction_id,
                transaction_id,
                client,
                EVICTED,
                horizon,
            ))?;
    }
    fits()
}

/// What a take found.
pub(super) struct Due {
    pub(super) taken: Vec<Delivery>,
    pub(super) next_in: Option<Duration>,
}

/// Takes deliveries whose time has come.
pub(super) fn take(connection: &Connection, limit: usize, tidings: Tidings) -> Sql<Due> {
    let now = micros(tidings.now);
    let mut select = connection.prepare_cached(
        "SELECT client, tiki_transaction_id, transaction_id FROM outbox INDEXED BY outbox_due \
         WHERE state = 'pending' AND held = 0 AND next_at <= ?1 \
         AND (flying_until IS NULL OR flying_until <= ?1) \
         AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.client = outbox.client \
         AND o.tiki_transaction_id = outbox.tiki_transaction_id \
         AND o.transaction_id = outbox.transaction_id AND o.flying_until > ?1) \
         ORDER BY next_at LIMIT ?2",
    )?;
    // More than that: of some there is a later state that isn't due yet.
    let looked_at = i64::try_from(limit.saturating_mul(4).saturating_add(16)).unwrap_or(i64::MAX);
    let far_ahead = micros(tidings.now + FAR_AHEAD);
    let mut transactions = put_off_too_far(connection, far_ahead, looked_at)?;
    let due = select
        .query_map((now, looked_at), |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, String>(2)?,
            ))
        })?
        .collect::<Sql<Vec<_>>>()?;
    transactions.extend(due);
    let mut taken = Vec::new();
    for (client, tiki_transaction_id, transaction_id) in transactions {
        if taken.len() >= limit {
            break;
        }
        let found = siblings(connection, &client, &tiki_transaction_id, &transaction_id);
        let mut siblings = match found {
            Err(rusqlite::Error::InvalidColumnType(column, ..)) => {
                // Of a newer version, or changed by hand: the others are delivered all the same.
                tracing::error!(
                    tiki_transaction_id,
                    transaction_id,
                    column,
                    "a delivery can't be read, and so not be delivered"
                );
                continue;
            }
            found => found?,
        };
        let before = siblings.clone();
        let index = rules::take(&mut siblings, tidings);
        save_changed(connection, &before, &siblings)?;
        taken.extend(index.map(|index| siblings.swap_remove(index)));
    }
    let next_at: Option<i64> = connection
        .prepare_cached(
            "SELECT next_at FROM outbox INDEXED BY outbox_due WHERE state = 'pending' AND held = 0 \
             AND flying_until IS NULL \
             AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.client = outbox.client \
             AND o.tiki_transaction_id = outbox.tiki_transaction_id \
             AND o.transaction_id = outbox.transaction_id AND o.flying_until IS NOT NULL) \
             ORDER BY next_at LIMIT 1",
        )?
        .query_row((), |row| row.get(0))
        .optional()?;
    let next_in = next_at.map(|at| time(at).duration_since(tidings.now).unwrap_or_default());
    Ok(Due { taken, next_in })
}

/// Transactions whose delivery was put off by a clock that was far ahead then.
fn put_off_too_far(
    connection: &Connection,
    far_ahead: i64,
    limit: i64,
) -> Sql<Vec<(String, String, String)>> {
    let mut select = connection.prepare_cached(
        "SELECT client, tiki_transaction_id, transaction_id FROM outbox INDEXED BY outbox_due \
         WHERE state = 'pending' AND held = 0 AND next_at >= ?1 AND flying_until IS NULL \
         ORDER BY next_at LIMIT ?2",
    )?;
    let rows = select.query_map((far_ahead, limit), |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })?;
    rows.collect()
}

/// Records what became of a try.
pub(super) fn record(
    connection: &Connection,
    flight: &Flight,
    report: &Report,
    policy: Policy,
    tidings: Tidings,
) -> Sql<Option<Delivery>> {
    let tried = &flight.delivery;
    let mut siblings = siblings_of(connection, tried)?;
    let before = siblings.clone();
    rules::record(&mut siblings, tried, report, policy, tidings);
    save_changed(connection, &before, &siblings)?;
    Ok(siblings.into_iter().find(|one| one.id == tried.id))
}

/// Gives flights back that never began.
pub(super) fn give_back(connection: &Connection, flights: &[Flight]) -> Sql<()> {
    for flight in flights {
        if let Some(mut delivery) = get(connection, flight.delivery.id)?
            && rules::give_back(&mut delivery, flight.delivery.flight)
        {
            update(connection, &delivery)?;
        }
    }
    Ok(())
}

/// Records whether the backend heard of it.
pub(super) fn told(
    connection: &Connection,
    told: &Delivery,
    heard: bool,
    policy: Policy,
    tidings: Tidings,
) -> Sql<()> {
    if let Some(mut delivery) = get(connection, told.id)? {
        rules::told(&mut delivery, told, heard, policy, tidings);
        update(connection, &delivery)?;
    }
    Ok(())
}

/// A person's word.
pub(super) fn word(
    connection: &Connection,
    id: DeliveryId,
    word: &Word,
    tidings: Tidings,
) -> Sql<Result<Delivery, WordFault>> {
    let Some(delivery) = get(connection, id)? else {
        return Ok(Err(WordFault::NotFound));
    };
    let mut siblings = siblings_of(connection, &delivery)?;
    let before = siblings.clone();
    match rules::word(&mut siblings, id, word, tidings) {
        Ok(index) => {
            save_changed(connection, &before, &siblings)?;
            Ok(Ok(siblings.swap_remove(index)))
        }
        Err(fault) => Ok(Err(fault)),
    }
}

/// What was being tried when the process ended may have been taken, and what is pinned to an account
/// that is no more is held. To be done before anything else.
pub(super) fn begin(
    connection: &Connection,
    accounts: &[(String, String)],
    now: SystemTime,
) -> Sql<u64> {
    connection.execute("DELETE FROM outbox_accounts", ())?;
    for (client, base_url) in accounts {
        connection.execute(
            "INSERT INTO outbox_accounts VALUES (?1, ?2)",
            (client, base_url),
        )?;
    }
    connection.execute(
        "UPDATE outbox SET held = NOT held WHERE state = 'pending' AND held = EXISTS \
         (SELECT 1 FROM outbox_accounts a WHERE a.client = outbox.client AND a.base_url = outbox.base_url)",
        (),
    )?;
    let mut select = connection.prepare(&format!(
        "SELECT {COLUMNS} FROM outbox WHERE state = 'pending' AND flying_until IS NOT NULL"
    ))?;
    let flying = select.query_map((), read)?.collect::<Sql<Vec<_>>>()?;
    for mut delivery in flying.iter().cloned() {
        rules::lapse(&mut delivery, now);
        update(connection, &delivery)?;
    }
    Ok(flying.len() as u64)
}

/// Forgets what was over for long enough, and gives up what no account delivers any more. Returns how
/// many it did something about.
pub(super) fn sweep(
    connection: &Connection,
    before: SystemTime,
    limit: usize,
    policy: Policy,
    now: SystemTime,
) -> Sql<u64> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut select = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM outbox WHERE state = 'pending' AND held <> 0 AND opened_at <= ?1 \
         AND flying_until IS NULL ORDER BY opened_at LIMIT ?2"
    ))?;
    let opened = now.checked_sub(policy.give_up_after);
    let opened = micros(opened.unwrap_or(SystemTime::UNIX_EPOCH));
    let held = select
        .query_map((opened, limit), read)?
        .collect::<Sql<Vec<_>>>()?;
    let mut changed = 0;
    for mut delivery in held {
        if rules::give_up_held(&mut delivery, policy, now) {
            update(connection, &delivery)?;
            changed += 1;
        }
    }
    let deleted = connection
        .prepare_cached(
            "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox INDEXED BY outbox_over \
             WHERE state <> 'pending' AND updated_at < ?1 AND tell_at IS NULL \
             ORDER BY updated_at LIMIT ?2)",
        )?
        .execute((micros(before), limit))?;
    Ok(deleted as u64 + changed)
}

/// One delivery.
pub(super) fn get(connection: &Connection, id: DeliveryId) -> Sql<Option<Delivery>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM outbox WHERE id = ?1"))?
        .query_row([id.0.cast_signed()], read)
        .optional()
}

fn siblings_of(connection: &Connection, delivery: &Delivery) -> Sql<Vec<Delivery>> {
    let Delivery {
        client,
        tiki_transaction_id,
        transaction_id,
        ..
    } = delivery;
    siblings(connection, client, tiki_transaction_id, transaction_id)
}

fn siblings(
    connection: &Connection,
    client: &str,
    tiki_transaction_id: &str,
    transaction_id: &str,
) -> Sql<Vec<Delivery>> {
    let mut select = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM outbox \
         WHERE tiki_transaction_id = ?1 AND transaction_id = ?2 AND client = ?3 ORDER BY place"
    ))?;
    let rows = select.query_map((tiki_transaction_id, transaction_id, client), read)?;
    rows.collect()
}

fn save_changed(connection: &Connection, before: &[Delivery], after: &[Delivery]) -> Sql<bool> {
    let mut changed = false;
    for (before, after) in before.iter().zip(after) {
        if before != after {
            update(connection, after)?;
            changed = true;
        }
    }
    Ok(changed)
}

/// The values of all that a change may touch, and of these.
macro_rules! with_changing {
    ($delivery:ident, $($name:literal: $value:expr),+ $(,)?) => {
        named_params! {
            $($name: $value,)+
            ":client": $delivery.client,
            ":base_url": $delivery.base_url,
            ":amount": $delivery.amount,
            ":state": $delivery.state.as_str(),
            ":step": $delivery.step.as_str(),
            ":place": $delivery.place.cast_signed(),
            ":tries": $delivery.tries,
            ":asks": $delivery.asks,
            ":maybe_taken": $delivery.maybe_taken,
            ":refusal": refusal_text($delivery),
            ":flight": $delivery.flight.cast_signed(),
            ":flying_until": $delivery.flying_until.map(micros),
            ":next_at": micros($delivery.next_at),
            ":opened_at": micros($delivery.opened_at),
            ":updated_at": micros($delivery.updated_at),
            ":generation": $delivery.generation.cast_signed(),
            ":outcome": $delivery.outcome.map(Outcome::text),
            ":tell_at": $delivery.tell_at.map(micros),
            ":tellings": $delivery.tellings,
            ":size": i64::try_from(size($delivery)).unwrap_or(i64::MAX),
            ":events": events_text(&$delivery.events),
            ":body": &$delivery.body[..],
        }
    };
}

fn insert(connection: &Connection, delivery: &Delivery) -> Sql<DeliveryId> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO outbox (client, base_url, tiki_transaction_id, transaction_id, status, amount, \
         state, step, place, tries, asks, maybe_taken, refusal, flight, flying_until, next_at, \
         created_at, opened_at, updated_at, generation, outcome, tell_at, tellings, held, size, events, \
         body) VALUES (:client, :base_url, :tiki, :partner, :status, :amount, :state, :step, :place, \
         :tries, :asks, :maybe_taken, :refusal, :flight, :flying_until, :next_at, :created_at, \
         :opened_at, :updated_at, :generation, :outcome, :tell_at, :tellings, \
         NOT EXISTS (SELECT 1 FROM outbox_accounts WHERE client = :client AND base_url = :base_url), \
         :size, :events, :body)",
    )?;
    insert.execute(with_changing!(delivery,
        ":tiki": delivery.tiki_transaction_id,
        ":partner": delivery.transaction_id,
        ":status": delivery.status,
        ":created_at": micros(delivery.created_at),
    ))?;
    Ok(DeliveryId(connection.last_insert_rowid().cast_unsigned()))
}

fn update(connection: &Connection, delivery: &Delivery) -> Sql<()> {
    let mut update = connection.prepare_cached(
        "UPDATE outbox SET client = :client, base_url = :base_url, amount = :amount, state = :state, \
         step = :step, place = :place, tries = :tries, asks = :asks, maybe_taken = :maybe_taken, \
         refusal = :refusal, flight = :flight, flying_until = :flying_until, next_at = :next_at, \
         opened_at = :opened_at, updated_at = :updated_at, generation = :generation, \
         outcome = :outcome, tell_at = :tell_at, tellings = :tellings, size = :size, events = :events, \
         held = NOT EXISTS \
         (SELECT 1 FROM outbox_accounts WHERE client = :client AND base_url = :base_url), \
         body = :body WHERE id = :id",
    )?;
    update.execute(with_changing!(delivery, ":id": delivery.id.0.cast_signed()))?;
    Ok(())
}

fn read(row: &Row<'_>) -> Sql<Delivery> {
    let number = |column: usize| row.get::<_, i64>(column).map(i64::cast_unsigned);
    let moment = |column: usize| row.get::<_, i64>(column).map(time);
    let some_moment = |column: usize| -> Sql<Option<SystemTime>> {
        Ok(row.get::<_, Option<i64>>(column)?.map(time))
    };
    let odd = |column: usize| {
        rusqlite::Error::InvalidColumnType(column, "outbox".to_owned(), rusqlite::types::Type::Text)
    };
    let word = |column: usize| row.get_ref(column)?.as_str().map_err(|_| odd(column));
    let refusal: Option<String> = row.get(13)?;
    let outcome: Option<String> = row.get(21)?;
    Ok(Delivery {
        id: DeliveryId(number(0)?),
        client: row.get(1)?,
        base_url: row.get(2)?,
        tiki_transaction_id: row.get(3)?,
        transaction_id: row.get(4)?,
        status: row.get(5)?,
        amount: row.get(6)?,
        state: State::parse(word(7)?).ok_or_else(|| odd(7))?,
        step: Step::parse(word(8)?).ok_or_else(|| odd(8))?,
        place: number(9)?,
        tries: row.get(10)?,
        asks: row.get(11)?,
        maybe_taken: row.get(12)?,
        refusal: refusal.map(|text| text.parse().ok()),
        flight: number(14)?,
        flying_until: some_moment(15)?,
        next_at: moment(16)?,
        created_at: moment(17)?,
        opened_at: moment(18)?,
        updated_at: moment(19)?,
        generation: number(20)?,
        outcome: match outcome {
            Some(text) => Some(Outcome::parse(&text).ok_or_else(|| odd(21))?),
            None => None,
        },
        tell_at: some_moment(22)?,
        tellings: row.get(23)?,
        events: events_of(row.get_ref(24)?.as_str().map_err(|_| odd(24))?)
            .ok_or_else(|| odd(24))?,
        body: Bytes::from(row.get::<_, Vec<u8>>(25)?),
        held: row.get(26)?,
    })
}

/// The code, or an empty text for a refusal without one.
pub(super) fn refusal_text(delivery: &Delivery) -> Option<String> {
    let refusal = delivery.refusal?;
    Some(refusal.map(|code| code.to_string()).unwrap_or_default())
}

/// One event a line, as a JSON array.
pub(super) fn events_text(events: &[Event]) -> String {
    let lines: Vec<String> = events
        .iter()
        .map(|event| {
            serde_json::json!([micros(event.at), event.what, event.by, event.detail]).to_string()
        })
        .collect();
    lines.join("\n")
}

pub(super) fn events_of(text: &str) -> Option<Vec<Event>> {
    type Line = (i64, String, Option<String>, Option<String>);
    text.lines()
        .map(|line| {
            let (at, what, by, detail) = serde_json::from_str::<Line>(line).ok()?;
            Some(Event {
                at: time(at),
                what,
                by,
                detail,
            })
        })
        .collect()
}

/// Microseconds since 1970.
pub(super) fn micros(at: SystemTime) -> i64 {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

pub(super) fn time(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros.max(0).cast_unsigned())
}
