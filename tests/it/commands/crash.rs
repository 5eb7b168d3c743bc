//! A gate that is killed at the worst moment.

use std::fs;

use tikigate::net::ListenAddress;

use super::{Running, post, run, setup, signed, tikigate, token_file};
use crate::support::backend::{Answer, Backend, Behaviour};
use crate::support::gate::{refund, usual};
use crate::support::raw::RawClient;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gate_comes_up_again_on_its_port_with_its_token() {
    let backend = Backend::start(|seen| match seen.number {
        0 => Behaviour::Silence,
        _ => Answer::success().into(),
    })
    .await;
    let setup = setup(&usual(&backend.url()));
    let mut first = Running::start(&mut setup.command("serve"), &setup);
    let (server, admin) = first.wait_for_addresses();
    let admin_url = format!("http://{admin}");
    first.wait_until_ready(&["--admin", &admin_url]);
    let token = fs::read_to_string(token_file(setup.directory())).unwrap();
    let refund = refund("r-1", "1");
    let in_flight = tokio::spawn({
        let refund = refund.clone();
        async move {
            let mut client = RawClient::connect(&ListenAddress::Tcp(server)).await;
            client
                .send(signed("/tiki/refund", &refund).to_bytes())
                .await;
            client.read_answer_or_end().await
        }
    });
    backend.wait_for_requests(1).await;
    first.child().kill().unwrap();
    assert_eq!(first.wait().code(), None, "it ended by the signal");
    assert!(
        in_flight.await.unwrap().is_none(),
        "Tiki got no answer and asks again"
    );

    let mut serve = setup.command("serve");
    serve.env("TIKIGATE__SERVER__LISTEN", server.to_string());
    serve.env("TIKIGATE__ADMIN__LISTEN", admin.to_string());
    let mut second = Running::start(&mut serve, &setup);
    second.wait_until_ready(&["--admin", &admin_url]);
    assert_eq!(
        fs::read_to_string(token_file(setup.directory())).unwrap(),
        token
    );
    let token_file = token_file(setup.directory()).display().to_string();
    let list = [
        "ledger",
        "list",
        "--admin",
        &admin_url,
        "--token-file",
        &token_file,
    ];
    // In memory, the ledger is new: this is what `allow_volatile` allows.
    assert_eq!(run(&mut tikigate(&list)).worked(), "no records\n");
    assert_eq!(post(server, "/tiki/refund", &refund).await.status, 200);
    assert!(run(&mut tikigate(&list)).worked().contains("r-1"));
    assert_eq!(second.terminate().code(), Some(0));
}
