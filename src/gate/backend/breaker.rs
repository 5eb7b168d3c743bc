//! When an address is left alone for a while: a state machine over time that is passed in.
//!
//! ```text
//! closed ──failures──▶ open ──its pause is over──▶ half-open: one trial at a time
//!    ▲                   ▲──────the trial failed──────┤
//!    └─────────────────────────it succeeded───────────┘
//! ```
//! All workers share it. While it is closed a call costs a few atomic operations and no lock; the
//! lock is for changes of state and for calls that are turned away.
//!
//! A permission counts for the state that it was given in: what a call comes to that began before
//! the breaker opened changes nothing afterwards.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;

use crate::config;

use super::tally::Tally;

/// The pause doubles with each trial that fails, up to this, or to `open_for` where that is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A pause is made longer by up to one in so many of itself, so that gates that lost one backend
/// together don't try it together.
const JITTER: u64 = 4;

/// What is said of the wait while a trial runs, whose end nobody knows.
const TRIAL_WAIT: Duration = Duration::from_secs(1);

/// The breaker of one address.
#[derive(Debug)]
pub(super) struct Breaker {
    settings: config::Breaker,
    /// The state's number, and in the lowest bit whether calls need the lock to be let through.
    word: AtomicU64,
    /// Failures since the last success.
    streak: AtomicU32,
    tally: Tally,
    phase: Mutex<Phase>,
    jitter: RandomState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    /// Until then nobody may call; after so many openings one after the other.
    Open {
        until: Duration,
        openings: u32,
    },
    /// One call at a time may try.
    HalfOpen {
        trying: bool,
        openings: u32,
    },
}

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Closed,
    HalfOpen,
    Open,
}

/// The right to make one call. Its holder says what came of it, or gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permission {
    state: u64,
    trial: bool,
}

/// What a call's end made of the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It opened, for so long.
    Opened(Duration),
    /// It closed.
    Closed,
}

const SHUT: u64 = 1;
const ONE_STATE: u64 = 2;

impl Breaker {
    pub(super) fn new(settings: config::Breaker) -> Self {
        Self::in_phase(settings, Phase::Closed)
    }

    /// With other settings; an open one stays open.
    pub(super) fn with_settings(&self, settings: config::Breaker) -> Self {
        let phase = match *self.lock() {
            Phase::HalfOpen { openings, .. } => Phase::HalfOpen {
                trying: false,
                openings,
            },
            other => other,
        };
        let phase = if settings.enabled {
            phase
        } else {
            Phase::Closed
        };
        Self::in_phase(settings, phase)
    }

    fn in_phase(settings: config::Breaker, phase: Phase) -> Self {
        let shut = if phase == Phase::Closed { 0 } else { SHUT };
        Self {
            word: AtomicU64::new(shut),
            streak: AtomicU32::new(0),
            tally: Tally::over(settings.window),
            phase: Mutex::new(phase),
            jitter: RandomState::default(),
            settings,
        }
    }

    pub(super) fn settings(&self) -> config::Breaker {
        self.settings
    }

    /// Permits a call at `now`.
    ///
    /// # Errors
    /// It is open, or its trial is running: the time after which asking again makes sense.
    pub(super) fn admit(&self, now: impl FnOnce() -> Duration) -> Result<Permission, Duration> {
        let word = self.word.load(Ordering::Acquire);
        if word & SHUT == 0 {
            return Ok(Permission {
                state: word,
                trial: false,
            });
        }
        let mut phase = self.lock();
        let openings = match *phase {
            // It closed this very moment.
            Phase::Closed => {
                return Ok(Permission {
                    state: self.word.load(Ordering::Acquire),
                    trial: false,
                });
            }
            Phase::HalfOpen { trying: true, .. } => return Err(TRIAL_WAIT),
            Phase::HalfOpen { openings, .. } => openings,
            Phase::Open { until, openings } => {
                let wait = until.saturating_sub(now());
                if wait > Duration::ZERO {
                    return Err(wait);
                }
                openings
            }
        };
        let trying = Phase::HalfOpen {
            trying: true,
            openings,
        };
        Ok(Permission {
            state: self.enter(&mut phase, trying),
            trial: true,
        })
    }

    /// Whether nothing has changed since this permission was given.
    pub(super) fn stands(&self, permission: Permission) -> bool {
        self.word.load(Ordering::Acquire) == permission.state
    }

    /// A permitted call succeeded.
    pub(super) fn succeeded(&self, permission: Permission, now: Duration) -> Option<Change> {
        if !self.settings.enabled || !self.stands(permission) {
            return None;
        }
        if permission.trial {
            return self.change(permission, |_| Phase::Closed);
        }
        // Looked at first: a store on each call would move the cache line between the workers' cores.
        if self.streak.load(Ordering::Relaxed) != 0 {
            self.streak.store(0, Ordering::Relaxed);
        }
        self.tally.add(now, false);
        None
    }

    /// A permitted call failed.
    pub(super) fn failed(&self, permission: Permission, now: Duration) -> Option<Change> {
        if !self.settings.enabled || !self.stands(permission) {
            return None;
        }
        if !permission.trial {
            self.tally.add(now, true);
            let streak = self
                .streak
                .fetch_add(1, Ordering::Relaxed)
                .saturating_add(1);
            if streak < self.settings.failures && !self.too_many(now) {
                return None;
            }
        }
        self.change(permission, |phase| {
            let openings = match *phase {
                Phase::Closed => 1,
                Phase::Open { openings, .. } | Phase::HalfOpen { openings, .. } => {
                    openings.saturating_add(1)
                }
            };
            Phase::Open {
                until: now + self.pause(openings, permission),
                openings,
            }
        })
        .map(|change| match change {
            Change::Opened(until) => Change::Opened(until.saturating_sub(now)),
            Change::Closed => Change::Closed,
        })
    }

    /// A permitted call came to nothing that says anything: another may be the trial.
    pub(super) fn given_back(&self, permission: Permission) {
        if !permission.trial {
            return;
        }
        let mut phase = self.lock();
        if let Phase::HalfOpen { trying, .. } = &mut *phase
            && self.stands(permission)
        {
            *trying = false;
        }
    }

    /// Where it stands at `now`.
    pub(super) fn state(&self, now: Duration) -> State {
        if self.word.load(Ordering::Acquire) & SHUT == 0 {
            return State::Closed;
        }
        match *self.lock() {
            Phase::Closed => State::Closed,
            Phase::Open { until, .. } if now < until => State::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Whether too large a share of the calls within the window failed.
    fn too_many(&self, now: Duration) -> bool {
        let (calls, failures) = self.tally.total(now);
        let percent = u64::from(self.settings.failure_percent);
        calls >= u64::from(self.settings.min_calls) && failures * 100 >= calls * percent
    }

    fn pause(&self, openings: u32, permission: Permission) -> Duration {
        let open_for = self.settings.open_for;
        let doubled = open_for.saturating_mul(1 << (openings - 1).min(16));
        let pause = doubled.min(LONGEST_PAUSE.max(open_for));
        let longer = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX) / JITTER;
        let jitter = self.jitter.hash_one(permission.state);
        pause + Duration::from_nanos(jitter % longer.max(1))
    }

    /// Changes the state that a permission was given in, unless another call did already.
    fn change(&self, permission: Permission, to: impl FnOnce(&Phase) -> Phase) -> Option<Change> {
        let mut phase = self.lock();
        if !self.stands(permission) {
            return None;
        }
        let next = to(&phase);
        if next == Phase::Closed {
            self.streak.store(0, Ordering::Relaxed);
            self.tally.clear();
        }
        self.enter(&mut phase, next);
        match next {
            Phase::Closed => Some(Change::Closed),
            Phase::Open { until, .. } => Some(Change::Opened(until)),
            Phase::HalfOpen { .. } => None,
        }
    }

    /// Begins a state and gives its number.
    fn enter(&self, phase: &mut Phase, next: Phase) -> u64 {
        *phase = next;
        let number = self.word.load(Ordering::Acquire) & !SHUT;
        let shut = if next == Phase::Closed { 0 } else { SHUT };
        let word = number.wrapping_add(ONE_STATE) | shut;
        self.word.store(word, Ordering::Release);
        word
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        // Nothing in between can panic half-way: what is there is whole.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
