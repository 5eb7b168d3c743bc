//! The layer that turns answers and refusals into HTTP: the only place where a response is made.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, EXPECT, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::failpoint;

use super::answer::Answer;
use super::call::{Call, Facts};
use super::refusal::Refusal;

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Makes [`Respond`] services.
#[derive(Clone, Copy, Debug)]
pub(super) struct RespondLayer {
    /// The status of unauthenticated calls.
    pub(super) refuse_with: StatusCode,
}

/// Answers every call: nothing gets past it as an error.
#[derive(Clone, Debug)]
pub(super) struct Respond<S> {
    inner: S,
    refuse_with: StatusCode,
}

impl<S> Layer<S> for RespondLayer {
    type Service = Respond<S>;

    fn layer(&self, inner: S) -> Respond<S> {
        Respond {
            inner,
            refuse_with: self.refuse_with,
        }
    }
}

impl<S, B> Service<Call<B>> for Respond<S>
where
    S: Service<Call<B>, Response = Answer, Error = Refusal>,
    B: Body,
{
    type Response = Response<Full<Bytes>>;
    type Error = std::convert::Infallible;
    type Future = Responding<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // The gate refuses instead of waiting: readiness is always there.
        let _ = self.inner.poll_ready(cx);
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call<B>) -> Self::Future {
        Responding {
            facts: Arc::clone(&call.facts),
            refuse_with: self.refuse_with,
            body: PendingBody::of(&call.arrived.request),
            inner: self.inner.call(call),
        }
    }
}

pin_project! {
    /// The answer of [`Respond`].
    pub(super) struct Responding<F> {
        facts: Arc<Facts>,
        refuse_with: StatusCode,
        body: PendingBody,
        #[pin]
        inner: F,
    }
}

impl<F> Future for Responding<F>
where
    F: Future<Output = Result<Answer, Refusal>>,
{
    type Output = Result<Response<Full<Bytes>>, std::convert::Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let ended = ready!(this.inner.poll(cx));
        failpoint::reach("before_reply");
        Poll::Ready(Ok(match ended {
            Ok(answer) => answered(this.facts, answer),
            Err(refusal) => {
                let body_read = this.facts.body_size.get().is_some();
                let close = closes(&refusal, *this.body, body_read);
                let response = refused(&refusal, *this.refuse_with, close);
                let _ = this.facts.refusal.set(refusal);
                response
            }
        }))
    }
}

fn answered(facts: &Facts, answer: Answer) -> Response<Full<Bytes>> {
    if let Some(attempt) = answer.attempt {
        facts.attempt.set(attempt.into());
    }
    let mut response = Response::new(Full::new(answer.kept.body));
    *response.status_mut() = answer.kept.status;
    *response.headers_mut() = answer.room;
    for (name, value) in answer.kept.headers {
        response.headers_mut().append(name, value);
    }
    if answer.replayed {
        let _ = facts.replayed.set(());
        response
            .headers_mut()
            .insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// What stands behind a request's head.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PendingBody {
    None,
    /// So small that the HTTP library throws away what is not read of it.
    Small,
    Large,
}

impl PendingBody {
    const SMALL: u64 = 64 * 1024;

    fn of<B: Body>(request: &http::Request<B>) -> Self {
        if request.body().is_end_stream() {
            return Self::None;
        }
        let waits = || request.headers().contains_key(EXPECT);
        match request.body().size_hint().exact() {
            Some(length) if length <= Self::SMALL && !waits() => Self::Small,
            _ => Self::Large,
        }
    }
}

/// Whether the connection must be closed, since its next bytes may be the rest of an unread body.
///
/// For an unauthenticated call the request's head alone decides: an answer that told whether the
/// body was read would tell whether the client is known.
fn closes(refusal: &Refusal, body: PendingBody, body_read: bool) -> bool {
    match refusal {
        Refusal::Unauthenticated(_) => body == PendingBody::Large,
        _ => refusal.closes_connection() || (body != PendingBody::None && !body_read),
    }
}

/// The platform's envelope.
fn refused(refusal: &Refusal, refuse_with: StatusCode, close: bool) -> Response<Full<Bytes>> {
    let status = refusal.status(refuse_with);
    let mut response = Response::new(Full::new(refusal.body()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = refusal.retry_after(status) {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Refusal::MethodNotAllowed(methods) = refusal
        && let Ok(methods) = HeaderValue::from_str(methods)
    {
        headers.insert(ALLOW, methods);
    }
    if close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
