//! Changes under load: no call is failed by one.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::certificates::{Pair, TLS, connect, status};
use super::with_secrets;
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{Call, TestGate, refund};

/// A hundred changes, every third of them broken.
const SWAPS: u32 = 100;

/// `wrk` with a signed GET, whose signature may come any number of times within its window. It is
/// signed with the secret that is always among those in force.
fn wrk(gate: &TestGate, more: &[&str]) -> std::process::Child {
    let call = Call::get("/tiki/order-status", gate.now());
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c4", "-d600s", "--timeout", "10s"]);
    command.args(more);
    for (name, value) in call.headers.iter().filter(|(name, _)| name != "Host") {
        command.arg("-H").arg(format!("{name}: {value}"));
    }
    command
        .arg(format!("https://{}/tiki/order-status", gate.address()))
        .stdout(Stdio::piped())
        .spawn()
        .expect("wrk can't be run: start the tests with `tests/run`, which installs it")
}

/// Refunds one after the other on a connection that is kept, each answered 200 and sent once.
async fn refunds(
    gate: Arc<TestGate>,
    first: Pair,
    name: &'static str,
    stop: Arc<AtomicBool>,
) -> u64 {
    let mut client = connect(&gate, &first).await.unwrap();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        sent += 1;
        let body = refund(&format!("{name}-{sent}"), "1000");
        let call = gate.signed("/tiki/refund", &body).to_bytes();
        assert_eq!(status(&mut client, &call).await, 200, "{name}-{sent}");
    }
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_changes_fail_no_call() {
    let answered = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&answered);
    let backend = Backend::start(move |seen| {
        if seen.method() == "POST" {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Answer::success().into()
    })
    .await;
    let url = backend.url();
    let with = |rotating: &str, window: u32| {
        let secrets = [("stable", "secret"), (rotating, "rotating")];
        let mut toml = with_secrets(&url, &secrets);
        for (from, to) in [
            (
                "max_age = \"5m\"",
                &*format!("max_age = \"{}m\"", 5 + window % 3),
            ),
            ("answer_within = \"1s\"", "answer_within = \"10s\""),
            ("settle_within = \"4s\"", "settle_within = \"20s\""),
            TLS,
        ] {
            assert!(toml.contains(from));
            toml = toml.replace(from, to);
        }
        toml
    };
    let pairs: Vec<Pair> = (0..4).map(|_| Pair::new()).collect();
    let mut served = 0;
    let files = [
        ("rotating", "the-secret-that-rotates-0"),
        ("gate.crt", &*pairs[0].certificate),
        ("gate.key", &*pairs[0].key),
    ];
    let gate = Arc::new(TestGate::watched(&with("r0", 0), &files).await);
    // One on connections that stay, one that makes a new one for each call.
    let loads = [wrk(&gate, &[]), wrk(&gate, &["-H", "Connection: close"])];
    let stop = Arc::new(AtomicBool::new(false));
    let clients = ["a", "b"].map(|name| {
        let running = refunds(Arc::clone(&gate), pairs[0].clone(), name, Arc::clone(&stop));
        tokio::spawn(running)
    });

    let mut broken = 0;
    for swap in 1..=SWAPS {
        let whole = with(&format!("r{swap}"), swap);
        let taken = match swap % 6 {
            // Half of a configuration, a secret that is none, a pair of which one half is another's.
            0 => {
                gate.reload(&(whole[..whole.len() / 2].to_owned() + "= ="))
                    .await
            }
            2 => {
                gate.reload(&whole.replace("file = \"rotating\"", "file = \"missing\""))
                    .await
            }
            4 => {
                gate.put("gate.key", &pairs[(served + 1) % 4].key);
                let taken = gate.reload(&whole).await;
                gate.put("gate.key", &pairs[served].key);
                taken
            }
            1 => {
                gate.put("rotating", &format!("the-secret-that-rotates-{swap}"));
                gate.reload(&whole).await
            }
            3 => {
                served = (served + 1) % 4;
                gate.put("gate.key", &pairs[served].key);
                gate.put("gate.crt", &pairs[served].certificate);
                gate.reload(&whole).await
            }
            _ => gate.reload(&whole).await,
        };
        assert_eq!(taken, swap % 2 == 1, "{swap}: {}", gate.readiness().await);
        broken += u32::from(!taken);
        assert!(connect(&gate, &pairs[served]).await.is_some(), "{swap}");
    }
    // The gate may have looked between two files of one change, too.
    let (taken, refused) = gate.reloads().await;
    assert!(taken >= SWAPS - broken && refused >= broken);

    stop.store(true, Ordering::Relaxed);
    let mut sent = 0;
    for client in clients {
        sent += client.await.unwrap();
    }
    for load in loads {
        let gets = stopped(load).await;
        assert!(
            gets > 100 && sent > 100,
            "there was load: {gets} and {sent}"
        );
    }
    assert_eq!(answered.load(Ordering::Relaxed), sent, "each refund once");
}

/// Interrupts `wrk`, which then tells what it saw; the calls that it made, of which none may have failed.
async fn stopped(load: std::process::Child) -> u64 {
    let pid = rustix::process::Pid::from_raw(load.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = tokio::task::spawn_blocking(|| load.wait_with_output());
    let told = String::from_utf8(output.await.unwrap().unwrap().stdout).unwrap();
    assert!(!told.contains("Non-2xx"), "{told}");
    assert!(!told.contains("Socket errors"), "{told}");
    let mut lines = told.lines();
    let count = lines.find_map(|line| line.trim().split_once(" requests in"));
    count.unwrap_or_else(|| panic!("{told}")).0.parse().unwrap()
}
