//! A file as it is at one moment, for looks from outside of the gate: nothing of it is changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::file::{LockError, ProcessLock, with_added};
use super::meta::Meta;
use super::open::{self, OpenError, understood};
use super::schema::{self, Schema};

/// How long a look waits for a writer in a moment that allows none beside it.
const BUSY: Duration = Duration::from_secs(5);

/// Between two looks at whether the gate is still there.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Steps of SQLite's between two looks at the clock.
const LOOK_STEPS: i32 = 10_000;

/// A ledger's file, seen as it was when this was opened. A gate may go on writing meanwhile.
///
/// As long as somebody looks, the log that stood there can't be emptied, and without that no gate
/// starts. So a look gives way when the gate that used the file has ended: it is to start again.
#[derive(Debug)]
pub struct Snapshot {
    connection: Connection,
    path: PathBuf,
    schema: Schema,
    /// A gate used the file when this was opened.
    in_use: bool,
}

impl Snapshot {
    /// Opens a ledger's file.
    ///
    /// # Errors
    /// There is none, it is none of ours or a newer one's, or SQLite can't read it.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        if !path.exists() {
            return Err(OpenError::NoFile(path.to_path_buf()));
        }
        open::check_header(path)?;
        let sql = |error| understood(path, error);
        let in_use = is_in_use(path);
        let left_over =
            in_use || fs::metadata(with_added(path, "-wal")).is_ok_and(|log| log.len() > 0);
        let mut connection = connect(path).map_err(sql)?;
        connection.busy_timeout(BUSY).map_err(sql)?;
        // A gate's log is the gate's; one that it left behind stays as evidence, and for its own start.
        let keep = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        connection.set_db_config(keep, left_over).map_err(sql)?;
        let pragmas = "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; \
                       PRAGMA cache_size = -4096; PRAGMA temp_store = MEMORY; \
                       PRAGMA trusted_schema = OFF; PRAGMA query_only = ON; BEGIN";
        connection.execute_batch(pragmas).map_err(sql)?;
        if in_use {
            give_way(&mut connection, path).map_err(sql)?;
        }
        let schema = open::identify(&connection, path)?;
        if schema.version == 0 {
            return Err(OpenError::Foreign {
                path: path.to_path_buf(),
                what: "this file holds no ledger",
            });
        }
        Ok(Self {
            connection,
            path: path.to_path_buf(),
            schema,
            in_use,
        })
    }

    /// Whether the gate is gone that used the file: for long work that SQLite has no part in.
    pub(super) fn must_give_way(&self) -> bool {
        self.in_use && !is_in_use(&self.path)
    }

    /// The process that uses the ledger at `path`, if one does; a process without a number is one
    /// that could not be read.
    ///
    /// # Errors
    /// [`OpenError::Locked`], which names it.
    pub fn must_be_unused(path: &Path) -> Result<(), OpenError> {
        // Without a lock file no gate was ever here, and none is made.
        match ProcessLock::probe(path) {
            Err(LockError::Taken(pid)) => Err(OpenError::Locked {
                path: path.to_path_buf(),
                pid,
            }),
            Ok(()) | Err(LockError::Io(_)) => Ok(()),
        }
    }

    /// The file, in one transaction that only reads.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its schema.
    pub fn schema(&self) -> Schema {
        self.schema
    }

    /// Whether it has all that this program reads.
    pub fn is_readable(&self) -> bool {
        self.schema.revision >= schema::READABLE_FROM
    }

    /// SQLite's error as one about this file.
    pub fn understood(&self, error: rusqlite::Error) -> OpenError {
        understood(&self.path, error)
    }

    /// What holds for the whole file.
    ///
    /// # Errors
    /// SQLite's; or the row is not there.
    pub fn meta(&self) -> Result<Meta, OpenError> {
        let meta = Meta::load(&self.connection).map_err(|error| understood(&self.path, error))?;
        meta.ok_or_else(|| OpenError::Damaged {
            path: self.path.clone(),
            detail: "its own row in the table meta is gone".to_owned(),
        })
    }
}

/// Whether a gate uses the ledger at `path`.
fn is_in_use(path: &Path) -> bool {
    matches!(ProcessLock::probe(path), Err(LockError::Taken(_)))
}

/// Lets SQLite interrupt its own work when the gate is gone that uses the file now. Nobody's lock is
/// tried for that as long as it is held.
fn give_way(connection: &mut Connection, path: &Path) -> rusqlite::Result<()> {
    let path = path.to_path_buf();
    let mut looked = Instant::now();
    let gone = move || {
        if looked.elapsed() < LOOK_EVERY {
            return false;
        }
        looked = Instant::now();
        !is_in_use(&path)
    };
    connection.progress_handler(LOOK_STEPS, Some(gone))
}

/// Writing is allowed only because a file whose log was left behind can't be read otherwise.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let writable = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    match Connection::open_with_flags(path, writable) {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::CannotOpen) => {
            let readable = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            Connection::open_with_flags(path, readable)
        }
        opened => opened,
    }
}
