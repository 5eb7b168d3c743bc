//! Tiki's books: the transactions, and what an IPN does to them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::amount::Amount;

/// A transaction's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Not decided.
    #[default]
    Pending,
    /// Paid.
    Success,
    /// Not paid.
    Failure,
    /// Given up by Tiki: no IPN is taken any more.
    Cancelled,
}

impl Status {
    /// As it is on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// A transaction as Tiki has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transaction {
    /// Tiki's id.
    pub tiki_transaction_id: String,
    /// The partner's id.
    pub partner_transaction_id: String,
    /// Exact.
    pub amount: Amount,
    /// Its state; PENDING at first.
    #[serde(default)]
    pub status: Status,
    /// The client id of the partner whose transaction it is.
    pub client: String,
}

/// How often an IPN was taken for a transaction, by the status that it said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub struct Taken {
    /// With `PENDING`.
    pub pending: u64,
    /// With `SUCCESS` or without a status.
    pub success: u64,
    /// With `FAILURE`.
    pub failure: u64,
}

/// An IPN of a partner, understood.
#[derive(Clone, Debug)]
pub(super) struct Ipn {
    pub(super) transaction: String,
    partner_transaction: String,
    amount: Amount,
    status: Status,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(alias = "reference_transaction_id")]
    tiki_transaction_id: String,
    transaction_id: String,
    transaction_amount: Box<serde_json::value::RawValue>,
    #[serde(default, deserialize_with = "present")]
    status: Option<Status>,
}

/// A field that may be left out and may not be null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Status>, D::Error> {
    Status::deserialize(deserializer).map(Some)
}

impl Ipn {
    /// Reads a body; the error says what is wrong with it.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let amount = Amount::parse(wire.transaction_amount.get())
            .filter(Amount::is_positive)
            .ok_or("transaction_amount is not a positive number")?;
        if wire.tiki_transaction_id.is_empty() || wire.transaction_id.is_empty() {
            return Err("an id is empty".to_owned());
        }
        let status = wire.status.unwrap_or(Status::Success);
        if status == Status::Cancelled {
            return Err("a partner can't say CANCELLED".to_owned());
        }
        Ok(Self {
            transaction: wire.tiki_transaction_id,
            partner_transaction: wire.transaction_id,
            amount,
            status,
        })
    }
}

/// What taking an IPN showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TakenAs {
    /// PENDING came after a final status, which stays.
    pub(super) order_violation: bool,
    /// SUCCESS came after FAILURE, or the other way round; the last one stands.
    pub(super) final_changed: bool,
}

/// All transactions.
#[derive(Debug, Default)]
pub(super) struct Books {
    entries: BTreeMap<String, (Transaction, Taken)>,
    auto_create: bool,
}

impl Books {
    pub(super) fn new(auto_create: bool) -> Self {
        Self {
            auto_create,
            ..Self::default()
        }
    }

    /// Adds or replaces; what was taken so far stays counted.
    pub(super) fn put(&mut self, transaction: Transaction) {
        let id = transaction.tiki_transaction_id.clone();
        let taken = self.entries.get(&id).map(|(_, taken)| *taken);
        self.entries
            .insert(id, (transaction, taken.unwrap_or_default()));
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &(Transaction, Taken)> {
        self.entries.values()
    }

    pub(super) fn get(&self, id: &str) -> Option<&(Transaction, Taken)> {
        self.entries.get(id)
    }

    /// What a partner is told of its transaction, or Tiki's code for why not.
    pub(super) fn show(&self, id: &str, client: &str) -> Result<&Transaction, u32> {
        let (transaction, _) = self.entries.get(id).ok_or(3_u32)?;
        if transaction.client != client {
            return Err(4);
        }
        if transaction.status == Status::Cancelled {
            return Err(6);
        }
        Ok(transaction)
    }

    /// Takes an IPN, or refuses it with Tiki's code.
    pub(super) fn take(&mut self, ipn: &Ipn, client: &str) -> Result<TakenAs, u32> {
        if self.auto_create && !self.entries.contains_key(&ipn.transaction) {
            self.put(Transaction {
                tiki_transaction_id: ipn.transaction.clone(),
                partner_transaction_id: ipn.partner_transaction.clone(),
                amount: ipn.amount.clone(),
                status: Status::Pending,
                client: client.to_owned(),
            });
        }
        let (transaction, taken) = self.entries.get_mut(&ipn.transaction).ok_or(3_u32)?;
        if transaction.client != client
            || transaction.partner_transaction_id != ipn.partner_transaction
        {
            return Err(4);
        }
        if transaction.amount != ipn.amount {
            return Err(5);
        }
        let known = transaction.status;
        if known == Status::Cancelled {
            return Err(6);
        }
        match ipn.status {
            Status::Success => taken.success += 1,
            Status::Failure => taken.failure += 1,
            _ => taken.pending += 1,
        }
        let changes = known != Status::Pending && known != ipn.status;
        let order_violation = changes && ipn.status == Status::Pending;
        if !order_violation {
            transaction.status = ipn.status;
        }
        Ok(TakenAs {
            order_violation,
            final_changed: changes && !order_violation,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipn(more: &str) -> Ipn {
        let body = format!(
            r#"{{"tiki_transaction_id":"t-1","transaction_amount":100000,"transaction_id":"p-1"{more}}}"#
        );
        Ipn::parse(body.as_bytes()).unwrap()
    }

    fn books(status: Status) -> Books {
        let mut books = Books::default();
        books.put(Transaction {
            tiki_transaction_id: "t-1".into(),
            partner_transaction_id: "p-1".into(),
            amount: Amount::parse("1e5").unwrap(),
            status,
            client: "c-1".into(),
        });
        books
    }

    #[test]
    fn an_ipn_sets_the_status_and_is_counted() {
        let mut books = books(Status::Pending);
        let plain = TakenAs::default();
        assert_eq!(books.take(&ipn(r#","status":"PENDING""#), "c-1"), Ok(plain));
        assert_eq!(books.show("t-1", "c-1").unwrap().status, Status::Pending);
        assert_eq!(books.take(&ipn(""), "c-1"), Ok(plain));
        assert_eq!(books.take(&ipn(r#","status":"SUCCESS""#), "c-1"), Ok(plain));
        let late = books.take(&ipn(r#","status":"PENDING""#), "c-1").unwrap();
        assert!(late.order_violation && !late.final_changed);
        assert_eq!(books.show("t-1", "c-1").unwrap().status, Status::Success);
        let other = books.take(&ipn(r#","status":"FAILURE""#), "c-1").unwrap();
        assert!(other.final_changed && !other.order_violation);
        assert_eq!(books.show("t-1", "c-1").unwrap().status, Status::Failure);
        let counted = Taken {
            pending: 2,
            success: 2,
            failure: 1,
        };
        assert_eq!(books.get("t-1").unwrap().1, counted);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_its_code() {
        assert_eq!(Books::default().take(&ipn(""), "c-1"), Err(3));
        assert_eq!(books(Status::Pending).take(&ipn(""), "c-2"), Err(4));
        let mut other = ipn("");
        other.partner_transaction = "p-2".into();
        assert_eq!(books(Status::Pending).take(&other, "c-1"), Err(4));
        let mut other = ipn("");
        other.amount = Amount::parse("100000.01").unwrap();
        assert_eq!(books(Status::Pending).take(&other, "c-1"), Err(5));
        assert_eq!(books(Status::Cancelled).take(&ipn(""), "c-1"), Err(6));
        assert_eq!(books(Status::Cancelled).show("t-1", "c-1").err(), Some(6));
        assert_eq!(books(Status::Pending).show("t-1", "c-2").err(), Some(4));
        assert_eq!(books(Status::Pending).show("t-2", "c-1").err(), Some(3));
    }

    #[test]
    fn an_unknown_transaction_is_made_where_that_is_wanted() {
        let mut books = Books::new(true);
        books.take(&ipn(""), "c-1").unwrap();
        assert_eq!(books.take(&ipn(""), "c-2"), Err(4));
        assert_eq!(books.show("t-1", "c-1").unwrap().status, Status::Success);
    }

    #[test]
    fn malformed_bodies_are_told_from_good_ones() {
        let later = r#"{"reference_transaction_id":"t","transaction_amount":1,"transaction_id":"p","x":[]}"#;
        assert_eq!(Ipn::parse(later.as_bytes()).unwrap().transaction, "t");
        for body in [
            "",
            "[]",
            r#"{"tiki_transaction_id":"t","transaction_amount":1}"#,
            r#"{"tiki_transaction_id":"","transaction_amount":1,"transaction_id":"p"}"#,
            r#"{"tiki_transaction_id":"t","transaction_amount":"1","transaction_id":"p"}"#,
            r#"{"tiki_transaction_id":"t","transaction_amount":-1,"transaction_id":"p"}"#,
            r#"{"tiki_transaction_id":"t","transaction_amount":0,"transaction_id":"p"}"#,
            r#"{"tiki_transaction_id":7,"transaction_amount":1,"transaction_id":"p"}"#,
            r#"{"tiki_transaction_id":"t","transaction_amount":1,"transaction_id":"p","status":null}"#,
            r#"{"tiki_transaction_id":"t","transaction_amount":1,"transaction_id":"p","status":"success"}"#,
            r#"{"tiki_transaction_id":"t","transaction_amount":1,"transaction_id":"p","status":"CANCELLED"}"#,
            r#"{"tiki_transaction_id":"t","tiki_transaction_id":"t","transaction_amount":1,"transaction_id":"p"}"#,
            r#"{"tiki_transaction_id":"t","transaction_amount":1,"transaction_id":"p"} x"#,
        ] {
            assert!(Ipn::parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
