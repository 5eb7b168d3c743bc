//! What a caller's head says beyond its signature: nobody signed it, so the backend doesn't hear it.

use super::Stage;
use crate::support::gate::{CLIENT, Call, refund};

/// Occurs in every value that must not get through.
const MARK: &str = "9mark9";

const FROM_OUTSIDE: &[(&str, &str)] = &[
    ("X-HTTP-Method-Override", "9mark9"),
    ("X-HTTP-Method", "9mark9"),
    ("X-Method-Override", "9mark9"),
    ("X-Original-URL", "/9mark9"),
    ("X-Rewrite-URL", "/9mark9"),
    ("X-Forwarded-For", "9.9.9.9, 9mark9"),
    ("X-Forwarded-Host", "9mark9"),
    ("X-Forwarded-Proto", "9mark9"),
    ("X-Forwarded-Prefix", "9mark9"),
    ("X-Forwarded-Server", "9mark9"),
    ("X-Forwarded-Client-Cert", "9mark9"),
    ("X_Forwarded_For", "9mark9"),
    ("X-Real-IP", "9mark9"),
    ("True-Client-IP", "9mark9"),
    ("Forwarded", "for=9mark9"),
    ("Via", "1.1 9mark9"),
    ("Idempotency-Key", "9mark9"),
    ("Idempotency_Key", "9mark9"),
    ("X-Idempotency-Key", "9mark9"),
    ("X-Tikigate-Attempt", "9mark9"),
    ("X-Tikigate-Client-Id", "9mark9"),
    ("X-Tikigate-Partner-Code", "9mark9"),
    ("X-Tikigate-Anything", "9mark9"),
    ("X-Request-Id", "9mark9"),
    ("X_Request_Id", "9mark9"),
    ("X_Tiniapp_Client_Id", "9mark9"),
    ("X_Tikivip_Client_Id", "9mark9"),
    ("X_Tikivip_Signature", "9mark9"),
    ("X-Tikivip-Client_Id", "9mark9"),
    ("X-Tikivip-Partner-Code", "9mark9"),
    ("Cookie", "session=9mark9"),
    ("Authorization", "Bearer 9mark9"),
    ("Proxy-Authorization", "Basic 9mark9"),
    ("Proxy-Connection", "9mark9"),
    ("Proxy", "http://9mark9"),
    ("Keep-Alive", "timeout=9mark9"),
    ("TE", "trailers, 9mark9"),
    ("Trailer", "X-9mark9"),
    ("Connection", "keep-alive, X-Hop, X-9mark9"),
    ("X-Hop", "9mark9"),
    ("Content-Type", "text/9mark9"),
    ("Content-Disposition", "9mark9"),
    ("Content-Location", "/9mark9"),
    ("Content-Range", "bytes 9mark9"),
    ("Content-MD5", "9mark9"),
    ("User-Agent", "9mark9"),
    ("Referer", "http://9mark9"),
    ("Origin", "http://9mark9"),
    ("Range", "bytes=9mark9"),
    ("If-Match", "\"9mark9\""),
    ("Accept-Encoding", "9mark9"),
    ("Accept-Language", "9mark9"),
    ("X-Gate-Key", "9mark9"),
    ("tracestate", "a=9mark9"),
    ("traceparent", "9mark9"),
    ("baggage", "9mark9"),
    ("9mark9", "9mark9"),
    ("Host", "9mark9"),
];

/// The names that the backend of the usual configuration gets of a typed call, and no others.
const KNOWN: &[&str] = &[
    "host",
    "content-length",
    "content-type",
    "connection",
    "x-tikivip-timestamp",
    "x-tikivip-client-id",
    "x-tikivip-signature",
    "idempotency-key",
    "x-tikigate-attempt",
    "x-tikigate-client-id",
    "x-tikigate-partner-code",
    "x-request-id",
    "x-forwarded-for",
    "x-forwarded-proto",
];

fn lined_up(mut call: Call, names: &[(&str, &str)]) -> Call {
    for (name, value) in names {
        if matches!(*name, "Host" | "Content-Type") {
            call = call.with(name, value);
        } else {
            call = call.and(name, value);
        }
    }
    call
}

#[tokio::test]
async fn headers_from_outside_do_not_reach_the_backend() {
    let more_headers = ("workers = 2", "workers = 2\nmax_headers = 128");
    let stage = Stage::with(&[more_headers]).await;
    let body = refund("r-1", "1");
    let good = stage.gate.signed("/tiki/refund", &body);

    let all_at_once = lined_up(good.clone(), FROM_OUTSIDE);
    let answer = stage.gate.send(&all_at_once).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let bytes = String::from_utf8(stage.backend.bytes()).unwrap();
    assert!(!bytes.to_ascii_lowercase().contains(MARK), "{bytes}");
    assert!(!bytes.contains("9.9.9.9"), "{bytes}");
    let seen = &stage.backend.requests()[0];
    for (name, _) in &seen.head.fields {
        assert!(KNOWN.contains(&&*name.to_lowercase()), "{name} in {bytes}");
    }
    for (name, value) in [
        ("idempotency-key", "r-1"),
        ("x-tikigate-attempt", "1"),
        ("x-tikigate-client-id", CLIENT),
        ("x-forwarded-for", "127.0.0.1"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(seen.header(name), Some(value));
    }
    assert_eq!(
        format!("http://{}", seen.header("host").unwrap()),
        stage.backend.url()
    );
    stage.only_clean_calls(&[body.as_bytes()]);
}

#[tokio::test]
async fn on_a_route_that_takes_anything_only_the_content_type_comes_along() {
    let stage = Stage::start().await;
    let call = stage
        .gate
        .signed("/tiki/any", "x")
        .with("Content-Type", "text/plain")
        .and("Accept", "text/x");
    assert_eq!(stage.gate.send(&call).await.status, 200);
    let seen = &stage.backend.requests()[0];
    assert_eq!(seen.header("content-type"), Some("text/plain"));
    assert_eq!(seen.header("accept"), Some("text/x"));
    assert_eq!(seen.header("idempotency-key"), None);
}

/// Of two, one backend would believe the first and another the last.
#[tokio::test]
async fn two_content_types_are_none() {
    let stage = Stage::start().await;
    let call = stage
        .gate
        .signed("/tiki/any", "x")
        .with("Content-Type", MARK);
    assert_eq!(
        stage
            .gate
            .send(&call.and("Content-Type", MARK))
            .await
            .status,
        200
    );
    let seen = &stage.backend.requests()[0];
    assert_eq!(seen.header("content-type"), None);
}

/// Nobody signed `Connection`: it can't keep the signature from a backend that checks for itself.
#[tokio::test]
async fn the_signature_goes_along_whatever_connection_says() {
    let stage = Stage::start().await;
    let names = [
        "x-tikivip-timestamp",
        "x-tikivip-client-id",
        "x-tikivip-signature",
    ];
    let call = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
    let sent = call.clone().and("Connection", &names.join(", "));
    assert_eq!(stage.gate.send(&sent).await.status, 200);
    let seen = &stage.backend.requests()[0];
    for name in names {
        assert_eq!(seen.header(name), Some(call.header(name)), "{name}");
    }
}

#[tokio::test]
async fn headers_that_belong_to_the_callers_connection_end_at_the_gate() {
    let forwarded = (
        "payload = \"refund\"",
        "payload = \"refund\"\nforward_headers = [\"x-partner\"]",
    );
    let stage = Stage::with(&[forwarded]).await;
    let good = stage
        .gate
        .signed("/tiki/refund", &refund("r-1", "1"))
        .and("X-Partner", "passed");
    assert_eq!(stage.gate.send(&good).await.status, 200);
    assert_eq!(
        stage.backend.requests()[0].header("x-partner"),
        Some("passed")
    );

    let call = stage
        .gate
        .signed("/tiki/refund", &refund("r-2", "1"))
        .and("X-Partner", MARK)
        .and("Accept", MARK)
        .and("Connection", "x-partner, ACCEPT");
    assert_eq!(stage.gate.send(&call).await.status, 200);
    let seen = &stage.backend.requests()[1];
    let head = String::from_utf8_lossy(&seen.raw_head);
    assert!(!head.contains(MARK), "{head}");
}

#[tokio::test]
async fn a_header_repeated_from_outside_does_not_join_the_gates_own() {
    let stage = Stage::start().await;
    let mut call = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
    for name in KNOWN.iter().filter(|name| !name.starts_with("x-tikivip")) {
        if !matches!(
            *name,
            "host" | "content-length" | "connection" | "content-type"
        ) {
            call = call.and(name, MARK).and(name, MARK);
        }
    }
    call = call.and("Content-Type", MARK);
    assert_eq!(stage.gate.send(&call).await.status, 200);
    let seen = &stage.backend.requests()[0];
    for name in KNOWN {
        assert_eq!(seen.head.all(name).len(), 1, "{name}");
        assert_ne!(seen.header(name), Some(MARK));
    }
}
