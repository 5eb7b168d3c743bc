//! Lets the backend close first.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::stream::MeteredStream;

/// How long a backend that was asked to close may take to do it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Connections that wait for it at once, per worker and backend.
const MOST: usize = 64;

/// The connections that are done and wait for the backend to close them.
///
/// Whoever closes first keeps the port pair in `TIME_WAIT` for a minute. On our side that takes a
/// local port each, and calls to a remote backend end at some 470 a second; so it is the backend
/// that closes, as `Connection: close` asks it to. Its end often arrives just after its answer.
pub(super) struct Linger {
    permits: Arc<Semaphore>,
}

impl Linger {
    pub(super) fn new() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(MOST)),
        }
    }

    /// Closes `stream` after the backend has, or has been given its time. Doesn't wait.
    pub(super) fn close(&self, mut stream: MeteredStream) {
        if !stream.is_silent() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return;
        };
        tokio::spawn(async move {
            let _permit = permit;
            // Whatever comes, the end, an error or surplus bytes: it is over.
            let _ = timeout(PATIENCE, stream.read_u8()).await;
        });
    }
}
