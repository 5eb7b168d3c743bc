//! The hostile corpus: what `tests/data/hostile/` holds, sent as it stands there, must meet the fate that
//! stands there; and whatever reached the backend must be the same list of requests to every reader.

mod readers;

use std::fs;

use serde_json::Value;

use crate::fuzzed::targets::cases::{self, Case};
use crate::fuzzed::targets::oracle::assert_signed;
use crate::fuzzed::targets::strict;
use crate::fuzzed::targets::template::{CLIENT, SECRET, Template, start_time};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{self, TestGate, usual};
use crate::support::raw::RawClient;
use crate::support::samples;
use readers::Readers;

/// Stands in what a case tries to get through, in any case of letters.
const MARKS: &[&str] = &["9mark9", "smuggled"];

/// Sent behind a case, signed by a client that its route is not for: no case gets its answer.
const FOLLOW_UP: &[u8] =
    b"GET /follow-up HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{signature-of /follow-up}\r\n";
const FOLLOW_UP_ANSWER: &str = "401 unauthenticated client_not_allowed";
const FOLLOW_UP_ROUTE: &str = r#"
[[routes]]
name = "follow-up"
path = "/follow-up"
method = "GET"
payload = "any"
clients = ["other"]
[ledger]
"#;

#[tokio::test]
async fn lengths() {
    run("length").await;
}

#[tokio::test]
async fn transfer_codings() {
    run("coding").await;
}

#[tokio::test]
async fn chunks_and_trailers() {
    run("chunks").await;
}

#[tokio::test]
async fn lines_names_and_values() {
    run("lines").await;
}

#[tokio::test]
async fn targets() {
    run("targets").await;
}

#[tokio::test]
async fn methods_versions_and_protocols() {
    run("protocols").await;
}

#[tokio::test]
async fn headers_that_look_like_others() {
    run("names").await;
}

#[tokio::test]
async fn hosts() {
    run("hosts").await;
}

#[tokio::test]
async fn pipelines() {
    run("pipelines").await;
}

#[tokio::test]
async fn sizes() {
    run("sizes").await;
}

#[test]
fn no_family_is_left_out_and_no_name_occurs_twice() {
    let here = include_str!("mod.rs");
    let mut count = 0;
    for path in samples::files(&samples::root().join("tests/data/hostile")) {
        let family = path.file_stem().unwrap().to_str().unwrap();
        assert!(here.contains(&format!("run(\"{family}\")")), "{family}");
        let cases = cases::read(&fs::read_to_string(&path).unwrap());
        let mut names: Vec<&str> = cases.iter().map(|case| &*case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), cases.len(), "{family}");
        count += cases.len();
    }
    assert!(count >= 150, "{count} cases");
}

/// The template signs for the client, and at the time, of the usual configuration.
#[test]
fn the_templates_are_the_usual_clients() {
    assert_eq!((CLIENT, SECRET), (gate::CLIENT, gate::SECRET));
    assert_eq!(start_time(), gate::start_time());
}

/// Runs a family's cases, and shows what reached the backend to other readers.
async fn run(family: &str) {
    let path = samples::root().join("tests/data/hostile").join(family);
    let cases = cases::read(&fs::read_to_string(path.with_extension("txt")).unwrap());
    let lab = Lab::start().await;
    let mut wrong = Vec::new();
    for (number, case) in (0..).zip(&cases) {
        let fate = lab.send(number, case).await;
        if (&fate.answers, fate.open) != (&case.answers, case.open) {
            wrong.push(format!("{family}.txt:{} {}: {fate}", case.line, case.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    let readers = Readers::start().await;
    let streams = lab.backend.connections();
    let streams: Vec<Vec<u8>> = streams.into_iter().map(|stream| stream.bytes).collect();
    readers.agree_on(&streams).await;
}

/// What became of a case.
struct Fate {
    /// `passed`, `replayed`, `no answer`, `interim 100`, `library 400`, or `status code reason` of the gate.
    answers: Vec<String>,
    open: bool,
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = if self.open { "open" } else { "closed" };
        write!(f, "{} = {open}", self.answers.join(" = "))
    }
}

struct Lab {
    backend: Backend,
    gate: TestGate,
}

impl Lab {
    async fn start() -> Self {
        let backend = Backend::start(|_| Answer::success().into()).await;
        // The lines of several workers' logs are in order each, not together.
        let toml = usual(&backend.url())
            .replace("workers = 2", "workers = 1")
            .replace("\n[ledger]\n", FOLLOW_UP_ROUTE);
        let gate = TestGate::with(&toml).await;
        Self { backend, gate }
    }

    /// Sends a case and something behind it, and checks what the backend heard.
    async fn send(&self, number: u32, case: &Case) -> Fate {
        let template = Template::new(number);
        let lines_before = self.request_lines().len();
        let requests_before = self.backend.requests().len();
        let bytes_before = self.backend.bytes().len();

        let mut client = self.gate.connect().await;
        client.send(template.fill(&case.template)).await;
        if case.ends {
            client.end_sending().await;
        } else {
            client.send(template.fill(FOLLOW_UP)).await;
        }
        let mut answers = self.read_answers(&mut client, lines_before).await;
        let open = answers.last().is_some_and(|last| last == FOLLOW_UP_ANSWER);
        if open {
            answers.pop();
        }
        if answers.is_empty() {
            answers.push("no answer".to_owned());
        }

        let what = &case.name;
        let passed = answers.iter().filter(|answer| *answer == "passed").count();
        let seen = self.backend.requests().split_off(requests_before);
        assert_eq!(seen.len(), passed, "{what}: requests at the backend");
        let came = self.backend.bytes().len() - bytes_before;
        let read: usize = seen
            .iter()
            .map(|seen| seen.raw_head.len() + seen.body.len())
            .sum();
        assert_eq!(
            came, read,
            "{what}: bytes at the backend beside its requests"
        );
        for seen in seen {
            let bytes = [&*seen.raw_head, &seen.body].concat();
            let text = String::from_utf8_lossy(&bytes).to_lowercase();
            assert!(
                !MARKS.iter().any(|mark| text.contains(mark)),
                "{what}: {text}"
            );
            let requests = strict::read(&bytes).unwrap_or_else(|fault| panic!("{what}: {fault:?}"));
            let [request] = &requests[..] else {
                panic!("{what}: {} requests in one", requests.len());
            };
            assert_signed(request);
            let body = request.body.as_slice();
            let signed = [template.body.as_bytes(), template.next_body.as_bytes(), b""];
            assert!(signed.contains(&body), "{what}: a body that nobody sent");
        }
        Fate { answers, open }
    }

    /// All answers until the connection's end, as the corpus names them.
    async fn read_answers(&self, client: &mut RawClient, lines_before: usize) -> Vec<String> {
        let mut answers = Vec::new();
        while let Some(answer) = client.read_answer_or_end().await {
            answers.push(match answer.status {
                100..=199 => format!("interim {}", answer.status),
                200 if answer.header("idempotency-replayed").is_some() => "replayed".to_owned(),
                200 => "passed".to_owned(),
                status if answer.body.is_empty() => format!("library {status}"),
                status => format!("{status} {}", answer.error_code().unwrap()),
            });
        }
        let lines = self.request_lines().split_off(lines_before);
        let logged = |answer: &&mut String| {
            !answer.starts_with("interim ") && !answer.starts_with("library ")
        };
        let mut logged: Vec<&mut String> = answers.iter_mut().filter(logged).collect();
        assert!(
            lines.len() <= logged.len() + 1,
            "lines about more than was answered"
        );
        for (answer, line) in logged.iter_mut().zip(&lines) {
            let status = line["http.response.status_code"].to_string();
            let agreed = **answer == "passed" || **answer == "replayed";
            assert!(agreed || answer.starts_with(&status), "{answer}: {line}");
            if let Some(reason) = line["tikigate.reason"].as_str() {
                answer.push_str(&format!(" {reason}"));
            }
        }
        answers
    }

    fn request_lines(&self) -> Vec<Value> {
        let text = self.gate.log_text();
        let lines = text
            .lines()
            .filter(|line| line.contains(r#""message":"request""#));
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}
