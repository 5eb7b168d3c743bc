//! The access line: what became of one request.

use std::time::{Duration, SystemTime};

use tracing::Level;

use super::level::LogLevel;
use super::line::{Line, Name, named};
use super::sink::Sink;

/// One request, as the log tells of it. What is absent is left out of the line.
///
/// There is no field for a secret, a signature or a body, so none can be logged by this way. Texts are
/// escaped, and cut after 1024 bytes.
#[derive(Clone, Copy, Default)]
pub struct AccessLine<'a> {
    /// `time`: when the request was answered; absent, the system clock's time.
    pub time: Option<SystemTime>,
    /// `tikigate.request_id`: the gate's own id of this request; it is not escaped.
    pub request_id: Option<&'a str>,
    /// `trace_id`: of the caller's `traceparent`, 32 hex digits; it is not escaped.
    pub trace_id: Option<&'a str>,
    /// `tikigate.sent_by_person`: nobody called; a person had the call sent that the ledger kept.
    pub sent_by_person: Option<bool>,
    /// `client.address`: the caller's address as limits use it.
    ///
    /// As [`AddressText`](crate::net::AddressText) writes it: it is not escaped.
    pub client_address: Option<&'a str>,
    /// `http.request.method`.
    pub method: Option<&'a str>,
    /// `http.route`: the route's name.
    pub route: Option<&'a str>,
    /// `url.path`: the path as it was received.
    pub path: Option<&'a str>,
    /// `tikigate.claimed_client_id`: the id of a caller that no client has.
    pub claimed_client: Option<&'a str>,
    /// `tikigate.client`: the client's name.
    pub client: Option<&'a str>,
    /// `tikigate.partner_code`.
    pub partner_code: Option<&'a str>,
    /// `tikigate.idempotency_key`.
    pub idempotency_key: Option<&'a str>,
    /// `http.response.status_code`: what the caller got.
    pub status: Option<u16>,
    /// `error.type`: the refusal's code.
    pub error: Option<&'a str>,
    /// `tikigate.reason`: why, in the gate's own words; the caller isn't told.
    pub reason: Option<&'a str>,
    /// `tikigate.attempt`: which try of this key ran, from 1.
    pub attempt: Option<u64>,
    /// `tikigate.replayed`: whether the answer came from the ledger.
    pub replayed: Option<bool>,
    /// `tikigate.stale_event`: what was done about an order's event that is older than one that was
    /// passed on.
    pub stale_event: Option<&'a str>,
    /// `tikigate.possible_duplicate`: what was done about one more refund of a payment's amount.
    pub possible_duplicate: Option<&'a str>,
    /// `tikigate.upstream.status_code`: what the backend answered.
    pub upstream_status: Option<u64>,
    /// `tikigate.upstream.duration_ms`: how long the backend took.
    pub upstream_duration: Option<Duration>,
    /// `duration_ms`: from the request's first byte to its answer.
    pub duration: Option<Duration>,
    /// `http.request.body.size`, in bytes.
    pub request_bytes: Option<u64>,
    /// `http.response.body.size`, in bytes.
    pub response_bytes: Option<u64>,
}

/// A worker's access log.
#[derive(Clone, Debug)]
pub struct AccessLog {
    sink: Sink,
    buffer: usize,
    level: LogLevel,
}

const TEXT_LIMIT: usize = 1024;

impl AccessLog {
    pub(super) fn new(sink: Sink, buffer: usize, level: LogLevel) -> Self {
        Self {
            sink,
            buffer,
            level,
        }
    }

    /// Writes one line, unless its level is below the configured one.
    ///
    /// The level follows the answer: `info` below 400, `warn` for a 4xx (the call is lost, and a caller's
    /// fault), `error` for a 5xx (Tiki sends the call again, and something of ours or behind us is in
    /// trouble). A possible duplicate is at least a `warn`: money may be about to move twice.
    pub fn write(&self, line: &AccessLine<'_>) {
        let level = level_of(line);
        if level > self.level.get() {
            return;
        }
        let time = line.time.unwrap_or_else(SystemTime::now);
        self.sink.line(self.buffer, time, |out, format, stamp| {
            let mut fields = Fields(Line::begin(out, format, stamp, level, "request"));
            fields.write(line);
            fields.0.end();
        });
    }
}

fn level_of(line: &AccessLine<'_>) -> Level {
    match line.status {
        Some(500..) => Level::ERROR,
        Some(400..) => Level::WARN,
        _ if line.possible_duplicate.is_some() => Level::WARN,
        _ => Level::INFO,
    }
}

struct Fields<'b>(Line<'b>);

impl Fields<'_> {
    fn write(&mut self, line: &AccessLine<'_>) {
        let AccessLine {
            time: _, // at the line's start
            request_id,
            trace_id,
            sent_by_person,
            client_address,
            method,
            route,
            path,
            claimed_client,
            client,
            partner_code,
            idempotency_key,
            status,
            error,
            reason,
            attempt,
            replayed,
            stale_event,
            possible_duplicate,
            upstream_status,
            upstream_duration,
            duration,
            request_bytes,
            response_bytes,
        } = *line;
        self.word(named!("tikigate.request_id"), request_id);
        self.word(named!("trace_id"), trace_id);
        self.flag(named!("tikigate.sent_by_person"), sent_by_person);
        self.word(named!("client.address"), client_address);
        self.text(named!("http.request.method"), method);
        self.text(named!("http.route"), route);
        self.text(named!("url.path"), path);
        self.text(named!("tikigate.claimed_client_id"), claimed_client);
        self.text(named!("tikigate.client"), client);
        self.text(named!("tikigate.partner_code"), partner_code);
        self.text(named!("tikigate.idempotency_key"), idempotency_key);
        self.number(named!("http.response.status_code"), status);
        self.text(named!("error.type"), error);
        self.text(named!("tikigate.reason"), reason);
        self.number(named!("tikigate.attempt"), attempt);
        self.flag(named!("tikigate.replayed"), replayed);
        self.text(named!("tikigate.stale_event"), stale_event);
        self.text(named!("tikigate.possible_duplicate"), possible_duplicate);
        self.number(named!("tikigate.upstream.status_code"), upstream_status);
        self.millis(named!("tikigate.upstream.duration_ms"), upstream_duration);
        self.millis(named!("duration_ms"), duration);
        self.number(named!("http.request.body.size"), request_bytes);
        self.number(named!("http.response.body.size"), response_bytes);
    }

    fn word(&mut self, key: Name, value: Option<&str>) {
        if let Some(value) = value {
            self.0.word(key, value);
        }
    }

    fn text(&mut self, key: Name, value: Option<&str>) {
        if let Some(value) = value {
            self.0.text(key, value, TEXT_LIMIT);
        }
    }

    fn number(&mut self, key: Name, value: Option<impl Into<u64>>) {
        if let Some(value) = value {
            self.0.number(key, value.into());
        }
    }

    fn flag(&mut self, key: Name, value: Option<bool>) {
        if let Some(value) = value {
            self.0.bare(key, if value { "true" } else { "false" });
        }
    }

    fn millis(&mut self, key: Name, value: Option<Duration>) {
        if let Some(value) = value {
            self.0.millis(key, value);
        }
    }
}
