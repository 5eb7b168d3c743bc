//! What goes to the backend: a call that the steps let through, or one that the ledger kept.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::config::Upstream;
use crate::ledger::{Admission, KeptRequest, Marks};
use crate::net::ClientAddress;
use crate::tiki::{Family, PayloadKind};

use super::authenticate::{ClientPlan, answer_by};
use super::bind::Standing;
use super::call::{Facts, RequestId, TraceParent};
use super::refusal::Dated;
use super::route::RoutePlan;
use super::signatures::SignatureKey;
use super::throttle::{Claimable, Share};
use super::validate::Identity;

/// W3C Trace Context.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const ATTEMPT: HeaderName = HeaderName::from_static("x-tikigate-attempt");
const CLIENT_ID: HeaderName = HeaderName::from_static("x-tikigate-client-id");
const PARTNER_CODE: HeaderName = HeaderName::from_static("x-tikigate-partner-code");
const STALE_EVENT: HeaderName = HeaderName::from_static("x-tikigate-stale-event");
const POSSIBLE_DUPLICATE: HeaderName = HeaderName::from_static("x-tikigate-possible-duplicate");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Room for as many headers as a request to the backend usually has.
const HEADERS: usize = 12;

/// A map that has room for more headers is not used again: a connection may keep it for as long as it lives.
const MOST_HEADERS: usize = 48;

/// The map of a head that is done with, for another head to be built in.
pub(super) fn emptied(mut head: HeaderMap) -> HeaderMap {
    if head.capacity() > MOST_HEADERS {
        return HeaderMap::new();
    }
    head.clear();
    head
}

/// What an attempt sends, and what it is told by.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) facts: Arc<Facts>,
    pub(super) plan: Arc<RoutePlan>,
    pub(super) client: Arc<ClientPlan>,
    pub(super) told_by: ToldBy,
    /// Whether a key that the ledger doesn't know may be claimed.
    pub(super) admission: Admission,
    /// On which side of its time window the call lies; none: inside.
    pub(super) dated: Option<Dated>,
    /// What of the caller's head goes along: see [`Parcel::pass_on`].
    passed_on: PassedOn,
    /// The body as received.
    pub(super) body: Bytes,
    /// Its length as the caller declared it; the body was read whole, so it holds.
    length: Option<HeaderValue>,
    /// The map that the caller's head came in, emptied: the first request is built in it.
    pub(super) room: HeaderMap,
    asked_by: AskedBy,
}

/// Room for what usually goes along: `Content-Type`, `Accept`, a trace, and the signature.
type PassedOn = SmallVec<[(HeaderName, HeaderValue); 6]>;

/// What duplicates are told by.
#[derive(Clone, Debug)]
pub(super) enum ToldBy {
    /// The message's key.
    Key(Identity),
    /// On routes without keys: the signature.
    Signature(SignatureKey),
}

/// Who wants it sent.
#[derive(Debug)]
enum AskedBy {
    /// A caller, with this target; of a GET its query goes along.
    Caller(Uri),
    /// A person who has a call sent that the ledger kept.
    Person,
}

impl Parcel {
    /// Of a call that may ask the ledger; its caller keeps its client's place.
    ///
    /// In a box, as below: it is handed on several times, and kept by futures.
    pub(super) fn of(claimable: Claimable) -> (Box<Self>, Share) {
        let Claimable {
            mut message,
            identity,
            standing,
            share,
            ..
        } = claimable;
        let head = std::mem::take(&mut message.headers);
        let mut parcel = Box::new(Self {
            passed_on: PassedOn::new(),
            length: head.get(CONTENT_LENGTH).cloned(),
            room: HeaderMap::new(),
            told_by: match identity {
                Some(identity) => ToldBy::Key(identity),
                None => ToldBy::Signature(SignatureKey::from(&message.mac)),
            },
            admission: standing.admission(),
            dated: match standing {
                Standing::Timely => None,
                Standing::KnownOnly(dated) => Some(dated),
            },
            facts: message.facts,
            plan: message.plan,
            client: message.client,
            body: message.body,
            asked_by: AskedBy::Caller(message.uri),
        });
        parcel.pass_on(&head, message.family);
        parcel.room = emptied(head);
        (parcel, share)
    }

    /// Takes what of the caller's head goes to the backend: `Accept`, a well-formed trace context, what
    /// the route lists in `forward_headers`, on `any` routes the `Content-Type`, and the signature unless
    /// it is to be stripped. On routes that hold the ledger keeps it for a later attempt.
    fn pass_on(&mut self, head: &HeaderMap, family: Family) {
        let route = &self.plan.route;
        let offered = Offered::by(head);
        let along = &mut self.passed_on;
        if route.payload == PayloadKind::Any {
            offered.copy_if_one(&CONTENT_TYPE, along);
        }
        offered.copy(&ACCEPT, along);
        for name in &route.forward_headers {
            offered.copy(name, along);
        }
        // Whatever the caller's `Connection` says: a trace goes on behind us.
        if let Some(Ok(trace)) =
            (self.facts.trace.as_ref()).map(|trace| HeaderValue::from_bytes(trace.as_bytes()))
        {
            along.push((TRACEPARENT, trace));
            offered.copy(&TRACESTATE, along);
        }
        // Nor can it take the signature away, which is for the backend: nobody signed `Connection`, and a
        // backend that checks for itself would refuse the call for good.
        if !route.strip_signature {
            // In one pass, which is cheaper than to look each up; and by our own names, which cost nothing to copy.
            for (name, value) in head {
                if let Some(own) = family.own_header(name) {
                    along.push((own.clone(), value.clone()));
                }
            }
        }
    }

    /// A call that the ledger kept, to be sent by a person's word.
    pub(super) fn kept(
        request: KeptRequest,
        identity: Identity,
        plan: Arc<RoutePlan>,
        client: Arc<ClientPlan>,
        request_id: RequestId,
    ) -> Box<Self> {
        let trace = request
            .headers
            .iter()
            .find(|(name, _)| *name == TRACEPARENT);
        let trace = trace.and_then(|(_, value)| TraceParent::parse(value.as_bytes()));
        let now = Instant::now().into_std();
        let facts = Facts::new(request_id, now, ClientAddress::Local, trace, None);
        Box::new(Self {
            facts: Arc::new(facts),
            plan,
            client,
            told_by: ToldBy::Key(identity),
            admission: Admission::KnownOnly,
            dated: None,
            passed_on: SmallVec::from_vec(request.headers),
            body: request.body,
            length: None,
            room: HeaderMap::new(),
            asked_by: AskedBy::Person,
        })
    }

    /// What duplicates are told by, where that is a key.
    pub(super) fn identity(&self) -> Option<&Identity> {
        match &self.told_by {
            ToldBy::Key(identity) => Some(identity),
            ToldBy::Signature(_) => None,
        }
    }

    /// When Tiki must have its answer.
    pub(super) fn answer_by(&self) -> Instant {
        answer_by(&self.facts, &self.plan)
    }

    /// What the ledger keeps of it, so that it can be sent again without its caller.
    pub(super) fn to_keep(&self) -> KeptRequest {
        KeptRequest {
            headers: self.passed_on.to_vec(),
            body: self.body.clone(),
        }
    }

    /// The request that the backend gets: the gate's own head, what goes along of the caller's, and
    /// the caller's bytes. Its head is built in `room`, an empty map that need not be a new one.
    pub(super) fn request(
        &self,
        attempt: u32,
        marks: Marks,
        room: HeaderMap,
    ) -> Result<Box<Request<Bytes>>, http::Error> {
        let mut request = Box::new(Request::new(self.body.clone()));
        *request.method_mut() = self.plan.route.method.clone();
        *request.uri_mut() = self.target()?;
        *request.headers_mut() = room;
        self.write_head(attempt, marks, request.headers_mut())?;
        Ok(request)
    }

    /// The backend's path; a caller's query (signed on GET routes, refused on others) is put behind it.
    fn target(&self) -> Result<Uri, http::Error> {
        let fixed = &self.plan.target;
        let query = match &self.asked_by {
            AskedBy::Caller(uri) => uri.query().filter(|_| self.plan.is_safe()),
            AskedBy::Person => None,
        };
        let Some(query) = query else {
            return Ok(Uri::from(fixed.clone()));
        };
        let joint = if fixed.query().is_some() { '&' } else { '?' };
        let whole = PathAndQuery::try_from(format!("{fixed}{joint}{query}"))?;
        Ok(Uri::from(whole))
    }

    fn write_head(
        &self,
        attempt: u32,
        marks: Marks,
        headers: &mut HeaderMap,
    ) -> Result<(), http::Error> {
        let plan = &self.plan;
        let facts = &self.facts;
        headers.reserve(HEADERS);
        headers.insert(HOST, plan.upstream.host.clone());
        // Where nothing is said here, the client states the length of a body that there is.
        match &self.length {
            _ if self.body.is_empty() && plan.is_safe() => {}
            _ if self.body.is_empty() => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            Some(length) => {
                headers.insert(CONTENT_LENGTH, length.clone());
            }
            None => {}
        }
        if plan.route.payload != PayloadKind::Any {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        for (name, value) in &self.passed_on {
            headers.append(name, value.clone());
        }
        if let Some(spans) = &facts.spans {
            let trace = spans.client.traceparent();
            headers.insert(TRACEPARENT, HeaderValue::from_bytes(&trace)?);
        }
        if let Some(identity) = self.identity() {
            headers.insert(IDEMPOTENCY_KEY, key_value(&identity.key.message)?);
        }
        headers.insert(ATTEMPT, attempt_value(attempt));
        let Marks {
            stale_event,
            possible_duplicate,
        } = marks;
        for (name, holds) in [
            (STALE_EVENT, stale_event),
            (POSSIBLE_DUPLICATE, possible_duplicate),
        ] {
            if holds {
                headers.insert(name, HeaderValue::from_static("true"));
            }
        }
        headers.insert(CLIENT_ID, self.client.id_value.clone());
        if let Some(partner_code) = &self.client.partner_code {
            headers.insert(PARTNER_CODE, partner_code.clone());
        }
        headers.insert(
            REQUEST_ID,
            HeaderValue::from_bytes(facts.request_id.as_bytes())?,
        );
        if let AskedBy::Caller(_) = self.asked_by {
            let address = HeaderValue::from_bytes(facts.address_text.as_bytes())?;
            headers.insert(FORWARDED_FOR, address);
            headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
        }
        add_secrets(&plan.upstream, headers)
    }
}

/// The upstream's `set_headers`.
pub(super) fn add_secrets(upstream: &Upstream, headers: &mut HeaderMap) -> Result<(), http::Error> {
    for (name, secret) in &upstream.set_headers {
        let mut value = HeaderValue::from_bytes(secret.expose())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(())
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

    fn copy(&self, name: &HeaderName, to: &mut PassedOn) {
        if !self.ends_here(name) {
            for value in self.headers.get_all(name) {
                to.push((name.clone(), value.clone()));
            }
        }
    }

    fn ends_here(&self, name: &HeaderName) -> bool {
        let is_name = |option: &&[u8]| option.eq_ignore_ascii_case(name.as_str().as_bytes());
        self.ends_here.iter().any(is_name)
    }

    /// For a header that is no list: of several, one server believes the first and another the last.
    fn copy_if_one(&self, name: &HeaderName, to: &mut PassedOn) {
        let mut values = self.headers.get_all(name).iter();
        if let (Some(value), None) = (values.next(), values.next())
            && !self.ends_here(name)
        {
            to.push((name.clone(), value.clone()));
        }
    }
}

/// Nearly always the first, which costs nothing.
fn attempt_value(attempt: u32) -> HeaderValue {
    match attempt {
        1 => HeaderValue::from_static("1"),
        later => HeaderValue::from(later),
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
    fn a_map_goes_round_empty_and_not_once_it_has_grown() {
        let head = |fields: usize| {
            let mut head = HeaderMap::new();
            for _ in 0..fields {
                head.append(HOST, HeaderValue::from_static("secret"));
                let name = format!("x-{}", head.len());
                head.append(
                    HeaderName::try_from(name).unwrap(),
                    HeaderValue::from_static("secret"),
                );
            }
            head
        };
        for (fields, goes_round) in [(1, true), (5, true), (50, false)] {
            let emptied = emptied(head(fields));
            assert!(emptied.is_empty());
            assert_eq!(emptied.capacity() > 0, goes_round, "{fields}");
        }
    }

    #[test]
    fn a_key_survives_as_a_header() {
        let value = |key: &str| key_value(key).unwrap().to_str().unwrap().to_owned();
        assert_eq!(value("r-1|x"), "r-1|x");
        assert_eq!(value(" r 1"), "%20r%201");
        assert_eq!(value("100%"), "100%25");
        assert_eq!(value("hoàn"), "ho%C3%A0n");
    }
}
