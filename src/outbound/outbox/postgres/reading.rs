//! What people, metrics and the teller ask; and what is forgotten.

use std::sync::LazyLock;
use std::time::Duration;

use tokio_postgres::Row;

use super::Terms;
use super::rows::{COLUMNS, Value, read};
use crate::outbound::outbox::types::{Delivery, DeliveryId, Filter, Page, State, Stats};
use crate::store::postgres::{Fault, Session};

/// Deliveries that are forgotten in one transaction.
const SWEEP_CHUNK: usize = 500;

/// Rows looked at for one page at most.
const LOOKED_AT: i64 = 10_000;

static GET: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select {} from tikigate.delivery d where d.id = $1",
        *COLUMNS
    )
});

static LIST: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select {} from tikigate.delivery d
        where d.id > $1 and d.id < $2 and ($3::text is null or d.state = $3)
            and ($4::text is null or d.tiki_transaction_id = $4 or d.transaction_id = $4)
        order by d.id limit $5",
        *COLUMNS
    )
});

static TO_TELL: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select {} from tikigate.delivery d
        where d.tell_at <= (select coalesce($1::timestamptz, clock_timestamp()))
        order by d.tell_at limit $2",
        *COLUMNS
    )
});

/// One delivery.
pub(super) async fn get(
    session: &mut Session,
    terms: &Terms,
    id: DeliveryId,
) -> Result<Option<Delivery>, Fault> {
    let [get] = session.prepare([&**GET]).await?;
    let row = session.query_opt(&get, &[&id.0.cast_signed()]).await?;
    let delivery = row.as_ref().map(read).transpose()?;
    Ok(delivery.map(|delivery| shown(delivery, terms)))
}

/// As this gate sees it: what it doesn't deliver is held, though another one may.
fn shown(mut delivery: Delivery, terms: &Terms) -> Delivery {
    delivery.held = delivery.state == State::Pending && !terms.delivers(&delivery);
    delivery
}

/// Deliveries in the order of their ids.
pub(super) async fn list(
    session: &mut Session,
    terms: &Terms,
    filter: &Filter,
) -> Result<Page, Fault> {
    const END: &str = "
        select id from tikigate.delivery where id > $1 order by id limit 1 offset $2";
    let transaction = filter.transaction.as_deref();
    if transaction.is_some_and(|id| id.contains('\0')) {
        // No id has it, and the database takes no such text.
        return Ok(Page::default());
    }
    let [end, list] = session.prepare([END, &**LIST]).await?;
    // No row has a number beyond the column's.
    let after = filter
        .after
        .map_or(0, |id| i64::try_from(id.0).unwrap_or(i64::MAX));
    let end = session.query_opt(&end, &[&after, &LOOKED_AT]).await?;
    let end = end.map(|row| row.try_get::<_, i64>(0)).transpose()?;
    let limit = filter.limit.max(1);
    let state = filter.state.map(State::as_str);
    let most = i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX);
    let parameters: [Value<'_>; 5] = [
        &after,
        &end.unwrap_or(i64::MAX),
        &state,
        &transaction,
        &most,
    ];
    let rows = session.query(&list, &parameters).await?;
    let mut deliveries = rows
        .iter()
        .map(|row| Ok(shown(read(row)?, terms)))
        .collect::<Result<Vec<_>, Fault>>()?;
    let next = if deliveries.len() > limit {
        deliveries.truncate(limit);
        deliveries.last().map(|last| last.id)
    } else {
        end.map(|end| DeliveryId((end - 1).cast_unsigned()))
    };
    Ok(Page { deliveries, next })
}

/// Failed deliveries that the backend is to be told of. Two gates may tell of one: it is told of at
/// least once, under the same key.
pub(super) async fn to_tell(
    session: &mut Session,
    terms: &Terms,
    limit: usize,
) -> Result<Vec<Delivery>, Fault> {
    let [to_tell] = session.prepare([&**TO_TELL]).await?;
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = session.query(&to_tell, &[&terms.moment(), &most]).await?;
    rows.iter().map(read).collect()
}

/// Counts and ages. What is held is what this gate doesn't deliver: another one may.
pub(super) async fn stats(session: &mut Session, terms: &Terms) -> Result<Stats, Fault> {
    const PENDING: &str = "
        select count(*),
            count(*) filter (where (client, base_url) not in
                (select * from unnest($2::text[], $3::text[]))),
            extract(epoch from
                coalesce($1::timestamptz, clock_timestamp()) - min(opened_at))::float8
        from tikigate.delivery where state = 'pending'";
    const FAILED: &str = "select count(*) from tikigate.delivery where state = 'failed'";
    const UNTOLD: &str = "select count(*) from tikigate.delivery where tell_at is not null";
    const BYTES: &str = "select coalesce(sum(bytes), 0)::bigint from tikigate.delivery_bytes";
    let statements = [PENDING, FAILED, UNTOLD, BYTES];
    let [pending, failed, untold, bytes] = session.prepare(statements).await?;
    let session = &*session;
    let moment = terms.moment();
    let asks: [Value<'_>; 3] = [&moment, &terms.clients, &terms.base_urls];
    let (pending, failed, untold, bytes) = tokio::join!(
        biased;
        session.query_opt(&pending, &asks),
        session.query_opt(&failed, &[]),
        session.query_opt(&untold, &[]),
        session.query_opt(&bytes, &[]),
    );
    let pending = pending?.ok_or(Fault::Corrupt("no count"))?;
    let oldest: Option<f64> = pending.try_get(2)?;
    let oldest = Duration::try_from_secs_f64(oldest.unwrap_or_default());
    Ok(Stats {
        pending: count(Some(&pending), 0)?,
        held: count(Some(&pending), 1)?,
        oldest: oldest.unwrap_or_default(),
        failed: count(failed?.as_ref(), 0)?,
        untold: count(untold?.as_ref(), 0)?,
        bytes: count(bytes?.as_ref(), 0)?,
    })
}

fn count(row: Option<&Row>, column: usize) -> Result<u64, Fault> {
    let row = row.ok_or(Fault::Corrupt("no count"))?;
    let count: i64 = row.try_get(column)?;
    u64::try_from(count).map_err(|_| Fault::Corrupt("a count"))
}

/// Forgets what was over for long enough, in small transactions.
pub(super) async fn sweep(
    session: &mut Session,
    terms: &Terms,
    limit: usize,
) -> Result<u64, Fault> {
    // Those that somebody works on just now are left to them.
    const SWEEP: &str = "
        with gone as (
            delete from tikigate.delivery where id = any(array(
                select id from tikigate.delivery
                where state <> 'pending' and tell_at is null and updated_at < (select
                    coalesce($1::timestamptz, clock_timestamp()) - make_interval(secs => $2))
                order by updated_at limit $3 for update skip locked))
            returning size
        ), counted as (
            update tikigate.delivery_bytes
            set bytes = bytes - (select sum(size) from gone)
            where shard = $4 and exists (select from gone)
        )
        select count(*) from gone";
    let [statement] = session.prepare([SWEEP]).await?;
    let keep = terms.keep.as_secs_f64();
    let mut left = limit;
    while left > 0 {
        let chunk = left.min(SWEEP_CHUNK);
        let (moment, most, shard) = (terms.moment(), chunk as i64, session.shard());
        let parameters: [Value<'_>; 4] = [&moment, &keep, &most, &shard];
        let (begun, swept, committed) = tokio::join!(
            biased;
            session.begin(),
            session.query_opt(&statement, &parameters),
            session.commit(),
        );
        begun?;
        let swept = count(swept?.as_ref(), 0)?;
        committed?;
        let swept = usize::try_from(swept).unwrap_or_default();
        left -= swept.min(left);
        if swept < chunk {
            break;
        }
    }
    Ok((limit - left) as u64)
}
