//! What the integration tests share: a backend that records bytes, and an HTTP client that sends
//! exactly the bytes it is given.

#![allow(dead_code, reason = "each test file uses its own part of it")]

pub(crate) mod backend;
pub(crate) mod raw;
mod script;
mod wire;

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
