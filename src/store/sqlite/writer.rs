//! The writer: one thread that commits in batches and replies afterwards.

use std::ffi::c_int;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::hooks::Wal;
use tokio::sync::oneshot;

use super::batch::{Batch, Job, Ordered, reply};
use super::checkpoint::Checkpointer;
use super::file::{Hold, ProcessLock};
use super::meta::Meta;
use super::open::{self, OpenError, Opening, Options};
use super::waiting::{Order, Waiting};
use super::watermark::Watermark;
use super::{Opened, Shared, StoreError, gone, lock};
use crate::failpoint;

/// Jobs in one batch at most: their replies wait for one another.
pub(super) const BATCH: usize = 256;

/// Jobs that may wait; more are refused. Calls in flight are bounded before this is reached.
pub(super) const QUEUE: usize = 16_384;

/// Memory for pages of the file, while it is small and once it is large.
///
/// Whenever SQLite splits a page it takes page 262,145 for its largest for a while, the one that locks
/// lie on at 1 GiB; in a smaller file the commit then looks through all that is cached for pages behind
/// the file's end. So the cache is small until then, when it holds what matters all the same.
const SMALL_CACHE_KIB: i64 = 4 * 1024;
const CACHE_KIB: i64 = 16 * 1024;
const SMALL_PAGES: i64 = 262_145;

/// Pages in the log at which it is brought back into the file: some 2 MiB. The disk has to take in at once
/// what is brought in, and commits that come meanwhile wait for it.
const CHECKPOINT_PAGES: u64 = 500;

/// How long another program's write may keep the writer waiting.
pub(super) const BUSY: Duration = Duration::from_secs(1);
/// How long a look in the middle may keep it waiting when it has nothing to do.
const BUSY_WHEN_IDLE: Duration = Duration::from_millis(20);

/// Without a job for this long, the log is emptied.
const IDLE: Duration = Duration::from_secs(2);

/// Pauses between tries to open the file again.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(5);

pub(super) struct Writer {
    queue: SyncSender<Order>,
    /// What comes after the close is failed at once: the thread, which fails what is left in the queue, may be
    /// through with that. A job on its way in at that very moment may still be dropped with the queue, and whoever
    /// waits for its reply takes that for the same failure.
    closed: AtomicBool,
}

impl Writer {
    pub(super) fn start(
        options: Options,
        opening: Opening,
        shared: Arc<Shared>,
        checkpointer: Checkpointer,
    ) -> io::Result<Self> {
        let (queue, orders) = sync_channel(QUEUE);
        let Opening {
            connection,
            meta,
            watermark,
            hold,
            lock,
        } = opening;
        let mut work = Work {
            options,
            shared,
            checkpointer,
            meta,
            watermark,
            usable: Some(connection),
            opening: 0,
            undo: Vec::new(),
            damaged: false,
            reopen_at: Instant::now(),
            reopen_pause: REOPEN_PAUSE,
            hold,
            _lock: lock,
        };
        work.count_log_pages();
        std::thread::Builder::new()
            .name("ledger-writer".to_owned())
            .spawn(move || work.run(&orders))?;
        Ok(Self {
            queue,
            closed: AtomicBool::new(false),
        })
    }

    pub(super) fn submit(&self, job: Box<dyn Job>) {
        self.order(Order::Run(Ordered::here(job)));
    }

    pub(super) fn submit_later(&self, job: Box<dyn Job>) {
        self.order(Order::RunLater(Ordered::here(job)));
    }

    fn order(&self, order: Order) {
        let sent = if self.closed.load(Ordering::Acquire) {
            Err(TrySendError::Disconnected(order))
        } else {
            self.queue.try_send(order)
        };
        let (order, error) = match sent {
            Ok(()) => return,
            Err(TrySendError::Full(order)) => (
                order,
                StoreError("too many calls wait for the ledger".to_owned()),
            ),
            Err(TrySendError::Disconnected(order)) => (order, gone()),
        };
        if let Order::Run(ordered) | Order::RunLater(ordered) = order {
            // It never ran: there is nothing to undo.
            ordered.job.failed(&error);
        }
    }

    pub(super) fn close(&self) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        if !self.closed.swap(true, Ordering::AcqRel) {
            // A queue that is full or gone drops the sender, which the receiver hears.
            let _ = self.queue.send(Order::Close(tell));
        }
        told
    }
}

/// The writer's thread.
struct Work {
    options: Options,
    shared: Arc<Shared>,
    checkpointer: Checkpointer,
    meta: Meta,
    watermark: Watermark,
    /// None after a failure, until the file was opened anew.
    usable: Option<Connection>,
    /// Counts failures: see [`Batch::opening`].
    opening: u64,
    undo: Vec<Ordered>,
    /// The file is past what waiting mends.
    damaged: bool,
    reopen_at: Instant,
    reopen_pause: Duration,
    /// None once the log is empty for good, or where the system has no such locks.
    hold: Option<Hold>,
    _lock: ProcessLock,
}

impl Work {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut waiting = Waiting::default();
        loop {
            if waiting.is_empty() {
                match orders.recv_timeout(self.wait()) {
                    Ok(order) => waiting.add(order),
                    Err(RecvTimeoutError::Timeout) => {
                        self.idle();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            while waiting.takes_more()
                && let Ok(order) = orders.try_recv()
            {
                waiting.add(order);
            }
            let jobs = waiting.batch();
            if !jobs.is_empty() {
                self.batch(jobs);
            }
            if let Some(tell) = waiting.closed() {
                self.end();
                // Given back before the reply: whoever waits may open the file again.
                drop(self);
                let _ = tell.send(());
                for order in orders.try_iter() {
                    if let Order::Run(ordered) | Order::RunLater(ordered) = order {
                        ordered.job.failed(&gone());
                    }
                }
                return;
            }
        }
        self.end();
    }

    fn wait(&self) -> Duration {
        if self.usable.is_some() || self.damaged {
            return IDLE;
        }
        self.reopen_at.saturating_duration_since(Instant::now())
    }

    /// Nothing to do: mend what is broken, or empty the log.
    fn idle(&mut self) {
        if self.usable.is_none() {
            self.try_reopen();
            return;
        }
        if self.log_pages() == 0 {
            return;
        }
        let alone = lock(&self.shared.checkpointing);
        if let Some(Err(error)) = self.checkpointer.finished() {
            drop(alone);
            self.after_checkpoint(&error);
            return;
        }
        let Some(connection) = &self.usable else {
            return;
        };
        // A reader in the middle of a look keeps some of it: the next pause will do.
        let _ = connection.busy_timeout(BUSY_WHEN_IDLE);
        let emptied = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| {
            row.get::<_, i64>(0)
        });
        let _ = connection.busy_timeout(BUSY);
        drop(alone);
        match emptied {
            Ok(0) => self.shared.log_pages.store(0, Ordering::Relaxed),
            Ok(_) => {}
            Err(error) => self.after_checkpoint(&error),
        }
    }

    /// Runs jobs in one transaction and replies to them.
    fn batch(&mut self, jobs: Vec<Ordered>) {
        if self.usable.is_none() && Instant::now() >= self.reopen_at {
            self.try_reopen();
        }
        let Some(connection) = self.usable.take() else {
            let trouble = lock(&self.shared.trouble).clone();
            let error =
                StoreError(trouble.unwrap_or_else(|| "the ledger is not usable".to_owned()));
            // None of them ran; some are to be carried out all the same.
            self.fail_all(jobs, &error);
            return;
        };
        let mut jobs = std::mem::take(&mut self.undo)
            .into_iter()
            .chain(jobs)
            .collect::<Vec<_>>();
        match self.commit(&connection, &mut jobs) {
            Ok(()) => {
                self.usable = Some(connection);
                reply(jobs);
                self.after_batch();
            }
            Err(error) => self.fail(connection, jobs, &error),
        }
    }

    fn commit(&mut self, connection: &Connection, jobs: &mut [Ordered]) -> Result<(), Failure> {
        let began = Instant::now();
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        let mut batch = Batch::begun(connection, self.meta.clone(), self.opening);
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let mut jobs = jobs.iter_mut().map(|ordered| &mut ordered.job);
            jobs.try_for_each(|job| job.run(&mut batch))
        }));
        match ran {
            Ok(ran) => ran?,
            Err(_) => return Err(Failure::Panic),
        }
        let Batch {
            mut meta, wrote, ..
        } = batch;
        if !wrote {
            connection.prepare_cached("COMMIT")?.execute(())?;
            return Ok(());
        }
        meta.sequence += 1;
        meta.save(connection)?;
        failpoint::reach("sqlite_before_commit");
        connection.prepare_cached("COMMIT")?.execute(())?;
        failpoint::reach("sqlite_after_commit");
        self.watermark.write(&meta.mark())?;
        failpoint::reach("sqlite_after_watermark");
        self.meta = meta;
        let observer = lock(&self.shared.observer).clone();
        if let Some(observer) = observer {
            observer(began.elapsed());
        }
        Ok(())
    }

    fn after_batch(&mut self) {
        let Some(connection) = &self.usable else {
            return;
        };
        if let Some(brought_in) = self.checkpointer.finished() {
            // The rest, which came while the checkpointer worked.
            let brought_in = brought_in.and_then(|()| {
                let _alone = lock(&self.shared.checkpointing);
                connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))
            });
            // With the cache that it has it works as well.
            let _ = fit_cache(connection);
            if let Err(error) = brought_in {
                self.after_checkpoint(&error);
            }
            return;
        }
        if self.log_pages() >= CHECKPOINT_PAGES {
            self.checkpointer.want();
        }
    }

    /// A part of the log could not be brought into the file. The next time will do, unless a sync of the
    /// file failed: what was brought in before may be lost with it, and SQLite would not bring it in again.
    fn after_checkpoint(&mut self, error: &rusqlite::Error) {
        tracing::warn!(%error, "the ledger's log can't be brought into its file now");
        if !open::is_failed_sync(error) {
            return;
        }
        if let Some(connection) = self.usable.take() {
            self.distrust(connection, &Failure::Checkpoint(error.to_string()));
        }
    }

    /// Nothing of the batch counts. What is on disk of it is found out by opening the file anew.
    fn fail(&mut self, connection: Connection, jobs: Vec<Ordered>, failure: &Failure) {
        let error = self.distrust(connection, failure);
        self.fail_all(jobs, &error);
    }

    fn fail_all(&mut self, jobs: Vec<Ordered>, error: &StoreError) {
        let undone = jobs.into_iter().map(|ordered| ordered.job.failed(error));
        self.undo.extend(undone.flatten().map(Ordered::undo));
    }

    /// Gives the file up until it was opened anew.
    fn distrust(&mut self, connection: Connection, failure: &Failure) -> StoreError {
        self.opening += 1;
        let error = StoreError(failure.to_string());
        tracing::error!(%error, "the ledger failed: nothing is forwarded until it was opened anew");
        self.damaged = failure.is_damage();
        let advice = if self.damaged {
            "; the file is damaged: stop the gate, look into the file with tikigate ledger verify, and put a backup back"
        } else {
            "; the gate keeps trying"
        };
        *lock(&self.shared.trouble) = Some(format!("the ledger can't be written: {error}{advice}"));
        // A rollback of a transaction that is over fails, which is as good.
        let _ = connection.execute_batch("ROLLBACK");
        self.let_go(connection);
        self.reopen_pause = REOPEN_PAUSE;
        self.reopen_at = Instant::now() + self.reopen_pause;
        error
    }

    /// Closes every connection, so that nothing keeps in memory what may not be on disk.
    fn let_go(&self, connection: Connection) {
        let _alone = lock(&self.shared.checkpointing);
        let mut reading = lock(&self.shared.reading);
        reading.take();
        drop(connection);
    }

    fn try_reopen(&mut self) {
        if self.damaged {
            return;
        }
        match self.reopen() {
            Ok((connection, gap)) => {
                if let Some(cause) = gap {
                    tracing::error!(
                        cause,
                        "the ledger may have forgotten: hold routes are in quarantine"
                    );
                }
                tracing::info!("the ledger is usable again");
                *lock(&self.shared.trouble) = None;
                self.usable = Some(connection);
                self.count_log_pages();
                if !self.undo.is_empty() {
                    self.batch(Vec::new());
                }
            }
            Err(error) => {
                self.damaged = !error.may_pass();
                *lock(&self.shared.trouble) = Some(error.to_string());
                tracing::error!(%error, "the ledger can't be opened again");
                self.reopen_pause = (self.reopen_pause * 2).min(REOPEN_PAUSE_MAX);
                self.reopen_at = Instant::now() + self.reopen_pause;
            }
        }
    }

    fn reopen(&mut self) -> Result<(Connection, Option<String>), OpenError> {
        let _alone = lock(&self.shared.checkpointing);
        let mut reading = lock(&self.shared.reading);
        reading.take();
        if !self.options.path.exists() {
            return Err(OpenError::Gone(self.options.path.clone()));
        }
        let (connection, meta) = open::connect(&self.options, open::Log::Anew)?;
        // What went wrong before was with the log that is brought in now.
        let _ = self.checkpointer.finished();
        let io = |error| OpenError::Io {
            path: self.options.watermark.clone(),
            error,
        };
        let (mut watermark, found) = Watermark::open(&self.options.watermark).map_err(io)?;
        let mut opened = Opened::default();
        let meta = open::settle_gap(&connection, meta, &found, &mut opened)
            .map_err(|error| open::understood(&self.options.path, error))?;
        watermark.write(&meta.mark()).map_err(io)?;
        self.watermark = watermark;
        self.meta = meta;
        Ok((connection, opened.gap))
    }

    /// Follows the log's length; with each opening anew.
    fn count_log_pages(&mut self) {
        self.shared.log_pages.store(0, Ordering::Relaxed);
        let Some(connection) = &mut self.usable else {
            return;
        };
        let pages = Arc::clone(&self.shared.log_pages);
        let hooked = connection.wal_hook(Some(move |_: &mut Wal, count: c_int| {
            pages.store(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }));
        if let Err(error) = hooked {
            tracing::warn!(%error, "the ledger's log is only emptied when idle");
        }
    }

    fn log_pages(&self) -> u64 {
        self.shared.log_pages.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        if let Some(connection) = self.usable.take() {
            let _alone = lock(&self.shared.checkpointing);
            lock(&self.shared.reading).take();
            let brought_in = match self.checkpointer.finished() {
                Some(Err(error)) if open::is_failed_sync(&error) => {
                    Err(open::understood(&self.options.path, error))
                }
                _ => open::checkpoint_completely(&connection, &self.options.path),
            };
            match brought_in {
                // Without a log that says something, SQLite may take it away.
                Ok(()) => {
                    self.hold = None;
                    let _ = open::keep_log(&connection, false);
                }
                Err(error) => {
                    tracing::warn!(%error, "the ledger was closed with its log not empty; its next start brings it in");
                }
            }
        }
        *lock(&self.shared.trouble) = Some("the ledger is closed".to_owned());
    }
}

/// Gives the connection as much memory as a file of this size is worth.
pub(super) fn fit_cache(connection: &Connection) -> rusqlite::Result<()> {
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    let cache = if pages < SMALL_PAGES {
        SMALL_CACHE_KIB
    } else {
        CACHE_KIB
    };
    connection.pragma_update(None, "cache_size", -cache)
}

/// Why a batch failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Sql(#[from] rusqlite::Error),
    #[error("the watermark can't be written: {0}")]
    Watermark(#[from] io::Error),
    #[error("its file could not be synced: {0}")]
    Checkpoint(String),
    #[error("a panic in the ledger")]
    Panic,
}

impl Failure {
    fn is_damage(&self) -> bool {
        match self {
            Self::Sql(error) => open::is_damage(error),
            Self::Watermark(_) | Self::Checkpoint(_) | Self::Panic => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::tests::Named;
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn what_comes_after_the_close_fails_at_once_and_what_came_before_stays_in_line() {
        let (queue, orders) = sync_channel(QUEUE);
        let writer = Writer {
            queue,
            closed: AtomicBool::new(false),
        };
        let ends = Arc::new(Mutex::new(Vec::new()));
        let job = |name| {
            let ends = Arc::clone(&ends);
            Box::new(Named { name, ends })
        };
        writer.submit(job(1));
        writer.submit_later(job(2));
        let told = writer.close();
        assert_eq!(*ends.lock().unwrap(), []);
        writer.submit(job(3));
        writer.submit_later(job(4));
        let closed = Some(gone().to_string());
        let failed = [(3, closed.clone()), (4, closed)];
        assert_eq!(*ends.lock().unwrap(), failed);
        let again = writer.close();
        assert!(again.await.is_err(), "nobody replies to a second close");

        let orders: Vec<_> = orders.try_iter().collect();
        assert!(matches!(
            &orders[..],
            [Order::Run(_), Order::RunLater(_), Order::Close(_)]
        ));
        assert_eq!(*ends.lock().unwrap(), failed);
        drop(orders);
        assert!(told.await.is_err());
    }
}
