//! What each address of a backend shows at a scrape. It is kept where it arises: addresses come and go
//! with the configuration.

use super::exposition::{Exposition, Kind};

/// Where an address's breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// One call may try.
    HalfOpen,
    /// No call goes through.
    Open,
}

/// One address at the time of a scrape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressFigures {
    /// The upstream's name.
    pub upstream: String,
    /// The address, as it is configured.
    pub address: String,
    /// Its breaker.
    pub breaker: BreakerState,
    /// Whether its checks say that it is well; so it is where there are none.
    pub healthy: bool,
    /// Calls that are on their way to it.
    pub in_flight: usize,
    /// How often its breaker opened.
    pub opened: u64,
}

impl BreakerState {
    const fn number(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

pub(super) fn write(out: &mut Exposition, addresses: &[AddressFigures]) {
    let mut family = |kind, name, help, value: fn(&AddressFigures) -> u64| {
        out.family(kind, name, help);
        for address in addresses {
            let labels = [
                ("upstream", address.upstream.as_str()),
                ("address", &address.address),
            ];
            out.sample(&labels, value(address));
        }
    };
    family(
        Kind::Gauge,
        "tikigate_upstream_breaker_state",
        "Breaker of each address: 0 closed, 1 half-open, 2 open.",
        |address| u64::from(address.breaker.number()),
    );
    family(
        Kind::Gauge,
        "tikigate_upstream_healthy",
        "Whether each address is well by its checks; 1 without checks.",
        |address| u64::from(address.healthy),
    );
    family(
        Kind::Gauge,
        "tikigate_upstream_in_flight",
        "Calls that run at each address, or wait to be sent there.",
        |address| address.in_flight as u64,
    );
    family(
        Kind::Counter,
        "tikigate_upstream_breaker_opened_total",
        "How often each address's breaker opened.",
        |address| address.opened,
    );
}
