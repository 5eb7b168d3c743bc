//! What is read without fault and would yet let a call through twice, or to where it doesn't belong.

use super::{GOOD, good_but, load, only_error, only_warning, route_with, settings, told};

fn keyed(route: &str, keys: &str) -> String {
    route_with(route, &format!("idempotency = {{ {keys} }}"))
}

/// A route added at the end, of payload `any`.
fn third(keys: &str) -> String {
    format!("{GOOD}[[routes]]\nname = \"third\"\npath = \"/third\"\npayload = \"any\"\n{keys}\n")
}

#[test]
fn an_answer_that_says_nothing_releases_no_held_call_unnoticed() {
    for status in [302, 500, 503, 599] {
        let text = route_with("refund", &format!("retry_statuses = [404, {status}]"));
        let problem = only_warning(&text, "unclear_retry", "routes.refund.retry_statuses[1]");
        assert!(problem.message.contains(&status.to_string()));
        assert!(problem.help.unwrap().contains("failed_when"));
    }
    settings(&route_with("refund", "retry_statuses = [401, 404, 429]"));
    // Where nothing is held, nothing is released; and without a key neither.
    settings(&route_with("ipn", "retry_statuses = [503]"));
    settings(&third("retry_statuses = [503]"));
    let held = route_with(
        "ipn",
        "retry_statuses = [503]\nidempotency = { on_unknown = \"hold\" }",
    );
    only_warning(&held, "unclear_retry", "routes.ipn.retry_statuses[0]");
}

#[test]
fn the_memory_of_signatures_holds_what_the_clients_may_send() {
    // 100 calls a second for three hours are 1080000, and 1000000 is the default.
    let key = "routes.refund.idempotency.resend_age";
    let long = keyed("refund", "resend_age = \"3h\"");
    let problem = only_warning(&long, "signature_memory", key);
    let help = problem.help.unwrap();
    assert!(help.contains("at 92 calls a second"), "{help}");
    assert!(help.contains("max_remembered = 1080000"), "{help}");
    let remember = |count: u64| {
        long.replace(
            "[upstreams",
            &format!("[signature]\nmax_remembered = {count}\n[upstreams"),
        )
    };
    settings(&remember(1_080_000));
    only_warning(&remember(1_079_999), "signature_memory", key);
    let none = only_warning(&remember(100), "signature_memory", key);
    assert!(none.help.unwrap().contains("at less than 1 call a second"));

    // What all clients may send counts.
    let slow = long.replace(
        "name = \"wallet\"\n",
        "name = \"wallet\"\nrate = { per_second = 92 }\n",
    );
    settings(&slow);
    let two = slow.replace(
        "[[routes]]\nname = \"ipn\"",
        "[[clients]]\nid = \"x\"\nsecrets = [{ name = \"a\", file = \"other\" }]\nrate = { per_second = 1 }\n\n[[routes]]\nname = \"ipn\"",
    );
    only_warning(&two, "signature_memory", key);

    // The longest counts, and only what lengthens another route's memory.
    let both = long.replace(
        "name = \"ipn\"\n",
        "name = \"ipn\"\nidempotency = { resend_age = \"4h\" }\n",
    );
    only_warning(
        &both,
        "signature_memory",
        "routes.ipn.idempotency.resend_age",
    );
    let ipn = "[[routes]]\nname = \"ipn\"\npath = \"/ipn\"\npayload = \"order_ipn\"\n";
    assert!(long.contains(ipn));
    settings(&long.replace(ipn, ""));
    settings(&keyed("refund", "resend_age = \"2h46m\""));
}

#[test]
fn a_refund_is_told_by_what_tiki_tells_it_by() {
    let problem = only_warning(
        &keyed("refund", "key = [\"/transaction_id\"]"),
        "refund_key",
        "routes.refund.idempotency.key",
    );
    assert!(problem.help.unwrap().contains("request_id"));
    only_warning(
        &keyed("refund", "fingerprint = [\"/transaction_amount\"]"),
        "refund_key",
        "routes.refund.idempotency.fingerprint",
    );
    // The same, written out.
    settings(&keyed(
        "refund",
        "key = [\"/request_id\"], fingerprint = [\"/tiki_transaction_id\", \"/transaction_id\", \"/transaction_amount\"]",
    ));
}

#[test]
fn each_admin_token_has_one_holder() {
    let tokens = |second: &str| {
        format!(
            "{GOOD}[admin]\ntokens = [{{ name = \"linh\", file = \"secret\" }}, {{ name = \"minh\", file = \"{second}\" }}]\n"
        )
    };
    let problem = only_error(&tokens("secret"), "same_secret", "admin.tokens.minh.file");
    assert!(problem.message.contains("`linh`"), "{problem}");
    settings(&tokens("other"));
}

#[test]
fn two_routes_do_not_read_one_signed_path() {
    let get = |name: &str, keys: &str| {
        format!(
            "[[routes]]\nname = \"{name}\"\npath = \"/{name}/status\"\nmethod = \"GET\"\npayload = \"any\"\n{keys}\n"
        )
    };
    let strip = |name: &str| get(name, &format!("signed_path = {{ strip = \"/{name}\" }}"));
    let both = format!("{GOOD}{}{}", strip("a"), strip("b"));
    let problem = only_error(&both, "same_signed_path", "routes.b.signed_path");
    assert!(problem.message.contains("`/status`"), "{problem}");
    // As well where one is read as it is.
    let plain = format!(
        "{GOOD}{}{}",
        get("a", "signed_path = { strip = \"/a\", add = \"/b\" }"),
        get("b", "")
    );
    only_error(&plain, "same_signed_path", "routes.b.signed_path");

    settings(&format!("{GOOD}{}{}", strip("a"), get("b", "")));
    let other = "[[clients]]\nid = \"x\"\nname = \"other\"\nsecrets = [{ name = \"a\", file = \"other\" }]\n\n[[routes]]\nname = \"ipn\"";
    let apart = both
        .replacen("[[routes]]\nname = \"ipn\"", other, 1)
        .replace(
            "name = \"a\"\npath",
            "name = \"a\"\nclients = [\"wallet\"]\npath",
        )
        .replace(
            "name = \"b\"\npath",
            "name = \"b\"\nclients = [\"other\"]\npath",
        );
    settings(&apart);
    // One path on the wire is told once.
    let same = format!(
        "{GOOD}{}{}",
        strip("a"),
        strip("a").replacen("\"a\"", "\"c\"", 1)
    );
    only_error(&same, "duplicate_route", "routes.c.path");
    // A POST's path isn't signed.
    settings(
        &both
            .replace("\"GET\"", "\"POST\"")
            .replace("signed_path = {", "#"),
    );
}

#[test]
fn play_money_reaches_no_backend_of_real_money() {
    let play = good_but(
        "[[routes]]\nname = \"ipn\"\n",
        "[[clients]]\nid = \"x\"\nname = \"play\"\nenvironment = \"sandbox\"\nsecrets = [{ name = \"a\", file = \"other\" }]\n\n[[routes]]\nname = \"ipn\"\nclients = [\"play\"]\n",
    )
    .replace("name = \"refund\"\n", "name = \"refund\"\nclients = [\"wallet\"]\n");
    let more = format!(
        "{play}[[routes]]\nname = \"third\"\npath = \"/third\"\npayload = \"any\"\nclients = [\"play\"]\n"
    );
    let problems = load(&more).unwrap_err();
    let keys: Vec<_> = problems.iter().map(|one| (one.code, &*one.key)).collect();
    assert_eq!(
        keys,
        [
            ("mixed_environments", "routes.ipn.upstream"),
            ("mixed_environments", "routes.third.upstream")
        ],
        "{}",
        told(&problems)
    );
    // A gate for the sandbox alone is fine.
    settings(&play.replace(
        "name = \"wallet\"\n",
        "name = \"wallet\"\nenvironment = \"sandbox\"\n",
    ));
}
