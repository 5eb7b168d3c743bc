//! Rate limits: per caller's address before authentication, per client after it.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use governor::clock::{Clock as _, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

use crate::clock::Clock;
use crate::config::Rate;
use crate::net::LimitKey;

use super::refusal::{Limit, Refusal};

/// Addresses that are limited one by one; further ones share a bucket.
const ADDRESSES: usize = 65_536;
const SHARDS: usize = 64;

/// The gate's monotonic clock, as governor wants it.
#[derive(Clone, Debug)]
struct GateClock(Clock);

impl governor::clock::Clock for GateClock {
    type Instant = Monotonic;

    fn now(&self) -> Monotonic {
        Monotonic(self.0.monotonic())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Monotonic(Duration);

impl std::ops::Add<Nanos> for Monotonic {
    type Output = Monotonic;

    fn add(self, nanos: Nanos) -> Monotonic {
        Monotonic(self.0 + Duration::from(nanos))
    }
}

impl Reference for Monotonic {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_sub(earlier.0).into()
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Monotonic(self.0.saturating_sub(duration.into()))
    }
}

type Middleware = NoOpMiddleware<Monotonic>;

fn quota(rate: Rate) -> Quota {
    let at_least_one = |number: u32| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(at_least_one(rate.per_second)).allow_burst(at_least_one(rate.burst))
}

/// The limit of one client.
pub(super) struct ClientLimit {
    limiter: RateLimiter<NotKeyed, InMemoryState, GateClock, Middleware>,
}

impl ClientLimit {
    /// A limit that starts with its whole burst.
    pub(super) fn new(rate: Rate, clock: Clock) -> Self {
        Self {
            limiter: RateLimiter::direct_with_clock(quota(rate), GateClock(clock)),
        }
    }

    /// Takes one call from the limit.
    ///
    /// # Errors
    /// [`Refusal::RateLimited`] with the time until one is free again.
    pub(super) fn take(&self) -> Result<(), Refusal> {
        self.limiter.check().map_err(|until| {
            let wait = until.wait_time_from(self.limiter.clock().now());
            Refusal::RateLimited(Limit::Client, wait)
        })
    }
}

/// The limits of all addresses: a bounded number of buckets, and one that all others share.
pub(super) struct AddressLimits {
    rate: Rate,
    limiter: RateLimiter<LimitKey, SharedBuckets, GateClock, Middleware>,
    buckets: Arc<Buckets>,
}

impl AddressLimits {
    /// Limits with `rate` each.
    pub(super) fn new(rate: Rate, clock: Clock) -> Self {
        Self::bounded(rate, clock, ADDRESSES)
    }

    /// Limits with `rate` each in the place of others: of a rate that stays, what was used counts.
    pub(super) fn after(before: &Arc<Self>, rate: Rate, clock: &Clock) -> Arc<Self> {
        if before.rate == rate {
            return Arc::clone(before);
        }
        Arc::new(Self::new(rate, clock.clone()))
    }

    fn bounded(rate: Rate, clock: Clock, addresses: usize) -> Self {
        let clock = GateClock(clock);
        let buckets = Arc::new(Buckets::new(addresses, clock.now().0, clock.clone()));
        Self {
            rate,
            limiter: RateLimiter::new(quota(rate), SharedBuckets(Arc::clone(&buckets)), clock),
            buckets,
        }
    }

    /// Takes one call from the address's limit.
    ///
    /// # Errors
    /// [`Refusal::RateLimited`] with the time until one is free again.
    pub(super) fn take(&self, address: LimitKey) -> Result<(), Refusal> {
        self.limiter.check_key(&address).map_err(|until| {
            let wait = until.wait_time_from(self.limiter.clock().now());
            Refusal::RateLimited(Limit::Address, wait)
        })
    }

    /// How many addresses have a bucket of their own.
    pub(super) fn len(&self) -> usize {
        self.buckets.len()
    }
}

/// Buckets by address. Forged calls come from as many addresses as their sender likes, so the
/// number is bounded: where a shard is full of buckets in use, new addresses share one.
struct Buckets {
    shards: Vec<Mutex<HashMap<LimitKey, Nanos, RandomState>>>,
    overflow: InMemoryState,
    per_shard: usize,
    started: Duration,
    clock: GateClock,
    hasher: RandomState,
}

impl Buckets {
    fn new(addresses: usize, started: Duration, clock: GateClock) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            overflow: InMemoryState::default(),
            per_shard: addresses.div_ceil(SHARDS).max(1),
            started,
            clock,
            hasher: RandomState::default(),
        }
    }

    fn shard(&self, key: &LimitKey) -> &Mutex<HashMap<LimitKey, Nanos, RandomState>> {
        use std::hash::BuildHasher;
        &self.shards[(self.hasher.hash_one(key) as usize) % SHARDS]
    }

    fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len())
            .sum()
    }
}

/// The buckets as governor holds them; the limit keeps its own hand on them to count them.
struct SharedBuckets(Arc<Buckets>);

impl StateStore for SharedBuckets {
    type Key = LimitKey;

    fn measure_and_replace<T, F, E>(&self, key: &LimitKey, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let buckets = &self.0;
        let mut shard = buckets
            .shard(key)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(arrival) = shard.get_mut(key) {
            let (decision, next) = f(Some(*arrival))?;
            *arrival = next;
            return Ok(decision);
        }
        if shard.len() >= buckets.per_shard {
            // A bucket whose theoretical arrival time has passed is as good as new.
            let now: Nanos = buckets.clock.now().0.saturating_sub(buckets.started).into();
            shard.retain(|_, arrival| *arrival > now);
        }
        if shard.len() >= buckets.per_shard {
            drop(shard);
            return buckets.overflow.measure_and_replace(&NotKeyed::NonKey, f);
        }
        let (decision, next) = f(None)?;
        shard.insert(*key, next);
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    const RATE: Rate = Rate {
        per_second: 2,
        burst: 4,
    };

    fn taken(mut take: impl FnMut() -> Result<(), Refusal>) -> usize {
        (0..100).take_while(|_| take().is_ok()).count()
    }

    #[test]
    fn a_client_has_its_burst_and_then_its_rate() {
        let (clock, hands) = Clock::manual(SystemTime::UNIX_EPOCH);
        let limit = ClientLimit::new(RATE, clock);
        assert_eq!(taken(|| limit.take()), 4);
        let Err(Refusal::RateLimited(Limit::Client, wait)) = limit.take() else {
            panic!("the burst is spent");
        };
        assert_eq!(wait, Duration::from_millis(500));
        hands.advance(Duration::from_millis(499));
        assert_eq!(taken(|| limit.take()), 0);
        hands.advance(Duration::from_millis(1));
        assert_eq!(taken(|| limit.take()), 1);
        hands.advance(Duration::from_secs(3600));
        assert_eq!(taken(|| limit.take()), 4);
    }

    #[test]
    fn one_address_does_not_spend_anothers() {
        let (clock, hands) = Clock::manual(SystemTime::UNIX_EPOCH);
        hands.advance(Duration::from_secs(100));
        let limits = AddressLimits::new(RATE, clock);
        assert_eq!(taken(|| limits.take(LimitKey::V4(1))), 4);
        assert_eq!(taken(|| limits.take(LimitKey::V4(2))), 4);
        hands.advance(Duration::from_secs(1));
        assert_eq!(taken(|| limits.take(LimitKey::V4(1))), 2);
    }

    #[test]
    fn too_many_addresses_share_a_bucket_until_others_are_idle() {
        let (clock, hands) = Clock::manual(SystemTime::UNIX_EPOCH);
        hands.advance(Duration::from_secs(100));
        let limits = AddressLimits::bounded(RATE, clock, SHARDS);
        for address in 0..10_000 {
            let _ = limits.take(LimitKey::V4(address));
        }
        assert!(limits.len() <= SHARDS, "{}", limits.len());
        let refused = (10_000..10_100)
            .filter(|address| limits.take(LimitKey::V4(*address)).is_err())
            .count();
        assert_eq!(refused, 100, "the shared bucket is spent");
        hands.advance(Duration::from_secs(10));
        let refused = (20_000..20_010)
            .filter(|address| limits.take(LimitKey::V4(*address)).is_err())
            .count();
        assert_eq!(refused, 0, "idle buckets made room");
    }
}
