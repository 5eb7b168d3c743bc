//! Whose word on a caller's address is believed.

use super::{access_lines, changed};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::TestGate;

/// Sends a call with these lines of `X-Forwarded-For`; returns the address that the backend is told.
/// The log must say the same.
async fn told(gate: &TestGate, backend: &Backend, lines: &[&str]) -> String {
    let number = backend.requests().len();
    let mut call = gate.signed("/tiki/any", &format!("call {number}"));
    for line in lines {
        call = call.and("X-Forwarded-For", line);
    }
    let trace = format!("{:032x}", number + 1);
    call = call.and("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"));
    assert_eq!(gate.send(&call).await.status, 200, "{lines:?}");
    let to_backend = backend.requests()[number]
        .header("x-forwarded-for")
        .unwrap()
        .to_owned();
    let log = access_lines(gate);
    let line = log.iter().find(|line| line["trace_id"] == *trace).unwrap();
    assert_eq!(line["client.address"], *to_backend);
    to_backend
}

#[tokio::test]
async fn nobody_is_believed_who_is_no_trusted_proxy() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    for proxies in ["[]", "[\"10.0.0.0/8\"]"] {
        let trusted = format!("workers = 2\ntrusted_proxies = {proxies}");
        let toml = changed(&backend.url(), &[("workers = 2", &trusted)]);
        let gate = TestGate::with(&toml).await;
        for lines in [
            &["203.0.113.9"][..],
            &["203.0.113.9, 10.0.0.1"],
            &["127.0.0.2"],
            &[],
        ] {
            assert_eq!(told(&gate, &backend, lines).await, "127.0.0.1", "{lines:?}");
        }
    }
}

#[tokio::test]
async fn the_right_most_address_that_is_no_proxy_is_the_caller() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let trusted = "workers = 2\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\", \"fd00::/8\"]";
    let toml = changed(&backend.url(), &[("workers = 2", trusted)]);
    let gate = TestGate::with(&toml).await;
    let rows: [(&[&str], &str); 19] = [
        (&[], "127.0.0.1"),
        (&["203.0.113.9"], "203.0.113.9"),
        (&["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        (&["1.1.1.1, 203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        (&["1.1.1.1,203.0.113.9 ,\t10.1.2.3,fd00::7"], "203.0.113.9"),
        // Several lines are one list.
        (&["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
        (&["1.1.1.1, 203.0.113.9", "10.1.2.3"], "203.0.113.9"),
        (&["203.0.113.9", "10.1.2.3, 10.1.2.4"], "203.0.113.9"),
        // All of them are proxies: the outermost.
        (&["10.9.9.9, 10.1.2.3"], "10.9.9.9"),
        // IPv6, and IPv4 in its clothes.
        (&["2001:DB8::1"], "2001:db8::1"),
        (&["::ffff:203.0.113.9"], "203.0.113.9"),
        (&["203.0.113.9, ::ffff:10.0.0.1"], "203.0.113.9"),
        // What is no address ends the search: what stands before it is nobody's word.
        (&["203.0.113.9, unknown"], "127.0.0.1"),
        (&["203.0.113.9, unknown, 10.1.2.3"], "10.1.2.3"),
        (&["203.0.113.9,"], "127.0.0.1"),
        (&["203.0.113.9:1234"], "127.0.0.1"),
        (&["[2001:db8::1]"], "127.0.0.1"),
        (&["999.1.1.1"], "127.0.0.1"),
        (&["\"203.0.113.9\"", ""], "127.0.0.1"),
    ];
    for (lines, caller) in rows {
        assert_eq!(told(&gate, &backend, lines).await, caller, "{lines:?}");
    }
}
