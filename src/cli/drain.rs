//! `tikigate drain`: asks a running gate to finish and go, and waits until it has.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::admin_client::{AdminClient, AdminOptions, ClientError};
use super::exit;
use super::failure::{Failure, finish};
use super::probe::Readiness;

/// Between two looks at a draining gate.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Ask a running gate to finish what is in flight and exit, and wait until it has
///
/// Readiness fails first, then the listener closes, then what is in flight finishes or is recorded
/// as unknown. Meant for a preStop hook.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate drain\n  \
    tikigate drain --within 90 --config /etc/tikigate/tikigate.toml\n  \
    tikigate drain --no-wait --admin http://127.0.0.1:9901 --token-file /run/secrets/admin.token")]
pub struct Args {
    /// Return as soon as the drain has begun
    #[arg(long)]
    pub no_wait: bool,
    /// Seconds to wait until the gate has gone
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 120,
        conflicts_with = "no_wait"
    )]
    pub within: u32,
    /// Where the gate is
    #[command(flatten)]
    pub admin: AdminOptions,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    finish("drain", execute(&args, &mut io::stdout().lock()))
}

/// Starts the drain, waits for its end unless told not to, and returns the exit code.
///
/// # Errors
/// The gate can't be asked, refuses, or is still there when the time is over.
pub fn execute(args: &Args, out: &mut dyn Write) -> Result<u8, Failure> {
    let deadline = Instant::now() + Duration::from_secs(args.within.into());
    let client = AdminClient::with_token(&args.admin)?;
    let begun = client.post("/api/drain", &json!({}))?;
    writeln!(out, "draining")?;
    if args.no_wait {
        return Ok(exit::OK);
    }
    let mut seen_draining = Readiness::from_json(&begun).is_some_and(|gate| is_draining(&gate));
    loop {
        match client.probe("/readyz") {
            Err(ClientError::NotRunning { .. }) => {
                writeln!(out, "the gate has gone")?;
                return Ok(exit::OK);
            }
            // A gate that is busy going may not answer; the next look tells.
            Err(_) => {}
            Ok(answer) => match Readiness::read(&answer) {
                Some(gate) if is_draining(&gate) => seen_draining = true,
                Some(gate) if seen_draining => {
                    writeln!(
                        out,
                        "the gate has gone; another one is there, {}",
                        gate.state
                    )?;
                    return Ok(exit::OK);
                }
                _ => {}
            },
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let waited = args.within;
            return Err(Failure::Other(format!(
                "the gate is still there after {waited} s"
            )));
        }
        thread::sleep(LOOK_EVERY.min(left));
    }
}

fn is_draining(gate: &Readiness) -> bool {
    gate.state == "draining"
}
