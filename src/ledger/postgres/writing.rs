//! Entries and events on their way into rows.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::SystemTime;

use tokio_postgres::types::ToSql;

use super::columns::{flags_text, key_hash, owner_column, policy_word, seconds, stored};
use crate::ledger::texts::headers_text;
use crate::ledger::transition::Entry;
use crate::ledger::{Event, Hold, Record, State, SubjectRule};

/// A parameter of a statement.
pub(super) type Value<'a> = &'a (dyn ToSql + Sync);

/// Columns that every change may touch, in the order of [`Changing::values`].
pub(super) const CHANGING: [&str; 23] = [
    "state",
    "attempt",
    "version",
    "owner",
    "policy",
    "route",
    "updated_at",
    "may_run_until",
    "expires_at",
    "keep_seconds",
    "alarmed",
    "declared",
    "hold",
    "stale_event",
    "possible_duplicate",
    "answer_status",
    "answer_headers",
    "answer_body",
    "request_headers",
    "request_body",
    "generation",
    "absent_since",
    "flags",
];

/// Columns that are written once, in the order of [`Fixed::values`].
pub(super) const FIXED: [&str; 14] = [
    "key_hash",
    "namespace",
    "client",
    "message",
    "fingerprint",
    "created_at",
    "field_names",
    "field_texts",
    "subject_id",
    "subject_at",
    "subject_drop_stale",
    "subject_amount",
    "subject_window_seconds",
    "subject_hold",
];

/// Creates a record with its first event and counts it; gives no row where the key is there already.
/// Parameters: the id, what changes, what doesn't, the event's, the count's.
pub(super) static INSERT: LazyLock<String> = LazyLock::new(|| {
    let columns: Vec<_> = CHANGING.iter().chain(&FIXED).copied().collect();
    let last = columns.len() + 1;
    let places: Vec<_> = (1..=last).map(|place| format!("${place}")).collect();
    format!(
        "with created as (
            insert into tikigate.record (id, {}) values ({})
            on conflict (key_hash) do nothing returning id
        ), noted as (
            insert into tikigate.event (record, number, {EVENT_COLUMNS}) select id, 1, {} from created
        ), counted as (
            update tikigate.record_count set {} where shard = {} and exists (select from created)
        )
        select id from created",
        columns.join(", "),
        places.join(", "),
        event_places(last + 1),
        count_changes(last + 7),
        format_args!("${}", last + 11),
    )
});

/// Changes a record. Parameters: the id, and what changes.
pub(super) static UPDATE: LazyLock<String> = LazyLock::new(|| {
    let pairs = CHANGING.iter().zip(2..);
    let pairs: Vec<_> = pairs
        .map(|(name, place)| format!("{name} = ${place}"))
        .collect();
    format!(
        "update tikigate.record set {}, awaited = awaited and $2 = 'claimed' where id = $1",
        pairs.join(", ")
    )
});

/// The first events of a record that are kept, and the latest.
const FIRST_EVENTS: i64 = 8;
const LATEST_EVENTS: i64 = 56;

/// Adds an event to a record that the transaction has locked, and takes out the oldest of the middle
/// ones where there are too many. Parameters: the record's id, and the event's.
pub(super) static NOTE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "with latest as (
            select max(number) as number from tikigate.event where record = $1
        ), gone as (
            delete from tikigate.event e using latest where e.record = $1
                and e.number > {FIRST_EVENTS} and e.number <= latest.number + 1 - {LATEST_EVENTS}
        )
        insert into tikigate.event (record, number, {EVENT_COLUMNS})
        select $1, coalesce(number, 0) + 1, {} from latest",
        event_places(2)
    )
});

/// Changes the kept counts. Parameters: the count's.
pub(super) static COUNT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "update tikigate.record_count set {} where shard = $5",
        count_changes(1)
    )
});

/// In the order of [`event`] and [`event_values`].
const EVENT_COLUMNS: &str = "at, attempt, state, cause, by_name, reason";

/// With types, since a `select` doesn't take them from the table.
fn event_places(first: usize) -> String {
    let types = ["timestamptz", "bigint", "text", "text", "text", "text"];
    let places = types.iter().zip(first..);
    let places: Vec<_> = places
        .map(|(kind, place)| format!("${place}::{kind}"))
        .collect();
    places.join(", ")
}

fn count_changes(first: usize) -> String {
    let states = State::ALL.iter().map(|state| state.as_str());
    let changes = states.zip(first..);
    let changes: Vec<_> = changes
        .map(|(state, place)| format!("{state} = {state} + ${place}::bigint"))
        .collect();
    changes.join(", ")
}

/// How the counts change when a record comes from one state to another.
pub(super) fn count_values(from: Option<State>, to: State) -> [i64; 4] {
    let mut changes = [0; 4];
    if let Some(from) = from {
        changes[from as usize] -= 1;
    }
    changes[to as usize] += 1;
    changes
}

/// An entry's columns that change, ready to be written.
pub(super) struct Changing<'a> {
    entry: &'a Entry,
    state: &'static str,
    attempt: i64,
    version: i64,
    owner: i64,
    policy: &'static str,
    route: Cow<'a, str>,
    keep_seconds: i64,
    hold: Option<&'static str>,
    answer_status: Option<i32>,
    answer_headers: Option<Cow<'static, str>>,
    answer_body: Option<&'a [u8]>,
    request_headers: Option<Cow<'static, str>>,
    request_body: Option<&'a [u8]>,
    generation: i64,
    flags: String,
}

impl<'a> Changing<'a> {
    pub(super) fn of(entry: &'a Entry) -> Self {
        let record = &entry.record;
        let answer = record.answer.as_ref();
        let request = entry.request.as_ref();
        Self {
            entry,
            state: record.state.as_str(),
            attempt: i64::from(record.attempt),
            version: record.version.cast_signed(),
            owner: owner_column(record.owner),
            policy: policy_word(record.policy),
            route: stored(&record.route),
            keep_seconds: seconds(entry.keep),
            hold: record.hold.map(Hold::as_str),
            answer_status: answer.map(|answer| i32::from(answer.status.as_u16())),
            answer_headers: answer.map(|answer| headers_text(&answer.headers)),
            answer_body: answer.map(|answer| &*answer.body),
            request_headers: request.map(|request| headers_text(&request.headers)),
            request_body: request.map(|request| &*request.body),
            generation: entry.generation.cast_signed(),
            flags: flags_text(entry),
        }
    }

    pub(super) fn values(&self) -> [Value<'_>; CHANGING.len()] {
        let record = &self.entry.record;
        [
            &self.state,
            &self.attempt,
            &self.version,
            &self.owner,
            &self.policy,
            &self.route,
            &record.updated_at,
            &record.may_run_until,
            &record.expires_at,
            &self.keep_seconds,
            &record.alarmed,
            &record.declared,
            &self.hold,
            &record.marks.stale_event,
            &record.marks.possible_duplicate,
            &self.answer_status,
            &self.answer_headers,
            &self.answer_body,
            &self.request_headers,
            &self.request_body,
            &self.generation,
            &self.entry.absent_since,
            &self.flags,
        ]
    }
}

/// An entry's columns that are written once, ready to be.
pub(super) struct Fixed<'a> {
    record: &'a Record,
    key_hash: Vec<u8>,
    namespace: Cow<'a, str>,
    client: Cow<'a, str>,
    message: Cow<'a, str>,
    fingerprint: &'a [u8],
    field_names: Vec<Cow<'a, str>>,
    field_texts: Vec<Cow<'a, str>>,
    subject_id: Option<Cow<'a, str>>,
    subject_at: Option<SystemTime>,
    subject_drop_stale: Option<bool>,
    subject_amount: Option<Cow<'a, str>>,
    subject_window_seconds: Option<i64>,
    subject_hold: Option<bool>,
}

impl<'a> Fixed<'a> {
    pub(super) fn of(entry: &'a Entry) -> Self {
        let record = &entry.record;
        let fields = record.fields.0.iter();
        let mut fixed = Self {
            record,
            key_hash: key_hash(&record.key),
            namespace: stored(&record.key.namespace),
            client: stored(&record.key.client),
            message: stored(&record.key.message),
            fingerprint: &record.fingerprint.0,
            field_names: fields.clone().map(|(name, _)| stored(name)).collect(),
            field_texts: fields.map(|(_, value)| stored(value)).collect(),
            subject_id: entry.subject.as_ref().map(|subject| stored(&subject.id)),
            subject_at: None,
            subject_drop_stale: None,
            subject_amount: None,
            subject_window_seconds: None,
            subject_hold: None,
        };
        match entry.subject.as_ref().map(|subject| &subject.rule) {
            Some(SubjectRule::Event { at, drop_stale }) => {
                fixed.subject_at = Some(*at);
                fixed.subject_drop_stale = Some(*drop_stale);
            }
            Some(SubjectRule::Payment {
                amount,
                window,
                hold,
            }) => {
                fixed.subject_amount = Some(stored(amount));
                fixed.subject_window_seconds = Some(seconds(*window));
                fixed.subject_hold = Some(*hold);
            }
            None => {}
        }
        fixed
    }

    pub(super) fn values(&self) -> [Value<'_>; FIXED.len()] {
        [
            &self.key_hash,
            &self.namespace,
            &self.client,
            &self.message,
            &self.fingerprint,
            &self.record.created_at,
            &self.field_names,
            &self.field_texts,
            &self.subject_id,
            &self.subject_at,
            &self.subject_drop_stale,
            &self.subject_amount,
            &self.subject_window_seconds,
            &self.subject_hold,
        ]
    }
}

/// An event's columns, ready to be written.
pub(super) struct Noted<'a> {
    at: SystemTime,
    attempt: i64,
    state: &'static str,
    cause: Cow<'a, str>,
    by_name: Option<Cow<'a, str>>,
    reason: Option<Cow<'a, str>>,
}

impl<'a> Noted<'a> {
    pub(super) fn of(event: &'a Event) -> Self {
        let by = event.by.as_ref();
        Self {
            at: event.at,
            attempt: i64::from(event.attempt),
            state: event.state.as_str(),
            cause: stored(&event.cause),
            by_name: by.map(|(name, _)| stored(name)),
            reason: by.map(|(_, reason)| stored(reason)),
        }
    }

    pub(super) fn values(&self) -> [Value<'_>; 6] {
        [
            &self.at,
            &self.attempt,
            &self.state,
            &self.cause,
            &self.by_name,
            &self.reason,
        ]
    }
}
