//! What a backend may not ask for: each with its code, and nothing of it leaves.

use std::time::Duration;

use super::lab::{Lab, notice, post};
use crate::support::raw::RawClient;

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n").into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_call_is_refused_by_name_and_goes_nowhere() {
    let lab = Lab::with("body_limit = \"1KiB\"\npaths = [\"payment/ipn\", \"/transaction\", \"webview\", \"a%2Fb\"]").await;
    let ipn = |body: &str| post("/payment/ipn", &[], body).into_bytes();
    let good = notice("T", "1", "SUCCESS");
    let but = |from: &str, to: &str| {
        assert!(good.contains(from));
        ipn(&good.replacen(from, to, 1))
    };
    let table: Vec<(Vec<u8>, u16, &str, &str)> = vec![
        (ipn(""), 400, "malformed_body", ""),
        (ipn("tiki_transaction_id=T"), 400, "malformed_body", ""),
        (ipn("[]"), 400, "malformed_body", ""),
        (but("\"status\"", "\"transaction_id\""), 400, "malformed_body", "twice"),
        (but("\"tiki_transaction_id\":\"T\",", ""), 400, "invalid_field", "tiki_transaction_id"),
        (but("\"T\"", "7"), 400, "invalid_field", "tiki_transaction_id"),
        (but("\"T\"", "\"\""), 400, "invalid_field", "tiki_transaction_id"),
        (but("\"p-T\"", "null"), 400, "invalid_field", "transaction_id"),
        (but(":1,", ":\"1\","), 400, "invalid_field", "transaction_amount"),
        (but(":1,", ":1e41,"), 400, "invalid_field", "transaction_amount"),
        (but(":1,", ":-1,"), 400, "invalid_field", "transaction_amount"),
        (but(":1,", ":1.0000000000000000000000000000000000000000001,"), 400, "invalid_field", "transaction_amount"),
                (
            but(":1,", ":1e40,"),
            400,
            "invalid_field",
            "transaction_amount",
        ),
        (
            but(":1,", ":1e-40,"),
            400,
            "invalid_field",
            "transaction_amount",
        ),
(but("SUCCESS", "PAID"), 400, "invalid_field", "status"),
        (but("\"status\"", "\"reason\":\"r\",\"request_id\":\"i\",\"status\""), 400, "invalid_field", "request_id"),
        (ipn(&good.replace("\"T\"", &format!("\"{}\"", "T".repeat(1024)))), 413, "body_too_large", "body_limit"),
        (post("/payment/ipn?x=1", &[], &good).into_bytes(), 400, "bad_target", "no query"),
        (post("/payment/ipn", &[("Content-Encoding", "gzip")], &good).into_bytes(), 415, "unsupported_media_type", ""),
        (post("/payment/ipn", &[("Origin", "http://page")], &good).into_bytes(), 400, "malformed_request", "web pages"),
        (post("/payment/ipn", &[("Upgrade", "h2c")], &good).into_bytes(), 400, "malformed_request", ""),
        (post("/payment/ipn", &[("X-Tikigate-Client-Id", "x")], &good).into_bytes(), 403, "unknown_client", ""),
        (post("/payment/ipn", &[("X-Tikigate-Client-Id", "x"), ("X-Tikigate-Client-Id", "y")], &good).into_bytes(), 400, "malformed_request", "twice"),
        (get("/payment/ipn"), 405, "method_not_allowed", "POST"),
        (post("/transaction", &[], "{}").into_bytes(), 405, "method_not_allowed", "GET"),
        (get("/webview"), 405, "method_not_allowed", "POST"),
        (b"DELETE /a%2Fb HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n".to_vec(), 405, "method_not_allowed", "GET, POST"),
        (get("/other"), 404, "not_found", "outbound.paths"),
        (get("/"), 404, "not_found", ""),
        (get("/payment/ipn/"), 404, "not_found", ""),
        (get("http://elsewhere/transaction"), 400, "malformed_request", "path"),
        (get("/transaction?id=\u{111}"), 400, "bad_target", "%XX"),
        (b"GET /transaction HTTP/1.1\r\nHost: gate\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}".to_vec(), 400, "malformed_request", "no body"),
    ];
    for (request, status, code, words) in table {
        let shown = String::from_utf8_lossy(&request).into_owned();
        let answer = lab.send(request).await;
        assert_eq!(
            (answer.status, answer.error_code().as_deref()),
            (status, Some(code)),
            "{shown}: {}",
            answer.text()
        );
        assert!(answer.text().contains(words), "{shown}: {}", answer.text());
    }
    // The HTTP library refuses a space in a target by itself.
    assert_eq!(lab.send(get("/transaction?id=a b")).await.status, 400);
    assert_eq!(lab.seen().len(), 0, "nothing of it left");
    assert_eq!(
        lab.admin("/api/outbox").await["deliveries"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    assert_eq!(lab.post("/payment/ipn", &good).await.status, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_target_leads_out_of_the_base_url() {
    let lab = Lab::start().await;
    for target in [
        "/../secret",
        "/a/../../secret",
        "/%2e%2e/secret",
        "/%2E./secret",
        "/a/%2e%2e%2f%2e%2e%2fsecret",
        "/a/..%5csecret",
        "/a\\..\\secret",
        "/./a",
        // These would go past the outbox.
        "/payment/%69pn",
        "/payment%2Fipn",
        "/payment/ipn/",
        "//payment/ipn",
    ] {
        let answer = lab.get(target).await;
        assert_eq!(
            (answer.status, answer.error_code().as_deref()),
            (400, Some("bad_target")),
            "{target}"
        );
    }
    assert_eq!(lab.seen().len(), 0);
    // Dots that are no segments are names like any others.
    assert_eq!(lab.get("/a..b/.c?x=../y").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_no_token_has_nothing_signed() {
    let lab = Lab::with("token = { file = \"secret\" }").await;
    let secret = crate::support::gate::SECRET;
    let good = format!("Bearer {secret}");
    for headers in [
        &[][..],
        &[("Authorization", "Bearer wrong")],
        &[("Authorization", secret)],
        &[("Authorization", "Basic eDp5")],
        &[("Authorization", &*good), ("Authorization", &*good)],
    ] {
        let answer = lab.send(post("/webview", headers, "{}")).await;
        assert_eq!(
            (answer.status, answer.error_code().as_deref()),
            (401, Some("unauthenticated")),
            "{headers:?}"
        );
    }
    assert_eq!(lab.seen().len(), 0);
    let answer = lab
        .send(post("/webview", &[("Authorization", &good)], "{}"))
        .await;
    assert_eq!(answer.status, 200);
    let seen = &lab.seen()[0];
    assert!(
        seen.headers
            .iter()
            .all(|(_, value)| !value.contains(secret)),
        "the token stays here"
    );
    assert!(!lab.gate.log_text().contains(secret));
}

/// A backend that floods the listener is told to come again, and nothing of it is stored half.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_answered_503_and_leaves_nothing_half() {
    let lab = Lab::with("max_in_flight = 4").await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        // A body that doesn't come holds a place.
        let mut client = RawClient::connect(lab.gate.outbound_address()).await;
        client
            .send("POST /webview HTTP/1.1\r\nHost: gate\r\nContent-Length: 10\r\n\r\n{")
            .await;
        slow.push(client);
    }
    let mut refused = 0;
    for number in 0..50 {
        let answer = lab
            .post(
                "/payment/ipn",
                &notice(&format!("T-{number}"), "1", "SUCCESS"),
            )
            .await;
        match answer.status {
            503 => {
                assert_eq!(answer.error_code().as_deref(), Some("overloaded"));
                assert_eq!(answer.header("retry-after"), Some("1"));
                refused += 1;
            }
            202 => {}
            _ => panic!("{}", answer.text()),
        }
    }
    assert!(refused > 0);
    let stored = lab.admin("/api/outbox").await["deliveries"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(stored + refused, 50);
    drop(slow);
    let over = async {
        while lab.post("/webview", "{}").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    crate::support::in_time("the places to be free again", over).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbox_that_is_full_says_so_and_forgets_only_what_is_over() {
    // Room for some 20 notices of three KiB and a bit.
    let lab = Lab::with("max_bytes = \"64KiB\"\nretry_after = \"1h\"").await;
    lab.tiki.stop().await;
    let mut stored = Vec::new();
    let full = loop {
        let id = format!("T-{}", stored.len());
        let answer = lab.post("/payment/ipn", &notice(&id, "1", "SUCCESS")).await;
        if answer.status != 202 {
            break answer;
        }
        stored.push(id);
    };
    assert_eq!(
        (full.status, full.error_code().as_deref()),
        (503, Some("outbox_full"))
    );
    assert_eq!(full.header("retry-after"), Some("10"));
    assert!((18..22).contains(&stored.len()), "{}", stored.len());
    // What is stored already is no more of it.
    assert_eq!(
        lab.post("/payment/ipn", &notice("T-0", "1", "SUCCESS"))
            .await
            .status,
        202
    );
    // A person's word makes room.
    let word = r#"{"reason":"not needed"}"#;
    let cancel = || lab.admin_call("POST", "/api/outbox/out-1/cancel", word);
    crate::support::in_time("the first try to end", async {
        while cancel().await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(
        lab.post("/payment/ipn", &notice("T-new", "1", "SUCCESS"))
            .await
            .status,
        202
    );
    assert_eq!(
        lab.post("/payment/ipn", &notice("T-newer", "1", "SUCCESS"))
            .await
            .status,
        503
    );
}
