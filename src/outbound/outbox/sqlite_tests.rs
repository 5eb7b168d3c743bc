//! The outboxes in SQLite pass every outbox's suite, and a file keeps what it was told.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags};
use tempfile::TempDir;

use super::Outbox;
use super::conformance::{Fixture, Raise, Setting, TAKEN, clock, posting, suite};
use super::sqlite::{MemoryOutbox, SqliteOutbox, Terms};
use super::types::{Accepted, State, Step};
use crate::clock::Clock;
use crate::ledger::{Ledger as _, SqliteLedger};
use crate::store::sqlite::{Database, Options};

fn options(directory: &Path) -> Options {
    Options {
        path: directory.join("tikigate.db"),
        watermark: directory.join("tikigate.mark"),
        require_existing: false,
        safe_filesystem: false,
        new_id: "0123456789abcdef".to_owned(),
    }
}

/// In memory where there is such a place: what is asked here needs files, and no disk to wait for.
fn quick_directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn database(directory: &Path) -> Arc<Database> {
    Arc::new(Database::open(options(directory)).unwrap().0)
}

fn terms(setting: &Setting, clock: &Clock) -> Terms {
    Terms {
        policy: setting.policy,
        max_bytes: setting.max_bytes,
        keep: setting.keep,
        clock: clock.clone(),
    }
}

async fn open_over(
    database: &Arc<Database>,
    setting: &Setting,
    clock: &Clock,
) -> (Arc<SqliteOutbox>, u64) {
    let opening = SqliteOutbox::over(
        Arc::clone(database),
        terms(setting, clock),
        setting.pins.clone(),
    );
    let (outbox, lapsed) = opening.await.unwrap();
    (Arc::new(outbox), lapsed)
}

fn raise(database: &Arc<Database>, clock: &Clock) -> Raise {
    let (database, clock) = (Arc::clone(database), clock.clone());
    Box::new(move || {
        let (database, clock) = (Arc::clone(&database), clock.clone());
        Box::pin(async move {
            let (ledger, _) = SqliteLedger::open(database, clock).await.unwrap();
            let cause = "a backup was put back".to_owned();
            ledger.enter_quarantine(cause).await.unwrap();
        })
    })
}

mod file {
    use super::*;

    suite!(super::open);

    async fn open(setting: Setting) -> Fixture {
        let directory = quick_directory();
        let (clock, hands) = clock();
        let database = database(directory.path());
        let (outbox, lapsed) = open_over(&database, &setting, &clock).await;
        assert_eq!(lapsed, 0);
        Fixture {
            other: Arc::clone(&outbox) as Arc<dyn Outbox>,
            outbox,
            raise: Some(raise(&database, &clock)),
            clock,
            hands,
            _held: Box::new((database, directory)),
        }
    }
}

mod memory {
    use super::*;

    suite!(super::open);

    async fn open(setting: Setting) -> Fixture {
        let (clock, hands) = clock();
        let outbox = MemoryOutbox::holding(terms(&setting, &clock), &setting.pins).unwrap();
        let outbox: Arc<dyn Outbox> = Arc::new(outbox);
        Fixture {
            other: Arc::clone(&outbox),
            outbox,
            clock,
            hands,
            raise: None,
            _held: Box::new(()),
        }
    }
}

#[tokio::test]
async fn a_start_finds_what_its_forerunner_was_trying() {
    let directory = quick_directory();
    let (clock, hands) = clock();
    let setting = Setting::default();
    let database_before = database(directory.path());
    let (outbox, _) = open_over(&database_before, &setting, &clock).await;
    for name in ["sent", "asked", "waits"] {
        let accepted = outbox.post(posting(name, "SUCCESS", "1000")).await;
        assert!(matches!(accepted, Ok(Accepted::Stored(_))));
        hands.advance(Duration::from_secs(1));
    }
    let mut held = posting("held", "SUCCESS", "1000");
    held.base_url = "https://tiki.example/new".to_owned();
    outbox.post(held).await.unwrap();
    let flights = outbox.take(2).await.unwrap().flights;
    assert_eq!(flights.len(), 2);
    drop(outbox);
    database_before.close().await;
    drop(database_before);

    // The accounts are others now, too.
    let moved = Setting {
        pins: vec![("c".to_owned(), "https://tiki.example/new".to_owned())],
        ..setting.clone()
    };
    let database_after = database(directory.path());
    let (outbox, lapsed) = open_over(&database_after, &moved, &clock).await;
    assert_eq!(lapsed, 2);
    let stats = outbox.stats().await.unwrap();
    assert_eq!((stats.pending, stats.held), (4, 3));
    let taken = outbox.take(10).await.unwrap().flights;
    let ids: Vec<_> = taken
        .iter()
        .map(|one| &*one.delivery.transaction_id)
        .collect();
    assert_eq!(ids, ["p-held"]);
    drop(outbox);
    database_after.close().await;
    drop(database_after);

    let database_again = database(directory.path());
    let (outbox, lapsed) = open_over(&database_again, &setting, &clock).await;
    assert_eq!(lapsed, 1);
    let lapsed = outbox.get(flights[0].delivery.id).await.unwrap().unwrap();
    assert_eq!((lapsed.state, lapsed.step), (State::Pending, Step::Send));
    assert!(lapsed.maybe_taken && lapsed.flying_until.is_none());
    assert_eq!(lapsed.events.last().unwrap().what, "lapsed");
    // An answer that comes over to the next life is still worth knowing.
    let late = outbox.record(flights[0].clone(), TAKEN).await.unwrap();
    assert_eq!(late.state, State::Delivered);
    let taken = outbox.take(10).await.unwrap().flights;
    let ids: Vec<_> = taken
        .iter()
        .map(|one| &*one.delivery.transaction_id)
        .collect();
    assert_eq!(ids, ["p-asked", "p-waits"]);
}

/// A take that is in the file although its batch failed: the mark that belongs to it could not be written.
#[tokio::test]
async fn a_take_of_a_batch_that_failed_goes_back() {
    let directory = quick_directory();
    let mark = options(directory.path()).watermark;
    let memory = rustix::fs::memfd_create("mark", MemfdFlags::ALLOW_SEALING).unwrap();
    let place = format!("/proc/self/fd/{}", memory.as_raw_fd());
    std::os::unix::fs::symlink(&place, &mark).unwrap();
    let (clock, _hands) = clock();
    let database = database(directory.path());
    let (outbox, _) = open_over(&database, &Setting::default(), &clock).await;
    let posted = outbox.post(posting("a", "SUCCESS", "1000")).await.unwrap();
    let Accepted::Stored(id) = posted else {
        panic!("not stored: {posted:?}");
    };
    let writable = directory.path().join("writable.mark");
    std::fs::copy(&mark, &writable).unwrap();
    rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE).unwrap();
    assert!(outbox.take(10).await.is_err());
    // A mark can be written again, in another place.
    let next = directory.path().join("next.mark");
    std::os::unix::fs::symlink(&writable, &next).unwrap();
    std::fs::rename(&next, &mark).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let flights = loop {
        assert!(Instant::now() < deadline, "it never came back");
        match outbox.take(10).await {
            Ok(taken) if !taken.flights.is_empty() => break taken.flights,
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let again = &flights[0].delivery;
    // The first flight was in the file, and was no try.
    assert_eq!((again.id, again.flight, again.tries), (id, 2, 1));
    assert!(!again.maybe_taken);
}

/// A row that this version can't read stands in nobody's way: neither the others' nor the ledger's.
#[tokio::test]
async fn a_row_that_can_not_be_read_holds_nobody_up() {
    let directory = quick_directory();
    let (clock, _hands) = clock();
    let database = database(directory.path());
    let (outbox, _) = open_over(&database, &Setting::default(), &clock).await;
    for name in ["odd", "good"] {
        outbox.post(posting(name, "SUCCESS", "1000")).await.unwrap();
    }
    let other = rusqlite::Connection::open(options(directory.path()).path).unwrap();
    let changed = other.execute(
        "UPDATE outbox SET step = 'of a later version' WHERE transaction_id = 'p-odd'",
        (),
    );
    assert_eq!(changed, Ok(1));
    drop(other);
    let (taken, posted, odd) = tokio::join!(
        outbox.take(10),
        outbox.post(posting("next", "SUCCESS", "1000")),
        // What is about that very row fails by itself, and not the batch that it is in.
        outbox.post(posting("odd", "SUCCESS", "1000")),
    );
    let flights = taken.unwrap().flights;
    assert_eq!(flights.len(), 1);
    assert_eq!(flights[0].delivery.transaction_id, "p-good");
    assert!(matches!(posted, Ok(Accepted::Stored(_))));
    assert!(odd.is_err());
    assert_eq!(database.trouble(), None, "the ledger goes on");
    outbox.record(flights[0].clone(), TAKEN).await.unwrap();
}
