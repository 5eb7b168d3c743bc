//! Events of one order that come out of order.

use tikigate::ledger::State;
use tikigate::tiki::SUCCESS_BODY;

use super::{PATIENT, access_lines, changed, read_all, send_all};
use crate::support::backend::{Answer, Backend, Behaviour, Hold, Seen};
use crate::support::gate::TestGate;

const MARK: &str = "x-tikigate-stale-event";
const DROP: &[(&str, &str)] = &[(
    "payload = \"order_ipn\"\n",
    "payload = \"order_ipn\"\nidempotency = { stale_events = \"drop\" }\n",
)];

/// An event of an order, `minute` minutes after the first one.
fn event(message: &str, order: &str, minute: u32) -> String {
    format!(
        r#"{{"message_id":"{message}","message_type":"notification","message_created_at":"2022-11-09T14:{minute:02}:00+07:00","order":{{"id":"{order}","status":"online_paid","grand_total":1000,"tiki_order_id":"1001","tiki_order_code":"308"}}}}"#
    )
}

async fn agreeable() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

async fn post(gate: &TestGate, body: &str) -> u16 {
    gate.post("/tiki/order", body).await.status
}

/// Which messages the backend got, each with what it was told.
fn told(requests: &[Seen]) -> Vec<(String, Option<String>)> {
    let one = |seen: &Seen| {
        let key = seen.header("idempotency-key").unwrap().to_owned();
        (key, seen.header(MARK).map(str::to_owned))
    };
    requests.iter().map(one).collect()
}

fn plain(message: &str) -> (String, Option<String>) {
    (message.to_owned(), None)
}

fn marked(message: &str) -> (String, Option<String>) {
    (message.to_owned(), Some("true".to_owned()))
}

async fn counted(gate: &TestGate, action: &str) -> f64 {
    let series = format!(r#"tikigate_stale_events_total{{route="order",action="{action}"}}"#);
    gate.metric(&series).await
}

/// Which messages the log says something of, and what; each worker's lines come in a row.
fn logged(gate: &TestGate) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let lines = access_lines(gate).into_iter();
    lines
        .filter(|line| !line["tikigate.stale_event"].is_null())
        .map(|line| {
            (
                text(&line["tikigate.idempotency_key"]),
                text(&line["tikigate.stale_event"]),
            )
        })
        .collect()
}

#[tokio::test]
async fn an_event_older_than_one_that_was_passed_on_is_marked() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    for (message, order, minute) in [
        ("m-1", "o-1", 10),
        ("m-2", "o-1", 20),
        ("m-3", "o-1", 19),
        // Another order's.
        ("m-4", "o-2", 5),
        // As old as the newest, and newer.
        ("m-5", "o-1", 20),
        ("m-6", "o-1", 21),
    ] {
        assert_eq!(post(&gate, &event(message, order, minute)).await, 200);
    }
    let expected = [
        plain("m-1"),
        plain("m-2"),
        marked("m-3"),
        plain("m-4"),
        plain("m-5"),
        plain("m-6"),
    ];
    assert_eq!(told(&backend.requests()), expected);
    assert_eq!(counted(&gate, "marked").await, 1.0);
    assert_eq!(counted(&gate, "dropped").await, 0.0);
    assert_eq!(logged(&gate), [("m-3".to_owned(), "marked".to_owned())]);
    assert!(gate.record("m-3").await.unwrap().marks.stale_event);
    assert!(!gate.record("m-6").await.unwrap().marks.stale_event);

    // Sent again, it is answered from the ledger like any other.
    let again = gate.post("/tiki/order", &event("m-3", "o-1", 19)).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(counted(&gate, "marked").await, 1.0);
}

#[tokio::test]
async fn one_that_was_tried_before_is_marked_once_a_newer_one_was_passed_on() {
    let failure = r#"{"data":null,"error":{"code":"1","message":"not now"}}"#;
    let backend = Backend::start(move |seen| match seen.header("x-tikigate-attempt") {
        Some("1") if seen.text().contains("m-1") => Answer::json(500, failure).into(),
        _ => Answer::success().into(),
    })
    .await;
    let gate = TestGate::start(&backend.url()).await;
    let first = event("m-1", "o-1", 10);
    assert_eq!(post(&gate, &first).await, 500);
    assert_eq!(post(&gate, &event("m-2", "o-1", 20)).await, 200);
    assert_eq!(post(&gate, &first).await, 200);
    let expected = [plain("m-1"), plain("m-2"), marked("m-1")];
    assert_eq!(told(&backend.requests()), expected);
}

#[tokio::test]
async fn a_newer_event_that_the_backend_did_not_take_drops_nothing() {
    let failure = r#"{"data":null,"error":{"code":"1","message":"not now"}}"#;
    let backend = Backend::start(move |seen| match seen.text() {
        body if body.contains("m-failed") => Answer::json(500, failure).into(),
        body if body.contains("m-declined") => Answer::json(422, "{}").into(),
        _ => Answer::success().into(),
    })
    .await;
    for changes in [&[][..], DROP] {
        let gate = TestGate::with(&changed(&backend.url(), changes)).await;
        // It will come again, and be the newest then.
        assert_eq!(post(&gate, &event("m-failed", "o-1", 20)).await, 500);
        assert_eq!(post(&gate, &event("m-1", "o-1", 10)).await, 200);
        assert_eq!(told(&backend.requests()).pop(), Some(plain("m-1")));
        // It will not come again, and the backend may have kept what it says.
        assert_eq!(post(&gate, &event("m-declined", "o-1", 21)).await, 422);
        assert_eq!(post(&gate, &event("m-2", "o-1", 11)).await, 200);
        assert_eq!(told(&backend.requests()).pop(), Some(marked("m-2")));
        assert_eq!(counted(&gate, "dropped").await, 0.0);
    }
}

#[tokio::test]
async fn a_stale_event_is_dropped_where_the_route_says_so() {
    let backend = agreeable().await;
    let gate = TestGate::with(&changed(&backend.url(), DROP)).await;
    assert_eq!(post(&gate, &event("m-2", "o-1", 20)).await, 200);
    let stale = event("m-1", "o-1", 10);
    let dropped = gate.post("/tiki/order", &stale).await;
    assert_eq!((dropped.status, dropped.text()), (200, SUCCESS_BODY));
    assert_eq!(dropped.header("content-type"), Some("application/json"));
    assert_eq!(dropped.header("idempotency-replayed"), None);
    // Sent again, as it is and spelled anew, it gets the same.
    for body in [stale.clone(), stale.replace("1000", "1e3")] {
        let again = gate.post("/tiki/order", &body).await;
        assert_eq!((again.status, again.text()), (200, SUCCESS_BODY));
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
    }
    // Another order's, and a newer one, go their way.
    assert_eq!(post(&gate, &event("m-3", "o-2", 5)).await, 200);
    assert_eq!(post(&gate, &event("m-4", "o-1", 21)).await, 200);
    let expected = [plain("m-2"), plain("m-3"), plain("m-4")];
    assert_eq!(told(&backend.requests()), expected);

    assert_eq!(counted(&gate, "dropped").await, 1.0);
    assert_eq!(counted(&gate, "marked").await, 0.0);
    assert_eq!(logged(&gate), [("m-1".to_owned(), "dropped".to_owned())]);
    let events = gate.events("m-1").await;
    assert_eq!(events.len(), 1);
    assert_eq!(
        (events[0].state, &*events[0].cause),
        (State::Done, "stale_event_dropped")
    );
}

/// Dropping loses the older one for good: a newer one that may yet fail is no ground for it.
#[tokio::test]
async fn only_an_event_that_was_taken_drops_another() {
    let hold = Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |seen| match seen.text().contains("m-2") {
        true => Behaviour::Held(held.clone(), Box::new(Answer::success().into())),
        false => Answer::success().into(),
    })
    .await;
    let changes = [DROP, PATIENT].concat();
    let gate = TestGate::with(&changed(&backend.url(), &changes)).await;
    let newer = gate.signed("/tiki/order", &event("m-2", "o-1", 20));
    let clients = send_all(&gate, &[newer]).await;
    backend.wait_for_requests(1).await;
    assert_eq!(post(&gate, &event("m-1", "o-1", 10)).await, 200);
    hold.release();
    assert_eq!(read_all(clients).await[0].status, 200);
    assert_eq!(told(&backend.requests()), [plain("m-2"), marked("m-1")]);
    // From now on one is.
    assert_eq!(post(&gate, &event("m-3", "o-1", 11)).await, 200);
    assert_eq!(backend.requests().len(), 2);
    assert_eq!(counted(&gate, "marked").await, 1.0);
    assert_eq!(counted(&gate, "dropped").await, 1.0);
}

#[tokio::test]
async fn a_callers_own_marks_never_pass() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    for (path, body) in [
        ("/tiki/order", event("m-1", "o-1", 10)),
        ("/tiki/any", "{}".to_owned()),
    ] {
        let call = gate
            .signed(path, &body)
            .and("X-Tikigate-Stale-Event", "true")
            .and("x-tikigate-possible-duplicate", "true");
        assert_eq!(gate.send(&call).await.status, 200);
    }
    let stale = gate
        .signed("/tiki/order", &event("m-2", "o-1", 9))
        .and("X-Tikigate-Stale-Event", "false");
    assert_eq!(gate.send(&stale).await.status, 200);
    let requests = backend.requests();
    for seen in &requests[..2] {
        assert_eq!(seen.header(MARK), None);
        assert_eq!(seen.header("x-tikigate-possible-duplicate"), None);
    }
    assert_eq!(requests[2].header(MARK), Some("true"));
}
