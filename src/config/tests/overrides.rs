//! Overrides from the environment.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::super::load::load_at;
use super::super::{Loaded, Problem, Rate};
use super::{GOOD, directory, load_in, now, only, told};

fn overridden(variables: &[(&str, &str)]) -> Result<Loaded, Vec<Problem>> {
    load_in(directory().path(), GOOD, variables)
}

fn settings(variables: &[(&str, &str)]) -> super::Settings {
    match overridden(variables) {
        Ok(loaded) => loaded.settings,
        Err(problems) => panic!("{}", told(&problems)),
    }
}

#[test]
fn a_variable_wins_over_the_file() {
    let read = settings(&[
        ("TIKIGATE__SERVER__LISTEN", "127.0.0.1:9"),
        ("TIKIGATE__SERVER__MAX_HEADERS", "65"),
        ("TIKIGATE__SERVER__HEADER_TIMEOUT", "\"2s\""),
        ("TIKIGATE__SERVER__BODY_TIMEOUT", "3s"),
        ("TIKIGATE__SERVER__HEAD_LIMIT", "8192"),
        (
            "TIKIGATE__SERVER__PER_ADDRESS",
            "{ per_second = 3, burst = 4 }",
        ),
        ("TIKIGATE__SERVER__PER_ADDRESS__BURST", "5"),
        ("TIKIGATE__SERVER__TRUSTED_PROXIES", "[\"10.0.0.0/8\"]"),
        ("TIKIGATE__UPSTREAMS__LEGACY__URL", "http://elsewhere"),
        ("HOME", "/root"),
    ]);
    assert_eq!(read.server.listen.to_string(), "127.0.0.1:9");
    assert_eq!(read.server.max_headers, 65);
    assert_eq!(read.server.header_timeout.as_secs(), 2);
    assert_eq!(read.server.body_timeout.as_secs(), 3);
    assert_eq!(read.server.head_limit, 8192);
    assert_eq!(
        read.server.per_address,
        Rate {
            per_second: 3,
            burst: 5
        }
    );
    assert_eq!(read.server.trusted_proxies.networks.networks.len(), 1);
    assert_eq!(read.upstreams[0].host, "elsewhere");
}

#[test]
fn text_that_looks_like_a_number_stays_text_where_text_is_wanted() {
    let read = settings(&[("TIKIGATE__CLIENTS__WALLET__PARTNER_CODE", "007")]);
    assert_eq!(read.clients[0].partner_code.as_deref(), Some("007"));
    let read = settings(&[("TIKIGATE__CLIENTS__WALLET__PARTNER_CODE", "true")]);
    assert_eq!(read.clients[0].partner_code.as_deref(), Some("true"));
}

#[test]
fn items_of_lists_go_by_number_or_name() {
    for name in [
        "TIKIGATE__ROUTES__REFUND__BODY_LIMIT",
        "TIKIGATE__ROUTES__1__BODY_LIMIT",
    ] {
        assert_eq!(settings(&[(name, "7")]).routes[1].body_limit, 7);
    }
    let named = GOOD.replace("\"wallet\"", "\"my-wallet.vn\"");
    let variable = [("TIKIGATE__CLIENTS__MY_WALLET_VN__PARTNER_CODE", "X")];
    let read = load_in(directory().path(), &named, &variable)
        .unwrap()
        .settings;
    assert_eq!(read.clients[0].partner_code.as_deref(), Some("X"));
    for name in [
        "TIKIGATE__ROUTES__REFND__BODY_LIMIT",
        "TIKIGATE__ROUTES__2__BODY_LIMIT",
    ] {
        let problem = only_in(&[(name, "7")], "no_such_item");
        assert_eq!(problem.file, name);
    }
}

#[test]
fn a_variable_that_sets_nothing_is_named() {
    let problem = only_in(&[("TIKIGATE__SERVER__LISTN", "127.0.0.1:9")], "unknown_key");
    assert_eq!(
        problem.to_string(),
        "TIKIGATE__SERVER__LISTN: error[unknown_key] server.listn: this key is not known\n  help: did you mean `listen`?"
    );
    only_in(&[("TIKIGATE__SERVER__LISTEN__X", "1")], "bad_variable");
    only_in(&[("TIKIGATE__SERVER____LISTEN", "1")], "bad_variable");
    only_in(&[("TIKIGATE__", "1")], "bad_variable");
    let problem = only_in(&[("TIKIGATE__SERVER__WORKERS", "many")], "wrong_type");
    assert_eq!(
        (problem.file.as_str(), problem.line),
        ("TIKIGATE__SERVER__WORKERS", None)
    );
    let twice = [
        ("TIKIGATE__SERVER__WORKERS", "1"),
        ("TIKIGATE__server__WORKERS", "2"),
    ];
    only_in(&twice, "bad_variable");
}

#[test]
fn a_value_that_is_not_text_is_named() {
    let variable = (
        OsString::from("TIKIGATE__LOG__LEVEL"),
        OsString::from_vec(vec![0xff]),
    );
    let directory = directory();
    let problems = load_at(GOOD, "x", directory.path(), &[variable], now()).unwrap_err();
    only(problems, "bad_variable", "log.level");
}

#[track_caller]
fn only_in(variables: &[(&str, &str)], code: &str) -> Problem {
    let mut problems = overridden(variables).unwrap_err();
    assert_eq!(problems.len(), 1, "{}", told(&problems));
    assert_eq!(problems[0].code, code, "{}", problems[0]);
    problems.remove(0)
}
