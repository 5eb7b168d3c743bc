//! What the system says of this process, read from `/proc` (proc(5)).

use std::fs;

/// Figures for the `process_*` families; what can't be read is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Figures {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
    /// Seconds since 1970.
    pub(super) start_time: Option<f64>,
    pub(super) threads: Option<u64>,
}

impl Figures {
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let system = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self {
            open_fds: open_fds(),
            ..Self::parse(&stat, &status, &limits, &system)
        }
    }

    fn parse(stat: &str, status: &str, limits: &str, system: &str) -> Self {
        let field = |number| stat_field(stat, number);
        Self {
            cpu_seconds: field(14)
                .zip(field(15))
                .map(|(user, kernel)| seconds(user.saturating_add(kernel))),
            resident_bytes: resident_bytes(status),
            virtual_bytes: field(23),
            open_fds: None,
            max_fds: max_fds(limits),
            start_time: field(22)
                .zip(boot_time(system))
                .map(|(ticks, boot)| boot as f64 + seconds(ticks)),
            threads: field(20),
        }
    }
}

/// `USER_HZ`, the unit of times in `/proc`: 100 on every architecture that Rust's standard library
/// supports on Linux, whatever the kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / TICKS_PER_SECOND
}

/// A field of `/proc/self/stat`, by proc(5)'s number, from the third on. The second, the program's
/// name, may hold spaces and brackets, so counting starts behind its last bracket.
fn stat_field(stat: &str, number: usize) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let index = number.checked_sub(3)?;
    after_name.split_whitespace().nth(index)?.parse().ok()
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The soft limit; absent when there is none.
fn max_fds(limits: &str) -> Option<u64> {
    let prefix = "Max open files";
    let line = limits.lines().find_map(|line| line.strip_prefix(prefix))?;
    line.split_whitespace().next()?.parse().ok()
}

fn boot_time(system: &str) -> Option<u64> {
    let line = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

fn open_fds() -> Option<u64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(entries.saturating_sub(1)) // without the one that reads the folder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_program_name_moves_no_field() {
        let stat = "42 (a) R 1 (b) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 9 0 12345 \
                    1048576 300 18446744073709551615";
        let figures = Figures::parse(
            stat,
            "Name:\tx\nVmRSS:\t    8 kB\n",
            "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024    4096   files\n",
            "cpu 1 2\nbtime 1000\n",
        );
        let expected = Figures {
            cpu_seconds: Some(3.0),
            resident_bytes: Some(8192),
            virtual_bytes: Some(1_048_576),
            open_fds: None,
            max_fds: Some(1024),
            start_time: Some(1123.45),
            threads: Some(9),
        };
        assert_eq!(figures, expected);
    }

    #[test]
    fn what_cannot_be_read_is_absent() {
        let limits = "Max open files            unlimited    unlimited   files\n";
        assert_eq!(Figures::parse("", "", limits, ""), Figures::default());
    }

    #[test]
    fn this_process_has_figures() {
        let figures = Figures::read();
        assert!(figures.threads > Some(0) && figures.resident_bytes > Some(0));
        assert!(figures.open_fds >= Some(3) && figures.start_time > Some(1.6e9));
    }
}
