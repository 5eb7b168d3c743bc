//! Certificates and keys that the configuration names.

use std::path::PathBuf;
use std::time::Duration;

use super::{Context, duration, secrets};
use crate::config::schema;
use crate::config::settings::{Expiry, ListenerTls};
use crate::config::tls::{
    Identity, IdentityFault, PemFile, Roots, authorities, digest_of, first_end, identity,
};
use crate::config::tree::Place;
use crate::config::value::{At, Field};

/// A certificate that ends in this time is told of.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);

/// Reads `[server.tls]` or its like. The outer `None`: something is wrong, and was reported; the inner
/// one: there is none.
pub(super) fn listener(
    field: Field<schema::Tls>,
    context: &mut Context<'_>,
) -> Option<Option<ListenerTls>> {
    if field.is_absent() {
        return Some(None);
    }
    let At { value, .. } = field.written()?;
    let schema::Tls {
        certificate,
        private_key,
        client_ca,
        handshake_timeout,
    } = value;
    let second = Duration::from_secs(1);
    let handshake_timeout = duration(
        handshake_timeout,
        5 * second,
        Duration::from_millis(1)..=60 * second,
        context.problems,
    );
    let pair = pair(certificate, private_key, context);
    let authorities = if client_ca.is_absent() {
        Some(None)
    } else {
        named_file(client_ca, "bad_ca", context).and_then(|named| {
            let read = named
                .file
                .certificates()
                .and_then(|certificates| Ok((authorities(&certificates)?, certificates)));
            match read {
                Ok((roots, certificates)) => {
                    note_expiry(&named.place, &certificates, context);
                    Some(Some((roots, named.file)))
                }
                Err(fault) => {
                    named.fault("bad_ca", &fault, context);
                    None
                }
            }
        })
    };
    let pair = pair?;
    let (roots, ca) = match authorities? {
        Some((roots, ca)) => (Some(roots), Some(ca)),
        None => (None, None),
    };
    let digest = digest_of([Some(&pair.certificate), Some(&pair.key), ca.as_ref()]);
    let tls = ListenerTls::new(pair.identity, roots, handshake_timeout.value, digest);
    match tls {
        Ok(tls) => Some(Some(tls)),
        Err(fault) => {
            context
                .problems
                .error(&pair.key_place, "bad_certificate", fault);
            None
        }
    }
}

/// A certificate and its key, with their files.
pub(super) struct Pair {
    pub(super) identity: Identity,
    pub(super) certificate: PemFile,
    pub(super) key: PemFile,
    pub(super) key_place: Place,
}

/// Reads a certificate and its key. `None`: something is wrong, and was reported.
pub(super) fn pair(
    certificate: Field<String>,
    key: Field<String>,
    context: &mut Context<'_>,
) -> Option<Pair> {
    let read_certificate = required_file(certificate, context);
    let read_key = required_file(key, context);
    let certificate = read_certificate?;
    let key = read_key?;
    if key.file.readable_by_all() {
        secrets::readable_by_all(&key.place, key.file.mode(), context.problems);
    }
    match identity(&certificate.file, &key.file) {
        Ok(identity) => {
            note_expiry(&certificate.place, &identity.chain, context);
            Some(Pair {
                identity,
                certificate: certificate.file,
                key: key.file,
                key_place: key.place,
            })
        }
        Err(IdentityFault::Chain(fault)) => {
            certificate.fault("bad_certificate", &fault, context);
            None
        }
        Err(IdentityFault::Key(fault)) => {
            key.fault("bad_certificate", &fault, context);
            None
        }
    }
}

/// The certificates of a file that a key names; `None`: reported.
pub(super) fn roots(field: Field<String>, context: &mut Context<'_>) -> Option<Roots> {
    let named = named_file(field, "bad_ca", context)?;
    match named.file.certificates().and_then(|certificates| {
        note_expiry(&named.place, &certificates, context);
        Roots::of_file(&named.file)
    }) {
        Ok(roots) => Some(roots),
        Err(fault) => {
            named.fault("bad_ca", &fault, context);
            None
        }
    }
}

fn required_file(field: Field<String>, context: &mut Context<'_>) -> Option<Named> {
    if field.is_absent() {
        let problems = &mut *context.problems;
        problems
            .error(&field.place, "missing", "is required")
            .help("a certificate and its private key go together, each in a PEM file");
        return None;
    }
    named_file(field, "bad_certificate", context)
}

/// A file that a key names.
struct Named {
    place: Place,
    path: PathBuf,
    file: PemFile,
}

impl Named {
    /// Reports what is wrong with its content.
    fn fault(&self, code: &'static str, fault: &str, context: &mut Context<'_>) {
        let message = format!("{}: {fault}", self.path.display());
        context.problems.error(&self.place, code, message);
    }
}

fn named_file(
    field: Field<String>,
    code: &'static str,
    context: &mut Context<'_>,
) -> Option<Named> {
    let At { place, value } = field.written()?;
    let path = context.watched(&value);
    match PemFile::read(&path) {
        Ok(file) => Some(Named { place, path, file }),
        Err(fault) => {
            let message = format!("{}: {fault}", path.display());
            let problem = context.problems.error(&place, code, message);
            problem.help("a relative path starts at the configuration's directory");
            None
        }
    }
}

/// Keeps in mind when the file's certificates end, and warns of an end that is near.
pub(super) fn note_expiry(
    place: &Place,
    certificates: &[rustls::pki_types::CertificateDer<'static>],
    context: &mut Context<'_>,
) {
    let not_after = match first_end(certificates) {
        Ok(not_after) => not_after,
        Err(fault) => {
            let problems = &mut *context.problems;
            problems.warning(place, "unclear_certificate", fault);
            return;
        }
    };
    let expiry = Expiry {
        key: place.key.clone(),
        not_after,
    };
    if let Some(message) = expiry.trouble(context.now, WARN_BEFORE) {
        context
            .problems
            .warning(place, "certificate_expires", message)
            .help("put a new one into its place: it is taken without a restart");
    }
    context.certificates.push(expiry);
}
