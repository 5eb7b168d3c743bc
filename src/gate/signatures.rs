//! The bounded memory of signatures that were accepted.
//!
//! Tiki signs neither method nor path nor route, so a signature that one route accepted must not
//! count on another, nor twice on a route that has no idempotency key. And a call that arrived in
//! its time window and was answered 5xx may come again unchanged for two days: its signature is
//! remembered, so that the late re-send counts.
//!
//! An entry lives as long as its signature could be accepted somewhere. When the memory is full of
//! such entries, further signatures are refused (`overloaded`) rather than older ones forgotten:
//! forgetting would let a captured call in a second time.
//!
//! An entry takes 10 bytes, and less than 11 with all that is around it. Entries lie in many small
//! buckets, each sorted and grown by a few entries at a time: one large table would be up to twice
//! as large as it has to be, and be moved while somebody waits. What is over is forgotten bucket by
//! bucket, another one with each entry that is added, and by a sweep before anything is refused for
//! want of room.

mod bucket;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::tiki::Mac;

use super::refusal::{Overload, Refusal, Reuse};
use bucket::{Bucket, Counts, KEY_BITS, Known, Moment};

/// Tiki's last re-send comes 43 h 36 min after the first try (docs/protocol.md, "Retries"); rounded up.
pub const RESEND_HORIZON: Duration = Duration::from_secs(44 * 3600);

const MIN_BUCKETS: usize = 64;
const MAX_BUCKETS: usize = 1 << 20;
/// In a bucket of a full memory are between this many entries and twice as many.
const FILL: usize = 180;

/// Buckets that are swept at once: two million entries, some milliseconds. Keys are spread evenly, so
/// that where these buckets hold nothing that is over, the others of a larger memory hold next to
/// nothing.
const SWEEP: usize = 8_192;

/// Stands for a route in the memory of the gate's own outbound calls, where all are of none.
const OURS: usize = 0;

/// The first half of a MAC. It is over timestamp, client and message under the client's secret, so
/// that half of it names the signature: nobody without the secret can choose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SignatureKey(u128);

impl SignatureKey {
    /// Its place among `shards` parts.
    pub(super) fn spread(self, shards: usize) -> usize {
        self.0 as usize % shards
    }
}

impl From<&Mac> for SignatureKey {
    fn from(mac: &Mac) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&mac.as_bytes()[..16]);
        Self(u128::from_be_bytes(half))
    }
}

/// The memory itself, shared by all workers. A short lock of its own bucket per call, and of another one
/// for each signature that is new.
///
/// Of a key the bucket's number and 56 more bits count, and the rest is not kept. Two signatures are
/// taken for one where all of these are the same: with at most some 360 others in its bucket, less than
/// one call in 10^14 meets another's entry (a thousand calls a second for three thousand years), and is
/// refused or has it for its own. Nobody can bring that about: without the secret no bit of a MAC can be
/// chosen, and what is not authentic is tied to nothing.
pub struct Signatures {
    /// As many as a power of two.
    buckets: Vec<Mutex<Bucket>>,
    counts: Counts,
    /// The bucket that is cleaned next.
    next: AtomicUsize,
    /// When buckets were last swept, as a [`Moment`].
    swept: AtomicU32,
    max: usize,
    /// Those that the gate made itself, in a memory of their own: however many calls go out, no call that
    /// comes in finds less room. Empty as long as none was made.
    ours: OnceLock<Box<Signatures>>,
}

impl Signatures {
    /// Remembers at most `max` signatures at once, and at least one.
    pub fn new(max: usize) -> Self {
        let max = max.max(1);
        let wanted = (max / FILL).clamp(MIN_BUCKETS, MAX_BUCKETS);
        Self {
            buckets: (0..1 << wanted.ilog2()).map(|_| Mutex::default()).collect(),
            counts: Counts::new(max),
            next: AtomicUsize::new(0),
            swept: AtomicU32::new(0),
            max,
            ours: OnceLock::new(),
        }
    }

    /// Ties a signature to a route for `lifetime` from `now` (monotonic). Returns whether the
    /// signature was known already.
    ///
    /// # Errors
    /// [`Refusal::Replayed`] when it belongs to another route or got its final answer here and
    /// `once` is asked, [`Refusal::Overloaded`] when the memory is full.
    pub(super) fn bind(
        &self,
        key: SignatureKey,
        route: usize,
        once: bool,
        now: Duration,
        lifetime: Duration,
    ) -> Result<bool, Refusal> {
        self.refuse_ours(key, now)?;
        let expires = Moment::from(now + lifetime);
        let now = Moment::from(now);
        let tie = || {
            let (mut bucket, key) = self.bucket(key);
            if let Some(known) = bucket.known(key, route, now, &self.counts) {
                return accept(known, once).map(|()| true);
            }
            match bucket.insert(key, route, expires, now, &self.counts) {
                true => Ok(false),
                false => Err(Refusal::Overloaded(Overload::Signatures)),
            }
        };
        let mut tied = tie();
        if matches!(tied, Err(Refusal::Overloaded(_))) && self.sweep(now) {
            tied = tie();
        }
        if tied == Ok(false) {
            self.clean(1, now);
        }
        tied
    }

    /// Remembers a signature that the gate made itself: it counts on no route. Whether there was room.
    pub(super) fn is_ours(&self, key: SignatureKey, now: Duration, lifetime: Duration) -> bool {
        let ours = self
            .ours
            .get_or_init(|| Box::new(Signatures::new(self.max)));
        ours.bind(key, OURS, false, now, lifetime).is_ok()
    }

    /// Whether the signature was accepted on this route in its time and answered 5xx; ties nothing.
    ///
    /// # Errors
    /// As [`Signatures::bind`], but never for want of space.
    pub(super) fn recall(
        &self,
        key: SignatureKey,
        route: usize,
        once: bool,
        now: Duration,
    ) -> Result<bool, Refusal> {
        self.refuse_ours(key, now)?;
        let (mut bucket, key) = self.bucket(key);
        match bucket.known(key, route, now.into(), &self.counts) {
            None => Ok(false),
            Some(known) => accept(known, once).map(|()| known.expected_again),
        }
    }

    /// Notes that a known signature was answered 5xx, or not at all, and keeps it for as long as
    /// Tiki may send it again unchanged. At most half of the memory is kept so, lest a long outage
    /// shuts out new calls; what finds no room is `out_of_window` when it comes late. A signature
    /// whose time ended while its call ran is kept too, if it is still there.
    pub(super) fn expect_again(&self, key: SignatureKey, now: Duration) {
        let until = Moment::from(now + RESEND_HORIZON);
        let keep = || {
            let (mut bucket, key) = self.bucket(key);
            bucket.keep(key, until, now.into(), &self.counts)
        };
        if !keep() && self.sweep(now.into()) {
            keep();
        }
    }

    /// Notes that the backend gave the call its final answer.
    pub(super) fn answered(&self, key: SignatureKey) {
        let (mut bucket, key) = self.bucket(key);
        bucket.set_answered(key);
    }

    /// Whether anything is remembered of it.
    pub(super) fn knows(&self, key: SignatureKey, now: Duration) -> bool {
        let (mut bucket, key) = self.bucket(key);
        bucket.knows(key, now.into(), &self.counts)
    }

    /// Whether the backend gave the call its final answer. This and [`Signatures::answered`] are for calls
    /// that were let in: if a signature's time ended meanwhile, what is still there of it counts.
    pub(super) fn is_answered(&self, key: SignatureKey) -> bool {
        let (mut bucket, key) = self.bucket(key);
        bucket.is_answered(key)
    }

    /// How many are remembered.
    pub(super) fn len(&self, now: Duration) -> usize {
        self.sweep(now.into());
        self.counts.all.current()
    }

    /// Refuses what the gate made itself: it counts on no route.
    fn refuse_ours(&self, key: SignatureKey, now: Duration) -> Result<(), Refusal> {
        match self.ours.get() {
            Some(ours) if ours.knows(key, now) => Err(Refusal::Replayed(Reuse::OtherRoute)),
            _ => Ok(()),
        }
    }

    /// Cleans all buckets, or as many as may be swept at once; whether it did. Within one moment nothing
    /// more is over, so that a second time would find nothing.
    fn sweep(&self, now: Moment) -> bool {
        let due = self.swept.fetch_max(now.0, Ordering::Relaxed) < now.0;
        if due {
            self.clean(SWEEP, now);
        }
        due
    }

    /// Forgets what is over in the buckets whose turn it is, one after the other: nobody waits for all.
    fn clean(&self, count: usize, now: Moment) {
        let count = count.min(self.buckets.len());
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        for turn in 0..count {
            let bucket = &self.buckets[first.wrapping_add(turn) % self.buckets.len()];
            lock(bucket).forget_expired(now, &self.counts);
        }
    }

    /// A key's bucket, and its name there.
    fn bucket(&self, key: SignatureKey) -> (MutexGuard<'_, Bucket>, u64) {
        let buckets = self.buckets.len();
        let bucket = lock(&self.buckets[key.spread(buckets)]);
        let name = (key.0 >> buckets.ilog2()) as u64;
        (bucket, name & ((1 << KEY_BITS) - 1))
    }
}

/// Whether a signature that is known counts on the route that asks.
fn accept(known: Known, once: bool) -> Result<(), Refusal> {
    match known {
        Known { here: false, .. } => Err(Refusal::Replayed(Reuse::OtherRoute)),
        Known { answered: true, .. } if once => Err(Refusal::Replayed(Reuse::Answered)),
        _ => Ok(()),
    }
}

/// A panic while the lock was held leaves entries that are each whole: go on with them.
fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
