//! `[routes.idempotency.probe]`

use std::time::Duration;

use http::StatusCode;

use super::super::{Condition, Probe, ProbePart, ProbeSign, effective};
use super::{GOOD, Problem, load, only_error, only_warning, route_with, settings, told};
use crate::tiki::Pointer;

const DONE: &str = "{ status = 200, pointer = \"/state\", equals = \"done\" }";
const AT: &str = "routes.refund.idempotency.probe";

fn probe(keys: &str) -> String {
    on("refund", "", keys)
}

fn on(route: &str, more: &str, keys: &str) -> String {
    route_with(
        route,
        &format!("idempotency = {{ {more}probe = {{ {keys} }} }}"),
    )
}

fn with_path(path: &str) -> String {
    probe(&format!("path = \"{path}\", applied = {DONE}"))
}

fn with_signs(signs: &str) -> String {
    probe(&format!("path = \"/refunds/{{key}}\", {signs}"))
}

fn read(text: &str) -> Probe {
    let keyed = settings(text).routes[1].idempotency.clone();
    keyed.unwrap().probe.unwrap()
}

fn state(text: &str) -> Option<Condition> {
    Some(Condition {
        pointer: Pointer::parse("/state").unwrap(),
        equals: text.into(),
    })
}

#[test]
fn a_probe_asks_with_the_key_and_the_fields() {
    let text = probe(&format!(
        "path = \"/refunds/{{request_id}}?txn={{transaction_id}}&k={{key}}\", applied = {DONE}"
    ));
    let expected = Probe {
        path: vec![
            ProbePart::Text("/refunds/".to_owned()),
            ProbePart::Field("request_id".to_owned()),
            ProbePart::Text("?txn=".to_owned()),
            ProbePart::Field("transaction_id".to_owned()),
            ProbePart::Text("&k=".to_owned()),
            ProbePart::Key,
        ],
        timeout: Duration::from_secs(3),
        applied: vec![ProbeSign {
            status: StatusCode::OK,
            when: state("done"),
        }],
        not_applied: Vec::new(),
    };
    assert_eq!(read(&text), expected);
    assert_eq!(read(&with_path("/{key}{request_id}")).path.len(), 3);
}

#[test]
fn signs_are_one_or_several() {
    let text = with_signs(
        "timeout = \"100ms\", applied = [{ status = 201 }, { status = 200, pointer = \"/state\", equals = \"done\" }], not_applied = { status = 200, pointer = \"/state\", equals = \"failed\" }",
    );
    let probe = read(&text);
    assert_eq!(probe.timeout, Duration::from_millis(100));
    assert_eq!(
        probe.applied,
        [
            ProbeSign {
                status: StatusCode::CREATED,
                when: None,
            },
            ProbeSign {
                status: StatusCode::OK,
                when: state("done"),
            }
        ]
    );
    assert_eq!(
        probe.not_applied,
        [ProbeSign {
            status: StatusCode::OK,
            when: state("failed"),
        }]
    );
    let shown = effective(&settings(&text));
    let shown = &shown["routes"][1]["idempotency"]["probe"];
    assert_eq!(shown["path"], "/refunds/{key}");
    assert_eq!(shown["timeout"], "100ms");
    assert_eq!(shown["applied"][0]["status"], 201);
    assert_eq!(shown["applied"][1]["pointer"], "/state");
    assert_eq!(shown["not_applied"][0]["equals"], "failed");
    assert!(toml::to_string(&effective(&settings(&text))).is_ok());
}

#[test]
fn paths_are_read_strictly() {
    for path in [
        "",
        "refunds/{key}",
        "/refunds/{key}#x",
        "/re funds/{key}",
        "/refunds/{key}\\n",
        "/é/{key}",
        "/../{key}",
        "/refunds/{key",
        "/refunds/key}",
        "/refunds/{}",
        "/refunds/{{key}}",
        "/%{key}",
        // Nothing of the call in it: every call would have the same answer.
        "/refunds",
    ] {
        only_error(&with_path(path), "bad_path", &format!("{AT}.path"));
    }
    let text = probe(&format!("applied = {DONE}"));
    only_error(&text, "missing", &format!("{AT}.path"));
}

#[test]
fn an_unknown_placeholder_is_told_with_the_nearest_name() {
    let key = format!("{AT}.path");
    for (name, help) in [
        ("reqest_id", "did you mean `{request_id}`?"),
        ("Key", "did you mean `{key}`?"),
        (
            "reason",
            "known here: {key}, {request_id}, {tiki_transaction_id}, {transaction_id}, {transaction_amount}",
        ),
    ] {
        let text = with_path(&format!("/{{key}}/{{{name}}}"));
        let problem = only_error(&text, "unknown_name", &key);
        assert_eq!(problem.help.as_deref(), Some(help));
        assert!(problem.message.contains(&format!("{{{name}}}")));
        let line = text
            .lines()
            .position(|line| line.starts_with("idempotency"))
            .unwrap();
        assert_eq!(problem.line, Some(line + 1));
    }
    // Of a payload that isn't known there is the key alone.
    let any = |path: &str| {
        format!(
            "{GOOD}[[routes]]\nname = \"topup\"\npath = \"/topup\"\npayload = \"any\"\n[routes.idempotency]\nnamespace = \"topup\"\nkey = [\"/id\"]\nfingerprint = [\"/amount\"]\nprobe = {{ path = \"{path}\", applied = {DONE} }}\n"
        )
    };
    settings(&any("/topups/{key}"));
    let key = "routes.topup.idempotency.probe.path";
    let problem = only_error(&any("/topups/{id}"), "unknown_name", key);
    assert_eq!(problem.help.as_deref(), Some("known here: {key}"));
}

#[test]
fn a_probe_names_the_call_and_not_only_the_payment() {
    let text = with_path("/refunds?txn={transaction_id}");
    only_warning(&text, "vague_probe", &format!("{AT}.path"));
    settings(&with_path("/refunds?r={request_id}"));
    // By the key that the route has.
    let order = |path: &str| {
        on(
            "ipn",
            "on_unknown = \"hold\", key = [\"/order/id\"], ",
            &format!("path = \"{path}\", applied = {DONE}"),
        )
    };
    settings(&order("/orders/{order.id}"));
    only_warning(
        &order("/orders/{message_id}"),
        "vague_probe",
        "routes.ipn.idempotency.probe.path",
    );
}

#[test]
fn a_sign_is_whole() {
    for (signs, code, key) in [
        ("timeout = \"3s\"", "missing", "applied"),
        ("applied = []", "empty", "applied"),
        (
            "applied = { pointer = \"/a\", equals = 1 }",
            "missing",
            "applied.status",
        ),
        (
            "applied = { status = 200, pointer = \"/a\" }",
            "missing",
            "applied.equals",
        ),
        (
            "applied = [{ status = 200, equals = 1 }]",
            "missing",
            "applied[0].pointer",
        ),
        (
            "applied = { status = 200, pointer = \"a\", equals = 1 }",
            "bad_pointer",
            "applied.pointer",
        ),
        ("applied = { status = 199 }", "bad_status", "applied.status"),
        ("applied = { status = 600 }", "bad_status", "applied.status"),
        ("applied = 200", "wrong_type", "applied"),
        (
            "applied = { state = 200, status = 200 }",
            "unknown_key",
            "applied.state",
        ),
        (
            "applied = [{ status = 200 }, { status = 200 }]",
            "duplicate",
            "applied[1]",
        ),
        (
            "applied = { status = 200 }, not_applied = []",
            "empty",
            "not_applied",
        ),
        (
            "applied = { status = 200 }, timeout = \"99ms\"",
            "out_of_bounds",
            "timeout",
        ),
        (
            "applied = { status = 200 }, timeout = \"10001ms\"",
            "out_of_bounds",
            "timeout",
        ),
    ] {
        only_error(&with_signs(signs), code, &format!("{AT}.{key}"));
    }
}

#[test]
fn one_answer_does_not_mean_both() {
    for (applied, not_applied) in [
        (DONE, DONE),
        ("{ status = 200 }", "{ status = 200 }"),
        // Taken by the other before it is looked at.
        ("{ status = 200 }", DONE),
    ] {
        let text = with_signs(&format!(
            "applied = {applied}, not_applied = [{{ status = 409, pointer = \"/a\", equals = 1 }}, {not_applied}]"
        ));
        let problems = load(&text).unwrap_err();
        let errors: Vec<&Problem> = problems
            .iter()
            .filter(|problem| problem.code != "bare_sign")
            .collect();
        assert_eq!(errors.len(), 1, "{}", told(&problems));
        assert_eq!(
            (errors[0].code, &*errors[0].key),
            ("contradiction", &*format!("{AT}.not_applied[1]"))
        );
    }
    settings(&with_signs(&format!(
        "applied = {DONE}, not_applied = {{ status = 200, pointer = \"/state\", equals = \"failed\" }}"
    )));
}

#[test]
fn what_any_trouble_answers_is_no_sign() {
    for status in [302, 401, 403, 405, 408, 429, 500, 503, 599] {
        for list in ["applied", "not_applied"] {
            let other = match list {
                "applied" => String::new(),
                _ => format!(", applied = {DONE}"),
            };
            let text = with_signs(&format!("{list} = {{ status = {status} }}{other}"));
            let problem = only_error(&text, "unclear_sign", &format!("{AT}.{list}"));
            assert!(problem.message.contains(&status.to_string()));
        }
        settings(&with_signs(&format!(
            "applied = {DONE}, not_applied = {{ status = {status}, pointer = \"/a\", equals = 1 }}"
        )));
    }
}

#[test]
fn a_bare_status_that_sends_money_again_is_warned_about() {
    for status in [204, 404, 410, 422] {
        let text = with_signs(&format!(
            "applied = {DONE}, not_applied = {{ status = {status} }}"
        ));
        let problem = only_warning(&text, "bare_sign", &format!("{AT}.not_applied"));
        assert!(problem.message.contains(&status.to_string()));
    }
    // Bare, it may say that the call was applied: then nothing is sent.
    settings(&with_signs("applied = { status = 200 }"));
}

#[test]
fn a_probe_that_is_never_used_is_warned_about() {
    let text = on(
        "ipn",
        "",
        &format!("path = \"/orders/{{key}}\", applied = {DONE}"),
    );
    only_warning(&text, "unused_probe", "routes.ipn.idempotency.probe");
    let held = text.replace("probe = {", "on_unknown = \"hold\", probe = {");
    settings(&held);
}
