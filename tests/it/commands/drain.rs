//! How a gate ends: by signals and through the admin API, with calls in flight and without.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tikigate::net::ListenAddress;

use super::{WITHIN, ask, asking, get, post, run, setup, signed, token_file};
use crate::support::backend::{Answer, Backend, Behaviour, Hold};
use crate::support::gate::{refund, usual};
use crate::support::gate_process::GateProcess;
use crate::support::raw::{RawAnswer, RawClient, exchange};

/// A backend that answers once `hold` is released.
async fn holding(hold: &Hold) -> Backend {
    let hold = hold.clone();
    Backend::start(move |_| Behaviour::from(Answer::success()).held(&hold)).await
}

/// The usual configuration with time for a call in flight and for its drain.
fn patient(backend: &str) -> String {
    usual(backend)
        .replace("answer_within = \"1s\"", "answer_within = \"12s\"")
        .replace("settle_within = \"4s\"", "settle_within = \"14s\"")
        .replace("drain_within = \"20s\"", "drain_within = \"60s\"")
}

/// Sends a refund on a task of its own; the backend has it when this returns.
async fn in_flight(gate: &GateProcess, backend: &Backend) -> tokio::task::JoinHandle<RawAnswer> {
    let address = gate.address();
    let call =
        tokio::spawn(async move { post(address, "/tiki/refund", &refund("r-1", "1")).await });
    backend.wait_for_requests(1).await;
    call
}

#[track_caller]
fn assert_ended_well(gate: &mut GateProcess, within: Duration) {
    let status = gate.wait(within);
    assert_eq!(status.code(), Some(0), "{:?}", gate.lines());
    assert!(
        gate.lines().iter().any(|line| line.contains("\"drained\"")),
        "{:?}",
        gate.lines()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_signal_lets_a_call_in_flight_get_its_answer() {
    for signal in [Signal::TERM, Signal::INT] {
        let hold = Hold::new();
        let backend = holding(&hold).await;
        let mut gate = setup(&patient(&backend.url())).start();
        let call = in_flight(&gate, &backend).await;

        gate.signal(signal);
        gate.wait_for_line(|line| line.contains("draining: no new connections"));
        let ready = get(gate.admin_address(), "/readyz").await;
        assert_eq!(ready.status, 503);
        let draining = serde_json::json!({ "ready": false, "state": "draining", "unready": null, "degraded": [] });
        assert_eq!(ready.json(), draining);
        assert_eq!(get(gate.admin_address(), "/livez").await.status, 200);
        wait_until_closed(&gate);
        assert!(!call.is_finished(), "the call was not waited for");

        hold.release();
        let answer = call.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_ended_well(&mut gate, WITHIN);
        assert_eq!(backend.requests().len(), 1);
    }
}

/// The listener is closed by its workers soon after the line that says so.
#[track_caller]
fn wait_until_closed(gate: &GateProcess) {
    let address = gate.address();
    let refused = super::until(|| std::net::TcpStream::connect(address).is_err().then_some(()));
    assert!(refused.is_some(), "the listener stays open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_fails_first_and_a_second_signal_cuts_the_drain_short() {
    let hold = Hold::new();
    let backend = holding(&hold).await;
    let delayed = patient(&backend.url()).replace("drain_delay = \"0s\"", "drain_delay = \"45s\"");
    let mut gate = setup(&delayed).start();
    let held = in_flight(&gate, &backend).await;

    gate.signal_terminate();
    gate.wait_for_line(|line| line.contains("draining: unready"));
    assert_eq!(get(gate.admin_address(), "/readyz").await.status, 503);
    // Who has not noticed yet is still served: the load balancer needs its time.
    assert_eq!(post(gate.address(), "/tiki/nowhere", "").await.status, 404);
    assert!(
        !gate
            .lines()
            .iter()
            .any(|line| line.contains("no new connections"))
    );

    let hurried = Instant::now();
    gate.signal_terminate();
    let answer = held.await.unwrap();
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (502, Some("upstream_failed"))
    );
    assert_ended_well(&mut gate, WITHIN);
    assert!(
        hurried.elapsed() < Duration::from_secs(30),
        "the signal changed nothing"
    );
    assert!(
        gate.lines()
            .iter()
            .any(|line| line.contains("outcome unknown")),
        "{:?}",
        gate.lines()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_is_out_of_time_ends_all_the_same() {
    let hold = Hold::new();
    let backend = holding(&hold).await;
    let short = patient(&backend.url()).replace("drain_within = \"60s\"", "drain_within = \"1s\"");
    let mut gate = setup(&short).start();
    let held = in_flight(&gate, &backend).await;
    gate.signal_terminate();
    let answer = held.await.unwrap();
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (502, Some("upstream_failed"))
    );
    assert_ended_well(&mut gate, WITHIN);
    assert!(
        gate.lines().iter().any(|line| line.contains("out of time")),
        "{:?}",
        gate.lines()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_keep_silent_connections_do_not_hold_a_drain_up() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let mut gate = setup(&patient(&backend.url())).start();
    let address = ListenAddress::Tcp(gate.address());
    let mut kept = RawClient::connect(&address).await;
    kept.send(signed("/tiki/any", "1").to_bytes()).await;
    assert_eq!(kept.read_answer().await.status, 200);
    let mut fresh = RawClient::connect(&address).await;
    let mut half = RawClient::connect(&address).await;
    half.send("POST /tiki/any HT").await;

    gate.signal_terminate();
    assert!(kept.is_closed().await);
    // A connection without a whole head has `header_timeout`, 5 s, at most.
    assert_ended_well(&mut gate, Duration::from_secs(30));
    assert!(fresh.is_closed().await && half.is_closed().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_api_ends_a_gate() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let mut gate = setup(&usual(&backend.url())).start();
    let token = fs::read_to_string(token_file(gate.setup().directory())).unwrap();
    let admin = gate.admin_address();
    let drain = |more: &str| {
        format!(
            "POST /api/drain HTTP/1.1\r\nHost: {admin}\r\nContent-Type: application/json\r\n{more}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        )
    };
    let unsigned = exchange(&ListenAddress::Tcp(admin), drain("")).await;
    assert_eq!(unsigned.status, 401, "{}", unsigned.text());
    assert_eq!(get(admin, "/readyz").await.status, 200);

    let request = drain(&format!("Authorization: Bearer {}\r\n", token.trim()));
    let answer = exchange(&ListenAddress::Tcp(admin), request).await;
    assert_eq!(
        (answer.status, answer.json()["data"]["state"].as_str()),
        (200, Some("draining"))
    );
    assert_ended_well(&mut gate, WITHIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drain_command_waits_until_the_gate_has_gone() {
    let hold = Hold::new();
    let backend = holding(&hold).await;
    let mut gate = setup(&patient(&backend.url())).start();
    let call = in_flight(&gate, &backend).await;

    let mut drain = asking(&gate, &["drain"]);
    let waiting = tokio::task::spawn_blocking(move || run(&mut drain));
    gate.wait_for_line(|line| line.contains("draining: no new connections"));
    // A second one is no trouble.
    assert_eq!(ask(&gate, &["drain", "--no-wait"]).worked(), "draining\n");
    let told = ask(&gate, &["drain", "--within", "0"]).failed(1);
    assert!(told.contains("the gate is still there after 0 s"), "{told}");
    assert!(!waiting.is_finished(), "it did not wait for the gate");

    hold.release();
    assert_eq!(call.await.unwrap().status, 200);
    let told = waiting.await.unwrap().worked();
    assert_eq!(told, "draining\nthe gate has gone\n");
    assert_ended_well(&mut gate, WITHIN);
}
