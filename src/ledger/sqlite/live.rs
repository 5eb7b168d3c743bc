//! The claims that this process holds, in memory: what a permit is answered from.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use foldhash::quality::RandomState;

use crate::ledger::transition::{self, Entry};
use crate::ledger::{Fence, PermitError, RecordId, State};

/// Claims that were granted and are committed. Never more than there are calls in flight.
#[derive(Default)]
pub(super) struct LiveClaims {
    claims: Mutex<HashMap<RecordId, LiveClaim, RandomState>>,
}

struct LiveClaim {
    fence: Fence,
    may_run_until: SystemTime,
}

impl LiveClaims {
    /// Follows what a committed batch made of a record.
    pub(super) fn follow(&self, entry: &Entry) {
        let record = &entry.record;
        let mut claims = self.claims();
        // After an alarm nothing more is sent for the record.
        if record.state == State::Claimed && !record.alarmed {
            let claim = LiveClaim {
                fence: entry.fence(),
                may_run_until: record.may_run_until,
            };
            claims.insert(record.id, claim);
        } else {
            claims.remove(&record.id);
        }
    }

    /// After a failure nobody gets a permit for a claim from before: whether it is still in the file
    /// is not known here.
    pub(super) fn forget_all(&self) {
        self.claims().clear();
    }

    /// For how long from now the attempt's first byte may go out.
    pub(super) fn permit(&self, fence: Fence, now: SystemTime) -> Result<Duration, PermitError> {
        let claims = self.claims();
        match claims.get(&fence.record) {
            Some(claim) if claim.fence == fence => {
                transition::permit_until(claim.may_run_until, now)
            }
            _ => Err(PermitError::Fenced),
        }
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<RecordId, LiveClaim, RandomState>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
