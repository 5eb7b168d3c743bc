//! What every rendering has to keep to: each rule tells its faults, none when it is kept.

use serde_json::Value;

use super::laid::text;
use super::{laid, network, pods};

/// Objects that belong together, with one Deployment in which a gate runs.
pub(super) struct Rendering<'a> {
    objects: &'a [Value],
    deployment: &'a Value,
    gate: &'a Value,
    native: bool,
}

/// Everything that is wrong with a rendering.
pub(super) fn faults(objects: &[Value]) -> Vec<String> {
    let rendering = match Rendering::new(objects) {
        Ok(rendering) => rendering,
        Err(fault) => return vec![fault],
    };
    let settings = match laid::settings(&rendering) {
        Ok(settings) => settings,
        Err(problems) => return vec![format!("the configuration: {problems}")],
    };
    let mut faults = objects_in_general(objects);
    faults.extend(pods::container(&rendering, &settings));
    faults.extend(pods::pod(&rendering, &settings));
    faults.extend(pods::store(&rendering));
    faults.extend(pods::files(&rendering));
    faults.extend(network::service(&rendering));
    faults.extend(network::policies(&rendering));
    faults.extend(network::monitor(&rendering));
    faults
}

impl<'a> Rendering<'a> {
    /// Finds the gate.
    pub(super) fn new(objects: &'a [Value]) -> Result<Self, String> {
        let mut found = Vec::new();
        for deployment in objects
            .iter()
            .filter(|object| object["kind"] == "Deployment")
        {
            for (list, native) in [("initContainers", true), ("containers", false)] {
                for container in items(deployment, &format!("/spec/template/spec/{list}")) {
                    if container["name"] == "tikigate" {
                        found.push((deployment, container, native));
                    }
                }
            }
        }
        match found[..] {
            [(deployment, gate, native)] => Ok(Self {
                objects,
                deployment,
                gate,
                native,
            }),
            _ => Err(format!("{} containers are called tikigate", found.len())),
        }
    }

    /// The Deployment in which the gate runs.
    pub(super) fn deployment(&self) -> &'a Value {
        self.deployment
    }

    /// Its pod template.
    pub(super) fn template(&self) -> &'a Value {
        &self.deployment["spec"]["template"]
    }

    /// Its pod.
    pub(super) fn pod(&self) -> &'a Value {
        &self.template()["spec"]
    }

    /// The gate's container.
    pub(super) fn gate(&self) -> &'a Value {
        self.gate
    }

    /// Whether the gate is among the init containers.
    pub(super) fn native(&self) -> bool {
        self.native
    }

    /// The objects of a kind.
    pub(super) fn kind(&self, kind: &str) -> impl Iterator<Item = &'a Value> {
        self.objects
            .iter()
            .filter(move |object| object["kind"] == kind)
    }

    /// An object by kind and name.
    pub(super) fn named(&self, kind: &str, name: &str) -> Option<&'a Value> {
        self.kind(kind)
            .find(|object| object["metadata"]["name"] == name)
    }

    /// The pod's volume that the gate has mounted at this place.
    pub(super) fn mounted_at(&self, path: &str) -> Option<&'a Value> {
        let mount = items(self.gate, "/volumeMounts")
            .iter()
            .find(|mount| mount["mountPath"] == path)?;
        items(self.pod(), "/volumes")
            .iter()
            .find(|volume| volume["name"] == mount["name"])
    }

    /// The text of the gate's configuration, empty where there is none.
    pub(super) fn configuration(&self) -> &'a str {
        self.mounted_at("/etc/tikigate")
            .map(|volume| text(volume, "/configMap/name"))
            .and_then(|name| self.named("ConfigMap", name))
            .map_or("", |map| text(map, "/data/tikigate.toml"))
    }

    /// The mode of the Secret's files.
    pub(super) fn secret_mode(&self) -> u32 {
        self.mounted_at("/etc/tikigate/secrets")
            .and_then(|volume| volume.pointer("/secret/defaultMode")?.as_u64())
            .and_then(|mode| u32::try_from(mode).ok())
            // Kubernetes' own default.
            .unwrap_or(0o644)
    }

    /// Whether a selector's labels fit the gate's pods.
    pub(super) fn selected_by(&self, selector: &Value) -> bool {
        let labels = &self.template()["metadata"]["labels"];
        selector["matchLabels"].as_object().is_some_and(|wanted| {
            !wanted.is_empty() && wanted.iter().all(|(key, value)| labels[key] == *value)
        })
    }

    /// The store of the ledger.
    pub(super) fn store(&self) -> String {
        let table: toml::Table = self.configuration().parse().unwrap();
        let store = table.get("ledger").and_then(|ledger| ledger.get("store"));
        store
            .and_then(toml::Value::as_str)
            .unwrap_or("sqlite")
            .to_owned()
    }
}

/// A list inside of a value, empty where there is none.
pub(super) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Collects what doesn't hold.
#[derive(Default)]
pub(super) struct Faults(pub(super) Vec<String>);

impl Faults {
    /// Notes `fault` unless `holds`.
    pub(super) fn unless(&mut self, holds: bool, fault: impl Into<String>) {
        if !holds {
            self.0.push(fault.into());
        }
    }
}

fn objects_in_general(objects: &[Value]) -> Vec<String> {
    let mut faults = Faults::default();
    for object in objects {
        let kind = text(object, "/kind");
        let named = format!("{kind} {}", text(object, "/metadata/name"));
        faults.unless(
            kind != "Secret",
            format!("{named}: a Secret is in the repository"),
        );
        let labelled = object["metadata"]["labels"]
            .as_object()
            .is_some_and(|labels| {
                labels
                    .keys()
                    .any(|key| key.starts_with("app.kubernetes.io/"))
            });
        faults.unless(labelled, format!("{named}: no label of app.kubernetes.io"));
        faults.unless(
            object["metadata"]["namespace"].is_null(),
            format!("{named}: a namespace is fixed, which is the operator's to choose"),
        );
    }
    faults.0
}
