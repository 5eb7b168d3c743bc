//! The stream below TLS and HTTP: bytes that were read too far are read again.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::Activity;

/// A connection's own stream.
#[derive(Debug)]
pub(super) struct Wire<I> {
    io: I,
    /// What came with the PROXY header and is the connection's own.
    ahead: Bytes,
    /// Below TLS, where an answer's progress can't be seen above: whom to tell of it.
    progress: Option<Arc<Activity>>,
    /// Below TLS: nothing of the handshake has come yet.
    awaits_handshake: bool,
}

impl<I> Wire<I> {
    /// `io`, with `ahead` read before what comes from it.
    pub(super) fn new(io: I, ahead: Bytes) -> Self {
        Self {
            io,
            ahead,
            progress: None,
            awaits_handshake: false,
        }
    }

    /// Notes in `activity` whatever is written, and that a handshake has begun: a caller who has sent
    /// something is not to make room like one who is silent.
    pub(super) fn noting_progress(self, activity: Arc<Activity>) -> Self {
        Self {
            progress: Some(activity),
            awaits_handshake: true,
            ..self
        }
    }

    fn note_handshake(&mut self) {
        if std::mem::take(&mut self.awaits_handshake)
            && let Some(activity) = &self.progress
        {
            activity.handshake_begins();
        }
    }

    fn note(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Some(activity), Poll::Ready(Ok(1..))) = (&self.progress, &outcome) {
            activity.progressed();
        }
        outcome
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Wire<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
            if buf.filled().len() > before {
                self.note_handshake();
            }
            return Poll::Ready(Ok(()));
        }
        self.note_handshake();
        read_again(&mut self.ahead, buf);
        Poll::Ready(Ok(()))
    }
}

/// Reads from what was read before and is to be read again. Once it is all read, its memory is free.
pub(super) fn read_again(ahead: &mut Bytes, buf: &mut ReadBuf<'_>) {
    let length = ahead.len().min(buf.remaining());
    buf.put_slice(&ahead.split_to(length));
    if ahead.is_empty() {
        *ahead = Bytes::new();
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Wire<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.note(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.note(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
