//! One more refund of a payment, of the same amount, under another `request_id`.

use serde_json::json;
use tikigate::ledger::State;
use tikigate::net::ListenAddress;

use super::{
    DAY, MILLISECOND, PATIENT, access_lines, assert_refused, changed, read_all, refused_for,
    send_all,
};
use crate::support::backend::{Answer, Backend, Behaviour, Seen};
use crate::support::gate::TestGate;
use crate::support::raw::{RawAnswer, exchange};

const MARK: &str = "x-tikigate-possible-duplicate";
/// The ledger in a file.
const SQLITE: &[(&str, &str)] = &[(
    "store = \"memory\"\nallow_volatile = true\n",
    "store = \"sqlite\"\n",
)];
const HOLD: &[(&str, &str)] = &[(
    "payload = \"refund\"\n",
    "payload = \"refund\"\nidempotency = { possible_duplicate = \"hold\" }\n",
)];

fn refund(request: &str, payment: &str, amount: &str) -> String {
    format!(
        r#"{{"tiki_transaction_id":"t-{payment}","transaction_amount":{amount},"transaction_id":"{payment}","reason":"x","request_id":"{request}"}}"#
    )
}

async fn agreeable() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

async fn post(gate: &TestGate, body: &str) -> RawAnswer {
    gate.post("/tiki/refund", body).await
}

/// Which refunds the backend got, each with what it was told.
fn told(requests: &[Seen]) -> Vec<(String, bool)> {
    let one = |seen: &Seen| {
        let key = seen.header("idempotency-key").unwrap().to_owned();
        let mark = seen.header(MARK);
        assert!(mark.is_none_or(|mark| mark == "true"), "{mark:?}");
        (key, mark.is_some())
    };
    requests.iter().map(one).collect()
}

fn expected(list: &[(&str, bool)]) -> Vec<(String, bool)> {
    let one = |(key, marked): &(&str, bool)| ((*key).to_owned(), *marked);
    list.iter().map(one).collect()
}

async fn counted(gate: &TestGate, action: &str) -> f64 {
    let series =
        format!(r#"tikigate_possible_duplicates_total{{route="refund",action="{action}"}}"#);
    gate.metric(&series).await
}

/// Resolves a message's record as its only holder would.
async fn resolve(gate: &TestGate, key: &str, verdict: &str) {
    let id = gate.record(key).await.unwrap().id;
    let token = std::fs::read_to_string(gate.directory().join("admin.token")).unwrap();
    let ListenAddress::Tcp(address) = gate.admin_address() else {
        panic!("a TCP listener");
    };
    let body = json!({"verdict": verdict, "reason": "two parts of one order"}).to_string();
    let request = format!(
        "POST /api/ledger/{id}/resolve HTTP/1.1\r\nHost: localhost:{}\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        address.port(),
        token.trim(),
        body.len()
    );
    let answer = exchange(gate.admin_address(), request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn a_second_refund_of_one_amount_is_marked() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    for (request, payment, amount) in [
        ("r-1", "p-1", "1000"),
        // The rest of it, and another payment's.
        ("r-2", "p-1", "500"),
        ("r-3", "p-2", "1000"),
        ("r-4", "p-1", "1e3"),
        ("r-5", "p-1", "1000.00"),
    ] {
        let answer = post(&gate, &refund(request, payment, amount)).await;
        assert_eq!(answer.status, 200, "{request}");
    }
    let list = [
        ("r-1", false),
        ("r-2", false),
        ("r-3", false),
        ("r-4", true),
        ("r-5", true),
    ];
    assert_eq!(told(&backend.requests()), expected(&list));
    assert_eq!(counted(&gate, "marked").await, 2.0);
    assert_eq!(counted(&gate, "held").await, 0.0);
    for line in access_lines(&gate) {
        let key = line["tikigate.idempotency_key"].as_str().unwrap();
        let (level, word) = match key {
            "r-4" | "r-5" => ("warn", Some("marked")),
            _ => ("info", None),
        };
        assert_eq!(line["level"], level, "{key}");
        assert_eq!(line["tikigate.possible_duplicate"].as_str(), word, "{key}");
    }
    assert!(gate.record("r-4").await.unwrap().marks.possible_duplicate);

    // The first one again is itself and no second one.
    let again = post(&gate, &refund("r-1", "p-1", "1000")).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(counted(&gate, "marked").await, 2.0);
}

#[tokio::test]
async fn a_second_refund_is_held_where_the_route_says_so_and_a_person_lets_it_pass() {
    let backend = agreeable().await;
    let gate = TestGate::with(&changed(&backend.url(), HOLD)).await;
    assert_eq!(post(&gate, &refund("r-1", "p-1", "1000")).await.status, 200);
    let second = refund("r-2", "p-1", "1000");
    for times in 1..=3 {
        let answer = post(&gate, &second).await;
        assert_refused(&answer, 500, "outcome_unknown");
        assert_eq!(refused_for(&gate, "possible_duplicate"), times);
    }
    // A part of the payment passes meanwhile.
    assert_eq!(post(&gate, &refund("r-3", "p-1", "500")).await.status, 200);
    let list = [("r-1", false), ("r-3", false)];
    assert_eq!(told(&backend.requests()), expected(&list));
    assert_eq!(gate.state("r-2").await, Some(State::Unknown));
    assert_eq!(counted(&gate, "held").await, 3.0);
    let lines = access_lines(&gate);
    let held = lines
        .iter()
        .filter(|line| line["tikigate.possible_duplicate"] == "held");
    assert_eq!(held.count(), 3);

    resolve(&gate, "r-2", "not_applied").await;
    assert_eq!(gate.state("r-2").await, Some(State::Released));
    let passed = post(&gate, &second).await;
    assert_eq!(passed.status, 200, "{}", passed.text());
    let list = [("r-1", false), ("r-3", false), ("r-2", true)];
    assert_eq!(told(&backend.requests()), expected(&list));
    let again = post(&gate, &second).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(backend.requests().len(), 3);
}

#[tokio::test]
async fn a_held_one_that_a_person_rejects_never_passes() {
    let backend = agreeable().await;
    let gate = TestGate::with(&changed(&backend.url(), HOLD)).await;
    assert_eq!(post(&gate, &refund("r-1", "p-1", "1000")).await.status, 200);
    let second = refund("r-2", "p-1", "1000");
    assert_eq!(post(&gate, &second).await.status, 500);
    resolve(&gate, "r-2", "rejected").await;
    for _ in 0..2 {
        let answer = post(&gate, &second).await;
        assert_eq!(answer.error_code().as_deref(), Some("rejected"));
    }
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_at_once_exactly_one_is_unmarked() {
    const PAIRS: usize = 100;
    for (store, changes, passed) in [
        (&[][..], &[][..], 2),
        (&[], HOLD, 1),
        (SQLITE, &[], 2),
        (SQLITE, HOLD, 1),
    ] {
        let backend = agreeable().await;
        let changes = [store, changes, PATIENT].concat();
        let gate = TestGate::with(&changed(&backend.url(), &changes)).await;
        let calls: Vec<_> = (0..PAIRS * 2)
            .map(|number| {
                let (payment, twin) = (number / 2, number % 2);
                let body = refund(&format!("r-{payment}-{twin}"), &format!("p-{payment}"), "5");
                gate.signed("/tiki/refund", &body)
            })
            .collect();
        let answers = read_all(send_all(&gate, &calls).await).await;
        let ok = answers.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(ok, PAIRS * passed);

        let seen = told(&backend.requests());
        assert_eq!(seen.len(), PAIRS * passed);
        for payment in 0..PAIRS {
            let prefix = format!("r-{payment}-");
            let of_it = seen.iter().filter(|(key, _)| key.starts_with(&prefix));
            let unmarked = of_it.filter(|(_, marked)| !marked).count();
            assert_eq!(unmarked, 1, "of payment {payment}");
        }
        let action = if passed == 2 { "marked" } else { "held" };
        assert_eq!(counted(&gate, action).await, PAIRS as f64);
    }
}

#[tokio::test]
async fn a_second_refund_after_the_window_is_no_duplicate() {
    let backend = agreeable().await;
    let short = "payload = \"refund\"\nidempotency = { duplicate_window = \"1h\" }\n";
    for (changes, window) in [
        (vec![], DAY),
        (vec![("payload = \"refund\"\n", short)], DAY / 24),
    ] {
        let gate = TestGate::with(&changed(&backend.url(), &changes)).await;
        let before = backend.requests().len();
        assert_eq!(post(&gate, &refund("r-1", "p-1", "9")).await.status, 200);
        gate.advance(window);
        assert_eq!(post(&gate, &refund("r-2", "p-1", "9")).await.status, 200);
        // The second one counts as a first one from here on.
        gate.advance(window + MILLISECOND);
        assert_eq!(post(&gate, &refund("r-3", "p-1", "9")).await.status, 200);
        let list = [("r-1", false), ("r-2", true), ("r-3", false)];
        assert_eq!(told(&backend.requests()[before..]), expected(&list));
    }
}

#[tokio::test]
async fn a_first_refund_that_moved_nothing_does_not_count() {
    let failure = r#"{"data":null,"error":{"code":"1","message":"not now"}}"#;
    let backend = Backend::start(move |seen| match seen.text() {
        body if body.contains("r-declined") => Answer::json(422, "{}").into(),
        body if body.contains("r-failed") => Answer::json(500, failure).into(),
        _ => Answer::success().into(),
    })
    .await;
    for changes in [&[][..], HOLD] {
        let gate = TestGate::with(&changed(&backend.url(), changes)).await;
        let declined = post(&gate, &refund("r-declined", "p-1", "9")).await;
        assert_eq!(declined.status, 422);
        assert_eq!(
            post(&gate, &refund("r-failed", "p-1", "9")).await.status,
            500
        );
        assert_eq!(post(&gate, &refund("r-1", "p-1", "9")).await.status, 200);
        let last = told(&backend.requests()).pop();
        assert_eq!(last, Some(("r-1".to_owned(), false)));
        assert_eq!(counted(&gate, "marked").await, 0.0);
        assert_eq!(counted(&gate, "held").await, 0.0);
    }
}

#[tokio::test]
async fn a_first_refund_of_which_nobody_knows_counts() {
    let backend = Backend::start(|seen| match seen.text().contains("r-lost") {
        true => Behaviour::Close,
        false => Answer::success().into(),
    })
    .await;
    let gate = TestGate::start(&backend.url()).await;
    assert_eq!(post(&gate, &refund("r-lost", "p-1", "9")).await.status, 502);
    assert_eq!(post(&gate, &refund("r-1", "p-1", "9")).await.status, 200);
    let list = [("r-lost", false), ("r-1", true)];
    assert_eq!(told(&backend.requests()), expected(&list));
}

/// What the gate keeps of a refund is what a person finds it by.
#[tokio::test]
async fn a_refunds_fields_are_kept_beside_it() {
    let backend = agreeable().await;
    let gate = TestGate::start(&backend.url()).await;
    post(&gate, &refund("r-1", "p-1", "1e3")).await;
    let fields = gate.record("r-1").await.unwrap().fields;
    assert_eq!(fields.get("transaction_id"), Some("p-1"));
    assert_eq!(fields.get("tiki_transaction_id"), Some("t-p-1"));
    assert_eq!(fields.get("transaction_amount"), Some("1000"));
    assert_eq!(fields.get("reason"), None);
}
