//! Changes that are not taken: what runs stays as it is, and everybody can see why.

use rustix::process::Signal;
use tikigate::ledger::State;

use super::{changed, with_secrets};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{SECRET, TestGate, refund, usual};
use crate::support::gate_process::Setup;

const SUCCESSFUL: &str = "tikigate_config_last_reload_successful";

/// Three mistakes.
fn wrong(backend: &str) -> String {
    changed(
        backend,
        &[
            ("path = \"/tiki/any\"", "path = \"/tiki/../any\""),
            ("max_age = \"5m\"", "max_age = \"5 minutes\""),
            ("drain_delay", "drain_dely"),
        ],
    )
}

/// Their lines and codes.
const WRONG: [(u32, &str); 3] = [(5, "unknown_key"), (16, "bad_duration"), (51, "bad_path")];

#[tokio::test]
async fn a_wrong_configuration_leaves_all_as_it_is_and_each_problem_is_told() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let url = backend.url();
    let gate = TestGate::watched(&usual(&url), &[]).await;
    assert_eq!(gate.metric(SUCCESSFUL).await, 1.0);
    let wrong = wrong(&url);
    assert!(!gate.reload(&wrong).await);
    assert_eq!(gate.metric(SUCCESSFUL).await, 0.0);
    assert_eq!(gate.post("/tiki/any", "1").await.status, 200);
    let told = gate.readiness().await;
    for (line, code) in WRONG {
        let place = format!("tikigate.toml:{line}:");
        assert!(told.contains(&place) && told.contains(code), "{told}");
    }
    // Mended, it is taken and nothing is told any more.
    assert!(gate.reload(&usual(&url)).await);
    assert_eq!(gate.metric(SUCCESSFUL).await, 1.0);
    assert!(!gate.readiness().await.contains("not taken"));
}

#[tokio::test]
async fn a_secret_that_is_broken_for_a_while_leaves_the_old_one_in_force() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let gate = TestGate::watched(&usual(&backend.url()), &[]).await;
    let mut reloads = gate.reloads().await;
    for broken in ["", " padded", "two\n\n"] {
        gate.put("secret", broken);
        reloads = gate.reloaded(reloads).await;
        assert_eq!(
            gate.post("/tiki/any", broken).await.status,
            200,
            "{broken:?}"
        );
    }
    assert_eq!(reloads, (0, 3));
    std::fs::remove_file(gate.directory().join("secret")).unwrap();
    reloads = gate.reloaded(reloads).await;
    assert_eq!(reloads, (0, 4));
    assert_eq!(gate.post("/tiki/any", "gone").await.status, 200);
    gate.put("secret", SECRET);
    assert_eq!(gate.reloaded(reloads).await, (1, 4));
}

#[tokio::test]
async fn a_namespace_with_another_definition_is_refused() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let url = backend.url();
    let gate = TestGate::watched(&usual(&url), &[]).await;
    assert_eq!(
        gate.post("/tiki/refund", &refund("r-1", "1")).await.status,
        200
    );
    let other = changed(
        &url,
        &[(
            "payload = \"refund\"\n",
            "payload = \"refund\"\nidempotency = { fingerprint = [\"/transaction_amount\"] }\n",
        )],
    );
    assert!(!gate.reload(&other).await);
    assert!(gate.readiness().await.contains("another definition"));
    assert_eq!(
        gate.post("/tiki/refund", &refund("r-1", "2")).await.status,
        422
    );
    assert_eq!(gate.state("r-1").await, Some(State::Done));
}

#[tokio::test]
async fn another_store_is_refused() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let url = backend.url();
    let gate = TestGate::watched(&usual(&url), &[]).await;
    let sqlite = changed(
        &url,
        &[(
            "store = \"memory\"\nallow_volatile = true",
            "store = \"sqlite\"\npath = \"other.db\"\nallow_unsafe_filesystem = true",
        )],
    );
    assert!(!gate.reload(&sqlite).await);
    assert!(gate.readiness().await.contains("ledger.store"));
    assert_eq!(gate.post("/tiki/any", "1").await.status, 200);
}

/// A bad change and the next start: the running gate goes on, the new one says what is wrong.
#[tokio::test]
async fn a_process_takes_sighup_and_tells_what_it_does_not_take() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let toml = with_secrets(&backend.url(), &[("now", "secret")]);
    let setup = Setup::new(&toml)
        .file("secret", SECRET.as_bytes())
        .file("other-secret", b"another-secret-of-another-client");
    let path = setup.config_path();
    let wrong = wrong(&backend.url());
    let told = |words: &'static str| move |line: &str| line.contains(words);
    tokio::task::spawn_blocking(move || {
        let mut gate = setup.start();
        std::fs::write(&path, toml.replace("level = \"info\"", "level = \"debug\"")).unwrap();
        gate.signal(Signal::HUP);
        gate.wait_for_line(told("the changed configuration is in force"));
        std::fs::write(&path, wrong).unwrap();
        gate.signal(Signal::HUP);
        for (line, code) in WRONG {
            let place = format!("tikigate.toml:{line}:");
            gate.wait_for_line(|written| {
                told("the changed configuration is not taken")(written)
                    && written.contains(&place)
                    && written.contains(code)
            });
        }
        assert!(gate.terminate().success());
    })
    .await
    .unwrap();
}
