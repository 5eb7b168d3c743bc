//! The watermark: how far the database came, kept outside of it.
//!
//! A database that was rolled back, restored or lost its log looks whole from inside. This file says
//! which one it was and how many batches it had. Two slots of 512 bytes (a sector, which a disk writes
//! as a whole) are written in turn, so that a write that was torn leaves the one before.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::file::{directory_of, sync_directory};

const SLOT: usize = 512;
const HEAD: &str = "tikigate-watermark 1";

/// What a watermark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The database's id.
    pub(super) ledger: String,
    /// Its generation.
    pub(super) generation: u64,
    /// Its batches.
    pub(super) sequence: u64,
}

/// What was found at the watermark's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No file, or one that was never written.
    Nothing,
    /// A file of which no slot can be read.
    Unreadable,
    /// The newest slot.
    Mark(Mark),
}

/// The open file.
#[derive(Debug)]
pub(super) struct Watermark {
    file: File,
    /// Which slot is written next.
    next: u64,
}

impl Watermark {
    /// Opens the file, or makes it, and reads it.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Found)> {
        let existed = path.exists();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let (found, newest) = read(&file)?;
        if !existed {
            // Its full size from the start: later writes change no metadata, and fdatasync is enough.
            file.set_len(2 * SLOT as u64)?;
            file.sync_all()?;
            sync_directory(&directory_of(path))?;
        }
        let next = (newest + 1) % 2;
        Ok((Self { file, next }, found))
    }

    /// Reads the file without changing it.
    pub(super) fn look(path: &Path) -> io::Result<Found> {
        match File::open(path) {
            Ok(file) => Ok(read(&file)?.0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Writes a mark; when this returns it is on disk.
    pub(super) fn write(&mut self, mark: &Mark) -> io::Result<()> {
        let mut slot = [b' '; SLOT];
        let text = text_of(mark);
        let bytes = text.as_bytes();
        if bytes.len() >= SLOT {
            return Err(io::Error::other(
                "the ledger's id is too long for its watermark",
            ));
        }
        slot[..bytes.len()].copy_from_slice(bytes);
        slot[SLOT - 1] = b'\n';
        self.file.write_all_at(&slot, self.next * SLOT as u64)?;
        self.file.sync_data()?;
        self.next = (self.next + 1) % 2;
        Ok(())
    }
}

/// What the file says, and in which slot.
fn read(file: &File) -> io::Result<(Found, u64)> {
    let mut slots = [[0; SLOT]; 2];
    let mut length = 0;
    for (number, slot) in slots.iter_mut().enumerate() {
        length += read_slot(file, number as u64, slot)?;
    }
    let marks = slots.each_ref().map(parse);
    let place = |mark: &Option<Mark>| mark.as_ref().map(|mark| (mark.generation, mark.sequence));
    let newest = usize::from(place(&marks[1]) > place(&marks[0]));
    let found = match &marks[newest] {
        Some(mark) => Found::Mark(mark.clone()),
        None if length == 0 => Found::Nothing,
        None => Found::Unreadable,
    };
    Ok((found, newest as u64))
}

/// Fills the slot as far as the file goes; the number of bytes that are not zero.
fn read_slot(file: &File, number: u64, slot: &mut [u8; SLOT]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < SLOT {
        match file.read_at(&mut slot[filled..], number * SLOT as u64 + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(slot.iter().filter(|byte| **byte != 0).count())
}

fn text_of(mark: &Mark) -> String {
    let Mark {
        ledger,
        generation,
        sequence,
    } = mark;
    let said = format!("{HEAD} ledger={ledger} generation={generation} sequence={sequence}");
    format!("{said} check={}", check(&said))
}

fn parse(slot: &[u8; SLOT]) -> Option<Mark> {
    let text = std::str::from_utf8(slot).ok()?.trim_end();
    let (said, sum) = text.rsplit_once(" check=")?;
    if check(said) != sum {
        return None;
    }
    let mut words = said.strip_prefix(HEAD)?.split_ascii_whitespace();
    let mut next = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
    let mark = Mark {
        ledger: next("ledger")?.to_owned(),
        generation: next("generation")?.parse().ok()?,
        sequence: next("sequence")?.parse().ok()?,
    };
    words.next().is_none().then_some(mark)
}

/// A torn or flipped slot is not to be believed; nobody is kept out by this.
fn check(said: &str) -> String {
    base16ct::lower::encode_string(&Sha256::digest(said.as_bytes())[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(sequence: u64) -> Mark {
        Mark {
            ledger: "9f3c".to_owned(),
            generation: 1,
            sequence,
        }
    }

    fn found(path: &Path) -> Found {
        Watermark::open(path).unwrap().1
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mark");
        let (mut watermark, nothing) = Watermark::open(&path).unwrap();
        assert_eq!(nothing, Found::Nothing);
        assert_eq!(found(&path), Found::Nothing);
        for sequence in 1..=5 {
            watermark.write(&mark(sequence)).unwrap();
            assert_eq!(found(&path), Found::Mark(mark(sequence)));
        }
        // The fifth write, torn: the fourth is still there.
        let newest = watermark.next.wrapping_sub(1) % 2;
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"####", newest * SLOT as u64 + 40)
            .unwrap();
        assert_eq!(found(&path), Found::Mark(mark(4)));
        // Opened again, the damaged slot is the one that is written next.
        let (mut again, _) = Watermark::open(&path).unwrap();
        again.write(&mark(6)).unwrap();
        assert_eq!(found(&path), Found::Mark(mark(6)));
    }

    #[test]
    fn a_damaged_file_is_not_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mark");
        std::fs::write(&path, "something else").unwrap();
        assert_eq!(found(&path), Found::Unreadable);
        std::fs::write(&path, "").unwrap();
        assert_eq!(found(&path), Found::Nothing);
    }
}
