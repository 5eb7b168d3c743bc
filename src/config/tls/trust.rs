//! Whose certificates are believed when the gate connects to somebody by TLS, and which it shows.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};

use super::PemFile;
use super::files::authorities;
use super::listener::{Identity, pair_fault};

/// The certificates that a server's is checked against, in a TLS client that always checks it and its
/// name; and perhaps one of its own to show. Read once; cheap to clone. Two are equal if they were made
/// of the same certificates.
#[derive(Clone)]
pub struct Trust {
    client: Arc<ClientConfig>,
    digest: [u8; 32],
}

/// Certificates to believe.
#[derive(Clone)]
pub(crate) struct Roots {
    store: RootCertStore,
    digest: [u8; 32],
}

impl Roots {
    /// Those of a PEM file.
    ///
    /// # Errors
    /// A sentence without the path.
    pub(crate) fn of_file(file: &PemFile) -> Result<Self, String> {
        Ok(Self {
            store: authorities(&file.certificates()?)?,
            digest: file.digest(),
        })
    }

    /// Those of the system.
    ///
    /// # Errors
    /// It has none; a sentence.
    pub(crate) fn of_the_system() -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        let certificates = rustls_native_certs::load_native_certs().certs;
        let mut digest = Sha256::new();
        for certificate in &certificates {
            digest.update(certificate);
        }
        // Some of a system's certificates are always odd; what counts is that there are any.
        store.add_parsable_certificates(certificates);
        if store.is_empty() {
            return Err("the system has no certificates".to_owned());
        }
        Ok(Self {
            store,
            digest: digest.finalize().into(),
        })
    }
}

impl Trust {
    /// Those of a PEM file.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn from_file(path: &Path) -> Result<Self, String> {
        let read = || {
            let roots = Roots::of_file(&PemFile::read(path)?)?;
            Self::new(roots, None)
        };
        read().map_err(|fault| format!("{}: {fault}", path.display()))
    }

    /// Those of the system.
    ///
    /// # Errors
    /// It has none; a sentence.
    pub fn of_the_system() -> Result<Self, String> {
        Self::new(Roots::of_the_system()?, None)
    }

    /// Believes `roots`, and shows the identity where a server asks for one; its digest is over its files.
    ///
    /// # Errors
    /// The identity's certificate and key don't belong together; a sentence.
    pub(crate) fn new(
        roots: Roots,
        identity: Option<(Identity, [u8; 32])>,
    ) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots.store);
        let mut digest = Sha256::new();
        digest.update(roots.digest);
        let client = match identity {
            None => builder.with_no_client_auth(),
            Some((identity, of)) => {
                digest.update(of);
                builder.with_client_cert_resolver(
                    identity.resolver().map_err(|error| pair_fault(&error))?,
                )
            }
        };
        Ok(Self {
            client: Arc::new(client),
            digest: digest.finalize().into(),
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

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Trust {}
