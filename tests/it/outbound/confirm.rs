//! Routes with `confirm`: Tiki is asked before its own notice is forwarded.

use std::time::{Duration, Instant};

use serde_json::json;
use tikigate::cli::fake_tiki::{Action, Call, Outgoing, Resending, Status, Transaction, Wanted};

use super::lab::{Lab, notice};
use crate::support::gate::CLIENT;
use crate::support::in_time;

async fn lab() -> Lab {
    Lab::configured("", |text| {
        let plain = "path = \"/tiki/ipn\"\n";
        assert!(text.contains(plain));
        let text = text.replacen(plain, &format!("{plain}confirm = true\n"), 1);
        text.replace("answer_within = \"1s\"", "answer_within = \"6s\"")
            .replace("settle_within = \"4s\"", "settle_within = \"8s\"")
    })
    .await
}

impl Lab {
    fn has(&self, id: &str, amount: &str, status: Status) {
        let mut transaction = Transaction::pending(id, format!("p-{id}"), amount, CLIENT).unwrap();
        transaction.status = status;
        self.tiki.put_transaction(transaction);
    }

    fn questions(&self) -> usize {
        let seen = self.seen();
        seen.iter().filter(|call| call.call == Call::Status).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_tiki_stands_by_is_forwarded_and_asked_about_once() {
    let lab = lab().await;
    lab.has("T-1", "1000", Status::Success);
    let answer = lab
        .gate
        .post("/tiki/ipn", &notice("T-1", "1000.0", "SUCCESS"))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(lab.backend.requests().len(), 1);
    assert_eq!(lab.questions(), 1);
    // A duplicate is answered from the ledger, whatever Tiki would say now.
    lab.has("T-1", "7", Status::Failure);
    lab.gate.advance(Duration::from_secs(1));
    let answer = lab
        .gate
        .post("/tiki/ipn", &notice("T-1", "1000", "SUCCESS"))
        .await;
    assert_eq!(
        (answer.status, answer.header("idempotency-replayed")),
        (200, Some("true"))
    );
    assert_eq!((lab.questions(), lab.backend.requests().len()), (1, 1));
    // Other routes ask nobody.
    lab.gate
        .post("/tiki/refund", &crate::support::gate::refund("r-1", "5"))
        .await;
    assert_eq!(lab.questions(), 1);
    assert_eq!(
        lab.gate
            .metric("tikigate_confirmations_total{result=\"confirmed\"}")
            .await,
        1.0
    );
    // What is further than pending was pending.
    lab.has("T-2", "5", Status::Success);
    assert_eq!(
        lab.gate
            .post("/tiki/ipn", &notice("T-2", "5", "PENDING"))
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_tiki_contradicts_is_refused() {
    let lab = lab().await;
    lab.has("T-1", "1000", Status::Success);
    lab.has("T-2", "1000", Status::Failure);
    lab.has("T-3", "1000", Status::Success);
    let other_partner = notice("T-3", "1000", "SUCCESS").replace("p-T-3", "p-X");
    for body in [
        notice("T-1", "1000000", "SUCCESS"),
        notice("T-1", "1000", "FAILURE"),
        notice("T-2", "1000", "SUCCESS"),
        other_partner,
    ] {
        let answer = lab.gate.post("/tiki/ipn", &body).await;
        assert_eq!(
            (answer.status, answer.error_code().as_deref()),
            (422, Some("unconfirmed")),
            "{body}"
        );
    }
    assert_eq!(lab.backend.bytes(), b"", "nothing of it was forwarded");
    assert_eq!(
        lab.gate
            .metric("tikigate_confirmations_total{result=\"unconfirmed\"}")
            .await,
        4.0
    );
    assert_eq!(
        lab.gate
            .metric("tikigate_refusals_total{route=\"ipn\",error=\"unconfirmed\",reason=\"\"}")
            .await,
        4.0
    );
    // No record is left of what was never claimed.
    assert_eq!(
        lab.gate
            .record("T-1|p-T-1|SUCCESS")
            .await
            .map(|record| record.state),
        None
    );
}

/// Trouble that may pass is 503, so that Tiki sends again; and then it is forwarded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_tiki_does_not_say_yet_is_asked_for_again() {
    let lab = lab().await;
    for (id, trouble, reason) in [
        ("pending", None, "pending"),
        ("unknown", None, "refused"),
        (
            "code-2",
            Some(Action::Code {
                code: 2,
                form: None,
                apply: false,
            }),
            "no_answer",
        ),
        (
            "code-4",
            Some(Action::Code {
                code: 4,
                form: None,
                apply: false,
            }),
            "refused",
        ),
        ("reset", Some(Action::ResetAtOnce), "no_answer"),
        (
            "garbage",
            Some(Action::Garbage { apply: true }),
            "no_answer",
        ),
        (
            "http",
            Some(Action::Http {
                status: 500,
                body: String::new(),
                apply: false,
            }),
            "no_answer",
        ),
    ] {
        let before = lab.backend.requests().len();
        match id {
            "pending" => lab.has(id, "1000", Status::Pending),
            "unknown" => {}
            _ => lab.has(id, "1000", Status::Success),
        }
        if let Some(trouble) = trouble {
            lab.order(Wanted::Status, trouble, 1);
        }
        let body = notice(id, "1000", "SUCCESS");
        let answer = lab.gate.post("/tiki/ipn", &body).await;
        assert_eq!(
            (answer.status, answer.error_code().as_deref()),
            (503, Some("not_confirmed")),
            "{id}"
        );
        let series = format!(
            "tikigate_refusals_total{{route=\"ipn\",error=\"not_confirmed\",reason=\"{reason}\"}}"
        );
        assert!(lab.gate.metric(&series).await >= 1.0, "{id}");
        assert_eq!(lab.backend.requests().len(), before, "{id}");
        lab.has(id, "1000", Status::Success);
        lab.gate.advance(Duration::from_secs(60));
        assert_eq!(lab.gate.post("/tiki/ipn", &body).await.status, 200, "{id}");
    }
    lab.tiki.stop().await;
    let answer = lab
        .gate
        .post("/tiki/ipn", &notice("away", "1", "SUCCESS"))
        .await;
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (503, Some("not_confirmed"))
    );
}

/// A silent Tiki takes four seconds of its own time, and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_tiki_is_not_waited_for_beyond_four_seconds() {
    let lab = lab().await;
    lab.has("T-1", "1000", Status::Success);
    lab.order(Wanted::Status, Action::Hang { ms: 20_000 }, 1);
    let began = Instant::now();
    let answer = lab
        .gate
        .post("/tiki/ipn", &notice("T-1", "1000", "SUCCESS"))
        .await;
    let took = began.elapsed();
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (503, Some("not_confirmed"))
    );
    assert!(
        (Duration::from_millis(3900)..Duration::from_millis(5500)).contains(&took),
        "{took:?}"
    );
    // A slow one is waited for.
    lab.order(Wanted::Status, Action::ApplyThenHang { ms: 1500 }, 1);
    lab.gate.advance(Duration::from_secs(60));
    assert_eq!(
        lab.gate
            .post("/tiki/ipn", &notice("T-1", "1000", "SUCCESS"))
            .await
            .status,
        200
    );
}

/// One question about a transaction at a time, also where its messages differ.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_messages_about_one_transaction_ask_one_after_the_other() {
    let lab = lab().await;
    lab.has("T-1", "1000", Status::Success);
    lab.order(Wanted::Status, Action::ApplyThenHang { ms: 600 }, 1);
    let bodies = ["PENDING", "SUCCESS", "FAILURE"].map(|status| notice("T-1", "1000", status));
    let while_the_first_is_asked = async {
        lab.tiki.wait_for_calls(1).await;
        // Time enough for the others to ask, if they did not wait.
        tokio::time::sleep(Duration::from_millis(300)).await;
        lab.questions()
    };
    let (one, two, three, asked) = tokio::join!(
        lab.gate.post("/tiki/ipn", &bodies[0]),
        lab.gate.post("/tiki/ipn", &bodies[1]),
        lab.gate.post("/tiki/ipn", &bodies[2]),
        while_the_first_is_asked,
    );
    assert_eq!(asked, 1);
    assert_eq!((one.status, two.status, three.status), (200, 200, 422));
    assert_eq!(lab.backend.requests().len(), 2);
    assert_eq!(lab.questions(), 3);
}

/// Tiki calls the gate while it answers the gate's own delivery, with every place of the outbox taken
/// and its rate spent: neither waits for the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notice_that_comes_while_tiki_answers_a_delivery_waits_in_no_circle() {
    let lab = Lab::configured("max_deliveries = 1", |text| {
        let plain = "path = \"/tiki/ipn\"\n";
        text.replacen(plain, &format!("{plain}confirm = true\n"), 1)
            .replace(
                "\nrate = { per_second = 100000, burst = 100000 }\nconfirm",
                "\nrate = { per_second = 1, burst = 1 }\nconfirm",
            )
            .replace("timeout = \"2s\"", "timeout = \"10s\"")
            .replace("answer_within = \"1s\"", "answer_within = \"6s\"")
            .replace("settle_within = \"4s\"", "settle_within = \"8s\"")
    })
    .await;
    lab.knows("T-out", "1000");
    lab.has("T-in", "500", Status::Success);
    let url = format!("{}/tiki/ipn", lab.gate.address().local_url());
    let first = Action::CallFirst {
        url,
        body: notice("T-in", "500", "SUCCESS"),
        client: CLIENT.to_owned(),
    };
    lab.order(Wanted::Ipn, first, 1);
    let began = Instant::now();
    let id = lab.notice("T-out", "1000", "SUCCESS").await;
    let delivery = lab.settle(&id, "delivered").await;
    assert_eq!(
        (&delivery["tries"], &delivery["outcome"]),
        (&json!(1), &json!("taken"))
    );
    let called = lab
        .seen()
        .into_iter()
        .find_map(|call| call.called_first)
        .unwrap();
    assert_eq!(called.status, Some(200), "{called:?}");
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(lab.backend.requests().len(), 1);
}

/// A message that failed at the backend is confirmed again when it comes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tikis_own_schedule_brings_a_notice_through() {
    let lab = lab().await;
    lab.has("T-1", "1000", Status::Pending);
    let url = format!("{}/tiki/ipn", lab.gate.address().local_url());
    let outgoing = Outgoing::post(url, notice("T-1", "1000", "SUCCESS"), CLIENT);
    let how = Resending {
        patience: Some(Duration::from_secs(10)),
        ..Resending::at_speed(1000.0)
    };
    let sending = lab.tiki.resend(&outgoing, &how);
    let confirming = async {
        in_time("a first refusal", async {
            while lab.questions() < 1 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        // The gate's clock moves with Tiki's.
        lab.gate.advance(Duration::from_secs(60));
        lab.has("T-1", "1000", Status::Success);
    };
    let (tries, ()) = tokio::join!(sending, confirming);
    let tries = tries.unwrap();
    let statuses: Vec<_> = tries
        .iter()
        .map(|one| one.reply.as_ref().map(|reply| reply.status))
        .collect();
    assert_eq!(statuses.last(), Some(&Some(200)), "{statuses:?}");
    assert_eq!(statuses.first(), Some(&Some(503)), "{statuses:?}");
    assert_eq!(lab.backend.requests().len(), 1);
}
