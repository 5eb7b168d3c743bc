//! Follows a history, and compares the store with what is known after each step.

use std::collections::BTreeMap;

use super::told::{By, Fate, Others, Told};
use super::*;

#[derive(Debug, Default)]
pub(super) struct Model {
    told: BTreeMap<usize, Told>,
    fences: Vec<(usize, Fence)>,
    generation: u64,
    quarantined: bool,
}

impl Model {
    pub(super) async fn take(&mut self, f: &mut Fixture, op: Op) {
        match op {
            Op::Claim(wish) => self.claim(f, wish).await,
            Op::Settle(back, class) => self.settle(f, back, class).await,
            Op::Permit(back) => self.permit(f, back).await,
            Op::Stranger(message) => self.stranger(f, message).await,
            Op::Resolve(message, word) => self.resolve(f, message, word).await,
            Op::Reopen(message) => self.reopen(f, message).await,
            Op::Look(message, sight) => self.look(f, message, sight).await,
            Op::Lapse(owner) => {
                let expected = self.lapsed(f.now(), |of| of == owner);
                assert_eq!(f.ledger.lapse(owner).await.unwrap(), expected);
            }
            Op::Restart(end) => self.restart(f, end).await,
            Op::Quarantine => {
                f.quarantined().await;
                self.generation += 1;
                self.quarantined = true;
            }
            Op::Lift => {
                f.lifted().await;
                self.quarantined = false;
            }
            Op::Advance(by) => f.hands.advance(by),
            Op::Sweep => self.sweep(f).await,
        }
    }

    async fn claim(&mut self, f: &Fixture, mut wish: Wish) {
        // What comes first decides what the money is.
        wish.other_money &= self.told.contains_key(&wish.message);
        let others = self.others(wish.message, f.now());
        let outcome = f.claim(claim_of(wish)).await;
        match self.told.get(&wish.message) {
            None => self.first(f.now(), wish, &others, outcome),
            Some(_) => self.again(f.now(), wish, &others, outcome),
        }
    }

    /// The claim of a key that the ledger doesn't know.
    fn first(&mut self, now: SystemTime, wish: Wish, others: &Others, outcome: ClaimOutcome) {
        if wish.known_only {
            return assert_is!(outcome, ClaimOutcome::Unfamiliar);
        }
        let gap = wish.hold && self.quarantined;
        let mut told = Told::new(now, wish.hold, self.generation);
        match outcome {
            ClaimOutcome::Granted(fence, marks) => {
                assert!(!gap, "granted in a quarantine");
                assert_eq!((fence.owner, fence.attempt), (wish.owner, 1));
                others.allow(wish, false, marks);
                told.id = fence.record;
                told.attempts.push((wish.owner, Fate::Running));
                self.fences.push((wish.message, fence));
            }
            ClaimOutcome::Held(id, Hold::LedgerGap) => {
                assert!(gap);
                told.id = id;
                told.phantom = Some(Fate::Unknown);
                told.held = true;
            }
            ClaimOutcome::Held(id, Hold::PossibleDuplicate) => {
                assert!(!gap && others.suspect(wish, false));
                told.id = id;
                told.suspect = true;
                told.held = true;
                told.may_run_until = now;
            }
            ClaimOutcome::Dropped(id, kept) => {
                assert!(!gap && others.drop(wish));
                told.id = id;
                told.answer = Some((kept, By::Dropped));
            }
            other => panic!("a new key: {other:?}"),
        }
        self.told.insert(wish.message, told);
    }

    fn again(&mut self, now: SystemTime, wish: Wish, others: &Others, outcome: ClaimOutcome) {
        let behind_before = self.behind(wish.message);
        let generation = self.generation;
        let Some(told) = self.told.get_mut(&wish.message) else {
            return;
        };
        if wish.other_money {
            return assert_is!(outcome, ClaimOutcome::Conflict(id) if id == told.id);
        }
        told.hold |= wish.hold;
        let behind = behind_before && told.hold;
        let number = told.attempts.len() as u32;
        let state = told.state();
        let why = format!("{told:?}");
        match outcome {
            ClaimOutcome::Done(_, given) => {
                let kept = told.answer.as_ref().map(|(kept, _)| kept);
                assert_eq!(Some(&given), kept);
            }
            ClaimOutcome::Running(fence) => {
                assert_eq!((state, fence.attempt), (State::Claimed, number));
            }
            ClaimOutcome::Granted(fence, marks) => {
                assert_eq!(state, State::Released, "{why}");
                assert!(told.free() && !behind, "{why}");
                assert_eq!((fence.owner, fence.attempt), (wish.owner, number + 1));
                others.allow(wish, told.cleared, marks);
                told.attempts.push((wish.owner, Fate::Running));
                told.may_run_until = told.may_run_until.max(now + MAY_RUN);
                told.generation = generation;
                told.suspect = false;
                told.changed(now);
                self.fences.push((wish.message, fence));
            }
            ClaimOutcome::Held(_, reason) if state == State::Released => {
                told.changed(now);
                told.held = true;
                match reason {
                    Hold::LedgerGap => {
                        assert!(behind, "{why}");
                        told.phantom = Some(Fate::Unknown);
                        told.may_run_until = told.may_run_until.max(now + MAY_RUN);
                        told.generation = generation;
                        told.suspect = false;
                    }
                    Hold::OutcomeUnknown => {
                        assert!(!told.free() && !behind, "held without need: {why}");
                        told.suspect = false;
                    }
                    Hold::PossibleDuplicate => {
                        assert!(others.suspect(wish, told.cleared), "{why}");
                        assert!(told.free() && !behind, "{why}");
                        told.suspect = true;
                    }
                }
            }
            ClaimOutcome::Held(_, reason) => {
                assert_eq!(state, State::Unknown, "{why}");
                assert_eq!(reason == Hold::PossibleDuplicate, told.suspect, "{why}");
            }
            ClaimOutcome::Dropped(_, kept) => {
                assert_eq!(state, State::Released, "{why}");
                assert!(told.free() && !behind && others.drop(wish), "{why}");
                told.answer = Some((kept, By::Dropped));
                told.changed(now);
            }
            other => panic!("{other:?}"),
        }
    }

    async fn settle(&mut self, f: &Fixture, back: usize, class: Class) {
        let Some((message, fence)) = self.granted(back) else {
            return;
        };
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
        let succeeded = class == Class::Success && told.hold;
        if told.attempts.len() as u32 > fence.attempt {
            assert_eq!(settled == Settled::Alarm, succeeded, "{told:?}");
            return told.aside(f.now(), succeeded);
        }
        if let Some((kept, by)) = &told.answer {
            // Tiki was told that it was not done.
            let alarm = succeeded && *by == By::Word && !kept.status.is_success();
            assert_eq!(settled == Settled::Alarm, alarm, "{told:?}");
            return told.aside(f.now(), alarm);
        }
        assert_ne!(settled, Settled::Alarm, "{told:?}");
        told.answered(f.now(), class, settlement);
    }

    async fn permit(&mut self, f: &Fixture, back: usize) {
        let Some((message, fence)) = self.granted(back) else {
            return;
        };
        let told = self.told.get(&message);
        let told = told.filter(|told| told.id == fence.record);
        let good = told.is_some_and(|told| {
            told.state() == State::Claimed
                && told.attempts.len() as u32 == fence.attempt
                && !told.alarmed
                && f.now() < told.may_run_until
        });
        assert_eq!(f.ledger.permit(fence).await.is_ok(), good, "{told:?}");
    }

    async fn stranger(&mut self, f: &Fixture, message: usize) {
        let Some(told) = self.told.get_mut(&message) else {
            return;
        };
        let fence = Fence {
            record: told.id,
            owner: ONE,
            attempt: told.attempts.len() as u32 + 1,
        };
        let settled = f.settle(fence, success()).await;
        assert_eq!(settled == Settled::Alarm, told.hold, "{told:?}");
        told.aside(f.now(), told.hold);
    }

    async fn resolve(&mut self, f: &Fixture, message: usize, word: Word) {
        let generation = self.generation;
        let Some(told) = self.told.get_mut(&message) else {
            return;
        };
        let forced = word == Word::NotAppliedForced;
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
        let unknown = told.state() == State::Unknown;
        let why = format!("{told:?}");
        match (resolved, verdict) {
            (Ok(_), Verdict::NotApplied) => {
                assert!(unknown && !told.alarmed, "{why}");
                assert!(forced || f.now() >= told.may_run_until, "{why}");
                told.cleared |= told.suspect;
                told.let_go(f.now(), generation);
            }
            (Ok(_), Verdict::Applied(kept) | Verdict::Rejected(kept)) => {
                assert!(unknown, "{why}");
                told.answered_by_word(f.now(), generation, kept);
            }
            (Err(ResolveError::NotUnknown(_)), _) => assert!(!unknown, "{why}"),
            (Err(ResolveError::NoFurtherRelease), _) => assert!(told.alarmed, "{why}"),
            (Err(ResolveError::MayStillRun { .. }), _) => {
                assert!(!forced && f.now() < told.may_run_until, "{why}");
            }
            (Err(other), _) => panic!("{other:?}"),
        }
    }

    async fn reopen(&mut self, f: &Fixture, message: usize) {
        let Some(told) = self.told.get_mut(&message) else {
            return;
        };
        let word = |fate: &Fate| *fate == Fate::Declared;
        let by_word = match (told.state(), &told.answer) {
            (State::Done, Some((_, by))) => *by == By::Word,
            (State::Released, _) => {
                let earlier = told.attempts.iter().any(|(_, fate)| word(fate));
                told.worded || earlier || told.phantom.iter().any(word) || told.cleared
            }
            _ => false,
        };
        let reopened = f.reopen(told.id).await;
        assert_eq!(reopened.is_ok(), by_word, "{told:?}");
        if let Err(error) = reopened {
            return assert_is!(error, ResolveError::NotDeclared);
        }
        let fates = told.attempts.iter_mut().map(|(_, fate)| fate);
        for fate in fates.chain(&mut told.phantom) {
            if *fate == Fate::Declared {
                *fate = Fate::Unknown;
            }
        }
        told.changed(f.now());
        told.answer = None;
        told.held = true;
        told.taken_back = true;
        told.cleared = false;
    }

    async fn look(&mut self, f: &Fixture, message: usize, sight: Sight) {
        let (generation, behind) = (self.generation, self.behind(message));
        let Some(told) = self.told.get_mut(&message) else {
            return;
        };
        let kept = answer(200, "seen");
        let seen = match sight {
            Sight::Applied => Seen::Applied(kept.clone()),
            Sight::NotApplied => Seen::NotApplied,
            Sight::CannotSee => Seen::CantSay("probe_timeout".into()),
        };
        let sighted = f.sighted(told.id, seen).await;
        if told.state() != State::Unknown {
            return assert_is!(sighted, Err(ResolveError::NotUnknown(_)));
        }
        if told.suspect {
            return assert_is!(sighted, Err(ResolveError::NeverSent));
        }
        sighted.unwrap();
        let now = f.now();
        let may_run = now < told.may_run_until || behind;
        match sight {
            _ if told.taken_back => {}
            Sight::Applied => told.answered_by_word(now, generation, kept),
            Sight::CannotSee => told.absent_since = None,
            Sight::NotApplied if may_run || told.alarmed || told.looks_spent => {}
            Sight::NotApplied => match told.absent_since {
                None => told.absent_since = Some(now),
                Some(since) if now >= since + SIGHTING_PAUSE => {
                    told.looks_spent = true;
                    told.let_go(now, generation);
                }
                Some(_) => {}
            },
        }
    }

    async fn restart(&mut self, f: &mut Fixture, end: End) {
        let expected = self.lapsed(f.now(), |_| true);
        let lapsed = if f.reopen.is_some() {
            f.restart(end).await
        } else {
            f.ledger.lapse(ONE).await.unwrap() + f.ledger.lapse(TWO).await.unwrap()
        };
        assert_eq!(lapsed, expected);
    }

    /// Ends the attempts of dead owners; says how many.
    fn lapsed(&mut self, now: SystemTime, dead: impl Fn(Owner) -> bool) -> u64 {
        let running = (self.told.values_mut()).filter(|told| told.state() == State::Claimed);
        let mut lapsed = 0;
        for told in running {
            if told.attempts.last().is_some_and(|(owner, _)| dead(*owner)) {
                told.answered(now, Class::CannotSay, cannot_say());
                lapsed += 1;
            }
        }
        lapsed
    }

    async fn sweep(&mut self, f: &Fixture) {
        let before = self.told.len();
        let now = f.now();
        (self.told).retain(|_, told| told.answer.is_none() || now < told.changed_at + KEEP);
        let forgotten = f.ledger.sweep(usize::MAX).await.unwrap();
        assert_eq!(forgotten as usize, before - self.told.len());
    }

    fn granted(&self, back: usize) -> Option<(usize, Fence)> {
        let index = self.fences.len().checked_sub(back + 1)?;
        Some(self.fences[index])
    }

    fn behind(&self, message: usize) -> bool {
        let told = self.told.get(&message);
        self.quarantined && told.is_some_and(|told| told.generation < self.generation)
    }

    fn others(&self, message: usize, now: SystemTime) -> Others {
        let about = |message| self.told.get(&message);
        match message {
            PAYMENT => Others::of_payment(about(OTHER_PAYMENT), now),
            OTHER_PAYMENT => Others::of_payment(about(PAYMENT), now),
            OLDER_EVENT => Others::of_event(about(NEWER_EVENT), now),
            _ => Others::default(),
        }
    }

    /// The store says of every message what the model does.
    pub(super) async fn compare(&mut self, f: &Fixture) {
        let mut counts = [0; 4];
        for told in self.told.values_mut() {
            let record = f.record(told.id).await;
            let state = told.state();
            assert_eq!(record.state, state, "{told:?}");
            assert_eq!(record.attempt as usize, told.attempts.len());
            assert_eq!(record.alarmed, told.alarmed);
            let kept = told.answer.as_ref().map(|(kept, _)| kept);
            assert_eq!(record.answer.as_ref(), kept);
            assert_eq!(record.hold.is_some(), state == State::Unknown);
            let suspect = state == State::Unknown && told.suspect;
            assert_eq!(record.hold == Some(Hold::PossibleDuplicate), suspect);
            let seen = (record.state, record.attempt, record.alarmed);
            assert!(record.version > told.version || told.seen == Some(seen));
            assert!(record.version >= told.version);
            (told.version, told.seen) = (record.version, Some(seen));
            counts[state as usize] += 1;
        }
        assert_eq!(f.ledger.stats().await.unwrap().records, counts);
    }
}
