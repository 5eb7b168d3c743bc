//! The inbound server on real sockets, spoken to in bytes.

pub(crate) mod harness;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use tikigate::net::{ListenAddress, Peer};
use tikigate::server::{BindError, Limits, Policy, bind};

use self::harness::{Caller, GET, PATIENCE, SHORT, Server, Socket, WAIT, eventually, limits};

#[test]
fn a_kept_alive_request_counts_from_its_own_first_byte() {
    let server = Server::start(limits());
    let mut caller = server.connect();
    caller.exchange();
    let seen = server.next_seen();
    assert_eq!(seen.peer, Peer::Tcp(caller.stream.local_addr().unwrap()));
    assert!(seen.first_byte >= caller.connected && seen.first_byte <= Instant::now());

    thread::sleep(Duration::from_millis(5));
    let sent = Instant::now();
    caller.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody");
    assert_eq!(caller.receive().1, "body");
    let seen = server.next_seen();
    assert!(seen.first_byte >= sent && seen.first_byte <= Instant::now());
}

#[test]
fn a_pipelined_request_counts_from_the_answer_before_it() {
    let server = Server::start(limits());
    let mut caller = server.connect();
    caller.send(&[WAIT, GET].concat());
    assert_eq!(server.next_seen().path, "/wait");
    let released = Instant::now();
    server.release.cancel();
    assert_eq!(caller.receive().1, "waited");
    assert_eq!(caller.receive().1, "");
    let seen = server.next_seen();
    assert_eq!(seen.path, "/");
    assert!(seen.first_byte >= released);
}

#[test]
fn a_head_that_drips_is_closed() {
    let server = Server::start(Limits {
        header_timeout: SHORT,
        ..limits()
    });
    let mut caller = server.connect();
    caller.send(b"GET / HTTP/1.1\r\nhost: ");
    caller.stream.patience(Duration::from_millis(5));
    let closed = loop {
        assert!(caller.connected.elapsed() < PATIENCE, "still open");
        match caller.stream.read(&mut [0]) {
            Ok(0) => break true,
            Ok(_) => break false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break true,
        }
        if caller.stream.write_all(b"x").is_err() {
            break true;
        }
    };
    assert!(closed, "closed without an answer");
    assert!(caller.connected.elapsed() >= SHORT);
    server.assert_nothing_seen();
}

#[test]
fn silence_is_closed() {
    let server = Server::start(Limits {
        header_timeout: SHORT,
        ..limits()
    });
    assert_eq!(server.connect().rest(), "");
    server.assert_nothing_seen();
}

#[test]
fn an_idle_connection_is_closed() {
    let server = Server::start(Limits {
        idle_timeout: SHORT,
        ..limits()
    });
    let mut caller = server.connect();
    caller.exchange();
    assert_eq!(caller.rest(), "");
    assert!(caller.connected.elapsed() >= SHORT);
}

#[test]
fn an_answer_that_is_not_taken_is_given_up() {
    let server = Server::start(Limits {
        write_timeout: SHORT,
        ..limits()
    });
    let mut caller = server.connect();
    caller.send(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n");
    server.next_seen();
    eventually(|| server.shared.connections() == 0);
    assert!(caller.connected.elapsed() >= SHORT);
}

#[test]
fn an_old_connection_is_closed() {
    let server = Server::start(Limits {
        lifetime: Duration::from_millis(500),
        ..limits()
    });
    let mut caller = server.connect();
    caller.send(GET);
    let all = caller.rest();
    assert!(all.starts_with("HTTP/1.1 200"), "{all}");
}

#[test]
fn connections_over_the_cap_wait_for_room() {
    let address = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
    let server = Server::start_at(&address, 1, 1, Policy::open(limits()));
    let mut first = server.connect();
    first.exchange();
    let mut second = server.connect();
    second.send(GET);
    assert!(second.is_left_waiting());
    assert_eq!(server.shared.connections(), 1);
    drop(first);
    assert!(second.receive().0.starts_with("HTTP/1.1 200"));
    assert_eq!(server.shared.connections(), 1);
}

#[test]
fn closing_finishes_what_runs_and_ends_what_idles() {
    let mut server = Server::start(limits());
    let mut running = server.connect();
    running.send(WAIT);
    server.next_seen();
    let mut idle = server.connect();
    idle.exchange();
    server.closing.cancel();
    assert_eq!(idle.rest(), "");
    let refused = TcpStream::connect(server.tcp()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert!(!server.threads[0].is_finished());
    server.release.cancel();
    let (head, body) = running.receive();
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(body, "waited");
    assert_eq!(running.rest(), "");
    drop(running);
    server.join();
    assert_eq!(server.shared.connections(), 0);
}

#[test]
fn closing_still_answers_who_had_connected() {
    let mut server = Server::start(limits());
    let mut blocker = server.connect();
    blocker.send(b"GET /block HTTP/1.1\r\nhost: x\r\n\r\n");
    server.next_seen();
    let mut waiting = server.connect();
    waiting.send(GET);
    server.closing.cancel();
    server.unblock.send(()).unwrap();
    assert_eq!(blocker.receive().1, "blocked");
    let (head, _) = waiting.receive();
    assert!(head.contains("connection: close"), "{head}");
    drop((blocker, waiting));
    server.join();
}

#[test]
fn abort_bounds_the_closing() {
    let mut server = Server::start(limits());
    let mut caller = server.connect();
    caller.send(WAIT);
    server.next_seen();
    server.closing.cancel();
    assert!(caller.is_left_waiting());
    server.abort.cancel();
    assert_eq!(caller.rest(), "");
    server.join();
    assert_eq!(server.finished.load(Ordering::SeqCst), 0);
}

#[test]
fn a_caller_that_hangs_up_does_not_cancel_its_call() {
    let server = Server::start(limits());
    let mut caller = server.connect();
    caller.send(WAIT);
    server.next_seen();
    drop(caller);
    // Another connection's round trip: the server had every chance to notice.
    server.connect().exchange();
    server.release.cancel();
    eventually(|| server.finished.load(Ordering::SeqCst) == 2);
}

#[test]
fn a_caller_that_half_closes_gets_its_answer() {
    let server = Server::start(limits());
    let mut caller = server.connect();
    caller.send(WAIT);
    caller.stream.shutdown(std::net::Shutdown::Write).unwrap();
    server.next_seen();
    assert!(caller.is_left_waiting());
    server.release.cancel();
    assert_eq!(caller.receive().1, "waited");
    assert_eq!(caller.rest(), "");
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let server = Server::start(limits());
    let mut caller = server.connect();
    caller.send(b"GET / HTTP/1.0\r\n\r\n");
    let (head, _) = caller.receive();
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    assert_eq!(caller.rest(), "");
}

#[test]
fn http_2_is_refused() {
    let server = Server::start(limits());
    let mut caller = server.connect();
    caller.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    assert_eq!(caller.rest(), "");
    server.assert_nothing_seen();
}

#[test]
fn heads_are_bounded() {
    let server = Server::start(limits());
    let long = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(8192));
    let endless = format!("GET / HTTP/1.1\r\nhost: {}", "x".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(21));
    for head in [long, endless, many] {
        let mut caller = server.connect();
        // The server may close before it has read everything.
        let _ = caller.stream.write_all(head.as_bytes());
        let rest = caller.rest();
        assert!(rest.starts_with("HTTP/1.1 431 "), "{rest}");
        server.assert_nothing_seen();
    }
    let most = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(20));
    let mut caller = server.connect();
    caller.send(most.as_bytes());
    assert!(caller.receive().0.starts_with("HTTP/1.1 200"));
}

#[test]
fn workers_share_a_port() {
    let address = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
    let mut server = Server::start_at(&address, 2, 1000, Policy::open(limits()));
    let mut workers = Vec::new();
    for _ in 0..200 {
        server.connect().exchange();
        let worker = server.next_seen().worker;
        if !workers.contains(&worker) {
            workers.push(worker);
        }
        if workers.len() == 2 {
            break;
        }
    }
    assert_eq!(workers.len(), 2, "one worker got all of 200 connections");
    server.closing.cancel();
    server.join();
}

#[test]
fn a_port_in_use_is_named() {
    let any = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
    for theirs in [1, 2] {
        let listeners = bind(&any, theirs).unwrap();
        let taken = listeners[0].local_address();
        for ours in [1, 2] {
            let error = bind(&taken, ours).unwrap_err();
            assert!(matches!(error, BindError::InUse { .. }));
            assert_eq!(
                error.to_string(),
                format!("cannot listen on {taken}: another process is listening there")
            );
        }
        drop(listeners);
        bind(&taken, 2).unwrap();
    }
}

#[test]
fn an_address_of_another_machine_is_named() {
    let theirs = ListenAddress::Tcp("192.0.2.1:80".parse().unwrap());
    let error = bind(&theirs, 1).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot listen on 192.0.2.1:80: "),
        "{error}"
    );
}

#[test]
fn a_unix_socket_is_shared_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gate.sock");
    let address = ListenAddress::Unix(path.clone());
    // Left behind by a process that is gone.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());

    let mut server = Server::start_at(&address, 2, 100, Policy::open(limits()));
    assert_eq!(server.address, address);
    let mut caller = Caller::new(UnixStream::connect(&path).unwrap());
    caller.exchange();
    assert_eq!(server.next_seen().peer, Peer::Unix);
    assert!(matches!(
        bind(&address, 1).unwrap_err(),
        BindError::InUse { .. }
    ));
    caller.exchange();

    drop(caller);
    server.closing.cancel();
    server.join();
    assert!(!path.exists());
}

#[test]
fn only_stale_sockets_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gate.sock");
    let address = ListenAddress::Unix(path.clone());
    std::fs::write(&path, "precious").unwrap();
    let error = bind(&address, 1).unwrap_err();
    assert!(matches!(error, BindError::NotASocket { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();

    // A file that another process put in our place stays.
    let listeners = bind(&address, 2).unwrap();
    std::fs::remove_file(&path).unwrap();
    let theirs = UnixListener::bind(&path).unwrap();
    drop(listeners);
    assert!(path.exists());
    drop(theirs);
}
