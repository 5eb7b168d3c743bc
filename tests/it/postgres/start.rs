//! What a gate refuses to start with, and says.

use super::*;

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
