//! Spans of calls (`[tracing]`), as a collector gets them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use prost::Message as _;

use tikigate::net::ListenAddress;

use crate::commands::{get, post, setup, signed};
use crate::support::backend::{Answer, Backend, Behaviour, Refusing};
use crate::support::gate::{SECRET, TestGate, refund, usual};
use crate::support::in_time;
use crate::support::raw::RawClient;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn traced(backend: &str, collector: &str, keys: &str) -> String {
    format!(
        "{}\n[tracing]\nendpoint = \"{collector}\"\n{keys}\n",
        usual(backend)
    )
}

/// What a collector was told of one span.
#[derive(Debug)]
struct Told {
    span: Span,
    attributes: BTreeMap<String, String>,
    resource: BTreeMap<String, String>,
}

impl Told {
    fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    fn says(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).map(String::as_str)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(
    attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue],
) -> BTreeMap<String, String> {
    let pairs = attributes.iter().map(|attribute| {
        let value = attribute
            .value
            .as_ref()
            .and_then(|value| value.value.as_ref());
        let text = match value {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            Some(Value::BoolValue(flag)) => flag.to_string(),
            other => panic!("{other:?}"),
        };
        (attribute.key.clone(), text)
    });
    pairs.collect()
}

/// A collector, and what it was sent.
struct Collector(Backend);

impl Collector {
    async fn start() -> Self {
        Self(Backend::start(|_| Answer::new(200).into()).await)
    }

    fn url(&self) -> String {
        self.0.url()
    }

    fn told(&self) -> Vec<Told> {
        let requests = self.0.requests();
        let mut told = Vec::new();
        for request in requests {
            assert_eq!(request.head.start_line, "POST /v1/traces HTTP/1.1");
            assert_eq!(
                request.header("content-type"),
                Some("application/x-protobuf")
            );
            let batch = ExportTraceServiceRequest::decode(&*request.body).unwrap();
            for of_resource in batch.resource_spans {
                let resource = texts(&of_resource.resource.unwrap().attributes);
                for of_scope in of_resource.scope_spans {
                    for span in of_scope.spans {
                        told.push(Told {
                            attributes: texts(&span.attributes),
                            span,
                            resource: resource.clone(),
                        });
                    }
                }
            }
        }
        told
    }

    /// Waits for so many spans.
    async fn wait_for(&self, count: usize) -> Vec<Told> {
        in_time("spans", async {
            while self.told().len() < count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let told = self.told();
        assert_eq!(told.len(), count, "{told:#?}");
        told
    }
}

async fn spans(gate: &TestGate, result: &str) -> f64 {
    let series = format!("tikigate_trace_spans_total{{result=\"{result}\"}}");
    gate.metric(&series).await
}

#[tokio::test]
async fn a_sampled_call_is_told_with_its_call_to_the_backend() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let collector = Collector::start().await;
    let toml = traced(
        &backend.url(),
        &collector.url(),
        "service_name = \"gate-1\"",
    );
    let gate = TestGate::with(&toml).await;
    let body = refund("r-1", "12345");
    let call = gate
        .signed("/tiki/refund", &body)
        .and("traceparent", &format!("00-{TRACE}-{CALLER}-01"));
    assert_eq!(gate.send(&call).await.status, 200);

    let told = collector.wait_for(2).await;
    let of = |kind: SpanKind| {
        told.iter()
            .find(|told| told.span.kind == kind as i32)
            .unwrap()
    };
    let (server, client) = (of(SpanKind::Server), of(SpanKind::Client));
    assert_eq!(server.span.name, "POST /tiki/refund");
    assert_eq!(
        (server.trace(), server.parent()),
        (TRACE.to_owned(), CALLER.to_owned())
    );
    assert_eq!(
        (client.trace(), client.parent()),
        (TRACE.to_owned(), server.id())
    );
    assert_eq!(client.span.name, "POST legacy");
    let sent = &backend.requests()[0];
    // The backend goes on below the gate's call to it.
    let expected = format!("00-{TRACE}-{}-01", client.id());
    assert_eq!(sent.header("traceparent"), Some(expected.as_str()));

    let id = sent.header("x-request-id").unwrap();
    for told in [server, client] {
        assert_eq!(told.says("tikigate.request_id"), Some(id));
        assert_eq!(told.says("tikigate.idempotency_key"), Some("r-1"));
        assert_eq!(told.says("tikigate.client"), Some("wallet"));
        assert_eq!(told.says("http.response.status_code"), Some("200"));
        assert_eq!(told.resource["service.name"], "gate-1");
        assert_eq!(told.resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert!(told.span.start_time_unix_nano <= told.span.end_time_unix_nano);
        assert_eq!(told.span.status.as_ref().map_or(0, |status| status.code), 0);
    }
    assert_eq!(server.says("http.route"), Some("refund"));
    assert!(server.span.start_time_unix_nano <= client.span.start_time_unix_nano);

    let log = gate.log();
    let line = log
        .iter()
        .find(|line| line["message"] == "request")
        .unwrap();
    assert_eq!(line["trace_id"], TRACE);
    // Neither secret nor signature nor body.
    let raw: Vec<u8> = collector.0.bytes();
    for secret in [SECRET, call.header("x-tikivip-signature"), "12345", &body] {
        let found = raw
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found, "{secret}");
    }
    assert_eq!(spans(&gate, "exported").await, 2.0);
}

#[tokio::test]
async fn what_the_caller_decided_is_followed_and_else_it_is_drawn() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let collector = Collector::start().await;
    let never = traced(&backend.url(), &collector.url(), "sample_percent = 0");
    let gate = TestGate::with(&never).await;
    let unsampled = format!("00-{TRACE}-{CALLER}-00");
    let call = gate
        .signed("/tiki/refund", &refund("r-1", "1"))
        .and("traceparent", &unsampled);
    assert_eq!(gate.send(&call).await.status, 200);
    // It goes on as it came.
    assert_eq!(
        backend.requests()[0].header("traceparent"),
        Some(unsampled.as_str())
    );
    assert_eq!(
        gate.post("/tiki/refund", &refund("r-2", "1")).await.status,
        200
    );
    assert_eq!(backend.requests()[1].header("traceparent"), None);

    let always = traced(&backend.url(), &collector.url(), "sample_percent = 100");
    let all = TestGate::with(&always).await;
    assert_eq!(all.send(&call).await.status, 200);
    assert_eq!(
        all.post("/tiki/refund", &refund("r-3", "1")).await.status,
        200
    );
    // Of the gate that draws none there is none, and none of the caller that wanted none.
    let told = collector.wait_for(2).await;
    assert!(
        told.iter()
            .all(|told| told.says("tikigate.idempotency_key") == Some("r-3"))
    );
    assert!(told.iter().all(|told| told.trace() != TRACE));
    let root = told
        .iter()
        .find(|told| told.span.kind == SpanKind::Server as i32);
    assert_eq!(root.unwrap().parent(), "");
    let traced_as = || {
        let log = all.log();
        let line = log
            .iter()
            .find(|line| line["tikigate.idempotency_key"] == "r-3")?;
        line["trace_id"].as_str().map(str::to_owned)
    };
    in_time("the log line", async {
        while traced_as().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(traced_as(), Some(told[0].trace()));
}

#[tokio::test]
async fn trouble_stands_in_the_span_of_whose_it_is() {
    let backend = Backend::start(|_| Behaviour::Reset).await;
    let collector = Collector::start().await;
    let toml = traced(&backend.url(), &collector.url(), "sample_percent = 100");
    let gate = TestGate::with(&toml).await;
    let forged = gate
        .signed("/tiki/refund", &refund("r-1", "1"))
        .with("x-tikivip-signature", &"0".repeat(64));
    assert_eq!(gate.send(&forged).await.status, 401);
    let told = collector.wait_for(1).await;
    assert_eq!(told[0].says("error.type"), Some("unauthenticated"));
    assert_eq!(told[0].says("tikigate.reason"), Some("bad_signature"));
    assert_eq!(told[0].says("tikigate.idempotency_key"), None);
    // The caller's fault, not the server's.
    assert_eq!(
        told[0].span.status.as_ref().map_or(0, |status| status.code),
        0
    );

    let answer = gate.post("/tiki/refund", &refund("r-2", "1")).await;
    assert_eq!(answer.status, 502);
    let told = collector.wait_for(3).await;
    for told in &told[1..] {
        let status = told.span.status.as_ref().unwrap();
        assert_eq!(status.code, StatusCode::Error as i32);
        let is_client = told.span.kind == SpanKind::Client as i32;
        let expected = if is_client {
            "upstream_reset"
        } else {
            "upstream_failed"
        };
        assert_eq!(told.says("error.type"), Some(expected));
    }
}

/// The caller is answered before the backend is: the backend's span still comes, with what it was.
#[tokio::test]
async fn a_late_backend_is_told_when_it_has_answered() {
    let hold = crate::support::backend::Hold::new();
    let held = hold.clone();
    let backend = Backend::start(move |_| Behaviour::from(Answer::success()).held(&held)).await;
    let collector = Collector::start().await;
    let toml = traced(&backend.url(), &collector.url(), "sample_percent = 100");
    let gate = TestGate::with(&toml).await;
    assert_eq!(
        gate.post("/tiki/refund", &refund("r-1", "1")).await.status,
        504
    );
    let told = collector.wait_for(1).await;
    assert_eq!(told[0].says("http.response.status_code"), Some("504"));
    hold.release();
    let told = collector.wait_for(2).await;
    assert_eq!(told[1].span.kind, SpanKind::Client as i32);
    assert_eq!(told[1].says("http.response.status_code"), Some("200"));
    assert_eq!(told[1].parent(), told[0].id());
}

#[tokio::test]
async fn a_collector_that_is_down_costs_a_counter_and_one_line() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let nobody = Refusing::bind();
    let toml = traced(&backend.url(), &nobody.url(), "sample_percent = 100");
    let mut gate = setup(&toml).start();
    for batch in 1..=2 {
        let body = refund(&format!("r-{batch}"), "1");
        assert_eq!(
            post(gate.address(), "/tiki/refund", &body).await.status,
            200
        );
        let lost = format!(
            "tikigate_trace_spans_total{{result=\"failed\"}} {}\n",
            2 * batch
        );
        in_time("the batch to fail", async {
            while !get(gate.admin_address(), "/metrics")
                .await
                .text()
                .contains(&lost)
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
    assert_eq!(gate.terminate().code(), Some(0));
    let lines = gate.lines();
    let told = lines
        .iter()
        .filter(|line| line.contains("the collector takes no spans"));
    let told: Vec<&String> = told.collect();
    assert_eq!(told.len(), 1, "{lines:?}");
    assert!(told[0].contains("refused"), "it says why: {}", told[0]);
}

/// The worst one takes the connection and says nothing: the queue fills up, and calls are as quick as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_fills_a_bounded_queue_and_holds_nobody_up() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let silent = Backend::start(|_| Behaviour::Silence).await;
    let toml = traced(
        &backend.url(),
        &silent.url(),
        "sample_percent = 100\ntimeout = \"60s\"",
    );
    let gate = TestGate::with(&toml).await;
    // Refused before the backend: one span each. More than a batch and the queue hold.
    let call = gate
        .signed("/tiki/refund", &refund("r-1", "1"))
        .with("x-tikivip-signature", &"0".repeat(64))
        .to_bytes();
    let mut connection = gate.connect().await;
    let mut slowest = Duration::ZERO;
    for number in 0..3000 {
        let began = Instant::now();
        connection.send(&call).await;
        let answer = connection.read_answer().await;
        assert_eq!(answer.status, 401, "{number}");
        if answer.header("connection") == Some("close") {
            connection = gate.connect().await;
        }
        slowest = slowest.max(began.elapsed());
    }
    let dropped = spans(&gate, "dropped").await;
    // A batch of 512 at most is with the collector, and of callers without a right signature 1024 wait.
    assert!((1464.0..3000.0).contains(&dropped), "{dropped}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    assert_eq!(
        gate.post("/tiki/refund", &refund("r-2", "1")).await.status,
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_spans_of_a_gate_are_exported_before_it_ends() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let collector = Collector::start().await;
    let toml = traced(&backend.url(), &collector.url(), "sample_percent = 100");
    let mut gate = setup(&toml).start();
    let answer = post(gate.address(), "/tiki/refund", &refund("r-1", "1")).await;
    assert_eq!(answer.status, 200);
    // The process is gone after this: what came, came before.
    assert_eq!(gate.terminate().code(), Some(0));
    assert_eq!(collector.told().len(), 2);
}

/// Neither by hanging nor by taking its time over each batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_collector_holds_up_no_gates_end() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let slow =
        Backend::start(|_| Behaviour::Drip(Answer::new(200), Duration::from_millis(40))).await;
    let toml = traced(&backend.url(), &slow.url(), "sample_percent = 100");
    let mut gate = setup(&toml).start();
    let address = ListenAddress::Tcp(gate.address());
    let mut connection = RawClient::connect(&address).await;
    for number in 0..1200 {
        let call = signed("/tiki/refund", &refund(&format!("r-{number}"), "1"));
        connection.send(call.to_bytes()).await;
        assert_eq!(connection.read_answer().await.status, 200);
    }
    drop(connection);
    gate.signal_terminate();
    gate.wait_for_line(|line| line.contains("\"drained\""));
    let drained = Instant::now();
    assert_eq!(gate.wait(Duration::from_secs(20)).code(), Some(0));
    // One moment for all batches together, and what a busy machine adds.
    assert!(
        drained.elapsed() < Duration::from_secs(4),
        "{:?}",
        drained.elapsed()
    );
}

/// Whoever has proved nothing says nothing at length, and no names.
#[tokio::test]
async fn what_an_unknown_caller_sends_is_cut_and_makes_no_names() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let collector = Collector::start().await;
    let toml = traced(&backend.url(), &collector.url(), "sample_percent = 0");
    let gate = TestGate::with(&toml).await;
    let method = "Z".repeat(300);
    let path = format!("/{}", "p".repeat(3000));
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\ntraceparent: 00-{TRACE}-{CALLER}-01\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(gate.send_bytes(request).await.status, 404);
    let told = &collector.wait_for(1).await[0];
    assert_eq!(told.span.name, "HTTP");
    assert_eq!(told.says("http.request.method"), Some("_OTHER"));
    assert_eq!(told.says("url.path").map(str::len), Some(256));
}

/// The library would take headers from these variables: a key of another collector's.
#[test]
fn variables_of_the_library_add_nothing_to_what_goes_out() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (backend, collector) = runtime.block_on(async {
        let backend = Backend::start(|_| Answer::success().into()).await;
        (backend, Collector::start().await)
    });
    let toml = traced(&backend.url(), &collector.url(), "sample_percent = 100");
    let mut gate = setup(&toml)
        .environment(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=Bearer%20other,content-type=text/plain",
        )
        .environment("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-other=1")
        .environment(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "http://127.0.0.1:9/elsewhere",
        )
        .start();
    let answer = runtime.block_on(post(gate.address(), "/tiki/refund", &refund("r-1", "1")));
    assert_eq!(answer.status, 200);
    assert_eq!(gate.terminate().code(), Some(0));
    // Checks path and content type.
    assert_eq!(collector.told().len(), 2);
    for request in collector.0.requests() {
        for name in ["authorization", "x-other"] {
            assert_eq!(request.header(name), None);
        }
    }
}

#[tokio::test]
async fn a_collector_may_want_a_key_and_a_path_of_its_own() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let collector = Backend::start(|_| Answer::new(200).into()).await;
    let toml = traced(
        &backend.url(),
        &format!("{}/otlp/spans", collector.url()),
        "sample_percent = 100\nset_headers = { \"X-Api-Key\" = { file = \"secret\" } }",
    );
    let gate = TestGate::with(&toml).await;
    assert_eq!(
        gate.post("/tiki/refund", &refund("r-1", "1")).await.status,
        200
    );
    let request = &collector.wait_for_requests(1).await[0];
    assert_eq!(request.target(), "/otlp/spans");
    assert_eq!(request.header("x-api-key"), Some(SECRET));
    assert!(!gate.log_text().contains(SECRET));
}
