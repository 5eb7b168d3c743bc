use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use super::*;
use crate::config::{Log, LogFormat};
use tracing::level_filters::LevelFilter;

/// An output that a test reads back.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8(bytes.clone()).unwrap()
    }

    fn json_lines(&self) -> Vec<Value> {
        let text = self.text();
        assert!(text.is_empty() || text.ends_with('\n'), "{text}");
        let line = |line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        text.lines().map(line).collect()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output that takes nothing until the test lets go of the other end.
struct Stuck(Receiver<()>, Output);

impl Stuck {
    fn new(output: &Output) -> (Sender<()>, Self) {
        let (release, held) = mpsc::channel();
        (release, Self(held, output.clone()))
    }
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const JSON: Log = Log {
    format: LogFormat::Json,
    level: LevelFilter::INFO,
};
const TEXT: Log = Log {
    format: LogFormat::Text,
    level: LevelFilter::INFO,
};

fn started(log: Log, workers: usize) -> (LogHandle, Output) {
    let output = Output::default();
    let handle = LogHandle::to(&log, workers, output.clone()).unwrap();
    (handle, output)
}

fn some_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_667_980_513_042)
}

fn full_line<'a>(address: &'a str, key: &'a str) -> AccessLine<'a> {
    AccessLine {
        time: Some(some_time()),
        request_id: Some("01HF"),
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736"),
        sent_by_person: Some(true),
        client_address: Some(address),
        method: Some("POST"),
        route: Some("refund"),
        path: Some("/tiki/refund"),
        claimed_client: Some("stranger"),
        client: Some("wallet"),
        partner_code: Some("VNPAY"),
        idempotency_key: Some(key),
        status: Some(500),
        error: Some("outcome_unknown"),
        reason: Some("held"),
        attempt: Some(2),
        replayed: Some(false),
        stale_event: Some("marked"),
        possible_duplicate: Some("held"),
        upstream_status: Some(503),
        upstream_duration: Some(Duration::from_micros(12_345)),
        duration: Some(Duration::from_millis(13_000)),
        request_bytes: Some(300),
        response_bytes: Some(0),
    }
}

const HOSTILE: &str =
    "a\"b\\c\n{\"time\":1}\r\t\u{0}\u{1b}[31m\u{7f}\u{9b}2J\u{2028}\u{2029}\u{202e} é🦀 status=200";

#[test]
fn a_json_line_has_every_field_and_gives_hostile_text_back() {
    let (log, output) = started(JSON, 1);
    let address = "2001:db8::1";
    log.access(0).write(&full_line(address, HOSTILE));
    assert!(log.flush());
    let expected = json!({
        "time": "2022-11-09T07:55:13.042Z",
        "level": "error",
        "message": "request",
        "tikigate.request_id": "01HF",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "tikigate.sent_by_person": true,
        "client.address": "2001:db8::1",
        "http.request.method": "POST",
        "http.route": "refund",
        "url.path": "/tiki/refund",
        "tikigate.claimed_client_id": "stranger",
        "tikigate.client": "wallet",
        "tikigate.partner_code": "VNPAY",
        "tikigate.idempotency_key": HOSTILE,
        "http.response.status_code": 500,
        "error.type": "outcome_unknown",
        "tikigate.reason": "held",
        "tikigate.attempt": 2,
        "tikigate.replayed": false,
        "tikigate.stale_event": "marked",
        "tikigate.possible_duplicate": "held",
        "tikigate.upstream.status_code": 503,
        "tikigate.upstream.duration_ms": 12.345,
        "duration_ms": 13000.0,
        "http.request.body.size": 300,
        "http.response.body.size": 0,
    });
    assert_eq!(output.json_lines(), [expected]);
}

#[test]
fn a_text_line_can_not_be_forged() {
    let (log, output) = started(TEXT, 1);
    let address = "192.0.2.7";
    log.access(0).write(&full_line(address, HOSTILE));
    log.flush();
    let text = output.text();
    let line = text.strip_suffix('\n').unwrap();
    assert!(!line.contains(|c: char| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c)));
    let start = "2022-11-09T07:55:13.042Z ERROR request tikigate.request_id=01HF trace_id=";
    assert!(line.starts_with(start), "{line}");
    let (_, value) = line.split_once(" tikigate.idempotency_key=").unwrap();
    let (value, rest) = value.split_at(value.find(" http.response").unwrap());
    assert_eq!(serde_json::from_str::<String>(value).unwrap(), HOSTILE);
    let end = " http.response.status_code=500 error.type=outcome_unknown tikigate.reason=held \
               tikigate.attempt=2 tikigate.replayed=false tikigate.stale_event=marked \
               tikigate.possible_duplicate=held tikigate.upstream.status_code=503 \
               tikigate.upstream.duration_ms=12.345 duration_ms=13000.000 \
               http.request.body.size=300 http.response.body.size=0";
    assert_eq!(rest, end);
}

#[test]
fn what_is_absent_is_left_out_and_what_is_long_is_cut() {
    let (log, output) = started(JSON, 1);
    let path = "/".repeat(5000);
    log.access(0).write(&AccessLine {
        time: Some(some_time()),
        path: Some(&path),
        ..AccessLine::default()
    });
    log.flush();
    let expected = json!({
        "time": "2022-11-09T07:55:13.042Z",
        "level": "info",
        "message": "request",
        "url.path": format!("{}…", "/".repeat(1024)),
    });
    assert_eq!(output.json_lines(), [expected]);
}

#[test]
fn the_level_follows_the_status_the_suspicion_and_the_configuration() {
    let log = Log {
        level: LevelFilter::WARN,
        ..JSON
    };
    let (log, output) = started(log, 1);
    let suspect = [(201, Some("marked")), (500, Some("held"))];
    let plain = [200, 399, 400, 499, 500, 599].map(|status| (status, None));
    for (status, possible_duplicate) in plain.into_iter().chain(suspect) {
        log.access(0).write(&AccessLine {
            status: Some(status),
            possible_duplicate,
            ..AccessLine::default()
        });
    }
    log.flush();
    let levels: Vec<_> = output
        .json_lines()
        .iter()
        .map(|line| line["level"].clone())
        .collect();
    assert_eq!(levels, ["warn", "warn", "error", "error", "warn", "error"]);
}

#[test]
fn events_carry_their_spans_fields_and_no_secrets() {
    let (log, output) = started(JSON, 1);
    tracing::subscriber::with_default(log.subscriber(), || {
        let outer = tracing::info_span!("outer", route = "refund", attempt = 1);
        let _outer = outer.enter();
        let inner = tracing::info_span!("inner", attempt = 2, late = tracing::field::Empty);
        inner.record("late", true);
        inner.record("attempt", 3);
        let _inner = inner.enter();
        let cause = io::Error::other("disk\ngone");
        tracing::warn!(
            error = &cause as &dyn std::error::Error,
            shown = %HOSTILE,
            signature = "0badc0de",
            ratio = 0.5,
            endless = f64::INFINITY,
            level = "forged",
            "settling {} failed",
            "k\"1"
        );
        tracing::debug!("too low");
    });
    log.flush();
    let mut lines = output.json_lines();
    assert_eq!(lines.len(), 1);
    let time = lines[0].as_object_mut().unwrap().remove("time").unwrap();
    assert!(time.as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    let expected = json!({
        "level": "warn",
        "message": "settling k\"1 failed",
        "target": "tikigate::telemetry::tests",
        "error": "disk\ngone",
        "shown": HOSTILE,
        "signature": "[redacted]",
        "ratio": 0.5,
        "endless": "inf",
        "late": true,
        "attempt": 3,
        "route": "refund",
    });
    assert_eq!(lines[0], expected);
    assert_eq!(output.text().matches("\"attempt\"").count(), 1);
}

#[test]
fn lines_of_many_threads_never_mix() {
    const LINES: u32 = 2_000;
    let (log, output) = started(JSON, 2);
    let subscriber = tracing::Dispatch::new(log.subscriber());
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let (access, subscriber) = (log.access(thread), subscriber.clone());
            scope.spawn(move || {
                let name = format!("t{thread}");
                for attempt in 0..LINES {
                    access.write(&AccessLine {
                        route: Some(&name),
                        attempt: Some(attempt.into()),
                        ..AccessLine::default()
                    });
                }
                tracing::dispatcher::with_default(&subscriber, || tracing::info!("done"));
            });
        }
    });
    assert!(log.flush());
    let mut next: HashMap<String, u32> = HashMap::new();
    for line in output.json_lines() {
        let Some(route) = line["http.route"].as_str() else {
            assert_eq!(line["message"], "done");
            continue;
        };
        let expected = next.entry(route.to_owned()).or_default();
        assert_eq!(
            line["tikigate.attempt"], *expected,
            "in order within {route}"
        );
        *expected += 1;
    }
    assert_eq!(next.len(), 4);
    assert!(next.values().all(|count| *count == LINES));
    assert_eq!(output.text().matches("\"done\"").count(), 4);
}

#[test]
fn a_stuck_output_bounds_memory_and_is_told_of() {
    let output = Output::default();
    let (release, stuck) = Stuck::new(&output);
    let log = LogHandle::to(&JSON, 1, stuck).unwrap();
    let (access, dropped) = (log.access(0), log.lines_dropped());
    let path = "x".repeat(1000);
    let mut sent = 0;
    while dropped.load(Ordering::Relaxed) < 5 {
        access.write(&AccessLine {
            path: Some(&path),
            ..AccessLine::default()
        });
        sent += 1;
        assert!(sent < 10_000, "nothing was dropped");
    }
    drop(release);
    assert!(log.flush());

    let lines = output.json_lines();
    let (notices, kept): (Vec<_>, Vec<_>) =
        lines.iter().partition(|line| line["message"] != "request");
    assert_eq!(notices.len(), 1);
    assert_eq!(notices[0]["message"], "5 log lines dropped");
    assert_eq!(notices[0]["level"], "warn");
    assert_eq!(kept.len() + 5, sent);
    assert!(
        output.text().len() < (2 << 20) + 10_000,
        "one buffer was out, one full"
    );
}

#[test]
fn a_flush_gives_up_in_time() {
    let (release, stuck) = Stuck::new(&Output::default());
    let log = LogHandle::to(&JSON, 1, stuck).unwrap();
    log.access(0).write(&AccessLine::default());
    let before = Instant::now();
    assert!(!log.sink.flush(Duration::from_millis(30)));
    assert!(before.elapsed() < Duration::from_secs(2));
    drop(release);
    assert!(log.flush(), "and works again once the output does");
}

/// Takes so many bytes, then fails until it is mended.
struct Faulty {
    room: usize,
    mended: Arc<AtomicBool>,
    output: Output,
}

impl Write for Faulty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.mended.load(Ordering::SeqCst) {
            return self.output.write(bytes);
        }
        let taken = self.room.min(bytes.len());
        if taken == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.room -= taken;
        self.output.write(&bytes[..taken])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_failing_output_costs_only_its_lines() {
    let (output, mended) = (Output::default(), Arc::new(AtomicBool::new(false)));
    let faulty = Faulty {
        room: 10,
        mended: Arc::clone(&mended),
        output: output.clone(),
    };
    let log = LogHandle::to(&JSON, 1, faulty).unwrap();
    for status in [200, 201, 202] {
        mended.store(status == 202, Ordering::SeqCst);
        log.access(0).write(&AccessLine {
            status: Some(status),
            ..AccessLine::default()
        });
        assert!(log.flush());
    }
    assert_eq!(log.lines_dropped().load(Ordering::Relaxed), 2);
    let text = output.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[0], "{\"time\":\"2", "the cut line stands alone");
    let whole = lines[1..].concat();
    assert!(whole.contains("\"http.response.status_code\":202"));
    assert!(whole.contains("2 log lines dropped"));
}

#[test]
fn the_end_writes_what_has_gathered() {
    let (log, output) = started(JSON, 1);
    let access = log.access(0);
    access.write(&AccessLine::default());
    drop(log);
    assert_eq!(output.json_lines().len(), 1);
    access.write(&AccessLine::default());
    drop(access);
    // The thread lets go of the output when it ends.
    let deadline = Instant::now() + Duration::from_secs(10);
    while Arc::strong_count(&output.0) > 1 {
        assert!(Instant::now() < deadline, "the thread never ended");
        std::thread::yield_now();
    }
    assert_eq!(output.json_lines().len(), 2);
}
