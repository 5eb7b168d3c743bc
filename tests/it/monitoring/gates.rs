//! Gates of the real binary that are watched, each at addresses of its own, so that it is the same target
//! after a restart.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tikigate::net::ListenAddress;

use super::prometheus::Target;
use crate::crash::person::TOKEN;
use crate::crash::world::{OFFSET, address_of_its_own};
use crate::support::gate::{CLIENT, Call, SECRET, ipn, refund};
use crate::support::gate_process::{GateProcess, Setup};
use crate::support::raw::{RawAnswer, exchange, exchange_if_there};

/// The lines of a ledger in a file.
const FILE: &str = "path = \"data/tikigate.db\"\nallow_unsafe_filesystem = true\n";

/// What a gate is started with: lines of its configuration, and variables.
pub(super) struct Plan {
    pub(super) backend: String,
    pub(super) server: &'static str,
    pub(super) upstream: &'static str,
    pub(super) rate: &'static str,
    /// Under the refund's route.
    pub(super) refund: &'static str,
    pub(super) ledger: String,
    /// At the end; `{ip}` is the gate's address.
    pub(super) more: String,
    pub(super) files: Vec<(&'static str, Vec<u8>)>,
    pub(super) environment: Vec<(String, String)>,
    /// A shell's words in front of the gate's own.
    pub(super) through: Option<&'static str>,
}

impl Plan {
    pub(super) fn before(backend: &str) -> Self {
        Self {
            backend: backend.to_owned(),
            server: "",
            upstream: "",
            rate: "{ per_second = 100000, burst = 100000 }",
            refund: "",
            ledger: FILE.to_owned(),
            more: String::new(),
            files: Vec::new(),
            environment: Vec::new(),
            through: None,
        }
    }

    fn configuration(&self, ip: IpAddr) -> String {
        let Self {
            backend,
            server,
            upstream,
            rate,
            refund,
            ledger,
            more,
            ..
        } = self;
        let more = more.replace("{ip}", &ip.to_string());
        format!(
            r#"
[server]
listen = "{ip}:8080"
workers = 1
drain_delay = "0s"
per_address = {{ per_second = 100000, burst = 100000 }}
{server}
[admin]
listen = "{ip}:9901"
tokens = [{{ name = "person", file = "token" }}]
[upstreams.legacy]
url = "{backend}"
connect_timeout = "500ms"
{upstream}
[[clients]]
id = "{CLIENT}"
name = "wallet"
secrets = [{{ name = "now", file = "secret" }}]
rate = {rate}
[[routes]]
name = "ipn"
path = "/tiki/ipn"
payload = "transaction_ipn"
[[routes]]
name = "refund"
path = "/tiki/refund"
payload = "refund"
{refund}
[ledger]
{ledger}
{more}
"#
        )
    }
}

/// A gate, and how it is known to Prometheus.
pub(super) struct Gate {
    pub(super) name: &'static str,
    pub(super) job: &'static str,
    pub(super) setup: Arc<Setup>,
    ip: IpAddr,
    through: Option<&'static str>,
    process: Mutex<Option<GateProcess>>,
}

impl Gate {
    /// Of the job `tikigate`.
    pub(super) async fn start(name: &'static str, plan: Plan) -> Arc<Self> {
        Self::of_job("tikigate", name, plan, |_, _| Vec::new()).await
    }

    /// With more variables that depend on where its files are.
    pub(super) async fn of_job(
        job: &'static str,
        name: &'static str,
        plan: Plan,
        variables: impl FnOnce(&Setup, IpAddr) -> Vec<(String, String)>,
    ) -> Arc<Self> {
        let ip = address_of_its_own();
        let mut setup = Setup::new(&plan.configuration(ip))
            .file("secret", SECRET.as_bytes())
            .file("token", TOKEN.as_bytes());
        for (file, content) in &plan.files {
            setup = setup.file(file, content);
        }
        std::fs::create_dir(setup.directory().join("data")).unwrap();
        let clock = setup.directory().join("clock");
        setup = setup.environment(OFFSET, clock.to_str().unwrap());
        let more = variables(&setup, ip);
        for (variable, value) in plan.environment.iter().chain(&more) {
            setup = setup.environment(variable, value);
        }
        let gate = Arc::new(Self {
            name,
            job,
            setup: Arc::new(setup),
            ip,
            through: plan.through,
            process: Mutex::new(None),
        });
        gate.begin().await;
        gate
    }

    /// Starts it, the first time or again.
    pub(super) async fn begin(&self) {
        let mut command = self.setup.command("serve");
        if let Some(words) = self.through {
            let mut shell = Command::new("bash");
            shell.args(["-c", words, "through"]);
            shell.arg(command.get_program()).args(command.get_args());
            for (name, value) in command.get_envs() {
                match value {
                    Some(value) => shell.env(name, value),
                    None => shell.env_remove(name),
                };
            }
            command = shell;
        }
        let setup = Arc::clone(&self.setup);
        let launch = move || GateProcess::launch(command, setup);
        let process = tokio::task::spawn_blocking(launch).await.unwrap();
        let process = process.unwrap_or_else(|fault| panic!("{}: {fault}", self.name));
        *self.process.lock().unwrap() = Some(process);
    }

    /// Ends it at once.
    pub(super) fn kill(&self) {
        self.process.lock().unwrap().take();
    }

    /// Sends its process a signal.
    pub(super) fn signal(&self, signal: rustix::process::Signal) {
        let process = self.process.lock().unwrap();
        process.as_ref().unwrap().signal(signal);
    }

    pub(super) fn address(&self) -> ListenAddress {
        ListenAddress::Tcp(SocketAddr::new(self.ip, 8080))
    }

    pub(super) fn admin(&self) -> ListenAddress {
        ListenAddress::Tcp(SocketAddr::new(self.ip, 9901))
    }

    pub(super) fn outbound(&self) -> ListenAddress {
        ListenAddress::Tcp(SocketAddr::new(self.ip, 8090))
    }

    pub(super) fn target(&self) -> Target {
        Target {
            job: self.job,
            instance: self.name.to_owned(),
            address: SocketAddr::new(self.ip, 9901),
        }
    }

    /// Sends a call.
    pub(super) async fn send(&self, call: &Call) -> RawAnswer {
        exchange(&self.address(), call.to_bytes()).await
    }

    /// Sends a call that may get no answer, or wait long for one.
    pub(super) async fn try_send(&self, call: &Call) -> Option<RawAnswer> {
        let patience = Duration::from_secs(30);
        exchange_if_there(&self.address(), call.to_bytes(), patience).await
    }

    /// The value of a series of its own metrics.
    pub(super) async fn metric(&self, series: &str) -> Option<f64> {
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let answer = exchange_if_there(&self.admin(), request, Duration::from_secs(5)).await?;
        let line = answer
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        line.parse().ok()
    }

    /// Rewrites a piece of its configuration.
    pub(super) fn change(&self, from: &str, to: &str) {
        let path = self.setup.config_path();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{}: no {from} in {text}", self.name);
        std::fs::write(path, text.replace(from, to)).unwrap();
    }
}

/// A refund of a payment of its own, signed now.
pub(super) fn refund_of(request: &str, payment: &str) -> Call {
    let body = refund(request, "1000").replace("p-1", payment);
    Call::post("/tiki/refund", body, SystemTime::now())
}

/// A notice of a payment, signed now.
pub(super) fn notice_of(payment: &str) -> Call {
    Call::post("/tiki/ipn", ipn(payment, "1000"), SystemTime::now())
}
