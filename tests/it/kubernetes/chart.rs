//! The chart: what it refuses, and what its values do.

use std::fs;

use serde_json::{Value, json};

use super::rules::{Rendering, faults};
use super::tool::{chart, charts, lint};
use super::{
    CHART, EXAMPLE_CHART, FRONT, FRONT_CHART, SIDECAR, configuration, front_values, sidecar_values,
};
use crate::support::samples;

/// Values with what is at the pointer set anew.
fn changed(mut values: Value, pointer: &str, to: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let mut place = &mut values;
    for step in parent.split('/').skip(1) {
        place = &mut place[step];
    }
    place[key] = to;
    values
}

#[track_caller]
fn refusal(directory: &str, values: &Value) -> String {
    match chart(directory, "gate", values) {
        Ok(_) => panic!("rendered with {values}"),
        Err(refused) => refused,
    }
}

#[test]
fn several_replicas_on_sqlite_do_not_render() {
    let alone = changed(front_values(), "/config", configuration(SIDECAR).into());
    let told = "replicaCount is 2, but a ledger in \"sqlite\" belongs to one gate";
    let refused = refusal(CHART, &alone);
    assert!(refused.contains(told), "{refused}");
    let beside = changed(sidecar_values(), "/tikigate/replicaCount", 2.into());
    let refused = refusal(EXAMPLE_CHART, &beside);
    assert!(refused.contains(told), "{refused}");
    // One is what it takes.
    chart(CHART, "gate", &changed(alone, "/replicaCount", 1.into())).unwrap();
}

#[test]
fn what_would_be_noticed_too_late_does_not_render() {
    let sidecar = configuration(SIDECAR);
    let front = configuration(FRONT);
    let in_config = |text: &str, from: &str, to: &str| -> Value {
        assert!(text.contains(from), "no {from}");
        text.replace(from, to).into()
    };
    let refused: Vec<(&str, &str, Value, &str)> = vec![
        (CHART, "/config", "".into(), "`config` is empty"),
        (CHART, "/config", "[server".into(), "`config` is not TOML"),
        (
            CHART,
            "/existingSecret",
            "".into(),
            "`existingSecret` is empty",
        ),
        (
            CHART,
            "/database/existingSecret",
            "".into(),
            "database.existingSecret",
        ),
        (
            CHART,
            "/adminTokenFile",
            "other.token".into(),
            "admin.tokens has no token",
        ),
        (
            CHART,
            "/terminationGracePeriodSeconds",
            84.into(),
            "is 84, but a drain may take 85 s",
        ),
        (
            CHART,
            "/config",
            in_config(&front, "0.0.0.0:8080", "0.0.0.0:8081"),
            "server.listen",
        ),
        (
            CHART,
            "/config",
            in_config(&front, "0.0.0.0:9901", "127.0.0.1:9901"),
            "admin.listen",
        ),
        (
            CHART,
            "/config",
            in_config(&front, "workers = 2", ""),
            "server.workers",
        ),
        (
            CHART,
            "/config",
            in_config(&front, "require_existing = true", ""),
            "require_existing",
        ),
        (
            CHART,
            "/config",
            in_config(&front, "store = \"postgres\"", "store = \"memory\""),
            "a ledger in \"memory\"",
        ),
        (
            EXAMPLE_CHART,
            "/tikigate/config",
            in_config(&sidecar, "/var/lib/tikigate/", "/tmp/"),
            "ledger.path",
        ),
        (
            EXAMPLE_CHART,
            "/tikigate/config",
            in_config(&sidecar, "/var/lib/tikigate-mark/", "/tmp/"),
            "ledger.watermark",
        ),
        (
            EXAMPLE_CHART,
            "/tikigate/mode",
            "front".into(),
            "tikigate.mode",
        ),
        (
            EXAMPLE_CHART,
            "/tikigate/terminationGracePeriodSeconds",
            114.into(),
            "is 114, but a drain may take 115 s",
        ),
        (
            EXAMPLE_CHART,
            "/tikigate/sidecar/backendPreStopSeconds",
            84.into(),
            "is 84, but the gate's drain takes up to 85 s",
        ),
    ];
    for directory in [CHART, EXAMPLE_CHART] {
        let base = if directory == CHART {
            front_values()
        } else {
            sidecar_values()
        };
        let cases: Vec<_> = refused.iter().filter(|case| case.0 == directory).collect();
        let values: Vec<Value> = cases
            .iter()
            .map(|(_, pointer, value, _)| changed(base.clone(), pointer, value.clone()))
            .collect();
        for (case, answer) in cases.iter().zip(charts(directory, "gate", &values)) {
            let (_, pointer, value, told) = case;
            match answer {
                Ok(_) => panic!("rendered with {pointer}: {value}"),
                Err(refused) => assert!(refused.contains(told), "{pointer}: {refused}"),
            }
        }
    }
}

#[test]
fn values_that_the_schema_does_not_know_are_refused() {
    let refused: Vec<(&str, Value)> = vec![
        ("/replicas", 2.into()),
        ("/image/name", "tikigate".into()),
        ("/networkPolicy/backend/labels", json!({})),
        ("/volumes/ledger/storage", "5Gi".into()),
        ("/resources/limits/memroy", "1Gi".into()),
        ("/mode", "beside".into()),
        ("/replicaCount", 0.into()),
        ("/replicaCount", "2".into()),
        ("/image/digest", "sha256:short".into()),
        ("/terminationGracePeriodSeconds", "90s".into()),
        ("/volumes/accessMode", "ReadWriteMany".into()),
        ("/podMonitor/interval", "often".into()),
        ("/firstStart", "false".into()),
    ];
    let values: Vec<Value> = refused
        .iter()
        .map(|(pointer, value)| changed(front_values(), pointer, value.clone()))
        .collect();
    for ((pointer, value), answer) in refused.iter().zip(charts(CHART, "gate", &values)) {
        let Err(told) = answer else {
            panic!("rendered with {pointer}: {value}");
        };
        let key = pointer.rsplit_once('/').unwrap().1;
        assert!(told.contains("schema"), "{pointer}: {told}");
        assert!(told.contains(key), "{pointer}: {told}");
    }
    let beside = refusal(
        EXAMPLE_CHART,
        &changed(sidecar_values(), "/tikigate/replicas", 2.into()),
    );
    assert!(beside.contains("replicas"), "{beside}");
}

#[test]
fn the_schema_is_closed_and_says_what_the_values_are() {
    let read = |name: &str| fs::read_to_string(samples::root().join(CHART).join(name)).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let mut open = Vec::new();
    find_open(&schema, "", &mut open);
    assert_eq!(
        open,
        ["/global", "/networkPolicy/egress/*"],
        "objects that take any key"
    );

    // Each key of values.yaml by its first column: what the schema has besides is Helm's own.
    let values = read("values.yaml");
    let keys = values
        .lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_alphabetic()));
    let mut keys: Vec<&str> = keys.map(|line| line.split(':').next().unwrap()).collect();
    keys.push("global");
    keys.sort_unstable();
    let mut known: Vec<&str> = schema["properties"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    known.sort_unstable();
    assert_eq!(keys, known);
}

/// The paths of objects in a schema that take keys which it doesn't name, labels aside.
fn find_open(schema: &Value, path: &str, open: &mut Vec<String>) {
    if schema["type"] == "object"
        && schema["additionalProperties"] != false
        && !schema["additionalProperties"].is_object()
    {
        open.push(path.to_owned());
    }
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        find_open(inner, &format!("{path}/{key}"), open);
    }
    if schema["items"].is_object() {
        find_open(&schema["items"], &format!("{path}/*"), open);
    }
}

#[test]
fn versions_are_the_gates() {
    for directory in [CHART, EXAMPLE_CHART] {
        let text = fs::read_to_string(samples::root().join(directory).join("Chart.yaml")).unwrap();
        if directory == CHART {
            let version = env!("CARGO_PKG_VERSION");
            assert!(text.contains(&format!("\nversion: {version}\n")), "{text}");
            assert!(
                text.contains(&format!("\nappVersion: \"{version}\"\n")),
                "{text}"
            );
        } else {
            assert!(
                text.contains(concat!("    version: ", env!("CARGO_PKG_VERSION"), "\n")),
                "{text}"
            );
        }
    }
}

#[test]
fn helm_lint_finds_nothing() {
    assert_eq!(lint(CHART, &front_values()), [""; 0]);
    let wrong = changed(front_values(), "/nonsense", 1.into());
    assert!(!lint(CHART, &wrong).is_empty(), "lint takes anything");
}

#[test]
fn a_changed_configuration_restarts_no_pod() {
    let text = configuration(FRONT).replace("/tiki/refund", "/tiki/refunds");
    let (objects, _) = chart(
        CHART,
        "tikigate",
        &changed(front_values(), "/config", text.into()),
    )
    .unwrap();
    let different: Vec<&Value> = objects
        .iter()
        .filter(|object| !FRONT_CHART.contains(object))
        .map(|object| &object["kind"])
        .collect();
    assert_eq!(different, ["ConfigMap"]);
}

#[test]
fn values_reach_their_places() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let values = [
        (
            "/image",
            json!({ "repository": "mirror.example/tikigate", "digest": digest }),
        ),
        ("/firstStart", true.into()),
        ("/replicaCount", 3.into()),
        ("/terminationGracePeriodSeconds", 200.into()),
        ("/imagePullSecrets", json!([{ "name": "mirror" }])),
        ("/podLabels", json!({ "team": "payments" })),
        ("/service/port", 8000.into()),
        ("/podMonitor/enabled", false.into()),
        ("/networkPolicy/enabled", false.into()),
        ("/adminTokenFile", "admin.token".into()),
    ];
    let values = values
        .into_iter()
        .fold(front_values(), |all, (pointer, value)| {
            changed(all, pointer, value)
        });
    let (objects, notes) = chart(CHART, "pay", &values).unwrap();
    let rendering = Rendering::new(&objects).unwrap();
    assert_eq!(
        rendering.gate()["image"],
        format!("mirror.example/tikigate@{digest}")
    );
    let first = json!({ "name": "TIKIGATE__LEDGER__REQUIRE_EXISTING", "value": "false" });
    assert!(rendering.gate()["env"].as_array().unwrap().contains(&first));
    assert_eq!(rendering.deployment()["spec"]["replicas"], 3);
    assert_eq!(rendering.deployment()["metadata"]["name"], "pay-tikigate");
    assert_eq!(rendering.pod()["terminationGracePeriodSeconds"], 200);
    assert_eq!(
        rendering.pod()["imagePullSecrets"],
        json!([{ "name": "mirror" }])
    );
    assert_eq!(
        rendering.template()["metadata"]["labels"]["team"],
        "payments"
    );
    assert_eq!(
        rendering.kind("Service").next().unwrap()["spec"]["ports"][0]["port"],
        8000
    );
    assert_eq!(
        rendering.kind("PodMonitor").count() + rendering.kind("NetworkPolicy").count(),
        0
    );
    assert!(notes.contains("THIS IS THE FIRST START"), "{notes}");
    assert!(
        notes.contains("takes a lost database for a new ledger"),
        "{notes}"
    );
    assert!(
        notes.contains("the Service pay-tikigate, port 8000"),
        "{notes}"
    );
}

#[test]
fn the_chart_alone_takes_sqlite_with_one_replica() {
    let text = configuration(SIDECAR).replace("http://127.0.0.1:9000", "http://legacy:9000");
    let values = changed(front_values(), "/config", text.into());
    let values = changed(values, "/database/existingSecret", "".into());
    let values = changed(values, "/replicaCount", 1.into());
    let (objects, notes) = chart(CHART, "tikigate", &values).unwrap();
    assert_eq!(faults(&objects), [""; 0]);
    assert!(
        notes.contains("tikigate-ledger and tikigate-mark stay"),
        "{notes}"
    );
    assert!(!notes.contains("FIRST START"), "{notes}");
    for claim in objects
        .iter()
        .filter(|object| object["kind"] == "PersistentVolumeClaim")
    {
        assert_eq!(
            claim["metadata"]["annotations"]["helm.sh/resource-policy"],
            "keep"
        );
    }
}

#[test]
fn a_longer_drain_takes_the_pod_along() {
    let text =
        configuration(SIDECAR).replace("drain_within = \"75s\"", "drain_within = \"1m30s500ms\"");
    let values = changed(sidecar_values(), "/tikigate/config", text.into());
    let (objects, _) = chart(EXAMPLE_CHART, "legacy", &values).unwrap();
    let rendering = Rendering::new(&objects).unwrap();
    // 5 s and 90.5 s, rounded up, and 5 s; then 30 s for the backend, and 15 s to spare.
    assert_eq!(
        rendering.pod()["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"],
        101
    );
    assert_eq!(rendering.pod()["terminationGracePeriodSeconds"], 146);
    assert_eq!(faults(&objects), [""; 0]);

    let text = configuration(SIDECAR).replace("drain_delay = \"5s\"", "drain_delay = \"30s\"");
    let values = changed(sidecar_values(), "/tikigate/config", text.into());
    let (objects, _) = chart(EXAMPLE_CHART, "legacy", &values).unwrap();
    assert_eq!(faults(&objects), [""; 0]);
}
