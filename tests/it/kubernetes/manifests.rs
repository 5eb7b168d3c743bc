//! The kustomizations and the chart keep to the rules and to the schemas.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::rules::faults;
use super::tool::{kustomize, validate};
use super::{FRONT_FIRST, FRONT_OVERLAY, SIDECAR_FIRST, SIDECAR_OVERLAY, renderings};
use crate::support::samples;

/// The oldest version whose kubelet starts native sidecars by default, the one that brought the `sleep` of
/// hooks by default, the one that made both stable, and the newest there are schemas of.
const KUBERNETES: [&str; 4] = ["1.29", "1.30", "1.34", "1.37"];

#[test]
fn every_rendering_keeps_to_the_rules() {
    for (name, objects) in renderings() {
        assert_eq!(faults(objects), [""; 0], "{name}");
    }
}

#[test]
fn every_rendering_fits_the_schemas() {
    let all: Vec<Value> = renderings()
        .iter()
        .flat_map(|(_, objects)| objects.to_vec())
        .collect();
    assert_eq!(validate(&all, &KUBERNETES), [""; 0]);
}

#[test]
fn the_first_start_differs_in_one_variable() {
    for (first, standing, list) in [
        (&*SIDECAR_FIRST, &*SIDECAR_OVERLAY, "initContainers"),
        (&*FRONT_FIRST, &*FRONT_OVERLAY, "containers"),
    ] {
        let mut first = first.clone();
        let gate = first
            .iter_mut()
            .find(|object| object["kind"] == "Deployment")
            .unwrap();
        let gate = &mut gate["spec"]["template"]["spec"][list][0];
        let variables = gate["env"].as_array_mut().unwrap();
        let wanted = json!({ "name": "TIKIGATE__LEDGER__REQUIRE_EXISTING", "value": "false" });
        let place = variables.iter().position(|variable| *variable == wanted);
        variables.remove(place.expect("the variable is not there"));
        if variables.is_empty() {
            gate.as_object_mut().unwrap().remove("env");
        }
        assert_eq!(first, *standing);
    }
}

#[test]
fn a_changed_configuration_changes_its_config_map_alone() {
    let copy = Copy::new();
    copy.edit(
        "overlays/sidecar-sqlite/tikigate.toml",
        "/tiki/refund",
        "/tiki/refunds",
    );
    let changed = copy.kustomize("overlays/sidecar-sqlite").unwrap();
    let different: Vec<&Value> = changed
        .iter()
        .filter(|object| !SIDECAR_OVERLAY.contains(object))
        .map(|object| &object["kind"])
        .collect();
    assert_eq!(different, ["ConfigMap"]);
    assert_eq!(changed.len(), SIDECAR_OVERLAY.len());
}

#[test]
fn a_backend_with_hooks_of_its_own_stops_the_build_instead_of_losing_them() {
    let copy = Copy::new();
    let hooks = "          image: legacy:1.0.0\n          lifecycle:\n            postStart:\n              sleep:\n                seconds: 1\n";
    copy.edit(
        "example/deployment.yaml",
        "          image: legacy:1.0.0\n",
        hooks,
    );
    let refused = copy.kustomize("overlays/sidecar-sqlite").unwrap_err();
    assert!(
        refused.contains("/spec/template/spec/containers/0/lifecycle"),
        "{refused}"
    );
}

#[test]
fn what_the_backend_has_of_its_own_stays() {
    let copy = Copy::new();
    let more = "      initContainers:\n        - name: migrate\n          image: legacy:1.0.0\n      volumes:\n        - name: cache\n          emptyDir: {}\n      containers:\n";
    copy.edit("example/deployment.yaml", "      containers:\n", more);
    let objects = copy.kustomize("overlays/sidecar-sqlite").unwrap();
    let pod = &objects
        .iter()
        .find(|object| object["kind"] == "Deployment")
        .unwrap()["spec"]["template"]["spec"];
    let names = |list: &str| -> Vec<String> {
        let items = pod[list].as_array().unwrap().iter();
        let mut names: Vec<String> = items
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("initContainers"), ["migrate", "tikigate"]);
    assert_eq!(names("containers"), ["legacy"]);
    assert_eq!(
        names("volumes"),
        [
            "cache",
            "tikigate-config",
            "tikigate-ledger",
            "tikigate-mark",
            "tikigate-secrets"
        ]
    );
}

/// A copy of the kustomizations, to be changed.
struct Copy(tempfile::TempDir);

impl Copy {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let copied = Command::new("cp")
            .arg("-r")
            .arg(samples::root().join("deploy/kubernetes"))
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(copied.success());
        Self(directory)
    }

    fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.0.path().join("kubernetes").join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    fn kustomize(&self, directory: &str) -> Result<Vec<Value>, String> {
        kustomize(
            self.0
                .path()
                .join("kubernetes")
                .join(directory)
                .to_str()
                .unwrap(),
        )
    }
}
