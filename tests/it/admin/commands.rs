//! The commands against a running admin listener.

use std::time::{Duration, SystemTime};

use clap::{CommandFactory, Parser};
use tikigate::admin::Phase;
use tikigate::cli::admin_client::{self, ClientError};
use tikigate::cli::failure::Failure;
use tikigate::cli::{drain, exit, ledger, probe};
use tikigate::ledger::State;

use super::gate::{Gate, changed_at};

#[derive(Parser)]
enum Cli {
    Ledger(Box<ledger::Args>),
    Drain(drain::Args),
    Probe(probe::Args),
}

/// Five minutes after the records changed.
fn now() -> SystemTime {
    changed_at() + Duration::from_secs(300)
}

/// What the command printed, and how it ended.
fn run(line: &[&str]) -> (String, Result<u8, Failure>) {
    let words = std::iter::once("tikigate").chain(line.iter().copied());
    let mut out = Vec::new();
    let result = match Cli::try_parse_from(words).unwrap() {
        Cli::Ledger(args) => ledger::execute(&args, now(), &mut out),
        Cli::Drain(args) => drain::execute(&args, &mut out),
        Cli::Probe(args) => probe::execute(&args, &mut out),
    };
    (String::from_utf8(out).unwrap(), result)
}

/// The same against a gate, with its token.
pub(super) fn ask(gate: &Gate, line: &[&str]) -> (String, Result<u8, Failure>) {
    let url = format!("http://{}", gate.address);
    let token = gate.path("token");
    let options = ["--admin", &url, "--token-file", token.to_str().unwrap()];
    let needed = if line[0] == "probe" {
        &options[..2]
    } else {
        &options
    };
    run(&[line, needed].concat())
}

/// What the command printed, where it worked.
pub(super) fn told(gate: &Gate, line: &[&str]) -> String {
    let (out, result) = ask(gate, line);
    assert_eq!(result.unwrap(), exit::OK, "{out}");
    out
}

pub(super) fn failure(result: Result<u8, Failure>) -> String {
    result.unwrap_err().to_string()
}

fn parses(line: &[&str]) -> bool {
    Cli::try_parse_from(std::iter::once("tikigate").chain(line.iter().copied())).is_ok()
}

#[test]
fn records_are_listed_as_an_aligned_table() {
    let gate = Gate::start();
    assert_eq!(told(&gate, &["ledger", "list"]), "no records\n");
    gate.table.add("refund", "a-1", State::Unknown);
    gate.table.add("ipn", "a-longer-key", State::Done);
    gate.table.change("rec-1", |record| record.alarmed = true);
    let expected = "\
ID     STATE            ROUTE   KEY           ATTEMPT  SINCE                      AGE
rec-1  unknown (alarm)  refund  a-1           1        2026-11-23 01:00:00+00:00  5m0s
rec-2  done             ipn     a-longer-key  1        2026-11-23 01:00:00+00:00  5m0s
";
    assert_eq!(told(&gate, &["ledger", "list"]), expected);

    let unknown = told(&gate, &["ledger", "list", "--state", "unknown"]);
    assert!(unknown.contains("rec-1") && !unknown.contains("rec-2"));
    let ipn = told(
        &gate,
        &["ledger", "list", "--route", "ipn", "--query", "longer"],
    );
    assert!(ipn.contains("rec-2") && !ipn.contains("rec-1"));
    let first = told(&gate, &["ledger", "list", "--limit", "1"]);
    assert!(
        first.ends_with("more records follow: --after rec-1\n"),
        "{first}"
    );
    let second = told(
        &gate,
        &["ledger", "list", "--limit", "1", "--after", "rec-1"],
    );
    assert!(second.contains("rec-2") && !second.contains("more records"));
}

#[test]
fn more_records_than_one_page_are_fetched_page_by_page() {
    let gate = Gate::start();
    for n in 0..1_203 {
        gate.table
            .add("refund", &format!("key-{n}"), State::Unknown);
    }
    let list = |limit: &str| {
        let line = ["ledger", "list", "--format", "json", "--limit", limit];
        let list: serde_json::Value = serde_json::from_str(&told(&gate, &line)).unwrap();
        let count = list["records"].as_array().unwrap().len();
        (count, list["next"].as_str().map(str::to_owned))
    };
    assert_eq!(list("10000"), (1_203, None));
    assert_eq!(list("1203"), (1_203, None));
    assert_eq!(list("1000"), (1_000, Some("rec-1000".to_owned())));
    assert!(told(&gate, &["ledger", "show", "key-1202"]).starts_with("rec-1203  unknown\n"));
}

#[test]
fn keys_cannot_drive_the_terminal() {
    let gate = Gate::start();
    gate.table
        .add("refund", "a\u{1b}[2J\u{9b}b\u{202e}", State::Unknown);
    for line in [
        &["ledger", "list"][..],
        &["ledger", "show", "rec-1"],
        &["ledger", "list", "--format", "json"],
        &["ledger", "show", "rec-1", "--format", "json"],
    ] {
        let shown = told(&gate, line);
        assert!(
            !shown.contains(['\u{1b}', '\u{9b}', '\u{202e}']),
            "{shown:?}"
        );
        assert!(shown.contains("[2J"), "{shown:?}");
    }
}

#[test]
fn a_record_is_found_by_its_id_or_its_only_key() {
    let gate = Gate::start();
    gate.table.add("refund", "once", State::Done);
    gate.table.add("refund", "twice", State::Unknown);
    gate.table.add("ipn", "twice", State::Unknown);
    gate.table.add("ipn", "twice-and-more", State::Unknown);

    let shown = told(&gate, &["ledger", "show", "rec-1"]);
    assert!(
        shown.starts_with("rec-1  done\n  route          refund\n"),
        "{shown}"
    );
    assert!(shown.contains("\n  key            once\n"), "{shown}");
    assert!(
        shown.contains("\n  answer: 200, 20000 bytes\n    xxx"),
        "{shown}"
    );
    assert!(shown.contains("\n    (cut off here)\n"), "{shown}");
    let event = "2026-11-23 01:00:00+00:00  attempt 1  done     upstream_reset";
    assert!(shown.trim_end().ends_with(event), "{shown}");
    assert_eq!(told(&gate, &["ledger", "show", "once"]), shown);

    let (out, result) = ask(&gate, &["ledger", "show", "twice"]);
    assert_eq!(
        failure(result),
        "2 records have this key; name one by its id"
    );
    assert!(
        out.contains("rec-2") && out.contains("rec-3") && !out.contains("rec-4"),
        "{out}"
    );
    let missing = failure(ask(&gate, &["ledger", "show", "twic"]).1);
    assert!(
        missing.starts_with("no record has the key `twic`; "),
        "{missing}"
    );
    let missing = failure(ask(&gate, &["ledger", "show", "rec-9"]).1);
    assert_eq!(missing, "there is no such record (not_found)");
}

#[test]
fn resolving_shows_the_record_first() {
    let gate = Gate::start();
    for (verdict, state, consequence) in [
        ("--applied", State::Done, "Tiki is answered 200 from now on"),
        (
            "--rejected",
            State::Done,
            "Tiki is answered 500 from now on",
        ),
        (
            "--not-applied",
            State::Released,
            "the next time Tiki sends it, it goes to the backend",
        ),
    ] {
        let id = gate
            .table
            .add("refund", &format!("key{verdict}"), State::Unknown);
        let key = format!("key{verdict}");
        let told = told(
            &gate,
            &["ledger", "resolve", &key, verdict, "--reason", "seen it"],
        );
        assert!(told.starts_with(&format!("{id}  unknown\n")), "{told}");
        let end = format!("\n\n{id} is now {}: {consequence}\n", state.as_str());
        assert!(told.ends_with(&end), "{told}");
        assert_eq!(gate.table.record(&id).state, state);
        let by = gate.table.resolver(&id);
        assert_eq!(by, Some(("ops".to_owned(), "seen it".to_owned())));
        let shown = self::told(&gate, &["ledger", "show", &id]);
        assert!(shown.contains("resolved        ops: seen it\n"), "{shown}");
    }
    let id = gate.table.add("refund", "k", State::Unknown);
    let line = [
        "ledger",
        "resolve",
        &id,
        "--applied",
        "--reason",
        "r",
        "--by",
        "linh",
    ];
    told(&gate, &line);
    assert_eq!(gate.table.resolver(&id).unwrap().0, "ops (for linh)");
    assert_eq!(
        failure(ask(&gate, &line).1),
        "only an unknown record can be resolved; this one is done (not_unknown)"
    );
}

#[test]
fn an_attempt_that_may_run_is_not_released_without_force() {
    let gate = Gate::start();
    let id = gate.table.add("refund", "k", State::Unknown);
    gate.table.let_attempts_run_until(changed_at());
    let line = ["ledger", "resolve", &id, "--not-applied", "--reason", "r"];
    let (out, result) = ask(&gate, &line);
    assert!(out.starts_with("rec-1  unknown\n"), "{out}");
    let complaint = failure(result);
    assert!(
        complaint.contains("until 2026-11-23T01:00:00.000Z"),
        "{complaint}"
    );
    assert!(complaint.contains("--force"), "{complaint}");
    told(&gate, &[&line[..], &["--force"]].concat());
    assert_eq!(gate.table.record(&id).state, State::Released);
}

#[test]
fn a_resolution_needs_one_verdict_and_a_reason() {
    let resolve = |rest: &[&str]| parses(&[&["ledger", "resolve", "rec-1"], rest].concat());
    assert!(resolve(&["--applied", "--reason", "r"]));
    assert!(resolve(&["--not-applied", "--force", "--reason", "r"]));
    assert!(!resolve(&["--reason", "r"]));
    assert!(!resolve(&["--applied"]));
    assert!(!resolve(&["--applied", "--rejected", "--reason", "r"]));
    assert!(!resolve(&["--applied", "--force", "--reason", "r"]));
    assert!(!parses(&["ledger", "list", "--state", "lost"]));
    assert!(!parses(&["ledger", "list", "--limit", "0"]));
}

#[test]
fn a_drain_waits_until_the_gate_has_gone() {
    let gate = Gate::start();
    assert_eq!(told(&gate, &["drain"]), "draining\nthe gate has gone\n");
    assert_eq!(gate.hand.drained_by().as_deref(), Some("ops"));

    let gate = Gate::start();
    assert_eq!(told(&gate, &["drain", "--no-wait"]), "draining\n");
    let (_, result) = ask(&gate, &["drain", "--within", "0"]);
    assert_eq!(failure(result), "the gate is still there after 0 s");
}

#[test]
fn probes_tell_by_their_exit_code() {
    let gate = Gate::start();
    assert_eq!(told(&gate, &["probe", "live"]), "live\n");
    gate.hand.set(Phase::Serving, &["the ledger is full"]);
    let ready = told(&gate, &["probe", "ready"]);
    assert_eq!(ready, "ready: serving\ndegraded: the ledger is full\n");
    gate.hand.set(Phase::Starting, &[]);
    let (out, result) = ask(&gate, &["probe", "ready"]);
    assert_eq!(
        (out.as_str(), result.unwrap()),
        ("not ready: starting\n", exit::FAILURE)
    );
    gate.hand.set(Phase::Serving, &[]);
    gate.hand.set_unready("ledger: the disk is full");
    let (out, result) = ask(&gate, &["probe", "ready"]);
    assert_eq!(
        (out.as_str(), result.unwrap()),
        (
            "not ready: serving\nunready: ledger: the disk is full\n",
            exit::FAILURE
        )
    );
}

#[test]
fn a_unix_socket_serves_as_well() {
    let gate = Gate::on_unix_socket();
    gate.table.add("refund", "a-1", State::Unknown);
    let url = format!("unix:{}", gate.path("admin.sock").display());
    let token = gate.path("token");
    let token = token.to_str().unwrap();
    let (out, result) = run(&["ledger", "--admin", &url, "--token-file", token, "list"]);
    result.unwrap();
    assert!(out.contains("a-1"), "{out}");
    assert_eq!(
        run(&["probe", "ready", "--admin", &url]).0,
        "ready: serving\n"
    );
}

#[test]
fn trouble_is_told_with_the_way_out() {
    let mut gate = Gate::start();
    std::fs::write(gate.path("wrong"), "ffff").unwrap();
    let url = format!("http://{}", gate.address);
    let list = |token: &str| {
        let token = gate.path(token);
        let line = [
            "ledger",
            "list",
            "--admin",
            &url,
            "--token-file",
            token.to_str().unwrap(),
        ];
        failure(run(&line).1)
    };
    let complaint = list("wrong");
    assert!(
        complaint.contains("does not know this token"),
        "{complaint}"
    );
    let complaint = list("nowhere");
    assert!(
        complaint.contains("nowhere") && complaint.contains("--token-file"),
        "{complaint}"
    );

    let result = run(&["probe", "live", "--admin", "https://x"]).1;
    assert!(matches!(
        result,
        Err(Failure::Client(ClientError::BadUrl { .. }))
    ));

    gate.stop();
    let (_, result) = ask(&gate, &["probe", "live"]);
    let complaint = failure(result);
    assert!(complaint.contains(&url), "{complaint}");
    assert!(complaint.contains("--admin"), "{complaint}");
}

#[test]
fn what_is_no_gate_is_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let other = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        let page = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<p>\r\n";
        stream.write_all(page.as_bytes()).unwrap();
    });
    let result = run(&["probe", "ready", "--admin", &url]).1;
    assert!(failure(result).contains("not a gate's admin listener"));
    other.join().unwrap();
}

#[test]
fn gate_and_commands_agree_on_the_made_token() {
    assert_eq!(
        admin_client::MADE_TOKEN_FILE,
        tikigate::admin::token::FILE_NAME
    );
}

#[test]
fn help_says_what_each_command_does_and_shows_examples() {
    for (path, about) in [
        (&["ledger"][..], "Look into a gate's ledger"),
        (&["ledger", "list"], "List records"),
        (&["ledger", "show"], "Show one record"),
        (&["ledger", "resolve"], "Say what became of a record"),
        (&["ledger", "reopen"], "Take back what a person"),
        (&["ledger", "quarantine"], "Show whether the ledger"),
        (
            &["ledger", "lift-quarantine"],
            "Say that nothing that the ledger",
        ),
        (&["ledger", "export"], "Write records as a table"),
        (&["ledger", "backup"], "Copy the ledger's file"),
        (&["ledger", "restore"], "Put a backup in the place"),
        (&["ledger", "verify"], "Check a ledger's file"),
        (&["drain"], "Ask a running gate to finish"),
        (
            &["probe"],
            "Ask a running gate whether it is alive or ready",
        ),
    ] {
        let mut command = Cli::command();
        command.build();
        let command = path.iter().fold(&mut command, |command, name| {
            command.find_subcommand_mut(name).unwrap()
        });
        let help = command.render_long_help().to_string();
        assert!(help.starts_with(about), "{help}");
        assert!(help.contains("Examples:\n  tikigate "), "{help}");
        assert!(help.contains("--admin <URL>"), "{help}");
    }
}
