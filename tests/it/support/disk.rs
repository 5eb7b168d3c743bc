//! A disk that loses power, fails and lies, for one directory of a gate: see `tests/data/disk/disk.c`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::random::Random;
use super::samples::root;

/// What a disk writes at once or not at all.
const SECTOR: usize = 512;

/// A directory on such a disk.
pub(crate) struct Disk {
    directory: PathBuf,
    /// Beside it: what a power loss leaves.
    shadow: PathBuf,
}

/// A number that the disk is told, or tells, by its place in the control file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    /// So many syncs fail with EIO, then they work again.
    FailSyncs = 0,
    /// After so many that work.
    PassSyncs = 1,
    /// A failed sync loses what was written instead of leaving it for the next one.
    LoseDirty = 2,
    /// Writes fail with ENOSPC.
    NoSpace = 3,
    /// 1: syncs of write-ahead logs do nothing and say they worked; 2: all do.
    LieAbout = 4,
    /// A sync takes so many microseconds.
    SyncTakes = 5,
    /// Syncs so far.
    Syncs = 6,
    /// Calls that failed because they were told to.
    Failed = 7,
    /// 1: only syncs of files that end in `.db` fail.
    FailOn = 8,
}

impl Disk {
    /// For this directory, which exists; `shadow` doesn't.
    pub(crate) fn new(directory: PathBuf, shadow: PathBuf) -> Self {
        let disk = Self { directory, shadow };
        disk.begin();
        disk
    }

    /// What a process needs in its environment to see its directory on this disk.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        vec![
            ("LD_PRELOAD".to_owned(), text(library())),
            ("DISK_DIRECTORY".to_owned(), text(&self.directory)),
            ("DISK_SHADOW".to_owned(), text(&self.shadow)),
        ]
    }

    /// Tells the disk a number. It counts at once, whether a process runs or not.
    pub(crate) fn tell(&self, number: Number, value: u32) {
        let place = number as u64 * 4;
        self.control()
            .write_all_at(&value.to_ne_bytes(), place)
            .unwrap();
    }

    /// A number that the disk tells.
    pub(crate) fn told(&self, number: Number) -> u32 {
        let mut bytes = [0; 4];
        self.control()
            .read_exact_at(&mut bytes, number as u64 * 4)
            .unwrap();
        u32::from_ne_bytes(bytes)
    }

    /// The power goes away and comes back. No process may be using the directory. What was not synced
    /// is lost; with a `random`, some sectors of it and some entries of the directory had reached the disk.
    pub(crate) fn lose_power(&self, mut random: Option<&mut Random>) {
        // A process that was killed before its disk was set up wrote nothing.
        if !self.shadow.join("begun").exists() {
            return;
        }
        let mut left = contents(&self.shadow.join("tree"));
        if let Some(random) = &mut random {
            self.add_by_chance(&mut left, random);
        }
        let told: Vec<u8> = fs::read(self.shadow.join("control")).unwrap();
        for entry in entries(&self.directory).into_values() {
            fs::remove_file(entry.path()).unwrap();
        }
        for (name, content) in left {
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            let file = options.open(self.directory.join(name)).unwrap();
            file.write_all_at(&content, 0).unwrap();
        }
        fs::remove_dir_all(&self.shadow).unwrap();
        self.begin();
        fs::write(self.shadow.join("control"), told).unwrap();
    }

    fn begin(&self) {
        fs::create_dir(&self.shadow).unwrap();
        fs::write(self.shadow.join("control"), [0; 36]).unwrap();
    }

    fn control(&self) -> fs::File {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true);
        options.open(self.shadow.join("control")).unwrap()
    }

    fn add_by_chance(&self, left: &mut BTreeMap<String, Vec<u8>>, random: &mut Random) {
        let seen = entries(&self.directory);
        left.retain(|name, _| seen.contains_key(name) || random.chance(50));
        for (name, entry) in seen {
            // An index in shared memory: nobody relies on it after a power loss.
            if name.ends_with("-shm") {
                continue;
            }
            let same = self.shadow.join("inodes").join(entry.ino().to_string());
            let kept = fs::read(&same).unwrap_or_default();
            let is_entered = self.is_linked(&name, &same);
            if !is_entered && random.chance(50) {
                continue;
            }
            let real = fs::read(entry.path()).unwrap();
            left.insert(name, mixed(&kept, &real, random));
        }
    }

    /// Whether the directory's entry for this file was synced.
    fn is_linked(&self, name: &str, file: &Path) -> bool {
        let inode = |path: &Path| fs::metadata(path).map(|found| found.ino()).ok();
        let entered = inode(&self.shadow.join("tree").join(name));
        entered.is_some() && entered == inode(file)
    }
}

/// A file of which some sectors that were not synced reached the disk all the same.
fn mixed(kept: &[u8], real: &[u8], random: &mut Random) -> Vec<u8> {
    let percent = *random.pick(&[0, 10, 50, 90, 100]);
    let length = random.pick(&[kept.len(), real.len()]).to_owned();
    let mut mixed = kept.to_vec();
    mixed.resize(length, 0);
    let sectors = mixed.chunks_mut(SECTOR).zip(real.chunks(SECTOR));
    for (sector, written) in sectors {
        if random.chance(percent) {
            let count = sector.len().min(written.len());
            sector[..count].copy_from_slice(&written[..count]);
        }
    }
    mixed
}

/// The files of a directory, by name.
fn entries(directory: &Path) -> BTreeMap<String, fs::DirEntry> {
    let all = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let files = all.filter(|entry| entry.file_type().unwrap().is_file());
    files
        .map(|entry| (entry.file_name().into_string().unwrap(), entry))
        .collect()
}

/// The same, with what is in them.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |(name, entry): (String, fs::DirEntry)| (name, fs::read(entry.path()).unwrap());
    entries(directory).into_iter().map(read).collect()
}

/// The library, compiled once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("disk.so");
        // Under a name of its own first: another run of the tests may be using the one there.
        let fresh = library.with_extension(std::process::id().to_string());
        let mut compiler = Command::new("cc");
        compiler.args([
            "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o",
        ]);
        compiler
            .arg(&fresh)
            .arg(root().join("tests/data/disk/disk.c"));
        compiler.args(["-ldl", "-lpthread"]);
        let compiled = compiler.output().expect("a C compiler");
        let complaints = String::from_utf8_lossy(&compiled.stderr);
        assert!(compiled.status.success(), "{complaints}");
        fs::rename(&fresh, &library).unwrap();
        library
    })
}

mod tests {
    use super::*;

    /// A directory on a disk, and a program of a few lines that works in it.
    struct Bench {
        disk: Disk,
        base: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let base = tempfile::tempdir().unwrap();
            let directory = base.path().join("data");
            fs::create_dir(&directory).unwrap();
            let disk = Disk::new(directory, base.path().join("shadow"));
            Self { disk, base }
        }

        /// Runs a shell's lines in the directory; each command is a process that ends as if killed,
        /// syncing nothing that it is not told to.
        fn run(&self, lines: &str) -> bool {
            let mut command = Command::new("sh");
            command.args(["-e", "-c", lines]);
            command.current_dir(self.base.path().join("data"));
            command.envs(self.disk.environment());
            command.output().unwrap().status.success()
        }

        fn read(&self, name: &str) -> String {
            let content = fs::read(self.base.path().join("data").join(name));
            content.map_or("-".to_owned(), |content| {
                String::from_utf8(content).unwrap()
            })
        }
    }

    #[test]
    fn what_was_not_synced_is_lost() {
        let bench = Bench::new();
        assert!(bench.run("printf one > a; sync a; sync .; printf two >> a"));
        assert_eq!(bench.read("a"), "onetwo");
        bench.disk.lose_power(None);
        assert_eq!(bench.read("a"), "one");
        // Another process's sync brings what one before it wrote.
        assert!(
            bench.run("printf ONE+ | dd of=a conv=notrunc status=none; sync -d a; printf - > b")
        );
        bench.disk.lose_power(None);
        assert_eq!(
            (bench.read("a"), bench.read("b")),
            ("ONE+".to_owned(), "-".to_owned())
        );
    }

    #[test]
    fn entries_last_when_the_directory_was_synced() {
        let bench = Bench::new();
        assert!(bench.run("printf one > a; sync a"));
        bench.disk.lose_power(None);
        assert_eq!(bench.read("a"), "-");
        assert!(bench.run("printf one > a; sync a; sync .; printf two > b; sync b; mv b a"));
        assert_eq!(bench.read("a"), "two");
        bench.disk.lose_power(None);
        assert_eq!(bench.read("a"), "one");
        assert!(bench.run("printf two > b; sync b; mv b a; sync ."));
        bench.disk.lose_power(None);
        assert_eq!(bench.read("a"), "two");
        assert!(bench.run("rm a; printf new > a; sync a"));
        bench.disk.lose_power(None);
        assert_eq!(bench.read("a"), "two");
        assert!(bench.run("rm a; sync ."));
        bench.disk.lose_power(None);
        assert_eq!(bench.read("a"), "-");
    }

    #[test]
    fn truncation_lasts_when_it_was_synced() {
        let bench = Bench::new();
        assert!(bench.run("printf abcdef > a; sync a; sync .; truncate -s 2 a"));
        bench.disk.lose_power(None);
        assert_eq!(bench.read("a"), "abcdef");
        assert!(bench.run("truncate -s 2 a; truncate -s 5 a; sync a"));
        bench.disk.lose_power(None);
        assert_eq!(bench.read("a"), "ab\0\0\0");
        assert!(bench.run("printf z > a; sync a"));
        bench.disk.lose_power(None);
        assert_eq!(bench.read("a"), "z");
    }

    /// Some of the kills come while a sync has a part of the file.
    #[test]
    fn what_a_killed_sync_kept_the_next_one_keeps() {
        const LENGTH: usize = 30_000_000;
        let bench = Bench::new();
        assert!(bench.run(&format!(
            "head -c {LENGTH} /dev/zero | tr '\\0' x | dd of=a bs=1M status=none; sync .
            for time in .002 .004 .006 .008 .01 .012 .014 .016 .02 .03 .05; do
                timeout -s KILL $time sync a || true
            done
            sync a"
        )));
        bench.disk.lose_power(None);
        let kept = bench.read("a");
        assert_eq!(kept.len(), LENGTH);
        assert!(kept.bytes().all(|byte| byte == b'x'), "a part was lost");
    }

    #[test]
    fn syncs_fail_and_lie_when_told() {
        let bench = Bench::new();
        let disk = &bench.disk;
        assert!(bench.run("printf one > a-wal; sync a-wal; sync ."));
        assert_eq!(disk.told(Number::Syncs), 2);
        let write = "printf two | dd of=a-wal conv=notrunc status=none";
        for (lose_dirty, left) in [(1, "one"), (0, "two")] {
            disk.tell(Number::PassSyncs, 1);
            disk.tell(Number::FailSyncs, 1);
            disk.tell(Number::LoseDirty, lose_dirty);
            assert!(bench.run(&format!("sync a-wal; {write}")));
            assert!(!bench.run("sync a-wal"));
            assert!(bench.run("sync a-wal"), "the next one works");
            assert_eq!(bench.read("a-wal"), "two", "the page cache has it");
            disk.lose_power(None);
            assert_eq!(bench.read("a-wal"), left);
        }
        disk.tell(Number::LieAbout, 1);
        assert!(bench.run("printf six > a-wal; sync a-wal; printf one > a; sync a; sync ."));
        disk.lose_power(None);
        assert_eq!(
            (bench.read("a"), bench.read("a-wal")),
            ("one".to_owned(), "two".to_owned())
        );
        disk.tell(Number::NoSpace, 1);
        assert!(!bench.run("printf more >> a"));
        assert_eq!(bench.read("a"), "one");
        assert_eq!(disk.told(Number::Failed), 3);
    }

    #[test]
    fn a_part_of_what_was_not_synced_may_last() {
        let mut random = Random::seeded(1);
        let (kept, real) = (vec![b'k'; 2000], vec![b'r'; 4000]);
        let mut seen = [false; 3];
        for _ in 0..50 {
            let mixed = mixed(&kept, &real, &mut random);
            assert!(mixed.len() == 2000 || mixed.len() == 4000);
            let torn = mixed
                .windows(2)
                .position(|pair| pair == b"kr" || pair == b"rk");
            assert!(
                torn.is_none_or(|at| (at + 1) % SECTOR == 0),
                "a sector is written whole"
            );
            seen[0] |= mixed == kept;
            seen[1] |= mixed == real;
            seen[2] |= torn.is_some();
        }
        assert_eq!(seen, [true; 3]);
    }
}
