//! The kustomizations and the chart keep to the rules and to the schemas; and each rule notices when it is
//! broken.

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
fn the_schemas_are_strict() {
    let broken: Vec<(fn(&mut Vec<Value>), &str)> = vec![
        (
            |o| {
                set(
                    o,
                    "Deployment",
                    "/spec/template/spec/initContainers/0/livenessprobe",
                    json!({}),
                )
            },
            "livenessprobe",
        ),
        (
            |o| set(o, "Deployment", "/spec/replicas", "one".into()),
            "one",
        ),
        (
            |o| set(o, "NetworkPolicy", "/spec/policyTypes", "Ingress".into()),
            "policyTypes",
        ),
        (
            |o| {
                set(
                    o,
                    "PodMonitor",
                    "/spec/podMetricsEndpoints/0/intervall",
                    "15s".into(),
                )
            },
            "intervall",
        ),
        (
            |o| {
                set(
                    o,
                    "PodMonitor",
                    "/spec/podMetricsEndpoints/0/interval",
                    "often".into(),
                )
            },
            "often",
        ),
        (|o| remove(o, "PodMonitor", "/spec/selector"), "selector"),
    ];
    for (index, (break_it, told)) in broken.iter().enumerate() {
        let mut objects = SIDECAR_OVERLAY.clone();
        break_it(&mut objects);
        let found = validate(&objects, &["1.37"]);
        assert_eq!(found.len(), 1, "{index}: {found:?}");
        assert!(found[0].contains(told), "{found:?} without {told}");
    }
    let unknown = validate(&[], &["1.99"]);
    assert_eq!(unknown, ["there are no schemas of Kubernetes 1.99"]);
}

#[test]
fn each_rule_notices_a_sidecar_that_breaks_it() {
    const GATE: &str = "/spec/template/spec/initContainers/0";
    const POD: &str = "/spec/template/spec";
    let gate = |rest: &str| format!("{GATE}{rest}");
    let pod = |rest: &str| format!("{POD}{rest}");
    let deployment: Vec<(String, Value, &str)> = vec![
        (gate("/name"), "gate".into(), "0 containers"),
        (gate("/restartPolicy"), Value::Null, "restartPolicy"),
        (gate("/image"), "tikigate:latest".into(), "image"),
        (gate("/args"), json!(["demo"]), "args"),
        (
            gate("/startupProbe/httpGet/path"),
            "/readyz".into(),
            "startupProbe",
        ),
        (
            gate("/startupProbe/failureThreshold"),
            3.into(),
            "startupProbe",
        ),
        (
            gate("/livenessProbe/httpGet/path"),
            "/readyz".into(),
            "livenessProbe",
        ),
        (
            gate("/livenessProbe/httpGet/port"),
            "http".into(),
            "livenessProbe",
        ),
        (
            gate("/readinessProbe/httpGet/path"),
            "/livez".into(),
            "readinessProbe",
        ),
        (
            gate("/readinessProbe/httpGet/port"),
            8080.into(),
            "readinessProbe",
        ),
        (gate("/ports/0/containerPort"), 8081.into(), "ports"),
        (
            gate("/ports/1/name"),
            "metrics".into(),
            "PodMonitor: the gate has no port",
        ),
        (
            gate("/lifecycle/preStop/exec/command/1"),
            "probe".into(),
            "preStop",
        ),
        (
            gate("/lifecycle/preStop/exec/command/4"),
            "/etc/tikigate/secrets/other".into(),
            "no token",
        ),
        (gate("/lifecycle"), Value::Null, "preStop"),
        (
            gate("/securityContext/runAsNonRoot"),
            false.into(),
            "securityContext",
        ),
        (
            gate("/securityContext/runAsUser"),
            0.into(),
            "securityContext",
        ),
        (
            gate("/securityContext/readOnlyRootFilesystem"),
            Value::Null,
            "securityContext",
        ),
        (
            gate("/securityContext/allowPrivilegeEscalation"),
            true.into(),
            "securityContext",
        ),
        (
            gate("/securityContext/capabilities/add"),
            json!(["NET_ADMIN"]),
            "securityContext",
        ),
        (
            gate("/securityContext/seccompProfile/type"),
            "Unconfined".into(),
            "securityContext",
        ),
        (gate("/resources/requests/cpu"), Value::Null, "requests/cpu"),
        (
            gate("/resources/limits/cpu"),
            "1".into(),
            "limit of the CPU",
        ),
        (
            gate("/resources/limits/memory"),
            "256Mi".into(),
            "the gate may need",
        ),
        (
            gate("/volumeMounts/0/subPath"),
            "tikigate.toml".into(),
            "subPath",
        ),
        (
            gate("/volumeMounts/1/readOnly"),
            Value::Null,
            "not read-only",
        ),
        (
            gate("/volumeMounts/2/name"),
            "elsewhere".into(),
            "no such volume",
        ),
        (
            pod("/volumes/1/secret/defaultMode"),
            0o444.into(),
            "mode 444",
        ),
        (
            pod("/volumes/1/secret/secretName"),
            "other".into(),
            "not the Secret",
        ),
        (
            pod("/volumes/0/configMap/name"),
            "tikigate-5t9h2".into(),
            "configuration",
        ),
        (
            pod("/volumes/2"),
            json!({ "name": "tikigate-ledger", "emptyDir": {} }),
            "no PersistentVolumeClaim",
        ),
        (
            pod("/volumes/3/persistentVolumeClaim/claimName"),
            "tikigate-ledger".into(),
            "watermark lies",
        ),
        (pod("/securityContext/fsGroup"), Value::Null, "fsGroup"),
        (
            pod("/automountServiceAccountToken"),
            true.into(),
            "of the pod",
        ),
        (
            pod("/serviceAccountName"),
            "default".into(),
            "no ServiceAccount",
        ),
        (
            pod("/terminationGracePeriodSeconds"),
            85.into(),
            "terminationGracePeriodSeconds",
        ),
        (
            pod("/terminationGracePeriodSeconds"),
            110.into(),
            "leaves the backend no time",
        ),
        (
            pod("/containers/0/lifecycle/preStop/sleep/seconds"),
            84.into(),
            "the backend's preStop",
        ),
        (
            pod("/containers/0/lifecycle"),
            Value::Null,
            "the backend's preStop",
        ),
        (
            pod("/topologySpreadConstraints"),
            json!([{}]),
            "topologySpreadConstraints",
        ),
        (
            "/spec/template/metadata/annotations".into(),
            json!({ "checksum/config": "1" }),
            "restart the pod",
        ),
        (
            "/spec/template/metadata/labels/tikigate".into(),
            Value::Null,
            "PodMonitor: none",
        ),
        ("/spec/replicas".into(), 2.into(), "replicas"),
        (
            "/spec/strategy/type".into(),
            "RollingUpdate".into(),
            "strategy",
        ),
        ("/metadata/labels".into(), Value::Null, "no label"),
        ("/metadata/namespace".into(), "default".into(), "namespace"),
    ];
    for (pointer, value, told) in deployment {
        let mut objects = SIDECAR_OVERLAY.clone();
        set(&mut objects, "Deployment", &pointer, value);
        assert_told(&objects, told, &pointer);
    }
    let others: Vec<(&str, &str, Value, &str)> = vec![
        (
            "ServiceAccount",
            "/automountServiceAccountToken",
            true.into(),
            "no ServiceAccount",
        ),
        (
            "PersistentVolumeClaim",
            "/spec/accessModes",
            json!(["ReadWriteMany"]),
            "of one pod",
        ),
        (
            "Service",
            "/spec/ports/0/targetPort",
            9000.into(),
            "leads to 9000",
        ),
        (
            "Service",
            "/spec/selector",
            json!({ "app": "other" }),
            "Service: none",
        ),
        (
            "PodMonitor",
            "/spec/podMetricsEndpoints/0/path",
            "/".into(),
            "/metrics",
        ),
        (
            "PodMonitor",
            "/spec/podMetricsEndpoints/0/port",
            "http".into(),
            "no port",
        ),
        (
            "PodMonitor",
            "/spec/selector/matchLabels/tikigate",
            "front".into(),
            "none finds",
        ),
    ];
    for (kind, pointer, value, told) in others {
        let mut objects = SIDECAR_OVERLAY.clone();
        set(&mut objects, kind, pointer, value);
        assert_told(&objects, told, pointer);
    }
    let mut objects = SIDECAR_OVERLAY.clone();
    objects.push(json!({ "kind": "Secret", "metadata": { "name": "tikigate-secrets" } }));
    assert_told(&objects, "a Secret is in the repository", "a Secret");
}

#[test]
fn each_rule_notices_a_policy_that_breaks_it() {
    let everybody = json!([{ "ports": [{ "port": 8080, "protocol": "TCP" }] }]);
    let anywhere = json!([{ "to": [{ "ipBlock": { "cidr": "0.0.0.0/0" } }] }]);
    let broken: Vec<(&[Value], &str, &str, Value, &str)> = vec![
        (
            &SIDECAR_OVERLAY,
            "tikigate-ingress",
            "/spec/ingress",
            everybody.clone(),
            "lets in",
        ),
        (
            &SIDECAR_OVERLAY,
            "tikigate-ingress",
            "/spec/ingress/0/ports/1",
            json!({ "port": 9000, "protocol": "TCP" }),
            "lets in",
        ),
        (
            &SIDECAR_OVERLAY,
            "tikigate-ingress",
            "/spec/ingress/1/from/0",
            json!({ "namespaceSelector": {} }),
            "lets in",
        ),
        (
            &SIDECAR_OVERLAY,
            "tikigate-ingress",
            "/spec/podSelector",
            json!({}),
            "lets in",
        ),
        (
            &SIDECAR_OVERLAY,
            "tikigate-egress",
            "/spec/egress/0/ports/0/protocol",
            "SCTP".into(),
            "no names by UDP",
        ),
        (
            &SIDECAR_OVERLAY,
            "tikigate-egress",
            "/spec/egress",
            anywhere,
            "of the internet",
        ),
        (
            &SIDECAR_OVERLAY,
            "tikigate-egress",
            "/spec/egress/1/to/0/ipBlock/except",
            json!(["10.0.0.0/8"]),
            "no way to Tiki",
        ),
        (
            &SIDECAR_OVERLAY,
            "tikigate-egress",
            "/spec/egress/2/to",
            Value::Null,
            "of anybody",
        ),
        (
            &FRONT_OVERLAY,
            "tikigate",
            "/spec/egress/1/ports/0/port",
            5433.into(),
            "PostgreSQL",
        ),
        (
            &FRONT_OVERLAY,
            "tikigate",
            "/spec/egress/2/ports/0/port",
            9001.into(),
            "no way to the backend",
        ),
        (
            &FRONT_OVERLAY,
            "tikigate-backend",
            "/spec/ingress",
            everybody,
            "the backend lets in",
        ),
        (
            &FRONT_OVERLAY,
            "tikigate-backend",
            "/spec/podSelector/matchLabels",
            json!({ "app": "other" }),
            "the backend lets in",
        ),
        (
            &FRONT_OVERLAY,
            "tikigate-backend",
            "/spec/ingress/0/from/0/podSelector/matchLabels",
            json!({ "app": "other" }),
            "the backend lets in",
        ),
    ];
    for (sound, name, pointer, value, told) in broken {
        let mut objects = sound.to_vec();
        let policy = objects
            .iter_mut()
            .find(|object| object["kind"] == "NetworkPolicy" && object["metadata"]["name"] == name);
        put(policy.unwrap(), pointer, value);
        assert_told(&objects, told, &format!("{name}{pointer}"));
    }
}

#[test]
fn each_rule_notices_gates_in_front_that_break_it() {
    const GATE: &str = "/spec/template/spec/containers/0";
    let broken: Vec<(&str, String, Value, &str)> = vec![
        ("Deployment", "/spec/replicas".into(), 1.into(), "replicas"),
        (
            "Deployment",
            "/spec/strategy/type".into(),
            "Recreate".into(),
            "strategy",
        ),
        (
            "Deployment",
            "/spec/strategy/rollingUpdate/maxUnavailable".into(),
            1.into(),
            "strategy",
        ),
        (
            "Deployment",
            "/spec/template/spec/topologySpreadConstraints/0/topologyKey".into(),
            "other".into(),
            "topologySpread",
        ),
        (
            "Deployment",
            "/spec/template/spec/terminationGracePeriodSeconds".into(),
            85.into(),
            "terminationGrace",
        ),
        (
            "Deployment",
            format!("{GATE}/env/0/valueFrom"),
            Value::Null,
            "DATABASE_URL",
        ),
        (
            "Deployment",
            format!("{GATE}/restartPolicy"),
            "Always".into(),
            "restartPolicy",
        ),
        (
            "Deployment",
            format!("{GATE}/securityContext/runAsUser"),
            1000.into(),
            "securityContext",
        ),
        (
            "PodDisruptionBudget",
            "/spec/maxUnavailable".into(),
            2.into(),
            "PodDisruptionBudget",
        ),
        (
            "PodDisruptionBudget",
            "/spec/selector/matchLabels".into(),
            json!({ "app": "x" }),
            "PodDisruptionBudget",
        ),
        (
            "PodDisruptionBudget",
            "/kind".into(),
            "PersistentVolumeClaim".into(),
            "PersistentVolumeClaim",
        ),
    ];
    for (kind, pointer, value, told) in broken {
        let mut objects = FRONT_OVERLAY.clone();
        set(&mut objects, kind, &pointer, value);
        assert_told(&objects, told, &pointer);
    }
}

#[test]
fn each_rule_notices_a_configuration_that_breaks_it() {
    let broken: Vec<(&[Value], &str, &str, &str)> = vec![
        (&SIDECAR_OVERLAY, "workers = 2\n", "", "every core"),
        (
            &SIDECAR_OVERLAY,
            "max_connections = 2000",
            "max_connections = 4000",
            "the gate may need",
        ),
        (
            &SIDECAR_OVERLAY,
            "max_remembered = 200000",
            "max_remembered = 900000",
            "the gate may need",
        ),
        (
            &SIDECAR_OVERLAY,
            "drain_within = \"75s\"",
            "drain_within = \"125s\"",
            "terminationGracePeriodSeconds",
        ),
        (
            &SIDECAR_OVERLAY,
            "drain_delay = \"5s\"",
            "drain_delay = \"9s\"",
            "the backend's preStop",
        ),
        (
            &SIDECAR_OVERLAY,
            "require_existing = true",
            "require_existing = false",
            "require_existing",
        ),
        (
            &SIDECAR_OVERLAY,
            "\"/var/lib/tikigate/",
            "\"/tmp/",
            "ledger.path",
        ),
        (
            &SIDECAR_OVERLAY,
            "\"/var/lib/tikigate-mark/",
            "\"/var/lib/tikigate/",
            "ledger.watermark",
        ),
        (
            &SIDECAR_OVERLAY,
            "http://127.0.0.1:9000",
            "http://legacy:9000",
            "loopback",
        ),
        (&SIDECAR_OVERLAY, "admin.token", "other.token", "no token"),
        (
            &SIDECAR_OVERLAY,
            "[ledger]",
            "[lodger]",
            "did you mean `ledger`",
        ),
        (
            &FRONT_OVERLAY,
            "require_existing = true",
            "",
            "require_existing",
        ),
        (
            &FRONT_OVERLAY,
            "{ env = \"DATABASE_URL\" }",
            "{ file = \"secrets/url\" }",
            "the configuration",
        ),
    ];
    for (sound, from, to, told) in broken {
        let mut objects = sound.to_vec();
        let map = objects
            .iter_mut()
            .find(|object| object["kind"] == "ConfigMap")
            .unwrap();
        let text = map["data"]["tikigate.toml"].as_str().unwrap();
        assert!(text.contains(from), "{from} is not in the configuration");
        map["data"]["tikigate.toml"] = text.replace(from, to).into();
        assert_told(&objects, told, from);
    }
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

#[track_caller]
fn assert_told(objects: &[Value], told: &str, what: &str) {
    let found = faults(objects);
    assert!(
        found.iter().any(|fault| fault.contains(told)),
        "{what} should have been told of by {told:?}: {found:?}"
    );
}

/// Sets what is at the pointer in the first object of the kind; null takes it away.
fn set(objects: &mut [Value], kind: &str, pointer: &str, value: Value) {
    let object = objects.iter_mut().find(|object| object["kind"] == kind);
    put(
        object.unwrap_or_else(|| panic!("no {kind}")),
        pointer,
        value,
    );
}

fn remove(objects: &mut Vec<Value>, kind: &str, pointer: &str) {
    set(objects, kind, pointer, Value::Null);
}

fn put(object: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    // `~1` is how a pointer writes a slash in a key; none of the keys here has one.
    let place = object
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("there is no {parent}"));
    match place {
        Value::Array(items) => {
            let index: usize = key.parse().unwrap();
            if index == items.len() {
                items.push(value);
            } else {
                items[index] = value;
            }
        }
        Value::Object(fields) if value.is_null() => {
            assert!(
                fields.remove(key).is_some(),
                "there is no {pointer} to take away"
            );
        }
        Value::Object(fields) => {
            fields.insert(key.to_owned(), value);
        }
        other => panic!("{parent} is {other}"),
    }
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
