//! The admin token that a gate makes for itself when none is configured.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::config::{AdminToken, Secret};

/// The file's name in the ledger's directory; the commands look for it there.
pub const FILE_NAME: &str = "admin.token";

/// The name that its holder resolves under.
pub const HOLDER: &str = "local";

/// Bytes at most that a token's file may have.
const MAX_FILE: u64 = 4096;

/// The configured tokens, or, where there is none, the one in `directory`, which is made if it isn't
/// there. Blocks on the file system.
///
/// The file appears whole or not at all, and of two gates that start at once both use the one that
/// was there first.
///
/// # Errors
/// The file can't be read or made, it is another user's, others than its owner may read it, or it
/// holds no token. The message names the file.
pub fn ensure_token(directory: &Path, configured: &[AdminToken]) -> io::Result<Vec<AdminToken>> {
    if !configured.is_empty() {
        return Ok(configured.to_vec());
    }
    let path = directory.join(FILE_NAME);
    let token = match read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => make(directory, &path),
        read => read,
    };
    let token = token.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("admin token {}: {error}", path.display()),
        )
    })?;
    Ok(vec![AdminToken {
        name: HOLDER.to_owned(),
        token,
    }])
}

fn read(path: &Path) -> io::Result<Secret> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a file"));
    }
    owned(metadata.uid(), own_user()?)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(io::Error::new(
            ErrorKind::PermissionDenied,
            format!(
                "its mode is {mode:04o}, so that others can use it; make it 0600, or remove it to have a new one made"
            ),
        ));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(2 * MAX_FILE as usize));
    file.take(MAX_FILE).read_to_end(&mut text)?;
    let token = text.trim_ascii_end();
    let usable = token.len() >= 32 && token.iter().all(u8::is_ascii_graphic);
    if !usable {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            "it holds no token; remove it to have a new one made",
        ));
    }
    Ok(Secret::new(token.to_vec()))
}

/// A token that somebody else put there is known to them.
fn owned(owner: u32, own: u32) -> io::Result<()> {
    if owner == own {
        return Ok(());
    }
    Err(io::Error::new(
        ErrorKind::PermissionDenied,
        format!(
            "it belongs to the user {owner}, and the gate runs as the user {own}; remove it to have a new one made, or configure admin.tokens"
        ),
    ))
}

fn own_user() -> io::Result<u32> {
    match fs::metadata("/proc/self") {
        Ok(process) => Ok(process.uid()),
        // Not with its own kind: "not found" would read as if there were no token.
        Err(error) => Err(io::Error::other(format!(
            "this process's user can't be told from /proc/self: {error}"
        ))),
    }
}

fn make(directory: &Path, path: &Path) -> io::Result<Secret> {
    let draft = Draft::write(directory)?;
    // A link, unlike a rename, fails where another gate was first.
    match fs::hard_link(&draft.0, path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        // Some file systems have no links; there the last of two wins, and both read after it.
        Err(_) => fs::rename(&draft.0, path)?,
    }
    drop(draft);
    read(path)
}

/// A token in a file of its own, removed when dropped.
struct Draft(PathBuf);

impl Draft {
    fn write(directory: &Path) -> io::Result<Self> {
        let token = random_hex::<32>()?;
        let draft = Self(directory.join(format!(".{FILE_NAME}.{}", random_hex::<8>()?)));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft.0)?;
        writeln!(file, "{token}")?;
        file.sync_all()?;
        Ok(draft)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already where it was renamed; otherwise a leftover that nobody reads.
        let _ = fs::remove_file(&self.0);
    }
}

fn random_hex<const BYTES: usize>() -> io::Result<String> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(base16ct::lower::encode_string(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(directory: &Path) -> Vec<u8> {
        let tokens = ensure_token(directory, &[]).unwrap();
        assert_eq!(tokens.len(), 1);
        assert_eq!(tokens[0].name, HOLDER);
        tokens[0].token.expose().to_vec()
    }

    #[test]
    fn a_token_is_made_once_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let token = made(directory.path());
        assert_eq!(token.len(), 64);
        assert_eq!(made(directory.path()), token);
        let path = directory.path().join(FILE_NAME);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");

        let other = tempfile::tempdir().unwrap();
        assert_ne!(made(other.path()), token);
    }

    #[test]
    fn two_starts_agree() {
        let directory = tempfile::tempdir().unwrap();
        let made: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| made(directory.path())))
                .collect();
            starts
                .into_iter()
                .map(|start| start.join().unwrap())
                .collect()
        });
        assert!(made.iter().all(|token| *token == made[0]));
    }

    #[test]
    fn what_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        made(directory.path());
        let path = directory.path().join(FILE_NAME);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = ensure_token(directory.path(), &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("0640"), "{error}");
        assert!(error.to_string().contains(FILE_NAME), "{error}");
    }

    #[test]
    fn what_somebody_else_put_there_is_refused() {
        assert!(owned(7, 7).is_ok());
        let error = owned(0, 7).unwrap_err().to_string();
        assert!(
            error.contains("the user 0, and the gate runs as the user 7"),
            "{error}"
        );
        if own_user().unwrap() != 0 {
            eprintln!("skipped: only root can give a file away");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        made(directory.path());
        let path = directory.path().join(FILE_NAME);
        std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
        let error = ensure_token(directory.path(), &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("the user 12345"), "{error}");
        assert!(error.to_string().contains(FILE_NAME), "{error}");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        for text in ["", "\n", "short", "a b c d e f g h i j k l m n o p q r s t"] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = ensure_token(directory.path(), &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{text:?}");
        }
        let nowhere = directory.path().join("nowhere");
        assert!(ensure_token(&nowhere, &[]).is_err());
    }

    #[test]
    fn configured_tokens_come_first() {
        let directory = tempfile::tempdir().unwrap();
        let configured = [AdminToken {
            name: "linh".to_owned(),
            token: Secret::new(b"t".to_vec()),
        }];
        let tokens = ensure_token(directory.path(), &configured).unwrap();
        assert_eq!(tokens[0].name, "linh");
        assert!(!directory.path().join(FILE_NAME).exists());
    }
}
