//! Which trace a span belongs to, and whether it is sampled (W3C Trace Context).

use std::sync::atomic::{AtomicU64, Ordering};

/// The last byte of a `traceparent`: the caller, or we, sampled it.
const SAMPLED: u8 = 1;

/// The trace's id was drawn at random (Trace Context, level 2).
const RANDOM: u8 = 2;

/// A sampled span's place in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// The trace, not 0.
    pub trace: u128,
    /// The span, not 0.
    pub span: u64,
    /// The span that it is a part of; 0: none.
    pub parent: u64,
    /// The parent is another program's.
    pub parent_is_remote: bool,
    /// The flags that go on: sampled, and whether the trace's id is random.
    pub flags: u8,
}

impl SpanContext {
    /// As the next program is told of it.
    pub fn traceparent(&self) -> [u8; 55] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
        put_hex(&mut text[3..35], self.trace);
        put_hex(&mut text[36..52], self.span.into());
        put_hex(&mut text[53..55], self.flags.into());
        text
    }
}

fn put_hex(digits: &mut [u8], mut number: u128) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

/// Reads digits that were found to be well-formed.
fn hex(digits: &[u8]) -> u128 {
    let value = |digit: &u8| match digit {
        b'0'..=b'9' => digit - b'0',
        _ => digit.wrapping_sub(b'a').wrapping_add(10) & 15,
    };
    digits
        .iter()
        .fold(0, |number, digit| number << 4 | u128::from(value(digit)))
}

/// Draws ids and decisions.
#[derive(Debug)]
pub struct TraceIds {
    /// Calls without a decision are sampled when the upper half of their trace's id is below this.
    threshold: u64,
    all: bool,
    next: AtomicU64,
}

impl TraceIds {
    pub(super) fn new(sample_percent: u8, random: u64) -> Self {
        let percent = u64::from(sample_percent.min(100));
        Self {
            threshold: u64::MAX / 100 * percent,
            all: percent == 100,
            next: AtomicU64::new(random),
        }
    }

    pub(super) fn begin(&self, parent: Option<&[u8; 55]>) -> Option<SpanContext> {
        if let Some(parent) = parent {
            let flags = hex(&parent[53..55]) as u8;
            return (flags & SAMPLED != 0).then(|| SpanContext {
                trace: hex(&parent[3..35]),
                span: self.draw(),
                parent: hex(&parent[36..52]) as u64,
                parent_is_remote: true,
                flags: flags & (SAMPLED | RANDOM),
            });
        }
        let decision = self.draw();
        if !self.all && decision >= self.threshold {
            return None;
        }
        Some(SpanContext {
            trace: u128::from(decision) << 64 | u128::from(self.draw()),
            span: self.draw(),
            parent: 0,
            parent_is_remote: false,
            flags: SAMPLED | RANDOM,
        })
    }

    pub(super) fn child(&self, of: &SpanContext) -> SpanContext {
        SpanContext {
            trace: of.trace,
            span: self.draw(),
            parent: of.span,
            parent_is_remote: false,
            flags: of.flags,
        }
    }

    /// A number that is not 0, by SplitMix64 from a start that differs between processes: ids must
    /// differ, and need not be secret.
    fn draw(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        loop {
            let state = self
                .next
                .fetch_add(STEP, Ordering::Relaxed)
                .wrapping_add(STEP);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let drawn = mixed ^ (mixed >> 31);
            if drawn != 0 {
                return drawn;
            }
        }
    }
}
