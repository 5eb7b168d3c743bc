//! `[[routes]]`

use std::time::Duration;

use super::PerFamily;
use crate::config::problem::Problems;
use crate::config::settings::{AnswerSource, OnUnknown, PossibleDuplicate, StaleEvents};
use crate::config::tree::{Node, Value};
use crate::config::value::{At, ByteSize, Field, FromNode, table, words, wrong_type};
use crate::tiki::PayloadKind;

pub(crate) struct Route {
    pub(crate) name: Field<String>,
    pub(crate) path: Field<String>,
    pub(crate) method: Field<MethodWord>,
    pub(crate) payload: Field<PayloadKind>,
    pub(crate) upstream: Field<String>,
    pub(crate) upstream_path: Field<String>,
    pub(crate) clients: Field<Vec<At<String>>>,
    pub(crate) allow: Field<Vec<At<String>>>,
    pub(crate) deny: Field<Vec<At<String>>>,
    pub(crate) max_age: Field<PerFamily>,
    pub(crate) max_ahead: Field<PerFamily>,
    pub(crate) body_limit: Field<ByteSize>,
    pub(crate) answer: Field<AnswerSource>,
    pub(crate) answer_limit: Field<ByteSize>,
    pub(crate) forward_headers: Field<Vec<At<String>>>,
    pub(crate) strip_signature: Field<bool>,
    pub(crate) signed_path: Field<SignedPath>,
    pub(crate) final_statuses: Field<Vec<At<u64>>>,
    pub(crate) retry_statuses: Field<Vec<At<u64>>>,
    pub(crate) success_when: Field<Condition>,
    pub(crate) failed_when: Field<Condition>,
    pub(crate) confirm: Field<bool>,
    pub(crate) idempotency: Field<Idempotency>,
}

impl FromNode for Route {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            name: table.field("name"),
            path: table.field("path"),
            method: table.field("method"),
            payload: table.field("payload"),
            upstream: table.field("upstream"),
            upstream_path: table.field("upstream_path"),
            clients: table.field("clients"),
            allow: table.field("allow"),
            deny: table.field("deny"),
            max_age: table.field("max_age"),
            max_ahead: table.field("max_ahead"),
            body_limit: table.field("body_limit"),
            answer: table.field("answer"),
            answer_limit: table.field("answer_limit"),
            forward_headers: table.field("forward_headers"),
            strip_signature: table.field("strip_signature"),
            signed_path: table.field("signed_path"),
            final_statuses: table.field("final_statuses"),
            retry_statuses: table.field("retry_statuses"),
            success_when: table.field("success_when"),
            failed_when: table.field("failed_when"),
            confirm: table.field("confirm"),
            idempotency: table.field("idempotency"),
        })
    }
}

/// The methods a route can have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum MethodWord {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

words!(MethodWord {
    "POST" => MethodWord::Post,
    "GET" => MethodWord::Get,
    "PUT" => MethodWord::Put,
    "PATCH" => MethodWord::Patch,
    "DELETE" => MethodWord::Delete,
});

words!(PayloadKind {
    "transaction_ipn" => PayloadKind::TransactionIpn,
    "order_ipn" => PayloadKind::OrderIpn,
    "refund" => PayloadKind::Refund,
    "any" => PayloadKind::Any,
});

words!(AnswerSource {
    "backend" => AnswerSource::Backend,
    "platform" => AnswerSource::Platform,
});

words!(OnUnknown {
    "hold" => OnUnknown::Hold,
    "resend" => OnUnknown::Resend,
});

/// `{ strip, add }`
pub(crate) struct SignedPath {
    pub(crate) strip: Field<String>,
    pub(crate) add: Field<String>,
}

impl FromNode for SignedPath {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            strip: table.field("strip"),
            add: table.field("add"),
        })
    }
}

/// `{ pointer, equals }`
pub(crate) struct Condition {
    pub(crate) pointer: Field<String>,
    pub(crate) equals: Field<Scalar>,
}

impl FromNode for Condition {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            pointer: table.field("pointer"),
            equals: table.field("equals"),
        })
    }
}

/// A value that a JSON document can hold at a pointer.
pub(crate) struct Scalar(pub(crate) serde_json::Value);

impl FromNode for Scalar {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = node.settle(|_| true);
        let value = match &node.value {
            Value::String(text) => Some(serde_json::Value::from(text.as_str())),
            Value::Boolean(word) => Some(serde_json::Value::from(*word)),
            Value::Integer(number) => number.map(serde_json::Value::from),
            Value::Float(number) => serde_json::Number::from_f64(*number).map(Into::into),
            _ => None,
        };
        if value.is_none() {
            wrong_type(&node, "a string, a finite number, true or false", problems);
        }
        value.map(Self)
    }
}

pub(crate) struct Idempotency {
    pub(crate) namespace: Field<String>,
    pub(crate) key: Field<Vec<At<String>>>,
    pub(crate) fingerprint: Field<Vec<At<String>>>,
    pub(crate) on_unknown: Field<OnUnknown>,
    pub(crate) keep: Field<Duration>,
    pub(crate) resend_age: Field<Duration>,
    pub(crate) stale_events: Field<StaleEvents>,
    pub(crate) possible_duplicate: Field<PossibleDuplicate>,
    pub(crate) duplicate_window: Field<Duration>,
    pub(crate) probe: Field<Probe>,
}

impl FromNode for Idempotency {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            namespace: table.field("namespace"),
            key: table.field("key"),
            fingerprint: table.field("fingerprint"),
            on_unknown: table.field("on_unknown"),
            keep: table.field("keep"),
            resend_age: table.field("resend_age"),
            stale_events: table.field("stale_events"),
            possible_duplicate: table.field("possible_duplicate"),
            duplicate_window: table.field("duplicate_window"),
            probe: table.field("probe"),
        })
    }
}

words!(StaleEvents {
    "mark" => StaleEvents::Mark,
    "drop" => StaleEvents::Drop,
});

words!(PossibleDuplicate {
    "mark" => PossibleDuplicate::Mark,
    "hold" => PossibleDuplicate::Hold,
});

/// `[routes.idempotency.probe]`
pub(crate) struct Probe {
    pub(crate) path: Field<String>,
    pub(crate) timeout: Field<Duration>,
    pub(crate) applied: Field<Signs>,
    pub(crate) not_applied: Field<Signs>,
}

impl FromNode for Probe {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            path: table.field("path"),
            timeout: table.field("timeout"),
            applied: table.field("applied"),
            not_applied: table.field("not_applied"),
        })
    }
}

/// One sign, or a list of them.
pub(crate) struct Signs(pub(crate) Vec<At<Sign>>);

impl FromNode for Signs {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = node.settle(|value| matches!(value, Value::Table(_) | Value::Array(_)));
        match node.value {
            Value::Array(_) => Vec::from_node(node, problems).map(Self),
            Value::Table(_) => {
                let place = node.place.clone();
                let value = Sign::from_node(node, problems)?;
                Some(Self(vec![At { place, value }]))
            }
            _ => {
                wrong_type(&node, "a table or an array of tables", problems);
                None
            }
        }
    }
}

/// `{ status, pointer, equals }`
pub(crate) struct Sign {
    pub(crate) status: Field<u64>,
    pub(crate) pointer: Field<String>,
    pub(crate) equals: Field<Scalar>,
}

impl FromNode for Sign {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| Self {
            status: table.field("status"),
            pointer: table.field("pointer"),
            equals: table.field("equals"),
        })
    }
}
