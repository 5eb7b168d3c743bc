//! A real Prometheus over the shipped rules, on a free port, gone with its value.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tikigate::net::ListenAddress;

use super::shrink::shrunk;
use super::{RULES, read};
use crate::support::in_time;
use crate::support::raw::{exchange, exchange_if_there};

/// Labels of a series or an alert.
pub(super) type Labels = BTreeMap<String, String>;

/// A running Prometheus.
pub(super) struct Prometheus {
    child: Child,
    address: ListenAddress,
    directory: tempfile::TempDir,
}

/// A gate to be scraped: its job, the name that it has as `instance`, and where its metrics are.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) job: &'static str,
    pub(super) instance: String,
    pub(super) address: SocketAddr,
}

impl Prometheus {
    /// Scrapes and evaluates twice a second, with each duration of the rules divided.
    pub(super) async fn start(divisor: u64, targets: &[Target]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).unwrap();
        };
        write("rules.yaml", &shrunk(&read(RULES), divisor));
        let sample = read("deploy/prometheus/prometheus.yaml");
        let quick = sample.replace("interval: 15s", "interval: 500ms");
        assert_ne!(sample, quick, "the sample has other intervals");
        write("prometheus.yaml", &quick);
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = port.local_addr().unwrap();
        drop(port);
        write_targets(directory.path().join("targets.yaml"), targets);
        let child = Command::new("prometheus")
            .arg(format!("--web.listen-address={address}"))
            .args(["--config.file=prometheus.yaml", "--storage.tsdb.path=data"])
            .args(["--log.level=warn", "--storage.tsdb.min-block-duration=2h"])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .expect("Prometheus; `tests/run` installs it");
        let prometheus = Self {
            child,
            address: ListenAddress::Tcp(address),
            directory,
        };
        in_time("Prometheus to be ready", async {
            let ready = "GET /-/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            let patience = Duration::from_secs(1);
            loop {
                let answer = exchange_if_there(&prometheus.address, ready, patience).await;
                if answer.is_some_and(|answer| answer.status == 200) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        prometheus
    }

    /// Has it scrape these and no others.
    pub(super) fn scrape(&self, targets: &[Target]) {
        let next = self.directory.path().join("next");
        write_targets(next.clone(), targets);
        std::fs::rename(next, self.directory.path().join("targets.yaml")).unwrap();
    }

    /// The `data` of an API call that works.
    pub(super) async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let body: String = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(parameters)
            .finish();
        let (method, body) = match parameters {
            [] => ("GET", String::new()),
            _ => ("POST", body),
        };
        let request = format!(
            "{method} /api/v1/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = exchange(&self.address, request).await;
        assert_eq!(answer.status, 200, "{parameters:?}: {}", answer.text());
        answer.json()["data"].clone()
    }

    /// What an expression gives now: each series' labels and value.
    pub(super) async fn query(&self, expression: &str) -> Vec<(Labels, f64)> {
        let data = self.ask("query", &[("query", expression)]).await;
        let series = data["result"].as_array().unwrap();
        let value = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
        match data["resultType"].as_str().unwrap() {
            "scalar" => vec![(Labels::new(), 0.0)],
            _ => series
                .iter()
                .map(|series| (labels(&series["metric"]), value(series)))
                .collect(),
        }
    }

    /// The alerts that are pending or firing: labels and state.
    pub(super) async fn alerts(&self) -> Vec<(Labels, String)> {
        let data = self.ask("alerts", &[]).await;
        let alerts = data["alerts"].as_array().unwrap();
        let state = |alert: &Value| alert["state"].as_str().unwrap().to_owned();
        alerts
            .iter()
            .map(|alert| (labels(&alert["labels"]), state(alert)))
            .collect()
    }

    /// Every rule, as Prometheus has it.
    pub(super) async fn rules(&self) -> Vec<Value> {
        let data = self.ask("rules", &[]).await;
        let groups = data["groups"].as_array().unwrap();
        groups
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap().clone())
            .collect()
    }

    /// Waits until an expression holds for something.
    pub(super) async fn wait_for(&self, expression: &str) {
        in_time(expression, async {
            while self.query(expression).await.is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
    }

    /// What it wrote.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Errors only say that there is nothing left to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_targets(path: PathBuf, targets: &[Target]) {
    let mut text = String::from("# The gates of this test.\n");
    for Target {
        job,
        instance,
        address,
    } in targets
    {
        text += &format!(
            "- targets: [\"{address}\"]\n  labels: {{job: {job}, instance: {instance}}}\n"
        );
    }
    if targets.is_empty() {
        text = "[]\n".to_owned();
    }
    std::fs::write(path, text).unwrap();
}

fn labels(value: &Value) -> Labels {
    let map = value.as_object().unwrap();
    map.iter()
        .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
        .collect()
}
