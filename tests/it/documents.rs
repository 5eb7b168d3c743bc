//! What the documents say holds: their commands parse, their links lead somewhere, their
//! configurations can be used, and the table of errors is the gate's.

mod markdown;
mod shell;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;
use tikigate::cli::{check, demo, drain, ledger, outbox, probe, serve, sign, verify};
use tikigate::gate::Refusal;

use self::markdown::{Block, anchors, blocks, links, table_rows};
use self::shell::calls_of_tikigate;
use crate::support::samples::{self, Sample};

/// The command line as `tikigate` has it.
#[derive(Parser)]
#[command(name = "tikigate", version)]
enum CommandLine {
    Serve(serve::Args),
    Check(check::Args),
    Sign(sign::Args),
    Verify(verify::Args),
    Ledger(ledger::Args),
    Outbox(outbox::Args),
    Drain(drain::Args),
    Probe(probe::Args),
    Demo(demo::Args),
}

/// Everything for readers: path and text.
fn documents() -> Vec<(PathBuf, String)> {
    let root = samples::root();
    let mut paths = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    paths.extend(
        samples::files(&root.join("docs"))
            .into_iter()
            .filter(|path| is_markdown(path)),
    );
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{} is missing: {error}", path.display()));
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "md")
}

#[test]
fn commands_in_the_documents_parse() {
    let mut seen = BTreeSet::new();
    for (path, text) in documents() {
        for Block {
            line,
            language,
            text,
        } in blocks(&text)
        {
            if !["", "sh", "bash", "shell", "console"].contains(&language) {
                continue;
            }
            for words in calls_of_tikigate(&text) {
                let place = format!("{}:{line}: {}", path.display(), words.join(" "));
                match CommandLine::try_parse_from(&words) {
                    Ok(_) => {}
                    Err(error) if is_help(&error) => {}
                    Err(error) => panic!("{place}\n{error}"),
                }
                seen.extend(words.get(1).cloned());
            }
        }
    }
    for command in ["serve", "check", "demo", "ledger"] {
        assert!(
            seen.contains(command),
            "no document shows `tikigate {command}`: {seen:?}"
        );
    }
}

fn is_help(error: &clap::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    )
}

#[test]
fn relative_links_lead_to_files_and_headings_that_are_there() {
    let mut checked = 0;
    for (path, text) in documents() {
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link} leads nowhere", path.display());
            if !anchor.is_empty() && is_markdown(&target) {
                let text = fs::read_to_string(&target).unwrap();
                let there = anchors(&text).contains(anchor);
                assert!(
                    there,
                    "{}: {link}: there is no such heading",
                    path.display()
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 0, "the documents have no links at all");
}

#[test]
fn configurations_in_the_documents_can_be_used() {
    let mut checked = 0;
    for (path, text) in documents() {
        for Block {
            line,
            language,
            text,
        } in blocks(&text)
        {
            if language != "toml" || !text.contains("[[routes]]") {
                continue;
            }
            let output = Sample::new(&text).command(&["check"]).output().unwrap();
            let told = String::from_utf8_lossy(&output.stdout);
            let place = format!("{}:{line}", path.display());
            assert_eq!(output.status.code(), Some(0), "{place}: {told}");
            checked += 1;
        }
    }
    assert!(checked > 0, "no document shows a configuration");
}

/// Code, status and reasons of each row in `docs/errors.md`.
fn documented_errors() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = fs::read_to_string(samples::root().join("docs/errors.md")).unwrap();
    let mut errors = BTreeMap::new();
    for row in table_rows(&text, "code") {
        let word = |cell: &str| cell.trim_matches('`').to_owned();
        let reasons = row[2]
            .split(' ')
            .map(word)
            .filter(|word| !word.is_empty())
            .collect();
        let before = errors.insert(word(&row[0]), (row[1].clone(), reasons));
        assert!(before.is_none(), "{} is there twice", row[0]);
    }
    errors
}

#[test]
fn the_table_of_errors_is_the_gates() {
    let documented = documented_errors();
    let mut reasons: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (code, reason) in Refusal::labels() {
        let reasons = reasons.entry(code.to_owned()).or_default();
        reasons.extend(Some(reason.to_owned()).filter(|reason| !reason.is_empty()));
    }
    let listed = documented
        .iter()
        .map(|(code, (_, reasons))| (code.clone(), reasons.clone()));
    assert_eq!(listed.collect::<BTreeMap<_, _>>(), reasons);

    let statuses = statuses_in_the_source();
    assert_eq!(
        statuses.keys().collect::<Vec<_>>(),
        reasons.keys().collect::<Vec<_>>()
    );
    for (code, status) in statuses {
        let (told, _) = &documented[&code];
        let first = told.split_whitespace().next().unwrap();
        assert_eq!(first, status, "{code}");
    }
    assert_eq!(
        documented["unauthenticated"].0, "401 or 503",
        "`refuse_with` may be either"
    );
}

/// The gate's own table, as its source says it.
fn statuses_in_the_source() -> BTreeMap<String, String> {
    let source = fs::read_to_string(samples::root().join("src/gate/refusal.rs")).unwrap();
    let words: Vec<_> = source.split_whitespace().collect();
    let mut statuses = BTreeMap::new();
    for place in words.windows(4) {
        if let ["code:", code, "status:", status] = place {
            let code = code.trim_matches(['"', ',']);
            statuses.insert(code.to_owned(), status.trim_end_matches(',').to_owned());
        }
    }
    statuses
}

/// What may be sent again is 5xx, what may not is 4xx, and the page says which.
#[test]
fn the_table_of_errors_says_whether_tiki_sends_again() {
    let text = fs::read_to_string(samples::root().join("docs/errors.md")).unwrap();
    for row in table_rows(&text, "code") {
        let again = row[3].as_str();
        let expected = match row[1].as_str() {
            "401 or 503" => "as the status says",
            status if status.starts_with('5') => "yes",
            _ => "no",
        };
        assert_eq!(again, expected, "{}", row[0]);
    }
}

/// The page on security names the tests that show each line: they must be there.
#[test]
fn the_tests_that_the_page_on_security_names_exist() {
    let root = samples::root();
    let page = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let code = all_code(&[root.join("src"), root.join("tests/it")]);
    let mut named = 0;
    for row in table_rows(&page, "threat") {
        let tests: Vec<&str> = row[2].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test shows: {}", row[0]);
        for name in tests {
            let definition = format!("fn {name}(");
            assert!(code.contains(&definition), "there is no test {name}");
            named += 1;
        }
    }
    assert!(named > 30, "{named}");
}

/// The text of every Rust file in these directories.
fn all_code(directories: &[PathBuf]) -> String {
    let mut code = String::new();
    let mut waiting = directories.to_vec();
    while let Some(directory) = waiting.pop() {
        for path in samples::files(&directory) {
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                code.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    code
}
