//! Step 7: claim, run once, record, answer; or replay; or join the running call.
//!
//! What a call does from its claim to its record runs in a task of its own: a caller who hangs up,
//! and Tiki's deadline, change nothing about it.

use std::sync::Arc;

use crate::ledger::Fingerprint;

use super::Gate;
use super::answer::Answer;
use super::attempt;
use super::refusal::{Overload, Refusal, Wait};
use super::running::{Entry, Lead, RunKey, Running, Verdict};
use super::signatures::SignatureKey;
use super::throttle::Claimable;

/// Runs the call, or finds what became of it, and answers before Tiki's deadline.
///
/// # Errors
/// Any refusal from [`Refusal::Conflict`] on down the table of answers.
pub async fn idempotency(gate: &Arc<Gate>, claimable: Claimable) -> Result<Answer, Refusal> {
    if claimable.identity.is_none() && claimable.message.plan.is_safe() {
        return attempt::fetch(gate, claimable).await;
    }
    let (key, fingerprint) = run_key(&claimable);
    loop {
        match gate.common.running.enter(key.clone(), fingerprint) {
            Entry::Conflict => return Err(Refusal::Conflict),
            Entry::Crowded => return Err(Refusal::InProgress(Wait::Crowded)),
            Entry::Lead(lead) => return run(gate, claimable, lead).await,
            Entry::Join(joined) => {
                let waiting = joined.running().verdict();
                match tokio::time::timeout_at(claimable.message.answer_by(), waiting).await {
                    Err(_) => return Err(Refusal::InProgress(Wait::Deadline)),
                    Ok(Verdict::Shared(result)) => return result,
                    // That was about the first caller alone; this one asks for itself.
                    Ok(Verdict::Own(_)) => {}
                }
            }
        }
    }
}

fn run_key(claimable: &Claimable) -> (RunKey, Option<Fingerprint>) {
    match &claimable.identity {
        Some(identity) => (
            RunKey::Message(identity.key.clone()),
            Some(identity.fingerprint),
        ),
        None => (
            RunKey::Signature(SignatureKey::from(&claimable.message.mac)),
            None,
        ),
    }
}

/// Starts the detached task and waits for it until Tiki's deadline.
async fn run(gate: &Arc<Gate>, claimable: Claimable, lead: Lead) -> Result<Answer, Refusal> {
    let answer_by = claimable.message.answer_by();
    let running = Arc::clone(lead.running());
    gate.common
        .tasks
        .spawn(attempt::detached(Arc::clone(gate), claimable, lead));
    match tokio::time::timeout_at(answer_by, running.verdict()).await {
        Ok(Verdict::Shared(result)) => result,
        Ok(Verdict::Own(refusal)) => Err(refusal),
        Err(_) => Err(too_late(&running)),
    }
}

fn too_late(running: &Running) -> Refusal {
    if running.may_be_sent() {
        Refusal::UpstreamTimeout
    } else {
        Refusal::Overloaded(Overload::Upstream)
    }
}
