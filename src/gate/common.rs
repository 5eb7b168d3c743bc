//! What all workers share, and what of it outlives a reload.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;

use crate::clock::Clock;
use crate::config::Settings;
use crate::ledger::{Definition, Ledger, Owner};
use crate::metrics::{self, OutboundMetrics, SpanCounts};
use crate::net::TrustedProxies;
use crate::outbound::confirm::Confirms;
use crate::outbound::{Accounts, Remember, Tiki, outbox};
use crate::traces::{Finished, Tracer};

use super::admit::Admission;
use super::arrivals::Arrivals;
use super::authenticate::Clients;
use super::backend::Backend;
use super::calls::Calls;
use super::confirm::{Confirmer, Outbound};
use super::crowd::Crowd;
use super::limits::AddressLimits;
use super::probe::Looks;
use super::refusal::Refusal;
use super::route::{self, RouteNumbers, RouteTable};
use super::running::RunningCalls;
use super::signatures::Signatures;
use super::throttle::Room;

/// What all workers share.
pub struct Common {
    pub(super) settings: Arc<Settings>,
    pub(super) clock: Clock,
    pub(super) routes: RouteTable,
    pub(super) numbers: Arc<RouteNumbers>,
    pub(super) clients: Clients,
    pub(super) trusted_proxies: TrustedProxies,
    pub(super) admission: Arc<Admission>,
    pub(super) signatures: Arc<Signatures>,
    pub(super) arrivals: Arc<Arrivals>,
    pub(super) running: Arc<RunningCalls>,
    /// How long a signature that is made now could be accepted somewhere; for those of ours.
    own_lifetime: Arc<AtomicDuration>,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) owner: Owner,
    /// By upstream: what is known of it, and how much runs there.
    pub(super) backends: Vec<Arc<Backend>>,
    pub(super) looks: Looks,
    /// The way to Tiki; none where the outbound direction is off.
    pub(super) outbound: Option<Arc<Outbound>>,
    pub(super) outbound_metrics: Arc<OutboundMetrics>,
    /// Whether the ledger's last word to a claim was an error.
    pub(super) ledger_failing: Arc<AtomicBool>,
    pub(super) calls: Calls,
    /// Begins spans; none: off.
    pub(super) tracer: Option<Tracer>,
    /// They come out here, for the thread that exports them.
    pub(super) spans: Arc<Mutex<Option<Finished>>>,
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

    pub(super) fn room(&self) -> Room<'_> {
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
    pub(super) fn confirmer(&self) -> Option<Confirmer> {
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
        self.signatures.len(self.clock.monotonic())
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
