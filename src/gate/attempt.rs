//! One attempt at a message: claimed, sent, understood, recorded. It runs detached from the call
//! that started it, until `settle_within`.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use crate::config::{Idempotency, OnUnknown};
use crate::failpoint;
use crate::ledger::{Admission, Claim, ClaimOutcome, Fence, Hold, Marks, Policy, Settlement};
use crate::metrics::Suspicion;

use super::Gate;
use super::answer::Answer;
use super::backend::{Pass, Shut};
use super::call::Facts;
use super::confirm::confirm;
use super::flag::note;
use super::forward::{Deadlines, Sending, forward};
use super::parcel::{Parcel, ToldBy};
use super::probe::{Looked, Until, look};
use super::record::{ClaimGuard, record, unless_given_up};
use super::refusal::{Dated, LedgerFault, Refusal, Reuse, Wait};
use super::running::{self, Lead, Running, Stage, Verdict};
use super::signatures::SignatureKey;
use super::understand::{ledger_refusal, understand};
use super::validate::Identity;

/// After an attempt's last possible byte: "not applied" is not believed before.
const QUIET: Duration = Duration::from_secs(60);

/// Between the end of an attempt elsewhere and the next question to the ledger.
const ELSEWHERE_PAUSE: Duration = Duration::from_millis(10);

/// How long before Tiki's deadline a look at the backend ends: what it found is to be answered.
const LOOK_MARGIN: Duration = Duration::from_millis(400);

/// Runs the attempt to its end, whoever still waits for it, and tells those who joined it.
pub(super) async fn detached(gate: Arc<Gate>, mut parcel: Box<Parcel>, lead: Lead) -> Verdict {
    let running = Arc::clone(lead.running());
    let deadlines = Deadlines::of(&parcel);
    let room = std::mem::take(&mut parcel.room);
    let verdict = match &parcel.told_by {
        // Boxed: it is several times as large as the other.
        ToldBy::Key(identity) => {
            Box::pin(keyed(&gate, &parcel, identity, &running, deadlines, room)).await
        }
        ToldBy::Signature(signature) => {
            unkeyed(&gate, &parcel, *signature, &running, deadlines, room).await
        }
    };
    if Instant::now() > deadlines.send_by {
        log_late(&parcel.facts, &verdict);
    }
    lead.finish(&verdict);
    verdict
}

/// Forwards a call that changes nothing and may be sent any number of times.
pub(super) async fn fetch(gate: &Arc<Gate>, mut parcel: Box<Parcel>) -> Result<Answer, Refusal> {
    let deadlines = Deadlines {
        send_by: parcel.answer_by(),
        settle_by: parcel.answer_by(),
    };
    let pass = gate.common.backends[parcel.plan.route.upstream].pass()?;
    let mut sending = Sending {
        fence: None,
        running: None,
        attempt: 1,
        marks: Marks::default(),
        pass: Some(pass),
        deadlines,
        room: std::mem::take(&mut parcel.room),
    };
    let sent = forward(gate, &parcel, &mut sending).await;
    understand(&parcel, sent).answer(1)
}

/// On a route without keys: there is no record, but a final answer makes the signature count for
/// nothing from then on.
async fn unkeyed(
    gate: &Gate,
    parcel: &Parcel,
    signature: SignatureKey,
    running: &Arc<Running>,
    deadlines: Deadlines,
    room: HeaderMap,
) -> Verdict {
    // A copy may have been answered between this one's step 5 and its place here.
    if gate.common.signatures.is_answered(signature) {
        return Verdict::Shared(Err(Refusal::Replayed(Reuse::Answered)));
    }
    let pass = match gate.common.backends[parcel.plan.route.upstream].pass() {
        Ok(pass) => pass,
        Err(shut) => return unavailable(shut),
    };
    let mut sending = Sending {
        fence: None,
        running: Some(running),
        attempt: 1,
        marks: Marks::default(),
        pass: Some(pass),
        deadlines,
        room,
    };
    let sent = forward(gate, parcel, &mut sending).await;
    let understood = understand(parcel, sent);
    if understood.is_final() {
        gate.common.signatures.answered(signature);
    }
    Verdict::Shared(understood.answer(1))
}

/// On a route with keys: claimed, sent once, recorded.
async fn keyed(
    gate: &Arc<Gate>,
    parcel: &Parcel,
    identity: &Identity,
    running: &Arc<Running>,
    deadlines: Deadlines,
    room: HeaderMap,
) -> Verdict {
    let (fence, marks, pass) = match claim(gate, parcel, identity, running, deadlines).await {
        Ok(granted) => granted,
        Err(verdict) => return verdict,
    };
    failpoint::reach("after_claim");
    parcel.facts.attempt.set(fence.attempt.into());
    let guard = ClaimGuard::new(gate, &parcel.facts, fence);
    let mut sending = Sending {
        fence: Some(fence),
        running: Some(running),
        attempt: fence.attempt,
        marks,
        pass,
        deadlines,
        room,
    };
    let sent = forward(gate, parcel, &mut sending).await;
    if sent.is_ok() {
        failpoint::reach("after_answer");
    }
    let understood = understand(parcel, sent);
    failpoint::reach("before_record");
    let settlement = understood.settlement();
    let recorded = record(gate, &parcel.facts, fence, settlement).await;
    if recorded.is_ok() {
        failpoint::reach("after_record");
    }
    guard.disarm();
    match recorded {
        Ok(()) => Verdict::Shared(understood.answer(fence.attempt)),
        Err(refusal) => Verdict::Shared(Err(refusal)),
    }
}

/// Claims the message; where it may not run, what its caller gets.
///
/// Nothing is claimed without a pass to call the backend. A pass that was there is dropped before
/// anything is waited for but the ledger: it may be the one trial of an address.
///
/// On a route with `confirm` Tiki is asked in between, if the ledger doesn't know the answer already.
/// What is rare is boxed, so that the usual call need not carry the room for it.
///
/// An attempt of another process is waited for, and the backend is asked about one whose outcome is
/// unknown; then the ledger is asked again. Both end by Tiki's deadline, without a permit of the
/// backend's cap.
async fn claim(
    gate: &Arc<Gate>,
    parcel: &Parcel,
    identity: &Identity,
    running: &Running,
    deadlines: Deadlines,
) -> Result<(Fence, Marks, Option<Pass>), Verdict> {
    let Some(rule) = &parcel.plan.route.idempotency else {
        // An identity comes from this rule alone.
        return Err(Verdict::Own(Refusal::LedgerUnavailable(
            LedgerFault::Failed,
        )));
    };
    let mut probe = rule.probe.as_ref();
    let mut confirmed = !parcel.plan.route.confirm;
    let backend = &gate.common.backends[parcel.plan.route.upstream];
    loop {
        let mut claim = claim_of(gate, parcel, identity, rule, deadlines);
        let pass = backend.pass();
        if pass.is_err() {
            claim.admission = Admission::AnswersOnly;
        } else if !confirmed {
            // First what the ledger knows: a duplicate needs no word of Tiki's.
            claim.admission = Admission::KnownOnly;
        }
        let outcome = claim_once(gate, claim, deadlines.send_by).await?;
        if let Some(suspicion) = suspicion(&outcome) {
            note_suspicion(gate, parcel, suspicion);
        }
        let pass = match (pass, &outcome) {
            (Err(shut), ClaimOutcome::Claimable) => return Err(unavailable(shut)),
            // An old copy of a message that the ledger doesn't know is told that it is old.
            (Err(shut), ClaimOutcome::Unfamiliar) if parcel.admission == Admission::Any => {
                return Err(unavailable(shut));
            }
            (pass, _) => pass.ok(),
        };
        match outcome {
            ClaimOutcome::Granted(fence, marks) if confirmed => {
                return Ok((fence, marks, pass));
            }
            ClaimOutcome::Granted(fence, marks) => {
                drop(pass);
                Box::pin(confirm_known(gate, parcel, fence, deadlines)).await?;
                return Ok((fence, marks, None));
            }
            ClaimOutcome::Unfamiliar if !confirmed && parcel.admission == Admission::Any => {
                drop(pass);
                let confirming = Box::pin(confirm(gate, parcel, deadlines.send_by));
                confirming
                    .await
                    .map_err(|refusal| Verdict::Shared(Err(refusal)))?;
                confirmed = true;
            }
            ClaimOutcome::Running(fence) => {
                drop(pass);
                running.reach(Stage::Elsewhere);
                if !ended_elsewhere(gate, fence, deadlines.send_by).await {
                    return Err(Verdict::Shared(Err(Refusal::InProgress(Wait::Elsewhere))));
                }
            }
            ClaimOutcome::Held(id, hold) => {
                drop(pass);
                // What is held as a possible duplicate was never sent: the backend knows nothing of it.
                let probe = probe.take().filter(|_| hold != Hold::PossibleDuplicate);
                let settled = match probe {
                    Some(probe) => {
                        let until = Until::before(deadlines.send_by, LOOK_MARGIN);
                        let looking = Box::pin(look(gate, &parcel.plan, probe, id, until));
                        looking.await == Looked::Settled
                    }
                    None => false,
                };
                if !settled {
                    return Err(Verdict::Shared(Err(Refusal::OutcomeUnknown(hold))));
                }
            }
            other => return Err(not_granted(other, parcel.dated)),
        }
    }
}

/// Asks Tiki about a message of which the ledger knows an earlier attempt, and which is claimed for
/// that reason. The claim is given back where it isn't confirmed: nothing was sent.
async fn confirm_known(
    gate: &Arc<Gate>,
    parcel: &Parcel,
    fence: Fence,
    deadlines: Deadlines,
) -> Result<(), Verdict> {
    let guard = ClaimGuard::new(gate, &parcel.facts, fence);
    let confirmed = confirm(gate, parcel, deadlines.send_by).await;
    if confirmed.is_err() {
        let released = Settlement::Released("unconfirmed".into());
        // Where that fails, the claim ends with its owner.
        let _ = record(gate, &parcel.facts, fence, released).await;
    }
    guard.disarm();
    confirmed.map_err(|refusal| Verdict::Shared(Err(refusal)))
}

/// Asks the ledger once.
async fn claim_once(gate: &Gate, claim: Claim, send_by: Instant) -> Result<ClaimOutcome, Verdict> {
    failpoint::reach("before_claim");
    // Nothing may be sent after Tiki's deadline, and a claim whose reply is dropped is released.
    let claimed = unless_given_up(gate, gate.common.ledger.claim(claim));
    let claimed = match tokio::time::timeout_at(send_by, claimed).await {
        Ok(Some(claimed)) => claimed,
        Ok(None) => return Err(running::LOST),
        Err(_) => {
            let refusal = Refusal::LedgerUnavailable(LedgerFault::Failed);
            return Err(Verdict::Shared(Err(refusal)));
        }
    };
    note(&gate.common.ledger_failing, claimed.is_err());
    claimed.map_err(|error| Verdict::Shared(Err(ledger_refusal(&error))))
}

/// Waits for another process's attempt; whether it may have ended by Tiki's deadline.
async fn ended_elsewhere(gate: &Gate, fence: Fence, send_by: Instant) -> bool {
    let changed = async {
        gate.common.ledger.changed(fence).await;
        // A store may wake those who wait too early: the ledger is not to be asked without a pause.
        tokio::time::sleep(ELSEWHERE_PAUSE).await;
    };
    tokio::select! {
        biased;
        changed = tokio::time::timeout_at(send_by, changed) => changed.is_ok(),
        () = gate.common.calls.abort.cancelled() => false,
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
        admission: parcel.admission,
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

/// No address may be called.
fn unavailable(shut: Shut) -> Verdict {
    Verdict::Shared(Err(shut.into()))
}

/// What a claim that was not granted means for the caller.
fn not_granted(outcome: ClaimOutcome, dated: Option<Dated>) -> Verdict {
    let refusal = match outcome {
        ClaimOutcome::Done(_, kept) => return Verdict::Shared(Ok(Answer::replay(kept))),
        ClaimOutcome::Conflict(_) => Refusal::Conflict,
        ClaimOutcome::Held(_, hold) => Refusal::OutcomeUnknown(hold),
        ClaimOutcome::Unfamiliar => {
            // A duplicate that came in its time must not be told that it did not.
            let Some(dated) = dated else {
                return Verdict::Own(Refusal::LedgerUnavailable(LedgerFault::Failed));
            };
            return Verdict::Own(Refusal::OutOfWindow(dated));
        }
        // Granted and Claimable are the caller's cases; Running is another process's.
        ClaimOutcome::Dropped(_, kept) => {
            return Verdict::Shared(Ok(Answer {
                kept,
                replayed: false,
                attempt: None,
                room: HeaderMap::new(),
            }));
        }
        ClaimOutcome::Running(_) | ClaimOutcome::Granted(..) | ClaimOutcome::Claimable => {
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
