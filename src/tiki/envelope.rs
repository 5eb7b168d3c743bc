//! The answers that Tiki expects (docs/protocol.md, "Answers").

use super::json::{self, Value};

/// The answer to an IPN that was taken, with status 200.
pub const SUCCESS_BODY: &str = r#"{"data":{"status":"success"}}"#;

/// The answer to a call that was not: a stable word, and a sentence.
pub fn error_body(code: &str, message: &str) -> String {
    let mut body = Vec::with_capacity(64 + code.len() + message.len());
    body.extend_from_slice(br#"{"data":null,"error":{"code":"#);
    push_string(&mut body, code);
    body.extend_from_slice(br#","message":"#);
    push_string(&mut body, message);
    body.extend_from_slice(b"}}");
    String::from_utf8(body).unwrap_or_default() // JSON is UTF-8
}

/// Appends a JSON string. Into memory that never fails.
fn push_string(to: &mut Vec<u8>, text: &str) {
    let _ = serde_json::to_writer(to, text);
}

/// Whether a body is the platform's failure envelope: an object with `data` null, and an `error` object
/// with a `code` that is a string.
///
/// Read strictly, since believing it lets a refund be sent again: what could be understood in two ways
/// does not say "not applied", nor does a framework's own `{"error":{"code":500}}`, whose handler may
/// have died after it moved money.
pub fn is_error_body(body: &[u8]) -> bool {
    let Ok(envelope) = json::parse(body) else {
        return false;
    };
    let code = envelope
        .member("error")
        .and_then(|error| error.member("code"));
    matches!(envelope.member("data"), Some(Value::Null)) && matches!(code, Some(Value::String(_)))
}

/// Whether a body is JSON that every reader understands alike: no key twice, nothing behind it.
pub fn reads_one_way(body: &[u8]) -> bool {
    json::parse(body).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_body_is_one_and_is_json_whatever_the_message() {
        assert_eq!(
            error_body("1", "invalid transaction id"),
            r#"{"data":null,"error":{"code":"1","message":"invalid transaction id"}}"#
        );
        let message = "a \"quoted\" \\ line\n\u{0}\u{1f4b8}";
        let body = error_body("invalid_field", message);
        let read: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(read["error"]["message"], message);
        assert!(is_error_body(body.as_bytes()));
    }

    #[test]
    fn only_the_envelope_is_an_error_body() {
        for body in [
            r#"{"data":null,"error":{"code":"5"}}"#,
            r#" {"error":{"code":"1","message":"x","more":[]},"data":null} "#,
        ] {
            assert!(is_error_body(body.as_bytes()), "{body}");
        }
        for body in [
            SUCCESS_BODY,
            "",
            "{}",
            "null",
            "<html>",
            r#"{"error":{"code":5}}"#,
            r#"{"error":{"code":"5"}}"#,
            r#"{"data":null,"error":{"code":500}}"#,
            r#"{"error":"failed"}"#,
            r#"{"error":{"message":"x"}}"#,
            r#"{"error":{"code":null}}"#,
            r#"{"error":{"code":{}}}"#,
            r#"{"data":{},"error":{"code":"1"}}"#,
            r#"{"data":{"status":"success"},"data":null,"error":{"code":"1"}}"#,
            r#"[null,{"code":"1"}]"#,
            r#"[{"error":{"code":"1"}}]"#,
            r#"{"data":null,"error":{"code":"1"}} trailing"#,
        ] {
            assert!(!is_error_body(body.as_bytes()), "{body}");
        }
    }
}
