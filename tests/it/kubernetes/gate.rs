//! The manifests' configuration in the binary, and their commands against it.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tikigate::net::ListenAddress;
use tikigate::tiki::Family;

use super::laid::{NOBODYS_SECRET, lay};
use super::rules::{Rendering, items};
use super::{FRONT_FIRST, FRONT_OVERLAY, SIDECAR_FIRST, SIDECAR_OVERLAY, renderings};
use crate::commands::{get, run};
use crate::support::backend::{Answer, Backend, Behaviour, Hold};
use crate::support::gate::{Call, refund};
use crate::support::gate_process::{GateProcess, Setup};
use crate::support::postgres::Server;
use crate::support::raw::exchange;
use crate::support::samples;

const WITHIN: Duration = Duration::from_secs(30);

#[test]
fn strict_checks_find_nothing_in_the_configurations() {
    for (name, objects) in renderings() {
        let setup = lay(&Rendering::new(objects).unwrap());
        let told = run(setup.command("check").arg("--strict"));
        assert_eq!(told.code, Some(0), "{name}: {}{}", told.out, told.err);
        assert!(
            told.out.contains("errors: 0, warnings: 0"),
            "{name}: {}",
            told.out
        );
    }
}

#[test]
fn strict_checks_notice_secrets_that_everybody_can_read() {
    let mut objects = SIDECAR_OVERLAY.clone();
    let deployment = objects
        .iter_mut()
        .find(|object| object["kind"] == "Deployment")
        .unwrap();
    let volumes = deployment
        .pointer_mut("/spec/template/spec/volumes/1/secret")
        .unwrap();
    volumes["defaultMode"] = 0o444.into();
    let setup = lay(&Rendering::new(&objects).unwrap());
    let told = run(setup.command("check").arg("--strict")).failed(78);
    assert!(told.contains("readable_secret"), "{told}");
}

/// A rendering's set-up with its variables, on free ports and where a test may write.
fn set_up(objects: &[Value], more: &[(&str, &str)]) -> Setup {
    let rendering = Rendering::new(objects).unwrap();
    let mut setup = lay(&rendering)
        // What Kubernetes makes of a Service called tikigate, where it makes variables of Services.
        .environment("TIKIGATE_SERVICE_HOST", "10.96.0.7")
        .environment("TIKIGATE_SERVICE_PORT_HTTP", "80")
        .environment("TIKIGATE_PORT", "tcp://10.96.0.7:80")
        .environment("TIKIGATE_PORT_80_TCP_ADDR", "10.96.0.7")
        .environment("TIKIGATE__SERVER__LISTEN", "127.0.0.1:0")
        .environment("TIKIGATE__ADMIN__LISTEN", "127.0.0.1:0")
        .environment("TIKIGATE__OUTBOUND__LISTEN", "127.0.0.1:0")
        .environment("TIKIGATE__SERVER__DRAIN_DELAY", "0s");
    for variable in items(rendering.gate(), "/env") {
        if let (Some(name), Some(value)) = (variable["name"].as_str(), variable["value"].as_str()) {
            setup = setup.environment(name, value);
        }
    }
    more.iter()
        .fold(setup, |setup, (name, value)| setup.environment(name, value))
}

/// The same for the sidecar, with its volumes in `disk` and this backend.
fn sidecar(objects: &[Value], disk: &Path, backend: &str) -> Setup {
    let place = |path: &str| disk.join(path).to_str().unwrap().to_owned();
    set_up(
        objects,
        &[
            ("TIKIGATE__LEDGER__PATH", &place("ledger/tikigate.db")),
            ("TIKIGATE__LEDGER__WATERMARK", &place("mark/tikigate.mark")),
            ("TIKIGATE__LEDGER__ALLOW_UNSAFE_FILESYSTEM", "true"),
            ("TIKIGATE__UPSTREAMS__LEGACY__URL", backend),
        ],
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_is_started_probed_and_drained_as_its_manifest_says() {
    let hold = Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |_| Behaviour::from(Answer::success()).held(&held)).await;
    let disk = tempfile::tempdir().unwrap();
    for volume in ["ledger", "mark"] {
        fs::create_dir(disk.path().join(volume)).unwrap();
    }
    let standing = || sidecar(&SIDECAR_OVERLAY, disk.path(), &backend.url());

    // The standing overlay takes no empty volume for a ledger; the first start's does, once.
    let refused = run(&mut standing().command("serve"));
    assert_ne!(refused.code, Some(0));
    let told = refused.out + &refused.err;
    assert!(told.contains("require_existing"), "{told}");
    let first = sidecar(&SIDECAR_FIRST, disk.path(), &backend.url());
    let mut gate = tokio::task::spawn_blocking(|| first.start()).await.unwrap();
    assert_eq!(gate.terminate().code(), Some(0));
    let setup = standing();
    let mut gate = tokio::task::spawn_blocking(|| setup.start()).await.unwrap();

    let rendering = Rendering::new(&SIDECAR_OVERLAY).unwrap();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let path = rendering.gate()[probe]["httpGet"]["path"].as_str().unwrap();
        assert_eq!(get(gate.admin_address(), path).await.status, 200, "{probe}");
    }

    // The pod is to end while a refund runs: the gate's hook begins the drain, and the backend, asleep in
    // its own, still answers.
    let body = refund("r-1", "1");
    let call = Call::post_as(
        ("example-client-key", NOBODYS_SECRET),
        Family::TikiVip,
        "/tiki/refund",
        body,
        SystemTime::now(),
    );
    let address = ListenAddress::Tcp(gate.address());
    let call = tokio::spawn(async move { exchange(&address, call.to_bytes()).await });
    backend.wait_for_requests(1).await;
    let mut waiting = waiting_backend(gate.admin_address());
    let told = run(&mut pre_stop(&rendering, &gate)).worked();
    assert!(told.contains("draining"), "{told}");
    gate.wait_for_line(|line| line.contains("draining: no new connections"));
    let ready = rendering.gate()["readinessProbe"]["httpGet"]["path"]
        .as_str()
        .unwrap();
    assert_eq!(get(gate.admin_address(), ready).await.status, 503);
    // A gate in front gets SIGTERM right after its hook. It asks for what is under way already.
    gate.signal_terminate();
    assert!(!call.is_finished());
    assert!(
        waiting.try_wait().unwrap().is_none(),
        "the backend's hook did not wait for the gate"
    );
    hold.release();
    let answer = call.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let status = tokio::task::spawn_blocking(move || {
        let status = gate.wait(WITHIN);
        let cut = gate.lines().iter().any(|line| line.contains("cut short"));
        assert!(!cut, "SIGTERM after the hook cut the drain short");
        status
    });
    assert_eq!(status.await.unwrap().code(), Some(0));
    let ended = tokio::task::spawn_blocking(move || waiting.wait().unwrap());
    let ended = tokio::time::timeout(WITHIN, ended).await;
    let ended = ended.expect("the backend's hook waits for a gate that has gone");
    assert!(ended.unwrap().success());
}

/// The hook that `docs/kubernetes.md` gives backends in PHP, which waits for the gate's end.
fn waiting_backend(admin: SocketAddr) -> Child {
    let document = fs::read_to_string(samples::root().join("docs/kubernetes.md")).unwrap();
    let (_, hook) = document.split_once("command: [php, -r, '").unwrap();
    let (script, _) = hook.split_once("']").unwrap();
    assert!(script.contains("127.0.0.1:9901"), "{script}");
    let script = script.replace("127.0.0.1:9901", &admin.to_string());
    Command::new("php").args(["-r", &script]).spawn().unwrap()
}

/// The manifest's preStop command, with the test's directory in the place of `/etc/tikigate`.
fn pre_stop(rendering: &Rendering<'_>, gate: &GateProcess) -> Command {
    let words = items(rendering.gate(), "/lifecycle/preStop/exec/command");
    let mut words = words.iter().map(|word| word.as_str().unwrap());
    assert_eq!(words.next(), Some("/usr/local/bin/tikigate"));
    // The only thing that differs: where the configuration is, and the port that the test took.
    let mut command = gate.setup().command(words.next().unwrap());
    command.env("TIKIGATE__ADMIN__LISTEN", gate.admin_address().to_string());
    let directory = gate.setup().directory();
    for word in words {
        match word.strip_prefix("/etc/tikigate/") {
            Some(file) => command.arg(directory.join(file)),
            None => command.arg(word),
        };
    }
    command
}

#[test]
fn gates_in_front_share_a_database_and_write_no_file() {
    let server = Server::shared();
    let url = server.url(&server.create_database());
    let in_front = |objects| {
        // The server is on this host, where no authority is asked.
        set_up(objects, &[("DATABASE_URL", &url)])
    };
    let refused = run(&mut in_front(&FRONT_OVERLAY).command("serve"));
    assert_ne!(refused.code, Some(0));
    let told = refused.out + &refused.err;
    assert!(told.contains("require_existing"), "{told}");

    let setup = in_front(&FRONT_FIRST);
    let before = files(setup.directory());
    let mut first = setup.start();
    let mut standing = in_front(&FRONT_OVERLAY).start();
    for gate in [&first, &standing] {
        assert_eq!(
            files(gate.setup().directory()),
            before,
            "a gate with a database wrote a file"
        );
    }
    for gate in [&mut first, &mut standing] {
        assert_eq!(gate.terminate().code(), Some(0));
    }
}

/// The names below a directory.
fn files(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.extend(
                files(&path)
                    .into_iter()
                    .map(|inner| format!("{name}/{inner}")),
            );
        } else {
            found.insert(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    found
}
