//! The ledger, seen and resolved by people.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::answer::{self, Answer, Fault};
use super::handler::Desk;
use super::view;
use crate::ledger::{
    Filter, KeptAnswer, LedgerError, Record, RecordId, Resolution, ResolveError, State, Verdict,
};

/// Records in one answer: unless asked, and at most.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 500;

/// Bytes at most of what is searched for, of a name and of a reason.
const MAX_QUERY: usize = 256;
const MAX_NAME: usize = 100;
const MAX_REASON: usize = 1000;

/// What Tiki gets for a message that a person declared applied (docs/protocol.md, "Answers").
const APPLIED_BODY: &str = r#"{"data":{"status":"success"}}"#;

/// What Tiki gets for a message that a person rejected. A failure is 500 to Tiki; it may ask again
/// and is given the same.
const REJECTED_BODY: &str = r#"{"data":null,"error":{"code":"rejected","message":"the partner has rejected this request"}}"#;

/// `GET /api/ledger`: records in the order of their ids, and where to go on.
pub(super) async fn list(desk: &Desk, query: &str) -> Result<Answer, Fault> {
    let filter = read_filter(query)?;
    let page = ledger(desk.ask(desk.ledger.list(filter)).await?)?;
    let next = page.next.map(|next| next.to_string());
    let records: Vec<_> = page.records.iter().map(view::summary).collect();
    Ok(answer::data(json!({ "records": records, "next": next })))
}

/// `GET /api/ledger/{id}`: one record with its events.
pub(super) async fn show(desk: &Desk, id: RecordId) -> Result<Answer, Fault> {
    let record = get(desk, id).await?;
    let events = ledger(desk.ask(desk.ledger.events(id)).await?)?;
    Ok(answer::data(view::full(&record, &events)))
}

/// `POST /api/ledger/{id}/resolve`: ends an unknown record by the word of the token's holder.
pub(super) async fn resolve(
    desk: &Desk,
    id: RecordId,
    holder: &str,
    body: &[u8],
) -> Result<Answer, Fault> {
    let word: Word = serde_json::from_slice(body)
        .map_err(|error| Fault::Malformed(format!("the body is no resolution: {error}")))?;
    let reason = reason(word.reason)?;
    let by = signed(holder, word.by)?;
    let expected = match word.expected {
        Some(seen) => (state(&seen.state)?, seen.attempt, seen.version),
        None => {
            let now = get(desk, id).await?;
            (now.state, now.attempt, now.version)
        }
    };
    let resolution = Resolution {
        id,
        expected,
        verdict: word.verdict.into(),
        by: by.clone(),
        reason: reason.clone(),
        force: word.force,
    };
    match desk.ask(desk.ledger.resolve(resolution)).await? {
        Ok(record) => {
            tracing::info!(
                tikigate.record = %id, tikigate.by = by, tikigate.reason = reason,
                tikigate.state = record.state.as_str(), "record resolved through the admin API",
            );
            Ok(answer::data(view::summary(&record)))
        }
        Err(error) => Err(refusal(error)),
    }
}

/// The body of a resolution.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Word {
    verdict: VerdictWord,
    reason: Option<String>,
    by: Option<String>,
    expected: Option<Seen>,
    #[serde(default)]
    force: bool,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum VerdictWord {
    Applied,
    NotApplied,
    Rejected,
}

/// What the person saw.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    state: String,
    attempt: u32,
    version: u64,
}

impl From<VerdictWord> for Verdict {
    fn from(word: VerdictWord) -> Self {
        match word {
            VerdictWord::Applied => Verdict::Applied(kept(StatusCode::OK, APPLIED_BODY)),
            VerdictWord::NotApplied => Verdict::NotApplied,
            VerdictWord::Rejected => {
                Verdict::Rejected(kept(StatusCode::INTERNAL_SERVER_ERROR, REJECTED_BODY))
            }
        }
    }
}

fn kept(status: StatusCode, body: &'static str) -> KeptAnswer {
    KeptAnswer {
        status,
        headers: vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))],
        body: Bytes::from_static(body.as_bytes()),
    }
}

async fn get(desk: &Desk, id: RecordId) -> Result<Record, Fault> {
    ledger(desk.ask(desk.ledger.get(id)).await?)?.ok_or(Fault::NoSuchRecord)
}

/// The detail goes to the log, a stable sentence to the caller.
fn ledger<T>(answer: Result<T, LedgerError>) -> Result<T, Fault> {
    answer.map_err(|error| {
        tracing::warn!(%error, "the ledger refused the admin API");
        Fault::LedgerUnavailable
    })
}

fn refusal(error: ResolveError) -> Fault {
    match error {
        ResolveError::NotFound => Fault::NoSuchRecord,
        ResolveError::Changed(record) => Fault::Conflict(record),
        ResolveError::NotUnknown(state) => Fault::NotUnknown(state),
        ResolveError::MayStillRun { until } => Fault::MayStillRun(until),
        ResolveError::NoFurtherRelease => Fault::NoFurtherRelease,
        ResolveError::NotDeclared => Fault::Malformed(error.to_string()),
        ResolveError::NeverSent => Fault::Malformed(error.to_string()),
        ResolveError::NoReason => Fault::ReasonRequired,
        ResolveError::Ledger(error) => {
            tracing::warn!(%error, "the ledger could not resolve a record");
            Fault::LedgerUnavailable
        }
    }
}

fn reason(given: Option<String>) -> Result<String, Fault> {
    let given = given.unwrap_or_default();
    let reason = given.trim();
    if reason.is_empty() {
        return Err(Fault::ReasonRequired);
    }
    plain("reason", reason, MAX_REASON)?;
    Ok(reason.to_owned())
}

/// Who resolves: always the token's holder, and whom he names beside himself.
fn signed(holder: &str, named: Option<String>) -> Result<String, Fault> {
    let Some(named) = named else {
        return Ok(holder.to_owned());
    };
    let named = named.trim();
    if named.is_empty() {
        return Err(Fault::Malformed("`by` is empty".to_owned()));
    }
    plain("by", named, MAX_NAME)?;
    Ok(format!("{holder} (for {named})"))
}

/// What goes into the event log is one line of bounded length.
fn plain(field: &str, text: &str, limit: usize) -> Result<(), Fault> {
    if text.len() > limit {
        return Err(Fault::Malformed(format!(
            "`{field}` is longer than {limit} bytes"
        )));
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::Malformed(format!(
            "`{field}` contains control characters"
        )));
    }
    Ok(())
}

/// `state=&route=&q=&after=&limit=`; an unknown or repeated name is an error, since a filter that is
/// silently ignored shows more than was asked for. An empty value is no filter.
fn read_filter(query: &str) -> Result<Filter, Fault> {
    let mut filter = Filter {
        limit: DEFAULT_LIMIT,
        ..Filter::default()
    };
    let mut seen: Vec<Cow<'_, str>> = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if seen.contains(&name) {
            return Err(Fault::Malformed(format!("`{name}` is given twice")));
        }
        if value.len() > MAX_QUERY {
            return Err(Fault::Malformed(format!(
                "`{name}` is longer than {MAX_QUERY} bytes"
            )));
        }
        let given = (!value.is_empty()).then_some(&*value);
        match &*name {
            "state" => filter.state = given.map(state).transpose()?,
            "route" => filter.route = given.map(str::to_owned),
            "q" => filter.query = given.map(str::to_owned),
            "after" => filter.after = given.map(cursor).transpose()?,
            "limit" => filter.limit = given.map_or(Ok(DEFAULT_LIMIT), limit)?,
            _ => return Err(Fault::Malformed(format!("there is no filter `{name}`"))),
        }
        seen.push(name);
    }
    Ok(filter)
}

fn state(word: &str) -> Result<State, Fault> {
    word.parse().map_err(|()| {
        let all = State::ALL.map(State::as_str).join(", ");
        Fault::Malformed(format!("there is no state `{word}`; there are {all}"))
    })
}

fn cursor(text: &str) -> Result<RecordId, Fault> {
    text.parse()
        .map_err(|()| Fault::Malformed(format!("`{text}` is no record id such as rec-12")))
}

fn limit(text: &str) -> Result<usize, Fault> {
    match text.parse() {
        Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        _ => Err(Fault::Malformed(format!(
            "`limit` is a number from 1 to {MAX_LIMIT}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(fault: Fault) -> String {
        match fault {
            Fault::Malformed(message) => message,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_filter_is_read_whole_or_not_at_all() {
        let filter = read_filter("state=unknown&route=refund&q=a%26b+c&after=rec-7&limit=500");
        let filter = filter.unwrap();
        assert_eq!(filter.state, Some(State::Unknown));
        assert_eq!(filter.route.as_deref(), Some("refund"));
        assert_eq!(filter.query.as_deref(), Some("a&b c"));
        assert_eq!(filter.after, Some(RecordId(7)));
        assert_eq!(filter.limit, 500);

        let nothing = read_filter("state=&q=&limit=").unwrap();
        assert!(nothing.state.is_none() && nothing.query.is_none());
        assert_eq!(nothing.limit, DEFAULT_LIMIT);

        for (query, complaint) in [
            ("state=lost", "there is no state `lost`; there are claimed"),
            ("stat=unknown", "there is no filter `stat`"),
            ("q=a&q=b", "`q` is given twice"),
            ("after=7", "`7` is no record id"),
            ("limit=0", "`limit` is a number from 1 to 500"),
            ("limit=501", "`limit` is a number from 1 to 500"),
        ] {
            let fault = message(read_filter(query).unwrap_err());
            assert!(fault.starts_with(complaint), "{query}: {fault}");
        }
        let long = format!("q={}", "x".repeat(MAX_QUERY + 1));
        assert!(read_filter(&long).is_err());
    }

    #[test]
    fn the_holder_of_the_token_is_always_named() {
        assert_eq!(signed("ops", None).unwrap(), "ops");
        assert_eq!(
            signed("ops", Some(" linh ".to_owned())).unwrap(),
            "ops (for linh)"
        );
        assert!(signed("ops", Some("  ".to_owned())).is_err());
        assert!(signed("ops", Some("a\nb".to_owned())).is_err());
        assert!(signed("ops", Some("x".repeat(MAX_NAME + 1))).is_err());
    }

    #[test]
    fn a_reason_says_something() {
        assert_eq!(
            reason(Some(" seen in the ledger ".to_owned())).unwrap(),
            "seen in the ledger"
        );
        assert!(matches!(reason(None), Err(Fault::ReasonRequired)));
        assert!(matches!(
            reason(Some(" \n ".to_owned())),
            Err(Fault::ReasonRequired)
        ));
        assert!(matches!(
            reason(Some("a\u{1b}[2J".to_owned())),
            Err(Fault::Malformed(_))
        ));
        assert!(reason(Some("x".repeat(MAX_REASON + 1))).is_err());
    }

    #[test]
    fn kept_answers_are_json() {
        for body in [APPLIED_BODY, REJECTED_BODY] {
            assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
        }
    }
}
