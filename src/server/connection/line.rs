//! What serves a connection: hyper's machine while there is something to do, the bare stream while there is not.
//!
//! hyper keeps a buffer of 8 KiB and room for a call as long as a connection lives, most of which wait
//! most of the time. So its machine is made when the first bytes come, and taken apart again when nothing
//! has come for a moment after an answer.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Adapter, http};
use crate::server::Service;
use crate::server::policy::Limits;
use crate::server::stream::Watched;

/// One of the two, and none only within a change.
pub(super) struct Line<I, S: Service> {
    resting: Option<(Watched<I>, Adapter<S>)>,
    serving: Option<Box<Machine<I, S>>>,
}

type Machine<I, S> = http1::Connection<TokioIo<Watched<I>>, Adapter<S>>;

impl<I, S> Line<I, S>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service,
{
    /// A connection on which nothing has come yet.
    pub(super) fn new(io: Watched<I>, adapter: Adapter<S>) -> Self {
        Self {
            resting: Some((io, adapter)),
            serving: None,
        }
    }

    /// Serves until the connection ends.
    pub(super) fn poll(
        &mut self,
        limits: &Limits,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Box<dyn Error + Send + Sync>>> {
        if let Some((io, _)) = &mut self.resting {
            ready!(io.poll_more(cx))?;
        }
        match self.machine(limits) {
            Some(machine) => Pin::new(machine).poll(cx).map_err(Into::into),
            None => Poll::Ready(Err(io::Error::from(io::ErrorKind::NotConnected).into())),
        }
    }

    /// The connection shall end after the answer that is due, or at once.
    pub(super) fn close(&mut self, limits: &Limits) {
        if let Some(machine) = self.machine(limits) {
            Pin::new(machine).graceful_shutdown();
        }
    }

    /// Whether hyper's machine is there.
    pub(super) fn is_serving(&self) -> bool {
        self.serving.is_some()
    }

    /// Takes hyper's machine apart. Only between an answer and the next request: whatever else it knows
    /// is lost. What it has read of the next request is kept.
    pub(super) fn rest(&mut self) {
        if let Some(machine) = self.serving.take() {
            let parts = machine.into_parts();
            let mut io = parts.io.into_inner();
            io.put_back(&parts.read_buf);
            self.resting = Some((io, parts.service));
        }
    }

    fn machine(&mut self, limits: &Limits) -> Option<&mut Machine<I, S>> {
        if let Some((io, adapter)) = self.resting.take() {
            let machine = http(limits).serve_connection(TokioIo::new(io), adapter);
            self.serving = Some(Box::new(machine));
        }
        self.serving.as_deref_mut()
    }
}
