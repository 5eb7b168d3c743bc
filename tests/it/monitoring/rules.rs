//! The shipped rules by Prometheus' own tool, and the page that says what to do about each alert.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use super::shrink::duration;
use super::{RULES, from_yaml, prometheus_directory, promtool, read, succeeds};
use crate::support::samples;

/// Each alert's part of the file.
fn alerts() -> BTreeMap<String, String> {
    let text = read(RULES);
    let parts = text.split("- alert: ").skip(1);
    let alerts: BTreeMap<_, _> = parts
        .map(|part| {
            let (name, rest) = part.split_once('\n').unwrap();
            (name.to_owned(), rest.to_owned())
        })
        .collect();
    assert!(alerts.len() > 30, "{}", alerts.len());
    alerts
}

/// The files of tests beside the rules.
fn test_files() -> Vec<String> {
    let files = samples::files(&prometheus_directory());
    let names = files
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    let tests: Vec<_> = names.filter(|name| name.ends_with(".test.yaml")).collect();
    assert!(tests.contains(&"rules.test.yaml".to_owned()), "{tests:?}");
    tests
}

#[test]
fn promtool_accepts_rules_and_configuration() {
    let told = promtool(&["check", "rules", "rules.yaml"]);
    assert!(told.contains("rules found"), "{told}");
    promtool(&["check", "config", "prometheus.yaml"]);
}

#[test]
fn the_rules_pass_their_tests() {
    let files = test_files();
    let mut arguments = vec!["test", "rules"];
    arguments.extend(files.iter().map(String::as_str));
    let told = promtool(&arguments);
    assert_eq!(told.matches("SUCCESS").count(), files.len(), "{told}");
}

/// Once it fires, with labels and annotations; at least twice it must not.
#[test]
fn each_alert_is_tested_to_fire_and_to_be_quiet() {
    let tests: String = test_files()
        .iter()
        .map(|name| fs::read_to_string(prometheus_directory().join(name)).unwrap())
        .collect();
    for alert in alerts().keys() {
        let fires = format!("alertname: {alert}\n        exp_alerts:\n          - exp_labels: {{");
        assert!(tests.contains(&fires), "{alert} is never expected to fire");
        let quiet = format!("alertname: {alert}, exp_alerts: []");
        assert!(
            tests.matches(&quiet).count() >= 2,
            "{alert} is hardly expected to be quiet"
        );
    }
}

/// Severity, texts and the link to its section.
#[test]
fn each_alert_says_what_it_means_and_where_to_read_on() {
    for (alert, text) in alerts() {
        let severity = text.contains("labels: {severity: critical}")
            || text.contains("labels: {severity: warning}");
        assert!(severity, "{alert} has no severity");
        for key in ["summary: ", "description: >-", "First: "] {
            let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(one_line.contains(key.trim()), "{alert}: no {key}");
        }
        let runbook = format!("runbook: docs/monitoring.md#{}\n", alert.to_lowercase());
        assert!(
            text.contains(&runbook),
            "{alert} does not link to its section"
        );
    }
}

/// A section for each alert with what it means, why it matters, and steps; and no section for another.
#[test]
fn each_alert_has_its_section() {
    let page = read("docs/monitoring.md");
    let sections: BTreeMap<_, _> = page
        .split("\n### ")
        .skip(1)
        .filter_map(|section| section.split_once('\n'))
        .filter(|(title, _)| title.starts_with("Tikigate"))
        .collect();
    let names: BTreeSet<_> = alerts().into_keys().collect();
    let titles: BTreeSet<_> = sections.keys().map(|title| (*title).to_owned()).collect();
    assert_eq!(titles, names);
    for (title, text) in sections {
        assert!(text.contains("\n1. "), "{title} has no steps");
        assert!(text.contains("**Why it matters.**"), "{title}");
        assert!(text.contains('`'), "{title} shows no command");
    }
}

/// What the page has people type makes a PrometheusRule with all of the rules.
#[test]
fn the_rules_become_a_prometheus_rule() {
    let page = read("docs/monitoring.md");
    let blocks = page.split("```sh\n").skip(1);
    let block = blocks
        .filter_map(|rest| rest.split("```").next())
        .find(|block| block.contains("PrometheusRule"))
        .unwrap();
    let made = block.replace("kubectl apply -f -", "cat");
    assert_ne!(made, block);
    let wrapped = succeeds(
        Command::new("bash")
            .args(["-euc", &made])
            .current_dir(samples::root()),
    );
    let rule = from_yaml(wrapped.as_bytes());
    assert_eq!(rule["kind"], "PrometheusRule");
    assert_eq!(rule["spec"], from_yaml(read(RULES).as_bytes()));
    assert_eq!(rule["spec"]["groups"].as_array().unwrap().len(), 7);
}

/// Each PodMonitor that is shipped gives its job a name that the rules look for.
#[test]
fn shipped_monitors_make_jobs_that_the_rules_know() {
    let mut found = 0;
    for place in ["components/sidecar", "overlays/front-postgres"] {
        let text = read(&format!("deploy/kubernetes/{place}/podmonitor.yaml"));
        let monitor = from_yaml(text.as_bytes());
        assert_eq!(monitor["kind"], "PodMonitor");
        assert!(
            monitor["metadata"]["name"]
                .as_str()
                .unwrap()
                .contains("tikigate")
        );
        // A job label of its own would take the name's place.
        assert!(monitor["spec"].get("jobLabel").is_none());
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        assert_eq!(endpoint["path"], "/metrics");
        let every = duration(endpoint["interval"].as_str().unwrap()).unwrap().0;
        assert!(
            (15_000..=60_000).contains(&every),
            "{every}: the windows are made for that"
        );
        found += 1;
    }
    assert_eq!(found, 2);
}
