//! The two clocks that the gate reads, and a hand-moved pair for tests.
//!
//! Freshness and ledger times use the wall clock; rate limits use the monotonic one. Both come from
//! one [`Clock`] value that is passed in, so that a test moves time instead of waiting for it.
//! Deadlines of running I/O are tokio's and are not moved by a [`ManualClock`].
//!
//! With the feature `failpoints` the machine's wall clock can be moved from outside of the process:
//! `TIKIGATE_CLOCK_OFFSET_FILE` names a file with a number of seconds, read again every 50 ms, that is
//! added to it. Without the feature nothing of this is compiled into the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// A source of wall-clock and monotonic time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    System { started: Instant },
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    wall_start: SystemTime,
    elapsed_nanos: AtomicU64,
    /// By how much the wall clock was set back.
    back_nanos: AtomicU64,
}

impl Manual {
    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.elapsed_nanos.load(Ordering::SeqCst))
    }
}

impl Clock {
    /// The machine's own clocks.
    pub fn system() -> Self {
        Self {
            source: Source::System {
                started: Instant::now(),
            },
        }
    }

    /// A clock that stands still at `start` until its [`ManualClock`] moves it.
    pub fn manual(start: SystemTime) -> (Self, ManualClock) {
        let manual = Arc::new(Manual {
            wall_start: start,
            elapsed_nanos: AtomicU64::new(0),
            back_nanos: AtomicU64::new(0),
        });
        let clock = Self {
            source: Source::Manual(Arc::clone(&manual)),
        };
        (clock, ManualClock { manual })
    }

    /// The wall clock's time.
    pub fn now(&self) -> SystemTime {
        match &self.source {
            Source::System { .. } => moved(SystemTime::now()),
            Source::Manual(manual) => {
                let back = manual.back_nanos.load(Ordering::SeqCst);
                manual.wall_start + manual.elapsed() - Duration::from_nanos(back)
            }
        }
    }

    /// Time since this clock was made; never goes backwards.
    pub fn monotonic(&self) -> Duration {
        match &self.source {
            Source::System { started } => started.elapsed(),
            Source::Manual(manual) => manual.elapsed(),
        }
    }
}

/// Moves the [`Clock`] it was made with.
#[derive(Clone, Debug)]
pub struct ManualClock {
    manual: Arc<Manual>,
}

impl ManualClock {
    /// Moves both times forward.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.manual.elapsed_nanos.fetch_add(nanos, Ordering::SeqCst);
    }

    /// Sets the wall clock alone back, as an operator or a time server may.
    pub fn set_back(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.manual.back_nanos.fetch_add(nanos, Ordering::SeqCst);
    }
}

/// The machine's time as the gate sees it.
#[inline]
fn moved(now: SystemTime) -> SystemTime {
    #[cfg(feature = "failpoints")]
    let now = offset::add(now);
    now
}

#[cfg(feature = "failpoints")]
mod offset {
    use std::path::{Path, PathBuf};
    use std::sync::{LazyLock, Mutex, PoisonError};
    use std::time::{Duration, Instant, SystemTime};

    const READ_EVERY: Duration = Duration::from_millis(50);

    static FILE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("TIKIGATE_CLOCK_OFFSET_FILE").map(PathBuf::from));

    struct Read {
        at: Instant,
        seconds: i64,
    }

    static LAST: Mutex<Option<Read>> = Mutex::new(None);

    pub(super) fn add(now: SystemTime) -> SystemTime {
        let Some(file) = &*FILE else { return now };
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let read = match last.take() {
            Some(read) if read.at.elapsed() < READ_EVERY => read,
            other => Read {
                at: Instant::now(),
                // A file that is being written is read the next time.
                seconds: read(file).unwrap_or(other.map_or(0, |read| read.seconds)),
            },
        };
        let by = Duration::from_secs(read.seconds.unsigned_abs());
        let forward = read.seconds >= 0;
        *last = Some(read);
        if forward { now + by } else { now - by }
    }

    fn read(file: &Path) -> Option<i64> {
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_667_980_513);
        let (clock, hands) = Clock::manual(start);
        assert_eq!(clock.now(), start);
        hands.advance(Duration::from_secs(61));
        assert_eq!(clock.now(), start + Duration::from_secs(61));
        assert_eq!(clock.monotonic(), Duration::from_secs(61));
        hands.set_back(Duration::from_secs(100));
        assert_eq!(clock.now(), start - Duration::from_secs(39));
        assert_eq!(clock.monotonic(), Duration::from_secs(61));
    }
}
