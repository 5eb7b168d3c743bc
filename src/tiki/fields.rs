//! A message's readable fields: what people search by, and what a backend can be asked with.

use std::borrow::Cow;

use super::amount::Decimal;
use super::json::Value;
use super::key::KeySpec;
use super::payload::{Message, PayloadKind};

/// Names of the fields that [`fields`] gives for a payload, where the message has them; of `any`
/// none. Free text, such as a refund's reason, is not among them: it may say who the customer is.
pub fn kept_fields(kind: PayloadKind) -> &'static [&'static str] {
    match kind {
        PayloadKind::TransactionIpn => &[
            "tiki_transaction_id",
            "reference_transaction_id",
            "transaction_id",
            "transaction_amount",
            "status",
        ],
        PayloadKind::OrderIpn => &[
            "message_id",
            "message_created_at",
            "order.id",
            "order.status",
            "order.grand_total",
            "order.tiki_order_id",
            "order.tiki_order_code",
            "order.reference_id",
        ],
        PayloadKind::Refund => &[
            "request_id",
            "tiki_transaction_id",
            "transaction_id",
            "transaction_amount",
        ],
        PayloadKind::Any => &[],
    }
}

/// A message's fields as names and texts: strings as they are, numbers as exact decimals, and on
/// `any` true and false too. Of a payload that is known those of [`kept_fields`] that the message
/// has; of `any` those that `spec` is made of, each named by its JSON pointer. A field that is longer
/// than 256 bytes, or of another type, is left out.
pub fn fields(message: &Message<'_>, spec: &KeySpec) -> Vec<(Cow<'static, str>, String)> {
    let document = message.document();
    if message.kind() == PayloadKind::Any {
        return pointed_at(document, spec);
    }
    let named = kept_fields(message.kind()).iter().filter_map(|name| {
        let value = name
            .split('.')
            .try_fold(document, |value, part| value.member(part))?;
        Some((Cow::Borrowed(*name), text_of(value)?))
    });
    named.collect()
}

fn pointed_at(document: &Value<'_>, spec: &KeySpec) -> Vec<(Cow<'static, str>, String)> {
    let mut fields: Vec<(Cow<'static, str>, String)> = Vec::new();
    for pointer in spec.pointers() {
        let name = pointer.as_str();
        if fields.iter().any(|(known, _)| known == name) {
            continue;
        }
        let text = pointer.find(document).and_then(|value| match value {
            Value::Bool(word) => Some(word.to_string()),
            other => text_of(other),
        });
        if let Some(text) = text {
            fields.push((Cow::Owned(name.to_owned()), text));
        }
    }
    fields
}

/// Bytes of a field that are kept: as long as an id may be.
const FIELD_LIMIT: usize = 256;

fn text_of(value: &Value<'_>) -> Option<String> {
    let text = match value {
        Value::String(text) if text.len() <= FIELD_LIMIT => text.as_ref().to_owned(),
        Value::Number(text) => Decimal::parse(text).ok()?.to_string(),
        _ => return None,
    };
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::super::payload::parse_message;
    use super::super::pointer::Pointer;
    use super::*;

    fn fields_of(kind: PayloadKind, body: &str) -> Vec<(Cow<'static, str>, String)> {
        let spec = KeySpec::for_payload(kind).unwrap();
        fields(&parse_message(kind, body.as_bytes()).unwrap(), &spec)
    }

    #[test]
    fn a_refunds_ids_and_amount_are_kept_and_its_reason_is_not() {
        let body = r#"{"request_id":"r-1","tiki_transaction_id":"t-1","transaction_id":"p-1","transaction_amount":1e3,"reason":"customer X"}"#;
        let pair = |name: &'static str, text: &str| (Cow::from(name), text.to_owned());
        assert_eq!(
            fields_of(PayloadKind::Refund, body),
            [
                pair("request_id", "r-1"),
                pair("tiki_transaction_id", "t-1"),
                pair("transaction_id", "p-1"),
                pair("transaction_amount", "1000"),
            ]
        );
    }

    #[test]
    fn an_orders_fields_are_found_inside_it() {
        let body = r#"{"message_id":"m-1","message_type":"notification","message_created_at":"2021-12-27T21:19:33+07:00","order":{"id":"o-1","status":"canceled","grand_total":35000,"tiki_order_id":"7","tiki_order_code":"8","extra":"a=b"}}"#;
        let fields = fields_of(PayloadKind::OrderIpn, body);
        let get = |name: &str| fields.iter().find(|(known, _)| known == name).cloned();
        assert_eq!(get("order.id").unwrap().1, "o-1");
        assert_eq!(get("order.grand_total").unwrap().1, "35000");
        assert_eq!(get("order.reference_id"), None);
        assert!(fields.iter().all(|(name, _)| !name.contains("extra")));
    }

    #[test]
    fn of_a_payload_that_is_not_known_the_keys_and_the_moneys_fields_are_kept() {
        let pointers = |texts: &[&str]| -> Vec<Pointer> {
            let parsed = texts.iter().map(|text| Pointer::parse(text).unwrap());
            parsed.collect()
        };
        let spec = KeySpec::new(
            pointers(&["/id", "/items/0"]),
            pointers(&[
                "/money/amount",
                "/id",
                "/paid",
                "/absent",
                "/money",
                "/long",
            ]),
        );
        let long = "x".repeat(257);
        let body = format!(
            r#"{{"id":"a-1","items":[7.0],"money":{{"amount":1e3}},"paid":true,"long":"{long}","customer":"X"}}"#
        );
        let message = parse_message(PayloadKind::Any, body.as_bytes()).unwrap();
        let pair = |name: &'static str, text: &str| (Cow::from(name), text.to_owned());
        assert_eq!(
            fields(&message, &spec),
            [
                pair("/id", "a-1"),
                pair("/items/0", "7"),
                pair("/money/amount", "1000"),
                pair("/paid", "true"),
            ]
        );
    }
}
