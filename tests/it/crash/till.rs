//! The backend of these tests: a till that pays out what it is asked for, as often as it is asked, and
//! answers like a program on a bad day. What it did stands in the journal.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::journal::{Event, Journal, Reply};
use crate::support::random::Random;
use crate::support::wire::{self, Head, Socket};

/// The platform's failure: the till says that it did nothing and may be asked again.
const NOT_NOW: &str = r#"{"data":null,"error":{"code":"1","message":"not now, nothing was paid"}}"#;
/// The till says that it never will.
const DECLINED: &str = r#"{"data":null,"error":{"code":"declined","message":"no such payment"}}"#;
/// The target of a call that asks who came before it.
const ROLL_CALL: &str = "/roll-call";

/// A till that runs until it is dropped.
pub(crate) struct Till {
    address: SocketAddr,
    counter: Arc<Counter>,
    accepting: JoinHandle<()>,
}

/// What the till's connections share.
struct Counter {
    journal: Arc<Journal>,
    seed: u64,
    /// Connections that were accepted and have not ended, by number.
    open: watch::Sender<BTreeSet<u64>>,
    /// Every refund is paid at once, the answer given.
    behaves: AtomicBool,
}

/// What the till does with a refund.
struct Course {
    moved: bool,
    reply: Reply,
    after: Duration,
    bytes: Vec<u8>,
    reset: bool,
}

impl Till {
    /// Listens on a free port of `address`.
    pub(crate) async fn open(address: IpAddr, seed: u64, journal: Arc<Journal>) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let counter = Arc::new(Counter {
            journal,
            seed,
            open: watch::Sender::default(),
            behaves: AtomicBool::default(),
        });
        Self {
            address: listener.local_addr().unwrap(),
            accepting: tokio::spawn(accept(listener, Arc::clone(&counter))),
            counter,
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on it pays and answers everything at once.
    pub(crate) fn behave(&self) {
        self.counter.behaves.store(true, Ordering::SeqCst);
    }

    /// Resolves when everything that was sent to the till before this call has been read and answered,
    /// or was cut off: what the journal says of it then is the truth.
    pub(crate) async fn has_caught_up(&self) {
        // The system hands connections over in the order in which they were made.
        let number = self.roll_call().await;
        let mut open = self.counter.open.subscribe();
        let older = |open: &BTreeSet<u64>| open.iter().any(|other| *other < number);
        let caught_up = open.wait_for(|open| !older(open)).await;
        assert!(caught_up.is_ok(), "the till outlives those who ask");
    }

    /// The number of the connection that asks.
    async fn roll_call(&self) -> u64 {
        loop {
            // The till may reset this connection too, as any other.
            if let Some(number) = self.try_roll_call().await {
                return number;
            }
        }
    }

    async fn try_roll_call(&self) -> Option<u64> {
        let mut stream = TcpStream::connect(self.address).await.ok()?;
        let request = format!("GET {ROLL_CALL} HTTP/1.1\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut number = String::new();
        stream.read_to_string(&mut number).await.ok()?;
        number.parse().ok()
    }
}

impl Drop for Till {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, counter: Arc<Counter>) {
    let mut connections = JoinSet::new();
    for number in 0.. {
        let (stream, _) = listener.accept().await.unwrap();
        counter.open.send_modify(|open| {
            open.insert(number);
        });
        let counter = Arc::clone(&counter);
        connections.spawn(async move {
            serve(Socket::Tcp(stream), number, &counter).await;
            counter.open.send_modify(|open| {
                open.remove(&number);
            });
        });
        while connections.try_join_next().is_some() {}
    }
}

/// One connection, which brings one request.
async fn serve(mut socket: Socket, number: u64, counter: &Counter) {
    let mut random = Random::part(counter.seed, &[0, number]);
    let behaves = counter.behaves.load(Ordering::SeqCst);
    if !behaves && random.chance(3) {
        // Whatever was sent is thrown away unread.
        return socket.reset();
    }
    let Some(request) = read(&mut socket).await else {
        return;
    };
    if request.head.start_line.contains(ROLL_CALL) {
        let _ = socket.write_all(number.to_string().as_bytes()).await;
        return;
    }
    let Some(key) = request.head.get("idempotency-key") else {
        return;
    };
    let key = Arc::<str>::from(key);
    let attempt: u32 = request
        .head
        .get("x-tikigate-attempt")
        .unwrap()
        .parse()
        .unwrap();
    let mut random = Random::part(counter.seed, &[hash(&key), u64::from(attempt)]);
    let course = match (request.whole, behaves) {
        (false, _) => Course::silent(false),
        (true, true) => Course::paid(Duration::ZERO),
        (true, false) => Course::by_chance(&mut random),
    };
    // Before the first byte of the answer: the money moves when the till decides.
    let event = Event::Forward {
        attempt,
        moved: course.moved,
        reply: course.reply,
    };
    counter.journal.note(&key, event);
    tokio::time::sleep(course.after).await;
    // The gate may be gone.
    let _ = socket.write_all(&course.bytes).await;
    if course.reset {
        socket.reset();
    }
}

struct Request {
    head: Head,
    /// Its body came to its end.
    whole: bool,
}

/// Reads a request; one that breaks off in its body is given too.
async fn read(socket: &mut Socket) -> Option<Request> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = wire::end_of_head(&bytes) {
            let head = Head::parse(&bytes[..end]);
            let length = head.content_length().unwrap_or(0);
            if bytes.len() - end >= length {
                return Some(Request { head, whole: true });
            }
        }
        let read = socket.read_buf(&mut bytes).await.unwrap_or(0);
        if read == 0 {
            let end = wire::end_of_head(&bytes)?;
            let head = Head::parse(&bytes[..end]);
            return Some(Request { head, whole: false });
        }
    }
}

impl Course {
    fn by_chance(random: &mut Random) -> Self {
        let soon = random.millis(0, 4);
        match random.below(100) {
            0..60 => Self::paid(soon),
            60..71 => Self::paid(random.millis(10, 120)),
            // Longer than Tiki waits: the answer is recorded for the next call.
            71..72 => Self::paid(Duration::from_millis(1200)),
            72..79 => Self::silent(true),
            79..82 => Self {
                bytes: half(&answer(200, &success(random))),
                ..Self::silent(true)
            },
            82..84 => Self {
                reset: true,
                ..Self::silent(random.chance(50))
            },
            84..86 => Self::silent(false),
            86..88 => Self {
                bytes: b"\x16\x03\x01 this is no answer\r\n\r\n".to_vec(),
                ..Self::silent(random.chance(50))
            },
            88..90 => Self {
                bytes: answer(503, "<html>Service Unavailable</html>"),
                ..Self::silent(random.chance(50))
            },
            90..96 => Self {
                moved: false,
                reply: Reply::NotApplied,
                after: soon,
                bytes: answer(500, NOT_NOW),
                reset: false,
            },
            _ => Self {
                moved: false,
                reply: Reply::Declined,
                after: soon,
                bytes: answer(422, DECLINED),
                reset: false,
            },
        }
    }

    fn paid(after: Duration) -> Self {
        // Each payment has an answer of its own: an answer that is made up is not the one that was given.
        let mut number = Random::seeded(getrandom::u64().unwrap());
        Self {
            moved: true,
            reply: Reply::Success,
            after,
            bytes: answer(200, &success(&mut number)),
            reset: false,
        }
    }

    /// The connection ends without a word.
    fn silent(moved: bool) -> Self {
        Self {
            moved,
            reply: Reply::CantSay,
            after: Duration::ZERO,
            bytes: Vec::new(),
            reset: false,
        }
    }
}

fn success(random: &mut Random) -> String {
    let receipt = random.next();
    format!(r#"{{"data":{{"status":"success","receipt":"{receipt:016x}"}}}}"#)
}

fn answer(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} Till\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn half(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len() - 9].to_vec()
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
