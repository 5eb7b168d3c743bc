//! Which transactions are due, and nobody else's now.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use tokio_postgres::Row;

use super::Terms;
use super::changing::{NOW, save, tidings};
use super::rows::{COLUMNS, Value, read};
use crate::outbound::outbox::rules::{self, FAR_AHEAD};
use crate::outbound::outbox::types::{Delivery, Tidings};
use crate::store::postgres::{Fault, GROUND, Ground, Session};

/// Transactions that are locked beyond what is asked for: some of them may be unreadable, and must not
/// stand in front of the others.
const SPARE: i64 = 16;

/// What a take found.
pub(super) struct Due {
    pub(super) taken: Vec<Delivery>,
    pub(super) next_in: Option<Duration>,
}

/// Transactions with a delivery that is due, as far as this gate has their locks now; the longest due
/// first; and those that were put off by a clock that was far ahead then. Parameters: the time in tests;
/// client ids and base URLs; how many are looked at, and locked; the seconds that are far ahead.
///
/// Each account has its own part of the index, so that what is pinned to accounts that nobody has any
/// more costs nothing here. Those that wait for a sibling's try are left out: they would stand in
/// front of the others. That the locks are tried last, on rows that lie ready in their order, makes
/// them no more than are asked for.
const LOCK_DUE: &str = "
    with moment as materialized (
        select coalesce($1::timestamptz, clock_timestamp()) as now
    ), due as materialized (
        select d.client, d.tiki_transaction_id, d.transaction_id, d.transaction_lock
        from unnest($2::text[], $3::text[]) a (client, base_url)
        cross join lateral (
            (select d.client, d.tiki_transaction_id, d.transaction_id, d.transaction_lock, d.next_at
            from tikigate.delivery d
            where d.state = 'pending' and d.client = a.client and d.base_url = a.base_url
                and d.next_at <= (select now from moment)
                and (d.flying_until is null or d.flying_until <= (select now from moment))
                and not exists (
                    select from tikigate.delivery s
                    where s.tiki_transaction_id = d.tiki_transaction_id
                        and s.transaction_id = d.transaction_id and s.client = d.client
                        and s.flying_until > (select now from moment))
            order by d.next_at limit $4)
            union all
            (select d.client, d.tiki_transaction_id, d.transaction_id, d.transaction_lock, d.next_at
            from tikigate.delivery d
            where d.state = 'pending' and d.client = a.client and d.base_url = a.base_url
                and d.next_at >= (select now from moment) + make_interval(secs => $6)
                and d.flying_until is null
            order by d.next_at limit $4)
        ) d
        order by d.next_at limit $4
    )
    select client, tiki_transaction_id, transaction_id from due
    where pg_try_advisory_xact_lock(transaction_lock) limit $5";

/// Seconds until the next delivery is due. Parameters: as above.
const NEXT: &str = "
    select extract(epoch from min(d.next_at) - coalesce($1::timestamptz, clock_timestamp()))::float8
    from unnest($2::text[], $3::text[]) a (client, base_url)
    cross join lateral (
        select d.next_at from tikigate.delivery d
        where d.state = 'pending' and d.client = a.client and d.base_url = a.base_url
            and d.flying_until is null
            and not exists (
                select from tikigate.delivery s
                where s.tiki_transaction_id = d.tiki_transaction_id
                    and s.transaction_id = d.transaction_id and s.client = d.client
                    and s.flying_until is not null)
        order by d.next_at limit 1
    ) d";

static SIBLINGS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select {} from tikigate.delivery d
        where (d.client, d.tiki_transaction_id, d.transaction_id) in
            (select * from unnest($1::text[], $2::text[], $3::text[]))
        order by d.place for update of d",
        *COLUMNS
    )
});

/// Takes deliveries whose time has come.
pub(super) async fn take(session: &mut Session, terms: &Terms, limit: usize) -> Result<Due, Fault> {
    let statements = [GROUND, LOCK_DUE, NEXT, &**SIBLINGS, NOW];
    let [ground, lock_due, next, select, now] = session.prepare(statements).await?;
    let moment = terms.moment();
    let asks: [Value<'_>; 3] = [&moment, &terms.clients, &terms.base_urls];
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    // More than that, since another gate may be at the first ones.
    let looked_at = most.saturating_mul(2).saturating_add(2 * SPARE);
    let locked = most.saturating_add(SPARE);
    let far_ahead = FAR_AHEAD.as_secs_f64();
    let mut due_asks = asks.to_vec();
    due_asks.extend([&looked_at as Value<'_>, &locked, &far_ahead]);
    let (begun, grounds, due, next_at) = tokio::join!(
        biased;
        session.begin(),
        session.query(&ground, &[]),
        session.query(&lock_due, &due_asks),
        session.query(&next, &asks),
    );
    begun?;
    let ground = Ground::read(&grounds?)?;
    let transactions = transactions(&due?)?;
    if transactions.is_empty() {
        let next_in = next_in(&next_at?)?;
        session.rollback().await?;
        return Ok(Due {
            taken: Vec::new(),
            next_in,
        });
    }
    let [clients, tiki_ids, ids] = [0, 1, 2].map(|part: usize| {
        let parts = transactions.iter().map(|transaction| &*transaction[part]);
        parts.collect::<Vec<&str>>()
    });
    let keys: [Value<'_>; 3] = [&clients, &tiki_ids, &ids];
    let by_moment = [&moment as Value<'_>];
    // Now that they are locked, as they are.
    let (rows, now) = tokio::join!(
        biased;
        session.query(&select, &keys),
        session.query_opt(&now, &by_moment),
    );
    let (found, unreadable) = readable(&rows?)?;
    let tidings = tidings(ground, now?)?;
    let mut taken = Vec::new();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let readable = transactions.iter().filter(|one| !unreadable.contains(*one));
    for transaction in readable {
        if taken.len() >= limit {
            break;
        }
        let siblings = found.iter().filter(|one| names(one) == *transaction);
        let was: Vec<Delivery> = siblings.cloned().collect();
        let mut siblings = was.clone();
        taken.extend(take_one(terms, &mut siblings, &was, tidings));
        before.extend(was);
        after.extend(siblings);
    }
    save(session, &before, &after, None, false).await?;
    let (next_at, committed) = tokio::join!(
        biased;
        session.query(&next, &asks),
        session.commit(),
    );
    let next_at = next_at?;
    committed?;
    Ok(Due {
        taken,
        next_in: next_in(&next_at)?,
    })
}

/// The deliveries; and the transactions of which one can't be read, being of a newer version or changed
/// by hand: the others are delivered all the same.
fn readable(rows: &[Row]) -> Result<(Vec<Delivery>, HashSet<Names>), Fault> {
    let mut found = Vec::new();
    let mut unreadable = HashSet::new();
    for row in rows {
        match read(row) {
            Ok(delivery) => found.push(delivery),
            Err(Fault::Corrupt(what)) => {
                let names: Names = [
                    row.try_get("client")?,
                    row.try_get("tiki_transaction_id")?,
                    row.try_get("transaction_id")?,
                ];
                tracing::error!(
                    tiki_transaction_id = names[1],
                    transaction_id = names[2],
                    what,
                    "a delivery can't be read, and so not be delivered"
                );
                unreadable.insert(names);
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok((found, unreadable))
}

/// Takes what is to be tried of one transaction, if this gate delivers for its account.
fn take_one(
    terms: &Terms,
    siblings: &mut [Delivery],
    was: &[Delivery],
    tidings: Tidings,
) -> Option<Delivery> {
    let index = rules::take(siblings, tidings)?;
    if !terms.delivers(&siblings[index]) {
        // The older states are superseded all the same; this one is left to whoever knows its account.
        siblings[index].clone_from(&was[index]);
        return None;
    }
    Some(siblings[index].clone())
}

type Names = [String; 3];

fn names(delivery: &Delivery) -> Names {
    let Delivery {
        client,
        tiki_transaction_id,
        transaction_id,
        ..
    } = delivery;
    [client, tiki_transaction_id, transaction_id].map(Clone::clone)
}

/// Each once, in their order.
fn transactions(rows: &[Row]) -> Result<Vec<Names>, Fault> {
    let mut seen = HashSet::new();
    let mut transactions = Vec::new();
    for row in rows {
        let names: Names = [row.try_get(0)?, row.try_get(1)?, row.try_get(2)?];
        if seen.insert(names.clone()) {
            transactions.push(names);
        }
    }
    Ok(transactions)
}

fn next_in(rows: &[Row]) -> Result<Option<Duration>, Fault> {
    let row = rows.first().ok_or(Fault::Corrupt("no time"))?;
    let seconds: Option<f64> = row.try_get(0)?;
    // What is overdue is due at once.
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()))
}
