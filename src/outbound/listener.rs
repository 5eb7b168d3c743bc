//! The listener's service: a backend's plain calls, signed and sent, or stored to be sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_LANGUAGE, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST,
    ORIGIN, RETRY_AFTER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::account::Account;
use super::body;
use super::outbox::{Accepted, DeliveryId, IPN_PATH, Outbox, Posting};
use super::refusal::Refusal;
use super::status::Expected;
use super::tiki::{NoAnswer, Tiki, TikiCall};
use super::token::CallerToken;
use crate::client::{BackendAnswer, Sent};
use crate::config::{self, Delivery};
use crate::failpoint;
use crate::metrics::{OutboundCall, OutboundMetrics};
use crate::net::{Arrived, BodyPace};
use crate::tiki::{Content, Decimal, PayloadFault, PayloadKind, envelope, parse_message};

const ATTEMPTS: HeaderName = HeaderName::from_static("x-tikigate-attempts");
const DELIVERY: HeaderName = HeaderName::from_static("x-tikigate-delivery");
const CLIENT_ID: HeaderName = HeaderName::from_static("x-tikigate-client-id");

/// Tries of a call of which nothing was sent, or that changes nothing.
const TRIES: u32 = 3;
/// Between two of them.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Caller's headers that go along besides `outbound.forward_headers`.
static PASSED_ON: [HeaderName; 6] = [
    ACCEPT,
    ACCEPT_LANGUAGE,
    CONTENT_TYPE,
    USER_AGENT,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// Headers of Tiki's answer that belong to the connection (RFC 9110, section 7.6.1), or to its framing.
static HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("te"),
    HeaderName::from_static("trailer"),
];

/// Answers the backend's calls, on the runtime that its way to Tiki belongs to.
pub struct Listener {
    settings: Arc<config::Outbound>,
    token: CallerToken,
    body_pace: BodyPace,
    tiki: Arc<Tiki>,
    outbox: Option<Arc<dyn Outbox>>,
    posted: Arc<Notify>,
    in_flight: Semaphore,
    metrics: Arc<OutboundMetrics>,
}

/// [`Listener`] as the server calls it.
#[derive(Clone)]
pub struct ListenerService(Arc<Listener>);

/// An answer, and how often Tiki was called for it.
struct Answer {
    response: Response<Full<Bytes>>,
    attempts: u32,
}

/// A call that got no answer, and how often it was tried.
struct Refused {
    refusal: Refusal,
    attempts: u32,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            attempts: 0,
        }
    }
}

impl Listener {
    /// A listener that stores notices in `outbox`, if there is one, and notifies `posted` of each.
    pub fn new(
        settings: Arc<config::Outbound>,
        token: CallerToken,
        body_pace: BodyPace,
        tiki: Arc<Tiki>,
        outbox: Option<Arc<dyn Outbox>>,
        posted: Arc<Notify>,
        metrics: Arc<OutboundMetrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            token,
            in_flight: Semaphore::new(settings.max_in_flight),
            settings,
            body_pace,
            tiki,
            outbox,
            posted,
            metrics,
        })
    }

    /// As a service.
    pub fn service(self: &Arc<Self>) -> ListenerService {
        ListenerService(Arc::clone(self))
    }

    async fn answer<B: Body<Data = Bytes>>(&self, arrived: Arrived<B>) -> Response<Full<Bytes>> {
        let (head, body) = arrived.request.into_parts();
        let began = Instant::now();
        let call = kind(head.uri.path());
        let answered = self.handle(&head, call, body).await;
        let (response, attempts, refusal) = match answered {
            Ok(Answer { response, attempts }) => (response, attempts, None),
            Err(Refused { refusal, attempts }) => (refused(&refusal), attempts, Some(refusal)),
        };
        let mut response = response;
        if attempts > 0 {
            let headers = response.headers_mut();
            headers.insert(ATTEMPTS, HeaderValue::from(attempts));
        }
        self.metrics.answered(call, response.status().as_u16());
        tracing::info!(
            http.request.method = head.method.as_str(),
            // Without its query, which holds ids of payments.
            url.path = head.uri.path(),
            http.response.status_code = response.status().as_u16(),
            error.r#type = refusal.as_ref().map_or("", Refusal::code),
            tikigate.attempts = attempts,
            tikigate.seconds = began.elapsed().as_secs_f64(),
            "a call of the backend to Tiki"
        );
        response
    }

    async fn handle<B: Body<Data = Bytes>>(
        &self,
        head: &Parts,
        call: OutboundCall,
        body: B,
    ) -> Result<Answer, Refused> {
        self.authenticate(&head.headers)?;
        let _permit = self
            .in_flight
            .try_acquire()
            .map_err(|_| Refusal::Overloaded)?;
        let account = self.account(&head.headers)?;
        let target = self.target(head, call)?;
        check_encoding(&head.headers)?;
        let body = body::read(body, self.settings.body_limit, self.body_pace).await?;
        if head.method == Method::GET && !body.is_empty() {
            return Err(
                Refusal::MalformedRequest("a GET signs its path, and takes no body").into(),
            );
        }
        if call == OutboundCall::Ipn && self.settings.delivery == Delivery::Outbox {
            return self.store(account, body).await.map_err(Refused::from);
        }
        let call_to_tiki = TikiCall {
            method: head.method.clone(),
            target,
            headers: self.passed_on(head),
            body,
        };
        self.pass_on(account, call, &call_to_tiki).await
    }

    fn authenticate(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        match self.token.is_shown(headers) {
            true => Ok(()),
            false => Err(Refusal::Unauthenticated),
        }
    }

    fn account(&self, headers: &HeaderMap) -> Result<&Arc<Account>, Refusal> {
        let mut named = headers.get_all(CLIENT_ID).iter();
        let accounts = self.tiki.accounts();
        let chosen = match (named.next(), named.next()) {
            (None, _) => accounts.choose(None),
            (Some(_), Some(_)) => {
                return Err(Refusal::MalformedRequest(
                    "X-Tikigate-Client-Id occurs twice",
                ));
            }
            (Some(id), None) => match id.to_str() {
                Ok(id) => accounts.choose(Some(id)),
                Err(_) => None,
            },
        };
        chosen.ok_or(Refusal::UnknownClient)
    }

    /// Checks where the call is to go. What goes out, and for a GET what is signed, is what came in.
    fn target(&self, head: &Parts, call: OutboundCall) -> Result<String, Refusal> {
        check_head(head)?;
        let path = head.uri.path();
        if let Some(paths) = &self.settings.paths
            && !paths.iter().any(|known| known == path)
        {
            return Err(Refusal::NotFound);
        }
        let allowed = match call {
            OutboundCall::Ipn | OutboundCall::Webview => "POST",
            OutboundCall::Transaction => "GET",
            OutboundCall::Other | OutboundCall::Confirm => "GET, POST",
        };
        let method = head.method.as_str();
        if !allowed.split(", ").any(|one| one == method) {
            return Err(Refusal::MethodNotAllowed(allowed));
        }
        let target = head
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        if let Some(fault) = target_fault(target, path) {
            return Err(Refusal::BadTarget(fault));
        }
        if head.method == Method::POST && head.uri.query().is_some() {
            return Err(Refusal::BadTarget(
                "a POST takes no query: its signature is over the body alone",
            ));
        }
        Ok(target.to_owned())
    }

    fn passed_on(&self, head: &Parts) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let names = PASSED_ON.iter().chain(&self.settings.forward_headers);
        for name in names {
            for value in head.headers.get_all(name) {
                headers.append(name.clone(), value.clone());
            }
        }
        if head.method == Method::POST && !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        headers
    }

    /// Checks a notice and stores it.
    async fn store(&self, account: &Account, body: Bytes) -> Result<Answer, Refusal> {
        let Some(outbox) = &self.outbox else {
            return Err(Refusal::LedgerUnavailable);
        };
        let message =
            parse_message(PayloadKind::TransactionIpn, &body).map_err(Refusal::InvalidPayload)?;
        let Content::TransactionIpn(ipn) = message.content() else {
            return Err(Refusal::LedgerUnavailable);
        };
        if Decimal::parse(&ipn.transaction_amount.to_string()).is_err() {
            return Err(Refusal::InvalidPayload(PayloadFault::Field {
                pointer: "/transaction_amount".to_owned(),
                problem: "must have at most 40 digits, written out".into(),
            }));
        }
        let posting = Posting {
            client: account.id.to_string(),
            base_url: account.base_url.to_string(),
            expected: Expected::from(ipn),
            // The listener's buffer would be kept alive by a slice of it.
            body: Bytes::copy_from_slice(&body),
        };
        let accepted = outbox.post(posting).await.map_err(|error| {
            tracing::error!(%error, "a payment notice could not be stored");
            Refusal::LedgerUnavailable
        })?;
        failpoint::reach("outbox_stored");
        match accepted {
            Accepted::Stored(id) | Accepted::Reopened(id) => {
                self.posted.notify_one();
                Ok(stored(id, "pending"))
            }
            Accepted::Known(id, state) => Ok(stored(id, state.as_str())),
            Accepted::Conflict(id, what) => Err(Refusal::Conflict(format!("{what} ({id})"))),
            Accepted::Full => Err(Refusal::OutboxFull),
        }
    }

    /// Signs and sends, again where that can't do anything twice.
    async fn pass_on(
        &self,
        account: &Account,
        kind: OutboundCall,
        call: &TikiCall,
    ) -> Result<Answer, Refused> {
        let deadline = self.tiki.deadline();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let began = std::time::Instant::now();
            let answered = self.tiki.call(account, call, deadline, || true).await;
            self.metrics.call(kind, began.elapsed());
            let fault = match answered {
                Ok(answer) => {
                    return Ok(Answer {
                        response: passed_back(answer),
                        attempts,
                    });
                }
                Err(fault) => fault,
            };
            let harmless = fault.sent == Sent::Nothing || call.method == Method::GET;
            let time_left = Instant::now() + RETRY_PAUSE < deadline;
            tracing::warn!(
                tikigate.client = account.name,
                tikigate.reason = fault.reason,
                detail = fault.detail,
                "a call to Tiki got no answer"
            );
            if !harmless || !time_left || attempts >= TRIES {
                return Err(Refused {
                    refusal: no_answer(&fault),
                    attempts,
                });
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

impl<B> tower::Service<Arrived<B>> for ListenerService
where
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, arrived: Arrived<B>) -> Self::Future {
        let listener = Arc::clone(&self.0);
        Box::pin(async move { Ok(listener.answer(arrived).await) })
    }
}

fn kind(path: &str) -> OutboundCall {
    match path {
        IPN_PATH => OutboundCall::Ipn,
        "/transaction" => OutboundCall::Transaction,
        "/webview" => OutboundCall::Webview,
        _ => OutboundCall::Other,
    }
}

/// What the HTTP library lets through and a proxy must not.
fn check_head(head: &Parts) -> Result<(), Refusal> {
    let malformed = |what| Err(Refusal::MalformedRequest(what));
    if head.uri.authority().is_some() || !head.uri.path().starts_with('/') {
        return malformed("the target must be a path");
    }
    if head.headers.get_all(HOST).iter().count() > 1 {
        return malformed("Host occurs twice");
    }
    // A web page must not have anything signed: programs send no such header.
    if head.headers.contains_key(ORIGIN) {
        return malformed("calls from web pages are not signed");
    }
    if head.headers.contains_key(UPGRADE) {
        return malformed("no other protocol is spoken here");
    }
    Ok(())
}

/// Why a target can't go out as it is. It is refused and not changed: a GET's is signed as it is.
fn target_fault(target: &str, path: &str) -> Option<&'static str> {
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("raw bytes in the target: write spaces and letters beyond ASCII as %XX");
    }
    if target.contains('\\') {
        return Some("the target must not hold a backslash");
    }
    let dots = |segment: &str| {
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        plain == "." || plain == ".."
    };
    let plain_path = path
        .to_ascii_lowercase()
        .replace("%2f", "/")
        .replace("%5c", "/");
    let almost = plain_path.trim_end_matches('/').trim_start_matches('/');
    if path != IPN_PATH && percent_decoded(almost) == IPN_PATH.trim_start_matches('/') {
        // It would go past the outbox and its checks.
        return Some("write /payment/ipn exactly so");
    }
    if plain_path.split('/').any(dots) {
        return Some(
            "the path must not hold `.` or `..` as a segment: it stays below the base URL",
        );
    }
    None
}

/// With whatever escapes stand for.
fn percent_decoded(path: &str) -> String {
    // Of a form's coding this is the part that paths have too; a plus is no part of what is looked for.
    let decoded = form_urlencoded::parse(path.as_bytes()).next();
    decoded.map_or_else(String::new, |(name, _)| name.into_owned())
}

fn check_encoding(headers: &HeaderMap) -> Result<(), Refusal> {
    let identity = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    match headers.get_all(CONTENT_ENCODING).iter().all(identity) {
        true => Ok(()),
        false => Err(Refusal::UnsupportedMediaType(
            "the body must not be encoded",
        )),
    }
}

fn no_answer(fault: &NoAnswer) -> Refusal {
    match (fault.sent, fault.reason) {
        (Sent::Nothing, reason) => Refusal::Unreachable(reason),
        (Sent::Maybe, "upstream_timeout") => Refusal::Timeout,
        (Sent::Maybe, reason) => Refusal::Failed(reason),
    }
}

/// Tiki's answer as it came, but for what belongs to its connection.
fn passed_back(answer: BackendAnswer) -> Response<Full<Bytes>> {
    let listed: Vec<String> = answer
        .headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    for (name, value) in &answer.headers {
        let hop = HOP_BY_HOP.contains(name) || listed.iter().any(|one| one == name.as_str());
        if !hop {
            response.headers_mut().append(name.clone(), value.clone());
        }
    }
    response
}

fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn stored(id: DeliveryId, state: &str) -> Answer {
    let body = serde_json::json!({
        "data": { "status": "accepted", "delivery": id.to_string(), "state": state },
    });
    let mut response = json(StatusCode::ACCEPTED, body.to_string());
    if let Ok(value) = HeaderValue::try_from(id.to_string()) {
        response.headers_mut().insert(DELIVERY, value);
    }
    Answer {
        response,
        attempts: 0,
    }
}

fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    let body = envelope::error_body(refusal.code(), &refusal.message());
    let mut response = json(refusal.status(), body);
    if let Some(after) = refusal.retry_after() {
        let seconds = HeaderValue::from(after.as_secs());
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    if let Refusal::MethodNotAllowed(allowed) = refusal {
        let allow = HeaderValue::from_static(allowed);
        response.headers_mut().insert(http::header::ALLOW, allow);
    }
    response
}
