//! The SQLite store passes every store's suite, and keeps what it promises about its file.

use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::*;
use crate::ledger::conformance::{
    End, Fixture, Reopened, answer, cannot_say, durable_suite, payment, refund,
    reopening as taking_back, settlement_of, success, suite, word,
};
use crate::ledger::{ClaimOutcome, Hold, Key, LedgerError, State, Verdict};
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
        fences.push(granted(&ledger, refund(message)).await);
    }
    delete_behind(directory.path(), fences[0].record);
    delete_behind(directory.path(), fences[1].record);
    let failed = ledger.settle(fences[0], success()).await;
    assert!(matches!(failed, Err(LedgerError::Failed(_))), "{failed:?}");

    opened_again(&ledger).await;
    let superseded = Settled::Superseded(State::Done);
    assert_eq!(
        ledger.settle(fences[0], success()).await,
        Ok(superseded.clone())
    );
    assert_eq!(ledger.settle(fences[1], success()).await, Ok(superseded));
    let settled = ledger.settle(fences[2], success()).await;
    assert_eq!(settled, Ok(Settled::Recorded(State::Done)));
}

/// The fence of a claim that must be granted.
async fn granted(ledger: &SqliteLedger, claim: Claim) -> Fence {
    match ledger.claim(claim).await {
        Ok(ClaimOutcome::Granted(fence, _)) => fence,
        other => panic!("not granted: {other:?}"),
    }
}

/// Waits until a ledger that failed can be used.
async fn opened_again(ledger: &SqliteLedger) {
    let usable = async {
        while ledger.trouble().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let within = Duration::from_secs(20);
    tokio::time::timeout(within, usable).await.unwrap();
}

fn keys(connection: &rusqlite::Connection, sql: &str) -> Vec<String> {
    let mut select = connection.prepare(sql).unwrap();
    let keys = select.query_map((), |row| row.get(0)).unwrap();
    keys.map(Result::unwrap).collect()
}

/// Lists a done record's answer as programs of before did.
fn list_as_before(connection: &rusqlite::Connection, id: RecordId, key: &Key) {
    let listed = connection.execute(
        "INSERT INTO answers (message_hash, id, key_check, fingerprint, policy, keep, status, headers, body)
         SELECT message_hash, id, ?2, fingerprint, policy, keep, answer_status, answer_headers, answer_body
         FROM records WHERE id = ?1 AND state = 'done'",
        rusqlite::params![id.0.cast_signed(), answers::key_check(key)],
    );
    assert_eq!(listed, Ok(1));
    let marked = connection.execute(
        "UPDATE records SET listed = 1 WHERE id = ?1",
        [id.0.cast_signed()],
    );
    assert_eq!(marked, Ok(1));
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
    for (client, body) in [("a", "of a"), ("b", "of b"), ("c", "of c")] {
        let fence = granted(&ledger, of(client)).await;
        let settled = ledger.settle(fence, settlement_of(200, body)).await;
        assert_eq!(settled, Ok(Settled::Recorded(State::Done)));
    }
    ledger.close().await;
    let look = rusqlite::Connection::open(options(directory.path()).path).unwrap();
    look.busy_timeout(Duration::from_secs(10)).unwrap();
    // One message has one place on the list, and whoever comes second is as good without.
    list_as_before(&look, RecordId(1), &of("a").key);
    let (ledger, _) = open_in(directory.path(), &clock).await;
    let answered = async |client: &str| match ledger.claim(of(client)).await.unwrap() {
        ClaimOutcome::Done(_, answer) => String::from_utf8(answer.body.to_vec()).unwrap(),
        other => panic!("not done: {other:?}"),
    };
    let listed = "SELECT client FROM records WHERE listed = 1";
    assert_eq!(keys(&look, listed), ["a"]);
    for client in ["a", "b", "c"] {
        assert_eq!(answered(client).await, format!("of {client}"));
        let mut other = of(client);
        other.fingerprint.0[0] ^= 1;
        assert!(matches!(
            ledger.claim(other).await,
            Ok(ClaimOutcome::Conflict(_))
        ));
    }
    let all = Filter {
        key: Some("r-1".to_owned()),
        limit: 10,
        ..Filter::default()
    };
    assert_eq!(ledger.list(all.clone()).await.unwrap().records.len(), 3);

    // What is forgotten leaves the list with its record, and nobody else does.
    let mut longer = of("b");
    longer.keep *= 2;
    assert!(matches!(
        ledger.claim(longer.clone()).await,
        Ok(ClaimOutcome::Done(..))
    ));
    hands.advance(longer.keep * 3 / 4);
    assert_eq!(ledger.sweep(100).await, Ok(2));
    assert!(keys(&look, "SELECT CAST(body AS TEXT) FROM answers").is_empty());
    assert_eq!(answered("b").await, "of b");
    granted(&ledger, of("a")).await;
    assert_eq!(ledger.list(all).await.unwrap().records.len(), 2);
}

/// What is listed is what the record was: it leaves the list when the record changes.
#[tokio::test]
async fn a_listed_record_that_changes_is_found_as_it_is_now() {
    let directory = quick_directory();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let (clock, _hands) = Clock::manual(start);
    let mut fences = Vec::new();
    {
        let (ledger, _) = open_in(directory.path(), &clock).await;
        for (message, settlement) in [
            ("r-1", success()),
            ("r-2", success()),
            ("r-3", cannot_say()),
        ] {
            let fence = granted(&ledger, refund(message)).await;
            ledger.settle(fence, settlement).await.unwrap();
            fences.push(fence);
        }
        let unknown = ledger.get(fences[2].record).await.unwrap().unwrap();
        let applied = Verdict::Applied(answer(200, "by hand"));
        let forced = Resolution {
            force: true,
            ..word(&unknown, applied)
        };
        ledger.resolve(forced).await.unwrap();
        ledger.close().await;
    }
    let look = rusqlite::Connection::open(options(directory.path()).path).unwrap();
    look.busy_timeout(Duration::from_secs(10)).unwrap();
    list_as_before(&look, fences[0].record, &refund("r-1").key);
    list_as_before(&look, fences[1].record, &refund("r-2").key);
    list_as_before(&look, fences[2].record, &refund("r-3").key);
    let (ledger, _) = open_in(directory.path(), &clock).await;
    let listed = "SELECT message FROM records WHERE listed = 1 AND id IN (SELECT id FROM answers)";
    assert_eq!(keys(&look, listed), ["r-1", "r-2", "r-3"]);

    let mut longer = refund("r-1");
    longer.keep *= 2;
    for _ in 0..2 {
        assert!(matches!(
            ledger.claim(longer.clone()).await,
            Ok(ClaimOutcome::Done(id, _)) if id == fences[0].record
        ));
        assert_eq!(keys(&look, listed), ["r-2", "r-3"]);
    }
    // A person's word, taken back: nobody knows again.
    let said = fences[2].record;
    let record = ledger.get(said).await.unwrap().unwrap();
    ledger.reopen(taking_back(&record)).await.unwrap();
    assert_eq!(keys(&look, listed), ["r-2"]);
    assert!(matches!(
        ledger.claim(refund("r-3")).await,
        Ok(ClaimOutcome::Held(id, Hold::OutcomeUnknown)) if id == said
    ));
    // What is noted of a late answer changes the record, and not what it answers.
    let record = ledger.get(fences[1].record).await.unwrap().unwrap();
    let late = Fence {
        attempt: record.attempt - 1,
        ..fences[1]
    };
    let settled = ledger.settle(late, success()).await.unwrap();
    assert!(keys(&look, listed).is_empty(), "{settled:?}");
    assert!(matches!(
        ledger.claim(refund("r-2")).await,
        Ok(ClaimOutcome::Done(id, _)) if id == fences[1].record
    ));
    assert_eq!(keys(&look, "SELECT CAST(id AS TEXT) FROM answers"), [""; 0]);
}

/// The last listed record is forgotten, and the batch that forgot it fails.
#[tokio::test]
async fn what_a_failed_batch_saw_of_the_list_does_not_count() {
    let directory = quick_directory();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let (clock, hands) = Clock::manual(start);
    let short = Claim {
        keep: Duration::from_secs(60),
        ..refund("listed")
    };
    let listed = {
        let (ledger, _) = open_in(directory.path(), &clock).await;
        let fence = granted(&ledger, short.clone()).await;
        ledger.settle(fence, success()).await.unwrap();
        ledger.close().await;
        fence.record
    };
    let other = rusqlite::Connection::open(options(directory.path()).path).unwrap();
    other.busy_timeout(Duration::from_secs(10)).unwrap();
    list_as_before(&other, listed, &short.key);
    let (ledger, _) = open_in(directory.path(), &clock).await;
    let gone = granted(&ledger, refund("gone")).await;
    delete_behind(directory.path(), gone.record);
    hands.advance(Duration::from_secs(3600));
    // While the writer is kept in a batch, what is submitted becomes the next one.
    let (tell, running) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel();
    let first = ledger.run(move |_| {
        tell.send(()).unwrap();
        wait.recv().unwrap();
        Ok(Ok::<_, LedgerError>(()))
    });
    running.recv().unwrap();
    let swept = ledger.sweep(100);
    let claimed = ledger.claim(refund("new"));
    let failed = ledger.settle(gone, success());
    go_on.send(()).unwrap();
    assert_eq!(first.await, Ok(()));
    let failed = failed.await;
    assert!(matches!(failed, Err(LedgerError::Failed(_))), "{failed:?}");
    assert_eq!(
        (swept.await.is_err(), claimed.await.is_err()),
        (true, true),
        "all of one batch"
    );
    opened_again(&ledger).await;
    let repeated = ledger.claim(short).await;
    assert!(
        matches!(repeated, Ok(ClaimOutcome::Done(id, _)) if id == listed),
        "{repeated:?}"
    );
}

/// Two messages with one hash: only what has the same text is the same.
#[tokio::test]
async fn a_hash_alone_makes_no_message_known() {
    let directory = quick_directory();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let (clock, _hands) = Clock::manual(start);
    let (ledger, _) = open_in(directory.path(), &clock).await;
    let fence = granted(&ledger, refund("r-1")).await;
    ledger.settle(fence, success()).await.unwrap();
    let look = rusqlite::Connection::open(options(directory.path()).path).unwrap();
    look.busy_timeout(Duration::from_secs(10)).unwrap();
    let moved = look.execute("UPDATE records SET message_hash = ?1", [rows::hash("r-2")]);
    assert_eq!(moved, Ok(1));
    let mut of_another = refund("r-2");
    of_another.key.client = "another".into();
    for claim in [refund("r-2"), of_another] {
        granted(&ledger, claim).await;
    }
}

/// A file that somebody wrote to: what is listed came once, though its record is not there.
#[tokio::test]
async fn a_listed_message_without_its_record_is_not_taken_for_a_new_one() {
    let directory = quick_directory();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let (clock, _hands) = Clock::manual(start);
    let (ledger, _) = open_in(directory.path(), &clock).await;
    let fence = granted(&ledger, refund("r-1")).await;
    ledger.settle(fence, success()).await.unwrap();
    ledger.close().await;
    let connection = rusqlite::Connection::open(options(directory.path()).path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    list_as_before(&connection, fence.record, &refund("r-1").key);
    let (ledger, _) = open_in(directory.path(), &clock).await;
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
        let fence = granted(&ledger, claim).await;
        ledger.settle(fence, success()).await.unwrap();
    }
    let connection = rusqlite::Connection::open(options(directory.path()).path).unwrap();
    let mut select = connection
        .prepare("SELECT message_hash, subject_hash FROM records ORDER BY id")
        .unwrap();
    let rows = select.query_map((), |row| Ok((row.get(0)?, row.get(1)?)));
    let rows: Vec<(i64, Option<i64>)> = rows.unwrap().map(Result::unwrap).collect();
    assert_eq!(rows, [(HASH_R1, None), (HASH_R2, Some(HASH_T7))]);
}
