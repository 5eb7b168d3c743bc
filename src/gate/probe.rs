//! A look at the backend, which may know what became of a call that nobody else knows of.
//!
//! ```text
//! a duplicate meets a held record ─┐
//! its turn comes (rounds) ─────────┴▶ bounds ─▶ target ─▶ GET ─▶ judge ─▶ Ledger::sighted
//! ```
//! A look only says what it saw. How far that is trusted, the ledger decides
//! ([`crate::ledger::Sighting`]): "applied" ends a record, "not applied" releases it when it was said
//! twice, and everything else keeps holding.

mod bounds;
mod judge;
mod target;

use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use tokio::time::Instant;

use crate::client::{BackendAnswer, ConnectionKind, Sent, Upstream};
use crate::config::Probe;
use crate::ledger::{Hold, Record, RecordId, ResolveError, Seen, Sighting, State};
use crate::metrics::ProbeResult;

use super::Gate;
use super::answer::platform_success;
use super::call::RequestId;
use super::forward::NOT_SENT;
use super::parcel::{REQUEST_ID, add_secrets};
use super::route::RoutePlan;
use judge::judge;
use target::target;

pub(super) use bounds::Looks;

/// Bytes of an answer that are looked at; what is longer proves nothing beyond its status.
const ANSWER_LIMIT: usize = 64 * 1024;

/// What a look saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// The call was applied.
    Applied,
    /// It was not.
    NotApplied,
    /// Neither, and why.
    CantSay(&'static str),
}

impl Sight {
    fn reason(self) -> Option<&'static str> {
        match self {
            Self::CantSay(word) => Some(word),
            Self::Applied | Self::NotApplied => None,
        }
    }
}

/// What a look came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// It was not made now: the last one was lately, or too much is running, or the ledger can't say
    /// what to look for.
    NotNow,
    /// The record is still unknown after it.
    StillUnknown(Sight),
    /// The record is not unknown any more, by this look or by somebody else.
    Settled,
}

/// Until when a look may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Until {
    /// The backend's answer is waited for until then, and not beyond the probe's own timeout.
    pub(super) answered: Instant,
    /// The ledger is waited for until then.
    pub(super) recorded: Instant,
}

impl Until {
    /// Ends this much before a deadline; half of it is for the record.
    pub(super) fn before(deadline: Instant, margin: Duration) -> Self {
        let by = |margin| deadline.checked_sub(margin).unwrap_or(deadline);
        Self {
            answered: by(margin),
            recorded: by(margin / 2),
        }
    }
}

/// Looks what became of a record, and has the ledger record it. Only one look at a record is made at
/// a time, and one every [`bounds::PAUSE`].
pub(super) async fn look(
    gate: &Gate,
    plan: &RoutePlan,
    probe: &Probe,
    id: RecordId,
    until: Until,
) -> Looked {
    if until.answered <= Instant::now() {
        return Looked::NotNow;
    }
    let common = &gate.common;
    let upstream = plan.route.upstream;
    // A real call that needs the permit comes first: what is left over is for looks.
    let Some(_permit) = common.backends[upstream].cap().try_acquire() else {
        return Looked::NotNow;
    };
    let now = || common.clock.monotonic();
    let Some(mut place) = common.looks.begin(id, upstream, now) else {
        return Looked::NotNow;
    };
    let looking = async {
        let record = match common.ledger.get(id).await {
            Ok(Some(record)) if record.state == State::Unknown => record,
            Ok(_) => return Looked::Settled,
            Err(_) => return Looked::NotNow,
        };
        if record.hold == Some(Hold::PossibleDuplicate) {
            return Looked::NotNow;
        }
        place.looked();
        let by = until.answered.min(Instant::now() + probe.timeout);
        look_for(gate, plan, probe, record, by).await
    };
    tokio::select! {
        biased;
        looked = tokio::time::timeout_at(until.recorded, looking) => looked.unwrap_or(Looked::NotNow),
        () = common.calls.abort.cancelled() => Looked::NotNow,
    }
}

async fn look_for(
    gate: &Gate,
    plan: &RoutePlan,
    probe: &Probe,
    record: Record,
    by: Instant,
) -> Looked {
    let request_id = gate.request_ids.next();
    let (sight, status) = match target(&probe.path, &record.key.message, &record.fields) {
        Err(word) => (Sight::CantSay(word), None),
        Ok(target) => match ask(gate, plan, target, request_id, by).await {
            Ok(answer) => (judge(probe, &answer), Some(answer.status)),
            Err(word) => (Sight::CantSay(word), None),
        },
    };
    gate.metrics.probe(plan.label, result_of(sight));
    let sighting = Sighting {
        id: record.id,
        expected: (record.state, record.attempt, record.version),
        seen: match sight {
            Sight::Applied => Seen::Applied(platform_success(StatusCode::OK)),
            Sight::NotApplied => Seen::NotApplied,
            Sight::CantSay(word) => Seen::CantSay(word.into()),
        },
    };
    let recorded = gate.common.ledger.sighted(sighting).await;
    let looked = match &recorded {
        Ok(record) if record.state == State::Unknown => Looked::StillUnknown(sight),
        Ok(_) | Err(ResolveError::NotUnknown(_) | ResolveError::Changed(_)) => Looked::Settled,
        Err(_) => Looked::StillUnknown(sight),
    };
    tracing::info!(
        tikigate.record = %record.id, tikigate.request_id = %request_id,
        http.route = plan.route.name,
        http.response.status_code = status.map(|status| status.as_u16()),
        tikigate.probe = result_of(sight).as_str(), tikigate.reason = sight.reason(),
        tikigate.state = recorded.as_ref().ok().map(|record| record.state.as_str()),
        error = recorded.as_ref().err().map(ToString::to_string),
        "looked at the backend for a call whose outcome is unknown"
    );
    looked
}

fn result_of(sight: Sight) -> ProbeResult {
    match sight {
        Sight::Applied => ProbeResult::Applied,
        Sight::NotApplied => ProbeResult::NotApplied,
        Sight::CantSay(_) => ProbeResult::CantSay,
    }
}

/// The backend's whole answer, or a word for why there is none.
async fn ask(
    gate: &Gate,
    plan: &RoutePlan,
    target: PathAndQuery,
    request_id: RequestId,
    by: Instant,
) -> Result<BackendAnswer, &'static str> {
    // A look says nothing to a breaker: what it asks for isn't what calls do.
    let address = gate.common.backends[plan.route.upstream].address_for_looks();
    let upstream = &gate.upstreams[plan.route.upstream][address];
    let request = request(plan, target, request_id).map_err(|_| NOT_SENT)?;
    // A kept connection may turn out to be closed before a byte was written; a new one is not.
    match ask_over(upstream, ConnectionKind::Pooled, request.clone(), by).await {
        Err(Unanswered::Stale) => {}
        Err(Unanswered::For(word)) => return Err(word),
        Ok(answer) => return Ok(answer),
    }
    match ask_over(upstream, ConnectionKind::Fresh, request, by).await {
        Err(Unanswered::Stale) => Err(NOT_SENT),
        Err(Unanswered::For(word)) => Err(word),
        Ok(answer) => Ok(answer),
    }
}

/// The gate's own head and nothing of any caller's.
fn request(
    plan: &RoutePlan,
    target: PathAndQuery,
    request_id: RequestId,
) -> Result<Request<Bytes>, http::Error> {
    let mut headers = HeaderMap::new();
    headers.insert(HOST, plan.upstream.host.clone());
    headers.insert(REQUEST_ID, HeaderValue::from_str(request_id.as_str())?);
    add_secrets(&plan.upstream, &mut headers)?;
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = Uri::from(target);
    *request.headers_mut() = headers;
    Ok(request)
}

enum Unanswered {
    /// The connection took no byte.
    Stale,
    For(&'static str),
}

async fn ask_over(
    upstream: &Upstream,
    kind: ConnectionKind,
    request: Request<Bytes>,
    by: Instant,
) -> Result<BackendAnswer, Unanswered> {
    let reserved = upstream
        .reserve(kind, by)
        .await
        .map_err(|fault| Unanswered::For(fault.kind.as_str()))?;
    let sent = reserved.send(request, by, ANSWER_LIMIT).await;
    sent.map_err(|fault| match fault.sent {
        Sent::Nothing => Unanswered::Stale,
        Sent::Maybe => Unanswered::For(fault.kind.as_str()),
    })
}
