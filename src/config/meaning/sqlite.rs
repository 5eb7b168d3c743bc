//! `[ledger]` with `store = "sqlite"`.

use std::path::{Component, Path, PathBuf};

use super::Context;
use crate::config::problem::Problems;
use crate::config::settings::SqliteStore;
use crate::config::tree::Place;
use crate::config::value::{At, Field};

/// What SQLite and the gate put beside a database, by what they add to its name.
const BESIDE: [&str; 5] = ["-wal", "-shm", "-journal", "-lock", ".lock"];

/// The keys of this store.
pub(super) struct Keys {
    pub(super) path: Field<String>,
    pub(super) watermark: Field<String>,
    pub(super) require_existing: Field<bool>,
    pub(super) allow_unsafe_filesystem: Field<bool>,
}

/// Reads them. Whether the volume is there is not asked: a configuration is checked elsewhere too.
pub(super) fn sqlite(keys: Keys, holds: bool, context: &mut Context<'_>) -> Option<SqliteStore> {
    let Keys {
        path,
        watermark,
        require_existing,
        allow_unsafe_filesystem,
    } = keys;
    let path_fits = path.is_absent() || path.peek().is_some();
    let path = file(path.or("tikigate.db".to_owned()), context);
    let watermark = match watermark.written() {
        Some(written) => {
            let watermark = file(written, context);
            apart(path.as_ref(), watermark, context.problems)
        }
        None => path.as_ref().map(|path| beside(&path.value)),
    };
    let allow_unsafe_filesystem = allow_unsafe_filesystem.or(false);
    if allow_unsafe_filesystem.value {
        context
            .problems
            .warning(
                &allow_unsafe_filesystem.place,
                "unsafe_filesystem",
                "the ledger may lie where it is lost with the machine or the container, or where two gates can't lock each other out",
            )
            .help("for real money leave it out, and put `path` on a local disk that outlives the container");
    }
    Some(SqliteStore {
        path: path.filter(|_| path_fits)?.value,
        watermark: watermark?,
        require_existing: require_existing.or(false).value,
        allow_unsafe_filesystem: allow_unsafe_filesystem.value,
        holds,
    })
}

/// A file's path, from the configuration's directory if it is relative.
fn file(written: At<String>, context: &mut Context<'_>) -> Option<At<PathBuf>> {
    let At { place, value } = written;
    let path = context.path(&value);
    let fault = if value.is_empty() || value.contains('\0') {
        Some(("must name a file", "such as \"tikigate.db\""))
    } else if value.starts_with(':') || value.starts_with("file:") {
        Some((
            "must be a plain path: SQLite's own names for databases mean nothing here",
            "for a ledger in memory write store = \"memory\"",
        ))
    } else if value.ends_with('/') || path.file_name().is_none() || path.is_dir() {
        Some((
            "is a directory, and must name a file",
            "add the file's name, such as \"/var/lib/tikigate/tikigate.db\"",
        ))
    } else {
        None
    };
    if let Some((message, help)) = fault {
        context
            .problems
            .error(&place, "bad_path", message)
            .help(help);
        return None;
    }
    Some(At { place, value: path })
}

/// The watermark tells what the database lost, so that it can't be a part of it.
fn apart(
    path: Option<&At<PathBuf>>,
    watermark: Option<At<PathBuf>>,
    problems: &mut Problems,
) -> Option<PathBuf> {
    let (path, watermark) = (path?, watermark?);
    let database = plain(&path.value);
    let mark = plain(&watermark.value);
    let taken = BESIDE.map(|added| with_added(&database, added));
    if database == mark {
        clash(&watermark.place, "is the ledger's own file", problems);
    } else if taken.contains(&mark) {
        let message = "is a name that the database takes for a file of its own";
        clash(&watermark.place, message, problems);
    } else if mark.starts_with(&database) || database.starts_with(&mark) {
        let message = "one of `path` and `watermark` would have to be the other's directory";
        clash(&watermark.place, message, problems);
    } else {
        return Some(watermark.value);
    }
    None
}

fn clash(place: &Place, message: &str, problems: &mut Problems) {
    problems
        .error(place, "bad_watermark", message)
        .help("name a file of its own, best on another volume: what takes the database back must not take the watermark back too");
}

/// The usual watermark: `tikigate.mark` for `tikigate.db`.
fn beside(path: &Path) -> PathBuf {
    let replaced = path.with_extension("mark");
    if replaced == path {
        return with_added(path, ".mark");
    }
    replaced
}

fn with_added(path: &Path, added: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(added);
    PathBuf::from(name)
}

/// The path without `.` and `..`, as far as the text alone tells.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(plain.components().next_back(), Some(Component::Normal(_))) =>
            {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}
