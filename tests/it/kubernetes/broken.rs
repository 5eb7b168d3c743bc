//! Each rule, and the schemas, notice a rendering that breaks them. A line of a table says what is broken:
//! an object's kind and, if need be, its name; a place in it (`GATE` and `POD` stand for those in the
//! Deployment); what is put there, as JSON, `null` taking it away; and a part of what has to be told.

use serde_json::Value;

use super::rules::faults;
use super::tool::validate;
use super::{FRONT_OVERLAY, SIDECAR_OVERLAY};

const SIDECAR: &str = r#"
Deployment | GATE/name | "gate" | 0 containers
Deployment | GATE/restartPolicy | null | restartPolicy
Deployment | GATE/image | "tikigate:latest" | image
Deployment | GATE/args | ["demo"] | args
Deployment | GATE/startupProbe/httpGet/path | "/readyz" | startupProbe
Deployment | GATE/startupProbe/failureThreshold | 3 | startupProbe
Deployment | GATE/livenessProbe/httpGet/path | "/readyz" | livenessProbe
Deployment | GATE/livenessProbe/httpGet/port | "http" | livenessProbe
Deployment | GATE/readinessProbe/httpGet/path | "/livez" | readinessProbe
Deployment | GATE/readinessProbe/httpGet/port | 8080 | readinessProbe
Deployment | GATE/ports/0/containerPort | 8081 | ports
Deployment | GATE/ports/1/name | "metrics" | PodMonitor: the gate has no port
Deployment | GATE/lifecycle/preStop/exec/command/1 | "probe" | preStop
Deployment | GATE/lifecycle/preStop/exec/command/4 | "/etc/tikigate/secrets/other" | no token
Deployment | GATE/lifecycle | null | preStop
Deployment | GATE/securityContext/runAsNonRoot | false | securityContext
Deployment | GATE/securityContext/runAsUser | 0 | securityContext
Deployment | GATE/securityContext/readOnlyRootFilesystem | null | securityContext
Deployment | GATE/securityContext/allowPrivilegeEscalation | true | securityContext
Deployment | GATE/securityContext/capabilities/add | ["NET_ADMIN"] | securityContext
Deployment | GATE/securityContext/seccompProfile/type | "Unconfined" | securityContext
Deployment | GATE/resources/requests/cpu | null | requests/cpu
Deployment | GATE/resources/limits/cpu | "1" | limit of the CPU
Deployment | GATE/resources/limits/memory | "160Mi" | the gate may need
Deployment | GATE/volumeMounts/0/subPath | "tikigate.toml" | subPath
Deployment | GATE/volumeMounts/1/readOnly | null | not read-only
Deployment | GATE/volumeMounts/2/name | "elsewhere" | no such volume
Deployment | POD/volumes/1/secret/defaultMode | 292 | mode 444
Deployment | POD/volumes/1/secret/secretName | "other" | not the Secret
Deployment | POD/volumes/0/configMap/name | "tikigate-5t9h2" | configuration
Deployment | POD/volumes/2 | { "name": "tikigate-ledger", "emptyDir": {} } | no PersistentVolumeClaim
Deployment | POD/volumes/3/persistentVolumeClaim/claimName | "tikigate-ledger" | watermark lies
Deployment | POD/securityContext/fsGroup | null | fsGroup
Deployment | POD/automountServiceAccountToken | true | of the pod
Deployment | POD/serviceAccountName | "default" | no ServiceAccount
Deployment | POD/terminationGracePeriodSeconds | 85 | terminationGracePeriodSeconds
Deployment | POD/terminationGracePeriodSeconds | 124 | leaves the backend no time
Deployment | POD/containers/0/lifecycle/preStop/sleep/seconds | 84 | the backend's preStop
Deployment | POD/containers/0/lifecycle | null | the backend's preStop
Deployment | POD/containers | [] | no backend
Deployment | POD/topologySpreadConstraints | [{}] | topologySpreadConstraints
Deployment | /spec/template/metadata/annotations | { "checksum/config": "1" } | restart the pod
Deployment | /spec/template/metadata/labels/tikigate | null | PodMonitor: none
Deployment | /spec/replicas | 2 | replicas
Deployment | /spec/strategy/type | "RollingUpdate" | strategy
Deployment | /metadata/labels | null | no label
Deployment | /metadata/namespace | "default" | namespace
ServiceAccount | /automountServiceAccountToken | true | no ServiceAccount
ServiceAccount | /kind | "Secret" | a Secret is in the repository
PersistentVolumeClaim | /spec/accessModes | ["ReadWriteMany"] | of one pod
PersistentVolumeClaim | /kind | "PodDisruptionBudget" | for one gate
Service | /spec/ports/0/targetPort | 9000 | leads to 9000
Service | /spec/selector | { "app": "other" } | Service: none
PodMonitor | /spec/podMetricsEndpoints/0/path | "/" | /metrics
PodMonitor | /spec/podMetricsEndpoints/0/port | "http" | no port
PodMonitor | /spec/selector/matchLabels/tikigate | "front" | none finds
NetworkPolicy tikigate-ingress | /spec/ingress | [{ "ports": [{ "port": 8080, "protocol": "TCP" }] }] | lets in
NetworkPolicy tikigate-ingress | /spec/ingress/0/ports/1 | { "port": 9000, "protocol": "TCP" } | lets in
NetworkPolicy tikigate-ingress | /spec/ingress/1/from/0 | { "namespaceSelector": {} } | lets in
NetworkPolicy tikigate-ingress | /spec/podSelector | {} | lets in
NetworkPolicy tikigate-egress | /spec/egress/0/ports/0/protocol | "SCTP" | no names by UDP
NetworkPolicy tikigate-egress | /spec/egress | [{ "to": [{ "ipBlock": { "cidr": "0.0.0.0/0" } }] }] | of the internet
NetworkPolicy tikigate-egress | /spec/egress/1/to/0/ipBlock/except | ["10.0.0.0/8"] | no way to Tiki
NetworkPolicy tikigate-egress | /spec/egress/2/to | null | of anybody
"#;

const FRONT: &str = r#"
Deployment | /spec/replicas | 1 | replicas
Deployment | /spec/strategy/type | "Recreate" | strategy
Deployment | /spec/strategy/rollingUpdate/maxUnavailable | 1 | strategy
Deployment | POD/topologySpreadConstraints/0/topologyKey | "other" | topologySpread
Deployment | POD/terminationGracePeriodSeconds | 85 | terminationGrace
Deployment | POD/enableServiceLinks | null | enableServiceLinks
Deployment | GATE/env/0/valueFrom | null | DATABASE_URL
Deployment | GATE/restartPolicy | "Always" | restartPolicy
Deployment | GATE/securityContext/runAsUser | 1000 | securityContext
PodDisruptionBudget | /spec/maxUnavailable | 2 | PodDisruptionBudget
PodDisruptionBudget | /spec/selector/matchLabels | { "app": "x" } | PodDisruptionBudget
PodDisruptionBudget | /kind | "PersistentVolumeClaim" | PersistentVolumeClaim
NetworkPolicy tikigate | /spec/egress/1/ports/0/port | 5433 | PostgreSQL
NetworkPolicy tikigate | /spec/egress/2/ports/0/port | 9001 | no way to the backend
NetworkPolicy tikigate-backend | /spec/ingress | [{ "ports": [{ "port": 9000, "protocol": "TCP" }] }] | the backend lets in
NetworkPolicy tikigate-backend | /spec/podSelector/matchLabels | { "app": "other" } | the backend lets in
NetworkPolicy tikigate-backend | /spec/ingress/0/from/0/podSelector/matchLabels | { "app": "other" } | the backend lets in
"#;

const SCHEMAS: &str = r#"
Deployment | GATE/livenessprobe | {} | livenessprobe
Deployment | GATE/lifecycle/preStop/sleep | { "second": 1 } | second
Deployment | /spec/replicas | "one" | one
NetworkPolicy | /spec/policyTypes | "Ingress" | policyTypes
PersistentVolumeClaim | /spec/accessModes | "ReadWriteOnce" | accessModes
PodMonitor | /spec/podMetricsEndpoints/0/intervall | "15s" | intervall
PodMonitor | /spec/podMetricsEndpoints/0/interval | "often" | often
PodMonitor | /spec/selector | null | selector
"#;

/// What is replaced in the configuration, by what, and a part of what has to be told.
const SIDECAR_CONFIGURATION: &str = r#"
workers = 2 | | every core
max_connections = 2000 | max_connections = 4000 | the gate may need
max_remembered = 200000 | max_remembered = 9000000 | the gate may need
drain_within = "75s" | drain_within = "125s" | terminationGracePeriodSeconds
drain_delay = "5s" | drain_delay = "9s" | the backend's preStop
require_existing = true | require_existing = false | require_existing
"/var/lib/tikigate/ | "/tmp/ | ledger.path
"/var/lib/tikigate-mark/ | "/var/lib/tikigate/ | ledger.watermark
http://127.0.0.1:9000 | http://legacy:9000 | loopback
admin.token | other.token | no token
[ledger] | [lodger] | did you mean `ledger`
"#;

const FRONT_CONFIGURATION: &str = r#"
require_existing = true | | require_existing
{ env = "DATABASE_URL" } | { file = "secrets/url" } | the configuration
"#;

#[test]
fn each_rule_notices_what_breaks_it() {
    for (table, sound, list) in [
        (SIDECAR, &*SIDECAR_OVERLAY, "initContainers"),
        (FRONT, &*FRONT_OVERLAY, "containers"),
    ] {
        for (line, objects, told) in broken(table, sound, list) {
            assert_told(&faults(&objects), &told, line);
        }
    }
}

#[test]
fn the_schemas_notice_what_breaks_them() {
    for (line, objects, told) in broken(SCHEMAS, &SIDECAR_OVERLAY, "initContainers") {
        let found = validate(&objects, &["1.37"]);
        assert_eq!(found.len(), 1, "{line}: {found:?}");
        assert_told(&found, &told, line);
    }
    let unknown = validate(&[], &["1.99"]);
    assert_eq!(unknown, ["there are no schemas of Kubernetes 1.99"]);
}

#[test]
fn each_rule_notices_a_configuration_that_breaks_it() {
    for (table, sound) in [
        (SIDECAR_CONFIGURATION, &*SIDECAR_OVERLAY),
        (FRONT_CONFIGURATION, &*FRONT_OVERLAY),
    ] {
        for line in table.trim().lines() {
            let [from, to, told] = cells(line);
            let mut objects = sound.clone();
            let map = place(&mut objects, "ConfigMap", "/data");
            let text = map["tikigate.toml"].as_str().unwrap();
            assert!(text.contains(from), "{from} is not in the configuration");
            map["tikigate.toml"] = text.replace(from, to).into();
            assert_told(&faults(&objects), told, line);
        }
    }
}

#[track_caller]
fn assert_told(found: &[String], told: &str, line: &str) {
    assert!(
        found.iter().any(|fault| fault.contains(told)),
        "{line}: {found:?}"
    );
}

fn cells<const COUNT: usize>(line: &str) -> [&str; COUNT] {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    cells
        .try_into()
        .unwrap_or_else(|_| panic!("not {COUNT} cells: {line}"))
}

/// Each line of a table, the objects with what it breaks, and what has to be told.
fn broken<'t>(table: &'t str, sound: &[Value], list: &str) -> Vec<(&'t str, Vec<Value>, String)> {
    let lines = table.trim().lines();
    lines
        .map(|line| {
            let [object, pointer, value, told] = cells(line);
            let pod = "/spec/template/spec";
            let pointer = pointer
                .replace("GATE", &format!("{pod}/{list}/0"))
                .replace("POD", pod);
            let mut objects = sound.to_vec();
            put(
                &mut objects,
                object,
                &pointer,
                serde_json::from_str(value).unwrap(),
            );
            (line, objects, told.to_owned())
        })
        .collect()
}

/// A place in the first object of this kind, or of this kind and name.
fn place<'o>(objects: &'o mut [Value], object: &str, pointer: &str) -> &'o mut Value {
    let (kind, name) = object.split_once(' ').unwrap_or((object, ""));
    let found = objects.iter_mut().find(|object| {
        object["kind"] == kind && (name.is_empty() || object["metadata"]["name"] == name)
    });
    let found = found.unwrap_or_else(|| panic!("there is no {object}"));
    found
        .pointer_mut(pointer)
        .unwrap_or_else(|| panic!("{object} has no {pointer}"))
}

fn put(objects: &mut [Value], object: &str, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match place(objects, object, parent) {
        Value::Array(items) => {
            let index: usize = key.parse().unwrap();
            if index == items.len() {
                items.push(value);
            } else {
                items[index] = value;
            }
        }
        Value::Object(fields) if value.is_null() => {
            let taken = fields.remove(key);
            assert!(taken.is_some(), "{object} has no {pointer} to take away");
        }
        Value::Object(fields) => {
            fields.insert(key.to_owned(), value);
        }
        other => panic!("{object}: {parent} is {other}"),
    }
}
