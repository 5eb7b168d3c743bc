//! Files that the settings were made of, and whether they are still what they were.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file as it stood just before it was read.
///
/// Its metadata is compared and not its content: that needs no right to read it, costs a few
/// microseconds, and holds on every file system, where notifications by the kernel are missing on
/// network and overlay ones and limited in number on a crowded node. Links are followed, so that
/// Kubernetes' swap of `..data` shows as another inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedFile {
    /// Its path.
    pub path: PathBuf,
    stood: Option<Stood>,
}

/// What changes with every change of a file. The time of the last change of state (`ctime`) can't be
/// set back by whoever writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stood {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl WatchedFile {
    /// The file as it stands now; it need not be there.
    pub fn look(path: &Path) -> Self {
        let stood = std::fs::metadata(path).ok().map(|metadata| Stood {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        });
        Self {
            path: path.to_path_buf(),
            stood,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn each_way_of_changing_a_file_shows() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let file = at("secret");
        let absent = WatchedFile::look(&file);
        fs::write(&file, "one").unwrap();
        let first = WatchedFile::look(&file);
        assert_ne!(first, absent);
        assert_eq!(first, WatchedFile::look(&file));
        // Another file in its place, of the same size.
        fs::write(at("next"), "two").unwrap();
        fs::rename(at("next"), &file).unwrap();
        let second = WatchedFile::look(&file);
        assert_ne!(second, first);
        // The same file, longer.
        fs::write(&file, "three").unwrap();
        assert_ne!(WatchedFile::look(&file), second);
        fs::remove_file(&file).unwrap();
        assert_eq!(WatchedFile::look(&file), absent);
    }

    #[test]
    fn a_swapped_directory_behind_a_link_shows() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (version, text) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("secret"), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/secret", at("secret")).unwrap();
        let first = WatchedFile::look(&at("secret"));
        symlink("..2", at("..next")).unwrap();
        fs::rename(at("..next"), at("..data")).unwrap();
        assert_ne!(WatchedFile::look(&at("secret")), first);
    }
}
