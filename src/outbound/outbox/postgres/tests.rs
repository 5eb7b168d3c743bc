//! The suite that every outbox passes, on a real server; and what several gates do to each other.

use std::sync::{Mutex, PoisonError};

use super::*;
use crate::clock::Clock;
use crate::config::{PostgresStore, Secret};
use crate::outbound::outbox::conformance::{Fixture, Raise, Setting, clock, suite};
use crate::store::postgres::server::Server;

mod replicas;

suite!(super::open);

/// Databases that no test uses now.
static IDLE: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn idle() -> std::sync::MutexGuard<'static, Vec<String>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A database for one test at a time.
struct Database(String);

impl Database {
    fn take() -> Self {
        let idle = idle().pop();
        Self(idle.unwrap_or_else(|| Server::shared().create_database()))
    }

    fn query(&self, statements: &str) -> String {
        Server::shared().query(&self.0, statements)
    }

    fn store(&self) -> Arc<Store> {
        let settings = PostgresStore {
            url: Secret::new(Server::shared().url(&self.0).into_bytes()),
            ca: None,
            connections: 4,
            lease: Duration::from_secs(600),
            require_existing: false,
        };
        Arc::new(Store::open(&settings).unwrap())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let empty = "
            delete from tikigate.delivery; update tikigate.delivery_bytes set bytes = 0;
            update tikigate.ledger set quarantine = null";
        if Server::shared().try_query(&self.0, empty).is_ok() {
            idle().push(std::mem::take(&mut self.0));
        }
    }
}

/// A gate's outbox: on this clock, or on the server's own.
fn gate(database: &Database, setting: &Setting, clock: Option<&Clock>) -> PostgresOutbox {
    let pins = setting.pins.clone();
    let mut terms = Terms::new(setting.policy, setting.max_bytes, setting.keep, pins);
    terms.clock = clock.cloned();
    PostgresOutbox::on(database.store(), terms)
}

/// What a test holds: its stores end before their database is given to another.
struct Held {
    stores: Vec<Arc<Store>>,
    _database: Arc<Database>,
}

impl Drop for Held {
    fn drop(&mut self) {
        for store in &self.stores {
            store.close();
        }
    }
}

async fn open(setting: Setting) -> Fixture {
    let database = Arc::new(Database::take());
    let (clock, hands) = clock();
    let outbox = gate(&database, &setting, Some(&clock));
    let other = gate(&database, &setting, Some(&clock));
    let held = Held {
        stores: [&outbox, &other]
            .map(|gate| Arc::clone(&gate.store))
            .to_vec(),
        _database: Arc::clone(&database),
    };
    let raise: Raise = Box::new(move || {
        let cause = "select tikigate.enter_quarantine('a standby was promoted')";
        database.query(cause);
        Box::pin(async {})
    });
    Fixture {
        outbox: Arc::new(outbox),
        other: Arc::new(other),
        clock,
        hands,
        raise: Some(raise),
        _held: Box::new(held),
    }
}
