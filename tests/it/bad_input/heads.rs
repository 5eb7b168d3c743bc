//! Heads: what is no HTTP/1.1, what is too much, and whom a request is for.

use super::Stage;
use crate::support::gate::{Call, refund};

/// Refused by the HTTP library before the gate hears of it: a status without a body, or nothing.
async fn refused_below(stage: &Stage, what: &str, bytes: impl AsRef<[u8]>, status: Option<u16>) {
    let mut client = stage.gate.connect().await;
    client.send(bytes).await;
    client.end_sending().await;
    let answer = client.read_answer_or_end().await;
    assert_eq!(
        answer.as_ref().map(|answer| answer.status),
        status,
        "{what}"
    );
    assert!(answer.is_none_or(|answer| answer.body.is_empty()), "{what}");
    assert!(client.is_closed().await, "{what}");
    stage.nothing_reached_the_backend(what);
}

fn good(stage: &Stage) -> Call {
    stage.gate.signed("/tiki/refund", &refund("r-1", "1"))
}

/// A good call with one more line in its head.
fn with_line(stage: &Stage, line: &[u8]) -> Vec<u8> {
    let good = good(stage);
    let head = good.head();
    let head = head.strip_suffix("\r\n").unwrap();
    [head.as_bytes(), line, b"\r\n\r\n", &good.body].concat()
}

#[tokio::test]
async fn a_head_that_is_no_http_is_refused_below_the_gate() {
    let stage = Stage::start().await;
    for (what, line) in [
        ("an obsolete fold", &b"X-A: 1\r\n folded"[..]),
        ("a fold with a tab", b"X-A: 1\r\n\tfolded"),
        ("a folded signature", b"x-tikivip-signature: 0\r\n 1"),
        ("a fold after the request line", b" folded: 1"),
        ("a space before a colon", b"X-A : 1"),
        ("a tab before a colon", b"X-A\t: 1"),
        ("a space in a name", b"X A: 1"),
        ("no colon", b"X-A"),
        ("no name", b": 1"),
        ("NUL in a name", b"X\0A: 1"),
        ("NUL in a value", b"X-A: 1\x002"),
        ("NUL in a signature header", b"x-tikivip-client-id: a\0"),
        ("a lone CR in a value", b"X-A: 1\rX-B: 2"),
        ("an escape in a value", b"X-A: \x1b[2J"),
        ("a control character in a value", b"X-A: \x01"),
        ("DEL in a value", b"X-A: \x7f"),
        ("UTF-8 in a name", "X-\u{e9}: 1".as_bytes()),
        ("a delimiter in a name", b"X(A): 1"),
        ("a slash in a name", b"X/A: 1"),
    ] {
        refused_below(&stage, what, with_line(&stage, line), Some(400)).await;
    }
    stage.still_passes().await;
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let stage = Stage::start().await;
    for (what, bytes, status) in [
        (
            "HTTP/2",
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..],
            None,
        ),
        (
            "TLS",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 client hello\r\n\r\n",
            Some(400),
        ),
        ("HTTP/0.9", b"GET /tiki/refund\r\n\r\n", Some(400)),
        (
            "PROXY, version 1",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n\r\n",
            Some(400),
        ),
        (
            "PROXY, version 2",
            b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c\x01\x02\x03\x04\r\n\r\n",
            Some(400),
        ),
        ("SSH", b"SSH-2.0-x\r\n\r\n", Some(400)),
        ("garbage", b"\xff\xfe\xfd\xfc\r\n\r\n", Some(400)),
        ("zeros", &[0; 100], Some(400)),
        ("empty lines", b"\r\n\r\n\r\n\r\n", None),
        ("nothing", b"", None),
        ("half a line", b"POST /tiki/ref", None),
        (
            "half a head",
            b"POST /tiki/refund HTTP/1.1\r\nHost: x\r\n",
            None,
        ),
    ] {
        refused_below(&stage, what, bytes, status).await;
    }
    for (what, upgrade) in [
        ("a socket", "websocket"),
        ("HTTP/2", "h2c"),
        ("TLS", "TLS/1.2"),
        ("nothing", ""),
    ] {
        let call = good(&stage)
            .and("Connection", "Upgrade, HTTP2-Settings")
            .and("Upgrade", upgrade);
        let call = call.and("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA");
        let refused = (400, "malformed_request", "protocol");
        let mut client = stage.gate.connect().await;
        client.send(call.to_bytes()).await;
        stage.check(what, &client.read_answer().await, refused);
        assert!(client.is_closed().await, "{what}");
    }
    stage.still_passes().await;
}

#[tokio::test]
async fn http_1_0_is_served_and_its_connection_closed() {
    let stage = Stage::start().await;
    let call = good(&stage);
    let old = call.head().replace("HTTP/1.1", "HTTP/1.0");
    let mut client = stage.gate.connect().await;
    client.send([old.as_bytes(), &call.body].concat()).await;
    assert_eq!(client.read_answer().await.status, 200);
    assert!(client.is_closed().await);
    stage.only_clean_calls(&[&call.body]);
    assert!(
        stage.backend.requests()[0]
            .head
            .start_line
            .ends_with("HTTP/1.1")
    );

    let unsigned = old.replace("x-tikivip-signature", "x-other");
    let answer = stage
        .gate
        .send_bytes([unsigned.as_bytes(), &call.body].concat())
        .await;
    assert_eq!(answer.status, 401);
    let chunked = old.replace(
        &format!("Content-Length: {}", call.body.len()),
        "Transfer-Encoding: chunked",
    );
    let answer = stage.gate.send_bytes(format!("{chunked}0\r\n\r\n")).await;
    assert_eq!(
        (answer.status, answer.body.len()),
        (400, 0),
        "no chunks in HTTP/1.0"
    );
    assert_eq!(stage.backend.requests().len(), 1);
}

#[tokio::test]
async fn a_call_is_for_one_host() {
    let stage = Stage::start().await;
    let call = good(&stage);
    let refused = (400, "malformed_request", "host");
    for (what, call) in [
        ("none", call.clone().without("Host")),
        ("the same twice", call.clone().and("Host", "gate.test")),
        ("two", call.clone().and("Host", "evil.test")),
        ("two, spelled apart", call.clone().and("HOST", "evil.test")),
        ("an empty second", call.clone().and("host", "")),
    ] {
        let mut client = stage.gate.connect().await;
        client.send(call.to_bytes()).await;
        stage.check(what, &client.read_answer().await, refused);
        assert!(client.is_closed().await, "{what}");
    }
    for host in [
        "a b",
        "a, b",
        "gate.test/x",
        "x@gate.test",
        "gate.test:80x",
        "[::1",
        "<a>",
    ] {
        let call = call.clone().with("Host", host);
        stage.refuses(host, call.to_bytes(), refused).await;
    }
    let old = call
        .clone()
        .without("Host")
        .head()
        .replace("HTTP/1.1", "HTTP/1.0");
    stage
        .refuses(
            "none in HTTP/1.0",
            [old.as_bytes(), &call.body].concat(),
            refused,
        )
        .await;
    stage.still_passes().await;
}

#[tokio::test]
async fn a_head_that_is_too_much_is_refused_below_the_gate() {
    let stage = Stage::start().await;
    let wide = [b"X-A: ", &[b'x'; 20_000][..]].concat();
    refused_below(
        &stage,
        "one huge header",
        with_line(&stage, &wide),
        Some(431),
    )
    .await;
    let endless = [b"POST /tiki/refund HTTP/1.1\r\nX-A: ", &[b'x'; 200_000][..]].concat();
    refused_below(&stage, "a head without an end", endless, Some(431)).await;
    let long = format!("/tiki/refund/{}", "x".repeat(20_000));
    refused_below(
        &stage,
        "a huge target",
        good(&stage).to(&long).to_bytes(),
        Some(431),
    )
    .await;
    let method = [&b"POST"[..], &[b'T'; 20_000], b" / HTTP/1.1\r\n\r\n"].concat();
    refused_below(&stage, "a huge method", method, Some(431)).await;
    for count in [65, 200, 2000] {
        let mut lines: Vec<String> = (0..count)
            .map(|number| format!("X-{number}: 1\r\n"))
            .collect();
        let last = lines.pop().unwrap();
        let text = lines.concat() + last.trim_end();
        refused_below(
            &stage,
            "many headers",
            with_line(&stage, text.as_bytes()),
            Some(431),
        )
        .await;
    }
    stage.still_passes().await;

    let bare = good(&stage).headers.len();
    let filled = (bare..64).fold(good(&stage), |call, number| {
        call.and(&format!("X-{number}"), "1")
    });
    assert_eq!(
        stage.gate.send(&filled).await.status,
        200,
        "as many as are allowed"
    );
}

/// The library takes a lone line feed for a line's end and does not tell. The call is re-framed:
/// the backend gets one clean request, or none.
#[tokio::test]
async fn lone_line_feeds_are_framed_anew() {
    let stage = Stage::start().await;
    let call = good(&stage);
    let all = call.head().replace("\r\n", "\n");
    let mut client = stage.gate.connect().await;
    client.send([all.as_bytes(), &call.body].concat()).await;
    assert_eq!(client.read_answer().await.status, 200);
    assert!(client.is_closed().await, "nothing behind it is read");
    stage.only_clean_calls(&[&call.body]);

    for (number, at) in [1, 2, 5].into_iter().enumerate() {
        let call = stage
            .gate
            .signed("/tiki/refund", &refund(&format!("mixed-{number}"), "1"));
        let head = call.head();
        let mut lines: Vec<String> = head.split_inclusive("\r\n").map(str::to_owned).collect();
        lines[at] = lines[at].replace("\r\n", "\n");
        let mut client = stage.gate.connect().await;
        client
            .send([lines.concat().as_bytes(), &call.body].concat())
            .await;
        assert_eq!(client.read_answer().await.status, 200, "line {at}");
        assert!(client.is_closed().await, "line {at}");
        assert_eq!(stage.backend.requests().last().unwrap().body, call.body);
    }
    for seen in stage.backend.requests() {
        super::assert_clean(&seen);
    }
}

#[tokio::test]
async fn a_header_hidden_behind_a_lone_line_feed_is_read_as_one() {
    let stage = Stage::start().await;
    let call = good(&stage);
    let name = "x-tikivip-client-id";
    let head = call.head().replace(
        "Host: gate.test",
        &format!("Host: gate.test\n{name}: a.b.c"),
    );
    let bytes = [head.as_bytes(), &call.body].concat();
    stage
        .refuses(
            "a second client",
            bytes,
            (401, "unauthenticated", "duplicate_header"),
        )
        .await;
    stage.still_passes().await;
}
