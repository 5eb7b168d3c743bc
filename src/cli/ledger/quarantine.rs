//! `tikigate ledger quarantine` and `lift-quarantine`.

use serde_json::{Value, json};

use super::Format;
use super::record::not_understood;
use super::text::Writer;
use crate::cli::admin_client::AdminClient;
use crate::cli::failure::Failure;
use crate::cli::terminal::escape;

/// `ledger quarantine`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        tikigate ledger quarantine\n  \
        tikigate ledger quarantine --format json")]
pub struct Quarantine {
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `ledger lift-quarantine`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        tikigate ledger lift-quarantine --reason \"compared with the books up to today\"\n  \
        tikigate ledger lift-quarantine --reason \"the volume was new, no refund had run\" --by linh")]
pub struct LiftQuarantine {
    /// How you know that nothing that the ledger forgot can be sent again; kept in the log
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Who says so, beside the token's holder
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
}

pub(super) fn print(
    client: &AdminClient,
    quarantine: &Quarantine,
    out: &mut Writer<'_>,
) -> Result<(), Failure> {
    let shown = client.get("/api/ledger/quarantine")?;
    if quarantine.format == Format::Json {
        return Ok(out.json(&shown)?);
    }
    match cause(&shown)? {
        None => out.line("no quarantine: keys that the ledger does not know are new")?,
        Some(cause) => {
            out.line(&format!("in quarantine: {}", escape(&cause)))?;
            out.line(
                "on routes that hold, keys that the ledger does not know are held; \
                 tikigate ledger lift-quarantine --reason TEXT ends that",
            )?;
        }
    }
    Ok(())
}

/// Lifts the quarantine that is there now, and no other one.
pub(super) fn lift(
    client: &AdminClient,
    lift: &LiftQuarantine,
    out: &mut Writer<'_>,
) -> Result<(), Failure> {
    let shown = client.get("/api/ledger/quarantine")?;
    let mut word = json!({ "reason": lift.reason });
    if let Some(cause) = cause(&shown)? {
        out.line(&format!("in quarantine: {}", escape(&cause)))?;
        word["expected"] = json!(cause);
    }
    if let Some(by) = &lift.by {
        word["by"] = json!(by);
    }
    client.post("/api/ledger/quarantine/lift", &word)?;
    out.line(
        "lifted: keys that the ledger does not know are new from now on. Those that were asked for \
         meanwhile stay held: tikigate ledger list --state unknown",
    )?;
    Ok(())
}

fn cause(shown: &Value) -> Result<Option<String>, Failure> {
    let quarantined = shown["quarantined"].as_bool().ok_or_else(not_understood)?;
    let cause = shown["cause"].as_str().unwrap_or("no cause was given");
    Ok(quarantined.then(|| cause.to_owned()))
}
