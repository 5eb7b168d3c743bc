//! The layer that bounds what an unauthenticated caller can use: calls at once, calls per address.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::net::LimitKey;

use super::answer::Answer;
use super::arrivals::Arrivals;
use super::call::Call;
use super::limits::AddressLimits;
use super::refusal::{Overload, Refusal};

/// What all workers' [`Admit`]s share.
pub(super) struct Admission {
    /// Calls being handled, over all workers.
    pub(super) in_flight: AtomicUsize,
    /// At most so many.
    pub(super) max_in_flight: usize,
    /// Limits per address.
    pub(super) addresses: AddressLimits,
    /// Where refused calls are noted, for their re-sends.
    pub(super) arrivals: Arc<Arrivals>,
    /// Set when the gate is about to stop and takes no new call.
    pub(super) draining: AtomicBool,
}

impl Admission {
    fn admit(self: &Arc<Self>, address: LimitKey) -> Result<Admitted, Refusal> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Refusal::Draining);
        }
        let admitted = Admitted(Arc::clone(self));
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        if before >= self.max_in_flight {
            return Err(Refusal::Overloaded(Overload::InFlight));
        }
        self.addresses.take(address)?;
        Ok(admitted)
    }
}

/// A call's place among those in flight; given back when it is dropped.
struct Admitted(Arc<Admission>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes [`Admit`] services.
#[derive(Clone)]
pub(super) struct AdmitLayer {
    /// What all of them share.
    pub(super) admission: Arc<Admission>,
}

/// Refuses what is too much before anything is read or computed for it.
#[derive(Clone)]
pub(super) struct Admit<S> {
    inner: S,
    admission: Arc<Admission>,
}

impl<S> Layer<S> for AdmitLayer {
    type Service = Admit<S>;

    fn layer(&self, inner: S) -> Admit<S> {
        Admit {
            inner,
            admission: Arc::clone(&self.admission),
        }
    }
}

impl<S, B> Service<Call<B>> for Admit<S>
where
    S: Service<Call<B>, Response = Answer, Error = Refusal>,
{
    type Response = Answer;
    type Error = Refusal;
    type Future = Admitting<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call<B>) -> Self::Future {
        match self.admission.admit(LimitKey::from(call.facts.address)) {
            Ok(admitted) => Admitting::In {
                _admitted: admitted,
                inner: self.inner.call(call),
            },
            Err(refusal) => {
                self.admission
                    .arrivals
                    .note_head(call.arrived.request.headers());
                Admitting::Out {
                    refusal: Some(refusal),
                }
            }
        }
    }
}

pin_project! {
    /// The answer of [`Admit`].
    #[project = AdmittingProjection]
    pub(super) enum Admitting<F> {
        /// Let in; the place is given back with the future.
        In { _admitted: Admitted, #[pin] inner: F },
        /// Refused.
        Out { refusal: Option<Refusal> },
    }
}

impl<F> Future for Admitting<F>
where
    F: Future<Output = Result<Answer, Refusal>>,
{
    type Output = Result<Answer, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            AdmittingProjection::In { inner, .. } => inner.poll(cx),
            AdmittingProjection::Out { refusal } => match refusal.take() {
                Some(refusal) => Poll::Ready(Err(refusal)),
                None => Poll::Pending, // polled again after it resolved, which futures forbid
            },
        }
    }
}
