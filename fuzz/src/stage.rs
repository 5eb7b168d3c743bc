//! The whole gate on one thread: the server on a unix socket, the gate, and a backend that records.
//!
//! Time is the runtime's, which stands still while anybody has work and jumps to the next deadline
//! when nobody has: a caller who stops in the middle is timed out at once.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tikigate::clock::Clock;
use tikigate::config::{self, Settings};
use tikigate::gate::{Common, Gate};
use tikigate::ledger::{Ledger, MemoryLedger, MemoryLimits, Owner};
use tikigate::metrics::{ListenerName, Metrics, Sources};
use tikigate::server;
use tikigate::telemetry::LogHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::strict;
use super::template::{CLIENT, SECRET, start_time};

/// Longer than any of the gate's limits.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the backend answers.
const SUCCESS: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
    Content-Length: 29\r\n\r\n{\"data\":{\"status\":\"success\"}}";

/// Bytes that the backend got, by connection.
type Record = Arc<Mutex<Vec<Vec<u8>>>>;

/// A running gate and its backend.
pub(super) struct Stage {
    runtime: Runtime,
    address: PathBuf,
    common: Arc<Common>,
    record: Record,
    _directory: TempDir,
}

/// What became of bytes that were sent.
pub(super) struct Outcome {
    /// What the caller read until the connection's end.
    pub(super) answered: Vec<u8>,
    /// What the backend got meanwhile; one entry a connection.
    pub(super) forwarded: Vec<Vec<u8>>,
}

impl Stage {
    /// Starts both.
    pub(super) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        write_private(&path("secret"), SECRET);
        let text = configuration(directory.path());
        let loaded = config::load_text(&text, "stage.toml", directory.path(), &[]);
        let settings = Arc::new(loaded.expect("a configuration").settings);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let record = Record::default();
        let common = runtime.block_on(async {
            let backend = UnixListener::bind(path("backend.sock")).expect("a backend");
            tokio::spawn(accept(backend, Arc::clone(&record)));
            start_gate(&settings)
        });
        Self {
            runtime,
            address: path("gate.sock"),
            common,
            record,
            _directory: directory,
        }
    }

    /// Sends bytes, says that no more will come, and reads until the gate has closed and is done.
    ///
    /// # Panics
    /// When the gate does not close.
    pub(super) fn send(&self, bytes: &[u8]) -> Outcome {
        let answered = self.runtime.block_on(async {
            let stream = UnixStream::connect(&self.address)
                .await
                .expect("a connection");
            let (mut from_gate, mut to_gate) = stream.into_split();
            let sending = async {
                // The gate may answer and close before it has read everything.
                let _ = to_gate.write_all(bytes).await;
                let _ = to_gate.shutdown().await;
            };
            let reading = async {
                let mut answered = Vec::new();
                // A reset is an end too.
                let _ = from_gate.read_to_end(&mut answered).await;
                answered
            };
            let both = async { tokio::join!(sending, reading).1 };
            let answered = tokio::time::timeout(PATIENCE, both).await;
            let answered = answered.expect("the gate closes");
            let settled = tokio::time::timeout(PATIENCE, self.common.calls().settled()).await;
            settled.expect("what runs detached ends");
            answered
        });
        Outcome {
            answered,
            forwarded: self.take_record(),
        }
    }

    /// What came since the last time; connections that are kept go on in their place.
    fn take_record(&self) -> Vec<Vec<u8>> {
        let mut record = self.record.lock().expect("no panic while recording");
        let streams = record.iter_mut().map(std::mem::take);
        streams.filter(|bytes| !bytes.is_empty()).collect()
    }
}

fn configuration(directory: &Path) -> String {
    let at = directory.display();
    let route = |name: &str, method: &str, payload: &str| {
        format!(
            "[[routes]]\nname = \"{name}\"\npath = \"/tiki/{name}\"\nmethod = \"{method}\"\npayload = \"{payload}\"\n"
        )
    };
    let routes = [
        route("ipn", "POST", "transaction_ipn"),
        route("order", "POST", "order_ipn"),
        route("refund", "POST", "refund"),
        route("any", "POST", "any"),
        route("order-status", "GET", "any"),
    ];
    format!(
        r#"
[server]
listen = "unix:{at}/gate.sock"
workers = 1
per_address = {{ per_second = 1000000, burst = 1000000 }}
[admin]
listen = "unix:{at}/admin.sock"
[upstreams.legacy]
url = "unix:{at}/backend.sock"
host = "backend.test"
[[clients]]
id = "{CLIENT}"
name = "wallet"
environment = "production"
secrets = [{{ name = "now", file = "secret" }}]
rate = {{ per_second = 1000000, burst = 1000000 }}
{}
[ledger]
store = "memory"
allow_volatile = true
[log]
level = "error"
"#,
        routes.concat()
    )
}

/// As `app` puts a worker together, without its threads.
fn start_gate(settings: &Arc<Settings>) -> Arc<Common> {
    let (clock, _) = Clock::manual(start_time());
    let limits = MemoryLimits {
        max_records: 1_000_000,
        max_bytes: 1 << 30,
    };
    let ledger: Arc<dyn Ledger> = Arc::new(MemoryLedger::new(clock.clone(), limits));
    for (namespace, definition) in Common::namespaces(settings) {
        // In memory it is done at once; what is awaited is for other stores.
        drop(ledger.define(namespace, definition));
    }
    let owner = Owner(1);
    let common = Common::new(Arc::clone(settings), clock, ledger, owner).expect("a gate");
    let metrics = Metrics::new(Common::labels(settings, Sources::default()), 1);
    let log = LogHandle::to(&settings.log, 1, io::sink()).expect("a log");
    let gate = Gate::new(Arc::clone(&common), metrics.worker(0), log.access(0), 1);
    let listener = server::bind(&settings.server.listen, 1)
        .expect("a listener")
        .remove(0);
    let serving = server::serve(
        listener,
        server::Policy::from(&settings.server).current(),
        Arc::new(server::Shared::new(
            100,
            ListenerName::Server,
            Arc::default(),
        )),
        gate.service::<server::Arriving>(),
        CancellationToken::new(),
        CancellationToken::new(),
    );
    tokio::spawn(async move { serving.await.expect("a gate that serves") });
    common
}

fn write_private(path: &Path, content: &str) {
    let mut options = std::fs::File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(content.as_bytes()));
    written.expect("a secret's file");
}

async fn accept(listener: UnixListener, record: Record) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let index = {
            let mut record = record.lock().expect("no panic while recording");
            record.push(Vec::new());
            record.len() - 1
        };
        let record = Arc::clone(&record);
        tokio::spawn(async move {
            // An error is the gate's going away.
            let _ = answer(stream, index, &record).await;
        });
    }
}

/// Answers each request that can be read strictly; at one that can't, closes.
async fn answer(mut stream: UnixStream, index: usize, record: &Record) -> io::Result<()> {
    let mut unread = Vec::new();
    loop {
        let before = unread.len();
        if stream.read_buf(&mut unread).await? == 0 {
            return Ok(());
        }
        record.lock().expect("no panic while recording")[index].extend(&unread[before..]);
        match strict::read(&unread) {
            Ok(requests) => {
                unread.clear();
                for _ in requests {
                    stream.write_all(SUCCESS).await?;
                }
            }
            Err(strict::Fault::Incomplete) => {}
            Err(strict::Fault::Malformed(_)) => return Ok(()),
        }
    }
}
