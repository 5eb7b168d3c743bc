//! Request lines: targets and methods that are almost a route's.

use super::{Refused, Stage};
use crate::support::gate::{Call, refund};
use crate::support::raw::RawClient;

const NOT_FOUND: Refused = (404, "not_found", "");
const TARGET: Refused = (400, "malformed_request", "target");

#[tokio::test]
async fn a_target_that_is_not_exactly_a_routes_path_is_not_forwarded() {
    let stage = Stage::start().await;
    let good = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
    for target in [
        "/",
        "//",
        "/tiki",
        "/tiki/",
        "/tiki//refund",
        "//tiki/refund",
        "/tiki/refund/",
        "/tiki/refund//",
        "/tiki/./refund",
        "/./tiki/refund",
        "/tiki/refund/.",
        "/tiki/refund/..",
        "/tiki/x/../refund",
        "/x/../tiki/refund",
        "/tiki/%2e/refund",
        "/tiki/%2E%2E/tiki/refund",
        "/tiki/refund%2f",
        "/tiki%2Frefund",
        "/tiki/%72efund",
        "/tiki/refund%00",
        "/tiki/refund%20",
        "/tiki/refund%0d%0aX:%201",
        "/tiki\\refund",
        "/tiki/refund\\",
        "\\tiki\\refund",
        "/TIKI/refund",
        "/tiki/Refund",
        "/tiki/refund;a=b",
        "/tiki;/refund",
        "/tiki/refund.json",
        "/tiki/refund,",
        "/tiki/refund/extra",
        "/tiki/refundé",
        "/tiki/ref\u{fb01}und",
        "/tiki/refund&a=b",
        "/tiki/refund:80",
        "/legacy.php",
        "/legacy.php?call=any",
    ] {
        refuses_target(&stage, &good, target, NOT_FOUND).await;
    }
    let long = format!("/tiki/refund{}", "/x".repeat(3000));
    refuses_target(&stage, &good, &long, NOT_FOUND).await;
    stage.still_passes().await;
}

/// The gate's refusal, or the HTTP library's own for what it can't read at all; never the backend.
async fn refuses_target(stage: &Stage, good: &Call, target: &str, refused: Refused) {
    let call = good.clone().to(target);
    let answer = stage.gate.send(&call).await;
    if answer.body.is_empty() {
        assert_eq!(answer.status, 400, "{target}");
        stage.nothing_reached_the_backend(target);
    } else {
        stage.check(target, &answer, refused);
    }
}

#[tokio::test]
async fn a_query_on_a_post_route_is_refused_even_an_empty_one() {
    let stage = Stage::start().await;
    let body = refund("r-1", "1");
    for query in [
        "?",
        "?x=1",
        "?transaction_amount=9000",
        "??",
        "?#",
        "?%23",
        "?call=any",
    ] {
        for path in ["/tiki/refund", "/tiki/ipn", "/tiki/order", "/tiki/any"] {
            let call = stage.gate.signed(&format!("{path}{query}"), &body);
            stage
                .refuses(&call.target, call.to_bytes(), NOT_FOUND)
                .await;
        }
    }
    stage.still_passes().await;
}

#[tokio::test]
async fn a_query_on_a_get_route_is_signed_and_goes_along_as_it_is() {
    let stage = Stage::start().await;
    let good = Call::get("/tiki/order-status?", stage.gate.now());
    assert_eq!(stage.gate.send(&good).await.status, 200);
    assert_eq!(stage.backend.requests()[0].target(), "/tiki/order-status?");
    let bare = good.to("/tiki/order-status");
    let answer = stage.gate.send(&bare).await;
    assert_eq!(answer.status, 401, "the empty query was signed too");
    assert_eq!(stage.backend.requests().len(), 1);
}

/// Servers part over such a query, though somebody signed it: RFC 3986 has no such characters.
#[tokio::test]
async fn a_query_that_is_not_ascii_is_malformed() {
    let stage = Stage::start().await;
    for target in [
        "/tiki/order-status?a=\u{e9}",
        "/tiki/order-status?\u{1f4b0}",
    ] {
        let call = Call::get(target, stage.gate.now());
        stage.refuses(target, call.to_bytes(), TARGET).await;
    }
    stage.still_passes().await;
}

/// The library drops it before the gate can see it. No client sends one; what is left is a route's
/// exact path, and the backend gets just that.
#[tokio::test]
async fn a_fragment_never_reaches_the_backend() {
    let stage = Stage::start().await;
    let body = refund("r-1", "1");
    for (target, status) in [
        ("/tiki/refund#x", 200),
        ("/tiki/refund#", 200),
        ("/tiki/refund#/../x?y", 200),
        ("/tiki/refun#d", 404),
        ("/tiki/refund?#", 404),
        ("#/tiki/refund", 400),
    ] {
        let call = stage.gate.signed(target, &body);
        assert_eq!(stage.gate.send(&call).await.status, status, "{target}");
    }
    let requests = stage.backend.requests();
    assert_eq!(requests.len(), 1, "one refund");
    assert_eq!(requests[0].target(), "/tiki/refund");
    stage.only_clean_calls(&[body.as_bytes()]);
}

#[tokio::test]
async fn a_target_in_another_form_is_malformed() {
    let stage = Stage::start().await;
    let good = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
    for target in [
        "http://gate.test/tiki/refund",
        "http://evil.test/tiki/refund",
        "HTTP://gate.test/tiki/refund",
        "https://gate.test:443/tiki/refund",
        "http://user:word@gate.test/tiki/refund",
        "gate.test/tiki/refund",
        "gate.test:80",
        "gate.test",
        "*",
        "tiki/refund",
        "http:/tiki/refund",
        "?x",
        "http://",
        "http:///tiki/refund",
    ] {
        refuses_target(&stage, &good, target, TARGET).await;
    }
    stage.still_passes().await;
}

#[tokio::test]
async fn another_method_is_refused_with_the_one_that_is_allowed() {
    let stage = Stage::start().await;
    let good = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
    for method in [
        "GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "PRI", "post",
        "Post", "XPOST", "POSTX", "P-O!S", "REFUND",
    ] {
        let call = good.clone().by(method);
        let answer = stage
            .refuses(method, call.to_bytes(), (405, "method_not_allowed", ""))
            .await;
        assert_eq!(answer.header("allow"), Some("POST"), "{method}");
    }
    let status = Call::get("/tiki/order-status", stage.gate.now());
    for method in ["POST", "OPTIONS", "TRACE", "get"] {
        let call = status.clone().by(method);
        let answer = stage
            .refuses(method, call.to_bytes(), (405, "method_not_allowed", ""))
            .await;
        assert_eq!(answer.header("allow"), Some("GET"), "{method}");
    }
    for (target, allow) in [("/tiki/refund", "POST"), ("/tiki/order-status", "GET")] {
        let mut client = stage.gate.connect().await;
        let head = Call::get(target, stage.gate.now()).by("HEAD").head();
        client.send(head).await;
        let answer = client.read_answer_to_head().await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)));
        assert!(client.is_silent().await, "HEAD is answered without a body");
        assert_eq!(stage.last_line()["error.type"], "method_not_allowed");
    }
    stage.still_passes().await;
}

#[tokio::test]
async fn a_path_with_two_methods_names_both() {
    let two = r#"
[[routes]]
name = "refund-status"
path = "/tiki/refund"
method = "GET"
payload = "any"
clients = ["wallet"]
[ledger]
"#;
    let stage = Stage::with(&[("[ledger]\n", two)]).await;
    let call = stage.gate.signed("/tiki/refund", "{}").by("PUT");
    let answer = stage
        .refuses("PUT", call.to_bytes(), (405, "method_not_allowed", ""))
        .await;
    assert_eq!(answer.header("allow"), Some("POST, GET"));
    stage.still_passes().await;
}

#[tokio::test]
async fn connect_with_an_authority_opens_no_tunnel() {
    let stage = Stage::start().await;
    let backend = stage.backend.address().to_string();
    let mut client = stage.gate.connect().await;
    client
        .send(format!(
            "CONNECT {backend} HTTP/1.1\r\nHost: {backend}\r\n\r\n"
        ))
        .await;
    stage.check("CONNECT", &client.read_answer().await, TARGET);
    client
        .send(
            stage
                .gate
                .signed("/tiki/refund", &refund("r-1", "1"))
                .to_bytes(),
        )
        .await;
    assert!(client.is_closed().await);
    stage.still_passes().await;
}

/// What a lax reader would find a target or a version in.
#[tokio::test]
async fn white_space_in_a_request_line_is_malformed() {
    let stage = Stage::start().await;
    let good = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
    let rest = good.head().split_once("\r\n").unwrap().1.to_owned();
    for line in [
        "POST /tiki/refund HTTP/1.1 HTTP/1.1",
        "POST /tiki/refund x HTTP/1.1",
        "POST /tiki/refund\tHTTP/1.1",
        "POST\t/tiki/refund HTTP/1.1",
        "POST /tiki/refund\u{b}HTTP/1.1",
        " POST /tiki/refund HTTP/1.1",
        "POST /tiki/refund HTTP/1.1 ",
        "POST /tiki/refund\0 HTTP/1.1",
        "POST /tiki/refund",
        "POST /tiki/refund HTTP/1.2",
        "POST /tiki/refund HTTP/0.9",
        "POST /tiki/refund HTTP/2.0",
        "POST /tiki/refund HTTP/11",
        "POST /tiki/refund http/1.1",
        "POST /tiki/refund HTTP/1.1\rX",
    ] {
        let bytes = [format!("{line}\r\n{rest}").as_bytes(), &good.body].concat();
        let mut client = RawClient::connect(stage.gate.address()).await;
        client.send(bytes).await;
        let answer = client.read_answer().await;
        assert_eq!((answer.status, answer.body.len()), (400, 0), "{line:?}");
        assert!(client.is_closed().await, "{line:?}");
        stage.nothing_reached_the_backend(line);
    }
    stage.still_passes().await;
    assert_eq!(stage.backend.requests()[0].target(), "/tiki/refund");
}
