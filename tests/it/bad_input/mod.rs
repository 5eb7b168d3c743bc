//! What must not pass, sent as bytes on a socket to a gate whose backend would agree to anything.

mod arbitrary;
mod bodies;
mod dropped;
mod fields;
mod framing;
mod heads;
mod signatures;
mod slow;
mod table;
mod targets;

use serde_json::Value;

use crate::support::backend::{Answer, Backend, Seen};
use crate::support::gate::{TestGate, refund, usual};
use crate::support::raw::RawAnswer;

/// Status, error code, and `tikigate.reason` in the log (empty: none).
type Refused = (u16, &'static str, &'static str);

const UNAUTHENTICATED: &str = "unauthenticated";

/// A gate in front of a backend that records all and answers success.
struct Stage {
    backend: Backend,
    gate: TestGate,
}

impl Stage {
    /// With the usual configuration.
    async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With these parts of the usual configuration replaced; each must be in it.
    async fn with(changes: &[(&str, &str)]) -> Self {
        let backend = Backend::start(|_| Answer::success().into()).await;
        let mut toml = usual(&backend.url());
        for (from, to) in changes {
            assert!(toml.contains(from), "{from} is not in the configuration");
            toml = toml.replace(from, to);
        }
        // The workers' log lines are in order each, not together.
        toml = toml.replace("workers = 2", "workers = 1");
        let gate = TestGate::with(&toml).await;
        Self { backend, gate }
    }

    /// Sends these bytes on a connection of its own, which must be refused like this and logged so.
    async fn refuses(&self, what: &str, bytes: impl AsRef<[u8]>, refused: Refused) -> RawAnswer {
        let answer = self.gate.send_bytes(bytes).await;
        self.check(what, &answer, refused);
        answer
    }

    /// Checks an answer of the gate's own, its log line, and that nothing reached the backend.
    fn check(&self, what: &str, answer: &RawAnswer, (status, code, reason): Refused) {
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, status, "{what}: {text}");
        let body = answer.json();
        assert_eq!(body["error"]["code"], code, "{what}: {text}");
        assert_eq!(body["data"], Value::Null, "{what}");
        let message = body["error"]["message"].as_str();
        assert!(
            message.is_some_and(|message| !message.is_empty()),
            "{what}: {text}"
        );
        assert_eq!(
            answer.header("content-type"),
            Some("application/json"),
            "{what}"
        );
        assert_eq!(
            answer.header("retry-after").is_some(),
            status == 503,
            "{what}"
        );

        let line = self.last_line();
        assert_eq!(line["http.response.status_code"], status, "{what}: {line}");
        assert_eq!(line["error.type"], code, "{what}: {line}");
        assert_eq!(
            line["tikigate.reason"].as_str().unwrap_or(""),
            reason,
            "{what}: {line}"
        );
        self.nothing_reached_the_backend(what);
    }

    /// The log's last line about a request.
    fn last_line(&self) -> Value {
        let text = self.gate.log_text();
        let line = text
            .lines()
            .rfind(|line| line.contains(r#""message":"request""#));
        serde_json::from_str(line.expect("a line about a request")).unwrap()
    }

    fn nothing_reached_the_backend(&self, what: &str) {
        let bytes = self.backend.bytes();
        assert!(
            bytes.is_empty(),
            "{what}: {}",
            String::from_utf8_lossy(&bytes)
        );
        assert!(
            self.backend.connections().is_empty(),
            "{what}: the backend was connected to"
        );
    }

    /// The gate is well and the backend hears of one good call, and of nothing else.
    async fn still_passes(&self) {
        self.nothing_reached_the_backend("before");
        let body = refund("still-there", "1");
        assert_eq!(self.gate.post("/tiki/refund", &body).await.status, 200);
        self.only_clean_calls(&[body.as_bytes()]);
    }

    /// What reached the backend is these bodies in this order, each in one clean request.
    fn only_clean_calls(&self, bodies: &[&[u8]]) {
        let requests = self.backend.requests();
        let seen: Vec<&[u8]> = requests.iter().map(|seen| &*seen.body).collect();
        assert_eq!(seen, bodies);
        let length: usize = requests
            .iter()
            .map(|seen| seen.raw_head.len() + seen.body.len())
            .sum();
        assert_eq!(
            self.backend.bytes().len(),
            length,
            "bytes beyond the requests"
        );
        for seen in &requests {
            assert_clean(seen);
        }
    }
}

/// A request whose framing is the gate's own and can be read in one way only.
fn assert_clean(seen: &Seen) {
    let head = String::from_utf8(seen.raw_head.clone()).expect("a head in UTF-8");
    assert_eq!(
        seen.header("content-length"),
        Some(&*seen.body.len().to_string()),
        "{head}"
    );
    assert_eq!(seen.header("transfer-encoding"), None, "{head}");
    assert!(seen.header("host").is_some(), "{head}");
    for name in ["trailer", "te", "upgrade", "expect", "content-encoding"] {
        assert_eq!(seen.header(name), None, "{head}");
    }
    let lines = head.trim_end_matches("\r\n").split("\r\n");
    for line in lines {
        assert!(!line.contains(['\r', '\n', '\0']), "{head:?}");
        assert!(!line.starts_with([' ', '\t']), "{head:?}");
    }
}
