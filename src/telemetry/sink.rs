//! Where lines gather: one buffer per producer, and one thread that writes them out.
//!
//! A producer appends under a lock that only it and the writing thread take, for a copy's length. Its
//! first line into an empty buffer wakes the thread; the thread waits a moment for more, takes all
//! buffers and writes them. Under load a line thus costs no system call. Within one buffer lines keep
//! their order; those of different workers may be apart by the moment's length.
//!
//! An output that is slower than the lines come fills the buffers to their bound. Further lines are
//! given up and counted, and a line says how many once there is room: the gate goes on serving.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime};

use tracing::Level;

use super::line::{Line, Stamp};
use crate::config::LogFormat;

/// A buffer that holds this much takes no further line, in bytes.
const BUFFER_LIMIT: usize = 1 << 20;
/// A buffer that grew beyond this in a burst is given back to the system, in bytes.
const KEPT_CAPACITY: usize = 64 << 10;
/// How long the thread waits for more lines before it writes.
const GATHER: Duration = Duration::from_millis(10);
/// Between tries on an output that takes nothing just now.
const RETRY: Duration = Duration::from_millis(10);

/// The producers' end. When the last clone goes, the thread writes what is left and ends.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    ends: Arc<ProducersEnd>,
}

impl Sink {
    /// Starts the thread, with as many buffers as asked for (at least one).
    pub(super) fn start(
        format: LogFormat,
        buffers: usize,
        output: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            format,
            buffers: (0..buffers.max(1)).map(|_| Buffer::default()).collect(),
            dropped: Arc::default(),
            due: AtomicBool::new(false),
            progress: Mutex::default(),
            written: Condvar::new(),
        });
        let writer = Writer {
            shared: Arc::clone(&shared),
            output,
            stamp: Stamp::new(),
            spare: Vec::new(),
            unreported: 0,
            torn: false,
        };
        let thread = thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.run())?;
        Ok(Self {
            ends: Arc::new(ProducersEnd {
                shared,
                writer: thread.thread().clone(),
            }),
        })
    }

    /// Appends the line that `write` makes to a buffer, counted from 0 and wrapping around.
    /// Returns false when the line was given up for want of room; `write` is then not called.
    ///
    /// `write` runs under the buffer's lock: it must not log.
    pub(super) fn line(
        &self,
        buffer: usize,
        time: SystemTime,
        write: impl FnOnce(&mut Vec<u8>, LogFormat, &[u8]),
    ) -> bool {
        let shared = &self.ends.shared;
        let buffer = &shared.buffers[buffer % shared.buffers.len()];
        let mut pending = lock(&buffer.0);
        let Pending {
            bytes,
            dropped,
            stamp,
        } = &mut *pending;
        if bytes.len() >= BUFFER_LIMIT {
            *dropped += 1;
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let was_empty = bytes.is_empty();
        write(bytes, shared.format, stamp.at(time));
        drop(pending);
        if was_empty {
            self.ends.wake();
        }
        true
    }

    /// How many lines were given up, for want of room or because the output failed.
    pub(super) fn lines_dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.ends.shared.dropped)
    }

    /// Waits until all that was appended before was handed to the output, or `limit` has passed.
    /// Returns whether it was handed over.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let shared = &self.ends.shared;
        let deadline = Instant::now() + limit;
        let mut progress = lock(&shared.progress);
        progress.asked += 1;
        let asked = progress.asked;
        self.ends.wake();
        while progress.done < asked {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = shared.written.wait_timeout(progress, left);
            (progress, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

#[derive(Debug)]
struct ProducersEnd {
    shared: Arc<Shared>,
    writer: Thread,
}

impl ProducersEnd {
    /// No system call unless the thread sleeps without limit.
    fn wake(&self) {
        self.shared.due.store(true, Ordering::Release);
        self.writer.unpark();
    }
}

impl Drop for ProducersEnd {
    fn drop(&mut self) {
        lock(&self.shared.progress).ended = true;
        self.wake();
    }
}

#[derive(Debug)]
struct Shared {
    format: LogFormat,
    buffers: Box<[Buffer]>,
    dropped: Arc<AtomicU64>,
    /// There is something to do. Beside the thread's own wake-up, which an output that waits by the
    /// same means would swallow.
    due: AtomicBool,
    progress: Mutex<Progress>,
    written: Condvar,
}

/// Flushes, numbered.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// The last one that somebody waits for.
    asked: u64,
    /// The last one that is done.
    done: u64,
    /// Nobody will append any more.
    ended: bool,
}

/// Apart from the other buffers by the cache lines that processors fetch together.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Buffer(Mutex<Pending>);

#[derive(Debug)]
struct Pending {
    bytes: Vec<u8>,
    /// Lines given up since the thread last looked.
    dropped: u64,
    stamp: Stamp,
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            dropped: 0,
            stamp: Stamp::new(),
        }
    }
}

/// The thread's end.
struct Writer<W> {
    shared: Arc<Shared>,
    output: W,
    stamp: Stamp,
    /// Empty; changes places with each buffer in turn, so that their capacity stays in use.
    spare: Vec<u8>,
    /// Lines given up that no line has told of yet.
    unreported: u64,
    /// The output failed in the middle of a line.
    torn: bool,
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        loop {
            while !self.shared.due.swap(false, Ordering::Acquire) {
                thread::park();
            }
            let mut before = *lock(&self.shared.progress);
            if before.asked == before.done && !before.ended {
                thread::sleep(GATHER);
                before = *lock(&self.shared.progress);
            }
            self.write_all_buffers();
            lock(&self.shared.progress).done = before.asked;
            self.shared.written.notify_all();
            if before.ended {
                return;
            }
        }
    }

    fn write_all_buffers(&mut self) {
        let shared = Arc::clone(&self.shared);
        for buffer in &shared.buffers {
            let mut bytes = {
                let mut pending = lock(&buffer.0);
                self.unreported += std::mem::take(&mut pending.dropped);
                // The room of a busy buffer doesn't go to one that is hardly used.
                if pending.bytes.is_empty() {
                    continue;
                }
                let spare = std::mem::take(&mut self.spare);
                std::mem::replace(&mut pending.bytes, spare)
            };
            if let Err(lost) = self.write_lines(&bytes) {
                self.unreported += lost;
                shared.dropped.fetch_add(lost, Ordering::Relaxed);
            }
            bytes.clear();
            bytes.shrink_to(KEPT_CAPACITY);
            self.spare = bytes;
        }
        if self.unreported > 0 {
            self.report_dropped();
        }
    }

    fn report_dropped(&mut self) {
        let mut notice = Vec::new();
        let time = self.stamp.at(SystemTime::now());
        let message = format!("{} log lines dropped", self.unreported);
        Line::begin(&mut notice, self.shared.format, time, Level::WARN, &message).end();
        if self.write_lines(&notice).is_ok() {
            self.unreported = 0;
        }
    }

    /// Writes whole lines. When the output fails, the rest is given up and `Err` says how many lines
    /// that is: keeping them for an output that may never come back would lose later lines instead.
    fn write_lines(&mut self, lines: &[u8]) -> Result<(), u64> {
        let mut rest = lines;
        if self.torn && !rest.is_empty() {
            self.write(b"\n").map_err(|_| count_lines(rest))?;
            self.torn = false;
        }
        while !rest.is_empty() {
            match self.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(_) => {
                    let done = &lines[..lines.len() - rest.len()];
                    self.torn = done.last().is_some_and(|byte| *byte != b'\n');
                    return Err(count_lines(rest));
                }
            }
        }
        let _ = self.output.flush(); // standard output keeps nothing back
        Ok(())
    }

    /// One write that took something.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.output.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => return Ok(written.min(bytes.len())),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Another process may have made the terminal or pipe non-blocking for us too.
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
                Err(error) => return Err(error),
            }
        }
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// A producer that panicked left at worst half a line.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
