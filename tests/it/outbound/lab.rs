//! A gate with its outbound direction between a backend and a stand-in for Tiki, on a clock that the
//! test moves.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tikigate::cli::fake_tiki::{FakeTiki, Options, Order, Seen, Transaction, Wanted};
use tikigate::clock::Clock;

use crate::support::backend::{Answer, Backend};
use crate::support::gate::{
    CLIENT, OTHER_CLIENT, OTHER_SECRET, SECRET, TestGate, start_time, usual,
};
use crate::support::in_time;
use crate::support::raw::{RawAnswer, exchange};

/// The usual `[outbound]` towards this base URL, with more of its keys, and more text behind.
pub(super) fn config(backend: &str, base_url: &str, keys: &str, more: &str) -> String {
    let usual = usual(backend);
    format!(
        r#"{usual}
[outbound]
listen = "127.0.0.1:0"
rate = {{ per_second = 100000, burst = 100000 }}
confirm_rate = {{ per_second = 100000, burst = 100000 }}
timeout = "2s"
connect_timeout = "1s"
{keys}
[[outbound.accounts]]
client = "wallet"
base_url = "{base_url}"
family = "tikivip"
{more}
"#
    )
}

/// An account of the second client.
pub(super) fn second_account(base_url: &str) -> String {
    format!("[[outbound.accounts]]\nclient = \"other\"\nbase_url = \"{base_url}\"\n")
}

/// The gate, what it stands between, and its time.
pub(super) struct Lab {
    pub(super) gate: TestGate,
    pub(super) tiki: Arc<FakeTiki>,
    pub(super) backend: Backend,
}

impl Lab {
    pub(super) async fn start() -> Self {
        Self::with("").await
    }

    /// With these keys of `[outbound]` besides the usual ones.
    pub(super) async fn with(keys: &str) -> Self {
        Self::configured(keys, |text| text).await
    }

    /// With the whole configuration changed.
    pub(super) async fn configured(keys: &str, change: impl Fn(String) -> String) -> Self {
        let clock: Arc<OnceLock<Clock>> = Arc::default();
        let told = Arc::clone(&clock);
        let options = Options {
            clock: Arc::new(move || millis(told.get().map_or_else(start_time, Clock::now))),
            ..Options::default()
        };
        let options = options
            .client(CLIENT, SECRET)
            .client(OTHER_CLIENT, OTHER_SECRET);
        let tiki = Arc::new(FakeTiki::start(options).await.unwrap());
        let backend = Backend::start(|_| Answer::success().into()).await;
        let base_url = tiki.base_url();
        let text = config(&backend.url(), &base_url, keys, &second_account(&base_url));
        let gate = TestGate::with(&change(text)).await;
        clock.set(gate.clock().clone()).unwrap();
        Self {
            gate,
            tiki,
            backend,
        }
    }

    /// Has Tiki know a transaction as pending.
    pub(super) fn knows(&self, id: &str, amount: &str) {
        let transaction = Transaction::pending(id, format!("p-{id}"), amount, CLIENT);
        self.tiki.put_transaction(transaction.unwrap());
    }

    /// Orders Tiki to do something else, so many times.
    pub(super) fn order(
        &self,
        wanted: Wanted,
        action: tikigate::cli::fake_tiki::Action,
        times: u64,
    ) {
        self.tiki
            .order(Order::new(wanted, action).times(times))
            .unwrap();
    }

    /// A plain POST of the backend.
    pub(super) async fn post(&self, path: &str, body: &str) -> RawAnswer {
        self.send(&post(path, &[], body)).await
    }

    /// A plain GET of the backend.
    pub(super) async fn get(&self, target: &str) -> RawAnswer {
        self.send(&format!(
            "GET {target} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n"
        ))
        .await
    }

    /// Exactly these bytes, to the outbound listener.
    pub(super) async fn send(&self, bytes: impl AsRef<[u8]>) -> RawAnswer {
        exchange(self.gate.outbound_address(), bytes).await
    }

    /// Posts a notice and gives its delivery's id.
    pub(super) async fn notice(&self, id: &str, amount: &str, status: &str) -> String {
        let answer = self.post("/payment/ipn", &notice(id, amount, status)).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()["data"]["delivery"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Calls that Tiki saw.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.tiki.seen_after(0)
    }

    /// A GET of the admin API.
    pub(super) async fn admin(&self, path: &str) -> Value {
        let answer = self.admin_call("GET", path, "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["data"].clone()
    }

    /// Any call of the admin API.
    pub(super) async fn admin_call(&self, method: &str, path: &str, body: &str) -> RawAnswer {
        let token = std::fs::read_to_string(self.gate.directory().join("admin.token")).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            token.trim(),
            body.len()
        );
        let (address, request) = with_localhost(&request, self.gate.admin_address());
        exchange(&address, request).await
    }

    /// A delivery as the admin API shows it.
    pub(super) async fn delivery(&self, id: &str) -> Value {
        self.admin(&format!("/api/outbox/{id}")).await
    }

    /// Waits until the delivery is in this state, moving the clock to its next step whenever it waits
    /// for one.
    pub(super) async fn settle(&self, id: &str, state: &str) -> Value {
        in_time(&format!("{id} to be {state}"), async {
            loop {
                let delivery = self.delivery(id).await;
                if delivery["state"] == state {
                    return delivery;
                }
                assert_eq!(delivery["state"], "pending", "{delivery:#}");
                self.go_on(&delivery);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
    }

    /// Moves the clock to the delivery's next step.
    pub(super) fn go_on(&self, delivery: &Value) {
        let next: jiff::Timestamp = match delivery["next_at"].as_str() {
            Some(at) => at.parse().unwrap(),
            None => return,
        };
        let next = SystemTime::try_from(next).unwrap() + Duration::from_millis(1);
        if delivery["in_flight"] == false
            && let Ok(wait) = next.duration_since(self.gate.now())
        {
            self.gate.advance(wait);
            self.gate.app().look_into_outbox();
        }
    }
}

fn with_localhost(
    request: &str,
    address: &tikigate::net::ListenAddress,
) -> (tikigate::net::ListenAddress, String) {
    let host = match address {
        tikigate::net::ListenAddress::Tcp(address) => format!("Host: {address}"),
        tikigate::net::ListenAddress::Unix(_) => "Host: localhost".to_owned(),
    };
    (
        address.clone(),
        request.replacen("Host: localhost", &host, 1),
    )
}

/// A notice of the backend.
pub(super) fn notice(id: &str, amount: &str, status: &str) -> String {
    format!(
        r#"{{"tiki_transaction_id":"{id}","transaction_amount":{amount},"transaction_id":"p-{id}","status":"{status}"}}"#
    )
}

/// A POST with these headers besides the usual ones.
pub(super) fn post(path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!(
        "POST {path} HTTP/1.1\r\nHost: gate\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}
