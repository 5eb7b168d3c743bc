//! The binary in the image's root: read-only, as 65532, with nothing but its volumes to write into.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use super::apart;
use super::root::{LEDGER, MARK, NONROOT, Root, config};
use crate::commands::{post, run};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::refund;
use crate::support::gate_process::GateProcess;

/// Nobody is called in tests that use it.
const NOBODY: &str = "http://127.0.0.1:9";

async fn backend() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

/// What the kernel says about a process, `Name:\tvalue` a line.
fn status(gate: &GateProcess, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", gate.pid())).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_passes_once_and_the_drain_ends_it_well() {
    let Some(layer) = apart("running::a_refund_passes_once_and_the_drain_ends_it_well") else {
        return;
    };
    let backend = backend().await;
    let root = Root::with_volumes(&layer, &config(&backend.url()));
    let mut gate = root.start();

    // Who it is, and what it could do.
    let four = vec![NONROOT.to_string(); 4].join(" ");
    for (name, expected) in [
        ("Uid", four.as_str()),
        ("Gid", &four),
        ("Groups", ""),
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
    ] {
        assert_eq!(status(&gate, name), expected, "{name}");
    }
    // Not even root can write beside the volumes.
    for place in ["", "tmp", "etc/tikigate", "usr/local/bin", "var/lib"] {
        let error = fs::write(root.at(place).join("probe"), "").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem, "/{place}");
    }

    // It works.
    let body = refund("r-1", "15000");
    let answer = post(gate.address(), "/tiki/refund", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let again = post(gate.address(), "/tiki/refund", &body).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(backend.requests().len(), 1);

    // So do the commands, which find the gate by its configuration, as preStop and probes do.
    for (arguments, says) in [
        (&["--help"][..], "Usage: tikigate"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
        (&["check"], "can be used; errors: 0"),
        (&["probe", "live"], "live"),
        (&["probe", "ready"], "ready"),
        (&["ledger", "list"], "r-1"),
    ] {
        let out = run(&mut root.command(arguments)).worked();
        assert!(out.contains(says), "{arguments:?}: {out}");
    }
    let told = run(&mut root.command(&["drain", "--within", "20"])).worked();
    assert!(told.contains("draining"), "{told}");
    assert_eq!(gate.wait(Duration::from_secs(20)).code(), Some(0));

    // The next one, on the same volumes, knows what was sent.
    let mut gate = root.start();
    let later = post(gate.address(), "/tiki/refund", &refund("r-1", "15000")).await;
    assert_eq!(later.header("idempotency-replayed"), Some("true"));
    assert_eq!(backend.requests().len(), 1);
    assert_eq!(gate.terminate().code(), Some(0));

    // Without a gate a command wants a directory of its own: the one thing that needs a /tmp, as it says.
    let offline = ["ledger", "list", "--file", "/var/lib/tikigate/tikigate.db"];
    let told = run(&mut root.command(&offline)).failed(1);
    for words in ["/tmp/tikigate-", "Read-only file system"] {
        assert!(told.contains(words), "{words:?} is missing in: {told}");
    }
    root.mount_tmp();
    let out = run(&mut root.command(&offline)).worked();
    assert!(out.contains("r-1"), "{out}");
}

#[test]
fn dates_follow_the_image_s_own_time_zones() {
    let Some(layer) = apart("running::dates_follow_the_image_s_own_time_zones") else {
        return;
    };
    let root = Root::with_volumes(&layer, &config(NOBODY));
    let _gate = root.start();
    // `check` and `ledger` would warn and fall back to UTC, and not know the name at all.
    let list = [
        "ledger",
        "list",
        "--time-zone",
        "Asia/Ho_Chi_Minh",
        "--from",
        "2026-11-23",
    ];
    run(&mut root.command(&list)).worked();
    let list = [
        "ledger",
        "list",
        "--time-zone",
        "Asia/Nowhere",
        "--from",
        "2026-11-23",
    ];
    let told = run(&mut root.command(&list));
    assert_ne!(told.code, Some(0), "{told:?}");
}

/// What `serve` says when it can't start.
#[track_caller]
fn refusal(root: &Root) -> String {
    let ended = run(&mut root.command(&["serve"]));
    let told = ended.failed(1);
    assert!(!told.contains("panicked"), "{told}");
    told
}

#[test]
fn a_ledger_s_directory_that_cannot_be_written_is_named_with_who_may() {
    let Some(layer) =
        apart("running::a_ledger_s_directory_that_cannot_be_written_is_named_with_who_may")
    else {
        return;
    };
    // No volume at all: the root's own directory, which is read-only.
    let root = Root::new(&layer, &config(NOBODY));
    root.seal();
    let told = refusal(&root);
    for words in ["/var/lib/tikigate/", "Read-only file system", "volume"] {
        assert!(told.contains(words), "{words:?} is missing in: {told}");
    }
    // A volume of somebody else's.
    let root = Root::new(&layer, &config(NOBODY));
    root.volume(LEDGER, 0);
    root.volume(MARK, NONROOT);
    root.seal();
    let told = refusal(&root);
    for words in ["/var/lib/tikigate/", "Permission denied", "65532"] {
        assert!(told.contains(words), "{words:?} is missing in: {told}");
    }
    // The watermark's alone.
    let root = Root::new(&layer, &config(NOBODY));
    root.volume(LEDGER, NONROOT);
    root.volume(MARK, 0);
    root.seal();
    let told = refusal(&root);
    for words in [
        "/var/lib/tikigate-mark/tikigate.mark",
        "Permission denied",
        "65532",
    ] {
        assert!(told.contains(words), "{words:?} is missing in: {told}");
    }
}
