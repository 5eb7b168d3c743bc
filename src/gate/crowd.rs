//! Calls that are being handled: how many, and how many of them are one caller's.
//!
//! One address, or one client, may have at most [`SHARE`] times as many calls as there are free places.
//! So one alone can take four fifths of them, two four ninths each: where several push at once, some places
//! stay free for whoever comes next, and nothing has to be configured.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use foldhash::quality::RandomState;

use crate::net::LimitKey;

use super::awaited::AwaitedBodies;
use super::refusal::Overload;

/// How many times the free places one caller may have.
const SHARE: usize = 4;

/// Calls in flight that an address may have at the cost of bodies that are waited for: whoever sends whole
/// calls has not many at once, whatever others do.
const MODEST: usize = 16;

/// Counters in each row. Two addresses share one in a row with a chance of one in so many, and in both
/// rows with that squared; the less of an address's two counters is taken for its number.
const COUNTERS: usize = 4096;

/// All that is in flight, over all workers and configurations.
#[derive(Debug)]
pub(super) struct Crowd {
    in_flight: AtomicUsize,
    rows: [Row; 2],
    /// Calls that make room when all places are taken.
    awaited: Arc<AwaitedBodies>,
    /// Set when the gate is about to stop and takes no new call.
    draining: AtomicBool,
}

/// Counters by address: bounded, without a lock, and never less than the truth. How addresses are
/// spread is drawn at the start, so that nobody can choose one that shares another's.
#[derive(Debug)]
struct Row {
    counters: Box<[AtomicU32]>,
    hasher: RandomState,
}

impl Row {
    fn new() -> Self {
        Self {
            counters: (0..COUNTERS).map(|_| AtomicU32::new(0)).collect(),
            hasher: RandomState::default(),
        }
    }

    fn counter(&self, of: LimitKey) -> &AtomicU32 {
        &self.counters[self.hasher.hash_one(of) as usize % COUNTERS]
    }
}

impl Crowd {
    /// Nobody is there.
    pub(super) fn new(awaited: Arc<AwaitedBodies>) -> Self {
        Self {
            awaited,
            in_flight: AtomicUsize::new(0),
            rows: [Row::new(), Row::new()],
            draining: AtomicBool::new(false),
        }
    }

    /// A place for one more call of this address among at most `most`, if need be that of a call whose
    /// body was waited for too long.
    ///
    /// # Errors
    /// There is none, or none for this address.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: LimitKey,
        most: usize,
    ) -> Result<Place, Overload> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let counters = self.rows.each_ref().map(|row| row.counter(address));
        let own = counters.map(|counter| counter.fetch_add(1, Ordering::Relaxed) + 1);
        let place = Place {
            crowd: Arc::clone(self),
            address,
        };
        // Behind the unix socket are other programs of this machine, which nobody can tell apart.
        let own = own[0].min(own[1]) as usize;
        let fair = |free| address == LimitKey::Local || is_fair(own, free);
        let free = most.saturating_sub(before);
        if free > 0 && fair(free) {
            return Ok(place);
        }
        // One that is given up leaves in its task's next turn; until then there may be one more than the cap.
        if own <= MODEST && self.awaited.give_one_up() {
            return Ok(place);
        }
        if free > 0 {
            return Err(Overload::AddressShare);
        }
        Err(Overload::InFlight)
    }

    /// Whether a client that has `own` calls in flight, the newest counted, may have them beside the
    /// others, among at most `most`.
    pub(super) fn is_fair_to_others(&self, own: usize, most: usize) -> bool {
        // The newest has its place already.
        let others = self.in_flight.load(Ordering::Relaxed).saturating_sub(1);
        is_fair(own, most.saturating_sub(others))
    }

    /// From now on nobody is let in.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether nobody is let in any more.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

fn is_fair(own: usize, free: usize) -> bool {
    own <= free.saturating_mul(SHARE)
}

/// A call's place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    address: LimitKey,
}

impl Drop for Place {
    fn drop(&mut self) {
        for row in &self.crowd.rows {
            row.counter(self.address).fetch_sub(1, Ordering::Relaxed);
        }
        self.crowd.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISY: LimitKey = LimitKey::V4(1);

    fn fill(crowd: &Arc<Crowd>, address: LimitKey, most: usize) -> Vec<Place> {
        std::iter::from_fn(|| crowd.enter(address, most).ok()).collect()
    }

    #[test]
    fn one_address_leaves_room_for_others() {
        let crowd = Arc::new(Crowd::new(Arc::default()));
        let noisy = fill(&crowd, NOISY, 1000);
        assert_eq!(noisy.len(), 800);
        assert_eq!(
            crowd.enter(NOISY, 1000).unwrap_err(),
            Overload::AddressShare
        );
        let quiet: Vec<_> = (2..102)
            .map(|address| crowd.enter(LimitKey::V4(address), 1000).unwrap())
            .collect();
        // What others took is not free any more: the noisy one gets none of its places back.
        drop(noisy);
        assert_eq!(fill(&crowd, NOISY, 1000).len(), 720);
        drop(quiet);
        assert_eq!(fill(&crowd, NOISY, 1000).len(), 800);
    }

    #[test]
    fn many_that_push_leave_room_for_one_more() {
        let crowd = Arc::new(Crowd::new(Arc::default()));
        let mut pushing = Vec::new();
        for turn in 0..20_000 {
            pushing.extend(crowd.enter(LimitKey::V4(turn % 40), 1024).ok());
        }
        assert!(pushing.len() > 1000, "{}", pushing.len());
        for newcomer in 99..103 {
            pushing.push(crowd.enter(LimitKey::V4(newcomer), 1024).unwrap());
        }
    }

    #[test]
    fn the_cap_holds_whoever_comes() {
        let crowd = Arc::new(Crowd::new(Arc::default()));
        let all = fill(&crowd, LimitKey::Local, 10);
        assert_eq!(all.len(), 10);
        assert_eq!(
            crowd.enter(LimitKey::V4(9), 10).unwrap_err(),
            Overload::InFlight
        );
        drop(all);
        assert_eq!(crowd.in_flight.load(Ordering::Relaxed), 0);
        let counts = crowd.rows.iter().flat_map(|row| row.counters.iter());
        assert!(
            counts
                .into_iter()
                .all(|counter| counter.load(Ordering::Relaxed) == 0)
        );
    }

    #[tokio::test]
    async fn a_body_that_is_waited_for_makes_room() {
        let awaited = Arc::<AwaitedBodies>::default();
        let crowd = Arc::new(Crowd::new(Arc::clone(&awaited)));
        let pushing: Vec<_> = (2..101)
            .map(|address| crowd.enter(LimitKey::V4(address), 100).unwrap())
            .collect();
        let first = fill(&crowd, NOISY, 100);
        assert_eq!(first.len(), 1);
        assert_eq!(crowd.enter(NOISY, 100).unwrap_err(), Overload::InFlight);
        let bodies: Vec<_> = (0..100).map(|_| awaited.enter()).collect();
        let places = fill(&crowd, NOISY, 100);
        assert_eq!(places.len(), MODEST - 1);
        for body in &bodies[..places.len()] {
            body.given_up().await;
        }
        drop((pushing, first, places));
    }

    #[test]
    fn small_caps_can_be_used() {
        for (most, alone) in [(1, 1), (2, 2), (4, 4), (5, 4), (10, 8)] {
            let crowd = Arc::new(Crowd::new(Arc::default()));
            assert_eq!(fill(&crowd, NOISY, most).len(), alone, "of {most}");
        }
    }

    #[test]
    fn a_client_is_measured_by_what_others_left() {
        let crowd = Arc::new(Crowd::new(Arc::default()));
        let places: Vec<_> = (0..9)
            .map(|address| crowd.enter(LimitKey::V4(address), 10).unwrap())
            .collect();
        assert!(crowd.is_fair_to_others(8, 10));
        assert!(!crowd.is_fair_to_others(9, 10));
        drop(places);
        assert!(crowd.is_fair_to_others(1, 1));
    }
}
