//! `[outbound]`

use std::time::Duration;

use super::{Rate, SecretSource, Tls};
use crate::config::problem::Problems;
use crate::config::settings::{Delivery, Environment};
use crate::config::tree::Node;
use crate::config::value::{At, ByteSize, Field, FromNode, table, words};
use crate::net::ListenAddress;
use crate::tiki::Family;

pub(crate) struct Outbound {
    pub(crate) listen: Field<ListenAddress>,
    pub(crate) token: Field<SecretSource>,
    pub(crate) tls: Field<Tls>,
    pub(crate) allow: Field<Vec<At<String>>>,
    pub(crate) deny: Field<Vec<At<String>>>,
    pub(crate) accounts: Field<Vec<At<Account>>>,
    pub(crate) ca: Field<String>,
    pub(crate) paths: Field<Vec<At<String>>>,
    pub(crate) body_limit: Field<ByteSize>,
    pub(crate) answer_limit: Field<ByteSize>,
    pub(crate) max_in_flight: Field<u64>,
    pub(crate) connect_timeout: Field<Duration>,
    pub(crate) timeout: Field<Duration>,
    pub(crate) forward_headers: Field<Vec<At<String>>>,
    pub(crate) delivery: Field<Delivery>,
    pub(crate) retry_after: Field<Duration>,
    pub(crate) longest_pause: Field<Duration>,
    pub(crate) give_up_after: Field<Duration>,
    pub(crate) max_bytes: Field<ByteSize>,
    pub(crate) keep: Field<Duration>,
    pub(crate) max_deliveries: Field<u64>,
    pub(crate) rate: Field<Rate>,
    pub(crate) notify_url: Field<String>,
    pub(crate) confirm_within: Field<Duration>,
    pub(crate) confirm_rate: Field<Rate>,
}

impl FromNode for Outbound {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| {
            table.secretive();
            Self {
                listen: table.field("listen"),
                token: table.field("token"),
                tls: table.field("tls"),
                allow: table.field("allow"),
                deny: table.field("deny"),
                accounts: table.field("accounts"),
                ca: table.field("ca"),
                paths: table.field("paths"),
                body_limit: table.field("body_limit"),
                answer_limit: table.field("answer_limit"),
                max_in_flight: table.field("max_in_flight"),
                connect_timeout: table.field("connect_timeout"),
                timeout: table.field("timeout"),
                forward_headers: table.field("forward_headers"),
                delivery: table.field("delivery"),
                retry_after: table.field("retry_after"),
                longest_pause: table.field("longest_pause"),
                give_up_after: table.field("give_up_after"),
                max_bytes: table.field("max_bytes"),
                keep: table.field("keep"),
                max_deliveries: table.field("max_deliveries"),
                rate: table.field("rate"),
                notify_url: table.field("notify_url"),
                confirm_within: table.field("confirm_within"),
                confirm_rate: table.field("confirm_rate"),
            }
        })
    }
}

/// One of `[[outbound.accounts]]`
pub(crate) struct Account {
    pub(crate) client: Field<String>,
    pub(crate) environment: Field<Environment>,
    pub(crate) base_url: Field<String>,
    pub(crate) family: Field<Family>,
}

impl FromNode for Account {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            client: table.field("client"),
            environment: table.field("environment"),
            base_url: table.field("base_url"),
            family: table.field("family"),
        })
    }
}

words!(Delivery {
    "outbox" => Delivery::Outbox,
    "direct" => Delivery::Direct,
});
