//! The table of answers: a row of each refusal that a caller can bring about.

use std::time::Duration;

use serde_json::json;

use super::Stage;
use crate::support::backend::{Answer, Backend, Behaviour, Hold};
use crate::support::gate::{Call, SECRET, TestGate, refund, usual};
use crate::support::raw::{RawAnswer, RawClient};

/// The whole answer of a refusal.
fn assert_row(answer: &RawAnswer, status: u16, code: &str, message: &str) {
    assert_eq!(answer.status, status, "{code}: {}", answer.text());
    assert_eq!(
        answer.header("content-type"),
        Some("application/json"),
        "{code}"
    );
    let envelope = json!({ "data": null, "error": { "code": code, "message": message } });
    assert_eq!(answer.json(), envelope, "{code}");
    assert_eq!(
        answer.header("retry-after"),
        (status == 503).then_some("1"),
        "{code}"
    );
    assert_eq!(
        answer.header("allow"),
        (status == 405).then_some("POST"),
        "{code}"
    );
    assert_eq!(answer.header("idempotency-replayed"), None, "{code}");
    assert_eq!(answer.header("server"), None, "{code}");
}

#[tokio::test]
async fn each_refusal_has_its_status_code_and_sentence() {
    let small = (
        "payload = \"refund\"",
        "payload = \"refund\"\nbody_limit = \"1KiB\"",
    );
    let short = ("workers = 2", "workers = 2\nbody_timeout = \"200ms\"");
    let stage = Stage::with(&[small, short]).await;
    let gate = &stage.gate;
    let good = gate.signed("/tiki/refund", &refund("r-1", "1"));
    let old = gate.now() - Duration::from_secs(3600);
    let slow = good.clone().with("Content-Length", "1000");
    for (call, status, code, reason, message) in [
        (
            good.clone().to("/x"),
            404,
            "not_found",
            "",
            "there is no such route",
        ),
        (
            good.clone().by("PUT"),
            405,
            "method_not_allowed",
            "",
            "the route does not take this method",
        ),
        (
            good.clone().without("Host"),
            400,
            "malformed_request",
            "host",
            "the request's head can't be passed on",
        ),
        (
            good.clone().without("x-tikivip-signature"),
            401,
            "unauthenticated",
            "missing_header",
            "the call is not authenticated",
        ),
        (
            Call::post("/tiki/refund", &good.body, old),
            503,
            "out_of_window",
            "too_old",
            "the call's timestamp is outside the accepted time window",
        ),
        (
            good.clone().with("Content-Length", "1025"),
            413,
            "body_too_large",
            "",
            "the body is larger than the route allows",
        ),
        (
            good.clone().and("Content-Encoding", "gzip"),
            415,
            "unsupported_encoding",
            "",
            "the body must not be encoded",
        ),
        (
            gate.signed("/tiki/refund", "{"),
            400,
            "malformed_body",
            "",
            "the body is not valid JSON",
        ),
        (
            gate.signed("/tiki/refund", &refund("r-1", "-1")),
            422,
            "invalid_field",
            "",
            "`/transaction_amount` must be greater than 0",
        ),
        (
            slow,
            503,
            "body_timeout",
            "too_slow",
            "the body did not arrive in time, send again later",
        ),
    ] {
        let answer = gate.send(&call).await;
        assert_row(&answer, status, code, message);
        stage.check(code, &answer, (status, code, reason));
        let route = if code == "not_found" || matches!(status, 405) || reason == "host" {
            ""
        } else {
            "refund"
        };
        let line = stage.last_line();
        assert_eq!(line["http.route"].as_str().unwrap_or(""), route, "{line}");
        assert_eq!(refusals(&stage, code, reason).await, 1.0, "{code}");
    }
    let text = gate.log_text();
    assert!(!text.contains(SECRET) && !text.contains(good.header("x-tikivip-signature")));
    stage.still_passes().await;
}

/// `tikigate_refusals_total` of a code and a reason, over all routes.
async fn refusals(stage: &Stage, code: &str, reason: &str) -> f64 {
    let metrics = stage.gate.metrics().await;
    let of_both = [format!("error=\"{code}\""), format!("reason=\"{reason}\"")];
    metrics
        .lines()
        .filter(|line| line.starts_with("tikigate_refusals_total{"))
        .filter(|line| of_both.iter().all(|label| line.contains(label)))
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
        .sum()
}

#[tokio::test]
async fn outside_the_time_window_an_authentic_call_is_asked_to_come_again() {
    let stage = Stage::start().await;
    let minute = Duration::from_secs(60);
    let now = stage.gate.now();
    let milli = Duration::from_millis(1);
    for path in ["/tiki/refund", "/tiki/any"] {
        let body = refund("dated", "1");
        for (at, reason) in [
            (now - 5 * minute - milli, "too_old"),
            (now - 5000 * minute, "too_old"),
            (now + minute + milli, "too_far_ahead"),
            (now + 5000 * minute, "too_far_ahead"),
        ] {
            let call = Call::post(path, &body, at);
            let refused = (503, "out_of_window", reason);
            stage
                .refuses(&format!("{path} {reason}"), call.to_bytes(), refused)
                .await;
            assert_eq!(
                stage.last_line()["tikigate.client"],
                "wallet",
                "it is known who called"
            );
        }
    }
    stage.still_passes().await;
    for at in [now - 5 * minute, now + minute] {
        let answer = stage.gate.send(&Call::post("/tiki/any", "edge", at)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[tokio::test]
async fn a_key_with_other_money_fields_is_a_conflict() {
    let stage = Stage::start().await;
    let first = refund("r-1", "1");
    assert_eq!(stage.gate.post("/tiki/refund", &first).await.status, 200);
    let other = stage.gate.post("/tiki/refund", &refund("r-1", "2")).await;
    assert_row(
        &other,
        422,
        "conflict",
        "the idempotency key was used with other money fields",
    );
    stage.only_clean_calls(&[first.as_bytes()]);
}

#[tokio::test]
async fn a_signature_that_was_answered_is_replayed_where_nothing_else_tells() {
    let stage = Stage::start().await;
    let call = stage.gate.signed("/tiki/any", "x");
    assert_eq!(stage.gate.send(&call).await.status, 200);
    let again = stage.gate.send(&call).await;
    assert_row(&again, 409, "replayed", "the signature was used before");
    assert_eq!(stage.last_line()["tikigate.reason"], "answered");
    stage.only_clean_calls(&[b"x"]);
}

#[tokio::test]
async fn a_captured_refund_counts_on_no_other_route() {
    let stage = Stage::start().await;
    let call = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
    assert_eq!(stage.gate.send(&call).await.status, 200);
    let moved = stage.gate.send(&call.clone().to("/tiki/any")).await;
    assert_row(&moved, 409, "replayed", "the signature was used before");
    assert_eq!(stage.last_line()["tikigate.reason"], "other_route");
    stage.only_clean_calls(&[&call.body]);
}

const LIMITED: &str = "{ per_second = 2, burst = 4 }";
const SENTENCE: &str = "too many calls, send again later";

#[tokio::test]
async fn an_address_has_its_limit_before_anything_is_checked() {
    let unlimited = "per_address = { per_second = 100000, burst = 100000 }";
    let limited = format!("per_address = {LIMITED}");
    let stage = Stage::with(&[(unlimited, &limited)]).await;
    // Forged calls and no calls at all spend it; another name for the address doesn't help.
    for number in 0..4 {
        let call = stage
            .gate
            .signed("/tiki/any", "x")
            .without("x-tikivip-signature");
        let call = call.and("X-Forwarded-For", &format!("9.9.9.{number}"));
        let target = if number % 2 == 0 {
            "/tiki/any"
        } else {
            "/nowhere"
        };
        assert!(matches!(
            stage.gate.send(&call.to(target)).await.status,
            401 | 404
        ));
    }
    let good = stage
        .gate
        .signed("/tiki/any", "good")
        .and("X-Forwarded-For", "9.9.9.9");
    let answer = stage.gate.send(&good).await;
    assert_row(&answer, 503, "rate_limited", SENTENCE);
    stage.check("address", &answer, (503, "rate_limited", "address"));
    stage.gate.advance(Duration::from_millis(499));
    assert_eq!(stage.gate.send(&good).await.status, 503);
    stage.nothing_reached_the_backend("limited");
    stage.gate.advance(Duration::from_millis(1));
    assert_eq!(
        stage.gate.send(&good).await.status,
        200,
        "sent again, it is taken"
    );
    stage.only_clean_calls(&[b"good"]);
    assert_eq!(refusals(&stage, "rate_limited", "address").await, 2.0);
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_callers_address_has_its_own_limit() {
    let unlimited = "per_address = { per_second = 100000, burst = 100000 }";
    let limited = format!("per_address = {LIMITED}\ntrusted_proxies = [\"127.0.0.0/8\"]");
    let stage = Stage::with(&[(unlimited, &limited)]).await;
    let from = |address: &str| {
        stage
            .gate
            .signed("/tiki/any", "")
            .without("x-tikivip-signature")
            .and("X-Forwarded-For", address)
    };
    for number in 0..5 {
        let status = stage.gate.send(&from("9.9.9.1")).await.status;
        assert_eq!(status, if number < 4 { 401 } else { 503 });
    }
    assert_eq!(stage.gate.send(&from("9.9.9.2")).await.status, 401);
    // Only what the proxy itself wrote is believed: the last address.
    assert_eq!(stage.gate.send(&from("9.9.9.3, 9.9.9.1")).await.status, 503);
    for number in 0..5 {
        let address = format!("2001:db8:0:1::{number}");
        let status = stage.gate.send(&from(&address)).await.status;
        assert_eq!(
            status,
            if number < 4 { 401 } else { 503 },
            "one /64 is one caller"
        );
    }
    stage.nothing_reached_the_backend("unsigned");
}

#[tokio::test]
async fn a_clients_limit_is_its_own_and_a_forger_cannot_spend_it() {
    let unlimited = "rate = { per_second = 100000, burst = 100000 }";
    let stage = Stage::with(&[(unlimited, &format!("rate = {LIMITED}"))]).await;
    let forged = stage
        .gate
        .signed("/tiki/any", "x")
        .with("x-tikivip-signature", &"0".repeat(64));
    for _ in 0..10 {
        assert_eq!(stage.gate.send(&forged).await.status, 401);
    }
    let old = stage.gate.now() - Duration::from_secs(3600);
    for number in 0..10 {
        let dated = Call::post("/tiki/any", format!("dated {number}"), old);
        assert_eq!(
            stage.gate.send(&dated).await.error_code().as_deref(),
            Some("out_of_window")
        );
    }
    for number in 0..4 {
        assert_eq!(
            stage
                .gate
                .post("/tiki/any", &format!("{number}"))
                .await
                .status,
            200
        );
    }
    let good = stage.gate.signed("/tiki/any", "over");
    let answer = stage.gate.send(&good).await;
    assert_row(&answer, 503, "rate_limited", SENTENCE);
    assert_eq!(stage.last_line()["tikigate.reason"], "client");
    assert_eq!(stage.backend.requests().len(), 4);
    stage.gate.advance(Duration::from_millis(500));
    assert_eq!(
        stage.gate.send(&good).await.status,
        200,
        "sent again unchanged, it is taken"
    );
    assert_eq!(
        stage
            .gate
            .send(&stage.gate.signed("/tiki/any", "x"))
            .await
            .status,
        503
    );
}

#[tokio::test]
async fn calls_beyond_max_in_flight_are_overloaded() {
    let hold = Hold::new();
    let released = hold.clone();
    let backend = Backend::start(move |_| Behaviour::from(Answer::success()).held(&released)).await;
    let usual = usual(&backend.url()).replace("answer_within = \"1s\"", "answer_within = \"9s\"");
    let usual = usual.replace("settle_within = \"4s\"", "settle_within = \"10s\"");
    let gate =
        TestGate::with(&usual.replace("workers = 2", "workers = 2\nmax_in_flight = 2")).await;
    let mut waiting = Vec::new();
    for number in 0..2 {
        let mut client = RawClient::connect(gate.address()).await;
        client
            .send(
                gate.signed("/tiki/refund", &refund(&format!("r-{number}"), "1"))
                    .to_bytes(),
            )
            .await;
        waiting.push(client);
    }
    backend.wait_for_requests(2).await;
    let third = gate.signed("/tiki/refund", &refund("r-3", "1"));
    let answer = gate.send(&third).await;
    assert_row(
        &answer,
        503,
        "overloaded",
        "too much is running, send again later",
    );
    let line = gate
        .log()
        .into_iter()
        .rfind(|line| line["message"] == "request")
        .unwrap();
    assert_eq!(line["tikigate.reason"], "in_flight");
    let unsigned = gate
        .send(&third.clone().without("x-tikivip-signature"))
        .await;
    assert_eq!(
        unsigned.status, 503,
        "nothing is checked when there is no room"
    );
    assert_eq!(backend.requests().len(), 2);

    hold.release();
    for mut client in waiting {
        assert_eq!(client.read_answer().await.status, 200);
    }
    assert_eq!(
        gate.send(&third).await.status,
        200,
        "sent again, it is taken"
    );
}
