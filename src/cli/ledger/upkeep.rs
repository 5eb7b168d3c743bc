//! `tikigate ledger backup`, `restore` and `verify`: the care for a ledger's file.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::place::{configured, same_file};
use crate::app::upkeep::{self, Stage};
use crate::cli::exit;
use crate::cli::failure::Failure;
use crate::cli::progress::Progress;
use crate::store::sqlite::Checked;

/// `ledger backup`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        tikigate ledger backup /backup/tikigate-2026-11-23.db\n  \
        tikigate ledger backup /backup/tikigate.db --config /etc/tikigate/tikigate.toml")]
pub struct Backup {
    /// The file to make; it appears when it is whole and checked, and nothing may be there
    #[arg(value_name = "F")]
    pub target: PathBuf,
}

/// `ledger restore`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        tikigate ledger restore /backup/tikigate-2026-11-23.db\n  \
        tikigate ledger restore /backup/tikigate.db --config /etc/tikigate/tikigate.toml")]
pub struct Restore {
    /// A backup
    #[arg(value_name = "F")]
    pub backup: PathBuf,
}

/// `ledger verify`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        tikigate ledger verify /backup/tikigate-2026-11-23.db\n  \
        tikigate ledger verify /var/lib/tikigate/tikigate.db --watermark /var/lib/tikigate/tikigate.mark")]
pub struct Verify {
    /// A ledger's file or a backup
    #[arg(value_name = "F")]
    pub path: PathBuf,
    /// The file's watermark. Left out: the configuration's where F is its ledger, else none
    #[arg(long, value_name = "FILE")]
    pub watermark: Option<PathBuf>,
}

pub(super) fn backup(
    backup: &Backup,
    source: Option<&Path>,
    config: Option<&Path>,
    now: SystemTime,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let source = match source {
        Some(source) => source.to_owned(),
        None => configured(config)?.path,
    };
    with_progress(|told| upkeep::backup(&source, &backup.target, now, told))?;
    let size = std::fs::metadata(&backup.target).map_or(0, |made| made.len());
    writeln!(
        out,
        "{} is a backup of {}: {size} bytes, checked",
        backup.target.display(),
        source.display()
    )?;
    Ok(exit::OK)
}

pub(super) fn restore(
    restore: &Restore,
    config: Option<&Path>,
    now: SystemTime,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let store = configured(config)?;
    let mut restored = None;
    with_progress(|told| {
        restored = Some(upkeep::restore(&restore.backup, &store, now, told)?);
        Ok(())
    })?;
    let path = store.path.display();
    writeln!(out, "{path} is restored from {}", restore.backup.display())?;
    if let Some(restored) = restored {
        if let Some(replaced) = restored.replaced {
            writeln!(out, "what was there is kept as {}", replaced.display())?;
        }
        writeln!(out, "in quarantine: {}", restored.cause)?;
    }
    writeln!(
        out,
        "on routes that hold, keys that the backup does not know are held. Once the gate runs and the \
         backend's books were compared: tikigate ledger lift-quarantine --reason TEXT"
    )?;
    Ok(exit::OK)
}

pub(super) fn verify(
    verify: &Verify,
    config: Option<&Path>,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let watermark = match &verify.watermark {
        Some(watermark) => Some(watermark.clone()),
        // Without a configuration that can be read, the file is looked at by itself.
        None => configured(config)
            .ok()
            .filter(|store| same_file(&store.path, &verify.path))
            .map(|store| store.watermark),
    };
    let mut checked = Vec::new();
    with_progress(|told| {
        let found = upkeep::verify(&verify.path, watermark.as_deref(), told);
        checked = found.map_err(upkeep::UpkeepError::from)?;
        Ok(())
    })?;
    writeln!(out, "{}", verify.path.display())?;
    tell(&checked, out)
}

fn tell(checked: &[Checked], out: &mut dyn Write) -> Result<u8, Failure> {
    let mut faults = 0;
    for Checked {
        what,
        faults: found,
        more,
    } in checked
    {
        let verdict = if found.is_empty() { "ok" } else { "FAULTY" };
        writeln!(out, "{verdict:6}  {what}")?;
        for fault in found {
            writeln!(out, "        {}", crate::cli::terminal::escape(fault))?;
        }
        if *more > 0 {
            writeln!(out, "        and {more} more")?;
        }
        faults += found.len() as u64 + more;
    }
    if faults == 0 {
        writeln!(out, "no faults")?;
        return Ok(exit::OK);
    }
    writeln!(
        out,
        "{faults} faults: keep a copy of the file and of its -wal file, and put a backup back (tikigate ledger restore)"
    )?;
    Ok(exit::FAILURE)
}

/// Does a long piece of work and tells on standard error how far it is.
fn with_progress(
    work: impl FnOnce(upkeep::Told<'_>) -> Result<(), upkeep::UpkeepError>,
) -> Result<(), Failure> {
    let mut stderr = std::io::stderr();
    let mut progress = Progress::on_stderr(&mut stderr, std::io::stdout().is_terminal());
    let worked = work(&mut |stage| match stage {
        Stage::CheckingFile => progress.announce("checking the file's structure"),
        Stage::Copying(done, all) => progress.tell(|| format!("copied {}", part(done, all))),
        Stage::CheckingRecords(done, all) => {
            progress.tell(|| format!("checked {done} of {all} records"));
        }
    });
    worked.map_err(|error| Failure::Other(error.to_string()))
}

fn part(done: u64, all: u64) -> String {
    let percent = done * 100 / all.max(1);
    format!("{percent} % ({done} of {all} pages)")
}
