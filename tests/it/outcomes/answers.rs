//! What a whole answer of the backend means: each row of the outcome table, and what is passed back.

use super::{
    Kind, Outcome, SUCCESS, Settles, Stage, assert_again, assert_first, assert_same, one_worker,
    replaced,
};
use crate::support::backend::{Answer, OnConnect};
use crate::support::gate::TestGate;
use crate::support::raw::RawAnswer;
use tikigate::ledger::State;

/// The platform's failure.
const FAILURE: &str = r#"{"data":null,"error":{"code":"1","message":"invalid transaction id"}}"#;

/// One answer of the backend, and what it comes to.
struct Row {
    status: u16,
    body: &'static str,
    outcome: Outcome,
}

const fn row(status: u16, body: &'static str, outcome: Outcome) -> Row {
    Row {
        status,
        body,
        outcome,
    }
}

const fn success(status: u16, body: &'static str) -> Row {
    row(status, body, Outcome::done(status, "success"))
}

const fn declined(status: u16, body: &'static str) -> Row {
    row(status, body, Outcome::done(status, "declined"))
}

const fn not_applied(status: u16, body: &'static str) -> Row {
    row(status, body, Outcome::not_applied())
}

const fn unclear(status: u16, body: &'static str) -> Row {
    row(status, body, Outcome::unclear())
}

/// A 5xx that says "not applied".
const fn failed(status: u16, body: &'static str) -> Row {
    let outcome = Outcome::passed_on(status, Settles::Released, "not_applied");
    row(status, body, outcome)
}

/// A 5xx that says nothing.
const fn broken(status: u16, body: &'static str) -> Row {
    let outcome = Outcome::passed_on(status, Settles::Doubtful, "unclear_answer");
    row(status, body, outcome)
}

/// Sends a call of each kind for each row. `settings` are put into every route.
async fn assert_rows(settings: &str, rows: &[Row]) {
    let stage = Stage::open().await;
    let gate = with_routes(&stage, settings).await;
    for (number, row) in rows.iter().enumerate() {
        for kind in Kind::ALL {
            let id = format!("{}-{number}-{}", row.status, kind.route());
            let (call, answer) = (kind.call(&gate, &id), Answer::json(row.status, row.body));
            stage.plays(OnConnect::Serve, answer.until_close().into());
            let before = stage.counts();
            let first = gate.send(&call).await;
            assert_first(&gate, kind, &id, &first, &row.outcome).await;
            assert_eq!(stage.counts(), (before.0 + 1, before.1 + 1), "{id}");
            if row.outcome.refusal.is_none() {
                assert_eq!(first.text(), row.body, "{id}");
                assert_eq!(first.header("content-type"), Some("application/json"));
            }
            assert_again(&gate, &stage, kind, &id, &call, (&first, &row.outcome)).await;
        }
    }
}

async fn with_routes(stage: &Stage, settings: &str) -> TestGate {
    let usual = one_worker(&stage.backend.url());
    let route = format!("[[routes]]\n{settings}");
    TestGate::with(&replaced(&usual, &[("[[routes]]", &route)])).await
}

#[tokio::test]
async fn without_settings_the_status_decides() {
    let rows = [
        success(200, SUCCESS),
        success(200, r#"{"code":1}"#),
        success(201, "made"),
        success(202, ""),
        success(299, FAILURE),
        declined(400, "no"),
        declined(409, FAILURE),
        declined(410, ""),
        declined(422, r#"{"code":6}"#),
        failed(500, FAILURE),
        broken(500, "<h1>Fatal error</h1>"),
        broken(500, ""),
        broken(502, FAILURE),
        broken(503, ""),
        broken(599, FAILURE),
        unclear(300, ""),
        unclear(402, ""),
        unclear(418, FAILURE),
        unclear(451, ""),
    ];
    assert_rows("", &rows).await;
}

#[tokio::test]
async fn a_500_in_almost_the_platforms_words_says_nothing() {
    // What frameworks answer by themselves when a handler dies, perhaps after it moved money.
    let rows = [
        broken(
            500,
            r#"{"error":{"code":500,"message":"Internal Server Error"}}"#,
        ),
        broken(500, r#"{"error":{"code":"E_FATAL","message":"x"}}"#),
        broken(500, r#"{"data":null,"error":{"code":1,"message":"x"}}"#),
        broken(500, r#"{"data":null,"error":{"message":"x"}}"#),
        broken(500, r#"{"data":{},"error":{"code":"1","message":"x"}}"#),
        broken(500, r#"{"data":null,"error":"fatal"}"#),
    ];
    assert_rows("", &rows).await;
}

#[tokio::test]
async fn each_status_that_says_not_now_is_answered_so_that_tiki_asks_again() {
    let rows = [401, 403, 404, 405, 408, 421, 425, 426, 429].map(|status| not_applied(status, "x"));
    assert_rows("", &rows).await;
}

#[tokio::test]
async fn lists_of_statuses_can_be_written() {
    let rows = [
        declined(404, "gone"),
        declined(418, ""),
        not_applied(409, ""),
        failed(503, "busy"),
        failed(500, FAILURE),
        // Out of both lists now.
        unclear(400, ""),
        unclear(401, ""),
        unclear(429, ""),
        broken(500, ""),
        success(200, ""),
    ];
    let settings = "final_statuses = [404, 418]\nretry_statuses = [409, 503]\n";
    assert_rows(settings, &rows).await;
    // A list that was written wins over the other's default.
    let rows = [declined(404, ""), unclear(409, ""), not_applied(429, "")];
    assert_rows("final_statuses = [404]\n", &rows).await;
    let rows = [not_applied(409, ""), unclear(404, ""), declined(422, "")];
    assert_rows("retry_statuses = [409]\n", &rows).await;
}

#[tokio::test]
async fn success_when_decides_about_2xx() {
    let rows = [
        success(200, r#"{"code":0}"#),
        success(201, r#"{"code":0.0,"data":{"x":1}}"#),
        unclear(200, r#"{"code":1}"#),
        unclear(200, r#"{"code":"0"}"#),
        unclear(200, "OK"),
        unclear(200, ""),
        declined(422, r#"{"code":0}"#),
        broken(500, r#"{"code":0}"#),
    ];
    let settings = "success_when = { pointer = \"/code\", equals = 0 }\n";
    assert_rows(settings, &rows).await;
}

#[tokio::test]
async fn failed_when_outranks_the_status() {
    let rows = [
        not_applied(200, r#"{"result":{"code":2}}"#),
        not_applied(422, r#"{"result":{"code":2}}"#),
        not_applied(302, r#"{"result":{"code":2}}"#),
        failed(503, r#"{"result":{"code":2}}"#),
        success(200, r#"{"result":{"code":3}}"#),
        success(200, "no json"),
        broken(503, r#"{"result":{"code":3}}"#),
    ];
    let settings = "failed_when = { pointer = \"/result/code\", equals = 2 }\n";
    assert_rows(settings, &rows).await;
}

#[tokio::test]
async fn both_conditions_together_leave_the_rest_open() {
    let settings = "success_when = { pointer = \"/ok\", equals = true }\n\
         failed_when = { pointer = \"/retry\", equals = \"yes\" }\n";
    let rows = [
        success(200, r#"{"ok":true}"#),
        success(200, r#"{"ok":true,"retry":"no"}"#),
        not_applied(200, r#"{"ok":false,"retry":"yes"}"#),
        unclear(200, r#"{"ok":false}"#),
        unclear(200, r#"{"ok":true,"retry":"yes"}"#),
    ];
    assert_rows(settings, &rows).await;
}

#[tokio::test]
async fn the_platforms_answer_replaces_a_success_alone() {
    let stage = Stage::open().await;
    let gate = with_routes(&stage, "answer = \"platform\"\n").await;
    let declined = Outcome::done(409, "declined");
    let broken = Outcome::passed_on(503, Settles::Doubtful, "unclear_answer");
    for (number, (backend, (status, body), outcome)) in [
        (
            Answer::json(201, "{\"legacy\":1}"),
            (200, SUCCESS),
            Outcome::done(200, "success"),
        ),
        (
            Answer::new(204),
            (200, SUCCESS),
            Outcome::done(200, "success"),
        ),
        (
            Answer::json(409, "{\"legacy\":2}"),
            (409, "{\"legacy\":2}"),
            declined,
        ),
        (
            Answer::json(503, "{\"legacy\":3}"),
            (503, "{\"legacy\":3}"),
            broken,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        for kind in Kind::ALL {
            let id = format!("{number}-{}", kind.route());
            let call = kind.call(&gate, &id);
            stage.plays(OnConnect::Serve, backend.clone().until_close().into());
            let first = gate.send(&call).await;
            assert_first(&gate, kind, &id, &first, &outcome).await;
            assert_eq!((first.status, first.text()), (status, body), "{id}");
            assert_eq!(first.header("content-type"), Some("application/json"));
            if outcome.settles == Settles::Done && kind.key(&id).is_some() {
                assert_again(&gate, &stage, kind, &id, &call, (&first, &outcome)).await;
            }
        }
    }
}

#[tokio::test]
async fn an_answer_over_its_limit_is_recorded_with_its_status_and_the_platforms_body() {
    let stage = Stage::open().await;
    let gate = with_routes(&stage, "answer_limit = \"1KiB\"\n").await;
    let failure = |answer: &RawAnswer| {
        assert_eq!(answer.error_code().as_deref(), Some("declined"));
        assert_eq!(answer.json()["data"], serde_json::Value::Null);
    };
    for (status, size, cause) in [
        (200, 1024, "success"),
        (200, 1025, "success"),
        (201, 200_000, "success"),
        (422, 1024, "declined"),
        (422, 1025, "declined"),
    ] {
        for kind in [Kind::Hold, Kind::Resend] {
            let id = format!("{status}-{size}-{}", kind.route());
            let call = kind.call(&gate, &id);
            let text = Answer::new(status).header("Content-Type", "text/plain");
            let answer = text.body("x".repeat(size)).until_close();
            stage.plays(OnConnect::Serve, answer.into());
            let first = gate.send(&call).await;
            let outcome = Outcome::done(status, cause);
            match (size > 1024, status) {
                (false, _) => assert_eq!(first.body, "x".repeat(size).as_bytes(), "{id}"),
                (true, 422) => failure(&first),
                (true, _) => assert_eq!(first.text(), SUCCESS, "{id}"),
            }
            if size > 1024 {
                assert_eq!(first.header("content-type"), Some("application/json"));
            }
            let code = first.header("content-type") == Some("application/json") && status == 422;
            assert_eq!(code, size > 1024 && status == 422);
            let kept = gate
                .record(&kind.key(&id).unwrap())
                .await
                .unwrap()
                .answer
                .unwrap();
            assert_eq!(
                (kept.status.as_u16(), &kept.body[..]),
                (status, &first.body[..])
            );
            assert_first(&gate, kind, &id, &first, &outcome).await;
            assert_again(&gate, &stage, kind, &id, &call, (&first, &outcome)).await;
        }
    }
}

#[tokio::test]
async fn where_a_condition_has_to_be_looked_at_a_cut_answer_says_nothing() {
    let stage = Stage::open().await;
    let settings = "answer_limit = \"1KiB\"\nsuccess_when = { pointer = \"/code\", equals = 0 }\n";
    let gate = with_routes(&stage, settings).await;
    let body = format!(r#"{{"code":0,"pad":"{}"}}"#, "x".repeat(1024));
    for kind in Kind::ALL {
        let id = format!("cut-{}", kind.route());
        let call = kind.call(&gate, &id);
        stage.plays(
            OnConnect::Serve,
            Answer::json(200, &body).until_close().into(),
        );
        let first = gate.send(&call).await;
        assert_first(&gate, kind, &id, &first, &Outcome::unclear()).await;
    }
    assert_eq!(gate.state("cut-refund").await, Some(State::Unknown));
}

/// Headers of a legacy backend; the second says whether they are passed back.
const HEADERS: [(&str, &str, bool); 20] = [
    ("Content-Type", "text/plain; charset=utf-8", true),
    ("Content-Language", "vi", true),
    ("Content-Encoding", "gzip", true),
    ("Cache-Control", "no-store", true),
    ("Expires", "0", true),
    ("Retry-After", "7", true),
    ("Set-Cookie", "PHPSESSID=1", false),
    ("Set-Cookie", "b=2", false),
    ("Server", "Apache/2.2", false),
    ("X-Powered-By", "PHP/5.3", false),
    ("Location", "http://legacy.internal/", false),
    ("Keep-Alive", "timeout=5", false),
    ("Proxy-Authenticate", "Basic", false),
    ("WWW-Authenticate", "Basic", false),
    ("Upgrade", "h2c", false),
    ("Trailer", "X-Late", false),
    ("Via", "1.1 legacy", false),
    ("Idempotency-Replayed", "true", false),
    ("Strict-Transport-Security", "max-age=1", false),
    ("X-Anything", "1", false),
];

/// The names and values that came, but for what the gate's own connection brings.
fn passed(answer: &RawAnswer) -> Vec<(String, String)> {
    let fields = answer.head.fields.iter();
    let mut fields: Vec<_> = fields
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .filter(|(name, _)| !["date", "content-length"].contains(&&**name))
        .collect();
    fields.sort_unstable();
    fields
}

#[tokio::test]
async fn only_listed_headers_come_back_live_and_replayed() {
    // Not UTF-8, and not what it says it is: nobody looks into it.
    let body = b"\x1f\x8b\xff\x00\r\n\r\nHTTP/1.1".to_vec();
    let mut expected: Vec<_> = HEADERS
        .iter()
        .filter(|(_, _, passes)| *passes)
        .map(|(name, value, _)| (name.to_ascii_lowercase(), (*value).to_owned()))
        .collect();
    expected.sort_unstable();
    let stage = Stage::open().await;
    let gate = with_routes(&stage, "").await;
    // Done, declined, released or unknown, and passed on.
    for status in [200, 422, 503] {
        let mut answer = Answer::new(status).body(body.clone());
        for (name, value, _) in HEADERS {
            answer = answer.header(name, value);
        }
        for kind in Kind::ALL {
            let call = kind.call(&gate, &format!("{status}"));
            stage.plays(OnConnect::Serve, answer.clone().until_close().into());
            let first = gate.send(&call).await;
            assert_eq!((first.status, &first.body), (status, &body));
            assert_eq!(passed(&first), expected, "{kind:?} {status}");
            if status == 503 || kind.key("").is_none() {
                continue;
            }
            let mut replayed = expected.clone();
            replayed.push(("idempotency-replayed".to_owned(), "true".to_owned()));
            replayed.sort_unstable();
            for _ in 0..2 {
                let again = gate.send(&call).await;
                assert_same(&again, &first, "replayed");
                assert_eq!(passed(&again), replayed, "{kind:?} {status}");
            }
        }
    }
}
