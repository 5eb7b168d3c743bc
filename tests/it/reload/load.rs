//! Changes under load: no call is failed by one.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::with_secrets;
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{Call, TestGate, refund};
use crate::support::raw::RawClient;

/// A hundred changes, every third of them broken.
const SWAPS: u32 = 100;

/// `wrk` with a signed GET, whose signature may come any number of times within its window. It is
/// signed with the secret that is always among those in force.
fn wrk(gate: &TestGate, seconds: u32) -> std::process::Child {
    let call = Call::get("/tiki/order-status", gate.now());
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c8", "--timeout", "10s"]);
    command.arg(format!("-d{seconds}s"));
    for (name, value) in call.headers.iter().filter(|(name, _)| name != "Host") {
        command.arg("-H").arg(format!("{name}: {value}"));
    }
    command
        .arg(format!("http://{}/tiki/order-status", gate.address()))
        .stdout(Stdio::piped())
        .spawn()
        .expect("wrk can't be run: start the tests with `tests/run`, which installs it")
}

/// Refunds one after the other on a connection that is kept, each answered 200 and sent once.
async fn refunds(gate: Arc<TestGate>, name: &'static str, stop: Arc<AtomicBool>) -> u64 {
    let mut client = RawClient::connect(gate.address()).await;
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        sent += 1;
        let body = refund(&format!("{name}-{sent}"), "1000");
        client
            .send(gate.signed("/tiki/refund", &body).to_bytes())
            .await;
        let answer = client.read_answer().await;
        assert_eq!(answer.status, 200, "{name}-{sent}: {}", answer.text());
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
    let with = |rotating: &str, limit: u32| {
        let secrets = [("stable", "secret"), (rotating, "rotating")];
        let toml = with_secrets(&url, &secrets);
        let toml = toml.replace(
            "max_age = \"5m\"",
            &format!("max_age = \"{}m\"", 5 + limit % 3),
        );
        toml.replace("answer_within = \"1s\"", "answer_within = \"10s\"")
            .replace("settle_within = \"4s\"", "settle_within = \"20s\"")
    };
    let files = [("rotating", "the-secret-that-rotates-0")];
    let gate = Arc::new(TestGate::watched(&with("r0", 0), &files).await);
    let load = wrk(&gate, 600);
    let load_id = load.id();
    let stop = Arc::new(AtomicBool::new(false));
    let clients =
        ["a", "b"].map(|name| tokio::spawn(refunds(Arc::clone(&gate), name, Arc::clone(&stop))));

    let mut refused = 0;
    for swap in 1..=SWAPS {
        let name = format!("r{swap}");
        match swap % 3 {
            // Broken: half of a file, or a secret that is none.
            0 => {
                let whole = with(&name, swap);
                let broken = match swap % 2 {
                    0 => whole[..whole.len() / 2].to_owned() + "= =",
                    _ => whole.replace("file = \"rotating\"", "file = \"missing\""),
                };
                assert!(
                    !gate.reload(&broken).await,
                    "{swap}: a broken one was taken"
                );
                refused += 1;
            }
            1 => {
                gate.put("rotating", &format!("the-secret-that-rotates-{swap}"));
                assert!(
                    gate.reload(&with(&name, swap)).await,
                    "{}",
                    gate.readiness().await
                );
            }
            _ => assert!(
                gate.reload(&with(&name, swap)).await,
                "{}",
                gate.readiness().await
            ),
        }
    }
    assert_eq!(gate.reloads().await, (SWAPS - refused, refused));

    stop.store(true, Ordering::Relaxed);
    let mut sent = 0;
    for client in clients {
        sent += client.await.unwrap();
    }
    // wrk tells what it saw when it is interrupted.
    let pid = rustix::process::Pid::from_raw(load_id.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = tokio::task::spawn_blocking(|| load.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("requests in"), "{told}");
    assert!(!told.contains("Non-2xx"), "{told}");
    assert!(!told.contains("Socket errors"), "{told}");
    let gets = told
        .lines()
        .find_map(|line| line.trim().split_once(" requests in"))
        .map(|(count, _)| count.parse::<u64>().unwrap())
        .unwrap();
    assert!(
        gets > 1000 && sent > 100,
        "there was load: {gets} and {sent}"
    );
    assert_eq!(answered.load(Ordering::Relaxed), sent, "each refund once");
}
