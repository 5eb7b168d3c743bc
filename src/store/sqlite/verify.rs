//! What can be said of a file without knowing what its rows mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::backup::io_error;
use super::meta::Meta;
use super::open::{OpenError, is_damage, understood};
use super::schema;
use super::snapshot::Snapshot;
use super::watermark::{Found, Watermark};

/// Faults of one kind that are told; more are counted.
const TOLD: usize = 20;

type Check = fn(&Snapshot) -> rusqlite::Result<Checked>;

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What.
    pub what: String,
    /// What is wrong, one sentence each; at most some twenty.
    pub faults: Vec<String>,
    /// How many faults there are besides.
    pub more: u64,
}

impl Checked {
    /// Nothing is wrong so far.
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            faults: Vec::new(),
            more: 0,
        }
    }

    /// Adds a fault.
    pub fn fault(&mut self, fault: impl Into<String>) {
        if self.faults.len() < TOLD {
            self.faults.push(fault.into());
        } else {
            self.more += 1;
        }
    }

    /// Whether anything is wrong.
    pub fn is_faulty(&self) -> bool {
        !self.faults.is_empty()
    }
}

/// SQLite's own check of the file, and whether its tables are a ledger's.
///
/// # Errors
/// SQLite can't even look.
pub fn check_file(snapshot: &Snapshot) -> Result<Vec<Checked>, OpenError> {
    let checks: [(&str, Check); 2] = [("the file's structure", integrity), ("the tables", tables)];
    let checked = checks.map(|(what, check)| match check(snapshot) {
        Err(error) if is_damage(&error) => {
            let mut checked = Checked::new(what);
            checked.fault(error.to_string());
            Ok(checked)
        }
        checked => checked.map_err(|error| understood(snapshot.path(), error)),
    });
    checked.into_iter().collect()
}

/// A watermark as it was at one moment.
pub struct SeenWatermark {
    path: PathBuf,
    found: Found,
}

impl SeenWatermark {
    /// Looks at it. To be done before the file is opened: a gate that uses both raises the file first, so
    /// that a file which is looked at later is never behind.
    ///
    /// # Errors
    /// It can't be read.
    pub fn look(path: &Path) -> Result<Self, OpenError> {
        let found = Watermark::look(path).map_err(|error| io_error(path, error))?;
        Ok(Self {
            path: path.to_path_buf(),
            found,
        })
    }
}

/// How the file stands to its watermark.
///
/// # Errors
/// The file can't be read.
pub fn check_watermark(
    snapshot: &Snapshot,
    watermark: &SeenWatermark,
) -> Result<Checked, OpenError> {
    let Meta {
        ledger,
        generation,
        sequence,
        ..
    } = snapshot.meta()?;
    let mut checked = Checked::new(format!("the watermark {}", watermark.path.display()));
    match &watermark.found {
        Found::Nothing => checked.fault("it is not there, or empty"),
        Found::Unreadable => checked.fault("it can't be read"),
        Found::Mark(mark) if *mark.ledger != *ledger => checked.fault(format!(
            "it is of the ledger {}, and the file is {ledger}",
            mark.ledger
        )),
        Found::Mark(mark) if (mark.generation, mark.sequence) > (generation, sequence) => checked
            .fault(format!(
                "the file is behind it: the file is at batch {sequence} of generation {generation}, \
                 and the watermark at {} of {}",
                mark.sequence, mark.generation
            )),
        Found::Mark(_) => {}
    }
    Ok(checked)
}

fn integrity(snapshot: &Snapshot) -> rusqlite::Result<Checked> {
    let mut checked = Checked::new("the file's structure (SQLite's integrity check)");
    let check = format!("PRAGMA integrity_check({})", 2 * TOLD);
    let mut check = snapshot.connection().prepare(&check)?;
    let mut lines = check.query(())?;
    while let Some(line) = lines.next()? {
        let line: String = line.get(0)?;
        for line in line.lines().filter(|line| *line != "ok") {
            checked.fault(line);
        }
    }
    Ok(checked)
}

/// Compares what the file is made of with a new one of its revision.
fn tables(snapshot: &Snapshot) -> rusqlite::Result<Checked> {
    let revision = snapshot.schema().revision;
    if revision > schema::REVISION {
        // A newer program added something; what it is to look like, that one knows.
        return Ok(Checked::new(format!(
            "the tables, of the schema's revision {revision}, which is newer than this program: NOT COMPARED"
        )));
    }
    let mut checked = Checked::new(format!("the tables, of the schema's revision {revision}"));
    let fresh = schema::in_memory(revision)?;
    let wanted = parts(&fresh)?;
    let found = parts(snapshot.connection())?;
    for (name, sql) in &wanted {
        match found.get(name) {
            None => checked.fault(format!("{name} is missing")),
            Some(other) if other != sql => checked.fault(format!("{name} is not what it must be")),
            Some(_) => {}
        }
    }
    for name in found.keys().filter(|name| !wanted.contains_key(*name)) {
        checked.fault(format!("{name} does not belong to a ledger"));
    }
    Ok(checked)
}

/// Tables, indexes, views and triggers by their names, with how they were made.
fn parts(connection: &Connection) -> rusqlite::Result<BTreeMap<String, Option<String>>> {
    let mut select = connection.prepare(
        "SELECT type || ' ' || name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
    )?;
    let parts = select.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
    parts.collect()
}
