//! Configurations that people copy: the files of `config/` and the examples in the documents, each
//! put beside secrets so that it can be checked.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::gate_process::Setup;

/// Long enough for a key or a token, and nobody's.
const FAKE_SECRET: &[u8] = b"not-a-secret-only-for-the-samples-0123456789";

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Name and text of every configuration in `config/`.
pub(crate) fn configurations() -> Vec<(String, String)> {
    let mut found: Vec<_> = files(&root().join("config"))
        .into_iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    found.sort();
    found
}

/// A sample with every secret that it names: in a file or in a variable.
pub(crate) struct Sample(Setup);

impl Sample {
    /// Files beside the samples are taken as they are; what is not there is made up. Absolute paths,
    /// which are the place where a secret is mounted, become relative.
    pub(crate) fn new(text: &str) -> Self {
        let parsed: toml::Table = text
            .parse()
            .unwrap_or_else(|error| panic!("{error} in {text}"));
        let named = Named::of(&toml::Value::Table(parsed));
        let mut text = text.to_owned();
        for file in named
            .files
            .iter()
            .filter(|file| Path::new(file).is_absolute())
        {
            text = text.replace(&format!("\"{file}\""), &format!("\"{}\"", relative(file)));
        }
        let mut setup = Setup::new(&text);
        for variable in &named.variables {
            setup = setup.environment(variable, std::str::from_utf8(FAKE_SECRET).unwrap());
        }
        for file in &named.files {
            provide(setup.directory(), relative(file));
        }
        Self(setup)
    }

    /// A command with this sample as its configuration.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.0.command(arguments[0]);
        command.args(&arguments[1..]);
        command
    }
}

fn relative(file: &str) -> &str {
    file.trim_start_matches('/')
}

/// Puts a secret's file into `directory`, readable for its owner alone.
fn provide(directory: &Path, name: &str) {
    let path = directory.join(name);
    if path.exists() {
        return;
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let content = fs::read(root().join("config").join(name)).unwrap_or(FAKE_SECRET.to_vec());
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    std::io::Write::write_all(&mut file, &content).unwrap();
}

/// The files and variables that secrets come from.
#[derive(Default)]
struct Named {
    files: Vec<String>,
    variables: Vec<String>,
}

impl Named {
    fn of(value: &toml::Value) -> Self {
        let mut named = Self::default();
        named.visit(value);
        named
    }

    fn visit(&mut self, value: &toml::Value) {
        match value {
            toml::Value::Array(values) => values.iter().for_each(|value| self.visit(value)),
            toml::Value::Table(table) => {
                for (key, value) in table {
                    match (key.as_str(), value.as_str()) {
                        ("file", Some(file)) => self.files.push(file.to_owned()),
                        ("env", Some(variable)) => self.variables.push(variable.to_owned()),
                        _ => self.visit(value),
                    }
                }
            }
            _ => {}
        }
    }
}

/// The files of a directory, which may be missing.
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}
