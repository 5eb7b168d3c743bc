//! A gate with a ledger on disk and a backend that records, for tests that do one thing after the other.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tikigate::net::ListenAddress;

use super::person::{self, TOKEN};
use super::tiki;
use super::world::{OFFSET, address_of_its_own, configuration};
use crate::support::backend::{Answer, Backend, Behaviour, Seen};
use crate::support::disk::Disk;
use crate::support::gate::{Call, SECRET};
use crate::support::gate_process::{GateProcess, NotReady, Setup};
use crate::support::in_time;
use crate::support::raw::{RawAnswer, exchange};

/// A set-up on which one gate after the other can be started.
pub(crate) struct Bench {
    pub(crate) backend: Backend,
    pub(crate) setup: Arc<Setup>,
    /// Under the directory `data`, if asked for.
    pub(crate) disk: Option<Disk>,
}

impl Bench {
    /// With these lines under `[ledger]`, and a backend that pays whatever it is asked.
    pub(crate) async fn new(ledger: &str) -> Self {
        Self::with(ledger, false, |_| Answer::success().into()).await
    }

    /// Perhaps on a [`Disk`], and with a backend that does as scripted.
    pub(crate) async fn with(
        ledger: &str,
        on_disk: bool,
        script: impl Fn(&Seen) -> Behaviour + Send + Sync + 'static,
    ) -> Self {
        let backend = Backend::start(script).await;
        let ListenAddress::Tcp(address) = backend.address().clone() else {
            panic!("the backend listens on TCP");
        };
        let config = configuration(address_of_its_own(), address, ledger);
        let mut setup = Setup::new(&config)
            .file("secret", SECRET.as_bytes())
            .file("token", TOKEN.as_bytes());
        let path = |name: &str| setup.directory().join(name);
        std::fs::create_dir(path("data")).unwrap();
        let clock = path("clock");
        let disk = on_disk.then(|| Disk::new(path("data"), path("shadow")));
        setup = setup.environment(OFFSET, clock.to_str().unwrap());
        for (name, value) in disk.iter().flat_map(Disk::environment) {
            setup = setup.environment(&name, &value);
        }
        Self {
            backend,
            setup: Arc::new(setup),
            disk,
        }
    }

    /// A file in the ledger's directory.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.setup.directory().join("data").join(name)
    }

    /// A gate, ready.
    pub(crate) async fn start(&self) -> Gate {
        self.start_by(self.setup.command("serve")).await
    }

    /// The same by another command.
    pub(crate) async fn start_by(&self, command: Command) -> Gate {
        let started = self.try_start_by(command).await;
        started.unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// A gate, if it becomes ready.
    pub(crate) async fn try_start(&self) -> Result<Gate, NotReady> {
        self.try_start_by(self.setup.command("serve")).await
    }

    /// The same by another command.
    pub(crate) async fn try_start_by(&self, command: Command) -> Result<Gate, NotReady> {
        let setup = Arc::clone(&self.setup);
        let launch = move || GateProcess::launch(command, setup);
        tokio::task::spawn_blocking(launch).await.unwrap().map(Gate)
    }

    /// A gate that must end by itself before it is ready: its exit code and all that it wrote.
    pub(crate) async fn start_in_vain(&self) -> (Option<i32>, String) {
        match self.try_start().await {
            Ok(_) => panic!("the gate started"),
            Err(NotReady { status, text }) => (status.and_then(|status| status.code()), text),
        }
    }

    /// How often the backend got the refund with this key.
    pub(crate) fn sent(&self, key: &str) -> usize {
        let requests = self.backend.requests();
        let of_key = |seen: &&Seen| seen.header("idempotency-key") == Some(key);
        requests.iter().filter(of_key).count()
    }
}

/// A running gate.
pub(crate) struct Gate(pub(crate) GateProcess);

impl Gate {
    /// Sends the refund with this key, signed now.
    pub(crate) async fn refund(&self, key: &str) -> RawAnswer {
        self.send(&tiki::signed(key)).await
    }

    /// Sends a call.
    pub(crate) async fn send(&self, call: &Call) -> RawAnswer {
        exchange(&ListenAddress::Tcp(self.0.address()), call.to_bytes()).await
    }

    /// Status and `error.code` of the refund's answer.
    pub(crate) async fn told(&self, key: &str) -> (u16, String) {
        let answer = self.refund(key).await;
        (answer.status, answer.error_code().unwrap_or_default())
    }

    /// Where the admin listener is.
    pub(crate) fn admin(&self) -> ListenAddress {
        ListenAddress::Tcp(self.0.admin_address())
    }

    /// A key's record.
    pub(crate) async fn record(&self, key: &str) -> Option<Value> {
        let records = person::all_records(&self.admin()).await;
        records.into_iter().find(|record| record["key"] == key)
    }

    /// Resolves a key's record, by force.
    pub(crate) async fn resolve(&self, key: &str, verdict: &str) -> Value {
        let record = self.record(key).await.expect("a record");
        let target = format!("/api/ledger/{}/resolve", record["id"].as_str().unwrap());
        let force = verdict == "not_applied";
        let body = json!({ "verdict": verdict, "reason": "seen at the backend", "force": force });
        person::ask(&self.admin(), "POST", &target, Some(&body))
            .await
            .expect("an answer")
    }

    /// Status and body of `/readyz`.
    pub(crate) async fn readiness(&self) -> (u16, String) {
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let answer = exchange(&self.admin(), request).await;
        (answer.status, answer.text().to_owned())
    }

    /// Waits until `/readyz` has this status; its body then.
    pub(crate) async fn wait_for_readiness(&self, wanted: u16) -> String {
        in_time(&format!("a readiness of {wanted}"), async {
            loop {
                let (status, body) = self.readiness().await;
                if status == wanted {
                    return body;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// Ends it in order.
    pub(crate) async fn end(mut self) {
        let ended = tokio::task::spawn_blocking(move || (self.0.terminate(), self.0.lines()));
        let (status, lines) = ended.await.unwrap();
        assert!(status.success(), "{status}\n{}", lines.join("\n"));
    }

    /// Ends it by SIGKILL.
    pub(crate) async fn kill(mut self) {
        tokio::task::spawn_blocking(move || self.0.kill())
            .await
            .unwrap();
    }
}
