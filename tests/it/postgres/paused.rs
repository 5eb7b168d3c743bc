//! A gate that is stopped past its lease, and goes on later.

use serde_json::json;

use super::*;

/// Two gates, of which the first is stopped at a step of its first attempt.
struct Scene {
    backend: Backend,
    paused: Gate,
    other: Gate,
}

impl Scene {
    async fn stopped_at(step: &str) -> Self {
        let url = shared_url().await;
        let backend = generous().await;
        let paused = Gate::stopping_at(step, &url, &backend.url()).await;
        let other = Gate::start(&url, &backend.url()).await;
        paused.send_unheard(&refund_call("r-1"));
        other.wait_for_state("r-1", "claimed").await;
        let answer = other.send(&refund_call("r-1")).await;
        assert_eq!(answer.error_code().as_deref(), Some("in_progress"));
        let held = other.wait_for_state("r-1", "unknown").await;
        assert_eq!(held["attempt"], 1);
        let answer = other.send(&refund_call("r-1")).await;
        assert_eq!(answer.error_code().as_deref(), Some("outcome_unknown"));
        Self {
            backend,
            paused,
            other,
        }
    }

    async fn declare_not_applied(&self, force: bool) -> RawAnswer {
        let record = self.other.record("r-1").await.unwrap();
        let word = json!({
            "verdict": "not_applied", "reason": "not in the bank's list", "force": force,
            "expected": {
                "state": record["state"], "attempt": record["attempt"], "version": record["version"],
            },
        });
        let target = format!("/api/ledger/{}/resolve", record["id"].as_str().unwrap());
        self.other.ask("POST", &target, Some(&word)).await
    }

    /// A person says that it was not applied, with force, and Tiki's next try is sent.
    async fn send_again(&self) {
        let refused = self.declare_not_applied(false).await;
        assert_eq!(refused.error_code().as_deref(), Some("may_still_run"));
        let forced = self.declare_not_applied(true).await;
        assert_eq!(forced.status, 200, "{}", forced.text());
        let answer = self.other.send(&refund_call("r-1")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// The paused gate has said what became of its attempt.
    async fn wait_for_its_word(&self, cause: &str) {
        let record = self.other.record("r-1").await.unwrap();
        let target = format!("/api/ledger/{}", record["id"].as_str().unwrap());
        until(&format!("the paused gate's {cause}"), async || {
            let shown = self.other.ask("GET", &target, None).await.json();
            let events = shown["data"]["events"].as_array()?.clone();
            events.into_iter().find(|event| event["cause"] == cause)
        })
        .await;
    }

    fn attempts_sent(&self) -> Vec<String> {
        let requests = self.backend.requests();
        let attempt = |seen: &crate::support::backend::Seen| {
            seen.header("x-tikigate-attempt").unwrap().to_owned()
        };
        requests.iter().map(attempt).collect()
    }
}

#[tokio::test]
async fn before_its_check_it_sends_nothing_any_more() {
    let scene = Scene::stopped_at("after_claim").await;
    scene.send_again().await;
    scene.paused.go_on();
    scene.wait_for_its_word("superseded:not_sent").await;
    assert_eq!(scene.attempts_sent(), ["2"]);
    let record = scene.other.record("r-1").await.unwrap();
    assert_eq!(
        (&record["state"], &record["alarmed"]),
        (&json!("done"), &json!(false))
    );
    // It takes new refunds as before.
    let answer = until("the paused gate's new lease", async || {
        let answer = scene.paused.send(&refund_call("r-2")).await;
        (answer.status == 200).then_some(answer)
    });
    answer.await;
    assert_eq!(refunded(&scene.backend), ["r-1", "r-2"]);
}

#[tokio::test]
async fn before_its_first_byte_it_sends_nothing_any_more() {
    let scene = Scene::stopped_at("before_first_byte").await;
    scene.send_again().await;
    scene.paused.go_on();
    scene.wait_for_its_word("superseded:not_sent").await;
    assert_eq!(scene.attempts_sent(), ["2"]);
}

#[tokio::test]
async fn what_it_did_not_send_is_released_when_it_says_so() {
    let scene = Scene::stopped_at("before_first_byte").await;
    scene.paused.go_on();
    scene.wait_for_its_word("not_sent").await;
    let answer = scene.other.send(&refund_call("r-1")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(scene.attempts_sent(), ["2"]);
}

#[tokio::test]
async fn a_late_answer_settles_its_own_attempt() {
    let scene = Scene::stopped_at("after_answer").await;
    scene.paused.go_on();
    scene.other.wait_for_state("r-1", "done").await;
    let answer = scene.other.send(&refund_call("r-1")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("idempotency-replayed"), Some("true"));
    assert_eq!(scene.attempts_sent(), ["1"]);
}

#[tokio::test]
async fn a_late_answer_after_a_newer_attempt_is_an_alarm() {
    let scene = Scene::stopped_at("after_answer").await;
    scene.send_again().await;
    scene.paused.go_on();
    scene.wait_for_its_word("alarm:success").await;
    let metrics = scene.paused.ask("GET", "/metrics", None).await;
    let alarms = metrics
        .text()
        .lines()
        .find(|line| line.starts_with("tikigate_ledger_alarms_total"));
    assert_eq!(alarms, Some("tikigate_ledger_alarms_total 1"));
    // Money moved twice, by the person's word; the final answer stays what it was.
    assert_eq!(scene.attempts_sent(), ["1", "2"]);
    let record = scene.other.record("r-1").await.unwrap();
    assert_eq!(
        (&record["state"], &record["alarmed"]),
        (&json!("done"), &json!(true))
    );
    assert_eq!(scene.other.send(&refund_call("r-1")).await.status, 200);
    assert_eq!(scene.attempts_sent(), ["1", "2"]);
}
