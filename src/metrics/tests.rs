use std::io::Write;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use super::*;

const REFUSALS: &[(&str, &str)] = &[("not_found", ""), ("unauthenticated", "bad_signature")];

fn metrics() -> Arc<Metrics> {
    let labels = Labels {
        routes: vec!["ipn".to_owned(), "refund".to_owned()],
        refusals: REFUSALS.to_vec(),
        secrets: vec![
            ("wallet".to_owned(), "2026-11".to_owned()),
            ("wallet".to_owned(), "old".to_owned()),
        ],
        sources: Sources::default(),
    };
    Metrics::new(labels, 2)
}

fn ledger() -> LedgerFigures {
    let state = |state, records, seconds| StateFigures {
        state,
        records,
        oldest: Duration::from_millis(seconds),
    };
    LedgerFigures {
        outbox: None,
        quarantined: true,
        addresses: vec![address(BreakerState::HalfOpen)],
        states: vec![state("done", 7, 1_500), state("unknown", 0, 0)],
    }
}

fn address(breaker: BreakerState) -> AddressFigures {
    AddressFigures {
        upstream: "legacy".to_owned(),
        address: "http://127.0.0.1:9000".to_owned(),
        breaker,
        healthy: false,
        in_flight: 3,
        opened: 2,
    }
}

#[track_caller]
fn assert_line(text: &str, line: &str) {
    assert!(
        text.lines().any(|found| found == line),
        "{line}\nin\n{text}"
    );
}

#[test]
fn a_scrape_sums_the_workers() {
    let metrics = metrics();
    let refund = RouteLabel::new(1);
    let (first, second) = (metrics.worker(0), metrics.worker(1));
    first.request(refund, 200, Duration::from_millis(3));
    second.request(refund, 200, Duration::from_millis(30));
    second.request(RouteLabel::UNMATCHED, 404, Duration::ZERO);
    first.refusal(refund, 1);
    second.refusal(refund, 1);
    first.replay(refund);
    first.probe(refund, ProbeResult::NotApplied);
    second.probe(refund, ProbeResult::NotApplied);
    second.probe(refund, ProbeResult::CantSay);
    first.suspicion(RouteLabel::new(0), Suspicion::StaleMarked);
    second.suspicion(RouteLabel::new(0), Suspicion::StaleMarked);
    first.suspicion(RouteLabel::new(0), Suspicion::StaleDropped);
    second.suspicion(refund, Suspicion::DuplicateMarked);
    first.suspicion(refund, Suspicion::DuplicateHeld);
    first.suspicion(refund, Suspicion::DuplicateHeld);
    first.alarm();
    second.alarm();
    second.signature_match(1);
    first.signature_age(-3.0);
    second.signature_age(70.0);
    second.upstream(refund, Duration::from_secs(14));

    let text = metrics.render(&ledger());
    for line in [
        "tikigate_requests_total{route=\"refund\",code=\"200\"} 2",
        "tikigate_requests_total{route=\"unmatched\",code=\"404\"} 1",
        "tikigate_request_duration_seconds_bucket{route=\"refund\",le=\"0.0025\"} 0",
        "tikigate_request_duration_seconds_bucket{route=\"refund\",le=\"0.005\"} 1",
        "tikigate_request_duration_seconds_bucket{route=\"refund\",le=\"+Inf\"} 2",
        "tikigate_request_duration_seconds_sum{route=\"refund\"} 0.033",
        "tikigate_request_duration_seconds_count{route=\"refund\"} 2",
        "tikigate_upstream_duration_seconds_bucket{route=\"refund\",le=\"13\"} 0",
        "tikigate_upstream_duration_seconds_bucket{route=\"refund\",le=\"15\"} 1",
        "tikigate_refusals_total{route=\"refund\",error=\"unauthenticated\",reason=\"bad_signature\"} 2",
        "tikigate_replays_total{route=\"ipn\"} 0",
        "tikigate_replays_total{route=\"refund\"} 1",
        "tikigate_probes_total{route=\"refund\",result=\"not_applied\"} 2",
        "tikigate_probes_total{route=\"refund\",result=\"cant_say\"} 1",
        "tikigate_stale_events_total{route=\"ipn\",action=\"marked\"} 2",
        "tikigate_stale_events_total{route=\"ipn\",action=\"dropped\"} 1",
        "tikigate_stale_events_total{route=\"refund\",action=\"marked\"} 0",
        "tikigate_possible_duplicates_total{route=\"refund\",action=\"marked\"} 1",
        "tikigate_possible_duplicates_total{route=\"refund\",action=\"held\"} 2",
        "tikigate_possible_duplicates_total{route=\"ipn\",action=\"held\"} 0",
        "tikigate_signature_matches_total{client=\"wallet\",secret=\"2026-11\"} 0",
        "tikigate_signature_matches_total{client=\"wallet\",secret=\"old\"} 1",
        "tikigate_signature_age_seconds_bucket{le=\"0\"} 1",
        "tikigate_signature_age_seconds_bucket{le=\"120\"} 2",
        "tikigate_signature_age_seconds_sum 67",
        "tikigate_ledger_records{state=\"done\"} 7",
        "tikigate_ledger_oldest_seconds{state=\"done\"} 1.5",
        "tikigate_ledger_quarantined 1",
        "tikigate_ledger_alarms_total 2",
    ] {
        assert_line(&text, line);
    }
    assert!(!text.contains("not_found"), "zero refusals are left out");
    assert!(!text.contains("route=\"ipn\",code"), "and so are requests");
    let unmatched = "action=\"marked\"";
    let claimed = text.lines().filter(|line| line.contains(unmatched));
    assert!(claimed.into_iter().all(|line| !line.contains("unmatched")));
}

#[test]
fn requests_in_flight_come_and_go_on_any_thread() {
    let metrics = metrics();
    let held = metrics.worker(0).in_flight();
    let moved = metrics.worker(1).in_flight();
    assert_line(&metrics.render(&ledger()), "tikigate_in_flight 2");
    std::thread::spawn(move || drop(moved)).join().unwrap();
    drop(held);
    assert_line(&metrics.render(&ledger()), "tikigate_in_flight 0");
}

#[test]
fn gauges_show_what_was_set() {
    let metrics = metrics();
    metrics.sources().connections.store(5, Ordering::Relaxed);
    metrics
        .sources()
        .log_lines_dropped
        .store(6, Ordering::Relaxed);
    metrics.set_signatures_remembered(7);
    metrics.set_limited_addresses(8);
    metrics.ledger_commit(Duration::from_micros(300));
    let text = metrics.render(&LedgerFigures::default());
    assert_line(&text, "tikigate_connections 5");
    assert_line(&text, "tikigate_log_lines_dropped_total 6");
    assert_line(&text, "tikigate_signatures_remembered 7");
    assert_line(&text, "tikigate_limited_addresses 8");
    assert_line(&text, "tikigate_config_last_reload_successful 1");
    assert_line(&text, "tikigate_ledger_quarantined 0");
    assert_line(
        &text,
        "tikigate_ledger_commit_duration_seconds_bucket{le=\"0.00025\"} 0",
    );
    assert_line(
        &text,
        "tikigate_ledger_commit_duration_seconds_bucket{le=\"0.0005\"} 1",
    );
    assert!(
        !text.contains("tikigate_ledger_records{"),
        "no ledger, no series"
    );

    metrics.configuration().taken(true);
    metrics.configuration().refused();
    let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let named = "server.tls.certificate".to_owned();
    metrics.configuration().certificates(vec![(named, ends)]);
    let text = metrics.render(&LedgerFigures::default());
    for line in [
        "tikigate_config_last_reload_successful 0",
        "tikigate_config_reloads_total{outcome=\"taken\"} 1",
        "tikigate_config_reloads_total{outcome=\"refused\"} 1",
        "tikigate_config_restart_needed 1",
        "tikigate_certificate_not_after_timestamp_seconds{certificate=\"server.tls.certificate\"} 1800000000",
    ] {
        assert_line(&text, line);
    }
}

#[test]
fn odd_numbers_are_counted_somewhere() {
    let metrics = metrics();
    let worker = metrics.worker(9);
    worker.request(RouteLabel::new(77), 200, Duration::ZERO);
    worker.request(RouteLabel::new(usize::MAX), 200, Duration::ZERO);
    worker.request(RouteLabel::new(0), 99, Duration::ZERO);
    worker.request(RouteLabel::new(0), 600, Duration::ZERO);
    worker.request(RouteLabel::new(0), 599, Duration::ZERO);
    let text = metrics.render(&ledger());
    assert_line(
        &text,
        "tikigate_requests_total{route=\"unmatched\",code=\"200\"} 2",
    );
    assert_line(
        &text,
        "tikigate_requests_total{route=\"ipn\",code=\"other\"} 2",
    );
    assert_line(
        &text,
        "tikigate_requests_total{route=\"ipn\",code=\"599\"} 1",
    );
}

#[test]
fn equal_labels_are_told_apart() {
    let names = ["unmatched", "a", "a", "a#2"].map(str::to_owned);
    let labels = Labels {
        routes: names.to_vec(),
        ..Labels::default()
    };
    let text = Metrics::new(labels, 0).render(&ledger());
    for name in ["unmatched", "unmatched#2", "a", "a#2", "a#2#2"] {
        assert_line(
            &text,
            &format!("tikigate_replays_total{{route=\"{name}\"}} 0"),
        );
    }
}

/// The judge is Prometheus' own parser and linter.
#[test]
fn promtool_accepts_every_family() {
    let labels = Labels {
        routes: vec!["refund \"quoted\" \\ and\nbroken".to_owned()],
        refusals: REFUSALS.to_vec(),
        secrets: vec![("wallet".to_owned(), "2026-11".to_owned())],
        sources: Sources::default(),
    };
    let metrics = Metrics::new(labels, 2);
    for (n, route) in [(0, RouteLabel::UNMATCHED), (1, RouteLabel::new(0))] {
        let worker = metrics.worker(n);
        worker.request(route, 503, Duration::from_millis(20));
        worker.upstream(route, Duration::from_millis(10));
        worker.refusal(route, 0);
        worker.refusal(route, 1);
        worker.replay(route);
        worker.probe(route, ProbeResult::Applied);
        worker.suspicion(route, Suspicion::StaleDropped);
        worker.suspicion(route, Suspicion::DuplicateHeld);
        worker.signature_match(0);
        worker.signature_age(0.125);
    }
    metrics.ledger_commit(Duration::from_millis(2));
    let ends = vec![("server.tls.certificate".to_owned(), SystemTime::now())];
    metrics.configuration().certificates(ends);
    let listeners = &metrics.sources().listeners;
    listeners.refused(ListenerName::Server, ConnectionRefused::Share);
    listeners.handshake(ListenerName::Server, TlsVersion::V1_3);
    let text = metrics.render(&ledger());
    for declared in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = declared.split(' ').next().unwrap();
        let has_samples = text.lines().any(|line| line.starts_with(name));
        assert!(has_samples, "{name} has no sample to check");
    }

    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        panic!("promtool can't be run: start the tests with `tests/run`, which installs it");
    };
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let verdict = promtool.wait_with_output().unwrap();
    let complaints = [verdict.stdout, verdict.stderr].concat();
    assert!(
        verdict.status.success() && complaints.is_empty(),
        "{}\n{text}",
        String::from_utf8_lossy(&complaints)
    );
}

#[test]
fn each_address_shows_its_state() {
    let text = metrics().render(&ledger());
    let labels = r#"{upstream="legacy",address="http://127.0.0.1:9000"}"#;
    for (name, value) in [
        ("breaker_state", 1),
        ("healthy", 0),
        ("in_flight", 3),
        ("breaker_opened_total", 2),
    ] {
        assert_line(&text, &format!("tikigate_upstream_{name}{labels} {value}"));
    }
    for (state, value) in [(BreakerState::Closed, 0), (BreakerState::Open, 2)] {
        let figures = LedgerFigures {
            addresses: vec![address(state)],
            ..LedgerFigures::default()
        };
        let text = metrics().render(&figures);
        assert_line(
            &text,
            &format!("tikigate_upstream_breaker_state{labels} {value}"),
        );
    }
}
