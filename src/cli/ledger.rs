//! `tikigate ledger`: looks into a running gate's ledger and resolves what nobody knows.

mod text;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Value, json};

use self::text::Writer;
use super::admin_client::{AdminClient, AdminOptions};
use super::failure::{Failure, finish};
use super::{exit, terminal};
use crate::clock::Clock;

/// Records that the admin API gives at once.
const PAGE: usize = 500;

/// Records that are looked through for an idempotency key.
const SEARCHED: usize = 10_000;

/// Look into a running gate's ledger, and say what happened where nobody knows
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate ledger list --state unknown\n  \
    tikigate ledger show rec-12\n  \
    tikigate ledger resolve rec-12 --applied --reason \"found in the backend's books\"")]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// Where the gate is
    #[command(flatten)]
    pub admin: AdminOptions,
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
}

/// `ledger list`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate ledger list --state unknown\n  \
    tikigate ledger list --route refund --query 2026-11 --limit 20 --format json")]
pub struct List {
    /// Only records in this state
    #[arg(long, value_parser = ["claimed", "released", "done", "unknown"])]
    pub state: Option<String>,
    /// Only records of this route
    #[arg(long)]
    pub route: Option<String>,
    /// Only records whose idempotency key contains this
    #[arg(long, value_name = "TEXT")]
    pub query: Option<String>,
    /// Only records after this one
    #[arg(long, value_name = "ID")]
    pub after: Option<String>,
    /// Records at most
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// How to print them
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `ledger show`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate ledger show rec-12\n  \
    tikigate ledger show 5f1d7a84-refund-1 --format json")]
pub struct Show {
    /// A record's id, such as rec-12, or its idempotency key where only one record has it
    pub key: String,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `ledger resolve`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        tikigate ledger resolve rec-12 --applied --reason \"found in the backend's books\"\n  \
        tikigate ledger resolve rec-12 --not-applied --reason \"the backend was down\" --by linh\n  \
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
    let client = AdminClient::with_token(&args.admin)?;
    let mut writer = Writer::new(out, client.time_zone(), now);
    match &args.command {
        Command::List(list) => print_list(&client, list, &mut writer)?,
        Command::Show(show) => print_record(&client, show, &mut writer)?,
        Command::Resolve(resolve) => resolve_record(&client, resolve, &mut writer)?,
    }
    Ok(exit::OK)
}

/// A record as the admin API shows it.
#[derive(Clone, Debug, Deserialize)]
struct Record {
    id: String,
    state: String,
    route: String,
    namespace: String,
    client: String,
    key: String,
    fingerprint: String,
    attempt: u32,
    version: u64,
    on_unknown: String,
    created_at: Option<String>,
    updated_at: Option<String>,
    may_run_until: Option<String>,
    expires_at: Option<String>,
    alarmed: bool,
    answer: Option<KeptAnswer>,
    #[serde(default)]
    events: Vec<Event>,
}

#[derive(Clone, Debug, Deserialize)]
struct KeptAnswer {
    status: u16,
    body_bytes: usize,
    body: Option<String>,
    #[serde(default)]
    body_truncated: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct Event {
    at: Option<String>,
    attempt: u32,
    state: String,
    cause: String,
    by: Option<String>,
    reason: Option<String>,
}

fn print_list(client: &AdminClient, list: &List, out: &mut Writer<'_>) -> Result<(), Failure> {
    let limit = usize::try_from(list.limit).unwrap_or(PAGE);
    let (records, next) = fetch(client, list, limit)?;
    if list.format == Format::Json {
        return Ok(out.json(&json!({ "records": records, "next": next }))?);
    }
    out.table(&understand_all(records)?)?;
    if let Some(next) = next {
        out.line(&format!(
            "more records follow: --after {}",
            terminal::escape(&next)
        ))?;
    }
    Ok(())
}

fn print_record(client: &AdminClient, show: &Show, out: &mut Writer<'_>) -> Result<(), Failure> {
    let shown = find(client, &show.key, out)?;
    match show.format {
        Format::Json => out.json(&shown)?,
        Format::Text => out.record(&understand(shown)?)?,
    }
    Ok(())
}

fn resolve_record(
    client: &AdminClient,
    resolve: &Resolve,
    out: &mut Writer<'_>,
) -> Result<(), Failure> {
    let seen = understand(find(client, &resolve.key, out)?)?;
    out.record(&seen)?;
    let mut word = json!({
        "verdict": resolve.verdict.word(),
        "reason": resolve.reason,
        "expected": { "state": seen.state, "attempt": seen.attempt, "version": seen.version },
        "force": resolve.force,
    });
    if let Some(by) = &resolve.by {
        word["by"] = json!(by);
    }
    let path = format!("/api/ledger/{}/resolve", path_segment(&seen.id));
    let now = understand(client.post(&path, &word)?)?;
    out.line("")?;
    out.line(&format!(
        "{} is now {}: {}",
        terminal::escape(&now.id),
        terminal::escape(&now.state),
        resolve.verdict.consequence()
    ))?;
    Ok(())
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

/// The record that a key names: by its id, else the only one with this idempotency key. Several are
/// listed before the failure.
fn find(client: &AdminClient, key: &str, out: &mut Writer<'_>) -> Result<Value, Failure> {
    if is_record_id(key) {
        return show(client, key);
    }
    let wanted = List {
        state: None,
        route: None,
        query: Some(key.to_owned()),
        after: None,
        limit: 0,
        format: Format::Json,
    };
    let (records, next) = fetch(client, &wanted, SEARCHED)?;
    if next.is_some() {
        return Err(Failure::Other(format!(
            "more than {SEARCHED} records have keys that contain this; name the record by its id"
        )));
    }
    let mut records = understand_all(records)?;
    records.retain(|record| record.key == key);
    match records.as_slice() {
        [] => Err(Failure::Other(format!(
            "no record has the key `{}`",
            terminal::escape(key)
        ))),
        [only] => show(client, &only.id),
        several => {
            out.table(several)?;
            Err(Failure::Other(format!(
                "{} records have this key; name one by its id",
                several.len()
            )))
        }
    }
}

fn show(client: &AdminClient, id: &str) -> Result<Value, Failure> {
    Ok(client.get(&format!("/api/ledger/{}", path_segment(id)))?)
}

fn is_record_id(key: &str) -> bool {
    key.strip_prefix("rec-")
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Ids come back from the network: whatever they are, they stay one segment.
fn path_segment(id: &str) -> String {
    form_urlencoded::byte_serialize(id.as_bytes()).collect()
}

/// Up to `limit` records, and the id to go on after if there are more.
fn fetch(
    client: &AdminClient,
    list: &List,
    limit: usize,
) -> Result<(Vec<Value>, Option<String>), Failure> {
    let mut records = Vec::new();
    let mut after = list.after.clone();
    loop {
        let room = (limit - records.len()).min(PAGE);
        let mut page = client.get(&list_path(list, after.as_deref(), room))?;
        let Value::Array(found) = page["records"].take() else {
            return Err(not_understood());
        };
        let next = page["next"].as_str().map(str::to_owned);
        let stuck = found.is_empty() || found.len() > room;
        records.extend(found);
        if next.is_none() || records.len() >= limit {
            return Ok((records, next));
        }
        if stuck {
            return Err(not_understood());
        }
        after = next;
    }
}

fn list_path(list: &List, after: Option<&str>, limit: usize) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    let filters = [
        ("state", list.state.as_deref()),
        ("route", list.route.as_deref()),
        ("q", list.query.as_deref()),
        ("after", after),
    ];
    for (name, value) in filters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.append_pair("limit", &limit.to_string());
    format!("/api/ledger?{}", query.finish())
}

fn understand_all(records: Vec<Value>) -> Result<Vec<Record>, Failure> {
    records.into_iter().map(understand).collect()
}

fn understand(record: Value) -> Result<Record, Failure> {
    Record::deserialize(record).map_err(|_| not_understood())
}

fn not_understood() -> Failure {
    Failure::Other(
        "the gate's answer can't be understood: is it of another version than this command?"
            .to_owned(),
    )
}
