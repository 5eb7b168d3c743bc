//! Clients share a backend's places fairly.

use tikigate::tiki::Family;

use super::{ANY, config, send_all, series, wait_for_metric};
use crate::support::backend::{Answer, Backend, Behaviour, Hold};
use crate::support::gate::{Call, OTHER_CLIENT, OTHER_SECRET, TestGate};

/// One client floods; the other's single call comes in the next round, and the flood goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_client_delays_another_by_one_round() {
    let first = Hold::new();
    let gatekeeper = first.clone();
    let backend =
        Backend::start(move |_| Behaviour::from(Answer::success()).held(&gatekeeper)).await;
    let config = config(&[backend.url()], "max_in_flight = 1");
    let gate = TestGate::with(&config).await;
    let flood = send_all(&gate, ANY, (0..100).map(|n| format!("{{\"loud\":{n}}}"))).await;
    let in_flight = series("in_flight", &backend.url());
    wait_for_metric(&gate, &in_flight, 100.0).await;
    backend.wait_for_requests(1).await;
    let quiet = Call::post_as(
        (OTHER_CLIENT, OTHER_SECRET),
        Family::TikiVip,
        ANY,
        "{\"quiet\":1}",
        gate.now(),
    );
    let mut client = gate.connect().await;
    client.send(quiet.to_bytes()).await;
    wait_for_metric(&gate, &in_flight, 101.0).await;
    first.release();
    assert_eq!(client.read_answer().await.status, 200);
    let place = |requests: &[crate::support::backend::Seen]| {
        requests
            .iter()
            .position(|seen| seen.text().contains("quiet"))
    };
    let place = place(&backend.requests()).unwrap();
    assert!(place <= 2, "it was number {place}");
    for mut client in flood {
        assert_eq!(client.read_answer().await.status, 200);
    }
    assert_eq!(backend.requests().len(), 101);
    assert_eq!(gate.metric(&in_flight).await, 0.0);
}

/// Who gets no place while Tiki waits is told to come again, and leaves no place taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_ends_when_tiki_must_have_its_answer() {
    let hold = Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |_| Behaviour::from(Answer::success()).held(&held)).await;
    let config = config(&[backend.url()], "max_in_flight = 2")
        .replace("answer_within = \"9s\"", "answer_within = \"1s\"")
        .replace("failures = 3", "failures = 1000");
    let gate = TestGate::with(&config).await;
    let calls = send_all(&gate, ANY, (0..6).map(|n| format!("{{\"a\":{n}}}"))).await;
    let mut codes = Vec::new();
    for mut client in calls {
        codes.push(client.read_answer().await.error_code().unwrap());
    }
    codes.sort_unstable();
    assert_eq!(codes[..4], ["overloaded"; 4]);
    assert_eq!(codes[4..], ["upstream_timeout"; 2]);
    assert_eq!(backend.requests().len(), 2);
    hold.release();
    wait_for_metric(&gate, &series("in_flight", &backend.url()), 0.0).await;
    for number in 0..3 {
        assert_eq!(
            gate.post(ANY, &format!("{{\"b\":{number}}}")).await.status,
            200
        );
    }
}
