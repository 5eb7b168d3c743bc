//! The inbound server: listeners, connections and their limits, up to the call of a service.
//!
//! HTTP/1.1 (and 1.0, closed after its answer) by `hyper`'s `http1` connection. Each worker thread
//! runs [`serve`] on a current-thread runtime of its own with one of the [`Listener`]s that
//! [`bind`] made; workers share nothing but the cap on connections.
//!
//! What hyper leaves open is closed here, per connection and without a timer per request
//! (`connection`): a deadline for the head, for idling, for an answer that its caller does not
//! take, and a lifetime. `stream` sees the bytes go by and knows from them what a connection is
//! doing; the time of a request's first byte comes from there too.
//!
//! A caller may half-close after its request and still gets its answer, and one that hangs up is
//! not noticed before the answer is written: so neither cancels a call.

mod connection;
mod listener;
mod stream;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

pub use self::listener::{BindError, Listener, Socket, SocketFile, bind};

use self::connection::{Closing, Connections};
use self::listener::Accept;
use crate::config;
use crate::net::Arrived;

/// A connection is closed at the first chance after this long, so that callers spread over
/// replicas anew.
const LIFETIME: Duration = Duration::from_secs(60 * 60);

/// How long accepting rests after the system refused a socket (out of descriptors or memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// At most one log line about failed accepts in this time, per worker.
const ACCEPT_LOG_EVERY: Duration = Duration::from_secs(10);

/// What one connection may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From accepting to the first byte, and from a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// From an answer to the first byte of the next request.
    pub idle_timeout: Duration,
    /// How long an answer may make no progress towards the caller.
    pub write_timeout: Duration,
    /// Age at which a connection is closed, once the request that is running is answered.
    pub lifetime: Duration,
    /// Bytes of a request's head at most; hyper answers 431 beyond.
    pub head_limit: usize,
    /// Header fields of a request at most; hyper answers 431 beyond.
    pub max_headers: usize,
}

impl From<&config::Server> for Limits {
    fn from(server: &config::Server) -> Self {
        Self {
            header_timeout: server.header_timeout,
            idle_timeout: server.idle_timeout,
            write_timeout: server.write_timeout,
            lifetime: LIFETIME,
            head_limit: server.head_limit,
            max_headers: server.max_headers,
        }
    }
}

/// What all workers share: the cap on connections.
#[derive(Debug)]
pub struct Shared {
    permits: Arc<Semaphore>,
    max_connections: usize,
}

impl Shared {
    /// A cap of `max_connections` (at least 1) over all workers.
    pub fn new(max_connections: usize) -> Self {
        let max_connections = max_connections.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            permits: Arc::new(Semaphore::new(max_connections)),
            max_connections,
        }
    }

    /// Connections open now, over all workers.
    pub fn connections(&self) -> usize {
        self.max_connections - self.permits.available_permits()
    }

    /// Waits until there is room for a connection. None cannot happen: the semaphore is never
    /// closed.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }

    fn permit_now(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }
}

/// A service that [`serve`] can call: cheap to clone, and with an answer to everything.
pub trait Service:
    tower::Service<
        Arrived<Incoming>,
        Response = http::Response<Full<Bytes>>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
}

impl<S> Service for S where
    S: tower::Service<
            Arrived<Incoming>,
            Response = http::Response<Full<Bytes>>,
            Error = Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + 'static
{
}

/// Serves one listener until `closing` is cancelled, then closes it and the idle connections,
/// lets running requests finish (their answers say `Connection: close`), and returns when all
/// connections have ended. When `abort` is cancelled, what is left is dropped.
///
/// Connections that the system had accepted by then are still taken, up to the cap. At the cap a
/// worker holds one more connection in its hand, unserved, and leaves further ones to the system.
///
/// # Errors
/// Only if the listener can't be handed to this runtime. Failures to accept are waited out.
pub async fn serve<S: Service>(
    listener: Listener,
    limits: Limits,
    shared: Arc<Shared>,
    service: S,
    closing: CancellationToken,
    abort: CancellationToken,
) -> io::Result<()> {
    let connections = Connections::new(&limits, service);
    match listener.register()? {
        (Socket::Tcp(socket), _) => run(socket, connections, &shared, &closing, &abort).await,
        // The file stays until the socket no longer accepts.
        (Socket::Unix(socket), _file) => {
            run(socket, connections, &shared, &closing, &abort).await;
        }
    }
    Ok(())
}

async fn run<A: Accept, S: Service>(
    socket: A,
    connections: Connections<S>,
    shared: &Shared,
    closing: &CancellationToken,
    abort: &CancellationToken,
) {
    let drain = Arc::new(Closing::default());
    let mut running = JoinSet::new();
    tokio::select! {
        biased;
        () = abort.cancelled() => return,
        () = closing.cancelled() => {}
        () = accept(&socket, &connections, shared, &drain, &mut running) => {}
    }
    // The runtime looks at its sockets when tasks yield: what arrived until now is seen below.
    tokio::task::yield_now().await;
    accept_waiting(&socket, &connections, shared, &drain, &mut running).await;
    drop(socket);
    drain.begin();
    let all_ended = async {
        while let Some(ended) = running.join_next().await {
            report(ended);
        }
    };
    // Returning drops the set and thereby what still runs.
    tokio::select! {
        biased;
        () = all_ended => {}
        () = abort.cancelled() => {}
    }
}

/// Accepts for ever.
async fn accept<A: Accept, S: Service>(
    socket: &A,
    connections: &Connections<S>,
    shared: &Shared,
    drain: &Arc<Closing>,
    running: &mut JoinSet<()>,
) {
    let mut log = Rarely::default();
    loop {
        match listener::next(socket).await {
            Ok((io, peer)) => {
                let Some(permit) = shared.permit().await else {
                    return;
                };
                running.spawn(connections.serve(io, peer, Arc::clone(drain), permit));
            }
            Err(error) if listener::concerns_one_connection(&error) => {}
            Err(error) => {
                log.accept_failed(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while let Some(ended) = running.try_join_next() {
            report(ended);
        }
    }
}

/// Takes what the system had already accepted: closing the listener would reset it.
async fn accept_waiting<A: Accept, S: Service>(
    socket: &A,
    connections: &Connections<S>,
    shared: &Shared,
    drain: &Arc<Closing>,
    running: &mut JoinSet<()>,
) {
    while let Some(permit) = shared.permit_now() {
        let accepted = tokio::select! {
            biased;
            accepted = listener::next(socket) => accepted,
            () = std::future::ready(()) => return,
        };
        match accepted {
            Ok((io, peer)) => {
                running.spawn(connections.serve(io, peer, Arc::clone(drain), permit));
            }
            Err(error) if listener::concerns_one_connection(&error) => {}
            Err(_) => return,
        }
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("a connection's task panicked");
    }
}

/// Keeps a failure that repeats from filling the log.
#[derive(Debug, Default)]
struct Rarely {
    last: Option<tokio::time::Instant>,
    unsaid: u64,
}

impl Rarely {
    fn accept_failed(&mut self, error: &io::Error) {
        if self
            .last
            .is_some_and(|last| last.elapsed() < ACCEPT_LOG_EVERY)
        {
            self.unsaid += 1;
            return;
        }
        tracing::warn!(
            %error,
            unsaid = self.unsaid,
            "accepting a connection failed; trying again shortly"
        );
        self.last = Some(tokio::time::Instant::now());
        self.unsaid = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::net::Peer;

    #[test]
    fn the_cap_is_counted_in_connections() {
        let shared = Shared::new(2);
        let first = shared.permit_now();
        let second = shared.permit_now();
        assert!(first.is_some() && second.is_some());
        assert_eq!(shared.connections(), 2);
        assert!(shared.permit_now().is_none());
        drop(first);
        assert_eq!(shared.connections(), 1);
        assert!(shared.permit_now().is_some());
    }

    /// Fails to accept for want of descriptors, but for one caller that went away and a last one.
    struct Exhausted {
        polls: Mutex<Vec<tokio::time::Instant>>,
        last: Mutex<Option<tokio::io::DuplexStream>>,
    }

    impl Accept for Exhausted {
        type Io = tokio::io::DuplexStream;

        fn poll_accept(&self, _: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Peer)>> {
            let mut polls = self.polls.lock().unwrap();
            polls.push(tokio::time::Instant::now());
            if polls.len() == 1 {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            if polls.len() < 5 {
                return Poll::Ready(Err(io::Error::other("too many open files")));
            }
            match self.last.lock().unwrap().take() {
                Some(io) => Poll::Ready(Ok((io, Peer::Unix))),
                None => Poll::Pending,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn accepting_rests_after_a_failure_and_goes_on() {
        let (mut caller, server) = tokio::io::duplex(4096);
        let socket = Exhausted {
            polls: Mutex::default(),
            last: Mutex::new(Some(server)),
        };
        let service = tower::service_fn(|_: Arrived<Incoming>| {
            std::future::ready(Ok::<_, Infallible>(http::Response::default()))
        });
        let second = Duration::from_secs(1);
        let limits = Limits {
            header_timeout: second,
            idle_timeout: second,
            write_timeout: second,
            lifetime: second,
            head_limit: 8192,
            max_headers: 100,
        };
        let connections = Connections::new(&limits, service);
        let shared = Shared::new(1);
        let drain = Arc::new(Closing::default());
        let mut running = JoinSet::new();
        let start = tokio::time::Instant::now();
        let exchange = async {
            caller
                .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                .await
                .unwrap();
            caller.read_u8().await.unwrap()
        };
        tokio::select! {
            () = accept(&socket, &connections, &shared, &drain, &mut running) => {}
            first = exchange => assert_eq!(first, b'H'),
        }
        let polls = socket.polls.lock().unwrap();
        let after = |index: usize| (polls[index] - start).as_millis() / 100;
        assert_eq!(
            [after(0), after(1), after(2), after(3), after(4)],
            [0, 0, 1, 2, 3]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_repeats_is_logged_once_in_a_while() {
        let error = io::Error::other("no descriptors");
        let mut log = Rarely::default();
        log.accept_failed(&error);
        let first = log.last;
        for _ in 0..5 {
            log.accept_failed(&error);
        }
        assert_eq!((log.last, log.unsaid), (first, 5));
        tokio::time::advance(ACCEPT_LOG_EVERY).await;
        log.accept_failed(&error);
        assert_ne!(log.last, first);
        assert_eq!(log.unsaid, 0);
    }
}
