//! The outbox in a PostgreSQL database that several gates share.
//!
//! ```text
//! changing   what happens to the deliveries of one transaction, under its lock
//! taking     which transactions are due, and nobody else's now
//! reading    what people and metrics ask; what is forgotten
//! rows       deliveries into rows and out of them
//! ```
//!
//! Whoever works on a transaction of Tiki's holds an advisory lock on it, to the end of the database's
//! transaction. Locked rows would not do: two gates that post about a transaction at once find no
//! row yet, and each has to see what the other made of it. With such a lock in hand the rules are run
//! on all deliveries of the transaction, and what they changed is written and committed at once.
//!
//! All times are the server's, read under the lock: a gate with a wrong clock neither takes what
//! another one is trying nor retries too soon. Only how long a flight may begin something is told by
//! the gate's own monotonic clock, from before the flight was asked for.
//!
//! A take or a record whose commit is not confirmed may have been carried out. What was taken like
//! that flies until its lease ends, and counts as maybe taken then; a record is made again, and the
//! second one finds what the first did.

mod changing;
mod reading;
mod rows;
mod taking;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Outbox;
use super::rules::{self, MAY_BEGIN, Policy};
use super::sqlite::Pins;
use super::types::{
    Accepted, Delivery, DeliveryId, Filter, Flight, Page, Posting, Report, Stats, StoreFault,
    Taken, Word, WordFault,
};
use crate::config;
use crate::ledger::Reply;
use crate::outbound::Accounts;
use crate::store::postgres::{Fault, Session, Store};
use changing::{Which, change};

/// In the ledger's database. Ends when the store is closed: every call fails then.
pub struct PostgresOutbox {
    store: Arc<Store>,
    terms: Arc<Terms>,
}

/// What holds for every delivery.
struct Terms {
    policy: Policy,
    max_bytes: usize,
    keep: Duration,
    /// The accounts that this gate delivers for: client ids, and their base URLs at the same places.
    /// Another gate may have others, while a configuration is rolled out.
    clients: Vec<String>,
    base_urls: Vec<String>,
    #[cfg(test)]
    clock: Option<crate::clock::Clock>,
}

impl Terms {
    fn new(policy: Policy, max_bytes: usize, keep: Duration, pins: Pins) -> Self {
        let (clients, base_urls) = pins.into_iter().unzip();
        Self {
            policy,
            max_bytes,
            keep,
            clients,
            base_urls,
            #[cfg(test)]
            clock: None,
        }
    }

    /// Stands for the server's time in every statement; none, outside of tests.
    fn moment(&self) -> Option<SystemTime> {
        #[cfg(test)]
        if let Some(clock) = &self.clock {
            return Some(clock.now());
        }
        None
    }

    fn delivers(&self, delivery: &Delivery) -> bool {
        let mut pins = self.clients.iter().zip(&self.base_urls);
        pins.any(|(client, base_url)| *client == delivery.client && *base_url == delivery.base_url)
    }
}

impl PostgresOutbox {
    /// The outbox in this database, for a gate that delivers for these accounts. What other gates are
    /// trying stays theirs, and so does what a gate that died tried, until its time is over.
    pub fn new(store: Arc<Store>, outbox: &config::Outbox, accounts: &Accounts) -> Self {
        let terms = Terms::new(
            Policy::from(outbox),
            outbox.max_bytes,
            outbox.keep,
            accounts.pins(),
        );
        Self::on(store, terms)
    }

    fn on(store: Arc<Store>, terms: Terms) -> Self {
        Self {
            store,
            terms: Arc::new(terms),
        }
    }

    fn run<W, T>(&self, work: W) -> Reply<Result<T, StoreFault>>
    where
        W: AsyncFnOnce(&mut Session, &Terms) -> Result<T, Fault> + Send + 'static,
        T: Send + 'static,
    {
        let terms = Arc::clone(&self.terms);
        let answer = self
            .store
            .run(async move |session: &mut Session| work(session, &terms).await);
        Reply::waiting(async move { answer.await.map_err(failed) })
    }
}

fn failed(fault: Fault) -> StoreFault {
    StoreFault(fault.to_string())
}

impl Outbox for PostgresOutbox {
    fn post(&self, posting: Posting) -> Reply<Result<Accepted, StoreFault>> {
        self.run(async move |session, terms| changing::post(session, terms, &posting).await)
    }

    fn take(&self, limit: usize) -> Reply<Result<Taken, StoreFault>> {
        let valid_until = Instant::now() + MAY_BEGIN;
        self.run(async move |session, terms| {
            let due = taking::take(session, terms, limit).await?;
            let flight = |delivery| Flight {
                delivery,
                valid_until,
            };
            Ok(Taken {
                flights: due.taken.into_iter().map(flight).collect(),
                next_in: due.next_in,
            })
        })
    }

    fn record(&self, flight: Flight, report: Report) -> Reply<Result<Delivery, StoreFault>> {
        self.run(async move |session, terms| {
            let tried = flight.delivery;
            let ((), siblings) = change(session, terms, Which::of(&tried), |siblings, tidings| {
                rules::record(siblings, &tried, &report, terms.policy, tidings);
            })
            .await?;
            Ok(named(siblings, tried.id).unwrap_or(tried))
        })
    }

    fn give_back(&self, flights: Vec<Flight>) -> Reply<Result<(), StoreFault>> {
        self.run(async move |session, terms| {
            // One by one: a transaction that waits for two locks could wait for another that does.
            for Flight { delivery, .. } in &flights {
                change(session, terms, Which::of(delivery), |siblings, _| {
                    if let Some(one) = siblings.iter_mut().find(|one| one.id == delivery.id) {
                        rules::give_back(one, delivery.flight);
                    }
                })
                .await?;
            }
            Ok(())
        })
    }

    fn to_tell(&self, limit: usize) -> Reply<Result<Vec<Delivery>, StoreFault>> {
        self.run(async move |session, terms| reading::to_tell(session, terms, limit).await)
    }

    fn told(&self, delivery: Delivery, heard: bool) -> Reply<Result<(), StoreFault>> {
        self.run(async move |session, terms| {
            change(session, terms, Which::of(&delivery), |siblings, tidings| {
                if let Some(one) = siblings.iter_mut().find(|one| one.id == delivery.id) {
                    rules::told(one, &delivery, heard, terms.policy, tidings);
                }
            })
            .await?;
            Ok(())
        })
    }

    fn get(&self, id: DeliveryId) -> Reply<Result<Option<Delivery>, StoreFault>> {
        self.run(async move |session, terms| reading::get(session, terms, id).await)
    }

    fn list(&self, filter: Filter) -> Reply<Result<Page, StoreFault>> {
        self.run(async move |session, terms| reading::list(session, terms, &filter).await)
    }

    fn word(&self, id: DeliveryId, word: Word) -> Reply<Result<Delivery, WordFault>> {
        let said = self.run(async move |session, terms| {
            let (said, mut siblings) =
                change(session, terms, Which::Named(id), |siblings, tidings| {
                    rules::word(siblings, id, &word, tidings)
                })
                .await?;
            Ok(said.map(|index| siblings.swap_remove(index)))
        });
        Reply::waiting(async move { said.await? })
    }

    fn stats(&self) -> Reply<Result<Stats, StoreFault>> {
        self.run(async move |session, terms| reading::stats(session, terms).await)
    }

    fn sweep(&self, limit: usize) -> Reply<Result<u64, StoreFault>> {
        self.run(async move |session, terms| reading::sweep(session, terms, limit).await)
    }
}

fn named(siblings: Vec<Delivery>, id: DeliveryId) -> Option<Delivery> {
    siblings.into_iter().find(|one| one.id == id)
}
