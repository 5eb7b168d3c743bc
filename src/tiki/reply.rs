//! What Tiki answers to a partner's own calls (docs/protocol.md, "Answers").
//!
//! Read strictly, since "refund the customer" moves money back and "taken" ends a delivery: an answer
//! that could be understood in two ways says nothing, and the transaction's status has to be asked.

use std::borrow::Cow;

use super::json::{self, Value};
use super::{Decimal, TransactionStatus};

/// The codes of Tiki's API besides success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplyCode {
    /// 1: the request is wrong.
    InvalidRequest,
    /// 2: trouble at Tiki's side that may pass.
    SystemError,
    /// 3: Tiki knows no such transaction.
    NotFound,
    /// 4: the transaction is another partner's.
    NotThisPartners,
    /// 5: the amount is another.
    WrongAmount,
    /// 6: the transaction was cancelled.
    Cancelled,
}

impl ReplyCode {
    /// The code as Tiki writes it.
    pub fn number(self) -> u8 {
        match self {
            Self::InvalidRequest => 1,
            Self::SystemError => 2,
            Self::NotFound => 3,
            Self::NotThisPartners => 4,
            Self::WrongAmount => 5,
            Self::Cancelled => 6,
        }
    }

    fn read(text: &str) -> Option<Self> {
        Some(match text {
            "1" => Self::InvalidRequest,
            "2" => Self::SystemError,
            "3" => Self::NotFound,
            "4" => Self::NotThisPartners,
            "5" => Self::WrongAmount,
            "6" => Self::Cancelled,
            _ => return None,
        })
    }
}

/// What became of an IPN that a partner sent to Tiki.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpnReply {
    /// Tiki has it.
    Taken,
    /// Tiki won't take it, however often it is sent: the customer is to be refunded. The code is none
    /// where the failure has one that is not published.
    Refused(Option<ReplyCode>),
    /// Nothing that could be relied on; sending again is right.
    Again,
}

/// Reads Tiki's answer to an IPN, in either of the published forms: `{"code":0}` and
/// `{"data":{"status":"success"}}` with 200, other codes with 200, and the error envelope with 500.
pub fn read_ipn_reply(status: u16, body: &[u8]) -> IpnReply {
    let Ok(reply) = json::parse(body) else {
        return IpnReply::Again;
    };
    match (status, reply.member("code"), reply.member("data")) {
        (200, Some(Value::Number("0")), _) if !has_error(&reply) => IpnReply::Taken,
        (200, None, Some(data)) if is_success(data) && !has_error(&reply) => IpnReply::Taken,
        (200, Some(Value::Number(code)), data) if !data.is_some_and(is_success) => {
            match ReplyCode::read(code) {
                Some(ReplyCode::SystemError) | None => IpnReply::Again,
                refused => IpnReply::Refused(refused),
            }
        }
        (500, None, Some(Value::Null)) => match reply.member("error").map(|e| e.member("code")) {
            Some(Some(Value::String(code))) => match ReplyCode::read(code) {
                Some(ReplyCode::SystemError) => IpnReply::Again,
                // A word where a number is due is somebody else's: a gateway's in between, perhaps.
                None if !is_number(code) => IpnReply::Again,
                refused => IpnReply::Refused(refused),
            },
            _ => IpnReply::Again,
        },
        _ => IpnReply::Again,
    }
}

fn is_number(code: &str) -> bool {
    !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_success(data: &Value<'_>) -> bool {
    matches!(data.member("status"), Some(Value::String(status)) if status == "success")
}

/// Whether an answer says that something went wrong, whatever else it says.
fn has_error(reply: &Value<'_>) -> bool {
    !matches!(reply.member("error"), None | Some(Value::Null))
}

/// What Tiki says of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusReply<'b> {
    /// It is known.
    Found(Transaction<'b>),
    /// An answer with this code: nothing is known of it, or not to this partner.
    Refused(ReplyCode),
    /// Nothing that could be relied on; asking again is right.
    Again,
}

/// A transaction as Tiki has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction<'b> {
    /// Tiki's id.
    pub tiki_transaction_id: Cow<'b, str>,
    /// The partner's id.
    pub transaction_id: Cow<'b, str>,
    /// Its state.
    pub status: TransactionStatus,
    /// Exact.
    pub amount: Decimal,
}

/// Reads Tiki's answer to a question for a transaction's status. The fields stand beside `code`, or in
/// `data` beside it.
pub fn read_status_reply(status: u16, body: &[u8]) -> StatusReply<'_> {
    let Ok(reply) = json::parse(body) else {
        return StatusReply::Again;
    };
    match (status, reply.member("code")) {
        (200, Some(Value::Number("0"))) if !has_error(&reply) => {
            let within = match reply.member("data") {
                Some(data @ Value::Object(_)) => data,
                _ => &reply,
            };
            transaction(within).map_or(StatusReply::Again, StatusReply::Found)
        }
        (200, Some(Value::Number(code))) => match ReplyCode::read(code) {
            Some(ReplyCode::SystemError) | None => StatusReply::Again,
            Some(code) => StatusReply::Refused(code),
        },
        _ => StatusReply::Again,
    }
}

fn transaction<'b>(from: &Value<'b>) -> Option<Transaction<'b>> {
    let text = |name: &str| match from.member(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        _ => None,
    };
    let Some(Value::Number(amount)) = from.member("amount") else {
        return None;
    };
    Some(Transaction {
        tiki_transaction_id: text("tiki_transaction_id")?,
        transaction_id: text("partner_transaction_id")?,
        status: TransactionStatus::parse(&text("status")?)?,
        amount: Decimal::parse(amount).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_published_forms_of_success_are_success() {
        for body in [
            r#"{"code":0}"#,
            r#"{"code":0,"message":"success","data":{"status":"PENDING"}}"#,
            r#"{"data":{"status":"success"}}"#,
            r#"{"data":{"status":"success"},"error":null}"#,
        ] {
            assert_eq!(
                read_ipn_reply(200, body.as_bytes()),
                IpnReply::Taken,
                "{body}"
            );
        }
    }

    #[test]
    fn a_word_where_tiki_has_a_number_is_not_tikis() {
        let envelope = |code: &str| format!(r#"{{"data":null,"error":{{"code":"{code}"}}}}"#);
        for code in ["overloaded", "", "5a", "-1", "internal_error"] {
            let reply = read_ipn_reply(500, envelope(code).as_bytes());
            assert_eq!(reply, IpnReply::Again, "{code}");
        }
        // A number that nobody published is a failure all the same.
        assert_eq!(
            read_ipn_reply(500, envelope("17").as_bytes()),
            IpnReply::Refused(None)
        );
    }

    #[test]
    fn a_failure_is_final_in_either_form_but_for_tikis_own_trouble() {
        for number in 1..=6 {
            let code = ReplyCode::read(&number.to_string()).unwrap();
            assert_eq!(code.number(), number);
            let wanted = match code {
                ReplyCode::SystemError => IpnReply::Again,
                code => IpnReply::Refused(Some(code)),
            };
            let api = format!(r#"{{"code":{number},"message":"m"}}"#);
            assert_eq!(read_ipn_reply(200, api.as_bytes()), wanted, "{api}");
            let envelope = format!(r#"{{"data":null,"error":{{"code":"{number}"}}}}"#);
            assert_eq!(
                read_ipn_reply(500, envelope.as_bytes()),
                wanted,
                "{envelope}"
            );
        }
        let other = br#"{"data":null,"error":{"code":"77","message":"m"}}"#;
        assert_eq!(read_ipn_reply(500, other), IpnReply::Refused(None));
    }

    #[test]
    fn what_could_be_read_in_two_ways_says_nothing() {
        for (status, body) in [
            (200, ""),
            (200, "null"),
            (200, "<html>"),
            (200, r#"{"code":"0"}"#),
            (200, r#"{"code":0.0}"#),
            (200, r#"{"code":7}"#),
            (200, r#"{"code":-1}"#),
            (200, r#"{"code":0,"code":3}"#),
            (200, r#"{"code":0,"error":{"code":"1"}}"#),
            (200, r#"{"code":5,"data":{"status":"success"}}"#),
            (200, r#"{"data":{"status":"failure"}}"#),
            (200, r#"{"data":{"status":"success"},"error":{"code":"1"}}"#),
            (200, r#"{"data":null,"error":{"code":"1"}}"#),
            (201, r#"{"code":0}"#),
            (302, r#"{"code":0}"#),
            (400, r#"{"code":1}"#),
            (500, r#"{"code":3}"#),
            (500, r#"{"data":null,"error":{"code":1}}"#),
            (500, r#"{"error":{"code":"1"}}"#),
            (500, r#"{"data":{},"error":{"code":"1"}}"#),
            (502, r#"{"data":null,"error":{"code":"1"}}"#),
        ] {
            let read = read_ipn_reply(status, body.as_bytes());
            assert_eq!(read, IpnReply::Again, "{status} {body}");
            let read = read_status_reply(status, body.as_bytes());
            assert!(
                matches!(read, StatusReply::Again)
                    || matches!(read, StatusReply::Refused(code) if body.contains(&format!(r#""code":{}"#, code.number()))),
                "{status} {body}: {read:?}"
            );
        }
    }

    #[test]
    fn a_transactions_status_is_read_beside_the_code_or_in_its_data() {
        let fields = r#""tiki_transaction_id":"t-1","partner_transaction_id":"p-1","status":"SUCCESS","amount":1e5"#;
        let found = StatusReply::Found(Transaction {
            tiki_transaction_id: "t-1".into(),
            transaction_id: "p-1".into(),
            status: TransactionStatus::Success,
            amount: Decimal::parse("100000").unwrap(),
        });
        for body in [
            format!(r#"{{"code":0,"message":"success",{fields}}}"#),
            format!(r#"{{"code":0,"message":"success","data":{{{fields}}}}}"#),
            format!(r#"{{"code":0,"data":null,{fields}}}"#),
        ] {
            assert_eq!(read_status_reply(200, body.as_bytes()), found, "{body}");
        }
        for (of, less) in [
            ("t-1", ""),
            (r#""p-1""#, "1"),
            ("SUCCESS", "success"),
            ("1e5", r#""100000""#),
            ("1e5", "1e99"),
        ] {
            let body = format!(r#"{{"code":0,{}}}"#, fields.replacen(of, less, 1));
            assert_eq!(
                read_status_reply(200, body.as_bytes()),
                StatusReply::Again,
                "{body}"
            );
        }
        let unknown = br#"{"code":3,"message":"transaction not found"}"#;
        let not_found = StatusReply::Refused(ReplyCode::NotFound);
        assert_eq!(read_status_reply(200, unknown), not_found);
        assert_eq!(read_status_reply(404, unknown), StatusReply::Again);
    }
}
