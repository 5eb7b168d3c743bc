//! The exporting thread's work: batches of spans to the collector.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response};
use opentelemetry::trace::{
    SpanContext as OtelContext, SpanId, SpanKind, Status, TraceFlags, TraceId,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Finished, Side, Span, Value};
use crate::client::{ConnectionKind, Upstream};
use crate::config::Tracing;
use crate::metrics::SpanCounts;

/// Spans of one request to the collector at most.
const BATCH: usize = 512;

/// How long a span waits for others.
const GATHER: Duration = Duration::from_secs(2);

/// At the end, so long is tried to get rid of what waits.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Bytes of the collector's answer at most.
const ANSWER_LIMIT: usize = 64 << 10;

/// Why no exporter can be made.
#[derive(Debug, thiserror::Error)]
#[error("spans can't be exported: {0}")]
pub struct ExporterError(#[from] ExporterBuildError);

/// Sends finished spans to the collector.
pub struct Exporter {
    finished: Finished,
    to: SpanExporter,
    counts: Arc<SpanCounts>,
    scope: InstrumentationScope,
    failing: bool,
    /// Spans that are with the collector now.
    sending: u64,
    /// Why the last batch did not get there.
    fault: Arc<Mutex<Option<String>>>,
}

impl Exporter {
    /// To the collector of these settings. Its connections belong to the runtime that runs it.
    ///
    /// # Errors
    /// The settings are not the library's taste.
    pub fn new(
        tracing: &Tracing,
        version: &'static str,
        instance: String,
        finished: Finished,
        counts: Arc<SpanCounts>,
    ) -> Result<Self, ExporterError> {
        let fault = Arc::default();
        let mut to = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector {
                upstream: Upstream::new(Arc::clone(&tracing.upstream)),
                timeout: tracing.upstream.answer_within,
                fault: Arc::clone(&fault),
            })
            .with_protocol(Protocol::HttpBinary)
            .with_retry_policy(RetryPolicy::disabled())
            .with_endpoint(format!("http://collector{}", tracing.path))
            .with_timeout(tracing.upstream.answer_within)
            .build()?;
        to.set_resource(
            &Resource::builder_empty()
                .with_attributes([
                    KeyValue::new("service.name", tracing.service_name.clone()),
                    KeyValue::new("service.version", version),
                    KeyValue::new("service.instance.id", instance),
                ])
                .build(),
        );
        let scope = InstrumentationScope::builder("tikigate").with_version(version);
        Ok(Self {
            finished,
            to,
            counts,
            scope: scope.build(),
            failing: false,
            sending: 0,
            fault,
        })
    }

    /// Exports until `stop`, and then what waits, for a last moment: the gate's end doesn't wait longer.
    pub async fn run(mut self, stop: CancellationToken) {
        let exporting = async {
            loop {
                let batch = self.gather(&stop).await;
                if batch.is_empty() {
                    return;
                }
                self.send(batch).await;
            }
        };
        let over = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_MOMENT).await;
        };
        tokio::select! {
            biased;
            () = exporting => return,
            () = over => {}
        }
        let lost = self.sending + self.finished.0.len() as u64;
        self.counts.failed.fetch_add(lost, Ordering::Relaxed);
    }

    /// The next spans; empty only once it is over.
    async fn gather(&mut self, stop: &CancellationToken) -> Vec<SpanData> {
        let queue = &mut self.finished.0;
        let mut told = Vec::new();
        tokio::select! {
            biased;
            _ = queue.recv_many(&mut told, BATCH) => {}
            () = stop.cancelled() => {}
        }
        let until = Instant::now() + GATHER;
        while !told.is_empty() && told.len() < BATCH {
            let room = BATCH - told.len();
            tokio::select! {
                biased;
                more = queue.recv_many(&mut told, room) => {
                    if more == 0 {
                        break;
                    }
                }
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(until) => break,
            }
        }
        told.into_iter()
            .map(|span| span_data(span, &self.scope))
            .collect()
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        self.sending = spans;
        let exported = self.to.export(batch).await;
        self.sending = 0;
        match exported {
            Ok(()) => {
                self.counts.exported.fetch_add(spans, Ordering::Relaxed);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the collector takes spans again");
                }
            }
            Err(error) => {
                self.counts.failed.fetch_add(spans, Ordering::Relaxed);
                // Once: it is counted, and calls don't depend on it.
                if !std::mem::replace(&mut self.failing, true) {
                    // The library's own error doesn't say what the network said.
                    let fault = self
                        .fault
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .take();
                    let error = fault.unwrap_or_else(|| error.to_string());
                    tracing::warn!(error, spans, "the collector takes no spans: they are lost");
                }
            }
        }
    }
}

fn span_data(span: Span, scope: &InstrumentationScope) -> SpanData {
    let Span {
        context,
        name,
        side,
        start,
        end,
        attributes,
        error,
    } = span;
    let ids = OtelContext::new(
        TraceId::from(context.trace),
        SpanId::from(context.span),
        TraceFlags::SAMPLED,
        false,
        opentelemetry::trace::TraceState::NONE,
    );
    let attributes = attributes.into_iter().map(|(key, value)| match value {
        Value::Text(text) => KeyValue::new(key, text),
        Value::Number(number) => KeyValue::new(key, number),
        Value::Flag(flag) => KeyValue::new(key, flag),
    });
    SpanData {
        span_context: ids,
        parent_span_id: SpanId::from(context.parent),
        parent_span_is_remote: context.parent_is_remote,
        span_kind: match side {
            Side::Server => SpanKind::Server,
            Side::Client => SpanKind::Client,
        },
        name: name.into(),
        start_time: start,
        end_time: end,
        attributes: attributes.collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: error.map_or(Status::Unset, Status::error),
        instrumentation_scope: scope.clone(),
    }
}

/// The way to the collector, for the library.
#[derive(Debug)]
struct Collector {
    upstream: Upstream,
    timeout: Duration,
    fault: Arc<Mutex<Option<String>>>,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answered = self.exchange(request).await;
        if let Err(fault) = &answered {
            let mut last = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some(fault.to_string());
        }
        answered
    }
}

impl Collector {
    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let deadline = Instant::now() + self.timeout;
        let settings = self.upstream.settings();
        let mut sent = Request::new(request.body().clone());
        *sent.method_mut() = request.method().clone();
        // The library's URL names no real host.
        if let Some(path) = request.uri().path_and_query() {
            *sent.uri_mut() = path.clone().into();
        }
        // None of the library's headers: it takes them from `OTEL_*` variables, which may hold another
        // collector's key. The configuration says what goes out.
        let headers = sent.headers_mut();
        headers.insert(HOST, settings.host.clone());
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-protobuf"),
        );
        headers.insert(CONTENT_LENGTH, HeaderValue::from(request.body().len()));
        for (name, secret) in &settings.set_headers {
            let mut value = HeaderValue::from_bytes(secret.expose())?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let reserved = self
            .upstream
            .reserve(ConnectionKind::Fresh, deadline)
            .await?;
        let answer = reserved.send(sent, deadline, ANSWER_LIMIT).await?;
        let mut response = Response::new(answer.body);
        *response.status_mut() = answer.status;
        Ok(response)
    }
}
