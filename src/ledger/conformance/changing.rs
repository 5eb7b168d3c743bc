//! Waiting for an attempt that runs elsewhere.

use super::*;

pub(crate) async fn waiting_may_be_given_up(open: Open) {
    let f = open.one().await;
    let fence = f.granted(refund("a")).await;
    for _ in 0..100 {
        let mut waiting = f.ledger.changed(fence);
        let _ = Pin::new(&mut waiting)
            .poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    }
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Running(running) if running == fence);
    assert!(f.ledger.permit(fence).await.is_ok());
}

pub(crate) async fn a_claim_after_the_end_sees_it(open: Open) {
    let f = open.one().await;
    for (message, settlement, state) in [
        ("a", success(), State::Done),
        ("b", not_applied(), State::Released),
        ("c", cannot_say(), State::Unknown),
    ] {
        let fence = f.granted(refund(message)).await;
        let waiting = f.ledger.changed(fence);
        f.settle(fence, settlement).await;
        // A store may leave it to the one who waits to ask again.
        let _ = tokio::time::timeout(Duration::from_millis(10), waiting).await;
        let outcome = f.claim(refund(message)).await;
        match state {
            State::Done => assert_is!(outcome, ClaimOutcome::Done(..)),
            State::Released => assert_is!(outcome, ClaimOutcome::Granted(..)),
            _ => assert_is!(outcome, ClaimOutcome::Held(..)),
        }
    }
}
