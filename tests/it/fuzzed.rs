//! What fuzzing found and kept, replayed through the fuzzers' own functions, without a fuzzer.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::support::samples;

#[path = "../../fuzz/src/lib.rs"]
pub(crate) mod targets;

use targets::{Target, cases};

#[test]
fn the_hostile_corpus_as_the_fuzzer_sends_it() {
    for path in samples::files(&samples::root().join("tests/data/hostile")) {
        for case in cases::read(&fs::read_to_string(&path).unwrap()) {
            let what = format!("{}:{}", path.display(), case.line);
            run(targets::whole_request, &what, &case.template);
        }
    }
}

/// Every target has its fuzzer.
#[test]
fn no_target_is_left_out() {
    let names: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    let files = samples::files(&samples::root().join("fuzz/fuzz_targets"));
    let found = files
        .iter()
        .map(|path| path.file_stem().unwrap().to_str().unwrap());
    assert_eq!(found.collect::<Vec<_>>(), names);
}

/// The panic's message came before; this says of which input it was.
fn run(target: Target, what: &str, input: &[u8]) {
    let ran = catch_unwind(AssertUnwindSafe(|| target(input)));
    assert!(ran.is_ok(), "{what} fails the target");
}
