//! One shard: its records by number and by key, in the order of their age and of their expiry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::ledger::transition::{self, Entry, Step};
use crate::ledger::{
    Cause, Claim, Event, Fields, Filter, KeptAnswer, KeptRequest, Key, Record, RecordId, State,
    Stats, Subject,
};

/// What a record takes up besides its texts and its answer: the slot, its places in five indexes
/// with their slack, and the allocator's.
const RECORD_CHARGE: usize = 1024;
/// Name, value and slot of a header, besides their bytes.
const HEADER_CHARGE: usize = 96;
/// A field's slot, besides its texts.
const FIELD_CHARGE: usize = 48;
/// A subject's place in its index, besides its id.
const SUBJECT_CHARGE: usize = 128;
/// An event beyond those inside the slot.
const EVENT_CHARGE: usize = 64;

/// Events that a slot has room for: a message that runs well has two.
const INLINE_EVENTS: usize = 2;
/// The first events of a record that are never dropped.
const FIRST_EVENTS: usize = 4;
/// All events of a record that are kept.
const MAX_EVENTS: usize = 16;

/// A record, with what the store knows of it besides.
pub(super) struct Slot {
    entry: Entry,
    events: EventLog,
    /// What it counts for in the store's bytes.
    pub(super) charge: usize,
}

/// A slot's charge around a step.
pub(super) struct Charge {
    pub(super) before: usize,
    pub(super) after: usize,
}

impl Slot {
    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }
}

/// Records whose message keys hash alike.
#[derive(Default)]
pub(super) struct Shard {
    by_key: HashMap<Key, RecordId>,
    slots: BTreeMap<RecordId, Box<Slot>>,
    /// Records by state (as in [`State::ALL`]) and by the time they came to it.
    since: [BTreeSet<(SystemTime, RecordId)>; 4],
    /// Done records by the time they may be forgotten.
    expiry: BTreeSet<(SystemTime, RecordId)>,
}

impl Shard {
    pub(super) fn find(&self, key: &Key) -> Option<RecordId> {
        self.by_key.get(key).copied()
    }

    pub(super) fn entry(&self, id: RecordId) -> Option<&Entry> {
        self.slots.get(&id).map(|slot| &slot.entry)
    }

    #[cfg(test)]
    pub(super) fn charge_of(&self, id: RecordId) -> Option<usize> {
        self.slots.get(&id).map(|slot| slot.charge)
    }

    pub(super) fn record(&self, id: RecordId) -> Option<Record> {
        self.entry(id).map(|entry| entry.record.clone())
    }

    pub(super) fn events(&self, id: RecordId) -> Vec<Event> {
        self.slots
            .get(&id)
            .map_or_else(Vec::new, |slot| slot.events.told())
    }

    /// Adds a record whose key isn't there; says what it counts for.
    pub(super) fn insert(&mut self, entry: Entry, event: Option<Event>) -> usize {
        let mut events = EventLog::default();
        events.extend(event);
        let charge = charge(&entry, &events);
        self.by_key
            .insert(entry.record.key.clone(), entry.record.id);
        index(&mut self.since, &mut self.expiry, &entry.record);
        let slot = Slot {
            charge,
            entry,
            events,
        };
        self.slots.insert(slot.entry.record.id, Box::new(slot));
        charge
    }

    /// Runs a step on a record and follows it in the indexes.
    pub(super) fn step<T>(
        &mut self,
        id: RecordId,
        step: impl FnOnce(&mut Entry) -> Step<T>,
    ) -> Option<(T, Charge)> {
        let slot = self.slots.get_mut(&id)?;
        let before = slot.charge;
        let place = Place::of(&slot.entry.record);
        let step = step(&mut slot.entry);
        if step.changed && place != Place::of(&slot.entry.record) {
            self.since[place.state as usize].remove(&(place.since, id));
            if let Some(expires_at) = place.expires_at {
                self.expiry.remove(&(expires_at, id));
            }
            index(&mut self.since, &mut self.expiry, &slot.entry.record);
        }
        if step.changed || step.event.is_some() {
            slot.events.extend(step.event);
            slot.charge = charge(&slot.entry, &slot.events);
        }
        let after = slot.charge;
        Some((step.reply, Charge { before, after }))
    }

    /// The records with a running attempt.
    pub(super) fn claimed(&self) -> Vec<RecordId> {
        self.since[State::Claimed as usize]
            .iter()
            .map(|(_, id)| *id)
            .collect()
    }

    /// Takes out up to `limit` records that may be forgotten at `now`.
    #[expect(
        clippy::vec_box,
        reason = "slots move by pointer, to be dropped outside the lock"
    )]
    pub(super) fn forget(&mut self, now: SystemTime, limit: usize) -> Vec<Box<Slot>> {
        let mut forgotten = Vec::new();
        while forgotten.len() < limit {
            let Some((_, id)) = self.expiry.first().copied() else {
                break;
            };
            let may_go = self
                .entry(id)
                .is_some_and(|entry| transition::may_forget(&entry.record, now));
            if !may_go {
                break;
            }
            forgotten.extend(self.remove(id));
        }
        forgotten
    }

    fn remove(&mut self, id: RecordId) -> Option<Box<Slot>> {
        let slot = self.slots.remove(&id)?;
        let place = Place::of(&slot.entry.record);
        self.by_key.remove(&slot.entry.record.key);
        self.since[place.state as usize].remove(&(place.since, id));
        if let Some(expires_at) = place.expires_at {
            self.expiry.remove(&(expires_at, id));
        }
        Some(slot)
    }

    /// Adds the records numbered in `range` that pass the filter; says which number comes after them.
    pub(super) fn scan(
        &self,
        range: Range<u64>,
        filter: &Filter,
        found: &mut Vec<Record>,
    ) -> Option<RecordId> {
        let end = RecordId(range.end);
        let within = self.slots.range(RecordId(range.start)..end);
        let passing = within
            .map(|(_, slot)| &slot.entry.record)
            .filter(|record| passes(record, filter));
        found.extend(passing.cloned());
        self.slots.range(end..).next().map(|(id, _)| *id)
    }

    pub(super) fn add_to(&self, stats: &mut Stats, now: SystemTime) {
        for (state, records) in self.since.iter().enumerate() {
            stats.records[state] += records.len() as u64;
            let Some((since, _)) = records.first() else {
                continue;
            };
            let age = now.duration_since(*since).unwrap_or(Duration::ZERO);
            stats.oldest[state] = stats.oldest[state].max(age);
        }
    }
}

/// What the slot counts for whose record this claim makes, short of an answer that it has at once.
pub(super) fn first_charge(claim: &Claim) -> usize {
    own_charge(&claim.key, &claim.fields, claim.subject.as_ref())
        + claim.request.as_ref().map_or(0, request_charge)
}

fn charge(entry: &Entry, events: &EventLog) -> usize {
    let record = &entry.record;
    own_charge(&record.key, &record.fields, entry.subject.as_ref())
        + entry.request.as_ref().map_or(0, request_charge)
        + record.answer.as_ref().map_or(0, answer_charge)
        + events.charge()
}

fn own_charge(key: &Key, fields: &Fields, subject: Option<&Subject>) -> usize {
    let fields = fields.0.iter();
    let fields = fields.map(|(name, text)| FIELD_CHARGE + name.len() + text.len());
    let subject = subject.map_or(0, |subject| SUBJECT_CHARGE + 2 * subject.id.len());
    RECORD_CHARGE + key.message.len() + fields.sum::<usize>() + subject
}

fn request_charge(request: &KeptRequest) -> usize {
    request.body.len() + headers_charge(&request.headers)
}

fn answer_charge(answer: &KeptAnswer) -> usize {
    answer.body.len() + headers_charge(&answer.headers)
}

fn headers_charge(headers: &[(HeaderName, HeaderValue)]) -> usize {
    let headers = headers.iter();
    let headers =
        headers.map(|(name, value)| HEADER_CHARGE + name.as_str().len() + value.as_bytes().len());
    headers.sum::<usize>()
}

/// Whether a filter lets a record through.
fn passes(record: &Record, filter: &Filter) -> bool {
    let created = record.created_at;
    filter.state.is_none_or(|state| record.state == state)
        && (filter.route.as_deref()).is_none_or(|route| *record.route == *route)
        && (filter.key.as_deref()).is_none_or(|key| *record.key.message == *key)
        && (filter.query.as_deref()).is_none_or(|query| record.key.message.contains(query))
        && (filter.reference.as_deref()).is_none_or(|text| record.fields.mentions(text))
        && filter.created_from.is_none_or(|from| created >= from)
        && filter.created_until.is_none_or(|until| created < until)
}

fn index(
    since: &mut [BTreeSet<(SystemTime, RecordId)>; 4],
    expiry: &mut BTreeSet<(SystemTime, RecordId)>,
    record: &Record,
) {
    let place = Place::of(record);
    since[place.state as usize].insert((place.since, record.id));
    if let Some(expires_at) = place.expires_at {
        expiry.insert((expires_at, record.id));
    }
}

/// Where a record stands in the indexes.
#[derive(PartialEq, Eq)]
struct Place {
    state: State,
    since: SystemTime,
    expires_at: Option<SystemTime>,
}

impl Place {
    fn of(record: &Record) -> Self {
        Self {
            state: record.state,
            since: record.updated_at,
            expires_at: (record.state == State::Done).then_some(record.expires_at),
        }
    }
}

/// A record's first and latest events.
#[derive(Default)]
struct EventLog {
    kept: SmallVec<[Note; INLINE_EVENTS]>,
    dropped: u32,
}

/// An [`Event`], smaller.
struct Note {
    at: SystemTime,
    cause: Cause,
    by: Option<Box<(String, String)>>,
    attempt: u32,
    state: State,
}

impl EventLog {
    fn extend(&mut self, event: Option<Event>) {
        let Some(event) = event else { return };
        if self.kept.len() == MAX_EVENTS {
            self.kept.remove(FIRST_EVENTS);
            self.dropped = self.dropped.saturating_add(1);
        }
        self.kept.push(Note {
            at: event.at,
            cause: event.cause,
            by: event.by.map(Box::new),
            attempt: event.attempt,
            state: event.state,
        });
    }

    fn charge(&self) -> usize {
        let beyond = self.kept.len().saturating_sub(INLINE_EVENTS) * EVENT_CHARGE;
        let texts = self.kept.iter().map(|note| {
            let cause = match &note.cause {
                Cause::Borrowed(_) => 0,
                Cause::Owned(text) => text.len(),
            };
            let by = note.by.as_deref();
            cause + by.map_or(0, |(name, reason)| name.len() + reason.len())
        });
        beyond + texts.sum::<usize>()
    }

    /// The events as they are told; where some were dropped, a line says how many.
    fn told(&self) -> Vec<Event> {
        let mut events: Vec<_> = self.kept.iter().map(Note::told).collect();
        if self.dropped > 0
            && let Some(before) = events.get(FIRST_EVENTS - 1).cloned()
        {
            let gap = Event {
                cause: format!("{} events not kept", self.dropped).into(),
                by: None,
                ..before
            };
            events.insert(FIRST_EVENTS, gap);
        }
        events
    }
}

impl Note {
    fn told(&self) -> Event {
        Event {
            at: self.at,
            attempt: self.attempt,
            state: self.state,
            cause: self.cause.clone(),
            by: self.by.as_deref().cloned(),
        }
    }
}
