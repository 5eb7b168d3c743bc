//! Records as the admin API shows them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::cli::failure::Failure;

/// A record as the admin API shows it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) state: String,
    pub(super) route: String,
    pub(super) namespace: String,
    pub(super) client: String,
    pub(super) key: String,
    pub(super) fingerprint: String,
    pub(super) attempt: u32,
    pub(super) version: u64,
    pub(super) on_unknown: String,
    pub(super) created_at: Option<String>,
    pub(super) updated_at: Option<String>,
    pub(super) may_run_until: Option<String>,
    pub(super) expires_at: Option<String>,
    pub(super) alarmed: bool,
    pub(super) fields: BTreeMap<String, String>,
    pub(super) stale_event: bool,
    pub(super) possible_duplicate: bool,
    pub(super) held_for: Option<String>,
    pub(super) declared: bool,
    pub(super) answer: Option<KeptAnswer>,
    #[serde(default)]
    pub(super) events: Vec<Event>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct KeptAnswer {
    pub(super) status: u16,
    pub(super) body_bytes: usize,
    pub(super) body: Option<String>,
    #[serde(default)]
    pub(super) body_truncated: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Event {
    pub(super) at: Option<String>,
    pub(super) attempt: u32,
    pub(super) state: String,
    pub(super) cause: String,
    pub(super) by: Option<String>,
    pub(super) reason: Option<String>,
}

impl Record {
    /// Whose word the record's state is, by its events: a person's name, or `probe`.
    pub(super) fn declared_by(&self) -> Option<&str> {
        if !self.declared {
            return None;
        }
        let mut latest_first = self.events.iter().rev();
        latest_first.find_map(|event| match &event.by {
            Some(by) => Some(by.as_str()),
            None => event.cause.starts_with("probe_").then_some("probe"),
        })
    }
}

pub(super) fn understand_all(records: Vec<Value>) -> Result<Vec<Record>, Failure> {
    records.into_iter().map(understand).collect()
}

pub(super) fn understand(record: Value) -> Result<Record, Failure> {
    Record::deserialize(record).map_err(|_| not_understood())
}

pub(in crate::cli) fn not_understood() -> Failure {
    Failure::Other(
        "the gate's answer can't be understood: is it of another version than this command?"
            .to_owned(),
    )
}
