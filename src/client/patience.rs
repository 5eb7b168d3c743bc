//! One timer with two deadlines.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Poll, ready};

use tokio::time::{Instant, sleep_until};

/// Awaits `future` until `deadline`; none if it took longer. If it has not resolved by `soon`, `late`
/// is called then, once, and the wait goes on.
///
/// The future is pinned by who calls: an async function holds what it is given beside what it pins, twice
/// the room in every call's memory.
pub(super) async fn patiently<F: Future>(
    mut future: Pin<&mut F>,
    soon: Instant,
    deadline: Instant,
    late: impl FnOnce(),
) -> Option<F::Output> {
    let mut timer = pin!(sleep_until(soon.min(deadline)));
    let mut late = Some(late).filter(|_| soon < deadline);
    poll_fn(move |cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        loop {
            // A future that used up its task's turn must not keep the timer from being looked at.
            let mut timely = tokio::task::unconstrained(timer.as_mut());
            ready!(Pin::new(&mut timely).poll(cx));
            match late.take() {
                Some(late) => late(),
                None => return Poll::Ready(None),
            }
            timer.as_mut().reset(deadline);
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::time::Duration;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn lateness_is_told_when_it_begins() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let told = Cell::new(None);
        let tell = || told.set(Some(start.elapsed().as_secs()));
        let in_seconds = |seconds| Box::pin(sleep(Duration::from_secs(seconds)));
        assert_eq!(
            patiently(in_seconds(2).as_mut(), at(3), at(9), tell).await,
            Some(())
        );
        assert_eq!(told.get(), None);
        assert_eq!(
            patiently(in_seconds(3).as_mut(), at(4), at(9), tell).await,
            Some(())
        );
        assert_eq!((told.get(), start.elapsed().as_secs()), (Some(4), 5));
        told.set(None);
        assert_eq!(
            patiently(in_seconds(99).as_mut(), at(6), at(9), tell).await,
            None
        );
        assert_eq!((told.get(), start.elapsed().as_secs()), (Some(6), 9));
        told.set(None);
        // Without a difference it is the deadline's matter alone.
        assert_eq!(
            patiently(in_seconds(99).as_mut(), at(10), at(10), tell).await,
            None
        );
        assert_eq!((told.get(), start.elapsed().as_secs()), (None, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_future_does_not_outlast_its_deadline() {
        let busy = async {
            loop {
                tokio::task::consume_budget().await;
            }
        };
        let start = Instant::now();
        let by = start + Duration::from_secs(1);
        // Paused time moves only when nothing runs: move it beside the busy one.
        let mut busy = pin!(busy);
        let (ended, ()) = tokio::join!(patiently(busy.as_mut(), by, by, || ()), async {
            tokio::time::advance(Duration::from_secs(2)).await;
        });
        assert_eq!(ended, None::<()>);
    }
}
