//! Whether something happened to a connection since it last had its turn.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Rung by whatever a connection waits for: its socket, and what its two ends hand to each other.
///
/// The ends of a connection are driven by one task, and each hand-over between them would wake that task to be
/// run once more for nothing. So what they are given as their waker is this bell. It wakes the task only
/// while that waits; what is rung in the task's own turn is noticed there. And where the task was woken for
/// something else, the bell tells that the connection needs no turn.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: AtomicBool,
    /// Whom to wake; none while the task has its turn, or nobody waits.
    waiting: Mutex<Option<Waker>>,
}

impl Bell {
    /// Ready if it was rung since it last was; if not, the task is woken when it is.
    pub(super) fn poll_rung(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.was_rung() {
            return Poll::Ready(());
        }
        *self.waiting() = Some(cx.waker().clone());
        // Whoever rang before that found nobody to wake.
        match self.was_rung() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Rings it.
    pub(super) fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        let waiting = self.waiting().take();
        if let Some(task) = waiting {
            task.wake();
        }
    }

    /// Nobody waits any more.
    pub(super) fn leave(&self) {
        *self.waiting() = None;
    }

    fn was_rung(&self) -> bool {
        self.rung.load(Ordering::SeqCst) && self.rung.swap(false, Ordering::SeqCst)
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waker>> {
        // Nothing under the lock can leave it half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn it_wakes_only_who_waits_and_is_heard_once() {
        let (bell, woken) = (Arc::new(Bell::default()), Arc::new(Count::default()));
        let task = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&task);
        let waker = Waker::from(Arc::clone(&bell));
        let times = || woken.0.load(Ordering::Relaxed);
        waker.wake_by_ref();
        assert_eq!(bell.poll_rung(&mut cx), Poll::Ready(()));
        assert_eq!((bell.poll_rung(&mut cx), times()), (Poll::Pending, 0));
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!((bell.poll_rung(&mut cx), times()), (Poll::Ready(()), 1));
        assert_eq!(bell.poll_rung(&mut cx), Poll::Pending);
        bell.leave();
        waker.wake();
        assert_eq!(times(), 1);
    }
}
