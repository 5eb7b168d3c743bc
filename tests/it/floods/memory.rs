//! What the gate may take of memory, by the formula in docs/operations.md, and what it takes.

use std::fs;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The settings that the formula is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) max_connections: usize,
    pub(super) max_in_flight: usize,
    pub(super) body_limit: usize,
    pub(super) tls: bool,
}

/// What holds in the tests, which leave these settings as they are.
pub(super) const DEFAULTS: Sizes = Sizes {
    max_connections: 10_000,
    max_in_flight: 1024,
    body_limit: 64 * KIB,
    tls: false,
};

/// Of a connection beside its buffer: its task, its timers, its seat.
const CONNECTION: usize = 14 * KIB;
/// The largest buffer that a connection reads into, which it holds twice while it grows.
const BUFFER: usize = 2 * 16 * KIB;
/// What TLS adds.
const TLS: usize = 20 * KIB;
/// The program, calls at the backend, and what the tables of signatures and addresses hold at most.
const BASE: usize = 94 * MIB;

/// The bound in bytes.
pub(super) fn bound(sizes: Sizes) -> usize {
    let tls = if sizes.tls { TLS } else { 0 };
    BASE + sizes.max_connections * (CONNECTION + BUFFER + tls)
        + sizes.max_in_flight * 2 * sizes.body_limit
}

/// The most that the process held since [`forget_peak`], in bytes.
pub(super) fn peak(pid: u32) -> usize {
    status(pid, "VmHWM:")
}

/// Counts the peak anew. Where that isn't allowed the peak is that of the whole life, which is no less.
pub(super) fn forget_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

fn status(pid: u32, name: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number.unwrap().trim().parse::<usize>().unwrap() * KIB
}
