//! `[upstreams.NAME]`

use std::time::Duration;

use super::SecretSource;
use crate::config::problem::Problems;
use crate::config::tree::{Node, Value};
use crate::config::value::{Field, FromNode, Named, table, wrong_type};

pub(crate) struct Upstream {
    pub(crate) url: Field<String>,
    pub(crate) host: Field<String>,
    pub(crate) connect_timeout: Field<Duration>,
    pub(crate) answer_within: Field<Duration>,
    pub(crate) settle_within: Field<Duration>,
    pub(crate) max_in_flight: Field<u64>,
    pub(crate) set_headers: Field<Named<HeaderSource>>,
    /// TLS towards the backend: known, not available.
    pub(crate) ca: Field<String>,
    pub(crate) client_certificate: Field<String>,
    pub(crate) client_key: Field<String>,
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
