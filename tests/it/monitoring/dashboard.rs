//! The dashboard: its form, that it and the rules name only what a gate has, and that they leave
//! nothing out.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use super::prometheus::Prometheus;
use super::promql::selectors;
use super::{DASHBOARD, RULES, read, succeeds};
use crate::support::samples::root;

/// Documented metrics that neither the dashboard nor a rule names, and why.
const NOWHERE: [(&str, &str); 0] = [];

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).unwrap()
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row").collect()
}

/// Every expression with its panel's title and its legend.
fn expressions(dashboard: &Value) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut found = Vec::new();
    for panel in panels(dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            found.push((
                text(&panel["title"]),
                text(&target["expr"]),
                text(&target["legendFormat"]),
            ));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        found.push((
            "annotation".to_owned(),
            text(&annotation["expr"]),
            text(&annotation["titleFormat"]),
        ));
    }
    found
}

/// An expression of the dashboard, as it is sent to Prometheus with everything selected.
fn filled(expression: &str) -> String {
    let filled = expression
        .replace("$__rate_interval", "2m")
        .replace("$job", ".*")
        .replace("$instance", ".*");
    assert!(!filled.contains('$'), "an unknown variable in {expression}");
    filled
}

#[test]
fn panels_have_ids_units_and_places_of_their_own() {
    let dashboard = dashboard();
    assert!(
        dashboard["schemaVersion"].as_u64().unwrap() >= 38,
        "Grafana 10"
    );
    let all = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut cells = BTreeMap::new();
    for panel in all {
        let title = panel["title"].as_str().unwrap();
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{title}: its id is another's"
        );
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{title} is beyond the edge");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                let before = cells.insert((x, y), title);
                assert_eq!(before, None, "{title} lies over it");
            }
        }
    }
    let rows: Vec<_> = all.iter().filter(|panel| panel["type"] == "row").collect();
    assert_eq!(rows.len(), 9, "rows");
    for panel in panels(&dashboard) {
        let title = &panel["title"];
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
        assert!(
            unit.is_some_and(|unit| !unit.is_empty()),
            "{title} has no unit"
        );
        assert!(
            !panel["description"].as_str().unwrap().is_empty(),
            "{title}"
        );
        assert!(!panel["targets"].as_array().unwrap().is_empty(), "{title}");
    }
    let times = panels(&dashboard)
        .into_iter()
        .find(|panel| panel["title"] == "Answer times by route");
    let steps = &times.unwrap()["fieldConfig"]["defaults"]["thresholds"]["steps"];
    assert_eq!(steps[1]["value"], 13, "the line at 13 s");
}

#[test]
fn every_data_source_is_the_variable_and_every_selector_follows_the_others() {
    let dashboard = dashboard();
    let mut sources = Vec::new();
    collect("datasource", &dashboard, &mut sources);
    assert!(
        sources.len() > panels(&dashboard).len(),
        "each panel and each target"
    );
    for source in sources {
        assert_eq!(source["uid"], "${datasource}", "{source}");
        assert_eq!(source["type"], "prometheus", "{source}");
    }
    for panel in panels(&dashboard) {
        assert!(panel.get("datasource").is_some(), "{}", panel["title"]);
        for target in panel["targets"].as_array().unwrap() {
            assert!(target.get("datasource").is_some(), "{}", panel["title"]);
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["datasource", "job", "instance"]);
    for (title, expression, _) in expressions(&dashboard) {
        for selector in selectors(&expression) {
            let matchers = &selector.matchers;
            assert!(matchers.contains("job=~\"$job\""), "{title}: {expression}");
            // What is recorded by job knows no instance.
            let by_job = selector.name.starts_with("tikigate:answers_late");
            assert!(
                by_job || matchers.contains("instance=~\"$instance\""),
                "{title}: {expression}"
            );
        }
    }
}

/// Keys that Grafana reads and its types for programs leave out.
const NOT_TYPED: [&str; 2] = ["definition", "titleFormat"];

/// The judge is Grafana's own reading: all that we wrote comes back, so each key has the right name and
/// kind. No Grafana to look at it with can be installed from Debian's packages.
#[test]
fn grafana_understands_every_key() {
    let tools = root().join("target/tools/monitoring/bin/python");
    assert!(tools.exists(), "{tools:?} is missing: `tests/run` makes it");
    let mut reading = Command::new(tools);
    reading.arg(root().join("tests/it/monitoring/grafana.py"));
    let understood = succeeds(reading.arg(root().join(DASHBOARD)));
    let understood: Value = serde_json::from_str(&understood).unwrap();
    let mut lost = Vec::new();
    compare("", &dashboard(), &understood, &mut lost);
    assert!(lost.is_empty(), "{lost:#?}");
}

/// What of `ours` is not in `theirs`. What is empty may be left out.
fn compare(place: &str, ours: &Value, theirs: &Value, lost: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (key, value) in ours {
                let place = format!("{place}/{key}");
                match theirs.get(key) {
                    Some(other) => compare(&place, value, other, lost),
                    None if NOT_TYPED.contains(&key.as_str()) => {}
                    None => match value {
                        Value::Null | Value::Bool(false) => {}
                        Value::Array(list) if list.is_empty() => {}
                        Value::String(text) if text.is_empty() => {}
                        _ => lost.push(format!("{place}: {value}")),
                    },
                }
            }
        }
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                compare(&format!("{place}[{at}]"), ours, theirs, lost);
            }
        }
        (Value::Number(ours), Value::Number(theirs)) if ours.as_f64() == theirs.as_f64() => {}
        _ if ours == theirs => {}
        _ => lost.push(format!("{place}: {ours} became {theirs}")),
    }
}

/// Every value of this key, at any depth.
fn collect<'v>(key: &str, value: &'v Value, found: &mut Vec<&'v Value>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if name == key {
                    found.push(value);
                }
                collect(key, value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| collect(key, value, found)),
        _ => {}
    }
}

/// The metrics that the page on operations lists, and those that the page on monitoring names.
fn documented() -> BTreeSet<String> {
    let page = read("docs/operations.md");
    let section = page
        .split("\n## ")
        .find(|section| section.starts_with("Metrics"))
        .unwrap();
    let list = section.split("\n\nWake").next().unwrap();
    let more = read("docs/monitoring.md");
    let words = |text: &str| -> Vec<String> {
        let quoted = text.split('`').skip(1).step_by(2);
        quoted.map(str::to_owned).collect()
    };
    let words = words(list).into_iter().chain(words(&more));
    words
        .filter(|word| word.starts_with("tikigate_"))
        .map(|word| word.split('{').next().unwrap().to_owned())
        .collect()
}

/// Expressions of the rules' file, one after the other: what follows `expr:` up to the next key.
fn rules_expressions() -> Vec<String> {
    let text = read(RULES);
    let parts = text.split(" expr: ").skip(1);
    let end = |part: &str| {
        let keys = [
            "\n        for:",
            "\n        labels:",
            "\n      -",
            "\n\n",
            "\n      #",
        ];
        keys.iter()
            .filter_map(|key| part.find(key))
            .min()
            .unwrap_or(part.len())
    };
    parts
        .map(|part| part[..end(part)].trim_start_matches(">-").trim().to_owned())
        .collect()
}

#[test]
fn every_documented_metric_is_shown_or_watched() {
    let mut named = BTreeSet::new();
    let mut all = rules_expressions();
    assert!(all.len() > 40, "{}", all.len());
    all.extend(
        expressions(&dashboard())
            .into_iter()
            .map(|(_, expression, _)| expression),
    );
    for expression in all {
        for selector in selectors(&filled(&expression)) {
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|ending| selector.name.strip_suffix(ending));
            named.insert(family.unwrap_or(&selector.name).to_owned());
        }
    }
    let documented = documented();
    assert!(documented.len() > 40, "{documented:?}");
    for metric in &documented {
        let listed = NOWHERE.iter().any(|(name, _)| name == metric);
        assert_ne!(named.contains(metric), listed, "{metric}");
    }
    for metric in named.iter().filter(|name| name.starts_with("tikigate_")) {
        assert!(documented.contains(metric), "{metric} is not documented");
    }
}

/// Each panel shows something, with every label that its legend names; and each selector of a panel or a
/// rule, with its matchers, finds series. For gates that have had everything happen to them.
pub(super) async fn assert_all_show_data(prometheus: &Prometheus) {
    let mut faults = Vec::new();
    let mut wanted = BTreeSet::new();
    for (title, expression, legend) in expressions(&dashboard()) {
        let expression = filled(&expression);
        wanted.extend(selectors(&expression));
        // Annotations show what happens, if it happens.
        if title == "annotation" {
            continue;
        }
        let series = prometheus.query(&expression).await;
        if series.is_empty() {
            faults.push(format!("{title} shows nothing: {expression}"));
        }
        for label in legend
            .split("{{")
            .skip(1)
            .map(|rest| rest.split("}}").next().unwrap())
        {
            if let Some((labels, _)) = series
                .iter()
                .find(|(labels, _)| !labels.contains_key(label))
            {
                faults.push(format!("{title}: no label {label} in {labels:?}"));
            }
        }
    }
    for expression in rules_expressions() {
        wanted.extend(selectors(&expression));
    }
    for selector in wanted {
        let found = format!("last_over_time({}[10m])", selector.text());
        if prometheus.query(&found).await.is_empty() {
            faults.push(format!("nothing is called {}", selector.text()));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
