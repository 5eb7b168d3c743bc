//! What a caller of the admin listener can take: bytes, time, connections.

use std::io::{Read, Write};
use std::time::Duration;

use tikigate::admin::Limits;
use tikigate::ledger::State;

use super::gate::{AUTHORIZATION, Answer, Gate, JSON, Mode};
use super::refused;

#[test]
fn bodies_are_bounded() {
    let gate = Gate::with_limits(Limits {
        body_within: Duration::from_millis(100),
        ..Limits::default()
    });
    let id = gate.table.add("refund", "k", State::Unknown);
    let path = format!("/api/ledger/{id}/resolve");
    let word = r#"{"verdict":"applied","reason":"r"}"#;
    let padded = |size: usize| format!("{word}{}", " ".repeat(size - word.len()));

    let declared = gate.post(&path, &padded(16 * 1024 + 1));
    assert_eq!(declared.error(), refused(413, "body_too_large"));

    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\n{AUTHORIZATION}\r\n{JSON}\r\nConnection: close\r\n",
        gate.address
    );
    let mut chunked = gate.connect();
    let chunk = format!("4001\r\n{}\r\n0\r\n\r\n", padded(16 * 1024 + 1));
    let text = format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}");
    chunked.write_all(text.as_bytes()).unwrap();
    assert_eq!(
        Answer::read(&mut chunked).error(),
        refused(413, "body_too_large")
    );

    let mut slow = gate.connect();
    slow.write_all(format!("{head}Content-Length: 10\r\n\r\n{{").as_bytes())
        .unwrap();
    assert_eq!(
        Answer::read(&mut slow).error(),
        refused(408, "body_timeout")
    );

    assert_eq!(gate.table.record(&id).state, State::Unknown);
    assert_eq!(gate.post(&path, &padded(16 * 1024)).status, 200);
}

/// What comes until the other end closes; a reset is an end too.
fn rest(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let mut piece = [0; 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                break;
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn slow_heads_and_idle_connections_are_closed() {
    let gate = Gate::with_limits(Limits {
        head_within: Duration::from_millis(100),
        ..Limits::default()
    });
    let mut silent = gate.connect();
    let mut slow = gate.connect();
    slow.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-")
        .unwrap();
    let mut idle = gate.connect();
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    assert!(!rest(&mut silent).contains("200 OK"));
    assert!(!rest(&mut slow).contains("200 OK"));
    assert!(rest(&mut idle).ends_with("ok\n"));
}

#[test]
fn no_connection_outlives_its_time() {
    let gate = Gate::with_limits(Limits {
        connection_lifetime: Duration::from_millis(100),
        close_within: Duration::from_millis(100),
        ..Limits::default()
    });
    let mut busy = gate.connect();
    busy.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
    assert_eq!(rest(&mut busy), "");
}

#[test]
fn large_heads_are_refused() {
    let gate = Gate::start();
    let long = format!("X-Long: {}", "x".repeat(20_000));
    let mut stream = gate.connect();
    let text = format!("GET /livez HTTP/1.1\r\nHost: x\r\n{long}\r\n\r\n");
    stream.write_all(text.as_bytes()).unwrap();
    assert!(!rest(&mut stream).contains("200 OK"));
    let many = "X-A: b\r\n".repeat(100);
    let mut stream = gate.connect();
    let text = format!("GET /livez HTTP/1.1\r\nHost: x\r\n{many}\r\n");
    stream.write_all(text.as_bytes()).unwrap();
    assert!(!rest(&mut stream).contains("200 OK"));
}

#[test]
fn a_crowd_of_idle_connections_keeps_nobody_out() {
    let gate = Gate::with_limits(Limits {
        connections: 2,
        ..Limits::default()
    });
    let mut first = gate.connect();
    first.write_all(b"GET /livez").unwrap();
    let _second = gate.connect();
    assert_eq!(gate.call("GET /livez", &[], "").status, 200);
    assert_eq!(rest(&mut first), "");
}

#[test]
fn a_connection_that_is_being_answered_is_not_displaced() {
    let gate = Gate::with_limits(Limits {
        connections: 1,
        ledger_within: Duration::from_millis(300),
        ..Limits::default()
    });
    gate.table.set_mode(Mode::Silent);
    let mut asking = gate.connect();
    let text = format!(
        "GET /api/ledger HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{AUTHORIZATION}\r\n\r\n",
        gate.address
    );
    asking.write_all(text.as_bytes()).unwrap();
    assert_eq!(gate.call("GET /livez", &[], "").status, 200);
    assert_eq!(
        Answer::read(&mut asking).error(),
        refused(503, "ledger_unavailable")
    );
}

#[test]
fn a_stopped_listener_finishes_what_it_answers_and_returns() {
    let mut gate = Gate::with_limits(Limits {
        ledger_within: Duration::from_millis(300),
        ..Limits::default()
    });
    let _idle = gate.connect();
    gate.table.set_mode(Mode::Silent);
    let mut asking = gate.connect();
    let text = format!(
        "GET /api/ledger HTTP/1.1\r\nHost: {}\r\n{AUTHORIZATION}\r\n\r\n",
        gate.address
    );
    asking.write_all(text.as_bytes()).unwrap();
    // Answered on another connection: the first one's request is being handled by then.
    assert_eq!(gate.call("GET /livez", &[], "").status, 200);
    gate.stop();
    assert_eq!(
        Answer::read(&mut asking).error(),
        refused(503, "ledger_unavailable")
    );
    assert!(std::net::TcpStream::connect(gate.address).is_err());
}
