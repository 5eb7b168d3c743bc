//! Who may connect, how many at once, and who makes room.

use std::net::TcpStream;
use std::time::Duration;

use tikigate::net::{AddressRules, ListenAddress, Networks};
use tikigate::server::Policy;

use crate::server::harness::{Caller, GET, Server, Socket, WAIT, eventually, limits};

/// What a connection is left in peace for, with something to spare.
const STAY: Duration = Duration::from_millis(600);

fn networks(of: &str) -> Networks {
    Networks {
        networks: vec![of.parse().unwrap()],
        unix: false,
    }
}

fn fair() -> Policy {
    Policy {
        fair_shares: true,
        ..Policy::open(limits())
    }
}

/// Answered callers, as many as get in.
fn fill(server: &Server, address: [u8; 4], tries: usize) -> Vec<Caller<TcpStream>> {
    let mut held = Vec::new();
    for _ in 0..tries {
        let mut caller = server.connect_from(address);
        let sent = std::io::Write::write_all(&mut caller.stream, GET);
        let mut first = [0];
        let answered = std::io::Read::read(&mut caller.stream, &mut first);
        if sent.is_ok() && matches!(answered, Ok(1)) {
            held.push(caller);
        }
    }
    held
}

#[test]
fn an_address_that_is_not_let_in_is_closed_before_anything() {
    let server = Server::under(
        Policy {
            addresses: AddressRules {
                allow: networks("127.0.0.0/8"),
                deny: networks("127.0.0.2/32"),
            },
            ..Policy::open(limits())
        },
        100,
    );
    assert_eq!(server.connect_from([127, 0, 0, 2]).rest(), "");
    eventually(|| server.refused("address") == 1);
    server.assert_nothing_seen();
    server.connect_from([127, 0, 0, 3]).exchange();

    // Of trusted proxies it is asked of each call.
    let mut policy = Policy::clone(&server.policy.load());
    policy.trusted = networks("127.0.0.2/32");
    server.policy.store(policy.into());
    server.connect_from([127, 0, 0, 2]).exchange();
}

#[test]
fn a_noisy_address_leaves_half_of_the_places() {
    let server = Server::under(fair(), 12);
    let noisy = fill(&server, [127, 0, 0, 1], 12);
    assert_eq!(noisy.len(), 6);
    eventually(|| server.refused("share") == 6);
    let second = fill(&server, [127, 0, 0, 2], 12);
    assert_eq!(second.len(), 3);
    server.connect_from([127, 0, 0, 3]).exchange();
    drop(noisy);
    eventually(|| server.shared.connections() <= second.len());
    assert_eq!(fill(&server, [127, 0, 0, 1], 12).len(), 5);
}

#[test]
fn proxies_and_unix_sockets_have_no_share() {
    let policy = Policy {
        trusted: networks("127.0.0.1/32"),
        ..fair()
    };
    let server = Server::under(policy.clone(), 6);
    assert_eq!(fill(&server, [127, 0, 0, 1], 6).len(), 6);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gate.sock");
    let _server = Server::start_at(&ListenAddress::Unix(path.clone()), 1, 6, policy);
    let connect = || Caller::new(std::os::unix::net::UnixStream::connect(&path).unwrap());
    let mut all: Vec<_> = (0..6).map(|_| connect()).collect();
    for caller in &mut all {
        caller.exchange();
    }
}

#[test]
fn at_the_cap_the_longest_idle_one_makes_room_and_a_busy_one_does_not() {
    let server = Server::under(Policy::open(limits()), 3);
    let mut busy = server.connect();
    busy.send(WAIT);
    server.next_seen();
    let mut older = server.connect();
    older.exchange();
    let mut newer = server.connect();
    newer.exchange();
    std::thread::sleep(STAY);
    server.connect().exchange();
    assert_eq!(older.rest(), "");
    assert!(newer.is_left_waiting());
    server.release.cancel();
    assert_eq!(busy.receive().1, "waited");
    let displaced = server.metric("tikigate_connections_displaced_total{listener=\"server\"}");
    assert_eq!(displaced, 1);
}

#[test]
fn silent_connections_of_many_addresses_keep_nobody_out() {
    let server = Server::under(fair(), 40);
    let silent: Vec<_> = (0..120)
        .map(|number| server.connect_from([127, 0, 1, number]))
        .collect();
    for _ in 0..5 {
        // A caller that connects anew for each call.
        let mut caller = server.connect_from([127, 0, 0, 9]);
        caller.stream.patience(4 * STAY);
        caller.exchange();
    }
    drop(silent);
}

#[test]
fn another_cap_holds_for_connections_to_come() {
    let server = Server::under(Policy::open(limits()), 1);
    let mut first = server.connect();
    first.send(WAIT);
    server.next_seen();
    let mut second = server.connect();
    assert!(second.is_left_waiting());
    server.shared.resize(2);
    second.exchange();
    server.shared.resize(1);
    drop(second);
    let mut third = server.connect();
    assert!(third.is_left_waiting());
    server.release.cancel();
    assert_eq!(first.receive().1, "waited");
    drop(first);
    third.exchange();
}
