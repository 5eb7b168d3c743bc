//! What Tiki says of a transaction, beside what is expected.

use bytes::Bytes;
use tokio::time::Instant;

use super::account::Account;
use super::tiki::{Tiki, TikiCall};
use crate::tiki::{
    self, Decimal, ReplyCode, StatusReply, TransactionIpn, TransactionStatus, read_status_reply,
};

/// What a message says of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Tiki's id.
    pub tiki_transaction_id: String,
    /// The partner's id.
    pub transaction_id: String,
    /// Exact.
    pub amount: Decimal,
    /// Its state; messages of the older form, which only tell of payments, mean success.
    pub status: TransactionStatus,
}

impl From<&TransactionIpn<'_>> for Expected {
    fn from(message: &TransactionIpn<'_>) -> Self {
        Self {
            tiki_transaction_id: message.tiki_transaction_id.clone().into_owned(),
            transaction_id: message.transaction_id.clone().into_owned(),
            amount: message.transaction_amount,
            status: message.status.unwrap_or(TransactionStatus::Success),
        }
    }
}

/// A transaction as Tiki has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Tiki's id.
    pub tiki_transaction_id: String,
    /// The partner's id.
    pub transaction_id: String,
    /// Exact.
    pub amount: Decimal,
    /// Its state.
    pub status: TransactionStatus,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Tiki says the same.
    Same,
    /// Tiki says something else, and it is final: another id or amount, or the opposite status.
    Other(Seen),
    /// The ids and the amount are the same, and Tiki has it as pending.
    Pending(Seen),
    /// Tiki has PENDING expected of it, and knows better already.
    Later(Seen),
    /// Tiki knows nothing of it, or doesn't tell.
    Refused(ReplyCode),
    /// No answer that could be relied on; why, for the log.
    Nothing(String),
}

/// Asks Tiki about the transaction, once, by `deadline`.
pub(super) async fn ask(
    tiki: &Tiki,
    account: &Account,
    expected: &Expected,
    deadline: Instant,
    may_begin: impl FnOnce() -> bool,
) -> Asked {
    let call = TikiCall::get(target(&expected.tiki_transaction_id));
    match tiki.call(account, &call, deadline, may_begin).await {
        Ok(answer) => understand(answer.status.as_u16(), &answer.body, expected),
        Err(fault) => Asked::Nothing(fault.to_string()),
    }
}

/// The target of the question, below the base URL.
fn target(tiki_transaction_id: &str) -> String {
    let encoded: String = form_urlencoded::byte_serialize(tiki_transaction_id.as_bytes()).collect();
    // A space as it is written outside of forms: what is signed is what is on the wire either way.
    let encoded = encoded.replace('+', "%20");
    format!("/transaction?tiki_transaction_id={encoded}")
}

fn understand(status: u16, body: &Bytes, expected: &Expected) -> Asked {
    let seen = match read_status_reply(status, body) {
        StatusReply::Found(seen) => seen,
        StatusReply::Refused(code) => return Asked::Refused(code),
        StatusReply::Again => {
            return Asked::Nothing(format!("an answer of {status} that says nothing"));
        }
    };
    compare(seen, expected)
}

fn compare(seen: tiki::Transaction<'_>, expected: &Expected) -> Asked {
    let same_payment = *seen.tiki_transaction_id == *expected.tiki_transaction_id
        && *seen.transaction_id == *expected.transaction_id
        && seen.amount == expected.amount;
    let seen = Seen {
        tiki_transaction_id: seen.tiki_transaction_id.into_owned(),
        transaction_id: seen.transaction_id.into_owned(),
        amount: seen.amount,
        status: seen.status,
    };
    match (same_payment, seen.status, expected.status) {
        (false, ..) => Asked::Other(seen),
        (true, is, wanted) if is == wanted => Asked::Same,
        (true, TransactionStatus::Pending, _) => Asked::Pending(seen),
        (true, _, TransactionStatus::Pending) => Asked::Later(seen),
        (true, ..) => Asked::Other(seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(status: TransactionStatus) -> Expected {
        Expected {
            tiki_transaction_id: "T-1".to_owned(),
            transaction_id: "p-1".to_owned(),
            amount: Decimal::parse("1000").unwrap(),
            status,
        }
    }

    fn answer(id: &str, partner: &str, amount: &str, status: &str) -> Bytes {
        format!(
            r#"{{"code":0,"message":"success","data":{{"tiki_transaction_id":"{id}","partner_transaction_id":"{partner}","amount":{amount},"status":"{status}"}}}}"#
        )
        .into()
    }

    #[test]
    fn only_the_same_ids_amount_and_status_are_the_same() {
        use TransactionStatus::{Failure, Pending, Success};
        let ask = |body: Bytes, wanted| understand(200, &body, &expected(wanted));
        assert_eq!(
            ask(answer("T-1", "p-1", "1e3", "SUCCESS"), Success),
            Asked::Same
        );
        assert_eq!(
            ask(answer("T-1", "p-1", "1000.00", "PENDING"), Pending),
            Asked::Same
        );
        for other in [
            answer("T-2", "p-1", "1000", "SUCCESS"),
            answer("T-1", "p-2", "1000", "SUCCESS"),
            answer("T-1", "p-1", "1001", "SUCCESS"),
            answer("T-1", "p-1", "1000", "FAILURE"),
        ] {
            assert!(
                matches!(ask(other.clone(), Success), Asked::Other(_)),
                "{other:?}"
            );
        }
        assert!(matches!(
            ask(answer("T-1", "p-1", "1000", "SUCCESS"), Failure),
            Asked::Other(_)
        ));
        assert!(matches!(
            ask(answer("T-1", "p-1", "1000", "PENDING"), Success),
            Asked::Pending(_)
        ));
        assert!(matches!(
            ask(answer("T-1", "p-1", "1000", "SUCCESS"), Pending),
            Asked::Later(_)
        ));
        // A pending one about another amount is still another payment.
        assert!(matches!(
            ask(answer("T-1", "p-1", "9", "PENDING"), Success),
            Asked::Other(_)
        ));
        let code = |code| {
            understand(
                200,
                &format!(r#"{{"code":{code}}}"#).into(),
                &expected(Success),
            )
        };
        assert_eq!(code(3), Asked::Refused(ReplyCode::NotFound));
        assert!(matches!(code(2), Asked::Nothing(_)));
        assert!(matches!(
            understand(503, &Bytes::new(), &expected(Success)),
            Asked::Nothing(_)
        ));
    }

    #[test]
    fn the_id_is_escaped_in_the_question() {
        assert_eq!(
            target("a b&c=/đ+"),
            "/transaction?tiki_transaction_id=a%20b%26c%3D%2F%C4%91%2B"
        );
    }
}
