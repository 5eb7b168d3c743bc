//! One attempt at a message: claimed, sent, understood, recorded. It runs detached from the call
//! that started it, until `settle_within`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant as StdInstant};

use tokio::time::Instant;
use tower::{Service, ServiceExt};

use crate::client::{BackendAnswer, ConnectionKind};
use crate::config::{Idempotency, OnUnknown};
use crate::failpoint;
use crate::ledger::{
    Cause, Claim, ClaimOutcome, Fence, Fields, KeptAnswer, LedgerError, Policy, Settlement,
};

use super::Gate;
use super::answer::Answer;
use super::authenticate::Message;
use super::bind::Standing;
use super::call::Facts;
use super::forward::{ForwardFault, NOT_SENT, Outgoing, clean_request};
use super::outcome::{self, Class};
use super::record::{ClaimGuard, record, unless_given_up};
use super::refusal::{LedgerFault, Overload, Refusal, Reuse, UpstreamFault, Wait};
use super::running::{self, Lead, Running, Stage, Verdict};
use super::signatures::SignatureKey;
use super::throttle::Claimable;
use super::validate::Identity;

/// After an attempt's last possible byte: "not applied" is not believed before.
const QUIET: Duration = Duration::from_secs(60);

/// Connections that are tried for one call: kept ones that turned out to be closed before a byte was
/// written, and at last another.
const CONNECTIONS: usize = 3;

/// Runs the attempt to its end, whoever still waits for it, and tells those who joined it.
pub(super) async fn detached(gate: Arc<Gate>, claimable: Claimable, lead: Lead) -> Verdict {
    let running = Arc::clone(lead.running());
    let deadlines = Deadlines::of(&claimable.message);
    let facts = Arc::clone(&claimable.message.facts);
    let verdict = match claimable.identity.clone() {
        Some(identity) => keyed(&gate, &claimable, &identity, &running, deadlines).await,
        None => unkeyed(&gate, &claimable.message, &running, deadlines).await,
    };
    if Instant::now() > deadlines.send_by {
        log_late(&facts, &verdict);
    }
    lead.finish(&verdict);
    verdict
}

/// Forwards a call that changes nothing and may be sent any number of times.
pub(super) async fn fetch(gate: &Arc<Gate>, claimable: Claimable) -> Result<Answer, Refusal> {
    let message = &claimable.message;
    let deadlines = Deadlines {
        send_by: message.answer_by(),
        settle_by: message.answer_by(),
    };
    let sending = Sending {
        fence: None,
        running: None,
        attempt: 1,
        deadlines,
    };
    let sent = send(gate, message, None, sending).await;
    understand(message, sent, 1).answer
}

#[derive(Clone, Copy)]
struct Deadlines {
    /// Tiki's deadline: nothing is sent after it.
    send_by: Instant,
    /// The backend's.
    settle_by: Instant,
}

impl Deadlines {
    fn of(message: &Message) -> Self {
        let start = Instant::from_std(message.facts.first_byte);
        Self {
            send_by: message.answer_by(),
            settle_by: start + message.plan.upstream.settle_within,
        }
    }
}

/// On a route without keys: there is no record, but a final answer makes the signature count for
/// nothing from then on.
async fn unkeyed(
    gate: &Gate,
    message: &Message,
    running: &Arc<Running>,
    deadlines: Deadlines,
) -> Verdict {
    let signature = SignatureKey::from(&message.mac);
    // A copy may have been answered between this one's step 5 and its place here.
    if gate.common.signatures.is_answered(signature) {
        return Verdict::Shared(Err(Refusal::Replayed(Reuse::Answered)));
    }
    let sending = Sending {
        fence: None,
        running: Some(Arc::clone(running)),
        attempt: 1,
        deadlines,
    };
    let sent = send(gate, message, None, sending).await;
    let understood = understand(message, sent, 1);
    if matches!(understood.settlement, Settlement::Done(..)) {
        gate.common.signatures.answered(signature);
    }
    Verdict::Shared(understood.answer)
}

async fn keyed(
    gate: &Arc<Gate>,
    claimable: &Claimable,
    identity: &Identity,
    running: &Arc<Running>,
    deadlines: Deadlines,
) -> Verdict {
    let message = &claimable.message;
    let Some(rule) = &message.plan.route.idempotency else {
        // An identity comes from this rule alone.
        return Verdict::Own(Refusal::LedgerUnavailable(LedgerFault::Failed));
    };
    let claim = claim(gate, claimable, identity, rule, deadlines);
    failpoint::reach("before_claim");
    // Nothing may be sent after Tiki's deadline, and a claim whose reply is dropped is released.
    let claimed = unless_given_up(gate, gate.common.ledger.claim(claim));
    let claimed = match tokio::time::timeout_at(deadlines.send_by, claimed).await {
        Ok(Some(claimed)) => claimed,
        Ok(None) => return running::LOST,
        Err(_) => {
            let refusal = Refusal::LedgerUnavailable(LedgerFault::Failed);
            return Verdict::Shared(Err(refusal));
        }
    };
    note(&gate.common.ledger_failing, claimed.is_err());
    let fence = match claimed {
        Ok(ClaimOutcome::Granted(fence, _)) => fence,
        Ok(other) => return not_granted(other, claimable.standing),
        Err(error) => return Verdict::Shared(Err(ledger_refusal(&error))),
    };
    failpoint::reach("after_claim");
    let _ = message.facts.attempt.set(fence.attempt);
    let guard = ClaimGuard::new(gate, &message.facts, fence);
    let sending = Sending {
        fence: Some(fence),
        running: Some(Arc::clone(running)),
        attempt: fence.attempt,
        deadlines,
    };
    let sent = send(gate, message, Some(identity), sending).await;
    if sent.is_ok() {
        failpoint::reach("after_answer");
    }
    let understood = understand(message, sent, fence.attempt);
    failpoint::reach("before_record");
    let recorded = record(gate, &message.facts, fence, understood.settlement).await;
    failpoint::reach("after_record");
    guard.disarm();
    match recorded {
        Ok(()) => Verdict::Shared(understood.answer),
        Err(refusal) => Verdict::Shared(Err(refusal)),
    }
}

fn claim(
    gate: &Gate,
    claimable: &Claimable,
    identity: &Identity,
    rule: &Idempotency,
    deadlines: Deadlines,
) -> Claim {
    Claim {
        key: identity.key.clone(),
        fingerprint: identity.fingerprint,
        owner: gate.common.owner,
        admission: claimable.standing.admission(),
        policy: match rule.on_unknown {
            OnUnknown::Hold => Policy::Hold,
            OnUnknown::Resend => Policy::Resend,
        },
        keep: rule.keep,
        may_run_for: deadlines
            .settle_by
            .saturating_duration_since(Instant::now())
            + QUIET,
        route: Arc::clone(&claimable.message.plan.name),
        fields: Fields::default(),
        request: None,
        subject: None,
    }
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

fn ledger_refusal(error: &LedgerError) -> Refusal {
    Refusal::LedgerUnavailable(match error {
        LedgerError::Full => LedgerFault::Full,
        LedgerError::Failed(_) => LedgerFault::Failed,
    })
}

struct Sending {
    fence: Option<Fence>,
    running: Option<Arc<Running>>,
    attempt: u32,
    deadlines: Deadlines,
}

/// Sends the message through the tower stack of its backend.
async fn send(
    gate: &Gate,
    message: &Message,
    identity: Option<&Identity>,
    sending: Sending,
) -> Result<BackendAnswer, ForwardFault> {
    let started = StdInstant::now();
    let aborted = gate.common.abort.cancelled();
    let running = sending.running.clone();
    if let Some(running) = &running {
        running.reach(Stage::Waiting);
    }
    let result = tokio::select! {
        biased;
        result = forward(gate, message, identity, sending) => result,
        () = aborted => Err(match running {
            Some(running) if !running.has_reached(Stage::Sending) => ForwardFault::NotSent(NOT_SENT),
            _ => ForwardFault::MaybeSent(UpstreamFault::Abandoned),
        }),
    };
    let took = started.elapsed();
    gate.metrics.upstream(message.plan.label, took);
    let facts = &message.facts;
    let _ = facts.upstream_took.set(took);
    let unreachable =
        matches!(&result, Err(ForwardFault::NotSent(word)) if word.starts_with("connect_"));
    if unreachable || result.is_ok() {
        note(
            &gate.common.unreachable[message.plan.route.upstream],
            unreachable,
        );
    }
    if let Ok(answer) = &result {
        let _ = facts.upstream_status.set(answer.status.as_u16());
    }
    result
}

/// Notes a trouble, or that it is over. Looked at first: a store on each call would move the flag's
/// cache line between the workers' cores.
fn note(flag: &AtomicBool, trouble: bool) {
    if flag.load(Ordering::Relaxed) != trouble {
        flag.store(trouble, Ordering::Relaxed);
    }
}

/// Sends on one connection after another, as long as it is certain that none took a byte.
async fn forward(
    gate: &Gate,
    message: &Message,
    identity: Option<&Identity>,
    sending: Sending,
) -> Result<BackendAnswer, ForwardFault> {
    for _ in 0..CONNECTIONS {
        match forward_once(gate, message, identity, &sending).await {
            Err(ForwardFault::Stale) => {}
            other => return other,
        }
    }
    Err(ForwardFault::NotSent(NOT_SENT))
}

async fn forward_once(
    gate: &Gate,
    message: &Message,
    identity: Option<&Identity>,
    sending: &Sending,
) -> Result<BackendAnswer, ForwardFault> {
    let request = clean_request(message, identity, sending.attempt)
        .map_err(|_| ForwardFault::NotSent(NOT_SENT))?;
    let mut stack = gate.stacks[message.plan.route.upstream].clone();
    let ready = tokio::time::timeout_at(sending.deadlines.send_by, stack.ready()).await;
    let stack = ready.map_err(|_| ForwardFault::NotSent(OVERLOADED))??;
    let fence = sending.fence;
    let outgoing = Outgoing {
        request,
        kind: connection_kind(message),
        answer_limit: message.plan.route.answer_limit,
        send_by: sending.deadlines.send_by,
        settle_by: sending.deadlines.settle_by,
        fence: fence.map(|fence| (Arc::clone(&gate.common.ledger), fence)),
        running: sending.running.clone(),
    };
    stack.call(outgoing).await
}

/// The in-flight cap gave no permit while Tiki waited.
const OVERLOADED: &str = "overloaded";

/// A kept connection that the backend closes at the wrong moment can't be told from a lost answer,
/// so calls that must not be repeated on a guess get a fresh one.
fn connection_kind(message: &Message) -> ConnectionKind {
    let rule = message.plan.route.idempotency.as_ref();
    match rule.map(|rule| rule.on_unknown) {
        Some(OnUnknown::Hold) => ConnectionKind::Fresh,
        Some(OnUnknown::Resend) | None => ConnectionKind::Pooled,
    }
}

/// What an attempt came to, for the ledger and for the caller.
struct Understood {
    settlement: Settlement,
    answer: Result<Answer, Refusal>,
}

fn understand(
    message: &Message,
    sent: Result<BackendAnswer, ForwardFault>,
    attempt: u32,
) -> Understood {
    match sent {
        Ok(answer) => understand_answer(message, &answer, attempt),
        Err(fault) => understand_fault(fault),
    }
}

fn understand_answer(message: &Message, answer: &BackendAnswer, attempt: u32) -> Understood {
    let route = &message.plan.route;
    let class = outcome::classify(&route.outcome, answer);
    let cause = Cause::Borrowed(class.cause());
    let with_facts = |kept: KeptAnswer| Answer {
        kept,
        replayed: false,
        attempt: Some(attempt),
    };
    let settlement = match class {
        Class::Success | Class::Declined => {
            let kept = outcome::final_answer(route, class, answer);
            let answer = Ok(with_facts(kept.clone()));
            return Understood {
                settlement: Settlement::Done(kept, cause),
                answer,
            };
        }
        Class::NotApplied => Settlement::Released(cause),
        Class::CantSay => Settlement::Unknown(cause),
    };
    let answer = outcome::passing_answer(class, answer).map(with_facts);
    Understood { settlement, answer }
}

fn understand_fault(fault: ForwardFault) -> Understood {
    let (settlement, refusal) = match fault {
        ForwardFault::NotSent(OVERLOADED) => (
            Settlement::Released(Cause::Borrowed(OVERLOADED)),
            Refusal::Overloaded(Overload::Upstream),
        ),
        ForwardFault::NotSent(word) => (
            Settlement::Released(Cause::Borrowed(word)),
            Refusal::UpstreamUnreachable(word),
        ),
        ForwardFault::Stale => (
            Settlement::Released(Cause::Borrowed(NOT_SENT)),
            Refusal::UpstreamUnreachable(NOT_SENT),
        ),
        ForwardFault::Fenced => (
            Settlement::Released(Cause::Borrowed("fenced")),
            Refusal::LedgerUnavailable(LedgerFault::Fenced),
        ),
        ForwardFault::Ledger(error) => (
            Settlement::Released(Cause::Borrowed("ledger_unavailable")),
            ledger_refusal(&error),
        ),
        ForwardFault::TimedOut => (
            Settlement::Unknown(Cause::Borrowed("upstream_timeout")),
            Refusal::UpstreamTimeout,
        ),
        ForwardFault::MaybeSent(fault) => (
            Settlement::Unknown(Cause::Borrowed(fault.as_str())),
            Refusal::UpstreamFailed(fault),
        ),
    };
    Understood {
        settlement,
        answer: Err(refusal),
    }
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
