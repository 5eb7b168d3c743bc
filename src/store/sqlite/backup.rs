//! Copies of a file: out of one that a gate may be using, and back into its place.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use super::file::{directory_of, sync_directory, with_added};
use super::open::{OpenError, understood};
use super::snapshot::Snapshot;

/// Pages that are copied between two words on how far it is: some 4 MiB.
const STEP: i32 = 1024;

/// How long a page that somebody keeps locked is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// The word in a copy's journal that says when it was taken.
const TAKEN: &str = "backup taken";

/// How far a long piece of work is, out of how much.
pub type Told<'t> = &'t mut dyn FnMut(u64, u64);

/// A copy that nobody has seen yet: removed when dropped before it is put in its place.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    placed: bool,
}

impl Draft {
    /// Copies what the snapshot sees into a file beside `target`, page by page, and makes it durable
    /// and whole by itself: no log belongs to it. A gate that writes meanwhile is not held up.
    ///
    /// # Errors
    /// The file can't be written, or the source can't be read.
    pub fn copy(snapshot: &Snapshot, target: &Path, told: Told<'_>) -> Result<Self, OpenError> {
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(format!(".{}.draft", std::process::id()));
        let path = target.with_file_name(name);
        create(&path)?;
        let draft = Self {
            path,
            placed: false,
        };
        let sql = |error| understood(&draft.path, error);
        let mut copy = draft.connect()?;
        // It is made durable as a whole below.
        copy.pragma_update(None, "synchronous", "OFF")
            .map_err(sql)?;
        copy_pages(snapshot, &mut copy, told)?;
        drop(copy);
        // The pages say that a log belongs to the file; this one is to be whole by itself.
        let copy = draft.connect()?;
        copy.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))
            .map_err(sql)?;
        drop(copy);
        draft.sync()?;
        Ok(draft)
    }

    /// Where the copy is for now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes in the copy when it was taken.
    ///
    /// # Errors
    /// It can't be written.
    pub fn note_taken(&self, now: SystemTime) -> Result<(), OpenError> {
        self.change(|connection| {
            let sql = "INSERT INTO journal (at, what) VALUES (?1, ?2)";
            connection.execute(sql, (micros(now), TAKEN)).map(drop)
        })
    }

    /// Changes the copy, durably.
    pub(super) fn change(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), OpenError> {
        let mut connection = self.connect()?;
        let sql = |error| understood(&self.path, error);
        let transaction = connection.transaction().map_err(sql)?;
        change(&transaction).map_err(sql)?;
        transaction.commit().map_err(sql)?;
        drop(connection);
        self.sync()
    }

    /// Puts the copy at `target`, where nothing may be, and makes that durable.
    ///
    /// # Errors
    /// Something is there, or it can't be renamed.
    pub fn place(mut self, target: &Path) -> Result<(), OpenError> {
        // A link, unlike a rename, fails where something is.
        match fs::hard_link(&self.path, target) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(OpenError::Exists(target.to_path_buf()));
            }
            // Some file systems have no links.
            Err(_) if !target.exists() => {
                fs::rename(&self.path, target).map_err(|error| io_error(target, error))?;
                self.placed = true;
            }
            Err(error) => return Err(io_error(target, error)),
        }
        sync_directory(&directory_of(target)).map_err(|error| io_error(target, error))
    }

    /// Puts the copy at `target` in place of what is there.
    pub(super) fn replace(mut self, target: &Path) -> Result<(), OpenError> {
        fs::rename(&self.path, target).map_err(|error| io_error(target, error))?;
        self.placed = true;
        sync_directory(&directory_of(target)).map_err(|error| io_error(target, error))
    }

    fn connect(&self) -> Result<Connection, OpenError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Connection::open_with_flags(&self.path, flags)
            .map_err(|error| understood(&self.path, error))
    }

    fn sync(&self) -> Result<(), OpenError> {
        File::open(&self.path)
            .and_then(|file| file.sync_all())
            .map_err(|error| io_error(&self.path, error))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        // What can't be removed is named so that it is told apart.
        for added in ["", "-journal", "-wal", "-shm"] {
            let _ = fs::remove_file(with_added(&self.path, added));
        }
    }
}

/// When the copy was taken, by its own journal, in microseconds since 1970: `None` where it doesn't say.
pub(super) fn taken_at(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT at FROM journal WHERE what = ?1 ORDER BY rowid DESC LIMIT 1";
    connection
        .query_row(sql, [TAKEN], |row| row.get(0))
        .optional()
}

fn copy_pages(snapshot: &Snapshot, copy: &mut Connection, told: Told<'_>) -> Result<(), OpenError> {
    let sql = |error| understood(snapshot.path(), error);
    // The snapshot's transaction holds over all steps, so that nothing written meanwhile makes them
    // start again.
    let copying = Backup::new(snapshot.connection(), copy).map_err(sql)?;
    let mut waited = Duration::ZERO;
    loop {
        match copying.step(STEP).map_err(sql)? {
            StepResult::Done => return Ok(()),
            StepResult::More => waited = Duration::ZERO,
            _ if waited < PATIENCE => {
                std::thread::sleep(PAUSE);
                waited += PAUSE;
            }
            _ => {
                return Err(OpenError::Checkpoint {
                    path: snapshot.path().to_path_buf(),
                    detail: "it stayed locked while it was copied".to_owned(),
                });
            }
        }
        if snapshot.must_give_way() {
            return Err(OpenError::GaveWay(snapshot.path().to_path_buf()));
        }
        let pages = |number: i32| u64::try_from(number).unwrap_or(0);
        let progress = copying.progress();
        let total = pages(progress.pagecount);
        told(total.saturating_sub(pages(progress.remaining)), total);
    }
}

fn create(path: &Path) -> Result<(), OpenError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|error| io_error(path, error))
}

pub(super) fn io_error(path: &Path, error: io::Error) -> OpenError {
    OpenError::Io {
        path: path.to_path_buf(),
        error,
    }
}

/// The time as rows have it.
pub(super) fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    })
}
