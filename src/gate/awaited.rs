//! Bodies that are waited for, and which of them make room for other calls.
//!
//! A call whose body comes slowly holds a place among all calls in flight though nobody knows who sent
//! it. Limits for each address bound what one address holds, but very many could together hold all
//! places. So where all are taken, the body that has been waited for longest is given up, and its call
//! answered 503: it is sent again. A body that comes with its head is never waited for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// How long a body is waited for in any case: time for a packet that was lost to be sent again. Nothing is
/// entered before, so that bodies which come as they should cost nothing here.
pub(super) const MIN_WAIT: Duration = Duration::from_millis(250);

/// Bodies that have been waited for at least [`MIN_WAIT`]: no more than there are calls in flight.
#[derive(Debug, Default)]
pub(super) struct AwaitedBodies {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By number, so that the first has been waited for longest.
    bodies: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

impl AwaitedBodies {
    /// Enters a body that is still waited for, until the value is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> AwaitedBody {
        let given_up = Arc::new(Notify::new());
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.bodies.insert(number, Arc::clone(&given_up));
        AwaitedBody {
            all: Arc::clone(self),
            number,
            given_up,
        }
    }

    /// Gives up the body that has been waited for longest; whether there is one.
    pub(super) fn give_one_up(&self) -> bool {
        let Some((_, given_up)) = self.state().bodies.pop_first() else {
            return false;
        };
        given_up.notify_one();
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one step: whoever panicked left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that is waited for.
#[derive(Debug)]
pub(super) struct AwaitedBody {
    all: Arc<AwaitedBodies>,
    number: u64,
    given_up: Arc<Notify>,
}

impl AwaitedBody {
    /// Resolves when it is given up.
    pub(super) async fn given_up(&self) {
        self.given_up.notified().await;
    }
}

impl Drop for AwaitedBody {
    fn drop(&mut self) {
        self.all.state().bodies.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_awaited_is_given_up_first() {
        let all = Arc::new(AwaitedBodies::default());
        assert!(!all.give_one_up(), "there is none");
        let gone = all.enter();
        let (first, second) = (all.enter(), all.enter());
        drop(gone);
        assert!(all.give_one_up());
        first.given_up().await;
        assert!(all.give_one_up());
        second.given_up().await;
        assert!(!all.give_one_up());
        let third = all.enter();
        drop((first, second));
        assert!(all.give_one_up());
        third.given_up().await;
    }
}
