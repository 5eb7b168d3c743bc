//! Which connection a request goes over, and when one is given up.

use std::time::Duration;

use tikigate::client::ConnectionKind::{Fresh, Pooled};
use tikigate::client::{SendFaultKind, Sent};
use tikigate::config::Endpoint;
use tikigate::net::ListenAddress;

use super::{LIMIT, endpoint, far, refund, send, upstream, upstream_at};
use crate::support::backend::{Answer, Backend, Behaviour, Hold, OnConnect, Then};

#[tokio::test]
async fn fresh_connections_serve_once_and_pooled_ones_again() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let upstream = upstream(&backend);
    for (kind, connection) in [(Fresh, 0), (Fresh, 1), (Pooled, 2), (Pooled, 2), (Fresh, 3)] {
        send(&upstream, kind).await.unwrap();
        let seen = backend.requests().pop().unwrap();
        assert_eq!(seen.connection, connection);
        let close = (kind == Fresh).then_some("close");
        assert_eq!(seen.header("connection"), close);
    }
    backend.wait_for_end_of(3).await;
    assert!(!backend.connections()[2].ended);
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_not_used() {
    for then in [Then::Close, Then::Reset] {
        let answer = Answer::success().bytes();
        let backend = Backend::start(move |_| Behaviour::Raw(answer.clone(), then)).await;
        let upstream = upstream(&backend);
        for connection in 0..3 {
            send(&upstream, Pooled).await.unwrap();
            backend.wait_for_end_of(connection).await;
        }
        assert_eq!(backend.requests().len(), 3);
    }
}

#[tokio::test]
async fn bytes_nobody_asked_for_end_a_connection() {
    let second = Answer::new(500).bytes();
    for surplus in [b"x".to_vec(), second] {
        let backend =
            Backend::start(move |_| Behaviour::with_surplus(Answer::success(), &surplus)).await;
        let upstream = upstream(&backend);
        for _ in 0..3 {
            assert_eq!(send(&upstream, Pooled).await.unwrap().status, 200);
        }
        let connections: Vec<_> = backend.requests().iter().map(|r| r.connection).collect();
        assert_eq!(connections, [0, 1, 2]);
    }
}

#[tokio::test]
async fn a_word_said_while_idle_ends_a_connection() {
    let hold = Hold::new();
    let late = Behaviour::then_close(Answer::new(408)).held(&hold);
    let backend =
        Backend::start(move |_| Behaviour::from(Answer::success()).and_then(late.clone())).await;
    let upstream = upstream(&backend);
    send(&upstream, Pooled).await.unwrap();
    hold.release();
    backend.wait_for_end_of(0).await;
    assert_eq!(send(&upstream, Pooled).await.unwrap().status, 200);
}

/// Serves connections on a thread, one after the other; `serve` is told their number.
fn blocking_backend(
    serve: impl Fn(usize, std::net::TcpStream) + Send + 'static,
) -> (Endpoint, std::sync::mpsc::Receiver<()>) {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = ListenAddress::Tcp(listener.local_addr().unwrap());
    let (ended, ends) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            serve(number, stream.unwrap());
            if ended.send(()).is_err() {
                return;
            }
        }
    });
    (endpoint(&address), ends)
}

// In these two the backend closes while the test blocks its runtime: only a look at the socket
// itself can tell, the runtime has not heard of it yet.

#[tokio::test]
async fn a_close_that_the_runtime_has_not_heard_of_is_seen_at_take() {
    use std::io::{Read, Write};
    let (close, closing) = std::sync::mpsc::channel();
    let (there, ends) = blocking_backend(move |number, mut stream| {
        let _ = stream.read(&mut [0; 1000]).unwrap();
        stream.write_all(&Answer::success().bytes()).unwrap();
        if number == 0 {
            closing.recv().unwrap();
        }
    });
    let upstream = upstream_at(there);
    send(&upstream, Pooled).await.unwrap();
    close.send(()).unwrap();
    ends.recv().unwrap();
    assert_eq!(send(&upstream, Pooled).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_fresh_connection_closed_before_the_request_got_nothing() {
    let (there, ends) = blocking_backend(|_, _| {});
    let upstream = upstream_at(there);
    let reserved = upstream.reserve(Fresh, far()).await.unwrap();
    ends.recv().unwrap();
    let fault = reserved.send(refund("{}"), far(), LIMIT).await.unwrap_err();
    assert_eq!(
        (fault.sent, fault.kind),
        (Sent::Nothing, SendFaultKind::Closed)
    );
}

#[tokio::test]
async fn a_backend_that_went_before_the_request_got_nothing() {
    for (kind, on_connect, fault_kind) in [
        (Fresh, OnConnect::Close, SendFaultKind::Closed),
        (Fresh, OnConnect::Reset, SendFaultKind::Reset),
        (Pooled, OnConnect::Close, SendFaultKind::Closed),
        (Pooled, OnConnect::Reset, SendFaultKind::Reset),
    ] {
        let backend =
            Backend::start_with(move |_| on_connect.clone(), |_| Behaviour::Silence).await;
        let upstream = upstream(&backend);
        let reserved = upstream.reserve(kind, far()).await.unwrap();
        backend.wait_for_end_of(0).await;
        let fault = reserved.send(refund("{}"), far(), LIMIT).await.unwrap_err();
        assert_eq!((fault.sent, fault.kind), (Sent::Nothing, fault_kind));
    }
}

#[tokio::test]
async fn the_connection_used_last_is_used_first_and_few_are_kept() {
    let hold = Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |_| Behaviour::from(Answer::success()).held(&held)).await;
    let upstream = upstream(&backend);
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let upstream = upstream.clone();
            tokio::spawn(async move { send(&upstream, Pooled).await.unwrap() })
        })
        .collect();
    backend.wait_for_requests(10).await;
    hold.release();
    for call in calls {
        call.await.unwrap();
    }
    // Eight may run at once by the settings, so eight are kept; two were closed.
    backend.wait_for_ends(2).await;
    send(&upstream, Pooled).await.unwrap();
    send(&upstream, Pooled).await.unwrap();
    let requests = backend.requests();
    assert_eq!(requests[10].connection, requests[11].connection);
    let ended = backend.connections().iter().filter(|c| c.ended).count();
    assert_eq!((backend.connections().len(), ended), (10, 2));
}

#[tokio::test]
async fn a_connection_idle_for_long_is_closed_unused() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let upstream = upstream(&backend);
    send(&upstream, Pooled).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(5)).await;
    tokio::time::resume();
    send(&upstream, Pooled).await.unwrap();
    backend.wait_for_end_of(0).await;
    assert_eq!(backend.requests()[1].connection, 1);
}

#[tokio::test]
async fn the_backend_closes_a_fresh_connection_first() {
    let hold = Hold::new();
    let late = Behaviour::Close.held(&hold);
    let backend = Backend::start(move |seen| {
        let answer = Behaviour::from(Answer::success());
        match seen.connection {
            0 => answer.and_then(late.clone()),
            // It was asked to close and doesn't.
            _ => answer.and_then(Behaviour::Silence),
        }
    })
    .await;
    let upstream = upstream(&backend);
    send(&upstream, Fresh).await.unwrap();
    send(&upstream, Fresh).await.unwrap();
    assert!(!backend.connections()[0].ended);
    hold.release();
    backend.wait_for_end_of(0).await;
    backend.wait_for_end_of(1).await;
}
