//! A rendered configuration with its secrets, laid out in a directory as a kubelet lays them out.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::Value;
use tikigate::config::{self, Settings};

use super::rules::Rendering;
use crate::support::gate_process::Setup;

/// Long enough for a key or a token, and nobody's.
pub(super) const NOBODYS_SECRET: &str = "not-a-secret-only-for-the-tests-0123456789";
/// What a database that is elsewhere is called by.
const DATABASE_URL: &str = "postgres://tikigate:nothing@db.example:5432/tikigate";

/// The rendered configuration as `tikigate.toml`, and beside it the Secret, with the mode that the pod gives
/// its files, behind the links by which Kubernetes swaps all of them at once.
pub(super) fn lay(rendering: &Rendering<'_>) -> Setup {
    let text = rendering.configuration();
    let mode = rendering.secret_mode();
    let setup = Setup::new(text).environment("DATABASE_URL", DATABASE_URL);
    let mounted = setup.directory().join("secrets");
    let version = mounted.join("..2026_11_27");
    fs::create_dir_all(&version).unwrap();
    symlink("..2026_11_27", mounted.join("..data")).unwrap();
    for name in secret_files(text) {
        let content = match Path::new(&name).extension() {
            Some(extension) if extension == "crt" => authority(),
            _ => NOBODYS_SECRET.to_owned(),
        };
        let path = version.join(&name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        symlink(Path::new("..data").join(&name), mounted.join(&name)).unwrap();
    }
    setup
}

/// What the rendered configuration means; the errors as text.
pub(super) fn settings(rendering: &Rendering<'_>) -> Result<Settings, String> {
    let setup = lay(rendering);
    let environment: Vec<(OsString, OsString)> = vec![("DATABASE_URL".into(), DATABASE_URL.into())];
    config::load(&setup.config_path(), &environment)
        .map(|loaded| loaded.settings)
        .map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            lines.join("\n")
        })
}

/// The names of the Secret's files that a configuration wants.
pub(super) fn secret_files(configuration: &str) -> Vec<String> {
    let table: toml::Table = configuration.parse().unwrap();
    let mut found = Vec::new();
    strings(&toml::Value::Table(table), &mut found);
    let mut names: Vec<String> = found
        .iter()
        .filter_map(|text| text.strip_prefix("secrets/").map(str::to_owned))
        .collect();
    names.sort();
    names.dedup();
    names
}

fn strings(value: &toml::Value, found: &mut Vec<String>) {
    match value {
        toml::Value::String(text) => found.push(text.clone()),
        toml::Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        toml::Value::Table(table) => table.values().for_each(|item| strings(item, found)),
        _ => {}
    }
}

/// A certificate of an authority that nobody uses.
fn authority() -> String {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    parameters.self_signed(&key).unwrap().pem()
}

/// A `Value` that a rule looks for and that is not there reads as null, which no rule accepts.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}
