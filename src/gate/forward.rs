//! Towards the backend: a clean request over the tower stack `in-flight cap · backend`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant as StdInstant;

use bytes::Bytes;
use http::Request;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower::limit::{ConcurrencyLimit, GlobalConcurrencyLimitLayer};
use tower::{Layer, Service, ServiceExt};

use crate::client::{BackendAnswer, ConnectionKind, SendFaultKind, Sent, Upstream};
use crate::config::OnUnknown;
use crate::failpoint;
use crate::ledger::{Fence, Ledger, LedgerError, Marks, PermitError};

use super::Gate;
use super::parcel::Parcel;
use super::refusal::UpstreamFault;
use super::route::RoutePlan;
use super::running::{Running, Stage};

/// The word for a call that never left, where no finer one is known.
pub(super) const NOT_SENT: &str = "not_sent";

/// The in-flight cap gave no permit while Tiki waited.
pub(super) const OVERLOADED: &str = "overloaded";

/// Connections that are tried for one call: kept ones that turned out to be closed before a byte was
/// written, and at last another.
const CONNECTIONS: usize = 3;

/// How a parcel is sent.
pub(super) struct Sending {
    /// The claim that it is sent under.
    pub(super) fence: Option<Fence>,
    /// Told how far it has come.
    pub(super) running: Option<Arc<Running>>,
    /// Which try of its message it is.
    pub(super) attempt: u32,
    /// What the backend is told of it.
    pub(super) marks: Marks,
    /// Until when.
    pub(super) deadlines: Deadlines,
}

/// Until when an attempt may do what.
#[derive(Clone, Copy)]
pub(super) struct Deadlines {
    /// Tiki's deadline: nothing is sent after it.
    pub(super) send_by: Instant,
    /// The backend's.
    pub(super) settle_by: Instant,
}

impl Deadlines {
    /// Of a parcel that is claimed.
    pub(super) fn of(parcel: &Parcel) -> Self {
        let start = Instant::from_std(parcel.facts.first_byte);
        Self {
            send_by: parcel.answer_by(),
            settle_by: start + parcel.plan.upstream.settle_within,
        }
    }
}

/// Why a call to the backend brought no whole answer.
#[derive(Debug)]
pub(super) enum ForwardFault {
    /// Certain that nothing was sent, and why.
    NotSent(&'static str),
    /// A kept connection turned out to be closed before a byte was written: another may do.
    Stale,
    /// The claim no longer held; nothing was sent.
    Fenced,
    /// The ledger could not say whether the claim holds; nothing was sent.
    Ledger(LedgerError),
    /// It may have been sent; no whole answer by the deadline.
    TimedOut,
    /// It may have been sent.
    MaybeSent(UpstreamFault),
}

/// Sends a parcel through the tower stack of its backend.
pub(super) async fn forward(
    gate: &Gate,
    parcel: &Parcel,
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
        result = on_connections(gate, parcel, sending) => result,
        () = aborted => Err(match running {
            Some(running) if !running.has_reached(Stage::Sending) => ForwardFault::NotSent(NOT_SENT),
            _ => ForwardFault::MaybeSent(UpstreamFault::Abandoned),
        }),
    };
    let took = started.elapsed();
    gate.metrics.upstream(parcel.plan.label, took);
    let facts = &parcel.facts;
    let _ = facts.upstream_took.set(took);
    let unreachable =
        matches!(&result, Err(ForwardFault::NotSent(word)) if word.starts_with("connect_"));
    if unreachable || result.is_ok() {
        note(
            &gate.common.unreachable[parcel.plan.route.upstream],
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
pub(super) fn note(flag: &AtomicBool, trouble: bool) {
    if flag.load(Ordering::Relaxed) != trouble {
        flag.store(trouble, Ordering::Relaxed);
    }
}

/// Sends on one connection after another, as long as it is certain that none took a byte.
async fn on_connections(
    gate: &Gate,
    parcel: &Parcel,
    sending: Sending,
) -> Result<BackendAnswer, ForwardFault> {
    for _ in 0..CONNECTIONS {
        match on_one_connection(gate, parcel, &sending).await {
            Err(ForwardFault::Stale) => {}
            other => return other,
        }
    }
    Err(ForwardFault::NotSent(NOT_SENT))
}

async fn on_one_connection(
    gate: &Gate,
    parcel: &Parcel,
    sending: &Sending,
) -> Result<BackendAnswer, ForwardFault> {
    let request = parcel
        .request(sending.attempt, sending.marks)
        .map_err(|_| ForwardFault::NotSent(NOT_SENT))?;
    let mut stack = gate.stacks[parcel.plan.route.upstream].clone();
    let ready = tokio::time::timeout_at(sending.deadlines.send_by, stack.ready()).await;
    let stack = ready.map_err(|_| ForwardFault::NotSent(OVERLOADED))??;
    let fence = sending.fence;
    let outgoing = Outgoing {
        request,
        kind: connection_kind(&parcel.plan),
        answer_limit: parcel.plan.route.answer_limit,
        send_by: sending.deadlines.send_by,
        settle_by: sending.deadlines.settle_by,
        fence: fence.map(|fence| (Arc::clone(&gate.common.ledger), fence)),
        running: sending.running.clone(),
    };
    stack.call(outgoing).await
}

/// A kept connection that the backend closes at the wrong moment can't be told from a lost answer,
/// so calls that must not be repeated on a guess get a fresh one.
fn connection_kind(plan: &RoutePlan) -> ConnectionKind {
    let rule = plan.route.idempotency.as_ref();
    match rule.map(|rule| rule.on_unknown) {
        Some(OnUnknown::Hold) => ConnectionKind::Fresh,
        Some(OnUnknown::Resend) | None => ConnectionKind::Pooled,
    }
}

/// One call to the backend.
pub(super) struct Outgoing {
    /// What is sent.
    pub(super) request: Request<Bytes>,
    /// On which connection.
    pub(super) kind: ConnectionKind,
    /// Bytes of the answer that are kept.
    pub(super) answer_limit: usize,
    /// Nothing is sent after this.
    pub(super) send_by: Instant,
    /// The answer is waited for until then.
    pub(super) settle_by: Instant,
    /// The claim that is checked just before the first byte.
    pub(super) fence: Option<(Arc<dyn Ledger>, Fence)>,
    /// Told when a byte may have gone out.
    pub(super) running: Option<Arc<Running>>,
}

/// A backend behind its in-flight cap. The permit is held until the call has settled, though Tiki
/// may have been answered long before.
pub(super) type Stack = ConcurrencyLimit<Backend>;

/// A stack over one worker's connections; `permits` are shared by all workers.
pub(super) fn stack(upstream: Upstream, permits: Arc<Semaphore>) -> Stack {
    GlobalConcurrencyLimitLayer::with_semaphore(permits).layer(Backend { upstream })
}

/// The innermost service: connects, checks the claim, sends.
#[derive(Clone)]
pub(super) struct Backend {
    upstream: Upstream,
}

impl Service<Outgoing> for Backend {
    type Response = BackendAnswer;
    type Error = ForwardFault;
    type Future = Pin<Box<dyn Future<Output = Result<BackendAnswer, ForwardFault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ForwardFault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, outgoing: Outgoing) -> Self::Future {
        Box::pin(send(self.upstream.clone(), outgoing))
    }
}

/// Connects, checks the claim, and sends: between the last two nothing waits.
async fn send(upstream: Upstream, outgoing: Outgoing) -> Result<BackendAnswer, ForwardFault> {
    let reserved = upstream
        .reserve(outgoing.kind, outgoing.send_by)
        .await
        .map_err(|fault| ForwardFault::NotSent(fault.kind.as_str()))?;
    if let Some((ledger, fence)) = &outgoing.fence {
        let permit = tokio::time::timeout_at(outgoing.send_by, ledger.permit(*fence))
            .await
            .map_err(|_| ForwardFault::NotSent(NOT_SENT))?
            .map_err(|error| match error {
                PermitError::Fenced => ForwardFault::Fenced,
                PermitError::Ledger(error) => ForwardFault::Ledger(error),
            })?;
        if std::time::Instant::now() >= permit.valid_until {
            return Err(ForwardFault::NotSent(NOT_SENT));
        }
    }
    if Instant::now() >= outgoing.send_by {
        return Err(ForwardFault::NotSent(NOT_SENT));
    }
    if let Some(running) = &outgoing.running {
        running.reach(Stage::Sending);
    }
    failpoint::reach("before_first_byte");
    let sent = reserved.send(outgoing.request, outgoing.settle_by, outgoing.answer_limit);
    sent.await
        .map_err(|fault| match (fault.sent, outgoing.kind) {
            (Sent::Maybe, _) => maybe_sent(fault.kind),
            (Sent::Nothing, ConnectionKind::Pooled) => ForwardFault::Stale,
            (Sent::Nothing, ConnectionKind::Fresh) => ForwardFault::NotSent(NOT_SENT),
        })
}

fn maybe_sent(kind: SendFaultKind) -> ForwardFault {
    ForwardFault::MaybeSent(match kind {
        SendFaultKind::Timeout => return ForwardFault::TimedOut,
        SendFaultKind::Reset => UpstreamFault::Reset,
        SendFaultKind::Closed => UpstreamFault::Closed,
        SendFaultKind::Incomplete => UpstreamFault::Incomplete,
        SendFaultKind::Protocol => UpstreamFault::Protocol,
    })
}
