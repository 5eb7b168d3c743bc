//! `ledger verify`: each fault of a file is told.

use std::fs;
use std::path::Path;

use rusqlite::Connection;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{database, ledger, text, two_refunds};

/// What lists the answer of a file's done record, as programs before this one did.
fn listing(path: &Path) -> String {
    let file = Connection::open(path).unwrap();
    let key = "SELECT namespace, client, message FROM records WHERE state = 'done'";
    let mut digest = Sha256::new();
    file.query_row(key, (), |row| {
        for column in 0..3 {
            let part: String = row.get(column)?;
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Ok(())
    })
    .unwrap();
    let check = base16ct::lower::encode_string(&digest.finalize()[..16]);
    format!(
        "INSERT INTO answers SELECT message_hash, id, x'{check}', fingerprint, policy, keep, \
         answer_status, answer_headers, answer_body FROM records WHERE state = 'done'; \
         UPDATE records SET listed = 1 WHERE state = 'done';"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_a_file_are_told_one_by_one() {
    let (_backend, _, mut gate) = two_refunds().await;
    let path = database(&gate.setup);
    // The configuration names the watermark, and a running gate is verified as well.
    let told = ledger(&gate.setup, &["verify", text(&path)]).worked();
    assert!(told.contains("ok      the watermark "), "{told}");
    gate.terminate();
    let whole = fs::read(&path).unwrap();

    let done = "id = (SELECT id FROM records WHERE state = 'done')";
    let held = "id = (SELECT id FROM records WHERE state = 'unknown')";
    // As the previous version left a file.
    let listed = listing(&path);
    let file = Connection::open(&path).unwrap();
    file.execute_batch(&listed).unwrap();
    drop(file);
    ledger(&gate.setup, &["verify", text(&path)]).worked();
    for (damage, complaint) in [
        (
            format!("UPDATE records SET answer_status = NULL WHERE {done}"),
            "is done and has no answer",
        ),
        (
            format!("UPDATE records SET answer_status = 200 WHERE {held}"),
            "has an answer and is not done",
        ),
        (
            format!("UPDATE records SET state = 'claimed', owner = 0 WHERE {held}"),
            "is claimed by nobody",
        ),
        (
            format!("UPDATE records SET state = 'released' WHERE {held}"),
            "is in another state than its last event says",
        ),
        (
            format!("UPDATE records SET attempt = 0 WHERE {held}"),
            "is held, and nobody can say for what",
        ),
        (
            format!("UPDATE records SET attempt = 9 WHERE {held}"),
            "has no event of the attempt that counts",
        ),
        (
            format!("UPDATE records SET events = 'x' WHERE {held}"),
            "has events that can't be read",
        ),
        (
            format!("UPDATE records SET events = '' WHERE {held}"),
            "has no events",
        ),
        (
            format!("UPDATE records SET fields = '[' WHERE {held}"),
            "its fields is not what it must be",
        ),
        (
            format!("UPDATE records SET message = 'r-other' WHERE {held}"),
            "is filed under another key",
        ),
        (
            format!("UPDATE records SET subject_hash = 1 WHERE {held}"),
            "is filed under another subject",
        ),
        (
            format!("UPDATE records SET subject_week = subject_week - 1 WHERE {held}"),
            "is filed under another week than it last changed in",
        ),
        (
            format!(
                "{listed} UPDATE records SET message = 'r-done', message_hash = \
                 (SELECT message_hash FROM records WHERE {done}) WHERE {held}"
            ),
            "rec-2 and rec-1 have the same key",
        ),
        (
            format!(
                "UPDATE records SET message = 'r-1', message_hash = 1; \
                 UPDATE records SET answer_status = NULL WHERE {done}"
            ),
            "rec-1 and rec-2 have the same key",
        ),
        (
            format!("{listed} UPDATE answers SET body = x'00'"),
            "rec-1 would not be answered with its own answer",
        ),
        (
            format!("{listed} UPDATE answers SET fingerprint = zeroblob(32)"),
            "rec-1 would not be answered with its own answer",
        ),
        (
            format!("{listed} DELETE FROM answers"),
            "rec-1 would not be answered with its own answer",
        ),
        (
            format!("{listed} UPDATE records SET state = 'released' WHERE {done}"),
            "is not done and its answer is listed",
        ),
        (
            format!(
                "{listed} INSERT INTO answers \
                 SELECT 7, 7, key_check, fingerprint, policy, keep, status, headers, body FROM answers"
            ),
            "there are 2, and 1 records have theirs there",
        ),
        (
            "DROP TRIGGER answers_forgotten".to_owned(),
            "trigger answers_forgotten is missing",
        ),
        (
            "UPDATE meta SET done = 7".to_owned(),
            "7 records are said to be done, and 1 are",
        ),
        (
            "UPDATE meta SET next_record = 2".to_owned(),
            "rec-2 has a number that was not given yet",
        ),
        (
            "UPDATE meta SET generation = 0".to_owned(),
            "is of a generation that was not there yet",
        ),
        (
            "UPDATE meta SET sequence = 1".to_owned(),
            "the file is behind it",
        ),
        (
            "UPDATE meta SET ledger = 'another'".to_owned(),
            "and the file is another",
        ),
        (
            "DELETE FROM namespaces".to_owned(),
            "is of a namespace that has no definition",
        ),
        (
            "DROP INDEX records_by_message".to_owned(),
            "index records_by_message is missing",
        ),
        (
            "CREATE TABLE more (a)".to_owned(),
            "table more does not belong to a ledger",
        ),
        ("DELETE FROM meta".to_owned(), "table meta is gone"),
        (
            "PRAGMA user_version = 99".to_owned(),
            "use a newer tikigate",
        ),
    ] {
        fs::write(&path, &whole).unwrap();
        let file = Connection::open(&path).unwrap();
        file.execute_batch(&damage).unwrap();
        drop(file);
        let told = ledger(&gate.setup, &["verify", text(&path)]).failed(1);
        assert!(told.contains(complaint), "{damage}: {told}");
    }
    // Pages that were lost, and others that were overwritten.
    fs::write(&path, &whole[..whole.len() - 8192]).unwrap();
    let told = ledger(&gate.setup, &["verify", text(&path)]).failed(1);
    assert!(
        told.contains("malformed") || told.contains("FAULTY"),
        "{told}"
    );
    let mut garbled = whole.clone();
    let middle = garbled.len() / 2;
    garbled[middle..middle + 4096].fill(0x5a);
    fs::write(&path, &garbled).unwrap();
    let told = ledger(&gate.setup, &["verify", text(&path)]).failed(1);
    assert!(
        told.contains("FAULTY") && told.contains("faults: keep a copy"),
        "{told}"
    );

    fs::write(&path, &whole).unwrap();
    let json = ledger(
        &gate.setup,
        &["list", "--format", "json", "--file", text(&path)],
    )
    .worked();
    let list: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(list["records"].as_array().unwrap().len(), 2);
}
