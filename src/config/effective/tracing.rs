//! `[tracing]` as it is in force.

use serde_json::{Value, json};

use super::{format_duration, show_endpoint, show_set_headers};
use crate::config::settings::Tracing;

pub(super) fn show(tracing: &Tracing) -> Value {
    let Tracing {
        upstream,
        path,
        service_name,
        sample_percent,
    } = tracing;
    let base: String = upstream.endpoints.iter().map(show_endpoint).collect();
    json!({
        "endpoint": format!("{base}{path}"),
        "set_headers": show_set_headers(upstream),
        "service_name": service_name,
        "sample_percent": sample_percent,
        "timeout": format_duration(upstream.answer_within),
    })
}
