//! TLS at a listener.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::PemFile;

/// TLS 1.2 and 1.3 at a listener, with a certificate and perhaps a demand for one. Read once; cheap to
/// clone. Two are equal if their files had the same text.
#[derive(Clone)]
pub struct ListenerTls {
    server: Arc<ServerConfig>,
    /// From accepting to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Whether a caller must show a certificate of one of our authorities.
    pub demands_certificate: bool,
    digest: [u8; 32],
}

/// A certificate chain with its key.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Zeroizing<PrivateKeyDer<'static>>,
}

/// Reads a certificate chain and its key. Whether they belong together is seen when they are used.
pub(crate) fn identity(certificate: &PemFile, key: &PemFile) -> Result<Identity, IdentityFault> {
    Ok(Identity {
        chain: certificate.certificates().map_err(IdentityFault::Chain)?,
        key: key.private_key().map_err(IdentityFault::Key)?,
    })
}

/// Which of the two files is wrong, and how.
pub(crate) enum IdentityFault {
    Chain(String),
    Key(String),
}

impl Identity {
    /// Shows it to whoever asks. The library takes over what it needs of the key; what was read from
    /// the file is overwritten.
    ///
    /// # Errors
    /// The key is not the certificate's, or of a kind that can't be used.
    pub(super) fn resolver(self) -> Result<Arc<SingleCertAndKey>, rustls::Error> {
        let key = any_supported_type(&self.key)?;
        let certified = CertifiedKey::new(self.chain, key);
        match certified.keys_match() {
            // Of a kind whose public half the library doesn't tell.
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
                Ok(Arc::new(SingleCertAndKey::from(certified)))
            }
            Err(error) => Err(error),
        }
    }
}

/// What is wrong with a pair, in words for people.
pub(super) fn pair_fault(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            "the key is not the certificate's: one of the two files is of another pair".to_owned()
        }
        other => format!("the certificate and its key can't be used: {other}"),
    }
}

impl ListenerTls {
    /// A listener that shows this identity. `authorities`: whose certificates a caller must show one
    /// of. `digest` is over the files.
    ///
    /// # Errors
    /// The pair doesn't belong together, or can't be used; a sentence.
    pub(crate) fn new(
        identity: Identity,
        authorities: Option<RootCertStore>,
        handshake_timeout: Duration,
        digest: [u8; 32],
    ) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let demands_certificate = authorities.is_some();
        let builder = match authorities {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|error| error.to_string())?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut server =
            builder.with_cert_resolver(identity.resolver().map_err(|error| pair_fault(&error))?);
        // All suites are good ones. Auditors ask for an order of the server's own all the same.
        server.ignore_client_order = true;
        // HTTP/1.1 is all that the gate speaks.
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            server: Arc::new(server),
            handshake_timeout,
            demands_certificate,
            digest,
        })
    }

    /// A listener with one certificate, for tests.
    #[cfg(test)]
    pub(crate) fn self_signed(
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        handshake_timeout: Duration,
    ) -> Self {
        let (chain, key) = (vec![certificate], Zeroizing::new(key));
        let made = Self::new(Identity { chain, key }, None, handshake_timeout, [0; 32]);
        made.unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// The TLS server.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

/// What tells files with the same text.
pub(crate) fn digest_of<'f>(files: impl IntoIterator<Item = Option<&'f PemFile>>) -> [u8; 32] {
    let mut digest = Sha256::new();
    for file in files {
        digest.update(file.map_or([0; 32], PemFile::digest));
    }
    digest.finalize().into()
}

impl fmt::Debug for ListenerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerTls")
            .field("handshake_timeout", &self.handshake_timeout)
            .field("demands_certificate", &self.demands_certificate)
            .finish_non_exhaustive()
    }
}

impl PartialEq for ListenerTls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
            && self.handshake_timeout == other.handshake_timeout
            && self.demands_certificate == other.demands_certificate
    }
}

impl Eq for ListenerTls {}
