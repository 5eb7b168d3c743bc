//! Reading secrets. No message here holds a byte of one, nor what was written in `file` or `env`:
//! somebody may have put the secret itself there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use zeroize::Zeroizing;

use super::Context;
use crate::config::Secret;
use crate::config::bounded::{self, Content};
use crate::config::problem::Problems;
use crate::config::schema::SecretSource;
use crate::config::tree::Place;
use crate::config::value::At;

/// More than any secret has; keeps a wrong file name from filling the memory.
const LARGEST: usize = 64 * 1024;

/// A secret's bytes, and where it was named.
pub(crate) struct ReadSecret {
    pub(crate) place: Place,
    pub(crate) secret: Secret,
}

/// Reads the secret that a source names; what is wrong is reported.
pub(crate) fn read(
    source: SecretSource,
    owner: &Place,
    context: &mut Context<'_>,
) -> Option<ReadSecret> {
    let SecretSource { file, env } = source;
    let named = !file.is_absent() || !env.is_absent();
    let (place, bytes) = match (file.written(), env.written()) {
        (Some(file), None) => (file.place.clone(), from_file(&file, context)?),
        (None, Some(env)) => (env.place.clone(), from_environment(&env, context)?),
        (Some(_), Some(_)) => {
            let message = "names both a file and a variable; one of them is enough";
            context.problems.error(owner, "bad_secret", message);
            return None;
        }
        (None, None) => {
            if !named {
                context
                    .problems
                    .error(owner, "missing", "a secret needs `file` or `env`");
            }
            return None;
        }
    };
    let secret = trimmed(bytes, &place, context.problems)?;
    Some(ReadSecret { place, secret })
}

fn from_file(file: &At<String>, context: &mut Context<'_>) -> Option<Zeroizing<Vec<u8>>> {
    let path = context.watched(&file.value);
    match bounded::read(&path, LARGEST) {
        Ok(Content { bytes, mode }) => {
            if mode & 0o004 != 0 {
                readable_by_all(&file.place, mode, context.problems);
            }
            Some(bytes)
        }
        Err(error) => {
            let help = format!(
                "a relative path starts at the configuration's directory, {}",
                context.base.display()
            );
            context
                .problems
                .error(
                    &file.place,
                    "unreadable_secret",
                    format!("the file can't be read: {error}"),
                )
                .help(help);
            None
        }
    }
}

/// Warns of a secret's file that every user can read.
pub(super) fn readable_by_all(place: &Place, mode: u32, problems: &mut Problems) {
    problems
        .warning(
            place,
            "readable_secret",
            format!(
                "the file can be read by every user (mode {:04o})",
                mode & 0o7777
            ),
        )
        .help("take the right away: chmod o-r (in Kubernetes: defaultMode: 0440 and an fsGroup)");
}

fn from_environment(env: &At<String>, context: &mut Context<'_>) -> Option<Zeroizing<Vec<u8>>> {
    let value = context
        .environment
        .iter()
        .find(|(name, _)| name == OsStr::new(&env.value))
        .map(|(_, value)| Zeroizing::new(value.as_bytes().to_vec()));
    if value.is_none() {
        context.problems.error(
            &env.place,
            "unreadable_secret",
            "the variable named here is not set",
        );
    }
    value
}

/// Takes one line end off; anything else at the edges would be a mistake that no signature survives.
fn trimmed(
    mut bytes: Zeroizing<Vec<u8>>,
    place: &Place,
    problems: &mut Problems,
) -> Option<Secret> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    let message = if bytes.is_empty() {
        "the secret is empty"
    } else if bytes.first().is_some_and(is_space) || bytes.last().is_some_and(is_space) {
        "the secret starts or ends with white space (one line end at the end is allowed)"
    } else if bytes.starts_with(b"\xef\xbb\xbf") {
        "the secret starts with a byte order mark"
    } else {
        return Some(Secret::new(bytes));
    };
    problems.error(place, "bad_secret", message);
    None
}

fn is_space(byte: &u8) -> bool {
    byte.is_ascii_whitespace() || *byte == 0x0b || *byte == 0
}
