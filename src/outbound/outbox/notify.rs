//! Tells the backend of deliveries that failed (`outbound.notify_url`), at least once.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request};
use tokio::time::Instant;

use super::types::{Delivery, Outcome};
use crate::client::{ConnectionKind, Upstream};
use crate::config::Notify;

/// Bytes of the backend's answer that are read: only its status counts.
const ANSWER: usize = 4096;

/// The way to the backend.
pub(super) struct Teller {
    upstream: Upstream,
    path: String,
}

impl Teller {
    pub(super) fn new(notify: &Notify) -> Self {
        Self {
            upstream: Upstream::new(notify.upstream.clone()),
            path: notify.path.clone(),
        }
    }

    /// Whether the backend answered that it heard (2xx).
    pub(super) async fn tell(&self, delivery: &Delivery) -> bool {
        let settings = self.upstream.settings();
        let deadline = Instant::now() + settings.answer_within;
        let Some(request) = request(&self.path, &settings.host, delivery) else {
            return false;
        };
        let answered = async {
            let reserved = self.upstream.reserve(ConnectionKind::Fresh, deadline).await;
            let reserved = reserved.map_err(|fault| fault.to_string())?;
            let answer = reserved.send(request, deadline, ANSWER).await;
            let status = answer.map_err(|fault| fault.to_string())?.status;
            match status.is_success() {
                true => Ok(()),
                false => Err(format!("it answered {status}")),
            }
        };
        match answered.await {
            Ok(()) => true,
            Err(why) => {
                tracing::warn!(
                    tikigate.delivery = %delivery.id, why,
                    "the backend could not be told of a failed delivery; trying again"
                );
                false
            }
        }
    }
}

fn request(path: &str, host: &HeaderValue, delivery: &Delivery) -> Option<Request<Bytes>> {
    let mut request = Request::new(Bytes::from(body(delivery)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().ok()?;
    let headers = request.headers_mut();
    headers.insert(HOST, host.clone());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Another failure of the same delivery is another message, and so is another delivery that got the
    // number of one that a restore forgot.
    let key = format!(
        "{}-{}-{}",
        delivery.id, delivery.generation, delivery.flight
    );
    let key = HeaderValue::try_from(key).ok()?;
    headers.insert("idempotency-key", key);
    Some(request)
}

fn body(delivery: &Delivery) -> String {
    let outcome = delivery.outcome.unwrap_or(Outcome::GaveUp);
    let code = match outcome {
        Outcome::Refused(Some(code)) => Some(code.to_string()),
        _ => None,
    };
    serde_json::json!({
        "delivery": delivery.id.to_string(),
        "client_id": delivery.client,
        "tiki_transaction_id": delivery.tiki_transaction_id,
        "transaction_id": delivery.transaction_id,
        // As text: a number would go through the reader's binary floating point.
        "transaction_amount": delivery.amount,
        "status": delivery.status,
        "outcome": outcome.as_str(),
        "code": code,
        "refund_customer": delivery.means_refund(),
    })
    .to_string()
}
