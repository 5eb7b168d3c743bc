//! One request: where it goes and what it must bring.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::answer::{self, Answer, Fault};
use super::guard::{self, Access};
use super::{Control, Limits, Readiness, ledger_api, outbox_api};
use crate::ledger::{Ledger, RecordId, Reply};
use crate::outbound::outbox::DeliveryId;

/// What every request is answered with.
pub(super) struct Desk {
    pub(super) access: Access,
    pub(super) limits: Limits,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) control: Arc<dyn Control>,
}

/// What a path means.
enum Place {
    Live,
    Ready,
    Metrics,
    Records,
    Record(RecordId),
    Resolve(RecordId),
    Reopen(RecordId),
    Quarantine,
    LiftQuarantine,
    Drain,
    Deliveries,
    Delivery(DeliveryId),
    Retry(DeliveryId),
    Cancel(DeliveryId),
}

impl Desk {
    /// The answer to one request, whatever it is.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        local: Option<SocketAddr>,
    ) -> Answer {
        let answered = if is_api(request.uri().path()) {
            self.answer_api(request, local).await
        } else {
            self.answer_open(&request).await
        };
        answered.unwrap_or_else(Fault::into_answer)
    }

    async fn answer_open(&self, request: &Request<Incoming>) -> Result<Answer, Fault> {
        let place = find(request.uri().path())?;
        require_read(request.method())?;
        match place {
            Place::Ready => Ok(ready(&self.control.readiness())),
            Place::Metrics => Ok(self.metrics().await),
            _ => Ok(answer::with_body(
                StatusCode::OK,
                "text/plain",
                "ok\n".to_owned(),
            )),
        }
    }

    /// Everything under `/api`. Who asks is settled before anything is told, the path's existence included.
    async fn answer_api(
        &self,
        request: Request<Incoming>,
        local: Option<SocketAddr>,
    ) -> Result<Answer, Fault> {
        let headers = request.headers();
        let access = self.access.get();
        guard::require_known_host(request.uri(), headers, local, &access.hosts)?;
        if !is_read(request.method()) {
            guard::require_no_origin(headers)?;
        }
        let holder = access.tokens.holder(headers)?.to_owned();
        match find(request.uri().path())? {
            Place::Records => {
                require_read(request.method())?;
                ledger_api::list(self, request.uri().query().unwrap_or_default()).await
            }
            Place::Record(id) => {
                require_read(request.method())?;
                ledger_api::show(self, id).await
            }
            Place::Resolve(id) => {
                let body = self.change(request).await?;
                ledger_api::resolve(self, id, &holder, &body).await
            }
            Place::Reopen(id) => {
                let body = self.change(request).await?;
                ledger_api::reopen(self, id, &holder, &body).await
            }
            Place::Quarantine => {
                require_read(request.method())?;
                ledger_api::quarantine(self).await
            }
            Place::LiftQuarantine => {
                let body = self.change(request).await?;
                ledger_api::lift_quarantine(self, &holder, &body).await
            }
            Place::Drain => {
                let body = self.change(request).await?;
                self.drain(&holder, &body)
            }
            Place::Deliveries => {
                require_read(request.method())?;
                outbox_api::list(self, request.uri().query().unwrap_or_default()).await
            }
            Place::Delivery(id) => {
                require_read(request.method())?;
                outbox_api::show(self, id).await
            }
            Place::Retry(id) => {
                let body = self.change(request).await?;
                outbox_api::word(self, id, true, &holder, &body).await
            }
            Place::Cancel(id) => {
                let body = self.change(request).await?;
                outbox_api::word(self, id, false, &holder, &body).await
            }
            Place::Live | Place::Ready | Place::Metrics => Err(Fault::NotFound),
        }
    }

    /// The body of a request that changes something.
    async fn change(&self, request: Request<Incoming>) -> Result<Bytes, Fault> {
        if request.method() != Method::POST {
            return Err(Fault::MethodNotAllowed("POST"));
        }
        guard::require_json(request.headers())?;
        self.read(request.into_body()).await
    }

    async fn read(&self, body: Incoming) -> Result<Bytes, Fault> {
        let limit = self.limits.body;
        if body.size_hint().lower() > limit as u64 {
            return Err(Fault::BodyTooLarge);
        }
        let collected = timeout(self.limits.body_within, Limited::new(body, limit).collect());
        match collected.await {
            Err(_) => Err(Fault::BodyTimeout),
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Fault::BodyTooLarge),
            Ok(Err(_)) => Err(Fault::Malformed("the body broke off".to_owned())),
        }
    }

    fn drain(&self, holder: &str, body: &[u8]) -> Result<Answer, Fault> {
        let asks_for_nothing = body.is_empty()
            || serde_json::from_slice::<Map<String, Value>>(body).is_ok_and(|map| map.is_empty());
        if !asks_for_nothing {
            return Err(Fault::Malformed("a drain takes no arguments".to_owned()));
        }
        tracing::info!(
            tikigate.by = holder,
            "drain asked for through the admin API"
        );
        self.control.start_drain(holder);
        Ok(answer::data(readiness_json(&self.control.readiness())))
    }

    async fn metrics(&self) -> Answer {
        // The other metrics matter most when the ledger is in trouble.
        let stats = match self.ask(self.ledger.stats()).await {
            Ok(Ok(stats)) => Some(stats),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the ledger gave no numbers for the metrics");
                None
            }
            Err(_) => None,
        };
        let outbox = match self.control.outbox() {
            None => None,
            Some(outbox) => match self.ask(outbox.stats()).await {
                Ok(Ok(stats)) => Some(stats),
                _ => None,
            },
        };
        let text = self.control.render_metrics(stats.as_ref(), outbox);
        answer::with_body(StatusCode::OK, "text/plain; version=0.0.4", text)
    }

    /// The ledger's reply, if it comes in time.
    pub(super) async fn ask<T: Unpin>(&self, reply: Reply<T>) -> Result<T, Fault> {
        timeout(self.limits.ledger_within, reply)
            .await
            .map_err(|_| {
                tracing::warn!("the ledger did not answer the admin listener in time");
                Fault::LedgerUnavailable
            })
    }
}

fn is_api(path: &str) -> bool {
    path == "/api" || path.starts_with("/api/")
}

fn find(path: &str) -> Result<Place, Fault> {
    match path {
        "/livez" => return Ok(Place::Live),
        "/readyz" => return Ok(Place::Ready),
        "/metrics" => return Ok(Place::Metrics),
        "/api/ledger" => return Ok(Place::Records),
        "/api/ledger/quarantine" => return Ok(Place::Quarantine),
        "/api/ledger/quarantine/lift" => return Ok(Place::LiftQuarantine),
        "/api/drain" => return Ok(Place::Drain),
        "/api/outbox" => return Ok(Place::Deliveries),
        _ => {}
    }
    if let Some(delivery) = path.strip_prefix("/api/outbox/") {
        let (id, place): (_, fn(DeliveryId) -> Place) = match delivery.split_once('/') {
            Some((id, "retry")) => (id, Place::Retry),
            Some((id, "cancel")) => (id, Place::Cancel),
            Some(_) => return Err(Fault::NoSuchDelivery),
            None => (delivery, Place::Delivery),
        };
        return id.parse().map(place).map_err(|()| Fault::NoSuchDelivery);
    }
    let record = path.strip_prefix("/api/ledger/").ok_or(Fault::NotFound)?;
    let (id, place): (_, fn(RecordId) -> Place) = match record.split_once('/') {
        Some((id, "resolve")) => (id, Place::Resolve),
        Some((id, "reopen")) => (id, Place::Reopen),
        Some(_) => return Err(Fault::NoSuchRecord),
        None => (record, Place::Record),
    };
    id.parse().map(place).map_err(|()| Fault::NoSuchRecord)
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

fn require_read(method: &Method) -> Result<(), Fault> {
    if is_read(method) {
        Ok(())
    } else {
        Err(Fault::MethodNotAllowed("GET, HEAD"))
    }
}

fn ready(readiness: &Readiness) -> Answer {
    let status = if readiness.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    answer::json_body(status, &readiness_json(readiness))
}

fn readiness_json(readiness: &Readiness) -> Value {
    let Readiness {
        phase,
        unready,
        degraded,
    } = readiness;
    json!({
        "ready": readiness.is_ready(),
        "state": phase.as_str(),
        "unready": unready,
        "degraded": degraded,
    })
}
