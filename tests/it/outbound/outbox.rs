//! What was answered 202 gets to Tiki, once and in order, or a person is told.

use std::time::Duration;

use tikigate::cli::fake_tiki::{Action, Call, Order, Wanted};

use super::lab::{Lab, notice, post};
use crate::support::backend::{Answer, Backend, Behaviour};
use crate::support::gate::OTHER_CLIENT;
use crate::support::in_time;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notice_is_stored_delivered_and_one_delivery_however_often_it_is_posted() {
    let lab = Lab::start().await;
    lab.knows("T-1", "1000");
    let answer = lab
        .post("/payment/ipn", &notice("T-1", "1000", "SUCCESS"))
        .await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.header("x-tikigate-delivery"), Some("out-1"));
    assert_eq!(
        answer.text(),
        r#"{"data":{"delivery":"out-1","state":"pending","status":"accepted"}}"#
    );
    let delivery = lab.settle("out-1", "delivered").await;
    assert_eq!(delivery["outcome"], "taken");
    // The same in other words, and in the older form.
    for same in [
        notice("T-1", "1e3", "SUCCESS"),
        notice("T-1", "1000", "SUCCESS").replace(",\"status\":\"SUCCESS\"", ""),
    ] {
        let answer = lab.post("/payment/ipn", &same).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        assert_eq!(answer.json()["data"]["delivery"], "out-1");
        assert_eq!(answer.json()["data"]["state"], "delivered");
    }
    let answer = lab
        .post("/payment/ipn", &notice("T-1", "1001", "SUCCESS"))
        .await;
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (409, Some("conflict"))
    );
    assert!(answer.text().contains("out-1"), "{}", answer.text());
    let seen = lab.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        seen[0].body,
        notice("T-1", "1000", "SUCCESS"),
        "byte for byte"
    );
    assert_eq!(lab.gate.metric("tikigate_outbox_pending").await, 0.0);
    assert_eq!(
        lab.gate
            .metric("tikigate_outbox_attempts_total{result=\"taken\"}")
            .await,
        1.0
    );
    assert_eq!(
        lab.gate
            .metric("tikigate_outbound_seconds_count{call=\"ipn\"}")
            .await,
        1.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tries_back_off_are_signed_anew_and_end_with_the_question() {
    let lab = Lab::start().await;
    lab.knows("T-1", "1000");
    lab.order(
        Wanted::Ipn,
        Action::Http {
            status: 503,
            body: String::new(),
            apply: false,
        },
        3,
    );
    let id = lab.notice("T-1", "1000", "SUCCESS").await;
    let delivery = lab.settle(&id, "delivered").await;
    // Three tries, the question (Tiki has it as pending), and the fourth try is taken.
    let seen = lab.seen();
    let calls: Vec<_> = seen.iter().map(|call| call.call).collect();
    assert_eq!(
        calls,
        [Call::Ipn, Call::Ipn, Call::Ipn, Call::Status, Call::Ipn]
    );
    assert!(
        seen.iter()
            .all(|call| call.signature == "ok" && !call.repeated_signature)
    );
    assert_eq!(delivery["tries"], 4);
    let pauses: Vec<_> = seen
        .windows(2)
        .map(|two| two[1].at_ms - two[0].at_ms)
        .collect();
    // A fourth of each pause is left to chance: 1 s, 2 s, 4 s before the question, 4 s behind it.
    for (pause, most) in pauses.iter().zip([1000, 2000, 4000, 4000]) {
        assert!((most * 3 / 4..=most + 100).contains(pause), "{pauses:?}");
    }
    let words: Vec<_> = delivery["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["what"].as_str().unwrap())
        .collect();
    assert_eq!(
        words,
        [
            "posted",
            "unclear",
            "unclear",
            "unclear",
            "asked_pending",
            "taken"
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tiki_away_it_waits_and_is_delivered_when_tiki_is_back() {
    let lab = Lab::start().await;
    lab.knows("T-1", "1000");
    lab.tiki.stop().await;
    let id = lab.notice("T-1", "1000", "SUCCESS").await;
    in_time("some tries", async {
        loop {
            let delivery = lab.delivery(&id).await;
            if delivery["tries"].as_u64() >= Some(6) {
                assert_eq!(delivery["state"], "pending");
                assert_eq!(delivery["maybe_taken"], false, "nothing was sent");
                break;
            }
            lab.go_on(&delivery);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert!(lab.gate.metric("tikigate_outbox_oldest_seconds").await > 10.0);
    lab.tiki.start_again().await.unwrap();
    lab.settle(&id, "delivered").await;
    assert_eq!(
        lab.seen().len(),
        1,
        "what was never sent is not asked about"
    );
}

/// A stuck PENDING doesn't block SUCCESS; what comes out of order is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_state_takes_the_place_of_an_undelivered_one() {
    let lab = Lab::start().await;
    lab.knows("T-1", "1000");
    lab.order(
        Wanted::Ipn,
        Action::Http {
            status: 500,
            body: String::new(),
            apply: false,
        },
        1,
    );
    let pending = lab.notice("T-1", "1000", "PENDING").await;
    lab.tiki.wait_for_calls(1).await;
    let success = lab.notice("T-1", "1000", "SUCCESS").await;
    assert_ne!(pending, success);
    lab.settle(&success, "delivered").await;
    assert_eq!(
        lab.settle(&pending, "superseded").await["outcome"],
        "superseded"
    );
    let answer = lab
        .post("/payment/ipn", &notice("T-1", "1000", "PENDING"))
        .await;
    assert_eq!(
        (answer.status, answer.json()["data"]["state"].as_str()),
        (202, Some("superseded"))
    );
    let seen = lab.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen[0].body.contains("PENDING") && seen[1].body.contains("SUCCESS"));
    lab.knows("T-2", "1000");
    lab.notice("T-2", "1000", "SUCCESS").await;
    let answer = lab
        .post("/payment/ipn", &notice("T-2", "1000", "PENDING"))
        .await;
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (409, Some("conflict"))
    );
}

/// Tiki is slow with one state; the next one, posted meanwhile, must not overtake it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_state_waits_until_the_one_before_it_is_answered() {
    let lab = Lab::start().await;
    lab.knows("T-1", "1000");
    let slow = Order::new(Wanted::Ipn, Action::Hang { ms: 700 });
    lab.tiki.order(slow).unwrap();
    lab.notice("T-1", "1000", "PENDING").await;
    lab.tiki.wait_for_calls(1).await;
    let paid = lab.notice("T-1", "1000", "SUCCESS").await;
    lab.settle(&paid, "delivered").await;
    let counts = lab.tiki.counts();
    let taken = &counts.taken["T-1"];
    assert_eq!((taken.pending, taken.success), (1, 1));
    assert_eq!(counts.order_violations, 0, "{counts:?}");
}

/// Many transactions at once, each through its states: Tiki never sees one go back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_of_each_transaction_is_kept_under_load() {
    let lab = Lab::start().await;
    for number in 0..100 {
        lab.knows(&format!("T-{number}"), "1000");
    }
    // The first try of some is slow, so that the next state is posted meanwhile; some answers are lost,
    // some tries are refused for now.
    for number in 0..60 {
        let slow = Order::new(Wanted::Ipn, Action::Hang { ms: 40 });
        let slow = slow.transaction(format!("T-{number}"));
        lab.tiki.order(slow).unwrap();
    }
    lab.order(Wanted::Ipn, Action::ApplyThenReset, 20);
    let system_error = Action::Code {
        code: 2,
        form: None,
        apply: false,
    };
    lab.order(Wanted::Ipn, system_error, 20);
    lab.order(Wanted::Ipn, Action::ApplyThenClose, 20);
    let posts = (0..100).map(async |number| {
        let id = format!("T-{number}");
        lab.notice(&id, "1000", "PENDING").await;
        lab.notice(&id, "1000", "SUCCESS").await
    });
    let ids = futures_of(posts).await;
    in_time("all to be delivered", async {
        for id in &ids {
            lab.settle(id, "delivered").await;
        }
    })
    .await;
    let counts = lab.tiki.counts();
    assert_eq!(
        (counts.order_violations, counts.finals_changed),
        (0, 0),
        "{counts:?}"
    );
    for number in 0..100 {
        let (transaction, taken) = lab.tiki.transaction(&format!("T-{number}")).unwrap();
        assert_eq!(transaction.status.as_str(), "SUCCESS");
        assert!(taken.success >= 1);
    }
}

/// All of them at once.
async fn futures_of<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pinned: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        let mut all = true;
        for (future, done) in &mut pinned {
            if done.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => all = false,
                }
            }
        }
        match all {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    pinned.into_iter().filter_map(|(_, done)| done).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_gives_up_in_its_time_and_leaves_it_to_a_person() {
    let lab = Lab::with("give_up_after = \"1h\"").await;
    lab.knows("T-1", "1000");
    lab.order(
        Wanted::Any,
        Action::Http {
            status: 502,
            body: String::new(),
            apply: false,
        },
        1000,
    );
    let id = lab.notice("T-1", "1000", "SUCCESS").await;
    let failed = lab.settle(&id, "failed").await;
    assert_eq!(failed["outcome"], "gave_up");
    assert_eq!(
        failed["refund_customer"], false,
        "nobody knows that Tiki doesn't have it"
    );
    assert_eq!(lab.gate.metric("tikigate_outbox_failed").await, 1.0);
    // Posted again it is opened again, and Tiki is asked first: it may have taken one of the tries.
    lab.tiki.clear_orders();
    let before = lab.seen().len();
    let answer = lab
        .post("/payment/ipn", &notice("T-1", "1000", "SUCCESS"))
        .await;
    assert_eq!(answer.json()["data"]["state"], "pending");
    lab.settle(&id, "delivered").await;
    let calls: Vec<_> = lab.seen()[before..].iter().map(|call| call.call).collect();
    assert_eq!(calls, [Call::Status, Call::Ipn]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backend_is_told_of_what_failed_until_it_hears() {
    let told = Backend::start(|seen| match seen.number {
        0 => Behaviour::then_close(Answer::new(500)),
        _ => Answer::new(204).into(),
    })
    .await;
    let lab = Lab::with(&format!("notify_url = \"{}/undelivered?x=1\"", told.url())).await;
    lab.knows("T-1", "999");
    let id = lab.notice("T-1", "1000", "SUCCESS").await;
    let failed = lab.settle(&id, "failed").await;
    assert_eq!(
        (&failed["outcome"], &failed["code"]),
        (&"refused".into(), &5.into())
    );
    assert_eq!(failed["refund_customer"], true);
    told.wait_for_requests(1).await;
    in_time("it to be told again", async {
        while told.requests().len() < 2 {
            lab.gate.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    for request in told.requests() {
        assert_eq!(
            (request.method(), request.target()),
            ("POST", "/undelivered?x=1")
        );
        assert_eq!(request.header("idempotency-key"), Some("out-1-1-1"));
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "delivery": id, "client_id": crate::support::gate::CLIENT,
                "tiki_transaction_id": "T-1", "transaction_id": "p-T-1",
                "transaction_amount": "1000", "status": "SUCCESS", "outcome": "refused",
                "code": "5", "refund_customer": true,
            })
        );
    }
    in_time("it to be noted", async {
        while lab.gate.metric("tikigate_outbox_untold").await != 0.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Each account's notices go out under its own client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notice_is_signed_as_the_client_that_the_caller_named() {
    let lab = Lab::start().await;
    let known =
        tikigate::cli::fake_tiki::Transaction::pending("T-1", "p-T-1", "1000", OTHER_CLIENT);
    lab.tiki.put_transaction(known.unwrap());
    let request = post(
        "/payment/ipn",
        &[("X-Tikigate-Client-Id", OTHER_CLIENT)],
        &notice("T-1", "1000", "SUCCESS"),
    );
    let answer = lab.send(request).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    lab.settle("out-1", "delivered").await;
    assert_eq!(lab.seen()[0].client.as_deref(), Some(OTHER_CLIENT));
    // Another client's notice about the same ids is another delivery.
    let answer = lab
        .post("/payment/ipn", &notice("T-1", "1000", "SUCCESS"))
        .await;
    assert_eq!(answer.json()["data"]["delivery"], "out-2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_go_side_by_side_up_to_their_limit() {
    let lab = Lab::with("max_deliveries = 3").await;
    lab.order(Wanted::Ipn, Action::Hang { ms: 30 }, 100);
    let mut ids = Vec::new();
    for number in 0..12 {
        let id = format!("T-{number}");
        lab.knows(&id, "1000");
        ids.push(lab.notice(&id, "1000", "SUCCESS").await);
    }
    for id in &ids {
        lab.settle(id, "delivered").await;
    }
    // Each connection carries one call at a time, and is kept for the next one.
    assert_eq!(lab.tiki.counts().connections, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_keep_to_their_rate() {
    let lab = Lab::configured("", |text| {
        text.replace(
            "\nrate = { per_second = 100000, burst = 100000 }\nconfirm",
            "\nrate = { per_second = 1, burst = 2 }\nconfirm",
        )
    })
    .await;
    let began = std::time::Instant::now();
    for number in 0..6 {
        let id = format!("T-{number}");
        lab.knows(&id, "1000");
        lab.notice(&id, "1000", "SUCCESS").await;
    }
    lab.tiki.wait_for_calls(4).await;
    let took = began.elapsed();
    assert!(
        took > Duration::from_millis(1900),
        "two at once, then one a second: {took:?}"
    );
}
