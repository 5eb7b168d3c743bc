//! PEM files: certificates and keys, read under a bound.

use std::path::Path;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use zeroize::Zeroizing;

use crate::config::bounded::{self, Content};

/// More than any bundle of certificates has; keeps a wrong file name from filling the memory.
const LARGEST: usize = 4 << 20;

/// A PEM file's text.
pub(crate) struct PemFile {
    bytes: Zeroizing<Vec<u8>>,
    mode: u32,
}

impl PemFile {
    /// Reads it.
    ///
    /// # Errors
    /// A sentence without the path: the problem that it goes into names the key.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        bounded::read(path, LARGEST)
            .map(|Content { bytes, mode }| Self { bytes, mode })
            .map_err(|error| format!("the file can't be read: {error}"))
    }

    /// What it is told by: two files with the same text are one.
    pub(crate) fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.bytes).into()
    }

    /// The file's permissions.
    pub(crate) fn mode(&self) -> u32 {
        self.mode
    }

    /// Whether every user of the machine can read it.
    pub(crate) fn readable_by_all(&self) -> bool {
        self.mode & 0o004 != 0
    }

    /// Its certificates in their order; at least one.
    ///
    /// # Errors
    /// It has none, or something that is marked as one isn't.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&self.bytes)
            .collect::<Result<_, _>>()
            .map_err(|_| "a certificate in the file is no PEM".to_owned())?;
        if certificates.is_empty() {
            return Err("the file holds no certificate in PEM".to_owned());
        }
        Ok(certificates)
    }

    /// Its private key.
    ///
    /// # Errors
    /// It has none that can be used. Says nothing of what is in it.
    pub(crate) fn private_key(&self) -> Result<Zeroizing<PrivateKeyDer<'static>>, String> {
        let key = PrivateKeyDer::from_pem_slice(&self.bytes).map(Zeroizing::new);
        key.map_err(|_| {
            "the file holds no private key in PEM (PKCS#8, PKCS#1 or SEC1, not encrypted)"
                .to_owned()
        })
    }
}

/// The certificates as authorities.
///
/// # Errors
/// One of them can't be one.
pub(crate) fn authorities(
    certificates: &[CertificateDer<'static>],
) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate.clone())
            .map_err(|error| format!("a certificate in the file can't be used: {error}"))?;
    }
    Ok(roots)
}

/// When the first of the certificates ends.
///
/// # Errors
/// One of them can't be understood.
pub(crate) fn first_end(certificates: &[CertificateDer<'static>]) -> Result<SystemTime, String> {
    let ends = certificates.iter().map(|certificate| {
        let read = Certificate::from_der(certificate);
        let read = read.map_err(|error| format!("a certificate can't be understood: {error}"))?;
        Ok(read.tbs_certificate.validity.not_after.to_system_time())
    });
    let ends: Vec<SystemTime> = ends.collect::<Result<_, String>>()?;
    ends.into_iter()
        .min()
        .ok_or_else(|| "no certificate".to_owned())
}
