//! Records as text.

use std::io::{self, Write};
use std::time::SystemTime;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};
use serde_json::Value;

use super::record::{Event, KeptAnswer, Record};
use crate::cli::terminal::{escape, escape_json};

/// Writes records for a person: times in one zone, nothing that could trick a terminal.
pub(in crate::cli) struct Writer<'a> {
    out: &'a mut dyn Write,
    zone: TimeZone,
    now: Option<Timestamp>,
}

impl<'a> Writer<'a> {
    /// Every time is written with its offset.
    pub(in crate::cli) fn new(out: &'a mut dyn Write, zone: &TimeZone, now: SystemTime) -> Self {
        Self {
            out,
            zone: zone.clone(),
            now: Timestamp::try_from(now).ok(),
        }
    }

    pub(in crate::cli) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    pub(in crate::cli) fn json(&mut self, value: &Value) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        self.line(&escape_json(&text))
    }

    /// One line a record, aligned.
    pub(super) fn table(&mut self, records: &[Record]) -> io::Result<()> {
        if records.is_empty() {
            return self.line("no records");
        }
        let head = ["ID", "STATE", "ROUTE", "KEY", "ATTEMPT", "SINCE", "AGE"];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(records.iter().map(|record| {
            [
                escape(&record.id),
                state(record),
                escape(&record.route),
                escape(&record.key),
                record.attempt.to_string(),
                self.time(record.updated_at.as_deref()),
                self.age(record.updated_at.as_deref()),
            ]
        }));
        for line in align(&rows) {
            self.line(&line)?;
        }
        Ok(())
    }

    /// A whole record.
    pub(super) fn record(&mut self, record: &Record) -> io::Result<()> {
        let Record {
            id,
            state: _,
            route,
            namespace,
            client,
            key,
            fingerprint,
            attempt,
            version,
            on_unknown,
            created_at,
            updated_at,
            may_run_until,
            expires_at,
            alarmed: _,
            fields,
            stale_event,
            possible_duplicate,
            held_for: _,
            declared,
            answer,
            events,
        } = record;
        self.line(&format!("{}  {}", escape(id), state(record)))?;
        let changed = format!(
            "{} ({} ago)",
            self.time(updated_at.as_deref()),
            self.age(updated_at.as_deref())
        );
        let mut rows = vec![
            ["route".to_owned(), escape(route)],
            ["namespace".to_owned(), escape(namespace)],
            ["client".to_owned(), escape(client)],
            ["key".to_owned(), escape(key)],
        ];
        rows.extend((fields.iter()).map(|(name, text)| [escape(name), escape(text)]));
        rows.extend([
            ["money fields".to_owned(), escape(fingerprint)],
            ["attempt".to_owned(), attempt.to_string()],
            ["version".to_owned(), version.to_string()],
            ["on unknown".to_owned(), escape(on_unknown)],
            ["first claimed".to_owned(), self.time(created_at.as_deref())],
            ["changed".to_owned(), changed],
            [
                "may run until".to_owned(),
                self.time(may_run_until.as_deref()),
            ],
            ["kept until".to_owned(), self.time(expires_at.as_deref())],
        ]);
        let noted = [
            (
                stale_event,
                "a newer event about the same was passed on before",
            ),
            (
                possible_duplicate,
                "another message may have moved the same money",
            ),
            (
                declared,
                "its state is somebody's word, not the backend's answer",
            ),
        ];
        let noted = noted.into_iter().filter(|(holds, _)| **holds);
        rows.extend(noted.map(|(_, note)| ["note".to_owned(), note.to_owned()]));
        for line in align(&rows) {
            self.line(&format!("  {line}"))?;
        }
        if let Some(answer) = answer {
            self.answer(answer)?;
        }
        self.events(events)
    }

    fn answer(&mut self, answer: &KeptAnswer) -> io::Result<()> {
        let KeptAnswer {
            status,
            body_bytes,
            body,
            body_truncated,
        } = answer;
        self.line(&format!("  answer: {status}, {body_bytes} bytes"))?;
        for line in body.iter().flat_map(|body| body.lines()) {
            self.line(&format!("    {}", escape(line)))?;
        }
        if *body_truncated {
            self.line("    (cut off here)")?;
        }
        Ok(())
    }

    fn events(&mut self, events: &[Event]) -> io::Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        self.line("  events:")?;
        let rows: Vec<_> = events.iter().map(|event| self.event(event)).collect();
        for line in align(&rows) {
            self.line(&format!("    {line}"))?;
        }
        Ok(())
    }

    fn event(&self, event: &Event) -> [String; 5] {
        let Event {
            at,
            attempt,
            state,
            cause,
            by,
            reason,
        } = event;
        let person = match (by, reason) {
            (Some(by), Some(reason)) => format!("{}: {}", escape(by), escape(reason)),
            (Some(by), None) => escape(by),
            _ => String::new(),
        };
        [
            self.time(at.as_deref()),
            format!("attempt {attempt}"),
            escape(state),
            escape(cause),
            person,
        ]
    }

    pub(in crate::cli) fn time(&self, rfc3339: Option<&str>) -> String {
        match parse(rfc3339) {
            Some(at) => show(&at.to_zoned_datetime(self.zone.clone())),
            None => "?".to_owned(),
        }
    }

    pub(in crate::cli) fn age(&self, since: Option<&str>) -> String {
        match (self.now, parse(since)) {
            (Some(now), Some(since)) => span(now.as_second().saturating_sub(since.as_second())),
            _ => "?".to_owned(),
        }
    }
}

fn parse(rfc3339: Option<&str>) -> Option<Timestamp> {
    rfc3339?.parse().ok()
}

fn show(at: &ZonedDateTime) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%:z").to_string()
}

/// The two largest units. A time ahead, by clocks that differ, is no age.
fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days}d{}h", hours % 24),
        () if hours > 0 => format!("{hours}h{}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m{}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

fn state(record: &Record) -> String {
    let state = escape(&record.state);
    if record.alarmed {
        return format!("{state} (alarm)");
    }
    match record.held_for.as_deref() {
        // What is unknown is unknown for that reason unless it says otherwise.
        None | Some("outcome_unknown") => state,
        Some(hold) => format!("{state} ({})", escape(hold)),
    }
}

/// Rows of cells as lines with aligned columns. Widths are counted in characters, which is right for
/// the alphabets that ids and keys are written in.
pub(in crate::cli) fn align<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> Vec<String> {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; COLUMNS]| {
        let cells = row.iter().zip(widths);
        let padded: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_show_their_two_largest_units() {
        for (seconds, shown) in [
            (-5, "0s"),
            (59, "59s"),
            (60, "1m0s"),
            (3_599, "59m59s"),
            (3_661, "1h1m"),
            (90_000, "1d1h"),
        ] {
            assert_eq!(span(seconds), shown);
        }
    }

    #[test]
    fn times_are_in_the_zone() {
        let mut out = Vec::new();
        let at = Some("2026-11-23T01:02:03.456Z");
        let zone = TimeZone::get("Asia/Ho_Chi_Minh").unwrap();
        let writer = Writer::new(&mut out, &zone, SystemTime::UNIX_EPOCH);
        assert_eq!(writer.time(at), "2026-11-23 08:02:03+07:00");
        assert_eq!(writer.time(Some("soon")), "?");
        let writer = Writer::new(&mut out, &TimeZone::UTC, SystemTime::UNIX_EPOCH);
        assert_eq!(writer.time(at), "2026-11-23 01:02:03+00:00");
    }

    #[test]
    fn columns_are_aligned() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned);
        let lines = align(&[row(["a", "b"]), row(["ccé", ""]), row(["", "d"])]);
        assert_eq!(lines, ["a    b", "ccé", "     d"]);
    }
}
