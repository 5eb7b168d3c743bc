//! What a store's calls return, and the guard that releases a claim nobody took.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::Fence;

/// A store's answer that may still be on its way. Stores that answer at once allocate nothing.
pub struct Reply<T>(Answering<T>);

enum Answering<T> {
    Ready(Option<T>),
    Guarded(Option<(T, ClaimGuard)>),
    Waiting(Pin<Box<dyn Future<Output = T> + Send>>),
}

impl<T> Reply<T> {
    /// An answer that is there.
    pub fn ready(answer: T) -> Self {
        Self(Answering::Ready(Some(answer)))
    }

    /// An answer that somebody else is working on.
    ///
    /// Where that is a claim, its grant travels with its guard until the future's last poll:
    /// an answer that is there and never read is a claim that nobody took, too.
    pub fn waiting(answer: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Answering::Waiting(Box::pin(answer)))
    }

    /// An answer that is there and grants a claim, which goes back if nobody takes the answer.
    pub(super) fn guarded(answer: T, guard: ClaimGuard) -> Self {
        Self(Answering::Guarded(Some((answer, guard))))
    }
}

impl<T: Unpin> Future for Reply<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let answer = match &mut self.0 {
            Answering::Ready(answer) => answer.take(),
            Answering::Guarded(answer) => answer.take().map(|(answer, guard)| {
                guard.disarm();
                answer
            }),
            Answering::Waiting(answer) => return answer.as_mut().poll(cx),
        };
        match answer {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending, // polled again after it resolved, which futures forbid
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Answering::Ready(_) | Answering::Guarded(_) => "Reply(ready)",
            Answering::Waiting(_) => "Reply(waiting)",
        })
    }
}

/// A store that takes back claims whose fence nobody ever saw.
pub(super) trait TakesBack: Send + Sync {
    /// Releases the claim: without its fence nothing was sent. Called from a drop, so it reports
    /// nothing; where it fails, the claim stays until its owner lapses.
    fn take_back(&self, fence: Fence);
}

/// Hands a granted claim back when dropped before [`ClaimGuard::disarm`].
pub(super) struct ClaimGuard {
    store: Option<Arc<dyn TakesBack>>,
    fence: Fence,
}

impl ClaimGuard {
    pub(super) fn new(store: Arc<dyn TakesBack>, fence: Fence) -> Self {
        Self {
            store: Some(store),
            fence,
        }
    }

    /// The fence is in its owner's hands.
    pub(super) fn disarm(mut self) {
        self.store = None;
    }
}

impl Drop for ClaimGuard {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            store.take_back(self.fence);
        }
    }
}
