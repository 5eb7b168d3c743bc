//! Rate limits: an address's before authentication, a client's after it.

use std::time::Duration;

use tikigate::tiki::Family;

use super::{MILLISECOND, SECOND, assert_refused, changed, refused_for};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{Call, OTHER_CLIENT, OTHER_SECRET, TestGate, refund};
use crate::support::raw::RawAnswer;

async fn agreeable() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

const PROXY: (&str, &str) = (
    "workers = 2",
    "workers = 2\ntrusted_proxies = [\"127.0.0.1\"]",
);
const SLOW_ADDRESSES: (&str, &str) = (
    "per_address = { per_second = 100000, burst = 100000 }",
    "per_address = { per_second = 2, burst = 4 }",
);
const SLOW_CLIENTS: (&str, &str) = (
    "]\nrate = { per_second = 100000, burst = 100000 }",
    "]\nrate = { per_second = 2, burst = 3 }",
);

/// Sends calls as they come from behind the trusted proxy.
struct Callers<'a> {
    gate: &'a TestGate,
    sent: std::cell::Cell<u32>,
}

impl<'a> Callers<'a> {
    fn of(gate: &'a TestGate) -> Self {
        Self {
            gate,
            sent: std::cell::Cell::new(0),
        }
    }

    fn call(&self, address: &str) -> Call {
        self.sent.set(self.sent.get() + 1);
        let body = format!("call {}", self.sent.get());
        let call = self.gate.signed("/tiki/any", &body);
        call.and("X-Forwarded-For", address)
    }

    async fn signed(&self, address: &str) -> RawAnswer {
        self.gate.send(&self.call(address)).await
    }

    async fn forged(&self, address: &str) -> RawAnswer {
        let call = self
            .call(address)
            .with("x-tikivip-signature", &"0".repeat(64));
        self.gate.send(&call).await
    }

    /// How many of 10 signed calls pass before one is refused.
    async fn passing(&self, address: &str) -> usize {
        for passed in 0..10 {
            if self.signed(address).await.status != 200 {
                return passed;
            }
        }
        10
    }
}

#[tokio::test]
async fn a_forger_spends_its_own_addresss_limit_and_nobody_elses() {
    let backend = agreeable().await;
    let toml = changed(&backend.url(), &[PROXY, SLOW_ADDRESSES, SLOW_CLIENTS]);
    let gate = TestGate::with(&toml).await;
    let callers = Callers::of(&gate);
    for _ in 0..4 {
        assert_refused(&callers.forged("203.0.113.9").await, 401, "unauthenticated");
    }
    for _ in 0..100 {
        assert_refused(&callers.forged("203.0.113.9").await, 503, "rate_limited");
    }
    assert_eq!(refused_for(&gate, "address"), 100);
    assert_refused(&callers.signed("203.0.113.9").await, 503, "rate_limited");
    assert!(backend.bytes().is_empty());
    // The client's whole burst is there for its own calls, and no more than that.
    for _ in 0..3 {
        assert_eq!(callers.signed("198.51.100.1").await.status, 200);
    }
    assert_refused(&callers.signed("198.51.100.1").await, 503, "rate_limited");
    assert_eq!(refused_for(&gate, "client"), 1);
    assert_eq!(backend.requests().len(), 3);
}

#[tokio::test]
async fn an_addresss_burst_and_refill_are_exact() {
    let backend = agreeable().await;
    let gate = TestGate::with(&changed(&backend.url(), &[PROXY, SLOW_ADDRESSES])).await;
    let callers = Callers::of(&gate);
    assert_eq!(callers.passing("192.0.2.1").await, 4);
    let refused = callers.signed("192.0.2.1").await;
    assert_refused(&refused, 503, "rate_limited");
    assert_eq!(refused.header("retry-after"), Some("1"));
    for (wait, passing) in [
        (499 * MILLISECOND, 0),
        (MILLISECOND, 1),
        (SECOND, 2),
        (SECOND * 3 / 2, 3),
        (Duration::from_secs(3600), 4),
    ] {
        gate.advance(wait);
        assert_eq!(
            callers.passing("192.0.2.1").await,
            passing,
            "{wait:?} later"
        );
    }
    assert_eq!(callers.passing("192.0.2.2").await, 4);
}

#[tokio::test]
async fn every_kind_of_call_counts_against_its_address() {
    let backend = agreeable().await;
    let gate = TestGate::with(&changed(&backend.url(), &[PROXY, SLOW_ADDRESSES])).await;
    let get = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n")
    };
    for (path, status) in [
        ("/", 404),
        ("/tiki/refund", 405),
        ("/.env", 404),
        ("/x", 404),
    ] {
        assert_eq!(gate.send_bytes(get(path)).await.status, status, "{path}");
    }
    assert_refused(&gate.send_bytes(get("/")).await, 503, "rate_limited");
    let callers = Callers::of(&gate);
    assert_refused(&callers.signed("192.0.2.1").await, 503, "rate_limited");
    assert_eq!(callers.signed("192.0.2.2").await.status, 200);
}

#[tokio::test]
async fn an_ipv6_host_is_limited_by_its_64() {
    let backend = agreeable().await;
    let gate = TestGate::with(&changed(&backend.url(), &[PROXY, SLOW_ADDRESSES])).await;
    let callers = Callers::of(&gate);
    for host in ["1", "2", "ffff:ffff:ffff:ffff", "0:0:0:9"] {
        let address = format!("2001:db8:0:1:{host}")
            .replace(":1:1", ":1::1")
            .replace(":1:2", ":1::2");
        assert_eq!(callers.signed(&address).await.status, 200, "{address}");
    }
    for other in ["2001:db8:0:1::77", "2001:0DB8:0000:0001:abcd::"] {
        assert_refused(&callers.signed(other).await, 503, "rate_limited");
    }
    assert_eq!(callers.passing("2001:db8:0:2::1").await, 4);
    // An IPv4 address is one, however it is written.
    assert_eq!(callers.passing("192.0.2.1").await, 4);
    assert_refused(
        &callers.signed("::ffff:192.0.2.1").await,
        503,
        "rate_limited",
    );
}

#[tokio::test]
async fn one_addresss_limit_holds_over_all_workers_and_connections() {
    let backend = agreeable().await;
    let gate = TestGate::with(&changed(&backend.url(), &[PROXY, SLOW_ADDRESSES])).await;
    let callers = Callers::of(&gate);
    let calls: Vec<Call> = (0..40).map(|_| callers.call("192.0.2.1")).collect();
    let answers = super::read_all(super::send_all(&gate, &calls).await).await;
    let passed = answers.iter().filter(|answer| answer.status == 200);
    assert_eq!(passed.count(), 4);
    assert_eq!(backend.requests().len(), 4);
}

#[tokio::test]
async fn a_clients_burst_and_refill_are_exact_and_its_own() {
    let backend = agreeable().await;
    let gate = TestGate::with(&changed(&backend.url(), &[PROXY, SLOW_CLIENTS])).await;
    let callers = Callers::of(&gate);
    assert_eq!(callers.passing("192.0.2.1").await, 3);
    let refused = callers.signed("192.0.2.2").await;
    assert_refused(&refused, 503, "rate_limited");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let other = Call::post_as(
        (OTHER_CLIENT, OTHER_SECRET),
        Family::TikiVip,
        "/tiki/any",
        "other",
        gate.now(),
    );
    assert_eq!(gate.send(&other).await.status, 200);
    for (wait, passing) in [(499 * MILLISECOND, 0), (MILLISECOND, 1), (SECOND * 60, 3)] {
        gate.advance(wait);
        assert_eq!(
            callers.passing("192.0.2.3").await,
            passing,
            "{wait:?} later"
        );
    }
}

#[tokio::test]
async fn retry_after_is_the_time_until_there_is_room() {
    let backend = agreeable().await;
    let one_burst = (SLOW_CLIENTS.0, "]\nrate = { per_second = 1, burst = 1 }");
    let gate = TestGate::with(&changed(&backend.url(), &[PROXY, one_burst])).await;
    let callers = Callers::of(&gate);
    assert_eq!(callers.signed("192.0.2.1").await.status, 200);
    let told = callers.signed("192.0.2.1").await;
    assert_eq!((told.status, told.header("retry-after")), (503, Some("1")));
    gate.advance(SECOND);
    assert_eq!(callers.signed("192.0.2.1").await.status, 200);
}

#[tokio::test]
async fn old_copies_do_not_spend_what_new_calls_need() {
    let backend = agreeable().await;
    let gate = TestGate::with(&changed(&backend.url(), &[SLOW_CLIENTS])).await;
    let captured = gate.signed("/tiki/refund", &refund("captured", "1"));
    gate.advance(3600 * SECOND);
    for _ in 0..3 {
        assert_refused(&gate.send(&captured).await, 503, "out_of_window");
    }
    assert_refused(&gate.send(&captured).await, 503, "rate_limited");
    assert_eq!(
        gate.post("/tiki/refund", &refund("new", "1")).await.status,
        200
    );
}
