//! The checkpointer: brings the write-ahead log back into the file beside the writer, so that no
//! request waits for it.
//!
//! A passive checkpoint takes nothing away from the writer, which goes on appending meanwhile. What it
//! appended is left over; once this thread is done, the writer brings that rest in itself between two
//! batches, which is short, and the next batch starts the log from its beginning again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::{Shared, lock};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const FINISHED: u8 = 2;

pub(super) struct Checkpointer {
    wanted: SyncSender<()>,
    state: Arc<AtomicU8>,
}

impl Checkpointer {
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (wanted, wishes) = sync_channel(1);
        let state = Arc::new(AtomicU8::new(IDLE));
        let told = Arc::clone(&state);
        std::thread::Builder::new()
            .name("ledger-checkpoint".to_owned())
            .spawn(move || work(&shared, &wishes, &told))?;
        Ok(Self { wanted, state })
    }

    /// Asks for a checkpoint, unless one runs or its rest is still to be brought in.
    pub(super) fn want(&self) {
        let idle = self
            .state
            .compare_exchange(IDLE, RUNNING, Ordering::AcqRel, Ordering::Acquire);
        if idle.is_ok() && self.wanted.try_send(()).is_err() {
            self.state.store(IDLE, Ordering::Release);
        }
    }

    /// Whether one has finished since this was asked last.
    pub(super) fn has_finished(&self) -> bool {
        self.state
            .compare_exchange(FINISHED, IDLE, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

fn work(shared: &Shared, wishes: &Receiver<()>, state: &AtomicU8) {
    while wishes.recv().is_ok() {
        let _alone = lock(&shared.checkpointing);
        if let Err(error) = checkpoint(shared) {
            // The log grows until it works again; the writer's own errors are what matters.
            tracing::warn!(%error, "the ledger's log can't be brought into its file now");
        }
        state.store(FINISHED, Ordering::Release);
    }
}

fn checkpoint(shared: &Shared) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&shared.path, flags)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))
}
