//! Rules for the gate's container, its pod and its ledger.

use std::time::Duration;

use serde_json::{Value, json};
use tikigate::client::kept_at_most;
use tikigate::config::Settings;

use super::laid::text;
use super::rules::{Faults, Rendering, items};

const MIB: u64 = 1024 * 1024;
const KIB: u64 = 1024;
/// What the gate takes when a drain is out of time.
const LAST_MOMENT: Duration = Duration::from_secs(5);

/// The container by itself.
pub(super) fn container(rendering: &Rendering<'_>, settings: &Settings) -> Vec<String> {
    let mut faults = Faults::default();
    let gate = rendering.gate();
    if rendering.native() {
        faults.unless(
            gate["restartPolicy"] == "Always",
            "restartPolicy: no native sidecar",
        );
    } else {
        faults.unless(
            gate["restartPolicy"].is_null(),
            "restartPolicy: on an ordinary container",
        );
    }
    let image = concat!("tikigate:", env!("CARGO_PKG_VERSION"));
    faults.unless(gate["image"] == image, format!("image: not {image}"));
    faults.unless(gate["args"] == json!(["serve"]), "args: not serve");

    for (probe, path) in [
        ("startupProbe", "/livez"),
        ("livenessProbe", "/livez"),
        ("readinessProbe", "/readyz"),
    ] {
        let get = &gate[probe]["httpGet"];
        faults.unless(get["path"] == path, format!("{probe}: not {path}"));
        faults.unless(
            port(gate, &get["port"]) == Some(9901),
            format!("{probe}: not port 9901"),
        );
    }
    let startup = &gate["startupProbe"];
    let patience = startup["periodSeconds"].as_u64().unwrap_or(10)
        * startup["failureThreshold"].as_u64().unwrap_or(3);
    faults.unless(patience >= 60, "startupProbe: no time for a large ledger");
    faults.unless(port(gate, &json!("http")) == Some(8080), "ports: no http");

    let wanted = json!({
        "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false, "privileged": false, "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    faults.unless(
        gate["securityContext"] == wanted,
        format!("securityContext: {}", gate["securityContext"]),
    );

    let resources = &gate["resources"];
    for wanted in ["/requests/cpu", "/requests/memory", "/limits/memory"] {
        faults.unless(
            !text(resources, wanted).is_empty(),
            format!("resources: no {wanted}"),
        );
    }
    faults.unless(
        resources["limits"]["cpu"].is_null(),
        "resources: a limit of the CPU delays calls",
    );
    let limit = quantity(text(resources, "/limits/memory"));
    let bound = memory_bound(settings, rendering.store() == "sqlite");
    faults.unless(
        limit >= bound,
        format!("resources: {limit} bytes, but the gate may need {bound}"),
    );
    let configuration: toml::Table = rendering.configuration().parse().unwrap();
    faults.unless(
        configuration["server"].get("workers").is_some(),
        "server.workers: every core of the node",
    );

    let command: Vec<&str> = items(gate, "/lifecycle/preStop/exec/command")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match command[..] {
        [
            "/usr/local/bin/tikigate",
            "drain",
            "--no-wait",
            "--token-file",
            token,
        ] => {
            let name = token.strip_prefix("/etc/tikigate/").unwrap_or_default();
            let tokens = configuration["admin"]
                .get("tokens")
                .and_then(toml::Value::as_array);
            let known = tokens.is_some_and(|tokens| {
                tokens
                    .iter()
                    .any(|known| known.get("file").and_then(toml::Value::as_str) == Some(name))
            });
            faults.unless(
                known,
                format!("preStop: the gate knows no token of {token}"),
            );
        }
        _ => faults.0.push(format!("preStop: {command:?}")),
    }
    faults.0
}

/// The pod around it, and how it ends.
pub(super) fn pod(rendering: &Rendering<'_>, settings: &Settings) -> Vec<String> {
    let mut faults = Faults::default();
    let pod = rendering.pod();
    faults.unless(
        pod["securityContext"]["fsGroup"] == 65532,
        "fsGroup: the gate can't use its volumes",
    );
    faults.unless(
        pod["automountServiceAccountToken"] == false,
        "automountServiceAccountToken: of the pod",
    );
    let account = text(pod, "/serviceAccountName");
    let account = rendering.named("ServiceAccount", account);
    faults.unless(
        account.is_some_and(|account| account["automountServiceAccountToken"] == false),
        "automountServiceAccountToken: no ServiceAccount of its own without a token",
    );
    faults.unless(
        rendering.template()["metadata"]["annotations"].is_null(),
        "annotations: a change of the configuration would restart the pod",
    );

    let drain = settings.server.drain_delay + settings.server.drain_within;
    let grace = seconds(&pod["terminationGracePeriodSeconds"]);
    faults.unless(
        grace > drain + LAST_MOMENT,
        format!("terminationGracePeriodSeconds: {grace:?}, and a drain takes {drain:?}"),
    );
    if !rendering.native() {
        faults.unless(
            pod["enableServiceLinks"] == false,
            "enableServiceLinks: variables that begin with TIKIGATE_",
        );
    }
    if rendering.native() {
        for backend in items(pod, "/containers") {
            let sleep = seconds(&backend["lifecycle"]["preStop"]["sleep"]["seconds"]);
            faults.unless(
                sleep >= drain + LAST_MOMENT,
                format!("the backend's preStop: {sleep:?}, and a drain takes {drain:?}"),
            );
            faults.unless(
                // Its own stop, and one more drain of nothing.
                grace
                    >= sleep
                        + Duration::from_secs(30)
                        + settings.server.drain_delay
                        + LAST_MOMENT,
                format!("terminationGracePeriodSeconds: {grace:?} leaves the backend no time after {sleep:?}"),
            );
        }
        faults.unless(!items(pod, "/containers").is_empty(), "there is no backend");
    }
    faults.0
}

/// How many gates there may be, and what the ledger lies on.
pub(super) fn store(rendering: &Rendering<'_>) -> Vec<String> {
    let mut faults = Faults::default();
    let spec = &rendering.deployment()["spec"];
    let replicas = spec["replicas"].as_u64().unwrap_or(1);
    let budgets: Vec<_> = rendering.kind("PodDisruptionBudget").collect();
    let spread = items(rendering.pod(), "/topologySpreadConstraints");
    let configuration: toml::Table = rendering.configuration().parse().unwrap();
    let ledger = &configuration["ledger"];
    faults.unless(
        ledger
            .get("require_existing")
            .and_then(toml::Value::as_bool)
            == Some(true),
        "require_existing: a lost ledger is not noticed",
    );
    if rendering.store() == "postgres" {
        faults.unless(replicas >= 2, "replicas: several gates were meant");
        let strategy = &spec["strategy"];
        faults.unless(
            strategy["type"] == "RollingUpdate",
            "strategy: not RollingUpdate",
        );
        faults.unless(
            strategy["rollingUpdate"]["maxUnavailable"] == 0,
            "strategy: a gate goes before its successor is ready",
        );
        faults.unless(
            budgets.iter().any(|budget| {
                rendering.selected_by(&budget["spec"]["selector"])
                    && budget["spec"]["maxUnavailable"] == 1
            }),
            "PodDisruptionBudget: none for the gates",
        );
        let keys: Vec<&str> = spread
            .iter()
            .filter(|constraint| rendering.selected_by(&constraint["labelSelector"]))
            .map(|constraint| text(constraint, "/topologyKey"))
            .collect();
        faults.unless(
            keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"],
            format!("topologySpreadConstraints: {keys:?}"),
        );
        faults.unless(
            rendering.kind("PersistentVolumeClaim").next().is_none(),
            "PersistentVolumeClaim: for nothing",
        );
        let variable = items(rendering.gate(), "/env")
            .iter()
            .find(|variable| variable["name"] == "DATABASE_URL");
        let wanted = json!({ "secretKeyRef": { "name": "tikigate-database", "key": "url" } });
        faults.unless(
            variable.is_some_and(|variable| variable["valueFrom"] == wanted),
            "DATABASE_URL: not from the Secret",
        );
        faults.unless(
            ledger
                .get("url")
                .and_then(|url| url.get("env"))
                .and_then(toml::Value::as_str)
                == Some("DATABASE_URL"),
            "ledger.url: not from DATABASE_URL",
        );
        return faults.0;
    }
    faults.unless(replicas == 1, "replicas: SQLite has one gate");
    faults.unless(
        spec["strategy"] == json!({ "type": "Recreate" }),
        "strategy: not Recreate",
    );
    faults.unless(
        budgets.is_empty(),
        "PodDisruptionBudget: for one gate it keeps nodes from being emptied",
    );
    faults.unless(spread.is_empty(), "topologySpreadConstraints: of one pod");
    let mut claims = Vec::new();
    for (key, directory) in [
        ("path", "/var/lib/tikigate"),
        ("watermark", "/var/lib/tikigate-mark"),
    ] {
        let path = ledger
            .get(key)
            .and_then(toml::Value::as_str)
            .unwrap_or_default();
        let inside = path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.starts_with('/'));
        faults.unless(
            inside,
            format!("ledger.{key}: {path} is not in {directory}"),
        );
        let volume = rendering.mounted_at(directory).unwrap_or(&Value::Null);
        let claim = text(volume, "/persistentVolumeClaim/claimName");
        let found = rendering
            .named("PersistentVolumeClaim", claim)
            .unwrap_or(&Value::Null);
        faults.unless(
            found["spec"]["accessModes"] == json!(["ReadWriteOncePod"]),
            format!("{directory}: no PersistentVolumeClaim of one pod"),
        );
        claims.push(claim);
    }
    faults.unless(
        claims[0] != claims[1],
        "the watermark lies on the ledger's volume",
    );
    faults.0
}

/// What is mounted where.
pub(super) fn files(rendering: &Rendering<'_>) -> Vec<String> {
    let mut faults = Faults::default();
    for mount in items(rendering.gate(), "/volumeMounts") {
        let path = text(mount, "/mountPath");
        faults.unless(
            mount["subPath"].is_null() && mount["subPathExpr"].is_null(),
            format!("{path}: a subPath is never updated"),
        );
        faults.unless(
            rendering.mounted_at(path).is_some(),
            format!("{path}: no such volume"),
        );
        if path.starts_with("/etc/") {
            faults.unless(mount["readOnly"] == true, format!("{path}: not read-only"));
        }
    }
    let secrets = rendering.mounted_at("/etc/tikigate/secrets");
    faults.unless(
        secrets.is_some_and(|volume| text(volume, "/secret/secretName") == "tikigate-secrets"),
        "/etc/tikigate/secrets: not the Secret",
    );
    faults.unless(
        rendering.secret_mode() == 0o440,
        format!("the secrets' files: mode {:o}", rendering.secret_mode()),
    );
    let map = rendering
        .mounted_at("/etc/tikigate")
        .map(|volume| text(volume, "/configMap/name"));
    faults.unless(
        map.is_some_and(|name| name.ends_with("tikigate")),
        "the ConfigMap: with a hash in its name every change restarts the pod",
    );
    faults.0
}

/// The number of a port, given by number or by name.
fn port(container: &Value, port: &Value) -> Option<u64> {
    port.as_u64().or_else(|| {
        let found = items(container, "/ports")
            .iter()
            .find(|known| known["name"] == *port)?;
        found["containerPort"].as_u64()
    })
}

fn seconds(value: &Value) -> Duration {
    Duration::from_secs(value.as_u64().unwrap_or(0))
}

/// Bytes of a quantity such as `320Mi`.
fn quantity(text: &str) -> u64 {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "Ki" => KIB,
        "Mi" => MIB,
        "Gi" => 1024 * MIB,
        _ => 0,
    };
    digits.parse::<u64>().unwrap_or(0) * unit
}

/// The sum of `docs/operations.md`, "Memory", and what the system holds for sockets.
fn memory_bound(settings: &Settings, sqlite: bool) -> u64 {
    let server = &settings.server;
    let bytes = |count: usize| u64::try_from(count).unwrap();
    let body = settings
        .routes
        .iter()
        .map(|route| bytes(route.body_limit))
        .max()
        .unwrap_or(0);
    let answer = settings
        .routes
        .iter()
        .map(|route| bytes(route.answer_limit))
        .max()
        .unwrap_or(0);
    let calls: u64 = settings
        .upstreams
        .iter()
        .map(|upstream| bytes(upstream.max_in_flight))
        .sum();
    let kept: u64 = settings
        .upstreams
        .iter()
        .map(|upstream| {
            let kept = kept_at_most(upstream.max_in_flight, server.workers);
            bytes(upstream.endpoints.len()) * bytes(kept)
        })
        .sum();
    let workers = bytes(server.workers);
    let head = bytes(server.head_limit).max(16 * KIB);
    let sockets = bytes(server.max_connections) * 8 * KIB;
    12 * MIB
        + bytes(server.max_connections) * (14 * KIB + 2 * head)
        + bytes(server.max_in_flight) * 2 * body
        + calls * (body + answer + 64 * KIB)
        + workers * kept * 64 * KIB
        + bytes(settings.signature.max_remembered)
            * 18
            * if settings.outbound.is_some() { 2 } else { 1 }
        + 12 * MIB
        + (workers + 2) * 2 * MIB
        + if sqlite { 24 * MIB } else { 0 }
        + sockets
}
