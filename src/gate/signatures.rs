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

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::tiki::Mac;

use super::refusal::{Overload, Refusal, Reuse};

/// Tiki's last re-send comes 43 h 36 min after the first try (docs/protocol.md, "Retries"); rounded up.
pub const RESEND_HORIZON: Duration = Duration::from_secs(44 * 3600);

const SHARDS: usize = 64;

/// Stands for no route: the gate's own outbound calls.
const OURS: usize = u32::MAX as usize;

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

/// What is remembered of one signature.
#[derive(Clone, Copy, Debug)]
struct Entry {
    route: u32,
    /// The backend gave it a final answer.
    answered: bool,
    /// It was accepted and answered 5xx, so that Tiki may send it again unchanged.
    expected_again: bool,
    /// On the monotonic clock of the gate.
    expires: Duration,
}

#[derive(Default)]
struct Shard {
    entries: HashMap<SignatureKey, Entry, RandomState>,
    /// When to look at which entry; an entry that was extended is looked at again then.
    expiries: BinaryHeap<Reverse<(Duration, u128)>>,
    /// Entries that are kept for a late re-send.
    expected: usize,
}

/// The memory itself, shared by all workers. One short lock of one of its 64 parts per call.
pub struct Signatures {
    shards: Vec<Mutex<Shard>>,
    per_shard: usize,
    /// Those that the gate made itself, in a memory of their own: however many calls go out, no call that
    /// comes in finds less room. Empty as long as none was made.
    ours: OnceLock<Box<Signatures>>,
}

impl Signatures {
    /// Remembers at most about `max` signatures at once.
    pub fn new(max: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            per_shard: max.div_ceil(SHARDS).max(1),
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
        let mut shard = self.shard(key);
        shard.forget_expired(now);
        if let Some(entry) = shard.entries.get(&key) {
            if entry.route as usize != route {
                return Err(Refusal::Replayed(Reuse::OtherRoute));
            }
            if entry.answered && once {
                return Err(Refusal::Replayed(Reuse::Answered));
            }
            return Ok(true);
        }
        if shard.entries.len() >= self.per_shard {
            return Err(Refusal::Overloaded(Overload::Signatures));
        }
        shard.insert(key, route, now + lifetime);
        Ok(false)
    }

    /// Remembers a signature that the gate made itself: it counts on no route. Whether there was room.
    pub(super) fn is_ours(&self, key: SignatureKey, now: Duration, lifetime: Duration) -> bool {
        let ours = self.ours.get_or_init(|| {
            let max = self.per_shard.saturating_mul(SHARDS);
            Box::new(Signatures::new(max))
        });
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
        let mut shard = self.shard(key);
        shard.forget_expired(now);
        match shard.entries.get(&key) {
            None => Ok(false),
            Some(entry) if entry.route as usize != route => {
                Err(Refusal::Replayed(Reuse::OtherRoute))
            }
            Some(entry) if entry.answered && once => Err(Refusal::Replayed(Reuse::Answered)),
            Some(entry) => Ok(entry.expected_again),
        }
    }

    /// Notes that a known signature was answered 5xx, or not at all, and keeps it for as long as
    /// Tiki may send it again unchanged. At most half of the memory is kept so, lest a long outage
    /// shuts out new calls; what finds no room is `out_of_window` when it comes late.
    pub(super) fn expect_again(&self, key: SignatureKey, now: Duration) {
        let mut guard = self.shard(key);
        let shard = &mut *guard;
        let Some(entry) = shard.entries.get_mut(&key) else {
            return;
        };
        if !entry.expected_again {
            if shard.expected >= self.per_shard.div_ceil(2) {
                return;
            }
            shard.expected += 1;
            entry.expected_again = true;
        }
        entry.expires = entry.expires.max(now + RESEND_HORIZON);
    }

    /// Notes that the backend gave the call its final answer.
    pub(super) fn answered(&self, key: SignatureKey) {
        if let Some(entry) = self.shard(key).entries.get_mut(&key) {
            entry.answered = true;
        }
    }

    /// Whether anything is remembered of it.
    pub(super) fn knows(&self, key: SignatureKey) -> bool {
        self.shard(key).entries.contains_key(&key)
    }

    /// Whether the backend gave the call its final answer.
    pub(super) fn is_answered(&self, key: SignatureKey) -> bool {
        let shard = self.shard(key);
        shard.entries.get(&key).is_some_and(|entry| entry.answered)
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| lock(shard).entries.len())
            .sum()
    }

    /// Refuses what the gate made itself: it counts on no route.
    fn refuse_ours(&self, key: SignatureKey, now: Duration) -> Result<(), Refusal> {
        let Some(ours) = self.ours.get() else {
            return Ok(());
        };
        let mut shard = ours.shard(key);
        shard.forget_expired(now);
        match shard.entries.contains_key(&key) {
            true => Err(Refusal::Replayed(Reuse::OtherRoute)),
            false => Ok(()),
        }
    }

    fn shard(&self, key: SignatureKey) -> MutexGuard<'_, Shard> {
        lock(&self.shards[key.spread(SHARDS)])
    }
}

/// A panic while the lock was held leaves a map whose entries are each whole: go on with it.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    fn insert(&mut self, key: SignatureKey, route: usize, expires: Duration) {
        let entry = Entry {
            route: u32::try_from(route).unwrap_or(u32::MAX),
            answered: false,
            expected_again: false,
            expires,
        };
        self.entries.insert(key, entry);
        self.expiries.push(Reverse((expires, key.0)));
    }

    fn forget_expired(&mut self, now: Duration) {
        while let Some(&Reverse((due, key))) = self.expiries.peek() {
            // The windows' bounds are inside them: so is an entry's last moment.
            if due >= now {
                return;
            }
            self.expiries.pop();
            let key = SignatureKey(key);
            match self.entries.get(&key) {
                Some(entry) if entry.expires >= now => {
                    self.expiries.push(Reverse((entry.expires, key.0)));
                }
                _ => {
                    let gone = self.entries.remove(&key);
                    let was_expected = gone.is_some_and(|entry| entry.expected_again);
                    self.expected -= usize::from(was_expected);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn key(number: u128) -> SignatureKey {
        SignatureKey(number)
    }

    #[test]
    fn a_signature_belongs_to_the_route_that_took_it_first() {
        let signatures = Signatures::new(1000);
        assert_eq!(signatures.bind(key(7), 1, false, MINUTE, MINUTE), Ok(false));
        assert_eq!(signatures.bind(key(7), 1, false, MINUTE, MINUTE), Ok(true));
        assert_eq!(
            signatures.bind(key(7), 2, false, MINUTE, MINUTE),
            Err(Refusal::Replayed(Reuse::OtherRoute))
        );
        assert_eq!(
            signatures.recall(key(7), 2, false, MINUTE),
            Err(Refusal::Replayed(Reuse::OtherRoute))
        );
    }

    /// However many calls go out, no call that comes in finds less room; and none that went out comes in.
    #[test]
    fn what_the_gate_made_itself_counts_on_no_route_and_takes_nobodys_room() {
        let signatures = Signatures::new(SHARDS);
        for number in 0..SHARDS as u128 {
            assert!(signatures.is_ours(key(number), MINUTE, MINUTE));
        }
        assert!(
            !signatures.is_ours(key(SHARDS as u128), MINUTE, MINUTE),
            "its own bound"
        );
        for number in 0..SHARDS as u128 {
            let replayed = Err(Refusal::Replayed(Reuse::OtherRoute));
            assert_eq!(
                signatures.bind(key(number), 1, false, MINUTE, MINUTE),
                replayed
            );
            assert_eq!(signatures.recall(key(number), 1, false, MINUTE), replayed);
            let theirs = key(number + 1000 * SHARDS as u128);
            assert_eq!(signatures.bind(theirs, 1, false, MINUTE, MINUTE), Ok(false));
        }
        // As long as any route would take it, and no longer.
        assert_eq!(signatures.recall(key(1), 1, false, 3 * MINUTE), Ok(false));
        assert!(signatures.is_ours(key(SHARDS as u128), 3 * MINUTE, MINUTE));
    }

    #[test]
    fn a_finally_answered_signature_counts_once_where_that_is_asked() {
        let signatures = Signatures::new(1000);
        assert_eq!(signatures.bind(key(7), 1, true, MINUTE, MINUTE), Ok(false));
        assert_eq!(signatures.bind(key(7), 1, true, MINUTE, MINUTE), Ok(true));
        signatures.answered(key(7));
        assert_eq!(
            signatures.bind(key(7), 1, true, MINUTE, MINUTE),
            Err(Refusal::Replayed(Reuse::Answered))
        );
        assert_eq!(signatures.bind(key(7), 1, false, MINUTE, MINUTE), Ok(true));
    }

    #[test]
    fn entries_go_when_their_time_is_over_and_stay_when_extended() {
        let signatures = Signatures::new(1000);
        assert_eq!(
            signatures.bind(key(64), 1, false, MINUTE, MINUTE),
            Ok(false)
        );
        assert_eq!(
            signatures.bind(key(128), 1, false, MINUTE, MINUTE),
            Ok(false)
        );
        assert_eq!(signatures.recall(key(128), 1, false, MINUTE), Ok(false));
        signatures.expect_again(key(128), MINUTE);
        let later = 3 * MINUTE;
        assert_eq!(signatures.recall(key(64), 1, false, later), Ok(false));
        assert_eq!(signatures.recall(key(128), 1, false, later), Ok(true));
        assert_eq!(signatures.len(), 1);
        let last = MINUTE + RESEND_HORIZON;
        assert_eq!(signatures.recall(key(128), 1, false, last), Ok(true));
        let last = last + Duration::from_nanos(1);
        assert_eq!(signatures.recall(key(128), 1, false, last), Ok(false));
        assert_eq!(signatures.len(), 0);
    }

    #[test]
    fn an_outage_leaves_half_of_the_memory_to_new_calls() {
        let signatures = Signatures::new(4 * SHARDS);
        let calls: Vec<_> = (0..4).map(|number| key(number * SHARDS as u128)).collect();
        for call in &calls {
            assert_eq!(signatures.bind(*call, 1, false, MINUTE, MINUTE), Ok(false));
            signatures.expect_again(*call, MINUTE);
        }
        let later = 3 * MINUTE;
        let kept = calls
            .iter()
            .filter(|call| signatures.recall(**call, 1, false, later) == Ok(true));
        assert_eq!(kept.count(), 2);
        assert_eq!(
            signatures.bind(key(4 * SHARDS as u128), 1, false, later, MINUTE),
            Ok(false)
        );
        // Where their time is over, others find room.
        let much_later = MINUTE + RESEND_HORIZON + MINUTE;
        assert_eq!(
            signatures.bind(calls[0], 1, false, much_later, MINUTE),
            Ok(false)
        );
        signatures.expect_again(calls[0], much_later);
        assert_eq!(
            signatures.recall(calls[0], 1, false, much_later + 2 * MINUTE),
            Ok(true)
        );
    }

    #[test]
    fn a_full_memory_refuses_rather_than_forgets() {
        let signatures = Signatures::new(SHARDS);
        assert_eq!(signatures.bind(key(0), 1, false, MINUTE, MINUTE), Ok(false));
        assert_eq!(
            signatures.bind(key(64), 1, false, MINUTE, MINUTE),
            Err(Refusal::Overloaded(Overload::Signatures))
        );
        assert_eq!(signatures.bind(key(0), 1, false, MINUTE, MINUTE), Ok(true));
        let later = 2 * MINUTE + Duration::from_nanos(1);
        assert_eq!(signatures.bind(key(64), 1, false, later, MINUTE), Ok(false));
    }
}
