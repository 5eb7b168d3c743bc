//! Towards the backend: a clean request, on its way through three steps.
//!
//! ```text
//! in-flight cap   the client's turn among those who wait; the place is kept until the call has settled
//! breaker         the pass that came with the call, or another: an address that may be called
//! backend         connect · check the claim · send · tell the breaker what came of it
//! ```
//! Only while it is certain that no byte was sent, a call goes on to another connection or address.

use std::time::{Duration, Instant as StdInstant};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::client::{BackendAnswer, ConnectFault, ConnectFaultKind, ConnectionKind};
use crate::client::{Reserved, SendFault, SendFaultKind, Sent};
use crate::config::OnUnknown;
use crate::failpoint;
use crate::ledger::{Fence, LedgerError, Marks, PermitError};

use super::Gate;
use super::backend::{Pass, Shut};
use super::parcel::Parcel;
use super::refusal::UpstreamFault;
use super::route::RoutePlan;
use super::running::{Running, Stage};
use super::traced::{BackendEnded, finish_backend};

/// The word for a call that never left, where no finer one is known.
pub(super) const NOT_SENT: &str = "not_sent";

/// The in-flight cap gave no permit while Tiki waited.
pub(super) const OVERLOADED: &str = "overloaded";

/// Connections that are tried for one call at one address: kept ones that turned out to be closed
/// before a byte was written, and at last another.
const CONNECTIONS: usize = 3;

/// Addresses that are tried for one call.
const ADDRESSES: usize = 3;

/// How a parcel is sent.
pub(super) struct Sending<'r> {
    /// The claim that it is sent under.
    pub(super) fence: Option<Fence>,
    /// Told how far it has come.
    pub(super) running: Option<&'r Running>,
    /// Which try of its message it is.
    pub(super) attempt: u32,
    /// What the backend is told of it.
    pub(super) marks: Marks,
    /// The right to call the backend; if it doesn't hold any more, another one is asked for.
    pub(super) pass: Option<Pass>,
    /// Until when.
    pub(super) deadlines: Deadlines,
    /// An empty map for the first request's head: see [`Parcel::room`].
    pub(super) room: HeaderMap,
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
    /// Nothing was sent: no address may be called.
    Unavailable(Shut),
    /// The claim no longer held; nothing was sent.
    Fenced,
    /// The ledger could not say whether the claim holds; nothing was sent.
    Ledger(LedgerError),
    /// It may have been sent; no whole answer by the deadline.
    TimedOut,
    /// It may have been sent.
    MaybeSent(UpstreamFault),
}

impl ForwardFault {
    /// A stable word, for spans.
    fn as_str(&self) -> &'static str {
        match self {
            Self::NotSent(word) => word,
            Self::Unavailable(_) => "unavailable",
            Self::Fenced => "fenced",
            Self::Ledger(_) => "ledger",
            Self::TimedOut => "timeout",
            Self::MaybeSent(fault) => fault.as_str(),
        }
    }
}

/// Sends a parcel to its backend.
pub(super) async fn forward(
    gate: &Gate,
    parcel: &Parcel,
    sending: &mut Sending<'_>,
) -> Result<BackendAnswer, ForwardFault> {
    let started = StdInstant::now();
    let aborted = gate.common.calls.abort.cancelled();
    let running = sending.running;
    if let Some(running) = running {
        running.reach(Stage::Waiting);
    }
    let result = tokio::select! {
        biased;
        result = in_turn(gate, parcel, sending) => result,
        () = aborted => Err(match running {
            Some(running) if !running.has_reached(Stage::Sending) => ForwardFault::NotSent(NOT_SENT),
            _ => ForwardFault::MaybeSent(UpstreamFault::Abandoned),
        }),
    };
    // Where the call got no place, nobody took it.
    sending.pass = None;
    let took = started.elapsed();
    gate.metrics.upstream(parcel.plan.label, took);
    let facts = &parcel.facts;
    facts.upstream_took.set(nanos(took));
    let unreachable =
        matches!(&result, Err(ForwardFault::NotSent(word)) if word.starts_with("connect_"));
    if unreachable || result.is_ok() {
        let backend = &gate.common.backends[parcel.plan.route.upstream];
        backend.note_unreachable(unreachable);
    }
    if let Ok(answer) = &result {
        facts.upstream_status.set(answer.status.as_u16().into());
    }
    if let (Some(tracer), Some(spans)) = (&gate.common.tracer, facts.spans) {
        let ended = BackendEnded {
            status: result.as_ref().ok().map(|answer| answer.status.as_u16()),
            fault: result.as_ref().err().map(ForwardFault::as_str),
            at: gate.common.clock.now(),
            took,
        };
        finish_backend(tracer, spans, facts, &parcel.plan, ended);
    }
    result
}

/// Of a duration that was measured here; 500 years fit.
fn nanos(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}

/// Waits for a place, and sends at an address that may be called.
async fn in_turn(
    gate: &Gate,
    parcel: &Parcel,
    sending: &mut Sending<'_>,
) -> Result<BackendAnswer, ForwardFault> {
    let backend = &gate.common.backends[parcel.plan.route.upstream];
    let _place = match backend.cap().try_acquire() {
        Some(place) => place,
        None => {
            let turn = backend.cap().acquire(&parcel.client.id);
            tokio::time::timeout_at(sending.deadlines.send_by, turn)
                .await
                .map_err(|_| ForwardFault::NotSent(OVERLOADED))?
        }
    };
    // While the call waited its address may have failed others.
    let mut pass = match sending.pass.take().filter(Pass::still_holds) {
        Some(pass) => pass,
        None => backend.pass().map_err(ForwardFault::Unavailable)?,
    };
    let mut tried: SmallVec<[usize; ADDRESSES]> = SmallVec::new();
    loop {
        let word = match at_one_address(gate, parcel, sending, &mut pass).await {
            Err(Unsent::ThereAtLeast(word)) => word,
            Err(Unsent::Anywhere(fault)) => return Err(fault),
            Ok(answer) => return Ok(answer),
        };
        tried.push(pass.index());
        let over = tried.len() >= ADDRESSES || Instant::now() >= sending.deadlines.send_by;
        match backend.pass_beyond(&tried) {
            Ok(next) if !over => pass = next,
            _ => return Err(ForwardFault::NotSent(word)),
        }
    }
}

/// What a try at one address came to that brought no answer.
enum Unsent {
    /// There was no connection: another address may do.
    ThereAtLeast(&'static str),
    /// The call's end; something may have been sent.
    Anywhere(ForwardFault),
}

/// Sends on one connection after another, as long as it is certain that none took a byte.
async fn at_one_address(
    gate: &Gate,
    parcel: &Parcel,
    sending: &mut Sending<'_>,
    pass: &mut Pass,
) -> Result<BackendAnswer, Unsent> {
    let kind = connection_kind(&parcel.plan);
    for _ in 0..CONNECTIONS {
        let room = std::mem::take(&mut sending.room);
        let request = (parcel.request(sending.attempt, sending.marks, room))
            .map_err(|_| Unsent::Anywhere(ForwardFault::NotSent(NOT_SENT)))?;
        let reserved = connect(gate, parcel, sending, pass, kind).await?;
        may_be_sent(gate, sending).await.map_err(Unsent::Anywhere)?;
        if let Some(running) = sending.running {
            running.reach(Stage::Sending);
        }
        failpoint::reach("before_first_byte");
        let fault = match exchange(parcel, sending, pass, reserved, request).await {
            Ok(answer) => return Ok(answer),
            Err(fault) => fault,
        };
        match (fault.sent, kind) {
            (Sent::Maybe, _) => return Err(Unsent::Anywhere(maybe_sent(fault.kind))),
            // A kept connection that the backend closed meanwhile says nothing of it.
            (Sent::Nothing, ConnectionKind::Pooled) => {}
            (Sent::Nothing, ConnectionKind::Fresh) => break,
        }
    }
    pass.failed();
    Err(Unsent::Anywhere(ForwardFault::NotSent(NOT_SENT)))
}

async fn connect(
    gate: &Gate,
    parcel: &Parcel,
    sending: &Sending<'_>,
    pass: &mut Pass,
    kind: ConnectionKind,
) -> Result<Reserved, Unsent> {
    let upstream = &gate.upstreams[parcel.plan.route.upstream][pass.index()];
    if let Some(kept) = upstream.kept(kind) {
        return Ok(kept);
    }
    let send_by = sending.deadlines.send_by;
    let whole_time = Instant::now() + parcel.plan.upstream.connect_timeout <= send_by;
    // Boxed: a call on a kept connection need not carry the room for it.
    let reserved = Box::pin(upstream.connected(kind, send_by)).await;
    reserved.map_err(|fault| {
        if is_the_addresses(&fault, whole_time) {
            pass.failed();
        }
        Unsent::ThereAtLeast(fault.kind.as_str())
    })
}

/// Whether a connect failed by the address's doing, and not for want of time or of something here.
fn is_the_addresses(fault: &ConnectFault, whole_time: bool) -> bool {
    let cut_short = fault.kind == ConnectFaultKind::Timeout && !whole_time;
    !cut_short && !fault.is_our_own()
}

/// Checks the claim and the time. Between this and the first byte nothing waits.
async fn may_be_sent(gate: &Gate, sending: &Sending<'_>) -> Result<(), ForwardFault> {
    let send_by = sending.deadlines.send_by;
    if let Some(fence) = sending.fence {
        let permit = tokio::time::timeout_at(send_by, gate.common.ledger.permit(fence))
            .await
            .map_err(|_| ForwardFault::NotSent(NOT_SENT))?
            .map_err(|error| match error {
                PermitError::Fenced => ForwardFault::Fenced,
                PermitError::Ledger(error) => ForwardFault::Ledger(error),
            })?;
        if StdInstant::now() >= permit.valid_until {
            return Err(ForwardFault::NotSent(NOT_SENT));
        }
    }
    if Instant::now() >= send_by {
        return Err(ForwardFault::NotSent(NOT_SENT));
    }
    Ok(())
}

/// Sends, and tells the breaker: an answer that isn't there when Tiki must have one is a failure at
/// that moment, whatever comes later.
async fn exchange(
    parcel: &Parcel,
    sending: &Sending<'_>,
    pass: &mut Pass,
    reserved: Reserved,
    request: Box<Request<Bytes>>,
) -> Result<BackendAnswer, SendFault> {
    let Deadlines { send_by, settle_by } = sending.deadlines;
    let answer_limit = parcel.plan.route.answer_limit;
    let sent = reserved.send_noting(request, send_by, settle_by, || pass.failed(), answer_limit);
    let sent = sent.await;
    match &sent {
        Ok(answer) if says_down(answer.status) => pass.failed(),
        Ok(_) => pass.succeeded(),
        Err(fault) if fault.sent == Sent::Maybe => pass.failed(),
        Err(_) => {}
    }
    sent
}

/// Statuses by which a backend, or a proxy in front of it, says that it can't serve.
fn says_down(status: StatusCode) -> bool {
    matches!(status.as_u16(), 502..=504)
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

fn maybe_sent(kind: SendFaultKind) -> ForwardFault {
    ForwardFault::MaybeSent(match kind {
        SendFaultKind::Timeout => return ForwardFault::TimedOut,
        SendFaultKind::Reset => UpstreamFault::Reset,
        SendFaultKind::Closed => UpstreamFault::Closed,
        SendFaultKind::Incomplete => UpstreamFault::Incomplete,
        SendFaultKind::Protocol => UpstreamFault::Protocol,
    })
}
