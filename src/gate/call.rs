//! A call on its way through the gate: the request, its deadline, and what became known of it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::config::Client;
use crate::metrics::Suspicion;
use crate::net::{AddressText, Arrived, ClientAddress};
use crate::traces::{SpanContext, Tracer};

use super::refusal::Refusal;
use super::route::RoutePlan;
use super::signatures::SignatureKey;

/// A request with what is known of it.
#[derive(Debug)]
pub struct Call<B> {
    /// The request and its connection.
    pub arrived: Arrived<B>,
    /// What the log line will say.
    pub facts: Arc<Facts>,
}

/// What became known of a call on its way. Each fact is written once, by the step that learns it,
/// and read when the log line is written; the detached part of a call shares it.
#[derive(Debug)]
pub struct Facts {
    /// The request's id.
    pub(super) request_id: RequestId,
    /// When its first byte was read.
    pub(super) first_byte: Instant,
    /// The caller's address.
    pub(super) address: ClientAddress,
    /// The same as text.
    pub(super) address_text: AddressText,
    /// The caller's trace context, if it sent a well-formed one.
    pub(super) trace: Option<TraceParent>,
    /// Its spans, if it is sampled.
    pub(super) spans: Option<CallSpans>,
    /// The route.
    pub(super) route: OnceLock<Arc<RoutePlan>>,
    /// The client id of a caller that nobody is configured with.
    pub(super) claimed_client: OnceLock<Box<str>>,
    /// The client, once it proved to be it.
    pub(super) client: OnceLock<Arc<Client>>,
    /// Size of the body in bytes.
    pub(super) body_size: Figure,
    /// The message's key.
    pub(super) key: OnceLock<Arc<str>>,
    /// The attempt that was made or joined.
    pub(super) attempt: Figure,
    /// Set when the answer comes from the ledger.
    pub(super) replayed: OnceLock<()>,
    /// What was done about it for the sake of another message about the same order or payment.
    pub(super) suspicion: OnceLock<Suspicion>,
    /// The backend's status.
    pub(super) upstream_status: Figure,
    /// Time from connecting to the whole answer, or to the fault, in nanoseconds.
    pub(super) upstream_took: Figure,
    /// Why it was refused.
    pub(super) refusal: OnceLock<Refusal>,
    /// The signature, once it counts: remembered longer when the answer is a 5xx.
    pub(super) signature: OnceLock<SignatureKey>,
}

impl Facts {
    /// Of a call that nothing is known of yet.
    pub fn new(
        request_id: RequestId,
        first_byte: Instant,
        address: ClientAddress,
        trace: Option<TraceParent>,
        spans: Option<CallSpans>,
    ) -> Self {
        Self {
            request_id,
            first_byte,
            address,
            address_text: address.text(),
            trace,
            spans,
            route: OnceLock::new(),
            claimed_client: OnceLock::new(),
            client: OnceLock::new(),
            body_size: Figure::default(),
            key: OnceLock::new(),
            attempt: Figure::default(),
            replayed: OnceLock::new(),
            suspicion: OnceLock::new(),
            upstream_status: Figure::default(),
            upstream_took: Figure::default(),
            refusal: OnceLock::new(),
            signature: OnceLock::new(),
        }
    }

    /// The trace that it belongs to, for the log.
    pub(super) fn traced_as(&self) -> Option<TraceParent> {
        let own = self.spans.map(|spans| TraceParent::of(&spans.server));
        own.or(self.trace)
    }

    /// Time from connecting to the whole answer, or to the fault.
    pub(super) fn upstream_took(&self) -> Option<Duration> {
        self.upstream_took.get().map(Duration::from_nanos)
    }
}

/// A number that becomes known once: what is told first counts. A few instructions, where a lock takes a
/// hundred.
#[derive(Debug)]
pub(super) struct Figure(AtomicU64);

/// Stands for a number that isn't known.
const UNKNOWN: u64 = u64::MAX;

impl Default for Figure {
    fn default() -> Self {
        Self(AtomicU64::new(UNKNOWN))
    }
}

impl Figure {
    /// Tells it.
    pub(super) fn set(&self, number: u64) {
        let told = self
            .0
            .compare_exchange(UNKNOWN, number, Ordering::Release, Ordering::Relaxed);
        // It was known already.
        let _ = told;
    }

    /// The number, if it is known.
    pub(super) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Acquire)).filter(|number| *number != UNKNOWN)
    }
}

/// The spans of a sampled call.
#[derive(Clone, Copy, Debug)]
pub struct CallSpans {
    /// The gate's own.
    pub(super) server: SpanContext,
    /// Of the call to the backend, if there is one.
    pub(super) client: SpanContext,
}

impl CallSpans {
    /// Of a call with this `traceparent`; none: it is not sampled.
    pub(super) fn begin(tracer: &Tracer, parent: Option<&[u8; 55]>) -> Option<Self> {
        let server = tracer.begin(parent)?;
        let client = tracer.child(&server);
        Some(Self { server, client })
    }
}

/// Names one request in the log and to the backend: 16 hex digits drawn when the process started,
/// and 16 of a counter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId([u8; 32]);

impl RequestId {
    fn new(process: u64, number: u64) -> Self {
        let both = u128::from(process) << 64 | u128::from(number);
        let mut text = [0; 32];
        for (place, digit) in text.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(both >> (124 - 4 * place)) as usize & 15];
        }
        Self(text)
    }

    /// Its 32 hex digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("")
    }

    /// The same as bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Hands out request ids.
#[derive(Debug)]
pub struct RequestIds {
    process: u64,
    next: AtomicU64,
}

impl RequestIds {
    /// Of a process, or a part of one, with this random number.
    pub fn new(process: u64) -> Self {
        Self {
            process,
            next: AtomicU64::new(1),
        }
    }

    /// The next one.
    pub fn next(&self) -> RequestId {
        RequestId::new(self.process, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// A well-formed `traceparent` of the caller (W3C Trace Context, section 3.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceParent([u8; 55]);

impl TraceParent {
    /// Reads `00-<32 hex>-<16 hex>-<2 hex>`, ids not all zero; anything else is dropped.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text: [u8; 55] = value.try_into().ok()?;
        let hex = |range: std::ops::Range<usize>| {
            text[range]
                .iter()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let not_zero = |range: std::ops::Range<usize>| text[range].iter().any(|byte| *byte != b'0');
        let dashes = [2, 35, 52].iter().all(|at| text[*at] == b'-');
        let well_formed = text.starts_with(b"00")
            && dashes
            && hex(3..35)
            && hex(36..52)
            && hex(53..55)
            && not_zero(3..35)
            && not_zero(36..52);
        well_formed.then_some(Self(text))
    }

    /// What a program is told that this span calls.
    pub(super) fn of(span: &SpanContext) -> Self {
        Self(span.traceparent())
    }

    /// The whole value.
    pub fn as_bytes(&self) -> &[u8; 55] {
        &self.0
    }

    /// The trace's id, 32 hex digits.
    pub fn trace_id(&self) -> &str {
        std::str::from_utf8(&self.0[3..35]).unwrap_or("")
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.trace_id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_traceparent_is_believed() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parsed = TraceParent::parse(good.as_bytes());
        assert_eq!(
            parsed.map(|trace| trace.trace_id().to_owned()),
            Some(good[3..35].to_owned())
        );
        for bad in [
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "",
        ] {
            assert_eq!(TraceParent::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn request_ids_differ() {
        let ids = RequestIds::new(0xabc);
        assert_eq!(ids.next().as_str(), "0000000000000abc0000000000000001");
        assert_eq!(ids.next().as_str(), "0000000000000abc0000000000000002");
    }
}
