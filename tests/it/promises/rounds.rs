//! Asking the backend instead of a person, without anybody asking first.

use std::sync::Arc;

use tikigate::gate::Rounds;
use tikigate::ledger::{
    Admission, Claim, ClaimOutcome, Fields, Fingerprint, Hold as Held, Key, Ledger, Owner, Policy,
    Settlement, State, Subject, SubjectRule,
};

use super::lab::Lab;
use super::probes::{REFUND, Says, causes, lab, looks, losing_answers, probing, sent};
use super::{DAY, HOUR, MINUTE, PATIENT, SECOND, changed};
use crate::support::backend::{Answer, Backend, Behaviour, Hold};
use crate::support::gate::{TestGate, refund};
use crate::support::in_time;

async fn round(rounds: &mut Rounds, lab: &Lab) {
    in_time("a round", rounds.round(&lab.gate)).await;
}

#[tokio::test]
async fn an_unknown_refund_is_looked_into_once_its_attempt_is_over() {
    let says = Says::state("none");
    let backend = losing_answers(&says).await;
    let lab = lab(&backend, "/refunds/{key}");
    let mut rounds = Rounds::default();
    assert_eq!(lab.post(REFUND, &refund("r-1", "1000")).await.status, 502);
    // settle_within and a quiet minute.
    lab.advance(69 * SECOND);
    round(&mut rounds, &lab).await;
    assert_eq!(looks(&backend).len(), 0);

    lab.advance(SECOND);
    round(&mut rounds, &lab).await;
    round(&mut rounds, &lab).await;
    lab.advance(59 * SECOND);
    round(&mut rounds, &lab).await;
    assert_eq!(looks(&backend).len(), 1, "a minute between the first two");
    assert_eq!(lab.state("r-1").await, Some(State::Unknown));

    lab.advance(20 * SECOND);
    round(&mut rounds, &lab).await;
    assert_eq!(looks(&backend).len(), 2);
    assert_eq!(lab.state("r-1").await, Some(State::Released));
    // A look releases and sends nothing: Tiki's next call does.
    lab.advance(HOUR);
    round(&mut rounds, &lab).await;
    assert_eq!((sent(&backend), looks(&backend).len()), (1, 2));
    assert_eq!(lab.post(REFUND, &refund("r-1", "1000")).await.status, 502);
    assert_eq!(sent(&backend), 2);

    // Unknown again: looked into, and released by no look again.
    for _ in 0..20 {
        lab.advance(HOUR);
        round(&mut rounds, &lab).await;
    }
    assert_eq!(lab.state("r-1").await, Some(State::Unknown));
    says.now_state("done");
    lab.advance(2 * HOUR);
    round(&mut rounds, &lab).await;
    assert_eq!(lab.state("r-1").await, Some(State::Done));
    let answer = lab.post(REFUND, &refund("r-1", "1000")).await;
    assert_eq!((answer.status, answer.replayed), (200, true));
    assert_eq!(sent(&backend), 2);
}

#[tokio::test]
async fn looks_become_rarer_and_never_end() {
    let says = Says::state("busy");
    let backend = losing_answers(&says).await;
    let lab = lab(&backend, "/refunds/{key}");
    let mut rounds = Rounds::default();
    assert_eq!(lab.post(REFUND, &refund("r-1", "1000")).await.status, 502);
    let mut in_first_day = 0;
    for day in 0..3 {
        let before = looks(&backend).len();
        for _ in 0..24 * 60 {
            lab.advance(MINUTE);
            round(&mut rounds, &lab).await;
        }
        let made = looks(&backend).len() - before;
        // Hourly, made longer by a quarter at most.
        assert!((18..=24 + 8).contains(&made), "{made} looks on day {day}");
        if day == 0 {
            in_first_day = made;
        }
    }
    assert!(in_first_day > 22, "{in_first_day}");
    assert_eq!(sent(&backend), 1);
    assert_eq!(causes(&lab, "r-1").await, ["claimed", "upstream_closed"]);
}

#[tokio::test]
async fn every_unknown_refund_is_looked_into_and_nothing_else_is() {
    let says = Says::state("done");
    let backend = losing_answers(&says).await;
    let lab = lab(&backend, "/refunds/{key}");
    let mut claims = 0;
    for number in 0..250 {
        let outcome = lab
            .ledger
            .claim(claim(&lab, "refund", &format!("r-{number}")))
            .await;
        let Ok(ClaimOutcome::Granted(fence, _)) = outcome else {
            panic!("{outcome:?}")
        };
        claims += 1;
        let unknown = Settlement::Unknown("upstream_closed".into());
        if number % 2 == 0 {
            lab.ledger.settle(fence, unknown).await.unwrap();
        }
    }
    assert_eq!(claims, 250);
    // Of a route that is gone, and of one without a probe.
    for (route, key) in [("gone", "g-1"), ("ipn", "i-1")] {
        let Ok(ClaimOutcome::Granted(fence, _)) = lab.ledger.claim(claim(&lab, route, key)).await
        else {
            panic!("it is new")
        };
        let unknown = Settlement::Unknown("upstream_closed".into());
        lab.ledger.settle(fence, unknown).await.unwrap();
    }
    // Held as a possible duplicate: it was never sent.
    let suspect = Claim {
        subject: Some(Subject {
            id: "p-1".into(),
            rule: SubjectRule::Payment {
                amount: "1000".into(),
                window: DAY,
                hold: true,
            },
        }),
        ..claim(&lab, "refund", "d-1")
    };
    let other = Claim {
        key: key("d-2"),
        ..suspect.clone()
    };
    assert!(matches!(
        lab.ledger.claim(suspect).await,
        Ok(ClaimOutcome::Granted(..))
    ));
    assert!(matches!(
        lab.ledger.claim(other).await,
        Ok(ClaimOutcome::Held(_, Held::PossibleDuplicate))
    ));

    lab.advance(HOUR);
    round(&mut Rounds::default(), &lab).await;
    let mut asked: Vec<String> = looks(&backend)
        .iter()
        .map(|seen| seen.target().to_owned())
        .collect();
    asked.sort();
    let mut expected: Vec<String> = (0..125)
        .map(|half| format!("/refunds/r-{}", 2 * half))
        .collect();
    expected.sort();
    assert_eq!(asked, expected);
    assert_eq!(lab.state("r-0").await, Some(State::Done));
    for key in ["g-1", "i-1", "d-2"] {
        assert_eq!(lab.state(key).await, Some(State::Unknown), "{key}");
    }
}

fn key(message: &str) -> Key {
    Key {
        namespace: "refund".into(),
        client: "c".into(),
        message: message.into(),
    }
}

fn claim(lab: &Lab, route: &str, message: &str) -> Claim {
    let _ = lab;
    Claim {
        key: key(message),
        fingerprint: Fingerprint([7; 32]),
        owner: Owner(1),
        admission: Admission::Any,
        policy: Policy::Hold,
        keep: DAY,
        may_run_for: MINUTE,
        route: Arc::from(route),
        fields: Fields::default(),
        request: None,
        subject: None,
    }
}

#[tokio::test]
async fn a_running_gate_finds_out_by_itself() {
    let says = Says::state("done");
    let backend = losing_answers(&says).await;
    let (from, to) = probing("/refunds/{key}");
    let changes: Vec<(&str, &str)> = PATIENT
        .iter()
        .copied()
        .chain([(from, to.as_str())])
        .collect();
    let gate = TestGate::with(&changed(&backend.url(), &changes)).await;
    assert_eq!(gate.post(REFUND, &refund("r-1", "1000")).await.status, 502);
    gate.advance(2 * MINUTE);
    gate.wait_for_state("r-1", State::Done).await;
    let series = r#"tikigate_probes_total{route="refund",result="applied"}"#;
    assert_eq!(gate.metric(series).await, 1.0);
    says.now(Behaviour::from(Answer::new(500)));
    let answer = gate.post(REFUND, &refund("r-1", "1000")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("idempotency-replayed"), Some("true"));
    assert_eq!((sent(&backend), looks(&backend).len()), (1, 1));
}

#[tokio::test]
async fn a_gate_that_drains_looks_no_more() {
    let hold = Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |seen| match (seen.method(), seen.text()) {
        ("GET", _) => Answer::json(200, r#"{"state":"done"}"#).into(),
        (_, body) if body.contains("r-2") => Behaviour::from(Answer::success()).held(&held),
        _ => Behaviour::Close,
    })
    .await;
    let (from, to) = probing("/refunds/{key}");
    let changes: Vec<(&str, &str)> = PATIENT
        .iter()
        .copied()
        .chain([(from, to.as_str())])
        .collect();
    let gate = TestGate::with(&changed(&backend.url(), &changes)).await;
    assert_eq!(gate.post(REFUND, &refund("r-1", "1000")).await.status, 502);
    let mut running = gate.connect().await;
    let call = gate.signed(REFUND, &refund("r-2", "1000"));
    running.send(call.to_bytes()).await;
    backend.wait_for_requests(2).await;
    gate.stopper().drain();
    gate.advance(2 * MINUTE);
    // Longer than between two rounds, which nothing but time begins.
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(looks(&backend).len(), 0);
    assert_eq!(gate.state("r-1").await, Some(State::Unknown));
    hold.release();
    assert_eq!(running.read_answer().await.status, 200);
}
