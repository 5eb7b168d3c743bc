//! Floods by clients of our own: very many connections that each do something unpleasant until they are
//! closed, and are then opened anew.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::gate::Call;
use crate::support::random::Random;

/// Connections that are opened at the same time.
const OPENING: usize = 256;
/// Between a connection's end and the one that takes its place.
const REST: Duration = Duration::from_secs(1);
/// Crowds so far.
static BLOCKS: AtomicU8 = AtomicU8::new(0);
/// How much a flood yields to whoever else wants to run.
pub(super) const NICE: i32 = 3;
/// Open files of this process beside those of a crowd.
const OTHER_FILES: u64 = 2000;

/// A crowd: how many at once, from how many addresses, doing what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crowd {
    pub(super) at_once: usize,
    pub(super) addresses: usize,
    pub(super) manner: Manner,
}

/// What a connection does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Manner {
    /// Nothing.
    Silent,
    /// Sends a head, a byte now and then.
    SlowHead,
    /// Sends a whole head with a forged signature, then bytes of its body this often, so many at once.
    SlowBody { bytes: usize, every: Duration },
    /// Sends the first half of a TLS handshake's first message.
    HalfHandshake,
    /// Asks for more and more and takes none of the answers.
    NotReading,
    /// Sends bytes that mean nothing.
    Garbage,
}

/// Crowds that flood now, each on a thread of its own.
pub(super) struct Flood {
    stop: CancellationToken,
    opened: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Crowd {
    /// Begins.
    pub(super) fn flood(self, gate: SocketAddr) -> Flood {
        let stop = CancellationToken::new();
        let opened = Arc::new(AtomicUsize::new(0));
        let (stopped, counter) = (stop.clone(), Arc::clone(&opened));
        // Addresses whose ports are all free: binding to one that has few left is slow for the whole system.
        let block = 1 + BLOCKS.fetch_add(1, Ordering::Relaxed) % 250;
        let thread = thread::spawn(move || {
            // Of this thread alone: to Linux a thread is a process.
            setpriority_process(None, NICE).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(stopped.run_until_cancelled_owned(self.press(block, gate, counter)));
        });
        Flood {
            stop,
            opened,
            thread,
        }
    }

    async fn press(self, block: u8, gate: SocketAddr, opened: Arc<AtomicUsize>) {
        let opening = Arc::new(Semaphore::new(OPENING));
        let numbers = Arc::new(AtomicUsize::new(0));
        let mut members = JoinSet::new();
        for _ in 0..self.at_once {
            let (opening, opened) = (Arc::clone(&opening), Arc::clone(&opened));
            let numbers = Arc::clone(&numbers);
            members.spawn(async move {
                loop {
                    let turn = opening.acquire().await.unwrap();
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    let stream = connect(self.address(block, number), gate, self.manner).await;
                    drop(turn);
                    if let Ok(stream) = stream {
                        opened.fetch_add(1, Ordering::Relaxed);
                        // However it ends, the next one begins.
                        let _ = self.manner.act(stream, number).await;
                    }
                    sleep(REST).await;
                }
            });
        }
        while members.join_next().await.is_some() {}
    }

    fn address(self, block: u8, number: usize) -> Ipv4Addr {
        let number = number % self.addresses;
        Ipv4Addr::new(127, block, (number / 200) as u8, (number % 200 + 1) as u8)
    }
}

impl Flood {
    /// Connections that were opened so far.
    pub(super) fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    /// Ends it, with all its connections; how many were opened.
    pub(super) fn end(self) -> usize {
        self.stop.cancel();
        self.thread.join().unwrap();
        self.opened.load(Ordering::Relaxed)
    }
}

type Acting<'a> = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send + 'a>>;

impl Manner {
    /// Does it until the other side ends the connection.
    fn act(self, stream: TcpStream, number: usize) -> Acting<'static> {
        // Boxed, so that silent ones don't carry the room of the others.
        match self {
            Self::Silent => Box::pin(until_closed(stream, Vec::new())),
            Self::SlowHead => {
                let head = forged(number, 300).head().into_bytes();
                Box::pin(drip(stream, head, 40, 1, Duration::from_millis(300)))
            }
            Self::SlowBody { bytes, every } => {
                let call = forged(number, 60_000).to_bytes();
                let head = call.len() - 60_000;
                Box::pin(drip(stream, call, head, bytes, every))
            }
            Self::HalfHandshake => Box::pin(until_closed(stream, half_a_client_hello())),
            Self::NotReading => Box::pin(ask_on_and_on(stream, number)),
            Self::Garbage => {
                let mut random = Random::seeded(number as u64);
                let garbage = (0..2000).map(|_| random.below(256) as u8).collect();
                Box::pin(until_closed(stream, garbage))
            }
        }
    }
}

async fn connect(from: Ipv4Addr, to: SocketAddr, manner: Manner) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    if matches!(manner, Manner::NotReading) {
        socket.set_recv_buffer_size(2048)?;
    }
    // Closed by a reset: no port of theirs waits for the minute that follows an orderly end.
    socket.set_zero_linger()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// Sends these bytes and reads to the end.
async fn until_closed(mut stream: TcpStream, bytes: Vec<u8>) -> std::io::Result<()> {
    stream.write_all(&bytes).await?;
    let mut scratch = [0; 512];
    while stream.read(&mut scratch).await? > 0 {}
    Ok(())
}

/// Sends the first bytes at once and the others slowly, until it is answered.
async fn drip(
    mut stream: TcpStream,
    bytes: Vec<u8>,
    first: usize,
    at_once: usize,
    every: Duration,
) -> std::io::Result<()> {
    let (first, rest) = bytes.split_at(first);
    stream.write_all(first).await?;
    let (mut reading, mut writing) = stream.split();
    let send = async {
        for piece in rest.chunks(at_once) {
            sleep(every).await;
            writing.write_all(piece).await?;
        }
        std::future::pending::<std::io::Result<()>>().await
    };
    let mut scratch = [0; 512];
    tokio::select! {
        sent = send => sent,
        answered = reading.read(&mut scratch) => answered.map(|_| ()),
    }
}

async fn ask_on_and_on(mut stream: TcpStream, number: usize) -> std::io::Result<()> {
    let call = forged(number, 2).to_bytes();
    loop {
        stream.write_all(&call).await?;
    }
}

/// A call whose signature is of the right form and wrong.
pub(super) fn forged(number: usize, size: usize) -> Call {
    let mut call = Call::post("/tiki/ipn", vec![b'x'; size], SystemTime::now());
    for (name, value) in &mut call.headers {
        if name.to_ascii_lowercase().ends_with("signature") {
            *value = format!("{number:064x}");
        }
    }
    call
}

/// Of a record that announces 512 bytes, the half.
fn half_a_client_hello() -> Vec<u8> {
    let mut bytes = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    bytes.resize(5 + 256, 7);
    bytes
}

/// Lets this process open as many files as the system allows; how many connections a crowd may have at
/// once then.
pub(super) fn room_for_a_crowd() -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    maximum.map_or(usize::MAX, |maximum| {
        maximum.saturating_sub(OTHER_FILES) as usize
    })
}
