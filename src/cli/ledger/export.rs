//! `tikigate ledger export`: records by when they were first claimed, to compare with Tiki's own books.

mod csv;
mod output;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::Value;

use super::dates::Zone;
use super::pages::{Pages, Wanted, show};
use super::record::{Record, understand};
use crate::cli::admin_client::{AdminClient, ClientError};
use crate::cli::failure::Failure;
use crate::cli::progress::Progress;
use crate::cli::terminal::{escape, escape_json};
use crate::tiki::{PayloadKind, kept_fields};
use output::Output;

/// Records that are asked for at once.
const PAGE: usize = 500;

/// Fields with a column of their own in CSV: those of Tiki's messages. Others, of routes with a
/// payload of their own, stand together in the last column.
fn field_columns() -> Vec<&'static str> {
    let mut columns = Vec::new();
    for kind in [
        PayloadKind::Refund,
        PayloadKind::TransactionIpn,
        PayloadKind::OrderIpn,
    ] {
        for name in kept_fields(kind) {
            if !columns.contains(name) {
                columns.push(*name);
            }
        }
    }
    columns
}

/// `ledger export`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate ledger export --from 2026-11-01 --to 2026-11-30 --out november.csv\n  \
    tikigate ledger export --from 2026-11-23T00:00 --to 2026-11-23T12:00 --format jsonl\n  \
    tikigate ledger export --from 2026-11-23 --to 2026-11-23 --time-zone UTC --route refund\n\n\
    Columns of CSV: id, time (first claimed), changed, route, namespace, client, key, state, held_for, attempt, \
    alarmed, the message's fields, answer_status, resolved_by, and other_fields, a JSON object with \
    fields that have no column. A cell that a spreadsheet would take for a formula gets an \
    apostrophe in front; for programs take jsonl, which has every text as it is.")]
pub struct Export {
    /// From this date or time on, in the ledger's time zone
    #[arg(long, value_name = "DATE")]
    pub from: String,
    /// Up to this date, which counts whole; or up to this time, which doesn't count any more
    #[arg(long, value_name = "DATE")]
    pub to: String,
    /// Only records in this state
    #[arg(long, value_parser = ["claimed", "released", "done", "unknown"])]
    pub state: Option<String>,
    /// Only records of this route
    #[arg(long)]
    pub route: Option<String>,
    /// How to write them
    #[arg(long, value_enum, default_value_t = ExportFormat::Csv)]
    pub format: ExportFormat,
    /// Where to; it appears when it is whole, in place of one that was there. Left out: standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// How records are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// A table for spreadsheets
    Csv,
    /// One JSON object a line, for programs
    Jsonl,
}

/// Writes the records that are wanted, one page in memory at a time.
pub(super) fn export(
    client: &AdminClient,
    export: &Export,
    zone: &Zone,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let (from, until) = (zone.from(&export.from)?, zone.until(&export.to)?);
    if from >= until {
        return Err(Failure::Usage(
            "--from is not before the end of --to: there can be nothing between them".to_owned(),
        ));
    }
    let wanted = Wanted {
        state: export.state.clone(),
        route: export.route.clone(),
        from: Some(from),
        until: Some(until),
        ..Wanted::default()
    };
    let Some(path) = &export.out else {
        let seen = std::io::stdout().is_terminal();
        write_records(client, wanted, export.format, zone, out, seen)?;
        return Ok(());
    };
    let mut file = Output::create(path)?;
    let written = write_records(client, wanted, export.format, zone, &mut file, false)?;
    file.finish()?;
    writeln!(out, "{written} records")?;
    Ok(())
}

fn write_records(
    client: &AdminClient,
    wanted: Wanted,
    format: ExportFormat,
    zone: &Zone,
    out: &mut dyn Write,
    out_is_seen: bool,
) -> Result<u64, Failure> {
    let mut stderr = std::io::stderr();
    let mut progress = Progress::on_stderr(&mut stderr, out_is_seen);
    let mut pages = Pages::new(client, wanted);
    let columns = field_columns();
    let mut written = 0;
    let mut reached = None;
    if format == ExportFormat::Csv {
        csv::write_row(out, &csv::head(&columns))?;
    }
    while let Some(page) = pages.next(PAGE)? {
        for record in page {
            let line = Line::new(client, understand(record)?, zone.shown())?;
            match format {
                ExportFormat::Csv => csv::write_row(out, &line.cells(&columns))?,
                ExportFormat::Jsonl => {
                    let json = serde_json::to_string(&line).map_err(std::io::Error::from)?;
                    writeln!(out, "{}", escape_json(&json))?;
                }
            }
            written += 1;
            reached = line.time;
        }
        progress.tell(|| match (&reached, pages.after()) {
            (Some(time), _) => format!("{written} records so far, up to {time}"),
            (None, Some(after)) => format!("looked through the ledger up to {}", escape(after)),
            (None, None) => "no records so far".to_owned(),
        });
    }
    out.flush()?;
    Ok(written)
}

/// A record as it is exported.
#[derive(Serialize)]
struct Line {
    id: String,
    time: Option<String>,
    changed: Option<String>,
    route: String,
    namespace: String,
    client: String,
    key: String,
    state: String,
    held_for: Option<String>,
    attempt: u32,
    alarmed: bool,
    fields: std::collections::BTreeMap<String, String>,
    answer_status: Option<u16>,
    resolved_by: Option<String>,
}

impl Line {
    fn new(client: &AdminClient, record: Record, zone: &TimeZone) -> Result<Self, Failure> {
        let time = |at: &Option<String>| {
            let at: Timestamp = at.as_deref()?.parse().ok()?;
            let local = at.to_zoned_datetime(zone.clone());
            Some(local.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string())
        };
        Ok(Self {
            time: time(&record.created_at),
            changed: time(&record.updated_at),
            resolved_by: resolved_by(client, &record)?,
            id: record.id,
            route: record.route,
            namespace: record.namespace,
            client: record.client,
            key: record.key,
            state: record.state,
            held_for: record.held_for,
            attempt: record.attempt,
            alarmed: record.alarmed,
            fields: record.fields,
            answer_status: record.answer.map(|answer| answer.status),
        })
    }
}

/// Whose word the record's state is. It stands in the events, which a list doesn't show, but only few
/// records rest on somebody's word.
fn resolved_by(client: &AdminClient, record: &Record) -> Result<Option<String>, Failure> {
    if !record.declared {
        return Ok(None);
    }
    match show(client, &record.id) {
        Ok(shown) => Ok(understand(shown)?.declared_by().map(str::to_owned)),
        // Forgotten since it was listed.
        Err(Failure::Client(ClientError::Refused { code, .. })) if code == "not_found" => Ok(None),
        Err(failure) => Err(failure),
    }
}

impl Line {
    fn cells(&self, columns: &[&str]) -> Vec<String> {
        let Self {
            id,
            time,
            changed,
            route,
            namespace,
            client,
            key,
            state,
            held_for,
            attempt,
            alarmed,
            fields,
            answer_status,
            resolved_by,
        } = self;
        let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
        let mut cells = vec![
            id.clone(),
            or_empty(time),
            or_empty(changed),
            route.clone(),
            namespace.clone(),
            client.clone(),
            key.clone(),
            state.clone(),
            or_empty(held_for),
            attempt.to_string(),
            if *alarmed { "yes" } else { "" }.to_owned(),
        ];
        let own = columns.iter().map(|name| fields.get(*name));
        cells.extend(own.map(|text| text.cloned().unwrap_or_default()));
        cells.push(answer_status.map_or_else(String::new, |status| status.to_string()));
        cells.push(or_empty(resolved_by));
        let others: serde_json::Map<_, _> = (fields.iter())
            .filter(|(name, _)| !columns.contains(&name.as_str()))
            .map(|(name, text)| (name.clone(), Value::from(text.as_str())))
            .collect();
        cells.push(if others.is_empty() {
            String::new()
        } else {
            Value::from(others).to_string()
        });
        cells
    }
}
