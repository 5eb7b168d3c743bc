//! A ledger that forgot is worse than none: an old backup put back, an empty volume, a lost log, another
//! database. Each holds what it doesn't know, or refuses to start; none sends a refund a second time.

use std::fs;

use serde_json::json;

use super::bench::{Bench, Gate};
use super::person;
use super::world::SQLITE;

/// A refund that the backup knows, and one that came after it.
const BEFORE: &str = "r-before";
const AFTER: &str = "r-after";

/// A bench whose gate paid one refund, was backed up, paid another and ended. What the ledger's
/// directory held in between is in the directory `backup`.
async fn with_history(ledger: &str) -> Bench {
    let bench = Bench::new(ledger).await;
    let gate = bench.start().await;
    assert_eq!(gate.refund(BEFORE).await.status, 200);
    gate.end().await;
    copy_all(&bench, "data", "backup");
    let gate = bench.start().await;
    assert_eq!(gate.refund(AFTER).await.status, 200);
    gate.end().await;
    bench
}

/// Copies a directory's files, which are all that is there then.
fn copy_all(bench: &Bench, from: &str, to: &str) {
    let (from, to) = (
        bench.setup.directory().join(from),
        bench.setup.directory().join(to),
    );
    let _ = fs::remove_dir_all(&to);
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The quarantine's cause.
async fn quarantine(gate: &Gate) -> Option<String> {
    let target = "/api/ledger/quarantine";
    let told = person::ask(&gate.admin(), "GET", target, None)
        .await
        .unwrap();
    told["data"]["cause"].as_str().map(str::to_owned)
}

async fn lift(gate: &Gate) {
    let body = json!({ "reason": "compared with the backend's books" });
    let target = "/api/ledger/quarantine/lift";
    let told = person::ask(&gate.admin(), "POST", target, Some(&body))
        .await
        .unwrap();
    assert!(told["error"].is_null(), "{told}");
}

/// In quarantine for this cause, a gate holds what its ledger doesn't know, gives again what it does,
/// and takes new refunds once a person lifted it; what was asked for meanwhile waits for its own word.
async fn holds_what_it_forgot(bench: &Bench, cause: &str, knows_before: bool) {
    let gate = bench.start().await;
    let told = quarantine(&gate).await.expect("a quarantine");
    assert!(told.contains(cause), "{told}");
    let line = gate
        .0
        .wait_for_line(|line| line.contains("may have forgotten"));
    assert!(line.contains("lift-quarantine"), "{line}");

    let held = (500, "outcome_unknown".to_owned());
    if knows_before {
        assert_eq!(gate.refund(BEFORE).await.status, 200);
    } else {
        assert_eq!(gate.told(BEFORE).await, held);
    }
    assert_eq!(gate.told(AFTER).await, held);
    assert_eq!(gate.record(AFTER).await.unwrap()["held_for"], "ledger_gap");
    assert_eq!(gate.told("r-new-1").await, held);
    // It lasts, whatever becomes of the gate.
    gate.kill().await;
    let gate = bench.start().await;
    assert_eq!(gate.told("r-new-2").await, held);

    lift(&gate).await;
    assert_eq!(quarantine(&gate).await, None);
    assert_eq!(gate.refund("r-new-3").await.status, 200);
    for key in [AFTER, "r-new-1", "r-new-2"] {
        assert_eq!(gate.told(key).await, held, "{key}");
    }
    gate.resolve(AFTER, "applied").await;
    gate.resolve("r-new-1", "not_applied").await;
    assert_eq!(gate.refund(AFTER).await.status, 200);
    assert_eq!(gate.refund("r-new-1").await.status, 200);
    for key in [BEFORE, AFTER, "r-new-1", "r-new-3"] {
        assert_eq!(bench.sent(key), 1, "{key}");
    }
    assert_eq!(bench.sent("r-new-2"), 0);
    gate.end().await;
    let gate = bench.start().await;
    assert_eq!(quarantine(&gate).await, None, "it forgot nothing since");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_backup_put_back_holds_what_came_after_it() {
    let bench = with_history(SQLITE).await;
    let mark = fs::read(bench.data("tikigate.mark")).unwrap();
    copy_all(&bench, "backup", "data");
    fs::write(bench.data("tikigate.mark"), mark).unwrap();
    holds_what_it_forgot(&bench, "lost what came last", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_gone_is_not_a_new_one() {
    let bench = with_history(SQLITE).await;
    fs::remove_file(bench.data("tikigate.db")).unwrap();
    holds_what_it_forgot(&bench, "was gone", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_database_is_not_a_new_one() {
    let bench = with_history(SQLITE).await;
    fs::write(bench.data("tikigate.db"), "").unwrap();
    holds_what_it_forgot(&bench, "another ledger", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_ledgers_database_holds_what_it_does_not_know() {
    let bench = with_history(SQLITE).await;
    let other = with_history(SQLITE).await;
    fs::copy(other.data("tikigate.db"), bench.data("tikigate.db")).unwrap();
    // It knows the same keys; take some that it doesn't.
    let gate = bench.start().await;
    let told = quarantine(&gate).await.unwrap();
    assert!(told.contains("another ledger"), "{told}");
    assert_eq!(
        gate.told("r-new").await,
        (500, "outcome_unknown".to_owned())
    );
    assert_eq!(bench.sent("r-new"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_deleted_after_a_kill_is_missed() {
    let bench = Bench::new(SQLITE).await;
    let gate = bench.start().await;
    assert_eq!(gate.refund(BEFORE).await.status, 200);
    gate.end().await;
    let gate = bench.start().await;
    assert_eq!(gate.refund(AFTER).await.status, 200);
    gate.kill().await;
    let log = bench.data("tikigate.db-wal");
    assert!(
        fs::metadata(&log).unwrap().len() > 0,
        "the refund is in the log"
    );
    fs::remove_file(log).unwrap();
    holds_what_it_forgot(&bench, "lost what came last", true).await;
}

/// Nothing says any more whether the database is the newest one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watermark_that_is_gone_or_damaged_is_missed() {
    let bench = with_history(SQLITE).await;
    fs::remove_file(bench.data("tikigate.mark")).unwrap();
    let database = fs::read(bench.data("tikigate.db")).unwrap();
    // With the newest database beside it: AFTER is known.
    let gate = bench.start().await;
    assert!(
        quarantine(&gate)
            .await
            .unwrap()
            .contains("watermark is gone")
    );
    assert_eq!(gate.refund(AFTER).await.status, 200);
    assert_eq!(
        gate.told("r-new").await,
        (500, "outcome_unknown".to_owned())
    );
    gate.end().await;

    fs::write(bench.data("tikigate.db"), database).unwrap();
    fs::write(bench.data("tikigate.mark"), "damaged").unwrap();
    let gate = bench.start().await;
    assert!(quarantine(&gate).await.unwrap().contains("can't be read"));
    assert_eq!(
        gate.told("r-new").await,
        (500, "outcome_unknown".to_owned())
    );
    assert_eq!((bench.sent(AFTER), bench.sent("r-new")), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_volume_is_refused_where_a_ledger_must_be() {
    let must_be = format!("{SQLITE}\nrequire_existing = true");
    let bench = Bench::new(&must_be).await;
    let (code, text) = bench.start_in_vain().await;
    assert_eq!(code, Some(1), "{text}");
    for part in ["there is no ledger", "require_existing", "restore"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!bench.data("tikigate.db").exists(), "it made none");
}

/// What can't be told from the files alone, and is not promised: see "What is not promised" in
/// docs/ledger.md. A watermark on another volume is what helps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_and_its_watermark_rolled_back_together_are_not_told() {
    let bench = with_history(SQLITE).await;
    copy_all(&bench, "backup", "data");
    let gate = bench.start().await;
    assert_eq!(quarantine(&gate).await, None);
    assert_eq!(gate.refund(AFTER).await.status, 200);
    assert_eq!(
        bench.sent(AFTER),
        2,
        "this is the limit that the documents name"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watermark_elsewhere_sees_its_volume_rolled_back() {
    let elsewhere = format!("{SQLITE}\nwatermark = \"elsewhere.mark\"");
    let bench = with_history(&elsewhere).await;
    copy_all(&bench, "backup", "data");
    holds_what_it_forgot(&bench, "lost what came last", true).await;
}
