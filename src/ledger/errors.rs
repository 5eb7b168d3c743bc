//! Why a ledger can't do what it is asked.

use std::time::SystemTime;

use super::{Definition, NAME_LIMIT, REASON_LIMIT, Record, State};

/// Why an attempt may not be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PermitError {
    /// The claim was taken from its owner.
    #[error("the claim no longer holds")]
    Fenced,
    /// The store failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Why a resolution was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    /// No such record.
    #[error("there is no such record")]
    NotFound,
    /// The record is not what the person saw.
    #[error("the record has changed: it is now {} (attempt {}, version {})", .0.state.as_str(), .0.attempt, .0.version)]
    Changed(Box<Record>),
    /// Only unknown records are resolved.
    #[error("only an unknown record can be resolved; this one is {}", .0.as_str())]
    NotUnknown(State),
    /// The attempt may still reach the backend.
    #[error("the attempt may still be running")]
    MayStillRun {
        /// Until then.
        until: SystemTime,
    },
    /// Only a person's or a probe's word is taken back.
    #[error("this is the backend's own answer, not somebody's word: it stays")]
    NotDeclared,
    /// A record held as a possible duplicate was never sent: there is nothing to see at the backend.
    #[error("this record was never sent: a look at the backend says nothing of it")]
    NeverSent,
    /// After an alarm a record is not released.
    #[error(
        "an earlier attempt succeeded after it was declared not applied: the record can't be released"
    )]
    NoFurtherRelease,
    /// Name and reason are required, within [`NAME_LIMIT`] and [`REASON_LIMIT`].
    #[error("a name (up to {NAME_LIMIT} bytes) and a reason (up to {REASON_LIMIT}) are required")]
    NoReason,
    /// The store failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Why a namespace can't be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DefineError {
    /// The ledger's records were made by another definition.
    #[error("the ledger holds the namespace with another definition: {stored:?}")]
    Disagrees {
        /// What is stored.
        stored: Definition,
    },
    /// The store failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A store that can't take or give anything now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Its bound is reached by records that still hold.
    #[error("the ledger is full of records that still hold")]
    Full,
    /// It failed.
    #[error("the ledger failed: {0}")]
    Failed(String),
}
