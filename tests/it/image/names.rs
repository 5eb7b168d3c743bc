//! What a static binary may fail at: names by /etc/hosts and by DNS, and the system's certificate authorities.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tikigate::net::ListenAddress;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_rustls::TlsAcceptor;

use super::apart;
use super::root::{LEDGER, MARK, NONROOT, Root, config};
use crate::commands::post;
use crate::support::backend::{Answer, Backend};
use crate::support::gate::refund;

const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";

/// A name server that knows one name, and what it was asked.
struct NameServer {
    asked: Arc<Mutex<BTreeSet<String>>>,
}

impl NameServer {
    /// On the port where everybody expects one; only possible in a network of one's own.
    async fn start(knows: &'static str) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).await.unwrap();
        let asked = Arc::new(Mutex::new(BTreeSet::new()));
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut query = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                let (name, answer) = answer(&query[..length], knows);
                log.lock().unwrap().insert(name);
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        Self { asked }
    }

    fn asked(&self) -> BTreeSet<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// The name that a query asks for, and what to answer (RFC 1035): 127.0.0.1 for the name that is known, nothing for
/// its other types, and that there is no such name for the rest.
fn answer(query: &[u8], knows: &str) -> (String, Vec<u8>) {
    let mut labels = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + length]).into_owned());
        at += 1 + length;
    }
    let name = labels.join(".");
    let question = &query[12..at + 5];
    let known = name.eq_ignore_ascii_case(knows);
    let is_a = question.ends_with(&[0, 1, 0, 1]);
    let answers = u8::from(known && is_a);
    let mut reply = query[..2].to_vec();
    // A response, recursion desired and available; code 3 is NXDOMAIN.
    reply.extend([0x81, if known { 0x80 } else { 0x83 }]);
    reply.extend([0, 1, 0, answers, 0, 0, 0, 0]);
    reply.extend(question);
    if answers == 1 {
        // The name of the question, type A, class IN, 60 s, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(Ipv4Addr::LOCALHOST.octets());
    }
    (name, reply)
}

async fn backend() -> (Backend, u16) {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let ListenAddress::Tcp(address) = backend.address() else {
        panic!("a TCP backend");
    };
    let port = address.port();
    (backend, port)
}

/// A root whose gate calls this backend, with what a pod has for names.
fn root(layer: &std::path::Path, url: &str) -> Root {
    let root = Root::new(layer, &config(url));
    root.volume(LEDGER, NONROOT);
    root.volume(MARK, NONROOT);
    root.file(
        "etc/resolv.conf",
        "search partner.svc.cluster.local svc.cluster.local cluster.local\nnameserver 127.0.0.1\noptions ndots:5\n",
    );
    root.file(
        "etc/hosts",
        "127.0.0.1 localhost\n127.0.0.1 by-hosts.test\n",
    );
    root
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_is_found_by_dns_and_by_hosts() {
    let Some(layer) = apart("names::a_backend_is_found_by_dns_and_by_hosts") else {
        return;
    };
    let names = NameServer::start("legacy.partner.svc.cluster.local").await;
    for (name, in_dns) in [("legacy", true), ("by-hosts.test", false)] {
        let (backend, port) = backend().await;
        let root = root(&layer, &format!("http://{name}:{port}"));
        root.seal();
        let mut gate = root.start();
        let answer = post(gate.address(), "/tiki/refund", &refund("r-1", "15000")).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(backend.requests().len(), 1, "{name}");
        let asked: Vec<_> = names
            .asked()
            .into_iter()
            .filter(|n| n.starts_with(name))
            .collect();
        assert_eq!(!asked.is_empty(), in_dns, "{asked:?}");
        assert_eq!(gate.terminate().code(), Some(0));
    }
    // A name that is nowhere is told as such, and nothing is sent.
    let root = root(&layer, "http://nowhere.test:80");
    root.seal();
    let gate = root.start();
    let answer = post(gate.address(), "/tiki/refund", &refund("r-1", "15000")).await;
    assert_eq!(
        answer.error_code().as_deref(),
        Some("upstream_unreachable"),
        "{}",
        answer.text()
    );
    assert!(
        names
            .asked()
            .iter()
            .any(|name| name.starts_with("nowhere.test"))
    );
}

/// TLS in front of a backend, for this name.
struct Tls {
    authority: String,
    port: u16,
}

impl Tls {
    async fn start(behind: u16, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A caller that doesn't believe in the certificate hangs up.
                    if let Ok(mut tls) = acceptor.accept(socket).await {
                        let mut plain = TcpStream::connect((Ipv4Addr::LOCALHOST, behind))
                            .await
                            .unwrap();
                        let _ = copy_bidirectional(&mut tls, &mut plain).await;
                    }
                });
            }
        });
        Self { authority, port }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_believes_the_authorities_of_the_image() {
    let Some(layer) = apart("names::https_believes_the_authorities_of_the_image") else {
        return;
    };
    let (backend, port) = backend().await;
    let tls = Tls::start(port, "by-hosts.test").await;
    let url = format!("https://by-hosts.test:{}", tls.port);

    // As the image is: there are authorities, and ours is none of them.
    let sealed = root(&layer, &url);
    sealed.seal();
    let mut gate = sealed.start();
    let answer = post(gate.address(), "/tiki/refund", &refund("r-1", "15000")).await;
    assert_eq!(
        answer.error_code().as_deref(),
        Some("upstream_unreachable"),
        "{}",
        answer.text()
    );
    assert!(backend.requests().is_empty());
    assert_eq!(gate.terminate().code(), Some(0));

    // The same place with ours among them, as an operator mounts it.
    let opened = root(&layer, &url);
    let shipped = std::fs::read_to_string(opened.at(AUTHORITIES)).unwrap();
    opened.file(AUTHORITIES, &format!("{shipped}{}", tls.authority));
    opened.seal();
    let mut gate = opened.start();
    let answer = post(gate.address(), "/tiki/refund", &refund("r-1", "15000")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(backend.requests().len(), 1);
    assert_eq!(gate.terminate().code(), Some(0));

    // And with none at all the gate says so at its start, rather than at the first refund.
    let empty = root(&layer, &url);
    empty.file(AUTHORITIES, "");
    empty.seal();
    let told = crate::commands::run(&mut empty.command(&["serve"])).failed(78);
    assert!(told.contains("the system has no certificates"), "{told}");
}
