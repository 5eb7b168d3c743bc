//! One part of the memory of signatures: entries of 14 bytes in the order of their keys.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// By how many entries a bucket grows. It has room for at most twice as many that are not there. Few, for the
/// sake of the heap: what a bucket has outgrown is a hole that fits no other. With a million entries, which
/// are 13.4 MiB, steps of 16 took 19.5 MiB of the heap, of 4 16.1 MiB, of 2 15.5 MiB.
const STEP: usize = 2;

/// The route's part of an entry's flags.
const ROUTE: u16 = (1 << 14) - 1;
/// Stands for a route whose number is too large for an entry.
const FAR: u16 = ROUTE;
const ANSWERED: u16 = 1 << 14;
const EXPECTED_AGAIN: u16 = 1 << 15;

/// A time on the monotonic clock of the gate in whole seconds, rounded up: as an entry's last moment never
/// too early, and as the present no later than that as long as the entry lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) u32);

impl From<Duration> for Moment {
    fn from(time: Duration) -> Self {
        let begun = u64::from(time.subsec_nanos() > 0);
        let seconds = time.as_secs().saturating_add(begun);
        Self(u32::try_from(seconds).unwrap_or(u32::MAX))
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

/// What is remembered of one signature: four parts of its key, its route and two flags, and the two
/// parts of its last moment. Of parts of two bytes, so that none is lost to alignment.
#[derive(Clone, Copy)]
struct Entry([u16; 7]);

impl Entry {
    fn new(key: u64, route: u16, expires: Moment) -> Self {
        let [a, b, c, d] = [48, 32, 16, 0].map(|shift| (key >> shift) as u16);
        let mut entry = Self([a, b, c, d, route, 0, 0]);
        entry.set_expires(expires);
        entry
    }

    fn key(&self) -> u64 {
        let [a, b, c, d, ..] = self.0.map(u64::from);
        a << 48 | b << 32 | c << 16 | d
    }

    fn route(&self) -> u16 {
        self.0[4] & ROUTE
    }

    fn has(&self, flag: u16) -> bool {
        self.0[4] & flag != 0
    }

    fn set(&mut self, flag: u16) {
        self.0[4] |= flag;
    }

    fn expires(&self) -> Moment {
        Moment(u32::from(self.0[5]) << 16 | u32::from(self.0[6]))
    }

    fn set_expires(&mut self, Moment(seconds): Moment) {
        self.0[5] = (seconds >> 16) as u16;
        self.0[6] = seconds as u16;
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
    /// The routes that an entry has no room for: of a gate that has had more than 16,383 routes.
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
                near => usize::from(near) == route,
            },
            answered: entry.has(ANSWERED),
            expected_again: entry.has(EXPECTED_AGAIN),
        })
    }

    /// Whether a key is known whose time is not over.
    pub(super) fn knows(&mut self, key: u64, now: Moment, counts: &Counts) -> bool {
        self.living(key, now, counts).is_some()
    }

    /// Adds a key that is not there, if there may be one more.
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
        let near = u16::try_from(route).ok().filter(|near| *near < FAR);
        if near.is_none() {
            self.far.get_or_insert_default().0.push((key, route));
        }
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact(STEP);
        }
        let entry = Entry::new(key, near.unwrap_or(FAR), expires);
        let place = self.entries.partition_point(|entry| entry.key() < key);
        self.entries.insert(place, entry);
        true
    }

    /// Keeps what is there for a late re-send, until then at least. False for want of room.
    pub(super) fn keep(&mut self, key: u64, until: Moment, counts: &Counts) -> bool {
        let Some(entry) = self.get_mut(key) else {
            return true;
        };
        if !entry.has(EXPECTED_AGAIN) {
            if !counts.expected.take() {
                return false;
            }
            entry.set(EXPECTED_AGAIN);
        }
        entry.set_expires(entry.expires().max(until));
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
        let before = self.entries.len();
        let mut expected = 0;
        self.entries.retain(|entry| {
            let lives = entry.expires() >= now;
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
            self.far = (!far.0.is_empty()).then_some(far);
        }
        if self.entries.capacity() - left > 2 * STEP {
            self.entries.shrink_to(left + STEP);
        }
    }

    fn living(&mut self, key: u64, now: Moment, counts: &Counts) -> Option<Entry> {
        let entry = self.entries[self.find(key)?];
        if entry.expires() >= now {
            return Some(entry);
        }
        self.forget_expired(now, counts);
        None
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
