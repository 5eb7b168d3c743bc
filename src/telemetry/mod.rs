//! The log: rare events through `tracing`, one access line per request, both through one sink.
//!
//! ```text
//! tracing events ── events ──▶ ┐ sink: one buffer per worker        ┌──▶ standard output
//! requests ──────── access ──▶ ┘ and one for events ── one thread ──┘
//! ```
//!
//! An event pays for its formatting where it happens, which is fine for what is rare. The access line
//! is formatted by hand into its worker's buffer (`access`): some 5,000 instructions, where the usual
//! JSON layer took 23,000, as much as the rest of the gate's work on a request.
//!
//! Both kinds look alike: `time`, `level`, `message`, then fields under OpenTelemetry's names. What came
//! from the network is escaped (`line`), so that it can neither forge a line nor drive a terminal.
//! Fields named like a secret are not written at all (`redact`).

mod access;
mod events;
mod level;
mod line;
mod redact;
mod sink;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt;

pub use access::{AccessLine, AccessLog};
pub use level::LogLevel;
pub use redact::Shown;

use crate::config;
use events::EventLog;
use sink::Sink;

/// Starts the log on standard output and makes it the process's `tracing` subscriber.
///
/// Only the first call in a process takes the events; a later one still has its own access lines.
///
/// # Errors
/// When standard output can't be duplicated or the writing thread can't be started.
pub fn init(log: &config::Log, workers: usize) -> io::Result<LogHandle> {
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let handle = LogHandle::to(log, workers, output)?;
    // Refused only when there is a subscriber already, as documented.
    let _ = tracing::subscriber::set_global_default(handle.subscriber());
    Ok(handle)
}

/// The running log. Dropping it writes what has gathered.
#[derive(Debug)]
pub struct LogHandle {
    sink: Sink,
    level: LogLevel,
    workers: usize,
}

/// How long the end of the process waits for a slow output.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

impl LogHandle {
    /// Starts a log that writes to `output`, leaving the process's subscriber alone.
    ///
    /// # Errors
    /// When the writing thread can't be started.
    pub fn to(
        log: &config::Log,
        workers: usize,
        output: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        let config::Log { format, level } = *log;
        Ok(Self {
            sink: Sink::start(format, workers.saturating_add(1), output)?,
            level: LogLevel::new(level),
            workers,
        })
    }

    /// A subscriber whose events go through this log.
    pub fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + 'static {
        tracing_subscriber::registry()
            .with(EventLog::new(self.sink.clone(), self.workers))
            .with(self.level.clone())
    }

    /// The access log of worker `n`, counted from 0.
    pub fn access(&self, n: usize) -> AccessLog {
        AccessLog::new(
            self.sink.clone(),
            n % self.workers.max(1),
            self.level.clone(),
        )
    }

    /// The least level that is written; can be changed.
    pub fn level(&self) -> LogLevel {
        self.level.clone()
    }

    /// Lines given up so far because the output was too slow or failed; for the metric.
    pub fn lines_dropped(&self) -> Arc<AtomicU64> {
        self.sink.lines_dropped()
    }

    /// Waits until everything logged so far was handed to the output, two seconds at most.
    /// Returns whether it was.
    pub fn flush(&self) -> bool {
        self.sink.flush(FLUSH_LIMIT)
    }
}

impl Drop for LogHandle {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests;
