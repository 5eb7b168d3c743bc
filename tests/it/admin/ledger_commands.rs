//! `tikigate ledger …` against a running admin listener: words taken back, sent calls, quarantines
//! and exports.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tikigate::admin::{Limits, SendNow, SendNowError};
use tikigate::cli::exit;
use tikigate::ledger::{Fields, Hold, State};

use super::commands::{ask, failure, told};
use super::gate::{Gate, changed_at};

/// A record with the fields of a refund, claimed an hour before it changed.
fn refund(gate: &Gate, key: &str, transaction: &str) -> String {
    let id = gate.table.add("refund", key, State::Done);
    gate.table.change(&id, |record| {
        record.created_at = changed_at() - Duration::from_secs(3_600);
        record.fields = Fields(
            [
                ("transaction_id".into(), transaction.to_owned()),
                ("transaction_amount".into(), "150000".to_owned()),
            ]
            .into(),
        );
    });
    id
}

#[test]
fn records_are_found_by_reference_and_by_date() {
    let gate = Gate::start();
    refund(&gate, "r-1", "t-1");
    refund(&gate, "r-2", "t-2");
    let list = |rest: &[&str]| told(&gate, &[&["ledger", "list"], rest].concat());
    let by_reference = list(&["--reference", "t-2"]);
    assert!(by_reference.contains("r-2") && !by_reference.contains("r-1"));
    // Claimed at 00:00Z, which is 07:00 of the same day in Vietnam.
    let zone = ["--time-zone", "Asia/Ho_Chi_Minh"];
    let day = list(&[&zone[..], &["--from", "2026-11-23", "--to", "2026-11-23"]].concat());
    assert_eq!(day.lines().count(), 3, "{day}");
    assert!(day.contains("2026-11-23 08:00:00+07:00"), "{day}");
    let early = list(&[&zone[..], &["--to", "2026-11-23T07:00"]].concat());
    assert_eq!(early, "no records\n");
    let late = list(&[&zone[..], &["--from", "2026-11-23T07:00"]].concat());
    assert_eq!(late.lines().count(), 3, "{late}");

    for (rest, complaint) in [
        (
            &["--from", "yesterday", "--time-zone", "UTC"][..],
            "--from: `yesterday` is no date",
        ),
        (&["--from", "2026-11-23"], "--time-zone"),
        (
            &["--time-zone", "Mars/Olympus"],
            "there is no time zone `Mars/Olympus`",
        ),
    ] {
        let line = [&["ledger", "list"], rest].concat();
        let complaint_told = failure(ask(&gate, &line).1);
        assert!(complaint_told.contains(complaint), "{complaint_told}");
    }
}

#[test]
fn short_and_empty_pages_are_gone_over() {
    let gate = Gate::start();
    for n in 0..50 {
        gate.table.add("ipn", &format!("i-{n}"), State::Done);
    }
    gate.table.add("refund", "r-1", State::Unknown);
    gate.table.look_at(3);
    let list = told(&gate, &["ledger", "list", "--state", "unknown"]);
    assert!(
        list.contains("r-1") && !list.contains("no records"),
        "{list}"
    );
    assert!(!list.contains("more records"), "{list}");
    let shown = told(&gate, &["ledger", "show", "r-1"]);
    assert!(shown.starts_with("rec-51  unknown\n"), "{shown}");
}

#[test]
fn a_record_is_shown_with_all_that_people_need() {
    let gate = Gate::start();
    let id = refund(&gate, "r-1", "t-1");
    gate.table.change(&id, |record| {
        record.state = State::Unknown;
        record.hold = Some(Hold::PossibleDuplicate);
        record.marks.possible_duplicate = true;
        record.marks.stale_event = true;
        record.declared = true;
    });
    let shown = told(&gate, &["ledger", "show", &id]);
    for words in [
        "rec-1  unknown (possible_duplicate)\n",
        "\n  transaction_id      t-1\n",
        "\n  transaction_amount  150000\n",
        "another message may have moved the same money",
        "a newer event about the same was passed on before",
        "its state is somebody's word",
    ] {
        assert!(shown.contains(words), "{words:?} is missing: {shown}");
    }
    let list = told(&gate, &["ledger", "list"]);
    assert!(list.contains("unknown (possible_duplicate)"), "{list}");
}

#[test]
fn a_word_is_taken_back_by_name() {
    let gate = Gate::start();
    let id = gate.table.add("refund", "k", State::Unknown);
    let line = ["ledger", "reopen", "k", "--reason", "the wrong one"];
    let early = failure(ask(&gate, &line).1);
    assert!(
        early.contains("does not rest on somebody's word"),
        "{early}"
    );
    told(
        &gate,
        &["ledger", "resolve", "k", "--applied", "--reason", "seen"],
    );
    let said = told(&gate, &[&line[..], &["--by", "linh"]].concat());
    assert!(said.starts_with("rec-1  done\n"), "{said}");
    assert!(
        said.ends_with("\n\nrec-1 is now unknown: it is held until somebody resolves it\n"),
        "{said}"
    );
    assert_eq!(
        gate.table.resolver(&id),
        Some(("ops (for linh)".to_owned(), "the wrong one".to_owned()))
    );
}

#[test]
fn whoever_is_too_late_is_shown_what_the_record_is_now() {
    let gate = Gate::start();
    let id = gate.table.add("refund", "k", State::Unknown);
    gate.table.be_faster();
    let line = ["ledger", "resolve", &id, "--not-applied", "--reason", "r"];
    let (out, result) = ask(&gate, &line);
    let complaint = failure(result);
    assert!(
        complaint.contains("it is now done (attempt 1"),
        "{complaint}"
    );
    assert!(out.starts_with("rec-1  unknown\n"), "{out}");
    let now = out.split("\nsomebody was faster; it is now:\n").nth(1);
    assert!(now.unwrap().starts_with("rec-1  done\n"), "{out}");
    assert_eq!(gate.table.resolver(&id), None);
}

#[test]
fn what_sending_came_to_is_told() {
    let gate = Gate::start();
    let send = || {
        let id = gate.table.add("refund", "k", State::Unknown);
        let line = [
            "ledger",
            "resolve",
            &id,
            "--not-applied",
            "--send-now",
            "--reason",
            "r",
        ];
        let (out, result) = ask(&gate, &line);
        (out, result.map_err(|failure| failure.to_string()))
    };
    let (out, result) = send();
    assert!(
        out.ends_with(
            "rec-1 is now released: the next time Tiki sends it, it goes to the backend\n"
        )
    );
    let complaint = result.unwrap_err();
    assert!(
        complaint.starts_with("it was resolved, but not sent: the ledger keeps no call"),
        "{complaint}"
    );

    let sent = SendNow {
        status: 422,
        state: State::Done,
    };
    gate.hand.set_sending_now(Some(Ok(sent)));
    let (out, result) = send();
    assert_eq!(result, Ok(exit::OK));
    assert!(
        out.ends_with("the kept call was sent and answered 422\n"),
        "{out}"
    );

    let refusal = SendNowError::Unavailable("the gate drains".to_owned());
    gate.hand.set_sending_now(Some(Err(refusal)));
    assert!(send().1.unwrap_err().contains("the gate drains"));
}

#[test]
fn a_call_that_takes_long_is_looked_for_later() {
    let gate = Gate::with_limits(Limits {
        send_within: Duration::from_millis(20),
        ..Limits::default()
    });
    gate.hand.set_sending_now(None);
    let id = gate.table.add("refund", "k", State::Unknown);
    let out = told(
        &gate,
        &[
            "ledger",
            "resolve",
            &id,
            "--not-applied",
            "--send-now",
            "--reason",
            "r",
        ],
    );
    assert!(
        out.ends_with("not answered yet; see tikigate ledger show rec-1\n"),
        "{out}"
    );
}

#[test]
fn a_quarantine_is_shown_and_lifted() {
    let gate = Gate::start();
    let shown = told(&gate, &["ledger", "quarantine"]);
    assert!(shown.starts_with("no quarantine"), "{shown}");
    let lift = [
        "ledger",
        "lift-quarantine",
        "--reason",
        "compared",
        "--by",
        "linh",
    ];
    assert_eq!(
        failure(ask(&gate, &lift).1),
        "the ledger is not in quarantine (not_quarantined)"
    );
    gate.table.quarantine_for("restored\u{1b}[2J");
    let shown = told(&gate, &["ledger", "quarantine"]);
    assert!(
        shown.starts_with("in quarantine: restored\\u{1b}[2J\n"),
        "{shown}"
    );
    let json = told(&gate, &["ledger", "quarantine", "--format", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["quarantined"], true);
    let out = told(&gate, &lift);
    assert!(
        out.contains("in quarantine: restored") && out.contains("lifted: "),
        "{out}"
    );
    assert_eq!(
        gate.table.lifted(),
        Some(("ops (for linh)".to_owned(), "compared".to_owned()))
    );
}

const RANGE: [&str; 8] = [
    "ledger",
    "export",
    "--from",
    "2026-11-23",
    "--to",
    "2026-11-23",
    "--time-zone",
    "UTC",
];

#[test]
fn an_export_is_a_table_that_a_spreadsheet_can_trust() {
    let gate = Gate::start();
    refund(&gate, "r-1", "t-1");
    let formula = refund(&gate, "=HYPERLINK(\"http://evil\")", "+84");
    gate.table.change(&formula, |record| {
        let store = ("store".into(), "a,\r\nb".to_owned());
        record.fields = Fields(record.fields.0.iter().cloned().chain([store]).collect());
        record.state = State::Unknown;
        record.answer = None;
    });
    told(
        &gate,
        &[
            "ledger",
            "resolve",
            &formula,
            "--rejected",
            "--reason",
            "r",
            "--by=-linh",
        ],
    );
    let table = told(&gate, &RANGE);
    let rows: Vec<_> = table.split_terminator("\r\n").collect();
    assert_eq!(rows.len(), 3, "{table}");
    assert_eq!(
        rows[0],
        "id,time,changed,route,namespace,client,key,state,held_for,attempt,alarmed,request_id,\
         tiki_transaction_id,transaction_id,transaction_amount,reference_transaction_id,status,message_id,\
         message_created_at,order.id,order.status,order.grand_total,order.tiki_order_id,\
         order.tiki_order_code,order.reference_id,answer_status,resolved_by,other_fields"
    );
    assert_eq!(
        rows[1],
        "rec-1,2026-11-23T00:00:00.000+00:00,2026-11-23T01:00:00.000+00:00,refund,refund,wallet-key,\
         r-1,done,,1,,,,t-1,150000,,,,,,,,,,,200,,"
    );
    assert!(
        rows[2].contains(",\"'=HYPERLINK(\"\"http://evil\"\")\",done,"),
        "{}",
        rows[2]
    );
    assert!(rows[2].contains(",\"'+84\",150000,"), "{}", rows[2]);
    assert!(
        rows[2].ends_with(",500,ops (for -linh),\"{\"\"store\"\":\"\"a,\\r\\nb\"\"}\""),
        "{}",
        rows[2]
    );
}

#[test]
fn an_export_for_programs_has_one_object_a_line() {
    let gate = Gate::start();
    refund(&gate, "=1\u{9b}", "t-1");
    let unknown = gate.table.add("refund", "r-2", State::Unknown);
    told(
        &gate,
        &["ledger", "resolve", &unknown, "--applied", "--reason", "r"],
    );
    let lines = told(&gate, &[&RANGE[..], &["--format", "jsonl"]].concat());
    assert!(!lines.contains('\u{9b}'));
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["key"], "=1\u{9b}");
    assert_eq!(
        lines[0]["fields"],
        json!({ "transaction_id": "t-1", "transaction_amount": "150000" })
    );
    assert_eq!(lines[0]["answer_status"], 200);
    assert_eq!(lines[0]["time"], "2026-11-23T00:00:00.000+00:00");
    assert_eq!(
        (&lines[0]["resolved_by"], &lines[1]["resolved_by"]),
        (&json!(null), &json!("ops"))
    );
}

#[test]
fn an_export_goes_over_many_pages_into_a_file_of_its_own() {
    let gate = Gate::start();
    for n in 0..1_203 {
        refund(&gate, &format!("r-{n}"), "t");
    }
    let path = gate.path("out.csv");
    let file = path.to_str().unwrap();
    fs::write(&path, "yesterday's").unwrap();
    let out = told(&gate, &[&RANGE[..], &["--out", file]].concat());
    assert_eq!(out, "1203 records\n");
    let table = fs::read_to_string(&path).unwrap();
    assert_eq!(table.lines().count(), 1_204);
    assert!(table.contains(",r-1202,"));

    // What fails leaves what was there.
    gate.table.set_mode(super::gate::Mode::Fails);
    failure(ask(&gate, &[&RANGE[..], &["--out", file]].concat()).1);
    assert_eq!(fs::read_to_string(&path).unwrap(), table);
    let left: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("out.csv"))
        .collect();
    assert_eq!(left, ["out.csv"]);
}

#[test]
fn an_export_of_nothing_is_said_to_be_one() {
    let gate = Gate::start();
    refund(&gate, "r-1", "t-1");
    let line = |from, to| {
        [
            "ledger",
            "export",
            "--from",
            from,
            "--to",
            to,
            "--time-zone",
            "UTC",
        ]
    };
    assert_eq!(
        told(&gate, &line("2026-11-24", "2026-11-24"))
            .lines()
            .count(),
        1
    );
    let complaint = failure(ask(&gate, &line("2026-11-24", "2026-11-23")).1);
    assert!(complaint.starts_with("--from is not before"), "{complaint}");
    let complaint = failure(ask(&gate, &line("2026-11-23T01:00", "2026-11-23T01:00")).1);
    assert!(complaint.starts_with("--from is not before"), "{complaint}");
}
