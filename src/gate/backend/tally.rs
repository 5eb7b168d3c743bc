//! Calls and failures within a sliding window, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The window moves on by one in so many of itself.
pub(super) const BUCKETS: usize = 10;

/// Each bucket is one word: the number of its stretch of time, its calls and its failures. A stretch
/// that comes 2²⁴ of them later (19 days at least) could be taken for it, if no call came in between.
const COUNT_BITS: u32 = 20;
const MOST: u64 = (1 << COUNT_BITS) - 1;
const STRETCH: u64 = (1 << (64 - 2 * COUNT_BITS)) - 1;

/// Counts of one address.
#[derive(Debug)]
pub(super) struct Tally {
    buckets: [AtomicU64; BUCKETS],
    bucket_nanos: u64,
}

#[derive(Clone, Copy)]
struct Bucket {
    stretch: u64,
    calls: u64,
    failures: u64,
}

impl Tally {
    pub(super) fn over(window: Duration) -> Self {
        let nanos = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        Self {
            // Numbered from 1 by `stretch`, so that none is counted before its time.
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            bucket_nanos: (nanos / BUCKETS as u64).max(1),
        }
    }

    /// Counts a call that ended at `now`.
    pub(super) fn add(&self, now: Duration, failed: bool) {
        let stretch = self.stretch(now);
        let bucket = &self.buckets[(stretch % BUCKETS as u64) as usize];
        let tag = stretch & STRETCH;
        let counted = |word| {
            let mut bucket = Bucket::from(word);
            if bucket.stretch != tag {
                bucket = Bucket {
                    stretch: tag,
                    calls: 0,
                    failures: 0,
                };
            }
            if bucket.calls == MOST {
                // Their ratio is what counts.
                bucket.calls /= 2;
                bucket.failures /= 2;
            }
            bucket.calls += 1;
            bucket.failures += u64::from(failed);
            Some(u64::from(bucket))
        };
        let _ = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }

    /// Calls and failures within the window that ends at `now`.
    pub(super) fn total(&self, now: Duration) -> (u64, u64) {
        let newest = self.stretch(now);
        let mut total = (0, 0);
        for back in 0..BUCKETS as u64 {
            let Some(stretch) = newest.checked_sub(back).filter(|stretch| *stretch > 0) else {
                break;
            };
            let word = self.buckets[(stretch % BUCKETS as u64) as usize].load(Ordering::Relaxed);
            let bucket = Bucket::from(word);
            if bucket.stretch == stretch & STRETCH {
                total.0 += bucket.calls;
                total.1 += bucket.failures;
            }
        }
        total
    }

    pub(super) fn clear(&self) {
        for bucket in &self.buckets {
            bucket.store(0, Ordering::Relaxed);
        }
    }

    fn stretch(&self, now: Duration) -> u64 {
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        nanos / self.bucket_nanos + 1
    }
}

impl From<u64> for Bucket {
    fn from(word: u64) -> Self {
        Self {
            stretch: word >> (2 * COUNT_BITS),
            calls: (word >> COUNT_BITS) & MOST,
            failures: word & MOST,
        }
    }
}

impl From<Bucket> for u64 {
    fn from(bucket: Bucket) -> Self {
        bucket.stretch << (2 * COUNT_BITS) | bucket.calls << COUNT_BITS | bucket.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_window_slides_by_a_tenth_of_itself() {
        let tally = Tally::over(at(1000));
        tally.add(at(0), true);
        tally.add(at(50), false);
        tally.add(at(150), true);
        assert_eq!(tally.total(at(150)), (3, 2));
        assert_eq!(tally.total(at(999)), (3, 2));
        assert_eq!(tally.total(at(1000)), (1, 1));
        assert_eq!(tally.total(at(1100)), (0, 0));
        // The place is used again.
        tally.add(at(2000), false);
        assert_eq!(tally.total(at(2000)), (1, 0));
        tally.clear();
        assert_eq!(tally.total(at(2000)), (0, 0));
    }

    #[test]
    fn a_full_bucket_keeps_its_ratio() {
        let tally = Tally::over(at(1000));
        let full = Bucket {
            stretch: 1,
            calls: MOST,
            failures: MOST,
        };
        tally.buckets[1].store(full.into(), Ordering::Relaxed);
        tally.add(at(0), true);
        let (calls, failures) = tally.total(at(0));
        assert_eq!(calls, failures);
        assert!(calls > MOST / 2 && calls < MOST);
    }
}
