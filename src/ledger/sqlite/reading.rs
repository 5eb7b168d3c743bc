//! A file that is only looked into: a backup, or the ledger of a gate that is stopped. Nothing of it is
//! changed, and so nothing can be resolved here.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;

use super::looks;
use crate::clock::Clock;
use crate::ledger::{
    Claim, ClaimOutcome, DefineError, Definition, Event, Fence, Filter, KeptRequest, Ledger,
    LedgerError, Owner, Page, PermitError, Record, RecordId, Reopening, Reply, Resolution,
    ResolveError, SendPermit, Settled, Settlement, Sighting, Stats,
};
use crate::store::sqlite::Snapshot;

/// The ledger as a file has it at one moment.
pub struct SqliteReading {
    snapshot: Mutex<Snapshot>,
    clock: Clock,
}

impl SqliteReading {
    /// The ledger that the snapshot sees. Looks block whoever asks.
    pub fn new(snapshot: Snapshot, clock: Clock) -> Self {
        Self {
            snapshot: Mutex::new(snapshot),
            clock,
        }
    }

    fn look<T: Unpin>(
        &self,
        look: impl FnOnce(&Connection) -> rusqlite::Result<Result<T, LedgerError>>,
    ) -> Reply<Result<T, LedgerError>> {
        // A look changes nothing that a panic could leave half done.
        let snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = look(snapshot.connection());
        let failed = |error: rusqlite::Error| Err(LedgerError::Failed(error.to_string()));
        Reply::ready(seen.unwrap_or_else(failed))
    }
}

fn refused<T: Unpin, E: From<LedgerError> + Unpin>() -> Reply<Result<T, E>> {
    let why = "the ledger's file was opened to be read only";
    Reply::ready(Err(LedgerError::Failed(why.to_owned()).into()))
}

impl Ledger for SqliteReading {
    fn define(&self, _: Arc<str>, _: Definition) -> Reply<Result<(), DefineError>> {
        refused()
    }

    fn claim(&self, _: Claim) -> Reply<Result<ClaimOutcome, LedgerError>> {
        refused()
    }

    fn permit(&self, _: Fence) -> Reply<Result<SendPermit, PermitError>> {
        refused()
    }

    fn settle(&self, _: Fence, _: Settlement) -> Reply<Result<Settled, LedgerError>> {
        refused()
    }

    fn resolve(&self, _: Resolution) -> Reply<Result<Record, ResolveError>> {
        refused()
    }

    fn reopen(&self, _: Reopening) -> Reply<Result<Record, ResolveError>> {
        refused()
    }

    fn sighted(&self, _: Sighting) -> Reply<Result<Record, ResolveError>> {
        refused()
    }

    fn lapse(&self, _: Owner) -> Reply<Result<u64, LedgerError>> {
        refused()
    }

    fn get(&self, id: RecordId) -> Reply<Result<Option<Record>, LedgerError>> {
        self.look(|connection| looks::get(connection, id))
    }

    fn list(&self, filter: Filter) -> Reply<Result<Page, LedgerError>> {
        self.look(|connection| looks::list(connection, &filter))
    }

    fn request(&self, id: RecordId) -> Reply<Result<Option<KeptRequest>, LedgerError>> {
        self.look(|connection| looks::request(connection, id))
    }

    fn events(&self, id: RecordId) -> Reply<Result<Vec<Event>, LedgerError>> {
        self.look(|connection| looks::events(connection, id))
    }

    fn stats(&self) -> Reply<Result<Stats, LedgerError>> {
        let now = self.clock.now();
        self.look(|connection| looks::stats(connection, now))
    }

    fn sweep(&self, _: usize) -> Reply<Result<u64, LedgerError>> {
        refused()
    }

    fn enter_quarantine(&self, _: String) -> Reply<Result<(), LedgerError>> {
        refused()
    }

    fn lift_quarantine(&self, _: String, _: String) -> Reply<Result<(), LedgerError>> {
        refused()
    }

    fn quarantine(&self) -> Reply<Result<Option<String>, LedgerError>> {
        self.look(looks::quarantine)
    }
}
