//! A disk that fails or fills up while the gate runs: refused with `ledger_unavailable`, nothing forwarded
//! on a guess, and back by itself.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::bench::{Bench, Gate};
use super::world::SQLITE;
use crate::support::backend::Answer;
use crate::support::disk::Number;
use crate::support::in_time;

/// Syncs that a refund takes: the claim's log and watermark, the answer's log and watermark. The last
/// rounds fail a sync that none waits for.
const SYNCS: u32 = 6;

/// Re-sends until the refund has its end, as Tiki does; a person says what the backend knows.
async fn to_its_end(bench: &Bench, gate: &Gate, key: &str) {
    in_time(&format!("the end of {key}"), async {
        loop {
            match gate.told(key).await {
                (200, _) => return,
                (500, code) if code == "outcome_unknown" => {
                    let applied = bench.sent(key) > 0;
                    let verdict = if applied { "applied" } else { "not_applied" };
                    gate.resolve(key, verdict).await;
                }
                (503, code) if code == "ledger_unavailable" => {}
                other => panic!("{key}: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Whichever sync of a refund fails, and whether the disk keeps or loses what it was to sync.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_forwards_nothing_on_a_guess_and_passes() {
    let bench = Bench::with(SQLITE, true, |_| Answer::success().into()).await;
    let disk = bench.disk.as_ref().unwrap();
    let mut gate = bench.start().await;
    let mut keys = Vec::new();
    for lose_dirty in [0, 1] {
        for nth in 0..SYNCS {
            let key = format!("r-{lose_dirty}-{nth}");
            disk.tell(Number::LoseDirty, lose_dirty);
            disk.tell(Number::PassSyncs, nth);
            disk.tell(Number::FailSyncs, 1);
            let (failed, told) = (disk.told(Number::Failed), gate.told(&key).await);
            if nth < 2 {
                // The claim was not durable: nothing may have been sent.
                assert_eq!(told, (503, "ledger_unavailable".to_owned()), "{key}");
                assert_eq!(bench.sent(&key), 0, "{key}");
            } else {
                let fine = told.0 == 200 || told == (503, "ledger_unavailable".to_owned());
                assert!(fine, "{key}: {told:?}");
                assert_eq!(bench.sent(&key), 1, "{key}");
            }
            if nth < 4 {
                assert_eq!(
                    disk.told(Number::Failed),
                    failed + 1,
                    "{key}: no sync failed"
                );
            }
            to_its_end(&bench, &gate, &key).await;
            disk.tell(Number::FailSyncs, 0);
            gate.wait_for_readiness(200).await;
            keys.push(key);
        }
        // What the page cache pretends is gone now; what was answered must not be.
        gate.kill().await;
        disk.lose_power(None);
        gate = bench.start().await;
        for key in &keys {
            assert_eq!(gate.refund(key).await.status, 200, "{key}");
            assert_eq!(bench.sent(key), 1, "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_syncs_fail_the_gate_is_unready_and_comes_back_by_itself() {
    let bench = Bench::with(SQLITE, true, |_| Answer::success().into()).await;
    let disk = bench.disk.as_ref().unwrap();
    let gate = bench.start().await;
    assert_eq!(gate.refund("r-before").await.status, 200);
    disk.tell(Number::LoseDirty, 1);
    disk.tell(Number::FailSyncs, u32::MAX);
    for _ in 0..3 {
        assert_eq!(
            gate.told("r-new").await,
            (503, "ledger_unavailable".to_owned())
        );
    }
    let body = gate.wait_for_readiness(503).await;
    assert!(body.contains("ledger"), "{body}");
    assert_eq!(bench.sent("r-new"), 0);
    disk.tell(Number::FailSyncs, 0);
    gate.wait_for_readiness(200).await;
    to_its_end(&bench, &gate, "r-new").await;
    assert_eq!(gate.refund("r-before").await.status, 200);
    assert_eq!((bench.sent("r-before"), bench.sent("r-new")), (1, 1));
}

/// How long some hundred refunds take at most, after which the log is brought into the file.
const LOG_FILLS_WITHIN: Duration = Duration::from_secs(120);

/// Where the log begins anew, these bytes of it change.
fn salt_of_the_log(bench: &Bench) -> Option<[u8; 8]> {
    let log = File::open(bench.data("tikigate.db-wal")).ok()?;
    let mut salt = [0; 8];
    log.read_exact_at(&mut salt, 16).ok()?;
    Some(salt)
}

/// Waits for that; it takes some hundred refunds.
async fn log_begun_anew(bench: &Bench, after: Option<[u8; 8]>) -> Option<[u8; 8]> {
    let begun = async {
        loop {
            let salt = salt_of_the_log(bench);
            if salt.is_some() && salt != after {
                return salt;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let begun = tokio::time::timeout(LOG_FILLS_WITHIN, begun).await;
    begun.expect("the log begins anew")
}

/// Refunds, many at a time, until they are over; their keys.
struct Traffic {
    lanes: JoinSet<Vec<String>>,
    over: Arc<AtomicBool>,
}

const LANES: usize = 16;

impl Traffic {
    fn start(bench: &Arc<Bench>, gate: &Arc<Gate>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut lanes = JoinSet::new();
        for lane in 0..LANES {
            let (bench, gate, over) = (Arc::clone(bench), Arc::clone(gate), Arc::clone(&over));
            lanes.spawn(async move {
                let mut keys = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let key = format!("r-{lane}-{}", keys.len());
                    to_its_end(&bench, &gate, &key).await;
                    keys.push(key);
                }
                keys
            });
        }
        Self { lanes, over }
    }

    async fn end(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        let keys = self.lanes.join_all().await.concat();
        assert!(keys.len() > LANES, "{}", keys.len());
        keys
    }
}

/// The log is brought into the file in parts, and a sync that fails later may lose the earlier ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_failed_to_sync_is_written_again_from_the_log() {
    let bench = Arc::new(Bench::with(SQLITE, true, |_| Answer::success().into()).await);
    let disk = bench.disk.as_ref().unwrap();
    let gate = Arc::new(bench.start().await);
    disk.tell(Number::FailOn, 1);
    disk.tell(Number::LoseDirty, 1);
    let traffic = Traffic::start(&bench, &gate);
    // The first failure is of what the writer brings in, the second of the opening after it.
    let mut failed = 0;
    for failures in [1, 2] {
        let salt = log_begun_anew(&bench, None).await;
        disk.tell(Number::FailSyncs, failures);
        log_begun_anew(&bench, salt).await;
        failed += failures;
        assert_eq!(disk.told(Number::Failed), failed, "the file's syncs failed");
    }
    let keys = traffic.end().await;
    all_are_known_after_a_power_loss(&bench, gate, keys).await;
}

/// Each is answered again, and was sent once.
async fn all_are_known_after_a_power_loss(bench: &Bench, gate: Arc<Gate>, keys: Vec<String>) {
    Arc::into_inner(gate).unwrap().kill().await;
    bench.disk.as_ref().unwrap().lose_power(None);
    let gate = bench.start().await;
    for key in &keys {
        assert_eq!(gate.told(key).await.0, 200, "{key}");
    }
    assert_eq!(bench.backend.requests().len(), keys.len());
}

/// Commits from the start of a gate to the first after its log failed to sync, with some to spare.
const COMMITS: u32 = 8;

/// After a failed sync the log on the disk is not the one that was brought into the file. If the power goes
/// away before the next commit writes another, the old one must not come back over the newer file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_failed_to_sync_does_not_come_back_over_the_file() {
    for nth in 1..=COMMITS {
        let bench = Arc::new(Bench::with(SQLITE, true, |_| Answer::success().into()).await);
        let disk = bench.disk.as_ref().unwrap();
        bench.start().await.kill().await;
        let mut command = bench.setup.command("serve");
        command.env(
            "TIKIGATE_FAILPOINT",
            format!("sqlite_before_commit=kill@{nth}"),
        );
        if let Ok(gate) = bench.try_start_by(command).await {
            let gate = Arc::new(gate);
            // Each may find the gate gone.
            let told = |key: &'static str| {
                let gate = Arc::clone(&gate);
                tokio::spawn(async move { gate.told(key).await })
            };
            let _ = told("r-1").await;
            disk.tell(Number::LoseDirty, 1);
            disk.tell(Number::FailSyncs, 1);
            let _ = told("r-2").await;
            // Until the file is opened anew, and what was claimed and not told is given back.
            let (there, again) = (Arc::clone(&bench), Arc::clone(&gate));
            let tried = tokio::spawn(async move { to_its_end(&there, &again, "r-3").await });
            let _ = tried.await;
            disk.tell(Number::FailSyncs, 0);
            Arc::into_inner(gate).unwrap().kill().await;
        }
        disk.lose_power(None);
        let gate = bench.start().await;
        let (status, body) = gate.readiness().await;
        assert!(
            status == 200 && !body.contains("quarantine"),
            "{nth}: {body}"
        );
        for key in ["r-1", "r-2", "r-3"] {
            to_its_end(&bench, &gate, key).await;
            assert!(bench.sent(key) <= 1, "{nth}: {key}");
        }
        gate.end().await;
    }
}

/// Another program keeps SQLite's notes of how much of the log was brought in, which aren't true any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_sync_the_file_is_not_used_while_another_program_has_it() {
    let bench = Arc::new(Bench::with(SQLITE, true, |_| Answer::success().into()).await);
    let disk = bench.disk.as_ref().unwrap();
    let gate = Arc::new(bench.start().await);
    let program = rusqlite::Connection::open(bench.data("tikigate.db")).unwrap();
    let look = "SELECT sequence FROM meta";
    program
        .query_row(look, (), |row| row.get::<_, i64>(0))
        .unwrap();
    disk.tell(Number::FailOn, 1);
    disk.tell(Number::LoseDirty, 1);
    let traffic = Traffic::start(&bench, &gate);
    // Where nothing was brought in before the sync that fails, nothing is lost, and the file is used at once.
    let refused = async {
        loop {
            let (status, body) = gate.readiness().await;
            if body.contains("nobody else has the file open") {
                return;
            }
            if status == 200 {
                disk.tell(Number::FailSyncs, 1);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let refused = tokio::time::timeout(LOG_FILLS_WITHIN, refused).await;
    refused.expect("the file is refused");
    assert_eq!(gate.readiness().await.0, 503);
    disk.tell(Number::FailSyncs, 0);
    // The last to close it, with those notes.
    drop(program);
    gate.wait_for_readiness(200).await;
    let keys = traffic.end().await;
    all_are_known_after_a_power_loss(&bench, gate, keys).await;
}

/// A small file system in memory on a directory, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// None where this process may not mount.
    fn on(directory: &Path, size: &str) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        let mounted = mount.arg(directory).output().ok()?.status.success();
        mounted.then(|| Self(directory.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a gate that a failed test left may still be in it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_and_loses_nothing_and_passes() {
    let bench = Bench::new(&format!("{SQLITE}\nallow_unsafe_filesystem = true")).await;
    let data = bench.data("");
    let Some(mounted) = Mounted::on(&data, "3m") else {
        println!(
            "NOT TESTED: a full disk, since this user can't mount a small one: run the tests as root"
        );
        return;
    };
    let gate = bench.start().await;
    assert_eq!(gate.refund("r-before").await.status, 200);
    let filling = bench.data("filling");
    fill(&filling);

    // What the log has room for may still be taken.
    let mut taken = vec!["r-before".to_owned()];
    let refused = loop {
        let key = format!("r-{}", taken.len());
        match gate.told(&key).await {
            (200, _) => taken.push(key),
            (503, code) if code == "ledger_unavailable" => break key,
            other => panic!("{key}: {other:?}"),
        }
        assert!(taken.len() < 2000, "the disk is never full");
    };
    let body = gate.wait_for_readiness(503).await;
    assert!(body.contains("ledger"), "{body}");
    for _ in 0..3 {
        assert_eq!(
            gate.told(&refused).await,
            (503, "ledger_unavailable".to_owned())
        );
    }
    let sent = bench.sent(&refused);
    assert!(sent <= 1, "{sent}");

    fs::remove_file(&filling).unwrap();
    gate.wait_for_readiness(200).await;
    to_its_end(&bench, &gate, &refused).await;
    taken.push(refused);
    assert_eq!(gate.refund("r-after").await.status, 200);
    gate.end().await;

    let gate = bench.start().await;
    for key in &taken {
        assert_eq!(gate.refund(key).await.status, 200, "{key}");
        assert_eq!(bench.sent(key), 1, "{key}");
    }
    gate.end().await;
    drop(mounted);
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [64 << 10, 4 << 10, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}
