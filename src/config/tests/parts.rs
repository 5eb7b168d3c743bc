//! Upstreams, clients, routes and time windows, each by itself.

use std::time::Duration;

use http::StatusCode;

use super::super::Endpoint;
use super::{good_but, only_error, only_warning, route_with, settings, table_with};
use crate::tiki::PayloadKind;

#[test]
fn urls_are_read_strictly() {
    let url = |text: &str| good_but("http://127.0.0.1:9000", text);
    let tcp = |host: &str, port| Endpoint::Tcp {
        host: host.to_owned(),
        port,
    };
    for (written, endpoint, host) in [
        ("http://backend", tcp("backend", 80), "backend"),
        (
            "http://Backend.internal:81/",
            tcp("Backend.internal", 81),
            "Backend.internal:81",
        ),
        ("http://[::1]:9000", tcp("::1", 9000), "[::1]:9000"),
        (
            "unix:/run/b.sock",
            Endpoint::Unix("/run/b.sock".into()),
            "localhost",
        ),
    ] {
        let upstream = &settings(&url(written)).upstreams[0];
        assert_eq!(
            (&upstream.endpoints[..], upstream.host.to_str().unwrap()),
            (&[endpoint][..], host)
        );
    }
    for written in [
        "127.0.0.1:9000",
        "http://",
        "http://:80",
        "http://a:",
        "http://a:0",
        "http://a:65536",
        "http://a:+1",
        "http://u:p@a",
        "http://a/path",
        "http://a?q",
        "http://a#f",
        "http://a b",
        "http://[::1",
        "http://[x]",
        "ftp://a",
        "unix:",
        "HTTP://a",
        "http://a//",
    ] {
        only_error(&url(written), "bad_url", "upstreams.legacy.url");
    }
    only_error(
        &table_with("[upstreams.legacy]", "host = \"a/b\""),
        "bad_host",
        "upstreams.legacy.host",
    );
}

#[test]
fn deadlines_fit_into_tikis_patience() {
    for (keys, code, key) in [
        ("answer_within = \"15s\"", "late_answer", "answer_within"),
        (
            "answer_within = \"1m\"\nsettle_within = \"1m\"",
            "late_answer",
            "answer_within",
        ),
        (
            "connect_timeout = \"13s\"",
            "bad_deadlines",
            "connect_timeout",
        ),
        ("settle_within = \"12s\"", "bad_deadlines", "settle_within"),
        ("settle_within = \"2h\"", "out_of_bounds", "settle_within"),
        ("max_in_flight = 0", "out_of_bounds", "max_in_flight"),
    ] {
        let text = table_with("[upstreams.legacy]", keys);
        only_error(&text, code, &format!("upstreams.legacy.{key}"));
    }
    settings(&table_with(
        "[upstreams.legacy]",
        "answer_within = \"14999ms\"",
    ));
}

#[test]
fn windows_are_given_for_all_or_per_family() {
    let signature =
        |keys: &str| good_but("[upstreams", &format!("[signature]\n{keys}\n[upstreams"));
    let ages = |text: &str, route: usize| {
        settings(text).routes[route]
            .windows
            .map(|window| window.max_age.as_secs())
    };
    let each = signature("max_age = { tiniapp = \"1m\" }");
    assert_eq!(ages(&each, 0), [60, 300]);
    let over = each.replace(
        "name = \"ipn\"\n",
        "name = \"ipn\"\nmax_age = { tikivip = \"2m\" }\n",
    );
    assert_eq!(ages(&over, 0), [60, 120]);
    assert_eq!(ages(&over, 1), [60, 300]);
    let ahead = settings(&route_with("ipn", "max_ahead = \"0s\""));
    assert_eq!(
        ahead.routes[0].windows.map(|window| window.max_ahead),
        [Duration::ZERO; 2]
    );

    only_error(
        &signature("max_age = \"0s\""),
        "out_of_bounds",
        "signature.max_age",
    );
    only_error(
        &signature("max_age = \"45h\""),
        "out_of_bounds",
        "signature.max_age",
    );
    only_error(
        &signature("max_ahead = \"2h\""),
        "out_of_bounds",
        "signature.max_ahead",
    );
    only_error(
        &route_with("ipn", "max_age = { tikivip = \"0s\" }"),
        "out_of_bounds",
        "routes.ipn.max_age.tikivip",
    );
    only_warning(
        &signature("max_age = \"16m\""),
        "long_window",
        "signature.max_age",
    );
    settings(&signature("max_age = \"15m\""));
    only_error(&signature("families = []"), "empty", "signature.families");
    only_error(
        &signature("families = [\"tikivip\", \"tikivip\"]"),
        "duplicate",
        "signature.families[1]",
    );
    let problem = only_error(
        &signature("families = [\"tikivp\"]"),
        "unknown_word",
        "signature.families[0]",
    );
    assert_eq!(problem.help.as_deref(), Some("did you mean \"tikivip\"?"));
    only_error(
        &signature("refuse_with = 403"),
        "out_of_bounds",
        "signature.refuse_with",
    );
    only_error(
        &signature("max_remembered = 0"),
        "out_of_bounds",
        "signature.max_remembered",
    );
    let refused = settings(&signature("refuse_with = 503"))
        .signature
        .refuse_with;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn routes_are_read_strictly() {
    for (keys, code, key) in [
        ("method = \"HEAD\"", "unknown_word", "method"),
        ("body_limit = 0", "out_of_bounds", "body_limit"),
        ("body_limit = \"17MiB\"", "out_of_bounds", "body_limit"),
        ("answer_limit = \"2MiB\"", "out_of_bounds", "answer_limit"),
        ("answer = \"gate\"", "unknown_word", "answer"),
        ("upstream_path = \"x\"", "bad_path", "upstream_path"),
        (
            "signed_path = { strip = \"/ipn\" }",
            "bad_signed_path",
            "signed_path",
        ),
        ("final_statuses = [500]", "bad_status", "final_statuses[0]"),
        ("final_statuses = [200]", "bad_status", "final_statuses[0]"),
        ("retry_statuses = [200]", "bad_status", "retry_statuses[0]"),
        (
            "final_statuses = [418]\nretry_statuses = [418]",
            "bad_status",
            "retry_statuses[0]",
        ),
        (
            "success_when = { pointer = \"code\", equals = 0 }",
            "bad_pointer",
            "success_when.pointer",
        ),
        (
            "failed_when = { pointer = \"/code\" }",
            "missing",
            "failed_when.equals",
        ),
        (
            "success_when = { pointer = \"/a\", equals = nan }",
            "wrong_type",
            "success_when.equals",
        ),
        (
            "success_when = { pointer = \"/a\", equals = [1] }",
            "wrong_type",
            "success_when.equals",
        ),
        (
            "clients = [\"wallet\", \"wallet\"]",
            "duplicate",
            "clients[1]",
        ),
        ("max_ages = \"1m\"", "unknown_key", "max_ages"),
    ] {
        only_error(&route_with("ipn", keys), code, &format!("routes.ipn.{key}"));
    }
    only_error(
        &good_but("\"/ipn\"", "\"/ipn?x=1\""),
        "bad_path",
        "routes.ipn.path",
    );
    only_error(
        &good_but("path = \"/ipn\"\n", ""),
        "missing",
        "routes.ipn.path",
    );
    only_error(
        &good_but("payload = \"order_ipn\"\n", ""),
        "missing",
        "routes.ipn.payload",
    );
    only_error(
        &good_but("name = \"ipn\"\n", ""),
        "missing",
        "routes[0].name",
    );
    only_error(
        &good_but("name = \"ipn\"", "name = \"i pn\""),
        "bad_name",
        "routes[0].name",
    );
}

#[test]
fn a_written_status_list_wins_over_the_others_default() {
    let outcome = |keys: &str| settings(&route_with("ipn", keys)).routes[0].outcome.clone();
    let declined = outcome("final_statuses = [404]");
    assert_eq!(declined.final_statuses, [StatusCode::NOT_FOUND]);
    assert!(!declined.retry_statuses.contains(&StatusCode::NOT_FOUND));
    let retried = outcome("retry_statuses = [409]");
    assert_eq!(retried.retry_statuses, [StatusCode::CONFLICT]);
    assert!(!retried.final_statuses.contains(&StatusCode::CONFLICT));
    let condition = outcome("success_when = { pointer = \"/code\", equals = 0 }");
    let condition = condition.success_when.unwrap();
    assert_eq!(
        (condition.pointer.as_str(), condition.equals),
        ("/code", 0.into())
    );
}

#[test]
fn a_get_has_neither_payload_nor_key() {
    let text = route_with("ipn", "method = \"GET\"");
    only_error(&text, "get_payload", "routes.ipn.payload");
    let text = text.replace("order_ipn", "any");
    let route = &settings(&text).routes[0];
    assert!(route.payload == PayloadKind::Any && route.idempotency.is_none());
    let keyed = text.replace(
        "payload = \"any\"",
        "payload = \"any\"\nidempotency = { key = [\"/a\"], fingerprint = [\"/b\"] }",
    );
    only_error(&keyed, "get_key", "routes.ipn.idempotency");
    let signed = text.replace(
        "path = \"/ipn\"",
        "path = \"/ipn\"\nsigned_path = { strip = \"/i\", add = \"/x/\" }",
    );
    assert_eq!(settings(&signed).routes[0].signed_path.add, "/x/");
    for table in [
        "{ strip = \"/nope\" }",
        "{ strip = \"/ipn\" }",
        "{ add = \"x\" }",
    ] {
        let signed = text.replace(
            "path = \"/ipn\"",
            &format!("path = \"/ipn\"\nsigned_path = {table}"),
        );
        let problems = super::load(&signed).unwrap_err();
        assert_eq!(problems.len(), 1, "{table}");
        assert_eq!(problems[0].key, "routes.ipn.signed_path");
    }
}

#[test]
fn the_gates_own_headers_are_not_for_sale() {
    for name in [
        "Host",
        "Content-Length",
        "transfer-encoding",
        "Connection",
        "TE",
        "Trailer",
        "Upgrade",
        "Keep-Alive",
        "Expect",
        "Idempotency-Key",
        "X-Request-Id",
        "X-Tikigate-Attempt",
        "X-Forwarded-For",
        "Forwarded",
        "traceparent",
        "Content-Encoding",
        "content-type",
        "X-Tiniapp-Signature",
        "x-tikivip-client-id",
    ] {
        let text = route_with("ipn", &format!("forward_headers = [\"{name}\"]"));
        only_error(&text, "owned_header", "routes.ipn.forward_headers[0]");
        let text = table_with(
            "[upstreams.legacy]",
            &format!("set_headers = {{ \"{name}\" = \"x\" }}"),
        );
        let problems = super::load(&text).unwrap_err();
        assert!(
            problems
                .iter()
                .any(|problem| problem.code == "owned_header"),
            "{name}"
        );
    }
    for name in ["X_Tiniapp_Client_Id", "a b", "", "é"] {
        let text = route_with("ipn", &format!("forward_headers = [\"{name}\"]"));
        only_error(&text, "bad_header", "routes.ipn.forward_headers[0]");
    }
    let text = route_with("ipn", "forward_headers = [\"X-A\", \"x-a\"]");
    only_error(&text, "duplicate", "routes.ipn.forward_headers[1]");
    let text = route_with("ipn", "forward_headers = [\"cookie\"]");
    only_warning(
        &text,
        "unsigned_credentials",
        "routes.ipn.forward_headers[0]",
    );
    let text = table_with(
        "[upstreams.legacy]",
        "set_headers = { X-A = \"1\", x-a = \"2\" }",
    );
    only_error(&text, "duplicate", "upstreams.legacy.set_headers.x-a");
}

#[test]
fn client_keys_can_travel_in_a_header() {
    for id in ["", "a b", "é", "a\\u0000"] {
        only_error(
            &good_but("\"client-key-1\"", &format!("\"{id}\"")),
            "bad_client_id",
            "clients.wallet.id",
        );
    }
    only_error(
        &good_but("id = \"client-key-1\"\n", ""),
        "missing",
        "clients.wallet.id",
    );
    let text = good_but(
        "name = \"wallet\"",
        "name = \"wallet\"\npartner_code = \"a b\"",
    );
    only_error(&text, "bad_name", "clients.wallet.partner_code");
    let text = good_but(
        "name = \"wallet\"",
        "name = \"wallet\"\nenvironment = \"test\"",
    );
    only_error(&text, "unknown_word", "clients.wallet.environment");
    assert_eq!(
        settings(&good_but("name = \"wallet\"\n", "")).clients[0].name,
        "client-key-1"
    );
}
