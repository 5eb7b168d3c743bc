//! Whether what a file holds can be: every record by itself, and all of them together.

use std::collections::HashSet;
use std::sync::Arc;

use rusqlite::{Connection, Row};

use super::answers;
use super::events::EventText;
use super::rows::{self, COLUMNS, Stored, hash, place, week};
use crate::ledger::transition::Entry;
use crate::ledger::{Event, State};
use crate::store::sqlite::{Checked, Meta, Told};

/// Records that are read between two words on how far it is.
const STEP: u64 = 10_000;

/// Checks every record of the file, with the numbers that are kept of them.
///
/// # Errors
/// SQLite's, such as for a page that is damaged.
pub fn check_records(
    connection: &Connection,
    meta: &Meta,
    told: Told<'_>,
) -> rusqlite::Result<Vec<Checked>> {
    let mut each = Checked::new("every record by itself");
    let namespaces = namespaces(connection)?;
    let kept: u64 = meta.counts.iter().sum();
    let mut counts = [0; 4];
    let (mut seen, mut listed_records) = (0, 0);
    let mut select = connection.prepare(&format!(
        "SELECT {COLUMNS}, message_hash, subject_hash, subject_week FROM records ORDER BY id"
    ))?;
    let mut found = select.query(())?;
    while let Some(row) = found.next()? {
        seen += 1;
        match rows::read(row) {
            Ok(stored) => {
                counts[place(stored.entry.record.state)] += 1;
                listed_records += u64::from(stored.listed);
                check(connection, &stored, row, meta, &namespaces, &mut each)?;
            }
            Err(error) => each.fault(error.to_string()),
        }
        if seen % STEP == 0 {
            told(seen, kept.max(seen));
        }
    }
    let mut listed = Checked::new("the answers that were listed");
    let answers: u64 = connection.query_row("SELECT count(*) FROM answers", (), |row| {
        row.get::<_, i64>(0).map(i64::cast_unsigned)
    })?;
    if answers != listed_records {
        listed.fault(format!(
            "there are {answers}, and {listed_records} records have theirs there"
        ));
    }
    Ok(vec![
        each,
        unique(connection)?,
        listed,
        kept_counts(meta, counts),
    ])
}

fn namespaces(connection: &Connection) -> rusqlite::Result<HashSet<Arc<str>>> {
    let mut select = connection.prepare("SELECT name FROM namespaces")?;
    let names = select.query_map((), |row| Ok(Arc::from(row.get::<_, String>(0)?)))?;
    names.collect()
}

fn check(
    connection: &Connection,
    stored: &Stored,
    row: &Row<'_>,
    meta: &Meta,
    namespaces: &HashSet<Arc<str>>,
    checked: &mut Checked,
) -> rusqlite::Result<()> {
    let Stored { entry, events, .. } = stored;
    let record = &entry.record;
    let mut fault = |what: &str| checked.fault(format!("{} {what}", record.id));
    if !(1..meta.next_record).contains(&record.id.0) {
        fault("has a number that was not given yet");
    }
    if row.get::<_, i64>("message_hash")? != stored.message_hash {
        fault("is filed under another key");
    }
    let subject: Option<i64> = row.get("subject_hash")?;
    if subject != entry.subject.as_ref().map(|subject| hash(&subject.id)) {
        fault("is filed under another subject");
    }
    let filed: Option<i64> = row.get("subject_week")?;
    if filed != entry.subject.as_ref().map(|_| week(record.updated_at)) {
        fault("is filed under another week than it last changed in");
    }
    if !namespaces.contains(&record.key.namespace) {
        fault("is of a namespace that has no definition");
    }
    if entry.generation > meta.generation {
        fault("is of a generation that was not there yet");
    }
    for what in state_faults(entry) {
        fault(what);
    }
    if let Some(what) = answers::faults(connection, stored)? {
        fault(&what);
    }
    for what in event_faults(entry, events) {
        fault(what);
    }
    Ok(())
}

/// What a record of its state must have and may not have.
fn state_faults(entry: &Entry) -> Vec<&'static str> {
    let record = &entry.record;
    let mut faults = Vec::new();
    match (record.state, record.answer.is_some()) {
        (State::Done, false) => faults.push("is done and has no answer"),
        (State::Done, true) if entry.request.is_some() => {
            faults.push("is done and its call is still kept");
        }
        (State::Claimed | State::Released | State::Unknown, true) => {
            faults.push("has an answer and is not done");
        }
        _ => {}
    }
    match record.state {
        State::Claimed if record.attempt == 0 => faults.push("is claimed for no attempt"),
        State::Claimed if record.owner.0 == 0 => faults.push("is claimed by nobody"),
        State::Unknown if record.attempt == 0 && !entry.gap && !entry.suspected => {
            faults.push("is held, and nobody can say for what");
        }
        _ => {}
    }
    faults
}

/// What its events must say of a record.
fn event_faults(entry: &Entry, events: &EventText) -> Vec<&'static str> {
    let record = &entry.record;
    if !events.is_whole() {
        return vec!["has events that can't be read"];
    }
    let told = events.told();
    let Some(last) = told.last() else {
        return vec!["has no events"];
    };
    let mut faults = Vec::new();
    if last.state != record.state {
        faults.push("is in another state than its last event says");
    }
    // Answers of attempts that this file forgot are noted as superseded.
    let own = |event: &&Event| !event.cause.starts_with("superseded");
    let newest = told.iter().filter(own).map(|event| event.attempt).max();
    if newest > Some(record.attempt) {
        faults.push("has events of later attempts than it knows of");
    }
    if newest < Some(record.attempt) && !events.has_gap() {
        faults.push("has no event of the attempt that counts");
    }
    let claims = told.iter().filter(|event| event.cause == "claimed").count();
    if claims > record.attempt as usize {
        faults.push("was claimed more often than it counts attempts");
    }
    faults
}

/// Two records of one key would let a message run twice. Where one of them is listed, that is seen at
/// the other.
fn unique(connection: &Connection) -> rusqlite::Result<Checked> {
    let mut checked = Checked::new("one record a key");
    let mut alike = connection.prepare(
        "SELECT message_hash FROM records INDEXED BY records_by_message WHERE listed IS NULL \
         GROUP BY message_hash HAVING count(*) > 1",
    )?;
    let mut twice = connection.prepare(
        "SELECT group_concat('rec-' || id, ' and ') FROM records INDEXED BY records_by_message \
         WHERE message_hash = ?1 AND listed IS NULL GROUP BY namespace, client, message HAVING count(*) > 1",
    )?;
    let mut hashes = alike.query(())?;
    while let Some(hash) = hashes.next()? {
        let mut found = twice.query([hash.get::<_, i64>(0)?])?;
        while let Some(row) = found.next()? {
            checked.fault(format!("{} have the same key", row.get::<_, String>(0)?));
        }
    }
    Ok(checked)
}

fn kept_counts(meta: &Meta, counts: [u64; 4]) -> Checked {
    let mut checked = Checked::new("the numbers of records that are kept");
    for state in State::ALL {
        let (kept, counted) = (meta.counts[place(state)], counts[place(state)]);
        if kept != counted {
            checked.fault(format!(
                "{kept} records are said to be {}, and {counted} are",
                state.as_str()
            ));
        }
    }
    checked
}
