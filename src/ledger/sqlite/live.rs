//! What this process knows of the file without it: the claims that it holds, from which a permit is answered,
//! the rows that a settlement is about to change, and whether any answers are listed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use foldhash::quality::RandomState;
use smallvec::SmallVec;

use crate::ledger::transition::{self, Entry};
use crate::ledger::{Fence, PermitError, RecordId, State};
use crate::store::sqlite::Batch;

use super::answers;
use super::rows::Stored;

/// Rows that are kept at most: more than there are calls in flight, unless something goes wrong. A row
/// that isn't kept is read from the file.
const ROWS: usize = 4096;

/// Claims that were granted. Never more than there are calls in flight.
#[derive(Default)]
pub(super) struct LiveClaims {
    /// Those that are committed.
    claims: Mutex<HashMap<RecordId, LiveClaim, RandomState>>,
    rows: Mutex<Rows>,
}

struct LiveClaim {
    fence: Fence,
    may_run_until: SystemTime,
}

/// The rows of claims as the running transaction has them, which spares a settlement to read what
/// its claim wrote. Only the writer's thread looks at it, and every change of a row passes here.
#[derive(Default)]
struct Rows {
    /// The [`crate::store::sqlite::Batch::opening`] that they are of.
    opening: u64,
    rows: HashMap<RecordId, Stored, RandomState>,
    /// [`answers::any_listed`], if that was asked since records were forgotten.
    any_listed: Option<bool>,
}

/// What a task made of a claim: counts once its batch is committed.
pub(super) struct Touched {
    record: RecordId,
    claim: Option<LiveClaim>,
}

/// A claim or a settlement touches one record.
pub(super) type AllTouched = SmallVec<[Touched; 1]>;

impl Touched {
    pub(super) fn by(entry: &Entry) -> Self {
        let record = &entry.record;
        // After an alarm nothing more is sent for the record.
        let sendable = record.state == State::Claimed && !record.alarmed;
        Self {
            record: record.id,
            claim: sendable.then(|| LiveClaim {
                fence: entry.fence(),
                may_run_until: record.may_run_until,
            }),
        }
    }
}

impl LiveClaims {
    /// Follows what a committed batch made of records.
    pub(super) fn follow_all(&self, touched: &mut AllTouched) {
        let mut claims = lock(&self.claims);
        for Touched { record, claim } in touched.drain(..) {
            match claim {
                Some(claim) => claims.insert(record, claim),
                None => claims.remove(&record),
            };
        }
    }

    /// After a failure nobody gets a permit for a claim from before: whether it is still in the file
    /// is not known here.
    pub(super) fn forget_all(&self) {
        lock(&self.claims).clear();
    }

    /// For how long from now the attempt's first byte may go out.
    pub(super) fn permit(&self, fence: Fence, now: SystemTime) -> Result<Duration, PermitError> {
        let claims = lock(&self.claims);
        match claims.get(&fence.record) {
            Some(claim) if claim.fence == fence => {
                transition::permit_until(claim.may_run_until, now)
            }
            _ => Err(PermitError::Fenced),
        }
    }

    /// Keeps a claim's row as the running transaction has it; forgets one that is no claim any more.
    pub(super) fn keep_row(&self, opening: u64, stored: Stored) {
        let mut kept = self.rows(opening);
        let record = &stored.entry.record;
        if record.state == State::Claimed && kept.rows.len() < ROWS {
            kept.rows.insert(record.id, stored);
        } else {
            kept.rows.remove(&record.id);
        }
    }

    /// Takes a claim's row out, if it is kept.
    pub(super) fn take_row(&self, opening: u64, id: RecordId) -> Option<Stored> {
        self.rows(opening).rows.remove(&id)
    }

    /// Some records were forgotten, and what was listed of them with them.
    pub(super) fn forgot_some(&self, opening: u64) {
        self.rows(opening).any_listed = None;
    }

    /// Whether a program of before has listed answers in the file.
    pub(super) fn any_listed(&self, batch: &Batch<'_>) -> rusqlite::Result<bool> {
        let mut kept = self.rows(batch.opening);
        if let Some(known) = kept.any_listed {
            return Ok(known);
        }
        let any = answers::any_listed(batch.connection)?;
        kept.any_listed = Some(any);
        Ok(any)
    }

    /// What was kept before the file was opened anew may not be what is in it.
    fn rows(&self, opening: u64) -> MutexGuard<'_, Rows> {
        let mut kept = lock(&self.rows);
        if kept.opening != opening {
            kept.rows.clear();
            kept.any_listed = None;
            kept.opening = opening;
        }
        kept
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
