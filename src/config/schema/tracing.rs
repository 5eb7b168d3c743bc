//! `[tracing]`

use std::time::Duration;

use super::HeaderSource;
use crate::config::problem::Problems;
use crate::config::tree::Node;
use crate::config::value::{Field, FromNode, Named, table};

pub(crate) struct Tracing {
    pub(crate) endpoint: Field<String>,
    pub(crate) ca: Field<String>,
    pub(crate) set_headers: Field<Named<HeaderSource>>,
    pub(crate) service_name: Field<String>,
    pub(crate) sample_percent: Field<u64>,
    pub(crate) timeout: Field<Duration>,
}

impl FromNode for Tracing {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            endpoint: table.field("endpoint"),
            ca: table.field("ca"),
            set_headers: table.field("set_headers"),
            service_name: table.field("service_name"),
            sample_percent: table.field("sample_percent"),
            timeout: table.field("timeout"),
        })
    }
}
