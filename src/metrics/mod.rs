//! Every metric's name and handle.
//!
//! Counted by hand, on relaxed atomics that belong to one worker each, and written by hand in
//! Prometheus' text format. The usual libraries were measured at five to ten times the instructions
//! per request (a handle looked up by its labels, an `Arc` or a lock on the way), and the names here
//! are an interface that dashboards and alerts rely on, so they stand in one readable list
//! (`render`). A scrape sums the workers' shards; a request touches only its own worker's memory,
//! takes no lock, formats nothing and allocates nothing.
//!
//! Routes, refusals and secrets are known before the first request, so each has its own cell and a
//! request names it by number; a reload gives each worker new numbers for cells that stay (`series`). Nothing that a caller sends ever becomes a label.

mod backends;
mod cells;
mod configuration;
mod exposition;
mod outbound;
mod process;
mod render;
mod series;
mod server;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

pub use backends::{AddressFigures, BreakerState};
use cells::{Cells, Histogram};
pub use configuration::ConfigurationMetrics;
pub use outbound::{Confirmation, OutboundCall, OutboundMetrics, OutboxFigures};
use series::Series;
pub use server::{ConnectionRefused, ListenerName, ServerMetrics, TlsVersion};

/// The `Content-Type` of [`Metrics::render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the gate counts by.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    /// Names of the routes, in the order of [`RouteLabel::new`]'s index.
    pub routes: Vec<String>,
    /// Each refusal as its error code and its reason, empty where it has none.
    pub refusals: Vec<(&'static str, &'static str)>,
    /// Each secret as its client's name and its own.
    pub secrets: Vec<(String, String)>,
    /// Numbers that others keep.
    pub sources: Sources,
}

/// What is counted under names that the configuration gives.
#[derive(Debug)]
struct AllSeries {
    /// By route, [`RouteLabel::UNMATCHED`]'s first.
    routes: Series<String, RouteCells>,
    /// By client and secret.
    secrets: Series<(String, String), Cells>,
}

/// Numbers that are kept where they arise and read at each scrape.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Inbound connections that are open; the server counts them.
    pub connections: Arc<AtomicUsize>,
    /// Log lines that were given up since the start; the log counts them.
    pub log_lines_dropped: Arc<AtomicU64>,
    /// What the listeners count.
    pub listeners: Arc<ServerMetrics>,
    /// What became of spans; none: there are none.
    pub spans: Option<Arc<SpanCounts>>,
}

/// What became of spans since the start.
#[derive(Debug, Default)]
pub struct SpanCounts {
    /// Taken by the collector.
    pub exported: AtomicU64,
    /// Given up since the queue was full.
    pub dropped: AtomicU64,
    /// Of batches that the collector did not take.
    pub failed: AtomicU64,
}

/// All metrics of one gate.
#[derive(Debug)]
pub struct Metrics {
    series: RwLock<AllSeries>,
    refusals: Vec<(&'static str, &'static str)>,
    sources: Sources,
    shards: Vec<Arc<Shard>>,
    signatures_remembered: AtomicUsize,
    limited_addresses: AtomicUsize,
    configuration: ConfigurationMetrics,
    ledger_commits: Histogram,
    outbound: OnceLock<Arc<OutboundMetrics>>,
}

impl Metrics {
    /// Makes room for every label, once for each of `workers` (at least one).
    ///
    /// A label that was there before is told apart by a number (`name#2`), since one series that
    /// appears twice would make a whole scrape fail.
    pub fn new(labels: Labels, workers: usize) -> Arc<Self> {
        let shards = (0..workers.max(1)).map(|_| Arc::new(Shard::new()));
        let metrics = Arc::new(Self {
            series: RwLock::new(AllSeries {
                routes: Series::new(),
                secrets: Series::new(),
            }),
            refusals: labels.refusals,
            sources: labels.sources,
            shards: shards.collect(),
            signatures_remembered: AtomicUsize::new(0),
            limited_addresses: AtomicUsize::new(0),
            configuration: ConfigurationMetrics::new(),
            ledger_commits: Histogram::new(&cells::COMMIT_DURATION),
            outbound: OnceLock::new(),
        });
        metrics.renew(labels.routes, labels.secrets);
        metrics
    }

    /// Counts by these routes and secrets from now on. Handles that were given out before go on
    /// counting by the numbers that they know; new ones know the new numbers.
    pub fn renew(&self, routes: Vec<String>, secrets: Vec<(String, String)>) {
        let routes = all_different(
            std::iter::once(UNMATCHED_NAME.to_owned()).chain(routes),
            |name, number| format!("{name}#{number}"),
        );
        let secrets = all_different(secrets, |(client, secret), number| {
            (client.clone(), format!("{secret}#{number}"))
        });
        let workers = self.shards.len();
        let refusals = self.refusals.len();
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        let AllSeries {
            routes: by_route,
            secrets: by_secret,
        } = &mut *series;
        by_route.renew(routes, workers, || RouteCells::new(refusals));
        by_secret.renew(secrets, workers, || Cells::new(1));
    }

    /// The handle of worker `n`, counted from 0. A number beyond the workers shares another's shard:
    /// slower, still right.
    pub fn worker(self: &Arc<Self>, n: usize) -> Worker {
        let n = n % self.shards.len();
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        Worker {
            shard: Arc::clone(&self.shards[n]),
            rows: Arc::new(Rows {
                routes: series.routes.rows_of(n),
                secrets: series.secrets.rows_of(n),
            }),
        }
    }

    /// The numbers that others keep, to be shared with them.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Sets how many signatures are remembered against being used again.
    pub fn set_signatures_remembered(&self, count: usize) {
        self.signatures_remembered.store(count, Ordering::Relaxed);
    }

    /// Sets how many addresses the limit per address keeps apart.
    pub fn set_limited_addresses(&self, count: usize) {
        self.limited_addresses.store(count, Ordering::Relaxed);
    }

    /// What is told of the configuration.
    pub fn configuration(&self) -> &ConfigurationMetrics {
        &self.configuration
    }

    /// Counts one durable commit of the ledger.
    pub fn ledger_commit(&self, took: Duration) {
        self.ledger_commits.observe_duration(took);
    }

    /// Shows what the outbound direction counts, from now on.
    pub fn show_outbound(&self, outbound: Arc<OutboundMetrics>) {
        // Shown already: it is the same for as long as the process lives.
        let _ = self.outbound.set(outbound);
    }

    /// The whole exposition, to be sent as [`CONTENT_TYPE`].
    ///
    /// Reads `/proc/self` for the `process_*` families; where that can't be read, they are left out.
    pub fn render(&self, ledger: &LedgerFigures) -> String {
        render::exposition(self, ledger, &process::Figures::read())
    }
}

const UNMATCHED_NAME: &str = "unmatched";

/// The route that a request is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteLabel(usize);

impl RouteLabel {
    /// All requests that match no route, under one label.
    pub const UNMATCHED: Self = Self(0);

    /// The route at this index of [`Labels::routes`].
    pub const fn new(index: usize) -> Self {
        Self(index.saturating_add(1))
    }
}

/// What a look at the backend saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// The call was applied.
    Applied,
    /// It was not.
    NotApplied,
    /// Neither.
    CantSay,
}

impl ProbeResult {
    /// Every result.
    pub const ALL: [Self; 3] = [Self::Applied, Self::NotApplied, Self::CantSay];

    /// The word for it in log and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::NotApplied => "not_applied",
            Self::CantSay => "cant_say",
        }
    }
}

/// What was done about a message that another one about the same order or payment makes suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// An event older than one that was passed on: passed on with a mark.
    StaleMarked,
    /// The same: answered and not passed on.
    StaleDropped,
    /// One more refund of a payment's amount: passed on with a mark.
    DuplicateMarked,
    /// The same: held for a person.
    DuplicateHeld,
}

impl Suspicion {
    const STALE: [Self; 2] = [Self::StaleMarked, Self::StaleDropped];
    const DUPLICATE: [Self; 2] = [Self::DuplicateMarked, Self::DuplicateHeld];
    const COUNT: usize = Self::STALE.len() + Self::DUPLICATE.len();

    /// Whether it is about an order's event; otherwise it is about a refund.
    pub const fn is_stale(self) -> bool {
        matches!(self, Self::StaleMarked | Self::StaleDropped)
    }

    /// The word for what was done, in metrics and the log.
    pub const fn action(self) -> &'static str {
        match self {
            Self::StaleMarked | Self::DuplicateMarked => "marked",
            Self::StaleDropped => "dropped",
            Self::DuplicateHeld => "held",
        }
    }
}

/// What others hold at the time of a scrape, above all the ledger. Empty when the ledger can't say: its
/// series are then absent, which alerts can tell from zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerFigures {
    /// One entry for each state.
    pub states: Vec<StateFigures>,
    /// What the outbox holds, where there is one that can say.
    pub outbox: Option<OutboxFigures>,
    /// Whether it is in quarantine, as it was seen last.
    pub quarantined: bool,
    /// Each address of each backend.
    pub addresses: Vec<AddressFigures>,
}

/// What the ledger holds in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateFigures {
    /// The state's word.
    pub state: &'static str,
    /// Records in it.
    pub records: u64,
    /// How long the oldest of them has been in it; zero where there is none.
    pub oldest: Duration,
}

/// One worker's handle. Cheap to clone; every method is a few atomic additions on memory that no
/// other worker writes.
#[derive(Clone, Debug)]
pub struct Worker {
    shard: Arc<Shard>,
    rows: Arc<Rows>,
}

/// A worker's rows by the numbers that requests name them by.
#[derive(Debug)]
struct Rows {
    routes: Vec<Arc<RouteCells>>,
    secrets: Vec<Arc<Cells>>,
}

impl Rows {
    /// A label that this gate doesn't know counts as unmatched rather than not at all.
    fn route(&self, label: RouteLabel) -> &RouteCells {
        self.routes.get(label.0).unwrap_or(&self.routes[0])
    }
}

impl Worker {
    /// Counts an answered request: its HTTP status and the time from its first byte to its answer.
    pub fn request(&self, route: RouteLabel, status: u16, took: Duration) {
        let cells = self.rows.route(route);
        cells.codes.add(code_cell(status));
        cells.duration.observe_duration(took);
    }

    /// Counts a call to the backend that was answered: the time from connecting to the answer's end.
    pub fn upstream(&self, route: RouteLabel, took: Duration) {
        self.rows.route(route).upstream.observe_duration(took);
    }

    /// Counts a refusal by its place in [`Labels::refusals`].
    pub fn refusal(&self, route: RouteLabel, slot: usize) {
        self.rows.route(route).refusals.add(slot);
    }

    /// Counts an answer given from the ledger.
    pub fn replay(&self, route: RouteLabel) {
        self.rows.route(route).replays.add(0);
    }

    /// Counts a look at the backend for a call whose outcome is unknown.
    pub fn probe(&self, route: RouteLabel, result: ProbeResult) {
        self.rows.route(route).probes.add(result as usize);
    }

    /// Counts a call that was marked, dropped or held for its subject's sake.
    pub fn suspicion(&self, route: RouteLabel, suspicion: Suspicion) {
        self.rows.route(route).suspicions.add(suspicion as usize);
    }

    /// Counts a success that came in for an attempt which counts as not applied.
    pub fn alarm(&self) {
        self.shard.alarms.add(0);
    }

    /// Counts a signature that a secret explained, by its place in [`Labels::secrets`].
    pub fn signature_match(&self, secret: usize) {
        if let Some(cells) = self.rows.secrets.get(secret) {
            cells.add(0);
        }
    }

    /// Counts the age of an authentic message, in seconds; negative when it is ahead of our clock.
    pub fn signature_age(&self, seconds: f64) {
        self.shard.signature_age.observe_seconds(seconds);
    }

    /// Counts a request as in flight for as long as the guard lives. The guard may be dropped on
    /// any thread.
    pub fn in_flight(&self) -> InFlight {
        self.shard.in_flight.add(0);
        InFlight {
            shard: Arc::clone(&self.shard),
        }
    }
}

/// One request in flight.
#[derive(Debug)]
#[must_use = "dropping it ends the request's time in flight"]
pub struct InFlight {
    shard: Arc<Shard>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.shard.in_flight.subtract(0);
    }
}

/// One worker's cells. Behind an `Arc` of its own, so that cloning a handle or a guard counts
/// references in this worker's memory only.
#[derive(Debug)]
struct Shard {
    signature_age: Histogram,
    in_flight: Cells,
    /// Successes of attempts that count as not applied.
    alarms: Cells,
}

impl Shard {
    fn new() -> Self {
        Self {
            signature_age: Histogram::new(&cells::AGE),
            in_flight: Cells::new(1),
            alarms: Cells::new(1),
        }
    }
}

#[derive(Debug)]
struct RouteCells {
    /// One cell for each status, see [`code_cell`]: 4 KiB for each route and worker.
    codes: Cells,
    duration: Histogram,
    upstream: Histogram,
    refusals: Cells,
    replays: Cells,
    /// In the order of [`ProbeResult::ALL`].
    probes: Cells,
    /// One cell for each [`Suspicion`].
    suspicions: Cells,
}

impl RouteCells {
    fn new(refusals: usize) -> Self {
        Self {
            codes: Cells::new(CODES + 1),
            duration: Histogram::new(&cells::DURATION),
            upstream: Histogram::new(&cells::DURATION),
            refusals: Cells::new(refusals),
            replays: Cells::new(1),
            probes: Cells::new(ProbeResult::ALL.len()),
            suspicions: Cells::new(Suspicion::COUNT),
        }
    }
}

const FIRST_CODE: usize = 100;
/// Statuses 100 to 599; the cell after them takes everything else.
const CODES: usize = 500;

fn code_cell(status: u16) -> usize {
    match usize::from(status).checked_sub(FIRST_CODE) {
        Some(cell) if cell < CODES => cell,
        _ => CODES,
    }
}

fn all_different<T: Clone + Eq + std::hash::Hash>(
    labels: impl IntoIterator<Item = T>,
    numbered: impl Fn(&T, usize) -> T,
) -> Vec<T> {
    let mut taken = HashSet::new();
    labels
        .into_iter()
        .map(|label| {
            let mut unique = label.clone();
            let mut number = 1;
            while !taken.insert(unique.clone()) {
                number += 1;
                unique = numbered(&label, number);
            }
            unique
        })
        .collect()
}

#[cfg(test)]
mod tests;
