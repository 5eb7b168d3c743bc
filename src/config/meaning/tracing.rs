//! Reading `[tracing]`.

use std::sync::Arc;
use std::time::Duration;

use super::outbound::ways::{Plain, Target, TrustSource, Way};
use super::upstreams::fixed_headers;
use super::{Context, duration, label, number};
use crate::config::schema;
use crate::config::settings::{Tracing, Upstream};
use crate::config::value::{At, Field};

/// Where a collector takes spans, unless its URL says (OTLP specification, "OTLP/HTTP request").
const PATH: &str = "/v1/traces";

/// The inner `None`: off. The outer: something is wrong, and was reported.
pub(super) fn tracing(
    field: Field<schema::Tracing>,
    context: &mut Context<'_>,
) -> Option<Option<Arc<Tracing>>> {
    if field.is_absent() {
        return Some(None);
    }
    let schema::Tracing {
        endpoint,
        ca,
        set_headers,
        service_name,
        sample_percent,
        timeout,
    } = field.written()?.value;
    let second = Duration::from_secs(1);
    let timeout = duration(
        timeout,
        5 * second,
        Duration::from_millis(10)..=60 * second,
        context.problems,
    );
    let trust = TrustSource::read(ca, context);
    let (_, set_headers) = fixed_headers(set_headers, context);
    let sample_percent = number(sample_percent, 10, 0..=100, context.problems);
    let service_name = match service_name.is_absent() {
        true => Some("tikigate".to_owned()),
        false => service_name
            .written()
            .and_then(|name| label(name, context.problems))
            .map(|name| name.value),
    };
    let url: At<String> = endpoint.required(context.problems)?;
    let mut way = Way {
        trust,
        connect_timeout: timeout.value,
        timeout: timeout.value,
        connections: 1,
    };
    // Spans tell of keys and addresses, not of secrets or money: a collector in the same cluster is
    // usually spoken to plainly.
    let name = "tracing".to_owned();
    let Target { upstream, path } = way.to(&url, name, Plain::Anywhere, context.problems)?;
    let upstream = Upstream {
        set_headers: set_headers?,
        ..Upstream::clone(&upstream)
    };
    Some(Some(Arc::new(Tracing {
        upstream: Arc::new(upstream),
        path: if path == "/" { PATH.to_owned() } else { path },
        service_name: service_name?,
        sample_percent: u8::try_from(sample_percent.value).unwrap_or(100),
    })))
}
