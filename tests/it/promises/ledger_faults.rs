//! A ledger that fails: nothing is sent on a guess, nothing is told before it is recorded.

use std::sync::Arc;

use tikigate::config;
use tikigate::gate::Common;
use tikigate::ledger::{DefineError, Ledger, State};

use super::faulty_ledger::{Fault, FaultyLedger};
use super::lab::Lab;
use super::{PATIENT, QUICK};
use crate::support::backend::{Answer, Backend, Behaviour, Hold};
use crate::support::gate::{OTHER_SECRET, SECRET, ipn, ipn_key, refund, start_time, usual};
use crate::support::in_time;

async fn agreeable() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

fn refunds_and_notices() -> [(&'static str, String, String); 2] {
    [
        ("/tiki/refund", refund("k-1", "1"), "k-1".to_owned()),
        ("/tiki/ipn", ipn("k-1", "1"), ipn_key("k-1")),
    ]
}

#[tokio::test]
async fn without_a_claim_nothing_is_sent() {
    for fault in [Fault::Fails, Fault::Full, Fault::Panics] {
        for (path, body, key) in refunds_and_notices() {
            let backend = agreeable().await;
            let lab = Lab::start(&backend.url(), PATIENT);
            lab.ledger.next_claim(fault.clone());
            let call = lab.signed(path, &body);
            let got = lab.send(&call).await;
            assert!(got.is(503, "ledger_unavailable"), "{fault:?}: {got:?}");
            assert!(backend.connections().is_empty(), "{fault:?}");
            assert_eq!(lab.state(&key).await, None);
            // The trouble has passed, and Tiki sends again.
            assert_eq!(lab.send(&call).await.status, 200);
            assert_eq!(backend.requests().len(), 1);
        }
    }
}

#[tokio::test]
async fn without_a_permit_nothing_is_sent_and_the_claim_is_released() {
    for (fault, status, code) in [
        (Fault::Fails, 503, "ledger_unavailable"),
        (Fault::Full, 503, "ledger_unavailable"),
        (Fault::Fenced, 503, "ledger_unavailable"),
        (Fault::Over, 502, "upstream_unreachable"),
    ] {
        for (path, body, key) in refunds_and_notices() {
            let backend = agreeable().await;
            let lab = Lab::start(&backend.url(), PATIENT);
            lab.ledger.next_permit(fault.clone());
            let call = lab.signed(path, &body);
            let got = lab.send(&call).await;
            assert!(got.is(status, code), "{fault:?}: {got:?}");
            assert_eq!(lab.state(&key).await, Some(State::Released), "{fault:?}");
            assert!(backend.bytes().is_empty(), "{fault:?}");
            assert_eq!(lab.send(&call).await.status, 200);
            assert_eq!(
                backend.requests()[0].header("x-tikigate-attempt"),
                Some("2")
            );
        }
    }
}

#[tokio::test]
async fn what_the_ledger_allows_too_late_is_not_sent() {
    let backend = agreeable().await;
    let lab = Lab::start(&backend.url(), QUICK);
    for at_claim in [true, false] {
        let hold = Hold::new();
        if at_claim {
            lab.ledger.next_claim(Fault::Late(hold.clone()));
        } else {
            lab.ledger.next_permit(Fault::Late(hold.clone()));
        }
        let key = format!("k-{at_claim}");
        let call = lab.signed("/tiki/refund", &refund(&key, "1"));
        let got = lab.send(&call).await;
        assert!((502..=503).contains(&got.status), "{got:?}");
        hold.release();
        if at_claim {
            // Nobody waits for the claim any more, and so the store makes none.
            lab.settled().await;
            assert_eq!(lab.state(&key).await, None);
        } else {
            lab.ledger.wait_for_settles(1).await;
            assert_eq!(lab.state(&key).await, Some(State::Released));
        }
    }
    lab.settled().await;
    assert!(backend.bytes().is_empty());
}

#[tokio::test]
async fn nobody_is_told_of_an_answer_before_it_is_recorded() {
    for (path, body, key) in refunds_and_notices() {
        let backend = agreeable().await;
        let lab = Lab::start(&backend.url(), PATIENT);
        for _ in 0..3 {
            lab.ledger.next_settle(Fault::Fails);
        }
        let call = lab.signed(path, &body);
        let first = lab.begin(&call);
        backend.wait_for_requests(1).await;
        let duplicates: Vec<_> = (0..5).map(|_| lab.begin(&call)).collect();
        lab.ledger.wait_for_settles(2).await;
        tokio::task::yield_now().await;
        assert!(!first.is_finished());
        assert!(duplicates.iter().all(|duplicate| !duplicate.is_finished()));
        assert_eq!(lab.state(&key).await, Some(State::Claimed));
        let first = in_time("the answer", first).await.unwrap();
        assert_eq!((first.status, first.replayed), (200, false));
        for duplicate in duplicates {
            assert_eq!(in_time("the same answer", duplicate).await.unwrap(), first);
        }
        assert_eq!(lab.state(&key).await, Some(State::Done));
        let replay = lab.send(&call).await;
        assert_eq!((replay.status, replay.replayed), (200, true));
        assert_eq!(backend.requests().len(), 1);
    }
}

#[tokio::test]
async fn an_answer_that_is_recorded_after_tikis_deadline_waits_for_the_next_try() {
    let backend = agreeable().await;
    let lab = Lab::start(&backend.url(), QUICK);
    for _ in 0..2 {
        lab.ledger.next_settle(Fault::Fails);
    }
    let call = lab.signed("/tiki/refund", &refund("k-1", "1"));
    let got = lab.send(&call).await;
    assert!(got.is(504, "upstream_timeout"), "{got:?}");
    lab.ledger.wait_for_settles(3).await;
    let replay = lab.send(&call).await;
    assert_eq!(replay.status, 200, "{replay:?}");
    assert_eq!(lab.state("k-1").await, Some(State::Done));
    assert_eq!(backend.requests().len(), 1);
}

/// A call that the backend has answered and the ledger will not record, abandoned.
async fn abandoned_while(fault: Fault) {
    let backend = agreeable().await;
    let lab = Lab::start(&backend.url(), PATIENT);
    lab.ledger.every_settle(fault.clone());
    let call = lab.signed("/tiki/refund", &refund("k-1", "1"));
    let waiting = lab.begin(&call);
    lab.ledger.wait_for_settles(1).await;
    lab.common.calls().abandon();
    lab.settled().await;
    let got = in_time("an answer", waiting).await.unwrap();
    assert!(got.is(503, "ledger_unavailable"), "{fault:?}: {got:?}");
    assert_eq!(backend.requests().len(), 1);
    assert_eq!(lab.state("k-1").await, Some(State::Claimed));
}

#[tokio::test]
async fn the_end_of_the_gate_waits_for_no_ledger_that_fails_for_ever() {
    abandoned_while(Fault::Fails).await;
}

#[tokio::test]
async fn the_end_of_the_gate_waits_for_no_ledger_that_never_answers() {
    abandoned_while(Fault::Hangs).await;
}

#[tokio::test]
async fn the_end_of_the_gate_waits_for_no_claim_and_no_permit_that_never_come() {
    for at_claim in [true, false] {
        let backend = agreeable().await;
        let lab = Lab::start(&backend.url(), PATIENT);
        if at_claim {
            lab.ledger.next_claim(Fault::Hangs);
        } else {
            lab.ledger.next_permit(Fault::Hangs);
        }
        let waiting = lab.begin(&lab.signed("/tiki/refund", &refund("k-1", "1")));
        lab.ledger.wait_for_claims(1).await;
        if !at_claim {
            backend.wait_for_connections(1).await;
        }
        lab.common.calls().abandon();
        lab.settled().await;
        let got = in_time("an answer", waiting).await.unwrap();
        assert!(got.status >= 500, "{got:?}");
        assert!(backend.bytes().is_empty());
        let state = lab.state("k-1").await;
        assert_eq!(state, (!at_claim).then_some(State::Released));
    }
}

#[tokio::test]
async fn a_panic_while_recording_leaves_the_refund_held_and_the_notice_released() {
    for failures in [0, 2] {
        for (path, body, key) in refunds_and_notices() {
            let backend = agreeable().await;
            let lab = Lab::start(&backend.url(), PATIENT);
            lab.ledger.next_settle(Fault::Panics);
            // The store may be in trouble for longer than that.
            for _ in 0..failures {
                lab.ledger.next_settle(Fault::Fails);
            }
            let call = lab.signed(path, &body);
            let got = lab.send(&call).await;
            assert!(got.is(503, "ledger_unavailable"), "{got:?}");
            lab.ledger.wait_for_settles(2 + failures).await;
            let again = lab.send(&call).await;
            if path == "/tiki/refund" {
                assert_eq!(lab.state(&key).await, Some(State::Unknown));
                assert!(again.is(500, "outcome_unknown"), "{again:?}");
                assert_eq!(backend.requests().len(), 1);
            } else {
                assert_eq!((again.status, again.replayed), (200, false), "{again:?}");
                assert_eq!(backend.requests().len(), 2);
            }
        }
    }
}

#[tokio::test]
async fn a_panic_before_the_first_byte_leaves_no_claim_behind() {
    for (path, body, key) in refunds_and_notices() {
        let backend = agreeable().await;
        let lab = Lab::start(&backend.url(), PATIENT);
        lab.ledger.next_permit(Fault::Panics);
        let call = lab.signed(path, &body);
        let got = lab.send(&call).await;
        assert!(got.is(503, "ledger_unavailable"), "{got:?}");
        lab.ledger.wait_for_settles(1).await;
        let state = lab.state(&key).await;
        assert!(
            matches!(state, Some(State::Unknown | State::Released)),
            "{state:?}"
        );
        assert!(backend.bytes().is_empty());
    }
}

#[tokio::test]
async fn duplicates_of_a_call_whose_ledger_hangs_are_answered_in_time() {
    let backend = agreeable().await;
    let lab = Lab::start(&backend.url(), QUICK);
    lab.ledger.next_claim(Fault::Hangs);
    let call = lab.signed("/tiki/refund", &refund("k-1", "1"));
    let first = lab.begin(&call);
    lab.ledger.wait_for_claims(1).await;
    let got = lab.send(&call).await;
    let in_time_for_tiki = got.is(503, "in_progress") || got.is(503, "ledger_unavailable");
    assert!(in_time_for_tiki, "{got:?}");
    assert_eq!(in_time("an answer", first).await.unwrap().status, 503);
    assert!(backend.bytes().is_empty());
}

#[tokio::test]
async fn an_abandoned_call_that_was_sent_is_recorded_as_unknown() {
    let backend = Backend::start(|_| Behaviour::Silence).await;
    let lab = Lab::start(&backend.url(), PATIENT);
    let call = lab.signed("/tiki/refund", &refund("k-1", "1"));
    let waiting = lab.begin(&call);
    backend.wait_for_requests(1).await;
    lab.common.calls().abandon();
    lab.settled().await;
    let got = in_time("an answer", waiting).await.unwrap();
    assert_eq!(got.status, 502, "{got:?}");
    assert_eq!(lab.state("k-1").await, Some(State::Unknown));
}

#[tokio::test]
async fn a_namespace_with_another_definition_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("secret"), SECRET).unwrap();
    std::fs::write(directory.path().join("other-secret"), OTHER_SECRET).unwrap();
    let load = |toml: &str| config::load_text(toml, "test.toml", directory.path(), &[]);
    let toml = usual("http://127.0.0.1:9");
    let settings = load(&toml).unwrap().settings;
    let namespaces = Common::namespaces(&settings);
    let names: Vec<&str> = namespaces.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["transaction_ipn", "order_ipn", "refund"]);

    let (clock, _) = tikigate::clock::Clock::manual(start_time());
    let ledger: Arc<dyn Ledger> = FaultyLedger::new(clock);
    for (name, definition) in &namespaces {
        for _ in 0..2 {
            let defined = ledger.define(Arc::clone(name), definition.clone()).await;
            assert!(defined.is_ok(), "{defined:?}");
        }
    }
    // The next configuration tells refunds by something else.
    let own_key = "payload = \"refund\"\nclients = [\"wallet\"]\n";
    for rule in [
        "key = [\"/transaction_id\"]",
        "fingerprint = [\"/transaction_amount\"]",
    ] {
        let changed = format!("{own_key}[routes.idempotency]\n{rule}\n");
        let settings = load(&toml.replace(own_key, &changed)).unwrap().settings;
        let (name, definition) = Common::namespaces(&settings).pop().unwrap();
        let refused = ledger.define(Arc::clone(&name), definition).await;
        let Err(DefineError::Disagrees { stored }) = refused else {
            panic!("{rule}: {refused:?}");
        };
        assert_eq!((&name, &stored), (&namespaces[2].0, &namespaces[2].1));
    }
    // One configuration can't even say two things at once.
    let two = toml.replace(
        "name = \"any\"\npath = \"/tiki/any\"\nmethod = \"POST\"\npayload = \"any\"\nupstream_path = \"/legacy.php?call=any\"\n",
        "name = \"any\"\npath = \"/tiki/any\"\nmethod = \"POST\"\npayload = \"any\"\n[routes.idempotency]\nnamespace = \"refund\"\nkey = [\"/id\"]\nfingerprint = [\"/id\"]\n",
    );
    assert_ne!(two, toml);
    let Err(problems) = load(&two) else {
        panic!("two definitions of one namespace");
    };
    assert!(
        problems
            .iter()
            .any(|problem| format!("{problem:?}").contains("namespace")),
        "{problems:?}"
    );
}

#[tokio::test]
async fn a_conflict_is_said_on_the_ledgers_word_alone() {
    let backend = agreeable().await;
    let lab = Lab::start(&backend.url(), PATIENT);
    let genuine = lab.signed("/tiki/refund", &refund("k-1", "1000"));
    assert_eq!(lab.send(&genuine).await.status, 200);

    // Another amount under the same key, whose claim the ledger has not answered yet.
    let hold = Hold::new();
    lab.ledger.next_claim(Fault::Late(hold.clone()));
    let other = lab.begin(&lab.signed("/tiki/refund", &refund("k-1", "9000")));
    lab.ledger.wait_for_claims(2).await;
    let again = lab.begin(&genuine);
    tokio::task::yield_now().await;
    hold.release();

    let other = in_time("the conflict", other).await.unwrap();
    assert!(other.is(422, "conflict"), "{other:?}");
    let again = in_time("the kept answer", again).await.unwrap();
    assert_eq!((again.status, again.replayed), (200, true), "{again:?}");
    assert_eq!(backend.requests().len(), 1);
}
