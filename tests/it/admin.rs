//! The admin listener on real sockets, and the commands that talk to it.
#![allow(clippy::unwrap_used)]

mod bounds;
mod commands;
mod gate;
mod ledger_commands;
mod people;

use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use tikigate::admin::{Limits, Phase};
use tikigate::ledger::State;

use self::gate::{AUTHORIZATION, Gate, JSON, Mode, changed_at};

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[test]
fn probes_and_metrics_are_open() {
    let gate = Gate::start();
    let foreign = &["Host: evil.example"];
    assert_eq!(gate.call("GET /livez", foreign, "").status, 200);
    let ready = gate.call("GET /readyz", foreign, "");
    assert_eq!(ready.status, 200);
    assert_eq!(
        ready.json(),
        json!({ "ready": true, "state": "serving", "unready": null, "degraded": [] })
    );

    gate.table.add("refund", "k", State::Unknown);
    let metrics = gate.call("GET /metrics", foreign, "");
    assert_eq!(
        (metrics.status, metrics.body.as_str()),
        (200, "records [0, 0, 0, 1]\n")
    );
    assert!(
        metrics
            .head
            .contains("content-type: text/plain; version=0.0.4\r\n")
    );

    let head = gate.call("HEAD /livez", &[], "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let post = gate.call("POST /livez", &[], "");
    assert_eq!(post.error(), refused(405, "method_not_allowed"));
    assert!(post.head.contains("\r\nallow: get, head"), "{}", post.head);
    assert_eq!(
        gate.call("GET /nowhere", &[], "").error(),
        refused(404, "not_found")
    );
    assert_eq!(
        gate.call("GET /apiary", &[], "").error(),
        refused(404, "not_found")
    );
}

#[test]
fn trouble_is_named_and_only_that_of_the_gates_own_store_makes_it_unready() {
    let gate = Gate::start();
    gate.hand
        .set(Phase::Serving, &["upstream legacy: breaker open"]);
    let ready = gate.call("GET /readyz", &[], "");
    assert_eq!(ready.status, 200);
    assert_eq!(ready.json()["degraded"][0], "upstream legacy: breaker open");
    for (phase, state) in [(Phase::Starting, "starting"), (Phase::Draining, "draining")] {
        gate.hand.set(phase, &[]);
        let ready = gate.call("GET /readyz", &[], "");
        assert_eq!(ready.status, 503);
        assert_eq!(
            ready.json(),
            json!({ "ready": false, "state": state, "unready": null, "degraded": [] })
        );
        assert_eq!(gate.call("GET /livez", &[], "").status, 200);
    }
    gate.hand.set(Phase::Serving, &["upstream legacy"]);
    gate.hand.set_unready("ledger: the disk is full");
    let ready = gate.call("GET /readyz", &[], "");
    assert_eq!(ready.status, 503);
    assert_eq!(
        ready.json(),
        json!({ "ready": false, "state": "serving", "unready": "ledger: the disk is full",
                "degraded": ["upstream legacy"] })
    );
    assert_eq!(gate.call("GET /livez", &[], "").status, 200);
}

#[test]
fn metrics_do_without_a_ledger_in_trouble() {
    let gate = Gate::with_limits(Limits {
        ledger_within: Duration::from_millis(50),
        ..Limits::default()
    });
    for mode in [Mode::Fails, Mode::Silent] {
        gate.table.set_mode(mode);
        let metrics = gate.call("GET /metrics", &[], "");
        assert_eq!(
            (metrics.status, metrics.body.as_str()),
            (200, "no ledger\n")
        );
    }
}

#[test]
fn the_api_tells_strangers_nothing() {
    let gate = Gate::start();
    let id = gate.table.add("refund", "k", State::Unknown);
    let wrong = "Authorization: Bearer 1123456789abcdef0123456789abcdef";
    for path in [
        "/api/ledger",
        &format!("/api/ledger/{id}"),
        "/api/nowhere",
        "/api",
    ] {
        for lines in [&[][..], &[wrong], &[AUTHORIZATION, AUTHORIZATION]] {
            let answer = gate.call(&format!("GET {path}"), lines, "");
            assert_eq!(
                answer.error(),
                refused(401, "unauthorized"),
                "{path} {lines:?}"
            );
            assert!(answer.head.contains("\r\nwww-authenticate: bearer\r\n"));
        }
    }
    let resolve = format!("POST /api/ledger/{id}/resolve");
    let word = r#"{"verdict":"applied","reason":"r"}"#;
    assert_eq!(gate.call(&resolve, &[wrong, JSON], word).status, 401);
    assert_eq!(gate.call("POST /api/drain", &[JSON], "{}").status, 401);
    assert_eq!(gate.table.record(&id).state, State::Unknown);
    assert_eq!(gate.hand.drained_by(), None);
}

#[test]
fn the_api_answers_only_to_its_own_names() {
    let gate = Gate::start();
    let port = gate.address.port();
    for host in [
        format!("Host: localhost:{port}"),
        format!("Host: [::1]:{port}"),
        "Host: gate.internal".to_owned(),
    ] {
        let answer = gate.call("GET /api/ledger", &[AUTHORIZATION, &host], "");
        assert_eq!(answer.status, 200, "{host}");
    }
    let listener = format!("Host: 127.0.0.1:{port}");
    for hosts in [
        &["Host: evil.example"][..],
        &["Host: 127.0.0.1:1"],
        &["Host: 10.0.0.1"],
        &["Host:"],
        &[&listener, &listener],
    ] {
        let lines = [&[AUTHORIZATION], hosts].concat();
        let answer = gate.call("GET /api/ledger", &lines, "");
        assert_eq!(answer.error(), refused(421, "forbidden_host"), "{hosts:?}");
    }
    let absolute = gate.call("GET http://evil.example/api/ledger", &[AUTHORIZATION], "");
    assert_eq!(absolute.error(), refused(421, "forbidden_host"));
}

#[test]
fn what_a_page_can_send_changes_nothing() {
    let gate = Gate::start();
    let id = gate.table.add("refund", "k", State::Unknown);
    let word = r#"{"verdict":"applied","reason":"r"}"#;
    for request in [
        format!("POST /api/ledger/{id}/resolve"),
        "POST /api/drain".to_owned(),
    ] {
        let call = |lines: &[&str]| gate.call(&request, lines, word).error();
        let origin = format!("Origin: http://{}", gate.address);
        assert_eq!(
            call(&[AUTHORIZATION, JSON, &origin]),
            refused(403, "forbidden_origin")
        );
        assert_eq!(
            call(&[AUTHORIZATION, JSON, "Origin: null"]),
            refused(403, "forbidden_origin")
        );
        let text = "Content-Type: text/plain";
        assert_eq!(
            call(&[AUTHORIZATION, text]),
            refused(415, "unsupported_media_type")
        );
        assert_eq!(
            call(&[AUTHORIZATION]),
            refused(415, "unsupported_media_type")
        );
        assert_eq!(
            call(&[AUTHORIZATION, JSON, "Host: evil.example"]),
            refused(421, "forbidden_host")
        );
        let get = gate.get(request.trim_start_matches("POST "));
        assert_eq!(get.error(), refused(405, "method_not_allowed"));
        assert!(get.head.contains("\r\nallow: post\r\n"));
    }
    assert_eq!(gate.table.record(&id).state, State::Unknown);
    assert_eq!(gate.hand.drained_by(), None);
}

#[test]
fn records_are_listed_page_by_page() {
    let gate = Gate::start();
    for key in ["a-1", "a-2", "b-1"] {
        gate.table.add("refund", key, State::Unknown);
    }
    gate.table.add("ipn", "a-3", State::Done);
    let list = |query: &str| {
        let data = gate.get(&format!("/api/ledger?{query}")).json()["data"].take();
        let records = data["records"].as_array().unwrap().clone();
        let keys: Vec<_> = records
            .iter()
            .map(|r| r["key"].as_str().unwrap().to_owned())
            .collect();
        (keys.join(" "), data["next"].as_str().map(str::to_owned))
    };
    assert_eq!(list(""), ("a-1 a-2 b-1 a-3".to_owned(), None));
    assert_eq!(
        list("limit=2"),
        ("a-1 a-2".to_owned(), Some("rec-2".to_owned()))
    );
    assert_eq!(list("limit=2&after=rec-2"), ("b-1 a-3".to_owned(), None));
    assert_eq!(list("state=unknown&q=a-").0, "a-1 a-2");
    assert_eq!(list("route=ipn").0, "a-3");
    assert_eq!(
        gate.get("/api/ledger?limit=501").error(),
        refused(400, "malformed")
    );
    assert_eq!(
        gate.get("/api/ledger?colour=red").error(),
        refused(400, "malformed")
    );
    assert_eq!(
        gate.call("POST /api/ledger", &[AUTHORIZATION, JSON], "{}")
            .status,
        405
    );
}

#[test]
fn a_record_is_shown_with_its_events_and_a_bounded_answer() {
    let gate = Gate::start();
    let unknown = gate.table.add("refund", "k", State::Unknown);
    let done = gate.table.add("refund", "k2", State::Done);
    let shown = gate.get(&format!("/api/ledger/{unknown}")).json()["data"].take();
    assert_eq!(shown["id"], "rec-1");
    assert_eq!(shown["updated_at"], "2026-11-23T01:00:00.000Z");
    assert_eq!(shown["client"], "wallet-key");
    assert_eq!(shown["answer"], json!(null));
    assert_eq!(shown["events"][1]["cause"], "upstream_reset");
    assert_eq!(shown["events"][1]["state"], "unknown");

    let answer = gate.get(&format!("/api/ledger/{done}")).json()["data"]["answer"].take();
    assert_eq!(answer["status"], 200);
    assert_eq!(answer["body_bytes"], 20_000);
    assert_eq!(answer["body"].as_str().unwrap().len(), 16 * 1024);
    assert_eq!(answer["body_truncated"], true);

    for id in ["rec-99", "99", "rec-", "rec-1/", "rec-1/x", "%72ec-1"] {
        let answer = gate.get(&format!("/api/ledger/{id}"));
        assert_eq!(answer.error(), refused(404, "not_found"), "{id}");
    }
}

#[test]
fn a_person_resolves_what_nobody_knows() {
    let gate = Gate::start();
    let resolve = |verdict: &str| {
        let id = gate.table.add("refund", "k", State::Unknown);
        let word = json!({ "verdict": verdict, "reason": "seen", "by": "linh" }).to_string();
        let answer = gate.post(&format!("/api/ledger/{id}/resolve"), &word);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let by = Some(("ops (for linh)".to_owned(), "seen".to_owned()));
        assert_eq!(gate.table.resolver(&id), by);
        let record = gate.table.record(&id);
        assert_eq!(answer.json()["data"]["state"], record.state.as_str());
        (record.state, record.answer)
    };

    let (state, answer) = resolve("applied");
    let answer = answer.unwrap();
    assert_eq!((state, answer.status), (State::Done, StatusCode::OK));
    assert_eq!(answer.body, r#"{"data":{"status":"success"}}"#);
    assert_eq!(answer.headers[0].1, "application/json");

    let (state, answer) = resolve("rejected");
    let answer = answer.unwrap();
    assert_eq!(
        (state, answer.status),
        (State::Done, StatusCode::INTERNAL_SERVER_ERROR)
    );
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert!(body["data"].is_null());
    assert_eq!(body["error"]["code"], "rejected");

    assert_eq!(resolve("not_applied").0, State::Released);
}

#[test]
fn a_resolution_must_be_whole() {
    let gate = Gate::start();
    let id = gate.table.add("refund", "k", State::Unknown);
    let path = format!("/api/ledger/{id}/resolve");
    for word in [
        r#"{"verdict":"applied"}"#,
        r#"{"verdict":"applied","reason":null}"#,
        r#"{"verdict":"applied","reason":"  "}"#,
    ] {
        assert_eq!(
            gate.post(&path, word).error(),
            refused(422, "reason_required"),
            "{word}"
        );
    }
    for word in [
        "",
        "{",
        "[]",
        r#"{"reason":"r"}"#,
        r#"{"verdict":"maybe","reason":"r"}"#,
        r#"{"verdict":"applied","verdict":"not_applied","reason":"r"}"#,
        r#"{"verdict":"applied","reason":"r","sure":true}"#,
        r#"{"verdict":"applied","reason":"r\u0000"}"#,
        r#"{"verdict":"applied","reason":"r","by":""}"#,
        r#"{"verdict":"applied","reason":"r","force":"yes"}"#,
        r#"{"verdict":"applied","reason":"r","expected":{"state":"lost","attempt":1,"version":2}}"#,
        r#"{"verdict":"applied","reason":"r","expected":{"state":"unknown"}}"#,
    ] {
        assert_eq!(
            gate.post(&path, word).error(),
            refused(400, "malformed"),
            "{word}"
        );
    }
    assert_eq!(gate.table.record(&id).state, State::Unknown);
}

#[test]
fn a_changed_record_is_not_resolved() {
    let gate = Gate::start();
    let id = gate.table.add("refund", "k", State::Unknown);
    let path = format!("/api/ledger/{id}/resolve");
    gate.table.change(&id, |record| record.attempt = 2);
    let seen = json!({ "state": "unknown", "attempt": 1, "version": 2 });
    let word = json!({ "verdict": "not_applied", "reason": "r", "expected": seen });
    let answer = gate.post(&path, &word.to_string());
    assert_eq!(answer.error(), refused(409, "conflict"));
    let now = answer.json()["error"]["record"].take();
    assert_eq!((&now["attempt"], &now["version"]), (&json!(2), &json!(3)));
    assert_eq!(gate.table.record(&id).state, State::Unknown);

    let seen = json!({ "state": "unknown", "attempt": 2, "version": 3 });
    let word = json!({ "verdict": "not_applied", "reason": "r", "expected": seen });
    assert_eq!(gate.post(&path, &word.to_string()).status, 200);
}

#[test]
fn the_ledgers_refusals_are_passed_on() {
    let gate = Gate::start();
    let done = gate.table.add("refund", "k", State::Done);
    let unknown = gate.table.add("refund", "k2", State::Unknown);
    let path = |id: &str| format!("/api/ledger/{id}/resolve");
    let word = r#"{"verdict":"not_applied","reason":"r"}"#;

    let answer = gate.post(&path(&done), word);
    assert_eq!(answer.error(), refused(409, "not_unknown"));
    assert_eq!(answer.json()["error"]["state"], "done");
    assert_eq!(
        gate.post(&path("rec-99"), word).error(),
        refused(404, "not_found")
    );

    gate.table.let_attempts_run_until(changed_at());
    let answer = gate.post(&path(&unknown), word);
    assert_eq!(answer.error(), refused(409, "may_still_run"));
    assert_eq!(answer.json()["error"]["until"], "2026-11-23T01:00:00.000Z");

    gate.table.change(&unknown, |record| record.alarmed = true);
    let answer = gate.post(&path(&unknown), word);
    assert_eq!(answer.error(), refused(409, "no_further_release"));

    gate.table.change(&unknown, |record| record.alarmed = false);
    let forced = r#"{"verdict":"not_applied","reason":"r","force":true}"#;
    assert_eq!(gate.post(&path(&unknown), forced).status, 200);
}

#[test]
fn a_ledger_in_trouble_is_said_so_without_its_details() {
    let gate = Gate::with_limits(Limits {
        ledger_within: Duration::from_millis(50),
        ..Limits::default()
    });
    let id = gate.table.add("refund", "k", State::Unknown);
    let word = r#"{"verdict":"applied","reason":"r"}"#;
    for mode in [Mode::Fails, Mode::Silent] {
        gate.table.set_mode(mode);
        for answer in [
            gate.get("/api/ledger"),
            gate.get(&format!("/api/ledger/{id}")),
            gate.post(&format!("/api/ledger/{id}/resolve"), word),
        ] {
            assert_eq!(answer.error(), refused(503, "ledger_unavailable"));
            assert!(!answer.body.contains("disk"), "{}", answer.body);
        }
    }
}

#[test]
fn a_drain_is_asked_for_by_name() {
    let gate = Gate::start();
    assert_eq!(
        gate.post("/api/drain", r#"{"now":1}"#).error(),
        refused(400, "malformed")
    );
    assert_eq!(gate.hand.drained_by(), None);
    let answer = gate.post("/api/drain", "{}");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["data"]["state"], "draining");
    assert_eq!(gate.hand.drained_by().as_deref(), Some("ops"));
}
