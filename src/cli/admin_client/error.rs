//! Why a call to a gate came to nothing.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use crate::cli::terminal;

/// Why a call came to nothing. `Display` is what the user reads.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL can't be used.
    #[error("`{url}` is not an admin URL: {why}")]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The token's file can't be used.
    #[error("the admin token in {}: {why}; name its file with --token-file", .path.display())]
    BadTokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What the command line leaves out can't be taken from the configuration.
    #[error(
        "the configuration has problems (tikigate check lists them; --admin URL and --token-file \
         FILE do without it):\n{problem}"
    )]
    BadConfig {
        /// The first of them.
        problem: String,
    },
    /// Nobody listens there.
    #[error(
        "no gate answers at {target}: {why}. Is it running? --admin URL points to another address"
    )]
    NotRunning {
        /// Where it was looked for.
        target: String,
        /// What the system said.
        why: io::Error,
    },
    /// The call took too long.
    #[error("the gate at {target} did not answer within {} s", within.as_secs())]
    TimedOut {
        /// Where it was.
        target: String,
        /// How long it had.
        within: Duration,
    },
    /// The connection broke, or what answered doesn't speak HTTP.
    #[error("the call to {target} broke off: {why}")]
    Broken {
        /// Where it was.
        target: String,
        /// What happened.
        why: String,
    },
    /// The gate refused the call.
    #[error("{}", refusal(.code, .message, .detail))]
    Refused {
        /// Its status.
        status: StatusCode,
        /// The error's stable code.
        code: String,
        /// The error's sentence.
        message: String,
        /// The whole error, with what some codes add.
        detail: Value,
    },
    /// What answered is not a gate's admin listener.
    #[error("what answers at {target} is not a gate's admin listener: {why}")]
    Foreign {
        /// Where it was.
        target: String,
        /// How it showed.
        why: String,
    },
    /// The system refused something that the call needs.
    #[error("the call could not be made: {0}")]
    System(io::Error),
}

fn refusal(code: &str, message: &str, detail: &Value) -> String {
    let message = terminal::escape(message);
    match (code, detail["until"].as_str()) {
        ("unauthorized", _) => {
            "the gate does not know this token; --token-file names another".to_owned()
        }
        ("may_still_run", Some(until)) => {
            let until = terminal::escape(until);
            format!(
                "{message} until {until}: wait, or say --force if you are certain that it is not"
            )
        }
        _ => format!("{message} ({})", terminal::escape(code)),
    }
}
