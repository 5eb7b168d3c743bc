//! Step 1: the request's head is one that may be passed on, and its path and method are a route's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Version};

use crate::config::{Probe, Route, Settings, Upstream};
use crate::metrics::RouteLabel;
use crate::tiki::Window;

use super::call::Call;
use super::refusal::{Refusal, RequestFault};

/// A request whose head is clean and whose path and method are a route's.
#[derive(Debug)]
pub struct Routed<B> {
    pub(super) call: Call<B>,
    pub(super) plan: Arc<RoutePlan>,
    _seal: Seal,
}

#[derive(Debug)]
struct Seal;

/// A route with all that can be prepared for it.
#[derive(Debug)]
pub struct RoutePlan {
    /// As configured.
    pub route: Arc<Route>,
    /// Its number among all routes that there were; see [`RouteNumbers`].
    pub number: usize,
    /// Its label in the metrics.
    pub label: RouteLabel,
    /// The backend it forwards to.
    pub upstream: Arc<Upstream>,
    /// The path that the backend gets.
    pub target: PathAndQuery,
    /// The ledger's namespace; empty without idempotency.
    pub namespace: Arc<str>,
    /// The route's name, shared with the ledger's records.
    pub name: Arc<str>,
    /// How long an accepted signature could be accepted somewhere.
    pub signature_lifetime: Duration,
}

impl RoutePlan {
    /// How the backend is asked about calls whose outcome is unknown.
    pub(super) fn probe(&self) -> Option<&Probe> {
        let rule = self.route.idempotency.as_ref()?;
        rule.probe.as_ref()
    }

    /// Whether a call may be sent any number of times: GET changes nothing.
    pub fn is_safe(&self) -> bool {
        self.route.method == Method::GET
    }
}

/// Numbers of routes that outlive a change of the configuration, for whoever remembers one. A route is
/// told by what its callers call: the method and the path.
#[derive(Debug, Default)]
pub struct RouteNumbers(Mutex<Vec<(Method, String)>>);

impl RouteNumbers {
    fn of(&self, route: &Route) -> usize {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it =
            |(method, path): &(Method, String)| *method == route.method && *path == route.path;
        known.iter().position(is_it).unwrap_or_else(|| {
            known.push((route.method.clone(), route.path.clone()));
            known.len() - 1
        })
    }
}

/// All routes, found by their exact path.
#[derive(Debug)]
pub struct RouteTable {
    by_path: HashMap<Box<str>, Vec<Arc<RoutePlan>>, RandomState>,
}

impl RouteTable {
    /// The settings' routes.
    ///
    /// # Errors
    /// The name of a route whose backend path is no URI path, which `check` refuses before.
    pub fn new(settings: &Settings, numbers: &RouteNumbers) -> Result<Self, String> {
        let mut by_path: HashMap<Box<str>, Vec<Arc<RoutePlan>>, RandomState> = HashMap::default();
        for (index, route) in settings.routes.iter().enumerate() {
            let target = PathAndQuery::try_from(route.upstream_path.as_str())
                .map_err(|error| format!("route {}: upstream_path: {error}", route.name))?;
            let namespace = route
                .idempotency
                .as_ref()
                .map_or("", |rule| &rule.namespace);
            let plan = RoutePlan {
                number: numbers.of(route),
                label: RouteLabel::new(index),
                upstream: Arc::clone(&settings.upstreams[route.upstream]),
                target,
                namespace: Arc::from(namespace),
                name: Arc::from(route.name.as_str()),
                signature_lifetime: signature_lifetime(route, &settings.routes),
                route: Arc::clone(route),
            };
            by_path
                .entry(route.path.as_str().into())
                .or_default()
                .push(Arc::new(plan));
        }
        Ok(Self { by_path })
    }

    /// The route with this name.
    pub(super) fn named(&self, name: &str) -> Option<&Arc<RoutePlan>> {
        let mut plans = self.by_path.values().flatten();
        plans.find(|plan| plan.route.name == name)
    }

    /// Whether any route asks its backend about calls whose outcome is unknown.
    pub(super) fn any_probe(&self) -> bool {
        let mut plans = self.by_path.values().flatten();
        plans.any(|plan| plan.probe().is_some())
    }
}

/// The longest time for which any route would still accept a signature that `route` accepts now: one
/// that came as early as `route` takes it, on the route that takes the oldest.
fn signature_lifetime(route: &Route, all: &[Arc<Route>]) -> Duration {
    let longest = |of: fn(&Window) -> Duration, route: &Route| {
        route.windows.iter().map(of).max().unwrap_or_default()
    };
    let age = |route: &Route| longest(|window| window.max_age, route);
    let ahead = longest(|window| window.max_ahead, route);
    let elsewhere = all
        .iter()
        .filter(|other| other.name != route.name)
        .filter(|other| {
            other
                .clients
                .iter()
                .any(|client| route.clients.contains(client))
        })
        .map(|other| {
            let rule = other.idempotency.as_ref();
            age(other).max(rule.map_or(Duration::ZERO, |rule| rule.resend_age))
        })
        .max()
        .unwrap_or_default();
    ahead + age(route).max(elsewhere)
}

/// The longest time for which any route accepts a signature that is made now.
pub(super) fn longest_lifetime(routes: &[Arc<Route>]) -> Duration {
    let one = |route: &Arc<Route>| {
        let rule = route.idempotency.as_ref();
        let resend_age = rule.map_or(Duration::ZERO, |rule| rule.resend_age);
        signature_lifetime(route, &[]).max(resend_age)
    };
    routes.iter().map(one).max().unwrap_or_default()
}

/// Checks the head and finds the route. Nothing but an exact match is forwarded.
///
/// # Errors
/// [`Refusal::MalformedRequest`], [`Refusal::NotFound`], [`Refusal::MethodNotAllowed`].
pub fn route<B>(table: &RouteTable, call: Call<B>) -> Result<Routed<B>, Refusal> {
    let request = &call.arrived.request;
    check_head(request)?;
    let plans = table
        .by_path
        .get(request.uri().path())
        .ok_or(Refusal::NotFound)?;
    let plan = plans
        .iter()
        .find(|plan| plan.route.method == *request.method())
        .ok_or_else(|| Refusal::MethodNotAllowed(allowed(plans)))?;
    // Tiki signs a body without the path: a query on such a route would come in unsigned.
    if !plan.is_safe() && request.uri().query().is_some() {
        return Err(Refusal::NotFound);
    }
    let plan = Arc::clone(plan);
    let _ = call.facts.route.set(Arc::clone(&plan));
    Ok(Routed {
        call,
        plan,
        _seal: Seal,
    })
}

fn allowed(plans: &[Arc<RoutePlan>]) -> String {
    let methods: Vec<&str> = plans
        .iter()
        .map(|plan| plan.route.method.as_str())
        .collect();
    methods.join(", ")
}

/// What the HTTP library lets through and a proxy must not: RFC 9112, sections 3.2 and 6; RFC 3986.
fn check_head<B>(request: &http::Request<B>) -> Result<(), Refusal> {
    let fault = |fault| Err(Refusal::MalformedRequest(fault));
    if !matches!(request.version(), Version::HTTP_11 | Version::HTTP_10) {
        return fault(RequestFault::Protocol);
    }
    if request.uri().authority().is_some() || !request.uri().path().starts_with('/') {
        return fault(RequestFault::Target);
    }
    // The library takes UTF-8, which no target may hold (RFC 3986, section 2) and which servers
    // behind the gate part over. A path is compared with the routes' anyway.
    let query = request.uri().query().unwrap_or_default();
    if !query.bytes().all(|byte| byte.is_ascii_graphic()) {
        return fault(RequestFault::Target);
    }
    let reading = Reading::by(request.headers());
    if !host_is_plain(&reading) {
        return fault(RequestFault::Host);
    }
    if reading.upgrade.count > 0 {
        return fault(RequestFault::Protocol);
    }
    if !framing_is_plain(&reading) {
        return fault(RequestFault::Framing);
    }
    Ok(())
}

/// The headers that say how a request is to be read. Found in one pass over the head, which is cheaper than
/// to look each up.
#[derive(Default)]
struct Reading<'h> {
    host: Lines<'h>,
    upgrade: Lines<'h>,
    coding: Lines<'h>,
    length: Lines<'h>,
}

/// How often a header is there, and its last value.
#[derive(Default)]
struct Lines<'h> {
    last: Option<&'h HeaderValue>,
    count: usize,
}

impl<'h> Reading<'h> {
    fn by(headers: &'h HeaderMap) -> Self {
        let mut reading = Self::default();
        for (name, value) in headers {
            let lines = match *name {
                HOST => &mut reading.host,
                UPGRADE => &mut reading.upgrade,
                TRANSFER_ENCODING => &mut reading.coding,
                CONTENT_LENGTH => &mut reading.length,
                _ => continue,
            };
            lines.last = Some(value);
            lines.count += 1;
        }
        reading
    }
}

/// Exactly one `Host`, and a name or address with or without a port in it, or nothing (RFC 9112, section
/// 3.2; RFC 3986, section 3.2).
fn host_is_plain(reading: &Reading<'_>) -> bool {
    let Lines {
        last: Some(host),
        count: 1,
    } = reading.host
    else {
        return false;
    };
    let host = host.as_bytes();
    let name_end = match host {
        [b'[', ..] => host.iter().position(|byte| *byte == b']').map(|at| at + 1),
        _ => host.iter().position(|byte| *byte == b':'),
    };
    let (name, port) = host.split_at(name_end.unwrap_or(host.len()));
    let of_a_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte);
    let name_is_plain = match name {
        [b'[', address @ .., b']'] => address.iter().all(|byte| of_a_name(byte) || *byte == b':'),
        name => name.iter().all(of_a_name),
    };
    let port_is_plain = match port {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    name_is_plain && port_is_plain
}

/// One exact `chunked`, or one plain decimal length, or neither.
fn framing_is_plain(reading: &Reading<'_>) -> bool {
    let Reading { coding, length, .. } = reading;
    match (coding.last, length.last) {
        (None, None) => true,
        (Some(value), None) => {
            value.as_bytes().eq_ignore_ascii_case(b"chunked") && coding.count == 1
        }
        (None, Some(value)) => is_plain_length(value) && length.count == 1,
        (Some(_), Some(_)) => false,
    }
}

fn is_plain_length(length: &HeaderValue) -> bool {
    let digits = length.as_bytes();
    let padded = digits.len() > 1 && digits[0] == b'0';
    !digits.is_empty() && !padded && digits.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(lines: &[(http::HeaderName, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        framing_is_plain(&Reading::by(&headers))
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        let plain = |host: &[u8]| {
            let value = HeaderValue::from_bytes(host).unwrap();
            host_is_plain(&Reading::by(&HeaderMap::from_iter([(HOST, value)])))
        };
        for host in [
            "",
            "gate.test",
            "gate.test:",
            "gate.test:8080",
            "10.0.0.1:80",
            "[::1]",
            "[::1]:443",
            "my_gate",
            "a,b",
        ] {
            assert!(plain(host.as_bytes()), "{host}");
        }
        for host in [
            "a b", "a/b", "a@b", "a:b", "a:1:2", "::1", "[::1", "[::1]x", "[a/b]", "a\"", "<a>",
            "a, b", "a\tb", "a#b", "a?b", "a\\b", "]", "[",
        ] {
            assert!(!plain(host.as_bytes()), "{host}");
        }
        assert!(!plain(b"a\xff"));
        assert!(!host_is_plain(&Reading::by(&HeaderMap::new())));
    }

    #[test]
    fn only_plain_framing_passes() {
        assert!(plain(&[]));
        assert!(plain(&[(CONTENT_LENGTH, "0")]));
        assert!(plain(&[(CONTENT_LENGTH, "120")]));
        assert!(plain(&[(TRANSFER_ENCODING, "Chunked")]));
        for lines in [
            &[(CONTENT_LENGTH, "012")][..],
            &[(CONTENT_LENGTH, "+1")],
            &[(CONTENT_LENGTH, "")],
            &[(CONTENT_LENGTH, "5"), (CONTENT_LENGTH, "5")],
            &[(CONTENT_LENGTH, "5, 5")],
            &[(TRANSFER_ENCODING, "gzip, chunked")],
            &[(TRANSFER_ENCODING, ",chunked")],
            &[
                (TRANSFER_ENCODING, "chunked"),
                (TRANSFER_ENCODING, "chunked"),
            ],
            &[(TRANSFER_ENCODING, "chunked"), (CONTENT_LENGTH, "5")],
        ] {
            assert!(!plain(lines), "{lines:?}");
        }
    }
}
