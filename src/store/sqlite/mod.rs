//! The SQLite file of a gate: opened once, written by one thread in batches, read by another.
//!
//! ```text
//! callers ──jobs──▶ writer        collects what gathers while the last batch commits (up to 256)
//!                   │  BEGIN IMMEDIATE · each job's statements · meta (sequence, counts) · COMMIT: one fdatasync
//!                   │  watermark: the sequence, in a file of its own, one fdatasync more
//!                   ▼
//!                   replies       only now
//! callers ──looks─▶ reader        lists and exports, on a connection that never writes
//!                   checkpointer  brings the write-ahead log back into the file, beside the writer
//! ```
//!
//! What can go wrong, and what then holds:
//! - A batch fails as a whole: nothing of it is replied to with success, the connection is closed, and
//!   before anything else is done the file is opened anew and its log checkpointed completely, since
//!   what a failed fsync left in memory must not be taken for what is on disk.
//! - A sync of the file fails while the log is brought into it: what was brought in before may be lost
//!   and SQLite would not bring it in again, so the same is done, and the log is kept for it.
//! - The file is older than the watermark says (restored, rolled back, its log lost): the generation
//!   is raised and the quarantine entered. The same when either of the two is gone or another one's.
//! - Another process has the file: refused, with its process id.

mod backup;
mod batch;
mod checkpoint;
mod doorbell;
mod file;
mod meta;
mod open;
mod permission;
mod reader;
mod restore;
pub mod schema;
mod snapshot;
#[cfg(test)]
mod tests;
mod verify;
mod waiting;
mod watermark;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

pub use backup::{Draft, Told};
pub use batch::{Batch, Job};
pub use meta::{Meta, Quarantine};
pub use open::{OpenError, Options};
pub use restore::{Restored, Restoring};
pub use snapshot::Snapshot;
pub use verify::{Checked, SeenWatermark, check_file, check_watermark};

use checkpoint::Checkpointer;
use reader::Reader;
use writer::Writer;

/// A store that can't do what it is asked now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// The file, in use by this process.
pub struct Database {
    writer: Writer,
    reader: Reader,
    shared: Arc<Shared>,
}

/// What opening a file found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// There was none before.
    pub created: bool,
    /// Why it is in quarantine since now, if it is.
    pub gap: Option<String>,
    /// Things to tell the operator, one sentence each.
    pub warnings: Vec<String>,
}

impl Database {
    /// Opens the file, or makes it, and starts its threads.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was changed then but, perhaps, the lock file.
    pub fn open(options: Options) -> Result<(Self, Opened), OpenError> {
        let (opening, opened) = open::open(&options)?;
        let shared = Arc::new(Shared {
            path: options.path.clone(),
            ..Shared::default()
        });
        let reader = Reader::start(Arc::clone(&shared)).map_err(OpenError::System)?;
        let checkpointer = Checkpointer::start(Arc::clone(&shared)).map_err(OpenError::System)?;
        let writer = Writer::start(options, opening, Arc::clone(&shared), checkpointer)
            .map_err(OpenError::System)?;
        let database = Self {
            writer,
            reader,
            shared,
        };
        Ok((database, opened))
    }

    /// Adds a job to the next batch. Its reply comes in the runtime that this is called in, or from the writer's
    /// thread where there is none.
    pub fn submit(&self, job: Box<dyn Job>) {
        self.writer.submit(job);
    }

    /// The same, behind all that is submitted without waiting.
    pub fn submit_later(&self, job: Box<dyn Job>) {
        self.writer.submit_later(job);
    }

    /// Runs a look on the reader's thread and gives what it says. A look sees what was committed
    /// when it starts.
    pub fn look<T, L>(
        &self,
        look: L,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + use<T, L>
    where
        T: Send + 'static,
        L: FnOnce(&rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        self.reader.submit(Box::new(move |connection| {
            let seen = match connection {
                Ok(connection) => look(connection).map_err(|error| StoreError(error.to_string())),
                Err(error) => Err(error),
            };
            // Nobody may be listening any more.
            let _ = tell.send(seen);
        }));
        async move { told.await.unwrap_or_else(|_| Err(gone())) }
    }

    /// What is wrong with the store now, in a sentence.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.shared.trouble).clone()
    }

    /// Calls `observer` with the time of each durable commit from now on.
    pub fn observe_commits(&self, observer: impl Fn(Duration) + Send + Sync + 'static) {
        *lock(&self.shared.observer) = Some(Arc::new(observer));
    }

    /// Finishes what was submitted, brings the log back into the file and gives the file up. What is
    /// submitted afterwards fails.
    pub fn close(&self) -> impl Future<Output = ()> + Send + use<> {
        let closing = self.writer.close();
        self.reader.close();
        async move {
            // A writer that is gone has closed.
            let _ = closing.await;
        }
    }
}

type Observer = Arc<dyn Fn(Duration) + Send + Sync>;

/// What the threads share.
#[derive(Default)]
struct Shared {
    path: PathBuf,
    trouble: Mutex<Option<String>>,
    observer: Mutex<Option<Observer>>,
    /// Held while a connection beside the writer's is open or being used: whoever opens the file anew
    /// takes both first, so that nobody else keeps the old state of its log alive.
    reading: Mutex<Option<rusqlite::Connection>>,
    checkpointing: Mutex<()>,
    /// Pages in the log after the last commit.
    log_pages: Arc<AtomicU64>,
}

fn gone() -> StoreError {
    StoreError("the store's thread has ended".to_owned())
}

/// What the locks guard is whole at every moment: a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
