//! A gate in this process, with a clock that the test moves, in front of a backend that records.
//!
//! ```text
//! let backend = Backend::start(|_| Answer::success().into()).await;
//! let gate = TestGate::start(&backend.url()).await;
//! let answer = gate.post("/tiki/refund", &refund("r-1", "1000")).await;
//! ```

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use tikigate::app::{App, PassedSockets, Source, Stopper};
use tikigate::clock::{Clock, ManualClock};
use tikigate::config;
use tikigate::ledger::{Event, Filter, Ledger, Record, State};
use tikigate::net::ListenAddress;
use tikigate::telemetry::LogHandle;
use tikigate::tiki::{Family, SigningKey, Timestamp};

use super::in_time;
use super::raw::{RawAnswer, RawClient, exchange};

/// The client key of the published examples.
pub(crate) const CLIENT: &str = "RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W";
/// Its secret in these tests.
pub(crate) const SECRET: &str = "EhjGcsUUuRSJTHiYPbW5fxzyaKEx0JuAZIKRQ4HnIfNFidB2kMg6locQbTIEz3Vf";
/// A second client with a secret of its own; it may call `/tiki/any` alone.
pub(crate) const OTHER_CLIENT: &str = "a.b.c";
/// Its secret.
pub(crate) const OTHER_SECRET: &str = "another-secret-of-another-client";

/// When the tests' clock starts.
pub(crate) fn start_time() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_667_980_513_000)
}

/// The usual configuration: a route of each kind in front of one backend.
///
/// | path | payload | duplicates |
/// |---|---|---|
/// | `/tiki/ipn` | transaction_ipn | resend |
/// | `/tiki/order` | order_ipn | resend |
/// | `/tiki/refund` | refund | hold |
/// | `/tiki/any` | any, POST | none |
/// | `/tiki/order-status` | any, GET | none |
pub(crate) fn usual(backend: &str) -> String {
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
workers = 2
drain_delay = "0s"
drain_within = "20s"
per_address = {{ per_second = 100000, burst = 100000 }}
[admin]
listen = "127.0.0.1:0"
[upstreams.legacy]
url = "{backend}"
connect_timeout = "500ms"
answer_within = "1s"
settle_within = "4s"
[signature]
max_age = "5m"
max_ahead = "1m"
[[clients]]
id = "{CLIENT}"
name = "wallet"
environment = "production"
partner_code = "VNPAY"
secrets = [{{ name = "now", file = "secret" }}]
rate = {{ per_second = 100000, burst = 100000 }}
[[clients]]
id = "{OTHER_CLIENT}"
name = "other"
environment = "production"
secrets = [{{ name = "now", file = "other-secret" }}]
rate = {{ per_second = 100000, burst = 100000 }}
[[routes]]
name = "ipn"
path = "/tiki/ipn"
method = "POST"
payload = "transaction_ipn"
clients = ["wallet"]
[[routes]]
name = "order"
path = "/tiki/order"
method = "POST"
payload = "order_ipn"
clients = ["wallet"]
[[routes]]
name = "refund"
path = "/tiki/refund"
method = "POST"
payload = "refund"
clients = ["wallet"]
[[routes]]
name = "any"
path = "/tiki/any"
method = "POST"
payload = "any"
upstream_path = "/legacy.php?call=any"
[[routes]]
name = "order-status"
path = "/tiki/order-status"
method = "GET"
payload = "any"
clients = ["wallet"]
[ledger]
store = "memory"
allow_volatile = true
[log]
level = "info"
"#
    )
}

/// The usual configuration with pieces replaced.
pub(crate) fn changed(backend: &str, changes: &[(&str, &str)]) -> String {
    let mut toml = usual(backend);
    for (from, to) in changes {
        assert!(toml.contains(from), "the usual configuration has no {from}");
        toml = toml.replace(from, to);
    }
    toml
}

/// A running gate.
pub(crate) struct TestGate {
    app: Option<App>,
    stopper: Stopper,
    address: ListenAddress,
    admin_address: ListenAddress,
    ledger: Arc<dyn Ledger>,
    hands: ManualClock,
    clock: Clock,
    log: LogHandle,
    lines: Lines,
    directory: TempDir,
}

impl TestGate {
    /// With the usual configuration.
    pub(crate) async fn start(backend: &str) -> Self {
        Self::with(&usual(backend)).await
    }

    /// With another one. The secrets' files are there; relative paths are relative to their directory.
    pub(crate) async fn with(toml: &str) -> Self {
        Self::at(toml, start_time()).await
    }

    /// The same, with a clock that starts at another time.
    pub(crate) async fn at(toml: &str, start: SystemTime) -> Self {
        let directory = directory();
        let loaded = config::load_text(toml, "test.toml", directory.path(), &[]);
        Self::run(directory, None, loaded, start)
    }

    /// Of a configuration in a file, which is taken anew when it changes, or a file that it names does.
    /// `files` are beside it.
    pub(crate) async fn watched(toml: &str, files: &[(&str, &str)]) -> Self {
        let directory = directory();
        for (name, content) in files {
            write_private(&directory, name, content);
        }
        let path = directory.path().join("tikigate.toml");
        std::fs::write(&path, toml).unwrap();
        let (source, loaded) = Source::read(path, Vec::new());
        Self::run(directory, Some(source), loaded, start_time())
    }

    fn run(
        directory: TempDir,
        source: Option<Source>,
        loaded: Result<config::Loaded, Vec<config::Problem>>,
        start: SystemTime,
    ) -> Self {
        let loaded = loaded.unwrap_or_else(|problems| panic!("{problems:#?}"));
        let (clock, hands) = Clock::manual(start);
        let lines = Lines::default();
        let log = LogHandle::to(
            &loaded.settings.log,
            loaded.settings.server.workers,
            lines.clone(),
        )
        .unwrap();
        let app = App::start_from(
            source,
            PassedSockets::default(),
            loaded.settings,
            clock.clone(),
            &log,
        )
        .unwrap();
        Self {
            stopper: app.stopper(),
            address: app.address().clone(),
            admin_address: app.admin_address().clone(),
            ledger: Arc::clone(app.ledger()),
            app: Some(app),
            hands,
            clock,
            log,
            lines,
            directory,
        }
    }

    /// Puts another content into a file of the configuration's directory, at once.
    pub(crate) fn put(&self, name: &str, content: &str) {
        write_private(&self.directory, "next", content);
        let path = self.directory.path();
        std::fs::rename(path.join("next"), path.join(name)).unwrap();
    }

    /// How many changed configurations were taken, and refused.
    pub(crate) async fn reloads(&self) -> (u32, u32) {
        let count = |outcome| format!("tikigate_config_reloads_total{{outcome=\"{outcome}\"}}");
        let taken = self.metric(&count("taken")).await;
        let refused = self.metric(&count("refused")).await;
        (taken as u32, refused as u32)
    }

    /// Waits until the gate has noticed a change and taken or refused it.
    pub(crate) async fn reloaded(&self, before: (u32, u32)) -> (u32, u32) {
        let noticed = async {
            loop {
                let reloads = self.reloads().await;
                if reloads != before {
                    return reloads;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        in_time("the configuration to be read again", noticed).await
    }

    /// Has a changed configuration read now, and waits for what becomes of it: whether it was taken.
    pub(crate) async fn reload(&self, toml: &str) -> bool {
        let before = self.reloads().await;
        self.put("tikigate.toml", toml);
        self.app().reloader().ask();
        self.reloaded(before).await.0 > before.0
    }

    /// The body of `/readyz`.
    pub(crate) async fn readiness(&self) -> String {
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let answer = exchange(&self.admin_address, request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text().to_owned()
    }

    /// Where Tiki's calls go.
    pub(crate) fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Where the admin listener is.
    pub(crate) fn admin_address(&self) -> &ListenAddress {
        &self.admin_address
    }

    /// The directory of the configuration, with `admin.token` in it.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// The gate's time.
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// The gate's clock.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Where the backend's calls to Tiki go.
    pub(crate) fn outbound_address(&self) -> &ListenAddress {
        self.app().outbound_address().unwrap()
    }

    /// Moves the gate's time.
    pub(crate) fn advance(&self, by: Duration) {
        self.hands.advance(by);
    }

    /// A call signed now, by the usual client.
    pub(crate) fn signed(&self, path: &str, body: &str) -> Call {
        Call::post(path, body, self.now())
    }

    /// Sends a call signed now and gives its answer.
    pub(crate) async fn post(&self, path: &str, body: &str) -> RawAnswer {
        self.send(&self.signed(path, body)).await
    }

    /// Sends a call on a connection of its own and gives its answer.
    pub(crate) async fn send(&self, call: &Call) -> RawAnswer {
        exchange(&self.address, call.to_bytes()).await
    }

    /// Sends exactly these bytes on a connection of its own and gives the answer.
    pub(crate) async fn send_bytes(&self, bytes: impl AsRef<[u8]>) -> RawAnswer {
        exchange(&self.address, bytes).await
    }

    /// A connection to the gate.
    pub(crate) async fn connect(&self) -> RawClient {
        RawClient::connect(&self.address).await
    }

    /// The only record of a message's key, if there is one.
    pub(crate) async fn record(&self, message_key: &str) -> Option<Record> {
        let filter = Filter {
            query: Some(message_key.to_owned()),
            limit: 100,
            ..Filter::default()
        };
        let records = self.ledger.list(filter).await.unwrap().records;
        let mut exact = records
            .into_iter()
            .filter(|record| &*record.key.message == message_key);
        let record = exact.next();
        assert!(exact.next().is_none(), "several records of {message_key}");
        record
    }

    /// The state of a message's record.
    pub(crate) async fn state(&self, message_key: &str) -> Option<State> {
        self.record(message_key).await.map(|record| record.state)
    }

    /// A message's events, oldest first.
    pub(crate) async fn events(&self, message_key: &str) -> Vec<Event> {
        let Some(record) = self.record(message_key).await else {
            return Vec::new();
        };
        self.ledger.events(record.id).await.unwrap()
    }

    /// Waits until a message's record is in a state, which a detached call brings it to.
    pub(crate) async fn wait_for_state(&self, message_key: &str, state: State) {
        let reached = async {
            while self.state(message_key).await != Some(state) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        in_time(&format!("{message_key} to be {}", state.as_str()), reached).await;
    }

    /// The ledger itself.
    pub(crate) fn ledger(&self) -> &Arc<dyn Ledger> {
        &self.ledger
    }

    /// Ends the gate early.
    pub(crate) fn stopper(&self) -> &Stopper {
        &self.stopper
    }

    /// The app, for what only it can say.
    pub(crate) fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    /// The log so far, a line each.
    pub(crate) fn log(&self) -> Vec<serde_json::Value> {
        assert!(self.log.flush());
        let text = self.lines.text();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The log so far, as it was written.
    pub(crate) fn log_text(&self) -> String {
        assert!(self.log.flush());
        self.lines.text()
    }

    /// The text of `/metrics`.
    pub(crate) async fn metrics(&self) -> String {
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        exchange(&self.admin_address, request)
            .await
            .text()
            .to_owned()
    }

    /// The value of one series of `/metrics`, which must be spelled as there; 0 if it is absent.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let text = self.metrics().await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

impl Drop for TestGate {
    fn drop(&mut self) {
        self.stopper.hurry();
        if let Some(app) = self.app.take() {
            app.wait();
        }
    }
}

/// A call of Tiki's, signed; each part can be spoiled.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: &'static str,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Call {
    /// A POST by the usual client.
    pub(crate) fn post(path: &str, body: impl AsRef<[u8]>, at: SystemTime) -> Self {
        Self::post_as((CLIENT, SECRET), Family::TikiVip, path, body, at)
    }

    /// A POST by any client and family.
    pub(crate) fn post_as(
        client: (&str, &str),
        family: Family,
        path: &str,
        body: impl AsRef<[u8]>,
        at: SystemTime,
    ) -> Self {
        let body = body.as_ref().to_vec();
        let mut headers = vec![("Host".to_owned(), "gate.test".to_owned())];
        headers.push(("Content-Type".to_owned(), "application/json".to_owned()));
        headers.push(("Content-Length".to_owned(), body.len().to_string()));
        headers.extend(signature(client, family, &body, at));
        Self {
            method: "POST",
            target: path.to_owned(),
            headers,
            body,
        }
    }

    /// A GET by the usual client; path and query are signed as they are.
    pub(crate) fn get(target: &str, at: SystemTime) -> Self {
        let mut headers = vec![("Host".to_owned(), "gate.test".to_owned())];
        headers.extend(signature(
            (CLIENT, SECRET),
            Family::TikiVip,
            target.as_bytes(),
            at,
        ));
        Self {
            method: "GET",
            target: target.to_owned(),
            headers,
            body: Vec::new(),
        }
    }

    /// With one more header.
    pub(crate) fn and(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a header's value replaced, wherever it occurs.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        let mut replaced = false;
        for header in &mut self.headers {
            if header.0.eq_ignore_ascii_case(name) {
                value.clone_into(&mut header.1);
                replaced = true;
            }
        }
        assert!(replaced, "there is no {name} to replace");
        self
    }

    /// Without a header.
    pub(crate) fn without(mut self, name: &str) -> Self {
        let before = self.headers.len();
        self.headers
            .retain(|header| !header.0.eq_ignore_ascii_case(name));
        assert!(
            self.headers.len() < before,
            "there is no {name} to leave out"
        );
        self
    }

    /// To another target; the signature stays.
    pub(crate) fn to(mut self, target: &str) -> Self {
        target.clone_into(&mut self.target);
        self
    }

    /// With another method; the signature stays.
    pub(crate) fn by(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self
            .headers
            .iter()
            .find(|header| header.0.eq_ignore_ascii_case(name));
        &found.unwrap_or_else(|| panic!("there is no {name}")).1
    }

    /// The head as it goes over the wire.
    pub(crate) fn head(&self) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head
    }

    /// The whole call as it goes over the wire.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.head().into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// The three signature headers.
pub(crate) fn signature(
    (client, secret): (&str, &str),
    family: Family,
    signed: &[u8],
    at: SystemTime,
) -> Vec<(String, String)> {
    let timestamp = Timestamp::from_system_time(at).unwrap();
    let mac = SigningKey::from_secret(secret.as_bytes()).sign(timestamp, client, signed);
    vec![
        (
            family.timestamp_header().as_str().to_owned(),
            timestamp.to_string(),
        ),
        (
            family.client_id_header().as_str().to_owned(),
            client.to_owned(),
        ),
        (family.signature_header().as_str().to_owned(), mac.to_hex()),
    ]
}

/// A refund; the amount is written as given.
pub(crate) fn refund(request_id: &str, amount: &str) -> String {
    format!(
        r#"{{"tiki_transaction_id":"t-1","transaction_amount":{amount},"transaction_id":"p-1","reason":"Khách đổi ý","request_id":"{request_id}"}}"#
    )
}

/// A transaction IPN; its key in the ledger is [`ipn_key`].
pub(crate) fn ipn(transaction_id: &str, amount: &str) -> String {
    format!(
        r#"{{"tiki_transaction_id":"t-{transaction_id}","transaction_amount":{amount},"transaction_id":"{transaction_id}","status":"SUCCESS"}}"#
    )
}

/// The ledger's key of an [`ipn`].
pub(crate) fn ipn_key(transaction_id: &str) -> String {
    format!("t-{transaction_id}|{transaction_id}|SUCCESS")
}

/// An order IPN; its key is the message id.
pub(crate) fn order_ipn(message_id: &str, total: &str) -> String {
    format!(
        r#"{{"message_id":"{message_id}","message_type":"notification","message_created_at":"2022-11-09T14:55:13+07:00","order":{{"id":"o-1","status":"online_paid","grand_total":{total},"tiki_order_id":"1001","tiki_order_code":"308"}}}}"#
    )
}

/// With the clients' secrets in it.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    write_private(&directory, "secret", SECRET);
    write_private(&directory, "other-secret", OTHER_SECRET);
    directory
}

fn write_private(directory: &TempDir, name: &str, content: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let path = directory.path().join(name);
    let mut options = std::fs::File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(content.as_bytes()).unwrap();
}

/// Everything that was logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
