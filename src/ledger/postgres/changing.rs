//! What changes records that are there, and the ledger as a whole.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::columns::{id_column, owner_column, stored};
use super::rows::{ALL_COLUMNS, Columns, LIGHT_COLUMNS, entry};
use super::writing::{COUNT, Changing, NOTE, Noted, UPDATE, Value, count_values};
use super::{Inner, lock};
use crate::ledger::texts::whole_micros;
use crate::ledger::transition::{self, Entry, Moment, Step};
use crate::ledger::{
    DefineError, Definition, Event, Fence, LedgerError, Owner, PermitError, Record, RecordId,
    ResolveError, SendPermit, Settled, Settlement, State,
};
use crate::store::postgres::{Fault, GROUND, Ground, Session};

/// Whom gates tell each other of ended attempts by.
pub(super) const CHANNEL: &str = "tikigate_ended";

/// A dead gate's claims that are ended in one transaction.
const LAPSE_CHUNK: i64 = 100;
/// Records that are forgotten in one transaction.
const SWEEP_CHUNK: usize = 500;

pub(super) static LOCK_BY_KEY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select {} from tikigate.record r where r.key_hash = $1 for update",
        *ALL_COLUMNS
    )
});

static LOCK_BY_ID: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select {} from tikigate.record r where r.id = $1 for update",
        *ALL_COLUMNS
    )
});

pub(super) fn moment(ground: Ground, now: SystemTime) -> Moment {
    Moment {
        now,
        generation: ground.generation,
        quarantined: ground.quarantined,
    }
}

pub(super) fn now(inner: &Inner) -> SystemTime {
    whole_micros(inner.clock.now())
}

/// Ties a namespace to its definition, or compares.
pub(super) async fn define(
    session: &mut Session,
    namespace: &str,
    definition: &Definition,
) -> Result<Result<(), DefineError>, Fault> {
    const TIE: &str = "
        insert into tikigate.namespace (name, key_fields, fingerprint_fields) values ($1, $2, $3)
        on conflict do nothing";
    const TIED: &str = "
        select key_fields, fingerprint_fields from tikigate.namespace where name = $1";
    let [tie, tied] = session.prepare([TIE, TIED]).await?;
    let name = stored(namespace);
    let parameters: [Value<'_>; 3] = [&name, &definition.key, &definition.fingerprint];
    let (begun, inserted, committed) = tokio::join!(
        biased;
        session.begin(),
        session.execute(&tie, &parameters),
        session.commit(),
    );
    begun?;
    inserted?;
    committed?;
    let row = session.query_opt(&tied, &[&name]).await?;
    let row = row.ok_or(Fault::Corrupt("no namespace"))?;
    let mut columns = Columns::from(&row, 0);
    let stored = Definition {
        key: columns.take()?,
        fingerprint: columns.take()?,
    };
    Ok(match stored == *definition {
        true => Ok(()),
        false => Err(DefineError::Disagrees { stored }),
    })
}

static PERMIT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select extract(epoch from o.lease_until - clock_timestamp())::float8, {}
        from tikigate.record r join tikigate.owner o on o.owner = r.owner where r.id = $1",
        *LIGHT_COLUMNS
    )
});

/// Leave to send, for no longer than the owner's lease lasts: before its end nobody else can call the
/// attempt's outcome unknown.
///
/// One snapshot tells both that the claim holds and until when the lease does; whoever ends a dead
/// owner's claims holds the lease's row while doing so, and a lease that is longer after that shows
/// the ended claim with it.
pub(super) async fn permit(
    session: &mut Session,
    inner: &Inner,
    fence: Fence,
    asked: Instant,
) -> Result<Result<SendPermit, PermitError>, Fault> {
    let [permit] = session.prepare([&**PERMIT]).await?;
    let Some(id) = id_column(fence.record) else {
        return Ok(Err(PermitError::Fenced));
    };
    let Some(row) = session.query_opt(&permit, &[&id]).await? else {
        return Ok(Err(PermitError::Fenced));
    };
    let left: f64 = Columns::from(&row, 0).take()?;
    let (entry, _) = entry(&mut Columns::from(&row, 1))?;
    let good_for = match transition::permit(&entry, fence, now(inner)) {
        Ok(good_for) => good_for,
        Err(error) => return Ok(Err(error)),
    };
    let left = Duration::try_from_secs_f64(left).unwrap_or_default();
    // By its own clock, too: the database's answer may have been long on its way.
    let until = inner.lease.good_until();
    let valid_until = until.map(|until| until.min(asked + good_for.min(left)));
    Ok(match valid_until {
        Some(valid_until) if valid_until > Instant::now() => Ok(SendPermit { valid_until }),
        _ => {
            let text = "this gate's lease on its claims is over".to_owned();
            Err(PermitError::Ledger(LedgerError::Failed(text)))
        }
    })
}

/// Records what became of an attempt.
pub(super) async fn settle(
    session: &mut Session,
    inner: &Inner,
    fence: Fence,
    settlement: Settlement,
) -> Result<Settled, Fault> {
    let settled = change(session, inner, fence.record, |entry, moment| {
        transition::settle(entry, fence, settlement, moment)
    })
    .await?;
    // What isn't there was done and forgotten.
    Ok(settled.unwrap_or(Settled::Superseded(State::Done)))
}

/// Releases a claim that nobody holds; `false` if its record isn't there (yet).
pub(super) async fn release(
    session: &mut Session,
    inner: &Inner,
    fence: Fence,
) -> Result<bool, Fault> {
    let settlement = Settlement::Released("claim_abandoned".into());
    let settled = change(session, inner, fence.record, |entry, moment| {
        let record = &entry.record;
        let held = (record.state, record.owner, record.attempt);
        if held != (State::Claimed, fence.owner, fence.attempt) {
            // It was never committed, or somebody ended it.
            return Step {
                reply: Settled::Superseded(record.state),
                event: None,
                changed: false,
            };
        }
        transition::settle(entry, fence, settlement, moment)
    })
    .await?;
    Ok(settled.is_some())
}

/// Somebody's word on a record: refused, or carried out and shown.
pub(super) async fn word(
    session: &mut Session,
    inner: &Inner,
    id: RecordId,
    word: impl FnOnce(&mut Entry, Moment) -> Result<Step<()>, ResolveError>,
) -> Result<Result<Record, ResolveError>, Fault> {
    let shown = change(session, inner, id, |entry, moment| {
        match word(entry, moment) {
            Ok(step) => Step {
                reply: Ok(entry.record.clone()),
                event: step.event,
                changed: step.changed,
            },
            Err(error) => Step {
                reply: Err(error),
                event: None,
                changed: false,
            },
        }
    })
    .await?;
    Ok(shown.unwrap_or(Err(ResolveError::NotFound)))
}

/// One record's step in a transaction of its own; none if there is no such record.
async fn change<T>(
    session: &mut Session,
    inner: &Inner,
    id: RecordId,
    step: impl FnOnce(&mut Entry, Moment) -> Step<T>,
) -> Result<Option<T>, Fault> {
    let Some(id) = id_column(id) else {
        return Ok(None);
    };
    let [ledger, lock] = session.prepare([GROUND, &**LOCK_BY_ID]).await?;
    let by_id: [Value<'_>; 1] = [&id];
    let (begun, ground, found) = tokio::join!(
        biased;
        session.begin(),
        session.query(&ledger, &[]),
        session.query_opt(&lock, &by_id),
    );
    begun?;
    let ground = Ground::read(&ground?)?;
    let Some(row) = found? else {
        session.rollback().await?;
        return Ok(None);
    };
    let (mut entry, awaited) = entry(&mut Columns::from(&row, 0))?;
    let before = entry.record.state;
    let step = step(&mut entry, moment(ground, now(inner)));
    save(
        session,
        &entry,
        before,
        awaited,
        step.event.as_ref(),
        step.changed,
    )
    .await?;
    Ok(Some(step.reply))
}

/// Writes what a step made of a locked record, and commits.
pub(super) async fn save(
    session: &mut Session,
    entry: &Entry,
    before: State,
    awaited: bool,
    event: Option<&Event>,
    changed: bool,
) -> Result<(), Fault> {
    if !changed && event.is_none() {
        return session.rollback().await;
    }
    write(session, entry, before, awaited, event, changed, true).await
}

/// The same, as one of several in a transaction, unless it `commits`.
async fn write(
    session: &mut Session,
    entry: &Entry,
    before: State,
    awaited: bool,
    event: Option<&Event>,
    changed: bool,
    commits: bool,
) -> Result<(), Fault> {
    const TELL: &str = "select pg_notify($1, $2)::text";
    let statements = [&**UPDATE, &**NOTE, &**COUNT, TELL];
    let [update, note, count, tell] = session.prepare(statements).await?;
    let session = &*session;
    let id = entry.record.id.0.cast_signed();
    let after = entry.record.state;
    let tells = awaited && after != State::Claimed;
    let (updated, noted, counted, told, committed) = tokio::join!(
        biased;
        async {
            if !changed {
                return Ok(0);
            }
            let changing = Changing::of(entry);
            let mut parameters: Vec<Value<'_>> = vec![&id];
            parameters.extend(changing.values());
            session.execute(&update, &parameters).await
        },
        async {
            let Some(event) = event else { return Ok(0) };
            let noted = Noted::of(event);
            let mut parameters: Vec<Value<'_>> = vec![&id];
            parameters.extend(noted.values());
            session.execute(&note, &parameters).await
        },
        async {
            if before == after {
                return Ok(0);
            }
            let counts = count_values(Some(before), after);
            let shard = session.shard();
            let mut parameters: Vec<Value<'_>> = Vec::with_capacity(5);
            parameters.extend(counts.iter().map(|count| count as Value<'_>));
            parameters.push(&shard);
            session.execute(&count, &parameters).await
        },
        async {
            match tells {
                true => session.query(&tell, &[&CHANNEL, &id.to_string()]).await,
                false => Ok(Vec::new()),
            }
        },
        async {
            match commits {
                true => session.commit().await,
                false => Ok(()),
            }
        },
    );
    updated?;
    noted?;
    counted?;
    told?;
    committed
}

/// Ends an owner's claims, whatever its lease says. Returns how many.
pub(super) async fn lapse(
    session: &mut Session,
    inner: &Inner,
    owner: Owner,
) -> Result<u64, Fault> {
    end_claims(session, inner, owner, false).await
}

/// Ends the claims of an owner whose lease is over; none if it isn't.
pub(super) async fn lapse_if_dead(
    session: &mut Session,
    inner: &Inner,
    owner: Owner,
) -> Result<u64, Fault> {
    end_claims(session, inner, owner, true).await
}

static LOCK_CLAIMS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select {} from tikigate.record r
        where r.state = 'claimed' and r.owner = $1 order by r.id limit $2 for update",
        *ALL_COLUMNS
    )
});

async fn end_claims(
    session: &mut Session,
    inner: &Inner,
    owner: Owner,
    only_if_dead: bool,
) -> Result<u64, Fault> {
    // The lease's row stays locked to the end of the transaction: an owner that comes back extends
    // its lease after its claims have ended, and can't be given leave to send in between.
    const LOCK_LEASE: &str = "
        select lease_until > clock_timestamp() from tikigate.owner where owner = $1 for update";
    let statements = [GROUND, LOCK_LEASE, &**LOCK_CLAIMS];
    let [ledger, lock_lease, lock_claims] = session.prepare(statements).await?;
    let number = owner_column(owner);
    let mut ended = 0;
    loop {
        session.begin().await?;
        let lives = session.query_opt(&lock_lease, &[&number]).await?;
        let lives: Option<bool> = lives.map(|row| Columns::from(&row, 0).take()).transpose()?;
        if only_if_dead && lives == Some(true) {
            session.rollback().await?;
            return Ok(ended);
        }
        let parameters: [Value<'_>; 2] = [&number, &LAPSE_CHUNK];
        let (ground, claims) = tokio::join!(
            biased;
            session.query(&ledger, &[]),
            session.query(&lock_claims, &parameters),
        );
        let (ground, claims) = (Ground::read(&ground?)?, claims?);
        let moment = moment(ground, now(inner));
        for row in &claims {
            let (mut entry, awaited) = entry(&mut Columns::from(row, 0))?;
            let step = transition::lapse(&mut entry, owner, moment);
            ended += u64::from(step.reply);
            let event = step.event.as_ref();
            write(
                session,
                &entry,
                State::Claimed,
                awaited,
                event,
                step.changed,
                false,
            )
            .await?;
        }
        session.commit().await?;
        if (claims.len() as i64) < LAPSE_CHUNK {
            return Ok(ended);
        }
    }
}

/// Owners with claims whose lease is over, or that the database doesn't know.
pub(super) async fn dead_owners(session: &mut Session) -> Result<Vec<Owner>, Fault> {
    const DEAD: &str = "
        select distinct r.owner from tikigate.record r
        left join tikigate.owner o on o.owner = r.owner
        where r.state = 'claimed' and (o.owner is null or o.lease_until < clock_timestamp())
        limit 100";
    let [dead] = session.prepare([DEAD]).await?;
    let rows = session.query(&dead, &[]).await?;
    let owner = |row: &Row| {
        let number: i64 = Columns::from(row, 0).take()?;
        Ok(Owner(number.cast_unsigned()))
    };
    rows.iter().map(owner).collect()
}

/// Forgets done records past their time, in small transactions.
pub(super) async fn sweep(
    session: &mut Session,
    now: SystemTime,
    limit: usize,
) -> Result<u64, Fault> {
    // Those that another gate forgets just now are left to it.
    const SWEEP: &str = "
        with gone as (
            delete from tikigate.record where id = any(array(
                select id from tikigate.record where state = 'done' and expires_at <= $1
                order by expires_at limit $2 for update skip locked))
            returning id
        ), events as (
            delete from tikigate.event using gone where event.record = gone.id
        ), counted as (
            update tikigate.record_count set done = done - (select count(*) from gone)
            where shard = $3 and exists (select from gone)
        )
        select count(*) from gone";
    let [statement] = session.prepare([SWEEP]).await?;
    let mut left = limit;
    while left > 0 {
        let chunk = left.min(SWEEP_CHUNK);
        let (at_most, shard) = (chunk as i64, session.shard());
        let parameters: [Value<'_>; 3] = [&now, &at_most, &shard];
        let (begun, swept, committed) = tokio::join!(
            biased;
            session.begin(),
            session.query_opt(&statement, &parameters),
            session.commit(),
        );
        begun?;
        let row = swept?.ok_or(Fault::Corrupt("no count"))?;
        committed?;
        let swept: i64 = Columns::from(&row, 0).take()?;
        let swept = usize::try_from(swept).unwrap_or_default();
        left -= swept.min(left);
        if swept < chunk {
            break;
        }
    }
    Ok((limit - left) as u64)
}

/// Holds every key that the ledger doesn't know.
pub(super) async fn enter_quarantine(
    session: &mut Session,
    inner: &Arc<Inner>,
    cause: &str,
) -> Result<(), Fault> {
    const ENTER: &str = "select tikigate.enter_quarantine($1)::text";
    let [enter] = session.prepare([ENTER]).await?;
    let cause = stored(cause);
    let (begun, entered, committed) = tokio::join!(
        biased;
        session.begin(),
        async { session.query(&enter, &[&cause]).await },
        session.commit(),
    );
    begun?;
    entered?;
    committed?;
    *lock(&inner.quarantine) = Some(cause.into_owned());
    Ok(())
}

/// Ends the quarantine, and keeps whose word that was.
pub(super) async fn lift_quarantine(
    session: &mut Session,
    inner: &Arc<Inner>,
    by: &str,
    reason: &str,
) -> Result<(), Fault> {
    const LIFT: &str = "
        with lifted as (
            update tikigate.ledger set quarantine = null where quarantine is not null
            returning id
        )
        insert into tikigate.ledger_event (what, by_name, reason)
        select 'quarantine lifted', $1, $2 from lifted";
    let (by, reason) = (stored(by), stored(reason));
    session.begin().await?;
    session
        .query_once(LIFT, &[(&by, Type::TEXT), (&reason, Type::TEXT)])
        .await?;
    session.commit().await?;
    *lock(&inner.quarantine) = None;
    Ok(())
}
