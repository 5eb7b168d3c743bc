//! Nobody's calls, however many and slow, take every place.

use tikigate::tiki::Family;

use super::{assert_refused, changed, refused_for};
use crate::support::backend::{Answer, Backend, Behaviour, Hold};
use crate::support::gate::{Call, OTHER_CLIENT, OTHER_SECRET, TestGate};
use crate::support::raw::RawClient;

/// Ten places, behind a proxy, in front of a backend that takes as many and answers when it is let.
async fn gate_of_ten(backend: &Backend) -> TestGate {
    let toml = changed(
        &backend.url(),
        &[
            (
                "workers = 2",
                "workers = 2\nmax_in_flight = 10\ntrusted_proxies = [\"127.0.0.1\"]",
            ),
            ("answer_within = \"1s\"", "answer_within = \"12s\""),
            ("settle_within = \"4s\"", "settle_within = \"20s\""),
        ],
    );
    TestGate::with(&toml).await
}

/// A backend that holds every call until the hold is released.
async fn holding() -> (Backend, Hold) {
    let hold = Hold::new();
    let held = hold.clone();
    let answer = move |_: &_| Behaviour::Held(held.clone(), Box::new(Answer::success().into()));
    (Backend::start(answer).await, hold)
}

async fn sent(gate: &TestGate, call: &Call) -> RawClient {
    let mut client = gate.connect().await;
    client.send(call.to_bytes()).await;
    client
}

#[tokio::test]
async fn one_address_leaves_places_for_others() {
    let (backend, hold) = holding().await;
    let gate = gate_of_ten(&backend).await;
    let call = |body: &str, from: &str| gate.signed("/tiki/any", body).and("X-Forwarded-For", from);
    let mut noisy = Vec::new();
    for number in 0..8 {
        let call = call(&format!("noisy {number}"), "203.0.113.9");
        noisy.push(sent(&gate, &call).await);
        backend.wait_for_requests(number + 1).await;
    }
    // It has four times the two places that are left.
    let more = gate.send(&call("more", "203.0.113.9")).await;
    assert_refused(&more, 503, "overloaded");
    assert_eq!(refused_for(&gate, "address_share"), 1);
    // Another one is let in all the same.
    let client = (OTHER_CLIENT, OTHER_SECRET);
    let other = Call::post_as(client, Family::TikiVip, "/tiki/any", "other", gate.now());
    let mut other = sent(&gate, &other.and("X-Forwarded-For", "198.51.100.1")).await;
    backend.wait_for_requests(9).await;
    hold.release();
    for client in noisy.iter_mut().chain([&mut other]) {
        assert_eq!(client.read_answer().await.status, 200);
    }
    // The places are free again.
    assert_eq!(gate.send(&call("again", "203.0.113.9")).await.status, 200);
}

#[tokio::test]
async fn one_client_leaves_places_for_others() {
    let (backend, hold) = holding().await;
    let gate = gate_of_ten(&backend).await;
    let mut noisy = Vec::new();
    for number in 0..8 {
        let from = format!("203.0.113.{number}");
        let call = gate.signed("/tiki/any", &format!("noisy {number}"));
        noisy.push(sent(&gate, &call.and("X-Forwarded-For", &from)).await);
        backend.wait_for_requests(number + 1).await;
    }
    let more = gate.signed("/tiki/any", "more");
    let more = more.and("X-Forwarded-For", "203.0.113.99");
    assert_refused(&gate.send(&more).await, 503, "overloaded");
    assert_eq!(refused_for(&gate, "client_share"), 1);
    let client = (OTHER_CLIENT, OTHER_SECRET);
    let other = Call::post_as(client, Family::TikiVip, "/tiki/any", "other", gate.now());
    let other = other.and("X-Forwarded-For", "203.0.113.100");
    let mut other = sent(&gate, &other).await;
    backend.wait_for_requests(9).await;
    hold.release();
    for client in noisy.iter_mut().chain([&mut other]) {
        assert_eq!(client.read_answer().await.status, 200);
    }
    // What was refused for its client's share counts when it is sent again.
    assert_eq!(gate.send(&more).await.status, 200);
}
