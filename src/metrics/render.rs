//! The list of every family: its name, type and help, and where its samples come from.
//!
//! Series that count zero are left out where labels multiply (statuses, refusals, durations), and
//! kept where zero says something (replays, matches of a secret that is to be retired) or where an alert
//! waits for the first one (a counter that appears with its first count has not grown).

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::backends;
use super::cells::{self, Histogram, Scale};
use super::exposition::{Exposition, Kind};
use super::process::Figures;
use super::{
    AllSeries, CODES, FIRST_CODE, LedgerFigures, Metrics, ProbeResult, RouteCells, Shard,
    Suspicion, UNMATCHED_NAME,
};

/// Writes all families.
pub(super) fn exposition(metrics: &Metrics, ledger: &LedgerFigures, process: &Figures) -> String {
    let mut out = Exposition::default();
    out.family(
        Kind::Gauge,
        "tikigate_build_info",
        "The running version; always 1.",
    );
    out.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let series = metrics
        .series
        .read()
        .unwrap_or_else(PoisonError::into_inner);
    requests(&mut out, &series);
    refusals(&mut out, metrics, &series);
    suspicions(&mut out, &series);
    signatures(&mut out, metrics, &series);
    drop(series);
    ledger_families(&mut out, metrics, ledger);
    if let Some(outbound) = metrics.outbound.get() {
        outbound.write(&mut out, ledger.outbox.as_ref());
    }
    metrics.sources.listeners.write(&mut out);
    backends::write(&mut out, &ledger.addresses);
    load(&mut out, metrics);
    process_families(&mut out, process);
    out.finish()
}

fn requests(out: &mut Exposition, series: &AllSeries) {
    out.family(
        Kind::Counter,
        "tikigate_requests_total",
        "Requests answered, by route and HTTP status.",
    );
    for route in series.routes.iter() {
        let label = &route.name;
        for cell in 0..=CODES {
            let count = route.sum(|cells| cells.codes.read(cell));
            if count == 0 {
                continue;
            }
            let code = match cell {
                CODES => "other".to_owned(),
                _ => (FIRST_CODE + cell).to_string(),
            };
            out.sample(&[("route", label), ("code", &code)], count);
        }
    }
    out.family(
        Kind::Histogram,
        "tikigate_request_duration_seconds",
        "From a request's first byte to its answer.",
    );
    route_histograms(out, series, |cells| &cells.duration);
    out.family(
        Kind::Histogram,
        "tikigate_upstream_duration_seconds",
        "From connecting to the backend to the end of its answer.",
    );
    route_histograms(out, series, |cells| &cells.upstream);
    out.family(
        Kind::Counter,
        "tikigate_replays_total",
        "Answers given again from the ledger.",
    );
    for route in series.routes.iter() {
        let label = &route.name;
        let count = route.sum(|cells| cells.replays.read(0));
        out.sample(&[("route", label)], count);
    }
    probes(out, series);
}

fn probes(out: &mut Exposition, series: &AllSeries) {
    out.family(
        Kind::Counter,
        "tikigate_probes_total",
        "Looks at the backend for calls whose outcome is unknown, by route and what they saw.",
    );
    for route in series.routes.iter() {
        let label = &route.name;
        for result in ProbeResult::ALL {
            let count = route.sum(|cells| cells.probes.read(result as usize));
            if count > 0 {
                let labels = [("route", label.as_str()), ("result", result.as_str())];
                out.sample(&labels, count);
            }
        }
    }
}

fn route_histograms(
    out: &mut Exposition,
    series: &AllSeries,
    histogram: impl Fn(&RouteCells) -> &Histogram,
) {
    for route in series.routes.iter() {
        let label = &route.name;
        let total = Histogram::total(&cells::DURATION, route.rows().map(&histogram));
        if total.count() > 0 {
            out.histogram(&[("route", label)], &total);
        }
    }
}

fn refusals(out: &mut Exposition, metrics: &Metrics, series: &AllSeries) {
    out.family(
        Kind::Counter,
        "tikigate_refusals_total",
        "Requests that the gate refused, by route, error code and reason.",
    );
    for route in series.routes.iter() {
        let label = &route.name;
        for (slot, (error, reason)) in metrics.refusals.iter().enumerate() {
            let count = route.sum(|cells| cells.refusals.read(slot));
            if count > 0 {
                let labels = [
                    ("route", label.as_str()),
                    ("error", error),
                    ("reason", reason),
                ];
                out.sample(&labels, count);
            }
        }
    }
}

fn suspicions(out: &mut Exposition, series: &AllSeries) {
    let mut family = |name, help, kinds: [Suspicion; 2]| {
        out.family(Kind::Counter, name, help);
        // What matches no route is not claimed.
        for route in series
            .routes
            .iter()
            .filter(|route| route.name != UNMATCHED_NAME)
        {
            let label = &route.name;
            for kind in kinds {
                let count = route.sum(|cells| cells.suspicions.read(kind as usize));
                out.sample(&[("route", label), ("action", kind.action())], count);
            }
        }
    };
    family(
        "tikigate_stale_events_total",
        "Calls about an order, older than one that was passed on, by what was done about them.",
        Suspicion::STALE,
    );
    family(
        "tikigate_possible_duplicates_total",
        "Calls for a refund of an amount that the payment had a refund of already, by what was done about them.",
        Suspicion::DUPLICATE,
    );
}

fn signatures(out: &mut Exposition, metrics: &Metrics, series: &AllSeries) {
    out.family(
        Kind::Counter,
        "tikigate_signature_matches_total",
        "Signatures that were right, by the client's and the secret's name.",
    );
    for named in series.secrets.iter() {
        let (client, secret) = &named.name;
        let count = named.sum(|cells| cells.read(0));
        out.sample(&[("client", client), ("secret", secret)], count);
    }
    out.family(
        Kind::Histogram,
        "tikigate_signature_age_seconds",
        "Ages of authentic messages; those ahead of the gate's clock are in the first bucket.",
    );
    let ages = metrics.shards.iter().map(|shard| &shard.signature_age);
    out.histogram(&[], &Histogram::total(&cells::AGE, ages));
    out.family(
        Kind::Gauge,
        "tikigate_signatures_remembered",
        "Accepted signatures kept against being used again.",
    );
    out.sample(&[], metrics.signatures_remembered.load(Ordering::Relaxed));
}

fn ledger_families(out: &mut Exposition, metrics: &Metrics, ledger: &LedgerFigures) {
    out.family(
        Kind::Gauge,
        "tikigate_ledger_records",
        "Records in the ledger, by state.",
    );
    for figures in &ledger.states {
        out.sample(&[("state", figures.state)], figures.records);
    }
    out.family(
        Kind::Gauge,
        "tikigate_ledger_oldest_seconds",
        "How long the oldest record of each state has been in it; 0 where there is none.",
    );
    for figures in &ledger.states {
        out.sample(&[("state", figures.state)], figures.oldest.as_secs_f64());
    }
    out.family(
        Kind::Gauge,
        "tikigate_ledger_quarantined",
        "Whether routes that hold are in quarantine, since the ledger may have lost records.",
    );
    out.sample(&[], u64::from(ledger.quarantined));
    out.family(
        Kind::Counter,
        "tikigate_ledger_alarms_total",
        "Successes that came in for attempts which count as not applied: money may have moved twice.",
    );
    out.sample(&[], metrics.sum(|shard| shard.alarms.read(0)));
    out.family(
        Kind::Histogram,
        "tikigate_ledger_commit_duration_seconds",
        "Durable commits of the ledger.",
    );
    let scale: &'static Scale = &cells::COMMIT_DURATION;
    let commits = Histogram::total(scale, std::iter::once(&metrics.ledger_commits));
    out.histogram(&[], &commits);
}

fn load(out: &mut Exposition, metrics: &Metrics) {
    let mut gauge = |name, help, value: u64| {
        out.family(Kind::Gauge, name, help);
        out.sample(&[], value);
    };
    // A request may end between two reads of different shards, which would show as less than none.
    let in_flight = metrics.sum(|shard| shard.in_flight.read(0)) as i64;
    gauge(
        "tikigate_in_flight",
        "Requests being handled.",
        in_flight.max(0) as u64,
    );
    gauge(
        "tikigate_connections",
        "Inbound connections that are open.",
        metrics.sources.connections.load(Ordering::Relaxed) as u64,
    );
    gauge(
        "tikigate_limited_addresses",
        "Addresses that the limit per address keeps apart.",
        metrics.limited_addresses.load(Ordering::Relaxed) as u64,
    );
    metrics.configuration.write(out);
    out.family(
        Kind::Counter,
        "tikigate_log_lines_dropped_total",
        "Log lines given up because the output was slower than they came, or failed.",
    );
    let dropped = &metrics.sources.log_lines_dropped;
    out.sample(&[], dropped.load(Ordering::Relaxed));
    if let Some(spans) = &metrics.sources.spans {
        out.family(
            Kind::Counter,
            "tikigate_trace_spans_total",
            "Spans that the collector took (exported) or did not take (failed), or that found the queue full (dropped).",
        );
        for (result, count) in [
            ("exported", &spans.exported),
            ("dropped", &spans.dropped),
            ("failed", &spans.failed),
        ] {
            out.sample(&[("result", result)], count.load(Ordering::Relaxed));
        }
    }
}

fn process_families(out: &mut Exposition, process: &Figures) {
    let Figures {
        cpu_seconds,
        resident_bytes,
        virtual_bytes,
        open_fds,
        max_fds,
        start_time,
        threads,
    } = process;
    let mut family = |kind, name, help, value: Option<f64>| {
        if let Some(value) = value {
            out.family(kind, name, help);
            out.sample(&[], value);
        }
    };
    let whole = |number: &Option<u64>| number.map(|number| number as f64);
    family(
        Kind::Counter,
        "process_cpu_seconds_total",
        "User and system CPU time spent.",
        *cpu_seconds,
    );
    family(
        Kind::Gauge,
        "process_resident_memory_bytes",
        "Resident memory.",
        whole(resident_bytes),
    );
    family(
        Kind::Gauge,
        "process_virtual_memory_bytes",
        "Virtual memory.",
        whole(virtual_bytes),
    );
    family(
        Kind::Gauge,
        "process_open_fds",
        "File descriptors that are open.",
        whole(open_fds),
    );
    family(
        Kind::Gauge,
        "process_max_fds",
        "File descriptors that may be open.",
        whole(max_fds),
    );
    family(
        Kind::Gauge,
        "process_start_time_seconds",
        "When the process started, in seconds since 1970.",
        *start_time,
    );
    family(
        Kind::Gauge,
        "process_threads",
        "Threads of the process.",
        whole(threads),
    );
}

impl Metrics {
    fn sum(&self, read: impl Fn(&Shard) -> u64) -> u64 {
        let shards = self.shards.iter();
        shards.fold(0, |sum, shard| sum.wrapping_add(read(shard)))
    }
}
