//! The reader: looks that change nothing, one after the other on a thread and connection of their own.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::{Shared, StoreError, gone, lock, open};

/// Looks that may wait; more are refused.
const QUEUE: usize = 256;

/// A look, given the connection or why there is none.
pub(super) type Look = Box<dyn FnOnce(Result<&Connection, StoreError>) + Send>;

pub(super) struct Reader {
    queue: Mutex<Option<SyncSender<Look>>>,
}

impl Reader {
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (queue, looks) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("ledger-reader".to_owned())
            .spawn(move || read(&shared, &looks))?;
        Ok(Self {
            queue: Mutex::new(Some(queue)),
        })
    }

    pub(super) fn submit(&self, look: Look) {
        let queue = lock(&self.queue).clone();
        let refused = match queue.as_ref().map(|queue| queue.try_send(look)) {
            Some(Ok(())) => return,
            Some(Err(TrySendError::Full(look))) => (
                look,
                StoreError("too many wait to look into the ledger".to_owned()),
            ),
            Some(Err(TrySendError::Disconnected(look))) => (look, gone()),
            // Its sender drops with it, which its receiver hears.
            None => return,
        };
        let (look, error) = refused;
        look(Err(error));
    }

    /// Ends the thread after the looks that wait.
    pub(super) fn close(&self) {
        lock(&self.queue).take();
    }
}

fn read(shared: &Shared, looks: &Receiver<Look>) {
    while let Ok(look) = looks.recv() {
        // The writer takes the connection away when the file is to be opened anew.
        let mut reading = lock(&shared.reading);
        if reading.is_none() {
            match connect(shared) {
                Ok(connection) => *reading = Some(connection),
                Err(error) => {
                    look(Err(StoreError(error.to_string())));
                    continue;
                }
            }
        }
        if let Some(connection) = &*reading {
            look(Ok(connection));
        }
    }
    lock(&shared.reading).take();
}

fn connect(shared: &Shared) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&shared.path, flags)?;
    open::keep_log(&connection, true)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "cache_size", -2048)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}
