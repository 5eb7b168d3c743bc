//! The gate that a worker serves with; another may take its place between two requests.

use std::convert::Infallible;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Response;
use http_body::Body;
use http_body_util::Full;
use tower::{Service, service_fn};

use crate::net::Arrived;

use super::Gate;

/// A worker's gate as of now. Cheap to clone; the clones see the same one.
#[derive(Clone)]
pub struct Current(Arc<ArcSwap<Gate>>);

impl Current {
    /// This one, until another takes its place.
    pub fn new(gate: Arc<Gate>) -> Self {
        Self(Arc::new(ArcSwap::new(gate)))
    }

    /// The gate as of now. A call that began with it ends with it.
    pub fn get(&self) -> Arc<Gate> {
        self.0.load_full()
    }

    /// Puts another one into its place, for every call that begins from now on.
    pub fn replace(&self, gate: Arc<Gate>) {
        self.0.store(gate);
    }

    /// As the server calls it: each call goes through the gate that is current when it begins.
    pub fn service<B>(
        &self,
    ) -> impl Service<Arrived<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + use<B>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let current = self.clone();
        // The layers are ready at any time. A call that first asked would hold the request twice, and the
        // HTTP library keeps room for a whole call for each connection.
        service_fn(move |arrived| current.get().service::<B>().call(arrived))
    }
}
