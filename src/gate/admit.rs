//! The layer that bounds what an unauthenticated caller can use: whether its address may call, calls at
//! once, an address's share of them, calls per address and second.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::net::{AddressRules, ClientAddress, LimitKey};
use crate::tiki::Family;

use super::answer::Answer;
use super::arrivals::Arrivals;
use super::call::Call;
use super::crowd::{Crowd, Place};
use super::limits::AddressLimits;
use super::refusal::Refusal;

/// What all workers' [`Admit`]s share.
pub(super) struct Admission {
    /// Calls being handled.
    pub(super) crowd: Arc<Crowd>,
    /// At most so many.
    pub(super) max_in_flight: usize,
    /// Limits per address.
    pub(super) addresses: Arc<AddressLimits>,
    /// Which addresses are let in.
    pub(super) rules: AddressRules,
    /// Where refused calls are noted, for their re-sends.
    pub(super) arrivals: Arc<Arrivals>,
    /// The headers by which they are told.
    pub(super) families: Vec<Family>,
}

impl Admission {
    fn admit(&self, address: ClientAddress) -> Result<Place, Refusal> {
        if self.crowd.is_draining() {
            return Err(Refusal::Draining);
        }
        if !self.rules.permit(address) {
            return Err(Refusal::AddressNotAllowed);
        }
        let key = LimitKey::from(address);
        let place = self
            .crowd
            .enter(key, self.max_in_flight)
            .map_err(Refusal::Overloaded)?;
        self.addresses.take(key)?;
        Ok(place)
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
        match self.admission.admit(call.facts.address) {
            Ok(place) => Admitting::In {
                _place: place,
                inner: self.inner.call(call),
            },
            Err(refusal) => {
                self.admission
                    .arrivals
                    .note_head(call.arrived.request.headers(), &self.admission.families);
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
        In { _place: Place, #[pin] inner: F },
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
