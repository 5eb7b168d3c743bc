//! A message's claim.

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use tokio_postgres::Row;

use super::changing::{self, LOCK_BY_KEY, save};
use super::columns::{key_hash, owner_column, stored, subject_lock};
use super::rows::{ALL_COLUMNS, Columns, LIGHT_COLUMNS, entry};
use super::writing::{Changing, Fixed, INSERT, Noted, Value, count_values};
use super::{Inner, TakesBack};
use crate::ledger::reply::ClaimGuard;
use crate::ledger::transition::{self, Entry, Siblings};
use crate::ledger::{Claim, ClaimOutcome, Event, Fence, RecordId, State, SubjectRule};
use crate::store::postgres::{Fault, GROUND, Ground, Session};

/// How often a claim starts anew because another transaction came before it.
const TRIES: usize = 5;

/// What a claim came to. A grant goes back unless it is [taken](Claimed::taken).
pub(super) struct Claimed {
    outcome: ClaimOutcome,
    guard: Option<ClaimGuard>,
}

impl Claimed {
    /// Whoever asked has it now.
    pub(super) fn taken(self) -> ClaimOutcome {
        if let Some(guard) = self.guard {
            guard.disarm();
        }
        self.outcome
    }

    fn is(outcome: ClaimOutcome) -> Self {
        Self {
            outcome,
            guard: None,
        }
    }
}

/// Claims a message: most are new, and take two round trips.
pub(super) async fn claim(
    session: &mut Session,
    inner: &Arc<Inner>,
    claim: Claim,
) -> Result<Claimed, Fault> {
    for _ in 0..TRIES {
        if let Some(claimed) = try_claim(session, inner, &claim).await? {
            return Ok(claimed);
        }
        session.rollback().await?;
    }
    let text = "too many claim this message at once";
    Err(Fault::Unavailable(text.to_owned()))
}

/// One try; none if another transaction came before it.
async fn try_claim(
    session: &mut Session,
    inner: &Arc<Inner>,
    claim: &Claim,
) -> Result<Option<Claimed>, Fault> {
    let now = changing::now(inner);
    let mut found = look(session, claim, now).await?;
    if !found.leased {
        let text = "this gate's lease on its claims is over";
        return Err(Fault::Unavailable(text.to_owned()));
    }
    let moment = changing::moment(found.ground, now);
    let Some(mut entry) = found.entry.take() else {
        if !transition::admits(claim) {
            session.rollback().await?;
            return Ok(Some(Claimed::is(ClaimOutcome::Unfamiliar)));
        }
        let Some(id) = found.next_id else {
            return Ok(None); // it was there a moment ago
        };
        let (entry, step) = transition::create(claim.clone(), id, found.siblings, moment);
        let claimed = guarded(inner, step.reply);
        let created = insert(session, &entry, step.event.as_ref()).await?;
        return Ok(match created {
            true => Some(claimed),
            false => {
                claimed.taken(); // of a transaction that wrote nothing
                None
            }
        });
    };
    is_the_same(&entry, claim)?;
    if found.lacks_comparison(&entry) {
        return Ok(None);
    }
    let step = transition::claim_again(&mut entry, claim, found.siblings, moment);
    if !step.changed && step.event.is_none() {
        return unchanged(session, inner, step.reply).await;
    }
    // Now for good: nobody else may change it meanwhile.
    let Some((mut entry, awaited)) = lock_by_key(session, claim).await? else {
        return Ok(None);
    };
    is_the_same(&entry, claim)?;
    if found.lacks_comparison(&entry) {
        return Ok(None);
    }
    let before = entry.record.state;
    let step = transition::claim_again(&mut entry, claim, found.siblings, moment);
    let claimed = guarded(inner, step.reply);
    save(
        session,
        &entry,
        before,
        awaited,
        step.event.as_ref(),
        step.changed,
    )
    .await?;
    Ok(Some(claimed))
}

/// A grant is guarded from before it is written: also one whose commit nobody confirms goes back.
fn guarded(inner: &Arc<Inner>, outcome: ClaimOutcome) -> Claimed {
    let guard = match &outcome {
        ClaimOutcome::Granted(fence, _) => {
            let store = Arc::clone(inner) as Arc<dyn TakesBack>;
            Some(ClaimGuard::new(store, *fence))
        }
        _ => None,
    };
    Claimed { outcome, guard }
}

/// Nothing is to be written; but an attempt that runs elsewhere is one to be told about.
async fn unchanged(
    session: &mut Session,
    inner: &Inner,
    outcome: ClaimOutcome,
) -> Result<Option<Claimed>, Fault> {
    match outcome {
        ClaimOutcome::Running(fence) if !inner.owners.contains(&fence.owner) => {
            if !wait_for(session, fence).await? {
                return Ok(None);
            }
        }
        _ => session.rollback().await?,
    }
    Ok(Some(Claimed::is(outcome)))
}

/// Asks whoever ends the attempt to tell; `false` if it ended.
async fn wait_for(session: &mut Session, fence: Fence) -> Result<bool, Fault> {
    const RUNS: &str = "
        select awaited from tikigate.record where id = $1 and attempt = $2 and state = 'claimed'";
    const AWAIT: &str = "
        update tikigate.record set awaited = true
        where id = $1 and attempt = $2 and state = 'claimed'";
    let [runs, tell] = session.prepare([RUNS, AWAIT]).await?;
    let (id, attempt) = (fence.record.0.cast_signed(), i64::from(fence.attempt));
    let Some(row) = session.query_opt(&runs, &[&id, &attempt]).await? else {
        return Ok(false);
    };
    if Columns::from(&row, 0).take()? {
        session.rollback().await?;
        return Ok(true);
    }
    let parameters: [Value<'_>; 2] = [&id, &attempt];
    let (told, committed) = tokio::join!(
        biased;
        session.execute(&tell, &parameters),
        session.commit(),
    );
    let told = told?;
    committed?;
    Ok(told > 0)
}

/// What a claim has to go by.
struct Found {
    ground: Ground,
    /// The owner's lease holds.
    leased: bool,
    entry: Option<Entry>,
    /// For a record that isn't there.
    next_id: Option<RecordId>,
    siblings: Siblings,
    /// Nobody else claims about the same subject until this has ended.
    compared: bool,
}

impl Found {
    /// The record was released only after it was decided that there is nothing to compare.
    fn lacks_comparison(&self, entry: &Entry) -> bool {
        entry.record.state == State::Released && !self.compared
    }
}

static FIND: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select {} from tikigate.record r where r.key_hash = $1",
        *ALL_COLUMNS
    )
});

static SIBLINGS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "select {} from tikigate.record r
        where r.subject_id = $1 and r.namespace = $2 and r.client = $3 and r.key_hash <> $4
            and (r.subject_at > $5 or r.subject_amount = $6)",
        *LIGHT_COLUMNS
    )
});

/// Begins the transaction and reads all that the claim depends on, in one round trip. Of two claims
/// about one subject the second waits here until the first has ended.
async fn look(session: &mut Session, claim: &Claim, now: SystemTime) -> Result<Found, Fault> {
    const LEASED: &str = "
        select exists (
            select from tikigate.owner where owner = $1 and lease_until > clock_timestamp())";
    // What has its answer is compared with nothing, and shall not wait for what hangs.
    const LOCK_SUBJECT: &str = "
        select pg_advisory_xact_lock($1)::text where not exists (
            select from tikigate.record where key_hash = $2 and state <> 'released')";
    const NEXT_ID: &str = "
        select nextval('tikigate.record_id')
        where not exists (select from tikigate.record where key_hash = $1)";
    let statements = [GROUND, LEASED, LOCK_SUBJECT, &**SIBLINGS, &**FIND, NEXT_ID];
    let [ledger, leased, lock_subject, siblings, find, next_id] =
        session.prepare(statements).await?;
    let session = &*session;
    let owner = owner_column(claim.owner);
    let hash = key_hash(&claim.key);
    let by_hash: [Value<'_>; 1] = [&hash];
    let subject = Compared::of(claim);
    let (begun, ground, leased, locked, siblings, found, next_id) = tokio::join!(
        biased;
        session.begin(),
        session.query(&ledger, &[]),
        async { session.query(&leased, &[&owner]).await },
        async {
            match &subject {
                Some(subject) => session.query(&lock_subject, &[&subject.lock, &hash]).await,
                None => Ok(Vec::new()),
            }
        },
        async {
            match &subject {
                Some(subject) => session.query(&siblings, &subject.values(&hash)).await,
                None => Ok(Vec::new()),
            }
        },
        session.query_opt(&find, &by_hash),
        session.query_opt(&next_id, &by_hash),
    );
    begun?;
    let compared = claim.subject.is_none() || !locked?.is_empty();
    let next_id = next_id?.map(|row| Columns::from(&row, 0).take::<i64>());
    let next_id = next_id.transpose()?;
    let entry = found?.map(|row| entry(&mut Columns::from(&row, 0)));
    Ok(Found {
        ground: Ground::read(&ground?)?,
        leased: match leased?.first() {
            Some(row) => Columns::from(row, 0).take()?,
            None => false,
        },
        entry: entry.transpose()?.map(|(entry, _)| entry),
        next_id: next_id.map(|id| RecordId(id.cast_unsigned())),
        siblings: compare(claim, &siblings?, now)?,
        compared,
    })
}

/// What a claim's subject is looked up by.
struct Compared<'a> {
    lock: i64,
    id: std::borrow::Cow<'a, str>,
    namespace: std::borrow::Cow<'a, str>,
    client: std::borrow::Cow<'a, str>,
    at: Option<SystemTime>,
    amount: Option<std::borrow::Cow<'a, str>>,
}

impl<'a> Compared<'a> {
    fn of(claim: &'a Claim) -> Option<Self> {
        let subject = claim.subject.as_ref()?;
        // Only newer events, and only the same amount, can make a difference.
        let (at, amount) = match &subject.rule {
            SubjectRule::Event { at, .. } => (Some(*at), None),
            SubjectRule::Payment { amount, .. } => (None, Some(stored(amount))),
        };
        Some(Self {
            lock: subject_lock(&claim.key, &subject.id),
            id: stored(&subject.id),
            namespace: stored(&claim.key.namespace),
            client: stored(&claim.key.client),
            at,
            amount,
        })
    }

    fn values<'b>(&'b self, hash: &'b Vec<u8>) -> [Value<'b>; 6] {
        [
            &self.id,
            &self.namespace,
            &self.client,
            hash,
            &self.at,
            &self.amount,
        ]
    }
}

fn compare(claim: &Claim, rows: &[Row], now: SystemTime) -> Result<Siblings, Fault> {
    let mut siblings = Siblings::default();
    let Some(subject) = &claim.subject else {
        return Ok(siblings);
    };
    for row in rows {
        let (other, _) = entry(&mut Columns::from(row, 0))?;
        siblings.add(&other, &subject.rule, now);
    }
    Ok(siblings)
}

async fn lock_by_key(session: &mut Session, claim: &Claim) -> Result<Option<(Entry, bool)>, Fault> {
    let [lock] = session.prepare([&**LOCK_BY_KEY]).await?;
    let hash = key_hash(&claim.key);
    let row = session.query_opt(&lock, &[&hash]).await?;
    row.map(|row| entry(&mut Columns::from(&row, 0)))
        .transpose()
}

fn is_the_same(entry: &Entry, claim: &Claim) -> Result<(), Fault> {
    if entry.record.key == claim.key {
        return Ok(());
    }
    Err(Fault::Corrupt("two keys with one hash"))
}

/// Writes a new record and commits; `false` if its key is there already.
async fn insert(
    session: &mut Session,
    entry: &Entry,
    event: Option<&Event>,
) -> Result<bool, Fault> {
    let Some(event) = event else {
        return Err(Fault::Corrupt("a record without its first event"));
    };
    let [insert] = session.prepare([&**INSERT]).await?;
    let id = entry.record.id.0.cast_signed();
    let (changing, fixed, noted) = (Changing::of(entry), Fixed::of(entry), Noted::of(event));
    let counts = count_values(None, entry.record.state);
    let shard = session.shard();
    let mut parameters: Vec<Value<'_>> = vec![&id];
    parameters.extend(changing.values());
    parameters.extend(fixed.values());
    parameters.extend(noted.values());
    parameters.extend(counts.iter().map(|count| count as Value<'_>));
    parameters.push(&shard);
    let (created, committed) = tokio::join!(
        biased;
        session.query_opt(&insert, &parameters),
        session.commit(),
    );
    let created = created?.is_some();
    committed?;
    Ok(created)
}
