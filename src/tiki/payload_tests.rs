use super::*;
use serde_json::{Value as Json, json};

fn refund() -> Json {
    json!({
        "tiki_transaction_id": "t-1",
        "transaction_amount": 35000,
        "transaction_id": "p-1",
        "reason": "Khách hàng đổi ý",
        "request_id": "r-1",
    })
}

fn ipn() -> Json {
    json!({
        "tiki_transaction_id": "t-1",
        "transaction_amount": 100_000,
        "transaction_id": "p-1",
    })
}

fn order() -> Json {
    json!({
        "message_id": "m-1",
        "message_type": "notification",
        "message_created_at": "2022-11-09T07:55:13.123+07:00",
        "order": {
            "id": "141857488587784201",
            "status": "canceled",
            "grand_total": 35000,
            "tiki_order_id": "1001059779",
            "tiki_order_code": "308714458",
            "extra": "",
            "reference_id": "0",
        },
    })
}

fn with(mut body: Json, pointer: &str, value: Json) -> Json {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    body.pointer_mut(parent).unwrap()[name] = value;
    body
}

fn without(mut body: Json, pointer: &str) -> Json {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = body.pointer_mut(parent).unwrap();
    parent.as_object_mut().unwrap().remove(name).unwrap();
    body
}

fn parses(kind: PayloadKind, body: &str) -> bool {
    parse_message(kind, body.as_bytes()).is_ok()
}

/// The field that is named, and the problem.
fn refusal(kind: PayloadKind, body: &str) -> (String, String) {
    match parse_message(kind, body.as_bytes()) {
        Err(PayloadFault::Field { pointer, problem }) => (pointer, problem.into_owned()),
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn typed_messages_are_read() {
    let body = refund().to_string();
    let message = parse_message(PayloadKind::Refund, body.as_bytes()).unwrap();
    let Content::Refund(read) = message.content() else {
        panic!("{message:?}");
    };
    assert_eq!(read.request_id, "r-1");
    assert_eq!(read.transaction_amount.to_string(), "35000");
    assert_eq!(read.reason, "Khách hàng đổi ý");

    let body = order().to_string();
    let message = parse_message(PayloadKind::OrderIpn, body.as_bytes()).unwrap();
    let Content::OrderIpn(read) = message.content() else {
        panic!("{message:?}");
    };
    assert_eq!(read.grand_total, 35000);
    assert_eq!(
        read.message_created_at.to_string(),
        "2022-11-09T00:55:13.123Z"
    );
    assert_eq!(read.extra.as_deref(), Some(""));

    let body = with(ipn(), "/status", json!("PENDING")).to_string();
    let message = parse_message(PayloadKind::TransactionIpn, body.as_bytes()).unwrap();
    let Content::TransactionIpn(read) = message.content() else {
        panic!("{message:?}");
    };
    assert_eq!(read.status, Some(TransactionStatus::Pending));
    assert_eq!(format!("{message:?}"), "Message(TransactionIpn)");
}

#[test]
fn required_fields_are_required() {
    let kinds = [
        (
            PayloadKind::Refund,
            refund(),
            "reason request_id tiki_transaction_id transaction_id transaction_amount",
        ),
        (
            PayloadKind::TransactionIpn,
            ipn(),
            "tiki_transaction_id transaction_id transaction_amount",
        ),
        (
            PayloadKind::OrderIpn,
            order(),
            "message_id message_type message_created_at order order/id order/status order/grand_total order/tiki_order_id order/tiki_order_code",
        ),
    ];
    for (kind, body, fields) in kinds {
        assert!(parses(kind, &body.to_string()));
        for field in fields.split(' ') {
            let pointer = format!("/{field}");
            let missing = without(body.clone(), &pointer).to_string();
            assert_eq!(
                refusal(kind, &missing),
                (pointer.clone(), "is required".into())
            );
            for wrong in [json!(null), json!(""), json!(true), json!([]), json!(["x"])] {
                let text = with(body.clone(), &pointer, wrong).to_string();
                assert_eq!(refusal(kind, &text).0, pointer, "{text}");
            }
        }
    }
}

#[test]
fn strings_and_numbers_are_not_each_other() {
    for (kind, body, pointer, value) in [
        (
            PayloadKind::Refund,
            refund(),
            "/transaction_amount",
            json!("35000"),
        ),
        (
            PayloadKind::TransactionIpn,
            ipn(),
            "/transaction_amount",
            json!("1"),
        ),
        (
            PayloadKind::OrderIpn,
            order(),
            "/order/grand_total",
            json!("1"),
        ),
        (PayloadKind::Refund, refund(), "/request_id", json!(1)),
        (PayloadKind::Refund, refund(), "/reason", json!({})),
        (
            PayloadKind::TransactionIpn,
            ipn(),
            "/transaction_id",
            json!(7),
        ),
        (PayloadKind::TransactionIpn, ipn(), "/status", json!(1)),
        (
            PayloadKind::TransactionIpn,
            ipn(),
            "/partner_banking_method",
            json!([]),
        ),
        (PayloadKind::OrderIpn, order(), "/order/extra", json!({})),
        (
            PayloadKind::OrderIpn,
            order(),
            "/order/reference_id",
            json!(0),
        ),
        (PayloadKind::OrderIpn, order(), "/order", json!("{}")),
    ] {
        let text = with(body, pointer, value).to_string();
        assert_eq!(refusal(kind, &text).0, pointer, "{text}");
    }
}

/// The body with an amount as it is written, since `serde_json` would write it anew.
fn amounting(body: Json, amount: &str) -> String {
    let placed = with(body, "/transaction_amount", json!("AMOUNT"));
    placed.to_string().replace("\"AMOUNT\"", amount)
}

#[test]
fn amounts_are_taken_as_they_are_written_and_bounded() {
    for amount in [
        "1e3",
        "1000.0",
        "35000.50",
        "123456789012345678901234567890",
        "0.01",
    ] {
        assert!(
            parses(PayloadKind::Refund, &amounting(refund(), amount)),
            "{amount}"
        );
        assert!(parses(
            PayloadKind::TransactionIpn,
            &amounting(ipn(), amount)
        ));
    }
    for amount in ["0", "-0", "0.00", "-1", "-0.5", "0e9"] {
        let (pointer, problem) = refusal(PayloadKind::Refund, &amounting(refund(), amount));
        assert_eq!(pointer, "/transaction_amount");
        assert_eq!(problem, "must be greater than 0", "{amount}");
    }
    assert!(parses(PayloadKind::TransactionIpn, &amounting(ipn(), "0")));
    for amount in ["-1", "1e41", "1e-41", &"9".repeat(41)] {
        let (pointer, _) = refusal(PayloadKind::TransactionIpn, &amounting(ipn(), amount));
        assert_eq!(pointer, "/transaction_amount", "{amount}");
    }
}

#[test]
fn an_order_total_is_a_whole_number() {
    let total = |text: &str| {
        with(order(), "/order/grand_total", json!("TOTAL"))
            .to_string()
            .replace("\"TOTAL\"", text)
    };
    for good in ["0", "1e3", "35000.0", "9223372036854775807"] {
        assert!(parses(PayloadKind::OrderIpn, &total(good)), "{good}");
    }
    for bad in ["-1", "0.5", "9223372036854775808", "1e40"] {
        let (pointer, _) = refusal(PayloadKind::OrderIpn, &total(bad));
        assert_eq!(pointer, "/order/grand_total", "{bad}");
    }
}

#[test]
fn both_names_of_a_transaction_id_must_agree() {
    let kind = PayloadKind::TransactionIpn;
    let later = without(
        with(ipn(), "/reference_transaction_id", json!("t-1")),
        "/tiki_transaction_id",
    );
    assert!(parses(kind, &later.to_string()));
    let both = |value: Json| with(ipn(), "/reference_transaction_id", value).to_string();
    assert!(parses(kind, &both(json!("t-1"))));
    assert!(
        parses(kind, &both(json!(null))),
        "null is as good as absent"
    );
    for bad in [json!("t-2"), json!(""), json!(1)] {
        assert_eq!(refusal(kind, &both(bad)).0, "/reference_transaction_id");
    }
    let first_bad = with(later, "/tiki_transaction_id", json!("")).to_string();
    assert_eq!(refusal(kind, &first_bad).0, "/tiki_transaction_id");
}

#[test]
fn ids_are_short_and_printable() {
    let id = |id: &str| with(refund(), "/request_id", json!(id)).to_string();
    let longest = "đ".repeat(128);
    assert!(parses(PayloadKind::Refund, &id(&longest)));
    for bad in [
        &*format!("{longest}x"),
        "a\nb",
        "a\0",
        "a\u{7f}",
        "a\u{85}b",
    ] {
        assert_eq!(
            refusal(PayloadKind::Refund, &id(bad)).0,
            "/request_id",
            "{bad:?}"
        );
    }
    let reason = with(refund(), "/reason", json!("first line\nsecond line")).to_string();
    assert!(
        parses(PayloadKind::Refund, &reason),
        "free text may have lines"
    );
}

#[test]
fn states_are_the_listed_ones() {
    let kind = PayloadKind::TransactionIpn;
    for good in [json!("SUCCESS"), json!("FAILURE"), json!(null)] {
        assert!(parses(kind, &with(ipn(), "/status", good).to_string()));
    }
    for bad in ["success", "", "REFUNDED"] {
        let body = with(ipn(), "/status", json!(bad)).to_string();
        assert_eq!(refusal(kind, &body).0, "/status");
    }
}

#[test]
fn dates_are_those_of_rfc_3339() {
    let dated = |text: &str| with(order(), "/message_created_at", json!(text)).to_string();
    for good in [
        "2022-11-09T07:55:13Z",
        "2022-11-09t07:55:13z",
        "2022-11-09 07:55:13+07:00",
        "2022-11-09T07:55:13.123456789-00:30",
    ] {
        assert!(parses(PayloadKind::OrderIpn, &dated(good)), "{good}");
    }
    for bad in [
        "2022-11-09",
        "2022-11-09T07:55:13",
        "2022-11-09T07:55Z",
        "2022-13-09T07:55:13Z",
        "2022-02-30T07:55:13Z",
        "2022-11-09T25:55:13Z",
        "2022-11-09T07:55:13+07",
        "2022-11-09T07:55:13+0700",
        "2022-11-09T07:55:13+07:00[Asia/Ho_Chi_Minh]",
        "2022-11-09T07:55:13.Z",
        "20221109T075513Z",
        "1667980513000",
        "yesterday, at about noon",
        "hôm qua, khoảng giữa trưa",
    ] {
        let (pointer, _) = refusal(PayloadKind::OrderIpn, &dated(bad));
        assert_eq!(pointer, "/message_created_at", "{bad}");
    }
}

#[test]
fn messages_of_other_kinds_are_refused() {
    // A refund with all that an IPN needs, and more.
    for kind in [PayloadKind::TransactionIpn, PayloadKind::OrderIpn] {
        let mut body = order();
        for (name, value) in refund().as_object().unwrap() {
            body[name] = value.clone();
        }
        assert_eq!(refusal(kind, &body.to_string()).0, "/request_id");
        body["reason"] = json!(null);
        assert_eq!(refusal(kind, &body.to_string()).0, "/request_id");
    }
    let (pointer, _) = refusal(PayloadKind::Refund, &ipn().to_string());
    assert_eq!(pointer, "/reason");
    assert!(parses(
        PayloadKind::TransactionIpn,
        &with(ipn(), "/reason", json!("x")).to_string()
    ));
}

#[test]
fn fields_that_nobody_listed_pass() {
    let mut body = refund();
    body["extra"] = json!({"request_id": [null, 1e300, "\u{1f4b8}"], "a": {"b": {}}});
    assert!(parses(PayloadKind::Refund, &body.to_string()));
}

#[test]
fn anything_is_any_json() {
    for body in ["{}", "[1]", "\"x\"", "null", "1e999", " 1 "] {
        assert!(parses(PayloadKind::Any, body), "{body}");
    }
    for body in ["", "x", "1 2", "{\"a\":1,\"\\u0061\":2}", "\u{feff}{}"] {
        let fault = parse_message(PayloadKind::Any, body.as_bytes()).unwrap_err();
        assert!(matches!(fault, PayloadFault::Malformed { .. }), "{body}");
    }
}

#[test]
fn what_is_no_object_is_malformed_as_a_typed_message() {
    for body in ["[]", "null", "1", "\"{}\""] {
        let fault = parse_message(PayloadKind::Refund, body.as_bytes()).unwrap_err();
        assert_eq!(fault.to_string(), "the body is not a JSON object");
    }
    let spelled_twice = refund()
        .to_string()
        .replacen('{', "{\"request\\u005fid\":\"r-2\",", 1);
    let fault = parse_message(PayloadKind::Refund, spelled_twice.as_bytes()).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "the key `request_id` occurs twice in one object"
    );
    let fault = parse_message(PayloadKind::Refund, b"{}").unwrap_err();
    assert_eq!(fault.to_string(), "`/transaction_amount` is required");
}
