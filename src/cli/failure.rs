//! How a command that talks to a gate ends.

use std::io::{self, Write};
use std::process::ExitCode;

use super::admin_client::ClientError;
use super::exit;

/// Why such a command came to nothing. `Display` is what the user reads.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The call to the gate failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What was found can't be written.
    #[error("the output can't be written: {0}")]
    Output(#[from] io::Error),
    /// The command line asks for what makes no sense, as a sentence.
    #[error("{0}")]
    Usage(String),
    /// Anything else, as a sentence.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Client(ClientError::BadUrl { .. }) | Failure::Usage(_) => exit::USAGE,
            // Whoever reads the output has seen enough, as `head` does.
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK,
            _ => exit::FAILURE,
        }
    }
}

/// Tells a failure on standard error and returns the exit code.
pub(super) fn finish(command: &str, result: Result<u8, Failure>) -> ExitCode {
    let code = match result {
        Ok(code) => code,
        Err(failure) => {
            let code = failure.exit_code();
            if code != exit::OK {
                // Where standard error is closed, the exit code has to do.
                let _ = writeln!(io::stderr(), "tikigate {command}: {failure}");
            }
            code
        }
    };
    ExitCode::from(code)
}
