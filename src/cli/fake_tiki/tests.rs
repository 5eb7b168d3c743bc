//! The stand-in in this process, called by another one.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn options() -> Options {
    Options::default()
        .client("c-1", "secret one")
        .client("c-2", "secret two")
}

async fn fake() -> FakeTiki {
    FakeTiki::start(options()).await.unwrap()
}

fn ipn(to: &FakeTiki, transaction: &str) -> Outgoing {
    let body = format!(
        r#"{{"tiki_transaction_id":"{transaction}","transaction_amount":100000,"transaction_id":"p-1"}}"#
    );
    Outgoing::post(to.base_url() + "/payment/ipn", body, "c-1")
}

fn pending(id: &str) -> Transaction {
    Transaction::pending(id, "p-1", "100000.00", "c-1").unwrap()
}

#[tokio::test]
async fn it_can_be_taken_away_and_brought_back() {
    let tiki = fake().await;
    tiki.put_transaction(pending("t-1"));
    let mut idle = TcpStream::connect(tiki.address()).await.unwrap();
    idle.write_all(b"POST / HTTP/1.1\r\n").await.unwrap();
    assert_eq!(tiki.call(&ipn(&tiki, "t-1")).await.unwrap().status, 200);

    tiki.stop().await;
    let ended = timeout(PATIENCE, idle.read(&mut [0; 8])).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let refused = tiki.call(&ipn(&tiki, "t-1")).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

    tiki.start_again().await.unwrap();
    assert_eq!(tiki.call(&ipn(&tiki, "t-1")).await.unwrap().status, 200);
    assert_eq!(tiki.transaction("t-1").unwrap().1.success, 2);
    let address = tiki.address();
    let mut idle = TcpStream::connect(address).await.unwrap();
    tiki.wait_for_calls(2).await;
    drop(tiki);
    assert!(idle.read(&mut [0; 8]).await.is_err());
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_signature_that_comes_again_is_noted_or_refused() {
    let now = Arc::new(AtomicU64::new(1_667_980_513_000));
    let strict = Options {
        strict_repeats: true,
        ..options()
    };
    for (options, statuses) in [(options(), [200, 200]), (strict, [200, 401])] {
        let clock = Arc::clone(&now);
        let tiki = FakeTiki::start(Options {
            auto_create: true,
            clock: Arc::new(move || clock.load(Ordering::SeqCst)),
            ..options
        })
        .await
        .unwrap();
        for status in statuses {
            let reply = tiki.call(&ipn(&tiki, "t-1")).await.unwrap();
            assert_eq!(reply.status, status);
        }
        let repeated: Vec<bool> = tiki
            .seen_after(0)
            .iter()
            .map(|seen| seen.repeated_signature)
            .collect();
        assert_eq!(repeated, [false, true]);
        assert_eq!(tiki.counts().repeated_signatures, 1);
        now.fetch_add(1, Ordering::SeqCst);
        assert_eq!(tiki.call(&ipn(&tiki, "t-1")).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn it_sends_again_as_tiki_does() {
    let gate = FakeTiki::start(Options {
        auto_create: true,
        ..options()
    })
    .await
    .unwrap();
    let tiki = fake().await;
    let patience = Some(Duration::from_millis(300));
    let how = Resending {
        patience,
        ..Resending::at_speed(60_000.0)
    };
    let failing = |status| Action::Http {
        status,
        body: "{}".into(),
        apply: false,
    };
    let statuses = |tries: &[Try]| -> Vec<Option<u16>> {
        let status = |it: &Try| it.reply.as_ref().map(|reply| reply.status);
        tries.iter().map(status).collect()
    };
    for action in [
        failing(503),
        Action::ApplyThenReset,
        Action::Hang { ms: 60_000 },
    ] {
        gate.order(Order::new(Wanted::Ipn, action)).unwrap();
    }
    let tries = tiki.resend(&ipn(&gate, "t-1"), &how).await.unwrap();
    assert_eq!(statuses(&tries), [Some(503), None, None, Some(200)]);
    assert!(tries[1].error.is_some() && tries[2].ms >= 300);
    assert!(tries[3].after_ms >= tries[2].after_ms + 300 + 30);
    assert_eq!(gate.transaction("t-1").unwrap().1.success, 2);
    assert_eq!(gate.counts().repeated_signatures, 0);

    gate.order(Order::new(Wanted::Ipn, failing(429))).unwrap();
    let tries = tiki.resend(&ipn(&gate, "t-1"), &how).await.unwrap();
    assert_eq!(statuses(&tries), [Some(429)]);

    let unchanged = Resending {
        unchanged: true,
        speed: 1e9,
        ..how
    };
    let first = gate.counts().calls;
    gate.order(Order::new(Wanted::Ipn, failing(500)).times(99))
        .unwrap();
    let tries = tiki.resend(&ipn(&gate, "t-2"), &unchanged).await.unwrap();
    assert_eq!(statuses(&tries), [Some(500); 8]);
    assert_eq!(gate.counts().repeated_signatures, 7);
    let seen = gate.seen_after(first);
    assert!(seen.iter().all(|it| it.headers == seen[0].headers));
    assert_eq!(gate.orders()[0].times, 91);
    for bad in [0.0, -1.0, f64::NAN] {
        let how = Resending::at_speed(bad);
        let refused = tiki.resend(&ipn(&gate, "t-1"), &how).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{bad}");
    }
}

#[tokio::test]
async fn it_calls_the_gate_before_it_answers() {
    let (tiki, gate) = (fake().await, fake().await);
    gate.put_transaction(pending("t-9"));
    tiki.put_transaction(pending("t-1"));
    let inbound = ipn(&gate, "t-9");
    tiki.order(Order::new(
        Wanted::Ipn,
        Action::CallFirst {
            url: inbound.url,
            body: inbound.body.unwrap(),
            client: "c-1".into(),
        },
    ))
    .unwrap();
    assert_eq!(gate.call(&ipn(&tiki, "t-1")).await.unwrap().status, 200);
    let seen = &tiki.seen_after(0)[0];
    assert_eq!(seen.called_first.as_ref().unwrap().status, Some(200));
    assert!(seen.applied && seen.status == Some(200));
    assert_eq!(gate.transaction("t-9").unwrap().0.status, Status::Success);
}

#[tokio::test]
async fn nothing_is_taken_when_the_caller_leaves_during_a_hang() {
    let tiki = fake().await;
    tiki.put_transaction(pending("t-1"));
    tiki.order(Order::new(Wanted::Ipn, Action::Hang { ms: 400 }).times(2))
        .unwrap();
    let impatient = ipn(&tiki, "t-1");
    let left = timeout(Duration::from_millis(100), tiki.call(&impatient)).await;
    assert!(left.is_err());
    assert_eq!(tiki.call(&impatient).await.unwrap().status, 200);
    let taken: Vec<bool> = tiki.seen_after(0).iter().map(|it| it.applied).collect();
    assert_eq!(taken, [false, true]);
}

#[tokio::test]
async fn a_reset_is_a_reset_and_a_close_is_a_close() {
    let tiki = fake().await;
    for (action, reset) in [
        (Action::ResetAtOnce, true),
        (Action::ApplyThenReset, true),
        (Action::ApplyThenClose, false),
    ] {
        tiki.order(Order::new(Wanted::Any, action)).unwrap();
        let mut socket = TcpStream::connect(tiki.address()).await.unwrap();
        let call = signed_ipn("t-1");
        socket.write_all(&call).await.unwrap();
        let end = timeout(PATIENCE, socket.read(&mut [0; 8])).await.unwrap();
        let kind = end.map_err(|error| error.kind());
        let wanted = if reset {
            Err(io::ErrorKind::ConnectionReset)
        } else {
            Ok(0)
        };
        assert_eq!(kind, wanted);
    }
}

/// An IPN's bytes, signed now.
fn signed_ipn(transaction: &str) -> Vec<u8> {
    let keys = signature::Keys::new(Family::Tikivip, [("c-1", &b"secret one"[..])]);
    let body = format!(
        r#"{{"tiki_transaction_id":"{transaction}","transaction_amount":100000,"transaction_id":"p-1"}}"#
    );
    let now = (shared::system_clock())();
    let headers = keys.sign(Family::Tikivip, "c-1", body.as_bytes(), now);
    let mut call = "POST /miniapp/tikivip/payment/ipn HTTP/1.1\r\n".to_owned();
    for (name, value) in headers.unwrap() {
        call += &format!("{name}: {value}\r\n");
    }
    call += &format!(
        "Content-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    call.into_bytes()
}

#[tokio::test]
async fn many_calls_on_one_connection_are_each_taken_once() {
    let tiki = FakeTiki::start(Options {
        auto_create: true,
        seen_kept: 10,
        ..options()
    })
    .await
    .unwrap();
    let all: Vec<u8> = (0..500)
        .flat_map(|number| signed_ipn(&format!("t-{number}")))
        .collect();
    let socket = TcpStream::connect(tiki.address()).await.unwrap();
    let (mut read, mut write) = socket.into_split();
    let sent = tokio::spawn(async move {
        write.write_all(&all).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut answers = String::new();
    timeout(PATIENCE, read.read_to_string(&mut answers))
        .await
        .unwrap()
        .unwrap();
    sent.await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 500);
    let counts = tiki.counts();
    assert_eq!((counts.ipn, counts.connections), (500, 1));
    assert_eq!(counts.taken.len(), 500);
    assert!(counts.taken.values().all(|taken| taken.success == 1));
    assert_eq!(tiki.seen_after(0).len(), 10);
}
