//! What the gate promises about duplicates, signatures, time, limits and its ledger.

mod addresses;
mod duplicates;
mod elsewhere;
mod expiry;
mod faulty_ledger;
mod lab;
mod ledger_faults;
mod limits;
mod probes;
mod rerun;
mod resends;
mod rotation;
mod rounds;
mod second_refunds;
mod send_now;
mod shares;
mod signatures;
mod stale_events;
mod stress;
mod time;

use std::time::Duration;

use crate::support::gate::{Call, TestGate, changed};
use crate::support::in_time;
use crate::support::raw::{RawAnswer, RawClient};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A deadline that comes soon.
const QUICK: &[(&str, &str)] = &[
    (
        r#"connect_timeout = "500ms""#,
        r#"connect_timeout = "100ms""#,
    ),
    (r#"answer_within = "1s""#, r#"answer_within = "300ms""#),
];

/// Deadlines that a loaded machine does not reach.
const PATIENT: &[(&str, &str)] = &[
    (r#"answer_within = "1s""#, r#"answer_within = "9s""#),
    (r#"settle_within = "4s""#, r#"settle_within = "10s""#),
];

/// Status and `error.code` of a refusal.
#[track_caller]
fn refusal(answer: &RawAnswer) -> (u16, String) {
    let code = answer
        .error_code()
        .unwrap_or_else(|| panic!("no refusal: {}", answer.text()));
    (answer.status, code)
}

#[track_caller]
fn assert_refused(answer: &RawAnswer, status: u16, code: &str) {
    assert_eq!(refusal(answer), (status, code.to_owned()));
}

/// Sends each call on a connection of its own and waits for no answer.
async fn send_all(gate: &TestGate, calls: &[Call]) -> Vec<RawClient> {
    let mut clients = Vec::with_capacity(calls.len());
    for call in calls {
        let mut client = gate.connect().await;
        client.send(call.to_bytes()).await;
        clients.push(client);
    }
    clients
}

async fn read_all(clients: Vec<RawClient>) -> Vec<RawAnswer> {
    let mut answers = Vec::with_capacity(clients.len());
    for mut client in clients {
        answers.push(client.read_answer().await);
    }
    answers
}

/// Waits until so many calls of the usual client have proved their signature. Between that and
/// their place in the ledger or beside a running call they wait for nothing; the further looks at
/// the metrics take much longer than those steps do.
async fn wait_for_authentic_calls(gate: &TestGate, count: usize) {
    let series = r#"tikigate_signature_matches_total{client="wallet",secret="now"}"#;
    let all = async { while gate.metric(series).await < count as f64 {} };
    in_time(&format!("{count} authentic calls"), all).await;
    for _ in 0..5 {
        gate.metrics().await;
    }
}

/// Waits for a line of the log for which `wanted` holds.
async fn wait_for_log(
    gate: &TestGate,
    what: &str,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    let found = async {
        loop {
            if let Some(line) = gate.log().into_iter().find(&wanted) {
                return line;
            }
            tokio::time::sleep(5 * MILLISECOND).await;
        }
    };
    in_time(what, found).await
}

/// The access lines so far.
fn access_lines(gate: &TestGate) -> Vec<serde_json::Value> {
    let lines = gate.log().into_iter();
    lines.filter(|line| line["message"] == "request").collect()
}

/// How many calls were refused for this finer reason. Workers' lines are in no common order.
fn refused_for(gate: &TestGate, reason: &str) -> usize {
    let lines = access_lines(gate).into_iter();
    lines
        .filter(|line| line["tikigate.reason"] == reason)
        .count()
}
