//! How slowly a body may come.

use std::time::Duration;

/// What a caller gets before its rate counts: time to begin, and for a packet to be sent again.
const HEAD_START: Duration = Duration::from_secs(1);

/// How slowly a body may come (`server.body_timeout`, `server.min_body_rate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyPace {
    /// All of it.
    pub within: Duration,
    /// Bytes a second on average, after the first second; 0: no matter.
    pub min_rate: usize,
}

impl BodyPace {
    /// How long after its reading began more of a body must have come, of which `received` bytes are here.
    pub fn patience(&self, received: usize) -> Duration {
        let Some(rate) = std::num::NonZeroU64::new(self.min_rate as u64) else {
            return self.within;
        };
        let earned = Duration::from_millis((received as u64).saturating_mul(1000) / rate);
        self.within.min(HEAD_START.saturating_add(earned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn each_byte_buys_time_up_to_the_whole() {
        let pace = BodyPace {
            within: millis(10_000),
            min_rate: 200,
        };
        assert_eq!(pace.patience(0), millis(1_000));
        assert_eq!(pace.patience(1), millis(1_005));
        assert_eq!(pace.patience(200), millis(2_000));
        assert_eq!(pace.patience(1_799), millis(9_995));
        assert_eq!(pace.patience(1_800), millis(10_000));
        assert_eq!(pace.patience(usize::MAX), millis(10_000));
    }

    #[test]
    fn without_a_rate_only_the_whole_counts() {
        let pace = BodyPace {
            within: millis(10_000),
            min_rate: 0,
        };
        assert_eq!(pace.patience(0), millis(10_000));
    }
}
