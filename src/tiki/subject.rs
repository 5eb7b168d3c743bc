//! What a message is about, besides itself: the order or the payment that others are about too.

use std::time::SystemTime;

use super::amount::Decimal;
use super::payload::{Content, Message};

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'m> {
    /// An order's state at a time. Tiki's messages about one order may come out of order
    /// (docs/protocol.md, "Retries").
    Order {
        /// `order.id`
        id: &'m str,
        /// `message_created_at`
        at: SystemTime,
    },
    /// A payment of which money goes back. Parts of it may do so one by one, each under a
    /// `request_id` of its own.
    Payment {
        /// `transaction_id`
        id: &'m str,
        /// `transaction_amount`
        amount: Decimal,
    },
}

/// What the message is about; of a transaction IPN and of `any` nothing that could be compared.
pub fn subject<'m>(message: &'m Message<'_>) -> Option<Subject<'m>> {
    match message.content() {
        Content::OrderIpn(ipn) => Some(Subject::Order {
            id: &ipn.order_id,
            // A time that this system can't hold says nothing about the order of events.
            at: SystemTime::try_from(ipn.message_created_at).ok()?,
        }),
        Content::Refund(refund) => Some(Subject::Payment {
            id: &refund.transaction_id,
            amount: refund.transaction_amount,
        }),
        Content::TransactionIpn(_) | Content::Any => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::payload::{PayloadKind, parse_message};
    use super::*;

    #[test]
    fn an_orders_message_is_about_the_order_at_its_time() {
        let body = r#"{"message_id":"m-1","message_type":"notification","message_created_at":"2021-12-27T21:19:33+07:00","order":{"id":"o-1","status":"canceled","grand_total":35000,"tiki_order_id":"7","tiki_order_code":"8"}}"#;
        let message = parse_message(PayloadKind::OrderIpn, body.as_bytes()).unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_640_614_773);
        assert_eq!(subject(&message), Some(Subject::Order { id: "o-1", at }));
    }

    #[test]
    fn a_refund_is_about_an_amount_of_a_payment_however_it_is_spelled() {
        let body = |amount: &str| {
            format!(
                r#"{{"request_id":"r-1","tiki_transaction_id":"t-1","transaction_id":"p-1","transaction_amount":{amount},"reason":"x"}}"#
            )
        };
        for amount in ["1000", "1e3", "1000.00"] {
            let body = body(amount);
            let message = parse_message(PayloadKind::Refund, body.as_bytes()).unwrap();
            let amount = Decimal::parse("1000").unwrap();
            assert_eq!(
                subject(&message),
                Some(Subject::Payment { id: "p-1", amount })
            );
        }
    }

    #[test]
    fn what_can_not_be_compared_has_no_subject() {
        let body =
            br#"{"tiki_transaction_id":"t-1","transaction_id":"p-1","transaction_amount":5}"#;
        for kind in [PayloadKind::TransactionIpn, PayloadKind::Any] {
            let message = parse_message(kind, body).unwrap();
            assert_eq!(subject(&message), None);
        }
    }
}
