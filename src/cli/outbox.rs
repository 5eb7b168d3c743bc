//! `tikigate outbox`: what was accepted for Tiki and became of it; to try again, or to take back.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::admin_client::{AdminClient, AdminOptions};
use super::exit;
use super::failure::{Failure, finish};
use super::ledger::{Format, Writer, Zone, align, not_understood, path_segment};
use super::terminal::escape;
use crate::clock::Clock;

/// See what the backend posted for Tiki, try it again, or take it back
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate outbox list --state failed\n  \
    tikigate outbox show out-12\n  \
    tikigate outbox retry out-12 --reason \"Tiki has created the transaction now\"\n  \
    tikigate outbox cancel out-12 --reason \"posted for the wrong order\" --by linh")]
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
}

/// What to do with the outbox.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// List deliveries
    List(List),
    /// Show one delivery with what was posted and what happened to it
    Show(Show),
    /// Try a delivery again now: a failed or cancelled one, or one that waits for its next try
    ///
    /// If an earlier try of it may have been taken, Tiki is asked before it is sent.
    Retry(Say),
    /// Take back a delivery that is not at Tiki right now: it is not sent again
    ///
    /// What Tiki has taken already stays taken. Posted again, it is opened again.
    Cancel(Say),
}

/// `outbox list`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate outbox list --state pending\n  \
    tikigate outbox list --transaction 221115TIKIVIP-235784371-1668488254 --format json")]
pub struct List {
    /// Only deliveries in this state
    #[arg(long, value_parser = ["pending", "delivered", "failed", "cancelled", "superseded"])]
    pub state: Option<String>,
    /// Only deliveries about this transaction: Tiki's id of it, or the partner's
    #[arg(long, value_name = "ID")]
    pub transaction: Option<String>,
    /// Only deliveries after this one
    #[arg(long, value_name = "ID")]
    pub after: Option<String>,
    /// Deliveries at most
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// How to print them
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `outbox show`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  tikigate outbox show out-12")]
pub struct Show {
    /// A delivery's id, such as out-12
    pub id: String,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `outbox retry` and `cancel`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate outbox retry out-12 --reason \"Tiki has created the transaction now\"\n  \
    tikigate outbox cancel out-12 --reason \"posted for the wrong order\" --by linh")]
pub struct Say {
    /// A delivery's id, such as out-12
    pub id: String,
    /// Why; kept with the delivery
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Who says so, beside the token's holder
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let now = Clock::system().now();
    finish("outbox", execute(&args, now, &mut io::stdout().lock()))
}

/// Does what `args` say, writes what there is to see, and returns the exit code. `now` is what ages
/// are counted to.
///
/// # Errors
/// The gate can't be asked or refuses.
pub fn execute(args: &Args, now: SystemTime, out: &mut dyn Write) -> Result<u8, Failure> {
    let client = AdminClient::with_token(&args.admin)?;
    let zone = Zone::choose(args.time_zone.as_deref(), client.time_zone())?;
    let mut writer = Writer::new(out, zone.shown(), now);
    match &args.command {
        Command::List(wanted) => list(&client, wanted, &mut writer)?,
        Command::Show(wanted) => {
            let shown = client.get(&path_of(&wanted.id))?;
            match wanted.format {
                Format::Json => writer.json(&shown)?,
                Format::Text => delivery(&shown, &mut writer)?,
            }
        }
        Command::Retry(word) => say(&client, "retry", word, &mut writer)?,
        Command::Cancel(word) => say(&client, "cancel", word, &mut writer)?,
    }
    Ok(exit::OK)
}

/// Deliveries that the admin API gives at once.
const PAGE: usize = 500;

fn list(client: &AdminClient, wanted: &List, out: &mut Writer<'_>) -> Result<(), Failure> {
    let limit = usize::try_from(wanted.limit).unwrap_or(usize::MAX);
    let mut after = wanted.after.clone();
    let mut found: Vec<Value> = Vec::new();
    loop {
        let room = (limit - found.len()).min(PAGE);
        let mut query = form_urlencoded::Serializer::new(String::new());
        let filters = [
            ("state", &wanted.state),
            ("transaction", &wanted.transaction),
            ("after", &after),
        ];
        for (name, value) in filters {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        query.append_pair("limit", &room.to_string());
        let mut page = client.get(&format!("/api/outbox?{}", query.finish()))?;
        let Value::Array(deliveries) = page["deliveries"].take() else {
            return Err(not_understood());
        };
        found.extend(deliveries);
        let next = page["next"].as_str().map(str::to_owned);
        let stands_still = next.is_some() && next == after;
        after = next;
        if after.is_none() || found.len() >= limit || stands_still {
            break;
        }
    }
    if wanted.format == Format::Json {
        return Ok(out.json(&json!({ "deliveries": found, "next": after }))?);
    }
    table(&found, out)?;
    if let Some(after) = after {
        out.line(&format!("more may follow: --after {}", escape(&after)))?;
    }
    Ok(())
}

fn table(deliveries: &[Value], out: &mut Writer<'_>) -> Result<(), Failure> {
    if deliveries.is_empty() {
        return Ok(out.line("no deliveries")?);
    }
    let head = [
        "ID",
        "STATE",
        "TRANSACTION",
        "STATUS",
        "AMOUNT",
        "TRIES",
        "NEXT",
        "POSTED",
        "AGE",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for one in deliveries {
        rows.push([
            text(one, "id"),
            state(one),
            text(one, "tiki_transaction_id"),
            text(one, "status"),
            text(one, "transaction_amount"),
            one["tries"].to_string(),
            match one["next_at"].as_str() {
                Some(at) => out.time(Some(at)),
                None => "-".to_owned(),
            },
            out.time(one["opened_at"].as_str()),
            out.age(one["opened_at"].as_str()),
        ]);
    }
    for line in align(&rows) {
        out.line(&line)?;
    }
    Ok(())
}

fn delivery(shown: &Value, out: &mut Writer<'_>) -> Result<(), Failure> {
    out.line(&format!("{}  {}", text(shown, "id"), state(shown)))?;
    let row = |name: &str, value: String| [name.to_owned(), value];
    let mut rows = vec![
        row("client", text(shown, "client")),
        row("goes to", text(shown, "base_url")),
        row("tiki_transaction_id", text(shown, "tiki_transaction_id")),
        row("transaction_id", text(shown, "transaction_id")),
        row("status", text(shown, "status")),
        row("transaction_amount", text(shown, "transaction_amount")),
        row("tries", shown["tries"].to_string()),
        row("times asked", shown["asks"].to_string()),
        row("posted", out.time(shown["created_at"].as_str())),
        row("opened", out.time(shown["opened_at"].as_str())),
        row("changed", out.time(shown["updated_at"].as_str())),
    ];
    if let Some(step) = shown["next_step"].as_str() {
        let what = match step {
            "ask" => "ask Tiki for the transaction's status",
            _ => "send it",
        };
        let at = out.time(shown["next_at"].as_str());
        rows.push(row("next", format!("{what}, {at}")));
    }
    let noted = [
        ("in_flight", "it is being tried right now"),
        (
            "held",
            "its account is not configured any more: it waits for that",
        ),
        ("maybe_taken", "Tiki may have taken an earlier try"),
        (
            "refund_customer",
            "Tiki refused it for good: refund the customer",
        ),
    ];
    for (key, note) in noted {
        if shown[key] == json!(true) {
            rows.push(row("note", note.to_owned()));
        }
    }
    for line in align(&rows) {
        out.line(&format!("  {line}"))?;
    }
    out.line("  body:")?;
    for line in shown["body"].as_str().unwrap_or_default().lines() {
        out.line(&format!("    {}", escape(line)))?;
    }
    out.line("  events:")?;
    let events = shown["events"].as_array().ok_or_else(not_understood)?;
    let events: Vec<_> = events
        .iter()
        .map(|event| {
            let by = text(event, "by");
            let detail = text(event, "detail");
            let person = match (by.is_empty(), detail.is_empty()) {
                (false, false) => format!("{by}: {detail}"),
                (false, true) => by,
                _ => detail,
            };
            [out.time(event["at"].as_str()), text(event, "what"), person]
        })
        .collect();
    for line in align(&events) {
        out.line(&format!("    {line}"))?;
    }
    Ok(())
}

fn say(client: &AdminClient, what: &str, word: &Say, out: &mut Writer<'_>) -> Result<(), Failure> {
    let mut body = json!({ "reason": word.reason });
    if let Some(by) = &word.by {
        body["by"] = json!(by);
    }
    let now = client.post(&format!("{}/{what}", path_of(&word.id)), &body)?;
    delivery(&now, out)?;
    let consequence = match what {
        "retry" if now["held"] == json!(true) => "it is tried once its account is configured again",
        "retry" => "it is tried now",
        _ => "it is not sent again, unless it is posted again",
    };
    let line = format!(
        "\n{} is now {}: {consequence}",
        text(&now, "id"),
        state(&now)
    );
    Ok(out.line(&line)?)
}

fn path_of(id: &str) -> String {
    format!("/api/outbox/{}", path_segment(id))
}

fn text(value: &Value, key: &str) -> String {
    escape(value[key].as_str().unwrap_or_default())
}

/// The state, and how it came to it where the word alone says too little.
fn state(delivery: &Value) -> String {
    let state = text(delivery, "state");
    match (delivery["outcome"].as_str(), delivery["code"].as_u64()) {
        (Some("refused"), Some(code)) => format!("{state} (refused, code {code})"),
        (Some(outcome), _) if state == "failed" => format!("{state} ({})", escape(outcome)),
        _ if delivery["held"] == json!(true) => format!("{state} (held)"),
        _ => state,
    }
}
