//! The ways to the same pod say the same: kustomize's component, the chart as a dependency, the Deployment
//! in front and the chart alone.

use serde_json::{Value, json};

use super::rules::Rendering;
use super::{FRONT_CHART, FRONT_OVERLAY, SIDECAR_CHART, SIDECAR_OVERLAY};

#[test]
fn the_sidecar_is_the_same_by_kustomize_and_by_the_chart() {
    let by_kustomize = Rendering::new(&SIDECAR_OVERLAY).unwrap();
    let by_chart = Rendering::new(&SIDECAR_CHART).unwrap();
    assert_eq!(by_kustomize.gate(), by_chart.gate());
    assert_eq!(pod(&by_kustomize), pod(&by_chart));
    assert_eq!(outside(&by_kustomize), outside(&by_chart));
}

#[test]
fn gates_in_front_are_the_same_by_kustomize_and_by_the_chart() {
    let by_kustomize = Rendering::new(&FRONT_OVERLAY).unwrap();
    let by_chart = Rendering::new(&FRONT_CHART).unwrap();
    assert_eq!(by_kustomize.gate(), by_chart.gate());
    assert_eq!(pod(&by_kustomize), pod(&by_chart));
    assert_eq!(outside(&by_kustomize), outside(&by_chart));
}

#[test]
fn a_sidecar_and_a_gate_in_front_differ_in_what_the_place_asks_for() {
    let mut sidecar = Rendering::new(&SIDECAR_OVERLAY).unwrap().gate().clone();
    let mut front = Rendering::new(&FRONT_OVERLAY).unwrap().gate().clone();
    assert_eq!(take(&mut sidecar, "restartPolicy"), "Always");
    assert_eq!(take(&mut front, "env")[0]["name"], "DATABASE_URL");
    let mounts = sidecar["volumeMounts"].as_array_mut().unwrap();
    assert_eq!(mounts.split_off(2).len(), 2);
    assert_eq!(sidecar, front);
}

fn take(container: &mut Value, key: &str) -> Value {
    container.as_object_mut().unwrap().remove(key).unwrap()
}

/// The pod's own fields, and what the Deployment says of it.
fn pod(rendering: &Rendering<'_>) -> Value {
    let pod = rendering.pod();
    let spec = &rendering.deployment()["spec"];
    let backends: Vec<_> = pod["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|backend| &backend["lifecycle"])
        .collect();
    json!({
        "replicas": spec["replicas"],
        "strategy": spec["strategy"],
        "grace": pod["terminationGracePeriodSeconds"],
        "security": pod["securityContext"],
        "token": pod["automountServiceAccountToken"],
        "volumes": pod["volumes"],
        "links": pod["enableServiceLinks"],
        "hooks": backends,
        "spread": unselected(&pod["topologySpreadConstraints"]),
    })
}

/// The objects around it, without names and selectors, which follow each tool's own custom.
fn outside(rendering: &Rendering<'_>) -> Value {
    let of = |kind: &str| -> Vec<Value> {
        rendering
            .kind(kind)
            .map(|object| unselected(&object["spec"]))
            .collect()
    };
    let mut rules: Vec<Value> = Vec::new();
    for policy in of("NetworkPolicy") {
        for way in ["ingress", "egress"] {
            let items = policy[way].as_array().cloned().unwrap_or_default();
            rules.extend(items.into_iter().map(|rule| json!({ way: rule })));
        }
    }
    rules.sort_by_key(ToString::to_string);
    json!({
        "claims": of("PersistentVolumeClaim"),
        "services": of("Service"),
        "monitors": of("PodMonitor"),
        "budgets": of("PodDisruptionBudget"),
        "configuration": rendering.configuration().trim(),
        "rules": rules,
    })
}

/// Without the gate's own labels in selectors.
fn unselected(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(unselected).collect(),
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(key, _)| {
                !matches!(
                    key.as_str(),
                    "app.kubernetes.io/instance" | "tikigate-release"
                )
            });
            kept.map(|(key, field)| (key.clone(), unselected(field)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        }
        other => other.clone(),
    }
}
