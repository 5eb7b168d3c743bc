//! What happens to the deliveries of one transaction, all of them in one step.

use std::pin::Pin;
use std::sync::LazyLock;
use std::task::Poll;
use std::time::SystemTime;

use tokio_postgres::Row;

use super::Terms;
use super::rows::{COLUMNS, INSERT, UPDATE, Value, Written, lock_of, read, size_of};
use crate::outbound::outbox::rows::EVICTABLE_AFTER;
use crate::outbound::outbox::rules;
use crate::outbound::outbox::sqlite::chance;
use crate::outbound::outbox::types::{Accepted, Delivery, DeliveryId, Posting, Tidings};
use crate::store::postgres::{Fault, GROUND, Ground, Session};

/// Deliveries that are over and forgotten at once to make room for a new one.
const EVICTED: i64 = 64;

/// The server's time. The parameter stands for it in tests, and is null otherwise.
pub(super) const NOW: &str = "select coalesce($1::timestamptz, clock_timestamp())";

static SIBLINGS: LazyLock<String> = LazyLock::new(|| {
    // Locked rows, since what is forgotten for its age or for room is forgotten without the advisory lock.
    format!(
        "select {} from tikigate.delivery d
        where d.tiki_transaction_id = $1 and d.transaction_id = $2 and d.client = $3
        order by d.place for update",
        *COLUMNS
    )
});

static SIBLINGS_OF_ID: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select {} from tikigate.delivery d
        where (d.tiki_transaction_id, d.transaction_id, d.client) in
            (select tiki_transaction_id, transaction_id, client from tikigate.delivery where id = $1)
        order by d.place for update of d",
        *COLUMNS
    )
});

const LOCK: &str = "select pg_advisory_xact_lock($1)::text";
const LOCK_OF_ID: &str =
    "select pg_advisory_xact_lock(transaction_lock)::text from tikigate.delivery where id = $1";

const BYTES: &str = "select sum(bytes)::bigint from tikigate.delivery_bytes";
pub(super) const COUNT: &str =
    "update tikigate.delivery_bytes set bytes = bytes + $1 where shard = $2";

/// Which transaction's deliveries.
#[derive(Clone, Copy)]
pub(super) enum Which<'a> {
    /// The one of these ids.
    Of {
        client: &'a str,
        tiki_transaction_id: &'a str,
        transaction_id: &'a str,
    },
    /// The one that this delivery is about.
    Named(DeliveryId),
}

impl<'a> Which<'a> {
    pub(super) fn of(delivery: &'a Delivery) -> Self {
        Self::Of {
            client: &delivery.client,
            tiki_transaction_id: &delivery.tiki_transaction_id,
            transaction_id: &delivery.transaction_id,
        }
    }
}

/// Has a step made on the deliveries of one transaction, and gives them as they are then.
pub(super) async fn change<T>(
    session: &mut Session,
    terms: &Terms,
    which: Which<'_>,
    step: impl FnOnce(&mut [Delivery], Tidings) -> T,
) -> Result<(T, Vec<Delivery>), Fault> {
    let Locked {
        mut siblings,
        tidings,
        ..
    } = lock(session, terms, which).await?;
    let before = siblings.clone();
    let done = step(&mut siblings, tidings);
    if siblings == before {
        session.rollback().await?;
    } else {
        save(session, &before, &siblings, None, true).await?;
    }
    Ok((done, siblings))
}

/// Stores a notice, or finds the delivery that it is.
pub(super) async fn post(
    session: &mut Session,
    terms: &Terms,
    posting: &Posting,
) -> Result<Accepted, Fault> {
    let expected = &posting.expected;
    let which = Which::Of {
        client: &posting.client,
        tiki_transaction_id: &expected.tiki_transaction_id,
        transaction_id: &expected.transaction_id,
    };
    let Locked {
        mut siblings,
        tidings,
        bytes,
    } = lock(session, terms, which).await?;
    let before = siblings.clone();
    let accepted = rules::post(&mut siblings, posting, tidings);
    let first = accepted.as_ref().err().map(|first| &**first);
    let growth = growth(&before, &siblings) + first.map_or(0, size_of);
    if growth > 0 && !make_room(session, terms, which, bytes, growth).await? {
        // What was forgotten stays forgotten, so that the next one finds more room.
        session.commit().await?;
        return Ok(Accepted::Full);
    }
    if siblings == before && first.is_none() {
        session.rollback().await?;
    } else {
        let id = save(session, &before, &siblings, first, true).await?;
        if let Some(id) = id {
            return Ok(Accepted::Stored(id));
        }
    }
    accepted.map_err(|_| Fault::Corrupt("a delivery without an id"))
}

/// Whether there is room for so many more bytes, perhaps after forgetting what is over.
///
/// Notices that other transactions are storing right now are not counted yet: the quota may be
/// exceeded by those, and by no more.
async fn make_room(
    session: &mut Session,
    terms: &Terms,
    which: Which<'_>,
    bytes: i64,
    growth: i64,
) -> Result<bool, Fault> {
    // Not those of the transaction in hand, which are about to be written. Those that somebody else
    // has in hand are left to them.
    const EVICT: &str = "
        with gone as (
            delete from tikigate.delivery where id = any(array(
                select id from tikigate.delivery
                where state <> 'pending' and state <> 'failed' and transaction_lock <> $1
                    and (updated_at < coalesce($4::timestamptz, clock_timestamp())
                            - make_interval(secs => $5)
                        or state in ('cancelled', 'superseded') and not maybe_taken)
                order by updated_at limit $2 for update skip locked))
            returning size
        ), counted as (
            update tikigate.delivery_bytes
            set bytes = bytes - (select sum(size) from gone)
            where shard = $3 and exists (select from gone)
        )
        select coalesce(sum(size), 0)::bigint from gone";
    let most = i64::try_from(terms.max_bytes).unwrap_or(i64::MAX);
    let fits = |bytes: i64| bytes.saturating_add(growth) <= most;
    if fits(bytes) {
        return Ok(true);
    }
    let [evict] = session.prepare([EVICT]).await?;
    let (lock, shard) = (which.lock(), session.shard());
    let evictable_after = EVICTABLE_AFTER.as_secs_f64();
    let row = session
        .query_opt(
            &evict,
            &[&lock, &EVICTED, &shard, &terms.moment(), &evictable_after],
        )
        .await?;
    let row = row.ok_or(Fault::Corrupt("no sum"))?;
    Ok(fits(bytes - row.try_get::<_, i64>(0)?))
}

impl Which<'_> {
    /// The number of its lock, where that is known without a look.
    fn lock(&self) -> Option<i64> {
        match self {
            Self::Of {
                client,
                tiki_transaction_id,
                transaction_id,
            } => Some(lock_of(client, tiki_transaction_id, transaction_id)),
            Self::Named(_) => None,
        }
    }
}

/// The deliveries of one transaction, that nobody else changes to the end of the database's.
struct Locked {
    siblings: Vec<Delivery>,
    tidings: Tidings,
    /// What all deliveries take.
    bytes: i64,
}

/// Begins a transaction and reads all that a step depends on, in one round trip.
async fn lock(session: &mut Session, terms: &Terms, which: Which<'_>) -> Result<Locked, Fault> {
    let statements = match which {
        Which::Of { .. } => [LOCK, &**SIBLINGS, GROUND, NOW, BYTES],
        Which::Named(_) => [LOCK_OF_ID, &**SIBLINGS_OF_ID, GROUND, NOW, BYTES],
    };
    let [lock, select, ground, now, bytes] = session.prepare(statements).await?;
    let (number, ids) = match &which {
        Which::Of {
            client,
            tiki_transaction_id,
            transaction_id,
        } => {
            let ids: Vec<Value<'_>> = vec![tiki_transaction_id, transaction_id, client];
            (lock_of(client, tiki_transaction_id, transaction_id), ids)
        }
        Which::Named(DeliveryId(id)) => (id.cast_signed(), Vec::new()),
    };
    let number: Value<'_> = &number;
    let ids = match ids.is_empty() {
        true => vec![number],
        false => ids,
    };
    let moment = terms.moment();
    let (by_number, by_moment) = ([number], [&moment as Value<'_>]);
    let session = &*session;
    let (begun, locked, siblings, ground, now, bytes) = tokio::join!(
        biased;
        session.begin(),
        session.query(&lock, &by_number),
        session.query(&select, &ids),
        session.query(&ground, &[]),
        // Behind the lock: nobody who had it before saw a later time.
        session.query_opt(&now, &by_moment),
        session.query_opt(&bytes, &[]),
    );
    begun?;
    locked?;
    let siblings = siblings?.iter().map(read).collect::<Result<_, _>>()?;
    let ground = Ground::read(&ground?)?;
    let bytes = bytes?.ok_or(Fault::Corrupt("no sum"))?;
    let bytes: Option<i64> = bytes.try_get(0)?;
    Ok(Locked {
        siblings,
        tidings: tidings(ground, now?)?,
        bytes: bytes.unwrap_or_default(),
    })
}

/// Of a row of [`NOW`].
pub(super) fn tidings(ground: Ground, now: Option<Row>) -> Result<Tidings, Fault> {
    let now = now.ok_or(Fault::Corrupt("no time"))?;
    Ok(Tidings {
        now: now.try_get::<_, SystemTime>(0)?,
        generation: ground.generation,
        quarantined: ground.quarantined,
        chance: chance(),
    })
}

/// Writes what changed and perhaps a new delivery, whose id it gives; and commits, unless more is to come.
pub(super) async fn save(
    session: &mut Session,
    before: &[Delivery],
    after: &[Delivery],
    first: Option<&Delivery>,
    commits: bool,
) -> Result<Option<DeliveryId>, Fault> {
    let [insert, update, count] = session.prepare([&**INSERT, &**UPDATE, COUNT]).await?;
    let session = &*session;
    let pairs = before.iter().zip(after);
    let changed: Vec<Written<'_>> = pairs
        .filter(|(before, after)| before != after)
        .map(|(before, after)| Written::of(after, Some(before)))
        .collect();
    let updating = changed.iter().map(|written| async {
        let updated = session.execute(&update, &written.update_values()).await?;
        match updated {
            1 => Ok(()),
            _ => Err(Fault::Corrupt("a delivery is gone")),
        }
    });
    let growth = growth(before, after) + first.map_or(0, size_of);
    let (updated, inserted, counted, committed) = tokio::join!(
        biased;
        in_order(updating),
        async {
            let Some(first) = first else { return Ok(None) };
            let written = Written::of(first, None);
            session.query_opt(&insert, &written.insert_values()).await
        },
        // Last of all, and held for the least time: others may share the row.
        async {
            match growth {
                0 => Ok(0),
                _ => session.execute(&count, &[&growth, &session.shard()]).await,
            }
        },
        async {
            match commits {
                true => session.commit().await,
                false => Ok(()),
            }
        },
    );
    updated.into_iter().collect::<Result<(), _>>()?;
    let id = inserted?.map(|row| row.try_get::<_, i64>(0)).transpose()?;
    counted?;
    committed?;
    Ok(id.map(|id| DeliveryId(id.cast_unsigned())))
}

fn growth(before: &[Delivery], after: &[Delivery]) -> i64 {
    let sum = |deliveries: &[Delivery]| deliveries.iter().map(size_of).sum::<i64>();
    sum(after) - sum(before)
}

/// Polls all of them together, first of all once in their order: so do their statements go out.
async fn in_order<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, done) in running.iter_mut().zip(&mut done) {
            if done.is_some() {
                continue;
            }
            match future.as_mut().poll(context) {
                Poll::Ready(output) => *done = Some(output),
                Poll::Pending => pending = true,
            }
        }
        match pending {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    })
    .await;
    done.into_iter().flatten().collect()
}
