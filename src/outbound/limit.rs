//! The rate of calls to Tiki.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::config::Rate;

/// A limit that callers wait for.
pub(super) struct Limit {
    limiter: DefaultDirectRateLimiter,
    clock: DefaultClock,
}

impl Limit {
    /// A limit that starts with its whole burst.
    pub(super) fn new(rate: Rate) -> Self {
        let at_least_one = |number: u32| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_one(rate.per_second));
        Self {
            limiter: RateLimiter::direct(quota.allow_burst(at_least_one(rate.burst))),
            clock: DefaultClock::default(),
        }
    }

    /// Takes one call, or says how long it takes until there may be one.
    pub(super) fn take(&self) -> Result<(), Duration> {
        let taken = self.limiter.check();
        taken.map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }

    /// Waits for one call.
    pub(super) async fn wait(&self) {
        while let Err(wait) = self.take() {
            tokio::time::sleep(wait).await;
        }
    }
}
