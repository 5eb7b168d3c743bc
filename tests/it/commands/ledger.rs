//! `tikigate ledger` and `tikigate probe` against a gate whose backend dies after reading a refund.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;
use serde_json::Value;

use super::{ask, command, post, run, setup, tikigate, token_file};
use crate::support::backend::{Answer, Backend, Behaviour};
use crate::support::gate::{SECRET, refund, usual};
use crate::support::gate_process::GateProcess;

/// A backend that dies over each new refund and would do it the second time, and a gate that holds
/// these refunds.
pub(super) async fn held(request_ids: &[&str]) -> (Backend, GateProcess) {
    let deaths = AtomicUsize::new(request_ids.len());
    let backend = Backend::start(move |_| {
        let left = deaths.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        });
        match left {
            Ok(_) => Behaviour::Close,
            Err(_) => Answer::success().into(),
        }
    })
    .await;
    let gate = setup(&usual(&backend.url())).start();
    for request_id in request_ids {
        let answer = post(
            gate.address(),
            "/tiki/refund",
            &refund(request_id, "150000"),
        )
        .await;
        assert_eq!(
            (answer.status, answer.error_code().as_deref()),
            (502, Some("upstream_failed"))
        );
        assert_eq!(
            again(&gate, request_id).await,
            (500, Some("outcome_unknown".to_owned()))
        );
    }
    assert_eq!(backend.requests().len(), request_ids.len());
    (backend, gate)
}

/// What Tiki gets when it sends the refund again: the status, and the code of an error.
pub(super) async fn again(gate: &GateProcess, request_id: &str) -> (u16, Option<String>) {
    let answer = post(
        gate.address(),
        "/tiki/refund",
        &refund(request_id, "150000"),
    )
    .await;
    (answer.status, answer.error_code())
}

/// The id of a listed record.
pub(super) fn id_of(list: &str, key: &str) -> String {
    let line = list
        .lines()
        .find(|line| line.split_whitespace().any(|word| word == key));
    line.unwrap_or_else(|| panic!("{key} is not in {list}"))
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_refund_is_listed_shown_and_resolved_as_applied() {
    let (backend, gate) = held(&["r-dies"]).await;
    let list = ask(&gate, &["ledger", "list", "--state", "unknown"]).worked();
    assert_eq!(list.lines().count(), 2, "{list}");
    for word in ["unknown", "refund", "r-dies", "+07:00"] {
        // Without the configuration the dates are in UTC.
        let expected = word != "+07:00";
        assert_eq!(list.contains(word), expected, "{word}: {list}");
    }
    // By the configuration alone: address, token and time zone.
    let config = gate.setup();
    let with_config = run(command(config, &["ledger", "list"])
        .args(["--admin", &format!("http://{}", gate.admin_address())]));
    assert!(with_config.worked().contains("+07:00"));
    assert_eq!(
        ask(&gate, &["ledger", "list", "--state", "done"]).worked(),
        "no records\n"
    );

    let id = id_of(&list, "r-dies");
    let shown = ask(&gate, &["ledger", "show", "r-dies"]).worked();
    let whole = |key: &str| ask(&gate, &["ledger", "show", key, "--format", "json"]).worked();
    assert_eq!(whole("r-dies"), whole(&id));
    for words in [
        "unknown",
        "wallet",
        "attempt 1",
        "claimed",
        "upstream_closed",
        "hold",
    ] {
        let known = shown.contains(words) || (words == "wallet" && shown.contains("RLCK"));
        assert!(known, "{words} is missing: {shown}");
    }

    let resolve = [
        "ledger",
        "resolve",
        "r-dies",
        "--applied",
        "--reason",
        "found in the books",
        "--by",
        "linh",
    ];
    let told = ask(&gate, &resolve).worked();
    assert!(
        told.ends_with(&format!(
            "{id} is now done: Tiki is answered 200 from now on\n"
        )),
        "{told}"
    );
    assert_eq!(again(&gate, "r-dies").await, (200, None));
    assert_eq!(backend.requests().len(), 1);

    let shown = ask(&gate, &["ledger", "show", &id, "--format", "json"]).worked();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["state"], "done");
    let last = shown["events"].as_array().unwrap().last().unwrap();
    assert_eq!(last["by"], "local (for linh)");
    assert_eq!(last["reason"], "found in the books");
    assert!(
        ask(&gate, &resolve)
            .failed(1)
            .contains("only an unknown record can be resolved")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_applied_is_refused_while_it_may_run_and_then_goes_out_once_by_force() {
    let (backend, gate) = held(&["r-dies"]).await;
    let resolve = [
        "ledger",
        "resolve",
        "r-dies",
        "--not-applied",
        "--reason",
        "not in the books",
    ];
    let told = ask(&gate, &resolve).failed(1);
    assert!(
        told.contains(" until 20") && told.contains("--force"),
        "{told}"
    );
    assert_eq!(
        again(&gate, "r-dies").await,
        (500, Some("outcome_unknown".to_owned()))
    );
    assert_eq!(backend.requests().len(), 1);

    let told = ask(&gate, &[&resolve[..], &["--force"]].concat()).worked();
    assert!(told.contains("is now released"), "{told}");
    assert_eq!(backend.requests().len(), 1, "resolving alone sends nothing");
    for _ in 0..3 {
        assert_eq!(again(&gate, "r-dies").await, (200, None));
    }
    let seen = backend.requests();
    assert_eq!(seen.len(), 2);
    let attempts: Vec<_> = seen
        .iter()
        .map(|one| one.header("x-tikigate-attempt").unwrap())
        .collect();
    assert_eq!(attempts, ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_refund_fails_for_good() {
    let (backend, gate) = held(&["r-dies"]).await;
    let resolve = [
        "ledger",
        "resolve",
        "r-dies",
        "--rejected",
        "--reason",
        "paid out by hand",
    ];
    let told = ask(&gate, &resolve).worked();
    assert!(told.contains("Tiki is answered 500 from now on"), "{told}");
    for _ in 0..2 {
        assert_eq!(
            again(&gate, "r-dies").await,
            (500, Some("rejected".to_owned()))
        );
    }
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_is_its_owners_alone_and_no_other_will_do() {
    let (_backend, mut gate) = held(&["r-1", "r-2"]).await;
    let directory = gate.setup().directory().to_owned();
    let token_file = token_file(&directory);
    let mode = fs::metadata(&token_file).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let token = fs::read_to_string(&token_file).unwrap().trim().to_owned();
    assert!(
        token.len() >= 32,
        "a token of {} characters can be guessed",
        token.len()
    );

    let wrong = directory.join("wrong.token");
    fs::write(&wrong, "f".repeat(token.len())).unwrap();
    let admin = format!("http://{}", gate.admin_address());
    let wrong = wrong.display().to_string();
    let with_wrong = ["--admin", &admin, "--token-file", &wrong];
    let resolve = ["ledger", "resolve", "r-1", "--applied", "--reason", "x"];
    for line in [
        &["ledger", "list"][..],
        &["ledger", "show", "r-1"],
        &resolve,
        &["drain"],
    ] {
        let told = run(&mut tikigate(&[line, &with_wrong].concat())).failed(1);
        assert!(told.contains("the gate does not know this token"), "{told}");
        assert!(!told.contains("r-2"), "{told}");
    }
    let no_file = ["--admin", &admin, "--token-file", "/nonexistent/token"];
    let told = run(&mut tikigate(&[&["ledger", "list"][..], &no_file].concat())).failed(1);
    assert!(
        told.contains("/nonexistent/token") && told.contains("--token-file"),
        "{told}"
    );

    let mut told = vec![ask(&gate, &["ledger", "list"]).worked()];
    told.push(ask(&gate, &["ledger", "show", "r-1", "--format", "json"]).worked());
    assert!(
        told[0].contains("r-1") && told[0].contains("r-2"),
        "nothing was resolved: {told:?}"
    );
    gate.terminate();
    told.extend(gate.lines());
    told.extend(gate.error_lines());
    for text in told {
        assert!(!text.contains(&token) && !text.contains(SECRET), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_that_is_not_there_is_said_so() {
    let (_backend, mut gate) = held(&[]).await;
    assert_eq!(gate.terminate().code(), Some(0));
    for line in [
        &["ledger", "list"][..],
        &["ledger", "show", "r-1"],
        &["ledger", "reopen", "r-1", "--reason", "x"],
        &["ledger", "quarantine"],
        &["ledger", "lift-quarantine", "--reason", "x"],
        &[
            "ledger",
            "export",
            "--from",
            "2026-11-23T00:00Z",
            "--to",
            "2026-11-24T00:00Z",
        ],
        &["drain"],
        &["probe", "live"],
        &["probe", "ready"],
    ] {
        let told = ask(&gate, line).failed(1);
        let address = format!("no gate answers at http://{}", gate.admin_address());
        assert!(
            told.contains(&address) && told.contains("--admin"),
            "{told}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_tell_by_their_exit_code() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let slow = usual(&backend.url()).replace("drain_delay = \"0s\"", "drain_delay = \"45s\"");
    let mut gate = setup(&slow).start();
    assert_eq!(ask(&gate, &["probe", "live"]).worked(), "live\n");
    assert_eq!(ask(&gate, &["probe", "ready"]).worked(), "ready: serving\n");

    gate.signal_terminate();
    gate.wait_for_line(|line| line.contains("draining: unready"));
    assert_eq!(ask(&gate, &["probe", "live"]).worked(), "live\n");
    assert_eq!(
        ask(&gate, &["probe", "ready"]).failed(1),
        "not ready: draining\n"
    );

    // What answers is a gate, but not its admin listener.
    let server = format!("http://{}", gate.address());
    let told = run(&mut tikigate(&["probe", "live", "--admin", &server])).failed(1);
    assert!(told.contains("not a gate's admin listener"), "{told}");
    gate.signal(Signal::INT);
    assert_eq!(gate.wait(super::WITHIN).code(), Some(0));
}
