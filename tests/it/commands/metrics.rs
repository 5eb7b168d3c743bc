//! `/metrics` of a running gate, as Prometheus' own tool judges it.

use std::process::Command;
use std::time::{Duration, SystemTime};

use tikigate::net::ListenAddress;

use super::{get, post, run_with, setup, signed};
use crate::support::backend::{Answer, Backend, Behaviour};
use crate::support::gate::{Call, SECRET, ipn, refund, usual};
use crate::support::gate_process::GateProcess;
use crate::support::raw::exchange;

/// Every name that operators may build on, with its type.
const NAMES: [(&str, &str); 21] = [
    ("tikigate_requests_total", "counter"),
    ("tikigate_request_duration_seconds", "histogram"),
    ("tikigate_upstream_duration_seconds", "histogram"),
    ("tikigate_upstream_breaker_state", "gauge"),
    ("tikigate_upstream_breaker_opened_total", "counter"),
    ("tikigate_upstream_healthy", "gauge"),
    ("tikigate_upstream_in_flight", "gauge"),
    ("tikigate_refusals_total", "counter"),
    ("tikigate_replays_total", "counter"),
    ("tikigate_probes_total", "counter"),
    ("tikigate_stale_events_total", "counter"),
    ("tikigate_possible_duplicates_total", "counter"),
    ("tikigate_ledger_records", "gauge"),
    ("tikigate_ledger_oldest_seconds", "gauge"),
    ("tikigate_ledger_commit_duration_seconds", "histogram"),
    ("tikigate_signature_matches_total", "counter"),
    ("tikigate_signature_age_seconds", "histogram"),
    ("tikigate_in_flight", "gauge"),
    ("tikigate_connections", "gauge"),
    ("tikigate_config_last_reload_successful", "gauge"),
    ("tikigate_build_info", "gauge"),
];

const PROCESS: [&str; 6] = [
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_after_all_kinds_of_calls_pass_promtool() {
    let backend = Backend::start(|seen| match seen.text() {
        body if body.contains("dies") => Behaviour::Close,
        body if body.contains("silent") => Behaviour::Silence,
        body if body.contains("declined") => Answer::json(422, "{}").into(),
        _ => Answer::success().into(),
    })
    .await;
    let gate = setup(&usual(&backend.url())).start();
    assert_well_formed(&gate).await;
    make_all_kinds_of_calls(&gate).await;
    let text = assert_well_formed(&gate).await;

    for (name, kind) in NAMES {
        assert!(
            text.contains(&format!("# TYPE {name} {kind}\n")),
            "{name} is missing: {text}"
        );
    }
    for name in PROCESS {
        assert!(
            text.contains(&format!("\n{name} ")),
            "{name} is missing: {text}"
        );
    }
    for (series, value) in [
        (r#"tikigate_requests_total{route="refund",code="200"}"#, 2),
        (r#"tikigate_requests_total{route="refund",code="504"}"#, 1),
        (r#"tikigate_replays_total{route="refund"}"#, 1),
        (
            r#"tikigate_refusals_total{route="refund",error="conflict",reason=""}"#,
            1,
        ),
        (
            r#"tikigate_refusals_total{route="refund",error="unauthenticated",reason="bad_signature"}"#,
            1,
        ),
        (
            r#"tikigate_refusals_total{route="refund",error="outcome_unknown",reason="outcome_unknown"}"#,
            1,
        ),
        (r#"tikigate_ledger_records{state="done"}"#, 3),
        (r#"tikigate_ledger_records{state="unknown"}"#, 1),
        (r#"tikigate_in_flight"#, 0),
    ] {
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        assert_eq!(found, Some(&*value.to_string()), "{series} in {text}");
    }
    // Paths that are no route's are a caller's to choose and must not become labels.
    for hidden in ["/tiki/nowhere", SECRET, "r-dies"] {
        assert!(!text.contains(hidden), "the metrics show {hidden}");
    }
    assert!(text.contains(r#"error="not_found""#), "{text}");
}

/// Fetches the metrics and hands them to promtool.
async fn assert_well_formed(gate: &GateProcess) -> String {
    let answer = get(gate.admin_address(), "/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4")
    );
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]);
    let told = run_with(&mut promtool, &answer.body);
    assert_eq!(
        (told.code, &*told.out, &*told.err),
        (Some(0), "", ""),
        "{}",
        answer.text()
    );
    answer.text().to_owned()
}

async fn make_all_kinds_of_calls(gate: &GateProcess) {
    let server = ListenAddress::Tcp(gate.address());
    let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let refund_1 = refund("r-1", "1000");
    let large = " ".repeat(1 << 20);
    let calls = [
        (200, signed("/tiki/refund", &refund_1)),
        (200, signed("/tiki/refund", &refund_1)),
        (422, signed("/tiki/refund", &refund("r-1", "2000"))),
        (422, signed("/tiki/refund", &refund("r-declined", "1"))),
        (422, signed("/tiki/refund", &refund("r-2", "-1"))),
        (502, signed("/tiki/refund", &refund("r-dies", "1"))),
        (500, signed("/tiki/refund", &refund("r-dies", "1"))),
        (504, signed("/tiki/refund", &refund("r-silent", "1"))),
        (
            401,
            signed("/tiki/refund", &refund("r-3", "1"))
                .with("x-tikivip-signature", &"0".repeat(64)),
        ),
        (
            401,
            signed("/tiki/refund", "{}").without("x-tikivip-timestamp"),
        ),
        (
            503,
            Call::post("/tiki/refund", refund("r-4", "1"), an_hour_ago),
        ),
        (400, signed("/tiki/refund", "no json")),
        (413, signed("/tiki/refund", &large)),
        (
            415,
            signed("/tiki/refund", "{}").and("content-encoding", "gzip"),
        ),
        (404, signed("/tiki/nowhere", "{}")),
        (405, signed("/tiki/refund", "{}").by("PUT")),
        (
            400,
            signed("/tiki/refund", "{}").and("host", "another.test"),
        ),
        (200, signed("/tiki/ipn", &ipn("p-1", "1"))),
        (200, Call::get("/tiki/order-status?a=1", SystemTime::now())),
    ];
    for (number, (status, call)) in calls.into_iter().enumerate() {
        let answer = exchange(&server, call.to_bytes()).await;
        assert_eq!(answer.status, status, "call {number}: {}", answer.text());
    }
    assert_eq!(post(gate.address(), "/tiki/any", "x").await.status, 200);
}
