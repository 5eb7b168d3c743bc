//! The other direction: the backend's plain calls leave the gate signed, and Tiki checks them.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request};
use serde_json::Value;
use tokio::time::Instant;

use super::stage::{CLIENT_ID, SECRET, Stage};
use super::{say, tiki_caller};
use crate::cli::fake_tiki::{FakeTiki, Options, Transaction};
use crate::client;
use crate::config::Endpoint;

const PATIENCE: Duration = Duration::from_secs(15);

/// The demo's Tiki, which checks signatures by code of its own.
pub(super) async fn start_tiki() -> anyhow::Result<FakeTiki> {
    let tiki = FakeTiki::start(Options::default().client(CLIENT_ID, SECRET)).await?;
    for (id, partner_id, amount) in [
        ("TIKI-2001", "P-2001", "75000"),
        ("TIKI-2002", "P-2002", "60000"),
    ] {
        let transaction = Transaction::pending(id, partner_id, amount, CLIENT_ID);
        tiki.put_transaction(transaction.context("an amount of the demo")?);
    }
    Ok(tiki)
}

pub(super) async fn tell(stage: &Stage, tiki: &FakeTiki) -> anyhow::Result<()> {
    let backend = Plain {
        authority: stage.outbound().to_string(),
    };
    say("\nThe other direction: the backend's own calls, plain, to the gate's port for them");
    let notice = tiki_caller::ipn("TIKI-2001", "P-2001", 75_000);
    let answer = backend.post("/payment/ipn", &notice).await?;
    scene(
        "payment notice for TIKI-2001",
        &answer,
        202,
        "stored, to be delivered",
    )?;
    wait_for(tiki, "TIKI-2001").await?;
    let seen = tiki.seen_after(0);
    let call = seen.last().context("Tiki saw no call")?;
    ensure!(
        call.signature == "ok",
        "Tiki found the signature {}",
        call.signature
    );
    say("  Tiki checked its signature and took it: TIKI-2001 is SUCCESS.");

    tiki.stop().await;
    let notice = tiki_caller::ipn("TIKI-2002", "P-2002", 60_000);
    let answer = backend.post("/payment/ipn", &notice).await?;
    scene(
        "payment notice, with Tiki away",
        &answer,
        202,
        "stored all the same",
    )?;
    let listed = stage.command(&["outbox", "list", "--state", "pending"])?;
    ensure!(listed.contains("TIKI-2002"), "TIKI-2002 should be pending");
    tiki.start_again().await.context("Tiki's port")?;
    wait_for(tiki, "TIKI-2002").await?;
    say("  Tiki came back and got it: TIKI-2002 is SUCCESS.");

    let answer = backend
        .get("/transaction?tiki_transaction_id=TIKI-2002")
        .await?;
    scene(
        "a transaction's status",
        &answer,
        200,
        "signed, and Tiki's answer passed back",
    )?;
    ensure!(
        answer.body["data"]["status"] == "SUCCESS",
        "Tiki should say SUCCESS: {}",
        answer.body
    );
    let answer = backend.post("/webview", r#"{"customer":"c-1"}"#).await?;
    scene("a webview's URL", &answer, 200, "the same")?;
    ensure!(
        answer.body["data"]["url"].is_string(),
        "there should be a URL: {}",
        answer.body
    );
    let counts = tiki.counts();
    ensure!(
        counts.refused_signatures == 0,
        "Tiki refused {} signatures",
        counts.refused_signatures
    );
    say(&format!(
        "  Tiki believed each of the {} calls that it saw.",
        counts.calls
    ));
    Ok(())
}

/// Waits until Tiki has a transaction as paid, by one notice.
async fn wait_for(tiki: &FakeTiki, id: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match tiki.transaction(id) {
            Some((_, taken)) if taken.success == 1 => return Ok(()),
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    bail!("{id} was not delivered within {PATIENCE:?}")
}

/// A backend that knows no signature.
struct Plain {
    authority: String,
}

struct Answer {
    status: u16,
    body: Value,
}

impl Plain {
    async fn post(&self, path: &str, body: &str) -> anyhow::Result<Answer> {
        let request = Request::post(path)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(CONTENT_LENGTH, body.len());
        self.send(request, body).await
    }

    async fn get(&self, target: &str) -> anyhow::Result<Answer> {
        self.send(Request::get(target), "").await
    }

    async fn send(&self, request: http::request::Builder, body: &str) -> anyhow::Result<Answer> {
        let request = request
            .header(HOST, &self.authority)
            .body(Bytes::from(body.to_owned()))?;
        let address: std::net::SocketAddr = self.authority.parse()?;
        let endpoint = Endpoint::Tcp {
            host: address.ip().to_string(),
            port: address.port(),
        };
        let answer = client::call(&endpoint, request, Instant::now() + PATIENCE, 64 * 1024)
            .await
            .context("the gate gave no answer")?;
        Ok(Answer {
            status: answer.status.as_u16(),
            body: serde_json::from_slice(&answer.body).unwrap_or_default(),
        })
    }
}

/// Tells one call: what it was, what the backend got, what that means.
fn scene(what: &str, answer: &Answer, expected: u16, meaning: &str) -> anyhow::Result<()> {
    let delivery = answer.body["data"]["delivery"].as_str();
    let delivery = delivery.map(|id| format!(" {id}")).unwrap_or_default();
    say(&format!(
        "  {what:<36} → {}{delivery}: {meaning}",
        answer.status
    ));
    ensure!(
        answer.status == expected,
        "{what}: the answer should have been {expected}, and was {}: {}",
        answer.status,
        answer.body
    );
    Ok(())
}
