//! The crate's structure: who may import whom, and what no file may contain.
//!
//! [`MAY_IMPORT`] is the rule; `CONTRIBUTING.md` explains it and shows the same table. Where the
//! rule proves wrong, both change together.

mod sources;

use std::path::Path;

use sources::{Reference, Sources};

/// Which top-level modules a top-level module may import; itself always.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("tiki", &[]),
    ("clock", &[]),
    ("failpoint", &[]),
    ("net", &[]),
    ("metrics", &[]),
    ("config", &["tiki", "net"]),
    ("telemetry", &["config"]),
    (
        "client",
        &["config", "metrics", "clock", "net", "failpoint"],
    ),
    ("traces", &["config", "client", "metrics"]),
    ("store", &["config", "metrics", "clock", "net", "failpoint"]),
    (
        "ledger",
        &["tiki", "clock", "metrics", "store", "failpoint"],
    ),
    (
        "outbound",
        &[
            "tiki",
            "clock",
            "net",
            "metrics",
            "config",
            "telemetry",
            "client",
            "store",
            "ledger",
            "failpoint",
        ],
    ),
    (
        "gate",
        &[
            "tiki",
            "clock",
            "net",
            "metrics",
            "config",
            "telemetry",
            "client",
            "store",
            "ledger",
            "outbound",
            "traces",
            "failpoint",
        ],
    ),
    ("admin", &["config", "net", "metrics", "ledger", "outbound"]),
    ("server", &["config", "net", "metrics", "failpoint"]),
    (
        "app",
        &[
            "tiki",
            "clock",
            "net",
            "metrics",
            "config",
            "telemetry",
            "client",
            "store",
            "ledger",
            "traces",
            "failpoint",
            "gate",
            "outbound",
            "admin",
            "server",
        ],
    ),
    (
        "cli",
        &["app", "config", "tiki", "clock", "client", "store"],
    ),
];

/// A module that sees of another one only the names at its top, and nothing out of these submodules.
struct Narrow {
    module: &'static str,
    of: &'static str,
    hidden: &'static [&'static str],
}

/// The gate works with any ledger: it knows the trait and its types, not a store.
const NARROW: &[Narrow] = &[Narrow {
    module: "gate",
    of: "ledger",
    hidden: &["memory", "sqlite", "postgres", "conformance"],
}];

/// What a pure module may not name: no I/O, no clock, no logging.
const IMPURE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant::now",
    "std::time::SystemTime::now",
    "tokio",
    "tracing",
];

/// Modules that [`IMPURE`] holds for.
const PURE: &[&str] = &["tiki"];

/// A file longer than this is to be split.
const MAX_LINES: usize = 600;

#[test]
fn modules_import_only_what_they_may() {
    let references = sources::references(&crate_sources()).unwrap();
    assert!(
        !references.is_empty(),
        "no path was found, so none was checked"
    );
    assert_none(import_faults(&references));
}

#[test]
fn pure_modules_do_no_io_and_read_no_clock() {
    let references = sources::references(&crate_sources()).unwrap();
    assert_none(purity_faults(&references));
}

#[test]
fn no_file_is_unsafe_or_too_long() {
    let mut faults = Vec::new();
    for (file, text) in crate_sources() {
        for line in sources::unsafe_lines(&text) {
            faults.push(format!("src/{file}:{line}: unsafe code"));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            faults.push(format!(
                "src/{file}: {lines} lines, more than {MAX_LINES}: split it"
            ));
        }
    }
    assert_none(faults);
}

#[test]
fn the_guide_shows_the_same_table() {
    let guide = std::fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let shown: Vec<Vec<&str>> = guide
        .lines()
        .skip_while(|line| !line.starts_with("| module | may import |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('`').skip(1).step_by(2).collect())
        .collect();
    let meant: Vec<Vec<&str>> = MAY_IMPORT
        .iter()
        .map(|(module, others)| [&[*module], *others].concat())
        .collect();
    assert_eq!(shown, meant);
}

#[test]
fn no_two_modules_may_import_each_other() {
    // A row names only modules of earlier rows, so the order of the table is the order of the layers.
    for (row, (module, others)) in MAY_IMPORT.iter().enumerate() {
        for other in *others {
            assert!(
                MAY_IMPORT[..row]
                    .iter()
                    .any(|(earlier, _)| earlier == other),
                "`{module}` may import `{other}`, which stands in no earlier row"
            );
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn crate_sources() -> Sources {
    sources::read(&root().join("src"))
}

#[track_caller]
fn assert_none(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn import_faults(references: &[Reference]) -> Vec<String> {
    let mut faults = Vec::new();
    for reference in references {
        // lib.rs names its modules and nothing else; what it re-exported would be found at its users.
        let Some(module) = reference.module.first() else {
            continue;
        };
        if let Some(what) = forbidden(module, reference) {
            push_once(
                &mut faults,
                reference,
                &format!("`{module}` may not {what}"),
            );
        }
    }
    faults
}

fn forbidden(module: &str, reference: &Reference) -> Option<String> {
    let Some((_, others)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
        return Some("be there: give it a row in the table".to_owned());
    };
    if reference.path[0] != "crate" {
        return None;
    }
    let Some(target) = reference.path.get(1) else {
        return Some("import the whole crate".to_owned());
    };
    if target != module && !others.contains(&target.as_str()) {
        return Some(format!("import `crate::{target}`"));
    }
    let narrow = NARROW
        .iter()
        .find(|narrow| narrow.module == module && narrow.of == target)?;
    let is_name_at_top = reference
        .path
        .get(2)
        .is_none_or(|name| name.starts_with(char::is_uppercase));
    let comes_from_hidden = reference.origin.get(1).is_some_and(|it| it == narrow.of)
        && reference
            .origin
            .get(2)
            .is_some_and(|from| narrow.hidden.contains(&from.as_str()));
    (!is_name_at_top || comes_from_hidden)
        .then(|| format!("import `{}`", reference.path.join("::")))
}

fn purity_faults(references: &[Reference]) -> Vec<String> {
    let mut faults = Vec::new();
    for reference in references {
        let Some(module) = reference.module.first() else {
            continue;
        };
        let path = reference.path.join("::");
        let is_impure = IMPURE
            .iter()
            .any(|word| path == *word || path.starts_with(&format!("{word}::")));
        if PURE.contains(&module.as_str()) && is_impure {
            push_once(
                &mut faults,
                reference,
                &format!("`{module}` is pure: no `{path}`"),
            );
        }
    }
    faults
}

/// One message a file and fault: the first line is where the others come from.
fn push_once(faults: &mut Vec<String>, reference: &Reference, what: &str) {
    let place = format!("src/{}:", reference.file);
    let is_known = faults
        .iter()
        .any(|fault| fault.starts_with(&place) && fault.ends_with(what));
    if !is_known {
        faults.push(format!("{place}{}: {what}", reference.line));
    }
}

mod checker {
    //! The checks above pass on a clean tree; these show that they would not pass on any other.

    use super::*;

    const LIB: &str = "pub mod admin; pub mod gate; pub mod ledger; pub mod net; pub mod tiki;";
    const LEDGER: &str = "pub mod memory; pub use memory::MemoryLedger; pub struct Key;";

    /// A small crate whose file `name` reads `text`.
    fn crate_with(name: &str, text: &str) -> Vec<Reference> {
        let mut files = Sources::new();
        for (file, content) in [
            ("lib.rs", LIB),
            ("admin/mod.rs", "pub struct Admin;"),
            ("gate/mod.rs", ""),
            ("ledger/mod.rs", LEDGER),
            ("ledger/memory.rs", "pub struct MemoryLedger;"),
            ("net.rs", "pub struct Peer;"),
            ("tiki/mod.rs", ""),
            (name, text),
        ] {
            files.insert(file.to_owned(), content.to_owned());
        }
        sources::references(&files).unwrap()
    }

    #[test]
    fn each_way_to_a_forbidden_module_is_found() {
        let ways = [
            "use crate::admin::Admin;",
            "use crate::admin;",
            "use crate::admin as console;",
            "use crate::{net::{Peer}, admin::{self, Admin}};",
            "use super::admin::Admin;",
            "use self::super::admin::*;",
            "mod inner { use super::super::admin::Admin; }",
            "mod inner { mod deeper { use super::super::super::admin::Admin; } }",
            "fn run() { crate::admin::start() }",
            "fn run() { if true { use crate::admin::start; } }",
            "fn run(it: &mut dyn Iterator<Item = crate::admin::Admin>) {}",
            "impl crate::admin::Console for Gate {}",
            "fn run() -> bool { matches!(1, crate::admin::ONE) }",
            "fn run() { println!(\"{}\", vec![super::admin::one()][0]) }",
            "macro_rules! run { () => { $crate::admin::start() } }",
            "macro_rules! run { () => { use crate::{admin}; } }",
            "#[serde(with = \"crate::admin::seconds\")] struct Gate;",
            "#[derive(crate::admin::Console)] struct Gate;",
            "use crate as it; fn run() { it::admin::start() }",
            "use crate::*;",
        ];
        for way in ways {
            let faults = import_faults(&crate_with("gate/mod.rs", way));
            assert!(
                faults
                    .iter()
                    .any(|fault| fault.starts_with("src/gate/mod.rs:1: `gate` may not import")),
                "{way}\n{faults:?}"
            );
        }
    }

    #[test]
    fn what_is_allowed_is_no_fault() {
        let ways = [
            "use crate::net::Peer; use crate::ledger::{self, Key}; use crate::gate::Own;",
            "fn run(key: ledger::Key) {} use crate::ledger;",
            "mod inner { use super::Own; use super::super::net::Peer; } pub struct Own;",
            "mod admin { pub fn start() {} } fn run() { admin::start() }",
            "pub(in crate::gate) struct Own;",
            "//! See [`crate::admin`].\n/// And `crate::admin::Admin`.\npub struct Own;",
            "fn run() { let crate_admin = \"crate::admin\"; }",
            "#[cfg(test)] mod tests { use crate::admin::Admin; }",
            "#[cfg(all(test, unix))] mod tests;",
        ];
        for way in ways {
            let faults = import_faults(&crate_with("gate/mod.rs", way));
            assert!(faults.is_empty(), "{way}\n{faults:?}");
        }
    }

    #[test]
    fn a_test_only_module_is_one_that_no_other_build_has() {
        let way = "#[cfg(any(test, feature = \"x\"))] mod tests { use crate::admin::Admin; }";
        assert!(!import_faults(&crate_with("gate/mod.rs", way)).is_empty());
    }

    #[test]
    fn the_gate_sees_no_store() {
        let ways = [
            "use crate::ledger::memory::MemoryLedger;",
            "use crate::ledger::memory;",
            "use crate::ledger::MemoryLedger;",
            "use crate::ledger::*;",
            "use crate::ledger; fn run() { ledger::memory::MemoryLedger }",
            "use crate::ledger as books; fn run(it: books::MemoryLedger) {}",
        ];
        for way in ways {
            let faults = import_faults(&crate_with("gate/mod.rs", way));
            assert!(!faults.is_empty(), "{way}");
        }
        let others = import_faults(&crate_with("ledger/mod.rs", LEDGER));
        assert!(others.is_empty(), "{others:?}");
    }

    #[test]
    fn files_below_a_module_are_read_too() {
        let mut files = Sources::new();
        for (file, content) in [
            ("lib.rs", "mod gate;"),
            ("gate/mod.rs", "mod step; mod inner { mod leaf; }"),
            ("gate/step.rs", "\nuse crate::cli::main;"),
            ("gate/inner/leaf.rs", "use super::super::super::cli;"),
        ] {
            files.insert(file.to_owned(), content.to_owned());
        }
        let faults = import_faults(&sources::references(&files).unwrap());
        assert_eq!(
            faults,
            [
                "src/gate/step.rs:2: `gate` may not import `crate::cli`",
                "src/gate/inner/leaf.rs:1: `gate` may not import `crate::cli`",
            ]
        );
    }

    #[test]
    fn a_module_out_of_sight_is_an_error() {
        for lib in ["mod gate;", "#[path = \"elsewhere.rs\"] mod net;"] {
            let files = Sources::from([
                ("lib.rs".to_owned(), lib.to_owned()),
                ("net.rs".to_owned(), String::new()),
            ]);
            assert!(sources::references(&files).is_err(), "{lib}");
        }
    }

    #[test]
    fn a_module_without_a_row_is_a_fault() {
        let files = Sources::from([
            ("lib.rs".to_owned(), "mod extra;".to_owned()),
            ("extra.rs".to_owned(), "use std::fmt;".to_owned()),
        ]);
        let faults = import_faults(&sources::references(&files).unwrap());
        assert_eq!(faults.len(), 1, "{faults:?}");
    }

    #[test]
    fn impure_calls_are_found() {
        let ways = [
            "fn run() { std::time::SystemTime::now(); }",
            "use std::time::{Duration, SystemTime}; fn run() { SystemTime::now(); }",
            "use std::time; fn run() { time::Instant::now(); }",
            "use std::{fmt, fs::File};",
            "use std::net::IpAddr;",
            "use tokio::io;",
            "fn run() { tracing::info!(\"read\"); }",
            "use tracing as log; fn run() { log::info!(\"read\"); }",
            "fn run() { assert!(std::fs::exists(\"x\").is_ok()); }",
        ];
        for way in ways {
            let faults = purity_faults(&crate_with("tiki/mod.rs", way));
            assert!(!faults.is_empty(), "{way}");
            assert!(
                purity_faults(&crate_with("net.rs", way)).is_empty(),
                "{way}"
            );
        }
        let pure = "use std::time::{Duration, SystemTime}; fn age(now: SystemTime) {}";
        assert!(purity_faults(&crate_with("tiki/mod.rs", pure)).is_empty());
    }

    #[test]
    fn only_the_keyword_is_unsafe() {
        let text = "// unsafe\n#![forbid(unsafe_code)]\nfn a() { let s = \"unsafe\"; }\n";
        assert!(sources::unsafe_lines(text).is_empty());
        assert_eq!(
            sources::unsafe_lines("fn a() {\n    unsafe { b() }\n}"),
            [2]
        );
    }
}
