//! Callers at once, and callers that go away.

use std::task::{Context, Poll, Waker};

use super::*;

/// Claims until what a dropped reply left behind is settled; a store may need a moment for it.
async fn granted_in_the_end(f: &Fixture, claim: Claim) -> Fence {
    for _ in 0..1000 {
        match f.claim(claim.clone()).await {
            ClaimOutcome::Granted(fence, _) => return fence,
            ClaimOutcome::Running(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            other => panic!("{other:?}"),
        }
    }
    panic!("the dropped claim was never released");
}

pub(crate) async fn dropped_claim_goes_back(open: Open) {
    let f = open.one().await;
    drop(f.ledger.claim(refund("a")));
    let fence = granted_in_the_end(&f, refund("a")).await;
    // A claim that was taken stays, whatever becomes of duplicates.
    drop(f.ledger.claim(refund("a")));
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Running(running) if running == fence);
}

pub(crate) async fn claim_dropped_while_pending_goes_back(open: Open) {
    let f = open.one().await;
    let mut reply = f.ledger.claim(refund("a"));
    let polled = Pin::new(&mut reply).poll(&mut Context::from_waker(Waker::noop()));
    drop(reply);
    match polled {
        Poll::Pending => {
            granted_in_the_end(&f, refund("a")).await;
        }
        // It was taken: nobody but its owner may give it back.
        Poll::Ready(outcome) => {
            assert_is!(outcome, Ok(ClaimOutcome::Granted(..)));
            assert_is!(f.claim(refund("a")).await, ClaimOutcome::Running(_));
        }
    }
}

const THREADS: u64 = 8;

/// Runs the same on many threads at once.
pub(super) fn at_once<T: Send>(run: impl AsyncFn(Owner) -> T + Sync) -> Vec<T> {
    let barrier = std::sync::Barrier::new(THREADS as usize);
    let one = &|owner| {
        let runtime = runtime();
        barrier.wait();
        runtime.block_on(run(Owner(owner)))
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|owner| scope.spawn(move || one(owner)))
            .collect();
        (threads.into_iter())
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

/// Runs the two on a thread each, at once.
pub(super) fn two_at_once<A: Send, B: Send>(
    one: impl AsyncFn() -> A + Sync,
    other: impl AsyncFn() -> B + Sync,
) -> (A, B) {
    let barrier = &std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let one = scope.spawn(|| {
            let runtime = runtime();
            barrier.wait();
            runtime.block_on(one())
        });
        let other = scope.spawn(|| {
            let runtime = runtime();
            barrier.wait();
            runtime.block_on(other())
        });
        (one.join().unwrap(), other.join().unwrap())
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

pub(crate) async fn one_of_many_threads_is_granted(open: Open) {
    let f = open.one().await;
    let ledger = &f.ledger;
    for round in 0..50 {
        let message = round.to_string();
        let outcomes = at_once(async |owner| {
            let claim = Claim {
                owner,
                ..refund(&message)
            };
            ledger.claim(claim).await.unwrap()
        });
        let granted = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, ClaimOutcome::Granted(..)));
        assert_eq!(granted.count(), 1);
        let running = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, ClaimOutcome::Running(_)));
        assert_eq!(running.count() as u64, THREADS - 1);
    }
}

pub(crate) async fn threads_never_share_an_attempt(open: Open) {
    let f = open.one().await;
    let ledger = &f.ledger;
    let attempts = at_once(async |owner| {
        let mut attempts = Vec::new();
        for _ in 0..200 {
            let claim = Claim {
                owner,
                ..refund("a")
            };
            if let ClaimOutcome::Granted(fence, _) = ledger.claim(claim).await.unwrap() {
                attempts.push(fence.attempt);
                ledger.settle(fence, not_applied()).await.unwrap();
            }
        }
        attempts
    });
    let mut attempts = attempts.concat();
    attempts.sort_unstable();
    let expected: Vec<_> = (1..).take(attempts.len()).collect();
    assert_eq!(attempts, expected);
}
