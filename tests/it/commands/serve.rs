//! `tikigate serve`, up and running.

use std::fs;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use tikigate::net::ListenAddress;

use super::{Running, get, post, run, setup, signed, tikigate, token_file};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{Call, SECRET, refund, usual};
use crate::support::gate_process::Setup;
use crate::support::raw::{RawClient, exchange};

async fn agreeable() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

/// The usual configuration on unix sockets in the set-up's directory.
fn on_unix_sockets(backend: &str) -> (Setup, ListenAddress, String) {
    let setup = setup(&usual(backend));
    let path = |name| setup.directory().join(name);
    let (server, admin) = (
        path("gate.sock"),
        format!("unix:{}", path("admin.sock").display()),
    );
    let setup = setup
        .environment(
            "TIKIGATE__SERVER__LISTEN",
            &format!("unix:{}", server.display()),
        )
        .environment("TIKIGATE__ADMIN__LISTEN", &admin);
    (setup, ListenAddress::Unix(server), admin)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_says_where_it_listens_and_passes_a_signed_call() {
    let backend = agreeable().await;
    let mut gate = setup(&usual(&backend.url())).start();
    let line = gate.wait_for_line(|line| line.contains("listening"));
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["server.address"], gate.address().to_string());
    assert_eq!(line["admin.address"], gate.admin_address().to_string());
    assert_eq!(line["tikigate.workers"], 2);

    let body = refund("r-1", "150000");
    let answer = post(gate.address(), "/tiki/refund", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let forged =
        signed("/tiki/refund", &refund("r-2", "1")).with("x-tikivip-signature", &"0".repeat(64));
    let refused = exchange(&ListenAddress::Tcp(gate.address()), forged.to_bytes()).await;
    assert_eq!(refused.status, 401);
    let seen = backend.requests();
    assert_eq!(
        seen.iter().map(|one| one.text()).collect::<Vec<_>>(),
        [body]
    );

    let token = fs::read_to_string(token_file(gate.setup().directory())).unwrap();
    assert_eq!(gate.terminate().code(), Some(0));
    let lines = gate.lines();
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.contains(r#""message":"request""#))
            .count(),
        2
    );
    for line in &lines {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_ok(),
            "not JSON: {line}"
        );
    }
    let all = [lines, gate.error_lines()].concat().join("\n");
    for hidden in [SECRET, token.trim(), &"0".repeat(64)] {
        assert!(!all.contains(hidden), "the output shows {hidden}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_overrides_the_file() {
    let backend = agreeable().await;
    // An address for documentation: no machine has it.
    let elsewhere = usual(&backend.url()).replacen("127.0.0.1:0", "192.0.2.1:8080", 1);
    let gate = setup(&elsewhere)
        .environment("TIKIGATE__SERVER__LISTEN", "127.0.0.1:0")
        .start();
    assert_eq!(post(gate.address(), "/tiki/any", "x").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configuration_is_found_by_its_variable_and_by_a_relative_path() {
    let backend = agreeable().await;
    let usual = usual(&backend.url());
    let setup = setup(&usual);
    let mut by_variable = tikigate(&["serve"]);
    by_variable
        .env("TIKIGATE_CONFIG", setup.config_path())
        .current_dir("/");
    let mut by_relative_path = tikigate(&["serve", "--config", "tikigate.toml"]);
    by_relative_path.current_dir(setup.directory());
    let mut by_flag = setup.command("serve");
    by_flag.env("TIKIGATE_CONFIG", "/nonexistent/tikigate.toml");
    for command in [&mut by_variable, &mut by_relative_path, &mut by_flag] {
        let _ = fs::remove_file(setup.directory().join("output"));
        let _ = fs::remove_file(token_file(setup.directory()));
        let mut gate = Running::start(command, &setup);
        let (server, admin) = gate.wait_for_addresses();
        gate.wait_until_ready(&["--admin", &format!("http://{admin}")]);
        assert_eq!(
            post(server, "/tiki/any", &format!("{command:?}"))
                .await
                .status,
            200
        );
        assert!(token_file(setup.directory()).exists(), "{command:?}");
        assert_eq!(gate.terminate().code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_sockets_serve_calls_probes_and_commands() {
    let backend = agreeable().await;
    let (setup, server, admin) = on_unix_sockets(&backend.url());
    let mut gate = Running::start(&mut setup.command("serve"), &setup);
    gate.wait_until_ready(&["--admin", &admin]);
    let call = signed("/tiki/refund", &refund("r-1", "1"));
    assert_eq!(exchange(&server, call.to_bytes()).await.status, 200);
    let list = run(setup.command("ledger").arg("list")).worked();
    assert!(list.contains("r-1"), "{list}");

    // Nobody cleans up after a gate that is killed: the next one does.
    gate.child().kill().unwrap();
    gate.wait();
    assert!(setup.directory().join("gate.sock").exists());
    let mut next = Running::start(&mut setup.command("serve"), &setup);
    next.wait_until_ready(&["--admin", &admin]);
    let call = signed("/tiki/refund", &refund("r-2", "1"));
    assert_eq!(exchange(&server, call.to_bytes()).await.status, 200);

    assert_eq!(next.terminate().code(), Some(0));
    for name in ["gate.sock", "admin.sock"] {
        assert!(
            !setup.directory().join(name).exists(),
            "{name} was left behind"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_outlives_its_output() {
    let backend = agreeable().await;
    for lost in [
        "a closed standard output",
        "all streams closed",
        "a reader that went away",
    ] {
        let (setup, server, admin) = on_unix_sockets(&backend.url());
        let mut command = match lost {
            "a reader that went away" => {
                let mut command = setup.command("serve");
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                command
            }
            _ => {
                let closed = if lost.starts_with("all") {
                    "<&- >&- 2>&-"
                } else {
                    ">&-"
                };
                let serve = setup.command("serve");
                let mut command = Command::new("sh");
                command.args(["-c", &format!("exec \"$@\" {closed}"), "sh"]);
                command.arg(serve.get_program()).args(serve.get_args());
                for (name, value) in serve.get_envs() {
                    match value {
                        Some(value) => command.env(name, value),
                        None => command.env_remove(name),
                    };
                }
                command
            }
        };
        let mut gate = Running::start_as_it_is(&mut command, setup.directory().join("none"));
        drop((gate.child().stdout.take(), gate.child().stderr.take()));
        gate.wait_until_ready(&["--admin", &admin]);
        for number in 0..3 {
            let call = signed("/tiki/any", &format!("{lost} {number}"));
            assert_eq!(
                exchange(&server, call.to_bytes()).await.status,
                200,
                "{lost}"
            );
        }
        assert_eq!(gate.terminate().code(), Some(0), "{lost}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stands_still_does_not_stop_the_gate() {
    let backend = agreeable().await;
    let (setup, server, admin) = on_unix_sockets(&backend.url());
    let mut command = setup.command("serve");
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut gate = Running::start_as_it_is(&mut command, setup.directory().join("none"));
    gate.wait_until_ready(&["--admin", &admin]);
    // More lines than the pipe takes.
    let unknown = Call::post("/nowhere", "", SystemTime::now()).to_bytes();
    let mut client = RawClient::connect(&server).await;
    for _ in 0..500 {
        client.send(&unknown).await;
        assert_eq!(client.read_answer().await.status, 404);
    }
    let call = signed("/tiki/any", "after");
    assert_eq!(exchange(&server, call.to_bytes()).await.status, 200);
    assert_eq!(gate.terminate().code(), Some(0));

    let unread = super::read_on(gate.child().stdout.take().unwrap())
        .join()
        .unwrap();
    let lines = unread.matches("\"message\":\"request\"").count();
    assert!(
        (1..500).contains(&lines),
        "the pipe was never full: it took {lines} lines"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_worker_takes_connections() {
    let backend = agreeable().await;
    let three = usual(&backend.url()).replace("workers = 2", "workers = 3");
    let gate = setup(&three).start();
    let before = worker_switches(gate.pid());
    assert_eq!(before.len(), 3, "{before:?}");
    for number in 0..96 {
        assert_eq!(
            post(gate.address(), "/tiki/any", &number.to_string())
                .await
                .status,
            200
        );
    }
    let after = worker_switches(gate.pid());
    // A thread that takes connections goes to sleep after each; 32 of 96 are a worker's share.
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        assert!(
            after - before >= 12,
            "{name} took next to nothing: {before} to {after} switches"
        );
    }
}

/// How often each worker thread has gone to sleep so far, by the threads' names.
fn worker_switches(pid: u32) -> Vec<(String, u64)> {
    let mut workers = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().to_owned()
        };
        let name = field("Name:");
        if name.starts_with("worker-") {
            workers.push((name, field("voluntary_ctxt_switches:").parse().unwrap()));
        }
    }
    workers.sort();
    workers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_have_bodies_that_people_can_read() {
    let backend = agreeable().await;
    let gate = setup(&usual(&backend.url())).start();
    let live = get(gate.admin_address(), "/livez").await;
    assert_eq!((live.status, live.text()), (200, "ok\n"));
    let ready = get(gate.admin_address(), "/readyz").await;
    assert_eq!(ready.status, 200);
    assert_eq!(
        ready.json(),
        serde_json::json!({ "ready": true, "state": "serving", "unready": null, "degraded": [] })
    );
    assert_eq!(get(gate.admin_address(), "/nowhere").await.status, 404);
}
