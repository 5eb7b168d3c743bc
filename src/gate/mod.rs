//! The gate: what a call from Tiki goes through before the backend hears of it.
//!
//! ```text
//! connection   connection cap; header deadline; HTTP/1.1                                    (crate::server)
//! ── tower layers: observe (facts, log line, metrics) · respond (every Refusal → the platform's envelope)
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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use tower::{Service, ServiceBuilder};

use crate::client::Upstream;
use crate::clock::Clock;
use crate::config::{self, Settings};
use crate::ledger::{Definition, Ledger, Owner};
use crate::metrics::{self, OutboundMetrics, SpanCounts};
use crate::net::{Arrived, TrustedProxies};
use crate::outbound::confirm::Confirms;
use crate::outbound::{Accounts, Remember, Tiki, outbox};
use crate::telemetry::AccessLog;
use crate::traces::{Finished, Tracer};

use admit::{Admission, AdmitLayer};
use arrivals::Arrivals;
use authenticate::{Clients, authenticate};
use bind::bind;
use call::{Call, RequestIds};
use confirm::{Confirmer, Outbound};
use crowd::Crowd;
use freshen::freshen;
use idempotency::idempotency;
use limits::AddressLimits;
use observe::ObserveLayer;
use probe::Looks;
use respond::RespondLayer;
use route::{RouteNumbers, RouteTable, route};
use running::RunningCalls;
use signatures::Signatures;
use throttle::{Room, throttle};
use validate::validate;

pub use answer::Answer;
pub use backend::{Backend, keep_checking};
pub use calls::Calls;
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
        let upstreams = upstreams.map(addresses_of).collect();
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
        let upstreams = common.settings.upstreams.iter();
        let upstreams = upstreams
            .map(|settings| kept(settings).unwrap_or_else(|| addresses_of(settings)))
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

/// What all workers share.
pub struct Common {
    settings: Arc<Settings>,
    clock: Clock,
    routes: RouteTable,
    numbers: Arc<RouteNumbers>,
    clients: Clients,
    trusted_proxies: TrustedProxies,
    admission: Arc<Admission>,
    signatures: Arc<Signatures>,
    arrivals: Arc<Arrivals>,
    running: Arc<RunningCalls>,
    /// How long a signature that is made now could be accepted somewhere; for those of ours.
    own_lifetime: Arc<AtomicDuration>,
    ledger: Arc<dyn Ledger>,
    owner: Owner,
    /// By upstream: what is known of it, and how much runs there.
    backends: Vec<Arc<Backend>>,
    looks: Looks,
    /// The way to Tiki; none where the outbound direction is off.
    outbound: Option<Arc<Outbound>>,
    outbound_metrics: Arc<OutboundMetrics>,
    /// Whether the ledger's last word to a claim was an error.
    ledger_failing: Arc<AtomicBool>,
    calls: Calls,
    /// Begins spans; none: off.
    tracer: Option<Tracer>,
    /// They come out here, for the thread that exports them.
    spans: Arc<Mutex<Option<Finished>>>,
}

impl Common {
    /// Of these settings. `owner` names this process's life in the ledger.
    ///
    /// # Errors
    /// What in the settings can't be used, which `check` refuses before.
    pub fn new(
        settings: Arc<Settings>,
        clock: Clock,
        ledger: Arc<dyn Ledger>,
        owner: Owner,
    ) -> Result<Arc<Self>, String> {
        let server = &settings.server;
        let signatures = Arc::new(Signatures::new(settings.signature.max_remembered));
        let arrivals = Arc::new(Arrivals::new(Arc::clone(&signatures), clock.clone()));
        let clients = Clients::new(&settings, &clock)?;
        let admission = Admission {
            crowd: Arc::new(Crowd::new(Arc::clone(clients.awaited_bodies()))),
            max_in_flight: server.max_in_flight,
            addresses: Arc::new(AddressLimits::new(server.per_address, clock.clone())),
            rules: server.addresses.clone(),
            arrivals: Arc::clone(&arrivals),
            families: settings.signature.families.clone(),
        };
        let outbound_metrics = Arc::new(OutboundMetrics::new(
            &outbox::Report::WORDS,
            &outbox::Outcome::WORDS,
        ));
        let own_lifetime = Arc::new(AtomicDuration::new(route::longest_lifetime(
            &settings.routes,
        )));
        let outbound = match &settings.outbound {
            None => None,
            Some(outbound) => Some(Arc::new(Outbound {
                accounts: Accounts::new(
                    &settings,
                    outbound,
                    &own_signatures(&own_lifetime, &signatures, &clock),
                )?,
                confirms: Confirms::new(&outbound.confirm, Arc::clone(&outbound_metrics)),
            })),
        };
        let span_counts = Arc::new(SpanCounts::default());
        let (tracer, spans) = match &settings.tracing {
            None => (None, None),
            Some(tracing) => {
                let (tracer, spans) = Tracer::new(tracing.sample_percent, owner.0, span_counts);
                (Some(tracer), Some(spans))
            }
        };
        let backends = settings.upstreams.iter();
        let backends = backends.map(|upstream| Backend::new(Arc::clone(upstream), clock.clone()));
        let numbers = Arc::new(RouteNumbers::default());
        Ok(Arc::new(Self {
            routes: RouteTable::new(&settings, &numbers)?,
            numbers,
            clients,
            trusted_proxies: server.trusted_proxies.clone(),
            calls: Calls::new(Arc::clone(&admission.crowd)),
            tracer,
            spans: Arc::new(Mutex::new(spans)),
            admission: Arc::new(admission),
            signatures,
            arrivals,
            running: Arc::default(),
            own_lifetime,
            outbound,
            outbound_metrics,
            backends: backends.collect(),
            looks: Looks::new(&settings.upstreams),
            ledger_failing: Arc::default(),
            settings,
            clock,
            ledger,
            owner,
        }))
    }

    /// Of other settings, in the place of this one: what is in flight, what was remembered, and what
    /// was used of limits that stay, is shared with it.
    ///
    /// What the settings say of the outbound direction, of the ledger and of `max_remembered` is taken
    /// to be the same as before; the secrets of accounts are renewed by [`Common::renew_accounts`].
    ///
    /// # Errors
    /// What in the settings can't be used, which `check` refuses before.
    pub fn renewed(&self, settings: Arc<Settings>) -> Result<Arc<Self>, String> {
        let server = &settings.server;
        let addresses =
            AddressLimits::after(&self.admission.addresses, server.per_address, &self.clock);
        let admission = Admission {
            crowd: Arc::clone(&self.admission.crowd),
            max_in_flight: server.max_in_flight,
            addresses,
            rules: server.addresses.clone(),
            arrivals: Arc::clone(&self.arrivals),
            families: settings.signature.families.clone(),
        };
        let backends = settings.upstreams.iter();
        let backends =
            backends.map(|upstream| Backend::after(&self.backends, upstream, &self.clock));
        Ok(Arc::new(Self {
            routes: RouteTable::new(&settings, &self.numbers)?,
            numbers: Arc::clone(&self.numbers),
            clients: Clients::after(Some(&self.clients), &settings, &self.clock)?,
            trusted_proxies: server.trusted_proxies.clone(),
            admission: Arc::new(admission),
            signatures: Arc::clone(&self.signatures),
            arrivals: Arc::clone(&self.arrivals),
            running: Arc::clone(&self.running),
            own_lifetime: Arc::clone(&self.own_lifetime),
            outbound: self.outbound.clone(),
            outbound_metrics: Arc::clone(&self.outbound_metrics),
            backends: backends.collect(),
            looks: self.looks.after(&settings.upstreams),
            ledger_failing: Arc::clone(&self.ledger_failing),
            calls: self.calls.clone(),
            tracer: self.tracer.clone(),
            spans: Arc::clone(&self.spans),
            settings,
            clock: self.clock.clone(),
            ledger: Arc::clone(&self.ledger),
            owner: self.owner,
        }))
    }

    /// Takes the secrets of these settings for what is signed from now on, and their routes for how
    /// long those signatures count for nothing at this gate's own door.
    pub fn renew_accounts(&self) {
        let longest = route::longest_lifetime(&self.settings.routes);
        // What was made before stays remembered for the time it was made with; a longer one starts first.
        self.own_lifetime.set(longest.max(self.own_lifetime.get()));
        if let Some(outbound) = &self.outbound {
            outbound.accounts.renew(&self.settings);
        }
    }

    /// Has the settings' `max_in_flight` hold, for the calls that run already too.
    pub fn resize_caps(&self) {
        for backend in &self.backends {
            backend.resize_cap();
        }
    }

    /// The settings that it was made of.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    fn room(&self) -> Room<'_> {
        Room {
            crowd: &self.admission.crowd,
            max_in_flight: self.admission.max_in_flight,
            shared: self.clients.are_many(),
        }
    }

    /// The labels that the metrics are made with.
    pub fn labels(settings: &Settings, sources: metrics::Sources) -> metrics::Labels {
        metrics::Labels {
            sources,
            routes: settings
                .routes
                .iter()
                .map(|route| route.name.clone())
                .collect(),
            refusals: Refusal::labels(),
            secrets: Clients::secret_labels(settings),
        }
    }

    /// The namespaces that the routes use, each with its definition.
    pub fn namespaces(settings: &Settings) -> Vec<(Arc<str>, Definition)> {
        let rules = settings
            .routes
            .iter()
            .filter_map(|route| route.idempotency.as_ref());
        rules
            .map(|rule| {
                let key = rule.spec.key_text();
                let fingerprint = rule.spec.fingerprint_text();
                (
                    Arc::from(rule.namespace.as_str()),
                    Definition { key, fingerprint },
                )
            })
            .collect()
    }

    /// The spans of calls, for the one who exports them; none: off, or somebody has them already.
    pub fn take_spans(&self) -> Option<(Finished, Arc<SpanCounts>)> {
        let finished = self
            .spans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        Some((finished, Arc::clone(self.tracer.as_ref()?.counts())))
    }

    /// The calls that run detached.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// What is in trouble by the last calls' experience, one short sentence each.
    pub fn degraded(&self) -> Vec<String> {
        let backends = self.backends.iter();
        let mut told: Vec<String> = backends.flat_map(|backend| backend.degraded()).collect();
        if self.ledger_failing.load(Ordering::Relaxed) {
            told.push("the ledger takes no calls".to_owned());
        }
        if let Some(outbound) = &self.outbound {
            told.extend(outbound.accounts.degraded());
        }
        told
    }

    /// What is known of the backends, by upstream.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// Who the partner's own calls are signed as, where there are any.
    pub fn accounts(&self) -> Option<&Accounts> {
        self.outbound.as_ref().map(|outbound| &outbound.accounts)
    }

    /// What the outbound direction counts.
    pub fn outbound_metrics(&self) -> &Arc<OutboundMetrics> {
        &self.outbound_metrics
    }

    /// A worker's way to ask Tiki, where a route wants that.
    fn confirmer(&self) -> Option<Confirmer> {
        let asked = self.settings.routes.iter().any(|route| route.confirm);
        let outbound = self.outbound.as_ref().filter(|_| asked)?;
        let settings = self.settings.outbound.as_ref()?;
        Some(Confirmer {
            tiki: Tiki::new(
                outbound.accounts.clone(),
                self.clock.clone(),
                settings.confirm.within,
                settings.answer_limit,
            ),
        })
    }

    /// Signatures that are remembered now.
    pub fn remembered_signatures(&self) -> usize {
        self.signatures.len()
    }

    /// Addresses that have a limit of their own now.
    pub fn limited_addresses(&self) -> usize {
        self.admission.addresses.len()
    }

    /// The status of unauthenticated calls.
    pub fn refuse_with(&self) -> StatusCode {
        self.settings.signature.refuse_with
    }
}

/// A worker's ways to the addresses of a backend.
fn addresses_of(settings: &Arc<config::Upstream>) -> Vec<Upstream> {
    let addresses = 0..settings.endpoints.len();
    addresses
        .map(|index| Upstream::to(Arc::clone(settings), index))
        .collect()
}

/// Has each signature of ours remembered as no route's, for as long as any route would take it.
fn own_signatures(
    lifetime: &Arc<AtomicDuration>,
    signatures: &Arc<Signatures>,
    clock: &Clock,
) -> Remember {
    let lifetime = Arc::clone(lifetime);
    let (signatures, clock) = (Arc::clone(signatures), clock.clone());
    Arc::new(move |mac| signatures.is_ours(mac.into(), clock.monotonic(), lifetime.get()))
}

/// A duration of whole milliseconds that is shared.
struct AtomicDuration(AtomicU64);

impl AtomicDuration {
    fn new(duration: Duration) -> Self {
        Self(AtomicU64::new(duration.as_millis() as u64))
    }

    fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, duration: Duration) {
        let millis = duration.as_millis() as u64;
        self.0.store(millis, Ordering::Relaxed);
    }
}
