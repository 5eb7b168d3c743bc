//! `tikigate sign` and `tikigate verify`, with each other, with `curl` and with a running gate.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{Ended, ask, run, run_with, setup, tikigate};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{CLIENT, OTHER_SECRET, SECRET, refund, usual};

const TIMESTAMP: &str = "1667980513000";
const BODY: &str = r#"{"request_id":"r-1","transaction_amount":150000,"reason":"đổi ý"}"#;

/// A directory with the secret, as an editor leaves it, and a body.
fn desk() -> tempfile::TempDir {
    let desk = tempfile::tempdir().unwrap();
    fs::write(desk.path().join("secret"), format!("{SECRET}\n")).unwrap();
    fs::write(desk.path().join("other"), OTHER_SECRET).unwrap();
    fs::write(desk.path().join("body.json"), BODY).unwrap();
    desk
}

fn sign(desk: &Path, more: &[&str]) -> Ended {
    let line = [
        &["sign", "--client-id", CLIENT, "--secret-file", "secret"],
        more,
    ]
    .concat();
    run(tikigate(&line).current_dir(desk))
}

fn verify(desk: &Path, more: &[&str], input: &[u8]) -> Ended {
    let line = [
        &["verify", "--client-id", CLIENT, "--secret-file", "secret"],
        more,
    ]
    .concat();
    let ended = run_with(tikigate(&line).current_dir(desk), input);
    assert!(
        !ended.out.contains(SECRET) && !ended.err.contains(SECRET),
        "{ended:?}"
    );
    ended
}

/// The value of a printed header.
fn header<'t>(signed: &'t str, name: &str) -> &'t str {
    let value = signed
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.unwrap_or_else(|| panic!("no {name} in {signed}"))
}

#[test]
fn what_is_signed_is_verified() {
    let desk = desk();
    for (family, prefix) in [("tikivip", "X-Tikivip"), ("tiniapp", "X-Tiniapp")] {
        for source in [
            ["--body", "body.json"],
            ["--path", "/order?location=H%C3%A0&order_id=1"],
        ] {
            let signed = sign(desk.path(), &[&["--family", family], &source[..]].concat()).worked();
            assert_eq!(signed.lines().count(), 3, "{signed}");
            assert_eq!(header(&signed, &format!("{prefix}-Client-Id")), CLIENT);
            let timestamp = header(&signed, &format!("{prefix}-Timestamp"));
            let signature = header(&signed, &format!("{prefix}-Signature"));
            let given = [
                "--family",
                family,
                "--timestamp",
                timestamp,
                "--signature",
                signature,
            ];
            let more = [&given[..], &source, &["--max-age", "5m"]].concat();
            let told = verify(desk.path(), &more, b"").worked();
            assert!(told.starts_with("the signature matches\n"), "{told}");

            let digit = if signature.starts_with('0') { "1" } else { "0" };
            let forged = format!("{digit}{}", &signature[1..]);
            let given = ["--timestamp", timestamp, "--signature", &forged];
            let told = verify(desk.path(), &[&given[..], &source].concat(), b"").failed(1);
            assert!(told.contains("the signature does not match"), "{told}");
        }
    }
}

fn hmac(key: &str, message: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(message.as_bytes());
    mac.finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn payload(timestamp: &str, body: &str) -> String {
    format!("{timestamp}.{CLIENT}.{body}")
}

/// As docs/protocol.md says.
fn right(key: &str, timestamp: &str, body: &str) -> String {
    hmac(key, &URL_SAFE_NO_PAD.encode(payload(timestamp, body)))
}

#[test]
fn each_usual_mistake_is_named() {
    let pretty = "{\n  \"request_id\": \"r-1\",\n  \"transaction_amount\": 150000,\n  \"reason\": \"đổi ý\"\n}";
    let with_newline = format!("{BODY}\n");
    let padded = (0..3)
        .map(|spaces| format!("{BODY}{}", " ".repeat(spaces)))
        .find(|body| URL_SAFE.encode(payload(TIMESTAMP, body)).ends_with('='))
        .unwrap();
    let cases: [(&str, &str, &str, String); 12] = [
        // cause, the header's timestamp, the received body, the signature that came with it
        (
            "body_minified",
            TIMESTAMP,
            pretty,
            right(SECRET, TIMESTAMP, BODY),
        ),
        (
            "body_pretty_printed",
            TIMESTAMP,
            BODY,
            right(SECRET, TIMESTAMP, pretty),
        ),
        (
            "newline_missing",
            TIMESTAMP,
            &with_newline,
            right(SECRET, TIMESTAMP, BODY),
        ),
        (
            "newline_added",
            TIMESTAMP,
            BODY,
            right(SECRET, TIMESTAMP, &with_newline),
        ),
        (
            "timestamp_seconds",
            "1667980513",
            BODY,
            right(SECRET, "1667980513", BODY),
        ),
        (
            "timestamp_microseconds",
            "1667980513000000",
            BODY,
            right(SECRET, "1667980513000000", BODY),
        ),
        (
            "timestamp_signed_in_seconds",
            TIMESTAMP,
            BODY,
            right(SECRET, "1667980513", BODY),
        ),
        (
            "not_encoded",
            TIMESTAMP,
            BODY,
            hmac(SECRET, &payload(TIMESTAMP, BODY)),
        ),
        (
            "base64_padded",
            TIMESTAMP,
            &padded,
            hmac(SECRET, &URL_SAFE.encode(payload(TIMESTAMP, &padded))),
        ),
        (
            "secret_with_line_end",
            TIMESTAMP,
            BODY,
            right(&format!("{SECRET}\n"), TIMESTAMP, BODY),
        ),
        (
            "another_secret",
            TIMESTAMP,
            BODY,
            right(OTHER_SECRET, TIMESTAMP, BODY),
        ),
        (
            "signature_upper_case",
            TIMESTAMP,
            BODY,
            right(SECRET, TIMESTAMP, BODY).to_uppercase(),
        ),
    ];
    let desk = desk();
    for (cause, timestamp, body, signature) in cases {
        let given = [
            "--timestamp",
            timestamp,
            "--signature",
            &signature,
            "--body",
            "-",
            "--secret-file",
            "other",
        ];
        let told = verify(desk.path(), &given, body.as_bytes()).failed(1);
        assert!(
            told.starts_with("the signature does not match:\n"),
            "{cause}: {told}"
        );
        let named: Vec<_> = told
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.split(':').next())
            .collect();
        assert_eq!(named, [cause], "{told}");
    }

    fs::write(desk.path().join("secret"), format!(" {SECRET} \n")).unwrap();
    let signature = right(SECRET, TIMESTAMP, BODY);
    let given = [
        "--timestamp",
        TIMESTAMP,
        "--signature",
        &signature,
        "--body",
        "body.json",
    ];
    let told = verify(desk.path(), &given, b"").failed(1);
    assert!(told.contains("  secret_trimmed: "), "{told}");

    let nothing = right("who knows", TIMESTAMP, BODY);
    let given = [
        "--timestamp",
        TIMESTAMP,
        "--signature",
        &nothing,
        "--body",
        "body.json",
    ];
    let told = verify(desk.path(), &given, b"").failed(1);
    assert!(
        told.contains("none of the usual mistakes explains it"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_printed_curl_command_makes_the_call() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let gate = setup(&usual(&backend.url())).start();
    let desk = desk();
    let body = refund("r-it's \\\"$HOME\\\" `x`", "1e3");
    fs::write(desk.path().join("it's a refund.json"), format!("{body}\n")).unwrap();
    let base = format!("http://{}", gate.address());
    let url = format!("{base}/tiki/refund");
    let query = "/tiki/order-status?order=H%C3%A0+N%E1%BB%99i&list=[1]";
    for (source, to) in [
        (["--body", "it's a refund.json"], &url),
        (["--path", query], &base),
    ] {
        for family in ["tikivip", "tiniapp"] {
            let more = [&["--family", family], &source[..], &["--curl", to]].concat();
            let curl = sign(desk.path(), &more).worked();
            assert!(!curl.contains(SECRET), "{curl}");
            let answered = sh(desk.path(), &curl).worked();
            assert_eq!(answered, r#"{"data":{"status":"success"}}"#, "{curl}");
        }
    }
    let seen = backend.requests();
    // Of the refund there is one: the second family's is answered from the ledger.
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[0].text(), format!("{body}\n"), "curl changed the body");
    assert_eq!((seen[1].target(), seen[2].target()), (query, query));
    assert!(ask(&gate, &["ledger", "list"]).worked().contains("done"));

    // As the help shows it: through a pipe, without a file.
    let line = format!(
        "printf %s '{}' | \"$TIKIGATE\" sign --client-id {CLIENT} --secret-file secret --body - --curl {url} | sh",
        refund("r-2", "1")
    );
    assert_eq!(
        sh(desk.path(), &line).worked(),
        r#"{"data":{"status":"success"}}"#
    );
    assert_eq!(backend.requests()[3].text(), refund("r-2", "1"));
}

fn sh(directory: &Path, script: &str) -> Ended {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(directory);
    command.env("TIKIGATE", env!("CARGO_BIN_EXE_tikigate"));
    // No progress bar, and no proxy on the way to the loopback.
    command.env("CURL_HOME", directory).env("NO_PROXY", "*");
    fs::write(directory.join(".curlrc"), "silent\nshow-error\n").unwrap();
    run(&mut command)
}

#[test]
fn a_secret_that_cannot_be_read_fails_with_its_file() {
    let desk = desk();
    fs::remove_file(desk.path().join("secret")).unwrap();
    let told = sign(desk.path(), &["--body", "body.json"]).failed(1);
    assert!(
        told.contains("tikigate sign: can't read the secret from secret"),
        "{told}"
    );
    let given = [
        "--timestamp",
        TIMESTAMP,
        "--signature",
        "00",
        "--body",
        "body.json",
    ];
    let told = verify(desk.path(), &given, b"").failed(1);
    assert!(
        told.contains("tikigate verify: can't read the secret from secret"),
        "{told}"
    );
}
