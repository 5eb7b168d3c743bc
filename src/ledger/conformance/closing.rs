//! The end of a store's use.

use super::*;

pub(crate) async fn a_closed_store_refuses(open: Open) {
    let f = open.one().await;
    let fence = f.granted(refund("a")).await;
    f.ledger.close().await;
    f.ledger.close().await;
    assert_is!(
        f.ledger.claim(refund("b")).await,
        Err(LedgerError::Failed(_))
    );
    assert_is!(
        f.ledger.settle(fence, success()).await,
        Err(LedgerError::Failed(_))
    );
    assert!(f.ledger.permit(fence).await.is_err());
    assert_is!(
        f.ledger.get(fence.record).await,
        Err(LedgerError::Failed(_))
    );
    assert_is!(f.ledger.lapse(ONE).await, Err(LedgerError::Failed(_)));
    assert_is!(f.ledger.sweep(1).await, Err(LedgerError::Failed(_)));
    assert_is!(f.ledger.stats().await, Err(LedgerError::Failed(_)));
}
