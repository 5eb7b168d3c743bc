//! Records and events as JSON.

use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::ledger::{Event, Hold, KeptAnswer, Policy, Record};

/// Bytes of a kept answer's body that are shown.
const BODY_SHOWN: usize = 16 * 1024;

/// A record in a list: of its answer only status and size.
pub(super) fn summary(record: &Record) -> Value {
    with_answer(record, record.answer.as_ref().map(answer_size))
}

/// A record by itself: with the beginning of its answer's body, and its events.
///
/// The body was the backend's answer to Tiki, which a person needs to judge what happened. What Tiki
/// sent is not in the ledger and can't be shown.
pub(super) fn full(record: &Record, events: &[Event]) -> Value {
    let mut shown = with_answer(record, record.answer.as_ref().map(answer_beginning));
    shown["events"] = events.iter().map(event).collect();
    shown
}

/// RFC 3339 in UTC to the millisecond; `null` for what no calendar holds.
pub(super) fn time(at: SystemTime) -> Value {
    match Timestamp::try_from(at) {
        Ok(at) => Value::from(format!("{at:.3}")),
        Err(_) => Value::Null,
    }
}

fn with_answer(record: &Record, answer: Option<Value>) -> Value {
    let Record {
        id,
        key,
        fingerprint,
        state,
        attempt,
        version,
        owner,
        policy,
        route,
        created_at,
        updated_at,
        may_run_until,
        expires_at,
        alarmed,
        answer: _,
        fields,
        marks,
        hold,
        declared,
    } = record;
    let fields: serde_json::Map<String, Value> = (fields.0.iter())
        .map(|(name, text)| (name.to_string(), Value::from(text.as_str())))
        .collect();
    json!({
        "id": id.to_string(),
        "state": state.as_str(),
        "route": &**route,
        "namespace": &*key.namespace,
        "client": &*key.client,
        "key": &*key.message,
        "fingerprint": base16ct::lower::encode_string(&fingerprint.0),
        "attempt": attempt,
        "version": version,
        "owner": format!("{:016x}", owner.0),
        "on_unknown": match policy {
            Policy::Hold => "hold",
            Policy::Resend => "resend",
        },
        "created_at": time(*created_at),
        "updated_at": time(*updated_at),
        "may_run_until": time(*may_run_until),
        "expires_at": time(*expires_at),
        "alarmed": alarmed,
        "fields": fields,
        "stale_event": marks.stale_event,
        "possible_duplicate": marks.possible_duplicate,
        "held_for": hold.map(Hold::as_str),
        "declared": declared,
        "answer": answer,
    })
}

fn answer_size(answer: &KeptAnswer) -> Value {
    json!({ "status": answer.status.as_u16(), "body_bytes": answer.body.len() })
}

fn answer_beginning(answer: &KeptAnswer) -> Value {
    let shown = &answer.body[..answer.body.len().min(BODY_SHOWN)];
    json!({
        "status": answer.status.as_u16(),
        "body_bytes": answer.body.len(),
        "body": String::from_utf8_lossy(shown),
        "body_truncated": shown.len() < answer.body.len(),
    })
}

fn event(event: &Event) -> Value {
    let Event {
        at,
        attempt,
        state,
        cause,
        by,
    } = event;
    json!({
        "at": time(*at),
        "attempt": attempt,
        "state": state.as_str(),
        "cause": cause,
        "by": by.as_ref().map(|(name, _)| name),
        "reason": by.as_ref().map(|(_, reason)| reason),
    })
}
