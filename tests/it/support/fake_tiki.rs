//! The stand-in for Tiki as a process of its own: `tikigate fake-tiki`.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::SystemTime;

use serde_json::Value;
use tikigate::net::ListenAddress;
use tikigate::tiki::{Family, SigningKey, Timestamp};

use super::gate::{CLIENT, OTHER_CLIENT, OTHER_SECRET, SECRET};
use super::raw::{RawAnswer, RawClient, exchange};

/// Where its API is.
pub(crate) const BASE: &str = "/miniapp/tikivip";

/// The process; it is killed with the value.
pub(crate) struct FakeTikiProcess {
    child: Child,
    /// What it writes after its first line is lost, but must not end it.
    _out: BufReader<ChildStdout>,
    origin: String,
    directory: tempfile::TempDir,
}

impl FakeTikiProcess {
    /// Starts one on a free port that knows both clients of the tests.
    pub(crate) fn start(more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tikigate"));
        command.args(["fake-tiki", "--listen", "127.0.0.1:0"]);
        for (client, secret) in [(CLIENT, SECRET), (OTHER_CLIENT, OTHER_SECRET)] {
            let file = directory.path().join(client);
            std::fs::write(&file, format!("{secret}\n")).unwrap();
            let argument = format!("{client}={}", file.display());
            command.args(["--client", &argument]);
        }
        let mut child = command
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let origin = line.trim_end().strip_prefix("fake-tiki listening on ");
        Self {
            origin: origin
                .unwrap_or_else(|| panic!("the first line is {line:?}"))
                .to_owned(),
            child,
            _out: out,
            directory,
        }
    }

    /// Scheme and address.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        let (_, address) = self.origin.split_once("://").unwrap();
        address.parse().unwrap()
    }

    /// The same, for [`RawClient`].
    pub(crate) fn listen_address(&self) -> ListenAddress {
        ListenAddress::Tcp(self.address())
    }

    /// The directory with its secrets.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A connection.
    pub(crate) async fn connect(&self) -> RawClient {
        RawClient::connect(&self.listen_address()).await
    }

    /// Sends these bytes over a connection of its own.
    pub(crate) async fn exchange(&self, bytes: impl AsRef<[u8]>) -> RawAnswer {
        exchange(&self.listen_address(), bytes).await
    }

    /// A call of the control API; anything but 200 is in the answer, not a failed test.
    pub(crate) async fn control(&self, method: &str, path: &str, body: &str) -> RawAnswer {
        let length = body.len();
        self.exchange(format!(
            "{method} /_control/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await
    }

    /// A call of the control API that has to work.
    #[track_caller]
    pub(crate) fn worked(answer: RawAnswer) -> Value {
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Orders a fault.
    pub(crate) async fn order(&self, order: Value) {
        Self::worked(self.control("POST", "orders", &order.to_string()).await);
    }

    /// Puts a pending transaction of [`CLIENT`], with the partner's id `p-1`.
    pub(crate) async fn put(&self, transaction: &str, amount: &str) {
        let body = serde_json::json!({
            "tiki_transaction_id": transaction, "partner_transaction_id": "p-1",
            "amount": amount, "client": CLIENT,
        });
        Self::worked(self.control("PUT", "transactions", &body.to_string()).await);
    }

    /// All calls that it lists.
    pub(crate) async fn seen(&self) -> Vec<Value> {
        let answer = Self::worked(self.control("GET", "seen?after=0", "").await);
        answer["seen"].as_array().unwrap().clone()
    }

    /// The last call that it lists.
    pub(crate) async fn last(&self) -> Value {
        self.seen().await.pop().expect("no call was seen")
    }

    /// Totals.
    pub(crate) async fn counts(&self) -> Value {
        Self::worked(self.control("GET", "counts", "").await)
    }
}

impl Drop for FakeTikiProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A partner's call, signed by the code that the gate uses.
#[derive(Clone)]
pub(crate) struct PartnerCall {
    pub(crate) method: &'static str,
    /// Path and query below the base path.
    pub(crate) path: String,
    pub(crate) body: String,
    pub(crate) client: &'static str,
    pub(crate) family: Family,
}

impl PartnerCall {
    pub(crate) fn post(path: &str, body: impl Into<String>) -> Self {
        Self {
            method: "POST",
            path: path.to_owned(),
            body: body.into(),
            client: CLIENT,
            family: Family::TikiVip,
        }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self {
            method: "GET",
            path: path.into(),
            ..Self::post("", "")
        }
    }

    /// An IPN about a transaction of 100000 whose partner's id is `p-1`.
    pub(crate) fn ipn(transaction: &str, status: &str) -> Self {
        Self::post(
            "/payment/ipn",
            format!(
                r#"{{"tiki_transaction_id":"{transaction}","transaction_amount":100000,"transaction_id":"p-1","status":"{status}"}}"#
            ),
        )
    }

    /// A question for a transaction's status.
    pub(crate) fn status(transaction: &str) -> Self {
        Self::get(format!("/transaction?tiki_transaction_id={transaction}"))
    }

    /// The head's lines and the body, signed now.
    pub(crate) fn bytes(&self) -> String {
        let secret = if self.client == CLIENT {
            SECRET
        } else {
            OTHER_SECRET
        };
        let signed = match self.method {
            "GET" => &self.path,
            _ => &self.body,
        };
        let timestamp = Timestamp::from_system_time(SystemTime::now()).unwrap();
        let mac = SigningKey::from_secret(secret.as_bytes()).sign(
            timestamp,
            self.client,
            signed.as_bytes(),
        );
        let body = match self.method {
            "GET" => String::new(),
            _ => format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                self.body.len()
            ),
        };
        format!(
            "{} {BASE}{} HTTP/1.1\r\nHost: tiki\r\n{}: {timestamp}\r\n{}: {}\r\n{}: {}\r\n{body}\r\n{}",
            self.method,
            self.path,
            self.family.timestamp_header(),
            self.family.client_id_header(),
            self.client,
            self.family.signature_header(),
            mac.to_hex(),
            self.body,
        )
    }
}
