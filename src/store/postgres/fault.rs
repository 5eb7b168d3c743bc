//! Why the database can't be used, for good or for now.

use std::error::Error as _;

use tokio_postgres::error::SqlState;

/// Why work came to nothing. None of the texts holds a row's content or a password.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    /// Nothing was asked of the server.
    #[error("{0}")]
    Unavailable(String),
    /// The server refused, or the connection broke before a commit was asked for: nothing was changed.
    #[error("{0}")]
    Failed(String),
    /// A commit was asked for and not confirmed: it may or may not have been carried out.
    #[error("{0}")]
    Unconfirmed(String),
    /// What the database holds is not what was put there.
    #[error("the database holds what no gate wrote: {0}")]
    Corrupt(&'static str),
}

impl Fault {
    pub(super) fn unconfirmed() -> Self {
        Self::Unconfirmed("the database did not confirm in time".to_owned())
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Failed(describe(&error))
    }
}

/// Why a store can't be opened, or a connection not be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL can't be used.
    #[error("ledger.url: {0}")]
    Url(String),
    /// The certificates to check the server's by can't be read.
    #[error("the certificates for the database's TLS can't be used: {0}")]
    Certificates(String),
    /// The server is not who it should be, as far as can be told.
    #[error(
        "the database's certificate can't be trusted: {0}. ledger.ca names the file with those to \
         trust; the URL's host must be the certificate's"
    )]
    Certificate(String),
    /// The server keeps commits in memory only.
    #[error(
        "the database server runs with fsync = off: what it confirms can be lost. Set fsync = on"
    )]
    FsyncOff,
    /// The server takes no writes.
    #[error("the database takes no writes ({0}): connect to the primary, as a role that may write")]
    ReadOnly(&'static str),
    /// The server is too old.
    #[error("the database server has version {0}; 13 or newer is needed")]
    OldServer(i32),
    /// Some text would not fit.
    #[error("the database's encoding is {0}; UTF8 is needed: create it with ENCODING 'UTF8'")]
    Encoding(String),
    /// There is no ledger, and `require_existing` was asked for.
    #[error(
        "the database holds no ledger, and ledger.require_existing is set: connect to the right \
         database, or leave the setting out for the first start"
    )]
    NoLedger,
    /// A newer tikigate has changed the schema.
    #[error(
        "the ledger's schema has version {found}, and this tikigate knows up to {known}: \
         run the newer tikigate"
    )]
    NewerSchema {
        /// The database's.
        found: i32,
        /// This program's.
        known: i32,
    },
    /// The server refused the connection or something that every start needs.
    #[error("the database refused: {0}")]
    Refused(String),
    /// The server can't be reached, or has no room now.
    #[error("the database can't be reached: {0}")]
    Unreachable(String),
    /// The system gave no thread.
    #[error("{0}")]
    System(String),
}

impl OpenError {
    /// Whether waiting is of no use: somebody has to change something.
    pub fn is_lasting(&self) -> bool {
        !matches!(self, Self::Unreachable(_))
    }
}

impl From<tokio_postgres::Error> for OpenError {
    fn from(error: tokio_postgres::Error) -> Self {
        let text = describe(&error);
        if let Some(untrusted) = untrusted(&error) {
            return Self::Certificate(untrusted);
        }
        match error.code() {
            Some(code) if !passes_by_itself(code) => Self::Refused(text),
            _ => Self::Unreachable(text),
        }
    }
}

/// What is wrong with the server's certificate, if anything is.
fn untrusted(error: &tokio_postgres::Error) -> Option<String> {
    let mut source = error.source();
    while let Some(cause) = source {
        let inner = cause.downcast_ref::<std::io::Error>();
        let inner = inner.and_then(std::io::Error::get_ref);
        let fault = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::InvalidCertificate(fault)) = fault {
            return Some(fault.to_string());
        }
        source = cause.source();
    }
    None
}

/// Starting or ending servers, and those that have no room now.
fn passes_by_itself(code: &SqlState) -> bool {
    let classes = ["08", "53", "55", "57", "58", "40", "XX"];
    classes.iter().any(|class| code.code().starts_with(class))
}

/// The error without its details, in which the server quotes rows.
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return format!("{} ({})", said.message(), said.code().code());
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
