//! TLS on tokio's paused clock.

use std::convert::Infallible;

use crate::server::Arriving;
use http::Response;
use http_body_util::Full;
use rcgen::generate_simple_self_signed;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::DuplexStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::ListenerTls;
use crate::metrics::ListenerName;
use crate::net::Arrived;
use crate::server::{Limits, Shared};

const SECOND: Duration = Duration::from_secs(1);
const PIPE: usize = 16 * 1024;
const BIG: usize = 20 * PIPE;

fn limits() -> Limits {
    Limits {
        header_timeout: 5 * SECOND,
        idle_timeout: 60 * SECOND,
        write_timeout: 10 * SECOND,
        lifetime: 3600 * SECOND,
        head_limit: 16 * 1024,
        max_headers: 64,
    }
}

/// Both ends of TLS, with a handshake of 3 seconds at most.
fn tls() -> (ListenerTls, Arc<ClientConfig>) {
    let own = generate_simple_self_signed(vec!["gate.test".to_owned()]).unwrap();
    let certificate = CertificateDer::from_pem_slice(own.cert.pem().as_bytes()).unwrap();
    let key = own.signing_key.serialize_pem();
    let listener = ListenerTls::self_signed(
        certificate.clone(),
        PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        3 * SECOND,
    );
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (listener, Arc::new(client))
}

/// A server that answers everything with [`BIG`] bytes.
fn start(tls: ListenerTls) -> (DuplexStream, tokio::task::JoinHandle<()>, Arc<Shared>) {
    let service = tower::service_fn(|_: Arrived<Arriving>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b'b'; BIG]))))
    });
    let (caller, io) = tokio::io::duplex(PIPE);
    let shared = Arc::new(Shared::new(1, ListenerName::Server, Arc::default()));
    let accepted = Instant::now();
    let entrant = Entrant {
        peer: Peer::Unix,
        trusted: false,
        place: shared.enter(None).unwrap(),
        policy: Arc::new(Policy {
            tls: Some(tls),
            ..Policy::open(limits())
        }),
        activity: Arc::new(Activity::new(accepted)),
        closing: Arc::default(),
        accepted,
    };
    let task = tokio::spawn(attend(io, entrant, &Connections::new(service)));
    (caller, task, shared)
}

#[tokio::test(start_paused = true)]
async fn what_a_connection_may_take_counts_from_the_end_of_the_handshake() {
    let (listener, client) = tls();
    let (caller, task, _) = start(listener);
    let began = Instant::now();
    sleep(2 * SECOND).await;
    let name = ServerName::try_from("gate.test").unwrap();
    let connected = TlsConnector::from(client).connect(name, caller).await;
    let _open = connected.unwrap();
    task.await.unwrap();
    let took = began.elapsed();
    assert!(took >= 7 * SECOND && took < 8 * SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn silence_is_closed_at_the_handshakes_timeout() {
    let (listener, _) = tls();
    let (_caller, task, shared) = start(listener);
    let began = Instant::now();
    task.await.unwrap();
    let took = began.elapsed();
    assert!(took >= 3 * SECOND && took < 4 * SECOND, "{took:?}");
    assert_eq!(shared.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_taken_slowly_is_finished() {
    let (listener, client) = tls();
    let (caller, task, _) = start(listener);
    let name = ServerName::try_from("gate.test").unwrap();
    let connected = TlsConnector::from(client).connect(name, caller).await;
    let mut caller = connected.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    caller.write_all(request).await.unwrap();
    let began = Instant::now();
    let mut taken = 0;
    // A record each time: much less than the buffer of TLS, which seems to make no progress meanwhile.
    while taken < BIG {
        sleep(9 * SECOND).await;
        let mut some = vec![0; PIPE];
        let read = caller.read(&mut some).await.unwrap();
        assert!(read > 0, "closed after {taken} bytes");
        taken += read;
    }
    assert!(began.elapsed() > 100 * SECOND);
    assert!(!task.is_finished());
}
