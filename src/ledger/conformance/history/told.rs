//! What is known of one message, and what follows from it.

use super::*;

/// What is known of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Running,
    /// Nobody knows.
    Unknown,
    /// Nobody knows, and its policy let it go.
    GivenUp,
    /// It brought the answer.
    Answered,
    /// Its owner said that it was not applied.
    Proven,
    /// A person or two looks said so.
    Declared,
}

/// What ended a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Backend,
    Word,
    /// A newer event was taken.
    Dropped,
}

/// What is known of a message.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) id: RecordId,
    pub(super) attempts: Vec<(Owner, Fate)>,
    /// What was forgotten may have been an attempt, and what is known of that.
    pub(super) phantom: Option<Fate>,
    pub(super) answer: Option<(KeptAnswer, By)>,
    /// Nobody may claim it. Where it isn't, isn't running and isn't answered, it is released.
    pub(super) held: bool,
    /// Where it stands, it stands by a word.
    pub(super) worded: bool,
    /// A word was taken back, and none was given since.
    pub(super) taken_back: bool,
    /// It was held as a possible duplicate, and not sent since.
    pub(super) suspect: bool,
    /// A person let it pass as one.
    pub(super) cleared: bool,
    pub(super) alarmed: bool,
    pub(super) hold: bool,
    pub(super) may_run_until: SystemTime,
    pub(super) changed_at: SystemTime,
    /// When it was claimed or spoken of last.
    pub(super) generation: u64,
    pub(super) absent_since: Option<SystemTime>,
    pub(super) looks_spent: bool,
    pub(super) version: u64,
    pub(super) seen: Option<(State, u32, bool)>,
}

/// What other messages say of a claim; none where the model doesn't mind.
#[derive(Debug)]
pub(super) struct Others {
    /// A newer event was taken.
    newer_taken: Option<bool>,
    /// A newer event was passed on.
    newer_passed_on: Option<bool>,
    /// The same payment may have been made.
    same_payment: Option<bool>,
}

impl Default for Others {
    fn default() -> Self {
        Self {
            newer_taken: Some(false),
            newer_passed_on: Some(false),
            same_payment: Some(false),
        }
    }
}

impl Others {
    pub(super) fn of_payment(other: Option<&Told>, now: SystemTime) -> Self {
        Self {
            same_payment: other.map_or(Some(false), |other| other.moved_within_a_day(now)),
            ..Self::default()
        }
    }

    pub(super) fn of_event(other: Option<&Told>, now: SystemTime) -> Self {
        let Some(other) = other else {
            return Self::default();
        };
        // A store may look no further back.
        let recent = now < other.changed_at + 30 * DAY;
        Self {
            newer_taken: recent.then(|| other.taken()),
            newer_passed_on: other.passed_on().filter(|_| recent),
            ..Self::default()
        }
    }

    /// Fails unless the claim may go out with these marks.
    pub(super) fn allow(&self, wish: Wish, cleared: bool, marks: Marks) {
        let Marks {
            stale_event,
            possible_duplicate,
        } = marks;
        let is = |mark: bool, known: Option<bool>| known.is_none_or(|known| known == mark);
        assert!(is(stale_event, self.newer_passed_on), "{self:?}");
        assert!(is(possible_duplicate, self.same_payment), "{self:?}");
        assert!(
            !(wish.strict && self.newer_taken == Some(true)),
            "a stale event was not dropped"
        );
        assert!(
            !(wish.strict && possible_duplicate && !cleared),
            "a possible duplicate was not held"
        );
    }

    /// Whether the claim may be held for them.
    pub(super) fn suspect(&self, wish: Wish, cleared: bool) -> bool {
        wish.strict && !cleared && self.same_payment != Some(false)
    }

    /// Whether the claim shall be dropped for them.
    pub(super) fn drop(&self, wish: Wish) -> bool {
        wish.strict && self.newer_taken != Some(false)
    }
}

impl Told {
    /// Of a message that nobody has heard of.
    pub(super) fn new(now: SystemTime, hold: bool, generation: u64) -> Self {
        Self {
            id: RecordId(0),
            attempts: Vec::new(),
            phantom: None,
            answer: None,
            held: false,
            worded: false,
            taken_back: false,
            suspect: false,
            cleared: false,
            alarmed: false,
            hold,
            may_run_until: now + MAY_RUN,
            changed_at: now,
            generation,
            absent_since: None,
            looks_spent: false,
            version: 0,
            seen: None,
        }
    }

    pub(super) fn state(&self) -> State {
        match (&self.answer, self.attempts.last()) {
            (Some(_), _) => State::Done,
            (None, Some((_, Fate::Running))) => State::Claimed,
            (None, _) if self.held => State::Unknown,
            (None, _) => State::Released,
        }
    }

    /// Every attempt that may have been applied, the one among them that was forgotten.
    fn in_doubt(&self) -> impl Iterator<Item = Fate> {
        let fates = self.attempts.iter().map(|(_, fate)| *fate);
        let doubtful = |fate: &Fate| matches!(fate, Fate::Running | Fate::Unknown | Fate::GivenUp);
        fates.chain(self.phantom).filter(doubtful)
    }

    /// Another attempt may go out beside those that were.
    pub(super) fn free(&self) -> bool {
        let mut doubts = self.in_doubt();
        let free = doubts.all(|fate| fate == Fate::GivenUp && !self.hold);
        free && !self.alarmed
    }

    /// The backend is known to have taken it.
    fn taken(&self) -> bool {
        let answer = self.answer.as_ref();
        answer.is_some_and(|(kept, by)| *by != By::Dropped && kept.status.is_success())
    }

    fn passed_on(&self) -> Option<bool> {
        let answered = self.answer.as_ref().map(|(_, by)| *by != By::Dropped);
        self.maybe(answered.unwrap_or_default())
    }

    /// The payment may have been made; none where that is a matter of taste.
    fn moved_within_a_day(&self, now: SystemTime) -> Option<bool> {
        let age = now.duration_since(self.changed_at).unwrap_or_default();
        match self.maybe(self.taken()) {
            moved if age <= DAY => moved,
            Some(false) => Some(false),
            // No attempt runs as long; a store may look no further back.
            _ if age <= DAY + MAY_RUN || self.state() == State::Claimed => None,
            _ => Some(false),
        }
    }

    /// Whether it may have reached the backend and stayed there, if that isn't known as `surely`.
    fn maybe(&self, surely: bool) -> Option<bool> {
        let ended_by_word = matches!(self.answer, Some((_, By::Word)));
        if surely || self.alarmed {
            return Some(true);
        }
        if ended_by_word {
            return Some(false); // the word speaks of every attempt
        }
        // What became of the attempt that was dropped or forgotten, or for which a word was taken
        // back, is looked at by the tests of subjects one by one.
        let odd = matches!(self.answer, Some((_, By::Dropped))) && !self.attempts.is_empty()
            || self.phantom == Some(Fate::Unknown)
            || self.taken_back;
        match (self.in_doubt().next(), odd) {
            (Some(_), false) => Some(true),
            (None, false) => Some(false),
            (_, true) => None,
        }
    }

    pub(super) fn changed(&mut self, now: SystemTime) {
        self.changed_at = now;
        self.worded = false;
        self.absent_since = None;
    }

    /// What its attempt that counts said.
    pub(super) fn answered(&mut self, now: SystemTime, class: Class, settlement: Settlement) {
        let state = self.state();
        let worded = self.worded && state == State::Released;
        let Some((_, fate)) = self.attempts.last_mut() else {
            return;
        };
        match (class, settlement) {
            (Class::Success | Class::Declined, Settlement::Done(kept, _)) => {
                // Against "not applied" only a success counts.
                if worded && class == Class::Declined {
                    return;
                }
                *fate = Fate::Answered;
                self.answer = Some((kept, By::Backend));
                self.taken_back = false;
                self.changed(now);
            }
            (Class::NotApplied, _) => {
                if worded {
                    return;
                }
                let news = *fate == Fate::GivenUp && state == State::Released;
                *fate = Fate::Proven;
                if state == State::Released {
                    if news {
                        self.changed(now);
                    }
                    return;
                }
                self.come_to(now, self.free());
            }
            (Class::CannotSay, _) => match (state, &fate) {
                (State::Claimed, _) if self.hold || self.alarmed => {
                    *fate = Fate::Unknown;
                    self.come_to(now, false);
                }
                (State::Claimed, _) => {
                    *fate = Fate::GivenUp;
                    self.come_to(now, true);
                }
                _ => {}
            },
            other => panic!("{other:?}"),
        }
    }

    /// The attempt ended; `free`: the message may be sent again, for all that it says.
    fn come_to(&mut self, now: SystemTime, free: bool) {
        let held = !free || self.taken_back || self.suspect && self.held;
        if held && self.held && self.state() == State::Unknown {
            return;
        }
        self.held = held;
        self.changed(now);
    }

    /// A word said that it was not applied.
    pub(super) fn let_go(&mut self, now: SystemTime, generation: u64) {
        self.spoken_of();
        self.changed(now);
        self.held = false;
        self.worded = true;
        self.generation = generation;
    }

    /// A word ended it.
    pub(super) fn answered_by_word(&mut self, now: SystemTime, generation: u64, kept: KeptAnswer) {
        self.spoken_of();
        self.changed(now);
        self.answer = Some((kept, By::Word));
        self.generation = generation;
    }

    fn spoken_of(&mut self) {
        let fates = self.attempts.iter_mut().map(|(_, fate)| fate);
        for fate in fates.chain(&mut self.phantom) {
            if matches!(fate, Fate::Unknown | Fate::GivenUp) {
                *fate = Fate::Declared;
            }
        }
        self.taken_back = false;
    }

    /// An answer that counts no longer; an alarm if it shows that money moved unsaid.
    pub(super) fn aside(&mut self, now: SystemTime, alarm: bool) {
        if !alarm {
            return;
        }
        self.alarmed = true;
        self.suspect = false;
        if self.state() == State::Released {
            self.held = true;
            self.changed(now);
        }
    }
}
