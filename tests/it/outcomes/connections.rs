//! Which connection a call goes over, to which backend, and under which name.

use super::{Kind, Outcome, Stage, assert_again, assert_first, one_worker, patient, replaced};
use crate::support::backend::{Answer, Backend, Behaviour, Hold, OnConnect, Then};
use crate::support::gate::{TestGate, ipn, ipn_key, refund};
use tikigate::ledger::State;

#[tokio::test]
async fn a_refund_gets_a_connection_of_its_own_and_an_ipn_a_kept_one() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let gate = TestGate::with(&one_worker(&backend.url())).await;
    let mut kept = None;
    for round in 0..3 {
        let id = format!("{round}");
        for kind in Kind::ALL {
            assert_eq!(gate.send(&kind.call(&gate, &id)).await.status, 200);
            let seen = backend.requests().pop().unwrap();
            if kind == Kind::Hold {
                assert_eq!(seen.header("connection"), Some("close"));
                assert_ne!(Some(seen.connection), kept, "a kept one was used");
                backend.wait_for_end_of(seen.connection).await;
                continue;
            }
            assert_eq!(seen.header("connection"), None);
            assert_eq!(
                seen.connection,
                *kept.get_or_insert(seen.connection),
                "{kind:?}"
            );
        }
    }
    // Three refunds' own, and one for the nine others.
    assert_eq!(backend.connections().len(), 4);
    assert!(!backend.connections()[kept.unwrap()].ended);
}

#[tokio::test]
async fn on_unknown_decides_about_the_connection_and_not_the_payload() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let held_ipns = (
        "payload = \"transaction_ipn\"\nclients = [\"wallet\"]\n",
        "payload = \"transaction_ipn\"\nclients = [\"wallet\"]\nidempotency = { on_unknown = \"hold\" }\n",
    );
    let gate = TestGate::with(&replaced(&patient(&backend.url()), &[held_ipns])).await;
    for id in ["p-1", "p-2"] {
        assert_eq!(gate.post("/tiki/ipn", &ipn(id, "1")).await.status, 200);
        let seen = backend.requests().pop().unwrap();
        assert_eq!(seen.header("connection"), Some("close"));
    }
    assert_eq!(backend.connections().len(), 2);
}

/// An answer, and once `hold` is released a word that nobody asked for or an end.
fn then_gone(hold: &Hold, how: usize) -> Behaviour {
    let timeout = Answer::new(408).header("Connection", "close");
    let gone = match how % 3 {
        0 => Behaviour::Close,
        1 => Behaviour::Reset,
        _ => Behaviour::then_close(timeout),
    };
    Behaviour::from(Answer::success()).and_then(gone.held(hold))
}

#[tokio::test]
async fn an_ipn_after_its_kept_connection_was_closed_is_sent_once_on_another() {
    let stage = Stage::open().await;
    let gate = TestGate::with(&one_worker(&stage.backend.url())).await;
    for round in 0..60 {
        let hold = Hold::new();
        stage.plays(OnConnect::Serve, then_gone(&hold, round));
        let id = format!("p-{round}");
        let answer = gate.post("/tiki/ipn", &ipn(&id, "1")).await;
        assert_eq!(answer.status, 200, "{id}: {}", answer.text());
        assert_eq!(gate.state(&ipn_key(&id)).await, Some(State::Done));
        // A connection each, and a request each.
        assert_eq!(stage.counts(), (round + 1, round + 1));
        let seen = stage.backend.requests().pop().unwrap();
        assert_eq!(
            (seen.connection, seen.header("x-tikigate-attempt")),
            (round, Some("1"))
        );
        hold.release();
        stage.backend.wait_for_end_of(round).await;
    }
}

#[tokio::test]
async fn of_many_connections_that_were_closed_while_idle_none_is_used() {
    const MANY: usize = 12;
    let stage = Stage::open().await;
    let gate = TestGate::with(&one_worker(&stage.backend.url())).await;
    let (gather, gone) = (Hold::new(), Hold::new());
    stage.plays(OnConnect::Serve, then_gone(&gone, 0).held(&gather));
    let mut callers = Vec::new();
    for number in 0..MANY {
        let mut caller = gate.connect().await;
        let call = gate.signed("/tiki/ipn", &ipn(&format!("p-{number}"), "1"));
        caller.send(call.to_bytes()).await;
        callers.push(caller);
    }
    stage.backend.wait_for_requests(MANY).await;
    gather.release();
    for caller in &mut callers {
        assert_eq!(caller.read_answer().await.status, 200);
    }
    assert_eq!(stage.counts(), (MANY, MANY));
    gone.release();
    for connection in 0..MANY {
        stage.backend.wait_for_end_of(connection).await;
    }
    for kind in [Kind::Resend, Kind::Post, Kind::Get] {
        stage.succeeds();
        let before = stage.counts();
        assert_eq!(
            gate.send(&kind.call(&gate, "next")).await.status,
            200,
            "{kind:?}"
        );
        assert_eq!(stage.counts(), (before.0 + 1, before.1 + 1));
    }
}

#[tokio::test]
async fn a_kept_connection_that_breaks_under_a_request_is_not_asked_again() {
    let stage = Stage::open().await;
    let gate = TestGate::with(&one_worker(&stage.backend.url())).await;
    // Kept, and then lost while it may be working on the next IPN.
    stage.plays(OnConnect::Serve, Answer::success().into());
    assert_eq!(gate.post("/tiki/ipn", &ipn("p-1", "1")).await.status, 200);
    stage.plays(OnConnect::Serve, Behaviour::Close);
    let call = gate.signed("/tiki/ipn", &ipn("p-2", "1"));
    let first = gate.send(&call).await;
    let outcome = Outcome::lost("upstream_closed");
    assert_first(&gate, Kind::Resend, "p-2", &first, &outcome).await;
    assert_eq!(
        stage.counts(),
        (1, 2),
        "the gate does not send again by itself"
    );
    assert_again(
        &gate,
        &stage,
        Kind::Resend,
        "p-2",
        &call,
        (&first, &outcome),
    )
    .await;
}

#[tokio::test]
async fn a_unix_socket_is_a_backend_like_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("legacy.sock");
    let backend = Backend::start_unix(&path, |seen| match seen.header("idempotency-key") {
        Some("lost") => Behaviour::Close,
        _ => Answer::success().into(),
    })
    .await;
    let gate = TestGate::with(&one_worker(&backend.url())).await;
    for round in 0..2 {
        for kind in Kind::ALL {
            let call = kind.call(&gate, &format!("{round}"));
            assert_eq!(gate.send(&call).await.status, 200, "{kind:?}");
            let seen = backend.requests().pop().unwrap();
            assert_eq!(seen.body, call.body);
            assert_eq!(seen.header("host"), Some("localhost"));
        }
    }
    assert_eq!(backend.connections().len(), 3);
    let lost = gate.post("/tiki/refund", &refund("lost", "1")).await;
    assert_eq!(lost.error_code().as_deref(), Some("upstream_failed"));
    assert_eq!(gate.state("lost").await, Some(State::Unknown));
}

#[tokio::test]
async fn each_route_leads_to_its_own_upstream() {
    let money = Backend::start(|_| Answer::json(200, "\"money\"").into()).await;
    let shop = Backend::start(|_| Answer::json(200, "\"shop\"").into()).await;
    let second = format!("[upstreams.shop]\nurl = \"{}\"\n[signature]", shop.url());
    let toml = replaced(
        &patient(&money.url()),
        &[
            ("[signature]", &second),
            (
                "payload = \"refund\"",
                "payload = \"refund\"\nupstream = \"legacy\"",
            ),
            (
                "payload = \"transaction_ipn\"",
                "payload = \"transaction_ipn\"\nupstream = \"legacy\"",
            ),
            (
                "payload = \"order_ipn\"",
                "payload = \"order_ipn\"\nupstream = \"shop\"",
            ),
            (
                "payload = \"any\"",
                "payload = \"any\"\nupstream = \"shop\"",
            ),
        ],
    );
    let gate = TestGate::with(&toml).await;
    for round in 0..2 {
        let id = format!("{round}");
        for kind in Kind::ALL {
            let backend = match kind {
                Kind::Hold | Kind::Resend => (&money, "\"money\""),
                Kind::Post | Kind::Get => (&shop, "\"shop\""),
            };
            let before = backend.0.requests().len();
            assert_eq!(gate.send(&kind.call(&gate, &id)).await.text(), backend.1);
            assert_eq!(backend.0.requests().len(), before + 1, "{kind:?}");
        }
    }
    assert_eq!((money.requests().len(), shop.requests().len()), (4, 4));
    // One backend's death is nothing to the other's callers.
    drop(shop);
    assert_eq!(
        gate.send(&Kind::Hold.call(&gate, "after")).await.status,
        200
    );
    assert_eq!(gate.send(&Kind::Get.call(&gate, "after")).await.status, 502);
}

#[tokio::test]
async fn the_backend_is_called_by_the_name_and_with_the_headers_that_are_written() {
    let key = "a-key-that-the-backend-knows-4711";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gate.key");
    {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)
            .unwrap();
        writeln!(file, "{key}").unwrap();
    }
    let stage = Stage::open().await;
    let upstream = format!(
        "host = \"legacy.internal:8443\"\nset_headers = {{ \"X-Gate-Key\" = {{ file = \"{}\" }} }}\n[signature]",
        file.display()
    );
    let toml = replaced(
        &patient(&stage.backend.url()),
        &[("[signature]", &upstream)],
    );
    let gate = TestGate::with(&toml).await;
    for kind in Kind::ALL {
        stage.succeeds();
        let forged = kind.call(&gate, "r-1").and("X-Gate-Key", "forged");
        assert_eq!(gate.send(&forged).await.status, 200);
        let seen = stage.backend.requests().pop().unwrap();
        assert_eq!(seen.header("host"), Some("legacy.internal:8443"));
        assert_eq!(
            seen.header("x-gate-key"),
            Some(key),
            "one, and the gate's own"
        );

        stage.plays(
            OnConnect::Serve,
            Behaviour::Raw(b"X-Gate-Key?\r\n".to_vec(), Then::Close),
        );
        let answer = gate.send(&kind.call(&gate, "r-2")).await;
        assert_eq!(answer.status, 502);
        assert!(!answer.text().contains(key));
    }
    assert!(!gate.log_text().contains(key));
    assert!(!gate.metrics().await.contains(key));
}
