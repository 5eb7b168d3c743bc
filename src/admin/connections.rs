//! Connections of the admin listener, each bounded in every phase.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::handler::Desk;
use super::{Admission, Listener};
use crate::net::Peer;

/// Bytes of a request's head at most, and fields in it.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// How long accepting rests after it failed: the cause, such as no free descriptors, takes a while
/// to go away, and trying at once would spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// How long a connection may stay idle before another may displace it: long enough for a request
/// that was sent with it to be read. Also how often a full house is looked over.
const MIN_STAY: Duration = Duration::from_millis(100);

/// Accepts connections until `shutdown`, then waits a little for those that are being answered.
pub(super) async fn accept(
    listener: Listener,
    admission: Admission,
    desk: Arc<Desk>,
    shutdown: CancellationToken,
) {
    let mut crowd = Crowd::new(desk.limits.connections.max(1));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let accepted = match accepted {
            Ok((accepted, peer)) if admission.permits(peer) => accepted,
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!(%error, "the admin listener could not accept a connection");
                sleep(ACCEPT_REST).await;
                continue;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = crowd.make_room() => {}
        }
        crowd.admit(accepted, &desk, &shutdown);
    }
    drop(listener);
    // Each connection has seen `shutdown` and bounds its own end; this bounds their sum.
    let _ = timeout(desk.limits.close_within, crowd.leave()).await;
}

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Listener {
    async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                let local = stream.local_addr()?;
                stream.set_nodelay(true)?;
                Ok((Accepted::Tcp(stream, local), Peer::Tcp(peer)))
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Accepted::Unix(stream), Peer::Unix))
            }
        }
    }
}

/// The open connections, oldest first.
struct Crowd {
    room: usize,
    seats: VecDeque<Seat>,
    tasks: JoinSet<()>,
}

struct Seat {
    task: AbortHandle,
    taken: Instant,
    answering: Arc<AtomicBool>,
}

impl Seat {
    fn may_be_displaced(&self) -> bool {
        self.taken.elapsed() >= MIN_STAY && !self.answering.load(Ordering::Relaxed)
    }
}

impl Crowd {
    fn new(room: usize) -> Self {
        Self {
            room,
            seats: VecDeque::with_capacity(room),
            tasks: JoinSet::new(),
        }
    }

    /// Returns when one more connection may be taken.
    ///
    /// When all seats are taken, the oldest connection without a request being answered is closed.
    /// Whoever holds connections open without asking anything then only displaces himself, and the
    /// next liveness probe gets through.
    async fn make_room(&mut self) {
        loop {
            while self.tasks.try_join_next().is_some() {}
            self.seats.retain(|seat| !seat.task.is_finished());
            if self.seats.len() < self.room {
                return;
            }
            let idle = self.seats.iter().position(Seat::may_be_displaced);
            if let Some(seat) = idle.and_then(|oldest| self.seats.remove(oldest)) {
                seat.task.abort();
                return;
            }
            let _ = timeout(MIN_STAY, self.tasks.join_next()).await;
        }
    }

    fn admit(&mut self, accepted: Accepted, desk: &Arc<Desk>, shutdown: &CancellationToken) {
        let answering = Arc::new(AtomicBool::new(false));
        let visit = Visit {
            desk: Arc::clone(desk),
            answering: Arc::clone(&answering),
            shutdown: shutdown.clone(),
        };
        let task = match accepted {
            Accepted::Tcp(stream, local) => self.tasks.spawn(visit.attend(stream, Some(local))),
            Accepted::Unix(stream) => self.tasks.spawn(visit.attend(stream, None)),
        };
        self.seats.push_back(Seat {
            task,
            taken: Instant::now(),
            answering,
        });
    }

    async fn leave(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// One connection's stay.
struct Visit {
    desk: Arc<Desk>,
    answering: Arc<AtomicBool>,
    shutdown: CancellationToken,
}

impl Visit {
    async fn attend<S>(self, stream: S, local: Option<SocketAddr>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let limits = self.desk.limits;
        let service = service_fn(|request: Request<Incoming>| {
            let answering = Answering::start(&self.answering);
            let desk = &self.desk;
            async move {
                let answer = desk.answer(request, local).await;
                drop(answering);
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_within)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        // How a connection ends is the peer's business; an answer that was due is in the log already.
        tokio::select! {
            _ = connection.as_mut() => return,
            () = self.shutdown.cancelled() => {}
            () = sleep(limits.connection_lifetime) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = timeout(limits.close_within, connection).await;
    }
}

/// Marks a connection as being answered for as long as it lives.
struct Answering(Arc<AtomicBool>);

impl Answering {
    fn start(flag: &Arc<AtomicBool>) -> Self {
        flag.store(true, Ordering::Relaxed);
        Self(Arc::clone(flag))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
