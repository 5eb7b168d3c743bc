//! What people search for, take back, send and lift through the API.

use std::time::Duration;

use serde_json::{Value, json};
use tikigate::admin::{Limits, SendNow, SendNowError};
use tikigate::ledger::{Fields, Hold, State};

use super::gate::{AUTHORIZATION, Gate, JSON, Mode, changed_at};
use super::refused;

/// The keys of a list, and where it goes on.
fn list(gate: &Gate, query: &str) -> (String, Option<String>) {
    let data = gate.get(&format!("/api/ledger?{query}")).json()["data"].take();
    let records = data["records"].as_array().unwrap();
    let keys: Vec<_> = records.iter().map(|r| r["key"].as_str().unwrap()).collect();
    (keys.join(" "), data["next"].as_str().map(str::to_owned))
}

#[test]
fn records_are_found_by_what_they_are_about_and_by_when() {
    let gate = Gate::start();
    for (hour, key) in ["a", "b", "c"].into_iter().enumerate() {
        let id = gate.table.add("refund", key, State::Done);
        let at = changed_at() + Duration::from_secs(3_600 * hour as u64);
        gate.table.change(&id, |record| {
            record.created_at = at;
            record.fields = Fields(
                [
                    ("transaction_id".into(), format!("t+{key}")),
                    ("order.id".into(), "o-1".to_owned()),
                ]
                .into(),
            );
        });
    }
    assert_eq!(list(&gate, "reference=t%2Bb").0, "b");
    assert_eq!(list(&gate, "reference=o-1").0, "a b c");
    assert_eq!(list(&gate, "reference=o-").0, "", "a reference is exact");
    // The first was claimed at 01:00Z; `from` is part of what is listed, `until` isn't.
    assert_eq!(list(&gate, "from=2026-11-23T02:00:00Z").0, "b c");
    assert_eq!(list(&gate, "until=2026-11-23T09:00:00%2B07:00").0, "a");
    assert_eq!(list(&gate, "from=2026-11-23&until=2026-11-24").0, "a b c");
    assert_eq!(list(&gate, "until=2026-11-23").0, "");
    for query in [
        "from=soon",
        "until=2026-11-23T08:00",
        "from=2026-11-24&until=2026-11-23",
    ] {
        let answer = gate.get(&format!("/api/ledger?{query}"));
        assert_eq!(answer.error(), refused(400, "malformed"), "{query}");
    }
    let shown = gate.get("/api/ledger/rec-1").json()["data"].take();
    assert_eq!(
        shown["fields"],
        json!({ "transaction_id": "t+a", "order.id": "o-1" })
    );
}

#[test]
fn a_short_page_says_where_to_go_on() {
    let gate = Gate::start();
    for (key, state) in [
        ("a", State::Done),
        ("b", State::Done),
        ("c", State::Unknown),
    ] {
        gate.table.add("refund", key, state);
    }
    gate.table.look_at(1);
    let unknown = |after: &str| list(&gate, &format!("state=unknown&after={after}"));
    assert_eq!(unknown(""), (String::new(), Some("rec-1".to_owned())));
    assert_eq!(unknown("rec-1"), (String::new(), Some("rec-2".to_owned())));
    assert_eq!(unknown("rec-2"), ("c".to_owned(), None));
}

#[test]
fn a_word_is_taken_back_once() {
    let gate = Gate::start();
    let id = gate.table.add("refund", "k", State::Unknown);
    let reopen =
        |id: &str, word: &Value| gate.post(&format!("/api/ledger/{id}/reopen"), &word.to_string());
    let word = json!({ "reason": "the wrong refund", "by": "linh" });
    assert_eq!(reopen(&id, &word).error(), refused(409, "not_declared"));

    let said = gate.post(
        &format!("/api/ledger/{id}/resolve"),
        r#"{"verdict":"applied","reason":"r"}"#,
    );
    assert_eq!(said.json()["data"]["declared"], true);
    let version = gate.table.record(&id).version;
    let before = json!({ "state": "done", "attempt": 1, "version": version - 1 });
    let stale = json!({ "reason": "r", "expected": before });
    let answer = reopen(&id, &stale);
    assert_eq!(answer.error(), refused(409, "conflict"));
    assert_eq!(answer.json()["error"]["record"]["version"], version);

    let seen = json!({ "state": "done", "attempt": 1, "version": version });
    let word = json!({ "reason": "the wrong refund", "by": "linh", "expected": seen });
    let answer = reopen(&id, &word);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["data"]["state"], "unknown");
    assert_eq!(
        gate.table.resolver(&id),
        Some(("ops (for linh)".to_owned(), "the wrong refund".to_owned()))
    );
    assert_eq!(reopen(&id, &word).error(), refused(409, "conflict"));

    for bad in [json!({}), json!({ "reason": " " })] {
        assert_eq!(reopen(&id, &bad).error(), refused(422, "reason_required"));
    }
    for bad in [
        json!({ "reason": "r", "verdict": "applied" }),
        json!({ "reason": "r", "by": "" }),
        json!([]),
    ] {
        assert_eq!(
            reopen(&id, &bad).error(),
            refused(400, "malformed"),
            "{bad}"
        );
    }
    let word = json!({ "reason": "r" });
    assert_eq!(reopen("rec-99", &word).error(), refused(404, "not_found"));
}

#[test]
fn a_kept_call_is_sent_only_with_not_applied() {
    let gate = Gate::start();
    let resolve = |word: Value| {
        let id = gate.table.add("refund", "k", State::Unknown);
        let answer = gate.post(&format!("/api/ledger/{id}/resolve"), &word.to_string());
        (id, answer)
    };
    for verdict in ["applied", "rejected"] {
        let (id, answer) = resolve(json!({ "verdict": verdict, "reason": "r", "send_now": true }));
        assert_eq!(answer.error(), refused(400, "malformed"));
        assert!(answer.body.contains("send_now"), "{}", answer.body);
        assert_eq!(gate.table.record(&id).state, State::Unknown);
    }
    let (_, answer) = resolve(json!({ "verdict": "not_applied", "reason": "r" }));
    assert_eq!(answer.json()["data"]["send_now"], Value::Null);
    assert!(gate.hand.sent_now().is_empty());

    let word = json!({ "verdict": "not_applied", "reason": "r", "send_now": true });
    let (id, answer) = resolve(word.clone());
    assert_eq!(answer.status, 200, "the resolution was carried out");
    let data = answer.json()["data"].take();
    assert_eq!(
        (&data["state"], &data["send_now"]["outcome"]),
        (&json!("released"), &json!("not_sent"))
    );
    assert_eq!(data["send_now"]["code"], "no_request");
    assert_eq!(gate.hand.sent_now(), [id]);

    let sent = SendNow {
        status: 200,
        state: State::Done,
    };
    gate.hand.set_sending_now(Some(Ok(sent)));
    let told = resolve(word.clone()).1.json()["data"]["send_now"].take();
    assert_eq!(
        told,
        json!({ "outcome": "sent", "status": 200, "state": "done" })
    );

    let refusal = SendNowError::Unavailable("the backend's breaker is open".to_owned());
    gate.hand.set_sending_now(Some(Err(refusal)));
    let told = resolve(word.clone()).1.json()["data"]["send_now"].take();
    assert_eq!(told["code"], "unavailable");
    assert!(
        told["message"]
            .as_str()
            .unwrap()
            .contains("breaker is open")
    );

    let refusal = SendNowError::NotReleased(State::Claimed);
    gate.hand.set_sending_now(Some(Err(refusal)));
    let told = resolve(word).1.json()["data"]["send_now"].take();
    assert_eq!(told["code"], "not_released");
}

#[test]
fn a_resolution_that_is_refused_sends_nothing() {
    let gate = Gate::start();
    let id = gate.table.add("refund", "k", State::Done);
    let word = json!({ "verdict": "not_applied", "reason": "r", "send_now": true });
    let answer = gate.post(&format!("/api/ledger/{id}/resolve"), &word.to_string());
    assert_eq!(answer.error(), refused(409, "not_unknown"));
    assert!(gate.hand.sent_now().is_empty());
}

#[test]
fn a_call_that_takes_long_is_not_waited_for() {
    let gate = Gate::with_limits(Limits {
        send_within: Duration::from_millis(20),
        ..Limits::default()
    });
    gate.hand.set_sending_now(None);
    let id = gate.table.add("refund", "k", State::Unknown);
    let word = json!({ "verdict": "not_applied", "reason": "r", "send_now": true });
    let answer = gate.post(&format!("/api/ledger/{id}/resolve"), &word.to_string());
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json()["data"]["send_now"],
        json!({ "outcome": "running" })
    );
}

#[test]
fn sending_is_waited_for_no_longer_than_a_connection_lives() {
    let limits = Limits::default();
    assert!(limits.send_within + limits.ledger_within * 3 < limits.connection_lifetime);
}

#[test]
fn a_quarantine_is_shown_and_lifted_by_name_and_reason() {
    let gate = Gate::start();
    let lift = |word: Value| gate.post("/api/ledger/quarantine/lift", &word.to_string());
    let quarantine = || gate.get("/api/ledger/quarantine").json()["data"].take();
    let none = json!({ "quarantined": false, "cause": null });
    assert_eq!(quarantine(), none);
    let word = json!({ "reason": "compared with the books", "by": "linh" });
    assert_eq!(lift(word.clone()).error(), refused(409, "not_quarantined"));

    gate.table.quarantine_for("the watermark is ahead");
    assert_eq!(
        quarantine(),
        json!({ "quarantined": true, "cause": "the watermark is ahead" })
    );
    for bad in [json!({}), json!({ "reason": "" })] {
        assert_eq!(lift(bad).error(), refused(422, "reason_required"));
    }
    for bad in [json!({ "reason": "r", "force": true }), json!("lift")] {
        assert_eq!(lift(bad).error(), refused(400, "malformed"));
    }
    let other = lift(json!({ "reason": "r", "expected": "another cause" }));
    assert_eq!(other.error(), refused(409, "conflict"));
    assert_eq!(other.json()["error"]["cause"], "the watermark is ahead");
    assert_eq!(gate.table.lifted(), None);

    let answer = lift(word);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["data"], none);
    assert_eq!(
        gate.table.lifted(),
        Some((
            "ops (for linh)".to_owned(),
            "compared with the books".to_owned()
        ))
    );
}

#[test]
fn why_a_record_is_held_is_shown() {
    let gate = Gate::start();
    let id = gate.table.add("refund", "k", State::Unknown);
    gate.table.change(&id, |record| {
        record.hold = Some(Hold::PossibleDuplicate);
        record.marks.possible_duplicate = true;
    });
    let shown = gate.get(&format!("/api/ledger/{id}")).json()["data"].take();
    assert_eq!(shown["held_for"], "possible_duplicate");
    assert_eq!(shown["possible_duplicate"], true);
    assert_eq!(shown["stale_event"], false);
    assert_eq!(shown["declared"], false);
}

#[test]
fn changes_are_guarded_like_a_resolution() {
    let gate = Gate::start();
    gate.table.quarantine_for("lost");
    let id = gate.table.add("refund", "k", State::Unknown);
    for path in [
        format!("/api/ledger/{id}/reopen"),
        "/api/ledger/quarantine/lift".to_owned(),
    ] {
        let post = |lines: &[&str]| {
            let request = format!("POST {path}");
            gate.call(&request, lines, r#"{"reason":"r"}"#).error()
        };
        assert_eq!(post(&[JSON]), refused(401, "unauthorized"));
        let origin = "Origin: null";
        assert_eq!(
            post(&[AUTHORIZATION, JSON, origin]),
            refused(403, "forbidden_origin")
        );
        assert_eq!(
            post(&[AUTHORIZATION]),
            refused(415, "unsupported_media_type")
        );
        assert_eq!(
            gate.get(&path).error(),
            refused(405, "method_not_allowed"),
            "{path}"
        );
    }
    assert_eq!(gate.table.lifted(), None);
    let stranger = gate.call("GET /api/ledger/quarantine", &[], "");
    assert_eq!(stranger.error(), refused(401, "unauthorized"));
    for path in ["/api/ledger/quarantine/", "/api/ledger/quarantine/lift/x"] {
        assert_eq!(gate.get(path).error(), refused(404, "not_found"), "{path}");
    }
}

#[test]
fn a_ledger_in_trouble_lifts_and_takes_back_nothing() {
    let gate = Gate::with_limits(Limits {
        ledger_within: Duration::from_millis(50),
        ..Limits::default()
    });
    let id = gate.table.add("refund", "k", State::Unknown);
    for mode in [Mode::Fails, Mode::Silent] {
        gate.table.set_mode(mode);
        for answer in [
            gate.get("/api/ledger/quarantine"),
            gate.post("/api/ledger/quarantine/lift", r#"{"reason":"r"}"#),
            gate.post(&format!("/api/ledger/{id}/reopen"), r#"{"reason":"r"}"#),
        ] {
            assert_eq!(answer.error(), refused(503, "ledger_unavailable"));
        }
    }
}
