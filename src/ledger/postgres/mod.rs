//! The ledger in a PostgreSQL database that several gates share.
//!
//! ```text
//! claiming   a message's claim: found or created in one transaction, atomic over all gates
//! changing   everything else that changes one record; and what becomes of a dead gate's claims
//! reading    what people and metrics ask
//! keeping    the lease that shows the others that this gate lives, and what it does for the dead
//! writing, rows   entries into rows and out of them        columns   values as columns
//! ```
//!
//! The rules are those of [`super::transition`], run on a row that its transaction has locked.
//! Records' times come from the gate's clock, as with any store; leases from the database's.

mod changing;
mod claiming;
mod columns;
mod keeping;
mod reading;
mod rows;
#[cfg(test)]
mod tests;
mod writing;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, broadcast};

use super::reply::TakesBack;
use super::sweep::SweepClock;
use super::transition;
use super::{
    Claim, ClaimOutcome, CommitObserver, DefineError, Definition, Event, Fence, Filter,
    KeptRequest, Ledger, LedgerError, Owner, Page, PermitError, Record, RecordId, Reopening, Reply,
    Resolution, ResolveError, SendPermit, Settled, Settlement, Sighting, Stats, Trouble,
};
use crate::clock::Clock;
use crate::store::postgres::{Fault, Session, Store};
use keeping::Lease;

/// Between two looks at an attempt that another gate runs, where no word of its end arrives.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Ends of attempts that are told faster than somebody listens.
const UNHEARD: usize = 256;
/// How long [`PostgresLedger::open`] and [`Ledger::define`] wait for a database that is not there.
const START_WITHIN: Duration = Duration::from_secs(5);
/// How long [`Ledger::close`] waits for the database.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// The PostgreSQL store.
pub struct PostgresLedger {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    clock: Clock,
    /// Whom this process claims as.
    owners: Vec<Owner>,
    lease: Lease,
    sweep_clock: Mutex<SweepClock>,
    /// What namespaces must be; told to the database whenever it may be another one.
    definitions: Mutex<Vec<(Arc<str>, Definition)>>,
    /// Records of which somebody waits to hear that an attempt ended.
    ended: broadcast::Sender<RecordId>,
    /// Claims that nobody holds, to be released when the database is there.
    abandoned: Mutex<Vec<Fence>>,
    more_abandoned: Notify,
    /// The quarantine's cause, as seen last.
    quarantine: Mutex<Option<String>>,
}

impl PostgresLedger {
    /// A ledger over a store, for a process that claims as `owners`: usually one, a number that no
    /// process had before. Others hold them for dead once they have given no sign of life for `lease`.
    ///
    /// Waits some seconds for a database that is there; one that isn't is no error. The store ends with
    /// the ledger, for whoever shares it, too.
    pub fn open(
        store: impl Into<Arc<Store>>,
        clock: Clock,
        lease: Duration,
        owners: Vec<Owner>,
    ) -> Self {
        let sweep_clock = SweepClock::new(clock.now(), clock.monotonic());
        let inner = Arc::new(Inner {
            store: store.into(),
            clock,
            owners,
            lease: Lease::new(lease),
            sweep_clock: Mutex::new(sweep_clock),
            definitions: Mutex::default(),
            ended: broadcast::Sender::new(UNHEARD),
            abandoned: Mutex::default(),
            more_abandoned: Notify::new(),
            quarantine: Mutex::default(),
        });
        keeping::start(&inner);
        inner.lease.wait_for_first(START_WITHIN);
        Self { inner }
    }

    /// Ends everything that runs for this ledger, and waits for it.
    pub fn stop(&self) {
        self.inner.store.close();
    }

    /// Has work done in a session.
    fn run<W, T>(&self, work: W) -> impl Future<Output = Result<T, Fault>> + Send + 'static
    where
        W: AsyncFnOnce(&mut Session, &Arc<Inner>) -> Result<T, Fault> + Send + 'static,
        T: Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        self.inner
            .store
            .run(async move |session: &mut Session| work(session, &inner).await)
    }

    /// The same, for an answer that is the store's word or its failure.
    fn reply<W, T>(&self, work: W) -> Reply<Result<T, LedgerError>>
    where
        W: AsyncFnOnce(&mut Session, &Arc<Inner>) -> Result<T, Fault> + Send + 'static,
        T: Send + 'static,
    {
        let answer = self.run(work);
        Reply::waiting(async move { answer.await.map_err(failed) })
    }

    /// The same, for somebody's word on a record.
    fn word<W>(&self, word: W) -> Reply<Result<Record, ResolveError>>
    where
        W: AsyncFnOnce(&mut Session, &Arc<Inner>) -> Result<Result<Record, ResolveError>, Fault>
            + Send
            + 'static,
    {
        let answer = self.run(word);
        Reply::waiting(async move {
            answer
                .await
                .unwrap_or_else(|fault| Err(failed(fault).into()))
        })
    }
}

impl Drop for PostgresLedger {
    fn drop(&mut self) {
        self.inner.store.stop();
    }
}

impl Ledger for PostgresLedger {
    fn define(
        &self,
        namespace: Arc<str>,
        definition: Definition,
    ) -> Reply<Result<(), DefineError>> {
        let inner = &self.inner;
        if !inner.lease.was_ever_held() {
            // The database isn't there: it is compared before the first claim instead.
            inner.remember(namespace, definition);
            return Reply::ready(Ok(()));
        }
        let answer = self.run(async move |session, inner| {
            let defined = changing::define(session, &namespace, &definition).await?;
            if defined.is_ok() {
                inner.remember(namespace, definition);
            }
            Ok(defined)
        });
        Reply::waiting(async move {
            answer
                .await
                .unwrap_or_else(|fault| Err(failed(fault).into()))
        })
    }

    fn claim(&self, claim: Claim) -> Reply<Result<ClaimOutcome, LedgerError>> {
        if let Some(trouble) = self.inner.lease.trouble() {
            let trouble = self.inner.store.trouble().unwrap_or(trouble);
            return Reply::ready(Err(LedgerError::Failed(trouble)));
        }
        let answer =
            self.run(async move |session, inner| claiming::claim(session, inner, claim).await);
        Reply::waiting(async move {
            let claimed = answer.await.map_err(failed)?;
            Ok(claimed.taken())
        })
    }

    fn permit(&self, fence: Fence) -> Reply<Result<SendPermit, PermitError>> {
        let asked = Instant::now();
        let answer = self
            .run(async move |session, inner| changing::permit(session, inner, fence, asked).await);
        Reply::waiting(async move {
            answer
                .await
                .unwrap_or_else(|fault| Err(failed(fault).into()))
        })
    }

    fn settle(&self, fence: Fence, settlement: Settlement) -> Reply<Result<Settled, LedgerError>> {
        self.reply(async move |session, inner| {
            changing::settle(session, inner, fence, settlement).await
        })
    }

    fn resolve(&self, resolution: Resolution) -> Reply<Result<Record, ResolveError>> {
        self.word(async move |session, inner| {
            changing::word(session, inner, resolution.id, |entry, moment| {
                transition::resolve(entry, resolution, moment)
            })
            .await
        })
    }

    fn reopen(&self, reopening: Reopening) -> Reply<Result<Record, ResolveError>> {
        self.word(async move |session, inner| {
            changing::word(session, inner, reopening.id, |entry, moment| {
                transition::reopen(entry, reopening, moment)
            })
            .await
        })
    }

    fn sighted(&self, sighting: Sighting) -> Reply<Result<Record, ResolveError>> {
        self.word(async move |session, inner| {
            changing::word(session, inner, sighting.id, |entry, moment| {
                transition::sighted(entry, sighting, moment)
            })
            .await
        })
    }

    fn changed(&self, fence: Fence) -> Reply<()> {
        let mut ended = self.inner.ended.subscribe();
        Reply::waiting(async move {
            let told = async {
                // Too much to hear it all: it may have been among that.
                while ended
                    .recv()
                    .await
                    .is_ok_and(|record| record != fence.record)
                {}
            };
            // Without word of it the caller asks again in a while.
            let _ = tokio::time::timeout(LOOK_AGAIN, told).await;
        })
    }

    fn trouble(&self) -> Option<Trouble> {
        let inner = &self.inner;
        let text = inner
            .store
            .trouble()
            .or_else(|| inner.lease.trouble())
            .or_else(|| {
                let cause = lock(&inner.quarantine).clone()?;
                Some(format!(
                    "keys that the ledger doesn't know are held: {cause}"
                ))
            })?;
        // Every replica has the same database.
        Some(Trouble { text, own: false })
    }

    fn observe_commits(&self, observer: CommitObserver) {
        self.inner.store.observe_commits(observer);
    }

    fn close(&self) -> Reply<()> {
        let ending = self.run(async move |session, inner| keeping::end_lease(session, inner).await);
        let inner = Arc::clone(&self.inner);
        Reply::waiting(async move {
            let ended = tokio::time::timeout(CLOSE_WITHIN, ending).await;
            if !matches!(ended, Ok(Ok(()))) {
                tracing::warn!("the ledger's lease could not be given back: it ends by itself");
            }
            let (closed, closing) = tokio::sync::oneshot::channel();
            let close = move || {
                inner.store.close();
                let _ = closed.send(());
            };
            match std::thread::Builder::new().spawn(close) {
                Ok(_) => drop(closing.await),
                Err(error) => tracing::warn!(%error, "the ledger's thread is not waited for"),
            }
        })
    }

    fn lapse(&self, owner: Owner) -> Reply<Result<u64, LedgerError>> {
        self.reply(async move |session, inner| changing::lapse(session, inner, owner).await)
    }

    fn get(&self, id: RecordId) -> Reply<Result<Option<Record>, LedgerError>> {
        self.reply(async move |session, _| reading::get(session, id).await)
    }

    fn list(&self, filter: Filter) -> Reply<Result<Page, LedgerError>> {
        self.reply(async move |session, _| reading::list(session, &filter).await)
    }

    fn request(&self, id: RecordId) -> Reply<Result<Option<KeptRequest>, LedgerError>> {
        self.reply(async move |session, _| reading::request(session, id).await)
    }

    fn events(&self, id: RecordId) -> Reply<Result<Vec<Event>, LedgerError>> {
        self.reply(async move |session, _| reading::events(session, id).await)
    }

    fn stats(&self) -> Reply<Result<Stats, LedgerError>> {
        self.reply(async move |session, inner| reading::stats(session, inner.clock.now()).await)
    }

    fn sweep(&self, limit: usize) -> Reply<Result<u64, LedgerError>> {
        let inner = &self.inner;
        let (wall, monotonic) = (inner.clock.now(), inner.clock.monotonic());
        let Some(now) = lock(&inner.sweep_clock).observe(wall, monotonic) else {
            tracing::warn!("the wall clock jumped: nothing is forgotten by its new time");
            return Reply::ready(Ok(0));
        };
        self.reply(async move |session, _| changing::sweep(session, now, limit).await)
    }

    fn enter_quarantine(&self, cause: String) -> Reply<Result<(), LedgerError>> {
        self.reply(async move |session, inner| {
            changing::enter_quarantine(session, inner, &cause).await
        })
    }

    fn lift_quarantine(&self, by: String, reason: String) -> Reply<Result<(), LedgerError>> {
        if !transition::is_attributed(&by, &reason) {
            let text = ResolveError::NoReason.to_string();
            return Reply::ready(Err(LedgerError::Failed(text)));
        }
        self.reply(async move |session, inner| {
            changing::lift_quarantine(session, inner, &by, &reason).await
        })
    }

    fn quarantine(&self) -> Reply<Result<Option<String>, LedgerError>> {
        self.reply(async move |session, _| reading::quarantine(session).await)
    }
}

impl Inner {
    /// Keeps a definition, to compare it with whatever database comes after this one.
    fn remember(&self, namespace: Arc<str>, definition: Definition) {
        let mut definitions = lock(&self.definitions);
        definitions.retain(|(known, _)| *known != namespace);
        definitions.push((namespace, definition));
    }
}

impl TakesBack for Inner {
    fn take_back(&self, fence: Fence) {
        lock(&self.abandoned).push(fence);
        self.more_abandoned.notify_one();
    }
}

fn failed(fault: Fault) -> LedgerError {
    LedgerError::Failed(fault.to_string())
}

/// What is behind these locks is whole between any two statements: a panic elsewhere changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
