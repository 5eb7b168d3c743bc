//! The order in which a refund's steps reach disk and network, as the system saw it: `kill -9` says
//! nothing about it, since the page cache survives.

use std::process::Command;

use super::bench::Bench;
use super::trace::{self, Call};
use super::world::SQLITE;
use crate::support::backend::Answer;

/// Refunds that are looked at.
const REFUNDS: usize = 8;

/// What strace is to show.
const SHOWN: &str = "trace=write,pwrite64,writev,pwritev,sendto,sendmsg,fsync,fdatasync";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_and_answers_are_on_disk_before_anybody_hears_of_them() {
    let bench = Bench::with(SQLITE, false, |seen| {
        // An answer of its own for each, to be found again in what is written.
        let body = format!(
            r#"{{"data":{{"status":"success","receipt":"{}"}}}}"#,
            receipt(seen.number)
        );
        Answer::json(200, &body).into()
    })
    .await;
    let trace = bench.setup.directory().join("trace");
    let serve = bench.setup.command("serve");
    let mut strace = Command::new("strace");
    // The tracer as a grandchild: signals to the child reach the gate itself.
    strace.args([
        "-D",
        "-f",
        "-yy",
        "-s",
        "9000",
        "-e",
        SHOWN,
        "-e",
        "signal=none",
        "-o",
    ]);
    strace
        .arg(&trace)
        .arg(serve.get_program())
        .args(serve.get_args());
    strace
        .env_clear()
        .envs(std::env::vars().filter(|(name, _)| !name.starts_with("TIKIGATE")));
    let gate = bench.start_by(strace).await;
    for number in 0..REFUNDS {
        let answer = gate.refund(&key(number)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let addresses = (
        bench.backend.url().replace("http://", ""),
        gate.0.address().to_string(),
    );
    gate.end().await;
    let calls = trace::read(&finished(&trace).await);
    for number in 0..REFUNDS {
        let faults = faults(&calls, number, &addresses);
        assert!(faults.is_empty(), "refund {number}: {}", faults.join("; "));
    }
}

/// The tracer may still be writing when the gate has ended.
async fn finished(path: &std::path::Path) -> String {
    let is_finished = |text: &str| {
        text.lines()
            .last()
            .is_some_and(|line| line.contains("+++ exited with 0"))
    };
    crate::support::in_time("the end of the trace", async {
        loop {
            let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
            if is_finished(&text) {
                return text;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
}

fn key(number: usize) -> String {
    format!("order-of-steps-{number}-of-{REFUNDS}")
}

fn receipt(number: usize) -> String {
    format!("receipt-{number}-of-{REFUNDS}")
}

/// What is out of order in a refund's steps. The refunds came one after the other, so that whatever
/// was written meanwhile is this one's.
fn faults(calls: &[Call], number: usize, (backend, gate): &(String, String)) -> Vec<String> {
    let to_backend = |call: &Call| call.on().ends_with(&format!("->{backend}]"));
    let to_tiki = |call: &Call| call.on().starts_with(&format!("TCP:[{gate}->"));
    let (key, receipt) = (key(number), receipt(number));
    let sent = first(calls, 0, |call| {
        call.writes() && to_backend(call) && call.arguments.contains(&key)
    });
    let Some(sent) = sent else {
        return vec!["it was never sent".to_owned()];
    };
    let replied = first(calls, sent.ended, |call| {
        call.writes() && to_tiki(call) && call.arguments.contains(&receipt)
    });
    let Some(replied) = replied else {
        return vec!["it was never answered".to_owned()];
    };
    let mut faults = Vec::new();
    faults.extend(durable(calls, "the claim", &key, 0, sent));
    faults.extend(durable(calls, "the answer", &receipt, sent.ended, replied));
    faults
}

/// Whether what was written to the log after `from`, with this text in it, was on disk before `next`
/// began, and after it the watermark.
fn durable(calls: &[Call], what: &str, text: &str, from: usize, next: &Call) -> Option<String> {
    let is_log = |call: &Call| call.on().ends_with("tikigate.db-wal");
    let is_mark = |call: &Call| call.on().ends_with("tikigate.mark");
    let in_time = |call: &Call| call.ended < next.began;
    let written = first(calls, from, |call| {
        call.writes() && is_log(call) && call.arguments.contains(text)
    });
    let Some(written) = written.filter(|call| in_time(call)) else {
        return Some(format!("{what} was not written before"));
    };
    let all_written = calls
        .iter()
        .filter(|call| call.writes() && is_log(call) && call.began < next.began);
    let last = all_written
        .map(|call| call.ended)
        .max()
        .unwrap_or(written.ended);
    let synced = first(calls, last, |call| {
        call.syncs() && is_log(call) && call.worked()
    });
    let Some(synced) = synced.filter(|call| in_time(call)) else {
        return Some(format!("{what} was not on disk before"));
    };
    let marked = first(calls, synced.ended, |call| call.writes() && is_mark(call));
    let Some(marked) = marked.filter(|call| in_time(call)) else {
        return Some(format!("no watermark was written after {what}"));
    };
    let mark_synced = first(calls, marked.ended, |call| {
        call.syncs() && is_mark(call) && call.worked()
    });
    if mark_synced.is_none_or(|call| !in_time(call)) {
        return Some(format!("the watermark after {what} was not on disk before"));
    }
    None
}

/// The first call that began after this place and is as wanted.
fn first(calls: &[Call], after: usize, wanted: impl Fn(&Call) -> bool) -> Option<&Call> {
    calls
        .iter()
        .find(|call| (call.began > after || after == 0) && wanted(call))
}

mod checker {
    use super::*;

    /// A refund's steps in good order, one a line.
    const GOOD: [&str; 10] = [
        r#"1 write(5</d/tikigate.db-wal>, "order-of-steps-0-of-8", 21) = 21"#,
        "1 fdatasync(5</d/tikigate.db-wal>) = 0",
        r#"1 pwrite64(6</d/tikigate.mark>, "1", 1, 0) = 1"#,
        "1 fdatasync(6</d/tikigate.mark>) = 0",
        r#"2 sendto(7<TCP:[127.0.0.1:5->127.0.0.1:9]>, "order-of-steps-0-of-8", 21, 0, NULL, 0) = 21"#,
        r#"1 write(5</d/tikigate.db-wal>, "receipt-0-of-8", 14) = 14"#,
        "1 fsync(5</d/tikigate.db-wal>) = 0",
        r#"1 pwrite64(6</d/tikigate.mark>, "2", 1, 0) = 1"#,
        "1 fdatasync(6</d/tikigate.mark>) = 0",
        r#"2 sendto(8<TCP:[127.0.0.1:8->127.0.0.1:6]>, "receipt-0-of-8", 14, 0, NULL, 0) = 14"#,
    ];

    fn faults_in(lines: &[&str]) -> Vec<String> {
        let addresses = ("127.0.0.1:9".to_owned(), "127.0.0.1:8".to_owned());
        faults(&trace::read(&lines.join("\n")), 0, &addresses)
    }

    #[test]
    fn steps_in_order_are_no_fault() {
        assert!(faults_in(&GOOD).is_empty(), "{:?}", faults_in(&GOOD));
    }

    #[test]
    fn each_step_that_is_late_or_missing_is_seen() {
        for step in 0..GOOD.len() {
            let mut lines = GOOD.to_vec();
            lines.remove(step);
            assert!(!faults_in(&lines).is_empty(), "without step {step}");
        }
        for (step, next) in [
            (0, 4),
            (1, 4),
            (2, 4),
            (3, 4),
            (5, 9),
            (6, 9),
            (7, 9),
            (8, 9),
        ] {
            let mut lines = GOOD.to_vec();
            let late = lines.remove(step);
            lines.insert(next, late);
            assert!(!faults_in(&lines).is_empty(), "step {step} too late");
        }
        let mut lines = GOOD.to_vec();
        lines[1] = "1 fdatasync(5</d/tikigate.db-wal> <unfinished ...>";
        lines.insert(5, "1 <... fdatasync resumed>) = 0");
        assert!(
            !faults_in(&lines).is_empty(),
            "a sync that had not returned"
        );
        let mut lines = GOOD.to_vec();
        lines[6] = "1 fsync(5</d/tikigate.db-wal>) = -1 EIO (Input/output error)";
        assert!(!faults_in(&lines).is_empty(), "a sync that failed");
        let mut lines = GOOD.to_vec();
        lines.insert(4, r#"1 write(5</d/tikigate.db-wal>, "more", 4) = 4"#);
        assert!(!faults_in(&lines).is_empty(), "a part that was not synced");
    }
}
