//! Whose word on a caller's address is believed.

use super::{HOUR, access_lines, assert_refused, changed};
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

/// A gate behind a proxy, which lets some in by these keys of `[server]` and of the route `any`.
async fn letting_in(backend: &Backend, server: &str, route: &str) -> TestGate {
    let behind = format!("workers = 2\ntrusted_proxies = [\"127.0.0.1\"]\n{server}");
    let on_route = format!("payload = \"any\"\n{route}\nupstream_path");
    let toml = changed(
        &backend.url(),
        &[
            ("workers = 2", &behind),
            ("payload = \"any\"\nupstream_path", &on_route),
        ],
    );
    TestGate::with(&toml).await
}

#[tokio::test]
async fn only_addresses_that_are_let_in_may_call() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let lists = "allow = [\"203.0.113.0/24\", \"2001:db8::/32\"]\ndeny = [\"203.0.113.66\"]";
    for (server, route) in [(lists, ""), ("", lists)] {
        let gate = letting_in(&backend, server, route).await;
        for (number, (from, let_in)) in [
            ("203.0.113.9", true),
            ("203.0.113.66", false),
            ("198.51.100.1", false),
            ("2001:db8::7", true),
            ("2001:db9::7", false),
            ("::ffff:203.0.113.9", true),
            ("198.51.100.1, 203.0.113.9", true),
            ("203.0.113.9, 198.51.100.1", false),
        ]
        .into_iter()
        .enumerate()
        {
            let sent = backend.requests().len();
            let call = gate.signed("/tiki/any", &format!("{number}"));
            let answer = gate.send(&call.and("X-Forwarded-For", from)).await;
            if let_in {
                assert_eq!(answer.status, 200, "{from}");
                assert_eq!(backend.requests().len(), sent + 1, "{from}");
            } else {
                assert_refused(&answer, 503, "address_not_allowed");
                assert_eq!(backend.requests().len(), sent, "{from}");
            }
        }
        // The other routes are not concerned by a route's list.
        let order = gate
            .signed("/tiki/ipn", "{")
            .and("X-Forwarded-For", "192.0.2.1");
        let status = gate.send(&order).await.status;
        assert_eq!(status, if route.is_empty() { 503 } else { 400 });
    }
}

/// A list that is too short must not lose a call: Tiki sends it again, and by then the list is mended.
#[tokio::test]
async fn a_call_that_was_kept_out_counts_when_it_is_sent_again_unchanged() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    for (server, route) in [
        ("allow = [\"192.0.2.1\"]", ""),
        ("", "allow = [\"192.0.2.1\"]"),
    ] {
        let gate = letting_in(&backend, server, route).await;
        let sent = backend.requests().len();
        let call = gate.signed("/tiki/any", "late");
        let kept_out = call.clone().and("X-Forwarded-For", "203.0.113.9");
        assert_refused(&gate.send(&kept_out).await, 503, "address_not_allowed");
        // Far outside of its window, from an address that is let in.
        gate.advance(2 * HOUR);
        let again = call.and("X-Forwarded-For", "192.0.2.1");
        assert_eq!(gate.send(&again).await.status, 200);
        assert_eq!(backend.requests().len(), sent + 1);
    }
}
