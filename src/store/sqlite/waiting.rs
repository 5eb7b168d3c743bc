//! What the writer was asked to do, in the order in which it is done.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::batch::Ordered;
use super::writer::{BATCH, QUEUE};

/// Jobs that can wait which a batch takes at least, however full it is of others.
const LEAST_LATER: usize = 16;

/// Something for the writer to do.
pub(super) enum Order {
    Run(Ordered),
    /// After those, as far as the batch has room.
    RunLater(Ordered),
    Close(oneshot::Sender<()>),
}

/// What was ordered and not done yet.
#[derive(Default)]
pub(super) struct Waiting {
    jobs: Vec<Ordered>,
    later: VecDeque<Ordered>,
    close: Option<oneshot::Sender<()>>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.later.is_empty() && self.close.is_none()
    }

    /// What came after a close is not taken any more. What can wait doesn't fill a batch, lest what
    /// can't stays in the queue behind it.
    pub(super) fn takes_more(&self) -> bool {
        self.jobs.len() < BATCH && self.later.len() < QUEUE && self.close.is_none()
    }

    pub(super) fn add(&mut self, order: Order) {
        match order {
            Order::Run(job) => self.jobs.push(job),
            Order::RunLater(job) => self.later.push_back(job),
            Order::Close(tell) => self.close = Some(tell),
        }
    }

    /// The next batch: first what can't wait, then what can, of which some always go along.
    pub(super) fn batch(&mut self) -> Vec<Ordered> {
        let mut jobs = std::mem::take(&mut self.jobs);
        let room = BATCH.saturating_sub(jobs.len()).max(LEAST_LATER);
        jobs.extend(self.later.drain(..room.min(self.later.len())));
        jobs
    }

    /// Whom to tell of the close, once everything before it is done.
    pub(super) fn closed(&mut self) -> Option<oneshot::Sender<()>> {
        match self.later.is_empty() {
            true => self.close.take(),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::batch::tests::Named;
    use std::sync::{Arc, Mutex};

    #[test]
    fn what_can_wait_goes_behind_what_cannot_and_is_not_starved() {
        let ran = Arc::new(Mutex::new(Vec::new()));
        let job = |name| {
            let ends = Arc::clone(&ran);
            Ordered::here(Box::new(Named { name, ends }))
        };
        let committed = |ordered: Ordered| ordered.job.committed();
        let mut waiting = Waiting::default();
        for name in 1000..1100 {
            waiting.add(Order::RunLater(job(name)));
        }
        for name in 0..BATCH as u32 {
            assert!(waiting.takes_more());
            waiting.add(Order::Run(job(name)));
        }
        assert!(!waiting.takes_more());
        waiting.batch().into_iter().for_each(committed);
        let expected: Vec<_> = (0..BATCH as u32)
            .chain(1000..1000 + LEAST_LATER as u32)
            .map(|name| (name, None))
            .collect();
        assert_eq!(std::mem::take(&mut *ran.lock().unwrap()), expected);

        let (tell, _told) = oneshot::channel();
        waiting.add(Order::Close(tell));
        assert!(
            waiting.closed().is_none(),
            "what was ordered before is done first"
        );
        waiting.batch().into_iter().for_each(committed);
        assert_eq!(ran.lock().unwrap().len(), 100 - LEAST_LATER);
        assert!(waiting.closed().is_some() && waiting.is_empty());
    }
}
