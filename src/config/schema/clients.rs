//! `[[clients]]`, and how secrets are named there and elsewhere.

use super::Rate;
use crate::config::problem::Problems;
use crate::config::settings::Environment;
use crate::config::tree::{Node, Value};
use crate::config::value::{At, Field, FromNode, Table, inline_secret, table, words, wrong_type};

pub(crate) struct Client {
    pub(crate) id: Field<String>,
    pub(crate) name: Field<String>,
    pub(crate) environment: Field<Environment>,
    pub(crate) partner_code: Field<String>,
    pub(crate) secrets: Field<Vec<At<SecretEntry>>>,
    pub(crate) rate: Field<Rate>,
}

impl FromNode for Client {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        table(node, problems, |table| {
            table.secretive();
            Self {
                id: table.field("id"),
                name: table.field("name"),
                environment: table.field("environment"),
                partner_code: table.field("partner_code"),
                secrets: table.field("secrets"),
                rate: table.field("rate"),
            }
        })
    }
}

words!(Environment {
    "production" => Environment::Production,
    "sandbox" => Environment::Sandbox,
});

/// Where a secret's bytes are.
pub(crate) struct SecretSource {
    pub(crate) file: Field<String>,
    pub(crate) env: Field<String>,
}

impl SecretSource {
    fn read(table: &mut Table<'_>) -> Self {
        table.secretive();
        Self {
            file: table.field("file"),
            env: table.field("env"),
        }
    }
}

impl FromNode for SecretSource {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = refuse_inline(node, problems)?;
        table(node, problems, Self::read)
    }
}

/// A secret with a name: a client's, or a token of the admin API.
pub(crate) struct SecretEntry {
    pub(crate) name: Field<String>,
    pub(crate) source: SecretSource,
    pub(crate) not_after: Field<NotAfter>,
}

impl FromNode for SecretEntry {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = refuse_inline(node, problems)?;
        table(node, problems, |table| Self {
            name: table.field("name"),
            source: SecretSource::read(table),
            not_after: table.field("not_after"),
        })
    }
}

/// A moment, written as RFC 3339 with or without quotes; not yet read.
pub(crate) struct NotAfter(pub(crate) String);

impl FromNode for NotAfter {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = node.settle(|value| matches!(value, Value::String(_) | Value::Datetime(_)));
        match node.value {
            Value::String(text) | Value::Datetime(text) => Some(Self(text)),
            _ => {
                wrong_type(&node, "a date and time", problems);
                None
            }
        }
    }
}

/// A bare string where a secret's source is wanted is the secret itself.
fn refuse_inline(node: Node, problems: &mut Problems) -> Option<Node> {
    let node = node.settle(|value| matches!(value, Value::Table(_)));
    if matches!(node.value, Value::String(_)) {
        inline_secret(&node.place, problems);
        return None;
    }
    Some(node)
}
