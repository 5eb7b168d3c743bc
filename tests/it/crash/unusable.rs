//! Files that can't be a ledger, and owners that can't both have one: refused, with a sentence that says
//! what to do.

use std::fs;
use std::path::Path;

use rusqlite::Connection;

use super::bench::Bench;
use super::world::SQLITE;

/// A bench whose ledger has some refunds in it.
async fn with_ledger() -> Bench {
    let bench = Bench::new(SQLITE).await;
    let gate = bench.start().await;
    for number in 0..20 {
        assert_eq!(gate.refund(&format!("r-{number}")).await.status, 200);
    }
    gate.end().await;
    bench
}

/// The gate doesn't start, says this, and leaves the file as it was.
async fn is_refused(bench: &Bench, parts: &[&str]) {
    let path = bench.data("tikigate.db");
    let before = fs::read(&path).unwrap();
    let sent = bench.backend.requests().len();
    let (code, text) = bench.start_in_vain().await;
    assert_eq!(code, Some(1), "{text}");
    for part in parts.iter().chain(&["tikigate.db"]) {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_eq!(fs::read(&path).unwrap(), before, "the file is not touched");
    assert_eq!(bench.backend.requests().len(), sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_sqlite_file_is_refused() {
    let bench = Bench::new(SQLITE).await;
    for content in ["x", "not a database\n", &"SQLite format 2\0".repeat(500)] {
        fs::write(bench.data("tikigate.db"), content).unwrap();
        is_refused(&bench, &["no SQLite file", "another path", "restore"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_programs_database_is_refused() {
    let bench = Bench::new(SQLITE).await;
    change(
        &bench.data("tikigate.db"),
        "CREATE TABLE photos (name TEXT)",
    );
    is_refused(&bench, &["another program", "another path"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_of_a_newer_version_is_refused() {
    let bench = with_ledger().await;
    change(&bench.data("tikigate.db"), "PRAGMA user_version = 9999");
    is_refused(&bench, &["9999", "newer tikigate"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_ledger_is_refused() {
    let bench = with_ledger().await;
    let whole = fs::read(bench.data("tikigate.db")).unwrap();
    assert!(whole.len() > 3 * 4096, "{} bytes", whole.len());
    let lengths = [
        20,
        100,
        4096,
        whole.len() / 2,
        whole.len() - 4096,
        whole.len() - 1,
    ];
    for length in lengths {
        fs::write(bench.data("tikigate.db"), &whole[..length]).unwrap();
        let what = if length < 100 {
            "no SQLite file"
        } else {
            "damaged"
        };
        is_refused(&bench, &[what, "backup"]).await;
    }
    // Put back, it is the ledger that it was.
    fs::write(bench.data("tikigate.db"), &whole).unwrap();
    let gate = bench.start().await;
    assert_eq!(gate.refund("r-3").await.status, 200);
    assert_eq!(bench.sent("r-3"), 1);
}

/// Damage that shows only when a page is read: at the start, or later as a ledger that takes no calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_page_sends_nothing_twice() {
    let bench = with_ledger().await;
    let whole = fs::read(bench.data("tikigate.db")).unwrap();
    let mark = fs::read(bench.data("tikigate.mark")).unwrap();
    let before = bench.backend.requests().len();
    let mut noticed = 0;
    for page in 1..whole.len() / 4096 {
        let mut damaged = whole.clone();
        damaged[page * 4096..][..4096].fill(0xa5);
        fs::write(bench.data("tikigate.db"), damaged).unwrap();
        fs::write(bench.data("tikigate.mark"), &mark).unwrap();
        for beside in ["tikigate.db-wal", "tikigate.db-shm"] {
            let _ = fs::remove_file(bench.data(beside));
        }
        match bench.try_start().await {
            Err(fault) => {
                let damaged = ["damaged", "malformed"];
                let told = damaged.iter().any(|word| fault.text.contains(word));
                assert!(told, "page {page}: {fault}");
                noticed += 1;
            }
            Ok(gate) => {
                for number in 0..20 {
                    let (status, code) = gate.told(&format!("r-{number}")).await;
                    let known = (status, code.as_str());
                    let fine = [
                        (200, ""),
                        (503, "ledger_unavailable"),
                        (500, "outcome_unknown"),
                    ];
                    assert!(fine.contains(&known), "page {page}: {known:?}");
                    noticed += usize::from(status == 503);
                }
                gate.kill().await;
            }
        }
        let sent = bench.backend.requests().len();
        assert_eq!(sent, before, "page {page}: a refund was sent again");
    }
    assert!(noticed > 0, "no damage was noticed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_gate_on_one_ledger_is_refused_with_the_first_ones_process() {
    let bench = with_ledger().await;
    let first = bench.start().await;
    let (code, text) = bench.start_in_vain().await;
    assert_eq!(code, Some(1), "{text}");
    let process = format!("process {}", first.0.pid());
    for part in ["another process", &process, "stop it first"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_eq!(first.refund("r-3").await.status, 200);
    assert_eq!(first.refund("r-new").await.status, 200);
    first.kill().await;
    // Killed, it holds nothing any more.
    let second = bench.start().await;
    assert_eq!(second.refund("r-new").await.status, 200);
    assert_eq!((bench.sent("r-3"), bench.sent("r-new")), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_that_forgets_is_refused_for_refunds() {
    let memory = Path::new("/dev/shm");
    let is_memory = fs::read_to_string("/proc/mounts")
        .unwrap()
        .contains(" /dev/shm tmpfs ");
    if !is_memory {
        println!("NOT TESTED: /dev/shm is no tmpfs here");
        return;
    }
    let directory = tempfile::tempdir_in(memory).unwrap();
    let path = format!("path = \"{}/tikigate.db\"", directory.path().display());
    let bench = Bench::new(&path).await;
    let (code, text) = bench.start_in_vain().await;
    assert_eq!(code, Some(1), "{text}");
    for part in ["tmpfs", "allow_unsafe_filesystem"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let allowed = Bench::new(&format!("{path}\nallow_unsafe_filesystem = true")).await;
    let gate = allowed.start().await;
    gate.0
        .wait_for_line(|line| line.contains("\"warn\"") && line.contains("tmpfs"));
    assert_eq!(gate.refund("r-1").await.status, 200);
}

/// Runs a statement as another program would.
fn change(path: &Path, statement: &str) {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(statement).unwrap();
}
