//! What the integration tests share: a backend that records bytes, an HTTP client that sends
//! exactly the bytes it is given, and a gate in front, in this process or in one of its own.

#![allow(dead_code, reason = "each test file uses its own part of it")]

pub(crate) mod backend;
pub(crate) mod disk;
pub(crate) mod fake_tiki;
pub(crate) mod gate;
pub(crate) mod gate_process;
pub(crate) mod postgres;
pub(crate) mod random;
pub(crate) mod raw;
pub(crate) mod samples;
mod script;
pub(crate) mod wire;

use std::future::Future;
use std::time::Duration;

/// Nothing in a test waits longer than this for the other side.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The outcome of `future`, or a failed test after [`PATIENCE`]; `what` says what was awaited.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}
