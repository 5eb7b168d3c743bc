//! The inbound server: listeners, connections and their limits, up to the call of a service.
//!
//! HTTP/1.1 (and 1.0, closed after its answer) by `hyper`'s `http1` connection. Each worker thread
//! runs [`serve`] on a current-thread runtime of its own with one of the [`Listener`]s that
//! [`bind`] made; workers share nothing but the cap on connections.
//!
//! A connection's way:
//!
//! ```text
//! accepted    its address is let in (`allow`, `deny`) · a place is free · the address is not over its share
//! PROXY       behind a trusted proxy that speaks it: whose connection it is; the same once more, for that one
//! TLS         where the listener has it
//! HTTP/1.1    requests, one after the other
//! ```
//!
//! The first three have one deadline from accepting. All of it is ruled by a [`Policy`], which can be
//! replaced: a connection keeps the one that it began with.
//!
//! **Places.** An address (an IPv6 /64) may hold as many connections as there are places left, so alone at
//! most half of them, and two a third each: a newcomer finds one. Trusted proxies and unix sockets are
//! exempt. When very many addresses have taken all places, a worker closes those of its connections
//! that have been quiet for longest (silent from the start, or idle between requests) and for at least
//! half a second; where none is quiet, those that were slow for longest (a head that comes bit by bit, an
//! answer that is not taken). So whoever holds connections without using them loses them first, and a
//! caller that connects anew for each call still gets in; only if all are busy does it wait in the system's queue.
//!
//! What hyper leaves open is closed here, per connection and without a timer per request
//! (`connection`): a deadline for the head, for idling, for an answer that its caller does not
//! take, and a lifetime. `stream` sees the bytes go by and knows from them what a connection is
//! doing; the time of a request's first byte comes from there too.
//!
//! A caller may half-close after its request and still gets its answer, and one that hangs up is
//! not noticed before the answer is written: so neither cancels a call.

mod body;
mod connection;
mod descriptors;
mod entry;
mod listener;
mod passed;
mod places;
mod policy;
pub mod proxy_protocol;
mod room;
mod stream;
mod wire;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::body::Arriving;
pub use self::descriptors::provide_descriptors;
pub use self::listener::{BindError, Listener, Socket, SocketFile, bind};
pub use self::passed::{PassedError, PassedSockets};
pub use self::places::Shared;
pub use self::policy::{CurrentPolicy, Limits, Policy};

use self::connection::{Closing, Connections};
use self::entry::Entrant;
use self::listener::Accept;
use self::places::{NoPlace, Rarely};
use self::room::{MIN_STAY, Room};
use self::stream::Activity;
use crate::metrics::ConnectionRefused;
use crate::net::{Arrived, ClientAddress, LimitKey, Peer};

/// How long accepting rests after the system refused a socket (out of descriptors or memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// At most one log line about the same trouble in this time.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A service that [`serve`] can call: cheap to clone, and with an answer to everything.
pub trait Service:
    tower::Service<
        Arrived<Arriving>,
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
            Arrived<Arriving>,
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
/// Connections that the system had accepted by then are still taken, up to the cap, unless the socket
/// stays open for another process. At the cap a
/// worker closes quiet connections of its own to make room (see `room`); where there are none it holds
/// one more connection in its hand, unserved, and leaves further ones to the system.
///
/// # Errors
/// Only if the listener can't be handed to this runtime. Failures to accept are waited out.
pub async fn serve<S: Service>(
    listener: Listener,
    policy: CurrentPolicy,
    shared: Arc<Shared>,
    service: S,
    closing: CancellationToken,
    abort: CancellationToken,
) -> io::Result<()> {
    let door = Door {
        connections: Connections::new(service),
        policy,
        shared,
        closing: Arc::new(Closing::default()),
        room: Room::default(),
    };
    let outlived = listener.is_outlived();
    // The file of a unix socket stays until the socket no longer accepts.
    let (socket, _file) = listener.register()?;
    run(socket, outlived, door, &closing, &abort).await;
    Ok(())
}

async fn run<A: Accept, S: Service>(
    socket: A,
    outlived: bool,
    mut door: Door<S>,
    closing: &CancellationToken,
    abort: &CancellationToken,
) {
    tokio::select! {
        biased;
        () = abort.cancelled() => return,
        () = closing.cancelled() => {}
        () = accept(&socket, &mut door) => {}
    }
    // In a socket that somebody else holds open connections wait for the next gate.
    if !outlived {
        // The runtime looks at its sockets when tasks yield: what arrived until now is seen below.
        tokio::task::yield_now().await;
        accept_waiting(&socket, &mut door).await;
    }
    drop(socket);
    door.closing.begin();
    // Returning drops the room and thereby what still runs.
    tokio::select! {
        biased;
        () = door.room.all_end() => {}
        () = abort.cancelled() => {}
    }
}

/// Accepts for ever.
async fn accept<A: Accept, S: Service>(socket: &A, door: &mut Door<S>) {
    let mut log = Rarely::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener::next(socket) => accepted,
            () = door.room.one_ends() => continue,
        };
        match accepted {
            Ok((io, peer)) => door.let_in(io, peer).await,
            Err(error) if listener::concerns_one_connection(&error) => {}
            Err(error) => {
                if let Some(unsaid) = log.due() {
                    tracing::warn!(%error, tikigate.more = unsaid, "accepting connections failed");
                }
                // Out of descriptors or memory, of which quiet connections hold some.
                door.displace();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Takes what the system had already accepted: closing the listener would reset it.
async fn accept_waiting<A: Accept, S: Service>(socket: &A, door: &mut Door<S>) {
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener::next(socket) => accepted,
            () = std::future::ready(()) => return,
        };
        match accepted {
            Ok((io, peer)) => {
                if door.let_in_now(io, peer).is_err() {
                    return;
                }
            }
            Err(error) if listener::concerns_one_connection(&error) => {}
            Err(_) => return,
        }
    }
}

/// A worker's door: who comes in, and who goes for that.
struct Door<S> {
    connections: Connections<S>,
    policy: CurrentPolicy,
    shared: Arc<Shared>,
    closing: Arc<Closing>,
    room: Room,
}

/// A connection for which there is no place.
struct Outside<I>(I);

impl<S: Service> Door<S> {
    /// Lets a connection in as soon as there is a place for it, or closes it.
    async fn let_in<I>(&mut self, io: I, peer: Peer)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut outside = self.let_in_now(io, peer);
        while let Err(Outside(io)) = outside {
            let shared = Arc::clone(&self.shared);
            let freed = shared.freed();
            // Those that are closed give their places back in their tasks' turn. Where all are busy,
            // one may have become quiet after a while.
            self.displace();
            let _ = tokio::time::timeout(MIN_STAY, freed).await;
            outside = self.let_in_now(io, peer);
        }
    }

    /// Lets a connection in, or closes it; gives it back where there is no place for it now.
    fn let_in_now<I>(&mut self, io: I, peer: Peer) -> Result<(), Outside<I>>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let policy = self.policy.load_full();
        let address = ClientAddress::from(peer);
        let trusted = policy.trusts(address);
        if !trusted && !policy.addresses.permit(address) {
            self.shared.refuse(ConnectionRefused::Address, peer);
            return Ok(());
        }
        let counts = policy.fair_shares && !trusted && peer != Peer::Unix;
        let place = match self.shared.enter(counts.then(|| LimitKey::from(address))) {
            Ok(place) => place,
            Err(NoPlace::Full) => return Err(Outside(io)),
            Err(NoPlace::OverShare) => {
                self.shared.refuse(ConnectionRefused::Share, peer);
                return Ok(());
            }
        };
        let accepted = Instant::now();
        let activity = Arc::new(Activity::new(accepted));
        let entrant = Entrant {
            peer,
            trusted,
            place,
            policy,
            activity: Arc::clone(&activity),
            closing: Arc::clone(&self.closing),
            accepted,
        };
        let attending = entry::attend(io, entrant, &self.connections);
        self.room.admit(activity, attending);
        Ok(())
    }

    fn displace(&mut self) {
        for _ in 0..self.room.displace(Instant::now()) {
            self.shared.displaced();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::metrics::ListenerName;

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
        let service = tower::service_fn(|_: Arrived<Arriving>| {
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
        let mut door = Door {
            connections: Connections::new(service),
            policy: Policy::open(limits).current(),
            shared: Arc::new(Shared::new(1, ListenerName::Server, Arc::default())),
            closing: Arc::default(),
            room: Room::default(),
        };
        let start = tokio::time::Instant::now();
        let exchange = async {
            caller
                .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                .await
                .unwrap();
            caller.read_u8().await.unwrap()
        };
        tokio::select! {
            () = accept(&socket, &mut door) => {}
            first = exchange => assert_eq!(first, b'H'),
        }
        let polls = socket.polls.lock().unwrap();
        let after = |index: usize| (polls[index] - start).as_millis() / 100;
        assert_eq!(
            [after(0), after(1), after(2), after(3), after(4)],
            [0, 0, 1, 2, 3]
        );
    }
}
