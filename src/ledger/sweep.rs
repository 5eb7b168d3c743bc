//! The time that expiry goes by: the wall clock, as far as it can be believed.

use std::time::{Duration, SystemTime};

/// A difference between the two clocks' steps that is more than drift and adjustment.
const JUMP: Duration = Duration::from_secs(3600);

/// Notices jumps of the wall clock by the monotonic one.
///
/// A jump forward would expire what still holds. Whether the clock was wrong before or is wrong now
/// can't be told from inside, so the later time is not believed: expiry lags behind by the jump, and
/// records are kept longer. A jump back takes effect at once, since it also keeps records longer.
#[derive(Debug)]
pub(super) struct SweepClock {
    last_wall: SystemTime,
    last_monotonic: Duration,
    /// By how much the wall clock jumped forward, net.
    ahead: Duration,
}

impl SweepClock {
    pub(super) fn new(wall: SystemTime, monotonic: Duration) -> Self {
        Self {
            last_wall: wall,
            last_monotonic: monotonic,
            ahead: Duration::ZERO,
        }
    }

    /// The time up to which records may have expired; none if the wall clock jumped since the last call.
    pub(super) fn observe(&mut self, wall: SystemTime, monotonic: Duration) -> Option<SystemTime> {
        let step = monotonic.saturating_sub(self.last_monotonic);
        let expected = self.last_wall.checked_add(step)?;
        self.last_wall = wall;
        self.last_monotonic = monotonic;
        match wall.duration_since(expected) {
            Ok(forward) if forward > JUMP => {
                self.ahead = self.ahead.saturating_add(forward);
                None
            }
            Err(back) if back.duration() > JUMP => {
                self.ahead = self.ahead.saturating_sub(back.duration());
                None
            }
            _ => wall.checked_sub(self.ahead),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    #[test]
    fn time_that_passes_on_both_clocks_is_believed() {
        let mut clock = SweepClock::new(start(), Duration::ZERO);
        assert_eq!(
            clock.observe(start() + 400 * DAY, 400 * DAY),
            Some(start() + 400 * DAY)
        );
        let drifted = start() + 401 * DAY + Duration::from_secs(3000);
        assert_eq!(clock.observe(drifted, 401 * DAY), Some(drifted));
    }

    #[test]
    fn a_jump_forward_is_never_believed_and_its_correction_is() {
        let mut clock = SweepClock::new(start(), Duration::ZERO);
        assert_eq!(clock.observe(start() + 500 * DAY, DAY), None);
        assert_eq!(
            clock.observe(start() + 501 * DAY, 2 * DAY),
            Some(start() + 2 * DAY)
        );
        assert_eq!(clock.observe(start() + 3 * DAY, 3 * DAY), None);
        assert_eq!(
            clock.observe(start() + 4 * DAY, 4 * DAY),
            Some(start() + 4 * DAY)
        );
    }

    #[test]
    fn a_jump_back_keeps_longer() {
        let mut clock = SweepClock::new(start(), Duration::ZERO);
        assert_eq!(clock.observe(start() - 9 * DAY, DAY), None);
        assert_eq!(
            clock.observe(start() - 8 * DAY, 2 * DAY),
            Some(start() - 8 * DAY)
        );
        assert_eq!(clock.observe(start() + 3 * DAY, 3 * DAY), None);
        assert_eq!(
            clock.observe(start() + 4 * DAY, 4 * DAY),
            Some(start() - 6 * DAY)
        );
    }
}
