//! The demo's legacy backend: it does what it is told as often as it is told, and counts.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::tiki;

/// The running backend.
pub(super) struct Legacy {
    address: SocketAddr,
    books: Arc<Books>,
}

#[derive(Default)]
struct Books {
    notices: AtomicUsize,
    refunds: Mutex<HashMap<String, usize>>,
    slow_one: Notify,
    arrived: Notify,
}

impl Legacy {
    pub(super) async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let books = Arc::new(Books::default());
        tokio::spawn(accept(listener, Arc::clone(&books)));
        Ok(Self { address, books })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Payment notices that reached it.
    pub(super) fn notices(&self) -> usize {
        self.books.notices.load(Ordering::SeqCst)
    }

    /// How often a refund reached it.
    pub(super) fn refunds(&self, request_id: &str) -> usize {
        let refunds = self
            .books
            .refunds
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        refunds.get(request_id).copied().unwrap_or(0)
    }

    /// Waits until a refund has reached it.
    pub(super) async fn wait_for_refund(&self, request_id: &str) {
        while self.refunds(request_id) == 0 {
            self.books.arrived.notified().await;
        }
    }

    /// Lets the refund that is waiting be answered.
    pub(super) fn answer_the_slow_one(&self) {
        self.books.slow_one.notify_one();
    }
}

async fn accept(listener: TcpListener, books: Arc<Books>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, Arc::clone(&books)));
    }
}

/// Serves one connection. A request that is to kill it ends the connection without an answer.
async fn serve(stream: TcpStream, books: Arc<Books>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&books)));
    // A broken connection is the caller's business.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// The refund that kills its connection.
#[derive(Debug, thiserror::Error)]
#[error("the backend died")]
struct Died;

async fn answer(
    request: Request<Incoming>,
    books: Arc<Books>,
) -> Result<Response<Full<Bytes>>, Died> {
    let is_refund = request.uri().path().ends_with("refund");
    let body = request
        .into_body()
        .collect()
        .await
        .map_err(|_| Died)?
        .to_bytes();
    if !is_refund {
        books.notices.fetch_add(1, Ordering::SeqCst);
        return Ok(success());
    }
    let message: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let request_id = message["request_id"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    {
        let mut refunds = books.refunds.lock().unwrap_or_else(PoisonError::into_inner);
        *refunds.entry(request_id.clone()).or_default() += 1;
    }
    books.arrived.notify_one();
    if request_id.ends_with("-dies") {
        return Err(Died);
    }
    if request_id.ends_with("-slow") {
        books.slow_one.notified().await;
    }
    Ok(success())
}

fn success() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(tiki::SUCCESS_BODY.as_bytes())));
    *response.status_mut() = StatusCode::OK;
    let json = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}
