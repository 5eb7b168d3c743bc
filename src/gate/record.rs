//! What became of an attempt reaches the ledger, whatever the store, a panic or the gate's end do
//! about it.

use std::sync::Arc;
use std::time::Duration;

use crate::ledger::{Cause, Fence, Settled, Settlement, State};

use super::Gate;
use super::call::Facts;
use super::refusal::{LedgerFault, Refusal};

/// Pauses between tries to record an answer that the store could not take.
const RECORD_PAUSE: Duration = Duration::from_millis(250);
const RECORD_PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long a store may take to reply once the gate gives its running calls up.
const LAST_REPLY: Duration = Duration::from_secs(2);

/// The store's reply; none if the gate gave its calls up and the store let that moment pass too.
pub(super) async fn unless_given_up<T>(gate: &Gate, reply: impl Future<Output = T>) -> Option<T> {
    let given_up = async {
        gate.common.calls.abort.cancelled().await;
        tokio::time::sleep(LAST_REPLY).await;
    };
    tokio::select! {
        biased;
        reply = reply => Some(reply),
        () = given_up => None,
    }
}

/// Records what became of the attempt. An owner that holds an answer which its store can't take
/// keeps trying: the answer is all that stands between the refund and a second one. Until it is
/// recorded nobody is answered with it.
pub(super) async fn record(
    gate: &Gate,
    facts: &Facts,
    fence: Fence,
    settlement: Settlement,
) -> Result<(), Refusal> {
    let mut pause = RECORD_PAUSE;
    loop {
        let settling = gate.common.ledger.settle(fence, settlement.clone());
        let error = match unless_given_up(gate, settling).await {
            Some(Ok(settled)) => {
                log_settled(facts, fence, &settled);
                if matches!(settled, Settled::Alarm) {
                    gate.metrics.alarm();
                }
                return match settled {
                    Settled::Recorded(_) => Ok(()),
                    // The record says something else: the next try gets that, and so no other now.
                    Settled::Superseded(_) | Settled::Alarm => {
                        Err(Refusal::LedgerUnavailable(LedgerFault::Unrecorded))
                    }
                };
            }
            Some(Err(error)) => error,
            None => return Err(Refusal::LedgerUnavailable(LedgerFault::Unrecorded)),
        };
        tracing::error!(
            tikigate.record = %fence.record, tikigate.request_id = %facts.request_id, %error,
            "an answer can't be recorded, trying again"
        );
        if gate.common.calls.abort.is_cancelled() {
            return Err(Refusal::LedgerUnavailable(LedgerFault::Unrecorded));
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = gate.common.calls.abort.cancelled() => {}
        }
        pause = (pause * 2).min(RECORD_PAUSE_MAX);
    }
}

fn log_settled(facts: &Facts, fence: Fence, settled: &Settled) {
    match settled {
        Settled::Recorded(State::Unknown) => tracing::warn!(
            tikigate.record = %fence.record, tikigate.request_id = %facts.request_id,
            tikigate.attempt = fence.attempt,
            "outcome unknown: held until somebody says what happened (tikigate ledger resolve)"
        ),
        Settled::Recorded(_) => {}
        Settled::Superseded(state) => tracing::warn!(
            tikigate.record = %fence.record, tikigate.request_id = %facts.request_id,
            tikigate.attempt = fence.attempt, tikigate.state = state.as_str(),
            "an answer came after the record had moved on"
        ),
        Settled::Alarm => tracing::error!(
            tikigate.record = %fence.record, tikigate.request_id = %facts.request_id,
            tikigate.attempt = fence.attempt,
            "a success came in for an attempt that counts as not applied (it was declared so and sent \
             again since, or rejected, or the ledger has forgotten it): check with the backend whether \
             money moved twice"
        ),
    }
}

/// Records an attempt as unknown when its task ends without having said what became of it: a panic
/// on the way must not leave a claim that nobody owns.
pub(super) struct ClaimGuard {
    gate: Arc<Gate>,
    facts: Arc<Facts>,
    fence: Fence,
    armed: bool,
}

impl ClaimGuard {
    /// For a claim that was just granted.
    pub(super) fn new(gate: &Arc<Gate>, facts: &Arc<Facts>, fence: Fence) -> Self {
        Self {
            gate: Arc::clone(gate),
            facts: Arc::clone(facts),
            fence,
            armed: true,
        }
    }

    /// The attempt's outcome was recorded.
    pub(super) fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for ClaimGuard {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (gate, facts, fence) = (Arc::clone(&self.gate), Arc::clone(&self.facts), self.fence);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        self.gate.common.calls.tasks.spawn_on(
            async move {
                let lost = Settlement::Unknown(Cause::Borrowed("task_lost"));
                // Refused only when the gate ends; its claims become unknown then.
                let _ = record(&gate, &facts, fence, lost).await;
            },
            &runtime,
        );
    }
}
