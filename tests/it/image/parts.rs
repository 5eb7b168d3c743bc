//! The list of parts (SBOM): all that is in the binary and nothing else, in the form that tools read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{binary, layer, output, script};
use crate::support::samples;

const IN_THE_LAYER: &str = "./usr/share/sbom/tikigate.cdx.json";

/// The text that the image carries.
fn text() -> String {
    output(
        Command::new("tar")
            .args(["--extract", "--to-stdout", "--file"])
            .arg(layer())
            .arg(IN_THE_LAYER),
    )
}

fn list() -> Value {
    serde_json::from_str(&text()).unwrap()
}

/// Versions of crates by their scope.
fn crates(list: &Value) -> BTreeMap<String, String> {
    let components = list["components"].as_array().unwrap();
    let is_crate = |purl: &&Value| purl["purl"].as_str().unwrap().starts_with("pkg:cargo/");
    components
        .iter()
        .filter(is_crate)
        .map(|part| {
            let name = part["name"].as_str().unwrap();
            let version = part["version"].as_str().unwrap();
            let scope = part["scope"].as_str().unwrap();
            (format!("{name} v{version}"), scope.to_owned())
        })
        .collect()
}

/// What cargo itself says that it would build: another way than the list's, which is made of what was built.
fn tree(edges: &str) -> BTreeSet<String> {
    let host = output(&mut script("rustc", &["--version", "--verbose"]));
    let host = host
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap();
    let tree = output(&mut script(
        "cargo",
        &[
            "tree",
            "--locked",
            "--edges",
            edges,
            "--target",
            host,
            "--prefix",
            "none",
            "--no-dedupe",
        ],
    ));
    let names = tree.lines().map(|line| {
        let mut words = line.split_whitespace();
        format!("{} {}", words.next().unwrap(), words.next().unwrap())
    });
    let own = format!("tikigate v{}", env!("CARGO_PKG_VERSION"));
    names.filter(|name| *name != own).collect()
}

#[test]
fn each_crate_that_was_built_in_is_listed_and_no_other() {
    let listed = crates(&list());
    let all: BTreeSet<_> = listed.keys().cloned().collect();
    assert_eq!(all, tree("normal,build"));
    assert!(
        all.iter().any(|name| name.starts_with("rustls v")),
        "{all:?}"
    );
    // What tests alone need is not in it.
    for name in ["proptest", "trybuild", "rcgen", "tempfile"] {
        assert!(
            !all.iter().any(|it| it.starts_with(&format!("{name} v"))),
            "{name}"
        );
    }
    // Macros and what compiles C ran at the build; what runs in the gate doesn't count as such.
    let scope = |name: &str| {
        let mut found = listed
            .iter()
            .filter(|(it, _)| it.starts_with(&format!("{name} v")));
        found.next().map(|(_, scope)| scope.as_str())
    };
    for (name, expected) in [
        ("serde_derive", "excluded"),
        ("thiserror-impl", "excluded"),
        ("cc", "excluded"),
        ("rustls", "required"),
        ("aws-lc-sys", "required"),
        ("libsqlite3-sys", "required"),
        ("tokio", "required"),
    ] {
        assert_eq!(scope(name), Some(expected), "{name}");
    }
}

#[test]
fn what_is_no_crate_is_listed_with_the_version_that_is_in_the_binary() {
    let list = list();
    let components = list["components"].as_array().unwrap();
    let others: BTreeMap<_, _> = components
        .iter()
        .filter(|part| !part["purl"].as_str().unwrap().starts_with("pkg:cargo/"))
        .map(|part| {
            (
                part["name"].as_str().unwrap(),
                part["version"].as_str().unwrap(),
            )
        })
        .collect();
    let names: Vec<_> = others.keys().copied().collect();
    let expected = [
        "aws-lc",
        "ca-certificates",
        "glibc",
        "libgcc",
        "rust-std",
        "sqlite",
        "tzdata",
    ];
    assert_eq!(names, expected);
    let bytes = fs::read(binary()).unwrap();
    let has = |text: &str| memchr::memmem::find(&bytes, text.as_bytes()).is_some();
    // They tell it themselves; the gate's own library says which SQLite it was compiled with.
    assert!(
        has(&format!("GLIBC {}) stable release", others["glibc"])),
        "{others:?}"
    );
    assert_eq!(others["sqlite"], rusqlite::version());
    assert!(has(others["sqlite"]), "{others:?}");
    assert!(has("AWS-LC"), "{others:?}");
    assert_eq!(
        others["rust-std"],
        output(&mut script("rustc", &["--version"]))
            .split(' ')
            .nth(1)
            .unwrap()
    );
}

#[test]
fn the_list_belongs_to_this_binary_and_is_whole() {
    let list = list();
    let own = &list["metadata"]["component"];
    assert_eq!(own["version"], env!("CARGO_PKG_VERSION"));
    let digest = base16ct::lower::encode_string(&Sha256::digest(fs::read(binary()).unwrap()));
    assert_eq!(own["hashes"][0]["content"], digest);
    // Made again it is the same text.
    assert_eq!(output(&mut script("deploy/image/sbom", &[])), text());
    // Everything is needed by something, from the program on.
    let mut needs = BTreeMap::new();
    for entry in list["dependencies"].as_array().unwrap() {
        let names = entry["dependsOn"].as_array().unwrap().iter();
        let names: Vec<_> = names.map(|name| name.as_str().unwrap()).collect();
        needs.insert(entry["ref"].as_str().unwrap(), names);
    }
    let mut reached = BTreeSet::new();
    let mut open = vec![own["bom-ref"].as_str().unwrap()];
    while let Some(name) = open.pop() {
        if reached.insert(name) {
            open.extend(&needs[name]);
        }
    }
    let components = list["components"].as_array().unwrap();
    for component in components {
        let name = component["bom-ref"].as_str().unwrap();
        assert!(reached.contains(name), "nothing needs {name}");
    }
    assert_eq!(reached.len(), components.len() + 1);
}

#[test]
fn it_is_cyclonedx_by_the_schema() {
    let validate = |text: &str| {
        let place = tempfile::NamedTempFile::new().unwrap();
        fs::write(place.path(), text).unwrap();
        let mut command = Command::new(samples::root().join("target/tools/image/bin/python"));
        command
            .arg(samples::root().join("tests/it/image/validate.py"))
            .arg(place.path());
        let told = command
            .output()
            .unwrap_or_else(|error| panic!("{error}: target/tools/image is made by tests/run"));
        (
            told.status.code(),
            String::from_utf8_lossy(&told.stdout).into_owned(),
        )
    };
    let (code, told) = validate(&text());
    assert_eq!(code, Some(0), "{told}");
    // What it is checked against is no formality.
    let mut broken = list();
    broken["components"][0]["scope"] = "perhaps".into();
    let (code, told) = validate(&broken.to_string());
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("perhaps"), "{told}");
}

#[test]
fn each_linked_crate_has_its_licence_in_the_image() {
    let licences = output(
        Command::new("tar")
            .args(["--extract", "--to-stdout", "--file"])
            .arg(layer())
            .arg("./usr/share/doc/tikigate/third-party-licences.txt"),
    );
    for (name, scope) in crates(&list()) {
        let named = format!("{} (", name.replacen(" v", " ", 1));
        assert_eq!(licences.contains(&named), scope == "required", "{name}");
    }
    for words in [
        "Lesser General Public",
        "GNU General Public License",
        "Permission is hereby granted",
    ] {
        assert!(licences.contains(words), "{words}");
    }
}
