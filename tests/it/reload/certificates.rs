//! Certificates that change: whom new connections meet, and what a broken pair changes.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tikigate::net::ListenAddress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::changed;
use crate::support::backend::{Answer, Backend};
use crate::support::gate::TestGate;
use crate::support::in_time;

/// A certificate for `gate.test` that vouches for itself, and its key, in PEM.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Pair {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["gate.test".to_owned()]).unwrap();
        Self {
            certificate: params.self_signed(&key).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

/// What makes the usual gate speak TLS.
pub(super) const TLS: (&str, &str) = (
    "[admin]",
    "[server.tls]\ncertificate = \"gate.crt\"\nprivate_key = \"gate.key\"\n[admin]",
);

/// A connection to the gate by somebody who believes this certificate alone; none if it has another.
pub(super) async fn connect(gate: &TestGate, believed: &Pair) -> Option<TlsStream<TcpStream>> {
    let ListenAddress::Tcp(address) = gate.address() else {
        panic!("a TCP listener");
    };
    let mut roots = RootCertStore::empty();
    let own = CertificateDer::from_pem_slice(believed.certificate.as_bytes()).unwrap();
    roots.add(own).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("gate.test").unwrap();
    let connecting = TlsConnector::from(Arc::new(client)).connect(name, stream);
    in_time("a handshake", connecting).await.ok()
}

/// The status of one more call on a connection.
pub(super) async fn status(stream: &mut TlsStream<TcpStream>, call: &[u8]) -> u16 {
    stream.write_all(call).await.unwrap();
    let mut read = Vec::new();
    let answer = async {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut answer = httparse::Response::new(&mut headers);
            if let Ok(httparse::Status::Complete(head)) = answer.parse(&read) {
                let length = answer
                    .headers
                    .iter()
                    .find(|header| header.name.eq_ignore_ascii_case("content-length"))
                    .map_or(0, |header| {
                        let text = std::str::from_utf8(header.value).unwrap();
                        text.parse::<usize>().unwrap()
                    });
                if read.len() >= head + length {
                    return answer.code.unwrap();
                }
            }
            assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0, "an answer");
        }
    };
    in_time("an answer", answer).await
}

async fn is_served(gate: &TestGate, pair: &Pair) -> bool {
    connect(gate, pair).await.is_some()
}

#[tokio::test]
async fn a_new_pair_is_served_and_a_broken_one_never() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let toml = changed(&backend.url(), &[TLS]);
    let (old, new) = (Pair::new(), Pair::new());
    let files = [("gate.crt", &*old.certificate), ("gate.key", &*old.key)];
    let gate = TestGate::watched(&toml, &files).await;
    let mut kept = connect(&gate, &old).await.unwrap();
    let call = |body: &str| gate.signed("/tiki/any", body).to_bytes();
    assert_eq!(status(&mut kept, &call("1")).await, 200);

    // The certificate comes first, and its key a while after it.
    let before = gate.reloads().await;
    gate.put("gate.crt", &new.certificate);
    let between = gate.reloaded(before).await;
    assert_eq!((between.0, between.1), (before.0, before.1 + 1));
    let told = gate.readiness().await;
    assert!(told.contains("server.tls.private_key"), "{told}");
    assert!(is_served(&gate, &old).await && !is_served(&gate, &new).await);

    gate.put("gate.key", &new.key);
    let after = gate.reloaded(between).await;
    assert_eq!(after.0, between.0 + 1);
    assert!(is_served(&gate, &new).await && !is_served(&gate, &old).await);
    assert!(!gate.readiness().await.contains("not taken"));
    // Whoever was connected before still is.
    assert_eq!(status(&mut kept, &call("2")).await, 200);

    // Half a file.
    gate.put("gate.crt", &old.certificate[..old.certificate.len() / 2]);
    gate.reloaded(after).await;
    assert!(is_served(&gate, &new).await);
    assert_eq!(
        gate.metric("tikigate_config_last_reload_successful").await,
        0.0
    );
}

#[tokio::test]
async fn tls_and_who_may_connect_change_for_new_connections() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let pair = Pair::new();
    let files = [("gate.crt", &*pair.certificate), ("gate.key", &*pair.key)];
    let plain = changed(&backend.url(), &[]);
    let gate = TestGate::watched(&plain, &files).await;
    assert_eq!(gate.post("/tiki/any", "1").await.status, 200);
    assert!(gate.reload(&changed(&backend.url(), &[TLS])).await);
    let mut secure = connect(&gate, &pair).await.unwrap();
    let call = gate.signed("/tiki/any", "2").to_bytes();
    assert_eq!(status(&mut secure, &call).await, 200);
    let denied = ("workers = 2", "workers = 2\ndeny = [\"127.0.0.0/8\"]");
    assert!(gate.reload(&changed(&backend.url(), &[TLS, denied])).await);
    assert!(connect(&gate, &pair).await.is_none());
    // By its own connection it was let in, and by its address it is not any more.
    let call = gate.signed("/tiki/any", "3").to_bytes();
    assert_eq!(status(&mut secure, &call).await, 503);
}
