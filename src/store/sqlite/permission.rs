//! Why the system refuses a file: who runs, whose it is, and what would help.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{getegid, geteuid};

/// What to add to "permission denied" or "read-only file system" about a path; empty for any other error.
///
/// Mostly it is a container's volume: not mounted, or not the user's that the gate runs as.
pub(super) fn advice(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ReadOnlyFilesystem => {
            let directory = path.parent().unwrap_or(path);
            format!(
                ": {} must be on a volume that can be written; is it mounted?",
                directory.display()
            )
        }
        ErrorKind::PermissionDenied => whose(path).map_or_else(String::new, |whose| {
            let (user, group) = (geteuid().as_raw(), getegid().as_raw());
            format!(
                ": this runs as user {user} and group {group}, and {whose}; give it to the gate (chown; in \
                 Kubernetes securityContext.fsGroup)"
            )
        }),
        _ => String::new(),
    }
}

/// Whose the file is or, where it can't be seen or isn't there, the directory nearest to it.
fn whose(path: &Path) -> Option<String> {
    path.ancestors().find_map(|place| {
        let metadata = fs::metadata(place).ok()?;
        Some(format!(
            "{} belongs to user {} and group {}, mode {:04o}",
            place.display(),
            metadata.uid(),
            metadata.gid(),
            metadata.mode() & 0o7777
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_refusal_names_who_runs_and_whose_the_nearest_place_is() {
        let directory = tempfile::tempdir().unwrap();
        let mode = fs::Permissions::from_mode(0o750);
        fs::set_permissions(directory.path(), mode).unwrap();
        let path = directory.path().join("not/there.db");
        let told = advice(&path, &ErrorKind::PermissionDenied.into());
        let user = geteuid().as_raw();
        for words in [
            format!("runs as user {user} "),
            format!("{} belongs to user {user} ", directory.path().display()),
            "mode 0750".to_owned(),
        ] {
            assert!(told.contains(&words), "{words:?} is missing in: {told}");
        }
        let told = advice(&path, &ErrorKind::ReadOnlyFilesystem.into());
        assert!(told.contains("not must be on a volume"), "{told}");
        assert_eq!(advice(&path, &ErrorKind::NotFound.into()), "");
    }
}
