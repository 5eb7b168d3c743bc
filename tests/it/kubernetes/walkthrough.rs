//! The commands of `docs/kubernetes.md`: those that need no cluster are run, of the others everything that
//! can be done without one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::laid::{NOBODYS_SECRET, secret_files};
use super::rules::{Rendering, faults, items};
use super::tool::{helm, kubectl, kustomize};
use super::{FRONT, FRONT_CHART, SIDECAR, SIDECAR_OVERLAY, configuration};
use crate::commands::{run, tikigate};
use crate::support::samples;

fn document() -> String {
    fs::read_to_string(samples::root().join("docs/kubernetes.md")).unwrap()
}

/// What stands in the document's blocks of this language, without indentation.
fn blocks(language: &str) -> Vec<String> {
    let text = document();
    let mut blocks = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in text.lines() {
        let depth = line.len() - line.trim_start().len();
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(word), None) => open = Some((word == language, String::new())),
            (Some(_), Some(_)) => {
                let (wanted, block) = open.take().unwrap();
                if wanted {
                    blocks.push(block);
                }
            }
            (None, Some((_, block))) => {
                // Blocks in a numbered list are indented by three.
                block.push_str(line.get(depth.min(3)..).unwrap_or_default());
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

/// The commands, as their words.
fn commands() -> Vec<Vec<String>> {
    let lines = blocks("sh").concat();
    let lines = lines.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| {
            line.split_whitespace()
                .map(|word| word.replace('\'', ""))
                .collect()
        })
        .collect()
}

#[test]
fn every_command_of_the_walkthrough_that_renders_something_does() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for words in commands() {
        let line = words.join(" ");
        let said: Vec<&str> = words.iter().map(String::as_str).collect();
        let kind = match said[..] {
            ["kubectl", "kustomize", directory] => {
                kustomize(directory).unwrap_or_else(|refused| panic!("{line}: {refused}"));
                "kustomize"
            }
            ["kubectl", "-n", "payments", "apply", "-k", "."] => "apply",
            ["kubectl", "-n", "payments", "apply", "-k", directory] => {
                kustomize(directory).unwrap_or_else(|refused| panic!("{line}: {refused}"));
                "apply"
            }
            // `helm template` and the others build it anew each time.
            ["helm", "dependency", "build", directory] => {
                assert!(
                    samples::root().join(directory).join("Chart.yaml").exists(),
                    "{line}"
                );
                "dependency"
            }
            ["helm", ..] => {
                let (objects, notes) =
                    helm(&words[1..]).unwrap_or_else(|refused| panic!("{line}: {refused}"));
                let gate = Rendering::new(&objects).unwrap();
                let first = !items(gate.gate(), "/env")
                    .iter()
                    .all(|variable| variable["value"].is_null());
                assert_eq!(first, line.contains("firstStart=true"), "{line}");
                assert_eq!(first, notes.contains("FIRST START"), "{line}");
                assert_eq!(faults(&objects), [""; 0], "{line}");
                if !first && !gate.native() {
                    assert_eq!(objects, *FRONT_CHART, "{line}");
                }
                "helm"
            }
            [
                "kubectl",
                "-n",
                "payments",
                "exec",
                of,
                "-c",
                "tikigate",
                "--",
                "tikigate",
                ..,
            ] => {
                assert_eq!(of, "deploy/legacy");
                // With `--help` the words are read and nothing is done.
                let mut command = tikigate(&said[9..]);
                run(command.arg("--help")).worked();
                "exec"
            }
            ["kubectl", "-n", "payments", "rollout", ..]
            | ["kubectl", "-n", "payments", "logs", ..]
            | ["kubectl", "create", "namespace", "payments"] => "cluster",
            ["kubectl", "-n", "payments", "create", "secret", ..] => "secret",
            ["openssl" | "mkdir" | "chmod" | "tikigate", ..] => "local",
            _ => panic!("nothing is known of {line}"),
        };
        *seen.entry(kind).or_default() += 1;
    }
    let kinds: Vec<&str> = seen.keys().copied().collect();
    let wanted = [
        "apply",
        "cluster",
        "dependency",
        "exec",
        "helm",
        "kustomize",
        "local",
        "secret",
    ];
    assert_eq!(kinds, wanted, "{seen:?}");
}

#[test]
fn the_secrets_are_made_as_the_walkthrough_says() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::write(at.join("tikigate.toml"), configuration(SIDECAR)).unwrap();
    let block = blocks("sh")
        .into_iter()
        .find(|block| block.contains("mkdir"))
        .unwrap();
    let mut lines = block.lines();
    let mut made = None;
    for line in &mut lines {
        if line.starts_with("kubectl create namespace") {
            continue;
        }
        if let Some(words) = line.strip_prefix("kubectl ") {
            made = Some(dry_run(at, words));
            continue;
        }
        // What Tiki gave is there before the files are closed to others.
        if line.starts_with("chmod") {
            fs::write(at.join("secrets/wallet.secret"), NOBODYS_SECRET).unwrap();
        }
        let path = format!("{}:{}", gate_directory(), std::env::var("PATH").unwrap());
        let told = run(Command::new("sh")
            .args(["-euc", line])
            .current_dir(at)
            .env("PATH", path));
        assert_eq!(told.code, Some(0), "{line}: {told:?}");
    }
    let secret = made.expect("no Secret is made");
    assert_eq!(secret["metadata"]["name"], "tikigate-secrets");
    let keys: Vec<&String> = secret["data"].as_object().unwrap().keys().collect();
    let wanted = secret_files(&configuration(SIDECAR));
    assert_eq!(keys, wanted.iter().collect::<Vec<_>>());

    let database = blocks("sh").concat();
    let line = database
        .lines()
        .find(|line| line.contains("tikigate-database"))
        .unwrap();
    let secret = dry_run(
        at,
        &line.strip_prefix("kubectl ").unwrap().replace('\'', ""),
    );
    assert_eq!(secret["metadata"]["name"], "tikigate-database");
    assert!(secret["data"]["url"].is_string(), "{secret}");
    assert!(secret_files(&configuration(FRONT)).contains(&"database-ca.crt".to_owned()));
}

/// What a command of kubectl's would send, without a cluster.
fn dry_run(at: &Path, words: &str) -> Value {
    let mut command = kubectl(at);
    command
        .args(words.split_whitespace())
        .args(["--dry-run=client", "--output=json"]);
    serde_json::from_str(&run(&mut command).worked()).unwrap()
}

/// Where the binary is.
fn gate_directory() -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_tikigate"));
    binary.parent().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn the_kustomization_of_the_walkthrough_gives_a_sound_pod() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let kustomization = blocks("yaml")
        .into_iter()
        .find(|block| block.contains("kind: Kustomization"))
        .unwrap();
    fs::create_dir(at.join("tikigate")).unwrap();
    let deploy = samples::root().join("deploy");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(&deploy)
        .arg(at.join("tikigate"))
        .status()
        .unwrap();
    assert!(copied.success());
    let overlay = samples::root().join(SIDECAR);
    for file in ["egress.yaml", "tikigate.toml"] {
        fs::copy(overlay.join(file), at.join(file)).unwrap();
    }
    let backend: Vec<String> = kustomize("deploy/kubernetes/example")
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    fs::write(at.join("backend.yaml"), backend.join("\n---\n")).unwrap();

    // Each file as a person leaves it: with the line of the first start, and without.
    for first in [true, false] {
        let text = if first {
            assert!(
                kustomization.contains("    # - tikigate")
                    || kustomization.contains("  # - tikigate"),
                "{kustomization}"
            );
            kustomization.replace("# - tikigate", "- tikigate")
        } else {
            kustomization.clone()
        };
        fs::write(at.join("kustomization.yaml"), text).unwrap();
        let mut objects = kustomize(at.to_str().unwrap()).unwrap();
        let gate = Rendering::new(&objects).unwrap().gate().clone();
        assert_eq!(!items(&gate, "/env").is_empty(), first);
        assert_eq!(
            gate["image"],
            concat!("registry.example/tikigate:", env!("CARGO_PKG_VERSION"))
        );
        // But for where the image comes from it is the overlay.
        let place = objects
            .iter_mut()
            .find(|object| object["kind"] == "Deployment")
            .unwrap();
        place["spec"]["template"]["spec"]["initContainers"][0]["image"] =
            concat!("tikigate:", env!("CARGO_PKG_VERSION")).into();
        // The generator's own label is the overlay's alone.
        let map = objects
            .iter_mut()
            .find(|object| object["kind"] == "ConfigMap")
            .unwrap();
        map["metadata"]["labels"] = serde_json::json!({ "app.kubernetes.io/part-of": "tikigate" });
        assert_eq!(faults(&objects), [""; 0]);
        if !first {
            let (mut ours, mut overlays) = (objects, SIDECAR_OVERLAY.clone());
            ours.sort_by_key(ToString::to_string);
            overlays.sort_by_key(ToString::to_string);
            assert_eq!(ours, overlays);
        }
    }
}
