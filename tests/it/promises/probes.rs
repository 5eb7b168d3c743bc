//! Asking the backend instead of a person, when Tiki sends an unknown refund again.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tikigate::ledger::{Ledger, State};

use super::lab::{Got, Lab};
use super::{HOUR, MINUTE, PATIENT, SECOND};
use crate::support::backend::{Answer, Backend, Behaviour, Hold, Seen, Then};
use crate::support::gate::{SECRET, refund};

pub(super) const REFUND: &str = "/tiki/refund";

const REFUND_ROUTE: &str = "payload = \"refund\"\nclients = [\"wallet\"]";

/// What turns the usual configuration into one whose refunds are asked about, by this path.
pub(super) fn probing(path: &str) -> (&'static str, String) {
    let probe = format!(
        r#"
[routes.idempotency.probe]
path = "{path}"
timeout = "5s"
applied = {{ status = 200, pointer = "/state", equals = "done" }}
not_applied = [
    {{ status = 200, pointer = "/state", equals = "none" }},
    {{ status = 404, pointer = "/code", equals = 7 }},
]
"#
    );
    (REFUND_ROUTE, format!("{REFUND_ROUTE}{probe}"))
}

/// What the backend does with a look, which may change.
#[derive(Clone)]
pub(super) struct Says(Arc<Mutex<Behaviour>>);

impl Says {
    pub(super) fn state(state: &str) -> Self {
        Self(Arc::new(Mutex::new(Self::answer(state))))
    }

    pub(super) fn now(&self, behaviour: Behaviour) {
        *self.0.lock().unwrap() = behaviour;
    }

    pub(super) fn now_state(&self, state: &str) {
        self.now(Self::answer(state));
    }

    fn answer(state: &str) -> Behaviour {
        Answer::json(200, &format!(r#"{{"state":"{state}"}}"#)).into()
    }
}

/// A backend that takes every refund and closes without an answer.
pub(super) async fn losing_answers(says: &Says) -> Backend {
    let says = says.clone();
    Backend::start(move |seen| match seen.method() {
        "GET" => says.0.lock().unwrap().clone(),
        _ => Behaviour::Close,
    })
    .await
}

pub(super) fn looks(backend: &Backend) -> Vec<Seen> {
    let requests = backend.requests().into_iter();
    requests.filter(|seen| seen.method() == "GET").collect()
}

pub(super) fn sent(backend: &Backend) -> usize {
    backend.requests().len() - looks(backend).len()
}

pub(super) fn lab(backend: &Backend, path: &str) -> Lab {
    let (from, to) = probing(path);
    let changes: Vec<(&str, &str)> = PATIENT
        .iter()
        .copied()
        .chain([(from, to.as_str())])
        .collect();
    Lab::start(&backend.url(), &changes)
}

/// A lab whose refund `r-1` is unknown.
async fn unknown(says: &Says) -> (Lab, Backend) {
    let backend = losing_answers(says).await;
    let lab = lab(&backend, "/refunds/{key}");
    let first = lab.post(REFUND, &refund("r-1", "1000")).await;
    assert!(first.is(502, "upstream_failed"), "{first:?}");
    assert_eq!(lab.state("r-1").await, Some(State::Unknown));
    (lab, backend)
}

async fn again(lab: &Lab) -> Got {
    lab.post(REFUND, &refund("r-1", "1000")).await
}

#[track_caller]
fn assert_held(answer: &Got) {
    assert!(answer.is(500, "outcome_unknown"), "{answer:?}");
}

pub(super) async fn causes(lab: &Lab, key: &str) -> Vec<String> {
    let record = lab.record(key).await.unwrap();
    let events = lab.ledger.events(record.id).await.unwrap();
    events.iter().map(|event| event.cause.to_string()).collect()
}

#[tokio::test]
async fn a_refund_that_the_backend_did_is_answered_with_success() {
    let says = Says::state("done");
    let (lab, backend) = unknown(&says).await;
    // At once: that something is there needs no waiting.
    for _ in 0..2 {
        let answer = again(&lab).await;
        assert_eq!((answer.status, answer.replayed), (200, true));
        assert_eq!(answer.body, r#"{"data":{"status":"success"}}"#);
    }
    assert_eq!((sent(&backend), looks(&backend).len()), (1, 1));
    let record = lab.record("r-1").await.unwrap();
    assert_eq!((record.state, record.declared), (State::Done, true));
    assert_eq!(
        causes(&lab, "r-1").await,
        ["claimed", "upstream_closed", "probe_applied"]
    );
}

#[tokio::test]
async fn a_look_has_the_gates_own_head_and_nothing_of_the_callers() {
    let says = Says::state("done");
    let backend = losing_answers(&says).await;
    let (from, to) = probing("/refunds/{key}");
    let own = (
        "[signature]",
        "set_headers = { \"X-Gate-Key\" = { file = \"secret\" } }\n[signature]",
    );
    let lab = Lab::start(&backend.url(), &[(from, to.as_str()), own]);
    assert_eq!(again(&lab).await.status, 502);
    assert_eq!(again(&lab).await.status, 200);
    let look = &looks(&backend)[0];
    assert_eq!(look.header("x-gate-key"), Some(SECRET));
    assert_eq!(look.target(), "/refunds/r-1");
    assert_eq!(look.header("host"), Some(&backend.url()["http://".len()..]));
    assert_eq!(look.header("x-request-id").map(str::len), Some(32));
    let mut names: Vec<String> = look
        .head
        .fields
        .iter()
        .map(|(name, _)| name.to_lowercase())
        .collect();
    names.sort();
    assert_eq!(names, ["host", "x-gate-key", "x-request-id"]);
    assert!(look.body.is_empty());
}

#[tokio::test]
async fn not_applied_twice_allows_one_more_attempt_and_no_third() {
    let says = Says::state("none");
    let (lab, backend) = unknown(&says).await;
    // While the attempt may run, "not there" may mean "not there yet".
    for _ in 0..3 {
        assert_held(&again(&lab).await);
        lab.advance(20 * SECOND);
    }
    assert_eq!((sent(&backend), looks(&backend).len()), (1, 3));

    lab.advance(2 * MINUTE);
    assert_held(&again(&lab).await);
    lab.advance(9 * SECOND);
    assert_held(&again(&lab).await);
    assert_eq!(looks(&backend).len(), 4, "one look within ten seconds");
    lab.advance(50 * SECOND);
    assert_held(&again(&lab).await);
    assert_eq!(looks(&backend).len(), 5);
    assert_eq!(
        lab.state("r-1").await,
        Some(State::Unknown),
        "59 s are no minute"
    );
    assert_eq!(sent(&backend), 1);

    // The second one counts, and this very call is sent.
    lab.advance(10 * SECOND);
    let second = again(&lab).await;
    assert!(second.is(502, "upstream_failed"), "{second:?}");
    assert_eq!(sent(&backend), 2);
    let requests = backend.requests();
    assert_eq!(
        requests.last().unwrap().header("x-tikigate-attempt"),
        Some("2")
    );

    // Unknown again: from here on only a person releases it.
    for _ in 0..5 {
        lab.advance(10 * MINUTE);
        assert_held(&again(&lab).await);
    }
    assert_eq!(sent(&backend), 2);
    assert_eq!(
        causes(&lab, "r-1").await,
        [
            "claimed",
            "upstream_closed",
            "probe_not_applied",
            "probe_not_applied",
            "claimed",
            "upstream_closed",
        ]
    );

    // "Applied" still counts.
    says.now_state("done");
    lab.advance(MINUTE);
    assert_eq!(again(&lab).await.status, 200);
    assert_eq!(sent(&backend), 2);
}

#[tokio::test]
async fn an_answer_that_cant_say_keeps_holding() {
    let says = Says::state("none");
    let (lab, backend) = unknown(&says).await;
    let json = |status, body: &str| Behaviour::from(Answer::json(status, body));
    let unclear = [
        json(200, r#"{"state":"busy"}"#),
        json(200, r#"{"state":"none","state":"done"}"#),
        json(200, r#"{"state":"done","st\u0061te":"none"}"#),
        json(200, r#"{"state":"none""#),
        json(200, ""),
        json(
            200,
            &format!(r#"{{"state":"none","more":"{}"}}"#, "x".repeat(70_000)),
        ),
        json(404, r#"{"code":"7"}"#),
        json(404, "<h1>Not Found</h1>"),
        json(500, r#"{"state":"none"}"#),
        json(302, r#"{"state":"none"}"#),
        Behaviour::Close,
        Behaviour::Reset,
        Behaviour::half_a_body(),
        Behaviour::malformed(),
    ];
    lab.advance(HOUR);
    for (number, behaviour) in unclear.iter().enumerate() {
        says.now(behaviour.clone());
        for _ in 0..2 {
            lab.advance(2 * MINUTE);
            assert_held(&again(&lab).await);
        }
        assert_eq!(looks(&backend).len(), 2 * number + 2);
    }
    assert_eq!(sent(&backend), 1);
    assert_eq!(lab.state("r-1").await, Some(State::Unknown));
    assert_eq!(causes(&lab, "r-1").await, ["claimed", "upstream_closed"]);
}

#[tokio::test]
async fn what_was_said_between_starts_the_minute_over() {
    let says = Says::state("none");
    let (lab, backend) = unknown(&says).await;
    lab.advance(HOUR);
    assert_held(&again(&lab).await);
    says.now(Answer::new(503).into());
    lab.advance(MINUTE);
    assert_held(&again(&lab).await);
    says.now_state("none");
    lab.advance(MINUTE);
    assert_held(&again(&lab).await);
    assert_eq!(sent(&backend), 1);
    lab.advance(MINUTE);
    assert!(again(&lab).await.is(502, "upstream_failed"));
    assert_eq!(sent(&backend), 2);
    assert!(
        causes(&lab, "r-1")
            .await
            .contains(&"probe:unclear_answer".to_owned())
    );
}

#[tokio::test]
async fn values_reach_the_backend_as_data() {
    let says = Says::state("done");
    let backend = losing_answers(&says).await;
    let lab = lab(&backend, "/refunds/{key}/state?id={key}&full=1");
    for (number, (key, encoded)) in [
        ("a/b", "a%2Fb"),
        ("a?b=c&full=0", "a%3Fb%3Dc%26full%3D0"),
        ("a#b", "a%23b"),
        ("%2f%2e%2e%2f", "%252f%252e%252e%252f"),
        ("hoàn tiền", "ho%C3%A0n%20ti%E1%BB%81n"),
        ("r 1+2", "r%201%2B2"),
        ("..;/x", "..%3B%2Fx"),
    ]
    .into_iter()
    .enumerate()
    {
        let body = refund(key, "1000");
        assert_eq!(lab.post(REFUND, &body).await.status, 502);
        assert_eq!(lab.post(REFUND, &body).await.status, 200, "{key}");
        assert_eq!(
            looks(&backend)[number].target(),
            format!("/refunds/{encoded}/state?id={encoded}&full=1")
        );
    }
}

#[tokio::test]
async fn a_value_that_would_lead_to_another_path_is_not_asked_about() {
    let says = Says::state("done");
    let backend = losing_answers(&says).await;
    let by_path = lab(&backend, "/refunds/{key}");
    for key in ["..", "/../", "x/../r-2"] {
        let body = refund(key, "1000");
        assert_eq!(by_path.post(REFUND, &body).await.status, 502);
        assert_held(&by_path.post(REFUND, &body).await);
    }
    assert_eq!(looks(&backend).len(), 0);
    // Behind a `?` it is a text like any other.
    let by_query = lab(&backend, "/refunds?id={key}");
    let body = refund("/../", "1000");
    assert_eq!(by_query.post(REFUND, &body).await.status, 502);
    assert_eq!(by_query.post(REFUND, &body).await.status, 200);
    assert_eq!(looks(&backend)[0].target(), "/refunds?id=%2F..%2F");
}

#[tokio::test]
async fn a_silent_backend_delays_nobody_beyond_the_deadline() {
    let says = Says::state("done");
    says.now(Behaviour::Silence);
    let backend = losing_answers(&says).await;
    let (from, to) = probing("/refunds/{key}");
    let lab = Lab::start(&backend.url(), &[(from, to.as_str())]);
    assert_eq!(again(&lab).await.status, 502);
    let started = Instant::now();
    assert_held(&again(&lab).await);
    assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
    assert_eq!(looks(&backend).len(), 1);

    // An answer that drips in is no answer either, and what began to come counts for nothing.
    says.now(Behaviour::Raw(
        b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"state\"".to_vec(),
        Then::Silence,
    ));
    lab.advance(MINUTE);
    let started = Instant::now();
    assert_held(&again(&lab).await);
    assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
    assert_eq!(lab.state("r-1").await, Some(State::Unknown));
}

#[tokio::test]
async fn a_look_ends_with_the_gate() {
    let says = Says::state("done");
    says.now(Behaviour::Silence);
    let (lab, backend) = unknown(&says).await;
    let waiting = lab.begin(&lab.signed(REFUND, &refund("r-1", "1000")));
    backend.wait_for_requests(2).await;
    let started = Instant::now();
    lab.common.calls().abandon();
    assert_held(&waiting.await.unwrap());
    assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_thousand_duplicates_are_one_look() {
    let says = Says::state("busy");
    let hold = Hold::new();
    says.now(Says::answer("busy").held(&hold));
    let (lab, backend) = unknown(&says).await;
    let call = lab.signed(REFUND, &refund("r-1", "1000"));
    let first: Vec<_> = (0..200).map(|_| lab.begin(&call)).collect();
    backend.wait_for_requests(2).await;
    assert!(
        !first.iter().any(|answer| answer.is_finished()),
        "they wait for the look"
    );
    hold.release();
    for answer in first {
        assert_held(&answer.await.unwrap());
    }
    let more: Vec<_> = (0..800).map(|_| lab.begin(&call)).collect();
    for answer in more {
        let answer = answer.await.unwrap();
        assert!(
            answer.is(500, "outcome_unknown") || answer.is(503, "in_progress"),
            "{answer:?}"
        );
    }
    assert_eq!((sent(&backend), looks(&backend).len()), (1, 1));
    lab.advance(10 * SECOND);
    assert_held(&lab.send(&call).await);
    assert_eq!(looks(&backend).len(), 2);
}

#[tokio::test]
async fn looks_leave_the_backend_to_real_calls() {
    let hold = Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |seen| match (seen.method(), seen.text()) {
        ("GET", _) => Says::answer("done"),
        (_, body) if body.contains("r-2") => Behaviour::from(Answer::success()).held(&held),
        _ => Behaviour::Close,
    })
    .await;
    let (from, to) = probing("/refunds/{key}");
    let one = ("[signature]", "max_in_flight = 1\n[signature]");
    let changes: Vec<(&str, &str)> = PATIENT
        .iter()
        .copied()
        .chain([(from, to.as_str()), one])
        .collect();
    let lab = Lab::start(&backend.url(), &changes);
    assert_eq!(again(&lab).await.status, 502);
    let real = lab.begin(&lab.signed(REFUND, &refund("r-2", "1000")));
    backend.wait_for_requests(2).await;
    // The only permit is taken: held as before, without a look and without a wait.
    assert_held(&again(&lab).await);
    assert_eq!(looks(&backend).len(), 0);
    hold.release();
    assert_eq!(real.await.unwrap().status, 200);
    assert_eq!(again(&lab).await.status, 200);
    assert_eq!(looks(&backend).len(), 1);
}

#[tokio::test]
async fn a_kept_connection_that_is_gone_is_no_answer_and_costs_no_look() {
    let says = Says::state("busy");
    let (lab, backend) = unknown(&says).await;
    says.now(Behaviour::then_close(Answer::json(
        200,
        r#"{"state":"busy"}"#,
    )));
    assert_held(&again(&lab).await);
    lab.advance(MINUTE);
    says.now_state("done");
    assert_eq!(again(&lab).await.status, 200);
    assert_eq!(looks(&backend).len(), 2);
}

#[tokio::test]
async fn what_was_held_and_never_sent_is_not_asked_about() {
    let says = Says::state("done");
    let backend = losing_answers(&says).await;
    let (from, to) = probing("/refunds/{key}");
    let to = to.replace(
        "\n[routes.idempotency.probe]",
        "\n[routes.idempotency]\npossible_duplicate = \"hold\"\n[routes.idempotency.probe]",
    );
    let changes: Vec<(&str, &str)> = PATIENT
        .iter()
        .copied()
        .chain([(from, to.as_str())])
        .collect();
    let lab = Lab::start(&backend.url(), &changes);
    assert_eq!(again(&lab).await.status, 502);
    let second = refund("r-2", "1000");
    for _ in 0..2 {
        assert_held(&lab.post(REFUND, &second).await);
        lab.advance(HOUR);
    }
    assert_eq!((sent(&backend), looks(&backend).len()), (1, 0));
    assert_eq!(again(&lab).await.status, 200);
}

#[tokio::test]
async fn in_a_quarantine_the_backend_knows_what_the_ledger_forgot() {
    let says = Says::state("done");
    let backend = losing_answers(&says).await;
    let lab = lab(&backend, "/refunds/{key}");
    let forgot = "the database was put back".to_owned();
    lab.ledger.enter_quarantine(forgot).await.unwrap();
    // Done before: found out within the first call.
    let known = again(&lab).await;
    assert_eq!((known.status, known.replayed), (200, true));
    assert_eq!(sent(&backend), 0);

    // New: held, until the backend has said twice that it doesn't know of it.
    says.now_state("none");
    let new = refund("r-2", "1000");
    for _ in 0..2 {
        assert_held(&lab.post(REFUND, &new).await);
        assert_eq!(sent(&backend), 0);
        lab.advance(2 * MINUTE);
    }
    assert!(lab.post(REFUND, &new).await.is(502, "upstream_failed"));
    assert_eq!(sent(&backend), 1);
}
