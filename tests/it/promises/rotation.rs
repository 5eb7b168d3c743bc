//! Secrets that come and go.

use tikigate::tiki::Family;

use super::{HOUR, MILLISECOND, assert_refused, changed, refused_for};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{CLIENT, Call, OTHER_SECRET, SECRET, TestGate};

/// The usual client with a new secret beside the old one, which ends.
fn rotating(backend: &str, not_after: &str) -> String {
    let one = "partner_code = \"VNPAY\"\nsecrets = [{ name = \"now\", file = \"secret\" }]";
    let two = format!(
        "partner_code = \"VNPAY\"\nsecrets = [{{ name = \"new\", file = \"other-secret\" }}, {{ name = \"old\", file = \"secret\", not_after = \"{not_after}\" }}]"
    );
    changed(backend, &[(one, &two)])
}

async fn send(gate: &TestGate, secret: &str, body: &str) -> crate::support::raw::RawAnswer {
    let call = Call::post_as(
        (CLIENT, secret),
        Family::TikiVip,
        "/tiki/any",
        body,
        gate.now(),
    );
    gate.send(&call).await
}

async fn matches(gate: &TestGate) -> (f64, f64) {
    let of = |secret: &str| {
        format!(r#"tikigate_signature_matches_total{{client="wallet",secret="{secret}"}}"#)
    };
    (gate.metric(&of("new")).await, gate.metric(&of("old")).await)
}

#[tokio::test]
async fn both_secrets_count_until_the_old_one_ends_and_the_metric_tells_which() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    // An hour after the tests' clock starts.
    let gate = TestGate::with(&rotating(&backend.url(), "2022-11-09T08:55:13Z")).await;
    assert_eq!(send(&gate, SECRET, "1").await.status, 200);
    assert_eq!(matches(&gate).await, (0.0, 1.0));
    assert_eq!(send(&gate, OTHER_SECRET, "2").await.status, 200);
    assert_eq!(matches(&gate).await, (1.0, 1.0));

    gate.advance(HOUR - MILLISECOND);
    assert_eq!(send(&gate, SECRET, "3").await.status, 200);
    gate.advance(MILLISECOND);
    assert_refused(&send(&gate, SECRET, "4").await, 401, "unauthenticated");
    assert_eq!(refused_for(&gate, "bad_signature"), 1);
    assert_eq!(send(&gate, OTHER_SECRET, "5").await.status, 200);
    assert_eq!(matches(&gate).await, (2.0, 2.0));
    assert_eq!(backend.requests().len(), 4);
}

#[tokio::test]
async fn a_secret_that_has_ended_before_the_start_is_refused() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let gate = TestGate::with(&rotating(&backend.url(), "2022-11-09T07:00:00+00:00")).await;
    assert_refused(&send(&gate, SECRET, "1").await, 401, "unauthenticated");
    assert_eq!(send(&gate, OTHER_SECRET, "1").await.status, 200);
    assert_eq!(matches(&gate).await, (1.0, 0.0));
    assert_eq!(backend.requests().len(), 1);
}
