//! Which records are about the same thing.

use std::collections::HashMap;
use std::sync::Arc;

use crate::ledger::transition::Entry;
use crate::ledger::{Claim, Key, RecordId, Subject};

/// Which records are about which subject.
pub(super) type Subjects = HashMap<SubjectPlace, Vec<RecordId>>;

/// Where a subject is one: within a namespace and client.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct SubjectPlace {
    namespace: Arc<str>,
    client: Arc<str>,
    id: Arc<str>,
}

impl SubjectPlace {
    pub(super) fn of(claim: &Claim) -> Option<Self> {
        Self::new(&claim.key, claim.subject.as_ref())
    }

    pub(super) fn of_entry(entry: &Entry) -> Option<Self> {
        Self::new(&entry.record.key, entry.subject.as_ref())
    }

    fn new(key: &Key, subject: Option<&Subject>) -> Option<Self> {
        Some(Self {
            namespace: Arc::clone(&key.namespace),
            client: Arc::clone(&key.client),
            id: Arc::clone(&subject?.id),
        })
    }
}
