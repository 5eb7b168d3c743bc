//! What people say in the bodies of changes.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::admin::answer::Fault;
use crate::ledger::{KeptAnswer, NAME_LIMIT, Verdict};

/// Bytes at most of a name and of a reason.
const MAX_NAME: usize = 100;
const MAX_REASON: usize = 1000;

/// What Tiki gets for a message that a person declared applied (docs/protocol.md, "Answers").
const APPLIED_BODY: &str = r#"{"data":{"status":"success"}}"#;

/// What Tiki gets for a message that a person rejected. A failure is 500 to Tiki; it may ask again
/// and is given the same.
const REJECTED_BODY: &str = r#"{"data":null,"error":{"code":"rejected","message":"the partner has rejected this request"}}"#;

/// The body of a resolution.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resolved {
    pub(super) verdict: VerdictWord,
    pub(super) reason: Option<String>,
    pub(super) by: Option<String>,
    pub(super) expected: Option<Seen>,
    #[serde(default)]
    pub(super) force: bool,
    #[serde(default)]
    pub(super) send_now: bool,
}

/// The body of a reopening.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reopened {
    pub(super) reason: Option<String>,
    pub(super) by: Option<String>,
    pub(super) expected: Option<Seen>,
}

/// The body that lifts a quarantine.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lifting {
    pub(super) reason: Option<String>,
    pub(super) by: Option<String>,
    /// The cause that the person saw: another one since then is another decision.
    pub(super) expected: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum VerdictWord {
    Applied,
    NotApplied,
    Rejected,
}

/// What the person saw.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seen {
    pub(super) state: String,
    pub(super) attempt: u32,
    pub(super) version: u64,
}

/// Reads a body; `what` names it in the complaint.
pub(in crate::admin) fn read<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body)
        .map_err(|error| Fault::Malformed(format!("the body is no {what}: {error}")))
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

pub(in crate::admin) fn reason(given: Option<String>) -> Result<String, Fault> {
    let given = given.unwrap_or_default();
    let reason = given.trim();
    if reason.is_empty() {
        return Err(Fault::ReasonRequired);
    }
    plain("reason", reason, MAX_REASON)?;
    Ok(reason.to_owned())
}

/// Who says so: always the token's holder, and whom he names beside himself.
pub(in crate::admin) fn signed(holder: &str, named: Option<String>) -> Result<String, Fault> {
    let Some(named) = named else {
        return Ok(holder.to_owned());
    };
    let named = named.trim();
    if named.is_empty() {
        return Err(Fault::Malformed("`by` is empty".to_owned()));
    }
    plain("by", named, MAX_NAME)?;
    let signed = format!("{holder} (for {named})");
    if signed.len() > NAME_LIMIT {
        return Err(Fault::Malformed(format!(
            "`{signed}` is longer than {NAME_LIMIT} bytes: give a shorter `by`"
        )));
    }
    Ok(signed)
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

#[cfg(test)]
mod tests {
    use super::*;

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
        // Together they have to fit into what the ledger keeps.
        assert!(signed("ops", Some("x".repeat(MAX_NAME))).is_ok());
        assert!(signed(&"o".repeat(64), Some("x".repeat(MAX_NAME))).is_err());
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
