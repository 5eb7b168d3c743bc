//! The ledger in a SQLite file: one process, durable.
//!
//! What changes a record is a job of the file's writer ([`tasks`]): the row becomes an entry, the pure
//! rules say what becomes of it, and the row is written back, many jobs to one commit. What only looks
//! goes to the reader ([`looks`]). A permit is answered from memory: as long as this process holds the
//! file's lock, nobody else takes a claim away, and whatever this process does to a claim passes here.

mod answers;
mod events;
mod live;
mod looks;
mod reading;
mod rows;
mod tasks;
#[cfg(test)]
mod tests;
mod verify;

pub use reading::SqliteReading;
pub use verify::check_records;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::oneshot;

use super::reply::{ClaimGuard, TakesBack};
use super::sweep::SweepClock;
use super::transition;
use super::{
    Claim, ClaimOutcome, CommitObserver, DefineError, Definition, Event, Fence, Filter,
    KeptRequest, Ledger, LedgerError, Owner, Page, PermitError, Record, RecordId, Reopening, Reply,
    Resolution, ResolveError, SendPermit, Settled, Settlement, Sighting, Stats, Trouble,
};
use crate::clock::Clock;
use crate::store::sqlite::{Database, Job, StoreError};
use live::LiveClaims;
use tasks::{ClaimTask, Task};

/// The SQLite store.
pub struct SqliteLedger {
    inner: Arc<Inner>,
}

struct Inner {
    database: Arc<Database>,
    clock: Clock,
    live: Arc<LiveClaims>,
    sweep_clock: Arc<Mutex<SweepClock>>,
}

impl SqliteLedger {
    /// A ledger in this file. Claims that a dead process left are ended: unknown, or released where
    /// they may be sent again. Says how many.
    ///
    /// # Errors
    /// The file can't be written.
    pub async fn open(
        database: impl Into<Arc<Database>>,
        clock: Clock,
    ) -> Result<(Self, u64), LedgerError> {
        let sweep_clock = SweepClock::new(clock.now(), clock.monotonic());
        let ledger = Self {
            inner: Arc::new(Inner {
                database: database.into(),
                clock,
                live: Arc::default(),
                sweep_clock: Arc::new(Mutex::new(sweep_clock)),
            }),
        };
        let lapsed = ledger.run(tasks::lapse_all()).await?;
        Ok((ledger, lapsed))
    }

    /// Submits a task and waits for its reply.
    fn run<T: Send + Unpin + 'static, E: From<LedgerError> + Send + Unpin + 'static>(
        &self,
        work: impl FnOnce(&mut tasks::Scope<'_, '_>) -> rusqlite::Result<Result<T, E>> + Send + 'static,
    ) -> Reply<Result<T, E>> {
        self.inner.run(work)
    }

    fn look<T: Send + Unpin + 'static>(
        &self,
        look: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<Result<T, LedgerError>>
        + Send
        + 'static,
    ) -> Reply<Result<T, LedgerError>> {
        let seen = self.inner.database.look(look);
        Reply::waiting(async move { seen.await.map_err(failed)? })
    }
}

impl Inner {
    fn run<T: Send + Unpin + 'static, E: From<LedgerError> + Send + Unpin + 'static>(
        &self,
        work: impl FnOnce(&mut tasks::Scope<'_, '_>) -> rusqlite::Result<Result<T, E>> + Send + 'static,
    ) -> Reply<Result<T, E>> {
        let (tell, told) = oneshot::channel();
        let task = Task::new(work, &self.clock, &self.live, move |reply| {
            // Whoever asked may have gone; what was done stays done.
            let _ = tell.send(reply);
        });
        self.database.submit(Box::new(task));
        Reply::waiting(async move { told.await.unwrap_or_else(|_| Err(lost().into())) })
    }
}

impl Ledger for SqliteLedger {
    fn define(
        &self,
        namespace: Arc<str>,
        definition: Definition,
    ) -> Reply<Result<(), DefineError>> {
        self.run(move |scope| scope.define(&namespace, definition))
    }

    fn claim(&self, claim: Claim) -> Reply<Result<ClaimOutcome, LedgerError>> {
        let (tell, told) = oneshot::channel();
        let store = Arc::clone(&self.inner) as Arc<dyn TakesBack>;
        let task = ClaimTask::new(claim, &self.inner.clock, &self.inner.live, move |reply| {
            let guard = match &reply {
                Ok(ClaimOutcome::Granted(fence, _)) => Some(ClaimGuard::new(store, *fence)),
                _ => None,
            };
            // If nobody listens, the guard drops with the reply, and the claim goes back.
            let _ = tell.send((reply, guard));
        });
        self.inner.database.submit(Box::new(task));
        Reply::waiting(async move {
            let Ok((reply, guard)) = told.await else {
                return Err(lost());
            };
            if let Some(guard) = guard {
                guard.disarm();
            }
            reply
        })
    }

    fn permit(&self, fence: Fence) -> Reply<Result<SendPermit, PermitError>> {
        let asked = Instant::now();
        let left = self.inner.live.permit(fence, self.inner.clock.now());
        Reply::ready(left.map(|left| SendPermit {
            valid_until: asked + left,
        }))
    }

    fn settle(&self, fence: Fence, settlement: Settlement) -> Reply<Result<Settled, LedgerError>> {
        self.run(move |scope| scope.settle(fence, settlement))
    }

    fn resolve(&self, resolution: Resolution) -> Reply<Result<Record, ResolveError>> {
        self.run(move |scope| {
            scope.word(resolution.id, |entry, moment| {
                transition::resolve(entry, resolution, moment)
            })
        })
    }

    fn reopen(&self, reopening: Reopening) -> Reply<Result<Record, ResolveError>> {
        self.run(move |scope| {
            scope.word(reopening.id, |entry, moment| {
                transition::reopen(entry, reopening, moment)
            })
        })
    }

    fn sighted(&self, sighting: Sighting) -> Reply<Result<Record, ResolveError>> {
        self.run(move |scope| {
            scope.word(sighting.id, |entry, moment| {
                transition::sighted(entry, sighting, moment)
            })
        })
    }

    fn lapse(&self, owner: Owner) -> Reply<Result<u64, LedgerError>> {
        self.run(tasks::lapse(Some(owner)))
    }

    fn get(&self, id: RecordId) -> Reply<Result<Option<Record>, LedgerError>> {
        self.look(move |connection| looks::get(connection, id))
    }

    fn request(&self, id: RecordId) -> Reply<Result<Option<KeptRequest>, LedgerError>> {
        self.look(move |connection| looks::request(connection, id))
    }

    fn list(&self, filter: Filter) -> Reply<Result<Page, LedgerError>> {
        self.look(move |connection| looks::list(connection, &filter))
    }

    fn events(&self, id: RecordId) -> Reply<Result<Vec<Event>, LedgerError>> {
        self.look(move |connection| looks::events(connection, id))
    }

    fn stats(&self) -> Reply<Result<Stats, LedgerError>> {
        let now = self.inner.clock.now();
        self.look(move |connection| looks::stats(connection, now))
    }

    fn sweep(&self, limit: usize) -> Reply<Result<u64, LedgerError>> {
        let observed = {
            let mut clock = match self.inner.sweep_clock.lock() {
                Ok(clock) => clock,
                Err(poisoned) => poisoned.into_inner(),
            };
            clock.observe(self.inner.clock.now(), self.inner.clock.monotonic())
        };
        let Some(now) = observed else {
            tracing::warn!("the wall clock jumped: nothing is forgotten by its new time");
            return Reply::ready(Ok(0));
        };
        self.run(move |scope| scope.sweep(now, limit))
    }

    fn enter_quarantine(&self, cause: String) -> Reply<Result<(), LedgerError>> {
        self.run(move |scope| scope.enter_quarantine(&cause))
    }

    fn lift_quarantine(&self, by: String, reason: String) -> Reply<Result<(), LedgerError>> {
        if !transition::is_attributed(&by, &reason) {
            let error = LedgerError::Failed(ResolveError::NoReason.to_string());
            return Reply::ready(Err(error));
        }
        self.run(move |scope| scope.lift_quarantine(&by, &reason))
    }

    fn quarantine(&self) -> Reply<Result<Option<String>, LedgerError>> {
        self.look(looks::quarantine)
    }

    fn trouble(&self) -> Option<Trouble> {
        let text = self.inner.database.trouble()?;
        Some(Trouble { text, own: true })
    }

    fn observe_commits(&self, observer: CommitObserver) {
        self.inner.database.observe_commits(observer);
    }

    fn close(&self) -> Reply<()> {
        Reply::waiting(self.inner.database.close())
    }
}

impl TakesBack for Inner {
    fn take_back(&self, fence: Fence) {
        self.database.submit(
            tasks::release(fence, self.clock.clone(), Arc::clone(&self.live)) as Box<dyn Job>,
        );
    }
}

fn failed(error: StoreError) -> LedgerError {
    LedgerError::Failed(error.0)
}

/// The writer's thread is gone without a word: a bug that ended it.
fn lost() -> LedgerError {
    LedgerError::Failed("the ledger's writer has ended".to_owned())
}
