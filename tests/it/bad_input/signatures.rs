//! The three signature headers, and who may sign.

use tikigate::tiki::Family;

use super::{Refused, Stage, UNAUTHENTICATED};
use crate::support::gate::{
    CLIENT, Call, OTHER_CLIENT, OTHER_SECRET, SECRET, TestGate, refund, usual,
};
use crate::support::raw::RawAnswer;

const TIMESTAMP: &str = "x-tikivip-timestamp";
const CLIENT_ID: &str = "x-tikivip-client-id";
const SIGNATURE: &str = "x-tikivip-signature";

fn unauthenticated(reason: &'static str) -> Refused {
    (401, UNAUTHENTICATED, reason)
}

/// A good refund, and what becomes of it when it is spoiled: a name for it, the call, the reason.
fn spoiled(gate: &TestGate) -> Vec<(String, Call, &'static str)> {
    let good = gate.signed("/tiki/refund", &refund("r-1", "1000"));
    let mut calls = Vec::new();
    let mut add = |what: String, call: Call, reason| calls.push((what, call, reason));

    for name in [TIMESTAMP, CLIENT_ID, SIGNATURE] {
        let value = good.header(name).to_owned();
        add(
            format!("no {name}"),
            good.clone().without(name),
            "missing_header",
        );
        for second in [&*value, "", "x"] {
            let call = good.clone().and(name, second);
            add(
                format!("a second {name}: {second:?}"),
                call,
                "duplicate_header",
            );
        }
        let apart = good.clone().and(&name.to_uppercase(), &value);
        add(
            format!("a second {name} in capitals"),
            apart,
            "duplicate_header",
        );
        let other = name.replace("tikivip", "tiniapp");
        for value in [&*value, ""] {
            let call = good.clone().and(&other, value);
            add(
                format!("{other}: {value:?} beside the other family"),
                call,
                "mixed_families",
            );
        }
        let call = good.clone().without(name).and(&other, &value);
        add(
            format!("{other} in place of {name}"),
            call,
            "mixed_families",
        );
        let underscores = name.replace('-', "_");
        let call = good.clone().without(name).and(&underscores, &value);
        add(
            format!("{underscores} in place of {name}"),
            call,
            "missing_header",
        );
    }
    let mut both = good.clone();
    let tiniapp = Call::post_as(
        (CLIENT, SECRET),
        Family::TiniApp,
        "/tiki/refund",
        &good.body,
        gate.now(),
    );
    both.headers.extend(
        tiniapp
            .headers
            .into_iter()
            .filter(|(name, _)| name.starts_with("x-tini")),
    );
    add("both families, both right".into(), both, "mixed_families");
    let none = good
        .clone()
        .without(TIMESTAMP)
        .without(CLIENT_ID)
        .without(SIGNATURE);
    add("no signature at all".into(), none, "missing_header");

    for text in timestamps(good.header(TIMESTAMP)) {
        add(
            format!("timestamp {text:?}"),
            good.clone().with(TIMESTAMP, &text),
            "bad_timestamp",
        );
    }
    let mac = good.header(SIGNATURE).to_owned();
    for text in other_spellings(&mac) {
        add(
            format!("signature {text:?}"),
            good.clone().with(SIGNATURE, &text),
            "bad_signature",
        );
    }
    for id in strangers() {
        add(
            format!("client {id:?}"),
            good.clone().with(CLIENT_ID, &id),
            "unknown_client",
        );
    }
    for (what, call) in wrongly_signed(gate, &good) {
        add(what.into(), call, "bad_signature");
    }
    let allowed_elsewhere = Call::post_as(
        (OTHER_CLIENT, OTHER_SECRET),
        Family::TikiVip,
        "/tiki/refund",
        &good.body,
        gate.now(),
    );
    add(
        "another route's client".into(),
        allowed_elsewhere,
        "client_not_allowed",
    );
    calls
}

/// In other units and spellings; `good` has 13 digits.
fn timestamps(good: &str) -> Vec<String> {
    let (head, tail) = good.split_at(7);
    vec![
        String::new(),
        good[..10].to_owned(),
        format!("{good}000"),
        format!("{good}000000"),
        format!("-{good}"),
        format!("-{}", &good[1..]),
        format!("+{good}"),
        format!("+{}", &good[1..]),
        format!("0{good}"),
        format!("{head} {tail}"),
        format!("{head}\t{tail}"),
        format!("{good},{good}"),
        format!("{good}.0"),
        format!("{good}e0"),
        format!("{}e3", &good[..10]),
        "0".repeat(13),
        "18446744073709551616".to_owned(),
        "340282366920938463463374607431768211456".to_owned(),
        format!("18446744{good}"),
        "0x1845c5f1a88".to_owned(),
        "NaN".to_owned(),
        "2022-11-09T07:55:13Z".to_owned(),
        "١٦٦٧٩٨٠٥١٣٠٠٠".to_owned(),
        "9".repeat(5000),
    ]
}

fn other_spellings(mac: &str) -> Vec<String> {
    vec![
        String::new(),
        mac.to_uppercase(),
        mac[1..].to_owned(),
        mac[..63].to_owned(),
        format!("{mac}0"),
        format!("0{mac}"),
        mac[..62].to_owned(),
        format!("{mac}{mac}"),
        format!("{}g", &mac[..63]),
        format!("{}-", &mac[..63]),
        format!("0x{}", &mac[2..]),
        format!("\"{mac}\""),
        format!("sha256={mac}"),
        format!("{mac},{mac}"),
        format!("{} {}", &mac[..32], &mac[32..]),
        format!("{}\u{e9}", &mac[..62]),
        "0".repeat(64),
        "f".repeat(5000),
    ]
}

fn strangers() -> Vec<String> {
    vec![
        String::new(),
        CLIENT.to_lowercase(),
        format!("{CLIENT}."),
        format!(".{CLIENT}"),
        format!("{CLIENT},{CLIENT}"),
        format!("{CLIENT} {CLIENT}"),
        "wallet".to_owned(),
        "a.b".to_owned(),
        "a.b.c.d".to_owned(),
        "...".to_owned(),
        "khách".to_owned(),
        "*".to_owned(),
        "x".repeat(257),
    ]
}

/// Well-formed, and not what the client signed.
fn wrongly_signed(gate: &TestGate, good: &Call) -> Vec<(&'static str, Call)> {
    let post = |secret, body: &[u8]| {
        Call::post_as(
            (CLIENT, secret),
            Family::TikiVip,
            "/tiki/refund",
            body,
            gate.now(),
        )
    };
    let mac_of = |call: &Call| call.header(SIGNATURE).to_owned();
    let path = Call::get("/tiki/refund", gate.now());
    let body_and_newline = [&good.body[..], b"\n"].concat();
    let other_body = refund("r-1", "9000");
    vec![
        (
            "with another client's secret",
            post(OTHER_SECRET, &good.body),
        ),
        ("with an empty secret", post("", &good.body)),
        ("the path", good.clone().with(SIGNATURE, &mac_of(&path))),
        (
            "an empty body",
            good.clone().with(SIGNATURE, &mac_of(&post(SECRET, b""))),
        ),
        (
            "with a newline",
            good.clone()
                .with(SIGNATURE, &mac_of(&post(SECRET, &body_and_newline))),
        ),
        (
            "another amount",
            good.clone()
                .with(SIGNATURE, &mac_of(&post(SECRET, other_body.as_bytes()))),
        ),
        (
            "another time",
            good.clone().with(TIMESTAMP, "1667980513001"),
        ),
    ]
}

#[tokio::test]
async fn a_fault_of_the_signature_is_refused_and_only_the_log_says_which() {
    let stage = Stage::start().await;
    let mut answers: Vec<(String, RawAnswer)> = Vec::new();
    for (what, call, reason) in spoiled(&stage.gate) {
        let answer = stage
            .refuses(&what, call.to_bytes(), unauthenticated(reason))
            .await;
        let line = stage.last_line();
        assert_eq!(
            line["tikigate.client"],
            serde_json::Value::Null,
            "{what}: {line}"
        );
        answers.push((what, answer));
    }
    stage.still_passes().await;
    all_alike(answers);
}

#[tokio::test]
async fn faults_on_a_get_route_are_answered_alike_too() {
    let stage = Stage::start().await;
    let good = Call::get("/tiki/order-status?order=1", stage.gate.now());
    let mut answers = Vec::new();
    for (what, call, reason) in [
        (
            "another query",
            good.clone().to("/tiki/order-status?order=2"),
            "bad_signature",
        ),
        (
            "a longer query",
            good.clone().to("/tiki/order-status?order=1&order=2"),
            "bad_signature",
        ),
        (
            "the query spelled anew",
            good.clone().to("/tiki/order-status?order=%31"),
            "bad_signature",
        ),
        (
            "no query",
            good.clone().to("/tiki/order-status"),
            "bad_signature",
        ),
        (
            "an empty parameter",
            good.clone().to("/tiki/order-status?order=1&"),
            "bad_signature",
        ),
        (
            "no signature",
            good.clone().without(SIGNATURE),
            "missing_header",
        ),
        (
            "a stranger",
            good.clone().with(CLIENT_ID, "a.b"),
            "unknown_client",
        ),
        (
            "seconds",
            good.clone().with(TIMESTAMP, "1667980513"),
            "bad_timestamp",
        ),
    ] {
        let answer = stage
            .refuses(what, call.to_bytes(), unauthenticated(reason))
            .await;
        answers.push((what.to_owned(), answer));
    }
    stage.still_passes().await;
    all_alike(answers);
}

/// No answer differs from another in anything but its date.
fn all_alike(answers: Vec<(String, RawAnswer)>) {
    let shown = |answer: &RawAnswer| {
        let mut head = answer.head.clone();
        head.fields.retain(|(name, _)| name != "date");
        (head, answer.body.clone())
    };
    let (first, rest) = answers.split_first().expect("answers");
    for (what, answer) in rest {
        assert_eq!(
            shown(answer),
            shown(&first.1),
            "{what} is answered unlike {}",
            first.0
        );
    }
}

#[tokio::test]
async fn a_family_that_is_off_is_refused_whole_or_in_parts() {
    let stage = Stage::with(&[("[signature]", "[signature]\nfamilies = [\"tikivip\"]")]).await;
    let body = refund("r-1", "1");
    let client = (CLIENT, SECRET);
    let call = Call::post_as(
        client,
        Family::TiniApp,
        "/tiki/refund",
        body,
        stage.gate.now(),
    );
    stage
        .refuses("whole", call.to_bytes(), unauthenticated("family_disabled"))
        .await;
    let part = call.clone().without("x-tiniapp-signature");
    stage
        .refuses(
            "in part",
            part.to_bytes(),
            unauthenticated("family_disabled"),
        )
        .await;
    let beside = stage
        .gate
        .signed("/tiki/refund", &refund("r-1", "1"))
        .and("x-tiniapp-signature", "");
    stage
        .refuses(
            "beside",
            beside.to_bytes(),
            unauthenticated("mixed_families"),
        )
        .await;
    stage.still_passes().await;
}

#[tokio::test]
async fn white_space_around_a_header_is_no_part_of_it() {
    let stage = Stage::start().await;
    let good = stage.gate.signed("/tiki/any", "x");
    let mut spaced = good.clone();
    for name in [TIMESTAMP, CLIENT_ID, SIGNATURE] {
        let value = format!("  {}\t ", good.header(name));
        spaced = spaced.with(name, &value);
    }
    let answer = stage.gate.send(&spaced).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = &stage.backend.requests()[0];
    for name in [TIMESTAMP, CLIENT_ID, SIGNATURE] {
        assert_eq!(seen.header(name), Some(good.header(name)));
        let line = format!("{name}: {}\r\n", good.header(name));
        let head = String::from_utf8(seen.raw_head.clone())
            .unwrap()
            .to_lowercase();
        assert!(head.contains(&line.to_lowercase()), "{line} in {head}");
    }
}

#[tokio::test]
async fn the_bound_between_client_and_body_cannot_be_moved() {
    let secret_of_its_own = r#"
[[clients]]
id = "a.b"
name = "shorter"
environment = "production"
secrets = [{ name = "now", file = "secret" }]
"#;
    let stage = Stage::with(&[(
        "[[routes]]\nname = \"ipn\"",
        &format!("{secret_of_its_own}[[routes]]\nname = \"ipn\""),
    )])
    .await;
    let now = stage.gate.now();
    let sign = |client, body: &[u8]| Call::post_as(client, Family::TikiVip, "/tiki/any", body, now);
    // What `a.b.c` signs over `x` is what `a.b` would sign over `c.x`, but for the secret.
    let longer = sign((OTHER_CLIENT, OTHER_SECRET), b"x");
    for (client, body, reason) in [
        ("a.b", &b"c.x"[..], "bad_signature"),
        ("a", b"b.c.x", "unknown_client"),
    ] {
        let mut shifted = sign((client, OTHER_SECRET), body);
        assert_eq!(
            shifted.header(SIGNATURE),
            longer.header(SIGNATURE),
            "the same bytes are signed"
        );
        stage
            .refuses(client, shifted.to_bytes(), unauthenticated(reason))
            .await;
        shifted = sign((client, SECRET), body).with(SIGNATURE, longer.header(SIGNATURE));
        stage
            .refuses(client, shifted.to_bytes(), unauthenticated(reason))
            .await;
    }
    stage.still_passes().await;
    assert_eq!(stage.gate.send(&longer).await.status, 200);
}

#[test]
fn two_clients_with_one_secret_and_an_ambiguous_id_do_not_start() {
    let toml = usual("http://127.0.0.1:1")
        .replace(CLIENT, "a.b")
        .replace("\"other-secret\"", "\"secret\"");
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("secret"), SECRET).unwrap();
    let Err(problems) = tikigate::config::load_text(&toml, "test.toml", directory.path(), &[])
    else {
        panic!("it starts");
    };
    let problems = format!("{problems:?}");
    assert!(problems.contains("ambiguous_clients"), "{problems}");
}

#[tokio::test]
async fn refuse_with_changes_the_status_of_unauthenticated_calls_alone() {
    let stage = Stage::with(&[("[signature]", "[signature]\nrefuse_with = 503")]).await;
    let mut answers = Vec::new();
    for (what, call, reason) in spoiled(&stage.gate) {
        let answer = stage
            .refuses(&what, call.to_bytes(), (503, UNAUTHENTICATED, reason))
            .await;
        answers.push((what, answer));
    }
    let elsewhere = stage.gate.signed("/tiki/nowhere", "{}");
    stage
        .refuses("no route", elsewhere.to_bytes(), (404, "not_found", ""))
        .await;
    let broken = stage.gate.signed("/tiki/refund", "{");
    stage
        .refuses("no JSON", broken.to_bytes(), (400, "malformed_body", ""))
        .await;
    stage.still_passes().await;
    all_alike(answers);
}
