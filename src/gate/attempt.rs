//! One attempt at a message: claimed, sent, understood, recorded. It runs detached from the call
//! that started it, until `settle_within`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{Idempotency, OnUnknown};
use crate::failpoint;
use crate::ledger::{Claim, ClaimOutcome, Fence, Hold, Marks, Policy, Settlement};
use crate::metrics::Suspicion;

use super::Gate;
use super::answer::Answer;
use super::bind::Standing;
use super::call::Facts;
use super::forward::{Deadlines, Sending, forward, note};
use super::parcel::Parcel;
use super::record::{ClaimGuard, record, unless_given_up};
use super::refusal::{LedgerFault, Refusal, Reuse, Wait};
use super::running::{self, Lead, Running, Verdict};
use super::understand::{ledger_refusal, understand};
use super::validate::Identity;

/// After an attempt's last possible byte: "not applied" is not believed before.
const QUIET: Duration = Duration::from_secs(60);

/// Runs the attempt to its end, whoever still waits for it, and tells those who joined it.
pub(super) async fn detached(gate: Arc<Gate>, parcel: Parcel, lead: Lead) -> Verdict {
    let running = Arc::clone(lead.running());
    let deadlines = Deadlines::of(&parcel);
    let verdict = match &parcel.identity {
        Some(identity) => keyed(&gate, &parcel, identity, &running, deadlines).await,
        None => unkeyed(&gate, &parcel, &running, deadlines).await,
    };
    if Instant::now() > deadlines.send_by {
        log_late(&parcel.facts, &verdict);
    }
    lead.finish(&verdict);
    verdict
}

/// Forwards a call that changes nothing and may be sent any number of times.
pub(super) async fn fetch(gate: &Arc<Gate>, parcel: Parcel) -> Result<Answer, Refusal> {
    let deadlines = Deadlines {
        send_by: parcel.answer_by(),
        settle_by: parcel.answer_by(),
    };
    let sending = Sending {
        fence: None,
        running: None,
        attempt: 1,
        marks: Marks::default(),
        deadlines,
    };
    let sent = forward(gate, &parcel, sending).await;
    understand(&parcel, sent, 1).answer
}

/// On a route without keys: there is no record, but a final answer makes the signature count for
/// nothing from then on.
async fn unkeyed(
    gate: &Gate,
    parcel: &Parcel,
    running: &Arc<Running>,
    deadlines: Deadlines,
) -> Verdict {
    // A copy may have been answered between this one's step 5 and its place here.
    if gate.common.signatures.is_answered(parcel.signature) {
        return Verdict::Shared(Err(Refusal::Replayed(Reuse::Answered)));
    }
    let sending = Sending {
        fence: None,
        running: Some(Arc::clone(running)),
        attempt: 1,
        marks: Marks::default(),
        deadlines,
    };
    let sent = forward(gate, parcel, sending).await;
    let understood = understand(parcel, sent, 1);
    if matches!(understood.settlement, Settlement::Done(..)) {
        gate.common.signatures.answered(parcel.signature);
    }
    Verdict::Shared(understood.answer)
}

/// On a route with keys: claimed, sent once, recorded.
async fn keyed(
    gate: &Arc<Gate>,
    parcel: &Parcel,
    identity: &Identity,
    running: &Arc<Running>,
    deadlines: Deadlines,
) -> Verdict {
    let (fence, marks) = match claim(gate, parcel, identity, deadlines).await {
        Ok(granted) => granted,
        Err(verdict) => return verdict,
    };
    failpoint::reach("after_claim");
    let _ = parcel.facts.attempt.set(fence.attempt);
    let guard = ClaimGuard::new(gate, &parcel.facts, fence);
    let sending = Sending {
        fence: Some(fence),
        running: Some(Arc::clone(running)),
        attempt: fence.attempt,
        marks,
        deadlines,
    };
    let sent = forward(gate, parcel, sending).await;
    if sent.is_ok() {
        failpoint::reach("after_answer");
    }
    let understood = understand(parcel, sent, fence.attempt);
    failpoint::reach("before_record");
    let recorded = record(gate, &parcel.facts, fence, understood.settlement).await;
    if recorded.is_ok() {
        failpoint::reach("after_record");
    }
    guard.disarm();
    match recorded {
        Ok(()) => Verdict::Shared(understood.answer),
        Err(refusal) => Verdict::Shared(Err(refusal)),
    }
}

/// Claims the message; where it may not run, what its caller gets.
async fn claim(
    gate: &Gate,
    parcel: &Parcel,
    identity: &Identity,
    deadlines: Deadlines,
) -> Result<(Fence, Marks), Verdict> {
    let Some(rule) = &parcel.plan.route.idempotency else {
        // An identity comes from this rule alone.
        return Err(Verdict::Own(Refusal::LedgerUnavailable(
            LedgerFault::Failed,
        )));
    };
    let claim = claim_of(gate, parcel, identity, rule, deadlines);
    failpoint::reach("before_claim");
    // Nothing may be sent after Tiki's deadline, and a claim whose reply is dropped is released.
    let claimed = unless_given_up(gate, gate.common.ledger.claim(claim));
    let claimed = match tokio::time::timeout_at(deadlines.send_by, claimed).await {
        Ok(Some(claimed)) => claimed,
        Ok(None) => return Err(running::LOST),
        Err(_) => {
            let refusal = Refusal::LedgerUnavailable(LedgerFault::Failed);
            return Err(Verdict::Shared(Err(refusal)));
        }
    };
    note(&gate.common.ledger_failing, claimed.is_err());
    if let Some(suspicion) = claimed.as_ref().ok().and_then(suspicion) {
        note_suspicion(gate, parcel, suspicion);
    }
    match claimed {
        Ok(ClaimOutcome::Granted(fence, marks)) => Ok((fence, marks)),
        Ok(other) => Err(not_granted(other, parcel.standing)),
        Err(error) => Err(Verdict::Shared(Err(ledger_refusal(&error)))),
    }
}

fn claim_of(
    gate: &Gate,
    parcel: &Parcel,
    identity: &Identity,
    rule: &Idempotency,
    deadlines: Deadlines,
) -> Claim {
    let policy = match rule.on_unknown {
        OnUnknown::Hold => Policy::Hold,
        OnUnknown::Resend => Policy::Resend,
    };
    Claim {
        key: identity.key.clone(),
        fingerprint: identity.fingerprint,
        owner: gate.common.owner,
        admission: parcel.standing.admission(),
        policy,
        keep: rule.keep,
        may_run_for: deadlines
            .settle_by
            .saturating_duration_since(Instant::now())
            + QUIET,
        route: Arc::clone(&parcel.plan.name),
        fields: identity.fields.clone(),
        request: (policy == Policy::Hold).then(|| parcel.to_keep()),
        subject: identity.subject.clone(),
    }
}

/// What a claim says of the message's place among others about the same order or payment.
fn suspicion(outcome: &ClaimOutcome) -> Option<Suspicion> {
    match outcome {
        ClaimOutcome::Granted(_, marks) if marks.stale_event => Some(Suspicion::StaleMarked),
        ClaimOutcome::Granted(_, marks) if marks.possible_duplicate => {
            Some(Suspicion::DuplicateMarked)
        }
        ClaimOutcome::Dropped(..) => Some(Suspicion::StaleDropped),
        ClaimOutcome::Held(_, Hold::PossibleDuplicate) => Some(Suspicion::DuplicateHeld),
        _ => None,
    }
}

/// Counts it whether or not the caller still waits, and leaves it to the log line.
fn note_suspicion(gate: &Gate, parcel: &Parcel, suspicion: Suspicion) {
    gate.metrics.suspicion(parcel.plan.label, suspicion);
    let _ = parcel.facts.suspicion.set(suspicion);
}

/// What a claim that was not granted means for the caller.
fn not_granted(outcome: ClaimOutcome, standing: Standing) -> Verdict {
    let refusal = match outcome {
        ClaimOutcome::Done(_, kept) => return Verdict::Shared(Ok(Answer::replay(kept))),
        ClaimOutcome::Conflict(_) => Refusal::Conflict,
        ClaimOutcome::Held(_, hold) => Refusal::OutcomeUnknown(hold),
        ClaimOutcome::Unfamiliar => {
            // A duplicate that came in its time must not be told that it did not.
            let Standing::KnownOnly(dated) = standing else {
                return Verdict::Own(Refusal::LedgerUnavailable(LedgerFault::Failed));
            };
            return Verdict::Own(Refusal::OutOfWindow(dated));
        }
        // Granted is the caller's case; Running is another process's.
        ClaimOutcome::Dropped(_, kept) => {
            return Verdict::Shared(Ok(Answer {
                kept,
                replayed: false,
                attempt: None,
            }));
        }
        ClaimOutcome::Running(_) | ClaimOutcome::Granted(..) => {
            Refusal::InProgress(Wait::Elsewhere)
        }
    };
    Verdict::Shared(Err(refusal))
}

/// The caller was answered long ago; the log says what became of its call.
fn log_late(facts: &Facts, verdict: &Verdict) {
    let outcome = match verdict {
        Verdict::Shared(Ok(answer)) => answer.kept.status.as_str().to_owned(),
        Verdict::Shared(Err(refusal)) | Verdict::Own(refusal) => refusal.code().to_owned(),
    };
    tracing::info!(
        tikigate.request_id = %facts.request_id, tikigate.outcome = outcome,
        "a call settled after its caller was answered"
    );
}
