//! The real binary with its outbox in a file: over restarts, edits of its configuration and restores.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tikigate::cli::fake_tiki::{
    Action, Call, FakeTiki, Options, Order, Outgoing, Transaction, Wanted,
};
use tikigate::net::ListenAddress;

use super::lab::{notice, post};
use crate::crash::world::address_of_its_own;
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{CLIENT, SECRET};
use crate::support::gate_process::{GateProcess, NotReady, Setup};
use crate::support::raw::{RawAnswer, exchange, exchange_if_there};
use crate::support::{PATIENCE, in_time};

/// A gate's files and addresses, which outlive its processes.
pub(super) struct Place {
    pub(super) setup: Arc<Setup>,
    ip: std::net::IpAddr,
}

impl Place {
    pub(super) fn new(backend: &str, base_url: &str, keys: &str) -> Self {
        Self::with(backend, base_url, keys, |setup| setup)
    }

    /// On a PostgreSQL ledger that others may share.
    pub(super) fn sharing(url: &str, backend: &str, base_url: &str) -> Self {
        Self::with(backend, base_url, "", |setup| {
            let text = std::fs::read_to_string(setup.config_path()).unwrap();
            let text = text.replace(
                FILE,
                "store = \"postgres\"\nurl = { env = \"DATABASE_URL\" }\n",
            );
            std::fs::write(setup.config_path(), text).unwrap();
            setup.environment("DATABASE_URL", url)
        })
    }

    fn with(backend: &str, base_url: &str, keys: &str, change: impl Fn(Setup) -> Setup) -> Self {
        let ip = address_of_its_own();
        let text = configuration(ip, backend, base_url, keys);
        let setup = change(Setup::new(&text).file("secret", SECRET.as_bytes()));
        std::fs::create_dir(setup.directory().join("data")).unwrap();
        Self {
            setup: Arc::new(setup),
            ip,
        }
    }

    /// Puts another configuration in the place of this one.
    fn reconfigure(&self, backend: &str, base_url: &str, keys: &str) {
        let text = configuration(self.ip, backend, base_url, keys);
        std::fs::write(self.setup.config_path(), text).unwrap();
    }

    /// Starts a gate, with these variables.
    pub(super) async fn start(
        &self,
        environment: &[(String, String)],
    ) -> Result<GateProcess, NotReady> {
        let mut command = self.setup.command("serve");
        for (name, value) in environment {
            command.env(name, value);
        }
        let setup = Arc::clone(&self.setup);
        tokio::task::spawn_blocking(move || GateProcess::launch(command, setup))
            .await
            .unwrap()
    }

    pub(super) async fn run(&self) -> GateProcess {
        self.start(&[])
            .await
            .unwrap_or_else(|fault| panic!("{fault}"))
    }

    pub(super) fn outbound(&self) -> ListenAddress {
        ListenAddress::Tcp(SocketAddr::new(self.ip, 8090))
    }

    fn admin(&self) -> ListenAddress {
        ListenAddress::Tcp(SocketAddr::new(self.ip, 9901))
    }

    /// Posts a notice; none if the gate is gone.
    pub(super) async fn post(&self, body: &str) -> Option<RawAnswer> {
        exchange_if_there(&self.outbound(), post("/payment/ipn", &[], body), PATIENCE).await
    }

    /// The value of a series; none if the gate is gone.
    pub(super) async fn metric(&self, series: &str) -> Option<f64> {
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let answer = exchange_if_there(&self.admin(), request, PATIENCE).await?;
        let line = answer
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        line.parse().ok()
    }

    pub(super) async fn wait_until_delivered(&self) {
        in_time("the outbox to be empty", async {
            while self.metric("tikigate_outbox_pending").await != Some(0.0) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Runs a command of the binary on this place's configuration.
    async fn command(&self, arguments: &[&str]) -> String {
        let mut command = self.setup.command(arguments[0]);
        command.args(&arguments[1..]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}{told}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The deliveries, by `tikigate outbox list`.
    async fn deliveries(&self) -> Vec<Value> {
        let list = self
            .command(&["outbox", "list", "--format", "json", "--limit", "10000"])
            .await;
        let list: Value = serde_json::from_str(&list).unwrap();
        list["deliveries"].as_array().unwrap().clone()
    }

    /// What became of a transaction's, with their events.
    pub(super) async fn deliveries_of(&self, transaction: &str) -> Vec<String> {
        let mut shown = Vec::new();
        for delivery in self.deliveries().await {
            if delivery["tiki_transaction_id"] == transaction {
                let id = delivery["id"].as_str().unwrap();
                shown.push(self.command(&["outbox", "show", id]).await);
            }
        }
        shown
    }

    /// Where the ledger lies.
    pub(super) fn data(&self) -> std::path::PathBuf {
        self.setup.directory().join("data")
    }

    fn database(&self) -> std::path::PathBuf {
        self.data().join("tikigate.db")
    }
}

/// The ledger in a file.
const FILE: &str = "path = \"data/tikigate.db\"\nallow_unsafe_filesystem = true\n";

fn configuration(ip: std::net::IpAddr, backend: &str, base_url: &str, keys: &str) -> String {
    format!(
        r#"
[server]
listen = "{ip}:8080"
workers = 1
drain_delay = "0s"
[admin]
listen = "{ip}:9901"
[upstreams.legacy]
url = "{backend}"
[[clients]]
id = "{CLIENT}"
name = "wallet"
secrets = [{{ name = "now", file = "secret" }}]
[[routes]]
name = "ipn"
path = "/tiki/ipn"
payload = "transaction_ipn"
confirm = true
[ledger]
{FILE}[outbound]
listen = "{ip}:8090"
retry_after = "20ms"
longest_pause = "200ms"
timeout = "2s"
rate = {{ per_second = 100000, burst = 100000 }}
max_deliveries = 4
{keys}
[[outbound.accounts]]
client = "wallet"
base_url = "{base_url}"
"#
    )
}

pub(super) async fn tiki() -> Arc<FakeTiki> {
    let options = Options::default().client(CLIENT, SECRET);
    Arc::new(FakeTiki::start(options).await.unwrap())
}

pub(super) fn knows(tiki: &FakeTiki, id: &str) {
    let known = Transaction::pending(id, format!("p-{id}"), "1000", CLIENT);
    tiki.put_transaction(known.unwrap());
}

async fn backend() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

async fn end(mut gate: GateProcess) {
    let ended = tokio::task::spawn_blocking(move || gate.terminate())
        .await
        .unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_outlives_stops_and_kills_and_is_delivered() {
    let (tiki, backend) = (tiki().await, backend().await);
    let place = Place::new(&backend.url(), &tiki.base_url(), "");
    tiki.stop().await;
    let mut gate = place.run().await;
    for number in 0..60 {
        let id = format!("T-{number}");
        knows(&tiki, &id);
        let answer = place.post(&notice(&id, "1000", "SUCCESS")).await.unwrap();
        assert_eq!(answer.status, 202);
        if number == 20 {
            end(gate).await;
            gate = place.run().await;
        }
        if number == 40 {
            gate.kill();
            gate = place.run().await;
        }
    }
    assert_eq!(place.metric("tikigate_outbox_pending").await, Some(60.0));
    // The gate writes all the while, and the file it is.
    for _ in 0..12 {
        let file = place.database().display().to_string();
        place.command(&["ledger", "verify", &file]).await;
    }
    tiki.start_again().await.unwrap();
    place.wait_until_delivered().await;
    let counts = tiki.counts();
    assert_eq!(counts.taken.len(), 60);
    assert!(
        counts.taken.values().all(|taken| taken.success == 1),
        "{counts:?}"
    );
    assert_eq!(counts.refused_signatures, 0);
    end(gate).await;
}

/// A stop lets what is at Tiki be answered: it is not sent a second time for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_what_is_at_tiki() {
    let (tiki, backend) = (tiki().await, backend().await);
    let place = Place::new(&backend.url(), &tiki.base_url(), "");
    knows(&tiki, "T-1");
    tiki.order(Order::new(Wanted::Ipn, Action::ApplyThenHang { ms: 1200 }))
        .unwrap();
    let gate = place.run().await;
    assert_eq!(
        place
            .post(&notice("T-1", "1000", "SUCCESS"))
            .await
            .unwrap()
            .status,
        202
    );
    tiki.wait_for_calls(1).await;
    end(gate).await;
    let gate = place.run().await;
    let deliveries = place.deliveries().await;
    assert_eq!(
        (&deliveries[0]["state"], &deliveries[0]["tries"]),
        (&"delivered".into(), &1.into())
    );
    assert_eq!(tiki.counts().calls, 1);
    end(gate).await;
}

/// Notices that were accepted are not forgotten by an edit of the configuration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_delivered_after_the_switch_to_direct_and_told_of_without_outbound() {
    let (tiki, backend) = (tiki().await, backend().await);
    let place = Place::new(&backend.url(), &tiki.base_url(), "");
    knows(&tiki, "T-1");
    tiki.stop().await;
    let gate = place.run().await;
    assert_eq!(
        place
            .post(&notice("T-1", "1000", "SUCCESS"))
            .await
            .unwrap()
            .status,
        202
    );
    end(gate).await;

    let text = std::fs::read_to_string(place.setup.config_path()).unwrap();
    let without = text
        .split("[outbound]")
        .next()
        .unwrap()
        .replace("confirm = true", "");
    std::fs::write(place.setup.config_path(), without).unwrap();
    let gate = place.run().await;
    gate_line(&gate, "accepted and are not delivered").await;
    end(gate).await;

    place.reconfigure(&backend.url(), &tiki.base_url(), "delivery = \"direct\"");
    tiki.start_again().await.unwrap();
    let gate = place.run().await;
    place.wait_until_delivered().await;
    assert_eq!(tiki.counts().taken["T-1"].success, 1);
    // What is posted now is passed on.
    let answer = place.post(&notice("T-1", "1000", "SUCCESS")).await.unwrap();
    assert_eq!(
        (answer.status, answer.json()["code"].as_i64()),
        (200, Some(0))
    );
    end(gate).await;
}

/// A row pins where it goes: an edit of the configuration sends it nowhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_for_one_base_url_is_held_and_not_sent_to_another() {
    let (tiki, elsewhere, backend) = (tiki().await, tiki().await, backend().await);
    let place = Place::new(&backend.url(), &tiki.base_url(), "");
    for tiki in [&tiki, &elsewhere] {
        knows(tiki, "T-1");
        knows(tiki, "T-2");
    }
    tiki.stop().await;
    let gate = place.run().await;
    assert_eq!(
        place
            .post(&notice("T-1", "1000", "SUCCESS"))
            .await
            .unwrap()
            .status,
        202
    );
    end(gate).await;

    place.reconfigure(&backend.url(), &elsewhere.base_url(), "");
    let gate = place.run().await;
    assert_eq!(
        place
            .post(&notice("T-2", "1000", "SUCCESS"))
            .await
            .unwrap()
            .status,
        202
    );
    in_time("the other notice to be delivered", async {
        while elsewhere.counts().ipn < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(place.metric("tikigate_outbox_held").await, Some(1.0));
    assert!(
        elsewhere
            .seen_after(0)
            .iter()
            .all(|call| call.transaction.as_deref() != Some("T-1"))
    );
    end(gate).await;

    place.reconfigure(&backend.url(), &tiki.base_url(), "");
    tiki.start_again().await.unwrap();
    let gate = place.run().await;
    place.wait_until_delivered().await;
    assert_eq!(place.metric("tikigate_outbox_held").await, Some(0.0));
    assert_eq!(tiki.counts().taken["T-1"].success, 1);
    end(gate).await;
}

/// What an old backup has as undelivered may be delivered, cancelled or overtaken since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restore_tiki_is_asked_before_anything_is_sent() {
    let (tiki, backend) = (tiki().await, backend().await);
    let place = Place::new(&backend.url(), &tiki.base_url(), "");
    for id in ["delivered", "new"] {
        knows(&tiki, id);
    }
    tiki.stop().await;
    let gate = place.run().await;
    for id in ["delivered", "new"] {
        assert_eq!(
            place
                .post(&notice(id, "1000", "SUCCESS"))
                .await
                .unwrap()
                .status,
            202
        );
    }
    let copy = place.setup.directory().join("backup.db");
    place
        .command(&["ledger", "backup", copy.to_str().unwrap()])
        .await;
    let file = place.database().display().to_string();
    place.command(&["ledger", "verify", &file]).await;
    // Of the two, one gets there before the file is lost.
    tiki.order(
        Order::new(
            Wanted::Any,
            Action::Http {
                status: 503,
                body: String::new(),
                apply: false,
            },
        )
        .transaction("new")
        .times(1_000_000),
    )
    .unwrap();
    tiki.start_again().await.unwrap();
    in_time("one to be delivered", async {
        while tiki
            .counts()
            .taken
            .get("delivered")
            .is_none_or(|taken| taken.success == 0)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    end(gate).await;
    place
        .command(&["ledger", "restore", copy.to_str().unwrap()])
        .await;
    tiki.clear_orders();
    let before = tiki.counts().calls;
    let gate = place.run().await;
    place.wait_until_delivered().await;
    let mut calls: Vec<_> = tiki
        .seen_after(before)
        .into_iter()
        .map(|call| (call.transaction.unwrap(), call.call))
        .collect();
    calls.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(
        calls,
        [
            ("delivered".to_owned(), Call::Status),
            ("new".to_owned(), Call::Status),
            ("new".to_owned(), Call::Ipn),
        ]
    );
    assert_eq!(tiki.counts().taken["delivered"].success, 1);
    end(gate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_what_a_person_must_know_and_no_secret() {
    let (tiki, backend) = (tiki().await, backend().await);
    let place = Place::new(&backend.url(), &tiki.base_url(), "give_up_after = \"1s\"");
    let gate = place.run().await;
    // Refused: nobody knows this transaction.
    assert_eq!(
        place
            .post(&notice("nobodys", "1000", "SUCCESS"))
            .await
            .unwrap()
            .status,
        202
    );
    gate_line(&gate, "the customer is to be refunded").await;
    // Never clear.
    knows(&tiki, "unclear");
    tiki.order(
        Order::new(
            Wanted::Any,
            Action::Http {
                status: 503,
                body: String::new(),
                apply: false,
            },
        )
        .transaction("unclear")
        .times(100_000),
    )
    .unwrap();
    assert_eq!(
        place
            .post(&notice("unclear", "1000", "SUCCESS"))
            .await
            .unwrap()
            .status,
        202
    );
    let line = gate_line(&gate, "a person has to look").await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["tikigate.outcome"], &line["tiki_transaction_id"]),
        (&"gave_up".into(), &"unclear".into())
    );
    assert_eq!(line["tikigate.delivery"], "out-2");
    // An inbound notice that Tiki contradicts: both values.
    knows(&tiki, "lie");
    let url = format!("http://{}/tiki/ipn", gate.address());
    let outgoing = Outgoing::post(url, notice("lie", "5000", "FAILURE"), CLIENT);
    let reply = tiki.call(&outgoing).await.unwrap();
    assert_eq!(reply.status, 422, "{}", reply.body);
    let line = gate_line(&gate, "not what Tiki says of the transaction").await;
    let line: Value = serde_json::from_str(&line).unwrap();
    for (key, value) in [
        ("transaction_amount", "5000"),
        ("status", "FAILURE"),
        ("tikis_amount", "1000"),
        ("tikis_status", "PENDING"),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!(place.deliveries().await.len(), 2);
    let signatures: Vec<String> = tiki
        .seen_after(0)
        .into_iter()
        .flat_map(|call| call.headers)
        .filter(|(name, _)| name.eq_ignore_ascii_case("x-tikivip-signature"))
        .map(|(_, value)| value)
        .collect();
    assert!(signatures.len() > 3);
    let log = gate.lines().join("\n");
    assert!(!log.contains(SECRET) && signatures.iter().all(|signature| !log.contains(signature)));
    end(gate).await;
}

async fn gate_line(gate: &GateProcess, words: &str) -> String {
    in_time(words, async {
        loop {
            if let Some(line) = gate.lines().into_iter().find(|line| line.contains(words)) {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// Through a unix socket, which needs no token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_listener_can_be_a_unix_socket() {
    let (tiki, backend) = (tiki().await, backend().await);
    let place = Place::new(&backend.url(), &tiki.base_url(), "");
    let text = std::fs::read_to_string(place.setup.config_path()).unwrap();
    let socket = place.setup.directory().join("out.sock");
    let text = text.replace(
        &format!("listen = \"{}:8090\"", place.ip),
        &format!("listen = \"unix:{}\"", Path::new("out.sock").display()),
    );
    std::fs::write(place.setup.config_path(), text).unwrap();
    let gate = place.run().await;
    let answer = exchange(&ListenAddress::Unix(socket), post("/webview", &[], "{}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    end(gate).await;
}
