//! A file that forgot, that isn't ours, or that can't be written for a while.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::*;

fn options(directory: &Path) -> Options {
    Options {
        path: directory.join("ledger.db"),
        watermark: directory.join("ledger.mark"),
        require_existing: false,
        safe_filesystem: false,
        new_id: "0123456789abcdef".to_owned(),
    }
}

/// A job that adds a line to the journal, and says whether it was committed.
struct Note {
    text: &'static str,
    tell: Option<oneshot::Sender<Result<(), StoreError>>>,
}

impl Job for Note {
    fn run(&mut self, batch: &mut Batch<'_>) -> rusqlite::Result<()> {
        let sql = "INSERT INTO journal (at, what) VALUES (0, ?1)";
        batch.connection.execute(sql, [self.text])?;
        batch.wrote();
        Ok(())
    }

    fn committed(mut self: Box<Self>) {
        let _ = self.tell.take().unwrap().send(Ok(()));
    }

    fn failed(mut self: Box<Self>, error: &StoreError) -> Option<Box<dyn Job>> {
        let _ = self.tell.take().unwrap().send(Err(error.clone()));
        None
    }
}

async fn note(database: &Database, text: &'static str) -> Result<(), StoreError> {
    let (tell, told) = oneshot::channel();
    database.submit(Box::new(Note {
        text,
        tell: Some(tell),
    }));
    told.await.unwrap()
}

async fn noted(database: &Database) -> Vec<String> {
    let look = database.look(|connection| {
        let mut select = connection.prepare("SELECT what FROM journal ORDER BY rowid")?;
        let lines = select.query_map((), |row| row.get(0))?;
        lines.collect()
    });
    look.await.unwrap()
}

fn open(directory: &Path) -> (Database, Opened) {
    Database::open(options(directory)).unwrap()
}

fn refused(options: Options) -> String {
    match Database::open(options) {
        Ok(_) => panic!("it should not open"),
        Err(error) => error.to_string(),
    }
}

/// A ledger that was used and closed, in a directory of its own.
async fn used(notes: usize) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (database, _) = open(directory.path());
    for _ in 0..notes {
        note(&database, "a").await.unwrap();
    }
    database.close().await;
    directory
}

fn copy(from: &Path, to: &Path, name: &str) {
    fs::copy(from.join(name), to.join(name)).unwrap();
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_second_start() {
    let directory = tempfile::tempdir().unwrap();
    let (database, opened) = open(directory.path());
    assert_eq!((opened.created, &opened.gap), (true, &None));
    note(&database, "first").await.unwrap();
    note(&database, "second").await.unwrap();
    assert_eq!(noted(&database).await, ["first", "second"]);
    database.close().await;
    assert!(note(&database, "third").await.is_err());
    // Closed, the file is whole by itself.
    assert!(!directory.path().join("ledger.db-wal").exists());
    let (database, opened) = open(directory.path());
    assert_eq!(opened, Opened::default());
    assert_eq!(noted(&database).await, ["first", "second"]);
}

#[tokio::test]
async fn the_file_is_its_owners_alone() {
    let directory = used(1).await;
    for name in ["ledger.db", "ledger.mark", "ledger.db.lock"] {
        let mode = fs::metadata(directory.path().join(name))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_second_owner_is_refused_by_name_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (database, _) = open(directory.path());
    let told = refused(options(directory.path()));
    let name = format!("process {}", std::process::id());
    assert!(
        told.contains("another process") && told.contains(&name),
        "{told}"
    );
    database.close().await;
    open(directory.path());
}

#[tokio::test]
async fn a_missing_file_is_refused_where_one_is_required() {
    let directory = tempfile::tempdir().unwrap();
    let wanted = Options {
        require_existing: true,
        ..options(directory.path())
    };
    let told = refused(wanted.clone());
    assert!(told.contains("require_existing"), "{told}");
    assert!(!directory.path().join("ledger.db").exists());
    let (database, _) = open(directory.path());
    database.close().await;
    Database::open(wanted).unwrap();
}

#[tokio::test]
async fn a_rolled_back_file_is_in_quarantine() {
    let directory = used(3).await;
    let backup = tempfile::tempdir().unwrap();
    copy(directory.path(), backup.path(), "ledger.db");
    let (database, _) = open(directory.path());
    note(&database, "later").await.unwrap();
    database.close().await;
    copy(backup.path(), directory.path(), "ledger.db");

    let (database, opened) = open(directory.path());
    let cause = opened.gap.unwrap();
    assert!(cause.contains("lost what came last"), "{cause}");
    let look = database.look(|connection| Ok(Meta::load(connection)?.unwrap()));
    let meta = look.await.unwrap();
    assert_eq!(meta.generation, 2);
    assert_eq!(meta.quarantine.as_deref(), Some(&*cause));
    // The one batch that was lost may have numbered so many records.
    assert_eq!(meta.next_record, 1 + 256);
    database.close().await;
    // It is found once; the quarantine stays until somebody lifts it.
    let (database, opened) = open(directory.path());
    assert_eq!(opened.gap, None);
    let look = database.look(|connection| Ok(Meta::load(connection)?.unwrap()));
    assert_eq!(look.await.unwrap().quarantine.as_deref(), Some(&*cause));
}

#[tokio::test]
async fn a_lost_log_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let (database, _) = open(directory.path());
    note(&database, "in the log alone").await.unwrap();
    // As after a crash, with the log left behind.
    let crashed = tempfile::tempdir().unwrap();
    for name in ["ledger.db", "ledger.mark"] {
        copy(directory.path(), crashed.path(), name);
    }
    let with_log = tempfile::tempdir().unwrap();
    for name in ["ledger.db", "ledger.db-wal", "ledger.mark"] {
        copy(directory.path(), with_log.path(), name);
    }
    database.close().await;
    let (_, opened) = open(crashed.path());
    assert!(opened.gap.unwrap().contains("lost what came last"));
    let (database, opened) = open(with_log.path());
    assert_eq!(opened.gap, None);
    assert_eq!(noted(&database).await, ["in the log alone"]);
}

#[tokio::test]
async fn a_lost_file_another_one_and_a_lost_watermark_are_noticed() {
    let cause_after = |change: fn(&Path, &Path)| async move {
        let directory = used(2).await;
        let other = tempfile::tempdir().unwrap();
        let (database, _) = Database::open(Options {
            new_id: "another".to_owned(),
            ..options(other.path())
        })
        .unwrap();
        note(&database, "a").await.unwrap();
        database.close().await;
        change(directory.path(), other.path());
        let (_, opened) = open(directory.path());
        opened.gap.unwrap_or_default()
    };
    let cause = cause_after(|mine, _| fs::remove_file(mine.join("ledger.db")).unwrap()).await;
    assert!(cause.contains("the ledger was gone"), "{cause}");
    let cause = cause_after(|mine, other| copy(other, mine, "ledger.db")).await;
    assert!(cause.contains("another ledger was put in place"), "{cause}");
    let cause = cause_after(|mine, _| fs::remove_file(mine.join("ledger.mark")).unwrap()).await;
    assert!(cause.contains("watermark is gone"), "{cause}");
    let cause = cause_after(|mine, _| fs::write(mine.join("ledger.mark"), "?").unwrap()).await;
    assert!(cause.contains("watermark can't be read"), "{cause}");
    // A file that nothing was ever committed to has nothing to forget.
    let fresh = used(0).await;
    fs::remove_file(fresh.path().join("ledger.mark")).unwrap();
    assert_eq!(open(fresh.path()).1.gap, None);
}

#[tokio::test]
async fn what_is_no_ledger_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.db");
    let unchanged = |content: &[u8]| assert_eq!(fs::read(&path).unwrap(), content);

    fs::write(&path, "a text that somebody needs, longer than a header").unwrap();
    let before = fs::read(&path).unwrap();
    let told = refused(options(directory.path()));
    assert!(told.contains("no SQLite file"), "{told}");
    unchanged(&before);

    fs::remove_file(&path).unwrap();
    let foreign = Connection::open(&path).unwrap();
    foreign
        .execute_batch("CREATE TABLE books (title TEXT)")
        .unwrap();
    drop(foreign);
    let before = fs::read(&path).unwrap();
    let told = refused(options(directory.path()));
    assert!(told.contains("another program"), "{told}");
    unchanged(&before);
}

/// A version that is put back after a newer one, which added something, goes on.
#[tokio::test]
async fn what_a_newer_program_added_is_nothing_to_an_older_one() {
    let directory = used(2).await;
    let path = directory.path().join("ledger.db");
    let connection = Connection::open(&path).unwrap();
    let newer = format!(
        "ALTER TABLE records ADD COLUMN of_a_later_version TEXT; UPDATE meta SET revision = {}",
        schema::REVISION + 1
    );
    connection.execute_batch(&newer).unwrap();
    drop(connection);
    let (database, _) = open(directory.path());
    note(&database, "b").await.unwrap();
    assert_eq!(noted(&database).await, ["a", "a", "b"]);
    database.close().await;
    let snapshot = Snapshot::open(&path).unwrap();
    assert_eq!(snapshot.schema().revision, schema::REVISION + 1);
    let checked = check_file(&snapshot).unwrap();
    assert!(
        checked.iter().all(|checked| !checked.is_faulty()),
        "{checked:?}"
    );
}

/// One that is older, as each revision left it.
#[tokio::test]
async fn an_older_file_is_brought_up_to_date_with_what_is_in_it() {
    for revision in 1..schema::REVISION {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.db");
        let older = schema::in_memory(revision).unwrap();
        older
            .execute_batch(&format!(
                "INSERT INTO meta (only, ledger, generation, sequence, next_record, claimed, released, done, unknown)
                 VALUES (1, 'older', 1, 0, 1, 0, 0, 0, 0);
                 INSERT INTO journal (at, what) VALUES (0, 'kept');
                 PRAGMA application_id = {}; PRAGMA user_version = 1; VACUUM INTO '{}'",
                schema::APPLICATION_ID,
                path.display()
            ))
            .unwrap();
        // It can be read as it is, as backups are.
        let snapshot = Snapshot::open(&path).unwrap();
        assert_eq!(snapshot.schema().revision, revision);
        let checked = check_file(&snapshot).unwrap();
        assert!(
            checked.iter().all(|checked| !checked.is_faulty()),
            "{checked:?}"
        );
        drop(snapshot);
        let (database, _) = open(directory.path());
        assert_eq!(noted(&database).await, ["kept"]);
        database.close().await;
        let snapshot = Snapshot::open(&path).unwrap();
        assert_eq!(snapshot.schema().revision, schema::REVISION);
        assert_eq!(&*snapshot.meta().unwrap().ledger, "older");
        let checked = check_file(&snapshot).unwrap();
        assert!(
            checked.iter().all(|checked| !checked.is_faulty()),
            "{checked:?}"
        );
    }
}

#[tokio::test]
async fn a_newer_or_shortened_file_is_refused() {
    let directory = used(2).await;
    let path = directory.path().join("ledger.db");
    let connection = Connection::open(&path).unwrap();
    let newer = schema::VERSION + 1;
    connection
        .pragma_update(None, "user_version", newer)
        .unwrap();
    drop(connection);
    let told = refused(options(directory.path()));
    assert!(told.contains("use a newer tikigate"), "{told}");

    let directory = used(2).await;
    let path: PathBuf = directory.path().join("ledger.db");
    let length = fs::metadata(&path).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(length / 2).unwrap();
    let told = refused(options(directory.path()));
    assert!(
        told.contains("damaged") && told.contains("backup"),
        "{told}"
    );
}

#[tokio::test]
async fn memory_is_no_place_for_refunds() {
    if file::unsafe_filesystem(Path::new("/dev/shm"))
        .ok()
        .flatten()
        .is_none()
    {
        return; // this machine has none to try it on
    }
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let safe = Options {
        safe_filesystem: true,
        ..options(directory.path())
    };
    let told = refused(safe);
    assert!(
        told.contains("tmpfs") && told.contains("allow_unsafe_filesystem"),
        "{told}"
    );
    let (_, opened) = open(directory.path());
    assert!(opened.warnings[0].contains("tmpfs"), "{opened:?}");
}

#[tokio::test]
async fn a_store_that_could_not_write_comes_back_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let (database, _) = open(directory.path());
    note(&database, "before").await.unwrap();
    let intruder = Connection::open(directory.path().join("ledger.db")).unwrap();
    intruder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = note(&database, "meanwhile").await.unwrap_err();
    assert!(error.0.contains("locked"), "{error}");
    let trouble = database.trouble().unwrap();
    assert!(trouble.contains("can't be written"), "{trouble}");
    intruder.execute_batch("ROLLBACK").unwrap();
    drop(intruder);
    // It tries again by itself, within moments; until then everything is refused.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while note(&database, "after").await.is_err() {
        assert!(std::time::Instant::now() < deadline, "it never came back");
        tokio::task::yield_now().await;
    }
    assert_eq!(database.trouble(), None);
    assert_eq!(noted(&database).await, ["before", "after"]);
}

/// A job that panics, as a bug would.
struct Panics;

impl Job for Panics {
    fn run(&mut self, _: &mut Batch<'_>) -> rusqlite::Result<()> {
        panic!("a panic in a job, as ordered");
    }
    fn committed(self: Box<Self>) {}
    fn failed(self: Box<Self>, _: &StoreError) -> Option<Box<dyn Job>> {
        None
    }
}

#[tokio::test]
async fn a_panic_in_a_job_ends_its_batch_and_not_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let (database, _) = open(directory.path());
    database.submit(Box::new(Panics));
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while note(&database, "after").await.is_err() {
        assert!(std::time::Instant::now() < deadline, "it never came back");
        tokio::task::yield_now().await;
    }
    assert_eq!(noted(&database).await, ["after"]);
}

#[tokio::test]
async fn a_look_gives_way_when_the_gate_has_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (database, _) = open(directory.path());
    note(&database, "a").await.unwrap();
    let snapshot = Snapshot::open(&directory.path().join("ledger.db")).unwrap();
    assert!(!snapshot.must_give_way());
    let count = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT ?1) \
                 SELECT count(*) FROM n";
    let counted = |limit: i64| -> Result<i64, OpenError> {
        let counted = snapshot
            .connection()
            .query_row(count, [limit], |row| row.get(0));
        counted.map_err(|error| snapshot.understood(error))
    };
    assert_eq!(counted(100_000).unwrap(), 100_000);
    database.close().await;
    assert!(snapshot.must_give_way());
    // Without end, but for that.
    let told = counted(i64::MAX).unwrap_err();
    assert!(matches!(told, OpenError::GaveWay(_)), "{told}");
}

#[tokio::test]
async fn a_file_that_no_gate_uses_is_looked_at_to_the_end() {
    let directory = used(1).await;
    let snapshot = Snapshot::open(&directory.path().join("ledger.db")).unwrap();
    let (database, _) = open(directory.path());
    database.close().await;
    assert!(!snapshot.must_give_way());
    assert_eq!(snapshot.meta().unwrap().sequence, 1);
}
