//! Rules for who reaches the gate and what it reaches.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::laid::text;
use super::rules::{Faults, Rendering, items};

/// Networks that are not Tiki's: private ones, and the cloud's metadata.
const NOT_TIKI: [&str; 5] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
];

/// The Service that Tiki's calls come to.
pub(super) fn service(rendering: &Rendering<'_>) -> Vec<String> {
    let mut faults = Faults::default();
    let labels = &rendering.template()["metadata"]["labels"];
    let mut leading = 0;
    for service in rendering.kind("Service") {
        let selector = service["spec"]["selector"].as_object();
        let ours = selector.is_some_and(|selector| {
            !selector.is_empty() && selector.iter().all(|(key, value)| labels[key] == *value)
        });
        if !ours {
            continue;
        }
        for port in items(service, "/spec/ports") {
            leading += 1;
            faults.unless(
                port["targetPort"] == 8080,
                format!(
                    "Service: leads to {} instead of the gate",
                    port["targetPort"]
                ),
            );
        }
    }
    faults.unless(leading > 0, "Service: none leads to the gate's pods");
    faults.0
}

/// One thing that a policy allows: the other side, the port and the protocol.
type Allowed = (Value, u64, String);

/// The network policies.
pub(super) fn policies(rendering: &Rendering<'_>) -> Vec<String> {
    let mut faults = Faults::default();
    let namespace = |name: &str| json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": name } } });
    let wanted = [
        (namespace("ingress-nginx"), 8080, "TCP".to_owned()),
        (namespace("monitoring"), 9901, "TCP".to_owned()),
    ];
    let ours = |policy: &&Value| rendering.selected_by(&policy["spec"]["podSelector"]);
    let into = allowed(
        rendering.kind("NetworkPolicy").filter(ours),
        "Ingress",
        "from",
    );
    faults.unless(into == wanted, format!("NetworkPolicy: lets in {into:?}"));

    let out = allowed(rendering.kind("NetworkPolicy").filter(ours), "Egress", "to");
    let ports: BTreeSet<u64> = out.iter().map(|(_, port, _)| *port).collect();
    let mut dns = namespace("kube-system");
    dns["podSelector"] = json!({ "matchLabels": { "k8s-app": "kube-dns" } });
    for protocol in ["UDP", "TCP"] {
        faults.unless(
            out.contains(&(dns.clone(), 53, protocol.to_owned())),
            format!("NetworkPolicy: no names by {protocol}"),
        );
    }
    let tiki = json!({ "ipBlock": { "cidr": "0.0.0.0/0", "except": NOT_TIKI } });
    faults.unless(
        out.contains(&(tiki, 443, "TCP".to_owned())),
        "NetworkPolicy: no way to Tiki",
    );
    for (to, port, _) in &out {
        let anybody =
            to.is_null() || to["podSelector"] == json!({}) || to["namespaceSelector"] == json!({});
        faults.unless(!anybody, format!("NetworkPolicy: port {port} of anybody"));
        if to["ipBlock"]["cidr"] == "0.0.0.0/0" {
            faults.unless(
                *port == 443,
                format!("NetworkPolicy: port {port} of the internet"),
            );
        }
    }

    let upstream = upstream(rendering);
    if rendering.native() {
        faults.unless(
            upstream.starts_with("http://127.0.0.1:"),
            "the backend: not on the loopback",
        );
        return faults.0;
    }
    let backend_port: u64 = upstream
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse().ok())
        .unwrap_or(80);
    faults.unless(
        ports.contains(&backend_port),
        "NetworkPolicy: no way to the backend",
    );
    if rendering.store() == "postgres" {
        faults.unless(ports.contains(&5432), "NetworkPolicy: no way to PostgreSQL");
    }
    // The gate may call pods at that port, and those pods let nobody else in.
    let backends: Vec<&Value> = out
        .iter()
        .filter(|(_, port, _)| *port == backend_port)
        .map(|(to, _, _)| to)
        .collect();
    let closed = rendering.kind("NetworkPolicy").filter(|policy| {
        backends
            .iter()
            .any(|backend| policy["spec"]["podSelector"] == backend["podSelector"])
    });
    let callers = allowed(closed, "Ingress", "from");
    faults.unless(
        !callers.is_empty()
            && callers.iter().all(|(from, port, _)| {
                *port == backend_port
                    && rendering.selected_by(&from["podSelector"])
                    && from["namespaceSelector"].is_null()
            }),
        format!("NetworkPolicy: the backend lets in {callers:?}"),
    );
    faults.0
}

/// What Prometheus is told.
pub(super) fn monitor(rendering: &Rendering<'_>) -> Vec<String> {
    let mut faults = Faults::default();
    let monitors: Vec<_> = rendering
        .kind("PodMonitor")
        .filter(|monitor| rendering.selected_by(&monitor["spec"]["selector"]))
        .collect();
    faults.unless(
        monitors.len() == 1,
        "PodMonitor: none finds the gate's pods",
    );
    for endpoint in monitors
        .iter()
        .flat_map(|monitor| items(monitor, "/spec/podMetricsEndpoints"))
    {
        let port = items(rendering.gate(), "/ports")
            .iter()
            .find(|port| port["name"] == endpoint["port"]);
        faults.unless(
            port.is_some_and(|port| port["containerPort"] == 9901),
            format!("PodMonitor: the gate has no port {}", endpoint["port"]),
        );
        faults.unless(
            text(endpoint, "/path") == "/metrics",
            "PodMonitor: not /metrics",
        );
    }
    faults.0
}

/// The only backend's address.
fn upstream(rendering: &Rendering<'_>) -> String {
    let table: toml::Table = rendering.configuration().parse().unwrap();
    let upstreams = table["upstreams"].as_table().unwrap();
    let url = upstreams
        .values()
        .next()
        .and_then(|upstream| upstream.get("url"));
    url.and_then(toml::Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn allowed<'a>(policies: impl Iterator<Item = &'a Value>, way: &str, side: &str) -> Vec<Allowed> {
    let mut found = Vec::new();
    for policy in policies.filter(|policy| items(policy, "/spec/policyTypes").contains(&json!(way)))
    {
        for rule in items(policy, &format!("/spec/{}", way.to_lowercase())) {
            // Left out, everybody is meant, and every port.
            let everybody = vec![Value::Null];
            let every_port = vec![json!({ "port": 0, "protocol": "TCP" })];
            let sides = rule[side].as_array().unwrap_or(&everybody);
            let ports = rule["ports"].as_array().unwrap_or(&every_port);
            for other in sides {
                for port in ports {
                    let protocol = text(port, "/protocol").to_owned();
                    found.push((other.clone(), port["port"].as_u64().unwrap_or(0), protocol));
                }
            }
        }
    }
    found
}
