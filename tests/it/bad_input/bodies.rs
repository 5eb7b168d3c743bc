//! Bodies: too large, packed, or not JSON that everybody reads alike.

use super::{Refused, Stage};
use crate::support::gate::{Call, refund};

const TOO_LARGE: Refused = (413, "body_too_large", "");
const PACKED: Refused = (415, "unsupported_encoding", "");
const MALFORMED: Refused = (400, "malformed_body", "");
const LIMIT: usize = 1024;

async fn limited() -> Stage {
    Stage::with(&[(
        "payload = \"refund\"",
        "payload = \"refund\"\nbody_limit = \"1KiB\"",
    )])
    .await
}

/// A refund of exactly so many bytes.
fn of_size(request_id: &str, size: usize) -> String {
    let body = refund(request_id, "1");
    let body = body.strip_suffix('}').unwrap();
    let padding = size - body.len() - r#","x":""}"#.len();
    let body = format!(r#"{body},"x":"{}"}}"#, "x".repeat(padding));
    assert_eq!(body.len(), size);
    body
}

fn chunked(call: &Call, size: usize) -> Vec<u8> {
    let call = call
        .clone()
        .without("Content-Length")
        .and("Transfer-Encoding", "chunked");
    let mut bytes = call.head().into_bytes();
    for piece in call.body.chunks(size) {
        bytes.extend(format!("{:x}\r\n", piece.len()).bytes());
        bytes.extend(piece);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

#[tokio::test]
async fn one_byte_over_the_limit_is_too_large_declared_or_not() {
    let stage = limited().await;
    let over = stage
        .gate
        .signed("/tiki/refund", &of_size("r-1", LIMIT + 1));
    stage.refuses("declared", over.to_bytes(), TOO_LARGE).await;
    stage
        .refuses("declared, not sent", over.head(), TOO_LARGE)
        .await;
    for size in [LIMIT + 1, LIMIT, 100, 1] {
        let what = format!("in chunks of {size}");
        stage.refuses(&what, chunked(&over, size), TOO_LARGE).await;
    }
    for length in ["1025", "1000000000000", "9223372036854775807"] {
        let call = over.clone().with("Content-Length", length);
        stage.refuses(length, call.head(), TOO_LARGE).await;
    }
    stage.nothing_reached_the_backend("before");

    let exact = of_size("declared", LIMIT);
    assert_eq!(stage.gate.post("/tiki/refund", &exact).await.status, 200);
    let in_chunks = of_size("in-chunks", LIMIT);
    let call = stage.gate.signed("/tiki/refund", &in_chunks);
    assert_eq!(stage.gate.send_bytes(chunked(&call, 100)).await.status, 200);
    stage.only_clean_calls(&[exact.as_bytes(), in_chunks.as_bytes()]);
}

#[tokio::test]
async fn a_body_without_an_end_is_not_read_to_it() {
    let stage = limited().await;
    let call = stage.gate.signed("/tiki/refund", "");
    let call = call
        .without("Content-Length")
        .and("Transfer-Encoding", "chunked");
    let mut client = stage.gate.connect().await;
    client.send(call.head()).await;
    for _ in 0..=LIMIT / 64 {
        client.send(format!("40\r\n{}\r\n", "x".repeat(64))).await;
    }
    stage.check("endless", &client.read_answer().await, TOO_LARGE);
    assert!(client.is_closed().await);
    stage.still_passes().await;
}

#[tokio::test]
async fn each_route_has_its_own_limit() {
    let stage = limited().await;
    let usual = 64 << 10;
    let exact = stage.gate.signed("/tiki/any", &"x".repeat(usual));
    let over = stage.gate.signed("/tiki/any", &"x".repeat(usual + 1));
    stage.refuses("declared", over.to_bytes(), TOO_LARGE).await;
    stage
        .refuses("in chunks", chunked(&over, 5000), TOO_LARGE)
        .await;
    assert_eq!(stage.gate.send(&exact).await.status, 200);
    stage.only_clean_calls(&[&exact.body]);
}

#[tokio::test]
async fn a_packed_body_is_refused_whatever_is_in_it() {
    let stage = Stage::start().await;
    let good = stage.gate.signed("/tiki/refund", &refund("r-1", "1"));
    for coding in [
        "gzip",
        "GZIP",
        "x-gzip",
        "deflate",
        "br",
        "zstd",
        "compress",
        "aes128gcm",
        "unknown",
        "",
        ",",
        "identity, gzip",
        "gzip, identity",
        "identity;q=1",
        "identityx",
        "identity, identity",
    ] {
        let call = good.clone().and("Content-Encoding", coding);
        stage.refuses(coding, call.to_bytes(), PACKED).await;
    }
    let two = good
        .clone()
        .and("Content-Encoding", "identity")
        .and("Content-Encoding", "gzip");
    stage.refuses("two headers", two.to_bytes(), PACKED).await;
    let gzip: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xab\xae\x05\0\x43\xbf\xa6\xa3\x02\0\0\0";
    let packed = Call::post("/tiki/any", gzip, stage.gate.now()).and("Content-Encoding", "gzip");
    stage
        .refuses("on a route for anything", packed.to_bytes(), PACKED)
        .await;
    let silent = Call::post("/tiki/refund", gzip, stage.gate.now());
    stage
        .refuses("packed without a word", silent.to_bytes(), MALFORMED)
        .await;
    stage.nothing_reached_the_backend("before");

    let plain = good.and("Content-Encoding", "Identity");
    assert_eq!(stage.gate.send(&plain).await.status, 200);
    stage.only_clean_calls(&[&plain.body]);
}

/// Bodies that are not JSON, or that two readers would read apart.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let good = refund("r-1", "1000");
    let open = good.strip_suffix('}').unwrap();
    let with = |more: &str| format!("{open},{more}}}").into_bytes();
    let amount = |text: &str| refund("r-1", text).into_bytes();
    let nested = |levels: usize| format!("\"x\":{}{}", "[".repeat(levels), "]".repeat(levels));
    let objects =
        |levels: usize| format!("\"x\":{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
    let bytes = |text: &[u8]| {
        let (before, after) = good.split_once("t-1").unwrap();
        [before.as_bytes(), text, after.as_bytes()].concat()
    };
    vec![
        ("nothing", Vec::new()),
        ("a space", b" ".to_vec()),
        ("a byte order mark", format!("\u{feff}{good}").into()),
        (
            "a byte order mark behind a space",
            format!(" \u{feff}{good}").into(),
        ),
        (
            "a byte order mark at the end",
            format!("{good}\u{feff}").into(),
        ),
        (
            "UTF-16",
            good.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        ),
        ("a trailing byte", format!("{good}x").into()),
        ("a trailing NUL", format!("{good}\0").into()),
        ("a trailing comma", with("").to_vec()),
        ("two bodies", format!("{good}{good}").into()),
        ("a body a line", format!("{good}\n{good}").into()),
        ("a comment", format!("{good}// x").into()),
        ("a comment inside", with("/* x */\"y\":1")),
        ("an XSSI prefix", format!(")]}}',\n{good}").into()),
        ("not closed", open.as_bytes().to_vec()),
        ("closed twice", format!("{good}}}").into()),
        ("in quotes", serde_json::to_vec(&good).unwrap()),
        ("an array", format!("[{good}]").into()),
        ("a number", b"1".to_vec()),
        ("null", b"null".to_vec()),
        ("a form", b"request_id=r-1&transaction_amount=1".to_vec()),
        ("single quotes", good.replace('"', "'").into_bytes()),
        ("no quotes", with("x:1")),
        ("a no-break space", with("\u{a0}\"x\":1")),
        ("NaN", amount("NaN")),
        ("Infinity", amount("Infinity")),
        ("-Infinity", amount("-Infinity")),
        ("a leading zero", amount("0100")),
        ("a plus", amount("+1")),
        ("a lone minus", amount("-")),
        ("no digit after the point", amount("1.")),
        ("no digit before the point", amount(".5")),
        ("no digit in the exponent", amount("1e")),
        ("hexadecimal", amount("0x10")),
        ("an underscore", amount("1_000")),
        ("a comma in a number", amount("1,000")),
        ("digits of another script", amount("١")),
        ("NaN where nobody looks", with("\"x\":NaN")),
        ("200 levels of arrays", with(&nested(200))),
        ("200 levels of objects", with(&objects(200))),
        ("64 levels and the body's own", with(&nested(64))),
        (
            "30000 levels",
            with(&format!("\"x\":{}", "[".repeat(30_000))),
        ),
        ("a key twice", with("\"request_id\":\"r-1\"")),
        (
            "a key twice with another value",
            with("\"transaction_amount\":9000"),
        ),
        (
            "a key twice, spelled apart",
            with("\"transaction\\u005famount\":9000"),
        ),
        (
            "a key twice, all spelled apart",
            with("\"\\u0072\\u0065ason\":\"x\""),
        ),
        (
            "a key twice in capitals of hex",
            with("\"transaction\\u005Famount\":1000"),
        ),
        ("an unlisted key twice", with("\"x\":1,\"x\":1")),
        ("a key twice inside", with("\"x\":{\"y\":1,\"\\u0079\":2}")),
        (
            "a key twice in an array's object",
            with("\"x\":[{\"y\":1,\"y\":1}]"),
        ),
        ("an empty key twice", with("\"\":1,\"\":1")),
        ("a lone surrogate", with("\"x\":\"\\ud800\"")),
        ("a lone surrogate in a key", with("\"\\udc00\":1")),
        (
            "surrogates in the wrong order",
            with("\"x\":\"\\udc00\\ud800\""),
        ),
        ("a wrong escape", with("\"x\":\"\\x41\"")),
        ("half an escape", with("\"x\":\"\\u00\"")),
        ("a raw line feed in a string", with("\"x\":\"a\nb\"")),
        ("a raw NUL in a string", with("\"x\":\"a\0b\"")),
        ("a byte that is no UTF-8", bytes(b"t\xff1")),
        ("Latin-1", bytes(b"Kh\xe1ch")),
        ("an overlong NUL", bytes(b"t\xc0\x80")),
        ("an overlong quote", bytes(b"t\xc0\xa2")),
        ("a surrogate in bytes", bytes(b"t\xed\xa0\x80")),
        ("beyond Unicode", bytes(b"t\xf4\x90\x80\x80")),
        ("half a character", bytes(b"t\xe2\x82")),
    ]
}

#[tokio::test]
async fn a_signed_body_that_is_not_strict_json_is_malformed_on_every_typed_route() {
    let stage = Stage::start().await;
    for (what, body) in malformed() {
        for path in ["/tiki/refund", "/tiki/ipn", "/tiki/order"] {
            let call = Call::post(path, &body, stage.gate.now());
            stage
                .refuses(&format!("{what} on {path}"), call.to_bytes(), MALFORMED)
                .await;
            let line = stage.last_line();
            assert_eq!(
                line["tikigate.client"], "wallet",
                "it is known who sent {what}"
            );
            assert_eq!(
                line["tikigate.idempotency_key"],
                serde_json::Value::Null,
                "{what}"
            );
        }
    }
    stage.still_passes().await;
}

#[tokio::test]
async fn a_key_given_twice_is_named_and_escaped() {
    let stage = Stage::start().await;
    let body = r#"{"a\u001b[2J\u202e":1,"a\u001b[2J\u202e":2}"#;
    let call = stage.gate.signed("/tiki/refund", body);
    let answer = stage
        .refuses("a hostile key", call.to_bytes(), MALFORMED)
        .await;
    let message = answer.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains("occurs twice") && message.contains("\\u{1b}[2J"),
        "{message}"
    );
    assert!(!message.contains('\u{1b}'), "{message:?}");
    let long = format!(r#"{{"{0}":1,"{0}":2}}"#, "k".repeat(5000));
    let answer = stage.gate.post("/tiki/refund", &long).await;
    assert!(
        answer.body.len() < 300,
        "a caller can't make the answer grow: {}",
        answer.text()
    );
    stage.still_passes().await;
}

#[tokio::test]
async fn nesting_that_a_reader_can_take_passes() {
    let stage = Stage::start().await;
    let body = refund("r-1", "1");
    let open = body.strip_suffix('}').unwrap();
    let body = format!("{open},\"x\":{}{}}}", "[".repeat(63), "]".repeat(63));
    assert_eq!(stage.gate.post("/tiki/refund", &body).await.status, 200);
    stage.only_clean_calls(&[body.as_bytes()]);
}
