//! The caller that behaves: a modest, steady stream of right calls, on a connection that it keeps and on
//! new ones, and how long each took from when it was due.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::support::PATIENCE;
use crate::support::gate::{Call, ipn};
use crate::support::wire;

/// Where its calls come from; no flood comes from there.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);
/// Between two calls of a stream. Both streams together stay under the limit of an address.
const EVERY: Duration = Duration::from_millis(20);

/// A byte stream, plain or within TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Makes connections and calls.
#[derive(Clone)]
pub(super) struct Caller {
    gate: SocketAddr,
    tls: Option<TlsConnector>,
    /// Names its messages, so that none is a duplicate.
    messages: Arc<std::sync::atomic::AtomicU64>,
}

/// What became of a stream of calls.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// How long each took that was answered 200.
    took: Vec<Duration>,
    /// What became of the others.
    pub(super) faults: Vec<String>,
}

impl Figures {
    /// The time that 99 of 100 calls stayed within.
    pub(super) fn p99(&self) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        let rank = (took.len() * 99).div_ceil(100);
        took[rank.saturating_sub(1)]
    }

    /// Calls that were answered 200.
    pub(super) fn answered(&self) -> usize {
        self.took.len()
    }

    fn note(&mut self, due: Instant, outcome: Result<u16, String>) {
        match outcome {
            Ok(200) => self.took.push(due.elapsed()),
            Ok(status) => self.faults.push(format!("answered {status}")),
            Err(fault) => self.faults.push(fault),
        }
    }
}

impl Caller {
    /// Calls this gate.
    pub(super) fn new(gate: SocketAddr, tls: Option<TlsConnector>) -> Self {
        Self {
            gate,
            tls,
            messages: Arc::default(),
        }
    }

    /// Calls in both streams until this is over.
    pub(super) async fn call_during<T>(&self, during: impl Future<Output = T>) -> (Figures, T) {
        let over = CancellationToken::new();
        let calls = self.call_until(&over);
        let end = async {
            let value = during.await;
            over.cancel();
            value
        };
        tokio::join!(calls, end)
    }

    async fn call_until(&self, over: &CancellationToken) -> Figures {
        let (mut all, anew) = tokio::join!(self.call_on_one(over), self.call_anew(over));
        all.took.extend(anew.took);
        all.faults.extend(anew.faults);
        all
    }

    async fn call_on_one(&self, over: &CancellationToken) -> Figures {
        let mut figures = Figures::default();
        let mut kept = self.connect().await.unwrap();
        let mut ticks = ticks();
        loop {
            let due = ticks.tick().await;
            if over.is_cancelled() {
                return figures;
            }
            let outcome = exchange(&mut kept, &self.message("kept")).await;
            let broken = outcome.is_err();
            figures.note(due, outcome);
            if broken {
                return figures;
            }
        }
    }

    async fn call_anew(&self, over: &CancellationToken) -> Figures {
        let mut figures = Figures::default();
        let mut calls = JoinSet::new();
        let mut ticks = ticks();
        loop {
            let due = ticks.tick().await;
            if over.is_cancelled() {
                break;
            }
            let caller = self.clone();
            calls.spawn(async move {
                let outcome = async {
                    let mut connection = caller.connect().await?;
                    exchange(&mut connection, &caller.message("new")).await
                };
                let mut one = Figures::default();
                one.note(due, outcome.await);
                one
            });
        }
        while let Some(one) = calls.join_next().await {
            let one = one.unwrap();
            figures.took.extend(one.took);
            figures.faults.extend(one.faults);
        }
        figures
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, String> {
        let connecting = async {
            let stream = connect(ADDRESS, self.gate).await?;
            Ok::<Box<dyn Stream>, std::io::Error>(match &self.tls {
                None => Box::new(stream),
                Some(tls) => {
                    let name = ServerName::try_from("localhost").unwrap();
                    Box::new(tls.connect(name, stream).await?)
                }
            })
        };
        match timeout(PATIENCE, connecting).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(format!("no connection: {error}")),
            Err(_) => Err("no connection in time".to_owned()),
        }
    }

    fn message(&self, stream: &str) -> Vec<u8> {
        let messages = &self.messages;
        let number = messages.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let body = ipn(&format!("{stream}-{number}"), "1000");
        Call::post("/tiki/ipn", body, SystemTime::now()).to_bytes()
    }
}

/// A connection from this address of the loopback.
pub(super) async fn connect(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(EVERY);
    // A call that could not be made in time counts from when it was due.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks
}

/// Sends a call and reads its whole answer.
async fn exchange(stream: &mut Box<dyn Stream>, call: &[u8]) -> Result<u16, String> {
    let exchanging = async {
        stream.write_all(call).await?;
        stream.flush().await?;
        read_answer(stream).await
    };
    match timeout(PATIENCE, exchanging).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(error)) => Err(format!("no answer: {error}")),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn read_answer(stream: &mut Box<dyn Stream>) -> std::io::Result<u16> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = wire::end_of_head(&bytes) {
            break end;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = wire::Head::parse(&bytes[..end]);
    let length = head.content_length().expect("an answer says its length");
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let status = head.start_line.split(' ').nth(1);
    Ok(status.and_then(|status| status.parse().ok()).unwrap_or(0))
}
