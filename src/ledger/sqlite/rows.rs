//! Entries as rows of the file, and back.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use rusqlite::{Connection, Row, params};
use sha2::{Digest as _, Sha256};

use crate::ledger::transition::Entry;
use crate::ledger::{
    Event, Fields, Fingerprint, KeptAnswer, KeptRequest, Key, Marks, Owner, Policy, Record,
    RecordId, State, Subject, SubjectRule,
};

use super::events::EventText;

/// The columns that an entry is made of: [`COLUMNS`] to select them, [`Column`] to get them by place,
/// which costs no look-up of names.
macro_rules! columns {
    ($first:ident $($name:ident)+) => {
        /// What a stored entry is selected as.
        pub(super) const COLUMNS: &str = concat!(stringify!($first), $(", ", stringify!($name)),+);

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
    subject_rule answer_status answer_headers answer_body request_headers request_body events
);

/// An entry with its events as they are stored.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) entry: Entry,
    pub(super) events: EventText,
}

/// A row that this program did not write, or that was damaged since.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record rec-{id} can't be read: its {column} is not what it must be")]
pub(super) struct Unreadable {
    id: u64,
    column: &'static str,
}

/// Microseconds since 1970; times that no calendar holds come to its ends.
pub(super) fn micros(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |by| -by),
    }
}

/// The time of so many microseconds since 1970.
pub(super) fn time_of(micros: i64) -> SystemTime {
    let by = Duration::from_micros(micros.unsigned_abs());
    let moved = if micros >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(by)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(by)
    };
    moved.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A time as it comes back from the file.
pub(super) fn whole_micros(time: SystemTime) -> SystemTime {
    time_of(micros(time))
}

/// What a message or a subject is found by: 8 bytes at random, so that the index stays small. Not a
/// proof of anything: the whole text is compared in the row.
pub(super) fn hash(text: &str) -> i64 {
    let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}

/// The week that a record made at this time is filed under, by its subject.
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
            entry,
            events: EventText::stored(self.get(Column::events)?),
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

/// Adds a new record.
pub(super) fn insert(connection: &Connection, stored: &Stored) -> rusqlite::Result<()> {
    let Stored { entry, events } = stored;
    let record = &entry.record;
    let subject = entry.subject.as_ref();
    let mut insert = connection.prepare_cached(
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
        hash(&record.key.message),
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
        subject.map(|_| week(record.created_at)),
        subject.map(|subject| hash(&subject.id)),
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

/// Writes what may have changed of a record.
pub(super) fn update(connection: &Connection, stored: &Stored) -> rusqlite::Result<()> {
    let Stored { entry, events } = stored;
    let record = &entry.record;
    let mut update = connection.prepare_cached(
        "UPDATE records SET state = ?2, attempt = ?3, version = ?4, \
         owner = ?5, policy = ?6, route = ?7, updated_at = ?8, \
         may_run_until = ?9, expires_at = ?10, keep = ?11, \
         generation = ?12, marks = ?13, absent_since = ?14, \
         answer_status = ?15, answer_headers = ?16, \
         answer_body = ?17, request_headers = ?18, \
         request_body = ?19, events = ?20 WHERE id = ?1",
    )?;
    update.execute(params![
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
    Ok(())
}

fn keep_micros(entry: &Entry) -> i64 {
    i64::try_from(entry.keep.as_micros()).unwrap_or(i64::MAX)
}

fn policy_word(policy: Policy) -> &'static str {
    match policy {
        Policy::Hold => "hold",
        Policy::Resend => "resend",
    }
}

fn answer_status(record: &Record) -> Option<u16> {
    record.answer.as_ref().map(|answer| answer.status.as_u16())
}

fn answer_headers(record: &Record) -> Option<Cow<'static, str>> {
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

/// `[["content-type","application/json"]]`; a value that is no visible ASCII as `{"hex": ...}`.
fn headers_text(headers: &[(HeaderName, HeaderValue)]) -> Cow<'static, str> {
    if let [(name, value)] = headers
        && name == http::header::CONTENT_TYPE
        && value == "application/json"
    {
        return Cow::Borrowed(r#"[["content-type","application/json"]]"#);
    }
    let pairs = headers.iter().map(|(name, value)| {
        let value = match value.to_str() {
            Ok(text) => serde_json::Value::from(text),
            Err(_) => {
                serde_json::json!({ "hex": base16ct::lower::encode_string(value.as_bytes()) })
            }
        };
        serde_json::json!([name.as_str(), value])
    });
    Cow::Owned(serde_json::Value::Array(pairs.collect()).to_string())
}

fn headers_of(text: &str) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let pairs: Vec<(String, serde_json::Value)> = serde_json::from_str(text).ok()?;
    let read = |(name, value): (String, serde_json::Value)| {
        let bytes = match &value {
            serde_json::Value::String(text) => text.as_bytes().to_vec(),
            other => base16ct::lower::decode_vec(other.get("hex")?.as_str()?).ok()?,
        };
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(&bytes).ok()?))
    };
    pairs.into_iter().map(read).collect()
}

/// A JSON object; its order is the fields'.
fn fields_text(fields: &Fields) -> Option<String> {
    if fields.0.is_empty() {
        return None;
    }
    let mut text = String::with_capacity(160);
    for (name, value) in &fields.0 {
        text.push(if text.is_empty() { '{' } else { ',' });
        push_json(&mut text, name);
        text.push(':');
        push_json(&mut text, value);
    }
    text.push('}');
    Some(text)
}

/// Appends a JSON string.
pub(super) fn push_json(to: &mut String, text: &str) {
    let plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\' && byte != 0x7f;
    if text.bytes().all(plain) {
        to.push('"');
        to.push_str(text);
        to.push('"');
        return;
    }
    to.push_str(&serde_json::Value::from(text).to_string());
}

fn fields_of(text: &str) -> Option<Fields> {
    struct Pairs(Fields);
    impl<'de> serde::Deserialize<'de> for Pairs {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Pairs;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object of texts")
                }

                fn visit_map<M: serde::de::MapAccess<'de>>(
                    self,
                    mut map: M,
                ) -> Result<Pairs, M::Error> {
                    let mut fields = Vec::with_capacity(4);
                    while let Some((name, text)) = map.next_entry::<String, String>()? {
                        fields.push((Cow::Owned(name), text));
                    }
                    Ok(Pairs(Fields(fields)))
                }
            }
            from.deserialize_map(Visitor)
        }
    }
    let Pairs(fields) = serde_json::from_str(text).ok()?;
    Some(fields)
}

fn rule_text(rule: &SubjectRule) -> String {
    match rule {
        SubjectRule::Event { at, drop_stale } => {
            let action = if *drop_stale { "drop" } else { "mark" };
            format!("event {} {action}", micros(*at))
        }
        SubjectRule::Payment {
            amount,
            window,
            hold,
        } => {
            let action = if *hold { "hold" } else { "mark" };
            format!("payment {amount} {} {action}", window.as_secs())
        }
    }
}

fn rule_of(text: &str) -> Option<SubjectRule> {
    let mut words = text.split(' ');
    let rule = match words.next()? {
        "event" => SubjectRule::Event {
            at: time_of(words.next()?.parse().ok()?),
            drop_stale: words.next()? == "drop",
        },
        "payment" => SubjectRule::Payment {
            amount: Arc::from(words.next()?),
            window: Duration::from_secs(words.next()?.parse().ok()?),
            hold: words.next()? == "hold",
        },
        _ => return None,
    };
    words.next().is_none().then_some(rule)
}

/// A record's state as an index into the kept counts.
pub(super) fn place(state: State) -> usize {
    state as usize
}

impl Stored {
    /// A new record's, with its first event.
    pub(super) fn new(entry: Entry, event: Option<Event>) -> Self {
        let mut events = EventText::default();
        events.extend(event.as_ref());
        Self { entry, events }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_as_they_are() {
        for micros_since in [-1_500_000, 0, 1, 1_790_000_000_123_456] {
            assert_eq!(micros(time_of(micros_since)), micros_since);
        }
    }

    #[test]
    fn headers_come_back_as_they_are() {
        let name = |name: &'static str| HeaderName::from_static(name);
        let headers = vec![
            (
                name("content-type"),
                HeaderValue::from_static("text/plain; x=\"y\""),
            ),
            (
                name("content-language"),
                HeaderValue::from_bytes(b"\xff\x80").unwrap(),
            ),
            (name("content-language"), HeaderValue::from_static("")),
        ];
        assert_eq!(headers_of(&headers_text(&headers)).unwrap(), headers);
        let usual = vec![(
            name("content-type"),
            HeaderValue::from_static("application/json"),
        )];
        assert_eq!(headers_of(&headers_text(&usual)).unwrap(), usual);
        assert_eq!(headers_of("[[\"a b\",\"c\"]]"), None);
    }

    #[test]
    fn fields_come_back_as_they_are() {
        let fields = Fields(vec![
            ("z".into(), "plain".to_owned()),
            ("a\"b".into(), "line\nend\u{7f}\\ ậ".to_owned()),
        ]);
        assert_eq!(fields_of(&fields_text(&fields).unwrap()).unwrap(), fields);
        assert_eq!(fields_text(&Fields::default()), None);
    }

    #[test]
    fn rules_come_back_as_they_are() {
        let rules = [
            SubjectRule::Event {
                at: time_of(1_640_614_773_000_000),
                drop_stale: true,
            },
            SubjectRule::Payment {
                amount: "35000.5".into(),
                window: Duration::from_secs(86_400),
                hold: false,
            },
        ];
        for rule in rules {
            assert_eq!(rule_of(&rule_text(&rule)), Some(rule));
        }
        assert_eq!(rule_of("payment 1 2 hold more"), None);
    }
}
