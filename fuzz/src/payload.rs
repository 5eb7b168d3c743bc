//! Bodies, read as each kind of message.

use serde::de::IgnoredAny;
use tikigate::tiki::{
    Decimal, Identity, KeySpec, PayloadFault, PayloadKind, fields, parse_message, reads_one_way,
    subject,
};

/// Ids have at most so many bytes.
const ID: usize = 256;

/// A body, tried as every payload.
///
/// # Panics
/// When a body is taken that two readers could read apart, that is two messages at once, or whose
/// key could not be kept; or when a fault's sentence is none.
pub fn payload(data: &[u8]) {
    let strict_json = parse_message(PayloadKind::Any, data).is_ok();
    let mut taken = Vec::new();
    for kind in [
        PayloadKind::TransactionIpn,
        PayloadKind::OrderIpn,
        PayloadKind::Refund,
        PayloadKind::Any,
    ] {
        match parse_message(kind, data) {
            Err(fault) => check_fault(&fault),
            Ok(message) => {
                assert_eq!(message.kind(), kind);
                assert!(
                    strict_json,
                    "{} took what is not strict JSON",
                    kind.as_str()
                );
                taken.push(kind);
                let _ = subject(&message);
                let Some(spec) = KeySpec::for_payload(kind) else {
                    continue;
                };
                let identity = spec.extract(&message).expect("a valid message has its key");
                check_identity(kind, &identity, data);
                for (name, value) in fields(&message, &spec) {
                    assert!(!name.is_empty() && value.len() <= data.len().max(ID * 4));
                }
            }
        }
    }
    let both = [PayloadKind::TransactionIpn, PayloadKind::Refund];
    assert!(
        !both.iter().all(|kind| taken.contains(kind)),
        "a notice and a refund"
    );
    if strict_json {
        // Not read into values: numbers may be beyond what a float holds.
        serde_json::from_slice::<IgnoredAny>(data).expect("JSON is JSON");
        assert!(
            reads_one_way(data),
            "one reader takes it and the other doesn't"
        );
    }
    if let Ok(text) = std::str::from_utf8(data) {
        check_amount(text);
    }
}

fn check_fault(fault: &PayloadFault) {
    let sentence = fault.to_string();
    assert!(!sentence.is_empty() && sentence.len() < 1000, "{sentence}");
    assert!(!sentence.contains(char::is_control), "{sentence:?}");
}

/// A message is the same one however it is laid out, and its key can be kept.
fn check_identity(kind: PayloadKind, identity: &Identity, data: &[u8]) {
    let key = &identity.key;
    assert!(!key.is_empty() && key.len() <= 3 * 3 * ID + 2, "{key}");
    assert!(!key.contains(char::is_control), "{key:?}");
    let spaced = [b" \n", data, b"\t\r\n"].concat();
    let again = parse_message(kind, &spaced).expect("space around JSON means nothing");
    let spec = KeySpec::for_payload(kind).expect("it had one");
    assert_eq!(spec.extract(&again).as_ref(), Ok(identity));
}

/// An amount is the same by value whatever follows it that adds nothing.
fn check_amount(text: &str) {
    let Ok(amount) = Decimal::parse(text) else {
        return;
    };
    assert!(!(amount.is_negative() && amount.is_zero()), "minus nothing");
    if text.len() < 20 && !text.contains(['e', 'E']) {
        let longer = if text.contains('.') {
            format!("{text}0")
        } else {
            format!("{text}.0")
        };
        assert_eq!(Decimal::parse(&longer), Ok(amount), "{longer}");
    }
}
