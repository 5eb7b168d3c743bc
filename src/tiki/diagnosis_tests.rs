use super::*;

const CLIENT: &str = "RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W";
const TIMESTAMP: &str = "1667980513000";
const SECRET: &[u8] = b"EhjGcsUUuRSJTHiYPbW5fxzyaKEx0JuA";
const BODY: &str = r#"{"request_id":"r/1","reason":"đổi <ý>","amount":1000.0,"list":[1,{}]}"#;

type Encode = fn(&[u8]) -> Vec<u8>;

/// What a sender with mistakes computed.
struct Sender<'a> {
    timestamp: &'a str,
    signed: &'a [u8],
    secret: &'a [u8],
    encode: Encode,
}

const RIGHT: Sender<'static> = Sender {
    timestamp: TIMESTAMP,
    signed: BODY.as_bytes(),
    secret: SECRET,
    encode: |payload| URL_SAFE_NO_PAD.encode(payload).into_bytes(),
};

impl Sender<'_> {
    fn signature(&self) -> String {
        let message = (self.encode)(&payload(self.timestamp, CLIENT, self.signed));
        base16ct::lower::encode_string(&SigningKey::from_secret(self.secret).hmac(&message))
    }
}

fn case<'a>(signed: Signed<'a>, signature: &'a str, secrets: &'a [&'a [u8]]) -> Case<'a> {
    Case {
        timestamp: TIMESTAMP,
        client_id: CLIENT,
        signed,
        signature,
        secrets,
    }
}

fn names(diagnosis: Diagnosis) -> Vec<&'static str> {
    match diagnosis {
        Diagnosis::Mistakes(causes) => {
            assert!(causes.iter().all(|cause| cause.advice.len() > 20));
            causes.iter().map(|cause| cause.name).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// The causes that are named when `sender` signed and `received` arrived.
fn causes(sender: &Sender<'_>, received: &[u8]) -> Vec<&'static str> {
    let signature = sender.signature();
    names(diagnose(&case(
        Signed::Body(received),
        &signature,
        &[SECRET],
    )))
}

#[test]
fn a_right_signature_matches() {
    let signature = RIGHT.signature();
    let right = case(Signed::Body(BODY.as_bytes()), &signature, &[SECRET]);
    assert_eq!(diagnose(&right), Diagnosis::Matches);
}

#[test]
fn what_is_altered_otherwise_is_unexplained() {
    let signature = RIGHT.signature();
    let other = BODY.replace("1000", "9000");
    let altered = case(Signed::Body(other.as_bytes()), &signature, &[SECRET]);
    assert_eq!(diagnose(&altered), Diagnosis::Unexplained(Vec::new()));
}

#[test]
fn other_layouts_of_the_body_are_named() {
    let minified = r#"{"a":1.50,"b":["x y",{}]}"#;
    for pretty in [
        "{\n  \"a\": 1.50,\n  \"b\": [\n    \"x y\",\n    {}\n  ]\n}",
        "{\n    \"a\": 1.50,\n    \"b\": [\n        \"x y\",\n        {}\n    ]\n}",
        "{\n\t\"a\": 1.50,\n\t\"b\": [\n\t\t\"x y\",\n\t\t{}\n\t]\n}",
        r#"{"a": 1.50, "b": ["x y", {}]}"#,
    ] {
        let sender = Sender {
            signed: minified.as_bytes(),
            ..RIGHT
        };
        assert_eq!(causes(&sender, pretty.as_bytes()), ["body_minified"]);
        let sender = Sender {
            signed: pretty.as_bytes(),
            ..RIGHT
        };
        assert_eq!(
            causes(&sender, minified.as_bytes()),
            ["body_pretty_printed"],
            "{pretty}"
        );
    }
}

#[test]
fn edges_of_the_body_are_named() {
    for (signed, received, name) in [
        ("{}\n", "{}", "newline_added"),
        ("{}\r\n", "{}", "newline_added"),
        ("{}", "{}\n", "newline_missing"),
        ("{}", "{}\r\n", "newline_missing"),
        ("{}", "\u{feff}{}", "byte_order_mark_removed"),
        ("\u{feff}{}", "{}", "byte_order_mark_added"),
        ("[\n1]", "[\r\n1]", "line_ends_changed"),
        ("[\r\n1]", "[\n1]", "line_ends_changed"),
        ("", "{}", "body_empty"),
        ("not json\n", "not json", "newline_added"),
    ] {
        let sender = Sender {
            signed: signed.as_bytes(),
            ..RIGHT
        };
        assert_eq!(causes(&sender, received.as_bytes()), [name], "{signed:?}");
    }
}

#[test]
fn other_languages_are_named() {
    for (signed, name) in [
        (
            r#"{"amount":1000.0,"list":[1,{}],"reason":"đổi <ý>","request_id":"r/1"}"#,
            "body_sorted",
        ),
        (
            r#"{"request_id":"r/1","reason":"đổi <ý>","amount":1000,"list":[1,{}]}"#,
            "body_as_javascript",
        ),
        (
            r#"{"amount":1000,"list":[1,{}],"reason":"đổi \u003cý\u003e","request_id":"r/1"}"#,
            "body_as_go",
        ),
        (
            r#"{"request_id":"r/1","reason":"đổi \u003cý\u003e","amount":1000,"list":[1,{}]}"#,
            "body_as_go",
        ),
        (
            r#"{"request_id":"r\/1","reason":"\u0111\u1ed5i <\u00fd>","amount":1000.0,"list":[1,{}]}"#,
            "body_as_php",
        ),
        (
            r#"{"request_id": "r/1", "reason": "\u0111\u1ed5i <\u00fd>", "amount": 1000.0, "list": [1, {}]}"#,
            "body_as_python",
        ),
    ] {
        let sender = Sender {
            signed: signed.as_bytes(),
            ..RIGHT
        };
        assert_eq!(causes(&sender, BODY.as_bytes()), [name], "{signed}");
    }
}

#[test]
fn units_of_the_timestamp_are_named() {
    for (signed, name) in [
        ("1667980513", "timestamp_signed_in_seconds"),
        ("1667980513000000", "timestamp_signed_in_microseconds"),
    ] {
        let sender = Sender {
            timestamp: signed,
            ..RIGHT
        };
        assert_eq!(causes(&sender, BODY.as_bytes()), [name]);
        // The header says the same, and the signature is right for it.
        let signature = sender.signature();
        let header = Case {
            timestamp: signed,
            ..case(Signed::Body(BODY.as_bytes()), &signature, &[SECRET])
        };
        assert_eq!(names(diagnose(&header)), [name.replace("_signed_in", "")]);
    }
}

#[test]
fn recipes_are_named() {
    let recipes: [(Encode, _); 4] = [
        (|payload| payload.to_vec(), "not_encoded"),
        (
            |payload| URL_SAFE.encode(payload).into_bytes(),
            "base64_padded",
        ),
        (
            |payload| STANDARD_NO_PAD.encode(payload).into_bytes(),
            "base64_standard_alphabet",
        ),
        (
            |payload| STANDARD.encode(payload).into_bytes(),
            "base64_standard",
        ),
    ];
    // A body after which the alphabets and the padding differ.
    let body = "{\"a\":\"ÿþû💸>>>???\"}";
    for (encode, name) in recipes {
        let sender = Sender {
            signed: body.as_bytes(),
            encode,
            ..RIGHT
        };
        assert_eq!(causes(&sender, body.as_bytes()), [name]);
    }
    let bare =
        base16ct::lower::encode_string(&SigningKey::from_secret(SECRET).hmac(body.as_bytes()));
    assert_eq!(
        names(diagnose(&case(
            Signed::Body(body.as_bytes()),
            &bare,
            &[SECRET]
        ))),
        ["only_the_body_not_encoded"]
    );
}

#[test]
fn secrets_are_named() {
    let body = Signed::Body(BODY.as_bytes());
    let with_end = [SECRET, b"\n"].concat();
    let signature = Sender {
        secret: &with_end,
        ..RIGHT
    }
    .signature();
    assert_eq!(
        names(diagnose(&case(body, &signature, &[SECRET]))),
        ["secret_with_line_end"]
    );

    let padded = [b" ", SECRET, b" "].concat();
    let signature = RIGHT.signature();
    assert_eq!(
        names(diagnose(&case(body, &signature, &[&padded]))),
        ["secret_trimmed"]
    );

    let secrets: &[&[u8]] = &[b"new", b"other", SECRET];
    let diagnosis = diagnose(&case(body, &signature, secrets));
    let Diagnosis::Mistakes(causes) = &diagnosis else {
        panic!("{diagnosis:?}");
    };
    assert!(causes[0].advice.contains("number 3"));
    assert_eq!(names(diagnosis), ["another_secret"]);
}

#[test]
fn spellings_of_the_signature_are_named() {
    let signature = RIGHT.signature();
    let body = Signed::Body(BODY.as_bytes());
    let of = |text: &str| diagnose(&case(body, text, &[SECRET]));
    assert_eq!(
        names(of(&signature.to_uppercase())),
        ["signature_upper_case"]
    );
    assert_eq!(
        names(of(&format!("{signature}\n"))),
        ["signature_whitespace"]
    );
    let bytes = base16ct::lower::decode_vec(&signature).unwrap();
    assert_eq!(names(of(&STANDARD.encode(bytes))), ["signature_base64"]);
    let Diagnosis::Unexplained(causes) = of(&signature[1..]) else {
        panic!();
    };
    assert_eq!(causes[0].name, "signature_malformed");
    assert!(causes[0].advice.contains("63 characters"));
}

#[test]
fn spellings_of_a_path_are_named() {
    let path = "/transaction?name=H%C3%A0%20N&x=1";
    for (signed, received, name) in [
        (
            "https://api.tiki.vn/miniapp/tikivip/transaction?a=1",
            "/transaction?a=1",
            "path_with_base_url",
        ),
        (
            "/miniapp/tikivip/transaction?a=1",
            "/transaction?a=1",
            "path_with_base_url",
        ),
        (
            "/transaction?a=1",
            "https://example.test/v1/transaction?a=1",
            "path_without_prefix",
        ),
        (
            "/transaction?a=1/2",
            "/gate/transaction?a=1/2",
            "path_without_prefix",
        ),
        ("/transaction?name=H%C3%A0+N&x=1", path, "path_space"),
        (path, "/transaction?name=H%C3%A0+N&x=1", "path_space"),
        (
            "/transaction?name=H%c3%a0%20N&x=1",
            path,
            "path_escape_case",
        ),
        ("/transaction?name=Hà N&x=1", path, "path_not_escaped"),
        ("/transaction", path, "path_without_query"),
        ("transaction?a=1", "/transaction?a=1", "path_without_slash"),
    ] {
        let signature = Sender {
            signed: signed.as_bytes(),
            ..RIGHT
        }
        .signature();
        let diagnosis = diagnose(&case(Signed::Path(received), &signature, &[SECRET]));
        assert_eq!(names(diagnosis), [name], "{signed}");
    }
}

#[test]
fn mistakes_add_up() {
    let sender = Sender {
        timestamp: "1667980513",
        signed: br#"{"a":1}"#,
        secret: b"other",
        encode: |payload| payload.to_vec(),
    };
    let signature = sender.signature().to_uppercase();
    let secrets: &[&[u8]] = &[SECRET, b"other"];
    let found = diagnose(&Case {
        timestamp: TIMESTAMP,
        ..case(Signed::Body(br#"{"a":1}"#), &signature, secrets)
    });
    assert_eq!(
        names(found),
        [
            "signature_upper_case",
            "not_encoded",
            "another_secret",
            "timestamp_signed_in_seconds"
        ]
    );
    let sender = Sender {
        signed: b"{\n  \"a\": 1\n}\n",
        ..sender
    };
    let signature = Sender {
        timestamp: TIMESTAMP,
        ..sender
    }
    .signature();
    let found = diagnose(&case(Signed::Body(br#"{"a":1}"#), &signature, &[b"other"]));
    assert_eq!(
        names(found),
        ["not_encoded", "body_pretty_printed", "newline_added"]
    );
}

#[test]
fn a_large_hostile_body_is_diagnosed_in_bounded_time() {
    let body = "[".repeat(65_536);
    let signature = "0".repeat(64);
    let found = diagnose(&case(Signed::Body(body.as_bytes()), &signature, &[SECRET]));
    assert_eq!(found, Diagnosis::Unexplained(Vec::new()));
}
