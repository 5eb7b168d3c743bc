//! A gate without listeners over a ledger that fails on order, called as the server would call it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tempfile::TempDir;
use tikigate::clock::{Clock, ManualClock};
use tikigate::config;
use tikigate::gate::{Common, Gate};
use tikigate::ledger::{Filter, Ledger, Owner, Record, State};
use tikigate::metrics::{Metrics, Sources};
use tikigate::net::{Arrived, Peer};
use tikigate::telemetry::LogHandle;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use super::changed;
use super::faulty_ledger::FaultyLedger;
use crate::support::gate::{Call, OTHER_SECRET, SECRET, start_time};
use crate::support::in_time;

/// The gate; it runs on the test's runtime.
pub(super) struct Lab {
    pub(super) common: Arc<Common>,
    pub(super) ledger: Arc<FaultyLedger>,
    pub(super) gate: Arc<Gate>,
    clock: Clock,
    hands: ManualClock,
    _log: LogHandle,
    _directory: TempDir,
}

/// What a caller got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Got {
    pub(super) status: u16,
    pub(super) replayed: bool,
    pub(super) body: String,
}

impl Got {
    /// Whether it is this refusal.
    pub(super) fn is(&self, status: u16, code: &str) -> bool {
        self.status == status && self.body.contains(&format!(r#""code":"{code}""#))
    }
}

impl Lab {
    pub(super) fn start(backend: &str, changes: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("secret"), SECRET).unwrap();
        std::fs::write(directory.path().join("other-secret"), OTHER_SECRET).unwrap();
        let toml = changed(backend, changes);
        let loaded = config::load_text(&toml, "test.toml", directory.path(), &[]);
        let settings = Arc::new(
            loaded
                .unwrap_or_else(|problems| panic!("{problems:#?}"))
                .settings,
        );
        let (clock, hands) = Clock::manual(start_time());
        let ledger = FaultyLedger::new(clock.clone());
        let as_ledger = Arc::clone(&ledger) as Arc<dyn Ledger>;
        let common =
            Common::new(Arc::clone(&settings), clock.clone(), as_ledger, Owner(1)).unwrap();
        let metrics = Metrics::new(Common::labels(&settings, Sources::default()), 1);
        let log = LogHandle::to(&settings.log, 1, std::io::sink()).unwrap();
        let gate = Gate::new(Arc::clone(&common), metrics.worker(0), log.access(0), 7);
        Self {
            common,
            ledger,
            gate,
            clock,
            hands,
            _log: log,
            _directory: directory,
        }
    }

    /// Moves the gate's time.
    pub(super) fn advance(&self, by: Duration) {
        self.hands.advance(by);
    }

    pub(super) fn signed(&self, path: &str, body: &str) -> Call {
        Call::post(path, body, self.clock.now())
    }

    /// Sends a call and waits for its answer.
    pub(super) async fn send(&self, call: &Call) -> Got {
        in_time("an answer", self.begin(call)).await.unwrap()
    }

    /// Sends a call signed now and waits for its answer.
    pub(super) async fn post(&self, path: &str, body: &str) -> Got {
        self.send(&self.signed(path, body)).await
    }

    /// Sends a call.
    pub(super) fn begin(&self, call: &Call) -> JoinHandle<Got> {
        let mut request = http::Request::builder()
            .method(call.method)
            .uri(&call.target);
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        let arrived = Arrived {
            request: Box::new(
                request
                    .body(Full::new(Bytes::from(call.body.clone())))
                    .unwrap(),
            ),
            peer: Peer::Tcp("192.0.2.1:4000".parse().unwrap()),
            first_byte: Instant::now(),
        };
        let service = self.gate.service::<Full<Bytes>>();
        tokio::spawn(async move {
            let response = service.oneshot(arrived).await.unwrap();
            let status = response.status().as_u16();
            let replayed = response.headers().contains_key("idempotency-replayed");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            Got {
                status,
                replayed,
                body: String::from_utf8(body.to_vec()).unwrap(),
            }
        })
    }

    /// The record of a message's key.
    pub(super) async fn record(&self, message_key: &str) -> Option<Record> {
        let filter = Filter {
            query: Some(message_key.to_owned()),
            limit: 2,
            ..Filter::default()
        };
        let mut records = self.ledger.list(filter).await.unwrap().records;
        assert!(records.len() < 2, "{records:?}");
        records.pop()
    }

    pub(super) async fn state(&self, message_key: &str) -> Option<State> {
        self.record(message_key).await.map(|record| record.state)
    }

    /// Waits until the detached calls have ended; no further call may follow.
    pub(super) async fn settled(&self) {
        in_time("the detached calls to end", self.common.calls().settled()).await;
    }
}
