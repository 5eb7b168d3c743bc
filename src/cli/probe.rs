//! `tikigate probe`: asks a running gate whether it is alive or ready, for health checks where there
//! is no HTTP client.

use std::io::{self, Write};
use std::process::ExitCode;

use http::StatusCode;
use serde_json::Value;

use super::admin_client::{AdminClient, Answer, GateOptions};
use super::failure::{Failure, finish};
use super::{exit, terminal};

/// Ask a running gate whether it is alive or ready; exits with 0 if so, with 1 if not
///
/// `live` asks whether the process answers at all. `ready` asks whether it takes calls: it doesn't
/// while it starts or drains, or while its own ledger's store is in trouble. Trouble of the backend
/// or of a ledger that several gates share is shown, but does not make the gate unready.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate probe live\n  \
    tikigate probe ready --admin http://127.0.0.1:9901\n  \
    tikigate probe ready --admin unix:/run/tikigate/admin.sock")]
pub struct Args {
    /// What to ask
    #[arg(value_enum)]
    pub question: Question,
    /// Where the gate is
    #[command(flatten)]
    pub gate: GateOptions,
}

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Question {
    /// Whether the process answers
    Live,
    /// Whether it takes calls
    Ready,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    finish("probe", execute(&args, &mut io::stdout().lock()))
}

/// Asks, tells the answer in one line and what is degraded in further ones, and returns the exit code.
///
/// # Errors
/// The gate can't be asked, or what answers is none.
pub fn execute(args: &Args, out: &mut dyn Write) -> Result<u8, Failure> {
    let client = AdminClient::without_token(&args.gate)?;
    match args.question {
        Question::Live => {
            let answer = client.probe("/livez")?;
            if answer.status != StatusCode::OK {
                return Err(foreign(answer.status));
            }
            writeln!(out, "live")?;
            Ok(exit::OK)
        }
        Question::Ready => {
            let answer = client.probe("/readyz")?;
            let readiness = Readiness::read(&answer).ok_or_else(|| foreign(answer.status))?;
            readiness.tell(out)
        }
    }
}

fn foreign(status: StatusCode) -> Failure {
    Failure::Other(format!(
        "what answers there is not a gate's admin listener: it answered {status}"
    ))
}

/// What `/readyz` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Readiness {
    pub(super) ready: bool,
    pub(super) state: String,
    /// Trouble of its own that makes it unready.
    unready: Option<String>,
    degraded: Vec<String>,
}

impl Readiness {
    /// `None` where it is no gate's answer.
    pub(super) fn read(answer: &Answer) -> Option<Self> {
        if ![StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE].contains(&answer.status) {
            return None;
        }
        Self::from_json(&serde_json::from_slice(&answer.body).ok()?)
    }

    pub(super) fn from_json(body: &Value) -> Option<Self> {
        let degraded = body["degraded"].as_array()?;
        Some(Self {
            ready: body["ready"].as_bool()?,
            state: terminal::escape(body["state"].as_str()?),
            unready: body["unready"].as_str().map(terminal::escape),
            degraded: degraded
                .iter()
                .filter_map(Value::as_str)
                .map(terminal::escape)
                .collect(),
        })
    }

    fn tell(&self, out: &mut dyn Write) -> Result<u8, Failure> {
        let answer = if self.ready { "ready" } else { "not ready" };
        writeln!(out, "{answer}: {}", self.state)?;
        if let Some(trouble) = &self.unready {
            writeln!(out, "unready: {trouble}")?;
        }
        for trouble in &self.degraded {
            writeln!(out, "degraded: {trouble}")?;
        }
        Ok(if self.ready { exit::OK } else { exit::FAILURE })
    }
}
