//! Step 7: claim, run once, record, answer; or replay; or join the running call.
//!
//! What a call does from its claim to its record belongs to nobody's connection: a caller who hangs
//! up, and Tiki's deadline, change nothing about it. It is polled by its caller for as long as the
//! caller waits, and by a task of its own from then on (`Detachable`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::ledger::Fingerprint;

use super::Gate;
use super::answer::Answer;
use super::attempt;
use super::parcel::{Parcel, ToldBy};
use super::refusal::{LedgerFault, Overload, Refusal, Wait};
use super::running::{Entry, LOST, Lead, RunKey, Running, Stage, Verdict};
use super::throttle::Claimable;

/// Runs the call, or finds what became of it, and answers before Tiki's deadline.
///
/// # Errors
/// Any refusal from [`Refusal::Conflict`] on down the table of answers.
pub async fn idempotency(gate: &Arc<Gate>, claimable: Claimable) -> Result<Answer, Refusal> {
    let (parcel, _share) = Parcel::of(claimable);
    if parcel.identity().is_none() && parcel.plan.is_safe() {
        // Boxed: the calls that run in a box of their own need not carry the room for it.
        return Box::pin(attempt::fetch(gate, parcel)).await;
    }
    let (key, fingerprint) = run_key(&parcel);
    loop {
        match gate.common.running.enter(key.clone(), fingerprint) {
            Entry::Conflict => return Err(Refusal::Conflict),
            Entry::Crowded => return Err(Refusal::InProgress(Wait::Crowded)),
            Entry::Lead(lead) => return run(gate, parcel, lead).await,
            // Its verdict is about other money fields: wait for it, then ask the ledger.
            Entry::Await(joined) => {
                let over = joined.running().verdict();
                let answer_by = parcel.answer_by();
                if tokio::time::timeout_at(answer_by, over).await.is_err() {
                    return Err(Refusal::InProgress(Wait::Deadline));
                }
            }
            Entry::Join(joined) => {
                let waiting = joined.running().verdict();
                match tokio::time::timeout_at(parcel.answer_by(), waiting).await {
                    Err(_) => return Err(Refusal::InProgress(Wait::Deadline)),
                    Ok(Verdict::Shared(result)) => return result,
                    // That was about the first caller alone; this one asks for itself.
                    Ok(Verdict::Own(_)) => {}
                }
            }
        }
    }
}

/// What makes a parcel one with others that run at the same time.
pub(super) fn run_key(parcel: &Parcel) -> (RunKey, Option<Fingerprint>) {
    match &parcel.told_by {
        ToldBy::Key(identity) => (
            RunKey::Message(identity.key.clone()),
            Some(identity.fingerprint),
        ),
        ToldBy::Signature(signature) => (RunKey::Signature(*signature), None),
    }
}

/// Runs the attempt and waits for it until Tiki's deadline.
async fn run(gate: &Arc<Gate>, parcel: Box<Parcel>, lead: Lead) -> Result<Answer, Refusal> {
    let answer_by = parcel.answer_by();
    let running = Arc::clone(lead.running());
    let attempt = Box::pin(attempt::detached(Arc::clone(gate), parcel, lead));
    let attempt = Detachable {
        future: Some(gate.common.calls.tasks.track_future(attempt)),
    };
    match tokio::time::timeout_at(answer_by, attempt).await {
        Ok(Verdict::Shared(result)) => result,
        Ok(Verdict::Own(refusal)) => Err(refusal),
        Err(_) => Err(too_late(&running)),
    }
}

fn too_late(running: &Running) -> Refusal {
    if running.has_reached(Stage::Sending) {
        Refusal::UpstreamTimeout
    } else if running.has_reached(Stage::Waiting) {
        Refusal::Overloaded(Overload::Upstream)
    } else if running.has_reached(Stage::Elsewhere) {
        Refusal::InProgress(Wait::Elsewhere)
    } else {
        Refusal::LedgerUnavailable(LedgerFault::Failed)
    }
}

/// A future that whoever awaits it polls, and that goes on in a task of its own when it is dropped
/// before its end. That spares the usual call a task, its wake-ups and a channel.
struct Detachable<F: Future<Output = Verdict> + Unpin + Send + 'static> {
    future: Option<F>,
}

impl<F: Future<Output = Verdict> + Unpin + Send + 'static> Future for Detachable<F> {
    type Output = Verdict;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Verdict> {
        let Some(future) = &mut self.future else {
            // Polled again after it resolved, which futures forbid.
            return Poll::Ready(LOST);
        };
        // A panic on the way ends this call and not its connection; dropping the future records what
        // may have been sent.
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(future).poll(cx)));
        let polled = polled.unwrap_or(Poll::Ready(LOST));
        if polled.is_ready() {
            self.future = None;
        }
        polled
    }
}

impl<F: Future<Output = Verdict> + Unpin + Send + 'static> Drop for Detachable<F> {
    fn drop(&mut self) {
        let Some(future) = self.future.take() else {
            return;
        };
        // Without a runtime the process is at its end, and so is the ledger's owner.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(future);
        }
    }
}
