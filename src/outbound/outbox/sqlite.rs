//! The outbox in the ledger's SQLite file, and in memory.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::rows;
use super::rules::{MAY_BEGIN, Policy};
use super::types::{
    Accepted, Delivery, DeliveryId, Filter, Flight, Page, Posting, Report, Stats, StoreFault,
    Taken, Tidings, Word, WordFault,
};
use super::{Outbox, Reply};
use crate::clock::Clock;
use crate::config;
use crate::outbound::Accounts;
use crate::store::sqlite::{Batch, Database, Job, StoreError, schema};

type Sql<T> = rusqlite::Result<T>;

/// What holds for every delivery.
#[derive(Clone)]
pub(super) struct Terms {
    pub(super) policy: Policy,
    pub(super) max_bytes: usize,
    pub(super) keep: Duration,
    pub(super) clock: Clock,
}

impl Terms {
    pub(super) fn new(outbox: &config::Outbox, clock: Clock) -> Self {
        Self {
            policy: Policy::from(outbox),
            max_bytes: outbox.max_bytes,
            keep: outbox.keep,
            clock,
        }
    }

    /// In whole microseconds, as times are kept.
    pub(super) fn now(&self) -> SystemTime {
        rows::time(rows::micros(self.clock.now()))
    }

    pub(super) fn tidings(&self, generation: u64, quarantined: bool) -> Tidings {
        Tidings {
            now: self.now(),
            generation,
            quarantined,
            chance: chance(),
        }
    }
}

/// Between 0 and 1. Without random numbers the pauses are all alike, which is worse, but not wrong.
pub(super) fn chance() -> f64 {
    f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX)
}

/// Accounts that deliveries may be pinned to: client ids and base URLs.
pub(super) type Pins = Vec<(String, String)>;

/// In the file of the ledger. What is written here goes behind what inbound calls write.
pub struct SqliteOutbox {
    database: Arc<Database>,
    terms: Terms,
}

impl SqliteOutbox {
    /// The outbox of this file. Says how many deliveries were being tried when its process ended.
    ///
    /// # Errors
    /// The file can't be written.
    pub async fn open(
        database: Arc<Database>,
        outbox: &config::Outbox,
        accounts: &Accounts,
        clock: Clock,
    ) -> Result<(Self, u64), StoreFault> {
        Self::over(database, Terms::new(outbox, clock), accounts.pins()).await
    }

    pub(super) async fn over(
        database: Arc<Database>,
        terms: Terms,
        pins: Pins,
    ) -> Result<(Self, u64), StoreFault> {
        let outbox = Self { database, terms };
        let lapsed =
            outbox.run(move |scope| rows::begin(scope.connection, &pins, scope.tidings.now));
        let lapsed = lapsed.await?;
        Ok((outbox, lapsed))
    }

    /// Deliveries that a file holds for Tiki, whether anybody delivers them or not.
    ///
    /// # Errors
    /// The file can't be read.
    pub async fn waiting(database: &Database) -> Result<u64, StoreFault> {
        let seen = database.look(|connection| {
            let count: i64 = connection.query_row(
                "SELECT count(*) FROM outbox INDEXED BY outbox_waiting WHERE state = 'pending'",
                (),
                |row| row.get(0),
            )?;
            Ok(count.cast_unsigned())
        });
        seen.await.map_err(|error| StoreFault(error.0))
    }

    fn run<T: Send + Unpin + 'static>(
        &self,
        work: impl FnOnce(&Scope<'_>) -> Sql<T> + Send + 'static,
    ) -> Reply<Result<T, StoreFault>> {
        self.run_with_undo(work, |_, _| None)
    }

    fn run_with_undo<T: Send + Unpin + 'static>(
        &self,
        work: impl FnOnce(&Scope<'_>) -> Sql<T> + Send + 'static,
        undo: impl FnOnce(T, &Terms) -> Option<Box<dyn Job>> + Send + 'static,
    ) -> Reply<Result<T, StoreFault>> {
        let (tell, told) = oneshot::channel();
        let task = Task {
            work: Some(work),
            done: None,
            tell: Some(tell),
            undo: Some(undo),
            terms: self.terms.clone(),
        };
        self.database.submit_later(Box::new(task));
        Reply::waiting(async move { told.await.unwrap_or_else(|_| Err(lost())) })
    }

    fn look<T: Send + Unpin + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> Sql<T> + Send + 'static,
    ) -> Reply<Result<T, StoreFault>> {
        let seen = self.database.look(look);
        Reply::waiting(async move { seen.await.map_err(|error| StoreFault(error.0)) })
    }
}

fn lost() -> StoreFault {
    StoreFault("the store's writer has ended".to_owned())
}

/// The transaction that a task works in.
pub(super) struct Scope<'c> {
    connection: &'c Connection,
    tidings: Tidings,
}

/// A piece of work within a batch, and how it is undone when the batch fails.
struct Task<T, W, U> {
    work: Option<W>,
    done: Option<Result<T, StoreFault>>,
    tell: Option<oneshot::Sender<Result<T, StoreFault>>>,
    undo: Option<U>,
    terms: Terms,
}

impl<T, W, U> Job for Task<T, W, U>
where
    T: Send,
    W: FnOnce(&Scope<'_>) -> Sql<T> + Send,
    U: FnOnce(T, &Terms) -> Option<Box<dyn Job>> + Send,
{
    fn run(&mut self, batch: &mut Batch<'_>) -> Sql<()> {
        if let Some(work) = self.work.take() {
            let before = changes(batch.connection);
            let scope = Scope {
                connection: batch.connection,
                tidings: self
                    .terms
                    .tidings(batch.meta.generation, batch.meta.quarantine.is_some()),
            };
            self.done = Some(alone(batch.connection, || work(&scope))?);
            if changes(batch.connection) != before {
                batch.wrote();
            }
        }
        Ok(())
    }

    fn committed(self: Box<Self>) {
        if let (Some(tell), Some(done)) = (self.tell, self.done) {
            // Whoever asked may have gone; what was done stays done.
            let _ = tell.send(done);
        }
    }

    fn failed(self: Box<Self>, error: &StoreError) -> Option<Box<dyn Job>> {
        if let Some(tell) = self.tell {
            let _ = tell.send(Err(StoreFault(error.0.clone())));
        }
        match (self.undo, self.done) {
            (Some(undo), Some(Ok(done))) => undo(done, &self.terms),
            _ => None,
        }
    }
}

/// Does the work by itself within the batch: a row that can't be read, or a constraint that is not met,
/// ends the work and leaves the rest of the batch, inbound calls above all, as it is.
fn alone<T>(connection: &Connection, work: impl FnOnce() -> Sql<T>) -> Sql<Result<T, StoreFault>> {
    connection.prepare_cached("SAVEPOINT outbox")?.execute(())?;
    let done = match work() {
        Ok(done) => Ok(done),
        Err(error) if is_its_own(&error) => {
            connection
                .prepare_cached("ROLLBACK TO outbox")?
                .execute(())?;
            tracing::error!(%error, "a delivery in the outbox can't be used");
            Err(StoreFault(error.to_string()))
        }
        Err(error) => return Err(error),
    };
    connection.prepare_cached("RELEASE outbox")?.execute(())?;
    Ok(done)
}

/// Whether an error is about what was asked, and not about the file.
fn is_its_own(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{
        FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, QueryReturnedNoRows,
        Utf8Error,
    };
    match error {
        FromSqlConversionFailure(..)
        | IntegralValueOutOfRange(..)
        | InvalidColumnType(..)
        | QueryReturnedNoRows
        | Utf8Error(..) => true,
        error => error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation),
    }
}

/// Rows changed so far by this connection.
fn changes(connection: &Connection) -> u64 {
    connection.total_changes()
}

/// Gives flights back that nobody was told of; comes back until it could be carried out.
struct GiveBack(Vec<Flight>);

impl Job for GiveBack {
    fn run(&mut self, batch: &mut Batch<'_>) -> Sql<()> {
        rows::give_back(batch.connection, &self.0)?;
        batch.wrote();
        Ok(())
    }

    fn committed(self: Box<Self>) {}

    fn failed(self: Box<Self>, _: &StoreError) -> Option<Box<dyn Job>> {
        Some(self)
    }
}

fn flights(taken: Vec<Delivery>, began: Instant) -> Vec<Flight> {
    let valid_until = began + MAY_BEGIN;
    let flight = |delivery| Flight {
        delivery,
        valid_until,
    };
    taken.into_iter().map(flight).collect()
}

impl Outbox for SqliteOutbox {
    fn post(&self, posting: Posting) -> Reply<Result<Accepted, StoreFault>> {
        let max_bytes = self.terms.max_bytes;
        self.run(move |scope| {
            let posted = rows::post(scope.connection, &posting, max_bytes, scope.tidings)?;
            Ok(posted.0)
        })
    }

    fn take(&self, limit: usize) -> Reply<Result<Taken, StoreFault>> {
        let began = Instant::now();
        self.run_with_undo(
            move |scope| {
                let due = rows::take(scope.connection, limit, scope.tidings)?;
                Ok(Taken {
                    flights: flights(due.taken, began),
                    next_in: due.next_in,
                })
            },
            |taken, _| match taken.flights.is_empty() {
                true => None,
                false => Some(Box::new(GiveBack(taken.flights)) as Box<dyn Job>),
            },
        )
    }

    fn record(&self, flight: Flight, report: Report) -> Reply<Result<Delivery, StoreFault>> {
        let policy = self.terms.policy;
        self.run(move |scope| {
            let recorded = rows::record(scope.connection, &flight, &report, policy, scope.tidings)?;
            Ok(recorded.unwrap_or(flight.delivery))
        })
    }

    fn give_back(&self, flights: Vec<Flight>) -> Reply<Result<(), StoreFault>> {
        self.run(move |scope| rows::give_back(scope.connection, &flights))
    }

    fn to_tell(&self, limit: usize) -> Reply<Result<Vec<Delivery>, StoreFault>> {
        let now = self.terms.now();
        self.look(move |connection| rows::to_tell(connection, limit, now))
    }

    fn told(&self, delivery: Delivery, heard: bool) -> Reply<Result<(), StoreFault>> {
        let policy = self.terms.policy;
        self.run(move |scope| rows::told(scope.connection, &delivery, heard, policy, scope.tidings))
    }

    fn get(&self, id: DeliveryId) -> Reply<Result<Option<Delivery>, StoreFault>> {
        self.look(move |connection| rows::get(connection, id))
    }

    fn list(&self, filter: Filter) -> Reply<Result<Page, StoreFault>> {
        self.look(move |connection| rows::list(connection, &filter))
    }

    fn word(&self, id: DeliveryId, word: Word) -> Reply<Result<Delivery, WordFault>> {
        let said = self.run(move |scope| rows::word(scope.connection, id, &word, scope.tidings));
        Reply::waiting(async move { said.await? })
    }

    fn stats(&self) -> Reply<Result<Stats, StoreFault>> {
        let now = self.terms.now();
        self.look(move |connection| rows::stats(connection, now))
    }

    fn sweep(&self, limit: usize) -> Reply<Result<u64, StoreFault>> {
        let Terms { keep, policy, .. } = self.terms;
        self.run(move |scope| {
            let now = scope.tidings.now;
            let before = now.checked_sub(keep).unwrap_or(SystemTime::UNIX_EPOCH);
            rows::sweep(scope.connection, before, limit, policy, now)
        })
    }
}

/// In this process; lost at its exit.
pub struct MemoryOutbox {
    connection: Mutex<Connection>,
    terms: Terms,
}

impl MemoryOutbox {
    /// An empty one.
    ///
    /// # Errors
    /// SQLite's.
    pub fn new(
        outbox: &config::Outbox,
        accounts: &Accounts,
        clock: Clock,
    ) -> Result<Self, StoreFault> {
        Self::holding(Terms::new(outbox, clock), &accounts.pins())
    }

    pub(super) fn holding(terms: Terms, pins: &[(String, String)]) -> Result<Self, StoreFault> {
        let connection = schema::in_memory(schema::REVISION).map_err(fault)?;
        rows::begin(&connection, pins, terms.now()).map_err(fault)?;
        Ok(Self {
            connection: Mutex::new(connection),
            terms,
        })
    }

    fn with<T>(&self, work: impl FnOnce(&Connection, Tidings) -> Sql<T>) -> Result<T, StoreFault> {
        let connection = self.connection.lock();
        let connection = connection.unwrap_or_else(PoisonError::into_inner);
        // Half of a change would stay after a fault in its middle.
        let transaction = connection.unchecked_transaction().map_err(fault)?;
        let done = work(&transaction, self.terms.tidings(1, false)).map_err(fault)?;
        transaction.commit().map_err(fault)?;
        Ok(done)
    }
}

fn fault(error: rusqlite::Error) -> StoreFault {
    StoreFault(error.to_string())
}

impl Outbox for MemoryOutbox {
    fn post(&self, posting: Posting) -> Reply<Result<Accepted, StoreFault>> {
        let max_bytes = self.terms.max_bytes;
        let posted =
            self.with(|connection, tidings| rows::post(connection, &posting, max_bytes, tidings));
        Reply::ready(posted.map(|posted| posted.0))
    }

    fn take(&self, limit: usize) -> Reply<Result<Taken, StoreFault>> {
        let began = Instant::now();
        let due = self.with(|connection, tidings| rows::take(connection, limit, tidings));
        Reply::ready(due.map(|due| Taken {
            flights: flights(due.taken, began),
            next_in: due.next_in,
        }))
    }

    fn record(&self, flight: Flight, report: Report) -> Reply<Result<Delivery, StoreFault>> {
        let policy = self.terms.policy;
        let recorded = self.with(|connection, tidings| {
            rows::record(connection, &flight, &report, policy, tidings)
        });
        Reply::ready(recorded.map(|recorded| recorded.unwrap_or(flight.delivery)))
    }

    fn give_back(&self, flights: Vec<Flight>) -> Reply<Result<(), StoreFault>> {
        Reply::ready(self.with(|connection, _| rows::give_back(connection, &flights)))
    }

    fn to_tell(&self, limit: usize) -> Reply<Result<Vec<Delivery>, StoreFault>> {
        Reply::ready(self.with(|connection, tidings| rows::to_tell(connection, limit, tidings.now)))
    }

    fn told(&self, delivery: Delivery, heard: bool) -> Reply<Result<(), StoreFault>> {
        let policy = self.terms.policy;
        Reply::ready(
            self.with(|connection, tidings| {
                rows::told(connection, &delivery, heard, policy, tidings)
            }),
        )
    }

    fn get(&self, id: DeliveryId) -> Reply<Result<Option<Delivery>, StoreFault>> {
        Reply::ready(self.with(|connection, _| rows::get(connection, id)))
    }

    fn list(&self, filter: Filter) -> Reply<Result<Page, StoreFault>> {
        Reply::ready(self.with(|connection, _| rows::list(connection, &filter)))
    }

    fn word(&self, id: DeliveryId, word: Word) -> Reply<Result<Delivery, WordFault>> {
        let said = self.with(|connection, tidings| rows::word(connection, id, &word, tidings));
        Reply::ready(said.map_err(WordFault::from).and_then(|said| said))
    }

    fn stats(&self) -> Reply<Result<Stats, StoreFault>> {
        Reply::ready(self.with(|connection, tidings| rows::stats(connection, tidings.now)))
    }

    fn sweep(&self, limit: usize) -> Reply<Result<u64, StoreFault>> {
        let Terms { keep, policy, .. } = self.terms;
        Reply::ready(self.with(|connection, tidings| {
            let now = tidings.now;
            let before = now.checked_sub(keep).unwrap_or(SystemTime::UNIX_EPOCH);
            rows::sweep(connection, before, limit, policy, now)
        }))
    }
}
