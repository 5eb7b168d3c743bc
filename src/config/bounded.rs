//! Files that the configuration names, read under a bound.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::units::format_size;

/// The standard library reads less than this by way of a buffer of its own.
const SPARE: usize = 64;

/// A file's content.
pub(super) struct Content {
    /// It may be a secret: overwritten in the end.
    pub(super) bytes: Zeroizing<Vec<u8>>,
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
    // Room for all of it and some more at once: a buffer that grows leaves copies behind.
    let expected = usize::try_from(metadata.len())
        .unwrap_or(largest)
        .min(largest);
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected + SPARE));
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
