//! Bodies whose length could be read in two ways.
//!
//! The HTTP library hides some of it from the gate: where it drops a length beside a transfer
//! coding, or takes a lone line feed, the call is re-framed. The tables say which of the two happens.

use super::{Stage, assert_clean};
use crate::support::gate::{Call, refund};

/// What the backend must never see: it stands behind the bodies here, for a reader who stops early.
const SMUGGLED: &str = "POST /smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";

/// What becomes of a call.
struct Tried {
    /// The gate's refusal as `status code reason`, `library status`, `passed`, or `no answer`.
    fate: String,
    /// Whether the connection ends with the answer.
    closed: bool,
}

/// Sends a call and a second one behind it. A call that passes must have reached the backend as
/// one clean request with `body`; one that does not, not at all.
async fn try_out(stage: &Stage, bytes: &[u8], body: &[u8]) -> Tried {
    let before = stage.backend.requests().len();
    let bytes_before = stage.backend.bytes().len();
    let mut client = stage.gate.connect().await;
    client.send(bytes).await;
    let fate = match client.read_answer_or_end().await {
        None => "no answer".to_owned(),
        Some(answer) if answer.status == 200 => "passed".to_owned(),
        Some(answer) if answer.body.is_empty() => format!("library {}", answer.status),
        Some(answer) => {
            let line = stage.last_line();
            assert_eq!(line["http.response.status_code"], answer.status);
            let reason = line["tikigate.reason"].as_str().unwrap_or("");
            format!(
                "{} {} {reason}",
                answer.status,
                answer.error_code().unwrap()
            )
            .trim()
            .to_owned()
        }
    };
    client.send("GET /next HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let closed = client.read_answer_or_end().await.is_none();
    let seen = &stage.backend.requests()[before..];
    if fate == "passed" {
        assert_eq!(seen.len(), 1, "one request");
        assert_eq!(seen[0].body, body);
        assert_clean(&seen[0]);
        let length = seen[0].raw_head.len() + body.len();
        assert_eq!(
            stage.backend.bytes().len() - bytes_before,
            length,
            "bytes beyond the request"
        );
    } else {
        assert!(seen.is_empty(), "{fate}, and forwarded");
        assert_eq!(
            stage.backend.bytes().len(),
            bytes_before,
            "{fate}, and bytes forwarded"
        );
    }
    Tried { fate, closed }
}

/// A good refund whose framing headers are replaced by these lines.
fn framed(stage: &Stage, number: usize, lines: &str) -> (String, Vec<u8>) {
    let call = stage
        .gate
        .signed("/tiki/refund", &refund(&format!("r-{number}"), "1"));
    let head = call.clone().without("Content-Length").head();
    let head = head.strip_suffix("\r\n").unwrap();
    (format!("{head}{lines}\r\n"), call.body)
}

fn in_chunks(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in body.chunks(50) {
        bytes.extend(format!("{:X}\r\n", piece.len()).bytes());
        bytes.extend(piece);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

const FRAMING: &str = "400 malformed_request framing";

#[tokio::test]
async fn a_body_with_two_readings_of_its_length_is_refused_or_framed_anew() {
    let stage = Stage::start().await;
    let mut wrong = Vec::new();
    // The lines; whether the body is sent in chunks; what happens; whether the connection ends.
    for (number, (lines, chunked, fate, closed)) in [
        ("Content-Length: {n}\r\n", false, "passed", false),
        ("Transfer-Encoding: chunked\r\n", true, "passed", false),
        ("Transfer-Encoding: CHUNKED\r\n", true, "passed", false),
        (
            "Content-Length: {n}\r\nTransfer-Encoding: chunked\r\n",
            true,
            "passed",
            true,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: {n}\r\n",
            true,
            "passed",
            true,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
            true,
            "passed",
            true,
        ),
        (
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            true,
            "passed",
            true,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
            true,
            "passed",
            true,
        ),
        ("Transfer-Encoding: gzip, chunked\r\n", true, FRAMING, true),
        ("Transfer-Encoding: ,chunked\r\n", true, FRAMING, true),
        ("Transfer-Encoding: chunked,\r\n", true, "library 400", true),
        (
            "Transfer-Encoding: chunked, chunked\r\n",
            true,
            FRAMING,
            true,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            true,
            FRAMING,
            true,
        ),
        (
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
            true,
            FRAMING,
            true,
        ),
        (
            "Transfer-Encoding: identity, chunked\r\n",
            true,
            FRAMING,
            true,
        ),
        (
            "Transfer-Encoding: \"chunked\"\r\n",
            true,
            "library 400",
            true,
        ),
        (
            "Transfer-Encoding: chunked;q=1\r\n",
            true,
            "library 400",
            true,
        ),
        ("Transfer-Encoding: xchunked\r\n", true, "library 400", true),
        (
            "Transfer-Encoding: chunked, gzip\r\n",
            true,
            "library 400",
            true,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
            true,
            "library 400",
            true,
        ),
        (
            "Transfer-Encoding: identity\r\n",
            false,
            "library 400",
            true,
        ),
        ("Transfer-Encoding: gzip\r\n", false, "library 400", true),
        ("Transfer-Encoding:\r\n", false, "library 400", true),
        (
            "Content-Length: {n}\r\nTransfer-Encoding: identity\r\n",
            false,
            "library 400",
            true,
        ),
        ("Transfer-Encoding : chunked\r\n", true, "library 400", true),
        (
            "Transfer-Encoding\t: chunked\r\n",
            true,
            "library 400",
            true,
        ),
        (
            "Content-Length: {n}\r\nTransfer-Encoding:\u{b}chunked\r\n",
            false,
            "library 400",
            true,
        ),
        (
            "Content-Length: {n}\r\nTransfer_Encoding: chunked\r\n",
            false,
            "passed",
            false,
        ),
        // One length said twice has one reading (RFC 9112, 6.3); the library makes one of the two.
        (
            "Content-Length: {n}\r\nContent-Length: {n}\r\n",
            false,
            "passed",
            false,
        ),
        (
            "Content-Length: {n}\r\nContent-Length: 0\r\n",
            false,
            "library 400",
            true,
        ),
        (
            "Content-Length: 0\r\nContent-Length: {n}\r\n",
            false,
            "library 400",
            true,
        ),
        ("Content-Length: {n}, {n}\r\n", false, "library 400", true),
        ("Content-Length: {n},\r\n", false, "library 400", true),
        ("Content-Length: +{n}\r\n", false, "library 400", true),
        ("Content-Length: -{n}\r\n", false, "library 400", true),
        ("Content-Length: 0{n}\r\n", false, FRAMING, true),
        ("Content-Length: 00\r\n", false, FRAMING, true),
        ("Content-Length: 0x{n}\r\n", false, "library 400", true),
        ("Content-Length: {n}.0\r\n", false, "library 400", true),
        ("Content-Length: {n} 0\r\n", false, "library 400", true),
        ("Content-Length: {n}e0\r\n", false, "library 400", true),
        ("Content-Length:\r\n", false, "library 400", true),
        (
            "Content-Length: 18446744073709551616\r\n",
            false,
            "library 400",
            true,
        ),
        (
            "Content-Length: 18446744073709551615\r\n",
            false,
            "library 431",
            true,
        ),
        (
            "Content-Length: 9223372036854775807\r\n",
            false,
            "413 body_too_large",
            true,
        ),
        ("Content-Length : {n}\r\n", false, "library 400", true),
        (
            "Content-Length: {n}\r\nContent_Length: 0\r\n",
            false,
            "passed",
            false,
        ),
        // Without a length the body is empty, and its bytes are the next call's head: no HTTP.
        ("", false, "401 unauthenticated bad_signature", false),
        (
            "Content-Length: 0\r\n",
            false,
            "401 unauthenticated bad_signature",
            false,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let (_, body) = framed(&stage, number, "");
        let lines = lines.replace("{n}", &body.len().to_string());
        let (head, body) = framed(&stage, number, &lines);
        let sent = if chunked {
            in_chunks(&body)
        } else {
            body.clone()
        };
        // Where the next call would be read, something stands that must not be.
        let behind = if closed { SMUGGLED } else { "" };
        let bytes = [head.as_bytes(), &sent, behind.as_bytes()].concat();
        let tried = try_out(&stage, &bytes, &body).await;
        if (&*tried.fate, tried.closed) != (fate, closed) {
            wrong.push(format!(
                "{lines:?}: {} closed={}, not {fate} closed={closed}",
                tried.fate, tried.closed
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn chunks_out_of_order_are_broken_bodies() {
    let stage = Stage::start().await;
    const BROKEN: &str = "503 body_timeout broken_off";
    const UNSIGNED: &str = "401 unauthenticated bad_signature";
    let mut wrong = Vec::new();
    for (number, (chunks, fate)) in [
        ("{x}\r\n{b}\r\n0\r\n\r\n", "passed"),
        ("{x};name=value\r\n{b}\r\n0\r\n\r\n", "passed"),
        ("000{x}\r\n{b}\r\n000\r\n\r\n", "passed"),
        ("{x}\r\n{b}\r\n0\r\nX: 1\r\n\r\n", "passed"),
        ("0x{x}\r\n{b}\r\n0\r\n\r\n", BROKEN),
        ("+{x}\r\n{b}\r\n0\r\n\r\n", BROKEN),
        ("-{x}\r\n{b}\r\n0\r\n\r\n", BROKEN),
        ("\r\n{x}\r\n{b}\r\n0\r\n\r\n", BROKEN),
        (";x\r\n{b}\r\n0\r\n\r\n", BROKEN),
        ("{x}\r\n{b}0\r\n\r\n", BROKEN),
        ("{x}\n{b}\n0\n\n", BROKEN),
        ("{x}\r{b}\r\n0\r\n\r\n", BROKEN),
        ("{x}\r\n{b}\n0\r\n\r\n", BROKEN),
        ("{x}\r\n{b}\r\r\n0\r\n\r\n", BROKEN),
        ("{x};a\nb\r\n{b}\r\n0\r\n\r\n", BROKEN),
        ("{x}\r\n{b}\r\n-1\r\n\r\n", BROKEN),
        (
            "ffffffffffffffff\r\n{b}\r\n0\r\n\r\n",
            "503 body_timeout too_slow",
        ),
        ("10000000000000000\r\n{b}\r\n0\r\n\r\n", BROKEN),
        ("zz\r\n{b}\r\n0\r\n\r\n", BROKEN),
        ("0\r\n\r\n", UNSIGNED),
        ("1\r\n{b}\r\n0\r\n\r\n", BROKEN),
        ("{x}\r\n{b}\r\n1\r\n \r\n0\r\n\r\n", UNSIGNED),
    ]
    .into_iter()
    .enumerate()
    {
        let (head, body) = framed(&stage, number, "Transfer-Encoding: chunked\r\n");
        let text = std::str::from_utf8(&body).unwrap();
        let sent = chunks
            .replace("{x}", &format!("{:x}", body.len()))
            .replace("{b}", text);
        let bytes = [head.as_bytes(), sent.as_bytes()].concat();
        let tried = try_out(&stage, &bytes, &body).await;
        if tried.fate != fate || (fate != "passed" && !tried.closed) {
            wrong.push(format!(
                "{chunks:?}: {} closed={}, not {fate}",
                tried.fate, tried.closed
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn what_a_trailer_says_counts_for_nothing() {
    let stage = Stage::start().await;
    let call = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
    let name = "x-tikivip-signature";
    let signature = call.header(name).to_owned();
    let chunked = |call: &Call, trailer: &str| {
        let call = call
            .clone()
            .without("Content-Length")
            .and("Transfer-Encoding", "chunked");
        let call = call.and("Trailer", "x-tikivip-signature");
        let chunks = in_chunks(&call.body);
        let chunks = chunks.strip_suffix(b"\r\n").unwrap();
        [call.head().as_bytes(), chunks, trailer.as_bytes(), b"\r\n"].concat()
    };

    let in_trailer = chunked(
        &call.clone().without(name),
        &format!("{name}: {signature}\r\n"),
    );
    let missing = (401, "unauthenticated", "missing_header");
    stage
        .refuses("only in the trailer", in_trailer, missing)
        .await;
    let zeros = "0".repeat(64);
    let corrected = chunked(
        &call.clone().with(name, &zeros),
        &format!("{name}: {signature}\r\n"),
    );
    let wrong = (401, "unauthenticated", "bad_signature");
    stage
        .refuses("put right in the trailer", corrected, wrong)
        .await;

    let marked =
        format!("{name}: {zeros}\r\nIdempotency-Key: 9mark9\r\nX-9mark9: 1\r\nHost: 9mark9\r\n");
    let answer = stage.gate.send_bytes(chunked(&call, &marked)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    stage.only_clean_calls(&[&call.body]);
    let bytes = String::from_utf8(stage.backend.bytes()).unwrap();
    assert!(
        !bytes.contains("9mark9") && !bytes.contains(&zeros),
        "{bytes}"
    );
    assert_eq!(stage.backend.requests()[0].header(name), Some(&*signature));
}

#[tokio::test]
async fn a_get_with_a_body_is_malformed() {
    let stage = Stage::start().await;
    let good = Call::get("/tiki/order-status?order=1", stage.gate.now());
    let refused = (400, "malformed_request", "unexpected_body");
    let declared = good.clone().and("Content-Length", "1");
    stage
        .refuses(
            "declared",
            [declared.head().as_bytes(), b"x"].concat(),
            refused,
        )
        .await;
    stage
        .refuses("declared, not sent", declared.head(), refused)
        .await;
    let chunked = good.clone().and("Transfer-Encoding", "chunked");
    stage
        .refuses(
            "chunked",
            format!("{}1\r\nx\r\n0\r\n\r\n", chunked.head()),
            refused,
        )
        .await;
    stage
        .refuses(
            "chunked, empty",
            format!("{}0\r\n\r\n", chunked.head()),
            refused,
        )
        .await;
    let smuggling = good
        .clone()
        .and("Content-Length", &SMUGGLED.len().to_string());
    stage
        .refuses(
            "a call as a body",
            format!("{}{SMUGGLED}", smuggling.head()),
            refused,
        )
        .await;
    stage.still_passes().await;
    let empty = good.and("Content-Length", "0");
    assert_eq!(
        stage.gate.send(&empty).await.status,
        200,
        "no body, and says so"
    );
    assert_eq!(stage.backend.requests()[1].header("content-length"), None);
}
