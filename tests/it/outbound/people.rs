//! The outbox by the admin API and by `tikigate outbox`.

use std::process::Command;

use serde_json::json;
use tikigate::cli::fake_tiki::{Action, Wanted};

use super::lab::{Lab, notice};

impl Lab {
    /// Runs `tikigate outbox`; its exit code and what it wrote.
    async fn cli(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tikigate"));
        command
            .arg("outbox")
            .args(arguments)
            .args(["--admin", &self.gate.admin_address().local_url()])
            .arg("--token-file")
            .arg(self.gate.directory().join("admin.token"))
            .args(["--time-zone", "Asia/Ho_Chi_Minh"]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_see_try_again_and_take_back() {
    let lab = Lab::start().await;
    lab.knows("T-1", "999");
    let id = lab.notice("T-1", "1000", "SUCCESS").await;
    lab.settle(&id, "failed").await;
    lab.tiki.stop().await;
    let waiting = lab.notice("T-2", "5", "PENDING").await;

    let (code, list, _) = lab.cli(&["list"]).await;
    assert_eq!(code, 0);
    let lines: Vec<_> = list.lines().collect();
    assert!(lines[0].starts_with("ID"), "{list}");
    assert!(
        lines[1].starts_with("out-1") && lines[1].contains("failed (refused, code 5)"),
        "{list}"
    );
    assert!(
        lines[2].starts_with("out-2") && lines[2].contains("+07:00"),
        "{list}"
    );
    let (_, list, _) = lab
        .cli(&["list", "--transaction", "p-T-2", "--format", "json"])
        .await;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["deliveries"].as_array().unwrap().len(), 1);
    let (_, none, _) = lab.cli(&["list", "--state", "cancelled"]).await;
    assert_eq!(none, "no deliveries\n");

    let (code, shown, _) = lab.cli(&["show", &id]).await;
    assert_eq!(code, 0);
    for words in [
        "T-1",
        "p-T-1",
        "refund the customer",
        &notice("T-1", "1000", "SUCCESS"),
        "refused",
        "code 5",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let (code, _, error) = lab.cli(&["show", "out-99"]).await;
    assert_eq!(code, 1);
    assert!(error.contains("there is no such delivery"), "{error}");

    // Tiki has corrected itself: a person has it tried again.
    lab.tiki.start_again().await.unwrap();
    lab.knows("T-1", "1000");
    let retry = [
        "retry",
        &id,
        "--reason",
        "Tiki has the right amount now",
        "--by",
        "linh",
    ];
    let (code, said, error) = lab.cli(&retry).await;
    assert_eq!(code, 0, "{error}");
    assert!(
        said.contains("out-1 is now pending: it is tried now"),
        "{said}"
    );
    let delivery = lab.settle(&id, "delivered").await;
    let word = delivery["events"]
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["what"] == "retry");
    let word = word.unwrap();
    assert!(
        word["by"].as_str().unwrap().ends_with("(for linh)"),
        "{word}"
    );
    assert_eq!(word["detail"], "Tiki has the right amount now");
    let (code, _, error) = lab.cli(&retry).await;
    assert_eq!(code, 1);
    assert!(error.contains("it is delivered, and stays so"), "{error}");

    let cancel = ["cancel", &waiting, "--reason", "the order is gone"];
    crate::support::in_time("it to be taken back", async {
        while lab.cli(&cancel).await.0 != 0 {}
    })
    .await;
    assert_eq!(lab.delivery(&waiting).await["state"], "cancelled");
    let (code, _, _) = lab.cli(&["cancel", &waiting]).await;
    assert_eq!(code, 64, "a reason is needed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_at_tiki_is_not_taken_back() {
    let lab = Lab::start().await;
    lab.knows("T-1", "1000");
    lab.order(Wanted::Ipn, Action::ApplyThenHang { ms: 500 }, 1);
    let id = lab.notice("T-1", "1000", "SUCCESS").await;
    lab.tiki.wait_for_calls(1).await;
    let body = json!({ "reason": "stop it" }).to_string();
    let answer = lab
        .admin_call("POST", &format!("/api/outbox/{id}/cancel"), &body)
        .await;
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (409, Some("in_flight"))
    );
    lab.settle(&id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_refuses_what_it_does_not_understand() {
    let lab = Lab::start().await;
    let id = lab.notice("T-1", "1000", "SUCCESS").await;
    let word = format!("/api/outbox/{id}/retry");
    for (method, path, body, status, code) in [
        ("GET", "/api/outbox?stat=x", "", 400, "malformed"),
        ("GET", "/api/outbox/rec-1", "", 404, "not_found"),
        ("GET", "/api/outbox/out-0x1", "", 404, "not_found"),
        ("GET", "/api/outbox/out-1/reopen", "", 404, "not_found"),
        ("POST", "/api/outbox", "{}", 405, "method_not_allowed"),
        ("GET", &word, "", 405, "method_not_allowed"),
        ("POST", &word, "{}", 422, "reason_required"),
        (
            "POST",
            &word,
            r#"{"reason":"x","force":true}"#,
            400,
            "malformed",
        ),
        (
            "POST",
            "/api/outbox/out-77/cancel",
            r#"{"reason":"x"}"#,
            404,
            "not_found",
        ),
    ] {
        let answer = lab.admin_call(method, path, body).await;
        assert_eq!(
            (answer.status, answer.error_code().as_deref()),
            (status, Some(code)),
            "{method} {path}"
        );
    }
    let lab = Lab::with("delivery = \"direct\"").await;
    let answer = lab.admin_call("GET", "/api/outbox", "").await;
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (404, Some("no_outbox"))
    );
    assert!(!lab.gate.metrics().await.contains("tikigate_outbox_pending"));
}
