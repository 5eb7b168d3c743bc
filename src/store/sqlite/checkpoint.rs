//! The checkpointer: brings the write-ahead log back into the file beside the writer, so that no
//! request waits for it.
//!
//! A passive checkpoint takes nothing away from the writer, which goes on appending meanwhile. What it
//! appended is left over; once this thread is done, the writer brings that rest in itself between two
//! batches, which is short, and the next batch starts the log from its beginning again.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::{Shared, lock, open};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const FINISHED: u8 = 2;

pub(super) struct Checkpointer {
    wanted: SyncSender<()>,
    told: Arc<Told>,
}

/// What the thread tells the writer.
#[derive(Default)]
struct Told {
    state: AtomicU8,
    /// Why the last one failed.
    error: Mutex<Option<rusqlite::Error>>,
}

impl Checkpointer {
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (wanted, wishes) = sync_channel(1);
        let told = Arc::new(Told::default());
        let tell = Arc::clone(&told);
        std::thread::Builder::new()
            .name("ledger-checkpoint".to_owned())
            .spawn(move || work(&shared, &wishes, &tell))?;
        Ok(Self { wanted, told })
    }

    /// Asks for a checkpoint, unless one runs or its rest is still to be brought in.
    pub(super) fn want(&self) {
        if self.told.turns(IDLE, RUNNING) && self.wanted.try_send(()).is_err() {
            self.told.state.store(IDLE, Ordering::Release);
        }
    }

    /// How one ended that has finished since this was asked last.
    pub(super) fn finished(&self) -> Option<rusqlite::Result<()>> {
        if !self.told.turns(FINISHED, IDLE) {
            return None;
        }
        Some(lock(&self.told.error).take().map_or(Ok(()), Err))
    }
}

impl Told {
    fn turns(&self, from: u8, to: u8) -> bool {
        let turned = self
            .state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        turned.is_ok()
    }
}

/// The state is told while the others are still kept out: whoever comes next knows how it ended.
fn work(shared: &Shared, wishes: &Receiver<()>, told: &Told) {
    while wishes.recv().is_ok() {
        let _alone = lock(&shared.checkpointing);
        *lock(&told.error) = checkpoint(shared).err();
        told.state.store(FINISHED, Ordering::Release);
    }
}

fn checkpoint(shared: &Shared) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&shared.path, flags)?;
    open::keep_log(&connection, true)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))
}
