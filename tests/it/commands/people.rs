//! What people do with a ledger through the commands, several of them at once.

use serde_json::Value;

use super::ledger::{again, held, id_of};
use super::{Ended, ask, asking, command, post, run, setup};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{refund, usual};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_people_at_once_one_is_heard_and_the_other_told() {
    let (backend, gate) = held(&["r-dies"]).await;
    let said = |verdict: &str, by: &str| {
        let line = [
            "ledger",
            "resolve",
            "r-dies",
            verdict,
            "--reason",
            "looked it up",
            "--by",
            by,
        ];
        let mut command = asking(&gate, &line);
        std::thread::spawn(move || run(&mut command))
    };
    let people: Vec<_> = (0..3)
        .flat_map(|n| {
            [
                said("--applied", &format!("linh-{n}")),
                said("--rejected", &format!("minh-{n}")),
            ]
        })
        .collect();
    let ends: Vec<Ended> = people.into_iter().map(|one| one.join().unwrap()).collect();
    let (heard, told): (Vec<_>, Vec<_>) = ends.into_iter().partition(|end| end.code == Some(0));
    assert_eq!(heard.len(), 1, "{heard:#?}");
    assert_eq!(told.len(), 5);
    for end in told {
        assert_eq!(end.code, Some(1), "{end:#?}");
        assert!(end.err.contains("done"), "what it is now: {end:#?}");
    }
    // What Tiki gets is what the one who was heard said.
    let applied = heard[0].out.contains("Tiki is answered 200");
    let expected = if applied {
        (200, None)
    } else {
        (500, Some("rejected".to_owned()))
    };
    assert_eq!(again(&gate, "r-dies").await, expected);
    let shown = ask(&gate, &["ledger", "show", "r-dies", "--format", "json"]).worked();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let events = shown["events"].as_array().unwrap();
    let words = events.iter().filter(|event| !event["by"].is_null()).count();
    assert_eq!(words, 1, "{shown}");
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_word_that_was_wrong_is_taken_back_and_another_one_given() {
    let (backend, gate) = held(&["r-dies"]).await;
    let ledger = |line: &[&str]| ask(&gate, &[&["ledger"], line].concat());
    let reopen = ["reopen", "r-dies", "--reason", "another order's"];
    let told = ledger(&reopen).failed(1);
    assert!(told.contains("(not_declared)"), "{told}");

    ledger(&[
        "resolve",
        "r-dies",
        "--rejected",
        "--reason",
        "paid by hand",
    ])
    .worked();
    assert_eq!(
        again(&gate, "r-dies").await,
        (500, Some("rejected".to_owned()))
    );
    let told = ledger(&[&reopen[..], &["--by", "minh"]].concat()).worked();
    assert!(told.contains("is now unknown: it is held"), "{told}");
    assert_eq!(
        again(&gate, "r-dies").await,
        (500, Some("outcome_unknown".to_owned()))
    );
    ledger(&["resolve", "r-dies", "--applied", "--reason", "in the books"]).worked();
    assert_eq!(again(&gate, "r-dies").await, (200, None));
    assert_eq!(backend.requests().len(), 1);

    let shown = ledger(&["show", "r-dies"]).worked();
    for words in [
        "resolved_rejected",
        "reopened",
        "local (for minh): another order's",
    ] {
        assert!(shown.contains(words), "{words} is missing: {shown}");
    }
    for blank in ["", "  "] {
        let told = ledger(&["reopen", "r-dies", "--reason", blank]).failed(1);
        assert!(told.contains("(reason_required)"), "{told}");
    }
    let told = ledger(&["reopen", "r-none", "--reason", "x"]).failed(1);
    assert!(told.contains("no record has the key `r-none`"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_without_a_gate_that_can_send_stays_for_tiki_to_send() {
    let (backend, gate) = held(&["r-dies"]).await;
    let line = [
        "ledger",
        "resolve",
        "r-dies",
        "--not-applied",
        "--force",
        "--send-now",
        "--reason",
        "x",
    ];
    let ended = ask(&gate, &line);
    // Sent or not, the command says which, and the refund is run once more and only once.
    let sent = ended.code == Some(0);
    let told = ended.out + &ended.err;
    if sent {
        assert!(
            told.contains("the kept call was sent and answered 200"),
            "{told}"
        );
    } else {
        assert!(told.contains("it was resolved, but not sent"), "{told}");
        assert!(told.contains("is now released"), "{told}");
    }
    assert_eq!(again(&gate, "r-dies").await, (200, None));
    assert_eq!(backend.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_covers_the_days_of_the_ledgers_time_zone() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let gate = setup(&usual(&backend.url())).start();
    for key in ["r-1", "r-2"] {
        let answer = post(gate.address(), "/tiki/refund", &refund(key, "150000")).await;
        assert_eq!(answer.status, 200);
    }
    let admin = format!("http://{}", gate.admin_address());
    let export = |rest: &[&str]| {
        let line = [&["ledger", "export"], rest].concat();
        run(command(gate.setup(), &line).args(["--admin", &admin]))
    };
    // Whatever today is there, a range of a day on either side has it.
    let wide = ["--from", "2020-01-01", "--to", "2100-01-01"];
    let table = export(&wide).worked();
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.starts_with("id,time,"), "{table}");
    assert!(table.contains("+07:00,"), "{table}");
    let lines =
        export(&[&wide[..], &["--format", "jsonl", "--time-zone", "UTC"]].concat()).worked();
    assert!(lines.contains("+00:00"), "{lines}");
    let list = ask(&gate, &["ledger", "list"]).worked();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let key = line["key"].as_str().unwrap();
        assert_eq!(line["id"], id_of(&list, key));
        assert_eq!(
            (&line["state"], &line["attempt"]),
            (&"done".into(), &1.into())
        );
    }
    let path = gate.setup().directory().join("out.csv");
    let out = path.to_str().unwrap();
    let told = export(&[&wide[..], &["--out", out, "--route", "refund"]].concat()).worked();
    assert_eq!(told, "2 records\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), table);
    assert_eq!(
        export(&["--from", "2020-01-01", "--to", "2020-12-31"])
            .worked()
            .lines()
            .count(),
        1
    );

    for (rest, complaint) in [
        (
            &["--from", "2020-01-02", "--to", "2020-01-01"][..],
            "--from is not before",
        ),
        (
            &["--from", "01.01.2020", "--to", "2020-01-01"],
            "`01.01.2020` is no date",
        ),
        (
            &[
                "--from",
                "2020-01-01",
                "--to",
                "2020-01-01",
                "--time-zone",
                "Saigon",
            ],
            "no time zone `Saigon`",
        ),
    ] {
        let told = export(rest).failed(64);
        assert!(told.contains(complaint), "{told}");
    }
    let nowhere = [&wide[..], &["--out", "/nonexistent/out.csv"]].concat();
    let told = export(&nowhere).failed(1);
    assert!(
        told.contains("/nonexistent/out.csv can't be written"),
        "{told}"
    );
    // Without the configuration nobody knows whose day is meant.
    let told = ask(&gate, &[&["ledger", "export"], &wide[..]].concat()).failed(64);
    assert!(told.contains("--time-zone"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_a_quarantine_or_there_is_none() {
    let (_backend, gate) = held(&[]).await;
    let told = ask(&gate, &["ledger", "quarantine"]).worked();
    assert!(told.starts_with("no quarantine"), "{told}");
    let told = ask(&gate, &["ledger", "lift-quarantine", "--reason", "x"]).failed(1);
    assert!(told.contains("(not_quarantined)"), "{told}");
}
