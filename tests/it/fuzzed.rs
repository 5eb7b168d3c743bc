//! What fuzzing found and kept, replayed through the fuzzers' own functions, without a fuzzer.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::support::samples;

#[path = "../../fuzz/src/lib.rs"]
pub(crate) mod targets;

use targets::{Target, cases};

#[test]
fn the_corpus_of_configurations() {
    replay("configuration");
}

#[test]
fn the_corpus_of_payloads() {
    replay("payload");
}

#[test]
fn the_corpus_of_proxy_headers() {
    replay("proxy_header");
}

#[test]
fn the_corpus_of_signature_headers() {
    replay("signature_headers");
}

#[test]
fn the_corpus_of_whole_requests() {
    replay("whole_request");
}

#[test]
fn the_hostile_corpus_as_the_fuzzer_sends_it() {
    for path in samples::files(&samples::root().join("tests/data/hostile")) {
        for case in cases::read(&fs::read_to_string(&path).unwrap()) {
            let what = format!("{}:{}", path.display(), case.line);
            run(targets::whole_request, &what, &case.template);
        }
    }
}

/// Every target has a corpus, and a test above.
#[test]
fn no_target_is_left_out() {
    let names: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    let here = include_str!("fuzzed.rs");
    for name in &names {
        assert!(here.contains(&format!("replay(\"{name}\")")), "{name}");
    }
    for folder in ["corpus", "fuzz_targets"] {
        let entries = fs::read_dir(samples::root().join("fuzz").join(folder)).unwrap();
        let mut found: Vec<String> = entries
            .map(|entry| entry.unwrap().path())
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        found.sort();
        assert_eq!(found, names, "fuzz/{folder}");
    }
}

fn replay(name: &str) {
    let target = targets::TARGETS.iter().find(|(is, _)| *is == name);
    let (_, target) = target.unwrap();
    let inputs = samples::files(&samples::root().join("fuzz/corpus").join(name));
    assert!(inputs.len() > 20, "a corpus of {}", inputs.len());
    for path in inputs {
        run(
            *target,
            &path.display().to_string(),
            &fs::read(&path).unwrap(),
        );
    }
}

/// The panic's message came before; this says of which input it was.
fn run(target: Target, what: &str, input: &[u8]) {
    let ran = catch_unwind(AssertUnwindSafe(|| target(input)));
    assert!(ran.is_ok(), "{what} fails the target");
}
