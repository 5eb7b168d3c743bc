//! TLS towards the server, always verified.

use std::path::Path;

use tokio_postgres_rustls::MakeRustlsConnect;

use super::fault::OpenError;
use crate::config::Trust;

/// Checks the server's certificate against those in the file, or against the system's, and its name
/// against the URL's host.
pub(super) fn verifying(ca: Option<&Path>) -> Result<MakeRustlsConnect, OpenError> {
    let trust = match ca {
        Some(path) => Trust::from_file(path).map_err(OpenError::Certificates)?,
        None => Trust::of_the_system().map_err(|fault| {
            OpenError::Certificates(format!("{fault}: name a file with ledger.ca"))
        })?,
    };
    let client = std::sync::Arc::unwrap_or_clone(trust.client());
    Ok(MakeRustlsConnect::new(client))
}
