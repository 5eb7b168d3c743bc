//! `[outbound]` and `routes.confirm`.

use std::fs;
use std::time::Duration;

use super::super::settings::{Delivery, Endpoint, Outbound, Rate};
use super::{GOOD, SECRET, directory, good_but, load, load_in, only_error, settings, told, write};
use crate::config::effective;
use crate::net::ListenAddress;
use crate::tiki::Family;

/// [`GOOD`] with `[outbound]`, these keys in it, and one account with these.
fn with(keys: &str, account: &str) -> String {
    format!("{GOOD}[outbound]\n{keys}\n[[outbound.accounts]]\n{account}\n")
}

const LOCAL: &str = "client = \"wallet\"\nbase_url = \"http://127.0.0.1:9100/v1/\"";

fn outbound(text: &str) -> Outbound {
    let settings = settings(text);
    Outbound::clone(settings.outbound.as_ref().unwrap())
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let read = outbound(&with("", LOCAL));
    assert_eq!(read.listen.to_string(), "127.0.0.1:8090");
    assert!(read.token.is_none() && read.paths.is_none() && read.outbox.notify.is_none());
    assert_eq!(read.delivery, Delivery::Outbox);
    assert_eq!((read.body_limit, read.answer_limit), (64 << 10, 1 << 20));
    assert_eq!((read.max_in_flight, read.outbox.max_deliveries), (256, 16));
    assert_eq!(read.timeout, Duration::from_secs(15));
    let outbox = &read.outbox;
    assert_eq!(
        [
            outbox.retry_after,
            outbox.longest_pause,
            outbox.give_up_after,
            outbox.keep
        ],
        [1, 3600, 48 * 3600, 30 * 86_400].map(Duration::from_secs)
    );
    assert_eq!(outbox.max_bytes, 256 << 20);
    let usual = Rate {
        per_second: 50,
        burst: 100,
    };
    assert_eq!((outbox.rate, read.confirm.rate), (usual, usual));
    assert_eq!(read.confirm.within, Duration::from_secs(4));
    let account = &read.accounts[0];
    assert_eq!((account.client, account.family), (0, Family::TikiVip));
    assert_eq!(account.base_url, "http://127.0.0.1:9100/v1");
    assert_eq!(account.base_path, "/v1");
    assert_eq!(account.upstream.host, "127.0.0.1:9100");
    assert_eq!(account.upstream.connect_timeout, Duration::from_secs(5));
}

#[test]
fn the_environment_says_which_tiki() {
    for (environment, base_url) in [
        ("production", "https://api.tiki.vn/miniapp/tikivip"),
        ("sandbox", "https://api.tala.xyz/miniapp/tikivip"),
    ] {
        let text = good_but(
            "name = \"wallet\"",
            &format!("name = \"wallet\"\nenvironment = \"{environment}\""),
        );
        let text = format!("{text}[outbound]\n[[outbound.accounts]]\nclient = \"wallet\"\n");
        let read = outbound(&text);
        assert_eq!(read.accounts[0].base_url, base_url);
        assert!(matches!(
            &read.accounts[0].upstream.endpoints[0],
            Endpoint::Tls { port: 443, .. }
        ));
    }
    only_error(
        &with("", "client = \"wallet\"\nenvironment = \"sandbox\""),
        "mixed_environments",
        "outbound.accounts[0].environment",
    );
}

#[test]
fn plain_http_is_for_this_machine_and_a_url_is_one() {
    let account = |url: &str| with("", &format!("client = \"wallet\"\nbase_url = \"{url}\""));
    for good in [
        "http://[::1]:9/x",
        "http://127.9.9.9",
        "https://tiki.example:8443/a/b/",
    ] {
        outbound(&account(good));
    }
    for (url, code) in [
        ("http://tiki.example/", "plain_http"),
        ("http://localhost/", "plain_http"),
        ("http://10.0.0.1/", "plain_http"),
        ("ftp://tiki.example/", "bad_url"),
        ("tiki.example", "bad_url"),
        ("https://user:pass@tiki.example/", "bad_url"),
        ("https://tiki.example:0/", "bad_url"),
        ("https://tiki.example/a?x=1", "bad_url"),
        ("https://tiki.example/a/../b", "bad_path"),
        ("https://tiki.example/a#b", "bad_path"),
        ("https://tiki.example/đ", "bad_path"),
    ] {
        let problem = only_error(&account(url), code, "outbound.accounts[0].base_url");
        assert!(!problem.message.contains("pass"), "{problem}");
    }
}

#[test]
fn who_could_reach_the_signer_shows_a_token() {
    for open in ["0.0.0.0:8090", "[::]:8090", "192.0.2.1:8090"] {
        let listen = format!("listen = \"{open}\"");
        only_error(&with(&listen, LOCAL), "open_signer", "outbound.listen");
        let read = outbound(&with(
            &format!("{listen}\ntoken = {{ file = \"secret\" }}"),
            LOCAL,
        ));
        assert!(read.token.is_some());
        assert!(!format!("{read:?}").contains(SECRET));
    }
    for local in ["[::1]:1", "127.0.0.2:1", "unix:out.sock"] {
        outbound(&with(&format!("listen = \"{local}\""), LOCAL));
    }
    let read = outbound(&with("listen = \"unix:/run/out.sock\"", LOCAL));
    assert_eq!(read.listen, ListenAddress::Unix("/run/out.sock".into()));
    only_error(
        &with("token = \"abc\"", LOCAL),
        "inline_secret",
        "outbound.token",
    );
    only_error(
        &with("listen = \"127.0.0.1:8080\"", LOCAL),
        "same_address",
        "outbound.listen",
    );
    only_error(
        &with("listen = \"127.0.0.1:9901\"", LOCAL),
        "same_address",
        "outbound.listen",
    );
}

#[test]
fn accounts_are_clients_and_each_once() {
    only_error(
        &format!("{GOOD}[outbound]\n"),
        "missing",
        "outbound.accounts",
    );
    only_error(
        &with("", "client = \"walet\""),
        "unknown_name",
        "outbound.accounts[0].client",
    );
    only_error(
        &with("", "environment = \"production\""),
        "missing",
        "outbound.accounts[0].client",
    );
    let twice = format!("{}[[outbound.accounts]]\n{LOCAL}\n", with("", LOCAL));
    only_error(&twice, "duplicate", "outbound.accounts[1]");
    only_error(
        &with("", &format!("{LOCAL}\nfamily = \"tiki\"")),
        "unknown_word",
        "outbound.accounts[0].family",
    );
}

#[test]
fn an_outbox_needs_a_ledger_that_lasts() {
    let text = with("", LOCAL).replace("allow_volatile = true", "");
    let problems = load(&text).err().unwrap();
    assert!(
        problems
            .iter()
            .any(|problem| problem.code == "volatile_outbox"),
        "{}",
        told(&problems)
    );
    let direct = with("delivery = \"direct\"", LOCAL).replace("allow_volatile = true", "");
    let problems = load(&direct).err().unwrap();
    assert!(
        problems
            .iter()
            .all(|problem| problem.code != "volatile_outbox"),
        "{}",
        told(&problems)
    );
}

#[test]
fn bounds_hold_for_outbound_keys() {
    for (keys, key) in [
        ("body_limit = \"0B\"", "body_limit"),
        ("answer_limit = \"17MiB\"", "answer_limit"),
        ("max_in_flight = 0", "max_in_flight"),
        ("connect_timeout = \"0s\"", "connect_timeout"),
        ("timeout = \"61s\"", "timeout"),
        ("retry_after = \"0s\"", "retry_after"),
        ("longest_pause = \"25h\"", "longest_pause"),
        ("give_up_after = \"31d\"", "give_up_after"),
        ("max_bytes = \"1KiB\"", "max_bytes"),
        ("keep = \"47h\"", "keep"),
        ("max_deliveries = 1025", "max_deliveries"),
        ("confirm_within = \"5s\"", "confirm_within"),
    ] {
        only_error(
            &with(keys, LOCAL),
            "out_of_bounds",
            &format!("outbound.{key}"),
        );
    }
    only_error(
        &with("retry_after = \"2h\"", LOCAL),
        "bad_deadlines",
        "outbound.longest_pause",
    );
    only_error(
        &with("delivery = \"later\"", LOCAL),
        "unknown_word",
        "outbound.delivery",
    );
    only_error(
        &with("paths = [\"a/../b\"]", LOCAL),
        "bad_path",
        "outbound.paths[0]",
    );
    only_error(
        &with("notify_url = \"127.0.0.1\"", LOCAL),
        "bad_url",
        "outbound.notify_url",
    );
    only_error(
        &with("forward_headers = [\"x-tikivip-signature\"]", LOCAL),
        "owned_header",
        "outbound.forward_headers[0]",
    );
    let read = outbound(&with("paths = [\"payment/ipn\", \"/transaction\"]", LOCAL));
    assert_eq!(read.paths.unwrap(), ["/payment/ipn", "/transaction"]);
}

#[test]
fn a_ca_is_read_and_named_where_it_can_not_be() {
    let https = "client = \"wallet\"\nbase_url = \"https://tiki.example/\"";
    let directory = directory();
    write(directory.path(), "no.crt", b"no certificate");
    let refused = |ca: &str| {
        let problems = load_in(
            directory.path(),
            &with(&format!("ca = \"{ca}\""), https),
            &[],
        );
        let problems = problems.err().unwrap();
        assert_eq!(problems.len(), 1, "{}", told(&problems));
        assert_eq!(
            (problems[0].code, problems[0].key.as_str()),
            ("bad_ca", "outbound.ca")
        );
        assert!(problems[0].message.contains(ca), "{}", problems[0]);
    };
    refused("no.crt");
    refused("missing.crt");
    fs::create_dir(directory.path().join("dir")).unwrap();
    refused("dir");
}

#[test]
fn only_transactions_of_clients_with_an_account_are_confirmed() {
    let transaction = GOOD.replace(
        "payload = \"order_ipn\"",
        "payload = \"transaction_ipn\"\nconfirm = true",
    );
    only_error(&transaction, "unconfirmable", "routes.ipn.confirm");
    let text = format!("{transaction}[outbound]\n[[outbound.accounts]]\n{LOCAL}\n");
    assert!(settings(&text).routes[0].confirm);
    let other = "[[clients]]\nid = \"k2\"\nname = \"other\"\nsecrets = [{ name = \"now\", file = \"other\" }]\n";
    let problem = only_error(
        &format!("{text}{other}"),
        "unconfirmable",
        "routes.ipn.confirm",
    );
    assert!(problem.message.contains("`other`"), "{problem}");
    let order = good_but(
        "payload = \"order_ipn\"",
        "payload = \"order_ipn\"\nconfirm = true",
    );
    let text = format!("{order}[outbound]\n[[outbound.accounts]]\n{LOCAL}\n");
    only_error(&text, "bad_confirm", "routes.ipn.confirm");
}

#[test]
fn what_is_in_force_is_shown_without_the_token() {
    let text = with(
        "token = { file = \"secret\" }\nnotify_url = \"http://127.0.0.1:9000/x\"",
        LOCAL,
    );
    let shown = effective(&settings(&text));
    let outbound = &shown["outbound"];
    assert_eq!(outbound["delivery"], "outbox");
    assert_eq!(outbound["give_up_after"], "2d");
    assert_eq!(
        outbound["accounts"][0]["base_url"],
        "http://127.0.0.1:9100/v1"
    );
    assert_eq!(outbound["accounts"][0]["environment"], "production");
    assert_eq!(outbound["token"], "[redacted]");
    assert!(!shown.to_string().contains(SECRET));
    assert!(effective(&settings(GOOD)).get("outbound").is_none());
}
