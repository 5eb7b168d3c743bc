//! `[tracing]`.

use super::*;
use crate::config::Tracing;

fn tracing(keys: &str) -> Tracing {
    let settings = settings(&format!("{GOOD}[tracing]\n{keys}\n"));
    Tracing::clone(settings.tracing.as_ref().unwrap())
}

#[test]
fn it_is_off_unless_a_collector_is_named() {
    assert!(settings(GOOD).tracing.is_none());
    only_error(&format!("{GOOD}[tracing]\n"), "missing", "tracing.endpoint");
    let read = tracing("endpoint = \"http://otel-collector:4318\"");
    assert_eq!(
        (read.path.as_str(), read.service_name.as_str()),
        ("/v1/traces", "tikigate")
    );
    assert_eq!(read.sample_percent, 10);
    assert_eq!(read.upstream.answer_within, Duration::from_secs(5));
    assert_eq!(read.upstream.host, "otel-collector:4318");
    let read = tracing("endpoint = \"http://[::1]:4318/in/spans\"\nsample_percent = 0");
    assert_eq!((read.path.as_str(), read.sample_percent), ("/in/spans", 0));
}

#[test]
fn what_it_says_is_bounded() {
    let with =
        |keys: &str| format!("{GOOD}[tracing]\nendpoint = \"http://127.0.0.1:4318\"\n{keys}\n");
    for (keys, code, key) in [
        (
            "sample_percent = 101",
            "out_of_bounds",
            "tracing.sample_percent",
        ),
        ("timeout = \"2m\"", "out_of_bounds", "tracing.timeout"),
        ("service_name = \"a b\"", "bad_name", "tracing.service_name"),
    ] {
        only_error(&with(keys), code, key);
    }
    for endpoint in ["otel:4318", "grpc://otel:4317", "http://user@otel"] {
        let text = format!("{GOOD}[tracing]\nendpoint = \"{endpoint}\"\n");
        only_error(&text, "bad_url", "tracing.endpoint");
    }
}
