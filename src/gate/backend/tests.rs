//! Which address gets a call, and what a reload keeps.

use std::time::SystemTime;

use http::HeaderValue;

use super::*;
use crate::clock::ManualClock;

const OPEN_FOR: Duration = Duration::from_secs(5);

fn settings(ports: &[u16]) -> config::Upstream {
    let endpoints = ports.iter().map(|port| Endpoint::Tcp {
        host: "127.0.0.1".to_owned(),
        port: *port,
    });
    config::Upstream {
        name: "legacy".to_owned(),
        endpoints: endpoints.collect(),
        host: HeaderValue::from_static("legacy.example"),
        connect_timeout: Duration::from_secs(1),
        answer_within: Duration::from_secs(13),
        settle_within: Duration::from_secs(60),
        max_in_flight: 4,
        set_headers: Vec::new(),
        breaker: config::Breaker {
            enabled: true,
            failures: 2,
            open_for: OPEN_FOR,
            ..config::Breaker::OFF
        },
        health: Some(config::HealthCheck {
            path: "/".to_owned(),
            every: Duration::from_secs(7),
            timeout: Duration::from_secs(1),
            healthy_after: 1,
            unhealthy_after: 1,
        }),
    }
}

fn backend(ports: &[u16]) -> (Arc<Backend>, ManualClock) {
    let (clock, hands) = Clock::manual(SystemTime::UNIX_EPOCH);
    (Backend::new(Arc::new(settings(ports)), clock), hands)
}

fn after(old: &Arc<Backend>, settings: config::Upstream) -> Arc<Backend> {
    let before = std::slice::from_ref(old);
    let new = Backend::after(before, &Arc::new(settings), &old.clock);
    new.resize_cap();
    new
}

fn fail(backend: &Backend, index: usize, times: usize) {
    for _ in 0..times {
        let others: Vec<usize> = (0..backend.addresses.len())
            .filter(|i| *i != index)
            .collect();
        backend.pass_beyond(&others).unwrap().failed();
    }
}

fn set_well(backend: &Backend, index: usize, well: bool) {
    let check = backend.settings.health.as_ref().unwrap();
    take_word(backend, index, check, well);
}

fn take_word(backend: &Backend, index: usize, check: &config::HealthCheck, well: bool) {
    let said = if well { Ok(()) } else { Err("down".to_owned()) };
    health::take_word(backend, &backend.addresses[index], check, said);
}

#[test]
fn the_address_with_the_fewest_calls_is_chosen_and_ties_rotate() {
    let (backend, _) = backend(&[1, 2, 3]);
    let passes: Vec<Pass> = (0..9).map(|_| backend.pass().unwrap()).collect();
    let count = |index| passes.iter().filter(|pass| pass.index() == index).count();
    assert_eq!([0, 1, 2].map(count), [3, 3, 3]);
    let kept: Vec<Pass> = passes.into_iter().filter(|p| p.index() != 1).collect();
    let next: Vec<usize> = (0..3)
        .map(|_| backend.pass().unwrap())
        .map(|pass| pass.index())
        .collect();
    assert_eq!(next, [1, 1, 1], "each is over before the next");
    drop(kept);
    let alone: Vec<usize> = (0..6).map(|_| backend.pass().unwrap().index()).collect();
    let mut seen = alone.clone();
    seen.sort_unstable();
    assert_eq!(seen, [0, 0, 1, 1, 2, 2], "{alone:?}");
}

#[test]
fn an_address_that_may_not_be_called_is_passed_over() {
    let (backend, hands) = backend(&[1, 2]);
    fail(&backend, 0, 2);
    for _ in 0..4 {
        assert_eq!(backend.pass().unwrap().index(), 1);
    }
    set_well(&backend, 1, false);
    let shut = backend.pass().unwrap_err();
    assert_eq!(shut.why, Unavailable::BreakerOpen);
    assert!(shut.wait >= OPEN_FOR, "{shut:?}");
    hands.advance(OPEN_FOR * 5 / 4);
    let trial = backend.pass().unwrap();
    assert_eq!(trial.index(), 0);
    assert_eq!(backend.pass().unwrap_err().wait, Duration::from_secs(1));
    set_well(&backend, 0, false);
    let shut = backend.pass().unwrap_err();
    assert_eq!(
        (shut.why, shut.wait),
        (Unavailable::Unhealthy, Duration::from_secs(7))
    );
    assert!(!trial.still_holds());
}

#[test]
fn what_is_told_first_counts() {
    let (backend, _) = backend(&[1]);
    for _ in 0..2 {
        // No answer in time, and one in the end.
        let mut pass = backend.pass().unwrap();
        pass.failed();
        pass.succeeded();
    }
    assert_eq!(backend.pass().unwrap_err().why, Unavailable::BreakerOpen);
    assert_eq!(backend.figures()[0].opened, 1);
}

#[test]
fn a_dropped_trial_is_the_next_ones() {
    let (backend, hands) = backend(&[1]);
    fail(&backend, 0, 2);
    hands.advance(OPEN_FOR * 5 / 4);
    for _ in 0..3 {
        let trial = backend.pass().unwrap();
        assert!(backend.pass().is_err());
        drop(trial);
    }
    assert_eq!(backend.figures()[0].in_flight, 0);
    backend.pass().unwrap().succeeded();
    assert_eq!(backend.figures()[0].breaker, BreakerState::Closed);
}

#[test]
fn a_good_check_is_a_trial_and_a_bad_one_is_none() {
    let (backend, hands) = backend(&[1]);
    fail(&backend, 0, 2);
    set_well(&backend, 0, true);
    assert_eq!(backend.figures()[0].breaker, BreakerState::Open);
    hands.advance(OPEN_FOR * 5 / 4);
    let trial = backend.pass().unwrap();
    set_well(&backend, 0, true);
    assert_eq!(
        backend.figures()[0].breaker,
        BreakerState::HalfOpen,
        "a call is trying"
    );
    drop(trial);
    set_well(&backend, 0, false);
    assert_eq!(backend.figures()[0].breaker, BreakerState::HalfOpen);
    set_well(&backend, 0, true);
    assert_eq!(backend.figures()[0].breaker, BreakerState::Closed);
}

#[test]
fn a_reload_keeps_the_state_of_what_stays() {
    let (old, _) = backend(&[1, 2]);
    fail(&old, 0, 2);
    set_well(&old, 1, false);
    let places: Vec<_> = (0..3).map(|_| old.cap().try_acquire().unwrap()).collect();
    let running = old.addresses[1].breaker.admit(|| Duration::ZERO).unwrap();
    let pass = old.pass_at(1, running);

    let fewer = config::Upstream {
        max_in_flight: 2,
        ..settings(&[3, 2, 1])
    };
    let new = after(&old, fewer);
    let figures = new.figures();
    let shown = |index: usize| {
        let one: &AddressFigures = &figures[index];
        (one.breaker, one.healthy, one.in_flight, one.opened)
    };
    assert_eq!(shown(0), (BreakerState::Closed, true, 0, 0));
    assert_eq!(shown(1), (BreakerState::Closed, false, 1, 0));
    assert_eq!(shown(2), (BreakerState::Open, true, 0, 1));
    // Calls of before count: with two places at once there is none until two of three have ended.
    let mut places = places;
    for _ in 0..2 {
        assert!(new.cap().try_acquire().is_none());
        places.pop();
    }
    assert!(new.cap().try_acquire().is_some());
    drop((pass, places));
    assert_eq!(new.figures()[1].in_flight, 0);

    // Other rules of the breaker, and no more checks.
    let mut other = settings(&[1, 2]);
    other.breaker.failures = 9;
    other.health = None;
    let newer = after(&new, other);
    let figures = newer.figures();
    assert_eq!(figures[0].breaker, BreakerState::Open);
    assert!(figures[1].healthy);
    let renamed = config::Upstream {
        name: "another".to_owned(),
        ..settings(&[1])
    };
    let renamed = after(&newer, renamed);
    assert_eq!(renamed.figures()[0].breaker, BreakerState::Closed);
}

#[test]
fn trouble_is_named() {
    let (backend, _) = backend(&[1, 2]);
    assert!(backend.degraded().is_empty());
    backend.note_unreachable(true);
    fail(&backend, 0, 2);
    set_well(&backend, 1, false);
    assert_eq!(
        backend.degraded(),
        [
            "upstream legacy can't be reached",
            "upstream legacy: the breaker of http://127.0.0.1:1 is open",
            "upstream legacy: http://127.0.0.1:2 is unwell by its checks",
        ]
    );
}
