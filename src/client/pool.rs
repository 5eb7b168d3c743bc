//! Connections that are kept open between requests.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::bell::Bell;
use super::stream::{Meter, MeteredStream, Socket};

/// How long a kept connection may wait for its next request.
///
/// Under the five seconds after which Node.js and Apache close by default: a request written while
/// the backend closes is lost with an unknown outcome, and a new connection costs far less.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Kept connections per worker and address: up to so many, however many workers there are, and more where a
/// worker's part of `max_in_flight` is more, up to the second number.
///
/// Where fewer are kept than run at once, calls that end together close what the next ones have to open
/// again, which costs more than all the rest of a call. And a backend with a thread for each connection
/// must not have all of them held by connections that nobody uses: `max_in_flight` is what it is said to bear.
const KEPT: usize = 64;
const MOST_KEPT: usize = 256;

/// How many connections to one address of a backend each of so many workers keeps at most.
pub fn kept_at_most(max_in_flight: usize, workers: usize) -> usize {
    let part = max_in_flight.div_ceil(workers.max(1));
    max_in_flight.min(KEPT).max(part.min(MOST_KEPT))
}

/// The head of an answer at most, in bytes. (The library bounds its fields to 100.)
const HEAD_LIMIT: usize = 64 * 1024;

/// About how large the read buffer of a connection may grow, in bytes.
const READ_BUFFER: usize = 64 * 1024;

/// Turns that a connection gets one after the other before other tasks get theirs.
const TURNS: u8 = 32;

/// An HTTP/1 connection with both of its halves.
pub(super) struct Link {
    pub(super) sender: SendRequest<Full<Bytes>>,
    pub(super) meter: Arc<Meter>,
    /// What the connection is driven by.
    bell: Arc<Bell>,
    /// The same as it is given to the HTTP library.
    waker: Waker,
    /// How many turns it had one after the other.
    turns: u8,
    /// None once it has ended. It is taken apart right then: a request that it didn't take up
    /// would wait in it for ever.
    connection: Option<Connection<TokioIo<MeteredStream>, Full<Bytes>>>,
    /// What an ended connection leaves.
    stream: Option<MeteredStream>,
    /// Why it ended, if nobody else was told.
    pub(super) error: Option<hyper::Error>,
    idle_since: Instant,
}

impl Link {
    /// Speaks HTTP/1 over a connected socket; sends nothing yet.
    pub(super) async fn over(socket: Socket) -> Result<Box<Self>, hyper::Error> {
        let meter = Arc::new(Meter::default());
        let stream = MeteredStream::new(socket, Arc::clone(&meter));
        // Requests are small: one buffer in one write is cheaper than a list of them.
        let (sender, connection) = Builder::new()
            .writev(false)
            .max_header_size(HEAD_LIMIT)
            .max_buf_size(READ_BUFFER)
            .handshake(TokioIo::new(stream))
            .await?;
        let bell = Arc::<Bell>::default();
        // Boxed, since it is moved in and out of the pool.
        Ok(Box::new(Self {
            sender,
            meter,
            waker: Waker::from(Arc::clone(&bell)),
            bell,
            turns: 0,
            connection: Some(connection),
            stream: None,
            error: None,
            idle_since: Instant::now(),
        }))
    }

    /// Ready once the connection has had a turn, which it gets when something happened to it; what
    /// comes of it shows at the answer. One that has ended has no turns: its answer, or why there is none, is there.
    pub(super) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.turns == TURNS {
            // It may be asking for more as long as others get no turn.
            self.turns = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.bell.poll_rung(cx).is_pending() {
            self.turns = 0;
            return Poll::Pending;
        }
        self.turns += 1;
        self.drive();
        Poll::Ready(())
    }

    /// There is something to do for the connection.
    pub(super) fn give_a_turn(&mut self) {
        self.turns = 0;
        self.bell.ring();
    }

    /// Lets the connection read and write.
    fn drive(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let mut cx = Context::from_waker(&self.waker);
        if let Poll::Ready(ended) = connection.poll_without_shutdown(&mut cx) {
            self.error = ended.err();
            self.take_apart();
        }
    }

    /// The socket, to be closed in its own time.
    pub(super) fn into_stream(mut self) -> Option<MeteredStream> {
        self.take_apart();
        self.stream
    }

    fn take_apart(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.stream = Some(connection.into_parts().io.into_inner());
        }
    }

    /// Looks at the socket itself: whether the backend has neither closed it nor sent anything.
    /// If it has, the connection ends here, before it can write.
    pub(super) fn is_silent(&mut self) -> bool {
        self.meter.set_probing(true);
        self.drive();
        self.meter.set_probing(false);
        self.is_ready()
    }

    /// Whether another request can go over it, now that an answer was read to its end. Surplus bytes
    /// show when it is taken again.
    fn settle(&mut self) -> bool {
        // The finished request's task is not to be kept alive.
        self.bell.leave();
        if !self.is_ready() {
            // Something may be left to do.
            self.drive();
        }
        self.is_ready() && !self.meter.write_failed() && !self.meter.is_behind()
    }

    fn is_ready(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }
}

/// The idle connections of one worker to one backend.
pub(super) struct Pool {
    /// Only its worker's thread takes this lock, for a few instructions and never across an await:
    /// it is there for the type to be `Sync`, nobody ever waits for it.
    idle: Mutex<VecDeque<Box<Link>>>,
    capacity: usize,
}

impl Pool {
    /// Keeps so many connections at most.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            idle: Mutex::default(),
            capacity,
        }
    }

    /// The connection that was used last, if it can still be used.
    pub(super) fn take(&self) -> Option<Box<Link>> {
        drop_old_ones(&mut self.lock(), Instant::now());
        loop {
            let mut link = self.lock().pop_back()?;
            if link.is_silent() {
                link.meter.restart();
                return Some(link);
            }
        }
    }

    /// Keeps a connection over which an answer was read to its end, if it can be used again.
    pub(super) fn put(&self, mut link: Box<Link>) {
        let settled = link.settle();
        let now = Instant::now();
        link.idle_since = now;
        let mut idle = self.lock();
        drop_old_ones(&mut idle, now);
        if settled && idle.len() < self.capacity {
            idle.push_back(link);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Box<Link>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drop_old_ones(idle: &mut VecDeque<Box<Link>>, now: Instant) {
    let is_old = |since: Instant| now.saturating_duration_since(since) > IDLE_TIMEOUT;
    while idle.front().is_some_and(|link| is_old(link.idle_since)) {
        idle.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By `max_in_flight` and workers.
    #[test]
    fn as_many_are_kept_as_a_worker_uses_and_no_more_than_a_backend_bears() {
        for (max_in_flight, workers, kept) in [
            (1, 1, 1),
            (64, 1, 64),
            (64, 4, 64),
            (256, 1, 256),
            (256, 2, 128),
            (257, 2, 129),
            (256, 8, 64),
            (100_000, 2, 256),
        ] {
            assert_eq!(
                kept_at_most(max_in_flight, workers),
                kept,
                "{max_in_flight}, {workers}"
            );
        }
    }
}
