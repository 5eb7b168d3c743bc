//! A plain proxy that checks Tiki's signature and does nothing else, to know what of a call's cost is the machine's and
//! the libraries'.
//!
//! ```text
//! plain bare|hyper|fresh LISTEN BACKEND SECRET [COMMITS FILE]
//! ```
//! `bare` reads a call, checks it, writes the same bytes to a kept connection and hands the answer back: the system
//! calls and the hash, and nothing of HTTP but where a message ends. `hyper` does the same by hyper's server and client,
//! with every header field forwarded as it came; `fresh` opens a connection for each call.
//!
//! With COMMITS (1 or 2) a call is made durable before it is forwarded, and with 2 again once it is answered, by one thread that
//! takes all that waits at a time. It appends to FILE and syncs it; if FILE ends with `.db`, it is one table of SQLite, whose
//! rows are found by the hash of the call's signature: inserted first, and given their answer by the second commit.
//!
//! For one trusted load only: no limits, no deadlines, no log, no metrics. `benches/peers/run.py --only plain` runs it.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::Write;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::mpsc;
use std::{env, fs, io, iter, thread};

use anyhow::Context;
use bytes::{Buf, Bytes, BytesMut};
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local};

const REFUSED: &[u8] = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kind, listen, backend, secret, rest @ ..] = &arguments[..] else {
        anyhow::bail!("usage: plain bare|hyper|fresh LISTEN BACKEND SECRET [COMMITS FILE]");
    };
    let (commits, log) = match rest {
        [] => (0, None),
        [commits, file] => {
            let (queue, waiting) = mpsc::channel();
            let log = if file.ends_with(".db") {
                in_sqlite(file, waiting)
            } else {
                appending(file, waiting)
            };
            log.context("FILE")?;
            (commits.parse::<usize>()?, Some(queue))
        }
        _ => anyhow::bail!("COMMITS goes with a FILE"),
    };
    let key = Hmac::<Sha256>::new_from_slice(secret.as_bytes())?;
    let proxy = Rc::new(Proxy {
        backend: backend.clone(),
        key,
        commits,
        log,
        bare: RefCell::default(),
        hyper: RefCell::default(),
        keeps: kind != "fresh",
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let proxy = proxy.clone();
            match kind.as_str() {
                "bare" => drop(spawn_local(async move { proxy.serve_bare(stream).await })),
                "hyper" | "fresh" => drop(spawn_local(proxy.serve_hyper(stream))),
                _ => anyhow::bail!("{kind}: `bare`, `hyper` or `fresh`"),
            }
        }
    })
}

struct Proxy {
    backend: String,
    key: Hmac<Sha256>,
    commits: usize,
    log: Option<mpsc::Sender<Entry>>,
    /// Kept connections to the backend.
    bare: RefCell<Vec<TcpStream>>,
    hyper: RefCell<Vec<SendRequest<Full<Bytes>>>>,
    keeps: bool,
}

impl Proxy {
    fn is_signed(&self, timestamp: &[u8], client: &[u8], signature: &[u8], body: &[u8]) -> bool {
        let signed = [timestamp, b".", client, b".", body].concat();
        let mut key = self.key.clone();
        key.update(
            base64_simd::URL_SAFE_NO_PAD
                .encode_to_string(signed)
                .as_bytes(),
        );
        let mut given = [0; 32];
        base16ct::mixed::decode(signature, &mut given).is_ok() && key.verify_slice(&given).is_ok()
    }

    /// Makes a call durable, or what was answered to it.
    async fn record(&self, signature: &[u8], call: &Bytes, answered: bool) -> anyhow::Result<()> {
        if let Some(log) = self
            .log
            .as_ref()
            .filter(|_| self.commits > usize::from(answered))
        {
            let (tell, told) = oneshot::channel();
            let mut hash = [0; 8];
            base16ct::mixed::decode(&signature[..16], &mut hash)?;
            log.send(Entry {
                hash: i64::from_be_bytes(hash),
                call: call.clone(),
                answered,
                tell,
            })?;
            told.await?;
        }
        Ok(())
    }

    async fn serve_bare(&self, mut stream: TcpStream) -> anyhow::Result<()> {
        let (mut incoming, mut answer) = (BytesMut::new(), BytesMut::new());
        loop {
            let Some(whole) = message(&mut stream, &mut incoming).await? else {
                return Ok(());
            };
            let call = incoming.split_to(whole).freeze();
            let end = memmem::find(&call, b"\r\n\r\n").context("no head")? + 4;
            let of = |name: &str| field(&call[..end], name).unwrap_or_default();
            let (timestamp, client) = (
                of("\r\nX-Tikivip-Timestamp: "),
                of("\r\nX-Tikivip-Client-Id: "),
            );
            let signature = of("\r\nX-Tikivip-Signature: ");
            if !self.is_signed(timestamp, client, signature, &call[end..]) {
                stream.write_all(REFUSED).await?;
                continue;
            }
            self.record(signature, &call, false).await?;
            // One that the backend has closed meanwhile, which keeps none for ever, can be read to its end.
            let is_open = |kept: &TcpStream| matches!(kept.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            let kept = self.bare.borrow_mut().pop().filter(is_open);
            let mut backend = match kept {
                Some(kept) => kept,
                None => connect(&self.backend).await?,
            };
            backend.write_all(&call).await?;
            let whole = message(&mut backend, &mut answer)
                .await?
                .context("no answer")?;
            self.bare.borrow_mut().push(backend);
            self.record(signature, &Bytes::copy_from_slice(&answer[..whole]), true)
                .await?;
            stream.write_all(&answer[..whole]).await?;
            answer.advance(whole);
        }
    }

    async fn serve_hyper(self: Rc<Self>, stream: TcpStream) {
        let service = hyper::service::service_fn(move |request| {
            let proxy = self.clone();
            async move { Ok::<_, Infallible>(proxy.answer(request).await.unwrap_or_else(failed)) }
        });
        // A caller that goes away ends its connection, and nothing else.
        let _gone = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn answer(&self, request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let of = |name: &str| {
            head.headers
                .get(name)
                .map_or(&b""[..], |value| value.as_bytes())
        };
        let (timestamp, client) = (of("x-tikivip-timestamp"), of("x-tikivip-client-id"));
        let signature = of("x-tikivip-signature").to_owned();
        if !self.is_signed(timestamp, client, &signature, &body) {
            return Ok(Response::builder().status(401).body(Full::default())?);
        }
        self.record(&signature, &body, false).await?;
        let kept = self.hyper.borrow_mut().pop();
        let mut backend = match kept {
            Some(kept) if self.keeps && kept.is_ready() => kept,
            _ => {
                let (sender, connection) =
                    handshake(TokioIo::new(connect(&self.backend).await?)).await?;
                drop(spawn_local(connection));
                sender
            }
        };
        let answer = backend
            .send_request(Request::from_parts(head, Full::new(body.clone())))
            .await?;
        let (head, incoming) = answer.into_parts();
        let answered = incoming.collect().await?.to_bytes();
        self.hyper.borrow_mut().push(backend);
        self.record(&signature, &answered, true).await?;
        Ok(Response::from_parts(head, Full::new(answered)))
    }
}

fn failed(error: anyhow::Error) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{error:#}")));
    *response.status_mut() = hyper::StatusCode::BAD_GATEWAY;
    response
}

async fn connect(backend: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(backend).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads until a message is whole; its length, or none at the end of the stream.
async fn message(stream: &mut TcpStream, buffer: &mut BytesMut) -> anyhow::Result<Option<usize>> {
    loop {
        if let Some(end) = memmem::find(buffer, b"\r\n\r\n") {
            let length = field(&buffer[..end + 2], "\r\nContent-Length: ").context("no length")?;
            let whole = end + 4 + str::from_utf8(length)?.parse::<usize>()?;
            if buffer.len() >= whole {
                return Ok(Some(whole));
            }
            buffer.reserve(whole - buffer.len());
        } else {
            buffer.reserve(8192);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// What stands behind a name, up to the end of its line.
fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let behind = &head[memmem::find(head, name.as_bytes())? + name.len()..];
    Some(&behind[..memchr::memchr(b'\r', behind)?])
}

/// What is to be durable, and who waits for it.
struct Entry {
    hash: i64,
    call: Bytes,
    answered: bool,
    tell: oneshot::Sender<()>,
}

/// The entries that wait, at least one; none when nobody is left to send any.
fn batch(waiting: &mpsc::Receiver<Entry>) -> Option<Vec<Entry>> {
    let first = waiting.recv().ok()?;
    Some(iter::once(first).chain(waiting.try_iter()).collect())
}

fn tell(batch: Vec<Entry>) {
    for entry in batch {
        // One that waits no longer doesn't mind.
        let _gone = entry.tell.send(());
    }
}

/// A thread that appends.
fn appending(file: &str, waiting: mpsc::Receiver<Entry>) -> anyhow::Result<()> {
    let mut file = fs::File::create(file)?;
    thread::Builder::new()
        .name("log".into())
        .spawn(move || -> anyhow::Result<()> {
            let mut text = Vec::new();
            while let Some(batch) = batch(&waiting) {
                text.clear();
                for entry in &batch {
                    text.extend_from_slice(&entry.call);
                }
                file.write_all(&text)?;
                rustix::fs::fdatasync(file.as_fd())?;
                tell(batch);
            }
            Ok(())
        })?;
    Ok(())
}

/// A thread with a table.
fn in_sqlite(file: &str, waiting: mpsc::Receiver<Entry>) -> anyhow::Result<()> {
    let connection = rusqlite::Connection::open(file)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE calls (id INTEGER PRIMARY KEY, hash INTEGER NOT NULL UNIQUE, call BLOB NOT NULL, answer BLOB) STRICT;",
    )?;
    thread::Builder::new()
        .name("log".into())
        .spawn(move || -> anyhow::Result<()> {
            let mut insert =
                connection.prepare("INSERT INTO calls (hash, call) VALUES (?1, ?2)")?;
            let mut update = connection.prepare("UPDATE calls SET answer = ?2 WHERE hash = ?1")?;
            while let Some(batch) = batch(&waiting) {
                let transaction = connection.unchecked_transaction()?;
                for entry in &batch {
                    let statement = if entry.answered {
                        &mut update
                    } else {
                        &mut insert
                    };
                    statement.execute((entry.hash, &entry.call[..]))?;
                }
                transaction.commit()?;
                tell(batch);
            }
            Ok(())
        })?;
    Ok(())
}
