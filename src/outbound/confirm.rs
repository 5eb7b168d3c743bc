//! Whether Tiki stands by an inbound IPN: its transaction's status is asked before it is forwarded.
//!
//! Nothing of the outbox is taken for it, neither a connection nor a permit nor its rate: Tiki may call
//! us while it answers a delivery of ours, and must not wait for the end of that.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::limit::Limit;
use super::status::{Asked, Expected, Seen, ask};
use super::tiki::Tiki;
use crate::config;
use crate::metrics::{Confirmation, OutboundCall, OutboundMetrics};

/// How long a match counts: Tiki's own duplicates come within it.
const REMEMBERED_FOR: Duration = Duration::from_secs(30);
/// Matches remembered at once; more are asked anew.
const REMEMBERED: usize = 10_000;

/// What Tiki says of an IPN.
#[derive(Clone, Debug, PartialEq)]
pub enum Confirmed {
    /// The same.
    Yes,
    /// Something else, and finally so.
    No(Seen),
    /// Nothing that counts, yet.
    NotYet(Doubt),
}

/// Why nothing can be said yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Tiki has it as pending.
    Pending,
    /// Tiki answered with a code.
    Refused,
    /// No answer that could be relied on, in time.
    NoAnswer,
    /// Too many questions at once.
    Crowded,
}

impl Doubt {
    /// Every word.
    pub const WORDS: &'static [&'static str] = &["pending", "refused", "no_answer", "crowded"];

    /// The stable word for it.
    pub const fn as_str(self) -> &'static str {
        Self::WORDS[self as usize]
    }
}

type Key = (String, Expected);

/// What all workers share.
pub struct Confirms {
    limit: Limit,
    within: Duration,
    remembered: Mutex<HashMap<(String, String), (Expected, Instant)>>,
    /// Transactions that are being asked about, with how many wait.
    asking: Mutex<HashMap<(String, String), Asking>>,
    metrics: Arc<OutboundMetrics>,
}

struct Asking {
    turn: Arc<tokio::sync::Mutex<()>>,
    waiting: usize,
}

impl Confirms {
    /// With the settings' limits.
    pub fn new(settings: &config::Confirm, metrics: Arc<OutboundMetrics>) -> Self {
        Self {
            limit: Limit::new(settings.rate),
            within: settings.within,
            remembered: Mutex::default(),
            asking: Mutex::default(),
            metrics,
        }
    }

    /// Asks over this runtime's way to Tiki, as this client, by `deadline` at the latest.
    pub async fn confirm(
        &self,
        tiki: &Tiki,
        client: &str,
        expected: &Expected,
        deadline: Instant,
    ) -> Confirmed {
        let deadline = deadline.min(Instant::now() + self.within);
        let key = (client.to_owned(), expected.tiki_transaction_id.clone());
        let confirmed = match self.remembers(&key, expected) {
            true => Confirmed::Yes,
            false => {
                self.in_turn(tiki, (client.to_owned(), expected.clone()), &key, deadline)
                    .await
            }
        };
        self.metrics.confirmation(match &confirmed {
            Confirmed::Yes => Confirmation::Confirmed,
            Confirmed::No(_) => Confirmation::Unconfirmed,
            Confirmed::NotYet(_) => Confirmation::NotYet,
        });
        confirmed
    }

    /// One question about a transaction at a time: who waited looks at what the one before heard.
    async fn in_turn(
        &self,
        tiki: &Tiki,
        (client, expected): Key,
        key: &(String, String),
        deadline: Instant,
    ) -> Confirmed {
        let place = Place::take(self, key.clone());
        let Ok(_turn) = timeout_at(deadline, place.turn.lock()).await else {
            return Confirmed::NotYet(Doubt::NoAnswer);
        };
        if self.remembers(key, &expected) {
            return Confirmed::Yes;
        }
        let Some(account) = tiki.accounts().choose(Some(&client)) else {
            return Confirmed::NotYet(Doubt::NoAnswer);
        };
        if self.limit.take().is_err() {
            return Confirmed::NotYet(Doubt::Crowded);
        }
        let began = std::time::Instant::now();
        let asked = ask(tiki, account, &expected, deadline, || true).await;
        self.metrics.call(OutboundCall::Confirm, began.elapsed());
        match asked {
            // What is further than pending confirms that it was pending.
            Asked::Same | Asked::Later(_) => {
                self.remember(key.clone(), expected);
                Confirmed::Yes
            }
            Asked::Other(seen) => Confirmed::No(seen),
            Asked::Pending(_) => Confirmed::NotYet(Doubt::Pending),
            Asked::Refused(_) => Confirmed::NotYet(Doubt::Refused),
            Asked::Nothing(why) => {
                tracing::warn!(why, "Tiki could not be asked about a notice of its own");
                Confirmed::NotYet(Doubt::NoAnswer)
            }
        }
    }

    fn remembers(&self, key: &(String, String), expected: &Expected) -> bool {
        let remembered = lock(&self.remembered);
        remembered
            .get(key)
            .is_some_and(|(seen, until)| seen == expected && Instant::now() < *until)
    }

    fn remember(&self, key: (String, String), expected: Expected) {
        let now = Instant::now();
        let mut remembered = lock(&self.remembered);
        if remembered.len() >= REMEMBERED {
            remembered.retain(|_, (_, until)| now < *until);
        }
        if remembered.len() < REMEMBERED {
            remembered.insert(key, (expected, now + REMEMBERED_FOR));
        }
    }
}

impl fmt::Debug for Confirms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confirms")
    }
}

/// A place among those who ask about one transaction.
struct Place<'c> {
    confirms: &'c Confirms,
    key: (String, String),
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl<'c> Place<'c> {
    fn take(confirms: &'c Confirms, key: (String, String)) -> Self {
        let mut asking = lock(&confirms.asking);
        let entry = asking.entry(key.clone()).or_insert_with(|| Asking {
            turn: Arc::default(),
            waiting: 0,
        });
        entry.waiting += 1;
        let turn = Arc::clone(&entry.turn);
        Self {
            confirms,
            key,
            turn,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut asking = lock(&self.confirms.asking);
        if let Entry::Occupied(mut entry) = asking.entry(self.key.clone()) {
            entry.get_mut().waiting -= 1;
            if entry.get().waiting == 0 {
                entry.remove();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
