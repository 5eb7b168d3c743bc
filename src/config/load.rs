//! Reading a configuration: text, overrides, meaning; all problems at once.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::environment;
use super::meaning::{self, Context};
use super::problem::{Problem, Problems, Severity};
use super::schema::Configuration;
use super::settings::Settings;
use super::tree::{self, Place};
use super::watch::WatchedFile;

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it means.
    pub settings: Settings,
    /// What somebody should look at.
    pub warnings: Vec<Problem>,
}

/// The configuration's path: the flag's, else `TIKIGATE_CONFIG`'s, else `/etc/tikigate/tikigate.toml`.
pub fn default_path(flag: Option<PathBuf>) -> PathBuf {
    path_from(flag, std::env::var_os("TIKIGATE_CONFIG"))
}

/// Reads the file at `path` with the overrides and secrets of `environment`, usually
/// `std::env::vars_os().collect::<Vec<_>>()`.
///
/// # Errors
/// All problems, warnings among them, in the order of the file.
pub fn load(path: &Path, environment: &[(OsString, OsString)]) -> Result<Loaded, Vec<Problem>> {
    load_watched(path, environment).result
}

/// What came of reading a configuration, and of which files it was made.
#[derive(Debug)]
pub struct Reading {
    /// The settings, or all problems.
    pub result: Result<Loaded, Vec<Problem>>,
    /// The configuration, then every file that it names and whose content matters: secrets and
    /// certificates. Those that could not be read are among them.
    pub files: Vec<WatchedFile>,
}

/// [`load`], for whoever wants to read it again when one of its files changes.
pub fn load_watched(path: &Path, environment: &[(OsString, OsString)]) -> Reading {
    let mut files = vec![WatchedFile::look(path)];
    let result = load_file(path, environment, &mut files);
    Reading { result, files }
}

fn load_file(
    path: &Path,
    environment: &[(OsString, OsString)],
    files: &mut Vec<WatchedFile>,
) -> Result<Loaded, Vec<Problem>> {
    let file = path.display().to_string();
    let text = match std::fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => return Err(unreadable(&file, "the file is not UTF-8".to_owned())),
        Err(error) => return Err(unreadable(&file, format!("can't be read: {error}"))),
    };
    let base = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    load_noting(&text, &file, base, environment, SystemTime::now(), files)
}

/// Reads a configuration that is already in memory. `file` names it in problems; relative paths
/// start at `base`.
///
/// # Errors
/// All problems, warnings among them, in the order of the text.
pub fn load_text(
    text: &str,
    file: &str,
    base: &Path,
    environment: &[(OsString, OsString)],
) -> Result<Loaded, Vec<Problem>> {
    load_at(text, file, base, environment, SystemTime::now())
}

/// [`load_text`] at a time that is passed in.
pub(crate) fn load_at(
    text: &str,
    file: &str,
    base: &Path,
    environment: &[(OsString, OsString)],
    now: SystemTime,
) -> Result<Loaded, Vec<Problem>> {
    load_noting(text, file, base, environment, now, &mut Vec::new())
}

/// [`load_at`]; `files` gets the paths of those that were read, and of those that should have been.
fn load_noting(
    text: &str,
    file: &str,
    base: &Path,
    environment: &[(OsString, OsString)],
    now: SystemTime,
    files: &mut Vec<WatchedFile>,
) -> Result<Loaded, Vec<Problem>> {
    let mut problems = Problems::new(file, text);
    let settings = read(text, base, environment, now, files, &mut problems);
    finish(settings, problems)
}

fn read(
    text: &str,
    base: &Path,
    environment: &[(OsString, OsString)],
    now: SystemTime,
    files: &mut Vec<WatchedFile>,
    problems: &mut Problems,
) -> Option<Settings> {
    let mut root = tree::parse(text, problems)?;
    environment::overlay(&mut root, environment, problems);
    let written = Configuration::read(root, problems)?;
    let mut context = Context {
        problems,
        base,
        environment,
        now,
        files: Vec::new(),
        certificates: Vec::new(),
    };
    let settings = meaning::settings(written, &mut context);
    files.append(&mut context.files);
    settings
}

fn finish(settings: Option<Settings>, mut problems: Problems) -> Result<Loaded, Vec<Problem>> {
    if settings.is_none() && !problems.has_errors() {
        // Cannot happen as long as every `None` was reported; a refusal is the safe reading of it.
        problems.error(
            &Place::whole(),
            "refused",
            "the configuration can't be used",
        );
    }
    let failed = problems.has_errors();
    let found = problems.into_sorted();
    match settings {
        Some(settings) if !failed => Ok(Loaded {
            settings,
            warnings: found,
        }),
        _ => Err(found),
    }
}

fn path_from(flag: Option<PathBuf>, variable: Option<OsString>) -> PathBuf {
    flag.or_else(|| variable.filter(|path| !path.is_empty()).map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("/etc/tikigate/tikigate.toml"))
}

fn unreadable(file: &str, message: String) -> Vec<Problem> {
    vec![Problem {
        severity: Severity::Error,
        file: file.to_owned(),
        line: None,
        column: None,
        key: String::new(),
        code: "unreadable",
        message,
        help: Some(
            "the path comes from --config, else TIKIGATE_CONFIG, else /etc/tikigate/tikigate.toml"
                .to_owned(),
        ),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_the_variable_and_that_over_the_usual_place() {
        let flag = || Some(PathBuf::from("a.toml"));
        let variable = || Some(OsString::from("b.toml"));
        assert_eq!(path_from(flag(), variable()), PathBuf::from("a.toml"));
        assert_eq!(path_from(None, variable()), PathBuf::from("b.toml"));
        let usual = PathBuf::from("/etc/tikigate/tikigate.toml");
        assert_eq!(path_from(None, Some(OsString::new())), usual);
        assert_eq!(path_from(None, None), usual);
    }

    #[test]
    fn a_file_that_is_not_there_is_a_problem() {
        let problems = load(Path::new("/nonexistent/tikigate.toml"), &[]).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].code, "unreadable");
    }
}
