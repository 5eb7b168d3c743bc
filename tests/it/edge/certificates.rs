//! An authority, certificates of it, and TLS callers that show them.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use tikigate::config::{self, ListenerTls};

use crate::server::harness::{Caller, Socket};
use crate::support::gate::{OTHER_SECRET, SECRET, usual};

/// The name that the gate's certificate is for.
pub(super) const NAME: &str = "gate.test";

pub(super) const V1_2: &SupportedProtocolVersion = &rustls::version::TLS12;
pub(super) const V1_3: &SupportedProtocolVersion = &rustls::version::TLS13;

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub(super) struct Identity {
    certificate: String,
    key: String,
}

/// An authority.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) certificate: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        Self::named("an authority")
    }

    pub(super) fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2040, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// The gate's own.
    pub(super) fn server(&self) -> Identity {
        self.issue(NAME, ExtendedKeyUsagePurpose::ServerAuth, 2040)
    }

    /// A caller's, which ends with the beginning of this year.
    pub(super) fn client(&self, until: i32) -> Identity {
        self.issue("caller.test", ExtendedKeyUsagePurpose::ClientAuth, until)
    }

    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose, until: i32) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        Identity {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

/// The files that a configuration names, in a directory of their own.
pub(super) struct Files(tempfile::TempDir);

impl Files {
    /// The gate's identity, and the authority whose certificates it wants to see, if it does.
    pub(super) fn new(identity: &Identity, clients: Option<&Authority>) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write("gate.crt", &identity.certificate);
        files.write("gate.key", &identity.key);
        if let Some(clients) = clients {
            files.write("clients.crt", &clients.certificate);
        }
        files
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `tls = {...}` with these files.
    pub(super) fn toml(&self) -> String {
        let file = |name| format!("\"{}\"", self.path(name).display());
        let clients = match self.path("clients.crt").exists() {
            true => format!(", client_ca = {}", file("clients.crt")),
            false => String::new(),
        };
        format!(
            "tls = {{ certificate = {}, private_key = {}{clients} }}",
            file("gate.crt"),
            file("gate.key")
        )
    }

    /// As the configuration makes it.
    pub(super) fn listener_tls(&self, handshake_timeout: Duration) -> ListenerTls {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "secret", SECRET);
        write(directory.path(), "other-secret", OTHER_SECRET);
        let toml = usual("http://127.0.0.1:1")
            .replace("workers = 2", &format!("workers = 2\n{}", self.toml()));
        let loaded = config::load_text(&toml, "test.toml", directory.path(), &[])
            .unwrap_or_else(|problems| panic!("{problems:#?}"));
        let mut tls = loaded.settings.server.tls.unwrap();
        tls.handshake_timeout = handshake_timeout;
        tls
    }
}

fn write(directory: &Path, name: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// What a TLS caller speaks, believes and shows.
pub(super) struct Speaks {
    pub(super) version: &'static SupportedProtocolVersion,
    pub(super) protocols: &'static [&'static str],
    pub(super) identity: Option<Identity>,
}

impl Default for Speaks {
    fn default() -> Self {
        Self {
            version: V1_3,
            protocols: &[],
            identity: None,
        }
    }
}

pub(super) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

impl Socket for TlsStream {
    fn patience(&self, patience: Duration) {
        self.sock.patience(patience);
    }
}

impl Speaks {
    /// A caller on this connection, whose handshake has not begun. It believes `authority`.
    pub(super) fn on(&self, caller: Caller<TcpStream>, authority: &Authority) -> Caller<TlsStream> {
        let mut roots = RootCertStore::empty();
        let own = CertificateDer::from_pem_slice(authority.certificate.as_bytes()).unwrap();
        roots.add(own).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_root_certificates(roots);
        let mut client = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder
                    .with_client_auth_cert(vec![certificate], key)
                    .unwrap()
            }
        };
        client.alpn_protocols = self
            .protocols
            .iter()
            .map(|protocol| protocol.as_bytes().to_vec())
            .collect();
        let name = ServerName::try_from(NAME).unwrap();
        let connection = ClientConnection::new(Arc::new(client), name).unwrap();
        Caller {
            stream: StreamOwned::new(connection, caller.stream),
            connected: caller.connected,
        }
    }
}
