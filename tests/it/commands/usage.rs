//! What the command line says of itself, and what it says of mistakes.

use super::{Ended, run, tikigate};

#[test]
fn a_wrong_command_line_exits_64_and_says_what_would_be_right() {
    for (line, hint) in [
        (&[][..], "Usage: tikigate <COMMAND>"),
        (&["serv"], "'serve'"),
        (&["check", "--confg", "x"], "'--config'"),
        (&["serve", "--config"], "--config <FILE>"),
        (&["check", "--format", "yaml"], "text, json"),
        (&["ledger"], "Usage: tikigate ledger"),
        (&["ledger", "list", "--state", "lost"], "unknown"),
        (
            &["ledger", "resolve", "rec-1", "--reason", "x"],
            "--applied",
        ),
        (&["ledger", "resolve", "rec-1", "--applied"], "--reason"),
        (
            &[
                "ledger",
                "resolve",
                "rec-1",
                "--applied",
                "--rejected",
                "--reason",
                "x",
            ],
            "cannot be used with",
        ),
        (
            &[
                "ledger",
                "resolve",
                "rec-1",
                "--applied",
                "--send-now",
                "--reason",
                "x",
            ],
            "cannot be used with",
        ),
        (&["ledger", "reopen", "rec-1"], "--reason"),
        (&["ledger", "reopen", "--reason", "x"], "<KEY>"),
        (&["ledger", "lift-quarantine"], "--reason"),
        (&["ledger", "quarantine", "lift"], "unexpected argument"),
        (&["ledger", "export", "--from", "2026-11-01"], "--to"),
        (
            &[
                "ledger",
                "export",
                "--from",
                "2026-11-01",
                "--to",
                "2026-11-02",
                "--format",
                "xlsx",
            ],
            "csv, jsonl",
        ),
        (&["probe", "healthy"], "live, ready"),
        (
            &["probe", "live", "--admin", "https://127.0.0.1:1"],
            "is not an admin URL",
        ),
        (
            &["drain", "--within", "5", "--no-wait"],
            "cannot be used with",
        ),
        (
            &["sign", "--client-id", "x", "--secret-file", "y"],
            "--body",
        ),
        (
            &[
                "sign",
                "--client-id",
                "x",
                "--secret-file",
                "y",
                "--body",
                "-",
                "--timestamp",
                "1667980513",
            ],
            "13 digits",
        ),
        (
            &[
                "sign",
                "--client-id",
                "x",
                "--secret-file",
                "y",
                "--body",
                "-",
                "--family",
                "tiki",
            ],
            "`tikivip`",
        ),
        (
            &["verify", "--client-id", "x", "--body", "-"],
            "--secret-file",
        ),
        (&["demo", "--twice"], "--help"),
    ] {
        let Ended { code, out, err } = run(&mut tikigate(line));
        assert_eq!(code, Some(64), "{line:?}: {out}{err}");
        assert!(
            err.contains(hint),
            "{hint:?} is missing for {line:?}: {err}"
        );
        assert_eq!(out, "", "{line:?}");
    }
}

#[test]
fn the_help_of_every_command_has_examples_that_parse() {
    let help = run(&mut tikigate(&["--help"])).worked();
    assert!(help.contains("Start with: tikigate demo"), "{help}");
    let commands = [
        "serve", "check", "sign", "verify", "ledger", "drain", "probe", "demo",
    ];
    for command in commands {
        let listed = help
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(command));
        let about = listed
            .unwrap_or_else(|| panic!("{command} is not listed: {help}"))
            .trim();
        assert!(
            about.len() > 10 && !about.contains("command line of"),
            "{command}: {about:?}"
        );
    }
    let nested = [
        "list",
        "show",
        "resolve",
        "reopen",
        "quarantine",
        "lift-quarantine",
        "export",
        "backup",
        "restore",
        "verify",
    ]
    .map(|nested| vec!["ledger", nested]);
    for line in commands
        .map(|command| vec![command])
        .into_iter()
        .chain(nested)
    {
        let arguments = [&line[..], &["--help"]].concat();
        let help = run(&mut tikigate(&arguments)).worked();
        let (_, examples) = help
            .split_once("Examples:\n")
            .unwrap_or_else(|| panic!("no examples for {line:?}: {help}"));
        assert!(
            examples.contains(&format!("tikigate {}", line.join(" "))),
            "{help}"
        );
        assert!(help.contains("Usage: tikigate"), "{help}");
        let short = run(&mut tikigate(&[&line[..], &["-h"]].concat())).worked();
        assert!(!short.is_empty());
    }
}

#[test]
fn the_version_is_the_packages() {
    for line in ["--version", "-V"] {
        let told = run(&mut tikigate(&[line])).worked();
        assert_eq!(told, concat!("tikigate ", env!("CARGO_PKG_VERSION"), "\n"));
    }
}

#[test]
fn a_reader_who_has_seen_enough_is_no_failure() {
    let mut sh = std::process::Command::new("sh");
    sh.args(["-c", "\"$0\" serve --help | head -n 1"])
        .arg(env!("CARGO_BIN_EXE_tikigate"));
    let Ended { out, err, .. } = run(&mut sh);
    assert_eq!(out, "Run the gate\n");
    assert_eq!(err, "");
}
