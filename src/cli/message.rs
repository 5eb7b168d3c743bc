//! What `sign` and `verify` have in common: the message and the secrets, as the command line names them.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::config::Secret;
use crate::tiki::{Family, Signed, is_client_id};

/// Where the signed bytes come from.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Source {
    /// File with the body exactly as it is sent; `-` reads it from standard input
    #[arg(long, value_name = "FILE")]
    pub(super) body: Option<PathBuf>,
    /// Path and query of a GET, as they are on the wire and without the base URL
    #[arg(long, value_name = "PATH")]
    pub(super) path: Option<String>,
}

/// The signed bytes, and for a body the file that has them.
#[derive(Clone, Debug)]
pub(super) enum Message {
    /// A body; without a file it came from standard input.
    Body {
        bytes: Vec<u8>,
        file: Option<PathBuf>,
    },
    /// Path and query.
    Path(String),
}

impl Source {
    pub(super) fn read(&self, stdin: &mut dyn Read) -> anyhow::Result<Message> {
        match (&self.body, &self.path) {
            (Some(file), None) if file.as_os_str() == "-" => {
                let mut bytes = Vec::new();
                stdin
                    .read_to_end(&mut bytes)
                    .context("can't read the body from standard input")?;
                Ok(Message::Body { bytes, file: None })
            }
            (Some(file), None) => {
                let bytes = fs::read(file)
                    .with_context(|| format!("can't read the body from {}", file.display()))?;
                Ok(Message::Body {
                    bytes,
                    file: Some(file.clone()),
                })
            }
            (None, Some(path)) => Ok(Message::Path(path.clone())),
            _ => bail!("give either --body or --path"),
        }
    }
}

impl Message {
    pub(super) fn signed(&self) -> Signed<'_> {
        match self {
            Self::Body { bytes, .. } => Signed::Body(bytes),
            Self::Path(path) => Signed::Path(path),
        }
    }
}

/// Reads a secret as the configuration does: exactly one line end at its end is not part of it.
pub(super) fn read_secret(file: &Path) -> anyhow::Result<Secret> {
    let mut bytes =
        fs::read(file).with_context(|| format!("can't read the secret from {}", file.display()))?;
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    if bytes.is_empty() {
        bail!("the secret in {} is empty", file.display());
    }
    Ok(Secret::new(bytes))
}

/// Whether the secret starts or ends with white space, which the configuration refuses.
pub(super) fn has_edges(secret: &Secret) -> bool {
    secret.expose().trim_ascii().len() != secret.expose().len()
}

pub(super) fn parse_family(word: &str) -> Result<Family, String> {
    Family::parse(word).ok_or_else(|| "it is `tiniapp` or `tikivip`".to_owned())
}

pub(super) fn parse_client_id(text: &str) -> Result<String, String> {
    if is_client_id(text) {
        Ok(text.to_owned())
    } else {
        Err("a client id has 1 to 256 visible ASCII characters".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_not_part_of_a_secret() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        for (content, secret) in [
            ("abc", Some("abc")),
            ("abc\n", Some("abc")),
            ("abc\r\n", Some("abc")),
            ("abc\n\n", Some("abc\n")),
            ("abc \n", Some("abc ")),
            ("abc\r", Some("abc\r")),
            ("", None),
            ("\n", None),
        ] {
            fs::write(&file, content).unwrap();
            let read = read_secret(&file).ok();
            assert_eq!(
                read.as_ref().map(Secret::expose),
                secret.map(str::as_bytes),
                "{content:?}"
            );
            let edges = secret.is_some_and(|secret| secret.trim() != secret);
            assert_eq!(read.as_ref().is_some_and(has_edges), edges, "{content:?}");
        }
        let error = read_secret(&directory.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("none"));
    }
}
