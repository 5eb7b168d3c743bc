//! Several gates on one PostgreSQL ledger deliver from one outbox.

use std::time::Duration;

use tikigate::cli::fake_tiki::{Action, Order, Wanted};

use super::lab::notice;
use super::process::{Place, knows, tiki};
use crate::support::backend::{Answer, Backend};
use crate::support::in_time;
use crate::support::postgres::Server;

async fn shared_url() -> String {
    let made = tokio::task::spawn_blocking(|| {
        let server = Server::shared();
        server.url(&server.create_database())
    });
    made.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gates_deliver_each_notice_once_and_in_its_order() {
    let url = shared_url().await;
    let backend = Backend::start(|_| Answer::success().into()).await;
    let tiki = tiki().await;
    let places = [(); 2].map(|()| Place::sharing(&url, &backend.url(), &tiki.base_url()));
    let gates = [places[0].run().await, places[1].run().await];
    for number in 0..40 {
        let id = format!("T-{number}");
        knows(&tiki, &id);
        if number % 2 == 0 {
            // The other gate has the next state while this one waits for its answer.
            let slow = Order::new(Wanted::Ipn, Action::Hang { ms: 60 }).transaction(id.clone());
            tiki.order(slow).unwrap();
        }
        for (turn, status) in ["PENDING", "SUCCESS"].into_iter().enumerate() {
            let place = &places[(number + turn) % 2];
            let answer = place.post(&notice(&id, "1000", status)).await.unwrap();
            assert_eq!(answer.status, 202, "{}", answer.text());
        }
        // The same at the other gate is the same delivery, and another amount is refused there, too.
        let again = places[number % 2]
            .post(&notice(&id, "1000", "SUCCESS"))
            .await
            .unwrap();
        assert_eq!(again.status, 202);
        let other = places[number % 2]
            .post(&notice(&id, "1001", "SUCCESS"))
            .await
            .unwrap();
        assert_eq!(other.status, 409);
    }
    places[0].wait_until_delivered().await;
    let counts = tiki.counts();
    assert_eq!(
        (counts.order_violations, counts.finals_changed),
        (0, 0),
        "{counts:?}"
    );
    assert_eq!(counts.taken.len(), 40);
    assert!(
        counts.taken.values().all(|taken| taken.success == 1),
        "{counts:?}"
    );
    drop(gates);
}

/// What a dead gate was trying goes on at the other one once the lease is over: asked about, where it
/// may have been taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_gate_takes_over_when_the_lease_of_a_dead_one_is_over() {
    let url = shared_url().await;
    let backend = Backend::start(|_| Answer::success().into()).await;
    let tiki = tiki().await;
    let places = [(); 2].map(|()| Place::sharing(&url, &backend.url(), &tiki.base_url()));
    let mut dying = places[0].run().await;
    knows(&tiki, "T-1");
    tiki.order(Order::new(
        Wanted::Ipn,
        Action::ApplyThenHang { ms: 60_000 },
    ))
    .unwrap();
    // The second try is refused for what the first one did.
    tiki.order(Order::new(
        Wanted::Ipn,
        Action::Code {
            code: 6,
            form: None,
            apply: false,
        },
    ))
    .unwrap();
    assert_eq!(
        places[0]
            .post(&notice("T-1", "1000", "SUCCESS"))
            .await
            .unwrap()
            .status,
        202
    );
    tiki.wait_for_calls(1).await;
    dying.kill();
    let living = places[1].run().await;
    // It stays the dead one's: posted again, it is what it was.
    let again = places[1]
        .post(&notice("T-1", "1000", "SUCCESS"))
        .await
        .unwrap();
    assert_eq!(again.json()["data"]["state"], "pending");
    assert_eq!(tiki.counts().calls, 1);
    // The lease's two and a half minutes pass.
    let database = url.rsplit('/').next().unwrap().to_owned();
    let ended = "update tikigate.delivery set flying_until = flying_until - interval '3 minutes'";
    tokio::task::spawn_blocking(move || Server::shared().query(&database, ended))
        .await
        .unwrap();
    in_time("the other gate to take over", async {
        while places[1].metric("tikigate_outbox_pending").await != Some(0.0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let shown = places[1].deliveries_of("T-1").await.join("");
    for words in ["delivered", "lapsed", "refused", "asked_same"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert_eq!(tiki.counts().taken["T-1"].success, 1);
    drop(living);
}
