//! What a gate refuses to start with, and says.

use super::*;
use crate::commands::{Running, get};
use crate::support::in_time;

/// Standard output and error of a gate that must not start.
async fn refused(setup: Setup) -> String {
    let run = move || setup.command("serve").output().unwrap();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(!output.status.success());
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8(said).unwrap()
}

fn gate(url: &str, more: &str) -> Setup {
    setup(url, "http://127.0.0.1:9", "2s", more)
}

#[tokio::test]
async fn a_server_that_may_lose_commits_is_refused() {
    let start = || {
        let server = Server::start(&[("fsync", "off")]);
        let url = server.url(&server.create_database());
        (server, url)
    };
    let (_server, url) = tokio::task::spawn_blocking(start).await.unwrap();
    let said = refused(gate(&url, "")).await;
    assert!(said.contains("Set fsync = on"), "{said}");
}

#[tokio::test]
async fn a_server_that_takes_no_writes_is_refused() {
    let url = shared_url().await;
    let database = url.rsplit('/').next().unwrap();
    let read_only = format!("alter database {database} set default_transaction_read_only = on");
    Server::shared().query("postgres", &read_only);
    let said = refused(gate(&url, "")).await;
    assert!(said.contains("takes no writes"), "{said}");
}

#[tokio::test]
async fn a_lost_ledger_is_refused_where_there_must_be_one() {
    let url = shared_url().await;
    let said = refused(gate(&url, "require_existing = true")).await;
    assert!(said.contains("holds no ledger"), "{said}");
}

#[tokio::test]
async fn a_password_is_never_sent_in_the_open() {
    let said = refused(gate("postgres://u:p4ssword@192.0.2.1/x?sslmode=prefer", "")).await;
    assert!(said.contains("sslmode=verify-full"), "{said}");
    assert!(!said.contains("p4ssword"), "{said}");
}

/// A rollout replaces gates by such as are ready: one that never came to use the ledger is none. Once it did,
/// a server that goes away makes no gate unready: all have the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_is_not_ready_before_it_could_use_the_ledger_once() {
    let start = || {
        let mut server = Server::start(&[]);
        let url = server.url(&server.create_database());
        server.end("INT");
        (server, url)
    };
    let (mut server, url) = tokio::task::spawn_blocking(start).await.unwrap();
    let setup = gate(&url, "");
    let mut running = Running::start(&mut setup.command("serve"), &setup);
    let (_, admin) = running.wait_for_addresses();
    let ready = get(admin, "/readyz").await;
    assert_eq!(ready.status, 503, "{}", ready.text());
    assert!(
        ready.text().contains("can't be reached"),
        "{}",
        ready.text()
    );

    let mut server = tokio::task::spawn_blocking(move || {
        server.begin();
        server
    })
    .await
    .unwrap();
    in_time("the gate to be ready", async {
        while get(admin, "/readyz").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let _server = tokio::task::spawn_blocking(move || {
        server.end("INT");
        server
    })
    .await
    .unwrap();
    in_time("the gate to notice", async {
        loop {
            let ready = get(admin, "/readyz").await;
            assert_eq!(ready.status, 200, "{}", ready.text());
            if ready.text().contains("ledger: ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.wait().code(), Some(0), "{}", running.output());
}
