//! The ledger in this process: bounded, sharded, lost at exit.
//!
//! Records live in shards by the hash of their key, each behind a mutex that is held for one
//! record's step, or for a small chunk of a scan, and never across an await. A record's number names
//! its shard, so that a fence finds it without another index.

mod shard;
mod subjects;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderName, HeaderValue};

use super::reply::{ClaimGuard, TakesBack};
use super::sweep::SweepClock;
use super::transition::{self, Entry, Moment, Siblings, Step};
use super::{
    Claim, ClaimOutcome, DefineError, Definition, Event, Fence, Filter, KeptAnswer, KeptRequest,
    LIST_LIMIT, Ledger, LedgerError, Owner, Page, PermitError, Record, RecordId, Reopening, Reply,
    Resolution, ResolveError, Seen, SendPermit, Settled, Settlement, Sighting, State, Stats,
    Verdict,
};
use crate::clock::Clock;
use shard::Shard;
use subjects::{SubjectPlace, Subjects};

/// More than threads that serve, so that they rarely meet.
const SHARDS: u64 = 64;

/// Records whose numbers a scan looks at between two awaits, over all shards.
const SCAN_WINDOW: u64 = 1024;

/// Records forgotten under one lock.
const SWEEP_CHUNK: usize = 32;

/// Records that a claim which finds no room forgets, before it gives up.
const SWEEP_FOR_ROOM: usize = 256;

/// What a [`MemoryLedger`] may hold.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLimits {
    /// Records.
    pub max_records: usize,
    /// Bytes, estimated: for each record 1 KiB for itself and its first two events, its message key,
    /// its fields (48 bytes each besides their texts), its subject, its call while that is kept and
    /// its answer (each the body, and names and values of headers with 96 bytes for each), and
    /// further events with 64 bytes each and what a person wrote in them.
    ///
    /// Only a claim of a new key is refused for it. What running attempts, persons and late events
    /// add is taken regardless, so that nothing that happened is lost: the bound may be overshot by
    /// the answers of attempts that run at once and of released records that are claimed again, each
    /// within its route's `answer_limit`, by calls that are kept only from a later claim on, and by at most 40 KiB of events for a record that people
    /// resolve again and again.
    pub max_bytes: usize,
}

/// The memory store.
pub struct MemoryLedger {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    limits: MemoryLimits,
    /// Keyed at random: message keys come from outside.
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
    next_number: AtomicU64,
    records: AtomicUsize,
    bytes: AtomicUsize,
    sweep_clock: Mutex<SweepClock>,
    next_swept: AtomicUsize,
    namespaces: Mutex<HashMap<Arc<str>, Definition>>,
    /// Which records are about which subject. Locked before any shard.
    subjects: Mutex<Subjects>,
    /// The cause while in quarantine; `generation` follows it.
    quarantine: Mutex<Option<String>>,
    /// The ledger's generation, doubled, plus 1 while in quarantine.
    generation: AtomicU64,
    closed: AtomicBool,
}

impl MemoryLedger {
    /// An empty ledger.
    pub fn new(clock: Clock, limits: MemoryLimits) -> Self {
        let sweep_clock = SweepClock::new(clock.now(), clock.monotonic());
        Self {
            inner: Arc::new(Inner {
                clock,
                limits,
                hasher: RandomState::new(),
                shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
                next_number: AtomicU64::new(1),
                records: AtomicUsize::new(0),
                bytes: AtomicUsize::new(0),
                sweep_clock: Mutex::new(sweep_clock),
                next_swept: AtomicUsize::new(0),
                namespaces: Mutex::default(),
                subjects: Mutex::default(),
                quarantine: Mutex::default(),
                generation: AtomicU64::new(0),
                closed: AtomicBool::new(false),
            }),
        }
    }
}

impl Ledger for MemoryLedger {
    fn define(
        &self,
        namespace: Arc<str>,
        definition: Definition,
    ) -> Reply<Result<(), DefineError>> {
        Reply::ready(self.inner.define(namespace, definition))
    }

    fn claim(&self, claim: Claim) -> Reply<Result<ClaimOutcome, LedgerError>> {
        match self.inner.claim(claim) {
            Ok(ClaimOutcome::Granted(fence, marks)) => {
                let guard = ClaimGuard::new(Arc::clone(&self.inner) as Arc<dyn TakesBack>, fence);
                Reply::guarded(Ok(ClaimOutcome::Granted(fence, marks)), guard)
            }
            other => Reply::ready(other),
        }
    }

    fn permit(&self, fence: Fence) -> Reply<Result<SendPermit, PermitError>> {
        Reply::ready(self.inner.permit(fence))
    }

    fn settle(&self, fence: Fence, settlement: Settlement) -> Reply<Result<Settled, LedgerError>> {
        Reply::ready(self.inner.settle(fence, settlement))
    }

    fn resolve(&self, resolution: Resolution) -> Reply<Result<Record, ResolveError>> {
        Reply::ready(self.inner.resolve(resolution))
    }

    fn lapse(&self, owner: Owner) -> Reply<Result<u64, LedgerError>> {
        Reply::ready(self.inner.lapse(owner))
    }

    fn get(&self, id: RecordId) -> Reply<Result<Option<Record>, LedgerError>> {
        Reply::ready(self.inner.home(id).map(|shard| shard.record(id)))
    }

    fn list(&self, filter: Filter) -> Reply<Result<Page, LedgerError>> {
        Reply::waiting(Arc::clone(&self.inner).list(filter))
    }

    fn request(&self, id: RecordId) -> Reply<Result<Option<KeptRequest>, LedgerError>> {
        Reply::ready(self.inner.home(id).map(|shard| {
            let entry = shard.entry(id);
            entry.and_then(|entry| entry.request.clone())
        }))
    }

    fn reopen(&self, reopening: Reopening) -> Reply<Result<Record, ResolveError>> {
        let moment = self.inner.moment();
        Reply::ready(self.inner.word(reopening.id, |entry| {
            transition::reopen(entry, reopening, moment)
        }))
    }

    fn sighted(&self, mut sighting: Sighting) -> Reply<Result<Record, ResolveError>> {
        if let Seen::Applied(answer) = &mut sighting.seen {
            *answer = detached(answer);
        }
        let moment = self.inner.moment();
        Reply::ready(self.inner.word(sighting.id, |entry| {
            transition::sighted(entry, sighting, moment)
        }))
    }

    fn events(&self, id: RecordId) -> Reply<Result<Vec<Event>, LedgerError>> {
        Reply::ready(self.inner.home(id).map(|shard| shard.events(id)))
    }

    fn stats(&self) -> Reply<Result<Stats, LedgerError>> {
        Reply::ready(self.inner.stats())
    }

    fn sweep(&self, limit: usize) -> Reply<Result<u64, LedgerError>> {
        Reply::ready(self.inner.sweep(limit))
    }

    fn enter_quarantine(&self, cause: String) -> Reply<Result<(), LedgerError>> {
        Reply::ready(self.inner.enter_quarantine(cause))
    }

    fn lift_quarantine(&self, by: String, reason: String) -> Reply<Result<(), LedgerError>> {
        Reply::ready(self.inner.lift_quarantine(&by, &reason))
    }

    fn close(&self) -> Reply<()> {
        self.inner.closed.store(true, Ordering::Release);
        Reply::ready(())
    }

    fn quarantine(&self) -> Reply<Result<Option<String>, LedgerError>> {
        Reply::ready(lock(&self.inner.quarantine).map(|cause| cause.clone()))
    }
}

impl TakesBack for Inner {
    fn take_back(&self, fence: Fence) {
        let settlement = Settlement::Released("claim_abandoned".into());
        if let Err(error) = self.settle(fence, settlement) {
            tracing::error!(record = %fence.record, %error, "an abandoned claim could not be released");
        }
    }
}

/// A claim's first try.
enum Tried {
    Outcome(ClaimOutcome),
    NoRoom(Claim),
}

impl Inner {
    fn define(&self, namespace: Arc<str>, definition: Definition) -> Result<(), DefineError> {
        let mut namespaces = lock(&self.namespaces)?;
        let stored = namespaces
            .entry(namespace)
            .or_insert_with(|| definition.clone());
        if *stored == definition {
            return Ok(());
        }
        Err(DefineError::Disagrees {
            stored: stored.clone(),
        })
    }

    fn claim(&self, mut claim: Claim) -> Result<ClaimOutcome, LedgerError> {
        if let Some(request) = &mut claim.request {
            request.body = bytes::Bytes::copy_from_slice(&request.body);
            request.headers = copied(&request.headers);
        }
        let claim = match self.try_claim(claim)? {
            Tried::Outcome(outcome) => return Ok(outcome),
            Tried::NoRoom(claim) => claim,
        };
        if self.sweep(SWEEP_FOR_ROOM)? == 0 {
            return Err(LedgerError::Full);
        }
        match self.try_claim(claim)? {
            Tried::Outcome(outcome) => Ok(outcome),
            Tried::NoRoom(_) => Err(LedgerError::Full),
        }
    }

    fn try_claim(&self, claim: Claim) -> Result<Tried, LedgerError> {
        let moment = self.moment();
        // Held over the whole claim: two at once about one subject see each other.
        let mut subjects = match &claim.subject {
            Some(_) => Some(lock(&self.subjects)?),
            None => None,
        };
        let index = self.hasher.hash_one(&claim.key.message) % SHARDS;
        let known = self.shard(index)?.find(&claim.key);
        let siblings = match &subjects {
            Some(subjects) => self.siblings(subjects, &claim, known, moment.now)?,
            None => Siblings::default(),
        };
        let mut shard = self.shard(index)?;
        if let Some(id) = shard.find(&claim.key) {
            let outcome = self.step(&mut shard, id, |entry| {
                transition::claim_again(entry, &claim, siblings, moment)
            });
            // The key's record is there; were it not, nothing would be run.
            return Ok(Tried::Outcome(outcome.unwrap_or(ClaimOutcome::Unfamiliar)));
        }
        if !transition::admits(&claim) {
            return Ok(Tried::Outcome(ClaimOutcome::Unfamiliar));
        }
        let before = shard::first_charge(&claim);
        if !self.reserve(before) {
            return Ok(Tried::NoRoom(claim));
        }
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let id = RecordId(number * SHARDS + index);
        if let (Some(subjects), Some(place)) = (&mut subjects, SubjectPlace::of(&claim)) {
            subjects.entry(place).or_default().push(id);
        }
        let (entry, step) = transition::create(claim, id, siblings, moment);
        let after = shard.insert(entry, step.event);
        self.charge(&shard::Charge { before, after });
        Ok(Tried::Outcome(step.reply))
    }

    fn permit(&self, fence: Fence) -> Result<SendPermit, PermitError> {
        let asked = Instant::now();
        let shard = self.home(fence.record)?;
        let entry = shard.entry(fence.record).ok_or(PermitError::Fenced)?;
        let good_for = transition::permit(entry, fence, self.clock.now())?;
        Ok(SendPermit {
            valid_until: asked + good_for,
        })
    }

    fn settle(&self, fence: Fence, settlement: Settlement) -> Result<Settled, LedgerError> {
        let settlement = match settlement {
            Settlement::Done(answer, cause) => Settlement::Done(detached(&answer), cause),
            other => other,
        };
        let moment = self.moment();
        let mut shard = self.home(fence.record)?;
        let settled = self.step(&mut shard, fence.record, |entry| {
            transition::settle(entry, fence, settlement, moment)
        });
        Ok(settled.unwrap_or(Settled::Superseded(State::Done)))
    }

    fn resolve(&self, mut resolution: Resolution) -> Result<Record, ResolveError> {
        if let Verdict::Applied(answer) | Verdict::Rejected(answer) = &mut resolution.verdict {
            *answer = detached(answer);
        }
        let moment = self.moment();
        self.word(resolution.id, |entry| {
            transition::resolve(entry, resolution, moment)
        })
    }

    /// What other records say about the claim's subject.
    fn siblings(
        &self,
        subjects: &Subjects,
        claim: &Claim,
        known: Option<RecordId>,
        now: SystemTime,
    ) -> Result<Siblings, LedgerError> {
        let mut siblings = Siblings::default();
        let (Some(place), Some(subject)) = (SubjectPlace::of(claim), &claim.subject) else {
            return Ok(siblings);
        };
        for id in subjects.get(&place).into_iter().flatten() {
            if Some(*id) == known {
                continue;
            }
            if let Some(other) = self.home(*id)?.entry(*id) {
                siblings.add(other, &subject.rule, now);
            }
        }
        Ok(siblings)
    }

    /// Somebody's word on a record: refused, or carried out and shown.
    fn word(
        &self,
        id: RecordId,
        word: impl FnOnce(&mut Entry) -> Result<Step<()>, ResolveError>,
    ) -> Result<Record, ResolveError> {
        let mut shard = self.home(id)?;
        let resolved = self.step(&mut shard, id, |entry| match word(entry) {
            Ok(step) => Step {
                reply: Ok(entry.record.clone()),
                event: step.event,
                changed: step.changed,
            },
            Err(error) => Step {
                reply: Err(error),
                event: None,
                changed: false,
            },
        });
        resolved.unwrap_or(Err(ResolveError::NotFound))
    }

    fn lapse(&self, owner: Owner) -> Result<u64, LedgerError> {
        let mut lapsed = 0;
        for index in 0..SHARDS {
            let mut shard = self.shard(index)?;
            for id in shard.claimed() {
                let moment = self.moment();
                let was = self.step(&mut shard, id, |entry| {
                    transition::lapse(entry, owner, moment)
                });
                lapsed += u64::from(was == Some(true));
            }
        }
        Ok(lapsed)
    }

    /// Walks the numbers in windows: each is one record's, so that the walk is bounded by records.
    async fn list(self: Arc<Self>, filter: Filter) -> Result<Page, LedgerError> {
        let limit = filter.limit.min(LIST_LIMIT);
        let mut found = Vec::new();
        let mut from = filter.after.map_or(0, |RecordId(id)| id.saturating_add(1));
        // One more than was asked for tells whether there is more.
        while limit > 0 && found.len() <= limit {
            let end = from.saturating_add(SCAN_WINDOW * SHARDS);
            let mut window = Vec::new();
            let mut next = None;
            for index in 0..SHARDS {
                let ahead = self.shard(index)?.scan(from..end, &filter, &mut window);
                next = [next, ahead].into_iter().flatten().min();
            }
            window.sort_unstable_by_key(|record: &Record| record.id);
            found.append(&mut window);
            let Some(RecordId(next)) = next else { break };
            from = next;
            tokio::task::yield_now().await; // a long list shares its thread with requests
        }
        let more = found.len() > limit;
        found.truncate(limit);
        let next = found.last().map(|record| record.id).filter(|_| more);
        Ok(Page {
            records: found,
            next,
        })
    }

    fn stats(&self) -> Result<Stats, LedgerError> {
        let now = self.clock.now();
        let mut stats = Stats::default();
        for index in 0..SHARDS {
            self.shard(index)?.add_to(&mut stats, now);
        }
        Ok(stats)
    }

    fn sweep(&self, limit: usize) -> Result<u64, LedgerError> {
        self.sweep_at(self.clock.now(), self.clock.monotonic(), limit)
    }

    fn sweep_at(
        &self,
        wall: SystemTime,
        monotonic: Duration,
        limit: usize,
    ) -> Result<u64, LedgerError> {
        let Some(now) = lock(&self.sweep_clock)?.observe(wall, monotonic) else {
            tracing::warn!("the wall clock jumped: nothing is forgotten by its new time");
            return Ok(0);
        };
        let mut left = limit;
        // Each sweep starts at another shard, so that small limits reach all of them.
        let first = self.next_swept.fetch_add(1, Ordering::Relaxed) as u64;
        for index in (0..SHARDS).map(|offset| first.wrapping_add(offset) % SHARDS) {
            while left > 0 {
                let chunk = left.min(SWEEP_CHUNK);
                let forgotten = self.shard(index)?.forget(now, chunk);
                self.forget_subjects(&forgotten)?;
                for slot in &forgotten {
                    self.records.fetch_sub(1, Ordering::Relaxed);
                    self.bytes.fetch_sub(slot.charge, Ordering::Relaxed);
                }
                left -= forgotten.len();
                if forgotten.len() < chunk {
                    break;
                }
            }
        }
        Ok((limit - left) as u64)
    }

    fn forget_subjects(&self, forgotten: &[Box<shard::Slot>]) -> Result<(), LedgerError> {
        let about = |slot: &shard::Slot| SubjectPlace::of_entry(slot.entry());
        if forgotten.iter().all(|slot| about(slot).is_none()) {
            return Ok(());
        }
        let mut subjects = lock(&self.subjects)?;
        for slot in forgotten {
            let Some(place) = about(slot) else { continue };
            let id = slot.entry().record.id;
            if let Some(ids) = subjects.get_mut(&place) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    subjects.remove(&place);
                }
            }
        }
        Ok(())
    }

    fn enter_quarantine(&self, cause: String) -> Result<(), LedgerError> {
        let mut quarantine = lock(&self.quarantine)?;
        let generation = self.generation.load(Ordering::Acquire) / 2;
        self.generation
            .store((generation + 1) * 2 + 1, Ordering::Release);
        *quarantine = Some(cause);
        Ok(())
    }

    fn lift_quarantine(&self, by: &str, reason: &str) -> Result<(), LedgerError> {
        if !transition::is_attributed(by, reason) {
            return Err(LedgerError::Failed(ResolveError::NoReason.to_string()));
        }
        let mut quarantine = lock(&self.quarantine)?;
        if quarantine.take().is_some() {
            self.generation.fetch_and(!1, Ordering::AcqRel);
            // A volatile store has nowhere better to keep who it was.
            tracing::warn!(by, reason, "the ledger's quarantine was lifted");
        }
        Ok(())
    }

    /// One record's step under its shard's lock; none if there is no such record.
    fn step<T>(
        &self,
        shard: &mut Shard,
        id: RecordId,
        step: impl FnOnce(&mut Entry) -> Step<T>,
    ) -> Option<T> {
        let (reply, charge) = shard.step(id, step)?;
        self.charge(&charge);
        Some(reply)
    }

    fn charge(&self, charge: &shard::Charge) {
        if charge.after > charge.before {
            self.bytes
                .fetch_add(charge.after - charge.before, Ordering::Relaxed);
        } else if charge.before > charge.after {
            self.bytes
                .fetch_sub(charge.before - charge.after, Ordering::Relaxed);
        }
    }

    /// Takes room for one more record, if there is any.
    fn reserve(&self, charge: usize) -> bool {
        let take = |total: &AtomicUsize, amount: usize, limit: usize| {
            total
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                    now.checked_add(amount).filter(|sum| *sum <= limit)
                })
                .is_ok()
        };
        if !take(&self.records, 1, self.limits.max_records) {
            return false;
        }
        if !take(&self.bytes, charge, self.limits.max_bytes) {
            self.records.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn moment(&self) -> Moment {
        let generation = self.generation.load(Ordering::Acquire);
        Moment {
            now: self.clock.now(),
            generation: generation / 2,
            quarantined: generation % 2 == 1,
        }
    }

    fn home(&self, id: RecordId) -> Result<MutexGuard<'_, Shard>, LedgerError> {
        self.shard(id.0 % SHARDS)
    }

    fn shard(&self, index: u64) -> Result<MutexGuard<'_, Shard>, LedgerError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(LedgerError::Failed("it is closed".to_owned()));
        }
        lock(&self.shards[index as usize])
    }
}

/// A mutex that somebody panicked under may guard half a change: nothing is run on a guess.
fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>, LedgerError> {
    mutex
        .lock()
        .map_err(|_| LedgerError::Failed("a panic left the memory store unsure".to_owned()))
}

/// A copy with its own small buffers: body and header values are slices of the connection's read
/// buffer, which would be kept alive, many times their size, as long as the record.
fn detached(answer: &KeptAnswer) -> KeptAnswer {
    KeptAnswer {
        status: answer.status,
        headers: copied(&answer.headers),
        body: bytes::Bytes::copy_from_slice(&answer.body),
    }
}

fn copied(headers: &[(HeaderName, HeaderValue)]) -> Vec<(HeaderName, HeaderValue)> {
    let copied = |value: &HeaderValue| {
        let mut copy = HeaderValue::from_bytes(value.as_bytes()).ok()?;
        copy.set_sensitive(value.is_sensitive());
        Some(copy)
    };
    let headers = headers.iter();
    headers
        .map(|(name, value)| (name.clone(), copied(value).unwrap_or_else(|| value.clone())))
        .collect()
}
