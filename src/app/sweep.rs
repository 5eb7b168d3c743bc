//! Expiry: records whose time is over are forgotten, a few at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::ledger::{Ledger, LedgerError};

/// How the ledger is swept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Between two looks for records whose time is over.
    pub(super) every: Duration,
    /// Records asked for in one go. A ledger may take fewer, for the sake of the calls that wait for it.
    pub(super) chunk: usize,
    /// After a chunk calls have the ledger to themselves for as long as the chunk took, and at least
    /// for this long.
    pub(super) rest: Duration,
}

/// As good for a million records that expire at once as for one.
pub(super) const PACE: Pace = Pace {
    every: Duration::from_secs(60),
    chunk: 1000,
    rest: Duration::from_millis(5),
};

/// Forgets records whose time is over, for as long as it is polled.
pub(super) async fn keep_sweeping(ledger: Arc<dyn Ledger>, pace: Pace) {
    loop {
        tokio::time::sleep(pace.every).await;
        if let Err(error) = sweep(|limit| ledger.sweep(limit), pace).await {
            tracing::warn!(%error, "expired records can't be forgotten now");
        }
    }
}

/// Sweeps until nothing is left to forget: only 0 says so, as a ledger may always take fewer than it
/// was asked for.
async fn sweep<F>(mut chunk: impl FnMut(usize) -> F, pace: Pace) -> Result<(), LedgerError>
where
    F: Future<Output = Result<u64, LedgerError>>,
{
    loop {
        let began = Instant::now();
        if chunk(pace.chunk).await? == 0 {
            return Ok(());
        }
        tokio::time::sleep(began.elapsed().max(pace.rest)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_ledger_that_takes_few_at_a_time_is_swept_to_the_end() {
        let mut left = 250_u64;
        let took = Duration::from_millis(20);
        let began = Instant::now();
        let mut chunks = 0;
        let few = |limit: usize| {
            assert_eq!(limit, PACE.chunk);
            chunks += 1;
            let swept = left.min(100);
            left -= swept;
            async move {
                tokio::time::sleep(took).await;
                Ok(swept)
            }
        };
        sweep(few, PACE).await.unwrap();
        assert_eq!((left, chunks), (0, 4));
        // Half of the time is the calls'.
        assert!(began.elapsed() >= took * 7, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_ledger_that_fails_is_left_alone() {
        let failing = |_| std::future::ready(Err(LedgerError::Failed("no".to_owned())));
        assert!(sweep(failing, PACE).await.is_err());
    }
}
