//! What `strace -f -yy` wrote, read: which call began and ended when, on which file or connection.

use std::collections::HashMap;

/// A system call that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) thread: u32,
    pub(crate) name: String,
    /// Everything between its brackets, as strace shows it.
    pub(crate) arguments: String,
    /// What follows the equals sign: a number, and after an error its name.
    pub(crate) result: String,
    /// Places in the trace, which strace writes in the order of what happened.
    pub(crate) began: usize,
    pub(crate) ended: usize,
}

impl Call {
    /// What the first argument, a descriptor, stands for: a path, or `TCP:[local->peer]`.
    pub(crate) fn on(&self) -> &str {
        let Some((digits, rest)) = self.arguments.split_once('<') else {
            return "";
        };
        let is_descriptor = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_descriptor {
            return "";
        }
        // An arrow is part of a connection's name.
        let end = rest
            .match_indices('>')
            .find(|(at, _)| !rest[..*at].ends_with('-'));
        end.map_or("", |(at, _)| &rest[..at])
    }

    /// Whether it writes.
    pub(crate) fn writes(&self) -> bool {
        let words = [
            "write", "pwrite64", "writev", "pwritev", "sendto", "sendmsg",
        ];
        words.contains(&self.name.as_str())
    }

    /// Whether it makes a file durable.
    pub(crate) fn syncs(&self) -> bool {
        self.name == "fsync" || self.name == "fdatasync"
    }

    /// Whether it did what it was asked.
    pub(crate) fn worked(&self) -> bool {
        !self.result.starts_with('-') && !self.result.starts_with('?')
    }
}

/// Reads a whole trace. Calls that never ended, signals and exits are left out.
///
/// # Panics
/// On a line that can't be understood: a trace that is half read proves nothing.
pub(crate) fn read(text: &str) -> Vec<Call> {
    let mut unfinished: HashMap<u32, (usize, String, String)> = HashMap::new();
    let mut calls = Vec::new();
    for (place, line) in text.lines().enumerate() {
        let (thread, what) = head(line);
        if what.starts_with("+++") || what.starts_with("---") {
            continue;
        }
        if let Some(begun) = what.strip_suffix("<unfinished ...>") {
            let (name, arguments) = begun.split_once('(').unwrap_or_else(|| panic!("{line}"));
            let begun = (place, name.to_owned(), arguments.to_owned());
            let other = unfinished.insert(thread, begun);
            assert!(other.is_none(), "thread {thread} is in two calls: {line}");
            continue;
        }
        let (began, name, arguments) = match what.strip_prefix("<... ") {
            Some(resumed) => {
                let (name, rest) = resumed
                    .split_once(" resumed>")
                    .unwrap_or_else(|| panic!("{line}"));
                let begun = unfinished.remove(&thread);
                let (began, begun_name, start) = begun.unwrap_or_else(|| panic!("{line}"));
                assert_eq!(name, begun_name, "{line}");
                (began, begun_name, start + rest)
            }
            None => {
                let (name, rest) = what.split_once('(').unwrap_or_else(|| panic!("{line}"));
                (place, name.to_owned(), rest.to_owned())
            }
        };
        // The last of them: a text among the arguments may hold the same.
        let (arguments, result) = arguments
            .rsplit_once(") = ")
            .or_else(|| {
                // strace pads short calls: `fsync(3)       = 0`.
                let (before, result) = arguments.rsplit_once(" = ")?;
                Some((before.trim_end().strip_suffix(')')?, result))
            })
            .unwrap_or_else(|| panic!("{line}"));
        calls.push(Call {
            thread,
            name,
            arguments: arguments.to_owned(),
            result: result.to_owned(),
            began,
            ended: place,
        });
    }
    calls.sort_by_key(|call| call.began);
    calls
}

/// The thread, and what comes after the time, if a time was asked for.
fn head(line: &str) -> (u32, &str) {
    let (thread, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
    let thread = thread.parse().unwrap_or_else(|_| panic!("{line}"));
    let rest = rest.trim_start();
    match rest.split_once(' ') {
        Some((time, what)) if time.starts_with(|first: char| first.is_ascii_digit()) => {
            (thread, what.trim_start())
        }
        _ => (thread, rest),
    }
}

mod tests {
    use super::*;

    const TRACE: &str = r#"100 09:00:00.000001 openat(AT_FDCWD</tmp>, "/tmp/a.db", O_RDWR) = 3</tmp/a.db>
100 09:00:00.000002 pwrite64(3</tmp/a.db-wal>, "r-1 (x) = 5", 11, 0) = 11
100 09:00:00.000003 fdatasync(3</tmp/a.db-wal> <unfinished ...>
101 09:00:00.000004 sendto(9<TCP:[127.0.0.1:4001->127.0.0.1:9000]>, "POST / HTTP/1.1\r\n", 17, MSG_NOSIGNAL, NULL, 0) = 17
100 09:00:00.000005 <... fdatasync resumed>) = 0
101 09:00:00.000006 fsync(4</tmp>)          = -1 EIO (Input/output error)
100 09:00:00.000007 --- SIGTERM {si_signo=SIGTERM} ---
101 09:00:00.000008 write(9<TCP:[127.0.0.1:4001->127.0.0.1:9000]>, "x", 1 <unfinished ...>
101 09:00:00.000009 +++ exited with 0 +++
"#;

    #[test]
    fn calls_are_read_with_what_they_are_on() {
        let calls = read(TRACE);
        let names: Vec<_> = calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!(
            names,
            ["openat", "pwrite64", "fdatasync", "sendto", "fsync"]
        );
        let on: Vec<_> = calls.iter().map(Call::on).collect();
        let connection = "TCP:[127.0.0.1:4001->127.0.0.1:9000]";
        assert_eq!(
            on,
            ["", "/tmp/a.db-wal", "/tmp/a.db-wal", connection, "/tmp"]
        );
        assert!(calls[1].writes() && calls[1].arguments.contains("(x) = 5"));
        assert_eq!(calls[1].result, "11");
        let sync = &calls[2];
        assert!(sync.syncs() && sync.worked());
        // It ended after the other thread's call, which began after it.
        assert_eq!((sync.began, sync.ended, calls[3].ended), (2, 4, 3));
        assert!(calls[4].syncs() && !calls[4].worked());
    }
}
