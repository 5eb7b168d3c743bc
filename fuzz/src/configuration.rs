//! Configurations: whatever is written, it is read or its problems are told.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use tempfile::TempDir;
use tikigate::config::{self, Severity};

/// What the files of the samples hold; it must not turn up anywhere.
const CONTENT: &str = "never-to-be-shown-0123456789-abcdefghij";

/// A configuration's text. It may name the secrets of the samples, which are there.
///
/// # Panics
/// When a text is refused without an error that says why, when a problem stands nowhere, or when a
/// secret shows.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // Reading what a path leads to is not what is looked into here.
    if text.contains("/dev") || text.contains("/proc") || text.contains("..") {
        return;
    }
    let lines = text.split('\n').count();
    let loaded = DIRECTORY.with(|base| config::load_text(text, "fuzz.toml", base.path(), &[]));
    let problems = match loaded {
        Ok(loaded) => {
            let shown = config::effective(&loaded.settings).to_string();
            assert!(!shown.contains(CONTENT), "a secret is shown");
            let debug = format!("{:?}", loaded.settings);
            assert!(!debug.contains(CONTENT), "a secret is shown in Debug");
            let warnings = loaded.warnings;
            assert!(warnings.iter().all(|one| one.severity == Severity::Warning));
            warnings
        }
        Err(problems) => {
            let errors = problems.iter().any(|one| one.severity == Severity::Error);
            assert!(errors, "refused without an error");
            problems
        }
    };
    for problem in problems {
        let shown = problem.to_string();
        assert!(!shown.contains(CONTENT), "a secret is shown");
        assert!(!problem.message.is_empty() && !problem.code.is_empty());
        assert!(
            problem.line.is_none_or(|line| (1..=lines).contains(&line)),
            "{shown}"
        );
        assert!(problem.column.is_none_or(|column| column > 0), "{shown}");
    }
}

thread_local! {
    /// The files that the samples name.
    static DIRECTORY: TempDir = directory();
}

fn directory() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("secrets")).expect("a directory in it");
    for name in [
        "secret",
        "other-secret",
        "admin.token",
        "secrets/admin.token",
        "secrets/backend.key",
        "secrets/demo.secret",
        "secrets/wallet.secret",
        "secrets/wallet-old.secret",
    ] {
        let mut options = fs::File::options();
        let path = directory.path().join(name);
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        let written = file.and_then(|mut file| file.write_all(CONTENT.as_bytes()));
        written.expect("a file in it");
    }
    directory
}
