//! The SQLite store passes every store's suite, and keeps what it promises about its file.

use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::*;
use crate::ledger::conformance::{
    End, Fixture, Reopened, durable_suite, payment, refund, settlement_of, success, suite,
};
use crate::ledger::{ClaimOutcome, LedgerError, State};
use crate::store::sqlite::Options;

fn options(directory: &Path) -> Options {
    Options {
        path: directory.join("tikigate.db"),
        watermark: directory.join("tikigate.mark"),
        require_existing: false,
        safe_filesystem: false,
        new_id: "0123456789abcdef".to_owned(),
    }
}

async fn open() -> Fixture {
    let directory = quick_directory();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let (clock, hands) = Clock::manual(start);
    let (ledger, _) = open_in(directory.path(), &clock).await;
    let reopening = clock.clone();
    let place = Arc::new(Mutex::new(directory));
    let reopen = move |end, old: Arc<dyn Ledger>| -> Pin<Box<dyn Future<Output = Reopened>>> {
        let (clock, place) = (reopening.clone(), Arc::clone(&place));
        Box::pin(async move {
            match end {
                End::Closed => old.close().await,
                End::Killed => {
                    let copy = as_killed(place.lock().unwrap().path());
                    *place.lock().unwrap() = copy;
                }
            }
            drop(old);
            let directory = place.lock().unwrap().path().to_owned();
            let (ledger, lapsed) = open_in(&directory, &clock).await;
            Reopened {
                ledger: Arc::new(ledger),
                lapsed,
            }
        })
    };
    Fixture {
        ledger: Arc::new(ledger),
        clock,
        hands,
        _held: Box::new(()),
        reopen: Some(Box::new(reopen)),
    }
}

/// In memory where there is such a place: what is asked here needs files, and no disk to wait for.
fn quick_directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

async fn open_in(directory: &Path, clock: &Clock) -> (SqliteLedger, u64) {
    let (database, opened) = Database::open(options(directory)).unwrap();
    assert_eq!(opened.gap, None);
    SqliteLedger::open(database, clock.clone()).await.unwrap()
}

/// The files as they lie at this moment, in a directory of their own, while the store goes on using
/// the old ones: what a process that is killed now leaves behind.
fn as_killed(directory: &Path) -> TempDir {
    let copy = quick_directory();
    let from = options(directory);
    let to = options(copy.path());
    // Before the log: a mark is never ahead of what it marks.
    fs::copy(&from.watermark, &to.watermark).unwrap();
    // A writer of our own keeps batches, and the log's beginning anew, away while it is copied.
    let connection = rusqlite::Connection::open(&from.path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
        .execute_batch("BEGIN IMMEDIATE; SELECT * FROM meta")
        .unwrap();
    let log = |path: &Path| path.with_extension("db-wal");
    fs::copy(log(&from.path), log(&to.path)).unwrap();
    fs::copy(&from.path, &to.path).unwrap();
    connection.execute_batch("ROLLBACK").unwrap();
    copy
}

suite!(super::open);
durable_suite!(super::open);

/// Deletes a record behind the store's back, as nothing does that keeps to the lock.
fn delete_behind(directory: &Path, id: RecordId) {
    let connection = rusqlite::Connection::open(options(directory).path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    let deleted = connection.execute("DELETE FROM records WHERE id = ?1", [id.0.cast_signed()]);
    assert_eq!(deleted, Ok(1));
}

/// Settlements write the rows that their claims left in memory. Where the file turns out to hold
/// something else, memory doesn't count any more, neither for this record nor for the others.
#[tokio::test]
async fn rows_in_memory_give_way_to_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let (clock, _hands) = Clock::manual(start);
    let (ledger, _) = open_in(directory.path(), &clock).await;
    let mut fences = Vec::new();
    for message in ["gone", "gone too", "there"] {
        match ledger.claim(refund(message)).await.unwrap() {
            ClaimOutcome::Granted(fence, _) => fences.push(fence),
            other => panic!("not granted: {other:?}"),
        }
    }
    delete_behind(directory.path(), fences[0].record);
    delete_behind(directory.path(), fences[1].record);
    let failed = ledger.settle(fences[0], success()).await;
    assert!(matches!(failed, Err(LedgerError::Failed(_))), "{failed:?}");

    let opened_again = async {
        while ledger.trouble().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let within = Duration::from_secs(20);
    tokio::time::timeout(within, opened_again).await.unwrap();
    let superseded = Settled::Superseded(State::Done);
    assert_eq!(
        ledger.settle(fences[0], success()).await,
        Ok(superseded.clone())
    );
    assert_eq!(ledger.settle(fences[1], success()).await, Ok(superseded));
    let settled = ledger.settle(fences[2], success()).await;
    assert_eq!(settled, Ok(Settled::Recorded(State::Done)));
}

fn keys(connection: &rusqlite::Connection, sql: &str) -> Vec<String> {
    let mut select = connection.prepare(sql).unwrap();
    let keys = select.query_map((), |row| row.get(0)).unwrap();
    keys.map(Result::unwrap).collect()
}

/// What is listed is nobody else's, and what isn't is found all the same: another client's message of the
/// same name.
#[tokio::test]
async fn a_done_record_is_found_whether_its_answer_is_listed_or_not() {
    let directory = quick_directory();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let (clock, hands) = Clock::manual(start);
    let (ledger, _) = open_in(directory.path(), &clock).await;
    let of = |client: &str| {
        let mut claim = refund("r-1");
        claim.key.client = client.into();
        claim
    };
    let granted = async |client: &str| match ledger.claim(of(client)).await.unwrap() {
        ClaimOutcome::Granted(fence, _) => fence,
        other => panic!("not granted: {other:?}"),
    };
    // The first has the message's place on the list; the second is as good without one.
    for (client, body) in [("a", "of a"), ("b", "of b")] {
        let fence = granted(client).await;
        let settled = ledger.settle(fence, settlement_of(200, body)).await;
        assert_eq!(settled, Ok(Settled::Recorded(State::Done)));
    }
    let answered = async |client: &str| match ledger.claim(of(client)).await.unwrap() {
        ClaimOutcome::Done(_, answer) => String::from_utf8(answer.body.to_vec()).unwrap(),
        other => panic!("not done: {other:?}"),
    };
    let look = rusqlite::Connection::open(options(directory.path()).path).unwrap();
    look.busy_timeout(Duration::from_secs(10)).unwrap();
    let listed = "SELECT client FROM records WHERE listed = 1";
    assert_eq!(keys(&look, listed), ["a"]);
    assert_eq!(
        (answered("a").await, answered("b").await),
        ("of a".into(), "of b".into())
    );
    let mut other = of("b");
    other.fingerprint.0[0] ^= 1;
    assert!(matches!(
        ledger.claim(other).await,
        Ok(ClaimOutcome::Conflict(_))
    ));
    let both = Filter {
        key: Some("r-1".to_owned()),
        limit: 10,
        ..Filter::default()
    };
    assert_eq!(ledger.list(both.clone()).await.unwrap().records.len(), 2);

    // What is forgotten leaves the list with its record, and nobody else does.
    let mut longer = of("b");
    longer.keep *= 2;
    assert!(matches!(
        ledger.claim(longer.clone()).await,
        Ok(ClaimOutcome::Done(..))
    ));
    hands.advance(longer.keep * 3 / 4);
    assert_eq!(ledger.sweep(100).await, Ok(1));
    assert!(keys(&look, "SELECT CAST(body AS TEXT) FROM answers").is_empty());
    assert_eq!(answered("b").await, "of b");
    assert!(matches!(
        ledger.claim(of("a")).await,
        Ok(ClaimOutcome::Granted(..))
    ));
    assert_eq!(ledger.list(both).await.unwrap().records.len(), 2);
}

/// A file that somebody wrote to: what is listed came once, though its record is not there.
#[tokio::test]
async fn a_listed_message_without_its_record_is_not_taken_for_a_new_one() {
    let directory = quick_directory();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let (clock, _hands) = Clock::manual(start);
    let (ledger, _) = open_in(directory.path(), &clock).await;
    let ClaimOutcome::Granted(fence, _) = ledger.claim(refund("r-1")).await.unwrap() else {
        panic!("not granted");
    };
    ledger.settle(fence, success()).await.unwrap();
    let connection = rusqlite::Connection::open(options(directory.path()).path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
        .execute_batch("DROP TRIGGER answers_forgotten; DELETE FROM records")
        .unwrap();
    let claimed = ledger.claim(refund("r-1")).await;
    assert!(matches!(claimed, Ok(ClaimOutcome::Done(..))), "{claimed:?}");
    let mut longer = refund("r-1");
    longer.keep *= 2;
    let claimed = ledger.claim(longer).await;
    assert!(
        matches!(claimed, Err(LedgerError::Failed(_))),
        "{claimed:?}"
    );
}

/// Programs of before and after find a row by these, and `ledger verify` wants them so.
#[tokio::test]
async fn a_row_is_filed_under_the_hashes_of_its_message_and_its_payment() {
    // The first eight bytes of `printf r-1 | sha256sum`, and so on.
    const HASH_R1: i64 = 0xa5fa_777a_3dc6_7268_u64.cast_signed();
    const HASH_R2: i64 = 0x211f_c184_341d_e0bd_u64.cast_signed();
    const HASH_T7: i64 = 0x3dd2_fe29_50b2_e9a4_u64.cast_signed();
    let directory = quick_directory();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let (clock, _hands) = Clock::manual(start);
    let (ledger, _) = open_in(directory.path(), &clock).await;
    for claim in [refund("r-1"), payment("r-2", true)] {
        let granted = ledger.claim(claim).await;
        let Ok(ClaimOutcome::Granted(fence, _)) = granted else {
            panic!("{granted:?}");
        };
        ledger.settle(fence, success()).await.unwrap();
    }
    let connection = rusqlite::Connection::open(options(directory.path()).path).unwrap();
    let mut select = connection
        .prepare("SELECT message_hash, subject_hash FROM records ORDER BY id")
        .unwrap();
    let rows = select.query_map((), |row| Ok((row.get(0)?, row.get(1)?)));
    let rows: Vec<(i64, Option<i64>)> = rows.unwrap().map(Result::unwrap).collect();
    assert_eq!(rows, [(HASH_R1, None), (HASH_R2, Some(HASH_T7))]);
    let listed = keys(
        &connection,
        "SELECT CAST(message_hash AS TEXT) FROM answers ORDER BY id",
    );
    assert_eq!(listed, [HASH_R1.to_string(), HASH_R2.to_string()]);
}
