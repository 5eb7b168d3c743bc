//! Each part by itself: defaults, types, bounds.

use std::time::Duration;

use http::{Method, StatusCode};

use super::super::{
    AnswerSource, Environment, OnUnknown, PossibleDuplicate, Rate, Settings, StaleEvents, Store,
    effective,
};
use super::{GOOD, good_but, only_error, only_warning, route_with, settings, table_with};
use crate::net::{AddressHeader, ListenAddress, TrustedProxies};
use crate::tiki::Family;

#[test]
fn the_defaults_are_the_documented_ones() {
    let Settings {
        server,
        admin,
        upstreams,
        signature,
        clients,
        routes,
        ledger,
        outbound,
        tracing,
        log,
        certificates,
    } = settings(&good_but("listen = \"127.0.0.1:8080\"", ""));
    assert!(outbound.is_none() && tracing.is_none());
    assert_eq!(certificates, []);
    assert_eq!(server.min_body_rate, 256);
    assert_eq!(server.max_connection_age, Duration::from_secs(3600));
    assert!(!server.proxy_protocol && server.tls.is_none() && server.addresses.let_all_in());
    assert_eq!(server.trusted_proxies, TrustedProxies::default());
    assert!(admin.addresses.let_all_in());
    assert!(upstreams[0].breaker.enabled && upstreams[0].health.is_none());
    assert_eq!(server.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(server.max_connections, 10_000);
    assert_eq!(server.max_in_flight, 1024);
    assert_eq!(server.header_timeout, Duration::from_secs(5));
    assert_eq!(server.body_timeout, Duration::from_secs(10));
    assert_eq!(server.idle_timeout, Duration::from_secs(75));
    assert_eq!(server.write_timeout, Duration::from_secs(10));
    assert_eq!(server.head_limit, 16_384);
    assert_eq!(server.max_headers, 64);
    let usual = |per_second, burst| Rate { per_second, burst };
    assert_eq!(server.per_address, usual(200, 400));
    assert_eq!(server.drain_delay, Duration::from_secs(2));
    assert_eq!(server.drain_within, Duration::from_secs(75));
    assert!(server.workers >= 1);
    assert_eq!(admin.listen.to_string(), "127.0.0.1:9901");
    let legacy = &upstreams[0];
    assert_eq!(legacy.connect_timeout, Duration::from_secs(1));
    assert_eq!(legacy.answer_within, Duration::from_secs(13));
    assert_eq!(legacy.settle_within, Duration::from_secs(60));
    assert_eq!(legacy.max_in_flight, 64);
    assert_eq!(legacy.host, "127.0.0.1:9000");
    assert_eq!(signature.families, Family::ALL);
    assert_eq!(signature.refuse_with, StatusCode::UNAUTHORIZED);
    assert_eq!(signature.max_remembered, 1_000_000);
    assert_eq!(clients[0].environment, Environment::Production);
    assert_eq!(clients[0].rate, usual(100, 200));
    let refund = &routes[1];
    assert_eq!(refund.method, Method::POST);
    assert_eq!(refund.upstream_path, "/refund");
    assert_eq!(refund.clients, [0]);
    assert_eq!(refund.body_limit, 65_536);
    assert_eq!(refund.answer, AnswerSource::Backend);
    assert_eq!(refund.answer_limit, 65_536);
    let final_statuses = refund.outcome.final_statuses.iter();
    let final_statuses: Vec<u16> = final_statuses.map(|status| status.as_u16()).collect();
    assert_eq!(final_statuses, [400, 409, 410, 422]);
    assert_eq!(refund.outcome.retry_statuses.len(), 9);
    for window in refund.windows {
        assert_eq!(window.max_age, Duration::from_secs(300));
        assert_eq!(window.max_ahead, Duration::from_secs(60));
    }
    let hold = refund.idempotency.as_ref().unwrap();
    assert_eq!(
        (hold.namespace.as_str(), hold.on_unknown),
        ("refund", OnUnknown::Hold)
    );
    assert_eq!(hold.keep, Duration::from_secs(400 * 86_400));
    assert_eq!(hold.resend_age, Duration::ZERO);
    assert_eq!(hold.possible_duplicate, PossibleDuplicate::Mark);
    assert_eq!(hold.duplicate_window, Duration::from_secs(86_400));
    assert_eq!(hold.probe, None);
    let resend = routes[0].idempotency.as_ref().unwrap();
    assert_eq!(resend.on_unknown, OnUnknown::Resend);
    assert_eq!(resend.stale_events, StaleEvents::Mark);
    let Store::Memory {
        max_records,
        max_bytes,
    } = ledger.store
    else {
        panic!("the text says memory")
    };
    assert_eq!((max_records, max_bytes), (1_000_000, 512 << 20));
    assert_eq!(ledger.time_zone, "Asia/Ho_Chi_Minh");
    assert_eq!(log.level, tracing::level_filters::LevelFilter::INFO);
}

#[test]
fn an_unknown_key_is_told_with_its_line_and_the_nearest_name() {
    let problem = only_error(
        &table_with("[server]", "max_conections = 5"),
        "unknown_key",
        "server.max_conections",
    );
    assert_eq!((problem.line, problem.column), (Some(3), Some(1)));
    assert_eq!(
        problem.help.as_deref(),
        Some("did you mean `max_connections`?")
    );
    let problem = only_error(
        &route_with("ipn", "zzz = 1"),
        "unknown_key",
        "routes.ipn.zzz",
    );
    assert!(problem.help.unwrap().contains("upstream_path"));
    let problem = only_error(&format!("{GOOD}[loge]\n"), "unknown_key", "loge");
    assert_eq!(problem.help.as_deref(), Some("did you mean `log`?"));
    // A name can't play tricks on the terminal.
    only_error(
        &table_with("[server]", "\"a\\u001b[2J\" = 1"),
        "unknown_key",
        "server.\"a\\u{1b}[2J\"",
    );
}

#[test]
fn types_and_bounds_are_checked() {
    for (key, code) in [
        ("max_connections = \"many\"", "wrong_type"),
        ("max_connections = 0", "out_of_bounds"),
        ("max_connections = -1", "out_of_bounds"),
        ("max_connections = 99999999999999999999", "out_of_bounds"),
        ("max_in_flight = 1.5", "wrong_type"),
        ("max_headers = 15", "out_of_bounds"),
        ("workers = 0", "out_of_bounds"),
        ("header_timeout = 5", "bad_duration"),
        ("body_timeout = \"0s\"", "out_of_bounds"),
        ("idle_timeout = \"1 s\"", "bad_duration"),
        ("idle_timeout = \"61m\"", "out_of_bounds"),
        ("write_timeout = \"6m\"", "out_of_bounds"),
        ("drain_delay = \"6m\"", "out_of_bounds"),
        ("drain_within = \"2h\"", "out_of_bounds"),
        ("head_limit = \"8KB\"", "bad_size"),
        ("head_limit = 8191", "out_of_bounds"),
        ("proxy_protocol = \"no\"", "wrong_type"),
        ("trusted_proxies = \"10.0.0.0/8\"", "wrong_type"),
        ("per_address = 5", "wrong_type"),
    ] {
        let name = key.split(' ').next().unwrap();
        only_error(
            &table_with("[server]", key),
            code,
            &format!("server.{name}"),
        );
    }
    only_error(
        &good_but("\"127.0.0.1:8080\"", "\"localhost:8080\""),
        "bad_address",
        "server.listen",
    );
}

#[test]
fn a_limit_of_nothing_is_refused() {
    for (rate, key) in [
        (
            "{ per_second = 0, burst = 5 }",
            "server.per_address.per_second",
        ),
        ("{ per_second = 5, burst = 0 }", "server.per_address.burst"),
    ] {
        let text = table_with("[server]", &format!("per_address = {rate}"));
        only_error(&text, "out_of_bounds", key);
    }
    only_error(
        &table_with("[server]", "per_address = { burst = 5 }"),
        "missing",
        "server.per_address.per_second",
    );
    let text = good_but(
        "name = \"wallet\"",
        "name = \"wallet\"\nrate = { per_second = 7 }",
    );
    assert_eq!(
        settings(&text).clients[0].rate,
        Rate {
            per_second: 7,
            burst: 14
        }
    );
    let text = good_but(
        "name = \"wallet\"",
        "name = \"wallet\"\nrate = { per_second = 0 }",
    );
    only_error(&text, "out_of_bounds", "clients.wallet.rate.per_second");
}

#[test]
fn trusted_proxies_are_networks_addresses_and_a_word() {
    let text = table_with(
        "[server]",
        "trusted_proxies = [\"10.0.0.0/8\", \"192.0.2.7\", \"fd00::/8\", \"unix\"]",
    );
    let proxies = settings(&text).server.trusted_proxies.networks;
    let networks: Vec<String> = proxies.networks.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]);
    assert!(proxies.unix);
    let text = table_with("[server]", "trusted_proxies = [\"proxy.internal\"]");
    only_error(&text, "bad_address", "server.trusted_proxies[0]");
    let text = table_with("[server]", "trusted_proxies = [\"0.0.0.0/0\"]");
    only_warning(&text, "trusts_everybody", "server.trusted_proxies[0]");
    let text = table_with("[server]", "address_header = \"forwarded\"");
    let proxies = settings(&text).server.trusted_proxies;
    assert_eq!(proxies.header, AddressHeader::Forwarded);
    let text = table_with("[server]", "address_header = \"x-real-ip\"");
    only_error(&text, "unknown_word", "server.address_header");
    let text = table_with("[server]", "proxy_protocol = true");
    only_error(&text, "nobody_trusted", "server.proxy_protocol");
    let text = table_with(
        "[server]",
        "proxy_protocol = true\ntrusted_proxies = [\"10.0.0.0/8\"]",
    );
    assert!(settings(&text).server.proxy_protocol);
}

#[test]
fn address_lists_are_read_for_each_listener_and_route() {
    let lists = "allow = [\"10.0.0.0/8\", \"unix\"]\ndeny = [\"10.0.0.7\"]";
    let server = settings(&table_with("[server]", lists)).server.addresses;
    let admin = settings(&format!("{GOOD}[admin]\n{lists}\n"))
        .admin
        .addresses;
    let routes = settings(&route_with("ipn", lists)).routes;
    for rules in [&server, &admin, &routes[0].addresses] {
        assert!(rules.allow.unix && !rules.deny.unix);
        assert_eq!(rules.allow.networks.len(), 1);
        assert_eq!(rules.deny.networks[0].to_string(), "10.0.0.7/32");
    }
    assert!(routes[1].addresses.let_all_in());
    for key in ["allow", "deny"] {
        let text = table_with("[server]", &format!("{key} = [\"tiki.vn\"]"));
        only_error(&text, "bad_address", &format!("server.{key}[0]"));
    }
    let text = table_with("[server]", "deny = [\"0.0.0.0/0\"]");
    only_warning(&text, "denies_everybody", "server.deny[0]");
    settings(&table_with("[server]", "allow = [\"0.0.0.0/0\"]"));
}

#[test]
fn the_admin_listener_is_read() {
    let admin = |keys: &str| format!("{GOOD}[admin]\n{keys}\n");
    let read = settings(&admin(
        "listen = \"unix:/run/admin.sock\"\nhosts = [\"Gate.internal\"]",
    ))
    .admin;
    assert_eq!(read.listen, ListenAddress::Unix("/run/admin.sock".into()));
    assert_eq!(read.hosts, ["gate.internal"]);
    only_error(
        &admin("hosts = [\"http://a\"]"),
        "bad_host",
        "admin.hosts[0]",
    );
    let twice =
        "tokens = [{ name = \"linh\", file = \"secret\" }, { name = \"linh\", file = \"other\" }]";
    only_error(&admin(twice), "duplicate", "admin.tokens.linh.name");
    let ending =
        "tokens = [{ name = \"linh\", file = \"secret\", not_after = 2030-01-01T00:00:00Z }]";
    only_error(
        &admin(ending),
        "not_available",
        "admin.tokens.linh.not_after",
    );
}

#[test]
fn the_time_zone_and_the_log_are_checked() {
    let text = table_with("[ledger]", "time_zone = \"Mars/Olympus\"");
    let problems = match super::load(&text) {
        Ok(loaded) => loaded.warnings,
        Err(problems) => problems,
    };
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].key, "ledger.time_zone");
    only_error(
        &format!("{GOOD}[log]\nlevel = \"loud\""),
        "unknown_word",
        "log.level",
    );
    only_error(
        &format!("{GOOD}[log]\nformat = \"xml\""),
        "unknown_word",
        "log.format",
    );
    only_error(
        &table_with("[ledger]", "max_records = 0"),
        "out_of_bounds",
        "ledger.max_records",
    );
    only_error(
        &table_with("[ledger]", "max_bytes = 1"),
        "out_of_bounds",
        "ledger.max_bytes",
    );
}

#[test]
fn the_effective_settings_use_the_configurations_words() {
    let shown = effective(&settings(GOOD));
    assert_eq!(shown["server"]["listen"], "127.0.0.1:8080");
    assert_eq!(shown["upstreams"]["legacy"]["answer_within"], "13s");
    assert_eq!(shown["routes"][1]["idempotency"]["on_unknown"], "hold");
    assert_eq!(shown["routes"][1]["max_age"]["tiniapp"], "5m");
    assert_eq!(shown["ledger"]["max_bytes"], "512MiB");
}
