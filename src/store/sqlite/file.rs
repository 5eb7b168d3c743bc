//! The file around the database: where it may lie, and whose it is.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// A file beside the database that is locked for as long as a process uses it, and names it.
#[derive(Debug)]
pub(super) struct ProcessLock {
    _file: File,
}

/// Why the lock can't be had.
#[derive(Debug)]
pub(super) enum LockError {
    /// Another process has it; its id, if it could be read.
    Taken(Option<u32>),
    /// The lock file can't be used.
    Io(io::Error),
}

impl ProcessLock {
    /// Takes the lock of the database at `path`, whose directory exists. The system gives it back
    /// when the process ends, however it ends.
    pub(super) fn take(path: &Path) -> Result<Self, LockError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock_path(path))
            .map_err(LockError::Io)?;
        lock(&mut file)?;
        let mut name = || {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            writeln!(file, "{}", std::process::id())
        };
        // On a full disk the lock holds without the name.
        let _ = name();
        Ok(Self { _file: file })
    }

    /// Looks whether somebody has the lock, and makes nothing.
    pub(super) fn probe(path: &Path) -> Result<(), LockError> {
        let mut file = File::open(lock_path(path)).map_err(LockError::Io)?;
        lock(&mut file)
    }
}

/// Sees to it that the log beside the database at `path` is on disk as it is read, and not only in memory.
///
/// After a sync that failed, the system may keep what it could not write and take it for written: no later
/// sync writes it. What such a log holds would be brought into the database; and should the power go away
/// before another log was begun, the shorter one that is on disk would be read over it. So its bytes are
/// written once more, over themselves, before anything of them is brought in. No other program may write to
/// the log meanwhile.
pub(super) fn write_log_again(path: &Path) -> io::Result<()> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let opened = OpenOptions::new().read(true).write(true).open(log);
    let log = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let mut piece = vec![0; 256 * 1024];
    let mut at = 0;
    loop {
        let count = match log.read_at(&mut piece, at) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        log.write_all_at(&piece[..count], at)?;
        at += count as u64;
    }
    log.sync_all()
}

/// Keeps every other program from being the last that closes the database. SQLite would let it bring the log
/// in and take it away, though only the gate knows whether all that counts as brought in is on disk.
///
/// A read lock on the bytes that SQLite's exclusive lock covers. Dropping it takes the locks of this process's
/// connections with it, as closing any file of theirs does: to be done when the log is empty, or after them.
#[derive(Debug)]
pub(super) struct Hold {
    _file: File,
}

impl Hold {
    /// Where SQLite keeps its shared locks ("The SQLite Database File Format", "The Lock-Byte Page", and os.h).
    const SHARED_FIRST: i64 = 0x4000_0002;
    const SHARED_SIZE: i64 = 510;
    /// Another program may be closing just now.
    const TRIES: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(10);

    /// Takes hold of the database at `path`, which is there and in use by this process; none where the
    /// system has no such locks.
    pub(super) fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let range = libc::flock {
            l_type: libc::F_RDLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: Self::SHARED_FIRST,
            l_len: Self::SHARED_SIZE,
            l_pid: 0,
        };
        let mut tries = 0;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&range)) {
                Ok(_) => return Ok(Some(Self { _file: file })),
                Err(Errno::EAGAIN | Errno::EACCES) if tries < Self::TRIES => {
                    tries += 1;
                    std::thread::sleep(Self::PAUSE);
                }
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    return Err(io::Error::other(
                        "another program has locked the file for itself: close that first",
                    ));
                }
                // Some sandboxes and file systems; the gate is as safe as without another program.
                Err(Errno::EINVAL | Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn lock(file: &mut File) -> Result<(), LockError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Whose it is only helps the message.
            let _ = file.read_to_string(&mut text);
            Err(LockError::Taken(text.trim().parse().ok()))
        }
        Err(TryLockError::Error(error)) => Err(LockError::Io(error)),
    }
}

/// The lock file of the database at `path`.
pub(super) fn lock_path(path: &Path) -> PathBuf {
    with_added(path, ".lock")
}

/// A file beside the database at `path`, by what is added to its name.
pub(super) fn with_added(path: &Path, added: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(added);
    PathBuf::from(name)
}

/// The name of the file system that `directory` lies on, where it is one that money can't rest on:
/// it forgets at a restart, or locks and syncs of it reach no disk of this machine.
pub(super) fn unsafe_filesystem(directory: &Path) -> io::Result<Option<&'static str>> {
    let kind = rustix::fs::statfs(directory)?.f_type;
    // The magic numbers of linux/magic.h and of the file systems' own headers.
    Ok(match kind as u32 {
        0x0102_1994 => Some("tmpfs, which is gone after a restart"),
        0x8584_58f6 => Some("ramfs, which is gone after a restart"),
        0x794c_7630 => Some("overlay, which is gone with its container"),
        0x6969 => Some("NFS, whose locks and syncs can't be relied on"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB, whose locks and syncs can't be relied on"),
        0x0102_1997 => Some("9p, whose locks and syncs can't be relied on"),
        0x00c3_6400 => Some("Ceph, whose locks and syncs can't be relied on"),
        0x5346_414f => Some("AFS, whose locks and syncs can't be relied on"),
        0x6573_5546 => Some("FUSE, whose locks and syncs can't be relied on"),
        _ => None,
    })
}

/// Makes the entries of a directory durable: a new file is only there after a power loss if its name is.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Gives a file that this process made to whoever `like` belongs to: what root puts beside a gate's
/// files the gate has to be able to use. Anybody else can't give files away, and need not.
pub(super) fn give_to_owner_of(like: &Path, file: &Path) -> io::Result<()> {
    let (wanted, is) = (fs::metadata(like)?, fs::metadata(file)?);
    if (wanted.uid(), wanted.gid()) == (is.uid(), is.gid()) {
        return Ok(());
    }
    match chown(file, Some(wanted.uid()), Some(wanted.gid())) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        given => given,
    }
}

/// The directory that a file lies in.
pub(super) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time_and_the_second_is_told_who() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let first = ProcessLock::take(&path).unwrap();
        let Err(LockError::Taken(pid)) = ProcessLock::take(&path) else {
            panic!("taken twice");
        };
        assert_eq!(pid, Some(std::process::id()));
        let probed = ProcessLock::probe(&path);
        assert!(
            matches!(probed, Err(LockError::Taken(Some(_)))),
            "{probed:?}"
        );
        drop(first);
        ProcessLock::probe(&path).unwrap();
        ProcessLock::take(&path).unwrap();
    }

    #[test]
    fn nobody_else_locks_a_file_that_is_held_for_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        fs::write(&path, "").unwrap();
        let range = |kind: libc::c_int| libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: Hold::SHARED_FIRST,
            l_len: Hold::SHARED_SIZE,
            l_pid: 0,
        };
        let held = Hold::take(&path).unwrap().expect("such locks");
        let other = OpenOptions::new().write(true).open(&path).unwrap();
        let exclusive = range(libc::F_WRLCK);
        let refused = fcntl(&other, FcntlArg::F_OFD_SETLK(&exclusive));
        assert_eq!(refused, Err(Errno::EAGAIN));
        drop(held);
        fcntl(&other, FcntlArg::F_OFD_SETLK(&exclusive)).unwrap();
        let refused = Hold::take(&path).unwrap_err().to_string();
        assert!(refused.contains("another program"), "{refused}");
    }

    #[test]
    fn memory_file_systems_are_told() {
        assert!(unsafe_filesystem(Path::new("/proc")).unwrap().is_none());
        if std::fs::metadata("/dev/shm").is_ok() {
            let told = unsafe_filesystem(Path::new("/dev/shm")).unwrap();
            assert!(told.is_none_or(|told| told.contains("tmpfs")), "{told:?}");
        }
    }
}
