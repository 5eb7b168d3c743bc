//! Counters and histograms as rows of atomics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Cells of one cache line, or of the pair that processors fetch together. The alignment keeps two
/// workers' rows from ever sharing one.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line([AtomicU64; CELLS_PER_LINE]);

const CELLS_PER_LINE: usize = 16;

/// A row of counters.
#[derive(Debug)]
pub(super) struct Cells(Box<[Line]>);

impl Cells {
    pub(super) fn new(cells: usize) -> Self {
        let lines = cells.div_ceil(CELLS_PER_LINE);
        Self((0..lines).map(|_| Line::default()).collect())
    }

    fn cell(&self, index: usize) -> Option<&AtomicU64> {
        let line = self.0.get(index / CELLS_PER_LINE)?;
        line.0.get(index % CELLS_PER_LINE)
    }

    /// Adds one; does nothing beyond the row's end.
    pub(super) fn add(&self, index: usize) {
        self.add_many(index, 1);
    }

    /// Takes one away.
    pub(super) fn subtract(&self, index: usize) {
        self.add_many(index, u64::MAX); // wraps around to minus one
    }

    fn add_many(&self, index: usize, amount: u64) {
        if let Some(cell) = self.cell(index) {
            cell.fetch_add(amount, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self, index: usize) -> u64 {
        self.cell(index)
            .map_or(0, |cell| cell.load(Ordering::Relaxed))
    }
}

/// A histogram's buckets, in whole units, of which `per_second` make a second.
#[derive(Debug)]
pub(super) struct Scale {
    /// Upper bounds, inclusive and rising. The bucket above the last has none.
    pub(super) bounds: &'static [i64],
    pub(super) per_second: f64,
    /// What one observation may be at most, either way, so that a wild one can't drown the sum.
    limit: i64,
}

const NANOS_PER_SECOND: i64 = 1_000_000_000;

const fn micros(count: i64) -> i64 {
    count * 1_000
}

const fn millis(count: i64) -> i64 {
    micros(count * 1_000)
}

/// Requests and backend calls: fine around a legacy backend's usual times, with bounds at
/// `answer_within` (13 s), at Tiki's own limit (15 s) and at `settle_within` (60 s).
pub(super) const DURATION: Scale = Scale {
    bounds: &[
        millis(1),
        micros(2_500),
        millis(5),
        millis(10),
        millis(25),
        millis(50),
        millis(100),
        millis(250),
        millis(500),
        millis(1_000),
        millis(2_500),
        millis(5_000),
        millis(10_000),
        millis(13_000),
        millis(15_000),
        millis(30_000),
        millis(60_000),
    ],
    per_second: NANOS_PER_SECOND as f64,
    limit: 86_400 * NANOS_PER_SECOND,
};

/// Commits to a disk or a database.
pub(super) const COMMIT_DURATION: Scale = Scale {
    bounds: &[
        micros(100),
        micros(250),
        micros(500),
        millis(1),
        micros(2_500),
        millis(5),
        millis(10),
        millis(25),
        millis(50),
        millis(100),
        millis(250),
        millis(500),
        millis(1_000),
        millis(5_000),
    ],
    per_second: NANOS_PER_SECOND as f64,
    limit: 86_400 * NANOS_PER_SECOND,
};

/// Ages of messages, in milliseconds. All that is ahead of our clock is in the first bucket; the
/// default window ends at 300 s.
pub(super) const AGE: Scale = Scale {
    bounds: &[
        0, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 900_000,
        1_800_000, 3_600_000, 10_800_000, 21_600_000, 43_200_000,
    ],
    per_second: 1_000.0,
    limit: 30 * 86_400_000,
};

/// Observations by size, and their sum.
#[derive(Debug)]
pub(super) struct Histogram {
    scale: &'static Scale,
    /// A cell for each bucket (not cumulative), then the sum in the scale's units.
    cells: Cells,
}

impl Histogram {
    pub(super) fn new(scale: &'static Scale) -> Self {
        Self {
            scale,
            cells: Cells::new(scale.bounds.len() + 2),
        }
    }

    /// On a scale of nanoseconds.
    pub(super) fn observe_duration(&self, took: Duration) {
        self.observe(i64::try_from(took.as_nanos()).unwrap_or(i64::MAX));
    }

    /// On any scale, rounded up: what is above a bucket's bound by less than the scale's unit is not in it. What is no
    /// number counts as zero.
    pub(super) fn observe_seconds(&self, seconds: f64) {
        self.observe((seconds * self.scale.per_second).ceil() as i64); // saturates; NaN is 0
    }

    fn observe(&self, value: i64) {
        let value = value.clamp(-self.scale.limit, self.scale.limit);
        let bucket = self.scale.bounds.partition_point(|bound| *bound < value);
        self.cells.add(bucket);
        self.cells.add_many(self.sum_cell(), value as u64); // two's complement: adds negatives too
    }

    fn sum_cell(&self) -> usize {
        self.scale.bounds.len() + 1
    }

    /// What these histograms of one scale hold together.
    pub(super) fn total<'h>(
        scale: &'static Scale,
        histograms: impl Iterator<Item = &'h Histogram>,
    ) -> Total {
        let mut total = Total {
            scale,
            buckets: vec![0; scale.bounds.len() + 1],
            sum: 0,
        };
        for histogram in histograms {
            for (index, bucket) in total.buckets.iter_mut().enumerate() {
                *bucket = bucket.wrapping_add(histogram.cells.read(index));
            }
            let sum = histogram.cells.read(histogram.sum_cell());
            total.sum = total.sum.wrapping_add(sum as i64);
        }
        total
    }
}

/// Several workers' histograms added up.
pub(super) struct Total {
    scale: &'static Scale,
    buckets: Vec<u64>,
    sum: i64,
}

impl Total {
    /// How many were observed.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum in seconds.
    pub(super) fn sum_seconds(&self) -> f64 {
        self.sum as f64 / self.scale.per_second
    }

    /// Each bound in seconds with how many were at most that; the last bound is infinite.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let bounds = self.scale.bounds.iter();
        let seconds = bounds.map(|bound| *bound as f64 / self.scale.per_second);
        let running = self.buckets.iter().scan(0, |sum, bucket| {
            *sum += bucket;
            Some(*sum)
        });
        seconds.chain(std::iter::once(f64::INFINITY)).zip(running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket_of(scale: &'static Scale, observe: impl Fn(&Histogram)) -> f64 {
        let histogram = Histogram::new(scale);
        observe(&histogram);
        let total = Histogram::total(scale, std::iter::once(&histogram));
        let found = total.cumulative().find(|(_, count)| *count == 1);
        found.unwrap().0
    }

    #[test]
    fn bounds_are_inclusive() {
        let took = |nanos| {
            bucket_of(&DURATION, |h| {
                h.observe_duration(Duration::from_nanos(nanos))
            })
        };
        assert_eq!(took(0), 0.001);
        assert_eq!(took(1_000_000), 0.001);
        assert_eq!(took(1_000_001), 0.0025);
        assert_eq!(took(13_000_000_000), 13.0);
        assert_eq!(took(15_000_000_001), 30.0);
        assert_eq!(took(60_000_000_001), f64::INFINITY);
        assert_eq!(took(u64::MAX), f64::INFINITY);
    }

    #[test]
    fn ages_ahead_of_the_clock_are_in_the_first_bucket() {
        let age = |seconds| bucket_of(&AGE, |h| h.observe_seconds(seconds));
        assert_eq!(age(-40.0), 0.0);
        assert_eq!(age(f64::NEG_INFINITY), 0.0);
        assert_eq!(age(f64::NAN), 0.0);
        assert_eq!(age(0.0), 0.0);
        // Of a caller on the same machine.
        assert_eq!(age(0.000_3), 0.5);
        assert_eq!(age(0.25), 0.5);
        assert_eq!(age(300.0), 300.0);
        assert_eq!(age(43_200.5), f64::INFINITY);
    }

    #[test]
    fn negative_values_lower_the_sum_and_wild_ones_are_cut() {
        let histogram = Histogram::new(&AGE);
        histogram.observe_seconds(-1.5);
        histogram.observe_seconds(4.0);
        let total = Histogram::total(&AGE, [&histogram, &histogram].into_iter());
        assert_eq!((total.count(), total.sum_seconds()), (4, 5.0));

        histogram.observe_seconds(f64::INFINITY);
        let total = Histogram::total(&AGE, std::iter::once(&histogram));
        assert_eq!(total.sum_seconds(), 2.5 + 30.0 * 86_400.0);
    }

    #[test]
    fn a_cell_beyond_the_row_is_ignored() {
        let cells = Cells::new(17);
        cells.add(16);
        cells.add(400);
        assert_eq!((cells.read(16), cells.read(400)), (1, 0));
    }
}
