//! The breaker by itself, and against a model that remembers everything.

use proptest::prelude::*;

use super::*;
use crate::gate::backend::tally::BUCKETS;

const SETTINGS: config::Breaker = config::Breaker {
    enabled: true,
    failures: 3,
    failure_percent: 50,
    min_calls: 6,
    window: Duration::from_secs(10),
    open_for: Duration::from_secs(5),
};

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn admit(breaker: &Breaker, now: Duration) -> Result<Permission, Duration> {
    breaker.admit(|| now)
}

/// Opens a closed breaker; gives how long it stays open.
fn open(breaker: &Breaker, now: Duration) -> Duration {
    for _ in 1..SETTINGS.failures {
        let permission = admit(breaker, now).unwrap();
        assert_eq!(breaker.failed(permission, now), None);
    }
    let last = admit(breaker, now).unwrap();
    let Some(Change::Opened(pause)) = breaker.failed(last, now) else {
        panic!("it stays closed")
    };
    pause
}

#[track_caller]
fn assert_pause(pause: Duration, seconds: u64) {
    assert!(
        pause >= at(seconds) && pause < at(seconds) * 5 / 4,
        "{pause:?}, not {seconds} s and a bit"
    );
}

#[test]
fn failures_one_after_the_other_open_it_and_a_success_in_between_does_not() {
    let breaker = Breaker::new(SETTINGS);
    let call = |fails: bool| {
        let permission = admit(&breaker, at(1)).unwrap();
        match fails {
            true => breaker.failed(permission, at(1)),
            false => breaker.succeeded(permission, at(1)),
        }
    };
    assert_eq!([true, true, false, false, true].map(call), [None; 5]);
    assert_eq!(breaker.state(at(1)), State::Closed);
    let pause = open(&Breaker::new(SETTINGS), at(1));
    assert_pause(pause, 5);
}

#[test]
fn a_share_of_failures_within_the_window_opens_it() {
    let breaker = Breaker::new(SETTINGS);
    let call = |fails: bool, now| {
        let permission = admit(&breaker, now).unwrap();
        match fails {
            true => breaker.failed(permission, now),
            false => breaker.succeeded(permission, now),
        }
    };
    for second in 0..5 {
        assert_eq!(call(second % 2 == 0, at(second)), None);
    }
    // Those of the first seconds are out of the window by then.
    assert_eq!(call(true, at(12)), None);
    for _ in 0..3 {
        assert_eq!(call(false, at(12)), None);
    }
    assert_eq!(call(true, at(12)), None, "3 of 7: seconds 3 and 4, and now");
    assert!(
        matches!(call(true, at(12)), Some(Change::Opened(_))),
        "4 of 8"
    );
}

#[test]
fn one_trial_at_a_time_decides() {
    let breaker = Breaker::new(SETTINGS);
    let until = at(1) + open(&breaker, at(1));
    assert_eq!(breaker.state(at(1)), State::Open);
    let almost = until - Duration::from_nanos(1);
    assert_eq!(admit(&breaker, almost), Err(Duration::from_nanos(1)));
    assert_eq!(breaker.state(until), State::HalfOpen);
    let trial = admit(&breaker, until).unwrap();
    for _ in 0..100 {
        assert_eq!(admit(&breaker, until), Err(TRIAL_WAIT));
    }
    // Given back, its place is another's; what it comes to later counts for nothing.
    breaker.given_back(trial);
    let second = admit(&breaker, until).unwrap();
    breaker.given_back(trial);
    assert_eq!(breaker.succeeded(trial, until), None);
    assert_eq!(admit(&breaker, until), Err(TRIAL_WAIT));
    assert_eq!(breaker.succeeded(second, until), Some(Change::Closed));
    assert_eq!(breaker.state(until), State::Closed);
    // It forgot what was before.
    let permission = admit(&breaker, until).unwrap();
    assert_eq!(breaker.failed(permission, until), None);
}

#[test]
fn the_pause_grows_with_each_failed_trial_up_to_a_minute() {
    let breaker = Breaker::new(SETTINGS);
    let mut now = at(1);
    let mut pause = open(&breaker, now);
    for seconds in [5, 10, 20, 40, 60, 60, 60] {
        assert_pause(pause, seconds);
        now += pause;
        let trial = admit(&breaker, now).unwrap();
        let Some(Change::Opened(next)) = breaker.failed(trial, now) else {
            panic!("a trial failed")
        };
        pause = next;
    }
    now += pause;
    let trial = admit(&breaker, now).unwrap();
    breaker.succeeded(trial, now);
    assert_pause(open(&breaker, now), 5);
}

#[test]
fn what_began_before_it_opened_says_nothing_of_it_now() {
    let breaker = Breaker::new(SETTINGS);
    let early = admit(&breaker, at(1)).unwrap();
    let until = at(1) + open(&breaker, at(1));
    assert!(!breaker.stands(early));
    assert_eq!(breaker.succeeded(early, at(2)), None);
    assert_eq!(breaker.state(at(2)), State::Open);
    let trial = admit(&breaker, until).unwrap();
    assert_eq!(breaker.failed(early, until), None);
    breaker.given_back(early);
    assert_eq!(breaker.succeeded(trial, until), Some(Change::Closed));
}

#[test]
fn switched_off_it_never_opens() {
    let breaker = Breaker::new(config::Breaker::OFF);
    for _ in 0..1000 {
        let permission = admit(&breaker, at(1)).unwrap();
        assert_eq!(breaker.failed(permission, at(1)), None);
    }
}

#[test]
fn other_settings_leave_an_open_one_open() {
    let breaker = Breaker::new(SETTINGS);
    let until = at(1) + open(&breaker, at(1));
    let settings = config::Breaker {
        failures: 7,
        ..SETTINGS
    };
    let changed = breaker.with_settings(settings);
    assert_eq!(changed.state(at(2)), State::Open);
    let _trial = admit(&breaker, until).unwrap();
    // The old one's trial may never end: the new one has one of its own.
    let changed = breaker.with_settings(settings);
    assert!(admit(&changed, until).is_ok());
    assert_eq!(admit(&changed, until), Err(TRIAL_WAIT));
    let off = breaker.with_settings(config::Breaker::OFF);
    assert_eq!(off.state(until), State::Closed);
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Happening {
    Begin,
    /// One of the calls that run succeeds, fails or is abandoned.
    End(prop::sample::Index, Option<bool>),
    Pass(u64),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let ends = prop_oneof![3 => Just(Some(false)), 3 => Just(Some(true)), 1 => Just(None)];
    let one = prop_oneof![
        4 => Just(Happening::Begin),
        4 => (any::<prop::sample::Index>(), ends).prop_map(|(call, end)| Happening::End(call, end)),
        2 => (0..8000_u64).prop_map(Happening::Pass),
    ];
    prop::collection::vec(one, 1..200)
}

/// The rules in their plainest form: it keeps every call's end since it closed.
struct Model {
    state: State,
    /// Of the state; calls of another count for nothing.
    number: u32,
    ended: Vec<(Duration, bool)>,
    until: Duration,
    openings: u32,
    trying: bool,
}

impl Model {
    fn opens(&self, now: Duration) -> bool {
        let streak = self.ended.iter().rev().take_while(|(_, failed)| *failed);
        let stretch =
            |time: Duration| time.as_nanos() / (SETTINGS.window / BUCKETS as u32).as_nanos();
        let recent: Vec<bool> = (self.ended.iter())
            .filter(|(time, _)| stretch(now) - stretch(*time) < BUCKETS as u128)
            .map(|(_, failed)| *failed)
            .collect();
        let failures = recent.iter().filter(|failed| **failed).count();
        streak.count() >= SETTINGS.failures as usize
            || recent.len() >= SETTINGS.min_calls as usize
                && failures * 100 >= recent.len() * SETTINGS.failure_percent as usize
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.number += 1;
        self.trying = false;
        self.ended.clear();
    }

    fn opened(&mut self, now: Duration, change: Option<Change>) {
        let Some(Change::Opened(pause)) = change else {
            panic!("it should have opened: {change:?}")
        };
        self.openings += 1;
        self.enter(State::Open);
        let least = (SETTINGS.open_for * (1 << (self.openings - 1).min(10))).min(LONGEST_PAUSE);
        assert!(pause >= least && pause <= least * 5 / 4, "{pause:?}");
        self.until = now + pause;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_the_model_says(happenings in happenings()) {
        let breaker = Breaker::new(SETTINGS);
        let mut model = Model {
            state: State::Closed, number: 0, ended: Vec::new(),
            until: Duration::ZERO, openings: 0, trying: false,
        };
        let mut now = at(100);
        // Permission, the state's number in the model, and whether it is the trial.
        let mut running: Vec<(Permission, u32, bool)> = Vec::new();
        for happening in happenings {
            match happening {
                Happening::Pass(millis) => now += Duration::from_millis(millis),
                Happening::Begin => {
                    if model.state == State::Open && now >= model.until {
                        model.enter(State::HalfOpen);
                    }
                    let may = match model.state {
                        State::Closed => true,
                        State::HalfOpen => !model.trying,
                        State::Open => false,
                    };
                    let admitted = admit(&breaker, now);
                    prop_assert_eq!(admitted.is_ok(), may);
                    if let Ok(permission) = admitted {
                        let trial = model.state == State::HalfOpen;
                        if trial {
                            model.number += 1;
                            model.trying = true;
                        }
                        running.push((permission, model.number, trial));
                    } else if model.state == State::Open {
                        prop_assert_eq!(admitted, Err(model.until - now));
                    }
                }
                Happening::End(call, end) if !running.is_empty() => {
                    let (permission, number, trial) = running.swap_remove(call.index(running.len()));
                    let counts = number == model.number;
                    match end {
                        None => {
                            breaker.given_back(permission);
                            if counts && trial { model.trying = false; }
                        }
                        Some(failed) => {
                            let change = match failed {
                                true => breaker.failed(permission, now),
                                false => breaker.succeeded(permission, now),
                            };
                            if !counts {
                                prop_assert_eq!(change, None);
                            } else if trial && failed {
                                model.opened(now, change);
                            } else if trial {
                                prop_assert_eq!(change, Some(Change::Closed));
                                model.enter(State::Closed);
                                model.openings = 0;
                            } else {
                                model.ended.push((now, failed));
                                if failed && model.opens(now) {
                                    model.opened(now, change);
                                } else {
                                    prop_assert_eq!(change, None);
                                }
                            }
                        }
                    }
                }
                Happening::End(..) => {}
            }
            let seen = match model.state {
                State::Open if now >= model.until => State::HalfOpen,
                state => state,
            };
            prop_assert_eq!(breaker.state(now), seen);
        }
    }
}
