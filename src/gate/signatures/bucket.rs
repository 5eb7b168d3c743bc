//! One part of the memory of signatures: entries of 10 bytes in the order of their keys.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// By how many entries a bucket grows. It has room for at most twice as many that are not there. Few, for the
/// sake of the heap: what a bucket has outgrown is a hole that fits no other. A million entries, which are
/// 9.5 MiB, take 10.7 MiB of the heap, with steps of 4 11.0 MiB. Larger and fewer buckets take no less.
const STEP: usize = 2;

/// How many bits of a key are kept.
pub(super) const KEY_BITS: u32 = 56;

/// What an entry holds beside its key is one number, in this order from its lowest bit: its last moment as
/// [`Moment`]s after the bucket's beginning, its route, and two flags.
const AFTER_BITS: u32 = 16;
const ROUTE_BITS: u32 = 6;
/// Three days: a signature is accepted for two at most, and the beginning is moved when it lies too far back.
const MAX_AFTER: u32 = (1 << AFTER_BITS) - 1;
/// Stands for a route whose number is too large for an entry.
const FAR: u32 = (1 << ROUTE_BITS) - 1;
const ROUTE: u32 = FAR << AFTER_BITS;
const ANSWERED: u32 = 1 << (AFTER_BITS + ROUTE_BITS);
const EXPECTED_AGAIN: u32 = ANSWERED << 1;

/// How many seconds are one moment.
pub(super) const SECONDS: u64 = 4;

/// A time on the monotonic clock of the gate in units of [`SECONDS`], rounded up: as an entry's last moment
/// never too early, and as the present no later than that as long as the entry lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) u32);

impl From<Duration> for Moment {
    fn from(time: Duration) -> Self {
        let begun = u64::from(time.subsec_nanos() > 0);
        let seconds = time.as_secs().saturating_add(begun);
        Self(u32::try_from(seconds.div_ceil(SECONDS)).unwrap_or(u32::MAX))
    }
}

/// How many there are of something that is bounded, over all buckets. Nothing else is read by its word,
/// so that its order among other memory is no matter.
#[derive(Debug)]
pub(super) struct Count {
    current: AtomicUsize,
    max: usize,
}

impl Count {
    fn new(max: usize) -> Self {
        Self {
            current: AtomicUsize::new(0),
            max,
        }
    }

    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Counts one more, if there may be one more.
    pub(super) fn take(&self) -> bool {
        let one_more = |count| (count < self.max).then_some(count + 1);
        let update = self
            .current
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        update.is_ok()
    }

    fn give_back(&self, count: usize) {
        self.current.fetch_sub(count, Ordering::Relaxed);
    }
}

/// The entries of all buckets.
#[derive(Debug)]
pub(super) struct Counts {
    /// Those that are there, whether or not their time is over.
    pub(super) all: Count,
    /// Those that are kept for a late re-send.
    pub(super) expected: Count,
}

impl Counts {
    /// At most `max`, half of them for a late re-send.
    pub(super) fn new(max: usize) -> Self {
        Self {
            all: Count::new(max),
            expected: Count::new(max.div_ceil(2)),
        }
    }
}

/// What is remembered of one signature: seven bytes of its key, and three of all else. Of bytes, so that
/// none is lost to alignment.
#[derive(Clone, Copy)]
struct Entry([u8; 10]);

impl Entry {
    fn new(key: u64, route: u32, after: u32) -> Self {
        let [_, a, b, c, d, e, f, g] = key.to_be_bytes();
        let mut entry = Self([a, b, c, d, e, f, g, 0, 0, 0]);
        entry.set_rest(route << AFTER_BITS | after);
        entry
    }

    fn key(&self) -> u64 {
        let [a, b, c, d, e, f, g, ..] = self.0;
        u64::from_be_bytes([0, a, b, c, d, e, f, g])
    }

    fn rest(&self) -> u32 {
        let [.., a, b, c] = self.0;
        u32::from_be_bytes([0, a, b, c])
    }

    fn set_rest(&mut self, rest: u32) {
        self.0[7..].copy_from_slice(&rest.to_be_bytes()[1..]);
    }

    fn route(&self) -> u32 {
        (self.rest() & ROUTE) >> AFTER_BITS
    }

    fn has(&self, flag: u32) -> bool {
        self.rest() & flag != 0
    }

    fn set(&mut self, flag: u32) {
        self.set_rest(self.rest() | flag);
    }

    fn expires(&self, begins: Moment) -> Moment {
        Moment(begins.0.saturating_add(self.after()))
    }

    /// Its last moment, counted from its bucket's beginning.
    fn after(&self) -> u32 {
        self.rest() & MAX_AFTER
    }

    fn set_after(&mut self, after: u32) {
        self.set_rest(self.rest() & !MAX_AFTER | after);
    }
}

/// What a bucket says of a signature that a route asks about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// This route took it.
    pub(super) here: bool,
    /// The backend gave it a final answer.
    pub(super) answered: bool,
    /// It was accepted and answered 5xx, so that Tiki may send it again unchanged.
    pub(super) expected_again: bool,
}

/// Entries in the order of their keys, no two with the same.
#[derive(Default)]
pub(super) struct Bucket {
    entries: Vec<Entry>,
    /// What the entries count their last moments from. None of them ended before it.
    begins: Moment,
    /// The routes that an entry has no room for: of a gate that has had more than 63 routes.
    far: Option<Box<FarRoutes>>,
}

/// Numbers of routes by key, in no order.
#[derive(Default)]
struct FarRoutes(Vec<(u64, usize)>);

impl Bucket {
    /// What is known of a key whose time is not over.
    pub(super) fn known(
        &mut self,
        key: u64,
        route: usize,
        now: Moment,
        counts: &Counts,
    ) -> Option<Known> {
        let entry = self.living(key, now, counts)?;
        Some(Known {
            here: match entry.route() {
                FAR => self.far_route(key) == Some(route),
                near => usize::try_from(near) == Ok(route),
            },
            answered: entry.has(ANSWERED),
            expected_again: entry.has(EXPECTED_AGAIN),
        })
    }

    /// Whether a key is known whose time is not over.
    pub(super) fn knows(&mut self, key: u64, now: Moment, counts: &Counts) -> bool {
        self.living(key, now, counts).is_some()
    }

    /// Adds a key that is not there, if there may be one more and its time is not longer than any is.
    pub(super) fn insert(
        &mut self,
        key: u64,
        route: usize,
        expires: Moment,
        now: Moment,
        counts: &Counts,
    ) -> bool {
        let full = self.entries.len() == self.entries.capacity();
        let taken = !full && counts.all.take();
        if !taken {
            self.forget_expired(now, counts);
            if !counts.all.take() {
                return false;
            }
        }
        let Some(after) = self.after(expires, now, None, counts) else {
            counts.all.give_back(1);
            return false;
        };
        let near = u32::try_from(route).ok().filter(|near| *near < FAR);
        if near.is_none() {
            let far = &mut self.far.get_or_insert_default().0;
            if far.len() == far.capacity() {
                far.reserve_exact(STEP);
            }
            far.push((key, route));
        }
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact(STEP);
        }
        let entry = Entry::new(key, near.unwrap_or(FAR), after);
        let place = self.entries.partition_point(|entry| entry.key() < key);
        self.entries.insert(place, entry);
        true
    }

    /// Keeps what is there for a late re-send, until then at least. False for want of room.
    pub(super) fn keep(&mut self, key: u64, until: Moment, now: Moment, counts: &Counts) -> bool {
        if self.find(key).is_none() {
            return true;
        }
        let after = self.after(until, now, Some(key), counts);
        let (Some(after), Some(entry)) = (after, self.get_mut(key)) else {
            return false;
        };
        if !entry.has(EXPECTED_AGAIN) {
            if !counts.expected.take() {
                return false;
            }
            entry.set(EXPECTED_AGAIN);
        }
        entry.set_after(entry.after().max(after));
        true
    }

    pub(super) fn set_answered(&mut self, key: u64) {
        if let Some(entry) = self.get_mut(key) {
            entry.set(ANSWERED);
        }
    }

    pub(super) fn is_answered(&mut self, key: u64) -> bool {
        self.get_mut(key).is_some_and(|entry| entry.has(ANSWERED))
    }

    /// Forgets what is over, and gives back room for more than a few.
    pub(super) fn forget_expired(&mut self, now: Moment, counts: &Counts) {
        self.forget_expired_but(None, now, counts);
    }

    fn forget_expired_but(&mut self, spared: Option<u64>, now: Moment, counts: &Counts) {
        let before = self.entries.len();
        let mut expected = 0;
        let begins = self.begins;
        self.entries.retain(|entry| {
            let lives = entry.expires(begins) >= now || spared == Some(entry.key());
            expected += usize::from(!lives && entry.has(EXPECTED_AGAIN));
            lives
        });
        let left = self.entries.len();
        if left == before {
            return;
        }
        counts.all.give_back(before - left);
        counts.expected.give_back(expected);
        if let Some(mut far) = self.far.take() {
            far.0.retain(|(key, _)| self.find(*key).is_some());
            far.0.shrink_to(far.0.len() + STEP);
            self.far = (!far.0.is_empty()).then_some(far);
        }
        if self.entries.capacity() - left > 2 * STEP {
            self.entries.shrink_to(left + STEP);
        }
    }

    fn living(&mut self, key: u64, now: Moment, counts: &Counts) -> Option<Entry> {
        let entry = self.entries[self.find(key)?];
        if entry.expires(self.begins) >= now {
            return Some(entry);
        }
        self.forget_expired(now, counts);
        None
    }

    /// A moment as an entry counts it; none: it lies too far ahead. What is over may be forgotten for that,
    /// all but one.
    fn after(
        &mut self,
        moment: Moment,
        now: Moment,
        spared: Option<u64>,
        counts: &Counts,
    ) -> Option<u32> {
        if self.entries.is_empty() || self.is_far_from_its_beginning(moment) {
            self.forget_expired_but(spared, now, counts);
            let later = now.0.saturating_sub(self.begins.0);
            for entry in &mut self.entries {
                entry.set_after(entry.after().saturating_sub(later));
            }
            self.begins.0 += later;
        }
        (!self.is_far_from_its_beginning(moment)).then(|| moment.0.saturating_sub(self.begins.0))
    }

    fn is_far_from_its_beginning(&self, moment: Moment) -> bool {
        moment.0.saturating_sub(self.begins.0) > MAX_AFTER
    }

    fn far_route(&self, key: u64) -> Option<usize> {
        let mut far = self.far.as_ref()?.0.iter();
        far.find(|(of, _)| *of == key).map(|(_, route)| *route)
    }

    fn find(&self, key: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&key, Entry::key).ok()
    }

    fn get_mut(&mut self, key: u64) -> Option<&mut Entry> {
        let place = self.find(key)?;
        self.entries.get_mut(place)
    }

    /// What its entries take, beside itself.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    #[cfg(test)]
    pub(super) fn remembers_far_routes(&self) -> bool {
        self.far.is_some()
    }
}
