//! `tikigate ledger resolve` and `reopen`: what a person says of a record, and takes back.

use std::time::Duration;

use serde_json::{Value, json};

use super::pages::{find, path_segment, show};
use super::record::{Record, not_understood, understand};
use super::text::Writer;
use crate::cli::admin_client::{AdminClient, ClientError};
use crate::cli::failure::Failure;
use crate::cli::terminal::escape;

/// How long a word may take, and one that sends a call: the gate itself stops waiting before.
const SAY_WITHIN: Duration = Duration::from_secs(15);
const SEND_WITHIN: Duration = Duration::from_secs(60);

/// `ledger resolve`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        tikigate ledger resolve rec-12 --applied --reason \"found in the backend's books\"\n  \
        tikigate ledger resolve rec-12 --not-applied --reason \"the backend was down\" --by linh\n  \
        tikigate ledger resolve rec-12 --not-applied --send-now --reason \"Tiki has stopped asking\"\n  \
        tikigate ledger resolve rec-12 --rejected --reason \"the order was paid out by hand\"")]
pub struct Resolve {
    /// A record's id, such as rec-12, or its idempotency key where only one record has it
    pub key: String,
    /// What happened
    #[command(flatten)]
    pub verdict: Verdict,
    /// How you know; kept with the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Who says so, beside the token's holder
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
    /// With --not-applied: send the call that the ledger kept to the backend at once, since Tiki may
    /// have stopped sending it
    #[arg(long, conflicts_with_all = ["applied", "rejected"])]
    pub send_now: bool,
    /// Say "not applied" although the attempt may still be running: if it is, money may move twice
    #[arg(long, conflicts_with_all = ["applied", "rejected"])]
    pub force: bool,
}

/// What happened to an unknown record; exactly one.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Verdict {
    /// The backend did it: Tiki is answered 200 from now on
    #[arg(long)]
    pub applied: bool,
    /// The backend did not do it: the next time Tiki sends it, it goes to the backend
    #[arg(long)]
    pub not_applied: bool,
    /// It shall not be done: Tiki is answered 500 from now on
    #[arg(long)]
    pub rejected: bool,
}

/// `ledger reopen`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        tikigate ledger reopen rec-12 --reason \"that was the refund of another order\"\n  \
        tikigate ledger reopen rec-12 --reason \"not in the books after all\" --by linh")]
pub struct Reopen {
    /// A record's id, such as rec-12, or its idempotency key where only one record has it
    pub key: String,
    /// Why the word on it was wrong; kept with the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Who says so, beside the token's holder
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
}

pub(super) fn resolve(
    client: &AdminClient,
    resolve: &Resolve,
    out: &mut Writer<'_>,
) -> Result<(), Failure> {
    let seen = understand(find(client, &resolve.key, out)?)?;
    out.record(&seen)?;
    let mut word = word(&seen, &resolve.reason, resolve.by.as_deref());
    word["verdict"] = json!(resolve.verdict.word());
    word["force"] = json!(resolve.force);
    word["send_now"] = json!(resolve.send_now);
    let mut said = say(client, "resolve", &seen, &word, out)?;
    let sent = said["send_now"].take();
    let now = understand(said)?;
    out.line("")?;
    if !resolve.send_now {
        return tell(&now, resolve.verdict.consequence(), out);
    }
    match sent["outcome"].as_str() {
        Some("sent") => {
            let status = sent["status"].as_u64().ok_or_else(not_understood)?;
            let consequence = format!("the kept call was sent and answered {status}");
            tell(&now, &consequence, out)
        }
        Some("running") => {
            let again = format!(
                "the kept call was sent and is not answered yet; see tikigate ledger show {}",
                escape(&now.id)
            );
            tell(&now, &again, out)
        }
        Some("not_sent") => {
            tell(&now, resolve.verdict.consequence(), out)?;
            let why = sent["message"].as_str().unwrap_or_default();
            Err(Failure::Other(format!(
                "it was resolved, but not sent: {}",
                escape(why)
            )))
        }
        _ => Err(not_understood()),
    }
}

pub(super) fn reopen(
    client: &AdminClient,
    reopen: &Reopen,
    out: &mut Writer<'_>,
) -> Result<(), Failure> {
    let seen = understand(find(client, &reopen.key, out)?)?;
    out.record(&seen)?;
    let word = word(&seen, &reopen.reason, reopen.by.as_deref());
    let now = understand(say(client, "reopen", &seen, &word, out)?)?;
    out.line("")?;
    tell(&now, "it is held until somebody resolves it", out)
}

/// A word on what was seen, and on nothing else.
fn word(seen: &Record, reason: &str, by: Option<&str>) -> Value {
    let mut word = json!({
        "reason": reason,
        "expected": { "state": seen.state, "attempt": seen.attempt, "version": seen.version },
    });
    if let Some(by) = by {
        word["by"] = json!(by);
    }
    word
}

/// Says a word; where somebody was faster, the record is shown as it is now.
fn say(
    client: &AdminClient,
    what: &str,
    seen: &Record,
    word: &Value,
    out: &mut Writer<'_>,
) -> Result<Value, Failure> {
    let path = format!("/api/ledger/{}/{what}", path_segment(&seen.id));
    let within = if word["send_now"] == json!(true) {
        SEND_WITHIN
    } else {
        SAY_WITHIN
    };
    match client.post_within(within, &path, word) {
        Ok(said) => Ok(said),
        Err(ClientError::Refused {
            status,
            code,
            message,
            detail,
        }) if code == "conflict" => {
            // Without a second look the refusal alone has to do.
            if let Ok(now) = show(client, &seen.id).and_then(understand) {
                out.line("\nsomebody was faster; it is now:")?;
                out.record(&now)?;
            }
            Err(ClientError::Refused {
                status,
                code,
                message,
                detail,
            }
            .into())
        }
        Err(error) => Err(error.into()),
    }
}

fn tell(now: &Record, consequence: &str, out: &mut Writer<'_>) -> Result<(), Failure> {
    let (id, state) = (escape(&now.id), escape(&now.state));
    Ok(out.line(&format!("{id} is now {state}: {consequence}"))?)
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict { applied: true, .. } => "applied",
            Verdict { rejected: true, .. } => "rejected",
            _ => "not_applied",
        }
    }

    fn consequence(self) -> &'static str {
        match self {
            Verdict { applied: true, .. } => "Tiki is answered 200 from now on",
            Verdict { rejected: true, .. } => "Tiki is answered 500 from now on",
            _ => "the next time Tiki sends it, it goes to the backend",
        }
    }
}
