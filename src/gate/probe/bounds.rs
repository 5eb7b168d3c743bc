//! How many looks are made: a flood of duplicates must not become one of looks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Upstream;
use crate::ledger::RecordId;

/// Between two looks at one record.
pub(super) const PAUSE: Duration = Duration::from_secs(10);

/// Records that are remembered as looked at within [`PAUSE`]. When all places are taken no other
/// record is looked at, so that this many looks are made within that time at most.
const REMEMBERED: usize = 4096;

/// Of an upstream's calls at once, one in so many may be a look.
const SHARE: usize = 4;

/// The looks of all workers.
#[derive(Debug)]
pub(in crate::gate) struct Looks {
    recent: Arc<Mutex<HashMap<RecordId, Last>>>,
    /// By upstream.
    permits: Vec<Arc<Semaphore>>,
}

/// The last look at a record.
#[derive(Clone, Copy, Debug)]
enum Last {
    /// It is being made.
    Running,
    /// It was over at this time, on the gate's monotonic clock.
    At(Duration),
}

impl Last {
    fn counts(self, now: Duration) -> bool {
        match self {
            Self::Running => true,
            Self::At(at) => now < at + PAUSE,
        }
    }
}

impl Looks {
    /// For these upstreams.
    pub(in crate::gate) fn new(upstreams: &[Arc<Upstream>]) -> Self {
        let permits = upstreams.iter().map(|upstream| {
            let most = (upstream.max_in_flight / SHARE).max(1);
            Arc::new(Semaphore::new(most))
        });
        Self {
            recent: Arc::default(),
            permits: permits.collect(),
        }
    }

    /// For other upstreams; what was looked at lately stays known.
    pub(in crate::gate) fn after(&self, upstreams: &[Arc<Upstream>]) -> Self {
        Self {
            recent: Arc::clone(&self.recent),
            ..Self::new(upstreams)
        }
    }

    /// A place for one look; none if there is no reason or no room for one.
    pub(super) fn begin<N: Fn() -> Duration>(
        &self,
        id: RecordId,
        upstream: usize,
        now: N,
    ) -> Option<Looking<'_, N>> {
        let permit = Arc::clone(self.permits.get(upstream)?)
            .try_acquire_owned()
            .ok()?;
        let mut recent = self.lock();
        let time = now();
        if recent.len() >= REMEMBERED {
            recent.retain(|_, last| last.counts(time));
        }
        let full = recent.len() >= REMEMBERED;
        match recent.entry(id) {
            Entry::Occupied(last) if last.get().counts(time) => return None,
            Entry::Occupied(mut last) => {
                last.insert(Last::Running);
            }
            Entry::Vacant(_) if full => return None,
            Entry::Vacant(place) => {
                place.insert(Last::Running);
            }
        }
        Some(Looking {
            looks: self,
            id,
            now,
            looked: false,
            _permit: permit,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RecordId, Last>> {
        // A panic while the lock was held leaves a map whose entries are each whole.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A look that is being made. Dropped, it is over.
pub(super) struct Looking<'l, N: Fn() -> Duration> {
    looks: &'l Looks,
    id: RecordId,
    now: N,
    looked: bool,
    _permit: OwnedSemaphorePermit,
}

impl<N: Fn() -> Duration> Looking<'_, N> {
    /// From here on it counts: the next one has to wait.
    pub(super) fn looked(&mut self) {
        self.looked = true;
    }
}

impl<N: Fn() -> Duration> Drop for Looking<'_, N> {
    fn drop(&mut self) {
        let mut recent = self.looks.lock();
        if self.looked {
            recent.insert(self.id, Last::At((self.now)()));
        } else {
            recent.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);

    fn looks() -> Looks {
        let upstream = |max_in_flight| {
            Arc::new(Upstream {
                max_in_flight,
                ..Upstream::clone(&usual_upstream())
            })
        };
        Looks::new(&[upstream(1_000_000), upstream(1)])
    }

    fn usual_upstream() -> Arc<Upstream> {
        let text = include_str!("../../../config/demo.toml");
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let loaded = crate::config::load_text(text, "demo.toml", &directory, &[]).unwrap();
        Arc::clone(&loaded.settings.upstreams[0])
    }

    #[test]
    fn a_record_is_looked_at_once_at_a_time_and_once_within_the_pause() {
        let looks = looks();
        let id = RecordId(1);
        let mut first = looks.begin(id, 0, || START).unwrap();
        assert!(looks.begin(id, 0, || START + PAUSE * 10).is_none());
        assert!(looks.begin(RecordId(2), 0, || START).is_some());
        first.looked();
        drop(first);
        let almost = PAUSE - Duration::from_nanos(1);
        assert!(looks.begin(id, 0, || START + almost).is_none());
        assert!(looks.begin(id, 0, || START + PAUSE).is_some());
    }

    #[test]
    fn a_look_that_was_not_made_costs_no_pause() {
        let looks = looks();
        drop(looks.begin(RecordId(1), 0, || START).unwrap());
        assert!(looks.begin(RecordId(1), 0, || START).is_some());
    }

    #[test]
    fn looks_take_a_share_of_an_upstreams_calls() {
        let looks = looks();
        let one = looks.begin(RecordId(1), 1, || START).unwrap();
        assert!(looks.begin(RecordId(2), 1, || START).is_none());
        drop(one);
        assert!(looks.begin(RecordId(2), 1, || START).is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let looks = looks();
        for number in 0..REMEMBERED as u64 {
            let mut place = looks.begin(RecordId(number), 0, || START).unwrap();
            place.looked();
        }
        assert!(looks.begin(RecordId(9_999_999), 0, || START).is_none());
        assert!(
            looks
                .begin(RecordId(9_999_999), 0, || START + PAUSE)
                .is_some()
        );
        assert!(looks.lock().len() <= 1);
    }
}
