//! The commands, one file each: its `Args`, and a `run` that returns the exit code.

pub mod admin_client;
pub mod check;
mod core_dumps;
pub mod demo;
pub mod drain;
pub mod failure;
pub mod fake_tiki;
pub mod ledger;
mod message;
pub mod outbox;
pub mod probe;
mod progress;
pub mod serve;
pub mod sign;
mod terminal;
pub mod verify;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

/// Exit codes that scripts may rely on.
pub mod exit {
    /// It worked.
    pub const OK: u8 = 0;
    /// It did not work.
    pub const FAILURE: u8 = 1;
    /// The command line was wrong (sysexits' `EX_USAGE`).
    pub const USAGE: u8 = 64;
    /// The configuration was wrong (sysexits' `EX_CONFIG`).
    pub const CONFIGURATION: u8 = 78;
}

/// Lets only Tiki's signed calls through to a legacy backend, and each refund at most once
#[derive(Debug, clap::Parser)]
#[command(name = "tikigate", version, after_help = "Start with: tikigate demo")]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Serve(serve::Args),
    Check(check::Args),
    Sign(sign::Args),
    Verify(verify::Args),
    Ledger(ledger::Args),
    Outbox(outbox::Args),
    Drain(drain::Args),
    Probe(probe::Args),
    Demo(demo::Args),
    #[command(hide = true)]
    FakeTiki(fake_tiki::Args),
}

/// Runs the command named on the command line and returns its exit code.
pub fn main() -> ExitCode {
    core_dumps::forbid();
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            // Where the terminal is gone, the exit code has to do.
            let _ = error.print();
            return ExitCode::from(match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::OK,
                _ => exit::USAGE,
            });
        }
    };
    match command_line.command {
        Command::Serve(args) => serve::run(args),
        Command::Check(args) => check::run(args),
        Command::Sign(args) => sign::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Ledger(args) => ledger::run(args),
        Command::Outbox(args) => outbox::run(args),
        Command::Drain(args) => drain::run(args),
        Command::Probe(args) => probe::run(args),
        Command::Demo(args) => demo::run(args),
        Command::FakeTiki(args) => fake_tiki::run(args),
    }
}
