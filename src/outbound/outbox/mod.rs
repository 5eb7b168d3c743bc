//! The outbox: notices that were accepted, until Tiki has them or a person knows that it hasn't.
//!
//! ```text
//!            posted (durable before the 202)
//!  absent ──────────────▶ pending ── send ──"taken"──────────────────────────────▶ delivered
//!                         ▲  │       send ──"refused", nothing before may be taken▶ failed   (refused)
//!                         │  │       send ──"refused", an earlier try may be──▶ ask ─┐
//!                         │  │       send ──no clear answer, three times──▶ ask ─────┤
//!                         │  │                        ask ──the same──▶ delivered ◀──┤
//!                         │  │                        ask ──otherwise──▶ failed, or send again
//!                         │  ├──a later state of the transaction was posted──▶ superseded
//!                         │  ├──give_up_after──▶ failed (gave_up)
//!                         │  └──a person──▶ cancelled
//!                         └── posted again, or a person: failed, cancelled, superseded
//! ```
//!
//! The rules are in `rules`, pure and shared by all stores; a store adds atomic and durable keeping.
//! `deliver` works the deliveries off, `notify` tells the backend of those that failed.

#[cfg(test)]
mod conformance;
mod deliver;
mod notify;
mod postgres;
mod rows;
mod rules;
#[cfg(test)]
mod rules_tests;
mod sqlite;
#[cfg(test)]
mod sqlite_tests;
mod types;

pub use deliver::Courier;
pub(super) use deliver::IPN_PATH;
pub use postgres::PostgresOutbox;
pub use sqlite::{MemoryOutbox, SqliteOutbox};
pub use types::{
    Accepted, Delivery, DeliveryId, Event, Filter, Flight, Outcome, Page, Posting, Report, State,
    Stats, Step, StoreFault, Taken, Word, WordFault,
};

use crate::ledger::Reply;

/// A store of deliveries.
///
/// When a reply resolves, what it says is as durable as the store can make it. Dropping a reply leaves
/// its call either carried out or not.
pub trait Outbox: Send + Sync + 'static {
    /// Stores a notice, or finds the delivery that it is.
    fn post(&self, posting: Posting) -> Reply<Result<Accepted, StoreFault>>;

    /// Takes up to `limit` deliveries whose time has come, of these accounts, for this process to try:
    /// nobody else does until they are recorded, or their time is over. That each may be taken from
    /// now on is noted before.
    fn take(&self, limit: usize) -> Reply<Result<Taken, StoreFault>>;

    /// Records what became of a try. One that is not the newest any more changes nothing.
    fn record(&self, flight: Flight, report: Report) -> Reply<Result<Delivery, StoreFault>>;

    /// Gives flights back that never began.
    fn give_back(&self, flights: Vec<Flight>) -> Reply<Result<(), StoreFault>>;

    /// Failed deliveries that the backend is to be told of now.
    fn to_tell(&self, limit: usize) -> Reply<Result<Vec<Delivery>, StoreFault>>;

    /// Records whether the backend heard of this failure.
    fn told(&self, delivery: Delivery, heard: bool) -> Reply<Result<(), StoreFault>>;

    /// One delivery.
    fn get(&self, id: DeliveryId) -> Reply<Result<Option<Delivery>, StoreFault>>;

    /// Deliveries in the order of their ids.
    fn list(&self, filter: Filter) -> Reply<Result<Page, StoreFault>>;

    /// A person's word on a delivery.
    fn word(&self, id: DeliveryId, word: Word) -> Reply<Result<Delivery, WordFault>>;

    /// Counts and ages.
    fn stats(&self) -> Reply<Result<Stats, StoreFault>>;

    /// Forgets deliveries that were over for long enough, at most `limit`. Returns how many.
    fn sweep(&self, limit: usize) -> Reply<Result<u64, StoreFault>>;
}
