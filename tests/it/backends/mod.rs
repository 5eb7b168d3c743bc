//! A backend in trouble: breakers, several addresses, checks, TLS, and fair shares of what it takes.

mod addresses;
mod breaker;
mod checks;
mod shares;
mod tls;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::backend::{Answer, Backend, Behaviour, Seen};
use crate::support::gate::{TestGate, usual};
use crate::support::raw::RawAnswer;
use crate::support::{in_time, raw::RawClient};

const SECOND: Duration = Duration::from_secs(1);

/// For how long a breaker of these tests is open at first, with the longest jitter.
const PAUSE: Duration = Duration::from_millis(6_250);

/// Three failures one after the other open a breaker of these tests.
const FAILURES: usize = 3;

const REFUND: &str = "/tiki/refund";
const IPN: &str = "/tiki/ipn";
const ANY: &str = "/tiki/any";

/// The usual configuration with these addresses, and with more keys of its upstream.
fn config(addresses: &[String], keys: &str) -> String {
    let list: Vec<String> = addresses.iter().map(|url| format!("\"{url}\"")).collect();
    let url = format!(
        "url = [{}]\nhost = \"legacy.example\"\n{keys}",
        list.join(", ")
    );
    let text = usual("BACKEND");
    assert!(text.contains("url = \"BACKEND\""));
    let text = text.replace("url = \"BACKEND\"", &url);
    text.replace(
        "answer_within = \"1s\"\nsettle_within = \"4s\"",
        "answer_within = \"9s\"\nsettle_within = \"10s\"",
    )
    .replace("[signature]", &format!("{BREAKER}[signature]"))
}

const BREAKER: &str =
    "[upstreams.legacy.breaker]\nfailures = 3\nmin_calls = 1000\nopen_for = \"5s\"\n";

async fn gate(addresses: &[String]) -> TestGate {
    TestGate::with(&config(addresses, "")).await
}

/// What a backend does, which may change.
#[derive(Clone)]
struct Mood(Arc<Mutex<Behaviour>>);

impl Mood {
    fn new(behaviour: impl Into<Behaviour>) -> Self {
        Self(Arc::new(Mutex::new(behaviour.into())))
    }

    fn well() -> Self {
        Self::new(Answer::success())
    }

    fn down() -> Self {
        Self::new(Answer::new(503))
    }

    fn becomes(&self, behaviour: impl Into<Behaviour>) {
        *self.0.lock().unwrap() = behaviour.into();
    }

    fn recovers(&self) {
        self.becomes(Answer::success());
    }

    async fn backend(&self) -> Backend {
        let mood = self.clone();
        Backend::start(move |_: &Seen| mood.0.lock().unwrap().clone()).await
    }
}

/// Opens the breaker of a gate's only address, which fails now, by calls that have no record.
async fn open(gate: &TestGate) {
    for number in 0..FAILURES {
        let answer = gate.post(ANY, &format!("{{\"opening\":{number}}}")).await;
        assert!(answer.status >= 500, "{}", answer.text());
    }
    assert_eq!(refusal(&gate.post(ANY, "{\"opened\":1}").await).0, 503);
}

/// Status, code and `Retry-After` of a refusal.
#[track_caller]
fn refusal(answer: &RawAnswer) -> (u16, String, Option<u64>) {
    let code = answer.error_code().unwrap_or_default();
    let after = answer
        .header("retry-after")
        .map(|text| text.parse().unwrap());
    (answer.status, code, after)
}

/// That it is refused since no address may be called; gives its `Retry-After`.
#[track_caller]
fn assert_shut(answer: &RawAnswer) -> u64 {
    let (status, code, after) = refusal(answer);
    assert_eq!(
        (status, code.as_str()),
        (503, "upstream_unavailable"),
        "{}",
        answer.text()
    );
    after.unwrap()
}

/// A series of an address in `/metrics`.
fn series(name: &str, address: &str) -> String {
    format!("tikigate_upstream_{name}{{upstream=\"legacy\",address=\"{address}\"}}")
}

async fn wait_for_metric(gate: &TestGate, series: &str, value: f64) {
    let reached = async {
        while gate.metric(series).await != value {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(&format!("{series} to be {value}"), reached).await;
}

/// Sends each body in a call of its own, all at once, and waits for no answer.
async fn send_all(
    gate: &TestGate,
    path: &str,
    bodies: impl Iterator<Item = String>,
) -> Vec<RawClient> {
    let mut clients = Vec::new();
    for body in bodies {
        let mut client = gate.connect().await;
        client.send(gate.signed(path, &body).to_bytes()).await;
        clients.push(client);
    }
    clients
}

async fn ready(gate: &TestGate) -> RawAnswer {
    let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    crate::support::raw::exchange(gate.admin_address(), request).await
}

/// The targets of what a backend got.
fn bodies(backend: &Backend) -> Vec<String> {
    let requests = backend.requests().into_iter();
    requests.map(|seen| seen.text().to_owned()).collect()
}
