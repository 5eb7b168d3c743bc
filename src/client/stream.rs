//! A backend's socket that counts what really went into it.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// A connected socket of any kind.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpUnderTls>>),
}

impl Socket {
    /// Bytes that TLS gave to the system; without TLS none, since there a write tells by itself.
    fn raw_written(&self) -> u64 {
        match self {
            Self::Tcp(_) | Self::Unix(_) => 0,
            Self::Tls(stream) => stream.get_ref().0.written,
        }
    }
}

/// What TLS reads and writes. While it is [asking](Self::ask_the_system), a read goes to the system
/// right away and wakes nobody: the runtime's own notion may be one turn of its event loop behind.
#[derive(Debug)]
pub(super) struct TcpUnderTls {
    stream: TcpStream,
    asking: bool,
    /// Bytes the system took over, TLS's own among them.
    written: u64,
}

impl TcpUnderTls {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            asking: false,
            written: 0,
        }
    }

    fn ask_the_system(&mut self, asking: bool) {
        self.asking = asking;
    }
}

impl AsyncRead for TcpUnderTls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.asking {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let mut socket = &*SockRef::from(&self.stream);
        match io::Read::read(&mut socket, buffer.initialize_unfilled()) {
            Ok(read) => {
                buffer.advance(read);
                Poll::Ready(Ok(()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for TcpUnderTls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(wrote)) = &polled {
            self.written += *wrote as u64;
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What happened on a [`MeteredStream`] since the last [`Meter::restart`].
///
/// The stream itself disappears inside the HTTP library, so both share this. One task at a time
/// uses a connection: the atomics are there to be `Send`, relaxed order is enough.
#[derive(Debug, Default)]
pub(super) struct Meter {
    written: AtomicU64,
    received: AtomicU64,
    write_failed: AtomicBool,
    /// Bytes may be left that the library has and the system doesn't.
    behind: AtomicBool,
    probing: AtomicBool,
}

impl Meter {
    /// Counts from zero for the next request.
    pub(super) fn restart(&self) {
        self.written.store(0, Ordering::Relaxed);
        self.received.store(0, Ordering::Relaxed);
    }

    /// Bytes the system, or TLS, took over for the backend; over TLS more than were written. Zero proves
    /// that it got nothing.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes that TLS gave to the system while it was writing: though the write as a whole may have failed,
    /// they are gone.
    fn add_raw(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that came from the backend.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether the system refused to take bytes: the connection is of no further use.
    pub(super) fn write_failed(&self) -> bool {
        self.write_failed.load(Ordering::Relaxed)
    }

    /// Whether something of a request may still have to be written, which after an early answer is so: what
    /// is sent next over this connection would wait behind it.
    pub(super) fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    fn set_behind(&self, behind: bool) {
        self.behind.store(behind, Ordering::Relaxed);
    }

    /// While set, a read only looks whether there is anything to read; see [`MeteredStream`].
    pub(super) fn set_probing(&self, probing: bool) {
        self.probing.store(probing, Ordering::Relaxed);
    }
}

/// A socket with a [`Meter`]. It differs from a plain one in two ways:
///
/// - A failed write is remembered, and it and the later ones seem to succeed. A backend may answer
///   before it has read everything and close; the answer then waits in the receive buffer, and the
///   HTTP library would give up at the failed write without reading it. After such a failure the
///   reading side ends by itself, with the answer or with the end of the stream.
/// - While the meter is [probing](Meter::set_probing), a read asks the system instead of trusting
///   the runtime's cached readiness, which may be one turn of its event loop behind.
#[derive(Debug)]
pub(super) struct MeteredStream {
    socket: Socket,
    meter: Arc<Meter>,
}

impl MeteredStream {
    pub(super) fn new(socket: Socket, meter: Arc<Meter>) -> Self {
        Self { socket, meter }
    }

    /// Whether the other end has neither closed it nor sent anything that was not read.
    pub(super) fn is_silent(&self) -> bool {
        self.peek().is_pending()
    }

    /// Ready with nothing read at the end of the stream, with an error on bytes nobody asked for.
    fn peek(&self) -> Poll<io::Result<()>> {
        let mut byte = [MaybeUninit::uninit()];
        let peeked = match &self.socket {
            Socket::Tcp(stream) => SockRef::from(stream).peek(&mut byte),
            Socket::Unix(stream) => SockRef::from(stream).peek(&mut byte),
            Socket::Tls(stream) => SockRef::from(&stream.get_ref().0.stream).peek(&mut byte),
        };
        match peeked {
            Ok(0) => Poll::Ready(Ok(())),
            Ok(_) => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// The same where TLS has things of its own to say between answers, such as new session tickets:
    /// what of it concerns the caller is read.
    fn peek_through_tls(
        stream: &mut TlsStream<TcpUnderTls>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        stream.get_mut().0.ask_the_system(true);
        let polled = Pin::new(&mut *stream).poll_read(cx, &mut buffer);
        stream.get_mut().0.ask_the_system(false);
        match polled {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
            }
            polled => polled,
        }
    }

    /// Counts a write, or hides its failure: `offered` is what the caller asked to write.
    fn account(&self, wrote: io::Result<usize>, offered: usize) -> usize {
        match wrote {
            Ok(bytes) => {
                self.meter
                    .written
                    .fetch_add(bytes as u64, Ordering::Relaxed);
                bytes
            }
            Err(_) => {
                self.meter.write_failed.store(true, Ordering::Relaxed);
                offered
            }
        }
    }
}

impl AsyncRead for MeteredStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.probing.load(Ordering::Relaxed) {
            return match &mut self.socket {
                Socket::Tls(stream) => Self::peek_through_tls(stream, cx),
                Socket::Tcp(_) | Socket::Unix(_) => self.peek(),
            };
        }
        let before = buffer.filled().len();
        let polled = match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        };
        let came = buffer.filled().len() - before;
        self.meter
            .received
            .fetch_add(came as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for MeteredStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.meter.write_failed() {
            return Poll::Ready(Ok(bytes.len()));
        }
        self.meter.set_behind(true);
        let before = self.socket.raw_written();
        let polled = match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.meter.add_raw(self.socket.raw_written() - before);
        polled.map(|wrote| Ok(self.account(wrote, bytes.len())))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered = slices.iter().map(|slice| slice.len()).sum();
        if self.meter.write_failed() {
            return Poll::Ready(Ok(offered));
        }
        self.meter.set_behind(true);
        let before = self.socket.raw_written();
        let polled = match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Socket::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        };
        self.meter.add_raw(self.socket.raw_written() - before);
        polled.map(|wrote| Ok(self.account(wrote, offered)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The library flushes once it has written all that it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.meter.write_failed() {
            return Poll::Ready(Ok(()));
        }
        let flushed = match &mut self.socket {
            // They buffer nothing in user space.
            Socket::Tcp(_) | Socket::Unix(_) => Poll::Ready(Ok(())),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        flushed.map(|flushed| {
            self.account(flushed.map(|()| 0), 0);
            self.meter.set_behind(false);
            Ok(())
        })
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
