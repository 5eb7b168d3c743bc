//! Each of Tiki's codes and each fault; and above all: a try that was taken and whose answer was lost
//! never ends as "refund the customer".

use std::time::Duration;

use tikigate::cli::fake_tiki::{Action, Form, Status, Wanted};

use super::lab::Lab;
use crate::support::in_time;

const FINAL: [u32; 5] = [1, 3, 4, 5, 6];
const FORMS: [Form; 2] = [Form::Code, Form::Partner];

/// What takes the call and loses its answer.
fn lost_answers() -> Vec<Action> {
    vec![
        Action::ApplyThenReset,
        Action::ApplyThenClose,
        Action::HalfAnswer,
        Action::Garbage { apply: true },
        Action::Huge {
            bytes: 2 << 20,
            apply: true,
        },
        Action::Http {
            status: 504,
            body: String::new(),
            apply: true,
        },
        Action::Code {
            code: 2,
            form: None,
            apply: true,
        },
        Action::Redirect {
            url: "http://127.0.0.1:1/".to_owned(),
            apply: true,
        },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_refusal_is_final_in_both_forms() {
    let lab = Lab::start().await;
    let mut number = 0;
    for form in FORMS {
        for code in FINAL {
            number += 1;
            let transaction = format!("T-{number}");
            lab.knows(&transaction, "1000");
            lab.order(
                Wanted::Ipn,
                Action::Code {
                    code,
                    form: Some(form),
                    apply: false,
                },
                1,
            );
            let id = lab.notice(&transaction, "1000", "SUCCESS").await;
            let failed = lab.settle(&id, "failed").await;
            assert_eq!(failed["outcome"], "refused", "{form:?} {code}");
            assert_eq!(failed["code"], code);
            assert_eq!((&failed["tries"], &failed["asks"]), (&1.into(), &0.into()));
        }
        // 2 is Tiki's own trouble.
        number += 1;
        let transaction = format!("T-{number}");
        lab.knows(&transaction, "1000");
        lab.order(
            Wanted::Ipn,
            Action::Code {
                code: 2,
                form: Some(form),
                apply: false,
            },
            1,
        );
        let id = lab.notice(&transaction, "1000", "SUCCESS").await;
        assert_eq!(lab.settle(&id, "delivered").await["tries"], 2);
    }
    assert_eq!(lab.gate.metric("tikigate_outbox_failed").await, 10.0);
    assert_eq!(
        lab.gate
            .metric("tikigate_outbox_attempts_total{result=\"refused\"}")
            .await,
        10.0
    );
}

/// The promise: whatever Tiki says to the second try of what it has taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_and_lost_is_never_refunded_whatever_the_second_try_is_told() {
    let lab = Lab::start().await;
    let mut number = 0;
    for lost in lost_answers() {
        for form in FORMS {
            for code in FINAL {
                number += 1;
                let transaction = format!("T-{number}");
                lab.knows(&transaction, "1000");
                lab.order(Wanted::Ipn, lost.clone(), 1);
                lab.order(
                    Wanted::Ipn,
                    Action::Code {
                        code,
                        form: Some(form),
                        apply: false,
                    },
                    1,
                );
                let id = lab.notice(&transaction, "1000", "SUCCESS").await;
                let delivery = lab.settle(&id, "delivered").await;
                assert_eq!(delivery["outcome"], "confirmed", "{lost:?} {form:?} {code}");
                assert_eq!(delivery["refund_customer"], false);
                assert_eq!(delivery["tries"], 2);
            }
        }
    }
    assert_eq!(number, 80);
}

/// The same, with a question that fails in its own ways first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_without_an_answer_is_asked_again() {
    let lab = Lab::start().await;
    for (number, trouble) in [
        Action::ResetAtOnce,
        Action::Http {
            status: 500,
            body: "{}".to_owned(),
            apply: false,
        },
        Action::Code {
            code: 2,
            form: None,
            apply: false,
        },
        Action::Code {
            code: 1,
            form: None,
            apply: false,
        },
        Action::Code {
            code: 4,
            form: None,
            apply: false,
        },
        Action::Garbage { apply: true },
        Action::Huge {
            bytes: 2 << 20,
            apply: true,
        },
        Action::HalfAnswer,
    ]
    .into_iter()
    .enumerate()
    {
        let transaction = format!("T-{number}");
        lab.knows(&transaction, "1000");
        lab.order(Wanted::Ipn, Action::ApplyThenReset, 1);
        lab.order(
            Wanted::Ipn,
            Action::Code {
                code: 3,
                form: None,
                apply: false,
            },
            1,
        );
        lab.order(Wanted::Status, trouble.clone(), 2);
        let id = lab.notice(&transaction, "1000", "SUCCESS").await;
        let delivery = lab.settle(&id, "delivered").await;
        assert_eq!(delivery["outcome"], "confirmed", "{trouble:?}");
        assert_eq!(delivery["asks"], 3, "{trouble:?}");
        lab.tiki.clear_orders();
    }
}

/// The other way round: it was not taken, and only Tiki's word on it makes it a refund.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_after_a_lost_try_counts_once_the_status_agrees() {
    let lab = Lab::start().await;
    let unclear = || Action::Http {
        status: 503,
        body: String::new(),
        apply: false,
    };
    let refused = || Action::Code {
        code: 5,
        form: None,
        apply: false,
    };
    for (number, (status, says)) in [
        (None, "3: it knows no such transaction"),
        (Some(Status::Cancelled), "6: it was cancelled"),
        (Some(Status::Failure), "the opposite final status"),
    ]
    .into_iter()
    .enumerate()
    {
        let transaction = format!("T-{number}");
        if let Some(status) = status {
            let mut known = tikigate::cli::fake_tiki::Transaction::pending(
                transaction.clone(),
                format!("p-{transaction}"),
                "1000",
                crate::support::gate::CLIENT,
            )
            .unwrap();
            known.status = status;
            lab.tiki.put_transaction(known);
        }
        lab.order(Wanted::Ipn, unclear(), 1);
        lab.order(Wanted::Ipn, refused(), 1);
        let id = lab.notice(&transaction, "1000", "SUCCESS").await;
        let failed = lab.settle(&id, "failed").await;
        assert_eq!(
            (&failed["outcome"], &failed["asks"]),
            (&"refused".into(), &1.into()),
            "{says}"
        );
    }
    // Pending is neither: it stays open.
    lab.knows("T-9", "1000");
    lab.order(Wanted::Ipn, unclear(), 1);
    lab.order(Wanted::Ipn, refused(), 1);
    let id = lab.notice("T-9", "1000", "SUCCESS").await;
    in_time("some questions", async {
        loop {
            let delivery = lab.delivery(&id).await;
            assert_eq!(delivery["state"], "pending", "{delivery:#}");
            if delivery["asks"].as_u64() >= Some(3) {
                break;
            }
            lab.go_on(&delivery);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// An answer that comes too late is one that was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_after_the_timeout_is_lost_and_asked_for() {
    let lab = Lab::with("retry_after = \"50ms\"").await;
    lab.knows("T-1", "1000");
    lab.order(Wanted::Ipn, Action::ApplyThenHang { ms: 4000 }, 1);
    lab.order(
        Wanted::Ipn,
        Action::Code {
            code: 6,
            form: None,
            apply: false,
        },
        1,
    );
    let id = lab.notice("T-1", "1000", "SUCCESS").await;
    let delivery = lab.settle(&id, "delivered").await;
    assert_eq!(delivery["outcome"], "confirmed");
    let words: Vec<_> = delivery["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["what"].clone())
        .collect();
    assert_eq!(words, ["posted", "no_answer", "refused", "asked_same"]);
}
