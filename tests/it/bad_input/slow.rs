//! Bodies that come late, in part, or before they were asked for; and what stands behind a refused call.

use std::time::Duration;

use super::{Refused, Stage};
use crate::support::gate::{Call, refund};
use crate::support::in_time;

const TOO_SLOW: Refused = (503, "body_timeout", "too_slow");
const BROKEN_OFF: Refused = (503, "body_timeout", "broken_off");

/// Half of a call's body is there.
fn half(call: &Call) -> Vec<u8> {
    let (half, _) = call.body.split_at(call.body.len() / 2);
    [call.head().as_bytes(), half].concat()
}

#[tokio::test]
async fn a_body_that_stops_is_given_up_and_its_connection_closed() {
    for changes in [
        ("workers = 2", "workers = 2\nbody_timeout = \"200ms\""),
        // Tiki's deadline ends it too, body_timeout being longer.
        (
            "connect_timeout = \"500ms\"\nanswer_within = \"1s\"",
            "connect_timeout = \"100ms\"\nanswer_within = \"200ms\"",
        ),
    ] {
        let stage = Stage::with(&[changes]).await;
        let call = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
        let chunked = call
            .clone()
            .without("Content-Length")
            .and("Transfer-Encoding", "chunked");
        for bytes in [
            half(&call),
            call.head().into_bytes(),
            format!("{}5\r\n{{", chunked.head()).into(),
        ] {
            let mut client = stage.gate.connect().await;
            client.send(bytes).await;
            stage.check("stopped", &client.read_answer().await, TOO_SLOW);
            assert!(client.is_closed().await, "what comes then is no request");
        }
        stage.still_passes().await;
    }
}

#[tokio::test]
async fn a_body_that_drips_gets_no_time_per_drop() {
    let stage = Stage::with(&[("workers = 2", "workers = 2\nbody_timeout = \"300ms\"")]).await;
    let call = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
    let mut client = stage.gate.connect().await;
    client.send(call.head()).await;
    let started = std::time::Instant::now();
    // All of it would take a minute, each drop little.
    let mut drops = call.body.iter();
    in_time("the end of its patience", async {
        while client.is_silent().await {
            client
                .send([*drops.next().expect("the gate gives up long before")])
                .await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(8));
    stage.check("dripping", &client.read_answer().await, TOO_SLOW);
    assert!(client.is_closed().await);
    stage.still_passes().await;
}

#[tokio::test]
async fn a_body_that_is_broken_off_is_not_forwarded() {
    let stage = Stage::start().await;
    let call = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
    let mut client = stage.gate.connect().await;
    client.send(half(&call)).await;
    client.end_sending().await;
    stage.check("half-closed", &client.read_answer().await, BROKEN_OFF);
    assert!(client.is_closed().await);

    let mut client = stage.gate.connect().await;
    client.send(half(&call)).await;
    drop(client);
    in_time("the log line of a caller who left", async {
        while requests_in_log(&stage) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(stage.last_line()["tikigate.reason"], "broken_off");
    assert_eq!(
        stage.gate.state("r-1").await,
        None,
        "the ledger never heard of it"
    );
    stage.still_passes().await;
}

fn requests_in_log(stage: &Stage) -> usize {
    stage
        .gate
        .log()
        .iter()
        .filter(|line| line["message"] == "request")
        .count()
}

#[tokio::test]
async fn the_body_is_asked_for_only_of_callers_who_may_send_one() {
    let stage = Stage::start().await;
    let good = stage
        .gate
        .signed("/tiki/refund", &refund("r-1", "1"))
        .and("Expect", "100-continue");
    let status = Call::get("/tiki/order-status", stage.gate.now());
    for (what, call, refused) in [
        (
            "no signature",
            good.clone().without("x-tikivip-signature"),
            (401, "unauthenticated", "missing_header"),
        ),
        (
            "a stranger",
            good.clone().with("x-tikivip-client-id", "x"),
            (401, "unauthenticated", "unknown_client"),
        ),
        (
            "seconds",
            good.clone().with("x-tikivip-timestamp", "1667980513"),
            (401, "unauthenticated", "bad_timestamp"),
        ),
        (
            "no route",
            good.clone().to("/tiki/refund/"),
            (404, "not_found", ""),
        ),
        (
            "a query",
            good.clone().to("/tiki/refund?"),
            (404, "not_found", ""),
        ),
        (
            "a method",
            good.clone().by("PUT"),
            (405, "method_not_allowed", ""),
        ),
        (
            "two hosts",
            good.clone().and("Host", "x"),
            (400, "malformed_request", "host"),
        ),
        (
            "too large",
            good.clone().with("Content-Length", "65537"),
            (413, "body_too_large", ""),
        ),
        (
            "packed",
            good.clone().and("Content-Encoding", "gzip"),
            (415, "unsupported_encoding", ""),
        ),
        (
            "a body on GET",
            status
                .and("Expect", "100-continue")
                .and("Content-Length", "1"),
            (400, "malformed_request", "unexpected_body"),
        ),
    ] {
        let mut client = stage.gate.connect().await;
        client.send(call.head()).await;
        let answer = client.read_answer().await;
        assert_ne!(answer.status, 100, "{what}: the body was asked for");
        stage.check(what, &answer, refused);
        client.send(&call.body).await;
        assert!(
            client.is_closed().await,
            "{what}: its body could come as a request"
        );
    }

    stage.nothing_reached_the_backend("before");
    let mut client = stage.gate.connect().await;
    client.send(good.head()).await;
    assert_eq!(client.read_answer().await.status, 100);
    client.send(&good.body).await;
    assert_eq!(client.read_answer().await.status, 200);
    stage.only_clean_calls(&[&good.body]);
}

#[tokio::test]
async fn behind_a_refused_call_the_next_is_read_whole_or_not_at_all() {
    let stage = Stage::start().await;
    let good = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
    // A good call as the body of another one: nobody may take it for a call.
    let inside = stage
        .gate
        .signed("/tiki/refund", &refund("smuggled", "1"))
        .to_bytes();
    let inside = String::from_utf8(inside).unwrap();
    let with_inside = |path: &str| stage.gate.signed(path, &inside);
    let mut passed = Vec::new();
    for (number, (what, call, status, goes_on)) in [
        (
            "no route, no body",
            Call::get("/nowhere", stage.gate.now()),
            404,
            true,
        ),
        (
            "a wrong method, no body",
            Call::get("/tiki/refund", stage.gate.now()),
            405,
            true,
        ),
        ("no JSON", with_inside("/tiki/refund"), 400, true),
        (
            "a wrong field",
            stage.gate.signed("/tiki/refund", "{}"),
            422,
            true,
        ),
        ("no route", with_inside("/nowhere"), 404, false),
        (
            "a wrong method",
            with_inside("/tiki/refund").by("PUT"),
            405,
            false,
        ),
        (
            "no signature",
            with_inside("/tiki/refund").without("x-tikivip-signature"),
            401,
            true,
        ),
        (
            "packed",
            with_inside("/tiki/refund").and("Content-Encoding", "gzip"),
            415,
            false,
        ),
        ("two hosts", good.clone().and("Host", "x"), 400, false),
        (
            "a length with a zero",
            good.clone().with("Content-Length", "0122"),
            400,
            false,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let body = refund(&format!("behind-{number}"), "1");
        let next = stage.gate.signed("/tiki/refund", &body);
        let mut client = stage.gate.connect().await;
        client
            .send([call.to_bytes(), next.to_bytes()].concat())
            .await;
        assert_eq!(client.read_answer().await.status, status, "{what}");
        let second = client
            .read_answer_or_end()
            .await
            .map(|answer| answer.status);
        assert_eq!(second, goes_on.then_some(200), "{what}");
        if goes_on {
            passed.push(body);
        } else {
            assert!(client.is_closed().await, "{what}");
        }
    }
    let bodies: Vec<&[u8]> = passed.iter().map(String::as_bytes).collect();
    stage.only_clean_calls(&bodies);
    assert_eq!(stage.gate.state("smuggled").await, None);
}

#[tokio::test]
async fn good_calls_in_a_row_are_answered_in_their_order() {
    let stage = Stage::start().await;
    let bodies: Vec<String> = (0..5)
        .map(|number| refund(&format!("r-{number}"), "1"))
        .collect();
    let bytes: Vec<u8> = bodies
        .iter()
        .flat_map(|body| stage.gate.signed("/tiki/refund", body).to_bytes())
        .collect();
    let mut client = stage.gate.connect().await;
    client.send(bytes).await;
    for body in &bodies {
        let answer = client.read_answer().await;
        assert_eq!(answer.status, 200, "{body}");
    }
    let bodies: Vec<&[u8]> = bodies.iter().map(String::as_bytes).collect();
    stage.only_clean_calls(&bodies);
}
