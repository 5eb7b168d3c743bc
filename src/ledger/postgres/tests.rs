//! The suite that every store passes, on a real server; and what several gates do to each other.

use std::any::Any;
use std::time::SystemTime;

use super::*;
use crate::config::{PostgresStore, Secret};
use crate::ledger::State;
use crate::ledger::conformance::{End, Fixture, Reopen, Reopened, durable_suite, suite};
use crate::store::postgres::server::Server;

mod replicas;

suite!(super::open);
durable_suite!(super::open);

/// Longer than any of these tests takes.
const LEASE: Duration = Duration::from_secs(600);

/// Databases that no test uses now.
static IDLE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A database for one test at a time.
struct Database(String);

impl Database {
    fn take() -> Self {
        let idle = lock(&IDLE).pop();
        Self(idle.unwrap_or_else(|| Server::shared().create_database()))
    }

    fn query(&self, statements: &str) -> String {
        Server::shared().query(&self.0, statements)
    }

    fn settings(&self) -> PostgresStore {
        PostgresStore {
            url: Secret::new(Server::shared().url(&self.0).into_bytes()),
            ca: None,
            connections: 3,
            lease: LEASE,
            require_existing: false,
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let empty = "
            delete from tikigate.record; delete from tikigate.event; delete from tikigate.owner;
            delete from tikigate.namespace; update tikigate.ledger set quarantine = null;
            update tikigate.record_count set claimed = 0, released = 0, done = 0, unknown = 0";
        if Server::shared().try_query(&self.0, empty).is_ok() {
            lock(&IDLE).push(std::mem::take(&mut self.0));
        }
    }
}

/// A ledger in whichever process it is now, and its database: in the order in which they go.
struct Held {
    life: Arc<Mutex<Arc<PostgresLedger>>>,
    _database: Arc<Database>,
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.life).stop();
    }
}

/// Whom the suite claims as.
fn owners() -> Vec<Owner> {
    (0..9).chain([u64::MAX]).map(Owner).collect()
}

fn life(database: &Database, clock: &Clock) -> Arc<PostgresLedger> {
    let store = Store::open(&database.settings()).unwrap();
    Arc::new(PostgresLedger::open(store, clock.clone(), LEASE, owners()))
}

async fn open() -> Fixture {
    let database = Arc::new(Database::take());
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000);
    let (clock, hands) = Clock::manual(start);
    let ledger = life(&database, &clock);
    let held = Held {
        life: Arc::new(Mutex::new(Arc::clone(&ledger))),
        _database: Arc::clone(&database),
    };
    Fixture {
        ledger,
        reopen: Some(reopen(Arc::clone(&held.life), database, clock.clone())),
        clock,
        hands,
        _held: Box::new(held) as Box<dyn Any>,
    }
}

fn reopen(
    current: Arc<Mutex<Arc<PostgresLedger>>>,
    database: Arc<Database>,
    clock: Clock,
) -> Reopen {
    Box::new(move |end, old| {
        let (current, database, clock) =
            (Arc::clone(&current), Arc::clone(&database), clock.clone());
        Box::pin(async move {
            let mut lapsed = 0;
            match end {
                End::Closed => {
                    lapsed += old.stats().await.unwrap().records[State::Claimed as usize];
                    old.close().await;
                }
                // Its connections are cut, whatever is under way on them.
                End::Killed => lock(&current).stop(),
            }
            let ledger = life(&database, &clock);
            *lock(&current) = Arc::clone(&ledger);
            // As when its lease is over.
            for owner in owners() {
                lapsed += ledger.lapse(owner).await.unwrap();
            }
            Reopened { ledger, lapsed }
        })
    })
}
