//! One connection: reads calls, answers them, and does to them what was ordered.
//!
//! A socket lingers for no time: whatever drops it resets it. Only [`close`] ends it in peace.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::caller::Outgoing;
use super::control;
use super::http::{self, Answer, Head, NoRequest, Stream};
use super::orders::Action;
use super::shared::{Accepted, Shared};

/// How long the other side may take to close after we did.
const LAST_WORDS: Duration = Duration::from_secs(1);
const MAX_EARLY: usize = 64 * 1024;
const FILLING: &[u8] = &[b'x'; 16 * 1024];

/// What becomes of the connection after a call.
enum Next {
    Call,
    Close,
    Reset,
}

/// Sets a socket up when it has just been accepted.
pub(super) fn prepare(socket: &TcpStream) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
    socket.set_nodelay(true)
}

/// Serves a prepared connection until its end.
pub(super) async fn serve(socket: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    shared.count_connection();
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(socket),
        Some(tls) => match tls.accept(socket).await {
            Ok(stream) => Box::new(stream),
            Err(_) => return,
        },
    };
    let mut buffer = BytesMut::with_capacity(8 * 1024);
    loop {
        match one_call(&mut *stream, &mut buffer, &shared).await {
            Ok(Next::Call) => {}
            Ok(Next::Close) => return close(stream).await,
            Ok(Next::Reset) | Err(_) => return,
        }
    }
}

async fn close(mut stream: Box<dyn Stream>) {
    // Where these fail, the connection is gone already.
    let _ = SockRef::from(stream.socket()).set_linger(None);
    let _ = stream.shutdown().await;
    // Bytes that nobody read would reset the connection, and the answer with it.
    let mut rest = [0; 4096];
    let _ = timeout(LAST_WORDS, async {
        while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    })
    .await;
}

async fn one_call(
    stream: &mut dyn Stream,
    buffer: &mut BytesMut,
    shared: &Shared,
) -> io::Result<Next> {
    let request = read_request(stream, buffer, shared).await;
    let (head, body) = match request {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(Next::Reset),
        Err(NoRequest::Ended) => return Ok(Next::Close),
        Err(NoRequest::Refused(status, sentence)) => {
            shared.count_malformed();
            let answer = Answer::sentence(status, &sentence);
            stream.write_all(&answer.bytes(false)).await?;
            return Ok(Next::Close);
        }
    };
    if head.target.starts_with(control::PREFIX) {
        let answer = control::answer(shared, &head, &body).await;
        return send(stream, &head, &answer).await;
    }
    let arrival = shared.receive(&head, &body);
    match arrival.verdict {
        Err(answer) => send(stream, &head, &answer).await,
        Ok(accepted) => {
            let call = Accounted {
                shared,
                number: arrival.number,
                head: &head,
                accepted: &accepted,
            };
            call.answer(stream, buffer).await
        }
    }
}

/// A request; none if it is to be reset at once.
async fn read_request(
    stream: &mut dyn Stream,
    buffer: &mut BytesMut,
    shared: &Shared,
) -> Result<Option<(Head, Bytes)>, NoRequest> {
    let head = http::read_head(stream, buffer).await?;
    if !head.target.starts_with(control::PREFIX) && shared.resets_at_once(&head) {
        return Ok(None);
    }
    let body = http::read_body(stream, buffer, &head).await?;
    Ok(Some((head, body)))
}

async fn send(stream: &mut dyn Stream, head: &Head, answer: &Answer) -> io::Result<Next> {
    stream.write_all(&answer.bytes(head.keep_alive)).await?;
    stream.flush().await?;
    Ok(if head.keep_alive {
        Next::Call
    } else {
        Next::Close
    })
}

/// A call that is listed and may be taken.
struct Accounted<'c> {
    shared: &'c Shared,
    number: u64,
    head: &'c Head,
    accepted: &'c Accepted,
}

impl Accounted<'_> {
    fn apply(&self) -> Answer {
        self.shared.apply(self.number, self.accepted)
    }

    fn apply_if(&self, apply: bool) {
        if apply {
            self.apply();
        }
    }

    async fn say(&self, stream: &mut dyn Stream, answer: &Answer) -> io::Result<Next> {
        self.shared.note_answer(self.number, answer);
        send(stream, self.head, answer).await
    }

    async fn answer(&self, stream: &mut dyn Stream, buffer: &mut BytesMut) -> io::Result<Next> {
        let Some(action) = &self.accepted.action else {
            return self.say(stream, &self.apply()).await;
        };
        let answer = match action {
            Action::Code { code, form, apply } => {
                self.apply_if(*apply);
                self.shared.coded(*code, *form)
            }
            Action::Http {
                status,
                body,
                apply,
            } => {
                self.apply_if(*apply);
                Answer::text(*status, None, body.clone())
            }
            Action::ResetAtOnce => return Ok(Next::Reset),
            Action::ApplyThenReset => {
                self.apply();
                return Ok(Next::Reset);
            }
            Action::ApplyThenClose => {
                self.apply();
                return Ok(Next::Close);
            }
            Action::ApplyThenHang { ms } => {
                let answer = self.apply();
                sleep(Duration::from_millis(*ms)).await;
                answer
            }
            Action::Hang { ms } => {
                if !stays(stream, buffer, Duration::from_millis(*ms)).await {
                    return Ok(Next::Close);
                }
                self.apply()
            }
            Action::HalfAnswer => {
                let answer = self.apply();
                self.shared.note_answer(self.number, &answer);
                let bytes = answer.bytes(true);
                let half = bytes.len() - answer.body.len().div_ceil(2);
                stream.write_all(&bytes[..half]).await?;
                stream.flush().await?;
                return Ok(Next::Close);
            }
            Action::Garbage { apply } => {
                self.apply_if(*apply);
                Answer::text(200, None, &b"\x1f\x8b<html>\0{\"code\":"[..])
            }
            Action::Huge { bytes, apply } => {
                self.apply_if(*apply);
                return self.huge(stream, *bytes).await;
            }
            Action::Redirect { url, apply } => {
                self.apply_if(*apply);
                let mut answer = Answer::text(302, None, "");
                answer.location = Some(url.clone());
                answer
            }
            Action::Slow { ms } => {
                let answer = self.apply();
                self.shared.note_answer(self.number, &answer);
                for byte in answer.bytes(false) {
                    sleep(Duration::from_millis(*ms)).await;
                    stream.write_all(&[byte]).await?;
                    stream.flush().await?;
                }
                return Ok(Next::Close);
            }
            Action::CallFirst { url, body, client } => {
                let answer = self.apply();
                let outgoing = Outgoing::post(url, body, client);
                self.shared.call_first(self.number, &outgoing).await;
                answer
            }
        };
        self.say(stream, &answer).await
    }

    /// A success of this many bytes, which is JSON all the same.
    async fn huge(&self, stream: &mut dyn Stream, bytes: usize) -> io::Result<Next> {
        let (start, end) = (&br#"{"code":0,"message":""#[..], &br#"","data":{}}"#[..]);
        let filling = bytes.saturating_sub(start.len() + end.len());
        let answer = Answer::text(200, Some(0), "");
        self.shared.note_answer(self.number, &answer);
        let length = start.len() + filling + end.len();
        let head = answer.head(length, self.head.keep_alive);
        stream.write_all(&head).await?;
        stream.write_all(start).await?;
        let mut left = filling;
        while left > 0 {
            let piece = left.min(FILLING.len());
            stream.write_all(&FILLING[..piece]).await?;
            left -= piece;
        }
        stream.write_all(end).await?;
        stream.flush().await?;
        Ok(if self.head.keep_alive {
            Next::Call
        } else {
            Next::Close
        })
    }
}

/// Waits, and says whether the other side is still there. What it sends meanwhile is kept.
async fn stays(stream: &mut dyn Stream, buffer: &mut BytesMut, time: Duration) -> bool {
    let leaves = async {
        while buffer.len() < MAX_EARLY {
            if !matches!(stream.read_buf(buffer).await, Ok(count) if count > 0) {
                return;
            }
        }
        std::future::pending().await
    };
    timeout(time, leaves).await.is_err()
}
