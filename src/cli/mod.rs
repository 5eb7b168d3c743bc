//! The commands, one file each: its `Args`, and a `run` that returns the exit code.

use std::process::ExitCode;

pub mod check;

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

/// Runs the command named on the command line and returns its exit code.
pub fn main() -> ExitCode {
    ExitCode::from(exit::OK)
}
