//! Duplicates that meet the very end of the first call.

use std::collections::HashMap;

use tokio::task::JoinSet;

use super::{PATIENT, assert_refused, changed};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{TestGate, refund};
use crate::support::raw::RawClient;

const CALLS: usize = 150;
const COPIES: usize = 8;

/// Sends copies of each of many calls at the same moment, over connections that stay open, to a
/// backend that answers at once. Checks that each call reached it once.
async fn race(path: &str, body: impl Fn(usize) -> String) {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let gate = TestGate::with(&changed(&backend.url(), PATIENT)).await;
    let mut clients: Vec<RawClient> = Vec::new();
    for _ in 0..COPIES {
        clients.push(gate.connect().await);
    }
    for number in 0..CALLS {
        let bytes = gate.signed(path, &body(number)).to_bytes();
        let mut copies = JoinSet::new();
        for mut client in clients.drain(..) {
            let bytes = bytes.clone();
            copies.spawn(async move {
                client.send(bytes).await;
                let answer = client.read_answer().await;
                (client, answer)
            });
        }
        for (client, answer) in copies.join_all().await {
            if answer.status != 200 {
                assert_refused(&answer, 409, "replayed");
            }
            clients.push(client);
        }
    }
    let mut times: HashMap<Vec<u8>, usize> = HashMap::new();
    for seen in backend.requests() {
        *times.entry(seen.body).or_default() += 1;
    }
    assert_eq!(times.len(), CALLS);
    let again = times.values().filter(|times| **times > 1).count();
    assert_eq!(
        again, 0,
        "{again} of {CALLS} calls on {path} reached the backend again"
    );
}

#[tokio::test]
async fn copies_of_a_call_without_a_key_reach_the_backend_once_however_they_race() {
    race("/tiki/any", |number| format!("call {number}")).await;
}

#[tokio::test]
async fn duplicates_of_a_refund_reach_the_backend_once_however_they_race() {
    race("/tiki/refund", |number| {
        refund(&format!("r-{number}"), "1000")
    })
    .await;
}
