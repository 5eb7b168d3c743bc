//! The gate: what a call from Tiki goes through before the backend hears of it.
//!
//! ```text
//! connection   connection cap; header deadline; HTTP/1.1                                    (crate::server)
//! ── tower layers: observe (facts, log line, metrics, spans) · respond (every Refusal → the platform's envelope)
//!                  · admit (addresses let in, in-flight cap and an address's share of it, per-address limit)
//! ── Gate::call: typed steps, each in the file of its name
//!  1 route         exact path and method; anything else is never forwarded                  → Routed
//!  2 authenticate  one set of signature headers, known client, body under its limits, HMAC  → Authentic
//!  3 freshen       inside its time window, or only good for what the ledger knows           → Freshened
//!  4 validate      the route's payload: types, required fields, amounts exact               → Valid
//!  5 bind          the signature counts on one route, once where nothing else tells         → Bound
//!  6 throttle      the client's rate and share, which a forger can't spend                  → Claimable
//!  7 idempotency   claim → run once, detached → record → answer; or replay; or join         → Answer
//! ── towards the backend: in-flight cap, fair between clients · breaker · backend            (backend)
//!    forward       clean headers, call the backend, classify its answer                     (attempt, outcome)
//! ```
//!
//! Step 7 takes a pass of the breaker before it claims: while no address may be called, nothing is claimed,
//! and what the ledger knows is still answered.
//!
//! On routes with `confirm`, step 7 asks Tiki about the transaction between its look into the ledger and
//! its claim (`confirm`). Beside calls, on the control thread: `rounds` asks backends about calls whose outcome nobody knows
//! (`probe`, as a duplicate of such a call does too), and `send_now` sends a kept call by a person's
//! word, on the same way from its claim to its record.
//!
//! What all workers share, and what of it outlives a reload, stands in `common`; the calls that run detached
//! from their callers in `calls`; what spans say of a call in `traced`.
//!
//! Each step consumes one type and yields the next, and only the step itself can make it: a step
//! that is left out or swapped does not compile. Every step ends a call with a [`Refusal`], whose
//! table is the one place that knows statuses.

mod admit;
mod answer;
pub mod arrivals;
mod attempt;
pub mod authenticate;
mod awaited;
mod backend;
pub mod bind;
pub mod call;
mod calls;
mod common;
mod confirm;
mod crowd;
mod current;
mod flag;
mod forward;
pub mod freshen;
pub mod idempotency;
mod limits;
mod observe;
mod outcome;
mod parcel;
mod probe;
mod record;
mod refusal;
mod respond;
mod rounds;
pub mod route;
mod running;
mod send_now;
pub mod signatures;
pub mod throttle;
mod traced;
mod understand;
pub mod validate;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use http_body_util::Full;
use tower::{Service, ServiceBuilder};

use crate::client::Upstream;
use crate::config;
use crate::metrics;
use crate::net::Arrived;
use crate::telemetry::AccessLog;

use admit::AdmitLayer;
use authenticate::authenticate;
use bind::bind;
use call::{Call, RequestIds};
use confirm::Confirmer;
use freshen::freshen;
use idempotency::idempotency;
use observe::ObserveLayer;
use respond::RespondLayer;
use route::route;
use throttle::throttle;
use validate::validate;

pub use answer::Answer;
pub use backend::{Backend, keep_checking};
pub use calls::Calls;
pub use common::Common;
pub use current::Current;
pub use refusal::Refusal;
pub use rounds::{Rounds, keep_looking};
pub use send_now::{NotSentNow, SentNow};

/// One worker's gate: what all workers share, and this worker's own connections, log and metrics.
pub struct Gate {
    common: Arc<Common>,
    /// By upstream and address.
    upstreams: Vec<Vec<Upstream>>,
    /// To ask Tiki, on connections of its own; none where no route wants that.
    confirmer: Option<Arc<Confirmer>>,
    request_ids: Arc<RequestIds>,
    metrics: metrics::Worker,
    log: AccessLog,
}

impl Gate {
    /// A worker's gate. Its backend connections belong to the runtime that calls it.
    pub fn new(
        common: Arc<Common>,
        metrics: metrics::Worker,
        log: AccessLog,
        random: u64,
    ) -> Arc<Self> {
        let upstreams = common.settings.upstreams.iter();
        let workers = common.settings.server.workers;
        let upstreams = upstreams
            .map(|settings| addresses_of(settings, workers))
            .collect();
        Arc::new(Self {
            confirmer: common.confirmer().map(Arc::new),
            common,
            upstreams,
            request_ids: Arc::new(RequestIds::new(random)),
            metrics,
            log,
        })
    }

    /// The same worker's gate by a renewed [`Common`]: connections to what stays go on being used.
    pub fn renewed(&self, common: Arc<Common>, metrics: metrics::Worker) -> Arc<Self> {
        let kept = |settings: &Arc<config::Upstream>| {
            let mut known = self.upstreams.iter();
            let same = |known: &&Vec<Upstream>| {
                (known.first()).is_some_and(|first| first.settings() == &**settings)
            };
            known.find(same).cloned()
        };
        let workers = common.settings.server.workers;
        let upstreams = common.settings.upstreams.iter();
        let upstreams = upstreams
            .map(|settings| kept(settings).unwrap_or_else(|| addresses_of(settings, workers)))
            .collect();
        let confirmer = self.confirmer.clone();
        Arc::new(Self {
            confirmer: confirmer.or_else(|| common.confirmer().map(Arc::new)),
            common,
            upstreams,
            request_ids: Arc::clone(&self.request_ids),
            metrics,
            log: self.log.clone(),
        })
    }

    /// What it shares with the other workers' gates.
    pub fn common(&self) -> &Arc<Common> {
        &self.common
    }

    /// The steps of a call, in their order.
    ///
    /// # Errors
    /// The refusal of the step that ended it.
    pub async fn call<B>(self: Arc<Self>, call: Call<B>) -> Result<Answer, Refusal>
    where
        B: Body<Data = Bytes>,
    {
        let common = &self.common;
        let routed = route(&common.routes, call)?;
        let authentic =
            authenticate(&common.clients, &common.arrivals, &self.metrics, routed).await?;
        let now = common.clock.now();
        self.metrics.signature_age(authentic.age_seconds(now));
        let freshened = freshen(now, authentic);
        let valid = validate(freshened)?;
        let monotonic = common.clock.monotonic();
        let bound = bind(&common.signatures, &common.arrivals, monotonic, now, valid)?;
        let claimable = throttle(&common.room(), bound)?;
        idempotency(&self, claimable).await
    }

    /// This gate behind its layers, as the server calls it.
    pub fn service<B>(
        self: &Arc<Self>,
    ) -> impl Service<Arrived<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + use<B>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        ServiceBuilder::new()
            .layer(ObserveLayer {
                gate: Arc::clone(self),
            })
            .layer(RespondLayer {
                refuse_with: self.common.settings.signature.refuse_with,
            })
            .layer(AdmitLayer {
                admission: Arc::clone(&self.common.admission),
            })
            .service(Steps {
                gate: Arc::clone(self),
            })
    }
}

/// [`Gate::call`] as the innermost service.
#[derive(Clone)]
struct Steps {
    gate: Arc<Gate>,
}

impl<B> Service<Call<B>> for Steps
where
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Answer;
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Refusal>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call<B>) -> Self::Future {
        Box::pin(Arc::clone(&self.gate).call(call))
    }
}

/// A worker's ways to the addresses of a backend.
fn addresses_of(settings: &Arc<config::Upstream>, workers: usize) -> Vec<Upstream> {
    let addresses = 0..settings.endpoints.len();
    addresses
        .map(|index| Upstream::beside_others(Arc::clone(settings), index, workers))
        .collect()
}
