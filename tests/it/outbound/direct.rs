//! Calls that are passed on: signed, once, and answered with what Tiki answers.

use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;
use tikigate::cli::fake_tiki::{Action, Status, Wanted};

use super::lab::{Lab, config, notice, post};
use crate::support::backend::{Answer, Backend, Behaviour};
use crate::support::gate::{CLIENT, OTHER_CLIENT, SECRET, TestGate};
use crate::support::raw::exchange;

#[derive(Deserialize)]
struct Vector {
    name: String,
    client_id: String,
    secret: String,
    timestamp: String,
    over: String,
    signed: String,
    signature: String,
}

/// Every published value, and every other one of the usual client's, off the wire.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_vectors_leave_the_listener_as_they_are_published() {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../../data/signature.json")).unwrap();
    let mut vectors: Vec<_> = vectors
        .into_iter()
        .filter(|vector| vector.client_id == CLIENT && vector.secret == SECRET)
        .collect();
    vectors.sort_by(|one, other| one.timestamp.cmp(&other.timestamp));
    assert!(vectors.len() >= 10);
    assert!(vectors.iter().any(|vector| vector.over == "path"));
    let tiki = Backend::start(|_| Answer::json(200, r#"{"code":0}"#).into()).await;
    let base_url = format!("{}/miniapp/tikivip/", tiki.url());
    let text = config(&tiki.url(), &base_url, "body_limit = \"1MiB\"", "");
    let at =
        |vector: &Vector| UNIX_EPOCH + Duration::from_millis(vector.timestamp.parse().unwrap());
    let gate = TestGate::at(&text, at(&vectors[0])).await;
    for (number, vector) in vectors.iter().enumerate() {
        if let Ok(ahead) = at(vector).duration_since(gate.now()) {
            gate.advance(ahead);
        }
        let request = match vector.over.as_str() {
            "path" => format!(
                "GET {} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n",
                vector.signed
            ),
            _ => post("/some/call", &[], &vector.signed),
        };
        let answer = exchange(gate.outbound_address(), request).await;
        assert_eq!(answer.status, 200, "{}: {}", vector.name, answer.text());
        let seen = &tiki.wait_for_requests(number + 1).await[number];
        assert_eq!(
            seen.header("x-tikivip-signature"),
            Some(&*vector.signature),
            "{}",
            vector.name
        );
        assert_eq!(seen.header("x-tikivip-timestamp"), Some(&*vector.timestamp));
        assert_eq!(seen.header("x-tikivip-client-id"), Some(CLIENT));
        if vector.over == "path" {
            assert_eq!(seen.target(), format!("/miniapp/tikivip{}", vector.signed));
        } else {
            assert_eq!(seen.target(), "/miniapp/tikivip/some/call");
            assert_eq!(seen.text(), vector.signed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_stand_in_believes_each_kind_of_call() {
    let lab = Lab::with("delivery = \"direct\"").await;
    lab.knows("T-1", "1000");
    let answer = lab
        .post("/payment/ipn", &notice("T-1", "1000", "SUCCESS"))
        .await;
    assert_eq!(
        (answer.status, answer.json()["code"].as_i64()),
        (200, Some(0))
    );
    assert_eq!(answer.header("x-tikigate-attempts"), Some("1"));
    let (transaction, _) = lab.tiki.transaction("T-1").unwrap();
    assert_eq!(transaction.status, Status::Success);
    let answer = lab.get("/transaction?tiki_transaction_id=T-1").await;
    assert_eq!(answer.json()["data"]["status"], "SUCCESS");
    let answer = lab.post("/webview", r#"{"customer":"1"}"#).await;
    assert!(
        answer.json()["data"]["url"]
            .as_str()
            .unwrap()
            .starts_with("https://")
    );
    let answer = lab.get("/something/else?a=%C4%91&b=x+y").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = lab.seen();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|call| call.signature == "ok"), "{seen:#?}");
    assert_eq!(
        lab.tiki.counts().connections,
        1,
        "one connection is kept open"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_comes_back_unchanged_but_for_its_connection() {
    let tiki = Backend::start(|seen| match seen.target() {
        "/v/odd" => Answer::new(418)
            .header("Content-Type", "text/plain; charset=x")
            .header("Set-Cookie", "a=b")
            .header("X-One", "1")
            .header("X-One", "2")
            .header("Keep-Alive", "timeout=5")
            .header("Connection", "x-hop")
            .header("X-Hop", "y")
            .body("\u{1f4b8} \0 as it is")
            .into(),
        "/v/moved" => Answer::new(302)
            .header("Location", "http://127.0.0.1:1/elsewhere")
            .into(),
        _ => Answer::json(503, r#"{"code":2,"message":"later"}"#)
            .chunked()
            .into(),
    })
    .await;
    let text = config(&tiki.url(), &format!("{}/v", tiki.url()), "", "");
    let gate = TestGate::with(&text).await;
    let send = |path: &'static str| exchange(gate.outbound_address(), post(path, &[], "{}"));

    let answer = send("/odd").await;
    assert_eq!(answer.status, 418);
    assert_eq!(answer.text(), "\u{1f4b8} \0 as it is");
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=x"));
    assert_eq!(answer.header("set-cookie"), Some("a=b"));
    let ones: Vec<_> = answer.head.all("x-one");
    assert_eq!(ones, ["1", "2"]);
    assert_eq!(
        (answer.header("keep-alive"), answer.header("x-hop")),
        (None, None)
    );

    let answer = send("/moved").await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (302, Some("http://127.0.0.1:1/elsewhere"))
    );
    let answer = send("/other").await;
    assert_eq!(
        (answer.status, answer.text()),
        (503, r#"{"code":2,"message":"later"}"#)
    );
    assert_eq!(
        tiki.requests().len(),
        3,
        "an answer is an answer: nothing is sent again, or elsewhere"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_belongs_to_the_call_goes_along() {
    let lab = Lab::with("delivery = \"direct\"\nforward_headers = [\"x-shop\"]").await;
    let headers = [
        ("X-Tikivip-Signature", "00"),
        ("X-Tikivip-Timestamp", "1"),
        ("X-Tikivip-Client-Id", "somebody"),
        ("X-Tiniapp-Signature", "00"),
        ("Authorization", "Bearer x"),
        ("Cookie", "a=b"),
        ("X-Shop", "7"),
        ("X-Other", "8"),
        (
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
    ];
    let answer = lab.send(post("/webview", &headers, "{}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = &lab.seen()[0];
    assert_eq!(seen.signature, "ok");
    let mut names: Vec<_> = seen
        .headers
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "content-length",
            "content-type",
            "host",
            "traceparent",
            "x-shop",
            "x-tikivip-client-id",
            "x-tikivip-signature",
            "x-tikivip-timestamp",
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_caller_names_the_account() {
    let lab = Lab::with("delivery = \"direct\"").await;
    let send = |id: &'static str| lab.send(post("/webview", &[("X-Tikigate-Client-Id", id)], "{}"));
    assert_eq!(send(OTHER_CLIENT).await.status, 200);
    assert_eq!(send(CLIENT).await.status, 200);
    let answer = send("nobody").await;
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (403, Some("unknown_client"))
    );
    // A name is not an id.
    assert_eq!(send("wallet").await.status, 403);
    let clients: Vec<_> = lab
        .seen()
        .into_iter()
        .map(|seen| seen.client.unwrap())
        .collect();
    assert_eq!(clients, [OTHER_CLIENT, CLIENT]);
}

/// What could be done twice is sent once: a webview call of which a byte may have gone out ends here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webview_call_is_never_sent_again_by_itself() {
    let lab = Lab::start().await;
    for action in [
        Action::ApplyThenReset,
        Action::ApplyThenClose,
        Action::HalfAnswer,
        Action::ResetAtOnce,
    ] {
        let before = lab.tiki.counts().webview;
        lab.order(Wanted::Webview, action.clone(), 1);
        let answer = lab.post("/webview", "{}").await;
        assert_eq!(answer.status, 502, "{action:?}: {}", answer.text());
        assert_eq!(answer.error_code().as_deref(), Some("upstream_failed"));
        assert_eq!(answer.header("x-tikigate-attempts"), Some("1"));
        assert_eq!(lab.tiki.counts().webview, before + 1, "{action:?}");
    }
    lab.order(Wanted::Webview, Action::ApplyThenHang { ms: 4000 }, 1);
    let answer = lab.post("/webview", "{}").await;
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (504, Some("upstream_timeout"))
    );
    assert_eq!(answer.header("x-tikigate-attempts"), Some("1"));

    // Certain that nothing was sent: tried again, and told so.
    lab.tiki.stop().await;
    let answer = lab.post("/webview", "{}").await;
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (502, Some("upstream_unreachable"))
    );
    assert_eq!(answer.header("x-tikigate-attempts"), Some("3"));
    lab.tiki.start_again().await.unwrap();
    let answer = lab.post("/webview", "{}").await;
    assert_eq!(
        (answer.status, answer.header("x-tikigate-attempts")),
        (200, Some("1"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_is_asked_again() {
    let lab = Lab::start().await;
    lab.knows("T-1", "1000");
    lab.order(Wanted::Status, Action::ResetAtOnce, 2);
    let answer = lab.get("/transaction?tiki_transaction_id=T-1").await;
    assert_eq!(
        (answer.status, answer.header("x-tikigate-attempts")),
        (200, Some("3"))
    );
    lab.order(Wanted::Status, Action::ResetAtOnce, 3);
    let answer = lab.get("/transaction?tiki_transaction_id=T-1").await;
    assert_eq!(
        (answer.status, answer.header("x-tikigate-attempts")),
        (502, Some("3"))
    );
}

/// A kept connection that Tiki has closed meanwhile costs no call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_closed_meanwhile_is_not_used() {
    let tiki = Backend::start(|_| Behaviour::then_close(Answer::json(200, r#"{"code":0}"#))).await;
    let gate = TestGate::with(&config(&tiki.url(), &tiki.url(), "", "")).await;
    for number in 0..20 {
        let answer = exchange(gate.outbound_address(), post("/webview", &[], "{}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        tiki.wait_for_end_of(number).await;
    }
}

/// The same secret signs both directions: what left signed must not come in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_of_the_gates_own_counts_on_no_route() {
    let lab = Lab::with("delivery = \"direct\"").await;
    lab.knows("T-1", "1000");
    let body = notice("T-1", "1000", "SUCCESS");
    lab.post("/payment/ipn", &body).await;
    let seen = &lab.seen()[0];
    let signature: String = seen
        .headers
        .iter()
        .filter(|(name, _)| name.to_ascii_lowercase().starts_with("x-tikivip-"))
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let request = format!(
        "POST /tiki/ipn HTTP/1.1\r\nHost: gate.test\r\nContent-Type: application/json\r\n{signature}\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = lab.gate.send_bytes(request).await;
    assert_eq!(
        (answer.status, answer.error_code().as_deref()),
        (409, Some("replayed"))
    );
    assert_eq!(lab.backend.bytes(), b"");
    // The same message signed by Tiki itself is another signature.
    lab.gate.advance(Duration::from_secs(1));
    assert_eq!(lab.gate.post("/tiki/ipn", &body).await.status, 200);
}
