//! What a backend's answer to a look says.

use serde_json::Value;

use crate::client::BackendAnswer;
use crate::config::{Probe, ProbeSign};
use crate::tiki;

use super::Sight;
use crate::gate::outcome::condition_holds;

/// Signs of one kind only say so; signs of both kinds, or of none, can't say.
///
/// Where a sign's status is there and its JSON can't be read, or reads two ways, or was cut off,
/// that sign may be there or not: then nobody can say either.
pub(super) fn judge(probe: &Probe, answer: &BackendAnswer) -> Sight {
    let signs = || probe.applied.iter().chain(&probe.not_applied);
    let looks_inside = |sign: &ProbeSign| sign.status == answer.status && sign.when.is_some();
    let value = match signs().any(looks_inside) {
        false => None,
        true if answer.oversized => return Sight::CantSay("oversized_answer"),
        true => match read(answer) {
            Some(value) => Some(value),
            None => return Sight::CantSay("unreadable_answer"),
        },
    };
    let shows = |sign: &ProbeSign| {
        sign.status == answer.status
            && sign.when.as_ref().is_none_or(|when| {
                let value = value.as_ref();
                value.is_some_and(|value| condition_holds(when, value))
            })
    };
    match (
        probe.applied.iter().any(shows),
        probe.not_applied.iter().any(shows),
    ) {
        (true, false) => Sight::Applied,
        (false, true) => Sight::NotApplied,
        (true, true) => Sight::CantSay("contradiction"),
        (false, false) => Sight::CantSay("unclear_answer"),
    }
}

/// The answer's JSON, if everybody reads it alike.
fn read(answer: &BackendAnswer) -> Option<Value> {
    let value = serde_json::from_slice(&answer.body).ok()?;
    tiki::reads_one_way(&answer.body).then_some(value)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};
    use serde_json::json;
    use std::time::Duration;

    use super::*;
    use crate::config::Condition;
    use crate::tiki::Pointer;

    fn sign(status: u16, state: Option<Value>) -> ProbeSign {
        ProbeSign {
            status: StatusCode::from_u16(status).unwrap(),
            when: state.map(|equals| Condition {
                pointer: Pointer::parse("/state").unwrap(),
                equals,
            }),
        }
    }

    fn probe(applied: Vec<ProbeSign>, not_applied: Vec<ProbeSign>) -> Probe {
        Probe {
            path: Vec::new(),
            timeout: Duration::from_secs(1),
            applied,
            not_applied,
        }
    }

    fn usual() -> Probe {
        probe(
            vec![sign(200, Some(json!("done"))), sign(204, None)],
            vec![
                sign(200, Some(json!("none"))),
                sign(404, Some(json!("none"))),
                sign(410, None),
            ],
        )
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
    fn a_sign_is_a_status_and_what_its_json_says() {
        for (status, body, sight) in [
            (200, r#"{"state":"done"}"#, Sight::Applied),
            (200, r#"{"state":"none"}"#, Sight::NotApplied),
            (404, r#"{"state":"none"}"#, Sight::NotApplied),
            (204, "", Sight::Applied),
            (410, "<h1>Gone</h1>", Sight::NotApplied),
            (200, r#"{"state":"busy"}"#, Sight::CantSay("unclear_answer")),
            (200, r#"{"State":"done"}"#, Sight::CantSay("unclear_answer")),
            (201, r#"{"state":"done"}"#, Sight::CantSay("unclear_answer")),
            (404, r#"{"state":"done"}"#, Sight::CantSay("unclear_answer")),
            (500, r#"{"state":"none"}"#, Sight::CantSay("unclear_answer")),
        ] {
            assert_eq!(
                judge(&usual(), &answer(status, body)),
                sight,
                "{status} {body}"
            );
        }
    }

    #[test]
    fn json_that_nobody_can_rely_on_proves_nothing() {
        for body in [
            r#"{"state":"none","state":"done"}"#,
            r#"{"state":"done","st\u0061te":"none"}"#,
            r#"{"state":"none""#,
            "<h1>Not Found</h1>",
            "",
        ] {
            for status in [200, 404] {
                let sight = judge(&usual(), &answer(status, body));
                assert_eq!(sight, Sight::CantSay("unreadable_answer"), "{body}");
            }
        }
        let cut = BackendAnswer {
            oversized: true,
            ..answer(200, r#"{"state":"done"}"#)
        };
        assert_eq!(judge(&usual(), &cut), Sight::CantSay("oversized_answer"));
        // Where the status is enough, nothing is read.
        let cut = BackendAnswer {
            status: StatusCode::GONE,
            ..cut
        };
        assert_eq!(judge(&usual(), &cut), Sight::NotApplied);
    }

    #[test]
    fn a_bare_status_and_json_beside_it_are_both_heard() {
        let probe = probe(vec![sign(200, Some(json!("done")))], vec![sign(200, None)]);
        let judged = |body| judge(&probe, &answer(200, body));
        assert_eq!(
            judged(r#"{"state":"done"}"#),
            Sight::CantSay("contradiction")
        );
        assert_eq!(judged(r#"{"state":"none"}"#), Sight::NotApplied);
        assert_eq!(
            judged("<p>maintenance"),
            Sight::CantSay("unreadable_answer")
        );
    }
}
