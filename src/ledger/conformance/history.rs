//! Random histories against a plain model.
//!
//! The model keeps, for each message, what became of every attempt, and says from that alone what may
//! be answered. It knows nothing of versions, flags or indexes.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Claim {
        message: usize,
        hold: bool,
        other_money: bool,
        known_only: bool,
        owner: Owner,
    },
    /// One of the fences granted so far, counted from the latest.
    Settle(usize, Class),
    Resolve(usize, Word),
    Lapse(Owner),
    Advance(Duration),
    Sweep,
}

#[derive(Clone, Copy, Debug)]
enum Class {
    Success,
    Declined,
    NotApplied,
    CannotSay,
}

#[derive(Clone, Copy, Debug)]
enum Word {
    Applied,
    Rejected,
    NotApplied,
    NotAppliedForced,
}

fn op() -> impl Strategy<Value = Op> {
    let owner = || prop_oneof![Just(ONE), Just(TWO)];
    let message = || 0_usize..2;
    let seldom = prop::bool::weighted(0.07);
    let claim = (
        message(),
        prop::bool::weighted(0.5),
        seldom,
        seldom,
        owner(),
    )
        .prop_map(
            |(message, hold, other_money, known_only, owner)| Op::Claim {
                message,
                hold,
                other_money,
                known_only,
                owner,
            },
        );
    let class = prop_oneof![
        2 => Just(Class::Success),
        1 => Just(Class::Declined),
        3 => Just(Class::NotApplied),
        3 => Just(Class::CannotSay),
    ];
    let fence = prop_oneof![3 => Just(0_usize), 2 => 0_usize..6];
    let word = prop_oneof![
        1 => Just(Word::Applied),
        1 => Just(Word::Rejected),
        3 => Just(Word::NotApplied),
        3 => Just(Word::NotAppliedForced),
    ];
    let times = [Duration::from_secs(30), MAY_RUN, KEEP];
    prop_oneof![
        8 => claim,
        8 => (fence, class).prop_map(|(back, class)| Op::Settle(back, class)),
        3 => (message(), word).prop_map(|(message, word)| Op::Resolve(message, word)),
        1 => owner().prop_map(Op::Lapse),
        2 => prop::sample::select(times.to_vec()).prop_map(Op::Advance),
        1 => Just(Op::Sweep),
    ]
}

/// What is known of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Running,
    Unknown,
    /// The owner said that it was not applied.
    Proven,
    /// A person said so.
    Declared,
    /// Unknown, and free to be sent again by its policy.
    GivenUp,
}

/// What is known of a message.
struct Told {
    id: RecordId,
    attempts: Vec<(Owner, Fate)>,
    answer: Option<(KeptAnswer, SystemTime)>,
    /// The answer is a person's "rejected".
    rejected: bool,
    hold: bool,
    alarmed: bool,
    may_run_until: SystemTime,
    version: u64,
    /// What the record was at that version.
    seen: Option<(State, u32, bool)>,
}

struct Model {
    told: HashMap<usize, Told>,
    fences: Vec<(usize, Fence)>,
}

/// No further history is begun after this: a store with a server behind it takes long for each.
const LONG_ENOUGH: Duration = Duration::from_secs(20);

pub(crate) async fn random_histories_keep_the_promises(open: Open) {
    drop(open.one().await); // opens, or fails here
    // Proptest calls a plain function: the histories run on a thread with a runtime of its own.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let config = Config {
            cases: 500,
            failure_persistence: None,
            ..Config::default()
        };
        let histories = prop::collection::vec(op(), 1..60);
        let started = std::time::Instant::now();
        TestRunner::new(config)
            .run(&histories, |ops| {
                if started.elapsed() < LONG_ENOUGH {
                    runtime.block_on(follow(open, ops));
                }
                Ok(())
            })
            .unwrap();
    })
    .join()
    .unwrap();
}

async fn follow(open: Open, ops: Vec<Op>) {
    let f = open.one().await;
    let mut model = Model {
        told: HashMap::new(),
        fences: Vec::new(),
    };
    for op in ops {
        model.take(&f, op).await;
        model.compare(&f).await;
    }
}

impl Model {
    async fn take(&mut self, f: &Fixture, op: Op) {
        match op {
            Op::Claim { .. } => self.claim(f, op).await,
            Op::Settle(back, class) => self.settle(f, back, class).await,
            Op::Resolve(message, word) => self.resolve(f, message, word).await,
            Op::Lapse(owner) => self.lapse(f, owner).await,
            Op::Advance(by) => f.hands.advance(by),
            Op::Sweep => self.sweep(f).await,
        }
    }

    async fn claim(&mut self, f: &Fixture, op: Op) {
        let Op::Claim {
            message,
            hold,
            other_money,
            known_only,
            owner,
        } = op
        else {
            return;
        };
        let mut claim = if hold {
            refund(&message.to_string())
        } else {
            notice(&message.to_string())
        };
        claim.owner = owner;
        // What comes first decides what the money is.
        let other_money = other_money && self.told.contains_key(&message);
        if other_money {
            claim.fingerprint = Fingerprint([9; 32]);
        }
        if known_only {
            claim.admission = Admission::KnownOnly;
        }
        let outcome = f.claim(claim).await;
        let now = f.now();
        let Some(told) = self.told.get_mut(&message) else {
            if known_only {
                return assert_is!(outcome, ClaimOutcome::Unfamiliar);
            }
            let ClaimOutcome::Granted(fence, _) = outcome else {
                panic!("a new key: {outcome:?}");
            };
            assert_eq!((fence.owner, fence.attempt), (owner, 1));
            let told = Told {
                id: fence.record,
                attempts: vec![(owner, Fate::Running)],
                answer: None,
                rejected: false,
                hold,
                alarmed: false,
                may_run_until: now + MAY_RUN,
                version: 0,
                seen: None,
            };
            self.told.insert(message, told);
            self.fences.push((message, fence));
            return;
        };
        if other_money {
            return assert_is!(outcome, ClaimOutcome::Conflict(id) if id == told.id);
        }
        told.hold |= hold;
        let number = told.attempts.len() as u32;
        let last = told.attempts.last().map(|(_, fate)| *fate);
        let freed = |(_, fate): &(Owner, Fate)| match fate {
            Fate::Proven | Fate::Declared => true,
            Fate::GivenUp => !told.hold,
            Fate::Running | Fate::Unknown => false,
        };
        match outcome {
            ClaimOutcome::Done(_, given) => {
                assert_eq!(Some(&given), told.answer.as_ref().map(|(kept, _)| kept));
            }
            ClaimOutcome::Running(fence) => {
                assert_eq!(last, Some(Fate::Running));
                assert_eq!(fence.attempt, number);
            }
            ClaimOutcome::Granted(fence, _) => {
                assert!(told.answer.is_none() && !told.alarmed);
                assert!(told.attempts.iter().all(freed), "{:?}", told.attempts);
                assert_eq!((fence.owner, fence.attempt), (owner, number + 1));
                told.attempts.push((owner, Fate::Running));
                told.may_run_until = told.may_run_until.max(now + MAY_RUN);
                self.fences.push((message, fence));
            }
            ClaimOutcome::Held(..) => {
                assert!(told.answer.is_none());
                let free = told.attempts.iter().all(freed) && !told.alarmed;
                assert!(!free, "held without need: {:?}", told.attempts);
                assert_ne!(last, Some(Fate::Running));
                if let Some((_, fate)) = told.attempts.last_mut() {
                    *fate = Fate::Unknown; // what was given up is unknown again
                }
            }
            other => panic!("{other:?}"),
        }
    }

    async fn settle(&mut self, f: &Fixture, back: usize, class: Class) {
        let Some(index) = self.fences.len().checked_sub(back + 1) else {
            return;
        };
        let (message, fence) = self.fences[index];
        let settlement = match class {
            Class::Success => success(),
            Class::Declined => declined(),
            Class::NotApplied => not_applied(),
            Class::CannotSay => cannot_say(),
        };
        let settled = f.settle(fence, settlement.clone()).await;
        let Some(told) = (self.told.get_mut(&message)).filter(|told| told.id == fence.record)
        else {
            return assert_eq!(settled, Settled::Superseded(State::Done));
        };
        if told.attempts.len() as u32 > fence.attempt {
            let alarm = matches!(class, Class::Success) && told.hold;
            assert_eq!(settled == Settled::Alarm, alarm);
            return told.overtaken(alarm);
        }
        if told.answer.is_some() {
            let alarm = matches!(class, Class::Success) && told.hold && told.rejected;
            assert_eq!(settled == Settled::Alarm, alarm);
            told.alarmed |= alarm;
            return;
        }
        let doubt = told.earlier_in_doubt();
        let (_, fate) = told.attempts.last_mut().unwrap();
        let declared = *fate == Fate::Declared;
        let open = matches!(*fate, Fate::Running | Fate::Unknown);
        match (class, settlement) {
            (Class::Success, Settlement::Done(kept, _)) => told.answer = Some((kept, f.now())),
            (Class::Declined, Settlement::Done(kept, _)) if !declared => {
                told.answer = Some((kept, f.now()));
            }
            (Class::NotApplied, _) if open && (told.alarmed || doubt) => *fate = Fate::Unknown,
            (Class::NotApplied, _) if !declared => *fate = Fate::Proven,
            (Class::CannotSay, _) if open && (told.hold || told.alarmed) => *fate = Fate::Unknown,
            (Class::CannotSay, _) if open => *fate = Fate::GivenUp,
            _ => {}
        }
    }

    async fn resolve(&mut self, f: &Fixture, message: usize, word: Word) {
        let Some(told) = self.told.get_mut(&message) else {
            return;
        };
        let forced = matches!(word, Word::NotAppliedForced);
        let verdict = match word {
            Word::Applied => Verdict::Applied(answer(200, "by hand")),
            Word::Rejected => Verdict::Rejected(answer(422, "by hand")),
            Word::NotApplied | Word::NotAppliedForced => Verdict::NotApplied,
        };
        let resolved = if forced {
            f.resolve_by_force(told.id, verdict.clone()).await
        } else {
            f.resolve(told.id, verdict.clone()).await
        };
        let unknown = told.answer.is_none() && told.last() == Fate::Unknown;
        match (resolved, verdict) {
            (Ok(_), Verdict::NotApplied) => {
                assert!(unknown && !told.alarmed);
                assert!(forced || f.now() >= told.may_run_until);
                for (_, fate) in &mut told.attempts {
                    if matches!(fate, Fate::GivenUp | Fate::Unknown) {
                        *fate = Fate::Declared;
                    }
                }
                told.attempts.last_mut().unwrap().1 = Fate::Declared;
            }
            (Ok(_), Verdict::Applied(kept) | Verdict::Rejected(kept)) => {
                assert!(unknown);
                told.rejected = matches!(word, Word::Rejected);
                told.answer = Some((kept, f.now()));
            }
            (Err(ResolveError::NotUnknown(_)), _) => assert!(!unknown),
            (Err(ResolveError::NoFurtherRelease), _) => assert!(told.alarmed),
            (Err(ResolveError::MayStillRun { .. }), _) => {
                assert!(!forced && f.now() < told.may_run_until);
            }
            (Err(other), _) => panic!("{other:?}"),
        }
    }

    async fn lapse(&mut self, f: &Fixture, owner: Owner) {
        let mut expected = 0;
        for told in self.told.values_mut().filter(|told| told.answer.is_none()) {
            if told.attempts.last() == Some(&(owner, Fate::Running)) {
                expected += 1;
                let held = told.hold || told.alarmed;
                let fate = if held { Fate::Unknown } else { Fate::GivenUp };
                told.attempts.last_mut().unwrap().1 = fate;
            }
        }
        assert_eq!(f.ledger.lapse(owner).await.unwrap(), expected);
    }

    async fn sweep(&mut self, f: &Fixture) {
        let before = self.told.len();
        let now = f.now();
        self.told.retain(|_, told| match &told.answer {
            Some((_, done_at)) => now < *done_at + KEEP,
            None => true,
        });
        let forgotten = f.ledger.sweep(usize::MAX).await.unwrap();
        assert_eq!(forgotten as usize, before - self.told.len());
    }

    /// The store says of every message what the model does.
    async fn compare(&mut self, f: &Fixture) {
        let mut counts = [0; 4];
        for told in self.told.values_mut() {
            let record = f.record(told.id).await;
            let state = told.state();
            assert_eq!(record.state, state, "{:?}", told.attempts);
            assert_eq!(record.attempt as usize, told.attempts.len());
            assert_eq!(record.alarmed, told.alarmed);
            let kept = told.answer.as_ref().map(|(kept, _)| kept);
            assert_eq!(record.answer.as_ref(), kept);
            let seen = (record.state, record.attempt, record.alarmed);
            assert!(record.version > told.version || told.seen == Some(seen));
            assert!(record.version >= told.version);
            (told.version, told.seen) = (record.version, Some(seen));
            counts[state as usize] += 1;
        }
        assert_eq!(f.ledger.stats().await.unwrap().records, counts);
    }
}

impl Told {
    fn last(&self) -> Fate {
        self.attempts[self.attempts.len() - 1].1
    }

    /// An attempt before the last was given up, and the message is held now.
    fn earlier_in_doubt(&self) -> bool {
        let earlier = self.attempts.iter().rev().skip(1);
        self.hold && (earlier.into_iter()).any(|(_, fate)| *fate == Fate::GivenUp)
    }

    fn state(&self) -> State {
        if self.answer.is_some() {
            return State::Done;
        }
        match self.last() {
            Fate::Running => State::Claimed,
            Fate::Unknown => State::Unknown,
            Fate::Proven | Fate::Declared | Fate::GivenUp => State::Released,
        }
    }

    fn overtaken(&mut self, alarm: bool) {
        if !alarm {
            return;
        }
        self.alarmed = true;
        if self.state() == State::Released {
            self.attempts.last_mut().unwrap().1 = Fate::Unknown;
        }
    }
}
