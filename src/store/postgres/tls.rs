//! TLS towards the server, always verified.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::fault::OpenError;

/// Checks the server's certificate against those in the file, or against the system's, and its name
/// against the URL's host.
pub(super) fn verifying(ca: Option<&Path>) -> Result<MakeRustlsConnect, OpenError> {
    let roots = match ca {
        Some(path) => from_file(path)?,
        None => of_the_system()?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| OpenError::Certificates(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn from_file(path: &Path) -> Result<RootCertStore, OpenError> {
    let fault = |what: String| OpenError::Certificates(format!("{}: {what}", path.display()));
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| fault(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| fault(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| fault(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(fault("no certificate in PEM is in it".to_owned()));
    }
    Ok(roots)
}

fn of_the_system() -> Result<RootCertStore, OpenError> {
    let mut roots = RootCertStore::empty();
    // Some of a system's certificates are always odd; what counts is that there are any.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(OpenError::Certificates(
            "the system has none: name a file with ledger.ca".to_owned(),
        ));
    }
    Ok(roots)
}
