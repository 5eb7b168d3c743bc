//! One request and its whole answer over one connection, and what can go wrong with it.

use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;

use crate::failpoint;

use super::pool::Link;
use super::stream::Meter;

/// A whole answer of a backend.
///
/// `headers` and `body` are slices of the connection's read buffer (8 KiB and more): what is kept
/// for long should be copied, or it keeps the buffer alive.
#[derive(Clone, Debug)]
pub struct BackendAnswer {
    /// Its status; never 1xx.
    pub status: StatusCode,
    /// Its headers as they came, hop-by-hop ones included.
    pub headers: HeaderMap,
    /// Its body, at most as long as the caller asked for. Trailers are dropped.
    pub body: Bytes,
    /// The body was longer and is cut off; the rest was not read.
    pub oversized: bool,
}

/// No whole answer.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", kind.as_str(), Detail(.source))]
pub struct SendFault {
    /// Whether the backend can have seen anything of the request.
    pub sent: Sent,
    /// What went wrong.
    pub kind: SendFaultKind,
    /// The HTTP library's own words, for the log.
    pub source: Option<hyper::Error>,
}

/// Whether the backend can have seen anything of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Not one byte was written to its connection, and none will be: sending again is safe.
    Nothing,
    /// At least one byte was written.
    Maybe,
}

/// What went wrong after a connection was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFaultKind {
    /// The backend reset the connection.
    Reset,
    /// The backend closed the connection without a byte of an answer.
    Closed,
    /// No whole answer by the deadline.
    Timeout,
    /// An answer began and was cut off.
    Incomplete,
    /// Not HTTP/1, too large a head, `101 Switching Protocols`, or an answer before the request.
    Protocol,
}

impl SendFaultKind {
    /// A stable word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "upstream_reset",
            Self::Closed => "upstream_closed",
            Self::Timeout => "upstream_timeout",
            Self::Incomplete => "upstream_incomplete",
            Self::Protocol => "upstream_protocol",
        }
    }
}

impl fmt::Display for SendFaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `: ` and the library's words with their cause, if there are any.
struct Detail<'a>(&'a Option<hyper::Error>);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(error) = self.0 else {
            return Ok(());
        };
        write!(f, ": {error}")?;
        match error.source() {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl SendFault {
    /// A fault of this kind; the meter says whether anything was sent.
    pub(super) fn new(kind: SendFaultKind, meter: &Meter) -> Self {
        let sent = match meter.written() {
            0 => Sent::Nothing,
            _ => Sent::Maybe,
        };
        Self {
            sent,
            kind,
            source: None,
        }
    }

    fn of(error: hyper::Error, link: &mut Link) -> Self {
        // A request that was not taken up only knows that much; the connection knows why.
        let error = match link.error.take() {
            Some(why) if error.is_canceled() => why,
            _ => error,
        };
        let kind = kind_of(&error, &link.meter);
        Self {
            source: Some(error),
            ..Self::new(kind, &link.meter)
        }
    }
}

/// Sends `request` and reads its whole answer, keeping at most `limit` bytes of the body.
///
/// The connection is driven from here and not by a task of its own: that saves the way through
/// another task, and a dropped future leaves nothing behind that could still write.
pub(super) async fn exchange(
    link: &mut Link,
    request: Box<Request<Bytes>>,
    limit: usize,
) -> Result<BackendAnswer, SendFault> {
    let sending = link.sender.send_request(request.map(Full::new));
    // Whether the answer is there must not depend on what else the task has done in this turn: told to come
    // back later, it would wait for a wake-up that `quiet` swallows.
    let mut response = pin!(tokio::task::unconstrained(sending));
    let mut begun = false;
    link.give_a_turn();
    let response = poll_fn(|cx| {
        loop {
            ready!(link.poll_turn(cx));
            if !begun && link.meter.written() > 0 {
                begun = true;
                failpoint::reach("after_first_byte");
            }
            if let Poll::Ready(response) = response.as_mut().poll(&mut quiet()) {
                return Poll::Ready(response);
            }
        }
    })
    .await
    .map_err(|error| SendFault::of(error, link))?;

    // Without a byte written this is not the answer to our request; and nobody asked for 101.
    if link.meter.written() == 0 || response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(SendFault::new(SendFaultKind::Protocol, &link.meter));
    }

    let (head, mut incoming) = response.into_parts();
    let mut body = KeptBody::new(limit);
    poll_fn(|cx| body.poll_fill(cx, link, &mut incoming))
        .await
        .map_err(|error| SendFault::of(error, link))?;
    Ok(BackendAnswer {
        status: head.status,
        headers: head.headers,
        oversized: body.oversized,
        body: body.into_bytes(),
    })
}

/// Wakes nobody: for looks at what a connection hands over, which come right after each of its turns.
fn quiet() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// A body as far as it is kept. One that came in one piece is not copied.
struct KeptBody {
    first: Bytes,
    more: BytesMut,
    room: usize,
    oversized: bool,
}

impl KeptBody {
    fn new(limit: usize) -> Self {
        Self {
            first: Bytes::new(),
            more: BytesMut::new(),
            room: limit,
            oversized: false,
        }
    }

    /// Ready at the end of the body, or once there is no room for more of it. The connection has just had a
    /// turn.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Link,
        incoming: &mut Incoming,
    ) -> Poll<Result<(), hyper::Error>> {
        loop {
            match Pin::new(&mut *incoming).poll_frame(&mut quiet()) {
                Poll::Pending => ready!(link.poll_turn(cx)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(piece) = frame.into_data() else {
                        continue;
                    };
                    self.keep(piece);
                    if self.oversized {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    fn keep(&mut self, mut piece: Bytes) {
        if piece.len() > self.room {
            self.oversized = true;
            piece.truncate(self.room);
        }
        self.room -= piece.len();
        if self.first.is_empty() {
            self.first = piece;
            return;
        }
        if self.more.is_empty() {
            self.more.extend_from_slice(&self.first);
        }
        self.more.extend_from_slice(&piece);
    }

    fn into_bytes(self) -> Bytes {
        if self.more.is_empty() {
            self.first
        } else {
            self.more.freeze()
        }
    }
}

fn kind_of(error: &hyper::Error, meter: &Meter) -> SendFaultKind {
    if error.is_parse() || (meter.written() == 0 && meter.received() > 0) {
        return SendFaultKind::Protocol;
    }
    let cause = io_cause(error).map(io::Error::kind);
    match cause {
        Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => SendFaultKind::Protocol,
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => SendFaultKind::Reset,
        _ if meter.write_failed() => SendFaultKind::Reset,
        _ if meter.received() > 0 => SendFaultKind::Incomplete,
        _ => SendFaultKind::Closed,
    }
}

fn io_cause(error: &hyper::Error) -> Option<&io::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(limit: usize, pieces: &[&'static str]) -> (Bytes, bool) {
        let mut body = KeptBody::new(limit);
        for piece in pieces {
            body.keep(Bytes::from_static(piece.as_bytes()));
        }
        let oversized = body.oversized;
        (body.into_bytes(), oversized)
    }

    #[test]
    fn a_body_is_kept_up_to_its_limit() {
        assert_eq!(kept(6, &["abc", "d", "ef"]), ("abcdef".into(), false));
        assert_eq!(kept(6, &["abc", "defg"]), ("abcdef".into(), true));
        assert_eq!(kept(3, &["abcd"]), ("abc".into(), true));
        assert_eq!(kept(0, &[]), (Bytes::new(), false));
        assert_eq!(kept(0, &["a"]), (Bytes::new(), true));
    }

    #[test]
    fn a_body_in_one_piece_is_not_copied() {
        let piece = Bytes::from_static(b"abc");
        let mut body = KeptBody::new(10);
        body.keep(piece.clone());
        assert_eq!(body.into_bytes().as_ptr(), piece.as_ptr());
    }
}
