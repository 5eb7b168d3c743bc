//! Looks at the backend that nobody asked for: every unknown record of a route with a probe is looked
//! into from the time on when its attempt is over for certain, with a growing pause between looks.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ledger::{Filter, Hold, Record, RecordId, SIGHTING_PAUSE, State};

use super::Gate;
use super::current::Current;
use super::probe::{Looked, Sight, Until, look};
use super::route::RoutePlan;

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(2);

/// Between the first two looks at a record, and whenever one said "not applied" for the first time;
/// no shorter than what the ledger wants between two of those.
const FIRST_PAUSE: Duration = SIGHTING_PAUSE;

/// The pause doubles up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// A pause is made longer by up to one in so many of itself, so that looks that began together (after
/// a backend's bad minute, or by two gates) don't stay together.
const JITTER: u64 = 4;

/// Looks at once.
const AT_ONCE: usize = 4;

/// Records asked of the ledger at once.
const PAGE: usize = 100;

/// Between two pages: a long list is not to keep the ledger from calls.
const PAGE_PAUSE: Duration = Duration::from_millis(20);

/// How long the ledger may take to record what was seen.
const RECORDING: Duration = Duration::from_secs(5);

/// Records that wait for their next look at most. Those beyond are looked into when others are
/// resolved; a duplicate's own look doesn't depend on it.
const WAITING: usize = 65_536;

/// Makes rounds for ever. To be ended by dropping it: a look that is cut short changes nothing.
pub async fn keep_looking(current: Current) {
    let mut rounds = Rounds::default();
    loop {
        tokio::time::sleep(EVERY).await;
        let gate = current.get();
        if gate.common.routes.any_probe() {
            rounds.round(&gate).await;
        }
    }
}

/// What is known of the records that were unknown in the last round.
#[derive(Debug, Default)]
pub struct Rounds {
    waiting: HashMap<RecordId, Waiting>,
    round: u64,
    jitter: RandomState,
}

/// One record's turn.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// On the gate's monotonic clock.
    due: Duration,
    /// Looks so far.
    looks: u32,
    /// The last look said "not applied".
    absent: bool,
    /// The last round that found it unknown.
    round: u64,
}

impl Rounds {
    /// Looks once at every record that is due, a few at a time.
    pub async fn round(&mut self, gate: &Arc<Gate>) {
        self.round += 1;
        let mut after = None;
        loop {
            let filter = Filter {
                state: Some(State::Unknown),
                after,
                limit: PAGE,
                ..Filter::default()
            };
            let page = match gate.common.ledger.list(filter).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%error, "unknown records can't be looked into now");
                    return;
                }
            };
            let due = self.due(gate, &page.records);
            self.look_into(gate, due).await;
            after = page.next;
            if after.is_none() {
                break;
            }
            tokio::time::sleep(PAGE_PAUSE).await;
        }
        let round = self.round;
        self.waiting.retain(|_, waiting| waiting.round == round);
    }

    /// Those of the records whose turn it is.
    fn due(&mut self, gate: &Gate, records: &[Record]) -> Vec<(RecordId, Arc<RoutePlan>)> {
        let common = &gate.common;
        let (now, monotonic) = (common.clock.now(), common.clock.monotonic());
        let mut due = Vec::new();
        for record in records {
            // While the attempt may run, its own answer may still come, and "not applied" says nothing.
            let too_early = now < record.may_run_until;
            if too_early || record.hold == Some(Hold::PossibleDuplicate) {
                continue;
            }
            let plan = common.routes.named(&record.route);
            let Some(plan) = plan.filter(|plan| plan.probe().is_some()) else {
                continue;
            };
            let room = self.waiting.len() < WAITING;
            let first = Waiting {
                due: monotonic,
                looks: 0,
                absent: false,
                round: self.round,
            };
            let waiting = match self.waiting.get_mut(&record.id) {
                Some(waiting) => waiting,
                None if !room => continue,
                None => self.waiting.entry(record.id).or_insert(first),
            };
            waiting.round = self.round;
            if waiting.due <= monotonic {
                due.push((record.id, Arc::clone(plan)));
            }
        }
        due
    }

    async fn look_into(&mut self, gate: &Arc<Gate>, due: Vec<(RecordId, Arc<RoutePlan>)>) {
        let mut looks = JoinSet::new();
        for (id, plan) in due {
            if looks.len() >= AT_ONCE {
                self.note(gate, looks.join_next().await);
            }
            looks.spawn(look_once(Arc::clone(gate), plan, id));
        }
        while let Some(looked) = looks.join_next().await {
            self.note(gate, Some(looked));
        }
    }

    /// Says when the record's next turn is.
    fn note(&mut self, gate: &Gate, looked: Option<LookEnded>) {
        // A look that panicked is due again in the next round.
        let Some(Ok((id, looked))) = looked else {
            return;
        };
        match looked {
            Looked::NotNow => {}
            Looked::Settled => {
                self.waiting.remove(&id);
            }
            Looked::StillUnknown(sight) => {
                let jitter = self.jitter.hash_one((id, self.round));
                if let Some(waiting) = self.waiting.get_mut(&id) {
                    waiting.looked(sight, gate.common.clock.monotonic(), jitter);
                }
            }
        }
    }
}

type LookEnded = Result<(RecordId, Looked), tokio::task::JoinError>;

impl Waiting {
    fn looked(&mut self, sight: Sight, now: Duration, jitter: u64) {
        let absent = sight == Sight::NotApplied;
        // The second "not applied" decides: it is not waited for longer than it must be.
        let decides = absent && !self.absent;
        let doubled = FIRST_PAUSE.saturating_mul(1_u32 << self.looks.min(16));
        let pause = if decides {
            FIRST_PAUSE
        } else {
            doubled.min(LONGEST_PAUSE)
        };
        self.looks = self.looks.saturating_add(1);
        self.absent = absent;
        let longer = pause.as_millis() as u64 / JITTER;
        self.due = now + pause + Duration::from_millis(jitter % longer.max(1));
    }
}

async fn look_once(gate: Arc<Gate>, plan: Arc<RoutePlan>, id: RecordId) -> (RecordId, Looked) {
    let Some(probe) = plan.probe() else {
        return (id, Looked::NotNow);
    };
    let answered = Instant::now() + probe.timeout;
    let until = Until {
        answered,
        recorded: answered + RECORDING,
    };
    (id, look(&gate, &plan, probe, id, until).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);
    const UNCLEAR: Sight = Sight::CantSay("unclear_answer");

    /// The pauses after looks that saw this, in whole minutes at least.
    fn pauses(sights: &[Sight], jitter: u64) -> Vec<Duration> {
        let mut waiting = Waiting {
            due: START,
            looks: 0,
            absent: false,
            round: 1,
        };
        let pause = |sight: &Sight| {
            waiting.looked(*sight, START, jitter);
            waiting.due - START
        };
        sights.iter().map(pause).collect()
    }

    fn minutes(counts: &[u64]) -> Vec<Duration> {
        let minutes = counts.iter();
        minutes
            .map(|count| Duration::from_secs(60 * count))
            .collect()
    }

    #[test]
    fn the_pause_doubles_up_to_an_hour() {
        let expected = minutes(&[1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses(&[UNCLEAR; 8], 0), expected);
        assert_eq!(pauses(&[UNCLEAR; 40], 0)[39], LONGEST_PAUSE);
    }

    #[test]
    fn a_first_not_applied_is_followed_up_in_a_minute() {
        let sights = [
            UNCLEAR,
            UNCLEAR,
            UNCLEAR,
            Sight::NotApplied,
            Sight::NotApplied,
            UNCLEAR,
            Sight::NotApplied,
        ];
        assert_eq!(pauses(&sights, 0), minutes(&[1, 2, 4, 1, 16, 32, 1]));
    }

    #[test]
    fn jitter_only_lengthens_a_pause_and_not_by_much() {
        for jitter in [1, 14_999, 15_000, u64::MAX] {
            let pause = pauses(&[UNCLEAR], jitter)[0];
            assert!(
                pause >= FIRST_PAUSE && pause < FIRST_PAUSE * 5 / 4,
                "{pause:?}"
            );
        }
    }
}
