//! `[server]`, `[admin]` and `[signature]`.

use std::time::Duration;

use super::SecretEntry;
use crate::config::problem::Problems;
use crate::config::tree::{Node, Value};
use crate::config::value::{At, ByteSize, Field, FromNode, Table, table, words};
use crate::net::{AddressHeader, ListenAddress};
use crate::tiki::Family;

pub(crate) struct Server {
    pub(crate) listen: Field<ListenAddress>,
    pub(crate) max_connections: Field<u64>,
    pub(crate) max_in_flight: Field<u64>,
    pub(crate) header_timeout: Field<Duration>,
    pub(crate) body_timeout: Field<Duration>,
    pub(crate) min_body_rate: Field<ByteSize>,
    pub(crate) idle_timeout: Field<Duration>,
    pub(crate) write_timeout: Field<Duration>,
    pub(crate) max_connection_age: Field<Duration>,
    pub(crate) head_limit: Field<ByteSize>,
    pub(crate) max_headers: Field<u64>,
    pub(crate) per_address: Field<Rate>,
    pub(crate) trusted_proxies: Field<Vec<At<String>>>,
    pub(crate) address_header: Field<AddressHeader>,
    pub(crate) proxy_protocol: Field<bool>,
    pub(crate) allow: Field<Vec<At<String>>>,
    pub(crate) deny: Field<Vec<At<String>>>,
    pub(crate) drain_delay: Field<Duration>,
    pub(crate) drain_within: Field<Duration>,
    pub(crate) workers: Field<u64>,
    pub(crate) tls: Field<Tls>,
}

impl Server {
    pub(crate) fn read(table: &mut Table<'_>) -> Self {
        Self {
            listen: table.field("listen"),
            max_connections: table.field("max_connections"),
            max_in_flight: table.field("max_in_flight"),
            header_timeout: table.field("header_timeout"),
            body_timeout: table.field("body_timeout"),
            min_body_rate: table.field("min_body_rate"),
            idle_timeout: table.field("idle_timeout"),
            write_timeout: table.field("write_timeout"),
            max_connection_age: table.field("max_connection_age"),
            head_limit: table.field("head_limit"),
            max_headers: table.field("max_headers"),
            per_address: table.field("per_address"),
            trusted_proxies: table.field("trusted_proxies"),
            address_header: table.field("address_header"),
            proxy_protocol: table.field("proxy_protocol"),
            allow: table.field("allow"),
            deny: table.field("deny"),
            drain_delay: table.field("drain_delay"),
            drain_within: table.field("drain_within"),
            workers: table.field("workers"),
            tls: table.field("tls"),
        }
    }
}

/// `{ per_second, burst }`
pub(crate) struct Rate {
    pub(crate) per_second: Field<u64>,
    pub(crate) burst: Field<u64>,
}

impl FromNode for Rate {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            per_second: table.field("per_second"),
            burst: table.field("burst"),
        })
    }
}

words!(AddressHeader {
    "x-forwarded-for" => AddressHeader::XForwardedFor,
    "forwarded" => AddressHeader::Forwarded,
});

/// `[server.tls]` and `[outbound.tls]`
pub(crate) struct Tls {
    pub(crate) certificate: Field<String>,
    pub(crate) private_key: Field<String>,
    pub(crate) client_ca: Field<String>,
    pub(crate) handshake_timeout: Field<Duration>,
}

impl FromNode for Tls {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            certificate: table.field("certificate"),
            private_key: table.field("private_key"),
            client_ca: table.field("client_ca"),
            handshake_timeout: table.field("handshake_timeout"),
        })
    }
}

pub(crate) struct Admin {
    pub(crate) listen: Field<ListenAddress>,
    pub(crate) allow: Field<Vec<At<String>>>,
    pub(crate) deny: Field<Vec<At<String>>>,
    pub(crate) tokens: Field<Vec<At<SecretEntry>>>,
    pub(crate) hosts: Field<Vec<At<String>>>,
}

impl Admin {
    pub(crate) fn read(table: &mut Table<'_>) -> Self {
        table.secretive();
        Self {
            listen: table.field("listen"),
            allow: table.field("allow"),
            deny: table.field("deny"),
            tokens: table.field("tokens"),
            hosts: table.field("hosts"),
        }
    }
}

pub(crate) struct Signature {
    pub(crate) families: Field<Vec<At<Family>>>,
    pub(crate) max_age: Field<PerFamily>,
    pub(crate) max_ahead: Field<PerFamily>,
    pub(crate) refuse_with: Field<u64>,
    pub(crate) max_remembered: Field<u64>,
}

impl Signature {
    pub(crate) fn read(table: &mut Table<'_>) -> Self {
        table.secretive();
        Self {
            families: table.field("families"),
            max_age: table.field("max_age"),
            max_ahead: table.field("max_ahead"),
            refuse_with: table.field("refuse_with"),
            max_remembered: table.field("max_remembered"),
        }
    }
}

/// A duration for all families, or one for each.
pub(crate) enum PerFamily {
    One(Duration),
    Each {
        tiniapp: Field<Duration>,
        tikivip: Field<Duration>,
    },
}

impl FromNode for PerFamily {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = node.settle(|value| matches!(value, Value::Table(_) | Value::String(_)));
        match node.value {
            Value::Table(_) => table(node, problems, |table| Self::Each {
                tiniapp: table.field("tiniapp"),
                tikivip: table.field("tikivip"),
            }),
            _ => Duration::from_node(node, problems).map(Self::One),
        }
    }
}

words!(Family {
    "tiniapp" => Family::TiniApp,
    "tikivip" => Family::TikiVip,
});

impl FromNode for ListenAddress {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let place = node.place.clone();
        let text = String::from_node(node, problems)?;
        text.parse()
            .map_err(|message: String| problems.error(&place, "bad_address", message).code)
            .ok()
    }
}
