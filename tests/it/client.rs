//! The client against a backend that misbehaves on real sockets.

mod connections;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request};
use tikigate::client::{
    BackendAnswer, CallFault, ConnectFaultKind, ConnectionKind, SendFault, SendFaultKind, Sent,
    Upstream, call,
};
use tikigate::config::{self, Endpoint};
use tikigate::net::ListenAddress;
use tokio::time::Instant;

use crate::support::backend::{Answer, Backend, Behaviour, OnConnect, Refusing, Then};
use ConnectionKind::{Fresh, Pooled};

const LIMIT: usize = 64 * 1024;

/// A deadline that no test reaches.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(100)
}

fn endpoint(address: &ListenAddress) -> Endpoint {
    match address {
        ListenAddress::Tcp(address) => Endpoint::Tcp {
            host: address.ip().to_string(),
            port: address.port(),
        },
        ListenAddress::Unix(path) => Endpoint::Unix(path.clone()),
    }
}

fn upstream_at(endpoint: Endpoint) -> Upstream {
    Upstream::new(Arc::new(config::Upstream {
        name: "legacy".to_owned(),
        endpoints: vec![endpoint],
        host: HeaderValue::from_static("legacy.example"),
        connect_timeout: Duration::from_secs(5),
        answer_within: Duration::from_secs(13),
        settle_within: Duration::from_secs(60),
        max_in_flight: 8,
        set_headers: Vec::new(),
        breaker: config::Breaker::OFF,
        health: None,
    }))
}

fn upstream(backend: &Backend) -> Upstream {
    upstream_at(endpoint(backend.address()))
}

fn refund(body: impl Into<Bytes>) -> Request<Bytes> {
    let body = body.into();
    Request::post("/index.php?route=refund")
        .header("host", "legacy.example")
        .header("content-length", body.len())
        .body(body)
        .unwrap()
}

async fn send(upstream: &Upstream, kind: ConnectionKind) -> Result<BackendAnswer, SendFault> {
    let reserved = upstream.reserve(kind, far()).await.unwrap();
    reserved.send(refund("{}"), far(), LIMIT).await
}

/// The fault of one call over a fresh connection to a backend that behaves like this.
async fn fault_of(behaviour: Behaviour) -> SendFault {
    let backend = Backend::start(move |_| behaviour.clone()).await;
    let fault = send(&upstream(&backend), Fresh).await.unwrap_err();
    backend.wait_for_end_of(0).await;
    fault
}

#[tokio::test]
async fn a_request_goes_out_as_it_is() {
    let backend = Backend::start(|_| Answer::success().header("X-A", "1").into()).await;
    let answer = send(&upstream(&backend), Fresh).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["x-a"], "1");
    assert_eq!(answer.body, r#"{"data":{"status":"success"}}"#);
    assert!(!answer.oversized);
    assert_eq!(
        String::from_utf8(backend.bytes()).unwrap(),
        "POST /index.php?route=refund HTTP/1.1\r\nhost: legacy.example\r\n\
         content-length: 2\r\nconnection: close\r\n\r\n{}"
    );
}

#[tokio::test]
async fn a_unix_socket_works_like_tcp() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backend.sock");
    let backend = Backend::start_unix(&path, |_| Answer::success().into()).await;
    let upstream = upstream(&backend);
    for kind in [Fresh, Pooled, Pooled] {
        assert_eq!(send(&upstream, kind).await.unwrap().status, 200);
    }
    assert_eq!(backend.connections().len(), 2);
}

#[tokio::test]
async fn a_host_name_is_resolved() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let ListenAddress::Tcp(address) = backend.address() else {
        panic!("a TCP backend");
    };
    let by_name = |host: &str| {
        upstream_at(Endpoint::Tcp {
            host: host.to_owned(),
            port: address.port(),
        })
    };
    assert_eq!(
        send(&by_name("localhost"), Fresh).await.unwrap().status,
        200
    );
    let unknown = by_name("no such host");
    let fault = unknown.reserve(Fresh, far()).await.unwrap_err();
    assert_eq!(fault.kind, ConnectFaultKind::Resolve);
    assert_eq!(fault.kind.as_str(), "connect_unresolved");
}

#[tokio::test]
async fn every_framing_of_an_answer_is_read() {
    let body = "0123456789".repeat(10_000);
    for answer in [
        Answer::new(200),
        Answer::new(200).chunked(),
        Answer::new(200).until_close(),
    ] {
        let answer = answer.body(body.clone());
        let backend = Backend::start(move |_| answer.clone().into()).await;
        let upstream = upstream(&backend);
        let reserved = upstream.reserve(Pooled, far()).await.unwrap();
        let answer = reserved
            .send(refund("{}"), far(), body.len())
            .await
            .unwrap();
        assert!(answer.body == body && !answer.oversized);
    }
}

#[tokio::test]
async fn redirects_are_answers_and_interim_answers_are_not() {
    let redirect = Answer::new(302).header("Location", "http://elsewhere.example/");
    let backend = Backend::start(move |seen| match seen.number {
        0 => redirect.clone().into(),
        _ => Behaviour::interim_then(Answer::new(201)),
    })
    .await;
    let upstream = upstream(&backend);
    let answer = send(&upstream, Pooled).await.unwrap();
    assert_eq!(answer.status, 302);
    assert_eq!(answer.headers["location"], "http://elsewhere.example/");
    assert_eq!(send(&upstream, Pooled).await.unwrap().status, 201);
    assert_eq!(backend.connections().len(), 1);
}

#[tokio::test]
async fn a_backend_that_cannot_be_reached_got_nothing() {
    let refusing = Refusing::bind();
    for kind in [Fresh, Pooled] {
        let upstream = upstream_at(endpoint(&refusing.address()));
        let fault = upstream.reserve(kind, far()).await.unwrap_err();
        assert_eq!(fault.kind, ConnectFaultKind::Refused);
        assert!(
            fault.to_string().starts_with("connect_refused: "),
            "{fault}"
        );
    }
}

#[tokio::test]
async fn connecting_ends_by_its_timeout_and_by_the_deadline() {
    // A listener with a full queue leaves further connects hanging.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any_port = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
    listener.bind(&any_port.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _filling = std::net::TcpStream::connect(address).unwrap();

    let full = upstream_at(endpoint(&ListenAddress::Tcp(address)));
    let fault = full.reserve(Fresh, soon()).await.unwrap_err();
    assert_eq!(fault.kind, ConnectFaultKind::Timeout);
    assert_eq!(fault.kind.as_str(), "connect_timeout");

    let mut settings = full.settings().clone();
    settings.connect_timeout = Duration::from_millis(50);
    let impatient = Upstream::new(Arc::new(settings));
    let fault = impatient.reserve(Fresh, far()).await.unwrap_err();
    assert_eq!(fault.kind, ConnectFaultKind::Timeout);
}

#[tokio::test]
async fn a_full_unix_listener_is_asked_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("full.sock");
    let listener =
        socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    listener
        .bind(&socket2::SockAddr::unix(&path).unwrap())
        .unwrap();
    listener.listen(0).unwrap();
    let _filling = std::os::unix::net::UnixStream::connect(&path).unwrap();

    let upstream = upstream_at(Endpoint::Unix(path));
    let fault = upstream.reserve(Fresh, soon()).await.unwrap_err();
    assert_eq!(fault.kind, ConnectFaultKind::Timeout);
    let (room, reserved) =
        tokio::join!(async { listener.accept() }, upstream.reserve(Fresh, far()));
    assert!(room.is_ok() && reserved.is_ok());
}

#[tokio::test]
async fn after_the_deadline_nothing_is_sent() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let upstream = upstream(&backend);
    let reserved = upstream.reserve(Fresh, far()).await.unwrap();
    let fault = reserved
        .send(refund("{}"), Instant::now(), LIMIT)
        .await
        .unwrap_err();
    assert_eq!(
        (fault.sent, fault.kind),
        (Sent::Nothing, SendFaultKind::Timeout)
    );
    backend.wait_for_end_of(0).await;
    assert!(backend.bytes().is_empty());
}

#[tokio::test]
async fn each_fault_after_reading_is_told_and_may_have_been_sent() {
    use SendFaultKind::{Closed, Incomplete, Protocol, Reset};
    let huge_head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let many_fields = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: 1\r\n".repeat(101));
    let bad_chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    let two_lengths = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12";
    let half_then_reset = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345".to_vec();
    let raw = |text: &str| Behaviour::Raw(text.as_bytes().to_vec(), Then::Silence);
    let cases = [
        (Behaviour::Close, Closed),
        (Behaviour::Reset, Reset),
        (Behaviour::Raw(half_then_reset, Then::Reset), Reset),
        (Behaviour::half_a_head(), Incomplete),
        (Behaviour::head_only(), Incomplete),
        (Behaviour::half_a_body(), Incomplete),
        (Behaviour::half_the_chunks(), Incomplete),
        (Behaviour::malformed(), Protocol),
        (Behaviour::switching_protocols(), Protocol),
        (raw(&huge_head), Protocol),
        (raw(&many_fields), Protocol),
        (raw(bad_chunk), Protocol),
        (raw(two_lengths), Protocol),
    ];
    for (case, (behaviour, kind)) in cases.into_iter().enumerate() {
        let fault = fault_of(behaviour).await;
        assert_eq!(
            (fault.sent, fault.kind),
            (Sent::Maybe, kind),
            "case {case}: {fault}"
        );
        assert!(fault.to_string().starts_with(kind.as_str()));
    }
}

#[tokio::test]
async fn an_answer_before_the_request_is_no_answer() {
    let unasked = Answer::success().bytes();
    let backend = Backend::start_with(
        move |_| OnConnect::Say(unasked.clone(), Then::Close),
        |_| Behaviour::Silence,
    )
    .await;
    let upstream = upstream(&backend);
    let reserved = upstream.reserve(Fresh, far()).await.unwrap();
    backend.wait_for_end_of(0).await;
    let fault = reserved.send(refund("{}"), far(), LIMIT).await.unwrap_err();
    assert_eq!(
        (fault.sent, fault.kind),
        (Sent::Nothing, SendFaultKind::Protocol)
    );
    backend.wait_for_end_of(0).await;
    assert!(backend.bytes().is_empty());
}

#[tokio::test]
async fn the_deadline_spans_the_head_and_the_body() {
    let pause = Duration::from_millis(5);
    let dripping = Answer::new(200).body("x".repeat(10_000));
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12".to_vec();
    for behaviour in [
        Behaviour::Silence,
        Behaviour::Raw(head, Then::Silence),
        Behaviour::Drip(dripping, pause),
    ] {
        let backend = Backend::start(move |_| behaviour.clone()).await;
        let upstream = upstream(&backend);
        let reserved = upstream.reserve(Pooled, far()).await.unwrap();
        let started = Instant::now();
        let fault = reserved
            .send(refund("{}"), soon(), LIMIT)
            .await
            .unwrap_err();
        assert_eq!(
            (fault.sent, fault.kind),
            (Sent::Maybe, SendFaultKind::Timeout)
        );
        assert!(started.elapsed() < Duration::from_secs(5));
        // Closed at once, and not kept.
        backend.wait_for_end_of(0).await;
    }
}

#[tokio::test]
async fn a_request_that_nobody_reads_ends_by_the_deadline() {
    let backend = Backend::start_with(|_| OnConnect::Ignore, |_| Behaviour::Silence).await;
    let upstream = upstream(&backend);
    let reserved = upstream.reserve(Fresh, far()).await.unwrap();
    let large = refund(vec![b'x'; 16 << 20]);
    let fault = reserved.send(large, soon(), LIMIT).await.unwrap_err();
    assert_eq!(
        (fault.sent, fault.kind),
        (Sent::Maybe, SendFaultKind::Timeout)
    );
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection() {
    for kind in [Fresh, Pooled] {
        let backend = Backend::start(|_| Behaviour::Silence).await;
        let upstream = upstream(&backend);
        let reserved = upstream.reserve(kind, far()).await.unwrap();
        {
            let call = reserved.send(refund("{}"), far(), LIMIT);
            tokio::select! {
                outcome = call => panic!("{outcome:?}"),
                _ = backend.wait_for_requests(1) => {}
            }
        }
        backend.wait_for_end_of(0).await;
    }
}

#[tokio::test]
async fn a_long_body_is_cut_and_its_connection_closed() {
    let endless = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    for behaviour in [Behaviour::huge(), Behaviour::Flood(endless)] {
        let backend = Backend::start(move |_| behaviour.clone()).await;
        let upstream = upstream(&backend);
        let reserved = upstream.reserve(Pooled, far()).await.unwrap();
        let answer = reserved.send(refund("{}"), far(), 10_000).await.unwrap();
        assert_eq!(answer.body, vec![b'x'; 10_000]);
        assert!(answer.oversized);
        backend.wait_for_end_of(0).await;
    }
}

#[tokio::test]
async fn an_early_answer_counts_if_it_is_whole() {
    // In several pieces: between them the rest of the request is written, and that fails.
    let body = "0123456789".repeat(4_000);
    let answer = Answer::new(413).body(body.clone());
    let early = move || OnConnect::AfterHead(Behaviour::then_close(answer.clone()));
    let backend = Backend::start_with(move |_| early(), |_| Behaviour::Silence).await;
    let upstream = upstream(&backend);
    for kind in [Fresh, Pooled, Pooled] {
        let reserved = upstream.reserve(kind, far()).await.unwrap();
        let large = refund(vec![b'x'; 16 << 20]);
        let answer = reserved.send(large, far(), LIMIT).await.unwrap();
        assert_eq!(answer.status, 413);
        assert!(answer.body == body);
    }
    assert_eq!(backend.connections().len(), 3);
}

#[tokio::test]
async fn a_connection_on_which_a_request_is_still_to_be_written_is_not_used_again() {
    let early = Behaviour::Raw(Answer::new(413).bytes(), Then::Silence);
    let on_connect = move |number| match number {
        0 => OnConnect::AfterHead(early.clone()),
        _ => OnConnect::Serve,
    };
    let backend = Backend::start_with(on_connect, |_| Answer::success().into()).await;
    let upstream = upstream(&backend);
    for (body, status) in [(vec![b'x'; 16 << 20], 413), (b"{}".to_vec(), 200)] {
        let reserved = upstream.reserve(Pooled, far()).await.unwrap();
        let answer = reserved.send(refund(body), far(), LIMIT).await.unwrap();
        assert_eq!(answer.status, status);
    }
    assert_eq!(backend.connections().len(), 2);
}

#[tokio::test]
async fn an_early_end_without_an_answer_is_a_reset() {
    for behaviour in [Behaviour::Close, Behaviour::Reset] {
        let on_connect = OnConnect::AfterHead(behaviour);
        let backend =
            Backend::start_with(move |_| on_connect.clone(), |_| Behaviour::Silence).await;
        let upstream = upstream(&backend);
        let reserved = upstream.reserve(Fresh, far()).await.unwrap();
        let large = refund(vec![b'x'; 16 << 20]);
        let fault = reserved.send(large, far(), LIMIT).await.unwrap_err();
        assert_eq!(
            (fault.sent, fault.kind),
            (Sent::Maybe, SendFaultKind::Reset)
        );
    }
}

#[tokio::test]
async fn a_call_needs_no_upstream() {
    let backend = Backend::start(|_| Answer::json(403, "{}").into()).await;
    let there = endpoint(backend.address());
    let answer = call(&there, refund("{}"), far(), LIMIT).await.unwrap();
    assert_eq!(answer.status, 403);
    backend.wait_for_end_of(0).await;

    let refusing = Refusing::bind();
    let nowhere = endpoint(&refusing.address());
    let fault = call(&nowhere, refund("{}"), far(), LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(fault, CallFault::Connect(fault) if fault.kind == ConnectFaultKind::Refused));
}

#[test]
fn an_upstream_can_be_shared() {
    fn shared<T: Send + Sync + Clone + 'static>(_: &T) {}
    fn sent<T: Send>(_: T) {}
    let refusing = Refusing::bind();
    let upstream = upstream_at(endpoint(&refusing.address()));
    shared(&upstream);
    sent(upstream.reserve(Fresh, far()));
    sent(async move {
        let reserved = upstream.reserve(Fresh, far()).await.unwrap();
        reserved.send(refund("{}"), far(), LIMIT).await
    });
}

/// However little a task may still do in its turn, an answer that is there is read.
#[tokio::test]
async fn a_task_that_has_used_up_its_turn_gets_its_answer() {
    /// Leaves at most so much of every turn, which is 128 units.
    async fn leaving<F: Future>(left: usize, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            for _ in left..128 {
                let spent = pin!(tokio::task::consume_budget()).poll(cx);
                assert!(spent.is_ready());
            }
            future.as_mut().poll(cx)
        })
        .await
    }

    let backend = Backend::start(|_| Answer::success().into()).await;
    let upstream = upstream(&backend);
    for left in 1..24 {
        for kind in [Fresh, Pooled] {
            let reserved = upstream.reserve(kind, far()).await.unwrap();
            let sending = reserved.send(refund("{}"), far(), LIMIT);
            // A task of its own, whose turns begin with nothing used up.
            let task = tokio::spawn(leaving(left, sending));
            let answered = tokio::time::timeout(Duration::from_secs(5), task).await;
            let answer = answered.expect("an answer in time").unwrap().unwrap();
            assert_eq!(answer.status, 200, "{left} units left");
        }
    }
}
