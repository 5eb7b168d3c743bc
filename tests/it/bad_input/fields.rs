//! Signed JSON that is not the route's payload: each field, each way to get it wrong.

use super::{Refused, Stage};
use crate::support::gate::{ipn, order_ipn, refund};

const INVALID: Refused = (422, "invalid_field", "");

/// A payload as names and raw values; a name with a dot is within an object.
type Fields = Vec<(&'static str, &'static str)>;

fn refund_fields() -> Fields {
    vec![
        ("tiki_transaction_id", r#""t-1""#),
        ("transaction_amount", "1000"),
        ("transaction_id", r#""p-1""#),
        ("reason", r#""changed""#),
        ("request_id", r#""r-1""#),
    ]
}

fn ipn_fields() -> Fields {
    vec![
        ("tiki_transaction_id", r#""t-1""#),
        ("transaction_amount", "1000"),
        ("transaction_id", r#""p-1""#),
        ("status", r#""SUCCESS""#),
    ]
}

fn later_ipn_fields() -> Fields {
    let mut fields = ipn_fields();
    fields[0].0 = "reference_transaction_id";
    fields
}

fn order_fields() -> Fields {
    vec![
        ("message_id", r#""m-1""#),
        ("message_type", r#""notification""#),
        ("message_created_at", r#""2022-11-09T14:55:13+07:00""#),
        ("order.id", r#""o-1""#),
        ("order.status", r#""online_paid""#),
        ("order.grand_total", "1000"),
        ("order.tiki_order_id", r#""1001""#),
        ("order.tiki_order_code", r#""308""#),
    ]
}

fn written(fields: &[(&str, &str)]) -> String {
    let member = |(name, value): &(&str, &str)| format!("\"{name}\":{value}");
    let (inner, outer): (Vec<_>, Vec<_>) = fields
        .iter()
        .copied()
        .partition(|(name, _)| name.starts_with("order."));
    let mut members: Vec<String> = outer.iter().map(member).collect();
    if !inner.is_empty() {
        let inner = inner
            .iter()
            .map(|(name, value)| (&name["order.".len()..], *value));
        let inner: Vec<String> = inner.map(|field| member(&field)).collect();
        members.push(format!("\"order\":{{{}}}", inner.join(",")));
    }
    format!("{{{}}}", members.join(","))
}

/// With one field's value replaced; none: left out.
fn changed(fields: &Fields, name: &str, value: Option<&str>) -> String {
    let changed = fields
        .iter()
        .filter_map(|(field, old)| match (*field == name, value) {
            (true, None) => None,
            (true, Some(value)) => Some((*field, value)),
            (false, _) => Some((*field, *old)),
        });
    written(&changed.collect::<Vec<_>>())
}

/// Refused, with the field's pointer in the message.
async fn refuses_field(stage: &Stage, path: &str, body: &str, field: &str) {
    let call = stage.gate.signed(path, body);
    let answer = stage
        .refuses(&format!("{path} {body}"), call.to_bytes(), INVALID)
        .await;
    let json = answer.json();
    let message = json["error"]["message"].as_str().unwrap();
    let pointer = format!("`/{}`", field.replace('.', "/"));
    assert!(
        message.contains(&pointer),
        "{pointer} is not in {message:?} for {body}"
    );
    assert!(answer.body.len() < 300, "{message}");
}

/// Wrong for any field that is an id.
fn no_ids() -> Vec<String> {
    let long = "x".repeat(257);
    let wide = "é".repeat(129);
    [
        "null",
        "\"\"",
        "1",
        "1.5",
        "true",
        "false",
        "[]",
        "{}",
        "[\"x\"]",
        "{\"x\":\"x\"}",
        "\"a\\u0000b\"",
        "\"a\\nb\"",
        "\"\\r\\n\"",
        "\"a\\tb\"",
        "\"\\u001b[2J\"",
        "\"a\\u007f\"",
        "\"a\\u0085\"",
        "\"\\u0000\"",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([format!("\"{long}\""), format!("\"{wide}\"")])
    .collect()
}

#[tokio::test]
async fn an_id_of_the_wrong_kind_is_refused_by_its_name() {
    let stage = Stage::start().await;
    for (path, fields, ids) in [
        (
            "/tiki/refund",
            refund_fields(),
            &["tiki_transaction_id", "transaction_id", "request_id"][..],
        ),
        (
            "/tiki/ipn",
            ipn_fields(),
            &["tiki_transaction_id", "transaction_id"],
        ),
        ("/tiki/ipn", later_ipn_fields(), &["transaction_id"]),
        (
            "/tiki/order",
            order_fields(),
            &[
                "message_id",
                "message_type",
                "message_created_at",
                "order.id",
                "order.status",
                "order.tiki_order_id",
                "order.tiki_order_code",
            ],
        ),
    ] {
        for id in ids {
            refuses_field(&stage, path, &changed(&fields, id, None), id).await;
            for value in no_ids() {
                refuses_field(&stage, path, &changed(&fields, id, Some(&value)), id).await;
            }
        }
    }
    let later = later_ipn_fields();
    for value in no_ids().into_iter().filter(|value| value != "null") {
        let body = changed(&later, "reference_transaction_id", Some(&value));
        refuses_field(&stage, "/tiki/ipn", &body, "reference_transaction_id").await;
    }
    stage.still_passes().await;
}

const NO_AMOUNTS: &[&str] = &[
    "null",
    "\"1000\"",
    "\"\"",
    "\"abc\"",
    "true",
    "[]",
    "[1000]",
    "{}",
    "{\"amount\":1}",
    "-1",
    "-0.01",
    "-1e3",
    "12345678901234567890123456789012345678901",
    "0.12345678901234567890123456789012345678901",
    "1e41",
    "1e-41",
    "1E+41",
    "1e999999999",
    "1e-999999999",
    "0e999999999",
    "1e99999999999999999999999999",
    "1e2147483648",
];

#[tokio::test]
async fn an_amount_that_is_none_is_refused_by_its_name() {
    let stage = Stage::start().await;
    for (path, fields, name, more) in [
        (
            "/tiki/refund",
            refund_fields(),
            "transaction_amount",
            &["0", "0.0", "-0", "0e5", "0.00e-3"][..],
        ),
        ("/tiki/ipn", ipn_fields(), "transaction_amount", &[]),
        ("/tiki/ipn", later_ipn_fields(), "transaction_amount", &[]),
        (
            "/tiki/order",
            order_fields(),
            "order.grand_total",
            &["0.5", "1e-1", "9223372036854775808", "1e19", "1000.01"],
        ),
    ] {
        refuses_field(&stage, path, &changed(&fields, name, None), name).await;
        for value in NO_AMOUNTS.iter().chain(more) {
            refuses_field(&stage, path, &changed(&fields, name, Some(value)), name).await;
        }
    }
    stage.still_passes().await;
}

#[tokio::test]
async fn amounts_at_their_bounds_pass() {
    let stage = Stage::start().await;
    let forty = "1".repeat(40);
    let refunds = ["1e40", "1e-40", &forty, "0.000001", "1E+3"];
    let ids: Vec<String> = (0..refunds.len())
        .map(|number| format!("\"r-{number}\""))
        .collect();
    for (amount, id) in refunds.iter().zip(&ids) {
        let mut fields = refund_fields();
        fields.retain(|(name, _)| !matches!(*name, "transaction_amount" | "request_id"));
        let mut fields: Vec<(&str, &str)> = fields;
        fields.extend([("transaction_amount", *amount), ("request_id", id)]);
        let answer = stage.gate.post("/tiki/refund", &written(&fields)).await;
        assert_eq!(answer.status, 200, "{amount}: {}", answer.text());
    }
    for amount in ["0", "-0", "9223372036854775807", "1e3", "1000.0"] {
        let body = order_ipn(&format!("m{amount}"), amount);
        let answer = stage.gate.post("/tiki/order", &body).await;
        assert_eq!(answer.status, 200, "{amount}: {}", answer.text());
        assert_eq!(stage.backend.requests().last().unwrap().text(), body);
    }
    let answer = stage.gate.post("/tiki/ipn", &ipn("p-0", "0")).await;
    assert_eq!(answer.status, 200, "an IPN of 0: {}", answer.text());
}

#[tokio::test]
async fn the_other_fields_are_checked_too() {
    let stage = Stage::start().await;
    for value in [
        None,
        Some("null"),
        Some("\"\""),
        Some("1"),
        Some("true"),
        Some("[]"),
        Some("{}"),
    ] {
        refuses_field(
            &stage,
            "/tiki/refund",
            &changed(&refund_fields(), "reason", value),
            "reason",
        )
        .await;
    }
    for value in [
        "\"PAID\"",
        "\"success\"",
        "\"SUCCESS \"",
        "\"\"",
        "1",
        "true",
        "[]",
        "{}",
        "[\"SUCCESS\"]",
    ] {
        refuses_field(
            &stage,
            "/tiki/ipn",
            &changed(&ipn_fields(), "status", Some(value)),
            "status",
        )
        .await;
    }
    for value in [
        "\"yesterday\"",
        "\"2022-11-09\"",
        "\"2022-11-09T14:55:13\"",
        "\"1667980513\"",
        "1667980513",
        "\"2022-13-09T14:55:13Z\"",
        "\"2022-11-31T14:55:13Z\"",
        "\"2022-11-09T25:00:00Z\"",
        "\"2022-11-09T14:55:13+07\"",
        "\"2022-11-09T14:55:13Z[Asia/Ho_Chi_Minh]\"",
        "\"Wed, 09 Nov 2022 14:55:13 GMT\"",
    ] {
        let body = changed(&order_fields(), "message_created_at", Some(value));
        refuses_field(&stage, "/tiki/order", &body, "message_created_at").await;
    }
    let no_order =
        r#"{"message_id":"m","message_type":"n","message_created_at":"2022-11-09T14:55:13Z"}"#;
    refuses_field(&stage, "/tiki/order", no_order, "order").await;
    for value in ["null", "[]", "\"o-1\"", "1"] {
        let body = format!(
            "{},\"order\":{value}}}",
            no_order.strip_suffix('}').unwrap()
        );
        refuses_field(&stage, "/tiki/order", &body, "order").await;
    }
    for (path, mut fields, name) in [
        ("/tiki/ipn", ipn_fields(), "partner_banking_method"),
        ("/tiki/order", order_fields(), "order.extra"),
        ("/tiki/order", order_fields(), "order.reference_id"),
    ] {
        for value in ["1", "true", "[]", "{}"] {
            fields.push((name, value));
            refuses_field(&stage, path, &written(&fields), name).await;
            fields.pop();
        }
    }
    let mut both = ipn_fields();
    both.push(("reference_transaction_id", r#""t-2""#));
    refuses_field(
        &stage,
        "/tiki/ipn",
        &written(&both),
        "reference_transaction_id",
    )
    .await;
    stage.still_passes().await;
}

/// A reason is text for people, not an id.
#[tokio::test]
async fn a_long_reason_of_several_lines_passes() {
    let stage = Stage::start().await;
    let reason = format!("\"line\\nline {}\"", "x".repeat(1000));
    let body = changed(&refund_fields(), "reason", Some(&reason));
    assert_eq!(stage.gate.post("/tiki/refund", &body).await.status, 200);
    stage.only_clean_calls(&[body.as_bytes()]);
}

#[tokio::test]
async fn a_body_belongs_to_one_payload() {
    let stage = Stage::start().await;
    let mut refund_and_ipn = ipn_fields();
    refund_and_ipn.extend([("request_id", r#""r-1""#), ("reason", r#""x""#)]);
    let mut refund_and_order = order_fields();
    refund_and_order.extend([("request_id", r#""r-1""#), ("reason", r#""x""#)]);
    let mut nulls = ipn_fields();
    nulls.extend([("request_id", "null"), ("reason", "null")]);
    for (path, body, field) in [
        ("/tiki/ipn", refund("r-1", "1"), "request_id"),
        ("/tiki/ipn", written(&refund_and_ipn), "request_id"),
        ("/tiki/ipn", written(&nulls), "request_id"),
        ("/tiki/ipn", order_ipn("m-1", "1"), "transaction_amount"),
        ("/tiki/order", refund("r-1", "1"), "request_id"),
        ("/tiki/order", written(&refund_and_order), "request_id"),
        ("/tiki/order", ipn("p-1", "1"), "order"),
        ("/tiki/refund", ipn("p-1", "1"), "reason"),
        ("/tiki/refund", order_ipn("m-1", "1"), "transaction_amount"),
        ("/tiki/refund", "{}".to_owned(), "transaction_amount"),
    ] {
        refuses_field(&stage, path, &body, field).await;
    }
    let escaped = refund("r-1", "1").replace("\"reason\"", "\"r\\u0065ason\"");
    refuses_field(&stage, "/tiki/ipn", &escaped, "request_id").await;
    stage.still_passes().await;
    assert_eq!(
        stage.gate.post("/tiki/ipn", &ipn("p-1", "1")).await.status,
        200
    );
}
