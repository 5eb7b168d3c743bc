//! TLS at the listener.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use rustls::AlertDescription::{self, CertificateExpired, CertificateRequired};
use rustls::AlertDescription::{NoApplicationProtocol, UnknownCA};
use rustls::ProtocolVersion;
use tikigate::net::Peer;
use tikigate::server::{Limits, Policy};

use super::certificates::{Authority, Files, Identity, Speaks, TlsStream, V1_2, V1_3};
use crate::server::harness::{Caller, GET, PATIENCE, SHORT, Server, WAIT, eventually, limits};

/// A server with a certificate of `authority`.
struct Lab {
    authority: Authority,
    server: Server,
    _files: Files,
}

impl Lab {
    fn new() -> Self {
        Self::with(limits(), PATIENCE, None)
    }

    fn with(limits: Limits, handshake_timeout: Duration, clients: Option<&Authority>) -> Self {
        let authority = Authority::new();
        let files = Files::new(&authority.server(), clients);
        let policy = Policy {
            tls: Some(files.listener_tls(handshake_timeout)),
            ..Policy::open(limits)
        };
        Self {
            authority,
            server: Server::under(policy, 100),
            _files: files,
        }
    }

    fn connect(&self, speaks: &Speaks) -> Caller<TlsStream> {
        speaks.on(self.server.connect(), &self.authority)
    }

    fn handshakes(&self, version: &str) -> u64 {
        self.server.metric(&format!(
            "tikigate_tls_handshakes_total{{listener=\"server\",version=\"{version}\"}}"
        ))
    }

    /// What the server says instead of an answer.
    fn refusal(&self, speaks: &Speaks) -> AlertDescription {
        let mut caller = self.connect(speaks);
        let error = match caller.stream.write_all(GET) {
            Ok(()) => caller.stream.read(&mut [0]).unwrap_err(),
            Err(error) => error,
        };
        let alert = error.get_ref().and_then(|inner| inner.downcast_ref());
        let Some(rustls::Error::AlertReceived(alert)) = alert else {
            panic!("no alert: {error}");
        };
        self.server.assert_nothing_seen();
        *alert
    }
}

/// What still comes; the end must have been said, not only happened.
fn rest_to_close_notify(caller: &mut Caller<TlsStream>) -> Vec<u8> {
    let mut rest = Vec::new();
    caller.stream.read_to_end(&mut rest).unwrap();
    rest
}

#[test]
fn both_versions_are_spoken_and_counted() {
    let lab = Lab::new();
    for (version, spoken, label) in [
        (V1_2, ProtocolVersion::TLSv1_2, "1.2"),
        (V1_3, ProtocolVersion::TLSv1_3, "1.3"),
    ] {
        let mut caller = lab.connect(&Speaks {
            version,
            protocols: &["h2", "http/1.1"],
            identity: None,
        });
        caller.exchange();
        caller.exchange();
        let connection = &caller.stream.conn;
        assert_eq!(connection.protocol_version(), Some(spoken));
        assert_eq!(connection.alpn_protocol(), Some(&b"http/1.1"[..]));
        let own = caller.stream.sock.local_addr().unwrap();
        for _ in 0..2 {
            assert_eq!(lab.server.next_seen().peer, Peer::Tcp(own));
        }
        assert_eq!(lab.handshakes(label), 1, "{label}");
    }
}

#[test]
fn who_names_no_protocol_is_served_and_who_speaks_http_2_alone_is_not() {
    let lab = Lab::new();
    lab.connect(&Speaks::default()).exchange();
    lab.server.next_seen();
    let http_2 = Speaks {
        protocols: &["h2"],
        ..Speaks::default()
    };
    assert_eq!(lab.refusal(&http_2), NoApplicationProtocol);
    eventually(|| lab.server.refused("tls_handshake") == 1);
}

/// A `ClientHello` of this version and no extension.
fn hello(minor_version: u8) -> Vec<u8> {
    let mut hello = vec![3, minor_version];
    hello.extend([7; 32]);
    // No session, one suite (TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA), no compression.
    hello.extend([0, 0, 2, 0xc0, 0x13, 1, 0]);
    let mut record = vec![
        22,
        3,
        1,
        0,
        hello.len() as u8 + 4,
        1,
        0,
        0,
        hello.len() as u8,
    ];
    record.extend(hello);
    record
}

#[test]
fn older_versions_are_refused() {
    const FATAL: u8 = 2;
    // handshake_failure, protocol_version
    const REASONS: [u8; 2] = [40, 70];
    let lab = Lab::new();
    for version in [0, 1, 2] {
        let mut caller = lab.server.connect();
        caller.send(&hello(version));
        let mut said = Vec::new();
        caller.stream.read_to_end(&mut said).unwrap();
        assert_eq!((said[0], said[5], said.len()), (21, FATAL, 7));
        assert!(REASONS.contains(&said[6]), "{said:?}");
    }
    eventually(|| lab.server.refused("tls_handshake") == 3);
}

#[test]
fn a_certificate_is_demanded_where_authorities_are_named() {
    let clients = Authority::new();
    let lab = Lab::with(limits(), PATIENCE, Some(&clients));
    let speaks = |version, identity: Option<Identity>| Speaks {
        version,
        identity,
        ..Speaks::default()
    };
    for version in [V1_2, V1_3] {
        let mut caller = lab.connect(&speaks(version, Some(clients.client(2040))));
        caller.exchange();
        lab.server.next_seen();

        let foreign = Authority::named("another authority").client(2040);
        for (identity, alert) in [
            (None, CertificateRequired),
            (Some(foreign), UnknownCA),
            (Some(clients.client(2024)), CertificateExpired),
        ] {
            // Heard by the caller, though it sends its request without waiting.
            assert_eq!(lab.refusal(&speaks(version, identity)), alert);
        }
    }
    eventually(|| lab.server.refused("tls_handshake") == 6);
    assert_eq!((lab.handshakes("1.2"), lab.handshakes("1.3")), (1, 1));
}

#[test]
fn a_handshake_has_a_deadline_from_accepting_and_holds_a_place() {
    let lab = Lab::with(limits(), SHORT, None);
    let half = &hello(3)[..20];
    for begins in [&b""[..], half] {
        let mut caller = lab.server.connect();
        caller.send(begins);
        eventually(|| lab.server.shared.connections() == 1);
        assert_eq!(caller.rest(), "");
        assert!(caller.connected.elapsed() >= SHORT);
        eventually(|| lab.server.shared.connections() == 0);
    }
    // Nor does dripping help.
    let mut caller = lab.server.connect();
    let mut dripped = 0;
    for byte in hello(3) {
        if caller.stream.write_all(&[byte]).is_err() {
            break;
        }
        dripped += 1;
        thread::sleep(Duration::from_millis(20));
    }
    assert!(dripped < 40, "{dripped} bytes were taken");
    eventually(|| lab.server.refused("tls_timeout") == 3);
    eventually(|| lab.server.shared.connections() == 0);
    lab.server.assert_nothing_seen();
}

#[test]
fn plain_http_on_the_port_ends_without_an_answer() {
    let lab = Lab::new();
    let mut caller = lab.server.connect();
    caller.send(GET);
    let mut said = Vec::new();
    caller.stream.read_to_end(&mut said).unwrap();
    // At most an alert, which is no HTTP.
    assert!(
        said.len() <= 7 && said.first().is_none_or(|kind| *kind == 21),
        "{said:?}"
    );
    eventually(|| lab.server.refused("tls_handshake") == 1);
    lab.server.assert_nothing_seen();
}

#[test]
fn the_last_answer_arrives_whole_and_the_end_is_said() {
    let lab = Lab::new();
    let mut caller = lab.connect(&Speaks::default());
    caller.send(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let answer = String::from_utf8(rest_to_close_notify(&mut caller)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    // Refused with most of it unread.
    let mut caller = lab.connect(&Speaks::default());
    let head = format!(
        "GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "x".repeat(256 << 10)
    );
    caller.send(head.as_bytes());
    let answer = String::from_utf8(rest_to_close_notify(&mut caller)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[test]
fn a_caller_that_said_its_end_still_gets_its_answer() {
    let lab = Lab::new();
    let mut caller = lab.connect(&Speaks::default());
    caller.send(WAIT);
    lab.server.next_seen();
    caller.stream.conn.send_close_notify();
    caller.stream.flush().unwrap();
    lab.server.release.cancel();
    assert_eq!(caller.receive().1, "waited");
    assert!(rest_to_close_notify(&mut caller).is_empty());
}

#[test]
fn an_idle_connection_is_closed_and_told_so() {
    let lab = Lab::with(
        Limits {
            idle_timeout: SHORT,
            ..limits()
        },
        PATIENCE,
        None,
    );
    let mut caller = lab.connect(&Speaks::default());
    caller.exchange();
    assert!(rest_to_close_notify(&mut caller).is_empty());
    eventually(|| lab.server.shared.connections() == 0);
}

fn is_closed(caller: &mut Caller<TlsStream>) -> bool {
    match caller.stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => matches!(
            error.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
        ),
    }
}

#[test]
fn an_answer_that_is_not_taken_is_given_up() {
    let lab = Lab::with(
        Limits {
            write_timeout: SHORT,
            ..limits()
        },
        PATIENCE,
        None,
    );
    let mut caller = lab.connect(&Speaks::default());
    caller.send(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n");
    lab.server.next_seen();
    eventually(|| lab.server.shared.connections() == 0);
}

#[test]
fn closing_finishes_what_runs_and_waits_for_no_handshake() {
    let mut lab = Lab::new();
    let mut running = lab.connect(&Speaks::default());
    running.send(WAIT);
    lab.server.next_seen();
    let mut idle = lab.connect(&Speaks::default());
    idle.exchange();
    let mut silent: Caller<TcpStream> = lab.server.connect();
    eventually(|| lab.server.shared.connections() == 3);

    lab.server.closing.cancel();
    assert!(is_closed(&mut idle));
    assert_eq!(silent.rest(), "");
    assert!(silent.connected.elapsed() < PATIENCE / 2);
    lab.server.release.cancel();
    let (head, body) = running.receive();
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(body, "waited");
    drop(running);
    lab.server.join();
}

#[test]
fn another_certificate_is_for_connections_to_come() {
    let lab = Lab::new();
    let mut before = lab.connect(&Speaks::default());
    before.exchange();

    let other = Authority::new();
    let files = Files::new(&other.server(), None);
    lab.server.policy.store(
        Policy {
            tls: Some(files.listener_tls(PATIENCE)),
            ..Policy::open(limits())
        }
        .into(),
    );
    before.exchange();
    let mut after = Speaks::default().on(lab.server.connect(), &other);
    after.exchange();
}
