//! Towards the backend: a clean request over the tower stack `in-flight cap · backend`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use smallvec::SmallVec;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower::limit::{ConcurrencyLimit, GlobalConcurrencyLimitLayer};
use tower::{Layer, Service};

use crate::client::{BackendAnswer, ConnectionKind, SendFaultKind, Sent, Upstream};
use crate::failpoint;
use crate::ledger::{Fence, Ledger, LedgerError, PermitError};
use crate::tiki::PayloadKind;

use super::authenticate::Message;
use super::refusal::UpstreamFault;
use super::running::{Running, Stage};
use super::validate::Identity;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const ATTEMPT: HeaderName = HeaderName::from_static("x-tikigate-attempt");
const CLIENT_ID: HeaderName = HeaderName::from_static("x-tikigate-client-id");
const PARTNER_CODE: HeaderName = HeaderName::from_static("x-tikigate-partner-code");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The word for a call that never left, where no finer one is known.
pub(super) const NOT_SENT: &str = "not_sent";

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

/// The request that the backend gets: the gate's own head and the caller's bytes.
///
/// Of the caller's head come along: `Accept`, a well-formed trace context, what the route lists in
/// `forward_headers`, on `any` routes the `Content-Type`, and on GET the query.
pub(super) fn clean_request(
    message: &Message,
    identity: Option<&Identity>,
    attempt: u32,
) -> Result<Request<Bytes>, http::Error> {
    let plan = &message.plan;
    let mut request = Request::new(message.body.clone());
    *request.method_mut() = plan.route.method.clone();
    *request.uri_mut() = target(message)?;
    *request.headers_mut() = clean_headers(message, identity, attempt)?;
    Ok(request)
}

/// The backend's path; a caller's query (signed on GET routes, refused on others) is put behind it.
fn target(message: &Message) -> Result<Uri, http::Error> {
    let fixed = &message.plan.target;
    let Some(query) = message.head.uri.query().filter(|_| message.plan.is_safe()) else {
        return Ok(Uri::from(fixed.clone()));
    };
    let joint = if fixed.query().is_some() { '&' } else { '?' };
    let whole = PathAndQuery::try_from(format!("{fixed}{joint}{query}"))?;
    Ok(Uri::from(whole))
}

fn clean_headers(
    message: &Message,
    identity: Option<&Identity>,
    attempt: u32,
) -> Result<HeaderMap, http::Error> {
    let plan = &message.plan;
    let facts = &message.facts;
    let offered = Offered::by(&message.head.headers);
    let mut headers = HeaderMap::with_capacity(20);
    headers.insert(HOST, plan.upstream.host.clone());
    if !plan.is_safe() {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(message.body.len()));
    }
    if plan.route.payload == PayloadKind::Any {
        offered.copy(&CONTENT_TYPE, &mut headers);
    } else {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    offered.copy(&ACCEPT, &mut headers);
    for name in &plan.route.forward_headers {
        offered.copy(name, &mut headers);
    }
    if let Some(trace) = &facts.trace {
        headers.insert(TRACEPARENT, HeaderValue::from_bytes(trace.as_bytes())?);
        offered.copy(&TRACESTATE, &mut headers);
    }
    if !plan.route.strip_signature {
        let family = message.family;
        for name in [
            family.timestamp_header(),
            family.client_id_header(),
            family.signature_header(),
        ] {
            offered.copy(name, &mut headers);
        }
    }
    if let Some(identity) = identity {
        headers.insert(IDEMPOTENCY_KEY, key_value(&identity.key.message)?);
    }
    headers.insert(ATTEMPT, HeaderValue::from(attempt));
    headers.insert(CLIENT_ID, message.client.id_value.clone());
    if let Some(partner_code) = &message.client.partner_code {
        headers.insert(PARTNER_CODE, partner_code.clone());
    }
    headers.insert(
        REQUEST_ID,
        HeaderValue::from_str(facts.request_id.as_str())?,
    );
    headers.insert(
        FORWARDED_FOR,
        HeaderValue::from_str(facts.address_text.as_str())?,
    );
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    for (name, secret) in &plan.upstream.set_headers {
        let mut value = HeaderValue::from_bytes(secret.expose())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

/// What the caller's head offers to be passed on.
struct Offered<'a> {
    headers: &'a HeaderMap,
    /// What its `Connection` lists: that ends here (RFC 9110, section 7.6.1).
    ends_here: SmallVec<[&'a [u8]; 2]>,
}

impl<'a> Offered<'a> {
    fn by(headers: &'a HeaderMap) -> Self {
        let lines = headers.get_all(CONNECTION).iter();
        let options = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        let ends_here = options.map(<[u8]>::trim_ascii).collect();
        Self { headers, ends_here }
    }

    fn copy(&self, name: &HeaderName, to: &mut HeaderMap) {
        let is_name = |option: &&[u8]| option.eq_ignore_ascii_case(name.as_str().as_bytes());
        if self.ends_here.iter().any(is_name) {
            return;
        }
        for value in self.headers.get_all(name) {
            to.append(name, value.clone());
        }
    }
}

/// A key as a header's value: visible ASCII as it is, the rest and `%` percent-encoded, so that no
/// backend trims or misreads it.
fn key_value(key: &str) -> Result<HeaderValue, http::Error> {
    if key
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'%')
    {
        return Ok(HeaderValue::try_from(key)?);
    }
    let mut encoded = String::with_capacity(key.len() * 3);
    for byte in key.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(HeaderValue::try_from(encoded)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_as_a_header() {
        let value = |key: &str| key_value(key).unwrap().to_str().unwrap().to_owned();
        assert_eq!(value("r-1|x"), "r-1|x");
        assert_eq!(value(" r 1"), "%20r%201");
        assert_eq!(value("100%"), "100%25");
        assert_eq!(value("hoàn"), "ho%C3%A0n");
    }
}
