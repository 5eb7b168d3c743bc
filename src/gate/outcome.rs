//! What a backend's answer means for the ledger and for Tiki. First match:
//!
//! | | default | ledger | to Tiki |
//! |---|---|---|---|
//! | success | 200-299, and `success_when` if given | done | as answered, or the platform's body |
//! | declined | `final_statuses` | done | as answered |
//! | not applied | 500 with the platform's error envelope; `retry_statuses`; `failed_when` | released | as answered if 5xx, else `upstream_failed` |
//! | can't say | everything else | hold: unknown; resend: released | as answered if 5xx, else `upstream_failed` |
//!
//! `failed_when` is somebody's explicit word, so it outranks a status: a 200 or a 422 for which it
//! holds was not applied. Where `success_when` and `failed_when` both hold, nobody can say.

use http::StatusCode;
use serde_json::Value;

use crate::client::BackendAnswer;
use crate::config::{AnswerSource, Condition, OutcomeRules, Route};
use crate::ledger::KeptAnswer;
use crate::tiki;

use super::answer::{passed_back, platform_failure, platform_success};
use super::refusal::{Refusal, UpstreamFault};

/// What an answer says of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// It was applied.
    Success,
    /// It was declined for good.
    Declined,
    /// It was not applied and may be sent again.
    NotApplied,
    /// Neither yes nor no.
    CantSay,
}

impl Class {
    /// The word for it in the ledger's events.
    pub(super) fn cause(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Declined => "declined",
            Self::NotApplied => "not_applied",
            Self::CantSay => "unclear_answer",
        }
    }
}

/// Says what a whole answer means.
pub(super) fn classify(rules: &OutcomeRules, answer: &BackendAnswer) -> Class {
    let told = Told::by(rules, answer);
    let success = answer.status.is_success();
    let declined = rules.final_statuses.contains(&answer.status);
    match (told.success, told.failure) {
        (Some(true), Some(true)) if rules.success_when.is_some() => return Class::CantSay,
        (_, Some(true)) => return Class::NotApplied,
        // What nobody could look at may say "failed" where it seems to say something else.
        (None, _) if success => return Class::CantSay,
        (_, None) if success || declined => return Class::CantSay,
        (Some(true), _) if success => return Class::Success,
        _ => {}
    }
    if declined {
        return Class::Declined;
    }
    let says_failed = answer.status == StatusCode::INTERNAL_SERVER_ERROR
        && !answer.oversized
        && tiki::is_error_body(&answer.body);
    if says_failed || rules.retry_statuses.contains(&answer.status) {
        return Class::NotApplied;
    }
    Class::CantSay
}

/// What the conditions say; none where the answer was too large to be looked at, or reads two ways.
struct Told {
    success: Option<bool>,
    failure: Option<bool>,
}

impl Told {
    fn by(rules: &OutcomeRules, answer: &BackendAnswer) -> Self {
        if rules.success_when.is_none() && rules.failed_when.is_none() {
            return Self {
                success: Some(true),
                failure: Some(false),
            };
        }
        let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
        // What was cut off, or can be read in two ways (a key twice), proves nothing.
        let readable = !answer.oversized && (value.is_none() || tiki::reads_one_way(&answer.body));
        if !readable {
            return Self {
                success: rules.success_when.is_none().then_some(true),
                failure: rules.failed_when.is_none().then_some(false),
            };
        }
        let holds = |condition: &Condition| {
            value
                .as_ref()
                .is_some_and(|value| condition_holds(condition, value))
        };
        Self {
            success: Some(rules.success_when.as_ref().is_none_or(holds)),
            failure: Some(rules.failed_when.as_ref().is_some_and(holds)),
        }
    }
}

/// Whether a JSON answer says this; numbers are compared by value.
pub(super) fn condition_holds(condition: &Condition, value: &Value) -> bool {
    let Some(found) = condition.pointer.lookup(value) else {
        return false;
    };
    match (found.as_f64(), condition.equals.as_f64()) {
        (Some(found), Some(wanted)) => found == wanted,
        _ => *found == condition.equals,
    }
}

/// The answer to keep and to give for a success or a refusal for good.
pub(super) fn final_answer(route: &Route, class: Class, answer: &BackendAnswer) -> KeptAnswer {
    let applied = class == Class::Success;
    if applied && route.answer == AnswerSource::Platform {
        return platform_success(StatusCode::OK);
    }
    if answer.oversized && applied {
        return platform_success(answer.status);
    }
    if answer.oversized {
        return platform_failure(answer.status, "declined", "the service declined the call");
    }
    as_answered(answer)
}

/// What Tiki gets when the message may come again: something that makes it send again.
pub(super) fn passing_answer(class: Class, answer: &BackendAnswer) -> Result<KeptAnswer, Refusal> {
    if answer.status.is_server_error() && !answer.oversized {
        return Ok(as_answered(answer));
    }
    Err(Refusal::UpstreamFailed(match class {
        Class::NotApplied => UpstreamFault::NotApplied,
        _ => UpstreamFault::Unclear,
    }))
}

fn as_answered(answer: &BackendAnswer) -> KeptAnswer {
    KeptAnswer {
        status: answer.status,
        headers: passed_back(&answer.headers),
        body: answer.body.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiki::Pointer;
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue};
    use serde_json::json;

    fn statuses(codes: &[u16]) -> Vec<StatusCode> {
        codes
            .iter()
            .map(|code| StatusCode::from_u16(*code).unwrap())
            .collect()
    }

    fn rules() -> OutcomeRules {
        OutcomeRules {
            success_when: None,
            failed_when: None,
            final_statuses: statuses(&[400, 409, 410, 422]),
            retry_statuses: statuses(&[401, 403, 404, 405, 408, 421, 425, 426, 429]),
        }
    }

    fn when(pointer: &str, equals: Value) -> Option<Condition> {
        Some(Condition {
            pointer: Pointer::parse(pointer).unwrap(),
            equals,
        })
    }

    fn answer(status: u16, body: &str) -> BackendAnswer {
        BackendAnswer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from(body.to_owned()),
            oversized: false,
        }
    }

    #[test]
    fn statuses_alone() {
        let by_class = [
            (Class::Success, &[200, 201, 204, 299][..]),
            (Class::Declined, &[400, 409, 410, 422]),
            (
                Class::NotApplied,
                &[401, 403, 404, 405, 408, 421, 425, 426, 429],
            ),
            (
                Class::CantSay,
                &[101, 300, 302, 304, 402, 418, 500, 501, 502, 503, 504, 599],
            ),
        ];
        for (class, codes) in by_class {
            for code in codes {
                assert_eq!(classify(&rules(), &answer(*code, "")), class, "{code}");
            }
        }
    }

    #[test]
    fn a_500_says_not_applied_only_in_the_platforms_words() {
        let failure = r#"{"data":null,"error":{"code":"1","message":"invalid transaction id"}}"#;
        assert_eq!(classify(&rules(), &answer(500, failure)), Class::NotApplied);
        assert_eq!(classify(&rules(), &answer(503, failure)), Class::CantSay);
        assert_eq!(
            classify(&rules(), &answer(500, "<h1>Fatal error</h1>")),
            Class::CantSay
        );
    }

    #[test]
    fn conditions_decide_where_they_are_given() {
        let mut rules = rules();
        rules.success_when = when("/code", json!(0));
        assert_eq!(
            classify(&rules, &answer(200, r#"{"code":0}"#)),
            Class::Success
        );
        assert_eq!(
            classify(&rules, &answer(200, r#"{"code":0.0}"#)),
            Class::Success
        );
        for body in [r#"{"code":1}"#, r#"{"code":"0"}"#, "{}", "no json", ""] {
            assert_eq!(
                classify(&rules, &answer(200, body)),
                Class::CantSay,
                "{body}"
            );
        }
        rules.failed_when = when("/code", json!(2));
        assert_eq!(
            classify(&rules, &answer(200, r#"{"code":2}"#)),
            Class::NotApplied
        );
        assert_eq!(
            classify(&rules, &answer(422, r#"{"code":2}"#)),
            Class::NotApplied
        );
        assert_eq!(
            classify(&rules, &answer(200, r#"{"code":3}"#)),
            Class::CantSay
        );
        rules.failed_when = when("/code", json!(0));
        assert_eq!(
            classify(&rules, &answer(200, r#"{"code":0}"#)),
            Class::CantSay
        );
        rules.success_when = None;
        assert_eq!(
            classify(&rules, &answer(200, r#"{"code":0}"#)),
            Class::NotApplied
        );
        assert_eq!(
            classify(&rules, &answer(200, r#"{"code":5}"#)),
            Class::Success
        );
    }

    #[test]
    fn an_answer_that_was_not_read_to_its_end_proves_no_condition() {
        let cut = BackendAnswer {
            oversized: true,
            ..answer(200, r#"{"code":0}"#)
        };
        assert_eq!(classify(&rules(), &cut), Class::Success);
        for (success_when, failed_when) in [
            (when("/code", json!(0)), None),
            (None, when("/code", json!(2))),
        ] {
            let rules = OutcomeRules {
                success_when,
                failed_when,
                ..rules()
            };
            assert_eq!(classify(&rules, &cut), Class::CantSay);
        }
        let rules = OutcomeRules {
            failed_when: when("/code", json!(2)),
            ..rules()
        };
        let declined = BackendAnswer {
            oversized: true,
            ..answer(422, r#"{"code":0}"#)
        };
        assert_eq!(classify(&rules, &declined), Class::CantSay);
    }

    #[test]
    fn an_answer_that_reads_two_ways_proves_no_condition() {
        let rules = OutcomeRules {
            failed_when: when("/code", json!(2)),
            ..rules()
        };
        for body in [r#"{"code":0,"code":2}"#, r#"{"code":2,"c\u006fde":0}"#] {
            assert_eq!(
                classify(&rules, &answer(200, body)),
                Class::CantSay,
                "{body}"
            );
        }
        assert_eq!(
            classify(&rules, &answer(200, "<p>done</p>")),
            Class::Success
        );
    }

    #[test]
    fn what_may_come_again_is_answered_5xx() {
        let server_error = answer(503, "busy");
        assert_eq!(
            passing_answer(Class::CantSay, &server_error).map(|kept| kept.status.as_u16()),
            Ok(503)
        );
        for status in [200, 302, 401, 404, 429] {
            let refusal = passing_answer(Class::NotApplied, &answer(status, "")).unwrap_err();
            assert!(
                refusal.status(StatusCode::UNAUTHORIZED).is_server_error(),
                "{status}"
            );
        }
    }

    #[test]
    fn only_harmless_headers_come_back() {
        let mut from_backend = answer(200, "ok");
        for (name, value) in [
            ("content-type", "text/plain"),
            ("set-cookie", "a=b"),
            ("server", "Apache"),
            ("connection", "keep-alive"),
            ("x-powered-by", "PHP/5.3"),
        ] {
            from_backend
                .headers
                .insert(name, HeaderValue::from_static(value));
        }
        let kept = as_answered(&from_backend);
        let names: Vec<_> = kept.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["content-type"]);
    }
}
