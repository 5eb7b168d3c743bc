//! The outermost layer: what a call was and how it ended, as one log line and in the metrics.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, Response, StatusCode, Uri};
use http_body::Body;
use http_body_util::Full;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::metrics::{InFlight, RouteLabel, Suspicion};
use crate::net::Arrived;
use crate::telemetry::AccessLine;

use super::Gate;
use super::call::{Call, CallSpans, Facts, TraceParent};
use super::parcel::TRACEPARENT;
use super::refusal::Refusal;
use super::traced::{Ended, finish_call};

/// What the log says of a call whose caller went away before it was answered.
const CLIENT_GONE: u16 = 499;

/// Makes [`Observe`] services.
#[derive(Clone)]
pub(super) struct ObserveLayer {
    /// Whose log and metrics.
    pub(super) gate: Arc<Gate>,
}

/// Gives each call its id and its facts, and reports them when it ends, however it ends.
#[derive(Clone)]
pub(super) struct Observe<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe {
            inner,
            gate: Arc::clone(&self.gate),
        }
    }
}

impl<S, B> Service<Arrived<B>> for Observe<S>
where
    S: Service<Call<B>, Response = Response<Full<Bytes>>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Observing<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, arrived: Arrived<B>) -> Self::Future {
        let headers = arrived.request.headers();
        let address = self
            .gate
            .common
            .trusted_proxies
            .client_address(arrived.peer, headers);
        let trace = headers
            .get(TRACEPARENT)
            .and_then(|value| TraceParent::parse(value.as_bytes()));
        let trace = trace.filter(|_| headers.get_all(TRACEPARENT).iter().nth(1).is_none());
        let request_id = self.gate.request_ids.next();
        let tracer = self.gate.common.tracer.as_ref();
        let spans = tracer
            .and_then(|tracer| CallSpans::begin(tracer, trace.as_ref().map(TraceParent::as_bytes)));
        let facts = Facts::new(request_id, arrived.first_byte, address, trace, spans);
        let facts = Arc::new(facts);
        let report = Report {
            gate: Arc::clone(&self.gate),
            facts: Arc::clone(&facts),
            method: arrived.request.method().clone(),
            uri: arrived.request.uri().clone(),
            _in_flight: self.gate.metrics.in_flight(),
            reported: false,
        };
        Observing {
            inner: self.inner.call(Call { arrived, facts }),
            report,
        }
    }
}

pin_project! {
    /// The answer of [`Observe`].
    pub(super) struct Observing<F> {
        #[pin]
        inner: F,
        report: Report,
    }
}

impl<F, E> Future for Observing<F>
where
    F: Future<Output = Result<Response<Full<Bytes>>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answered = ready!(this.inner.poll(cx));
        if let Ok(response) = &answered {
            let size = response.body().size_hint().exact().unwrap_or_default();
            this.report.finish(response.status(), size);
        }
        Poll::Ready(answered)
    }
}

/// A call's report, made once: with its answer, or when the caller hangs up and the future is dropped.
struct Report {
    gate: Arc<Gate>,
    facts: Arc<Facts>,
    method: Method,
    uri: Uri,
    _in_flight: InFlight,
    reported: bool,
}

impl Report {
    fn finish(&mut self, status: StatusCode, answer_size: u64) {
        self.reported = true;
        if status.is_server_error() {
            self.expect_again();
        }
        self.write(status.as_u16(), Some(answer_size));
    }

    /// Tiki may send the call again unchanged, hours later: it must count then. A message that was
    /// claimed is known to the ledger, which needs no signature's word for it.
    fn expect_again(&self) {
        let known_to_ledger = self.facts.key.get().is_some() && self.facts.attempt.get().is_some();
        if known_to_ledger {
            return;
        }
        if let Some(signature) = self.facts.signature.get() {
            let common = &self.gate.common;
            common
                .signatures
                .expect_again(*signature, common.clock.monotonic());
        }
    }

    fn write(&self, status: u16, answer_size: Option<u64>) {
        let facts = &self.facts;
        let metrics = &self.gate.metrics;
        let took = facts.first_byte.elapsed();
        let route = facts.route.get();
        let label = route.map_or(RouteLabel::UNMATCHED, |plan| plan.label);
        metrics.request(label, status, took);
        let refusal = facts.refusal.get();
        if let Some(refusal) = refusal {
            metrics.refusal(label, refusal.slot());
        }
        if facts.replayed.get().is_some() {
            metrics.replay(label);
        }
        let client = facts.client.get();
        let suspicion = facts.suspicion.get().copied();
        let trace = facts.traced_as();
        let path = Some(self.uri.path()).filter(|_| route.is_none());
        let now = self.gate.common.clock.now();
        if let (Some(tracer), Some(spans)) = (&self.gate.common.tracer, facts.spans) {
            let ended = Ended {
                method: &self.method,
                path,
                status,
                at: now,
                took,
            };
            finish_call(tracer, spans, facts, ended);
        }
        self.gate.log.write(&AccessLine {
            time: Some(now),
            request_id: Some(facts.request_id.as_str()),
            trace_id: trace.as_ref().map(TraceParent::trace_id),
            sent_by_person: None,
            client_address: Some(facts.address_text.as_str()),
            method: Some(self.method.as_str()),
            route: route.map(|plan| plan.route.name.as_str()),
            path,
            claimed_client: facts.claimed_client.get().map(AsRef::as_ref),
            client: client.map(|client| client.name.as_str()),
            partner_code: client.and_then(|client| client.partner_code.as_deref()),
            idempotency_key: facts.key.get().map(AsRef::as_ref),
            status: Some(status),
            error: refusal.map(Refusal::code),
            reason: refusal
                .map(Refusal::reason)
                .filter(|reason| !reason.is_empty()),
            attempt: facts.attempt.get(),
            replayed: facts.replayed.get().map(|()| true),
            stale_event: suspicion
                .filter(|suspicion| suspicion.is_stale())
                .map(Suspicion::action),
            possible_duplicate: suspicion
                .filter(|suspicion| !suspicion.is_stale())
                .map(Suspicion::action),
            upstream_status: facts.upstream_status.get(),
            upstream_duration: facts.upstream_took(),
            duration: Some(took),
            request_bytes: facts.body_size.get(),
            response_bytes: answer_size,
        });
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !self.reported {
            self.expect_again();
            self.write(CLIENT_GONE, None);
        }
    }
}
