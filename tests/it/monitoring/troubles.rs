//! Each trouble that an alert is for, made to happen.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::json;
use tikigate::cli::fake_tiki::FakeTiki;
use tikigate::net::ListenAddress;
use tokio::task::JoinSet;

use super::gates::{Gate, notice_of, refund_of};
use super::prometheus::Prometheus;
use super::succeeds;
use crate::crash::person;
use crate::crash::world::set_clock;
use crate::support::disk::{Disk, Number};
use crate::support::gate::{Call, ipn};
use crate::support::in_time;
use crate::support::postgres::Server;
use crate::support::raw::exchange;

/// How far some clocks are moved: beyond each threshold in seconds.
const TWO_HOURS: i64 = 7200;
/// Longer than the gates' shared lease and its sweep.
const LAPSE: Duration = Duration::from_secs(40);

/// Looks again and again until it holds.
async fn until(what: &str, within: Duration, holds: impl AsyncFn() -> bool) {
    let look = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let met = tokio::time::timeout(within, look).await;
    assert!(met.is_ok(), "waited {within:?} for {what}");
}

/// A refund hangs at the backend, one is asked for again under another id, one comes back with another
/// amount, and bodies are too large; then the held one grows old.
pub(super) async fn refunds(gate: &Gate) {
    for _ in 0..2 {
        // The second meets the held one, and has the backend asked, which can't say.
        let answer = gate.try_send(&refund_of("r-hangs", "p-hangs")).await;
        assert!(answer.is_some_and(|answer| answer.status >= 500));
        until("the held refund", LAPSE, async || {
            gate.metric("tikigate_ledger_records{state=\"unknown\"}")
                .await
                == Some(1.0)
        })
        .await;
    }
    for request in ["r-1", "r-2"] {
        assert_eq!(gate.send(&refund_of(request, "p-1")).await.status, 200);
    }
    assert_eq!(gate.send(&refund_of("r-1", "p-2")).await.status, 422);
    let large = " ".repeat(80 * 1024);
    for _ in 0..6 {
        let call = Call::post("/tiki/refund", &large, SystemTime::now());
        assert_eq!(gate.send(&call).await.status, 413);
    }
    set_clock(&gate.setup, TWO_HOURS);
}

/// Forged calls in numbers, no right one, and paths that are no route's. Its log goes where nobody reads.
pub(super) async fn forged(gate: &Gate) {
    for n in 0..30 {
        let call = notice_of(&format!("p-{n}")).with("x-tikivip-signature", &"0".repeat(64));
        assert_eq!(gate.send(&call).await.status, 401);
    }
    for n in 0..12 {
        let call = notice_of(&format!("q-{n}")).to("/tiki/ipn/");
        assert_eq!(gate.send(&call).await.status, 404);
    }
}

/// The clock goes twenty seconds behind; some calls are an hour old, and many come at once.
pub(super) async fn clock(gate: &Gate) {
    set_clock(&gate.setup, -20);
    let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
    for n in 0..4 {
        let call = Call::post("/tiki/ipn", ipn(&format!("old-{n}"), "1"), an_hour_ago);
        let answer = gate.send(&call).await;
        assert_eq!(answer.error_code().as_deref(), Some("out_of_window"));
    }
    let limited = async || {
        let mut limited = 0;
        for n in 0..80 {
            let answer = gate.send(&notice_of(&format!("many-{n}"))).await;
            limited += usize::from(answer.error_code().as_deref() == Some("rate_limited"));
        }
        limited
    };
    assert!(limited().await > 20, "the client's rate was not reached");
}

/// The backend goes away while calls come.
pub(super) async fn backend_gone(gate: &Gate) {
    for n in 0..15 {
        let answer = gate.send(&notice_of(&format!("lost-{n}"))).await;
        assert!([502, 503].contains(&answer.status), "{}", answer.text());
    }
}

/// Some answers take more than 13 s.
pub(super) async fn slow(gate: &Arc<Gate>) {
    let mut calls = JoinSet::new();
    for n in 0..4 {
        let gate = Arc::clone(gate);
        calls.spawn(async move { gate.try_send(&notice_of(&format!("slow-{n}"))).await });
    }
    for answer in calls.join_all().await {
        assert_eq!(answer.unwrap().status, 200);
    }
}

/// The database of a gate crashes.
pub(super) async fn database_gone(gate: &Gate, mut server: Server) {
    let crash = move || {
        server.end("QUIT");
        server
    };
    let _server = tokio::task::spawn_blocking(crash).await.unwrap();
    let answer = gate.send(&refund_of("r-nowhere", "p-nowhere")).await;
    assert_eq!(answer.error_code().as_deref(), Some("ledger_unavailable"));
}

/// The disk takes 400 ms for a sync.
pub(super) fn disk_slow(disk: &Disk) {
    disk.tell(Number::SyncTakes, 400_000);
}

/// A gate starts again and again, the first time without its ledger's watermark.
pub(super) async fn restarts(gate: &Gate, prometheus: &Prometheus) {
    for start in 0..3 {
        let begun = format!("process_start_time_seconds{{instance=\"{}\"}}", gate.name);
        let before = prometheus.query(&begun).await[0].1;
        gate.kill();
        if start == 0 {
            std::fs::remove_file(gate.setup.directory().join("data/tikigate.mark")).unwrap();
        }
        gate.begin().await;
        prometheus.wait_for(&format!("{begun} != {before}")).await;
    }
}

/// A certificate and its key in PEM, by openssl, in these files.
pub(super) fn certificate(directory: &Path, name: &str, days: u32) {
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args([
            "-subj",
            "/CN=gate.test",
            "-addext",
            "subjectAltName=DNS:gate.test",
        ])
        .args(["-days", &days.to_string()])
        .args(["-keyout", "next.key", "-out", "next.crt"])
        .current_dir(directory);
    succeeds(&mut openssl);
    for ending in ["key", "crt"] {
        let from = directory.join(format!("next.{ending}"));
        std::fs::rename(from, directory.join(format!("{name}.{ending}"))).unwrap();
    }
}

/// The certificate gets one that ends in ten days; an address that is not let in tries again and again.
pub(super) async fn edge(gate: &Gate) {
    let directory = gate.setup.directory().to_path_buf();
    let ListenAddress::Tcp(address) = gate.address() else {
        panic!("a gate on TCP");
    };
    let calls = move || {
        certificate(&directory, "gate", 10);
        // A handshake that goes well, so that there is one to count.
        let mut openssl = Command::new("openssl");
        openssl
            .args(["s_client", "-brief", "-connect", &address.to_string()])
            .stdin(Stdio::null());
        succeeds(&mut openssl);
    };
    tokio::task::spawn_blocking(calls).await.unwrap();
    for _ in 0..25 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(DENIED, 0)).unwrap();
        // Closed at once, which may show as an error already.
        let _ = socket.connect(address).await;
    }
}

/// Whom the gate of [`edge`] does not let in.
pub(super) const DENIED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 9, 9, 9));

/// A change that needs a restart, then one that is wrong; and an authority that ends in two days.
pub(super) async fn configuration(gate: &Gate) {
    let directory = gate.setup.directory().to_path_buf();
    tokio::task::spawn_blocking(move || certificate(&directory, "authority", 2))
        .await
        .unwrap();
    gate.change("workers = 1", "workers = 2");
    gate.signal(Signal::HUP);
    in_time("the restart to be needed", async {
        while gate.metric("tikigate_config_restart_needed").await != Some(1.0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    gate.change("drain_delay", "drain_dely");
    gate.signal(Signal::HUP);
}

/// One notice is refused by Tiki, then Tiki is gone for another, whose account is then changed; nobody
/// hears of the refused one.
pub(super) async fn outbound(gate: &Gate, tiki: &FakeTiki) {
    post_notice(gate, "T-nobody-knows").await;
    until("the refused notice", LAPSE, async || {
        gate.metric("tikigate_outbox_failed").await == Some(1.0)
    })
    .await;
    tiki.stop().await;
    post_notice(gate, "T-waits").await;
    set_clock(&gate.setup, TWO_HOURS);
    gate.kill();
    let path = tiki.base_url();
    gate.change(&path, &path.replace("/miniapp", "/another"));
    gate.begin().await;
}

pub(super) async fn post_notice(gate: &Gate, transaction: &str) {
    let body = json!({
        "tiki_transaction_id": transaction, "transaction_id": format!("p-{transaction}"),
        "transaction_amount": 1000, "status": "SUCCESS",
    })
    .to_string();
    let answer = exchange(
        &gate.outbound(),
        format!(
            "POST /payment/ipn HTTP/1.1\r\nHost: gate\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ),
    )
    .await;
    assert_eq!(answer.status, 202, "{}", answer.text());
}

/// Of two gates on one ledger the first stops with the backend's success in its hand. Its lease lapses, a
/// person says that nothing was done, the other sends the refund again, and the first goes on.
pub(super) async fn late_success(paused: &Arc<Gate>, other: &Gate) {
    let first = Arc::clone(paused);
    let lost = tokio::spawn(async move { first.try_send(&refund_of("r-twice", "p-twice")).await });
    let record = async || {
        let answer = person::ask(&other.admin(), "GET", "/api/ledger?key=r-twice", None).await;
        answer.unwrap()["data"]["records"].get(0).cloned()
    };
    until("the lapse of the lease", LAPSE, async || {
        record()
            .await
            .is_some_and(|record| record["state"] == "unknown")
    })
    .await;
    let held = record().await.unwrap();
    let word = json!({
        "verdict": "not_applied", "reason": "not in the bank's list", "force": true,
        "expected": {
            "state": held["state"], "attempt": held["attempt"], "version": held["version"],
        },
    });
    let target = format!("/api/ledger/{}/resolve", held["id"].as_str().unwrap());
    person::ask(&other.admin(), "POST", &target, Some(&word)).await;
    let answer = other.send(&refund_of("r-twice", "p-twice")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    paused.signal(Signal::CONT);
    lost.await.unwrap();
}
