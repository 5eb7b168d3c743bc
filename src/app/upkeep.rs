//! The care for a ledger's file: copies of it, copies put back, and a look at whether it is sound.

use std::path::Path;
use std::time::SystemTime;

use crate::config::SqliteStore;
use crate::ledger::check_records;
use crate::store::sqlite::{
    Checked, Draft, OpenError, Restored, Restoring, SeenWatermark, Snapshot, check_file,
    check_watermark,
};

/// What is being done, and how far it is: done, out of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Pages are copied.
    Copying(u64, u64),
    /// SQLite checks the file, which can't be told in parts.
    CheckingFile,
    /// Records are checked.
    CheckingRecords(u64, u64),
}

/// Who is told how far it is.
pub type Told<'t> = &'t mut dyn FnMut(Stage);

/// Why a file could not be copied or put back. Says what to do.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// A file can't be used.
    #[error(transparent)]
    File(#[from] OpenError),
    /// The copy is not what a ledger must be, and so it was thrown away.
    #[error("{}", faulty(.0))]
    Faulty(Vec<Checked>),
}

fn faulty(checked: &[Checked]) -> String {
    let first = checked.iter().flat_map(|checked| &checked.faults).next();
    format!(
        "the copy is not sound, and was thrown away ({}): `tikigate ledger verify` tells all of the \
         original's faults",
        first.map_or("no fault was told", String::as_str)
    )
}

/// Copies the ledger at `source` to `target`, where nothing may be; a gate may be using it. The copy
/// is checked before it appears.
///
/// # Errors
/// See [`UpkeepError`]; nothing is at `target` then.
pub fn backup(
    source: &Path,
    target: &Path,
    now: SystemTime,
    told: Told<'_>,
) -> Result<(), UpkeepError> {
    if target.symlink_metadata().is_ok() {
        return Err(OpenError::Exists(target.to_path_buf()).into());
    }
    let snapshot = Snapshot::open(source)?;
    let draft = Draft::copy(&snapshot, target, &mut |done, all| {
        told(Stage::Copying(done, all));
    })?;
    drop(snapshot);
    draft.note_taken(now)?;
    must_be_sound(draft.path(), told)?;
    Ok(draft.place(target)?)
}

/// Puts the backup in the place of the configuration's ledger, in quarantine and with a generation
/// above all before it. No gate may be using the ledger. The backup is checked before.
///
/// # Errors
/// See [`UpkeepError`].
pub fn restore(
    backup: &Path,
    store: &SqliteStore,
    now: SystemTime,
    told: Told<'_>,
) -> Result<Restored, UpkeepError> {
    let restoring = Restoring::begin(backup, &store.path, &mut |done, all| {
        told(Stage::Copying(done, all));
    })?;
    must_be_sound(restoring.copy(), told)?;
    Ok(restoring.finish(&store.watermark, now)?)
}

/// Checks the file at `path`, against its watermark too where that is given. A gate may be using it.
///
/// # Errors
/// It can't even be looked at.
pub fn verify(
    path: &Path,
    watermark: Option<&Path>,
    told: Told<'_>,
) -> Result<Vec<Checked>, OpenError> {
    let watermark = watermark.map(SeenWatermark::look).transpose()?;
    let snapshot = match Snapshot::open(path) {
        Err(OpenError::Damaged { detail, .. }) => {
            let mut checked = Checked::new("whether SQLite can read the file");
            checked.fault(detail);
            return Ok(vec![checked]);
        }
        opened => opened?,
    };
    told(Stage::CheckingFile);
    let mut checked = check_file(&snapshot)?;
    if checked.iter().any(Checked::is_faulty) {
        // What its rows say can't be relied on.
        return Ok(checked);
    }
    let meta = snapshot.meta()?;
    let records = check_records(snapshot.connection(), &meta, &mut |done, all| {
        told(Stage::CheckingRecords(done, all));
    });
    checked.extend(records.map_err(|error| snapshot.understood(error))?);
    if let Some(watermark) = watermark {
        checked.push(check_watermark(&snapshot, &watermark)?);
    }
    Ok(checked)
}

fn must_be_sound(path: &Path, told: Told<'_>) -> Result<(), UpkeepError> {
    let checked = verify(path, None, told)?;
    if checked.iter().any(Checked::is_faulty) {
        return Err(UpkeepError::Faulty(checked));
    }
    Ok(())
}
