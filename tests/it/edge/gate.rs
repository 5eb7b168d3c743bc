//! The same in a whole gate: what its configuration says, it does.

use std::time::{Duration, Instant};

use tikigate::net::ListenAddress;

use super::certificates::{Authority, Files, Speaks};
use crate::server::harness::Caller;
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{TestGate, usual};
use crate::support::raw::RawClient;

/// The usual configuration with these lines in `[server]` and `[admin]`.
fn with(backend: &Backend, server: &str, admin: &str) -> String {
    usual(&backend.url())
        .replace("workers = 2", &format!("workers = 2\n{server}"))
        .replace("[admin]", &format!("[admin]\n{admin}"))
}

async fn backend() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

fn tcp(address: &ListenAddress) -> std::net::SocketAddr {
    match address {
        ListenAddress::Tcp(address) => *address,
        ListenAddress::Unix(_) => panic!("a unix socket"),
    }
}

/// What a caller from this address hears from this listener on these bytes, until it is closed.
fn heard(listener: &ListenAddress, from: [u8; 4], bytes: &[u8]) -> String {
    use std::io::Write;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let own: std::net::SocketAddr = (from, 0).into();
    socket.bind(&own.into()).unwrap();
    socket.connect(&tcp(listener).into()).unwrap();
    let mut caller = Caller::new(std::net::TcpStream::from(socket));
    let _ = caller.stream.write_all(bytes);
    caller.rest()
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_calls_come_by_tls_behind_a_proxy() {
    let backend = backend().await;
    let authority = Authority::new();
    let files = Files::new(&authority.server(), None);
    let server = format!(
        "trusted_proxies = [\"127.0.0.1\"]\nproxy_protocol = true\n{}",
        files.toml()
    );
    let gate = TestGate::with(&with(&backend, &server, "")).await;
    let call = gate.signed("/tiki/any", "a call").to_bytes();
    let address = tcp(gate.address());
    let answer = tokio::task::spawn_blocking(move || {
        let mut plain = Caller::new(std::net::TcpStream::connect(address).unwrap());
        plain.send(b"PROXY TCP4 203.0.113.9 198.51.100.1 51234 443\r\n");
        let mut caller = Speaks::default().on(plain, &authority);
        caller.send(&call);
        caller.receive().0
    });
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let request = &backend.requests()[0];
    assert_eq!(request.header("x-forwarded-for"), Some("203.0.113.9"));
    let series = "tikigate_tls_handshakes_total{listener=\"server\",version=\"1.3\"}";
    assert_eq!(gate.metric(series).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_listener_has_rules_of_its_own() {
    let backend = backend().await;
    let outbound = "[outbound]\nlisten = \"127.0.0.1:0\"\ndeny = [\"127.0.0.4\"]\n\
                    [[outbound.accounts]]\nclient = \"wallet\"\nenvironment = \"production\"\n\
                    family = \"tikivip\"\n";
    let toml = with(
        &backend,
        "deny = [\"127.0.0.2\"]",
        "allow = [\"127.0.0.1\", \"127.0.0.2\", \"127.0.0.4\"]",
    );
    let gate = TestGate::with(&format!("{toml}{outbound}")).await;
    let listeners = [
        ("server", gate.address().clone(), [127, 0, 0, 2]),
        ("admin", gate.admin_address().clone(), [127, 0, 0, 3]),
        ("outbound", gate.outbound_address().clone(), [127, 0, 0, 4]),
    ];
    let request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    for (name, listener, refused) in &listeners {
        assert_eq!(heard(listener, *refused, request), "", "{name}");
        let others = listeners.iter().map(|(_, _, address)| *address);
        let taken = others.filter(|address| address != refused);
        let taken = taken.filter(|address| *name != "admin" || address[3] != 3);
        for address in taken {
            let said = heard(listener, address, request);
            assert!(
                said.starts_with("HTTP/1.1 "),
                "{name} from {address:?}: {said}"
            );
        }
        let series =
            format!("tikigate_connections_refused_total{{listener=\"{name}\",reason=\"address\"}}");
        assert_eq!(gate.metric(&series).await, 1.0, "{name}");
    }
}

/// A signed call whose body comes in pieces of this size, ten a second.
async fn trickle(gate: &TestGate, body: &str, piece: usize) -> (u16, Duration) {
    let call = gate.signed("/tiki/any", body).to_bytes();
    let mut client = RawClient::connect(gate.address()).await;
    let (head, body) = call.split_at(call.len() - body.len());
    client.send(head).await;
    let began = Instant::now();
    let sending = async {
        let mut pieces = body.chunks(piece);
        let mut every = tokio::time::interval(Duration::from_millis(100));
        loop {
            every.tick().await;
            match pieces.next() {
                Some(piece) => client.send(piece).await,
                None => break client.read_answer().await.status,
            }
        }
    };
    (sending.await, began.elapsed())
}

#[tokio::test]
async fn a_body_that_trickles_is_cut_long_before_its_whole_time() {
    let backend = backend().await;
    let gate = |rate: &str| {
        let server = format!("min_body_rate = {rate}");
        let toml = with(&backend, &server, "")
            .replace("answer_within = \"1s\"", "answer_within = \"10s\"");
        let toml = toml.replace("settle_within = \"4s\"", "settle_within = \"12s\"");
        async move { TestGate::with(&toml).await }
    };
    let body = "x".repeat(16);
    // 10 bytes a second where 100 are wanted, and where none are.
    let strict = gate("\"100B\"").await;
    let call = strict.signed("/tiki/any", &body).to_bytes();
    let mut client = RawClient::connect(strict.address()).await;
    client.send(&call[..call.len() - body.len() + 1]).await;
    let began = Instant::now();
    let answer = client.read_answer().await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.error_code().as_deref(), Some("body_timeout"));
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(1_000) && took < Duration::from_millis(3_000),
        "{took:?}"
    );
    let series =
        "tikigate_refusals_total{route=\"any\",error=\"body_timeout\",reason=\"too_slow\"}";
    assert_eq!(strict.metric(series).await, 1.0);
    assert!(backend.requests().is_empty());

    let (status, took) = trickle(&strict, &"y".repeat(300), 20).await;
    assert_eq!(status, 200, "fast enough, if slow: {took:?}");
    let lax = gate("0").await;
    let (status, took) = trickle(&lax, &body, 1).await;
    assert_eq!(status, 200);
    assert!(took >= Duration::from_millis(1_500));
}
