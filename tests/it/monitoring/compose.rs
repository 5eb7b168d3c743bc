//! `deploy/compose.yaml`: its form by docker-compose itself, which needs no engine for that, and that it fits
//! the image, the shipped files and the configuration.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{from_yaml, read, succeeds};
use crate::support::samples::root;

const FILE: &str = "deploy/compose.yaml";
/// What the image's user is called by number.
const USER: &str = "65532:65532";

/// The file as docker-compose understands it, with the secrets in this directory.
fn composed(secrets: &Path) -> Value {
    let yaml = Command::new("docker-compose")
        .args(["-f", FILE, "config"])
        .env("TIKIGATE_SECRETS", secrets)
        .current_dir(root())
        .stderr(Stdio::piped())
        .output()
        .expect("docker-compose; `tests/run` installs it");
    let told = String::from_utf8_lossy(&yaml.stderr).into_owned();
    assert!(yaml.status.success(), "{told}");
    from_yaml(&yaml.stdout)
}

/// Throw-away secrets, by the shipped script.
fn secrets() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let script = root().join("deploy/local/secrets");
    succeeds(
        Command::new(script)
            .arg("--for-compose")
            .arg(directory.path()),
    );
    directory
}

/// A duration such as `1m15s`.
fn seconds(text: &str) -> u64 {
    let (minutes, seconds) = text.split_once('m').unwrap_or(("0", text));
    let number = |text: &str| text.trim_end_matches('s').parse().unwrap_or(0);
    60 * number(minutes) + number(seconds)
}

fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|text| text.as_str().unwrap()).collect()
}

#[test]
fn what_it_mounts_is_there_and_what_it_waits_for_has_a_check() {
    let secrets = secrets();
    let compose = composed(secrets.path());
    let services = compose["services"].as_object().unwrap();
    let mut mounted = 0;
    for (name, service) in services {
        for volume in texts(&service["volumes"]) {
            let source = volume.split(':').next().unwrap();
            if source.starts_with('/') {
                assert!(Path::new(source).exists(), "{name}: {source} is not there");
                assert!(volume.ends_with(":ro"), "{name} could write {source}");
                mounted += 1;
            } else {
                assert!(compose["volumes"].get(source).is_some(), "{name}: {source}");
            }
        }
        for (other, how) in service["depends_on"].as_object().into_iter().flatten() {
            let healthy = how["condition"] == "service_healthy";
            assert!(
                !healthy || services[other].get("healthcheck").is_some(),
                "{name} waits for {other}"
            );
        }
        // As in a pod: one network, one place where ports are published, on the loopback.
        if name != "postgres" {
            assert_eq!(service["network_mode"], "service:postgres", "{name}");
            assert!(service.get("ports").is_none(), "{name}");
        }
    }
    assert_eq!(mounted, 7);
    let used: Vec<&str> = services
        .values()
        .flat_map(|service| service["secrets"].as_array().into_iter().flatten())
        .map(|secret| {
            secret["source"]
                .as_str()
                .unwrap_or_else(|| secret.as_str().unwrap())
        })
        .collect();
    for (name, secret) in compose["secrets"].as_object().unwrap() {
        let file = Path::new(secret["file"].as_str().unwrap());
        assert!(
            file.starts_with(secrets.path()) && file.exists(),
            "{file:?}"
        );
        assert!(used.contains(&name.as_str()), "nobody has {name}");
    }
}

#[test]
fn the_gate_runs_as_its_image_does_and_can_do_nothing_else() {
    let secrets = secrets();
    let compose = composed(secrets.path());
    let gate = &compose["services"]["gate"];
    assert_eq!(
        gate["image"],
        format!("tikigate:{}", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(gate["build"]["dockerfile"], "deploy/Dockerfile");
    assert_eq!(
        Path::new(gate["build"]["context"].as_str().unwrap()),
        root()
    );
    assert_eq!(texts(&gate["command"]), ["serve"]);
    assert_eq!(gate["user"], USER);
    assert_eq!(gate["read_only"], true);
    assert_eq!(texts(&gate["cap_drop"]), ["ALL"]);
    assert_eq!(texts(&gate["security_opt"]), ["no-new-privileges:true"]);
    let image = read("deploy/Dockerfile");
    for line in [
        format!("USER {USER}"),
        "ENTRYPOINT [\"/usr/local/bin/tikigate\"]".to_owned(),
        "CMD [\"serve\"]".to_owned(),
    ] {
        assert!(
            image.lines().any(|of| of == line),
            "the image has no {line}"
        );
    }
    assert!(gate.get("privileged").is_none() && gate.get("cap_add").is_none());
    let probe = ["CMD", "/usr/local/bin/tikigate", "probe", "ready"];
    assert_eq!(texts(&gate["healthcheck"]["test"]), probe);
    let ports = texts(&compose["services"]["postgres"]["ports"]);
    for port in [8080, 9901, 9090, 3000] {
        assert!(
            ports.contains(&&*format!("127.0.0.1:{port}:{port}/tcp")),
            "{ports:?}"
        );
    }
    assert_eq!(ports.len(), 4, "the database itself is not published");
}

/// The configuration is right with the secrets and the variables that the file gives, listens where ports
/// are published, and a stop waits long enough for its drain.
#[test]
fn its_configuration_can_be_used() {
    let secrets = secrets();
    let compose = composed(secrets.path());
    let gate = &compose["services"]["gate"];
    let place = tempfile::tempdir().unwrap();
    let etc = "/etc/tikigate/";
    for volume in texts(&gate["volumes"]) {
        let mut parts = volume.split(':');
        let (source, target) = (parts.next().unwrap(), parts.next().unwrap());
        let name = target.strip_prefix(etc).unwrap();
        std::fs::copy(source, place.path().join(name)).unwrap();
    }
    std::fs::create_dir(place.path().join("secrets")).unwrap();
    for secret in gate["secrets"].as_array().unwrap() {
        let source = secret["source"].as_str().unwrap();
        let target = secret["target"]
            .as_str()
            .unwrap()
            .strip_prefix(etc)
            .unwrap();
        std::fs::copy(secrets.path().join(source), place.path().join(target)).unwrap();
    }
    let mut check = Command::new(env!("CARGO_BIN_EXE_tikigate"));
    check
        .args(["check", "--config"])
        .arg(place.path().join("tikigate.toml"));
    for (name, value) in gate["environment"].as_object().unwrap() {
        check.env(name, value.as_str().unwrap());
    }
    let told = succeeds(&mut check);
    let setting = |key: &str| {
        let lines: Vec<&str> = told
            .lines()
            .filter(|line| line.trim_start().starts_with(key))
            .collect();
        assert!(!lines.is_empty(), "no {key} in {told}");
        lines.concat()
    };
    assert!(setting("listen").contains("0.0.0.0:8080"), "{told}");
    assert!(setting("listen").contains("0.0.0.0:9901"), "{told}");
    let within = |key: &str| seconds(setting(key).split('"').nth(1).unwrap());
    let grace = seconds(gate["stop_grace_period"].as_str().unwrap());
    assert!(
        grace >= within("drain_delay") + within("drain_within") + 5,
        "{grace}"
    );
}

/// Nothing but a variable differs from `deploy/local/up`: both use the same files.
#[test]
fn the_script_without_an_engine_uses_the_same_files() {
    let (compose, script) = (read(FILE), read("deploy/local/up"));
    for name in [
        "tikigate.toml",
        "backend/index.php",
        "prometheus/prometheus.yaml",
        "prometheus/rules.yaml",
        "grafana/provisioning",
    ] {
        assert!(compose.contains(name) && script.contains(name), "{name}");
    }
}
