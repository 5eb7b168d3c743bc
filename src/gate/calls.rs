//! The calls that run detached from their callers, over all reloads: how many they are, and their end.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::crowd::Crowd;

/// A handle to all of a gate's detached calls. It knows nothing of the settings that they began with.
#[derive(Clone)]
pub struct Calls {
    pub(super) tasks: TaskTracker,
    /// Cancelled when they are to end.
    pub(super) abort: CancellationToken,
    pub(super) crowd: Arc<Crowd>,
}

impl Calls {
    pub(super) fn new(crowd: Arc<Crowd>) -> Self {
        Self {
            tasks: TaskTracker::new(),
            abort: CancellationToken::new(),
            crowd,
        }
    }

    /// How many run now.
    pub fn running(&self) -> usize {
        self.tasks.len()
    }

    /// From now on new calls are refused with `draining`.
    pub fn refuse_new(&self) {
        self.crowd.drain();
    }

    /// Resolves when none is running. None may be started meanwhile.
    pub async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Ends them: what may have been sent is recorded as unknown.
    pub fn abandon(&self) {
        self.abort.cancel();
    }
}
