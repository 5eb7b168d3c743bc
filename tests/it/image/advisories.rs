//! Known weaknesses of dependencies: `.ci/advisories` says when it can't look, and finds one that it is told of.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::{output, script};

/// A clone as RustSec's is laid out, with one advisory, about this crate.
fn database(about: &str) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("crates").join(about);
    fs::create_dir_all(&directory).unwrap();
    let text = format!(
        "```toml\n[advisory]\nid = \"RUSTSEC-2099-0001\"\npackage = \"{about}\"\ndate = \"2026-11-01\"\n\
         [versions]\npatched = [\">= 9999.0.0\"]\n```\n\n# Of the test\n\nText.\n"
    );
    fs::write(directory.join("RUSTSEC-2099-0001.md"), text).unwrap();
    for arguments in [
        &["init", "--quiet"][..],
        &["add", "--all"],
        &[
            "-c",
            "user.name=test",
            "-c",
            "user.email=test@test.invalid",
            "commit",
            "--quiet",
            "--message",
            "one",
        ],
    ] {
        output(
            Command::new("git")
                .args(arguments)
                .current_dir(place.path()),
        );
    }
    place
}

/// Whether the check passed, and what it said.
fn check(copy: Option<&Path>) -> (bool, String) {
    let mut command = script(".ci/advisories", &[]);
    command.env_remove("TIKIGATE_ADVISORIES");
    match copy {
        Some(copy) => command.env("TIKIGATE_ADVISORIES", copy),
        // Where nobody has left one.
        None => command.env("CARGO_HOME", "/nonexistent"),
    };
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.success(), said)
}

#[test]
fn without_a_copy_it_says_that_nothing_was_checked_and_how_to_bring_one() {
    let (passed, said) = check(None);
    assert!(passed, "{said}");
    for words in [
        "NOT CHECKED: advisories",
        "git clone",
        "TIKIGATE_ADVISORIES",
    ] {
        assert!(said.contains(words), "{said}");
    }
    // But a copy that is named and not there is a mistake, not a reason to go on.
    let (passed, said) = check(Some("/nonexistent".as_ref()));
    assert!(!passed && said.contains("no such directory"), "{said}");
}

/// `.ci/run` has installed cargo-deny before it comes here; where it never ran, the script says so instead.
#[test]
fn a_copy_that_knows_of_a_weakness_fails_the_check() {
    let has_checker = script("cargo", &["deny", "--version"])
        .output()
        .unwrap()
        .status
        .success();
    let (passed, said) = check(Some(database("bytes").path()));
    if has_checker {
        assert!(!passed && said.contains("RUSTSEC-2099-0001"), "{said}");
    } else {
        assert!(passed && said.contains("NOT CHECKED: advisories"), "{said}");
    }
    let (passed, said) = check(Some(database("of-nobody").path()));
    assert!(passed, "{said}");
}
