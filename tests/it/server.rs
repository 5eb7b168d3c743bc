//! The inbound server on real sockets, spoken to in bytes.

use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tikigate::net::{Arrived, ListenAddress, Peer};
use tikigate::server::{BindError, Limits, Shared, bind, serve};
use tokio_util::sync::CancellationToken;

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(150);
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const WAIT: &[u8] = b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n";

/// Limits that no test runs into by chance.
fn limits() -> Limits {
    Limits {
        header_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        write_timeout: PATIENCE,
        lifetime: 10 * PATIENCE,
        head_limit: 8192,
        max_headers: 20,
    }
}

/// What the service saw of a request.
#[derive(Debug)]
struct Seen {
    path: String,
    peer: Peer,
    first_byte: Instant,
    worker: ThreadId,
}

/// A service whose answers to `/wait` the test releases.
#[derive(Clone)]
struct Echo {
    seen: Sender<Seen>,
    release: CancellationToken,
    finished: Arc<AtomicUsize>,
    /// `/block` blocks its whole worker until a message comes.
    unblock: Arc<Mutex<Receiver<()>>>,
}

impl Echo {
    async fn answer(self, arrived: Arrived<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = arrived.request.uri().path().to_owned();
        self.seen
            .send(Seen {
                path: path.clone(),
                peer: arrived.peer,
                first_byte: arrived.first_byte,
                worker: thread::current().id(),
            })
            .unwrap();
        let body = match path.as_str() {
            "/wait" => {
                self.release.cancelled().await;
                Bytes::from_static(b"waited")
            }
            "/block" => {
                self.unblock.lock().unwrap().recv().unwrap();
                Bytes::from_static(b"blocked")
            }
            "/big" => vec![b'b'; 64 << 20].into(),
            _ => match arrived.request.into_body().collect().await {
                Ok(body) => body.to_bytes(),
                Err(_) => Bytes::from_static(b"broken body"),
            },
        };
        self.finished.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(Full::new(body)))
    }
}

/// A running server with one thread per worker, as the gate runs it.
struct Server {
    address: ListenAddress,
    shared: Arc<Shared>,
    seen: Receiver<Seen>,
    release: CancellationToken,
    finished: Arc<AtomicUsize>,
    unblock: Sender<()>,
    closing: CancellationToken,
    abort: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(limits: Limits) -> Self {
        let address = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
        Self::start_at(&address, 1, 100, limits)
    }

    fn start_at(
        address: &ListenAddress,
        workers: usize,
        max_connections: usize,
        limits: Limits,
    ) -> Self {
        let listeners = bind(address, workers).unwrap();
        assert_eq!(listeners.len(), workers);
        let address = listeners[0].local_address();
        let shared = Arc::new(Shared::new(max_connections));
        let (seen_sender, seen) = channel();
        let (unblock, unblocked) = channel();
        let echo = Echo {
            seen: seen_sender,
            release: CancellationToken::new(),
            finished: Arc::default(),
            unblock: Arc::new(Mutex::new(unblocked)),
        };
        let closing = CancellationToken::new();
        let abort = CancellationToken::new();
        let worker = |listener| {
            let (limits, shared) = (limits.clone(), Arc::clone(&shared));
            let (closing, abort) = (closing.clone(), abort.clone());
            let echo = echo.clone();
            let service =
                tower::service_fn(move |arrived: Arrived<Incoming>| echo.clone().answer(arrived));
            thread::spawn(move || {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(serve(listener, limits, shared, service, closing, abort))
                    .unwrap();
            })
        };
        let threads = listeners.into_iter().map(worker).collect();
        Self {
            address,
            shared,
            seen,
            release: echo.release,
            finished: echo.finished,
            unblock,
            closing,
            abort,
            threads,
        }
    }

    fn tcp(&self) -> SocketAddr {
        match &self.address {
            ListenAddress::Tcp(address) => *address,
            ListenAddress::Unix(_) => panic!("a unix socket"),
        }
    }

    fn connect(&self) -> Caller<TcpStream> {
        Caller::new(TcpStream::connect(self.tcp()).unwrap())
    }

    fn next_seen(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).unwrap()
    }

    fn assert_nothing_seen(&self) {
        assert!(self.seen.try_recv().is_err());
    }

    /// Waits until the workers have returned by themselves.
    fn join(&mut self) {
        let threads = std::mem::take(&mut self.threads);
        eventually(|| threads.iter().all(JoinHandle::is_finished));
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.abort.cancel();
    }
}

fn eventually(holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "it never came to hold");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The other end of a connection.
struct Caller<S> {
    stream: S,
    connected: Instant,
}

trait Socket: Read + Write {
    fn patience(&self, patience: Duration);
}

impl Socket for TcpStream {
    fn patience(&self, patience: Duration) {
        self.set_read_timeout(Some(patience)).unwrap();
    }
}

impl Socket for UnixStream {
    fn patience(&self, patience: Duration) {
        self.set_read_timeout(Some(patience)).unwrap();
    }
}

impl<S: Socket> Caller<S> {
    fn new(stream: S) -> Self {
        stream.patience(PATIENCE);
        Self {
            stream,
            connected: Instant::now(),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads one answer: its head and its body.
    fn receive(&mut self) -> (String, String) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    fn exchange(&mut self) {
        self.send(GET);
        assert!(self.receive().0.starts_with("HTTP/1.1 200"));
    }

    /// What still comes until the server closes.
    fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the server did not close: {error}"),
        }
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Whether nothing comes for a moment: no answer and no close.
    fn is_left_waiting(&mut self) -> bool {
        self.stream.patience(SHORT);
        let outcome = self.stream.read(&mut [0]);
        self.stream.patience(PATIENCE);
        outcome
            .is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }
}

#[test]
fn a_kept_alive_request_counts_from_its_own_first_byte() {
    let server = Server::start(limits());
    let mut caller = server.connect();
    caller.exchange();
    let seen = server.next_seen();
    assert_eq!(seen.peer, Peer::Tcp(caller.stream.local_addr().unwrap()));
    assert!(seen.first_byte >= caller.connected && seen.first_byte <= Instant::now());

    thread::sleep(Duration::from_millis(5));
    let sent = Instant::now();
    caller.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody");
    assert_eq!(caller.receive().1, "body");
    let seen = server.next_seen();
    assert!(seen.first_byte >= sent && seen.first_byte <= Instant::now());
}

#[test]
fn a_pipelined_request_counts_from_the_answer_before_it() {
    let server = Server::start(limits());
    let mut caller = server.connect();
    caller.send(&[WAIT, GET].concat());
    assert_eq!(server.next_seen().path, "/wait");
    let released = Instant::now();
    server.release.cancel();
    assert_eq!(caller.receive().1, "waited");
    assert_eq!(caller.receive().1, "");
    let seen = server.next_seen();
    assert_eq!(seen.path, "/");
    assert!(seen.first_byte >= released);
}

#[test]
fn a_head_that_drips_is_closed() {
    let server = Server::start(Limits {
        header_timeout: SHORT,
        ..limits()
    });
    let mut caller = server.connect();
    caller.send(b"GET / HTTP/1.1\r\nhost: ");
    caller.stream.patience(Duration::from_millis(5));
    let closed = loop {
        assert!(caller.connected.elapsed() < PATIENCE, "still open");
        match caller.stream.read(&mut [0]) {
            Ok(0) => break true,
            Ok(_) => break false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break true,
        }
        if caller.stream.write_all(b"x").is_err() {
            break true;
        }
    };
    assert!(closed, "closed without an answer");
    assert!(caller.connected.elapsed() >= SHORT);
    server.assert_nothing_seen();
}

#[test]
fn silence_is_closed() {
    let server = Server::start(Limits {
        header_timeout: SHORT,
        ..limits()
    });
    assert_eq!(server.connect().rest(), "");
    server.assert_nothing_seen();
}

#[test]
fn an_idle_connection_is_closed() {
    let server = Server::start(Limits {
        idle_timeout: SHORT,
        ..limits()
    });
    let mut caller = server.connect();
    caller.exchange();
    assert_eq!(caller.rest(), "");
    assert!(caller.connected.elapsed() >= SHORT);
}

#[test]
fn an_answer_that_is_not_taken_is_given_up() {
    let server = Server::start(Limits {
        write_timeout: SHORT,
        ..limits()
    });
    let mut caller = server.connect();
    caller.send(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n");
    server.next_seen();
    eventually(|| server.shared.connections() == 0);
    assert!(caller.connected.elapsed() >= SHORT);
}

#[test]
fn an_old_connection_is_closed() {
    let server = Server::start(Limits {
        lifetime: Duration::from_millis(500),
        ..limits()
    });
    let mut caller = server.connect();
    caller.send(GET);
    let all = caller.rest();
    assert!(all.starts_with("HTTP/1.1 200"), "{all}");
}

#[test]
fn connections_over_the_cap_wait_for_room() {
    let address = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
    let server = Server::start_at(&address, 1, 1, limits());
    let mut first = server.connect();
    first.exchange();
    let mut second = server.connect();
    second.send(GET);
    assert!(second.is_left_waiting());
    assert_eq!(server.shared.connections(), 1);
    drop(first);
    assert!(second.receive().0.starts_with("HTTP/1.1 200"));
    assert_eq!(server.shared.connections(), 1);
}

#[test]
fn closing_finishes_what_runs_and_ends_what_idles() {
    let mut server = Server::start(limits());
    let mut running = server.connect();
    running.send(WAIT);
    server.next_seen();
    let mut idle = server.connect();
    idle.exchange();
    server.closing.cancel();
    assert_eq!(idle.rest(), "");
    let refused = TcpStream::connect(server.tcp()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert!(!server.threads[0].is_finished());
    server.release.cancel();
    let (head, body) = running.receive();
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(body, "waited");
    assert_eq!(running.rest(), "");
    drop(running);
    server.join();
    assert_eq!(server.shared.connections(), 0);
}

#[test]
fn closing_still_answers_who_had_connected() {
    let mut server = Server::start(limits());
    let mut blocker = server.connect();
    blocker.send(b"GET /block HTTP/1.1\r\nhost: x\r\n\r\n");
    server.next_seen();
    let mut waiting = server.connect();
    waiting.send(GET);
    server.closing.cancel();
    server.unblock.send(()).unwrap();
    assert_eq!(blocker.receive().1, "blocked");
    let (head, _) = waiting.receive();
    assert!(head.contains("connection: close"), "{head}");
    drop((blocker, waiting));
    server.join();
}

#[test]
fn abort_bounds_the_closing() {
    let mut server = Server::start(limits());
    let mut caller = server.connect();
    caller.send(WAIT);
    server.next_seen();
    server.closing.cancel();
    assert!(caller.is_left_waiting());
    server.abort.cancel();
    assert_eq!(caller.rest(), "");
    server.join();
    assert_eq!(server.finished.load(Ordering::SeqCst), 0);
}

#[test]
fn a_caller_that_hangs_up_does_not_cancel_its_call() {
    let server = Server::start(limits());
    let mut caller = server.connect();
    caller.send(WAIT);
    server.next_seen();
    drop(caller);
    // Another connection's round trip: the server had every chance to notice.
    server.connect().exchange();
    server.release.cancel();
    eventually(|| server.finished.load(Ordering::SeqCst) == 2);
}

#[test]
fn a_caller_that_half_closes_gets_its_answer() {
    let server = Server::start(limits());
    let mut caller = server.connect();
    caller.send(WAIT);
    caller.stream.shutdown(std::net::Shutdown::Write).unwrap();
    server.next_seen();
    assert!(caller.is_left_waiting());
    server.release.cancel();
    assert_eq!(caller.receive().1, "waited");
    assert_eq!(caller.rest(), "");
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let server = Server::start(limits());
    let mut caller = server.connect();
    caller.send(b"GET / HTTP/1.0\r\n\r\n");
    let (head, _) = caller.receive();
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    assert_eq!(caller.rest(), "");
}

#[test]
fn http_2_is_refused() {
    let server = Server::start(limits());
    let mut caller = server.connect();
    caller.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    assert_eq!(caller.rest(), "");
    server.assert_nothing_seen();
}

#[test]
fn heads_are_bounded() {
    let server = Server::start(limits());
    let long = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(8192));
    let endless = format!("GET / HTTP/1.1\r\nhost: {}", "x".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(21));
    for head in [long, endless, many] {
        let mut caller = server.connect();
        // The server may close before it has read everything.
        let _ = caller.stream.write_all(head.as_bytes());
        let rest = caller.rest();
        assert!(rest.starts_with("HTTP/1.1 431 "), "{rest}");
        server.assert_nothing_seen();
    }
    let most = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(20));
    let mut caller = server.connect();
    caller.send(most.as_bytes());
    assert!(caller.receive().0.starts_with("HTTP/1.1 200"));
}

#[test]
fn workers_share_a_port() {
    let address = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
    let mut server = Server::start_at(&address, 2, 1000, limits());
    let mut workers = Vec::new();
    for _ in 0..200 {
        server.connect().exchange();
        let worker = server.next_seen().worker;
        if !workers.contains(&worker) {
            workers.push(worker);
        }
        if workers.len() == 2 {
            break;
        }
    }
    assert_eq!(workers.len(), 2, "one worker got all of 200 connections");
    server.closing.cancel();
    server.join();
}

#[test]
fn a_port_in_use_is_named() {
    let any = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
    for theirs in [1, 2] {
        let listeners = bind(&any, theirs).unwrap();
        let taken = listeners[0].local_address();
        for ours in [1, 2] {
            let error = bind(&taken, ours).unwrap_err();
            assert!(matches!(error, BindError::InUse { .. }));
            assert_eq!(
                error.to_string(),
                format!("cannot listen on {taken}: another process is listening there")
            );
        }
        drop(listeners);
        bind(&taken, 2).unwrap();
    }
}

#[test]
fn an_address_of_another_machine_is_named() {
    let theirs = ListenAddress::Tcp("192.0.2.1:80".parse().unwrap());
    let error = bind(&theirs, 1).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot listen on 192.0.2.1:80: "),
        "{error}"
    );
}

#[test]
fn a_unix_socket_is_shared_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gate.sock");
    let address = ListenAddress::Unix(path.clone());
    // Left behind by a process that is gone.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());

    let mut server = Server::start_at(&address, 2, 100, limits());
    assert_eq!(server.address, address);
    let mut caller = Caller::new(UnixStream::connect(&path).unwrap());
    caller.exchange();
    assert_eq!(server.next_seen().peer, Peer::Unix);
    assert!(matches!(
        bind(&address, 1).unwrap_err(),
        BindError::InUse { .. }
    ));
    caller.exchange();

    drop(caller);
    server.closing.cancel();
    server.join();
    assert!(!path.exists());
}

#[test]
fn only_stale_sockets_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gate.sock");
    let address = ListenAddress::Unix(path.clone());
    std::fs::write(&path, "precious").unwrap();
    let error = bind(&address, 1).unwrap_err();
    assert!(matches!(error, BindError::NotASocket { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();

    // A file that another process put in our place stays.
    let listeners = bind(&address, 2).unwrap();
    std::fs::remove_file(&path).unwrap();
    let theirs = UnixListener::bind(&path).unwrap();
    drop(listeners);
    assert!(path.exists());
    drop(theirs);
}
