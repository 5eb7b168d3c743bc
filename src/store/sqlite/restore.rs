//! A backup put back in a ledger's place.
//!
//! What happened since the backup was taken is not in it: a refund that was sent then is unknown to
//! it. So the restored file has a higher generation than anything before it and is in quarantine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use rusqlite::Connection;

use super::backup::{Draft, Told, io_error, micros, taken_at};
use super::file::{
    ProcessLock, directory_of, give_to_owner_of, lock_path, sync_directory, with_added,
};
use super::meta::Meta;
use super::open::{OpenError, take_lock};
use super::snapshot::Snapshot;
use super::watermark::{Found, Mark, Watermark};

/// A backup on its way into its place. The gate's lock is held; nothing of the gate's is changed yet.
#[derive(Debug)]
pub struct Restoring {
    draft: Draft,
    backup: PathBuf,
    path: PathBuf,
    _lock: ProcessLock,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Why it is in quarantine.
    pub cause: String,
    /// Where the file that was replaced is now; none: there was none.
    pub replaced: Option<PathBuf>,
}

impl Restoring {
    /// Takes the lock of the ledger at `path`, and copies the backup beside it.
    ///
    /// # Errors
    /// A gate runs on it, the backup is no ledger, or the copy can't be written.
    pub fn begin(backup: &Path, path: &Path, told: Told<'_>) -> Result<Self, OpenError> {
        let snapshot = Snapshot::open(backup)?;
        let lock = take_lock(path)?;
        let draft = Draft::copy(&snapshot, path, told)?;
        Ok(Self {
            draft,
            backup: backup.to_path_buf(),
            path: path.to_path_buf(),
            _lock: lock,
        })
    }

    /// The copy, to be looked at before it counts.
    pub fn copy(&self) -> &Path {
        self.draft.path()
    }

    /// Raises the copy's generation, puts it in quarantine and then in its place. What was there is
    /// kept beside it.
    ///
    /// # Errors
    /// A file can't be written; the ledger is then as it was, or without the end of its log, which
    /// its watermark tells.
    pub fn finish(self, watermark: &Path, now: SystemTime) -> Result<Restored, OpenError> {
        let (mut mark_file, found) =
            Watermark::open(watermark).map_err(|error| io_error(watermark, error))?;
        let mark = match found {
            Found::Mark(mark) => Some(mark),
            Found::Nothing | Found::Unreadable => None,
        };
        let before = Snapshot::open(&self.path).and_then(|old| old.meta()).ok();
        let mut told = (String::new(), None);
        self.draft.change(|connection| {
            told = self.quarantine(connection, mark.as_ref(), before.as_ref(), now)?;
            Ok(())
        })?;
        let (cause, meta) = told;
        self.give_to_the_gate(watermark)?;
        let replaced = set_aside(&self.path, now)?;
        self.draft.replace(&self.path)?;
        if let Some(meta) = meta {
            let written = mark_file.write(&meta.mark());
            written.map_err(|error| io_error(watermark, error))?;
        }
        Ok(Restored { cause, replaced })
    }

    /// A restore by root must not leave files that the gate's own user can't open.
    fn give_to_the_gate(&self, watermark: &Path) -> Result<(), OpenError> {
        let directory = directory_of(&self.path);
        let like = if self.path.exists() {
            &self.path
        } else {
            &directory
        };
        for file in [self.draft.path(), &lock_path(&self.path), watermark] {
            give_to_owner_of(like, file).map_err(|error| io_error(file, error))?;
        }
        Ok(())
    }

    /// The cause, and the file's state with it.
    fn quarantine(
        &self,
        connection: &Connection,
        mark: Option<&Mark>,
        before: Option<&Meta>,
        now: SystemTime,
    ) -> rusqlite::Result<(String, Option<Meta>)> {
        let Some(mut meta) = Meta::load(connection)? else {
            return Ok((String::new(), None)); // the copy was looked at: it has one
        };
        let cause = match taken_at(connection)? {
            Some(at) => format!("restored from a backup of {}", time_text(at)),
            None => {
                let last: Option<i64> =
                    connection
                        .query_row("SELECT max(updated_at) FROM records", (), |row| row.get(0))?;
                let last = last.map_or_else(|| "nothing".to_owned(), time_text);
                format!("restored from a copy whose last change was at {last}")
            }
        };
        outgrow(&mut meta, mark, before);
        meta.enter_quarantine(&cause);
        meta.save(connection)?;
        let what = format!("{cause} ({})", self.backup.display());
        let sql = "INSERT INTO journal (at, what) VALUES (?1, ?2)";
        connection.execute(sql, (micros(now), what))?;
        Ok((cause, Some(meta)))
    }
}

/// Raises the file's state above what the ledger in its place ever had, as far as that is known.
fn outgrow(meta: &mut Meta, mark: Option<&Mark>, before: Option<&Meta>) {
    if let Some(mark) = mark {
        meta.outgrow(mark.generation, mark.sequence);
    }
    if let Some(before) = before {
        meta.outgrow(before.generation, before.sequence);
        meta.next_record = meta.next_record.max(before.next_record);
    }
    meta.sequence += 1;
}

/// Keeps the ledger at `path` under another name, with its log.
fn set_aside(path: &Path, now: SystemTime) -> Result<Option<PathBuf>, OpenError> {
    let log = with_added(path, "-wal");
    if !path.exists() && !log.exists() {
        return Ok(None);
    }
    let aside = free_name(path, now);
    if path.exists() {
        // A second name, so that there is a ledger at the first one all the time.
        if fs::hard_link(path, &aside).is_err() {
            fs::rename(path, &aside).map_err(|error| io_error(&aside, error))?;
        }
    }
    // A log that stayed would be taken for the new file's own.
    for added in ["-wal", "-shm", "-journal"] {
        let from = with_added(path, added);
        match fs::rename(&from, with_added(&aside, added)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error(&from, error));
            }
            _ => {}
        }
    }
    sync_directory(&directory_of(path)).map_err(|error| io_error(path, error))?;
    Ok(Some(aside))
}

fn free_name(path: &Path, now: SystemTime) -> PathBuf {
    let stamp = Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH);
    let stamp = stamp.strftime("%Y%m%dT%H%M%SZ");
    let mut name = with_added(path, &format!(".replaced-{stamp}"));
    let mut number = 2;
    while name.exists() {
        name = with_added(path, &format!(".replaced-{stamp}-{number}"));
        number += 1;
    }
    name
}

fn time_text(micros: i64) -> String {
    match Timestamp::from_microsecond(micros) {
        Ok(at) => format!("{at:.0}"),
        Err(_) => "a time that can't be told".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(generation: u64, sequence: u64, next_record: u64) -> Meta {
        let mut meta = Meta::new("id");
        (meta.generation, meta.sequence, meta.next_record) = (generation, sequence, next_record);
        meta
    }

    #[test]
    fn a_restored_file_outgrows_what_was_there() {
        let mark = Mark {
            ledger: "id".to_owned(),
            generation: 3,
            sequence: 12,
        };
        let mut restored = meta(1, 10, 100);
        outgrow(&mut restored, Some(&mark), Some(&meta(2, 11, 9_000)));
        assert_eq!(restored, meta(3, 13, 9_000));
        // How many numbers the file that is gone gave away is not known, but bounded.
        let mut restored = meta(1, 10, 100);
        outgrow(&mut restored, Some(&mark), None);
        assert_eq!(restored, meta(3, 13, 100 + 2 * 256));
        let mut restored = meta(5, 10, 100);
        outgrow(&mut restored, None, None);
        assert_eq!(restored, meta(5, 11, 100));
    }

    #[test]
    fn names_that_are_taken_are_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_795_395_600);
        let first = free_name(&path, now);
        assert!(
            first.ends_with("a.db.replaced-20261123T010000Z"),
            "{first:?}"
        );
        fs::write(&first, "").unwrap();
        assert!(free_name(&path, now).ends_with("a.db.replaced-20261123T010000Z-2"));
    }
}
