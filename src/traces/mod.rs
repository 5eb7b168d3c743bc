//! Spans of calls, exported to a collector by OTLP over HTTP (`[tracing]`); off by default.
//!
//! ```text
//! request ── begin: sampled? ── … ── finish ──▶ a queue of 2048 ── one thread ──▶ batches ──▶ collector
//! ```
//!
//! On the request's path a call that is not sampled costs a draw, and one that is costs its spans' texts and
//! two entries in a queue; they are encoded and sent by the exporting thread. A full queue drops, a collector
//! that fails loses the batch; both are counted, and no call waits for either.
//!
//! What the caller decided is followed (the `sampled` flag of its `traceparent`); calls without one are
//! drawn by `sample_percent`.

mod context;
mod export;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use tokio::sync::mpsc;

use crate::metrics::SpanCounts;

pub use context::{SpanContext, TraceIds};
pub use export::{Exporter, ExporterError};

/// Spans that wait for the exporting thread; further ones are dropped.
const QUEUE: usize = 2048;

/// A finished piece of work.
#[derive(Debug)]
pub struct Span {
    /// Its trace, its own id, and its parent's.
    pub context: SpanContext,
    /// What was done, with few values.
    pub name: String,
    /// Whose side it tells of.
    pub side: Side,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What is known of it; never a secret, a signature or a body.
    pub attributes: Vec<(&'static str, Value)>,
    /// It failed, for this reason.
    pub error: Option<String>,
}

/// Which side of a call a span tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The gate was called.
    Server,
    /// The gate called.
    Client,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
    /// A truth.
    Flag(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

/// Begins spans and takes those that are finished. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tracer {
    queue: mpsc::Sender<Span>,
    counts: Arc<SpanCounts>,
    ids: Arc<TraceIds>,
}

impl Tracer {
    /// One whose spans come out of the other end; `sample_percent` of a hundred calls that bring no
    /// decision are sampled. `random` is new for each process.
    pub fn new(sample_percent: u8, random: u64, counts: Arc<SpanCounts>) -> (Self, Finished) {
        let (queue, finished) = mpsc::channel(QUEUE);
        let ids = Arc::new(TraceIds::new(sample_percent, random));
        (Self { queue, counts, ids }, Finished(finished))
    }

    /// What became of its spans.
    pub fn counts(&self) -> &Arc<SpanCounts> {
        &self.counts
    }

    /// The span of a call that came with this `traceparent`, if it is sampled.
    pub fn begin(&self, parent: Option<&[u8; 55]>) -> Option<SpanContext> {
        self.ids.begin(parent)
    }

    /// A span within this one.
    pub fn child(&self, of: &SpanContext) -> SpanContext {
        self.ids.child(of)
    }

    /// Takes a finished span, where there is room for it: then it is put together. Never waits.
    ///
    /// Of callers that have not proved who they are only half of the room is for all of them together:
    /// whoever floods the gate doesn't blind those who look after it.
    pub fn finish(&self, proved: bool, span: impl FnOnce() -> Span) {
        let room_for_them = proved || self.queue.capacity() > QUEUE / 2;
        match self.queue.try_reserve() {
            Ok(place) if room_for_them => place.send(span()),
            _ => {
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Finished spans, for the exporting thread.
pub struct Finished(mpsc::Receiver<Span>);

#[cfg(test)]
mod tests;
