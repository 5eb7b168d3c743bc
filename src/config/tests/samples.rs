//! The samples are good, and they and the documents know every key.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::super::problem::Problems;
use super::super::schema::Configuration;
use super::super::tree;
use super::{directory, load_in, told, write};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn samples() -> Vec<PathBuf> {
    let mut samples: Vec<PathBuf> = fs::read_dir(root().join("config"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    samples.sort();
    samples
}

/// A copy of the samples' secrets that only their owner can read, as they should be.
fn secrets() -> tempfile::TempDir {
    let copy = directory();
    fs::create_dir(copy.path().join("secrets")).unwrap();
    for entry in fs::read_dir(root().join("config/secrets")).unwrap() {
        let path = entry.unwrap().path();
        let name = Path::new("secrets").join(path.file_name().unwrap());
        write(
            copy.path(),
            name.to_str().unwrap(),
            &fs::read(&path).unwrap(),
        );
    }
    copy
}

#[test]
fn every_sample_has_no_problem() {
    assert!(samples().len() >= 3);
    for sample in samples() {
        let text = fs::read_to_string(&sample).unwrap();
        match load_in(secrets().path(), &text, &[]) {
            Ok(loaded) => assert_eq!(loaded.warnings, [], "{}", sample.display()),
            Err(problems) => panic!("{}:\n{}", sample.display(), told(&problems)),
        }
    }
}

#[test]
fn the_full_sample_and_the_document_name_every_key() {
    let full = fs::read_to_string(root().join("config/full.toml")).unwrap();
    let document = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    // Commented-out lines are read too, so that keys which are not available are shown as such.
    let everything = format!(
        "{full}
[server.tls]
certificate = ''
"
    );
    let words: HashSet<&str> = document
        .split('`')
        .skip(1)
        .step_by(2)
        .flat_map(|code| {
            code.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        })
        .collect();
    let mut problems = Problems::new("full.toml", &everything);
    let node = tree::parse(&everything, &mut problems).unwrap();
    Configuration::read(node, &mut problems);
    assert!(problems.known.len() > 100, "{}", problems.known.len());
    for key in &problems.known {
        let name = key.rsplit('.').next().unwrap();
        assert!(
            full.contains(name),
            "config/full.toml says nothing of {key}"
        );
        assert!(
            words.contains(name),
            "docs/configuration.md says nothing of {key}"
        );
    }
}
