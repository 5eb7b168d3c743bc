//! A kept call that a person has sent.

use std::sync::Arc;

use tikigate::gate::{NotSentNow, SentNow};
use tikigate::ledger::{Ledger, Record, Resolution, Settlement, State, Verdict};

use super::faulty_ledger::Fault;
use super::lab::Lab;
use super::{HOUR, MINUTE, PATIENT};
use crate::support::backend::{Answer, Backend, Behaviour, Hold};
use crate::support::gate::{Call, refund};
use crate::support::in_time;

const REFUND: &str = "/tiki/refund";

/// A backend that loses the first answer and then does this.
async fn losing_one_answer(then: impl Fn() -> Behaviour + Send + Sync + 'static) -> Backend {
    Backend::start(move |seen| match seen.number {
        0 => Behaviour::Close,
        _ => then(),
    })
    .await
}

/// A lab whose refund `r-1` was sent, lost, and declared not applied.
async fn released(backend: &Backend, changes: &[(&str, &str)]) -> (Lab, Record) {
    let all = [PATIENT, changes].concat();
    let lab = Lab::start(&backend.url(), &all);
    let call = first_call(&lab);
    assert!(lab.send(&call).await.is(502, "upstream_failed"));
    let record = declare_not_applied(&lab).await;
    (lab, record)
}

fn first_call(lab: &Lab) -> Call {
    lab.signed(REFUND, &refund("r-1", "1000"))
        .and("X-Shop", "7")
        .and("Accept", "application/json")
        .and("Cookie", "a=b")
        .and("traceparent", TRACE)
}

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn declare_not_applied(lab: &Lab) -> Record {
    lab.advance(2 * MINUTE);
    let record = lab.record("r-1").await.unwrap();
    let resolution = Resolution {
        id: record.id,
        expected: (record.state, record.attempt, record.version),
        verdict: Verdict::NotApplied,
        by: "linh".to_owned(),
        reason: "looked it up".to_owned(),
        force: false,
    };
    lab.ledger.resolve(resolution).await.unwrap()
}

async fn send_now(lab: &Lab, record: &Record) -> Result<SentNow, NotSentNow> {
    in_time("it to be sent", lab.gate.send_now(record.id)).await
}

fn sent(status: u16, state: State) -> Result<SentNow, NotSentNow> {
    Ok(SentNow {
        status: http::StatusCode::from_u16(status).unwrap(),
        state,
    })
}

#[tokio::test]
async fn while_the_breaker_is_open_nothing_is_claimed_and_the_person_is_told() {
    let backend = losing_one_answer(|| Answer::success().into()).await;
    let breaker = "[upstreams.legacy.breaker]\nfailures = 1\nopen_for = \"1h\"\n[signature]";
    let (lab, record) = released(&backend, &[("[signature]", breaker)]).await;
    let Err(NotSentNow::Refused(why)) = send_now(&lab, &record).await else {
        panic!("it was sent")
    };
    assert!(why.contains("nothing was sent"), "{why}");
    assert_eq!(backend.requests().len(), 1);
    let after = lab.record("r-1").await.unwrap();
    assert_eq!((after.state, after.attempt), (State::Released, 1));
    // As its trial, once it is due.
    lab.advance(2 * HOUR);
    let sent = send_now(&lab, &record).await.unwrap();
    assert_eq!((sent.status.as_u16(), sent.state), (200, State::Done));
    assert_eq!(backend.requests().len(), 2);
}

#[tokio::test]
async fn the_kept_call_goes_out_as_an_attempt_of_its_own() {
    let backend = losing_one_answer(|| Answer::json(201, r#"{"n":2}"#).into()).await;
    let forwarding = (
        "payload = \"refund\"\n",
        "payload = \"refund\"\nforward_headers = [\"X-Shop\"]\n",
    );
    let (lab, record) = released(&backend, &[forwarding]).await;
    lab.advance(HOUR * 30);
    assert_eq!(send_now(&lab, &record).await, sent(201, State::Done));

    let requests = backend.requests();
    let [first, second] = &requests[..] else {
        panic!("{requests:?}")
    };
    assert_eq!(second.text(), first.text());
    assert_eq!(second.text(), refund("r-1", "1000"));
    assert_eq!((second.method(), second.target()), ("POST", "/tiki/refund"));
    // What came of the caller goes along again.
    for name in [
        "content-type",
        "accept",
        "x-shop",
        "traceparent",
        "x-tiki-signature",
        "idempotency-key",
        "x-tikigate-client-id",
        "x-tikigate-partner-code",
        "host",
    ] {
        if name != "x-tiki-signature" {
            assert!(first.header(name).is_some(), "{name}");
        }
        assert_eq!(second.header(name), first.header(name), "{name}");
    }
    assert_eq!(first.header("x-tikigate-attempt"), Some("1"));
    assert_eq!(second.header("x-tikigate-attempt"), Some("2"));
    assert_ne!(second.header("x-request-id"), first.header("x-request-id"));
    assert_eq!(second.header("cookie"), None);
    assert_eq!(second.header("connection"), Some("close"));
    // Nobody called.
    assert_eq!(second.header("x-forwarded-for"), None);

    let answer = lab.post(REFUND, &refund("r-1", "1000")).await;
    assert_eq!((answer.status, answer.replayed), (201, true));
    assert_eq!(
        send_now(&lab, &record).await,
        Err(NotSentNow::NotReleased(State::Done))
    );
    assert_eq!(backend.requests().len(), 2);
}

#[tokio::test]
async fn only_what_was_released_is_sent() {
    let backend = losing_one_answer(|| Behaviour::Close).await;
    let lab = Lab::start(&backend.url(), PATIENT);
    assert_eq!(lab.send(&first_call(&lab)).await.status, 502);
    let record = lab.record("r-1").await.unwrap();
    assert_eq!(
        send_now(&lab, &record).await,
        Err(NotSentNow::NotReleased(State::Unknown))
    );

    declare_not_applied(&lab).await;
    assert_eq!(send_now(&lab, &record).await, sent(502, State::Unknown));
    assert_eq!(
        send_now(&lab, &record).await,
        Err(NotSentNow::NotReleased(State::Unknown))
    );
    assert_eq!(backend.requests().len(), 2);
    let nobody = lab.gate.send_now(tikigate::ledger::RecordId(1)).await;
    assert_eq!(nobody, Err(NotSentNow::NotFound));
}

#[tokio::test]
async fn tikis_own_re_send_at_that_moment_makes_no_second_one() {
    for person_first in [true, false] {
        let hold = Hold::new();
        let held = hold.clone();
        let backend =
            losing_one_answer(move || Behaviour::from(Answer::success()).held(&held)).await;
        let (lab, record) = released(&backend, &[]).await;
        let person = || {
            let gate = Arc::clone(&lab.gate);
            tokio::spawn(async move { gate.send_now(record.id).await })
        };
        let tiki = || lab.begin(&lab.signed(REFUND, &refund("r-1", "1000")));
        let (person, tiki) = if person_first {
            let person = person();
            backend.wait_for_requests(2).await;
            (person, tiki())
        } else {
            let tiki = tiki();
            (person(), tiki)
        };
        backend.wait_for_requests(2).await;
        hold.release();
        let person = in_time("the person's answer", person).await.unwrap();
        match person {
            Err(NotSentNow::NotReleased(State::Claimed)) if !person_first => {}
            other => assert_eq!(other, sent(200, State::Done)),
        }
        assert_eq!(in_time("Tiki's answer", tiki).await.unwrap().status, 200);
        assert_eq!(backend.requests().len(), 2);
    }
}

#[tokio::test]
async fn a_person_who_goes_away_stops_nothing() {
    let hold = Hold::new();
    let held = hold.clone();
    let backend = losing_one_answer(move || Behaviour::from(Answer::success()).held(&held)).await;
    let (lab, record) = released(&backend, &[]).await;
    let gate = Arc::clone(&lab.gate);
    let person = tokio::spawn(async move { gate.send_now(record.id).await });
    backend.wait_for_requests(2).await;
    person.abort();
    let _ = person.await;
    hold.release();
    lab.settled().await;
    assert_eq!(lab.state("r-1").await, Some(State::Done));
}

#[tokio::test]
async fn what_can_not_be_sent_says_why() {
    let backend = losing_one_answer(|| Answer::success().into()).await;
    let (lab, record) = released(&backend, &[]).await;
    lab.ledger.next_claim(Fault::Fails);
    let refused = send_now(&lab, &record).await;
    assert!(
        matches!(refused, Err(NotSentNow::Refused(_))),
        "{refused:?}"
    );

    // A record of a route, of a client, and of a body that this gate doesn't have.
    let request = lab.ledger.request(record.id).await.unwrap().unwrap();
    let mut claim = tikigate::ledger::Claim {
        key: record.key.clone(),
        fingerprint: record.fingerprint,
        owner: tikigate::ledger::Owner(1),
        admission: tikigate::ledger::Admission::Any,
        policy: tikigate::ledger::Policy::Hold,
        keep: HOUR,
        may_run_for: MINUTE,
        route: "old-refund".into(),
        fields: tikigate::ledger::Fields::default(),
        request: Some(request),
        subject: None,
    };
    let mut verdicts = Vec::new();
    for (message, client, route, kept) in [
        ("x-1", None, "old-refund", true),
        ("x-2", Some("nobody"), "refund", true),
        ("x-3", None, "refund", true),
        ("x-4", None, "refund", false),
    ] {
        claim.key.message = message.into();
        claim.key.client = client.map_or(record.key.client.clone(), Into::into);
        claim.route = route.into();
        let mut claim = claim.clone();
        claim.request = claim.request.filter(|_| kept);
        let outcome = lab.ledger.claim(claim).await;
        let Ok(tikigate::ledger::ClaimOutcome::Granted(fence, _)) = outcome else {
            panic!("{outcome:?}")
        };
        let released = Settlement::Released("not_sent".into());
        lab.ledger.settle(fence, released).await.unwrap();
        verdicts.push(lab.gate.send_now(fence.record).await.unwrap_err());
    }
    assert_eq!(
        verdicts,
        [
            NotSentNow::NoRoute("old-refund".to_owned()),
            NotSentNow::NoClient("nobody".to_owned()),
            NotSentNow::AnotherMessage,
            NotSentNow::NoRequest,
        ]
    );

    lab.common.calls().refuse_new();
    assert_eq!(send_now(&lab, &record).await, Err(NotSentNow::Draining));
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test]
async fn what_was_held_as_a_possible_duplicate_goes_out_with_its_mark() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let holding = (
        "payload = \"refund\"\n",
        "payload = \"refund\"\nidempotency = { possible_duplicate = \"hold\" }\n",
    );
    let lab = Lab::start(&backend.url(), &[PATIENT, &[holding]].concat());
    assert_eq!(lab.post(REFUND, &refund("r-0", "1000")).await.status, 200);
    let held = lab.post(REFUND, &refund("r-1", "1000")).await;
    assert!(held.is(500, "outcome_unknown"), "{held:?}");
    let record = declare_not_applied(&lab).await;
    assert_eq!(send_now(&lab, &record).await, sent(200, State::Done));
    let requests = backend.requests();
    let last = requests.last().unwrap();
    assert_eq!(last.text(), refund("r-1", "1000"));
    assert_eq!(last.header("x-tikigate-possible-duplicate"), Some("true"));
    assert_eq!(last.header("x-tikigate-attempt"), Some("1"));
    assert_eq!(requests.len(), 2);
}
