//! What a listener asks of connections.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::config::{self, ListenerTls};
use crate::net::{AddressRules, ClientAddress, Networks};

/// A listener's policy, which can be replaced while it runs: a connection keeps the one that held when
/// it was accepted.
pub type CurrentPolicy = Arc<ArcSwap<Policy>>;

/// What a listener asks of connections.
#[derive(Clone, Debug)]
pub struct Policy {
    /// What one connection may take.
    pub limits: Limits,
    /// TLS; none: plain HTTP.
    pub tls: Option<ListenerTls>,
    /// Whether connections of [`Self::trusted`] begin with a PROXY header.
    pub proxy_protocol: bool,
    /// Proxies that are believed about who called them. Each carries many callers, so that neither the
    /// rules nor the shares hold for it.
    pub trusted: Networks,
    /// Whose connections are taken.
    pub addresses: AddressRules,
    /// Whether an address may hold no more connections than there are places left, so that a newcomer
    /// always finds one.
    pub fair_shares: bool,
}

/// What one connection may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From accepting to the first byte, and from a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// From an answer to the first byte of the next request.
    pub idle_timeout: Duration,
    /// How long an answer may make no progress towards the caller.
    pub write_timeout: Duration,
    /// Age at which a connection is closed, once the request that is running is answered, so that callers
    /// spread over replicas anew. Each connection gets up to a tenth less, by chance.
    pub lifetime: Duration,
    /// Bytes of a request's head at most; hyper answers 431 beyond.
    pub head_limit: usize,
    /// Header fields of a request at most; hyper answers 431 beyond.
    pub max_headers: usize,
}

impl Policy {
    /// Plain HTTP for everybody.
    pub fn open(limits: Limits) -> Self {
        Self {
            limits,
            tls: None,
            proxy_protocol: false,
            trusted: Networks::default(),
            addresses: AddressRules::default(),
            fair_shares: false,
        }
    }

    /// The outbound listener's: its callers are the partner's own, so none is a proxy, and one of them
    /// may take all its connections. What a connection may take is as `[server]` has it.
    pub fn outbound(outbound: &config::Outbound, server: &config::Server) -> Self {
        Self {
            tls: outbound.tls.clone(),
            addresses: outbound.addresses.clone(),
            ..Self::open(Limits::from(server))
        }
    }

    /// As one that can be replaced.
    pub fn current(self) -> CurrentPolicy {
        Arc::new(ArcSwap::from_pointee(self))
    }

    /// Whether the address is a trusted proxy's.
    pub(super) fn trusts(&self, address: ClientAddress) -> bool {
        self.trusted.contain(address)
    }
}

impl From<&config::Server> for Policy {
    fn from(server: &config::Server) -> Self {
        Self {
            limits: Limits::from(server),
            tls: server.tls.clone(),
            proxy_protocol: server.proxy_protocol,
            trusted: server.trusted_proxies.networks.clone(),
            addresses: server.addresses.clone(),
            fair_shares: true,
        }
    }
}

impl From<&config::Server> for Limits {
    fn from(server: &config::Server) -> Self {
        Self {
            header_timeout: server.header_timeout,
            idle_timeout: server.idle_timeout,
            write_timeout: server.write_timeout,
            lifetime: server.max_connection_age,
            head_limit: server.head_limit,
            max_headers: server.max_headers,
        }
    }
}
