//! PROXY headers at the listener.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use tikigate::net::{AddressRules, Networks, Peer};
use tikigate::server::{Limits, Policy};

use super::certificates::{Authority, Files, Speaks};
use crate::server::harness::{GET, PATIENCE, SHORT, Server, eventually, limits};

const V1: &[u8] = b"PROXY TCP4 203.0.113.9 198.51.100.1 51234 443\r\n";
const ANNOUNCED: &str = "203.0.113.9:51234";

/// A header of version 2 that announces [`ANNOUNCED`], with an extension, or is the proxy's own.
fn v2(command: u8) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, 0x11, 0, 15]);
    header.extend([203, 0, 113, 9, 198, 51, 100, 1, 0xc8, 0x22, 1, 0xbb]);
    header.extend([0x04, 0, 0]);
    header
}

fn networks(of: &[&str]) -> Networks {
    Networks {
        networks: of.iter().map(|network| network.parse().unwrap()).collect(),
        unix: false,
    }
}

/// Behind a proxy at 127.0.0.1.
fn policy() -> Policy {
    Policy {
        proxy_protocol: true,
        trusted: networks(&["127.0.0.1/32"]),
        ..Policy::open(limits())
    }
}

fn announced() -> Peer {
    Peer::Tcp(ANNOUNCED.parse::<SocketAddr>().unwrap())
}

#[test]
fn the_announced_address_is_the_callers() {
    let server = Server::under(policy(), 100);
    for header in [V1, &v2(1)] {
        let mut caller = server.connect();
        caller.send(&[header, GET].concat());
        assert!(caller.receive().0.starts_with("HTTP/1.1 200"));
        assert_eq!(server.next_seen().peer, announced());
        // Of the whole connection, and a header is read once.
        caller.exchange();
        assert_eq!(server.next_seen().peer, announced());
        caller.send(&[header, GET].concat());
        assert!(caller.receive().0.starts_with("HTTP/1.1 400"));
    }
}

#[test]
fn a_header_may_come_byte_by_byte() {
    let server = Server::under(policy(), 100);
    for header in [V1, &v2(1)] {
        let mut caller = server.connect();
        for byte in [header, GET].concat() {
            caller.send(&[byte]);
            thread::sleep(Duration::from_millis(1));
        }
        assert!(caller.receive().0.starts_with("HTTP/1.1 200"));
        assert_eq!(server.next_seen().peer, announced());
    }
}

#[test]
fn of_its_own_connections_a_proxy_is_the_caller() {
    let server = Server::under(policy(), 100);
    for header in [&b"PROXY UNKNOWN\r\n"[..], &v2(0)] {
        let mut caller = server.connect();
        caller.send(header);
        caller.exchange();
        let own = caller.stream.local_addr().unwrap();
        assert_eq!(server.next_seen().peer, Peer::Tcp(own));
    }
}

#[test]
fn a_proxy_without_a_header_is_closed_without_an_answer() {
    let server = Server::under(policy(), 100);
    for bytes in [
        GET,
        b"PROXY TCP4 203.0.113.9 198.51.100.1 +1 443\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PROXY TCP4 203.0.113.9\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n",
        &[&v2(1)[..12], &[0x11], GET].concat(),
    ] {
        let mut caller = server.connect();
        caller.send(bytes);
        assert_eq!(caller.rest(), "");
    }
    eventually(|| server.refused("proxy_header") == 4);
    server.assert_nothing_seen();
}

#[test]
fn a_header_has_a_deadline() {
    let server = Server::under(
        Policy {
            limits: Limits {
                header_timeout: SHORT,
                ..limits()
            },
            ..policy()
        },
        100,
    );
    for bytes in [&b""[..], &V1[..20]] {
        let mut caller = server.connect();
        caller.send(bytes);
        assert_eq!(caller.rest(), "");
        assert!(caller.connected.elapsed() >= SHORT);
    }
    eventually(|| server.refused("proxy_timeout") == 2);
    eventually(|| server.shared.connections() == 0);
}

#[test]
fn nobody_else_may_announce_anything() {
    let server = Server::under(policy(), 100);
    for header in [V1, &v2(1)] {
        let mut caller = server.connect_from([127, 0, 0, 2]);
        caller.send(&[header, GET].concat());
        assert!(caller.receive().0.starts_with("HTTP/1.1 400"));
    }
    server.assert_nothing_seen();
    let mut caller = server.connect_from([127, 0, 0, 2]);
    caller.exchange();
    let own = caller.stream.local_addr().unwrap();
    assert_eq!(server.next_seen().peer, Peer::Tcp(own));
}

#[test]
fn tls_begins_behind_the_header() {
    let authority = Authority::new();
    let files = Files::new(&authority.server(), None);
    let server = Server::under(
        Policy {
            tls: Some(files.listener_tls(PATIENCE)),
            ..policy()
        },
        100,
    );
    for header in [V1, &v2(1)] {
        let mut plain = server.connect();
        plain.send(header);
        Speaks::default().on(plain, &authority).exchange();
        assert_eq!(server.next_seen().peer, announced());
    }
    // Header and hello in one segment.
    let mut caller = Speaks::default().on(server.connect(), &authority);
    let mut hello = V1.to_vec();
    caller.stream.conn.write_tls(&mut hello).unwrap();
    std::io::Write::write_all(&mut caller.stream.sock, &hello).unwrap();
    caller.exchange();
    assert_eq!(server.next_seen().peer, announced());
    // TLS before the header is no header.
    let mut caller = Speaks::default().on(server.connect(), &authority);
    assert!(
        caller
            .stream
            .conn
            .complete_io(&mut caller.stream.sock)
            .is_err()
    );
    eventually(|| server.refused("proxy_header") == 1);
}

#[test]
fn rules_hold_for_the_announced_address() {
    let server = Server::under(
        Policy {
            addresses: AddressRules {
                allow: Networks::default(),
                deny: networks(&["203.0.113.0/24"]),
            },
            ..policy()
        },
        100,
    );
    let mut caller = server.connect();
    caller.send(&[V1, GET].concat());
    assert_eq!(caller.rest(), "");
    eventually(|| server.refused("address") == 1);
    let mut caller = server.connect();
    caller.send(b"PROXY TCP4 192.0.2.1 198.51.100.1 51234 443\r\n");
    caller.exchange();
}

#[test]
fn shares_hold_for_the_announced_address() {
    let server = Server::under(
        Policy {
            fair_shares: true,
            ..policy()
        },
        4,
    );
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut caller = server.connect();
        caller.send(V1);
        caller.exchange();
        held.push(caller);
    }
    let mut over = server.connect();
    over.send(&[V1, GET].concat());
    assert_eq!(over.rest(), "");
    eventually(|| server.refused("share") == 1);
    let mut other = server.connect();
    other.send(b"PROXY TCP4 192.0.2.1 198.51.100.1 51234 443\r\n");
    other.exchange();
}
