//! Counters by name, where names come and go with the configuration.

use std::collections::VecDeque;
use std::sync::Arc;

/// Names that are not in use any more and are still shown: whoever retires a secret looks whether it
/// still counts, and a scrape must not see a counter vanish with its last counts. Further ones go,
/// the oldest first.
const RETIRED: usize = 256;

/// Everything that is counted under one kind of name, in a row of its own for each worker.
#[derive(Debug)]
pub(super) struct Series<N, C> {
    current: Vec<Arc<Named<N, C>>>,
    retired: VecDeque<Arc<Named<N, C>>>,
}

/// What is counted under one name.
#[derive(Debug)]
pub(super) struct Named<N, C> {
    pub(super) name: N,
    rows: Vec<Arc<C>>,
}

impl<N: PartialEq, C> Series<N, C> {
    pub(super) fn new() -> Self {
        Self {
            current: Vec::new(),
            retired: VecDeque::new(),
        }
    }

    /// These names from now on, in this order. One that is or was known keeps its counts.
    pub(super) fn renew(
        &mut self,
        names: impl IntoIterator<Item = N>,
        workers: usize,
        row: impl Fn() -> C,
    ) {
        let mut known: Vec<_> = self.retired.drain(..).collect();
        known.append(&mut self.current);
        for name in names {
            let at = known.iter().position(|named| named.name == name);
            self.current.push(match at {
                Some(at) => known.remove(at),
                None => Arc::new(Named {
                    name,
                    rows: (0..workers).map(|_| Arc::new(row())).collect(),
                }),
            });
        }
        let surplus = known.len().saturating_sub(RETIRED);
        self.retired.extend(known.drain(surplus..));
    }

    /// A worker's rows, in the order of the names in use.
    pub(super) fn rows_of(&self, worker: usize) -> Vec<Arc<C>> {
        let rows = self.current.iter();
        rows.filter_map(|named| named.rows.get(worker).map(Arc::clone))
            .collect()
    }

    /// All names that are shown, those in use first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Named<N, C>> {
        self.current.iter().chain(&self.retired).map(AsRef::as_ref)
    }
}

impl<N, C> Named<N, C> {
    /// The sum over all workers.
    pub(super) fn sum(&self, read: impl Fn(&C) -> u64) -> u64 {
        let rows = self.rows.iter();
        rows.fold(0, |sum, row| sum.wrapping_add(read(row)))
    }

    /// Each worker's row.
    pub(super) fn rows(&self) -> impl Iterator<Item = &C> {
        self.rows.iter().map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(series: &Series<String, u64>) -> Vec<&str> {
        series.iter().map(|named| named.name.as_str()).collect()
    }

    fn renew(series: &mut Series<String, u64>, to: &[&str], row: u64) {
        series.renew(to.iter().map(|name| (*name).to_owned()), 2, || row);
    }

    #[test]
    fn a_name_keeps_its_rows_through_all_changes() {
        let mut series = Series::new();
        renew(&mut series, &["a", "b"], 1);
        renew(&mut series, &["c", "b"], 2);
        assert_eq!(names(&series), ["c", "b", "a"]);
        assert_eq!(
            series
                .rows_of(1)
                .iter()
                .map(|row| **row)
                .collect::<Vec<_>>(),
            [2, 1]
        );
        renew(&mut series, &["a", "c"], 3);
        assert_eq!(names(&series), ["a", "c", "b"]);
        let sums: Vec<u64> = series.iter().map(|named| named.sum(|row| *row)).collect();
        assert_eq!(sums, [2, 4, 2]);
        assert!(series.rows_of(2).is_empty());
    }

    #[test]
    fn those_that_are_gone_are_bounded() {
        let mut series = Series::new();
        for round in 0..RETIRED as u64 + 10 {
            renew(&mut series, &[&round.to_string()], round);
        }
        assert_eq!(names(&series).len(), RETIRED + 1);
        assert!(!names(&series).contains(&"0"));
        assert!(names(&series).contains(&"200"));
    }
}
