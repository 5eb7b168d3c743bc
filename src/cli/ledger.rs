//! `tikigate ledger`: looks into a gate's ledger, resolves what nobody knows, and keeps the file.

mod dates;
mod export;
mod list;
mod pages;
mod place;
mod quarantine;
mod record;
mod resolve;
mod text;
mod upkeep;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

pub(super) use self::dates::Zone;
pub use self::export::{Export, ExportFormat};
pub use self::list::{List, Show};
pub(super) use self::pages::path_segment;
use self::place::Place;
pub use self::quarantine::{LiftQuarantine, Quarantine};
pub(super) use self::record::not_understood;
pub use self::resolve::{Reopen, Resolve, Verdict};
pub(super) use self::text::{Writer, align};
pub use self::upkeep::{Backup, Restore, Verify};
use super::admin_client::AdminOptions;
use super::exit;
use super::failure::{Failure, finish};
use crate::clock::Clock;

/// Look into a gate's ledger, and say what happened where nobody knows
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate ledger list --state unknown\n  \
    tikigate ledger show rec-12\n  \
    tikigate ledger resolve rec-12 --applied --reason \"found in the backend's books\"\n  \
    tikigate ledger export --from 2026-11-01 --to 2026-11-30 --out november.csv")]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// Where the gate is
    #[command(flatten)]
    pub admin: AdminOptions,
    /// Time zone of dates, such as Asia/Ho_Chi_Minh or UTC. Left out: the configuration's
    #[arg(long, value_name = "ZONE", global = true)]
    pub time_zone: Option<String>,
    /// The file of a ledger whose gate is stopped, or a backup, in place of a gate. To change it, the
    /// configuration whose ledger it is is needed as well
    #[arg(long, value_name = "DB", global = true, conflicts_with_all = ["admin", "token_file"])]
    pub file: Option<PathBuf>,
}

/// What to do with the ledger.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// List records
    List(List),
    /// Show one record with its events and its kept answer
    Show(Show),
    /// Say what became of a record whose outcome is unknown
    ///
    /// The record is shown first, and resolved only if it has not changed since. The name of the
    /// token's holder and the reason are kept with it.
    Resolve(Resolve),
    /// Take back what a person or a probe said of a record, so that it is unknown again
    ///
    /// What Tiki was told meanwhile stays told: a refund that was answered 200 is not asked for again.
    Reopen(Reopen),
    /// Show whether the ledger may have forgotten something, and why
    Quarantine(Quarantine),
    /// Say that nothing that the ledger may have forgotten can be sent again
    ///
    /// After a restore, a rollback or a loss, keys that the ledger does not know are held on routes
    /// that hold. This ends that; keys that were asked for meanwhile stay held until each is resolved.
    LiftQuarantine(LiftQuarantine),
    /// Write records as a table or as JSON lines, to compare with Tiki's own books
    Export(Export),
    /// Copy the ledger's file, also while the gate runs
    ///
    /// The copy is checked before it appears. It is the ledger of the configuration, or --file.
    Backup(Backup),
    /// Put a backup in the place of the configuration's ledger; its gate must be stopped
    ///
    /// What happened after the backup was taken is not in it: so the ledger is in quarantine
    /// afterwards, and refunds that it does not know are held. What was there is kept beside it.
    Restore(Restore),
    /// Check a ledger's file or a backup; exits with 1 if it has faults
    Verify(Verify),
}

impl Command {
    /// Whether it changes the ledger.
    fn changes(&self) -> bool {
        matches!(
            self,
            Command::Resolve(_) | Command::Reopen(_) | Command::LiftQuarantine(_)
        )
    }
}

/// How records are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For eyes
    Text,
    /// For programs: what the admin API says
    Json,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let now = Clock::system().now();
    finish("ledger", execute(&args, now, &mut io::stdout().lock()))
}

/// Does what `args` say, writes what there is to see, and returns the exit code. `now` is what ages
/// are counted to.
///
/// # Errors
/// The gate can't be asked or refuses, or the key names no record or several.
pub fn execute(args: &Args, now: SystemTime, out: &mut dyn Write) -> Result<u8, Failure> {
    let config = args.admin.gate.config.as_deref();
    match &args.command {
        Command::Backup(backup) => {
            only_files(args)?;
            return upkeep::backup(backup, args.file.as_deref(), config, now, out);
        }
        Command::Restore(restore) => {
            only_files(args)?;
            no_file(args, "the configuration names the ledger's place")?;
            return upkeep::restore(restore, config, now, out);
        }
        Command::Verify(verify) => {
            only_files(args)?;
            no_file(args, "name the file itself")?;
            return upkeep::verify(verify, config, out);
        }
        _ => {}
    }
    let place = Place::find(args)?;
    let client = &place.client;
    let zone = Zone::choose(args.time_zone.as_deref(), client.time_zone())?;
    if let Command::Export(export) = &args.command {
        export::export(client, export, &zone, out)?;
        return Ok(exit::OK);
    }
    let mut writer = Writer::new(out, zone.shown(), now);
    match &args.command {
        Command::List(list) => list::print_list(client, list, &zone, &mut writer)?,
        Command::Show(show) => list::print_record(client, show, &mut writer)?,
        Command::Resolve(resolve) => resolve::resolve(client, resolve, &mut writer)?,
        Command::Reopen(reopen) => resolve::reopen(client, reopen, &mut writer)?,
        Command::Quarantine(shown) => quarantine::print(client, shown, &mut writer)?,
        Command::LiftQuarantine(lift) => quarantine::lift(client, lift, &mut writer)?,
        Command::Export(_) | Command::Backup(_) | Command::Restore(_) | Command::Verify(_) => {}
    }
    Ok(exit::OK)
}

/// What works on files asks no gate.
fn only_files(args: &Args) -> Result<(), Failure> {
    if args.admin.gate.admin.is_some() || args.admin.token_file.is_some() {
        let why =
            "this works on the ledger's file and asks no gate: leave --admin and --token-file out";
        return Err(Failure::Usage(why.to_owned()));
    }
    Ok(())
}

fn no_file(args: &Args, instead: &str) -> Result<(), Failure> {
    if args.file.is_some() {
        return Err(Failure::Usage(format!(
            "--file means nothing here: {instead}"
        )));
    }
    Ok(())
}
