//! The HTTP/1 client towards a backend, and what it knows for certain about what was sent.
//!
//! A call has two steps. [`Upstream::reserve`] finds or makes a connection and sends nothing;
//! [`Reserved::send`] sends one request and reads its whole answer. In between the caller can do
//! what must come right before the first byte. Every fault says whether a byte may have gone out.

mod answer;
mod bell;
mod connect;
mod linger;
mod patience;
mod pool;
mod stream;

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http::header::{CONNECTION, HeaderValue};
use tokio::time::Instant;

pub use answer::{BackendAnswer, SendFault, SendFaultKind, Sent};
pub use connect::{ConnectFault, ConnectFaultKind};
pub use pool::kept_at_most;

use crate::config::Endpoint;
use connect::Target;
use linger::Linger;
use patience::patiently;
use pool::{Link, Pool};

/// One worker's way to one backend. Cheap to clone; the clones share their connections.
///
/// Each worker needs one of its own: a connection belongs to the runtime that made it.
#[derive(Clone)]
pub struct Upstream {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Arc<crate::config::Upstream>,
    target: Target,
    pool: Pool,
    linger: Linger,
}

/// Which connection a request goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionKind {
    /// One of its own, closed after the answer: a fault can't come from an earlier request, and
    /// the backend has no reason to close it at the wrong moment.
    Fresh,
    /// One that was kept open, else a new one that will be.
    Pooled,
}

/// A connection for one request. Nothing was sent on it for this request yet.
///
/// Dropped, it closes the connection.
#[must_use = "a reserved connection is closed when it is dropped"]
pub struct Reserved {
    link: Box<Link>,
    kind: ConnectionKind,
    upstream: Upstream,
}

impl Upstream {
    /// A way to the first address of the backend that `settings` describe. Connects to nothing yet.
    pub fn new(settings: Arc<crate::config::Upstream>) -> Self {
        Self::to(settings, 0)
    }

    /// A way to the address with this index. Connects to nothing yet.
    ///
    /// # Panics
    /// The settings have no such address.
    pub fn to(settings: Arc<crate::config::Upstream>, index: usize) -> Self {
        Self::beside_others(settings, index, 1)
    }

    /// The same for one of so many workers, which share what the backend bears.
    ///
    /// # Panics
    /// The settings have no such address.
    pub fn beside_others(
        settings: Arc<crate::config::Upstream>,
        index: usize,
        workers: usize,
    ) -> Self {
        let shared = Shared {
            target: Target::from(&settings.endpoints[index]),
            pool: Pool::new(kept_at_most(settings.max_in_flight, workers)),
            linger: Linger::new(),
            settings,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The settings that it was made with.
    pub fn settings(&self) -> &crate::config::Upstream {
        &self.shared.settings
    }

    /// A connection to send one request on, within `connect_timeout` and by `deadline`.
    ///
    /// # Errors
    /// No connection could be made. Nothing has been sent.
    pub async fn reserve(
        &self,
        kind: ConnectionKind,
        deadline: Instant,
    ) -> Result<Reserved, ConnectFault> {
        match self.kept(kind) {
            Some(kept) => Ok(kept),
            None => self.connected(kind, deadline).await,
        }
    }

    /// The first half of [`Upstream::reserve`]: a connection that was kept open, if there is one and it
    /// is of this kind.
    pub fn kept(&self, kind: ConnectionKind) -> Option<Reserved> {
        match kind {
            ConnectionKind::Fresh => None,
            ConnectionKind::Pooled => Some(self.reserved(self.shared.pool.take()?, kind)),
        }
    }

    /// Its second half: a new connection, within `connect_timeout` and by `deadline`.
    ///
    /// # Errors
    /// As for [`Upstream::reserve`].
    pub async fn connected(
        &self,
        kind: ConnectionKind,
        deadline: Instant,
    ) -> Result<Reserved, ConnectFault> {
        let limit = Instant::now().checked_add(self.shared.settings.connect_timeout);
        let deadline = limit.map_or(deadline, |limit| limit.min(deadline));
        let link = connect(&self.shared.target, deadline).await?;
        Ok(self.reserved(link, kind))
    }

    fn reserved(&self, link: Box<Link>, kind: ConnectionKind) -> Reserved {
        Reserved {
            link,
            kind,
            upstream: self.clone(),
        }
    }
}

impl Shared {
    /// Only a connection whose answer was read to its end comes here. All others are closed by
    /// being dropped.
    fn put_away(&self, link: Box<Link>, kind: ConnectionKind) {
        match kind {
            ConnectionKind::Pooled => self.pool.put(link),
            ConnectionKind::Fresh => {
                if let Some(stream) = link.into_stream() {
                    self.linger.close(stream);
                }
            }
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("name", &self.shared.settings.name)
            .field("endpoints", &self.shared.settings.endpoints)
            .finish_non_exhaustive()
    }
}

impl Reserved {
    /// Sends `request` and reads the whole answer, both by `deadline`.
    ///
    /// The request goes out as it is: in origin form, with the caller's `Host` and framing; only
    /// `Connection: close` is added on a fresh connection. Interim answers (1xx) are skipped,
    /// redirects are answers like any other. Of the body `answer_limit` bytes are kept; a longer
    /// one is cut off there and not read on.
    ///
    /// Dropping the future closes the connection at once.
    ///
    /// # Errors
    /// No whole answer came. The fault says whether anything was sent; after [`Sent::Nothing`]
    /// the request may be sent again on another connection.
    pub async fn send(
        self,
        request: Request<Bytes>,
        deadline: Instant,
        answer_limit: usize,
    ) -> Result<BackendAnswer, SendFault> {
        self.send_noting(Box::new(request), deadline, deadline, || (), answer_limit)
            .await
    }

    /// The same, but if the answer isn't there by `soon`, `late` is called then and it is waited for
    /// until `deadline`. The request comes in a box, since it passes through several futures on its way.
    ///
    /// # Errors
    /// As for [`Reserved::send`].
    pub async fn send_noting(
        mut self,
        request: Box<Request<Bytes>>,
        soon: Instant,
        deadline: Instant,
        late: impl FnOnce(),
        answer_limit: usize,
    ) -> Result<BackendAnswer, SendFault> {
        let patience = Patience {
            soon,
            deadline,
            late,
        };
        let answer = send(&mut self.link, self.kind, request, patience, answer_limit).await?;
        if !answer.oversized {
            self.upstream.shared.put_away(self.link, self.kind);
        }
        Ok(answer)
    }
}

impl fmt::Debug for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserved")
            .field("kind", &self.kind)
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

/// Why a [`call`] got no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallFault {
    /// There was no connection.
    #[error(transparent)]
    Connect(#[from] ConnectFault),
    /// There was no whole answer.
    #[error(transparent)]
    Send(#[from] SendFault),
}

/// One call over a connection of its own, for commands; see [`Reserved::send`].
///
/// # Errors
/// No connection, or no whole answer by `deadline`.
pub async fn call(
    endpoint: &Endpoint,
    request: Request<Bytes>,
    deadline: Instant,
    answer_limit: usize,
) -> Result<BackendAnswer, CallFault> {
    let mut link = connect(&Target::from(endpoint), deadline).await?;
    let kind = ConnectionKind::Fresh;
    let patience = Patience {
        soon: deadline,
        deadline,
        late: || (),
    };
    Ok(send(&mut link, kind, Box::new(request), patience, answer_limit).await?)
}

/// Until when an answer is waited for.
struct Patience<L> {
    soon: Instant,
    deadline: Instant,
    late: L,
}

async fn connect(target: &Target, deadline: Instant) -> Result<Box<Link>, ConnectFault> {
    let socket = target.connect(deadline).await?;
    let link = Link::over(socket).await.map_err(io::Error::other)?;
    Ok(link)
}

async fn send(
    link: &mut Link,
    kind: ConnectionKind,
    mut request: Box<Request<Bytes>>,
    patience: Patience<impl FnOnce()>,
    answer_limit: usize,
) -> Result<BackendAnswer, SendFault> {
    let Patience {
        soon,
        deadline,
        late,
    } = patience;
    // A timeout looks at the time only after a first turn, in which the request would go out.
    if deadline <= Instant::now() {
        return Err(SendFault::new(SendFaultKind::Timeout, &link.meter));
    }
    if kind == ConnectionKind::Fresh {
        let close = HeaderValue::from_static("close");
        request.headers_mut().insert(CONNECTION, close);
        // Time may have passed since it was reserved. If the backend has closed it meanwhile, it
        // ends here without a byte written, which is certain, and not in a lost answer.
        link.is_silent();
    }
    let outcome = {
        let exchange = pin!(answer::exchange(link, request, answer_limit));
        patiently(exchange, soon, deadline, late).await
    };
    match outcome {
        Some(outcome) => outcome,
        None => Err(SendFault::new(SendFaultKind::Timeout, &link.meter)),
    }
}
