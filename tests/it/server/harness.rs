//! A server in threads of its own, a service that the tests steer, and callers that speak bytes.

use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use tikigate::metrics::{Labels, LedgerFigures, ListenerName, Metrics, ServerMetrics, Sources};
use tikigate::net::{Arrived, ListenAddress, Peer};
use tikigate::server::{Arriving, CurrentPolicy, Limits, Policy, Shared, bind, serve};
use tokio_util::sync::CancellationToken;

/// Nothing here takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const SHORT: Duration = Duration::from_millis(150);
pub(crate) const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
pub(crate) const WAIT: &[u8] = b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n";

/// Limits that no test runs into by chance.
pub(crate) fn limits() -> Limits {
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
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) peer: Peer,
    pub(crate) first_byte: Instant,
    pub(crate) worker: ThreadId,
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
    async fn answer(self, arrived: Arrived<Arriving>) -> Result<Response<Full<Bytes>>, Infallible> {
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
pub(crate) struct Server {
    pub(crate) address: ListenAddress,
    pub(crate) shared: Arc<Shared>,
    pub(crate) policy: CurrentPolicy,
    counted: Arc<ServerMetrics>,
    pub(crate) seen: Receiver<Seen>,
    pub(crate) release: CancellationToken,
    pub(crate) finished: Arc<AtomicUsize>,
    pub(crate) unblock: Sender<()>,
    pub(crate) closing: CancellationToken,
    pub(crate) abort: CancellationToken,
    pub(crate) threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(limits: Limits) -> Self {
        Self::under(Policy::open(limits), 100)
    }

    /// One worker on a TCP port.
    pub(crate) fn under(policy: Policy, max_connections: usize) -> Self {
        let address = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
        Self::start_at(&address, 1, max_connections, policy)
    }

    pub(crate) fn start_at(
        address: &ListenAddress,
        workers: usize,
        max_connections: usize,
        policy: Policy,
    ) -> Self {
        let listeners = bind(address, workers).unwrap();
        assert_eq!(listeners.len(), workers);
        let address = listeners[0].local_address();
        let counted = Arc::default();
        let shared = Arc::new(Shared::new(
            max_connections,
            ListenerName::Server,
            Arc::clone(&counted),
        ));
        let policy = policy.current();
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
            let (policy, shared) = (Arc::clone(&policy), Arc::clone(&shared));
            let (closing, abort) = (closing.clone(), abort.clone());
            let echo = echo.clone();
            let service =
                tower::service_fn(move |arrived: Arrived<Arriving>| echo.clone().answer(arrived));
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                // A task among others, which the runtime polls in its turn.
                let serving =
                    runtime.spawn(serve(listener, policy, shared, service, closing, abort));
                runtime.block_on(serving).unwrap().unwrap();
            })
        };
        let threads = listeners.into_iter().map(worker).collect();
        Self {
            address,
            shared,
            policy,
            counted,
            seen,
            release: echo.release,
            finished: echo.finished,
            unblock,
            closing,
            abort,
            threads,
        }
    }

    pub(crate) fn tcp(&self) -> SocketAddr {
        match &self.address {
            ListenAddress::Tcp(address) => *address,
            ListenAddress::Unix(_) => panic!("a unix socket"),
        }
    }

    pub(crate) fn connect(&self) -> Caller<TcpStream> {
        Caller::new(TcpStream::connect(self.tcp()).unwrap())
    }

    /// A caller whose address is this one of the loopback network.
    pub(crate) fn connect_from(&self, address: [u8; 4]) -> Caller<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        let own: SocketAddr = (address, 0).into();
        socket.bind(&own.into()).unwrap();
        socket.connect(&self.tcp().into()).unwrap();
        Caller::new(socket.into())
    }

    /// The value of one series as `/metrics` spells it; 0 if it is absent.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let sources = Sources {
            listeners: Arc::clone(&self.counted),
            ..Sources::default()
        };
        let labels = Labels {
            sources,
            ..Labels::default()
        };
        let text = Metrics::new(labels, 1).render(&LedgerFigures::default());
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// How many connections were refused for this reason.
    pub(crate) fn refused(&self, reason: &str) -> u64 {
        self.metric(&format!(
            "tikigate_connections_refused_total{{listener=\"server\",reason=\"{reason}\"}}"
        ))
    }

    pub(crate) fn next_seen(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).unwrap()
    }

    pub(crate) fn assert_nothing_seen(&self) {
        assert!(self.seen.try_recv().is_err());
    }

    /// Waits until the workers have returned by themselves.
    pub(crate) fn join(&mut self) {
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

pub(crate) fn eventually(holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "it never came to hold");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The other end of a connection.
pub(crate) struct Caller<S> {
    pub(crate) stream: S,
    pub(crate) connected: Instant,
}

pub(crate) trait Socket: Read + Write {
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
    pub(crate) fn new(stream: S) -> Self {
        stream.patience(PATIENCE);
        Self {
            stream,
            connected: Instant::now(),
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads one answer: its head and its body.
    pub(crate) fn receive(&mut self) -> (String, String) {
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

    pub(crate) fn exchange(&mut self) {
        self.send(GET);
        assert!(self.receive().0.starts_with("HTTP/1.1 200"));
    }

    /// What still comes until the server closes.
    pub(crate) fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the server did not close: {error}"),
        }
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Whether nothing comes for a moment: no answer and no close.
    pub(crate) fn is_left_waiting(&mut self) -> bool {
        self.stream.patience(SHORT);
        let outcome = self.stream.read(&mut [0]);
        self.stream.patience(PATIENCE);
        outcome
            .is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }
}
