//! What `deploy/` has for Kubernetes: rendered by the tools that operators use, checked against
//! Kubernetes' own schemas and against what the gate and its documents say, and tried with the binary.
//!
//! There is no cluster here: what a kubelet does with the manifests is not tested, what they say is.

mod broken;
mod chart;
mod drift;
mod gate;
mod laid;
mod manifests;
mod network;
mod pods;
mod rules;
mod tool;
mod walkthrough;

use std::sync::LazyLock;

use serde_json::{Value, json};

use self::tool::{chart, kustomize};
use crate::support::samples;

/// Where the sidecar's overlay and the one in front keep their configurations.
const SIDECAR: &str = "deploy/kubernetes/overlays/sidecar-sqlite";
const FRONT: &str = "deploy/kubernetes/overlays/front-postgres";
const CHART: &str = "deploy/helm/tikigate";
const EXAMPLE_CHART: &str = "deploy/helm/example";

/// Everything that is rendered, each once.
static SIDECAR_OVERLAY: LazyLock<Vec<Value>> = LazyLock::new(|| kustomize(SIDECAR).unwrap());
static SIDECAR_FIRST: LazyLock<Vec<Value>> =
    LazyLock::new(|| kustomize(&format!("{SIDECAR}-first-start")).unwrap());
static FRONT_OVERLAY: LazyLock<Vec<Value>> = LazyLock::new(|| kustomize(FRONT).unwrap());
static FRONT_FIRST: LazyLock<Vec<Value>> =
    LazyLock::new(|| kustomize(&format!("{FRONT}-first-start")).unwrap());
static SIDECAR_CHART: LazyLock<Vec<Value>> =
    LazyLock::new(|| chart(EXAMPLE_CHART, "legacy", &sidecar_values()).unwrap().0);
static FRONT_CHART: LazyLock<Vec<Value>> =
    LazyLock::new(|| chart(CHART, "tikigate", &front_values()).unwrap().0);

/// Name and objects of all that is to be sound.
fn renderings() -> [(&'static str, &'static [Value]); 6] {
    [
        ("sidecar-sqlite", &SIDECAR_OVERLAY),
        ("sidecar-sqlite-first-start", &SIDECAR_FIRST),
        ("front-postgres", &FRONT_OVERLAY),
        ("front-postgres-first-start", &FRONT_FIRST),
        ("the example chart", &SIDECAR_CHART),
        ("the chart", &FRONT_CHART),
    ]
}

/// An overlay's configuration.
fn configuration(overlay: &str) -> String {
    std::fs::read_to_string(samples::root().join(overlay).join("tikigate.toml")).unwrap()
}

/// The example chart with the configuration of the sidecar's overlay.
fn sidecar_values() -> Value {
    json!({ "tikigate": { "fullnameOverride": "tikigate", "config": configuration(SIDECAR) } })
}

/// The chart, for the same as the overlay in front.
fn front_values() -> Value {
    json!({
        "config": configuration(FRONT),
        "existingSecret": "tikigate-secrets",
        "database": { "existingSecret": "tikigate-database" },
        "replicaCount": 2,
        "networkPolicy": {
            "backend": { "podLabels": {
                "app.kubernetes.io/name": "legacy",
                "app.kubernetes.io/component": "backend",
            } },
            "database": { "podLabels": { "app.kubernetes.io/name": "postgresql" } },
        },
    })
}
