//! `https` to the backend: who can't prove to be it is sent nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tikigate::ledger::State;
use tikigate::net::ListenAddress;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsAcceptor;

use super::{FAILURES, REFUND, assert_shut, config, refusal, series};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{TestGate, ipn, refund};

/// A certificate authority; its files live as long as it does.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    directory: tempfile::TempDir,
}

/// PEM texts.
struct Pair {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn pair(&self, name: &str, expired: bool) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair {
            certificate,
            key: key.serialize_pem(),
        }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.directory.path().join(name);
        let mut options = std::fs::File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o600);
        std::io::Write::write_all(&mut file.open(&path).unwrap(), text.as_bytes()).unwrap();
        path
    }

    fn ca(&self) -> PathBuf {
        self.file("ca.crt", &self.certificate)
    }
}

/// TLS in front of a recording backend.
struct Terminator {
    url: String,
    accepting: JoinHandle<()>,
}

impl Drop for Terminator {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Terminator {
    /// Demands a certificate of `clients`, if that is given.
    async fn start(backend: &Backend, pair: &Pair, clients: Option<&Authority>) -> Self {
        Self::slow(backend, pair, clients, Duration::ZERO).await
    }

    /// The same; it thinks for so long after each caller's first message.
    async fn slow(
        backend: &Backend,
        pair: &Pair,
        clients: Option<&Authority>,
        thinks: Duration,
    ) -> Self {
        let ListenAddress::Tcp(behind) = backend.address().clone() else {
            panic!("a TCP backend")
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(der(&authority.certificate)).unwrap();
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let chain = vec![der(&pair.certificate)];
        let config = builder.with_single_cert(chain, key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // An error is the gate's "no", or ours to it.
                    let Ok(mut tls) = acceptor.accept(Slow::new(socket, thinks)).await else {
                        return;
                    };
                    let mut plain = TcpStream::connect(behind).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut tls, &mut plain).await;
                });
            }
        });
        Self { url, accepting }
    }
}

/// A socket whose second read comes late.
struct Slow {
    socket: TcpStream,
    pause: Option<Pin<Box<Sleep>>>,
    thinks: Duration,
    began: bool,
}

impl Slow {
    fn new(socket: TcpStream, thinks: Duration) -> Self {
        Self {
            socket,
            pause: None,
            thinks,
            began: false,
        }
    }
}

impl AsyncRead for Slow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        if !self.began {
            self.began = true;
            self.pause = Some(Box::pin(sleep(self.thinks)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Slow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

async fn recording() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

async fn gate(urls: &[String], ca: &Path, more: &str) -> TestGate {
    let keys = format!("ca = \"{}\"\n{more}", ca.display());
    TestGate::with(&config(urls, &keys)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_to_who_can_prove_to_be_the_backend() {
    let authority = Authority::new();
    let backend = recording().await;
    let tls = Terminator::start(&backend, &authority.pair("127.0.0.1", false), None).await;
    let gate = gate(std::slice::from_ref(&tls.url), &authority.ca(), "").await;
    for number in 0..3 {
        let answer = gate
            .post(REFUND, &refund(&format!("r-{number}"), "1"))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = gate
            .post("/tiki/ipn", &ipn(&format!("p-{number}"), "1"))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let requests = backend.requests();
    assert_eq!(requests.len(), 6);
    assert_eq!(requests[0].header("host"), Some("legacy.example"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_can_not_prove_it_is_sent_nothing_and_the_breaker_counts_it() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for (what, pair) in [
        ("another name", authority.pair("elsewhere.example", false)),
        ("expired", authority.pair("127.0.0.1", true)),
        ("untrusted", stranger.pair("127.0.0.1", false)),
    ] {
        let backend = recording().await;
        let tls = Terminator::start(&backend, &pair, None).await;
        let gate = gate(std::slice::from_ref(&tls.url), &authority.ca(), "").await;
        for number in 0..FAILURES {
            let key = format!("r-{number}");
            let answer = gate.post(REFUND, &refund(&key, "1")).await;
            assert_eq!(
                (refusal(&answer).0, refusal(&answer).1.as_str()),
                (502, "upstream_unreachable"),
                "{what}"
            );
            assert_eq!(gate.state(&key).await, Some(State::Released), "{what}");
        }
        let reason = "tikigate_refusals_total{route=\"refund\",error=\"upstream_unreachable\",reason=\"connect_tls\"}";
        assert_eq!(gate.metric(reason).await, 3.0, "{what}");
        assert_shut(&gate.post(REFUND, &refund("r-9", "1")).await);
        assert_eq!(gate.metric(&series("breaker_state", &tls.url)).await, 2.0);
        assert!(backend.connections().is_empty(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_wants_a_certificate_is_shown_ours() {
    let authority = Authority::new();
    let backend = recording().await;
    let server = authority.pair("127.0.0.1", false);
    let tls = Terminator::start(&backend, &server, Some(&authority)).await;
    let ours = authority.pair("gate.example", false);
    let keys = format!(
        "client_certificate = \"{}\"\nclient_key = \"{}\"",
        authority.file("gate.crt", &ours.certificate).display(),
        authority.file("gate.key", &ours.key).display()
    );
    let gate = gate(std::slice::from_ref(&tls.url), &authority.ca(), &keys).await;
    let answer = gate.post(REFUND, &refund("r-1", "1")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// With TLS 1.3 the backend's "no" to a missing certificate comes when the request may be there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_certificate_a_refund_is_held_and_never_sent_again() {
    let authority = Authority::new();
    let backend = recording().await;
    let server = authority.pair("127.0.0.1", false);
    // The gate is through with its part of the handshake long before the backend has looked at it.
    let thinks = Duration::from_millis(300);
    let tls = Terminator::slow(&backend, &server, Some(&authority), thinks).await;
    let second = Terminator::start(&backend, &server, None).await;
    let gate = gate(&[tls.url.clone(), second.url.clone()], &authority.ca(), "").await;
    // Ties rotate: some go to the address that wants a certificate.
    let keys = ["r-1", "r-2", "r-3", "r-4", "r-5", "r-6"];
    let mut held = 0;
    for key in keys {
        let answer = gate.post(REFUND, &refund(key, "1")).await;
        if answer.status == 200 {
            continue;
        }
        held += 1;
        assert_eq!(refusal(&answer).1, "upstream_failed");
        assert_eq!(gate.state(key).await, Some(State::Unknown));
        for _ in 0..3 {
            let again = gate.post(REFUND, &refund(key, "1")).await;
            assert_eq!(refusal(&again).1, "outcome_unknown");
        }
    }
    assert!(held > 0);
    assert_eq!(
        backend.requests().len(),
        keys.len() - held,
        "the others alone"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_and_tls_are_addresses_of_one_backend() {
    let authority = Authority::new();
    let behind = recording().await;
    let tls = Terminator::start(&behind, &authority.pair("127.0.0.1", false), None).await;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("backend.sock");
    let local = Backend::start_unix(&socket, |_| Answer::success().into()).await;
    let gate = gate(&[local.url(), tls.url.clone()], &authority.ca(), "").await;
    for number in 0..6 {
        let answer = gate
            .post(REFUND, &refund(&format!("r-{number}"), "1"))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!((behind.requests().len(), local.requests().len()), (3, 3));
}
