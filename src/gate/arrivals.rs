//! When a signature was first seen whose call was refused, 5xx, before anybody could verify it.
//!
//! A limit, a full memory or a slow body refuses calls that may be Tiki's, and Tiki sends them again
//! unchanged, outside their time window by then. That their signature was seen in time proves that
//! they came in time, once it turns out to be right: nobody without the secret could have known it.
//! What is noted here is unverified and counts for nothing by itself. Once a call was let in, its note
//! is gone and the memory of signatures alone says what it is good for: a note must not outlive the
//! knowledge that the call was answered.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use foldhash::fast::RandomState;
use http::HeaderMap;

use crate::clock::Clock;
use crate::tiki::{Family, Freshness, Mac, Timestamp, Window, read_headers};

use super::signatures::{RESEND_HORIZON, SignatureKey, Signatures};

/// Signatures that are noted at once. A flood of forged calls pushes older ones out, whose re-sends
/// are then answered `out_of_window`.
const NOTED: usize = 65_536;
const SHARDS: usize = 16;

/// The signatures that were seen.
pub struct Arrivals {
    signatures: Arc<Signatures>,
    noted: AtomicUsize,
    shards: Vec<Mutex<Shard>>,
    clock: Clock,
}

#[derive(Default)]
struct Shard {
    seen: HashMap<SignatureKey, SystemTime, RandomState>,
    order: VecDeque<SignatureKey>,
}

impl Arrivals {
    /// Beside the memory of those that were let in.
    pub fn new(signatures: Arc<Signatures>, clock: Clock) -> Self {
        Self {
            signatures,
            noted: AtomicUsize::new(0),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            clock,
        }
    }

    /// Notes a call that is refused unseen, if it has the headers of one of these families.
    pub(super) fn note_head(&self, headers: &HeaderMap, families: &[Family]) {
        if let Ok(signature) = read_headers(headers, families) {
            self.note(&signature.mac);
        }
    }

    /// Notes a signature, unless its call was let in before; its first sight counts.
    pub(super) fn note(&self, mac: &Mac) {
        let key = SignatureKey::from(mac);
        self.insert(key);
        // Noted first and looked up second: however this races with a call that is let in, no note
        // outlives it.
        if self.signatures.knows(key, self.clock.monotonic()) {
            self.forget(key);
        }
    }

    /// The call was let in.
    pub(super) fn forget(&self, key: SignatureKey) {
        if self.noted.load(Ordering::SeqCst) > 0 && self.shard(key).seen.remove(&key).is_some() {
            self.noted.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn insert(&self, key: SignatureKey) {
        let now = self.clock.now();
        let mut shard = self.shard(key);
        if shard.seen.contains_key(&key) {
            return;
        }
        if shard.order.len() >= NOTED / SHARDS
            && let Some(oldest) = shard.order.pop_front()
            && shard.seen.remove(&oldest).is_some()
        {
            self.noted.fetch_sub(1, Ordering::SeqCst);
        }
        self.noted.fetch_add(1, Ordering::SeqCst);
        shard.seen.insert(key, now);
        shard.order.push_back(key);
    }

    /// Whether a signature that is right was seen when its timestamp lay in the window, and not
    /// longer ago than Tiki sends again.
    pub(super) fn came_in_time(&self, mac: &Mac, timestamp: Timestamp, window: &Window) -> bool {
        let key = SignatureKey::from(mac);
        let Some(seen_at) = self.shard(key).seen.get(&key).copied() else {
            return false;
        };
        let since = self.clock.now().duration_since(seen_at).unwrap_or_default();
        window.judge(timestamp, seen_at) == Freshness::Fresh && since <= RESEND_HORIZON
    }

    fn shard(&self, key: SignatureKey) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[key.spread(SHARDS)];
        // A panic while the lock was held leaves at worst one signature too many: go on with it.
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const WINDOW: Window = Window {
        max_age: Duration::from_secs(300),
        max_ahead: Duration::from_secs(60),
    };

    fn mac(number: usize) -> Mac {
        Mac::parse(
            format!("{number:064x}")
                .chars()
                .rev()
                .collect::<String>()
                .as_bytes(),
        )
        .unwrap()
    }

    #[test]
    fn the_first_sight_decides_and_only_for_as_long_as_tiki_sends_again() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_667_980_513);
        let (clock, hands) = Clock::manual(start);
        let arrivals = Arrivals::new(Arc::new(Signatures::new(1000)), clock);
        let signed_at = Timestamp::from_system_time(start).unwrap();
        assert!(!arrivals.came_in_time(&mac(1), signed_at, &WINDOW));
        arrivals.note(&mac(1));
        hands.advance(Duration::from_secs(3600));
        arrivals.note(&mac(1));
        arrivals.note(&mac(2));
        assert!(arrivals.came_in_time(&mac(1), signed_at, &WINDOW));
        assert!(
            !arrivals.came_in_time(&mac(2), signed_at, &WINDOW),
            "seen too late"
        );
        hands.advance(RESEND_HORIZON - Duration::from_secs(3600));
        assert!(arrivals.came_in_time(&mac(1), signed_at, &WINDOW));
        hands.advance(Duration::from_secs(1));
        assert!(!arrivals.came_in_time(&mac(1), signed_at, &WINDOW));
    }

    #[test]
    fn a_call_that_was_let_in_is_noted_no_more() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_667_980_513);
        let (clock, _) = Clock::manual(start);
        let signatures = Arc::new(Signatures::new(1000));
        let arrivals = Arrivals::new(Arc::clone(&signatures), clock);
        let signed_at = Timestamp::from_system_time(start).unwrap();
        let key = SignatureKey::from(&mac(1));
        arrivals.note(&mac(1));
        signatures
            .bind(key, 0, true, Duration::ZERO, Duration::from_secs(60))
            .unwrap();
        arrivals.forget(key);
        assert!(!arrivals.came_in_time(&mac(1), signed_at, &WINDOW));
        arrivals.note(&mac(1));
        assert!(!arrivals.came_in_time(&mac(1), signed_at, &WINDOW));
    }

    #[test]
    fn a_flood_is_bounded() {
        let (clock, _) = Clock::manual(SystemTime::UNIX_EPOCH);
        let arrivals = Arrivals::new(Arc::new(Signatures::new(1000)), clock);
        for number in 0..2 * NOTED {
            arrivals.note(&mac(number));
        }
        let noted: usize = (0..SHARDS)
            .map(|shard| arrivals.shards[shard].lock().unwrap().seen.len())
            .sum();
        assert!(noted <= NOTED, "{noted}");
    }
}
