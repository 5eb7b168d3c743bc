//! Opening: where the file may lie, whose it is, whether it is ours, and whether it forgot something.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::file::{
    Hold, LockError, ProcessLock, directory_of, lock_path, sync_directory, unsafe_filesystem,
    write_log_again,
};
use super::meta::Meta;
use super::schema::{self, Schema};
use super::watermark::{Found, Mark, Watermark};
use super::{Opened, permission, writer};

/// How a file is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database.
    pub path: PathBuf,
    /// The watermark.
    pub watermark: PathBuf,
    /// A missing database is an error.
    pub require_existing: bool,
    /// A file system that money can't rest on is an error.
    pub safe_filesystem: bool,
    /// An id for a new file: random, of hexadecimal digits.
    pub new_id: String,
}

/// Why a file can't be opened. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{path}: another process uses this ledger{}: stop it first, or give this gate a path of its own",
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Locked {
        /// The database.
        path: PathBuf,
        /// The process.
        pid: Option<u32>,
    },
    /// There is none and there must be one.
    #[error(
        "{0}: there is no ledger, and ledger.require_existing wants one: was its volume lost? Put the ledger \
         or a backup of it back (tikigate ledger restore), or set require_existing = false once to start with an empty one"
    )]
    Missing(PathBuf),
    /// It is not SQLite's, or not a ledger.
    #[error(
        "{path}: {what}: name another path, or put the ledger or a backup of it back (tikigate ledger restore)"
    )]
    Foreign {
        /// The database.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It was made by a newer version.
    #[error(
        "{path}: the ledger has schema version {found}, and this program knows {known}: use a newer tikigate"
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i32,
        /// This program's.
        known: i32,
    },
    /// It lies where it may be lost.
    #[error(
        "{directory}: lies on {what}: a ledger that holds refunds needs a disk of its own. Name a path on a volume, \
         or set ledger.allow_unsafe_filesystem = true if losing it is acceptable"
    )]
    UnsafeFilesystem {
        /// Where.
        directory: PathBuf,
        /// The file system.
        what: &'static str,
    },
    /// It is damaged.
    #[error(
        "{path}: the ledger is damaged ({detail}): keep a copy of it and of its -wal file, look into it with \
         tikigate ledger verify, and put a backup back (tikigate ledger restore)"
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// Its log can't be brought into it.
    #[error(
        "{path}: the ledger's log can't be brought into it ({detail}): does another program have it open?"
    )]
    Checkpoint {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// Its commits would not be durable.
    #[error(
        "{path}: SQLite does not take {what}, without which commits would not be durable: name a path on another file system"
    )]
    NotDurable {
        /// The database.
        path: PathBuf,
        /// What it does not take.
        what: &'static str,
    },
    /// There is no such file.
    #[error("{0}: there is no such file")]
    NoFile(PathBuf),
    /// There is one where a new one is to be made.
    #[error("{0}: is there already, and is not overwritten: name another file")]
    Exists(PathBuf),
    /// A look was given up, so that a gate can start.
    #[error(
        "{0}: the gate that used this ledger has ended meanwhile, and must be let start: try again when it runs"
    )]
    GaveWay(PathBuf),
    /// It went away while it was used.
    #[error(
        "{0}: the ledger's file is gone while the gate runs: stop the gate, and put the file or a backup of it back"
    )]
    Gone(PathBuf),
    /// The system refuses.
    #[error("{path}: {error}{}", permission::advice(.path, .error))]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// SQLite refuses.
    #[error("{path}: {error}")]
    Sql {
        /// The database.
        path: PathBuf,
        /// What it says.
        error: rusqlite::Error,
    },
    /// The system gave no thread.
    #[error("{0}")]
    System(io::Error),
}

impl OpenError {
    /// Whether trying again later may help: not for a file that is damaged or not ours.
    pub(super) fn may_pass(&self) -> bool {
        !matches!(
            self,
            Self::Foreign { .. }
                | Self::Newer { .. }
                | Self::Damaged { .. }
                | Self::Missing(_)
                | Self::Gone(_)
        )
    }
}

/// What the writer works with.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) connection: Connection,
    pub(super) meta: Meta,
    pub(super) watermark: Watermark,
    pub(super) hold: Option<Hold>,
    pub(super) lock: ProcessLock,
}

/// Opens a file for the first time in this process.
pub(super) fn open(options: &Options) -> Result<(Opening, Opened), OpenError> {
    let path = &options.path;
    let mut opened = Opened::default();
    for directory in [directory_of(path), directory_of(&options.watermark)] {
        check_filesystem(&directory, options.safe_filesystem, &mut opened)?;
    }
    let lock = take_lock(path)?;
    let exists = path.exists();
    if !exists && options.require_existing {
        return Err(OpenError::Missing(path.clone()));
    }
    let (connection, meta) = connect(options, Log::AsFound)?;
    opened.created = !exists;
    let hold = Hold::take(path).map_err(|error| OpenError::Io {
        path: path.clone(),
        error,
    })?;
    if hold.is_none() {
        opened.warnings.push(format!(
            "{} can't be kept from other programs that close it (no open file description locks): open it with \
             nothing but tikigate's own commands while the gate runs",
            path.display()
        ));
    }
    let io = |error| OpenError::Io {
        path: options.watermark.clone(),
        error,
    };
    let (mut watermark, found) = Watermark::open(&options.watermark).map_err(io)?;
    let meta = settle_gap(&connection, meta, &found, &mut opened)
        .map_err(|error| understood(path, error))?;
    watermark.write(&meta.mark()).map_err(io)?;
    let opening = Opening {
        connection,
        meta,
        watermark,
        hold,
        lock,
    };
    Ok((opening, opened))
}

/// Takes the lock of the database at `path` for this process.
pub(super) fn take_lock(path: &Path) -> Result<ProcessLock, OpenError> {
    ProcessLock::take(path).map_err(|error| match error {
        LockError::Taken(pid) => OpenError::Locked {
            path: path.to_path_buf(),
            pid,
        },
        LockError::Io(error) => OpenError::Io {
            path: lock_path(path),
            error,
        },
    })
}

/// How the log is brought into the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Log {
    /// As far as it isn't there yet.
    AsFound,
    /// All of it: what was brought in before may be lost.
    Anew,
}

/// Connects, checks whose file it is, brings its schema up to date, and its log into it.
pub(super) fn connect(options: &Options, log: Log) -> Result<(Connection, Meta), OpenError> {
    let path = &options.path;
    check_header(path)?;
    make_private(path)?;
    let sql = |error| understood(path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(sql)?;
    keep_log(&connection, true).map_err(sql)?;
    connection.busy_timeout(writer::BUSY).map_err(sql)?;
    let found = identify(&connection, path)?;
    if found.version == 0 {
        // Before the first table, or not at all.
        connection
            .pragma_update(None, "auto_vacuum", "INCREMENTAL")
            .map_err(sql)?;
    }
    set_up(&connection).map_err(sql)?;
    assert_durable(&connection, path)?;
    make_log_durable(&connection, path)?;
    schema::migrate(&mut connection, found.revision, &options.new_id).map_err(sql)?;
    let meta = match Meta::load(&connection).map_err(sql)? {
        Some(meta) => meta,
        None => {
            let meta = Meta::new(&options.new_id);
            meta.insert(&connection).map_err(sql)?;
            meta
        }
    };
    if log == Log::Anew {
        assert_log_is_new(&connection, path)?;
    }
    checkpoint_completely(&connection, path)?;
    check_length(&connection, path)?;
    sync_directory(&directory_of(path)).map_err(|error| OpenError::Io {
        path: directory_of(path),
        error,
    })?;
    Ok((connection, meta))
}

/// Whether the log stays when the connection is the last to be closed. Otherwise SQLite brings it into
/// the file, as far as it believes that it isn't there, and takes it away.
pub(super) fn keep_log(connection: &Connection, keep: bool) -> rusqlite::Result<bool> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep)
}

/// What the writing connection is set to.
fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    writer::fit_cache(connection)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // Or a statement is planned anew whenever a value that is bound to it is another one.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// A pragma that doesn't take says nothing: what durability rests on is looked at.
fn assert_durable(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let sql = |error| understood(path, error);
    let mode: String = connection
        .pragma_query_value(None, "journal_mode", |row| row.get(0))
        .map_err(sql)?;
    let synchronous: i64 = connection
        .pragma_query_value(None, "synchronous", |row| row.get(0))
        .map_err(sql)?;
    let wrong = |what| {
        Err(OpenError::NotDurable {
            path: path.to_path_buf(),
            what,
        })
    };
    if !mode.eq_ignore_ascii_case("wal") {
        return wrong("journal_mode = WAL");
    }
    if synchronous != 2 {
        return wrong("synchronous = FULL");
    }
    Ok(())
}

fn check_filesystem(
    directory: &Path,
    must_be_safe: bool,
    opened: &mut Opened,
) -> Result<(), OpenError> {
    let found = unsafe_filesystem(directory).map_err(|error| OpenError::Io {
        path: directory.to_path_buf(),
        error,
    })?;
    match found {
        Some(what) if must_be_safe => Err(OpenError::UnsafeFilesystem {
            directory: directory.to_path_buf(),
            what,
        }),
        Some(what) => {
            let warning = format!("{} lies on {what}", directory.display());
            if !opened.warnings.contains(&warning) {
                opened.warnings.push(warning);
            }
            Ok(())
        }
        None => Ok(()),
    }
}

/// See [`write_log_again`]. Nobody else writes meanwhile.
fn make_log_durable(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let sql = |error| understood(path, error);
    connection.execute_batch("BEGIN IMMEDIATE").map_err(sql)?;
    let written = write_log_again(path);
    connection.execute_batch("ROLLBACK").map_err(sql)?;
    written.map_err(|error| OpenError::Io {
        path: path.to_path_buf(),
        error,
    })
}

/// A file with content that doesn't begin like SQLite's is not touched at all.
pub(super) fn check_header(path: &Path) -> Result<(), OpenError> {
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    let io = |error| OpenError::Io {
        path: path.to_path_buf(),
        error,
    };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    let mut head = [0; 16];
    let read = std::os::unix::fs::FileExt::read_at(&file, &mut head, 0).map_err(io)?;
    // SQLite itself leaves an empty file where it was stopped before its first write.
    if read == 0 || head == *MAGIC {
        return Ok(());
    }
    Err(OpenError::Foreign {
        path: path.to_path_buf(),
        what: "this is no SQLite file",
    })
}

/// Makes the file where there is none, for nobody else to read: it holds messages about money. Its
/// log gets the same mode.
fn make_private(path: &Path) -> Result<(), OpenError> {
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(OpenError::Io {
            path: path.to_path_buf(),
            error,
        }),
    }
}

/// The file's schema.
pub(super) fn identify(connection: &Connection, path: &Path) -> Result<Schema, OpenError> {
    let number = |name: &str| -> Result<i32, OpenError> {
        connection
            .pragma_query_value(None, name, |row| row.get(0))
            .map_err(|error| understood(path, error))
    };
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))
        .map_err(|error| understood(path, error))?;
    if application != schema::APPLICATION_ID && (tables > 0 || application != 0) {
        return Err(OpenError::Foreign {
            path: path.to_path_buf(),
            what: "this is a SQLite file of another program",
        });
    }
    if version > schema::VERSION {
        return Err(OpenError::Newer {
            path: path.to_path_buf(),
            found: version,
            known: schema::VERSION,
        });
    }
    Schema::of(connection, version).map_err(|error| understood(path, error))
}

/// Brings the whole log into the file. Recovery reads the log from the page cache and drops what
/// stands behind a damaged frame, and says nothing of either: what is in the file and synced is what
/// counts, and nothing is served before.
pub(super) fn checkpoint_completely(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let result = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| {
        row.get::<_, i64>(0)
    });
    let detail = match result {
        Ok(0) => return Ok(()),
        Ok(_) => "it is in use".to_owned(),
        Err(error) if is_damage(&error) => return Err(understood(path, error)),
        Err(error) => error.to_string(),
    };
    Err(OpenError::Checkpoint {
        path: path.to_path_buf(),
        detail,
    })
}

/// SQLite's notes of how much of the log was brought in live on while anybody has the file open.
fn assert_log_is_new(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let told: (i64, i64) = connection
        .query_row("PRAGMA wal_checkpoint(NOOP)", (), |row| {
            Ok((row.get(0)?, row.get(2)?))
        })
        .map_err(|error| understood(path, error))?;
    // Not busy, and nothing is in the file.
    if told == (0, 0) {
        return Ok(());
    }
    Err(OpenError::Checkpoint {
        path: path.to_path_buf(),
        detail:
            "a part of it may be lost, and is brought in again once nobody else has the file open"
                .to_owned(),
    })
}

/// A file that is shorter than its header says was cut off; SQLite would notice at the missing page.
fn check_length(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let number = |name: &str| -> rusqlite::Result<i64> {
        connection.pragma_query_value(None, name, |row| row.get(0))
    };
    let sql = |error| understood(path, error);
    let wanted = number("page_count").map_err(sql)? * number("page_size").map_err(sql)?;
    let length = fs::metadata(path)
        .map_err(|error| OpenError::Io {
            path: path.to_path_buf(),
            error,
        })?
        .len();
    if i128::from(length) < i128::from(wanted) {
        return Err(OpenError::Damaged {
            path: path.to_path_buf(),
            detail: format!("it has {length} bytes of {wanted}"),
        });
    }
    Ok(())
}

/// Compares the file with its watermark. Where the file may have forgotten something, its generation
/// is raised above both and the quarantine entered, durably.
pub(super) fn settle_gap(
    connection: &Connection,
    mut meta: Meta,
    found: &Found,
    opened: &mut Opened,
) -> rusqlite::Result<Meta> {
    let Some((cause, mark)) = gap(&meta, found, opened.created) else {
        return Ok(meta);
    };
    if let Some(mark) = mark {
        meta.outgrow(mark.generation, mark.sequence);
    }
    meta.sequence += 1;
    meta.enter_quarantine(&cause);
    meta.save(connection)?;
    opened.gap = Some(cause);
    Ok(meta)
}

fn gap<'m>(meta: &Meta, found: &'m Found, created: bool) -> Option<(String, Option<&'m Mark>)> {
    let mark = match found {
        Found::Mark(mark) => mark,
        // Nothing was ever committed: there is nothing to have forgotten.
        Found::Nothing if meta.sequence == 0 => return None,
        Found::Nothing => {
            let cause =
                "the ledger's watermark is gone: whether the ledger is the newest can't be told";
            return Some((cause.to_owned(), None));
        }
        Found::Unreadable => {
            let cause = "the ledger's watermark can't be read: whether the ledger is the newest can't be told";
            return Some((cause.to_owned(), None));
        }
    };
    let Mark {
        ledger,
        generation,
        sequence,
    } = mark;
    if created {
        let cause = format!(
            "the ledger was gone: its watermark knows of ledger {ledger} with {sequence} batches"
        );
        return Some((cause, Some(mark)));
    }
    if **ledger != *meta.ledger {
        let cause = format!(
            "another ledger was put in place: this is {}, and its watermark knows {ledger}",
            meta.ledger
        );
        return Some((cause, Some(mark)));
    }
    if (*generation, *sequence) > (meta.generation, meta.sequence) {
        let cause = format!(
            "the ledger lost what came last: it is at batch {}, and its watermark at {sequence} (a backup put back, \
             or a lost -wal file)",
            meta.sequence
        );
        return Some((cause, Some(mark)));
    }
    None
}

/// SQLite's error as one of opening.
pub(super) fn understood(path: &Path, error: rusqlite::Error) -> OpenError {
    let path = path.to_path_buf();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::Foreign {
            path,
            what: "this is no SQLite file",
        },
        Some(ErrorCode::OperationInterrupted) => OpenError::GaveWay(path),
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Damaged {
            path,
            detail: error.to_string(),
        },
        _ => OpenError::Sql { path, error },
    }
}

/// What was written before may be lost, though the file still shows it.
pub(super) fn is_failed_sync(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(
        code,
        Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)
    )
}

pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
    )
}
