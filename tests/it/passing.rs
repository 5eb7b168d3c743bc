//! What passes, and what the backend gets to see of it.

use std::time::Duration;

use tikigate::ledger::State;
use tikigate::tiki::Family;

use crate::support::backend::{Answer, Backend};
use crate::support::gate::{
    CLIENT, Call, OTHER_CLIENT, OTHER_SECRET, SECRET, TestGate, ipn, ipn_key, order_ipn, refund,
    usual,
};
use crate::support::raw::exchange;

const SUCCESS: &str = r#"{"data":{"status":"success"}}"#;

async fn agreeable() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

#[tokio::test]
async fn a_signed_refund_reaches_the_backend_once_and_clean() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    let body = refund("r-1", "150000");

    let answer = gate.post("/tiki/refund", &body).await;
    assert_eq!((answer.status, answer.text()), (200, SUCCESS));
    assert_eq!(answer.header("idempotency-replayed"), None);

    let seen = &backend.requests()[0];
    assert_eq!(
        (seen.method(), seen.target(), seen.text()),
        ("POST", "/tiki/refund", &*body)
    );
    assert_eq!(seen.header("idempotency-key"), Some("r-1"));
    assert_eq!(seen.header("x-tikigate-attempt"), Some("1"));
    assert_eq!(seen.header("x-tikigate-client-id"), Some(CLIENT));
    assert_eq!(seen.header("x-tikigate-partner-code"), Some("VNPAY"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("x-tikivip-client-id"), Some(CLIENT));
    assert_eq!(
        format!("http://{}", seen.header("host").unwrap()),
        backend.url()
    );
    assert_eq!(gate.state("r-1").await, Some(State::Done));

    let again = gate.post("/tiki/refund", &body).await;
    assert_eq!((again.status, again.text()), (200, SUCCESS));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test]
async fn every_kind_of_route_passes() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    assert_eq!(
        gate.post("/tiki/ipn", &ipn("p-1", "1000")).await.status,
        200
    );
    assert_eq!(gate.state(&ipn_key("p-1")).await, Some(State::Done));
    assert_eq!(
        gate.post("/tiki/order", &order_ipn("m-1", "0"))
            .await
            .status,
        200
    );
    assert_eq!(
        gate.post("/tiki/any", "any bytes \u{0} at all")
            .await
            .status,
        200
    );
    assert_eq!(backend.requests()[2].target(), "/legacy.php?call=any");
    let status = Call::get(
        "/tiki/order-status?order=H%C3%A0+N%E1%BB%99i&x=%20",
        gate.now(),
    );
    assert_eq!(gate.send(&status).await.status, 200);
    let seen = &backend.requests()[3];
    assert_eq!(
        (seen.method(), seen.target(), seen.body.len()),
        (
            "GET",
            "/tiki/order-status?order=H%C3%A0+N%E1%BB%99i&x=%20",
            0
        )
    );
}

#[tokio::test]
async fn both_families_and_a_client_with_dots_pass() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    for (number, (client, family)) in [
        ((CLIENT, SECRET), Family::TiniApp),
        ((CLIENT, SECRET), Family::TikiVip),
        ((OTHER_CLIENT, OTHER_SECRET), Family::TiniApp),
    ]
    .into_iter()
    .enumerate()
    {
        let call = Call::post_as(client, family, "/tiki/any", format!("{number}"), gate.now());
        assert_eq!(gate.send(&call).await.status, 200, "{client:?} {family:?}");
    }
}

#[tokio::test]
async fn money_is_forwarded_byte_for_byte_and_compared_by_value() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    let digits = "123456789012345678901234567890";
    for (id, amounts) in [
        ("same", &["1000", "1e3", "1000.0", "1000.00E0"][..]),
        ("fraction", &["35000.50", "35000.5"]),
        ("large", &[digits]),
    ] {
        for (number, amount) in amounts.iter().enumerate() {
            let before = backend.requests().len();
            let body = refund(id, amount);
            let answer = gate.post("/tiki/refund", &body).await;
            assert_eq!(answer.status, 200, "{amount}: {}", answer.text());
            if number == 0 {
                assert_eq!(backend.requests()[before].text(), body);
            } else {
                assert_eq!(
                    backend.requests().len(),
                    before,
                    "{amount} is the same amount"
                );
            }
        }
    }
    let other = gate.post("/tiki/refund", &refund("same", "1000.01")).await;
    assert_eq!(
        (other.status, other.error_code().as_deref()),
        (422, Some("conflict"))
    );
}

#[tokio::test]
async fn fields_that_nobody_listed_and_any_unicode_pass_as_they_are() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    let body = "{ \"request_id\" : \"r-\u{1f389}-hoàn\",\"reason\":\"\\u003c\\/\\u00e0 \u{202e}\u{feff}\",\n\
        \"tiki_transaction_id\":\"t\",\"transaction_id\":\"p\",\"transaction_amount\":1.50e2,\
        \"extra\":{\"deep\":[1,2,{\"x\":null}]}}";
    let answer = gate.post("/tiki/refund", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = &backend.requests()[0];
    assert_eq!(seen.text(), body);
    assert_eq!(
        seen.header("idempotency-key"),
        Some("r-%F0%9F%8E%89-ho%C3%A0n")
    );
}

#[tokio::test]
async fn a_body_in_many_pieces_is_one_body() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    let call = gate.signed("/tiki/refund", &refund("r-1", "1"));
    let bytes = call.to_bytes();
    let pieces: Vec<&[u8]> = bytes.chunks(7).collect();
    let mut client = gate.connect().await;
    client.send_pieces(&pieces).await;
    assert_eq!(client.read_answer().await.status, 200);
    assert_eq!(backend.requests()[0].body, call.body);

    let chunked = gate.signed("/tiki/refund", &refund("r-2", "1"));
    let head = chunked
        .clone()
        .without("Content-Length")
        .and("Transfer-Encoding", "chunked")
        .head();
    let mut bytes = head.into_bytes();
    for piece in chunked.body.chunks(10) {
        bytes.extend(format!("{:x}\r\n", piece.len()).bytes());
        bytes.extend_from_slice(piece);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    client.send(bytes).await;
    assert_eq!(client.read_answer().await.status, 200);
    let seen = &backend.requests()[1];
    assert_eq!(seen.body, chunked.body);
    assert_eq!(
        seen.header("content-length"),
        Some(&*chunked.body.len().to_string())
    );
    assert_eq!(seen.header("transfer-encoding"), None);
}

#[tokio::test]
async fn the_log_has_one_line_a_call_and_no_secret() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    let call = gate.signed("/tiki/refund", &refund("r-1", "1"));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    gate.send(&call.clone().and("traceparent", trace)).await;
    assert_eq!(backend.requests()[0].header("traceparent"), Some(trace));
    gate.advance(Duration::from_secs(1));
    gate.send(&call).await;
    gate.send(&call.clone().with("x-tikivip-signature", &"0".repeat(64)))
        .await;

    let lines: Vec<_> = gate
        .log()
        .into_iter()
        .filter(|line| line["message"] == "request")
        .collect();
    assert_eq!(lines.len(), 3);
    // Each worker writes its own lines in order; between workers the order is the sink's.
    let only = |field: &str| {
        let mut with = lines.iter().filter(|line| !line[field].is_null());
        let line = with.next().unwrap();
        assert!(with.next().is_none(), "{field} is in several lines");
        line
    };
    let first = only("trace_id");
    assert_eq!(first["http.route"], "refund");
    assert_eq!(first["tikigate.client"], "wallet");
    assert_eq!(first["tikigate.idempotency_key"], "r-1");
    assert_eq!(first["http.response.status_code"], 200);
    assert_eq!(first["tikigate.attempt"], 1);
    assert_eq!(first["tikigate.upstream.status_code"], 200);
    assert_eq!(first["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(
        first["tikigate.request_id"],
        *backend.requests()[0].header("x-request-id").unwrap()
    );
    assert_eq!(only("tikigate.replayed")["tikigate.replayed"], true);
    assert_eq!(only("error.type")["error.type"], "unauthenticated");
    assert_eq!(only("tikigate.reason")["tikigate.reason"], "bad_signature");

    let text = gate.log_text();
    for hidden in [
        SECRET,
        call.header("x-tikivip-signature"),
        "Khách",
        &"0".repeat(64),
    ] {
        assert!(!text.contains(hidden), "the log shows {hidden}");
    }
}

#[tokio::test]
async fn readiness_names_a_backend_in_trouble_and_does_not_fail_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("backend.sock");
    let gate = TestGate::start(&format!("unix:{}", socket.display())).await;
    let degraded = async || {
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let answer = exchange(gate.admin_address(), request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["degraded"].clone()
    };
    assert_eq!(degraded().await, serde_json::json!([]));
    assert_eq!(gate.post("/tiki/any", "down").await.status, 502);
    assert_eq!(
        degraded().await,
        serde_json::json!(["upstream legacy can't be reached"])
    );
    let _backend = Backend::start_unix(&socket, |_| Answer::success().into()).await;
    assert_eq!(gate.post("/tiki/any", "up again").await.status, 200);
    assert_eq!(degraded().await, serde_json::json!([]));
}

#[tokio::test]
async fn the_operator_may_say_what_the_ingress_spoke() {
    let backend = agreeable().await;
    let url = format!("url = \"{}\"", backend.url());
    let with_proto = format!("{url}\nset_headers = {{ \"X-Forwarded-Proto\" = \"https\" }}");
    let gate = TestGate::with(&usual(&backend.url()).replace(&url, &with_proto)).await;
    assert_eq!(gate.post("/tiki/any", "x").await.status, 200);
    let seen = &backend.requests()[0];
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
}

#[tokio::test]
async fn the_log_names_a_stranger_by_the_id_it_gave() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    let call = gate
        .signed("/tiki/any", "x")
        .with("x-tikivip-client-id", "stranger-1");
    assert_eq!(gate.send(&call).await.status, 401);
    let lines = gate.log();
    let line = lines
        .iter()
        .find(|line| line["error.type"] == "unauthenticated")
        .unwrap();
    assert_eq!(line["tikigate.reason"], "unknown_client");
    assert_eq!(line["tikigate.claimed_client_id"], "stranger-1");
}
