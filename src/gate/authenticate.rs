//! Step 2: one set of signature headers, a known client, and a body that one of its secrets signed.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::Poll;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use foldhash::quality::RandomState;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Uri};
use http_body::Body;
use http_body_util::BodyExt;
use smallvec::SmallVec;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::clock::Clock;
use crate::config::{Client, ClientSecret, Rate, Settings};
use crate::metrics;
use crate::net::BodyPace;
use crate::tiki::{Family, Mac, SignatureHeaders, Timestamp, Verifier, age_seconds, read_headers};

use super::arrivals::Arrivals;
use super::awaited::{AwaitedBodies, AwaitedBody, MIN_WAIT};
use super::call::Facts;
use super::limits::ClientLimit;
use super::refusal::{AuthFault, BodyFault, Refusal, RequestFault};
use super::route::{RoutePlan, Routed};

/// A call that a known client signed, with its whole body. Whether its time is right is not known yet.
#[derive(Debug)]
pub struct Authentic {
    pub(super) message: Box<Message>,
}

impl Authentic {
    /// How old the call's timestamp is at `now`, in seconds; negative when it lies ahead.
    pub fn age_seconds(&self, now: SystemTime) -> f64 {
        age_seconds(self.message.timestamp, now)
    }
}

/// What was signed, by whom, and what came with it. Made here alone.
#[derive(Debug)]
pub struct Message {
    pub(super) facts: Arc<Facts>,
    pub(super) plan: Arc<RoutePlan>,
    pub(super) client: Arc<ClientPlan>,
    /// What it called; signed only where the route's method is GET.
    pub(super) uri: Uri,
    /// Nothing in them but the signature's is signed.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) family: Family,
    pub(super) timestamp: Timestamp,
    pub(super) mac: Mac,
    _seal: Seal,
}

#[derive(Debug)]
struct Seal;

/// A client with all that can be prepared for it.
pub struct ClientPlan {
    /// As configured.
    pub client: Arc<Client>,
    /// Its place among the clients.
    pub index: usize,
    /// Its id, shared with the ledger's keys.
    pub id: Arc<str>,
    /// Its id as a header's value.
    pub id_value: HeaderValue,
    /// Its partner code as a header's value.
    pub partner_code: Option<HeaderValue>,
    /// What it has used of its limits.
    pub(super) usage: Arc<Usage>,
    /// The metrics' slot of its first secret; the others follow.
    first_slot: usize,
}

/// What a client has used of its limits. It outlives a reload that leaves its rate as it is.
pub(super) struct Usage {
    rate: Rate,
    /// Its rate limit.
    pub(super) limit: ClientLimit,
    /// The same once more, for calls outside their time window.
    pub(super) dated_limit: ClientLimit,
    /// Its calls in flight.
    pub(super) in_flight: AtomicUsize,
}

impl Usage {
    fn new(rate: Rate, clock: &Clock) -> Self {
        Self {
            rate,
            limit: ClientLimit::new(rate, clock.clone()),
            dated_limit: ClientLimit::new(rate, clock.clone()),
            in_flight: AtomicUsize::new(0),
        }
    }
}

impl std::fmt::Debug for ClientPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientPlan")
            .field("client", &self.client.name)
            .finish_non_exhaustive()
    }
}

/// All clients, found by their id, and what holds for all.
#[derive(Debug)]
pub struct Clients {
    by_id: HashMap<Box<str>, Arc<ClientPlan>, RandomState>,
    families: Vec<Family>,
    body_pace: BodyPace,
    awaited: Arc<AwaitedBodies>,
    clock: Clock,
}

impl Clients {
    /// The settings' clients.
    ///
    /// # Errors
    /// The name of a client whose id can't be a header's value, which `check` refuses before.
    pub fn new(settings: &Settings, clock: &Clock) -> Result<Self, String> {
        Self::after(None, settings, clock)
    }

    /// The settings' clients in the place of others: what they have used of limits that stay counts.
    ///
    /// # Errors
    /// As [`Clients::new`].
    pub(super) fn after(
        before: Option<&Self>,
        settings: &Settings,
        clock: &Clock,
    ) -> Result<Self, String> {
        let mut by_id = HashMap::default();
        let mut first_slot = 0;
        for (index, client) in settings.clients.iter().enumerate() {
            let value = |text: &str| {
                HeaderValue::from_str(text)
                    .map_err(|_| format!("client {}: not a header's value", client.name))
            };
            let known = before.and_then(|before| before.get(&client.id));
            let usage = match known.filter(|known| known.usage.rate == client.rate) {
                Some(known) => Arc::clone(&known.usage),
                None => Arc::new(Usage::new(client.rate, clock)),
            };
            let plan = ClientPlan {
                index,
                id: Arc::from(client.id.as_str()),
                id_value: value(&client.id)?,
                partner_code: client.partner_code.as_deref().map(value).transpose()?,
                usage,
                first_slot,
                client: Arc::clone(client),
            };
            first_slot += client.secrets.len();
            by_id.insert(client.id.as_str().into(), Arc::new(plan));
        }
        Ok(Self {
            by_id,
            families: settings.signature.families.clone(),
            body_pace: BodyPace {
                within: settings.server.body_timeout,
                min_rate: settings.server.min_body_rate,
            },
            awaited: before.map_or_else(Arc::default, |before| Arc::clone(&before.awaited)),
            clock: clock.clone(),
        })
    }

    /// Those of their calls whose body is waited for.
    pub(super) fn awaited_bodies(&self) -> &Arc<AwaitedBodies> {
        &self.awaited
    }

    /// Whether there is more than one, so that they can be in each other's way.
    pub(super) fn are_many(&self) -> bool {
        self.by_id.len() > 1
    }

    /// The client with this id.
    pub(super) fn get(&self, id: &str) -> Option<&Arc<ClientPlan>> {
        self.by_id.get(id)
    }

    /// Client and secret names in the order of the metrics' slots.
    pub fn secret_labels(settings: &Settings) -> Vec<(String, String)> {
        let of = |client: &Arc<Client>| {
            let name = client.name.clone();
            let secrets = client.secrets.iter();
            secrets
                .map(|secret| (name.clone(), secret.name.clone()))
                .collect::<Vec<_>>()
        };
        settings.clients.iter().flat_map(of).collect()
    }
}

/// Checks who signed the call, and reads its body while it checks.
///
/// The signature's headers and the declared length are judged before the body is asked for, so
/// that a caller who waits for `100 Continue` is refused without sending it.
///
/// # Errors
/// [`Refusal::AddressNotAllowed`] by the route's own lists; [`Refusal::Unauthenticated`] for every fault
/// of the signature; [`Refusal::UnsupportedEncoding`],
/// [`Refusal::BodyTooLarge`], [`Refusal::BodyTimeout`], [`Refusal::MalformedRequest`].
pub async fn authenticate<B>(
    clients: &Clients,
    arrivals: &Arrivals,
    metrics: &metrics::Worker,
    routed: Routed<B>,
) -> Result<Authentic, Refusal>
where
    B: Body<Data = Bytes>,
{
    let Routed { call, plan, .. } = routed;
    let (head, body) = call.arrived.request.into_parts();
    if !plan.route.addresses.permit(call.facts.address) {
        arrivals.note_head(&head.headers, &clients.families);
        return Err(Refusal::AddressNotAllowed);
    }
    check_encoding(&head.headers)?;
    let signature = read_headers(&head.headers, &clients.families)
        .map_err(|fault| Refusal::Unauthenticated(fault.into()))?;
    let Some(client) = clients.get(signature.client_id) else {
        let _ = call.facts.claimed_client.set(signature.client_id.into());
        return Err(Refusal::Unauthenticated(AuthFault::UnknownClient));
    };
    if !plan.route.clients.contains(&client.index) {
        return Err(Refusal::Unauthenticated(AuthFault::ClientNotAllowed));
    }

    let secrets = accepted_secrets(client, || clients.clock.now());
    let keys = secrets.iter().map(|(_, secret)| &secret.key);
    let mut verifier = Verifier::new(keys, signature.timestamp, signature.client_id);
    let body = if plan.is_safe() {
        refuse_body(&body)?;
        verify_path(&mut verifier, &head, &plan);
        Bytes::new()
    } else {
        let bounds = BodyBounds {
            limit: plan.route.body_limit,
            pace: clients.body_pace,
            answer_by: answer_by(&call.facts, &plan),
            awaited: &clients.awaited,
        };
        read_body(&head.headers, body, &bounds, &mut verifier)
            .await
            .inspect_err(|refusal| {
                if matches!(refusal, Refusal::BodyTimeout(_)) {
                    arrivals.note(&signature.mac);
                }
            })?
    };
    call.facts.body_size.set(body.len() as u64);

    let SignatureHeaders {
        family,
        timestamp,
        mac,
        ..
    } = signature;
    let matched = verifier
        .finish(&mac)
        .ok_or(Refusal::Unauthenticated(AuthFault::BadSignature))?;
    metrics.signature_match(client.first_slot + secrets[matched].0);
    let _ = call.facts.client.set(Arc::clone(&client.client));
    let client = Arc::clone(client);
    Ok(Authentic {
        message: Box::new(Message {
            facts: call.facts,
            plan,
            client,
            uri: head.uri,
            headers: head.headers,
            body,
            family,
            timestamp,
            mac,
            _seal: Seal,
        }),
    })
}

/// When Tiki must have its answer.
pub(super) fn answer_by(facts: &Facts, plan: &RoutePlan) -> Instant {
    Instant::from_std(facts.first_byte) + plan.upstream.answer_within
}

/// The client's secrets that still count, with their places among all of its secrets.
fn accepted_secrets(
    client: &ClientPlan,
    now: impl Fn() -> SystemTime,
) -> SmallVec<[(usize, &ClientSecret); 2]> {
    let secrets = client.client.secrets.iter().enumerate();
    secrets
        .filter(|(_, secret)| secret.not_after.is_none_or(|end| now() < end))
        .collect()
}

/// Whether an encoded body was signed before or after encoding is not said anywhere: none is taken.
fn check_encoding(headers: &HeaderMap) -> Result<(), Refusal> {
    let identity = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(CONTENT_ENCODING).iter().all(identity) {
        return Ok(());
    }
    Err(Refusal::UnsupportedEncoding)
}

fn refuse_body<B: Body>(body: &B) -> Result<(), Refusal> {
    if body.is_end_stream() {
        return Ok(());
    }
    Err(Refusal::MalformedRequest(RequestFault::UnexpectedBody))
}

/// Feeds the path and query as Tiki signed them: those on the wire, with the route's own prefix
/// taken off and another put in front.
fn verify_path(verifier: &mut Verifier, head: &Parts, plan: &RoutePlan) {
    let on_wire = head
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let rule = &plan.route.signed_path;
    let rest = on_wire.strip_prefix(rule.strip.as_str()).unwrap_or(on_wire);
    verifier.update(rule.add.as_bytes());
    verifier.update(rest.as_bytes());
}

/// What a body may take.
struct BodyBounds<'c> {
    /// Bytes at most.
    limit: usize,
    pace: BodyPace,
    answer_by: Instant,
    /// Beside which others it is waited for.
    awaited: &'c Arc<AwaitedBodies>,
}

/// Reads the body within its bounds and feeds the verifier as it arrives. A body that came in one
/// piece is not copied. Trailers are thrown away: a signature could be repeated in them.
async fn read_body<B>(
    headers: &HeaderMap,
    body: B,
    bounds: &BodyBounds<'_>,
    verifier: &mut Verifier,
) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes>,
{
    let declared = declared_length(headers);
    if declared.is_some_and(|length| length > bounds.limit as u64) {
        return Err(Refusal::BodyTooLarge);
    }
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let mut pace = Pace::new(bounds);
    loop {
        let so_far = first.len().max(rest.len());
        let Some(frame) = pace.hold(so_far, body.frame()).await? else {
            break;
        };
        let frame = frame.map_err(|_| Refusal::BodyTimeout(BodyFault::BrokenOff))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if data.len() > bounds.limit - so_far {
            return Err(Refusal::BodyTooLarge);
        }
        verifier.update(&data);
        if so_far == 0 {
            first = data;
        } else {
            if rest.is_empty() {
                rest.reserve(declared.unwrap_or(0) as usize);
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&data);
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(if rest.is_empty() {
        first
    } else {
        rest.freeze()
    })
}

/// How long a body may still be waited for.
struct Pace<'c> {
    bounds: &'c BodyBounds<'c>,
    /// When it was first waited for.
    began: Option<Instant>,
    /// None for the first moment.
    awaited: Option<AwaitedBody>,
}

impl<'c> Pace<'c> {
    fn new(bounds: &'c BodyBounds<'c>) -> Self {
        Self {
            bounds,
            began: None,
            awaited: None,
        }
    }

    /// Waits for the next frame, of which `so_far` bytes came before.
    async fn hold<T>(
        &mut self,
        so_far: usize,
        frame: impl Future<Output = T>,
    ) -> Result<T, Refusal> {
        let mut frame = pin!(frame);
        // What came with the head is there, and needs neither a clock nor a timer.
        if let Poll::Ready(frame) = poll_fn(|cx| Poll::Ready(frame.as_mut().poll(cx))).await {
            return Ok(frame);
        }
        let bounds = self.bounds;
        let began = *self.began.get_or_insert_with(Instant::now);
        let deadline = (began + bounds.pace.patience(so_far)).min(bounds.answer_by);
        let too_slow = Refusal::BodyTimeout(BodyFault::TooSlow);
        if self.awaited.is_none() {
            let first = deadline.min(began + MIN_WAIT);
            if let Ok(frame) = timeout_at(first, &mut frame).await {
                return Ok(frame);
            }
            if first == deadline {
                return Err(too_slow);
            }
        }
        let awaited = self.awaited.get_or_insert_with(|| bounds.awaited.enter());
        tokio::select! {
            biased;
            frame = frame => Ok(frame),
            () = awaited.given_up() => Err(Refusal::BodyTimeout(BodyFault::GivenUp)),
            () = sleep_until(deadline) => Err(too_slow),
        }
    }
}

/// The length that the head declares; the route step made sure that there is at most one.
fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
