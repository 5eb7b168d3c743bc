//! Health checks take an address out, and back in.

use super::{ANY, Mood, PAUSE, assert_shut, config, open, ready, series, wait_for_metric};
use crate::support::backend::{Answer, Backend, Behaviour, Seen};
use crate::support::gate::TestGate;

const HEALTH: &str = "[upstreams.legacy.health]\npath = \"/health?deep=1\"\nevery = \"100ms\"\n\
                      timeout = \"2s\"\nhealthy_after = 2\nunhealthy_after = 2\n";

fn checked(addresses: &[String]) -> String {
    let keys = "set_headers = { \"X-Gate\" = \"plain\" }";
    config(addresses, keys).replace("[signature]", &format!("{HEALTH}[signature]"))
}

/// A backend that answers checks by one mood and calls by another.
async fn backend(checks: &Mood, calls: &Mood) -> Backend {
    let (checks, calls) = (checks.clone(), calls.clone());
    Backend::start(move |seen: &Seen| {
        let mood = if is_check(seen) { &checks } else { &calls };
        mood.0.lock().unwrap().clone()
    })
    .await
}

fn is_check(seen: &Seen) -> bool {
    seen.method() == "GET"
}

fn calls(backend: &Backend) -> usize {
    let requests = backend.requests();
    requests.iter().filter(|seen| !is_check(seen)).count()
}

async fn call(gate: &TestGate, number: usize) -> u16 {
    gate.post(ANY, &format!("{{\"call\":{number}}}"))
        .await
        .status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unwell_address_is_not_called_until_it_is_well_again() {
    let checks = Mood::well();
    let one = backend(&checks, &Mood::well()).await;
    let two = backend(&Mood::new(Answer::new(302)), &Mood::well()).await;
    let gate = TestGate::with(&checked(&[one.url(), two.url()])).await;
    let healthy = series("healthy", &one.url());
    one.wait_for_requests(2).await;
    for number in 0..4 {
        assert_eq!(call(&gate, number).await, 200);
    }
    assert_eq!((calls(&one), calls(&two)), (2, 2));
    for (round, bad) in [
        Behaviour::from(Answer::new(500)),
        Answer::new(404).into(),
        Behaviour::Close,
    ]
    .into_iter()
    .enumerate()
    {
        let first = 100 * (round + 1);
        checks.becomes(bad);
        wait_for_metric(&gate, &healthy, 0.0).await;
        let before = (calls(&one), calls(&two));
        for number in first..first + 4 {
            assert_eq!(call(&gate, number).await, 200);
        }
        assert_eq!((calls(&one), calls(&two)), (before.0, before.1 + 4));
        let said = ready(&gate).await;
        assert_eq!(said.status, 200);
        assert!(
            said.text().contains("is unwell by its checks"),
            "{}",
            said.text()
        );
        checks.recovers();
        wait_for_metric(&gate, &healthy, 1.0).await;
        for number in first + 10..first + 14 {
            assert_eq!(call(&gate, number).await, 200);
        }
        assert_eq!((calls(&one), calls(&two)), (before.0 + 2, before.1 + 6));
    }
    let check = one.requests().into_iter().find(is_check).unwrap();
    assert_eq!(check.target(), "/health?deep=1");
    assert_eq!(check.header("host"), Some("legacy.example"));
    assert_eq!(check.header("user-agent"), Some("tikigate"));
    assert_eq!(check.header("x-gate"), Some("plain"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_are_unwell_calls_are_refused_at_once() {
    let checks = Mood::well();
    let backend = backend(&checks, &Mood::well()).await;
    let gate = TestGate::with(&checked(&[backend.url()])).await;
    checks.becomes(Answer::new(503));
    wait_for_metric(&gate, &series("healthy", &backend.url()), 0.0).await;
    assert_eq!(assert_shut(&gate.post(ANY, "{}").await), 1);
    let refused = "tikigate_refusals_total{route=\"any\",error=\"upstream_unavailable\",reason=\"unhealthy\"}";
    assert_eq!(gate.metric(refused).await, 1.0);
    assert_eq!(calls(&backend), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_check_closes_a_breaker_whose_time_has_come() {
    let calls = Mood::down();
    let backend = backend(&Mood::well(), &calls).await;
    let gate = TestGate::with(&checked(&[backend.url()])).await;
    open(&gate).await;
    // Not before its time.
    let checks = backend.requests().len();
    backend.wait_for_requests(checks + 3).await;
    let state = series("breaker_state", &backend.url());
    assert_eq!(gate.metric(&state).await, 2.0);
    gate.advance(PAUSE);
    wait_for_metric(&gate, &state, 0.0).await;
}
