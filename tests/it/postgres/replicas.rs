//! Two gates, one ledger: what one of them runs, the other doesn't.

use super::*;
use crate::support::backend::{Behaviour, Hold};

#[tokio::test]
async fn one_refund_at_two_gates_is_sent_once_and_answered_alike() {
    let url = shared_url().await;
    let hold = Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |_| Behaviour::from(Answer::success()).held(&held)).await;
    let (one, two) = (
        Gate::start(&url, &backend.url()).await,
        Gate::start(&url, &backend.url()).await,
    );
    let call = refund_call("r-1");
    let first = one.send(&call);
    let second = async {
        backend.wait_for_requests(1).await;
        let second = two.send(&call);
        let release = async {
            // The other gate has met the running attempt and waits to hear of its end.
            until("the other gate to wait", async || {
                let awaited = Server::shared().query(
                    url.rsplit('/').next().unwrap(),
                    "select awaited from tikigate.record",
                );
                (awaited == "t").then_some(())
            })
            .await;
            hold.release();
        };
        tokio::join!(second, release).0
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(first.body, second.body);
    assert_eq!(first.header("idempotency-replayed"), None);
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    assert_eq!(refunded(&backend), ["r-1"]);
}

#[tokio::test]
async fn many_refunds_at_two_gates_at_once_are_sent_once_each() {
    let url = shared_url().await;
    let backend = generous().await;
    let (one, two) = (
        Gate::start(&url, &backend.url()).await,
        Gate::start(&url, &backend.url()).await,
    );
    let ids: Vec<_> = (10..40).map(|number| format!("r-{number}")).collect();
    for id in &ids {
        let call = refund_call(id);
        let (first, second) = tokio::join!(one.send(&call), two.send(&call));
        assert_eq!(
            (first.status, second.status),
            (200, 200),
            "{}",
            second.text()
        );
        assert_eq!(first.body, second.body);
    }
    assert_eq!(refunded(&backend), ids);
    // And whoever is asked later says the same.
    for gate in [&one, &two] {
        let again = gate.send(&refund_call("r-10")).await;
        assert_eq!(again.status, 200);
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
    }
    assert_eq!(refunded(&backend), ids);
}

#[tokio::test]
async fn a_gate_that_ends_in_order_leaves_nothing_running() {
    let url = shared_url().await;
    let backend = generous().await;
    let mut first = Gate::start(&url, &backend.url()).await;
    assert_eq!(first.send(&refund_call("r-1")).await.status, 200);
    let ended = tokio::task::spawn_blocking(move || first.process.terminate());
    assert!(ended.await.unwrap().success());
    let leases = "select count(*) from tikigate.owner where lease_until > clock_timestamp()";
    let database = url.rsplit('/').next().unwrap();
    assert_eq!(Server::shared().query(database, leases), "0");
    let next = Gate::start(&url, &backend.url()).await;
    let again = next.send(&refund_call("r-1")).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
}
