//! `[tracing]`: spans of calls, for a collector.

use std::sync::Arc;

use super::Upstream;

/// `[tracing]`
#[derive(Clone, Debug, PartialEq)]
pub struct Tracing {
    /// The way to the collector; its deadline is that of one batch.
    pub upstream: Arc<Upstream>,
    /// Where it takes spans by OTLP over HTTP.
    pub path: String,
    /// `service.name`.
    pub service_name: String,
    /// Of a hundred calls that come without a `traceparent`, how many are sampled; 0 to 100.
    pub sample_percent: u8,
}
