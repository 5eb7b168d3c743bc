//! The demo's Tiki: it signs calls and sends them.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request};
use tokio::time::Instant;

use crate::client;
use crate::clock::Clock;
use crate::config::Endpoint;
use crate::tiki::{Family, Mac, SigningKey, Timestamp};

use super::stage::{CLIENT_ID, SECRET};

const PATIENCE: Duration = Duration::from_secs(10);

/// Sends calls as Tiki does.
pub(super) struct TikiCaller {
    authority: String,
    key: SigningKey,
    clock: Clock,
}

/// What Tiki got.
pub(super) struct Reply {
    pub(super) status: u16,
    /// The envelope's error code.
    pub(super) code: Option<String>,
    pub(super) replayed: bool,
    pub(super) body: String,
}

impl TikiCaller {
    pub(super) fn new(url: &str) -> Self {
        Self {
            authority: url.trim_start_matches("http://").to_owned(),
            key: SigningKey::from_secret(SECRET.as_bytes()),
            clock: Clock::system(),
        }
    }

    /// A call signed now.
    pub(super) async fn send(&self, path: &str, body: &str) -> anyhow::Result<Reply> {
        self.signed_ago(Duration::ZERO, path, body).await
    }

    /// A call signed some time ago.
    pub(super) async fn signed_ago(
        &self,
        ago: Duration,
        path: &str,
        body: &str,
    ) -> anyhow::Result<Reply> {
        let timestamp = timestamp(self.clock.now() - ago)?;
        let mac = self.key.sign(timestamp, CLIENT_ID, body.as_bytes());
        self.call(path, body, CLIENT_ID, timestamp, &mac.to_hex())
            .await
    }

    /// A call with one digit of its signature changed.
    pub(super) async fn forged(&self, path: &str, body: &str) -> anyhow::Result<Reply> {
        let timestamp = timestamp(self.clock.now())?;
        let mac: Mac = self.key.sign(timestamp, CLIENT_ID, body.as_bytes());
        let mut digits = mac.to_hex();
        let changed = if digits.ends_with('0') { "1" } else { "0" };
        digits.replace_range(63.., changed);
        self.call(path, body, CLIENT_ID, timestamp, &digits).await
    }

    /// A call by somebody whom the gate doesn't know.
    pub(super) async fn stranger(&self, path: &str, body: &str) -> anyhow::Result<Reply> {
        let timestamp = timestamp(self.clock.now())?;
        let mac = SigningKey::from_secret(b"another").sign(timestamp, "stranger", body.as_bytes());
        self.call(path, body, "stranger", timestamp, &mac.to_hex())
            .await
    }

    async fn call(
        &self,
        path: &str,
        body: &str,
        client_id: &str,
        timestamp: Timestamp,
        signature: &str,
    ) -> anyhow::Result<Reply> {
        let family = Family::TikiVip;
        let request = Request::post(path)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(CONTENT_LENGTH, body.len())
            .header(family.timestamp_header(), timestamp.to_string())
            .header(family.client_id_header(), client_id)
            .header(family.signature_header(), signature)
            .body(Bytes::from(body.to_owned()))?;
        let (host, port) = self
            .authority
            .rsplit_once(':')
            .context("the gate has no port")?;
        let endpoint = Endpoint::Tcp {
            host: host.to_owned(),
            port: port.parse()?,
        };
        let answer = client::call(&endpoint, request, Instant::now() + PATIENCE, 64 * 1024)
            .await
            .context("the gate gave no answer")?;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        let value: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        Ok(Reply {
            status: answer.status.as_u16(),
            code: value["error"]["code"].as_str().map(str::to_owned),
            replayed: answer.headers.contains_key("idempotency-replayed"),
            body,
        })
    }
}

fn timestamp(time: SystemTime) -> anyhow::Result<Timestamp> {
    Timestamp::from_system_time(time).context("the clock is outside of what timestamps can say")
}

/// A payment notice as Tiki words it.
pub(super) fn ipn(transaction: &str, partner_transaction: &str, amount: u64) -> String {
    format!(
        r#"{{"tiki_transaction_id":"{transaction}","transaction_amount":{amount},"transaction_id":"{partner_transaction}","status":"SUCCESS"}}"#
    )
}

/// A refund as Tiki words it.
pub(super) fn refund(request_id: &str, transaction: &str, amount: u64) -> String {
    format!(
        r#"{{"tiki_transaction_id":"{transaction}","transaction_amount":{amount},"transaction_id":"P-1001","reason":"Khách hàng đổi ý","request_id":"{request_id}"}}"#
    )
}
