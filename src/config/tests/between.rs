//! What only shows when parts are seen together.

use std::time::Duration;

use super::super::OnUnknown;
use super::{GOOD, good_but, load, only_error, only_warning, route_with, settings, told};

fn second_client(keys: &str) -> String {
    good_but("[[routes]]", &format!("[[clients]]\n{keys}\n\n[[routes]]"))
}

fn keyed(route: &str, keys: &str) -> String {
    route_with(route, &format!("idempotency = {{ {keys} }}"))
}

#[test]
fn something_of_each_is_needed() {
    let problems = load("[ledger]\nstore = \"memory\"\n").unwrap_err();
    let keys: Vec<&str> = problems
        .iter()
        .map(|problem| problem.key.as_str())
        .collect();
    assert_eq!(
        keys,
        ["upstreams", "clients", "routes"],
        "{}",
        told(&problems)
    );
    assert!(problems.iter().all(|problem| problem.code == "missing"));
}

#[test]
fn names_that_routes_use_must_exist() {
    let problem = only_error(
        &route_with("ipn", "upstream = \"legcy\""),
        "unknown_name",
        "routes.ipn.upstream",
    );
    assert_eq!(problem.help.as_deref(), Some("did you mean \"legacy\"?"));
    let problem = only_error(
        &route_with("ipn", "clients = [\"walet\"]"),
        "unknown_name",
        "routes.ipn.clients[0]",
    );
    assert_eq!(problem.help.as_deref(), Some("did you mean \"wallet\"?"));
    let two = good_but(
        "[[clients]]",
        "[upstreams.b]\nurl = \"http://b\"\n\n[[clients]]",
    );
    let problems = load(&two).unwrap_err();
    assert_eq!(problems.len(), 2, "{}", told(&problems));
    assert!(problems.iter().all(|problem| problem.code == "missing"));
}

#[test]
fn a_broken_part_is_told_once() {
    let text = good_but("http://127.0.0.1:9000", "nonsense");
    only_error(&text, "bad_url", "upstreams.legacy.url");
    let text = good_but("file = \"secret\"", "file = \"absent\"");
    only_error(
        &text,
        "unreadable_secret",
        "clients.wallet.secrets.now.file",
    );
}

#[test]
fn names_and_endpoints_occur_once() {
    only_error(
        &good_but("name = \"refund\"", "name = \"ipn\""),
        "duplicate",
        "routes.ipn.name",
    );
    only_error(
        &good_but("\"/refund\"", "\"/ipn\""),
        "duplicate_route",
        "routes.refund.path",
    );
    settings(&good_but("\"/refund\"", "\"/ipn\"\nmethod = \"PUT\""));
    let secrets = "secrets = [{ name = \"a\", file = \"other\" }]";
    only_error(
        &second_client(&format!("id = \"client-key-1\"\nname = \"b\"\n{secrets}")),
        "duplicate",
        "clients.b.id",
    );
    only_error(
        &second_client(&format!("id = \"x\"\nname = \"wallet\"\n{secrets}")),
        "duplicate",
        "clients.wallet.name",
    );
    // A client without a name goes by its id.
    only_error(
        &second_client(&format!("id = \"wallet\"\n{secrets}")),
        "duplicate",
        "clients[1].id",
    );
}

#[test]
fn play_money_and_real_money_share_no_route() {
    let mixed = second_client(
        "id = \"x\"\nname = \"play\"\nenvironment = \"sandbox\"\nsecrets = [{ name = \"a\", file = \"other\" }]",
    );
    let problems = load(&mixed).unwrap_err();
    assert_eq!(problems.len(), 2, "{}", told(&problems));
    assert!(
        problems
            .iter()
            .all(|problem| problem.code == "mixed_environments")
    );
    let apart = mixed
        .replace("name = \"ipn\"\n", "name = \"ipn\"\nclients = [\"play\"]\n")
        .replace(
            "name = \"refund\"\n",
            "name = \"refund\"\nclients = [\"wallet\"]\n",
        );
    let problem = only_error(&apart, "mixed_environments", "routes.ipn.upstream");
    assert!(problem.help.unwrap().contains("a backend of its own"));
    let apart = apart
        .replace(
            "[[clients]]\nid = \"x\"",
            "[upstreams.play]\nurl = \"http://play\"\n\n[[clients]]\nid = \"x\"",
        )
        .replace("name = \"ipn\"\n", "name = \"ipn\"\nupstream = \"play\"\n")
        .replace(
            "name = \"refund\"\n",
            "name = \"refund\"\nupstream = \"legacy\"\n",
        );
    let apart = settings(&apart);
    assert_eq!(
        (&apart.routes[0].clients[..], &apart.routes[1].clients[..]),
        (&[1][..], &[0][..])
    );
}

#[test]
fn one_secret_must_not_sign_for_two_readings() {
    let shared = |id: &str, file: &str| {
        second_client(&format!(
            "id = \"{id}\"\nsecrets = [{{ name = \"a\", file = \"{file}\" }}]"
        ))
    };
    let problem = only_error(
        &shared("client-key-1.b", "secret"),
        "ambiguous_clients",
        "clients[1].secrets.a.file",
    );
    assert!(problem.message.contains("`client-key-1.b`"));
    settings(&shared("client-key-1.b", "other"));
    settings(&shared("client-key-1b", "secret"));
}

#[test]
fn refunds_are_not_kept_in_memory_by_accident() {
    let text = good_but("allow_volatile = true\n", "");
    let problem = only_error(&text, "volatile_hold", "routes.refund.idempotency");
    let line = text
        .lines()
        .position(|line| line == "name = \"refund\"")
        .unwrap();
    assert_eq!(problem.line, Some(line), "the line of its [[routes]]");
    let text = text.replace(
        "payload = \"refund\"",
        "payload = \"refund\"\nidempotency = { on_unknown = \"hold\" }",
    );
    only_error(
        &text,
        "volatile_hold",
        "routes.refund.idempotency.on_unknown",
    );
    // Nor those that are sent again: what was done is forgotten too.
    let resent = text.replace("\"hold\"", "\"resend\"");
    let problems = load(&resent).unwrap_err();
    let told: Vec<_> = problems.iter().map(|one| (one.code, &*one.key)).collect();
    let key = "routes.refund.idempotency.on_unknown";
    assert_eq!(told, [("refund_resend", key), ("volatile_hold", key)]);
    assert!(problems[1].message.contains("were done"));
    // An IPN that comes again moves nothing.
    let ipns = text.replace("payload = \"refund\"", "payload = \"transaction_ipn\"");
    settings(&ipns.replace("\"hold\"", "\"resend\""));
}

#[test]
fn records_outlast_tikis_last_resend() {
    let key = "routes.refund.idempotency.keep";
    // 5m of window and 43h36m of re-sends.
    let problem = only_error(&keyed("refund", "keep = \"43h40m59s\""), "short_keep", key);
    assert!(problem.help.unwrap().contains("1d19h41m"));
    settings(&keyed("refund", "keep = \"43h41m\""));
    // With room for the signatures of so long.
    let long = |keep: &str| {
        keyed(
            "refund",
            &format!("keep = \"{keep}\", resend_age = \"44h\""),
        )
        .replace(
            "[upstreams",
            "[signature]\nmax_remembered = 100000000\n[upstreams",
        )
    };
    only_error(&long("87h35m"), "short_keep", key);
    settings(&long("87h36m"));
    only_error(
        &keyed("refund", "resend_age = \"44h1ms\""),
        "out_of_bounds",
        "routes.refund.idempotency.resend_age",
    );
    only_error(&keyed("refund", "keep = \"3650d1s\""), "bad_duration", key);
}

#[test]
fn the_window_of_a_family_that_is_refused_does_not_count() {
    let text = keyed("refund", "keep = \"43h37m\"").replace(
        "[upstreams",
        "[signature]\nmax_age = { tiniapp = \"1m\" }\n[upstreams",
    );
    only_error(&text, "short_keep", "routes.refund.idempotency.keep");
    settings(&text.replace("[signature]\n", "[signature]\nfamilies = [\"tiniapp\"]\n"));
}

#[test]
fn a_refund_that_is_sent_again_is_warned_about_loudly() {
    let text = keyed("refund", "on_unknown = \"resend\"");
    let problem = only_warning(
        &text,
        "refund_resend",
        "routes.refund.idempotency.on_unknown",
    );
    assert!(problem.message.contains("TWICE") || problem.message.contains("twice"));
    let read = load(&text).unwrap().settings;
    assert_eq!(
        read.routes[1].idempotency.as_ref().unwrap().on_unknown,
        OnUnknown::Resend
    );
}

#[test]
fn a_namespace_has_one_definition() {
    let other = "namespace = \"refund\", key = [\"/a\"], fingerprint = [\"/b\"]";
    let third = |table: &str| {
        format!(
            "{GOOD}[[routes]]\nname = \"third\"\npath = \"/third\"\npayload = \"any\"\nidempotency = {{ {table} }}\n"
        )
    };
    let problem = only_error(
        &third(other),
        "namespace_definitions",
        "routes.third.idempotency.namespace",
    );
    assert!(problem.line.is_some());
    settings(&third(
        "namespace = \"third\", key = [\"/a\"], fingerprint = [\"/b\"]",
    ));
    // Two routes of one payload share their payload's namespace.
    settings(&format!(
        "{GOOD}[[routes]]\nname = \"third\"\npath = \"/third\"\npayload = \"refund\"\n"
    ));
}

#[test]
fn what_a_table_leaves_out_is_the_payloads_own() {
    let read = settings(&keyed("refund", "keep = \"500d\""));
    let refund = read.routes[1].idempotency.clone().unwrap();
    assert_eq!(refund.namespace, "refund");
    assert_eq!(refund.on_unknown, OnUnknown::Hold);
    assert_eq!(refund.keep, Duration::from_secs(500 * 86_400));
    // A key without a fingerprint takes the payload's, where pointers can say it.
    settings(&keyed("ipn", "key = [\"/id\"]"));
    settings(&keyed("ipn", "fingerprint = [\"/order/id\"]"));
    let transaction = keyed("ipn", "key = [\"/id\"]").replace("order_ipn", "transaction_ipn");
    only_error(
        &transaction,
        "missing",
        "routes.ipn.idempotency.fingerprint",
    );
}

#[test]
fn a_payload_that_is_not_known_needs_its_key_and_fingerprint() {
    let any = |text: &str| text.replace("order_ipn", "any");
    assert!(settings(&any(GOOD)).routes[0].idempotency.is_none());
    only_error(
        &any(&keyed("ipn", "namespace = \"a\", key = [\"/a\"]")),
        "missing",
        "routes.ipn.idempotency.fingerprint",
    );
    // And a namespace: two such routes don't answer for each other unasked.
    let problem = only_error(
        &any(&keyed("ipn", "key = [\"/a\"], fingerprint = [\"/b\"]")),
        "missing",
        "routes.ipn.idempotency.namespace",
    );
    assert!(problem.message.contains("answer for each other"));
    let read = settings(&any(&keyed(
        "ipn",
        "namespace = \"topup\", key = [\"/a\"], fingerprint = [\"/b\"]",
    )));
    let any_key = read.routes[0].idempotency.as_ref().unwrap();
    assert_eq!(
        (any_key.namespace.as_str(), any_key.on_unknown),
        ("topup", OnUnknown::Hold)
    );
    for (keys, code, key) in [
        ("key = [], fingerprint = [\"/b\"]", "out_of_bounds", "key"),
        (
            "key = [\"a\"], fingerprint = [\"/b\"]",
            "bad_pointer",
            "key[0]",
        ),
        (
            "key = [\"/a\", \"/a\"], fingerprint = [\"/b\"]",
            "duplicate",
            "key[1]",
        ),
        ("namespace = \"a b\"", "bad_name", "namespace"),
        ("on_unknown = \"retry\"", "unknown_word", "on_unknown"),
    ] {
        let text = keyed("ipn", keys);
        only_error(&text, code, &format!("routes.ipn.idempotency.{key}"));
    }
}

#[test]
fn a_header_comes_from_one_side_only() {
    let text = route_with("ipn", "forward_headers = [\"x-gate\"]").replace(
        "[upstreams.legacy]\n",
        "[upstreams.legacy]\nset_headers = { X-Gate = \"1\" }\n",
    );
    only_error(&text, "header_twice", "routes.ipn.forward_headers[0]");
}

#[test]
fn odd_but_usable_settings_are_warned_about() {
    let text = good_but("listen = \"127.0.0.1:8080\"", "drain_within = \"59s\"");
    only_warning(&text, "short_drain", "server.drain_within");
    let open = format!("{GOOD}[admin]\nlisten = \"0.0.0.0:9901\"\n");
    only_warning(&open, "admin_without_tokens", "admin.listen");
    settings(&format!(
        "{open}tokens = [{{ name = \"linh\", file = \"secret\" }}]\n"
    ));
    settings(&format!("{GOOD}[admin]\nlisten = \"[::1]:9901\"\n"));
    only_error(
        &format!("{GOOD}[admin]\nlisten = \"127.0.0.1:8080\"\n"),
        "same_address",
        "admin.listen",
    );
    let unused = good_but(
        "[[clients]]",
        "[upstreams.b]\nurl = \"http://b\"\n\n[[clients]]",
    )
    .replace("payload", "upstream = \"legacy\"\npayload");
    only_warning(&unused, "unused", "upstreams.b");
    let idle = second_client(
        "id = \"x\"\nname = \"idle\"\nsecrets = [{ name = \"a\", file = \"other\" }]",
    )
    .replace("payload", "clients = [\"wallet\"]\npayload");
    only_warning(&idle, "unused", "clients.idle");
    only_warning(
        &route_with("ipn", "clients = []"),
        "no_client",
        "routes.ipn.clients",
    );
}

#[test]
fn an_expired_secret_counts_for_nothing() {
    let expiring = |end: &str| {
        good_but(
            "{ name = \"now\", file = \"secret\" }",
            &format!(
                "{{ name = \"now\", file = \"secret\" }}, {{ name = \"old\", file = \"other\", not_after = {end} }}"
            ),
        )
    };
    let key = "clients.wallet.secrets.old.not_after";
    only_warning(&expiring("\"2026-10-31T23:59:59Z\""), "expired", key);
    only_warning(&expiring("2026-11-01T07:00:00+07:00"), "expired", key);
    let read = settings(&expiring("2026-11-01T00:00:01Z"));
    assert_eq!(
        read.clients[0].secrets[1].not_after,
        Some(super::now() + Duration::from_secs(1))
    );
    only_error(&expiring("\"2026-12-31\""), "bad_time", key);
    only_error(&expiring("2026-12-31T00:00:00"), "bad_time", key);
    only_error(&expiring("5"), "wrong_type", key);
    let all_expired = good_but(
        "file = \"secret\"",
        "file = \"secret\", not_after = \"2020-01-01T00:00:00Z\"",
    );
    let codes: Vec<_> = load(&all_expired)
        .unwrap()
        .warnings
        .iter()
        .map(|p| p.code)
        .collect();
    assert_eq!(codes, ["expired", "no_client", "no_client"]);
}
