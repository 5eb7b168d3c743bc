//! A backend that records every byte it gets and misbehaves as told.
//!
//! ```ignore
//! let backend = Backend::start(|seen| match seen.target() {
//!     "/refund" => Behaviour::Close,
//!     _ => Answer::json(200, r#"{"data":{"status":"success"}}"#).into(),
//! })
//! .await;
//! // ... a gate that calls `backend.address()` ...
//! let requests = backend.wait_for_requests(1).await;
//! assert_eq!(requests[0].body, b"{}");
//! ```
//! It runs on tasks of the test's runtime and ends when it is dropped. What waits, waits for
//! [`PATIENCE`](super::PATIENCE) and then fails the test. To hold a call without sleeping, answer
//! with [`Behaviour::Held`] and let it go with [`Hold::release`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tikigate::net::ListenAddress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::in_time;
use super::script::Framing;
pub(crate) use super::script::{Answer, Behaviour, Hold, OnConnect, Then};
use super::wire::{self, Head, Socket};

/// A request as the backend saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Its number over all connections, from 0.
    pub(crate) number: usize,
    /// Index into [`Backend::connections`].
    pub(crate) connection: usize,
    /// Its head, byte for byte.
    pub(crate) raw_head: Vec<u8>,
    /// The same, taken apart.
    pub(crate) head: Head,
    /// Its body, byte for byte; only bodies with a `Content-Length` are read.
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// The method.
    pub(crate) fn method(&self) -> &str {
        self.word(0)
    }

    /// The request target.
    pub(crate) fn target(&self) -> &str {
        self.word(1)
    }

    /// The value of a header field that must occur at most once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.get(name)
    }

    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body in UTF-8")
    }

    fn word(&self, index: usize) -> &str {
        let mut words = self.head.start_line.split(' ');
        words.nth(index).unwrap_or_default()
    }
}

/// A connection as the backend saw it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connection {
    /// Every byte that came.
    pub(crate) bytes: Vec<u8>,
    /// Whether it has ended, by either side.
    pub(crate) ended: bool,
}

/// A backend that runs until it is dropped.
pub(crate) struct Backend {
    address: ListenAddress,
    log: Arc<Log>,
    accepting: JoinHandle<()>,
}

impl Backend {
    /// Listens on a free port of the loopback and asks `script` about each whole request.
    pub(crate) async fn start(script: impl Fn(&Seen) -> Behaviour + Send + Sync + 'static) -> Self {
        Self::start_with(|_| OnConnect::Serve, script).await
    }

    /// The same; `on_connect` is asked about each connection, by its number from 0.
    pub(crate) async fn start_with(
        on_connect: impl Fn(usize) -> OnConnect + Send + Sync + 'static,
        script: impl Fn(&Seen) -> Behaviour + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = ListenAddress::Tcp(listener.local_addr().unwrap());
        let script = Script::new(on_connect, script);
        Self::run(address, Listener::Tcp(listener), script)
    }

    /// The same on a unix socket.
    pub(crate) async fn start_unix(
        path: &Path,
        script: impl Fn(&Seen) -> Behaviour + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let script = Script::new(|_| OnConnect::Serve, script);
        Self::run(
            ListenAddress::Unix(path.to_owned()),
            Listener::Unix(listener),
            script,
        )
    }

    fn run(address: ListenAddress, listener: Listener, script: Script) -> Self {
        let log = Arc::new(Log::default());
        let accepting = tokio::spawn(accept(listener, script, Arc::clone(&log)));
        Self {
            address,
            log,
            accepting,
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// What to write into `url = "..."`.
    pub(crate) fn url(&self) -> String {
        match &self.address {
            ListenAddress::Tcp(address) => format!("http://{address}"),
            ListenAddress::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// All requests so far, in the order in which they were complete.
    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.log.record().requests.clone()
    }

    /// All connections so far.
    pub(crate) fn connections(&self) -> Vec<Connection> {
        self.log.record().connections.clone()
    }

    /// Every byte that came, over all connections. Empty: nothing reached the backend.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let record = self.log.record();
        let bytes = record.connections.iter().flat_map(|one| &one.bytes);
        bytes.copied().collect()
    }

    /// The requests, once there are at least `count`.
    pub(crate) async fn wait_for_requests(&self, count: usize) -> Vec<Seen> {
        let what = format!("{count} requests");
        self.wait(&what, |record| record.requests.len() >= count)
            .await;
        self.requests()
    }

    /// The connections, once there are at least `count`.
    pub(crate) async fn wait_for_connections(&self, count: usize) -> Vec<Connection> {
        let what = format!("{count} connections");
        self.wait(&what, |record| record.connections.len() >= count)
            .await;
        self.connections()
    }

    /// Waits until this connection was there and has ended.
    pub(crate) async fn wait_for_end_of(&self, connection: usize) {
        let what = format!("the end of connection {connection}");
        let ended = |record: &Record| record.connections.get(connection).is_some_and(|c| c.ended);
        self.wait(&what, ended).await;
    }

    /// Waits until at least `count` connections have ended.
    pub(crate) async fn wait_for_ends(&self, count: usize) {
        let ended = |record: &Record| record.connections.iter().filter(|c| c.ended).count();
        self.wait(&format!("{count} ends"), |record| ended(record) >= count)
            .await;
    }

    async fn wait(&self, what: &str, holds: impl Fn(&Record) -> bool) {
        let mut changes = self.log.changed.subscribe();
        in_time(what, async {
            while !holds(&self.log.record()) {
                changes.changed().await.expect("the log lives on");
            }
        })
        .await;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// An address where nothing listens. The port stays taken while the value lives, so that no other
/// test can come to listen there.
pub(crate) struct Refusing {
    address: SocketAddr,
    _bound: socket2::Socket,
}

impl Refusing {
    pub(crate) fn bind() -> Self {
        let bound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
            .expect("a socket");
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        bound.bind(&any_port.into()).expect("a free port");
        let address = bound.local_addr().expect("an address").as_socket();
        Self {
            address: address.expect("an IP address"),
            _bound: bound,
        }
    }

    pub(crate) fn address(&self) -> ListenAddress {
        ListenAddress::Tcp(self.address)
    }

    /// What to write into `url = "..."`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

#[derive(Default)]
struct Log {
    record: Mutex<Record>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Record {
    requests: Vec<Seen>,
    connections: Vec<Connection>,
}

impl Log {
    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().expect("no panic while recording")
    }

    fn change<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        let value = change(&mut self.record());
        self.changed.send_replace(());
        value
    }
}

type OnConnectFn = Arc<dyn Fn(usize) -> OnConnect + Send + Sync>;
type OnRequestFn = Arc<dyn Fn(&Seen) -> Behaviour + Send + Sync>;

#[derive(Clone)]
struct Script {
    on_connect: OnConnectFn,
    on_request: OnRequestFn,
}

impl Script {
    fn new(
        on_connect: impl Fn(usize) -> OnConnect + Send + Sync + 'static,
        on_request: impl Fn(&Seen) -> Behaviour + Send + Sync + 'static,
    ) -> Self {
        Self {
            on_connect: Arc::new(on_connect),
            on_request: Arc::new(on_request),
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Self::Unix(listener) => Ok(Socket::Unix(listener.accept().await?.0)),
        }
    }
}

/// Accepts until aborted; the connections end with it.
async fn accept(listener: Listener, script: Script, log: Arc<Log>) {
    let mut connections = JoinSet::new();
    loop {
        let socket = listener.accept().await.expect("a connection");
        let index = log.change(|record| {
            record.connections.push(Connection::default());
            record.connections.len() - 1
        });
        let peer = Peer {
            socket,
            index,
            unread: Vec::new(),
            log: Arc::clone(&log),
        };
        let script = script.clone();
        let log = Arc::clone(&log);
        connections.spawn(async move {
            // An error is the caller's going away.
            let _ = peer.run(script).await;
            log.change(|record| record.connections[index].ended = true);
        });
    }
}

/// One accepted connection.
struct Peer {
    socket: Socket,
    index: usize,
    unread: Vec<u8>,
    log: Arc<Log>,
}

impl Peer {
    async fn run(mut self, script: Script) -> io::Result<()> {
        match (script.on_connect)(self.index) {
            OnConnect::Serve => {}
            OnConnect::Close => return Ok(()),
            OnConnect::Reset => {
                self.socket.reset();
                return Ok(());
            }
            OnConnect::Ignore => return std::future::pending().await,
            OnConnect::Say(bytes, then) => {
                let Some(peer) = self.act(Behaviour::Raw(bytes, then)).await? else {
                    return Ok(());
                };
                self = peer;
            }
            OnConnect::AfterHead(behaviour) => {
                self.read_head().await?;
                return self.act(behaviour).await.map(drop);
            }
        }
        loop {
            let seen = self.read_request().await?;
            let stays = seen.header("connection") != Some("close");
            let behaviour = (script.on_request)(&seen);
            let Some(peer) = self.act(behaviour).await? else {
                return Ok(());
            };
            if !stays {
                return Ok(());
            }
            self = peer;
        }
    }

    /// Does as told; returns itself if the connection goes on.
    async fn act(mut self, behaviour: Behaviour) -> io::Result<Option<Self>> {
        let (bytes, then) = match behaviour {
            Behaviour::Answer(answer) if answer.framing == Framing::UntilClose => {
                (answer.bytes(), Then::Close)
            }
            Behaviour::Answer(answer) => (answer.bytes(), Then::Continue),
            Behaviour::Raw(bytes, then) => (bytes, then),
            Behaviour::Close => (Vec::new(), Then::Close),
            Behaviour::Reset => (Vec::new(), Then::Reset),
            Behaviour::Silence => (Vec::new(), Then::Silence),
            Behaviour::Flood(head) => {
                self.socket.write_all(&head).await?;
                loop {
                    self.socket.write_all(&[b'x'; 4096]).await?;
                }
            }
            Behaviour::Drip(answer, pause) => {
                for byte in answer.bytes() {
                    self.socket.write_all(&[byte]).await?;
                    tokio::time::sleep(pause).await;
                }
                return Ok(Some(self));
            }
            Behaviour::Held(hold, behaviour) => {
                self.wait_for(&hold).await?;
                return Box::pin(self.act(*behaviour)).await;
            }
            Behaviour::Both(first, second) => {
                let Some(peer) = Box::pin(self.act(*first)).await? else {
                    return Ok(None);
                };
                return Box::pin(peer.act(*second)).await;
            }
        };
        self.socket.write_all(&bytes).await?;
        match then {
            Then::Continue => Ok(Some(self)),
            Then::Close => Ok(None),
            Then::Reset => {
                self.socket.reset();
                Ok(None)
            }
            Then::Silence => loop {
                self.fill().await?;
            },
        }
    }

    async fn wait_for(&mut self, hold: &Hold) -> io::Result<()> {
        loop {
            tokio::select! {
                () = hold.released() => return Ok(()),
                read = self.fill() => read?,
            }
        }
    }

    async fn read_request(&mut self) -> io::Result<Seen> {
        let raw_head = self.read_head().await?;
        let head = Head::parse(&raw_head);
        let length = head.content_length().unwrap_or(0);
        while self.unread.len() < length {
            self.fill().await?;
        }
        let body = self.take(length);
        let seen = self.log.change(|record| {
            let seen = Seen {
                number: record.requests.len(),
                connection: self.index,
                raw_head,
                head,
                body,
            };
            record.requests.push(seen.clone());
            seen
        });
        Ok(seen)
    }

    async fn read_head(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = wire::end_of_head(&self.unread) {
                return Ok(self.take(end));
            }
            self.fill().await?;
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.unread.split_off(length);
        std::mem::replace(&mut self.unread, rest)
    }

    /// Reads and records once; the end of the stream is an error.
    async fn fill(&mut self) -> io::Result<()> {
        let before = self.unread.len();
        if self.socket.read_buf(&mut self.unread).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let came = &self.unread[before..];
        self.log
            .change(|record| record.connections[self.index].bytes.extend(came));
        Ok(())
    }
}
