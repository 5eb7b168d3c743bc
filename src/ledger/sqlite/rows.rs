//! Entries as rows of the file, and back.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use rusqlite::{Row, params};
use sha2::{Digest as _, Sha256};

use crate::ledger::texts::{
    fields_of, fields_text, headers_of, headers_text, micros, micros_of, rule_of, rule_text,
    time_of,
};
use crate::ledger::transition::Entry;
use crate::ledger::{
    Event, Fields, Fingerprint, KeptAnswer, KeptRequest, Key, Marks, Owner, Policy, Record,
    RecordId, State, Subject,
};

use super::answers;
use super::events::EventText;
use crate::store::sqlite::Batch;

/// The columns that an entry is made of: [`COLUMNS`] to select them, [`Column`] to get them by place,
/// which costs no look-up of names.
macro_rules! columns {
    ($first:ident $($name:ident)+) => {
        /// What a stored entry is selected as.
        pub(super) const COLUMNS: &str = concat!(stringify!($first), $(", ", stringify!($name)),+);

        /// The record with an id.
        pub(super) const BY_ID: &str = concat!(
            "SELECT ", stringify!($first), $(", ", stringify!($name)),+,
            " FROM records WHERE id = ?1",
        );

        /// The newest records of a week about a subject, by the subject's hash and text, and its client
        /// and namespace.
        pub(super) const BY_SUBJECT: &str = concat!(
            "SELECT ", stringify!($first), $(", ", stringify!($name)),+,
            " FROM records WHERE subject_week = ?1 AND subject_hash = ?2 \
             AND subject = ?3 AND client = ?4 AND namespace = ?5 ORDER BY id DESC LIMIT ?6",
        );

        #[expect(non_camel_case_types, reason = "they are named as in the schema")]
        #[derive(Clone, Copy, Debug)]
        enum Column { $first, $($name),+ }

        impl Column {
            fn name(self) -> &'static str {
                match self {
                    Self::$first => stringify!($first),
                    $(Self::$name => stringify!($name)),+
                }
            }
        }
    };
}

columns!(
    id namespace client message fingerprint state attempt
    version owner policy route created_at updated_at may_run_until
    expires_at keep generation marks absent_since fields subject
    subject_rule answer_status answer_headers answer_body request_headers request_body events listed
);

/// An entry with its events as they are stored.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) entry: Entry,
    pub(super) events: EventText,
    /// The [`hash`] of its message.
    pub(super) message_hash: i64,
    /// The week that its subject is filed under.
    filed: i64,
    /// A program of before has listed its answer: see [`super::answers`].
    pub(super) listed: bool,
}

/// A row that this program did not write, or that was damaged since.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record rec-{id} can't be read: its {column} is not what it must be")]
pub(super) struct Unreadable {
    id: u64,
    column: &'static str,
}

/// What a message or a subject is found by: 8 bytes at random, so that the index stays small. Not a
/// proof of anything: the whole text is compared in the row.
pub(super) fn hash(text: &str) -> i64 {
    let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}

/// The week that a record which last changed its state at this time is filed under, by its subject.
pub(super) fn week(time: SystemTime) -> i64 {
    const WEEK_MICROS: i64 = 7 * 86_400 * 1_000_000;
    micros(time).div_euclid(WEEK_MICROS)
}

/// Reads a row of [`COLUMNS`].
pub(super) fn read(row: &Row<'_>) -> Result<Stored, Unreadable> {
    Reader {
        id: row
            .get::<_, i64>(Column::id as usize)
            .unwrap_or_default()
            .cast_unsigned(),
        row,
    }
    .stored()
}

struct Reader<'r, 's> {
    id: u64,
    row: &'r Row<'s>,
}

impl Reader<'_, '_> {
    fn get<T: rusqlite::types::FromSql>(&self, column: Column) -> Result<T, Unreadable> {
        self.row
            .get(column as usize)
            .map_err(|_| self.unreadable(column))
    }

    fn unreadable(&self, column: Column) -> Unreadable {
        Unreadable {
            id: self.id,
            column: column.name(),
        }
    }

    fn text(&self, column: Column) -> Result<Arc<str>, Unreadable> {
        Ok(Arc::from(self.get::<String>(column)?))
    }

    fn time(&self, column: Column) -> Result<SystemTime, Unreadable> {
        Ok(time_of(self.get(column)?))
    }

    fn number<T: TryFrom<i64>>(&self, column: Column) -> Result<T, Unreadable> {
        let number: i64 = self.get(column)?;
        number.try_into().map_err(|_| self.unreadable(column))
    }

    fn stored(&self) -> Result<Stored, Unreadable> {
        let words: Option<String> = self.get(Column::marks)?;
        let marked = |word: &str| {
            let mut words = words.as_deref().unwrap_or_default().split(' ');
            words.any(|known| known == word)
        };
        let fingerprint: Vec<u8> = self.get(Column::fingerprint)?;
        let fingerprint = fingerprint
            .try_into()
            .map_err(|_| self.unreadable(Column::fingerprint))?;
        let state: String = self.get(Column::state)?;
        let policy: String = self.get(Column::policy)?;
        let record = Record {
            id: RecordId(self.id),
            key: Key {
                namespace: self.text(Column::namespace)?,
                client: self.text(Column::client)?,
                message: self.text(Column::message)?,
            },
            fingerprint: Fingerprint(fingerprint),
            state: state.parse().map_err(|()| self.unreadable(Column::state))?,
            attempt: self.number(Column::attempt)?,
            version: self.number(Column::version)?,
            owner: Owner(self.get::<i64>(Column::owner)?.cast_unsigned()),
            policy: match policy.as_str() {
                "hold" => Policy::Hold,
                "resend" => Policy::Resend,
                _ => return Err(self.unreadable(Column::policy)),
            },
            route: self.text(Column::route)?,
            created_at: self.time(Column::created_at)?,
            updated_at: self.time(Column::updated_at)?,
            may_run_until: self.time(Column::may_run_until)?,
            expires_at: self.time(Column::expires_at)?,
            alarmed: marked("alarmed"),
            answer: self.answer()?,
            fields: self.fields()?,
            marks: Marks {
                stale_event: marked("stale_event"),
                possible_duplicate: marked("possible_duplicate"),
            },
            hold: None,
            declared: marked("declared"),
        };
        let absent_since: Option<i64> = self.get(Column::absent_since)?;
        let mut entry = Entry {
            record,
            keep: Duration::from_micros(self.number(Column::keep)?),
            given_up: marked("given_up"),
            given_up_before: marked("given_up_before"),
            word_before: marked("word_before"),
            reopened: marked("reopened"),
            gap: marked("gap"),
            generation: self.number(Column::generation)?,
            request: self.request()?,
            subject: self.subject()?,
            suspected: marked("suspected"),
            cleared: marked("cleared"),
            dropped: marked("dropped"),
            absent_since: absent_since.map(time_of),
            sightings_spent: marked("sightings_spent"),
        };
        entry.follow_hold();
        Ok(Stored {
            filed: week(entry.record.updated_at),
            message_hash: hash(&entry.record.key.message),
            entry,
            events: EventText::stored(self.get(Column::events)?),
            listed: self.get::<Option<i64>>(Column::listed)?.is_some(),
        })
    }

    fn answer(&self) -> Result<Option<KeptAnswer>, Unreadable> {
        let Some(status) = self.get::<Option<i64>>(Column::answer_status)? else {
            return Ok(None);
        };
        let status = u16::try_from(status).ok();
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        Ok(Some(KeptAnswer {
            status: status.ok_or_else(|| self.unreadable(Column::answer_status))?,
            headers: self.headers(Column::answer_headers)?,
            body: Bytes::from(
                self.get::<Option<Vec<u8>>>(Column::answer_body)?
                    .unwrap_or_default(),
            ),
        }))
    }

    fn request(&self) -> Result<Option<KeptRequest>, Unreadable> {
        let Some(body) = self.get::<Option<Vec<u8>>>(Column::request_body)? else {
            return Ok(None);
        };
        Ok(Some(KeptRequest {
            headers: self.headers(Column::request_headers)?,
            body: Bytes::from(body),
        }))
    }

    fn headers(&self, column: Column) -> Result<Vec<(HeaderName, HeaderValue)>, Unreadable> {
        let Some(text) = self.get::<Option<String>>(column)? else {
            return Ok(Vec::new());
        };
        headers_of(&text).ok_or_else(|| self.unreadable(column))
    }

    fn fields(&self) -> Result<Fields, Unreadable> {
        let Some(text) = self.get::<Option<String>>(Column::fields)? else {
            return Ok(Fields::default());
        };
        fields_of(&text).ok_or_else(|| self.unreadable(Column::fields))
    }

    fn subject(&self) -> Result<Option<Subject>, Unreadable> {
        let Some(id) = self.get::<Option<String>>(Column::subject)? else {
            return Ok(None);
        };
        let rule: String = self.get(Column::subject_rule)?;
        Ok(Some(Subject {
            id: Arc::from(id),
            rule: rule_of(&rule).ok_or_else(|| self.unreadable(Column::subject_rule))?,
        }))
    }
}

/// Weeks that are looked at in one go.
const WEEKS: usize = 16;

/// For each number of weeks up to [`WEEKS`], up to the week ?1: whether there is any record about the
/// subject with the hash ?2.
static ANY_ABOUT: LazyLock<[String; WEEKS + 1]> = LazyLock::new(|| {
    let one = |back: usize| {
        format!(
            "SELECT 1 FROM records INDEXED BY records_by_subject \
             WHERE subject_week = ?1 - {back} AND subject_hash = ?2"
        )
    };
    std::array::from_fn(|weeks| {
        let all: Vec<_> = (0..weeks).map(one).collect();
        all.join(" UNION ALL ") + " LIMIT 1"
    })
});

/// Whether there may be records about a subject from these weeks. On most claims there are none, which
/// one statement finds out sooner than one for each week.
pub(super) fn any_about(
    batch: &mut Batch<'_>,
    weeks: RangeInclusive<i64>,
    subject_hash: i64,
) -> rusqlite::Result<bool> {
    let count = usize::try_from(weeks.end() - weeks.start() + 1).unwrap_or(usize::MAX);
    match ANY_ABOUT.get(count) {
        Some(sql) if count > 0 => batch
            .statement(sql)?
            .exists(params![weeks.end(), subject_hash]),
        _ => Ok(true),
    }
}

/// Adds a new record, whose subject has this hash if it has one.
pub(super) fn insert(
    batch: &mut Batch<'_>,
    stored: &mut Stored,
    subject_hash: Option<i64>,
) -> rusqlite::Result<()> {
    let Stored {
        entry,
        events,
        message_hash,
        filed,
        ..
    } = stored;
    let record = &entry.record;
    let subject = entry.subject.as_ref();
    let insert = batch.statement(
        "INSERT INTO records (id, message_hash, namespace, client, message, fingerprint, state, \
         attempt, version, owner, policy, route, created_at, updated_at, may_run_until, expires_at, \
         keep, generation, marks, fields, subject, subject_rule, subject_week, subject_hash, \
         answer_status, answer_headers, answer_body, request_headers, request_body, events) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, \
         ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, \
         ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, \
         ?24, ?25, ?26, ?27, ?28, \
         ?29, ?30)",
    )?;
    insert.execute(params![
        record.id.0.cast_signed(),
        *message_hash,
        &*record.key.namespace,
        &*record.key.client,
        &*record.key.message,
        record.fingerprint.0,
        record.state.as_str(),
        record.attempt,
        record.version.cast_signed(),
        record.owner.0.cast_signed(),
        policy_word(record.policy),
        &*record.route,
        micros(record.created_at),
        micros(record.updated_at),
        micros(record.may_run_until),
        micros(record.expires_at),
        keep_micros(entry),
        entry.generation.cast_signed(),
        marks_text(entry),
        fields_text(&record.fields),
        subject.map(|subject| &*subject.id),
        subject.map(|subject| rule_text(&subject.rule)),
        subject.map(|_| *filed),
        subject.and(subject_hash),
        answer_status(record),
        answer_headers(record),
        answer_body(record),
        entry
            .request
            .as_ref()
            .map(|request| headers_text(&request.headers)),
        entry.request.as_ref().map(|request| &*request.body),
        events.as_str(),
    ])?;
    Ok(())
}

/// The columns that may change, with what else is set at the end.
macro_rules! update {
    ($more:literal) => {
        concat!(
            "UPDATE records SET state = ?2, attempt = ?3, version = ?4, \
             owner = ?5, policy = ?6, route = ?7, updated_at = ?8, \
             may_run_until = ?9, expires_at = ?10, keep = ?11, \
             generation = ?12, marks = ?13, absent_since = ?14, \
             answer_status = ?15, answer_headers = ?16, \
             answer_body = ?17, request_headers = ?18, \
             request_body = ?19, events = ?20",
            $more,
            " WHERE id = ?1"
        )
    };
}

const UPDATE: &str = update!("");
const UPDATE_UNLISTED: &str = update!(", listed = NULL");

/// Writes what may have changed of a record.
///
/// # Errors
/// SQLite's; and where the record isn't there.
pub(super) fn update(batch: &mut Batch<'_>, stored: &mut Stored) -> rusqlite::Result<()> {
    let unlisted = answers::unlist(batch, stored)?;
    let Stored {
        entry,
        events,
        filed,
        ..
    } = stored;
    let record = &entry.record;
    // Named where it doesn't change, its index would be written anew every time.
    let update = batch.statement(if unlisted { UPDATE_UNLISTED } else { UPDATE })?;
    let updated = update.execute(params![
        record.id.0.cast_signed(),
        record.state.as_str(),
        record.attempt,
        record.version.cast_signed(),
        record.owner.0.cast_signed(),
        policy_word(record.policy),
        &*record.route,
        micros(record.updated_at),
        micros(record.may_run_until),
        micros(record.expires_at),
        keep_micros(entry),
        entry.generation.cast_signed(),
        marks_text(entry),
        entry.absent_since.map(micros),
        answer_status(record),
        answer_headers(record),
        answer_body(record),
        entry
            .request
            .as_ref()
            .map(|request| headers_text(&request.headers)),
        entry.request.as_ref().map(|request| &*request.body),
        events.as_str(),
    ])?;
    if updated != 1 {
        // Somebody else has written to the file: it is to be looked at anew.
        return Err(rusqlite::Error::StatementChangedRows(updated));
    }
    let week = week(record.updated_at);
    // Seldom, and apart: named in the statement above, its index would be written anew every time.
    if entry.subject.is_some() && week != *filed {
        let file = batch.statement("UPDATE records SET subject_week = ?2 WHERE id = ?1")?;
        file.execute(params![record.id.0.cast_signed(), week])?;
        *filed = week;
    }
    Ok(())
}

pub(super) fn keep_micros(entry: &Entry) -> i64 {
    micros_of(entry.keep)
}

pub(super) fn policy_word(policy: Policy) -> &'static str {
    match policy {
        Policy::Hold => "hold",
        Policy::Resend => "resend",
    }
}

fn answer_status(record: &Record) -> Option<u16> {
    record.answer.as_ref().map(|answer| answer.status.as_u16())
}

pub(super) fn answer_headers(record: &Record) -> Option<Cow<'static, str>> {
    let answer = record.answer.as_ref();
    answer.map(|answer| headers_text(&answer.headers))
}

fn answer_body(record: &Record) -> Option<&[u8]> {
    record.answer.as_ref().map(|answer| &*answer.body)
}

/// The flags of an entry as words; none where none is set, as on most.
fn marks_text(entry: &Entry) -> Option<String> {
    let Record {
        alarmed,
        marks,
        declared,
        ..
    } = &entry.record;
    let flags = [
        (*alarmed, "alarmed"),
        (*declared, "declared"),
        (marks.stale_event, "stale_event"),
        (marks.possible_duplicate, "possible_duplicate"),
        (entry.given_up, "given_up"),
        (entry.given_up_before, "given_up_before"),
        (entry.word_before, "word_before"),
        (entry.reopened, "reopened"),
        (entry.gap, "gap"),
        (entry.suspected, "suspected"),
        (entry.cleared, "cleared"),
        (entry.dropped, "dropped"),
        (entry.sightings_spent, "sightings_spent"),
    ];
    let set: Vec<_> = flags
        .into_iter()
        .filter_map(|(set, word)| set.then_some(word))
        .collect();
    (!set.is_empty()).then(|| set.join(" "))
}

/// A record's state as an index into the kept counts.
pub(super) fn place(state: State) -> usize {
    state as usize
}

impl Stored {
    /// A new record's, with the [`hash`] of its message and its first event.
    pub(super) fn new(entry: Entry, message_hash: i64, event: Option<Event>) -> Self {
        let mut events = EventText::default();
        events.extend(event.as_ref());
        Self {
            filed: week(entry.record.updated_at),
            entry,
            events,
            message_hash,
            listed: false,
        }
    }
}
