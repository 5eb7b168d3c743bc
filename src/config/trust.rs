//! Whose certificates are believed when the gate connects to somebody by TLS.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// The certificates that a server's is checked against, in a TLS client that always checks it and its
/// name. Read once; cheap to clone.
#[derive(Clone)]
pub struct Trust {
    client: Arc<ClientConfig>,
}

impl Trust {
    /// Those of a PEM file.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn from_file(path: &Path) -> Result<Self, String> {
        let fault = |what: String| format!("{}: {what}", path.display());
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
        Self::of(roots)
    }

    /// Those of the system.
    ///
    /// # Errors
    /// It has none; a sentence.
    pub fn of_the_system() -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        // Some of a system's certificates are always odd; what counts is that there are any.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err("the system has no certificates".to_owned());
        }
        Self::of(roots)
    }

    fn of(roots: RootCertStore) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            client: Arc::new(client),
        })
    }

    /// The TLS client.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

/// The same certificates, as far as can be told: those that were read together.
impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.client, &other.client)
    }
}

impl Eq for Trust {}
