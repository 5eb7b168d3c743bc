//! Files that the configuration names, read under a bound.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::units::format_size;

/// A file's content.
pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    /// Its permissions.
    pub(super) mode: u32,
}

/// Reads a regular file of at most `largest` bytes: a wrong name must not fill the memory.
pub(super) fn read(path: &Path, largest: usize) -> io::Result<Content> {
    // Asked before opening, since opening a pipe waits for its other end.
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(largest as u64 + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() > largest {
        let message = format!("it is larger than {}", format_size(largest));
        return Err(io::Error::other(message));
    }
    Ok(Content {
        bytes,
        mode: metadata.permissions().mode(),
    })
}
