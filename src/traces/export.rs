//! The exporting thread's work: batches of spans to the collector.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response};
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
const LAST_MOMENT: Duration = Duration::from_secs(2);

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
        // Whatever `OTEL_EXPORTER_*` says, the configuration says it last.
        let mut to = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector {
                upstream: Upstream::new(Arc::clone(&tracing.upstream)),
                timeout: tracing.upstream.answer_within,
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
        })
    }

    /// Exports until `stop`, and then what waits, for a last moment.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let batch = self.gather(&stop).await;
            if batch.is_empty() {
                return;
            }
            let spans = batch.len() as u64;
            let given_up = tokio::select! {
                biased;
                () = self.send(batch) => false,
                () = over(&stop) => true,
            };
            if given_up {
                self.counts.failed.fetch_add(spans, Ordering::Relaxed);
                return;
            }
        }
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
            .map(|tell| span_data(tell(), &self.scope))
            .collect()
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        match self.to.export(batch).await {
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
                    tracing::warn!(%error, spans, "the collector takes no spans: they are lost");
                }
            }
        }
    }
}

/// A while after the stop: a collector that hangs must not hold up the gate's end.
async fn over(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(LAST_MOMENT).await;
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
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let deadline = Instant::now() + self.timeout;
        let (mut head, body) = request.into_parts();
        // The library's URL names no real host.
        head.uri = match head.uri.path_and_query() {
            Some(path) => path.clone().into(),
            None => http::Uri::default(),
        };
        let settings = self.upstream.settings();
        head.headers.insert(HOST, settings.host.clone());
        for (name, secret) in &settings.set_headers {
            let mut value = http::HeaderValue::from_bytes(secret.expose())?;
            value.set_sensitive(true);
            head.headers.insert(name, value);
        }
        let reserved = self
            .upstream
            .reserve(ConnectionKind::Fresh, deadline)
            .await?;
        let answer = reserved
            .send(Request::from_parts(head, body), deadline, ANSWER_LIMIT)
            .await?;
        let mut response = Response::new(answer.body);
        *response.status_mut() = answer.status;
        Ok(response)
    }
}
