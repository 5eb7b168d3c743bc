//! `[upstreams.NAME]`

use std::time::Duration;

use super::SecretSource;
use crate::config::problem::Problems;
use crate::config::tree::{Node, Value};
use crate::config::value::{At, Field, FromNode, Named, table, wrong_type};

pub(crate) struct Upstream {
    pub(crate) url: Field<Urls>,
    pub(crate) host: Field<String>,
    pub(crate) connect_timeout: Field<Duration>,
    pub(crate) answer_within: Field<Duration>,
    pub(crate) settle_within: Field<Duration>,
    pub(crate) max_in_flight: Field<u64>,
    pub(crate) set_headers: Field<Named<HeaderSource>>,
    pub(crate) ca: Field<String>,
    pub(crate) client_certificate: Field<String>,
    pub(crate) client_key: Field<String>,
    pub(crate) breaker: Field<Breaker>,
    pub(crate) health: Field<Health>,
}

impl FromNode for Upstream {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            url: table.field("url"),
            host: table.field("host"),
            connect_timeout: table.field("connect_timeout"),
            answer_within: table.field("answer_within"),
            settle_within: table.field("settle_within"),
            max_in_flight: table.field("max_in_flight"),
            set_headers: table.field("set_headers"),
            ca: table.field("ca"),
            client_certificate: table.field("client_certificate"),
            client_key: table.field("client_key"),
            breaker: table.field("breaker"),
            health: table.field("health"),
        })
    }
}

/// One URL, or a list of them.
pub(crate) struct Urls(pub(crate) Vec<At<String>>);

impl FromNode for Urls {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = node.settle(|value| matches!(value, Value::Array(_) | Value::String(_)));
        match node.value {
            Value::Array(_) => Vec::from_node(node, problems).map(Self),
            Value::String(_) => {
                let place = node.place.clone();
                let value = String::from_node(node, problems)?;
                Some(Self(vec![At { place, value }]))
            }
            _ => {
                wrong_type(&node, "a string or an array of strings", problems);
                None
            }
        }
    }
}

/// `[upstreams.NAME.breaker]`
pub(crate) struct Breaker {
    pub(crate) enabled: Field<bool>,
    pub(crate) failures: Field<u64>,
    pub(crate) failure_percent: Field<u64>,
    pub(crate) min_calls: Field<u64>,
    pub(crate) window: Field<Duration>,
    pub(crate) open_for: Field<Duration>,
}

impl FromNode for Breaker {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            enabled: table.field("enabled"),
            failures: table.field("failures"),
            failure_percent: table.field("failure_percent"),
            min_calls: table.field("min_calls"),
            window: table.field("window"),
            open_for: table.field("open_for"),
        })
    }
}

/// `[upstreams.NAME.health]`
pub(crate) struct Health {
    pub(crate) path: Field<String>,
    pub(crate) every: Field<Duration>,
    pub(crate) timeout: Field<Duration>,
    pub(crate) healthy_after: Field<u64>,
    pub(crate) unhealthy_after: Field<u64>,
}

impl FromNode for Health {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            path: table.field("path"),
            every: table.field("every"),
            timeout: table.field("timeout"),
            healthy_after: table.field("healthy_after"),
            unhealthy_after: table.field("unhealthy_after"),
        })
    }
}

/// A header's value: plain, or kept elsewhere.
pub(crate) enum HeaderSource {
    Plain(String),
    Secret(SecretSource),
}

impl FromNode for HeaderSource {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = node.settle(|value| matches!(value, Value::Table(_) | Value::String(_)));
        match node.value {
            Value::String(text) => Some(Self::Plain(text)),
            Value::Table(_) => SecretSource::from_node(node, problems).map(Self::Secret),
            _ => {
                let wanted = "a string, { file = \"...\" } or { env = \"...\" }";
                wrong_type(&node, wanted, problems);
                None
            }
        }
    }
}
