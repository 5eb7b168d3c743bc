//! What spans say of a call: of its way through the gate, and of the backend's part in it.

use std::time::{Duration, SystemTime};

use http::Method;

use crate::traces::{Side, Span, Tracer, Value};

use super::call::{CallSpans, Facts};
use super::route::RoutePlan;

/// Bytes of a path at most.
const PATH_LIMIT: usize = 256;

/// How a call ended, as far as the facts don't say.
pub(super) struct Ended<'a> {
    pub(super) method: &'a Method,
    /// Only where no route fits.
    pub(super) path: Option<&'a str>,
    pub(super) status: u16,
    pub(super) at: SystemTime,
    pub(super) took: Duration,
}

/// Reports the gate's own span.
pub(super) fn finish_call(tracer: &Tracer, spans: CallSpans, facts: &Facts, ended: Ended<'_>) {
    tracer.finish(facts.client.get().is_some(), || {
        call_span(spans, facts, ended)
    });
}

fn call_span(spans: CallSpans, facts: &Facts, ended: Ended<'_>) -> Span {
    let Ended {
        method,
        path,
        status,
        at,
        took,
    } = ended;
    let route = facts.route.get();
    let refusal = facts.refusal.get();
    let mut attributes = common_attributes(facts);
    let mut add = |key, value: Option<Value>| attributes.extend(value.map(|value| (key, value)));
    // A method is any word that a caller likes, a path any bytes: neither becomes a name, nor is kept whole.
    let method = match is_usual(method) {
        true => method.as_str(),
        false => "_OTHER",
    };
    add("http.request.method", Some(method.into()));
    add(
        "http.route",
        route.map(|plan| plan.route.name.as_str().into()),
    );
    add("url.path", path.map(|path| Value::from(cut(path))));
    add("http.response.status_code", Some(status.into()));
    add("client.address", Some(facts.address_text.as_str().into()));
    let body = facts.body_size.get().map(|size| Value::Number(size as i64));
    add("http.request.body.size", body);
    add("error.type", refusal.map(|refusal| refusal.code().into()));
    let reason = refusal.map(|refusal| refusal.reason());
    let reason = reason.filter(|reason| !reason.is_empty());
    add("tikigate.reason", reason.map(Value::from));
    add(
        "tikigate.replayed",
        facts.replayed.get().map(|()| Value::Flag(true)),
    );
    let name = match route {
        Some(plan) => format!("{method} {}", plan.route.path),
        None if method == "_OTHER" => "HTTP".to_owned(),
        None => method.to_owned(),
    };
    Span {
        context: spans.server,
        name,
        side: Side::Server,
        start: at.checked_sub(took).unwrap_or(at),
        end: at,
        attributes,
        // Conventions for HTTP servers: a refused caller's fault is not the server's.
        error: (status >= 500).then(|| refusal.map_or("", |refusal| refusal.code()).to_owned()),
    }
}

/// The methods of RFC 9110 and RFC 5789, which conventions let through by name.
fn is_usual(method: &Method) -> bool {
    [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ]
    .contains(method)
}

/// A path as far as somebody wants to read it.
fn cut(path: &str) -> &str {
    &path[..path.floor_char_boundary(PATH_LIMIT)]
}

/// How the call to the backend ended.
pub(super) struct BackendEnded {
    pub(super) status: Option<u16>,
    /// Why there is no whole answer.
    pub(super) fault: Option<&'static str>,
    pub(super) at: SystemTime,
    pub(super) took: Duration,
}

/// Reports the span of the call to the backend.
pub(super) fn finish_backend(
    tracer: &Tracer,
    spans: CallSpans,
    facts: &Facts,
    plan: &RoutePlan,
    ended: BackendEnded,
) {
    tracer.finish(true, || backend_span(spans, facts, plan, ended));
}

fn backend_span(spans: CallSpans, facts: &Facts, plan: &RoutePlan, ended: BackendEnded) -> Span {
    let BackendEnded {
        status,
        fault,
        at,
        took,
    } = ended;
    let method = &plan.route.method;
    let mut attributes = common_attributes(facts);
    let mut add = |key, value: Option<Value>| attributes.extend(value.map(|value| (key, value)));
    add("http.request.method", Some(method.as_str().into()));
    add("http.response.status_code", status.map(Value::from));
    add(
        "tikigate.upstream",
        Some(plan.upstream.name.as_str().into()),
    );
    let error = match (fault, status) {
        (Some(fault), _) => Some(fault.to_owned()),
        // Conventions for HTTP clients.
        (None, Some(status @ 400..)) => Some(status.to_string()),
        (None, _) => None,
    };
    add("error.type", error.as_deref().map(Value::from));
    Span {
        context: spans.client,
        name: format!("{method} {}", plan.upstream.name),
        side: Side::Client,
        start: at.checked_sub(took).unwrap_or(at),
        end: at,
        attributes,
        error,
    }
}

fn common_attributes(facts: &Facts) -> Vec<(&'static str, Value)> {
    let mut attributes = vec![(
        "tikigate.request_id",
        Value::from(facts.request_id.as_str()),
    )];
    let client = facts.client.get();
    let key = facts.key.get().map(|key| Value::from(&**key));
    let client = client.map(|client| client.name.as_str().into());
    let attempt = facts
        .attempt
        .get()
        .map(|attempt| Value::Number(attempt as i64));
    for (name, value) in [
        ("tikigate.idempotency_key", key),
        ("tikigate.client", client),
        ("tikigate.attempt", attempt),
    ] {
        attributes.extend(value.map(|value| (name, value)));
    }
    attributes
}
