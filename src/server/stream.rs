//! What a connection is doing, told from the bytes that pass.
//!
//! hyper has no hook for a request's first byte or for an answer that its caller does not take, so
//! the stream below it takes notes ([`Watched`]), together with the adapter around the service
//! (`connection`). The notes are one atomic word per connection, touched by one task at a time.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::failpoint;

use super::Limits;
use super::wire::read_again;

/// How long a closed connection waits for its caller to read the last answer and close.
///
/// Closing a socket that holds unread bytes (a body that was refused unread) resets it, and the
/// reset may overtake the answer.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// Bytes that are read and thrown away meanwhile.
const LINGER_BYTES: usize = 1 << 20;

/// How long a new connection may take to send something when the server closes: its caller has
/// just connected, so a request is surely on its way.
const FRESH_GRACE: Duration = Duration::from_millis(250);

/// How long hyper's machine is kept for a next request.
const REST_AFTER: Duration = Duration::from_millis(250);

/// What is read at once of a request that ends a rest: most are smaller.
pub(super) const FIRST_READ: usize = 4096;

/// A step of a connection's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Accepted; nothing came yet.
    Fresh,
    /// The first byte of a request came, the end of its head did not.
    Head,
    /// The service has the request. Its deadlines are its own.
    Handling,
    /// The answer is being written.
    Answering,
    /// The answer is being written and the caller does not take it.
    Stuck,
    /// The answer was written; nothing came since.
    Idle,
    /// Closed from this side while quiet: nothing is owed to the caller.
    Dismissed,
    /// Closed from this side after an answer.
    Lingering,
}

/// How readily a connection makes room for another when all places are taken, the readiest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Spare {
    /// Nothing is owed to its caller.
    Quiet,
    /// A head that comes slowly, which others send at once, or a closed connection whose caller stays.
    Slow,
    /// The caller does not take its answer.
    Stuck,
}

impl Phase {
    const ALL: [Phase; 8] = [
        Phase::Fresh,
        Phase::Head,
        Phase::Handling,
        Phase::Answering,
        Phase::Stuck,
        Phase::Idle,
        Phase::Dismissed,
        Phase::Lingering,
    ];
    const BITS: u32 = 3;
    const MASK: u64 = (1 << Self::BITS) - 1;
}

/// The phase of one connection and since when it lasts.
///
/// Since when: of [`Phase::Handling`] and [`Phase::Answering`] it is the request's first byte,
/// which saves reading the clock.
#[derive(Debug)]
pub(super) struct Activity {
    accepted: Instant,
    /// Nanoseconds after `accepted`, and in the lowest bits the phase.
    state: AtomicU64,
    leaving: AtomicBool,
    /// The latest request's body has not come to its end.
    body_is_open: AtomicBool,
    /// Requests so far, modulo 2^32.
    requests: AtomicU32,
    /// An answer was written, and since then nothing was begun: no other answer, and no close.
    settled: AtomicBool,
    /// How often the connection's task was polled; wraps.
    turns: AtomicU32,
}

impl Activity {
    /// A connection that was just accepted.
    pub(super) fn new(accepted: Instant) -> Self {
        let activity = Self {
            accepted,
            state: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            body_is_open: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            settled: AtomicBool::new(false),
            turns: AtomicU32::new(0),
        };
        activity.set(Phase::Fresh, accepted);
        activity
    }

    /// The phase and since when it lasts.
    pub(super) fn get(&self) -> (Phase, Instant) {
        let state = self.state.load(Ordering::Relaxed);
        let nanos = state >> Phase::BITS;
        let phase = Phase::ALL[(state & Phase::MASK) as usize];
        (phase, self.accepted + Duration::from_nanos(nanos))
    }

    fn set(&self, phase: Phase, since: Instant) {
        let since = since.saturating_duration_since(self.accepted);
        // 61 bits of nanoseconds are 73 years.
        let nanos = since.as_nanos() as u64;
        self.state
            .store((nanos << Phase::BITS) | phase as u64, Ordering::Relaxed);
    }

    /// The first steps are over: what a new connection may take counts from now.
    pub(super) fn entered(&self) {
        self.set(Phase::Fresh, Instant::now());
    }

    /// The first bytes of a TLS handshake came; [`Self::entered`] is its end.
    pub(super) fn handshake_begins(&self) {
        self.head_begins();
    }

    /// Some bytes of an answer went out below, where there is TLS in between.
    pub(super) fn progressed(&self) {
        if self.phase() == Phase::Stuck {
            self.set(Phase::Stuck, Instant::now());
        }
    }

    /// How readily the connection makes room for another, and since when that holds; none: a request is
    /// being handled, or its answer is on its way.
    pub(super) fn spare(&self) -> Option<(Spare, Instant)> {
        let (phase, since) = self.get();
        let spare = match phase {
            Phase::Fresh | Phase::Idle | Phase::Dismissed => Spare::Quiet,
            Phase::Head | Phase::Lingering => Spare::Slow,
            Phase::Stuck => Spare::Stuck,
            Phase::Handling | Phase::Answering => return None,
        };
        Some((spare, since))
    }

    fn phase(&self) -> Phase {
        self.get().0
    }

    /// The connection shall end with the next answer, or without one if none is due.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::leave`] was said.
    pub(super) fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// When the connection is to be closed if nothing changes.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let (phase, since) = self.get();
        let patience = match phase {
            Phase::Fresh if self.leaving() => FRESH_GRACE.min(limits.header_timeout),
            Phase::Fresh | Phase::Head => limits.header_timeout,
            Phase::Handling | Phase::Answering => return None,
            Phase::Stuck => limits.write_timeout,
            Phase::Idle => limits.idle_timeout,
            Phase::Dismissed | Phase::Lingering => LINGER,
        };
        since.checked_add(patience)
    }

    /// The service gets a request; returns when its first byte was read.
    ///
    /// A request that hyper had read together with the one before it counts from when that one's
    /// answer was written. (If only its beginning was, from when the rest came.)
    pub(super) fn request_begins(&self) -> Instant {
        let (_, first_byte) = self.get();
        self.set(Phase::Handling, first_byte);
        first_byte
    }

    /// The connection's task is polled once more.
    pub(super) fn turn_begins(&self) {
        // Of one task alone: no turn gets lost between the two.
        self.turns
            .store(self.turn().wrapping_add(1), Ordering::Relaxed);
    }

    /// The number of the current turn.
    pub(super) fn turn(&self) -> u32 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Whether the next request came together with the one before it.
    pub(super) fn is_pipelined(&self) -> bool {
        self.phase() != Phase::Head
    }

    /// The service has answered.
    pub(super) fn answer_begins(&self) {
        let (_, since) = self.get();
        self.set(Phase::Answering, since);
    }

    /// Whether hyper may be told now that the connection shall end.
    ///
    /// Not before a first request and not within a head: hyper would throw away what came of it.
    pub(super) fn may_close(&self) -> bool {
        match self.phase() {
            Phase::Fresh | Phase::Head => false,
            Phase::Idle => {
                self.set(Phase::Dismissed, Instant::now());
                true
            }
            _ => true,
        }
    }

    /// A request has come, with a body or without; the number by which its body tells of its end.
    pub(super) fn body_begins(&self, open: bool) -> u32 {
        self.body_is_open.store(open, Ordering::Relaxed);
        self.requests
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_add(1)
    }

    /// A request's body was read to its end. If another request has come since, that one's counts.
    pub(super) fn body_has_ended(&self, number: u32) {
        if self.requests.load(Ordering::Relaxed) == number {
            self.body_is_open.store(false, Ordering::Relaxed);
        }
    }

    /// When the connection may rest if nothing changes; none: hyper is, or may be, in the middle of something.
    pub(super) fn rest_at(&self) -> Option<Instant> {
        let (phase, since) = self.get();
        let done = phase == Phase::Idle
            && self.settled.load(Ordering::Relaxed)
            && !self.body_is_open.load(Ordering::Relaxed)
            && !self.leaving();
        done.then(|| since + REST_AFTER)
    }

    fn read(&self, bytes: &[u8]) {
        let (Phase::Fresh | Phase::Idle) = self.phase() else {
            return;
        };
        // Empty lines before a request are no part of it (RFC 9112, 2.2).
        if bytes.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
            self.head_begins();
        }
    }

    /// The first byte of a request was read.
    pub(super) fn head_begins(&self) {
        self.set(Phase::Head, Instant::now());
    }

    fn wrote(&self, outcome: &Poll<io::Result<usize>>) {
        // Also when it is hyper's own answer to something that is no request.
        self.settled.store(false, Ordering::Relaxed);
        let (phase, since) = self.get();
        match (phase, outcome) {
            (Phase::Stuck, Poll::Ready(Ok(1..))) => self.set(Phase::Answering, since),
            (Phase::Answering, Poll::Pending) => self.set(Phase::Stuck, Instant::now()),
            _ => {}
        }
    }

    /// hyper flushes when nothing is left to write.
    fn flushed(&self, outcome: &Poll<io::Result<()>>) {
        match (self.phase(), outcome) {
            (Phase::Answering | Phase::Stuck, Poll::Ready(Ok(()))) => {
                self.set(Phase::Idle, Instant::now());
                self.settled.store(true, Ordering::Relaxed);
                failpoint::reach("after_reply");
            }
            (Phase::Answering, Poll::Pending) => self.set(Phase::Stuck, Instant::now()),
            _ => {}
        }
    }
}

/// A stream that notes what passes in an [`Activity`].
#[derive(Debug)]
pub(super) struct Watched<I> {
    io: I,
    activity: Arc<Activity>,
    /// What was read while the connection rested, and is to be read again.
    ahead: Bytes,
    /// The caller sent all it will send.
    ended: bool,
    /// Bytes that lingering may still throw away; none: this side was not closed yet.
    linger: Option<usize>,
    head: HeadLines,
}

/// Looks for line feeds without a carriage return in a request's head: hyper takes them for line
/// ends and does not tell, while a proxy in front may see another request there.
///
/// A head that came in one read with the end of the request before it is not looked at.
#[derive(Debug, Default)]
struct HeadLines {
    /// The last byte so far.
    previous: u8,
    /// Bytes of the line that has not ended yet.
    line: usize,
    begun: bool,
    ended: bool,
}

impl HeadLines {
    /// Takes the next bytes of the head; whether a lone line feed is among them.
    fn have_lone_feed(&mut self, bytes: &[u8]) -> bool {
        let mut start = 0;
        for feed in memchr::memchr_iter(b'\n', bytes) {
            if self.ended {
                return false;
            }
            let before = match feed {
                0 => self.previous,
                _ => bytes[feed - 1],
            };
            if before != b'\r' {
                return true;
            }
            let line = self.line + feed - start;
            // Blank lines in front of a request are no part of it (RFC 9112, section 2.2).
            self.ended = line == 1 && self.begun;
            self.begun |= line > 1;
            self.line = 0;
            start = feed + 1;
        }
        self.line += bytes.len() - start;
        self.previous = bytes.last().copied().unwrap_or(self.previous);
        false
    }
}

impl<I> Watched<I> {
    /// Watches `io`.
    pub(super) fn new(io: I, activity: Arc<Activity>) -> Self {
        Self {
            io,
            activity,
            ahead: Bytes::new(),
            ended: false,
            linger: None,
            head: HeadLines::default(),
        }
    }
}

impl<I: AsyncRead + Unpin> Watched<I> {
    /// Waits for more, which is read again afterwards; ready with no more when the caller has closed.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut first = [MaybeUninit::uninit(); FIRST_READ];
        let mut buf = ReadBuf::uninit(&mut first);
        ready!(self.poll_read_on(cx, &mut buf))?;
        let more = buf.filled();
        self.ahead = match self.ahead.is_empty() {
            true => Bytes::copy_from_slice(more),
            false => [&self.ahead, more].concat().into(),
        };
        Poll::Ready(Ok(()))
    }

    /// Has bytes read once more that were read, before what is to be read again already.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.ahead = [bytes, &self.ahead].concat().into();
    }

    fn poll_read_on(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let room = buf.remaining() > 0;
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let bytes = &buf.filled()[before..];
        if bytes.is_empty() {
            self.ended |= room;
        } else {
            let before = self.activity.phase();
            self.activity.read(bytes);
            if matches!(before, Phase::Fresh | Phase::Idle) {
                self.head = HeadLines::default();
            }
            if self.activity.phase() == Phase::Head && self.head.have_lone_feed(bytes) {
                self.activity.leave();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return self.poll_read_on(cx, buf);
        }
        read_again(&mut self.ahead, buf);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.activity.wrote(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.activity.wrote(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.activity.flushed(&outcome);
        outcome
    }

    /// Closes this side, then waits for the caller to close its own; see [`LINGER`].
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            self.activity.settled.store(false, Ordering::Relaxed);
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            if self.ended || self.activity.phase() == Phase::Dismissed {
                return Poll::Ready(Ok(()));
            }
            self.activity.set(Phase::Lingering, Instant::now());
            self.linger = Some(LINGER_BYTES);
        }
        let mut scratch = [0; 4096];
        while let Some(left @ 1..) = self.linger {
            let mut buf = ReadBuf::new(&mut scratch);
            // A reset by the caller is as good an end as any.
            let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                break;
            }
            self.linger = Some(left.saturating_sub(buf.filled().len()));
        }
        Poll::Ready(Ok(()))
    }
}
