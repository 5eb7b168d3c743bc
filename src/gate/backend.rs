//! A backend as all workers see it: how many calls run there, and which of its addresses may be called.
//!
//! ```text
//! Backend ─┬─ cap: calls at once, fair between clients
//!          └─ addresses, each with ─┬─ breaker: what calls came to (breaker)
//!                                   ├─ health: what checks saw (health)
//!                                   └─ load: calls on their way to it
//! ```
//! A [`Pass`] is the right to make one call, at one address. It is asked for before the ledger is: when
//! there is none, nothing is claimed, and only what the ledger knows is answered.

mod breaker;
mod cap;
mod health;
mod tally;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use smallvec::SmallVec;

use crate::clock::Clock;
use crate::config::{self, Endpoint};
use crate::metrics::{AddressFigures, BreakerState};

use super::refusal::{Refusal, Unavailable};
use breaker::{Breaker, Change, Permission, State};
use health::Health;

pub(super) use cap::Cap;
pub use health::keep_checking;

/// One upstream's state, shared by all workers.
#[derive(Debug)]
pub struct Backend {
    settings: Arc<config::Upstream>,
    clock: Clock,
    cap: Arc<Cap>,
    /// In the order of the settings' endpoints.
    addresses: Vec<Arc<Address>>,
    /// Where the search for an address begins, so that ties rotate.
    first: AtomicUsize,
    /// Whether the last call that wanted a connection got none.
    unreachable: AtomicBool,
}

/// One address of a backend.
#[derive(Debug)]
struct Address {
    upstream: String,
    /// As it is written in the configuration.
    text: String,
    endpoint: Endpoint,
    breaker: Arc<Breaker>,
    health: Arc<Health>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Calls with a pass.
    in_flight: AtomicUsize,
    /// How often the breaker opened.
    opened: AtomicU64,
}

/// Why no call can be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shut {
    pub(super) why: Unavailable,
    /// When asking again makes sense.
    pub(super) wait: Duration,
}

impl From<Shut> for Refusal {
    fn from(shut: Shut) -> Self {
        Self::UpstreamUnavailable(shut.why, shut.wait)
    }
}

/// The right to make one call at one address. Dropped without a word of what the call came to, it
/// counts for nothing.
#[derive(Debug)]
pub(super) struct Pass {
    address: Arc<Address>,
    index: usize,
    permission: Permission,
    clock: Clock,
    told: bool,
}

impl Backend {
    /// A backend that nobody has called yet: all of its addresses may be.
    pub fn new(settings: Arc<config::Upstream>, clock: Clock) -> Arc<Self> {
        let addresses = settings.endpoints.iter();
        let addresses = addresses.map(|endpoint| Address::new(&settings, endpoint));
        Arc::new(Self {
            cap: Cap::new(settings.max_in_flight),
            addresses: addresses.map(Arc::new).collect(),
            first: AtomicUsize::new(0),
            unreachable: AtomicBool::new(false),
            settings,
            clock,
        })
    }

    /// A backend in the place of what was known before: each address that is still among its settings
    /// keeps its state, and calls that run are counted on. [`Backend::resize_cap`] is to be called once
    /// it has taken its place.
    pub(super) fn after(
        before: &[Arc<Self>],
        settings: &Arc<config::Upstream>,
        clock: &Clock,
    ) -> Arc<Self> {
        let old = before.iter().find(|old| old.settings.name == settings.name);
        let Some(old) = old else {
            return Self::new(Arc::clone(settings), clock.clone());
        };
        let addresses = settings.endpoints.iter().map(|endpoint| {
            let known = old.addresses.iter().find(|a| a.endpoint == *endpoint);
            Arc::new(match known {
                Some(address) => address.under(settings),
                None => Address::new(settings, endpoint),
            })
        });
        Arc::new(Self {
            cap: Arc::clone(&old.cap),
            addresses: addresses.collect(),
            first: AtomicUsize::new(0),
            unreachable: AtomicBool::new(old.unreachable.load(Ordering::Relaxed)),
            settings: Arc::clone(settings),
            clock: old.clock.clone(),
        })
    }

    /// Has its `max_in_flight` hold, for calls that run already too.
    pub(super) fn resize_cap(&self) {
        self.cap.resize(self.settings.max_in_flight);
    }

    /// How many calls run at once.
    pub(super) fn cap(&self) -> &Arc<Cap> {
        &self.cap
    }

    /// The right to call the address with the fewest calls of those that may be called.
    ///
    /// # Errors
    /// None may be.
    pub(super) fn pass(&self) -> Result<Pass, Shut> {
        self.pass_beyond(&[])
    }

    /// The same, but none of these addresses.
    ///
    /// # Errors
    /// No other may be called.
    pub(super) fn pass_beyond(&self, tried: &[usize]) -> Result<Pass, Shut> {
        let mut shut = Shut {
            why: Unavailable::Unhealthy,
            wait: Duration::MAX,
        };
        for index in self.by_load() {
            if tried.contains(&index) {
                continue;
            }
            let address = &self.addresses[index];
            if !address.health.is_well() {
                let every = (self.settings.health.as_ref()).map_or(Duration::ZERO, |h| h.every);
                shut.wait = shut.wait.min(every);
                continue;
            }
            match address.breaker.admit(|| self.clock.monotonic()) {
                Ok(permission) => return Ok(self.pass_at(index, permission)),
                Err(wait) => {
                    shut = Shut {
                        why: Unavailable::BreakerOpen,
                        wait: shut.wait.min(wait),
                    }
                }
            }
        }
        Err(shut)
    }

    /// The address to look at: best one that may be called, else any.
    pub(super) fn address_for_looks(&self) -> usize {
        let order = self.by_load();
        let now = self.clock.monotonic();
        let usable = order.iter().find(|index| {
            let address = &self.addresses[**index];
            address.health.is_well() && address.breaker.state(now) == State::Closed
        });
        usable.or(order.first()).copied().unwrap_or_default()
    }

    /// Notes whether the last call that wanted a connection got none.
    pub(super) fn note_unreachable(&self, unreachable: bool) {
        super::flag::note(&self.unreachable, unreachable);
    }

    /// What is in trouble, one short sentence each.
    pub fn degraded(&self) -> Vec<String> {
        let name = &self.settings.name;
        let now = self.clock.monotonic();
        let mut told = Vec::new();
        if self.unreachable.load(Ordering::Relaxed) {
            told.push(format!("upstream {name} can't be reached"));
        }
        for address in &self.addresses {
            let text = &address.text;
            if address.breaker.state(now) != State::Closed {
                told.push(format!("upstream {name}: the breaker of {text} is open"));
            }
            if !address.health.is_well() {
                told.push(format!("upstream {name}: {text} is unwell by its checks"));
            }
        }
        told
    }

    /// What each address has to show for the metrics.
    pub fn figures(&self) -> Vec<AddressFigures> {
        let now = self.clock.monotonic();
        let addresses = self.addresses.iter();
        addresses
            .map(|address| AddressFigures {
                upstream: address.upstream.clone(),
                address: address.text.clone(),
                breaker: match address.breaker.state(now) {
                    State::Closed => BreakerState::Closed,
                    State::HalfOpen => BreakerState::HalfOpen,
                    State::Open => BreakerState::Open,
                },
                healthy: address.health.is_well(),
                in_flight: address.counts.in_flight.load(Ordering::Relaxed),
                opened: address.counts.opened.load(Ordering::Relaxed),
            })
            .collect()
    }

    /// The addresses, those with the fewest calls first; ties rotate.
    fn by_load(&self) -> SmallVec<[usize; 8]> {
        let count = self.addresses.len();
        if count == 1 {
            return SmallVec::from_slice(&[0]);
        }
        let first = self.first.fetch_add(1, Ordering::Relaxed);
        let rotated = (0..count).map(|step| (first % count + step) % count);
        let load = |index: usize| {
            self.addresses[index]
                .counts
                .in_flight
                .load(Ordering::Relaxed)
        };
        let mut order: SmallVec<[(usize, usize); 8]> =
            rotated.map(|index| (load(index), index)).collect();
        order.sort_by_key(|(load, _)| *load);
        order.into_iter().map(|(_, index)| index).collect()
    }

    fn pass_at(&self, index: usize, permission: Permission) -> Pass {
        let address = Arc::clone(&self.addresses[index]);
        address.counts.in_flight.fetch_add(1, Ordering::Relaxed);
        Pass {
            address,
            index,
            permission,
            clock: self.clock.clone(),
            told: false,
        }
    }
}

impl Address {
    fn new(settings: &config::Upstream, endpoint: &Endpoint) -> Self {
        Self {
            upstream: settings.name.clone(),
            text: url(endpoint),
            endpoint: endpoint.clone(),
            breaker: Arc::new(Breaker::new(settings.breaker)),
            health: Arc::default(),
            counts: Arc::default(),
        }
    }

    /// The same address under other settings.
    fn under(&self, settings: &config::Upstream) -> Self {
        let breaker = match self.breaker.settings() == settings.breaker {
            true => Arc::clone(&self.breaker),
            false => Arc::new(self.breaker.with_settings(settings.breaker)),
        };
        Self {
            upstream: self.upstream.clone(),
            text: self.text.clone(),
            endpoint: self.endpoint.clone(),
            breaker,
            // Without checks nobody would ever say that it is well again.
            health: match &settings.health {
                Some(_) => Arc::clone(&self.health),
                None => Arc::default(),
            },
            counts: Arc::clone(&self.counts),
        }
    }

    fn note(&self, change: Option<Change>) {
        let (upstream, address) = (&self.upstream, &self.text);
        match change {
            None => {}
            Some(Change::Opened(pause)) => {
                self.counts.opened.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    tikigate.upstream = upstream,
                    tikigate.address = address,
                    tikigate.pause_seconds = pause.as_secs_f64(),
                    "too many calls failed: the address is left alone for a while"
                );
            }
            Some(Change::Closed) => tracing::info!(
                tikigate.upstream = upstream,
                tikigate.address = address,
                "a trial succeeded: the address is called again"
            ),
        }
    }
}

impl Pass {
    /// Which of the backend's addresses it is for.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// Whether the address may still be called: a call may have waited since it got its pass.
    pub(super) fn still_holds(&self) -> bool {
        self.address.breaker.stands(self.permission) && self.address.health.is_well()
    }

    /// The call got an answer. What is told first counts.
    pub(super) fn succeeded(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            let breaker = &self.address.breaker;
            let change = breaker.succeeded(self.permission, self.clock.monotonic());
            self.address.note(change);
        }
    }

    /// The call failed by the address's doing. What is told first counts.
    pub(super) fn failed(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            let breaker = &self.address.breaker;
            let change = breaker.failed(self.permission, self.clock.monotonic());
            self.address.note(change);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.told {
            self.address.breaker.given_back(self.permission);
        }
        let counts = &self.address.counts;
        counts.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An endpoint as it is written in the configuration.
fn url(endpoint: &Endpoint) -> String {
    let authority = |host: &str, port: u16| match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    match endpoint {
        Endpoint::Tcp { host, port } => format!("http://{}", authority(host, *port)),
        Endpoint::Tls { host, port, .. } => format!("https://{}", authority(host, *port)),
        Endpoint::Unix(path) => format!("unix:{}", path.display()),
    }
}

#[cfg(test)]
mod tests;
