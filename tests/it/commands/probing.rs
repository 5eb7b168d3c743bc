//! A running gate that asks its backend, and one that sends a kept call by a person's word.

use super::ledger::held;
use super::{ask, get, post, setup};
use crate::support::backend::{Answer, Backend, Behaviour};
use crate::support::gate::{refund, usual};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_look_saw_is_told_in_the_log_the_metrics_and_the_events() {
    let backend = Backend::start(|seen| match seen.method() {
        "GET" => Answer::json(200, r#"{"refund":{"state":"done"}}"#).into(),
        _ => Behaviour::Close,
    })
    .await;
    let route = "payload = \"refund\"\nclients = [\"wallet\"]";
    let probe = r#"
[routes.idempotency.probe]
path = "/payments/{transaction_id}/refunds?request={request_id}&amount={transaction_amount}"
applied = { status = 200, pointer = "/refund/state", equals = "done" }
"#;
    let toml = usual(&backend.url()).replace(route, &format!("{route}{probe}"));
    let gate = setup(&toml).start();
    let first = post(gate.address(), "/tiki/refund", &refund("r 1", "1e3")).await;
    assert_eq!(first.status, 502);
    let second = post(gate.address(), "/tiki/refund", &refund("r 1", "1000")).await;
    assert_eq!(second.status, 200);
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    let requests = backend.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(
        requests[1].target(),
        "/payments/p-1/refunds?request=r%201&amount=1000"
    );

    let line = gate.wait_for_line(|line| line.contains("looked at the backend"));
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    for (name, value) in [
        ("level", "info"),
        ("http.route", "refund"),
        ("tikigate.probe", "applied"),
        ("tikigate.state", "done"),
    ] {
        assert_eq!(line[name], value, "{line}");
    }
    assert_eq!(line["http.response.status_code"], 200);
    assert_eq!(line.get("tikigate.reason"), None, "{line}");
    let request_id = requests[1].header("x-request-id").unwrap();
    assert_eq!(line["tikigate.request_id"], request_id);
    let record = line["tikigate.record"].as_str().unwrap();
    let shown = ask(&gate, &["ledger", "show", record]).worked();
    assert!(shown.contains("probe_applied"), "{shown}");
    let metrics = get(gate.admin_address(), "/metrics").await;
    let series = "tikigate_probes_total{route=\"refund\",result=\"applied\"} 1\n";
    assert!(metrics.text().contains(series));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_has_a_kept_call_sent_and_the_log_says_so() {
    let (backend, gate) = held(&["r-dies"]).await;
    let line = [
        "ledger",
        "resolve",
        "r-dies",
        "--not-applied",
        "--force",
        "--send-now",
        "--reason",
        "it is not in the books",
    ];
    let told = ask(&gate, &line).worked();
    assert!(
        told.contains("the kept call was sent and answered 200"),
        "{told}"
    );
    let requests = backend.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].text(), refund("r-dies", "150000"));
    assert_eq!(requests[1].header("x-tikigate-attempt"), Some("2"));

    let line = gate.wait_for_line(|line| line.contains("sent_by_person"));
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["message"], "request");
    assert_eq!(line["tikigate.sent_by_person"], true);
    assert_eq!(line["tikigate.idempotency_key"], "r-dies");
    assert_eq!(line["tikigate.attempt"], 2);
    assert_eq!(line["http.response.status_code"], 200);
    assert_eq!(line.get("client.address"), None);
    assert_eq!(
        line["tikigate.request_id"],
        requests[1].header("x-request-id").unwrap()
    );
    assert_eq!(
        super::ledger::again(&gate, "r-dies").await,
        (200, None),
        "Tiki gets the same"
    );
    assert_eq!(backend.requests().len(), 2);
}
