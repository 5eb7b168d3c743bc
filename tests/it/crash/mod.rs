//! Faults that happen: the real binary is killed, its disk loses what was not synced, lies or fills up,
//! its ledger is rolled back, its clock jumps. Whatever comes, a refund moves money at most once.
//!
//! ```text
//! Tiki (tiki.rs) ──▶ the gate, killed again and again (world.rs) ──▶ the till (till.rs)
//!      │                        ▲ resolves what nobody knows               │
//!      │                    the person (person.rs)                         │
//!      └──────────────▶ the journal (journal.rs), which is the truth ◀─────┘
//! ```

mod bench;
mod clock;
mod failing;
mod forgetful;
mod journal;
pub(crate) mod killing;
mod order;
pub(crate) mod person;
mod power;
mod replicas;
mod tiki;
mod till;
mod trace;
mod unusable;
pub(crate) mod world;
