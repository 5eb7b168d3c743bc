//! The ledger: which messages were sent, and what became of them.
//!
//! ```text
//!            claim (durable before the first byte goes out)
//!  absent ──────────────▶ claimed ──success, declined──────────────▶ done       kept; replayed from now on
//!                         ▲  │  └──nothing sent, or "not applied"──▶ released   may be claimed again, attempt + 1
//!                         │  └─────timeout, reset, crash, lapsed
//!                         │        owner, "can't say"──────────────▶ unknown    (on a resend policy: released)
//!                         └────────────────────────────────────────── released
//!  unknown ──a person: "applied"──▶ done        ──"not applied"──▶ released     ──"rejected"──▶ done (failure)
//!  unknown ──late answer of the same attempt──▶ as its class says, if nobody resolved it meanwhile
//! ```
//!
//! The transitions themselves are in `transition`, pure and shared by all stores; a store adds atomic
//! and, where it can, durable keeping. `conformance` holds the tests that every store passes.

use std::sync::Arc;

#[cfg(test)]
mod conformance;
mod errors;
mod memory;
mod postgres;
mod reply;
mod sqlite;
mod sweep;
mod texts;
mod transition;
mod types;

pub use errors::{DefineError, LedgerError, PermitError, ResolveError};
pub use memory::{MemoryLedger, MemoryLimits};
pub use postgres::PostgresLedger;
pub use reply::Reply;
pub use sqlite::{SqliteLedger, SqliteReading, check_records};
pub use types::{
    Admission, Cause, Claim, ClaimOutcome, Definition, Event, Fence, Fields, Filter, Fingerprint,
    Hold, KeptAnswer, KeptRequest, Key, LIST_LIMIT, Marks, NAME_LIMIT, Owner, Page, Policy,
    REASON_LIMIT, Record, RecordId, Reopening, Resolution, SIGHTING_PAUSE, Seen, SendPermit,
    Settled, Settlement, Sighting, State, Stats, Subject, SubjectRule, Trouble, Verdict,
};

/// Told how long each durable commit took.
pub type CommitObserver = Box<dyn Fn(std::time::Duration) + Send + Sync>;

/// A store of records.
///
/// Calls take owned values, so that a store may queue them and commit many at once. When a reply
/// resolves, what it says is as durable as the store can make it.
///
/// **Cancellation.** Dropping a [`Reply`] leaves its call either carried out or not, never half.
/// A claim that was granted to a dropped reply is released by the store: nobody holds its fence,
/// so nothing was sent.
pub trait Ledger: Send + Sync + 'static {
    /// Ties a namespace to its definition, or checks that it is tied to the same one.
    fn define(&self, namespace: Arc<str>, definition: Definition)
    -> Reply<Result<(), DefineError>>;

    /// Asks to run a message. Atomic: of any number of claims for one key, one is granted.
    ///
    /// # Errors
    /// [`LedgerError::Full`] for a key that the ledger doesn't know, when there is no room for it.
    fn claim(&self, claim: Claim) -> Reply<Result<ClaimOutcome, LedgerError>>;

    /// Checks, just before the first byte goes out, that the fence still holds: the claim is still
    /// the owner's, the time that it asked for is not over, and no earlier attempt turned out to
    /// have succeeded.
    fn permit(&self, fence: Fence) -> Reply<Result<SendPermit, PermitError>>;

    /// Records what became of an attempt; also takes late answers. Saying the same again changes
    /// nothing and is answered the same. An answer is never refused for want of room.
    ///
    /// A record that isn't there was done and forgotten: [`Settled::Superseded`].
    fn settle(&self, fence: Fence, settlement: Settlement) -> Reply<Result<Settled, LedgerError>>;

    /// Ends an unknown record by a person's word. Compare-and-set on [`Resolution::expected`].
    ///
    /// # Errors
    /// See [`ResolveError`]. [`Resolution::force`] overrides [`ResolveError::MayStillRun`] only:
    /// after an alarm money has moved at least once, and no word makes that untrue.
    fn resolve(&self, resolution: Resolution) -> Reply<Result<Record, ResolveError>>;

    /// Takes a person's or a probe's word back: a record that is done or released by it becomes
    /// unknown again, also where a later attempt proved unsent and the word is what it is still
    /// released by. Compare-and-set on [`Reopening::expected`].
    ///
    /// From then on only a person's word or the backend's own final answer ends the record: no look
    /// at the backend does, and no proof that an attempt was not applied releases it.
    ///
    /// # Errors
    /// See [`ResolveError`]; [`ResolveError::NotDeclared`] for an answer of the backend, which stays.
    fn reopen(&self, reopening: Reopening) -> Reply<Result<Record, ResolveError>>;

    /// Records what a look at the backend said of an unknown record, and acts on it as far as a
    /// look is to be trusted: see [`Sighting`].
    ///
    /// # Errors
    /// [`ResolveError::Changed`], [`ResolveError::NotUnknown`] and the like: nothing was recorded.
    fn sighted(&self, sighting: Sighting) -> Reply<Result<Record, ResolveError>>;

    /// Resolves when the attempt may have ended: another process settled it, or enough time passed
    /// to ask again. Whoever waits has a deadline of his own and claims again afterwards.
    fn changed(&self, fence: Fence) -> Reply<()> {
        let _ = fence;
        // Where one process owns everything, an attempt that runs elsewhere is one that nobody will
        // end: its next claim says what became of it.
        Reply::waiting(std::future::pending())
    }

    /// What is wrong with the store now, if anything is. Never waits.
    fn trouble(&self) -> Option<Trouble> {
        None
    }

    /// Calls `observer` with the time of each durable commit from now on.
    fn observe_commits(&self, observer: CommitObserver) {
        // A store that makes nothing durable has nothing to tell.
        drop(observer);
    }

    /// Ends the use of the store: what is committed is brought into its resting place and locks are
    /// given back. Everything that is asked afterwards fails.
    fn close(&self) -> Reply<()> {
        Reply::ready(())
    }

    /// Declares an owner dead: its claims become unknown, or released on a resend policy, with the
    /// cause `owner_lapsed`. Returns how many.
    fn lapse(&self, owner: Owner) -> Reply<Result<u64, LedgerError>>;

    /// One record.
    fn get(&self, id: RecordId) -> Reply<Result<Option<Record>, LedgerError>>;

    /// Records in the order of their ids, after [`Filter::after`]; at most [`LIST_LIMIT`] at once.
    ///
    /// A store looks at a bounded number of records and then says where to go on, so that a page may
    /// have fewer records than were asked for, or none, and still not be the last.
    fn list(&self, filter: Filter) -> Reply<Result<Page, LedgerError>>;

    /// The call itself, as long as it may have to be sent again by a person's word: on
    /// [`Policy::Hold`], until the record is done.
    fn request(&self, id: RecordId) -> Reply<Result<Option<KeptRequest>, LedgerError>>;

    /// A record's events, oldest first; none for a record that isn't there. A store may keep only
    /// the first and the latest ones and then says between them how many it dropped.
    fn events(&self, id: RecordId) -> Reply<Result<Vec<Event>, LedgerError>>;

    /// Counts and ages for metrics.
    fn stats(&self) -> Reply<Result<Stats, LedgerError>>;

    /// Forgets done records past their time, at most `limit` of them. Returns how many.
    /// Claimed, released and unknown records are never forgotten.
    ///
    /// Does nothing when the wall clock jumped by more than an hour since the last sweep, and
    /// afterwards doesn't believe a jump forward: what it would have expired is kept that much longer.
    fn sweep(&self, limit: usize) -> Reply<Result<u64, LedgerError>>;

    /// Holds every key that the ledger doesn't know, on hold policies, until lifted. So is a key
    /// that was released before: what happened to it since may be among what was forgotten.
    ///
    /// Each key that is asked for meanwhile gets an unknown record, for a person to resolve.
    fn enter_quarantine(&self, cause: String) -> Reply<Result<(), LedgerError>>;

    /// Ends the quarantine by a person's word. Keys that were asked for meanwhile stay held until
    /// each is resolved: they are the ones that Tiki sent before, perhaps.
    ///
    /// # Errors
    /// [`LedgerError::Failed`] too when name or reason is blank or too long.
    fn lift_quarantine(&self, by: String, reason: String) -> Reply<Result<(), LedgerError>>;

    /// Why unknown keys are held, if they are.
    fn quarantine(&self) -> Reply<Result<Option<String>, LedgerError>>;
}
