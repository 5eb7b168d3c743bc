//! Gates on one PostgreSQL ledger, as processes of their own, on a real server.

mod faults;
mod paused;
mod replicas;
mod start;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::Value;
use tikigate::net::ListenAddress;

use crate::support::backend::{Answer, Backend};
use crate::support::gate::{CLIENT, Call, SECRET, refund};
use crate::support::gate_process::{GateProcess, Setup};
use crate::support::postgres::Server;
use crate::support::raw::{RawAnswer, exchange_if_there};

/// The admin token of every gate here.
const TOKEN: &str = "the-token-of-the-tests-with-a-shared-ledger";
/// Longer than a call to a gate takes, and than what waits here for another side.
const PATIENCE: Duration = Duration::from_secs(40);
/// The shortest that a configuration with these deadlines may have.
const LEASE: Duration = Duration::from_secs(12);

/// A gate's configuration; the ledger's URL comes from the environment.
fn configuration(backend: &str, answer_within: &str) -> String {
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
workers = 1
drain_delay = "0s"
drain_within = "20s"
per_address = {{ per_second = 100000, burst = 100000 }}
[admin]
listen = "127.0.0.1:0"
tokens = [{{ name = "linh", file = "token" }}]
[upstreams.legacy]
url = "{backend}"
connect_timeout = "500ms"
answer_within = "{answer_within}"
settle_within = "{answer_within}"
[[clients]]
id = "{CLIENT}"
name = "wallet"
environment = "production"
secrets = [{{ name = "now", file = "secret" }}]
rate = {{ per_second = 100000, burst = 100000 }}
[[routes]]
name = "refund"
path = "/tiki/refund"
method = "POST"
payload = "refund"
[ledger]
store = "postgres"
url = {{ env = "DATABASE_URL" }}
connections = 4
"#
    )
}

/// What a gate is started with; `more` goes under `[ledger]`.
fn setup(url: &str, backend: &str, answer_within: &str, more: &str) -> Setup {
    let text = format!("{}{more}\n", configuration(backend, answer_within));
    Setup::new(&text)
        .file("secret", SECRET.as_bytes())
        .file("token", TOKEN.as_bytes())
        .environment("DATABASE_URL", url)
}

/// A gate of several on one ledger.
struct Gate {
    process: GateProcess,
    address: ListenAddress,
    admin: ListenAddress,
}

impl Gate {
    /// Starts one with the shortest lease.
    async fn start(url: &str, backend: &str) -> Self {
        let lease = format!("lease = \"{}s\"", LEASE.as_secs());
        Self::run(setup(url, backend, "2s", &lease)).await
    }

    /// The same, stopped as by SIGSTOP at this step of its first attempt.
    async fn stopping_at(step: &str, url: &str, backend: &str) -> Self {
        let lease = format!("lease = \"{}s\"", LEASE.as_secs());
        let setup = setup(url, backend, "2s", &lease)
            .environment("TIKIGATE_FAILPOINT", &format!("{step}=stop"));
        Self::run(setup).await
    }

    async fn run(setup: Setup) -> Self {
        let process = tokio::task::spawn_blocking(|| setup.start()).await.unwrap();
        Self {
            address: ListenAddress::Tcp(process.address()),
            admin: ListenAddress::Tcp(process.admin_address()),
            process,
        }
    }

    /// Lets it run again after it was stopped.
    fn go_on(&self) {
        self.process.signal(Signal::CONT);
    }

    async fn send(&self, call: &Call) -> RawAnswer {
        let answer = exchange_if_there(&self.address, call.to_bytes(), PATIENCE).await;
        answer.unwrap_or_else(|| panic!("no answer\n{}", self.process.lines().join("\n")))
    }

    /// Sends it; whatever comes of that, nobody hears.
    fn send_unheard(&self, call: &Call) {
        let (address, bytes) = (self.address.clone(), call.to_bytes());
        tokio::spawn(async move { exchange_if_there(&address, bytes, PATIENCE).await });
    }

    /// Asks the admin API.
    async fn ask(&self, method: &str, target: &str, body: Option<&Value>) -> RawAnswer {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {TOKEN}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.admin,
            body.len()
        );
        let answer = exchange_if_there(&self.admin, request, PATIENCE).await;
        answer.expect("an answer of the admin API")
    }

    /// The record of this refund.
    async fn record(&self, request_id: &str) -> Option<Value> {
        let target = format!("/api/ledger?key={request_id}");
        let page = self.ask("GET", &target, None).await.json();
        page["data"]["records"].get(0).cloned()
    }

    async fn wait_for_state(&self, request_id: &str, state: &str) -> Value {
        let what = format!("{request_id} to be {state}");
        let look = async || {
            let record = self.record(request_id).await?;
            (record["state"] == state).then_some(record)
        };
        until(&what, look).await
    }
}

/// A refund, signed now.
fn refund_call(request_id: &str) -> Call {
    Call::post(
        "/tiki/refund",
        refund(request_id, "35000"),
        SystemTime::now(),
    )
}

/// A backend that refunds everything.
async fn generous() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

/// What the backend was asked for: request ids, sorted.
fn refunded(backend: &Backend) -> Vec<String> {
    let requests = backend.requests();
    let mut ids: Vec<_> = requests
        .iter()
        .map(|seen| {
            let body: Value = serde_json::from_str(seen.text()).unwrap();
            body["request_id"].as_str().unwrap().to_owned()
        })
        .collect();
    ids.sort();
    ids
}

/// Looks again and again until there is something.
async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "waited {PATIENCE:?} for {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A server of a test's own, which may be ended; told to from another thread.
struct OwnServer(Arc<std::sync::Mutex<Server>>);

impl OwnServer {
    async fn start() -> Self {
        let server = tokio::task::spawn_blocking(|| Server::start(&[])).await;
        Self(Arc::new(std::sync::Mutex::new(server.unwrap())))
    }

    async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Server) -> T + Send + 'static,
    ) -> T {
        let server = Arc::clone(&self.0);
        let act = move || act(&mut server.lock().unwrap());
        tokio::task::spawn_blocking(act).await.unwrap()
    }

    /// The URL of a new database.
    async fn url(&self) -> String {
        self.with(|server| server.url(&server.create_database()))
            .await
    }
}

/// A new database on the server that tests share.
async fn shared_url() -> String {
    let url = || Server::shared().url(&Server::shared().create_database());
    tokio::task::spawn_blocking(url).await.unwrap()
}

#[track_caller]
fn assert_unavailable(answer: &RawAnswer) {
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.error_code().as_deref(), Some("ledger_unavailable"));
}
