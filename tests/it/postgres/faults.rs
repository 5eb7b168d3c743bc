//! A server that goes, comes back, waits for others, or forgot.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use super::*;

#[tokio::test]
async fn without_its_server_nothing_is_sent_and_all_is_well_when_it_is_back() {
    let server = OwnServer::start().await;
    let url = server.url().await;
    let backend = generous().await;
    let gate = Gate::start(&url, &backend.url()).await;
    server.with(|server| server.end("INT")).await;
    until("the loss to be noticed", async || {
        let ready = gate.ask("GET", "/readyz", None).await;
        ready.text().contains("the database").then_some(())
    })
    .await;
    // It stays in the load balancer: every gate has the same server.
    let began = std::time::Instant::now();
    assert_unavailable(&gate.send(&refund_call("r-1")).await);
    assert!(began.elapsed() < Duration::from_secs(1), "it fails at once");
    let ready = gate.ask("GET", "/readyz", None).await;
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("the database"), "{}", ready.text());

    for (round, signal) in ["QUIT", "INT"].into_iter().enumerate() {
        server.with(Server::begin).await;
        let id = format!("r-{}", round + 1);
        until("the gate to find its server", async || {
            let answer = gate.send(&refund_call(&id)).await;
            (answer.status == 200).then_some(())
        })
        .await;
        server.with(|server| server.end(signal)).await;
        let lost = until("the loss to be noticed", async || {
            let answer = gate.send(&refund_call("r-9")).await;
            (answer.status != 200).then_some(answer)
        });
        assert_unavailable(&lost.await);
        assert_unavailable(&gate.send(&refund_call(&id)).await);
    }
    assert_eq!(refunded(&backend), ["r-1", "r-2"]);
}

/// A refund of a payment of its own, so that claims don't wait for each other.
fn one_of_many(id: &str) -> Call {
    let body = refund(id, "35000").replace("p-1", &format!("p-{id}"));
    Call::post("/tiki/refund", body, SystemTime::now())
}

#[tokio::test]
async fn a_server_that_crashes_under_load_loses_and_repeats_nothing() {
    let server = OwnServer::start().await;
    let url = server.url().await;
    let backend = generous().await;
    let gates = [
        Gate::start(&url, &backend.url()).await,
        Gate::start(&url, &backend.url()).await,
    ];
    let over = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    // Each lane asks for one refund after the other, now here and now there, until it has its answer.
    let lane = async |lane: usize| {
        let mut ids = Vec::new();
        for number in 0.. {
            if over.load(Ordering::Relaxed) {
                break;
            }
            let id = format!("r-{lane}-{number}");
            let mut gate = lane;
            loop {
                let answer = gates[gate % 2].send(&one_of_many(&id)).await;
                if answer.status == 200 {
                    break;
                }
                assert!(answer.status >= 500, "{}", answer.text());
                gate += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            ids.push(id);
            answered.fetch_add(1, Ordering::Relaxed);
        }
        ids
    };
    let trouble = async {
        for signal in ["QUIT", "INT", "QUIT"] {
            tokio::time::sleep(Duration::from_secs(1)).await;
            server.with(|server| server.end(signal)).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            server.with(Server::begin).await;
        }
        until("some more refunds", async || {
            (answered.load(Ordering::Relaxed) > 50).then_some(())
        })
        .await;
        over.store(true, Ordering::Relaxed);
    };
    let all = async {
        tokio::join!(
            lane(0),
            lane(1),
            lane(2),
            lane(3),
            lane(4),
            lane(5),
            trouble
        )
    };
    let (a, b, c, d, e, f, ()) = tokio::time::timeout(3 * PATIENCE, all).await.unwrap();
    let mut wanted = [a, b, c, d, e, f].concat();
    wanted.sort();
    assert_eq!(refunded(&backend), wanted);
    let claimed = server
        .with(move |server| {
            let database = url.rsplit('/').next().unwrap().to_owned();
            server.query(
                &database,
                "select count(*) from tikigate.record where state <> 'done'",
            )
        })
        .await;
    assert_eq!(claimed, "0");
}

#[tokio::test]
async fn a_claim_that_no_standby_confirms_sends_nothing() {
    let server = OwnServer::start().await;
    let url = server.url().await;
    let backend = generous().await;
    let gate = Gate::run(setup(&url, &backend.url(), "10s", "lease = \"60s\"")).await;
    assert_eq!(gate.send(&refund_call("r-1")).await.status, 200);
    let wait_for = |whom: &'static str| server.with(move |server| server.wait_for_standby(whom));
    wait_for("nobody").await;
    let began = std::time::Instant::now();
    assert_unavailable(&gate.send(&refund_call("r-2")).await);
    assert!(began.elapsed() < Duration::from_secs(9));
    // What was recorded is still known.
    let known = gate.send(&refund_call("r-1")).await;
    assert_eq!(known.status, 200, "{}", known.text());
    assert_eq!(refunded(&backend), ["r-1"]);
    wait_for("").await;
    let answer = until("the abandoned claim to be released", async || {
        let answer = gate.send(&refund_call("r-2")).await;
        (answer.status == 200).then_some(answer)
    });
    answer.await;
    assert_eq!(refunded(&backend), ["r-1", "r-2"]);
}

#[tokio::test]
async fn a_standby_that_took_over_may_have_forgotten() {
    let server = OwnServer::start().await;
    let database = server.with(|server| server.create_database()).await;
    let standby = server.with(|server| server.standby()).await;
    let port = server.with(|server| server.port()).await;
    let url = format!(
        "postgres://gate@127.0.0.1:{port},127.0.0.1:{}/{database}",
        standby.port()
    );
    let backend = generous().await;
    let gate = Gate::start(&url, &backend.url()).await;
    assert_eq!(gate.send(&refund_call("r-1")).await.status, 200);
    server.with(|server| server.end("QUIT")).await;
    let promoted = tokio::task::spawn_blocking(move || {
        standby.promote();
        standby
    });
    let _standby = promoted.await.unwrap();

    let held = until("the gate to find the new primary", async || {
        let answer = gate.send(&refund_call("r-2")).await;
        (answer.error_code().as_deref() != Some("ledger_unavailable")).then_some(answer)
    });
    let held = held.await;
    assert_eq!(held.error_code().as_deref(), Some("outcome_unknown"));
    let record = gate.record("r-2").await.unwrap();
    assert_eq!(record["held_for"], "ledger_gap");
    let why = gate.ask("GET", "/api/ledger/quarantine", None).await.json();
    assert!(why.to_string().contains("from timeline 1 to 2"), "{why}");
    // Once a person has compared what there is, it goes on.
    let lift = json!({"reason": "compared with the bank's list"});
    let lifted = gate.ask("POST", "/api/ledger/quarantine/lift", Some(&lift));
    let lifted = lifted.await;
    assert_eq!(lifted.status, 200, "{}", lifted.text());
    assert_eq!(gate.send(&refund_call("r-3")).await.status, 200);
    assert_eq!(refunded(&backend), ["r-1", "r-3"]);
}
