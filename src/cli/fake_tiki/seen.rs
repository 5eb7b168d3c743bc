//! What was seen: the last calls one by one, and all of them counted.

use std::collections::{BTreeMap, HashSet, VecDeque};

use serde::Serialize;

use super::books::Taken;
use super::orders::{Action, Call};
use super::signature::Verified;

/// One call. It is listed as soon as it is understood, and completed when it is answered.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// Its number, from 1.
    pub number: u64,
    /// When it came, in milliseconds since the epoch.
    pub at_ms: u64,
    /// What it was.
    pub call: Call,
    /// The method.
    pub method: String,
    /// The target as it was on the wire.
    pub target: String,
    /// The header fields in their order.
    pub headers: Vec<(String, String)>,
    /// The body, its first 64 KiB.
    pub body: String,
    /// `ok`, `unchecked`, or a sentence that says what was wrong.
    pub signature: String,
    /// The client, if the signature was right.
    pub client: Option<String>,
    /// The transaction that it was about.
    pub transaction: Option<String>,
    /// The same message with the same signature came before.
    pub repeated_signature: bool,
    /// It said PENDING after a final status.
    pub order_violation: bool,
    /// It said another final status than the one before.
    pub final_changed: bool,
    /// Whether the books took it.
    pub applied: bool,
    /// The order that it used.
    pub order: Option<Action>,
    /// The HTTP status that was answered, or was begun to be. None while there is no answer.
    pub status: Option<u16>,
    /// Tiki's code that was answered.
    pub code: Option<u32>,
    /// The call that was made before the answer.
    pub called_first: Option<CalledFirst>,
}

/// A call of our own, made while a partner waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CalledFirst {
    /// What was answered.
    pub status: Option<u16>,
    /// Why there was no answer.
    pub error: Option<String>,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

/// Totals since the start, or since they were cleared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Connections that were taken.
    pub connections: u64,
    /// All calls.
    pub calls: u64,
    /// IPNs among them.
    pub ipn: u64,
    /// Questions for a status.
    pub status: u64,
    /// Questions for a webview's URL.
    pub webview: u64,
    /// Others below the base path.
    pub other: u64,
    /// Calls that were not below the base path.
    pub outside: u64,
    /// Requests that were no HTTP, or had no length or too large a one.
    pub malformed: u64,
    /// Calls whose signature was wrong.
    pub refused_signatures: u64,
    /// Calls whose signature was right and had come before.
    pub repeated_signatures: u64,
    /// PENDING after a final status.
    pub order_violations: u64,
    /// Another final status than before.
    pub finals_changed: u64,
    /// Orders that were used.
    pub orders_used: u64,
    /// How often each transaction was taken.
    pub taken: BTreeMap<String, Taken>,
}

/// The last calls.
#[derive(Debug)]
pub(super) struct Log {
    kept: VecDeque<Seen>,
    limit: usize,
    total: u64,
    pub(super) counts: Counts,
}

impl Log {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            limit: limit.max(1),
            total: 0,
            counts: Counts::default(),
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Lists a call, counts it, and gives it its number.
    pub(super) fn add(&mut self, mut seen: Seen) -> u64 {
        self.total += 1;
        seen.number = self.total;
        let counts = &mut self.counts;
        counts.calls += 1;
        match seen.call {
            Call::Ipn => counts.ipn += 1,
            Call::Status => counts.status += 1,
            Call::Webview => counts.webview += 1,
            Call::Other => counts.other += 1,
            Call::Outside => counts.outside += 1,
        }
        counts.repeated_signatures += u64::from(seen.repeated_signature);
        counts.orders_used += u64::from(seen.order.is_some());
        if self.kept.len() == self.limit {
            self.kept.pop_front();
        }
        self.kept.push_back(seen);
        self.total
    }

    /// Changes a call's entry; nothing if it is no longer kept.
    pub(super) fn update(&mut self, number: u64, change: impl FnOnce(&mut Seen)) {
        let from_end = usize::try_from(self.total.saturating_sub(number)).unwrap_or(usize::MAX);
        let place = self.kept.len().checked_sub(from_end.saturating_add(1));
        if let Some(seen) = place.and_then(|place| self.kept.get_mut(place)) {
            change(seen);
        }
    }

    /// The kept calls with a number above this one.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = &Seen> {
        let wanted = usize::try_from(self.total.saturating_sub(number)).unwrap_or(usize::MAX);
        self.kept
            .range(self.kept.len().saturating_sub(wanted)..self.kept.len())
    }
}

/// The signatures that came, for as long as they could come again: a signature out of its window is
/// refused anyway. The older half is forgotten every `span`.
#[derive(Debug)]
pub(super) struct Signatures {
    span_ms: u64,
    turned_at: u64,
    current: HashSet<Verified>,
    previous: HashSet<Verified>,
}

impl Signatures {
    pub(super) fn new(span_ms: u64) -> Self {
        Self {
            span_ms,
            turned_at: 0,
            current: HashSet::new(),
            previous: HashSet::new(),
        }
    }

    /// Remembers one; true if it was there.
    pub(super) fn repeats(&mut self, verified: &Verified, now: u64) -> bool {
        if now.saturating_sub(self.turned_at) > self.span_ms {
            self.previous = std::mem::take(&mut self.current);
            self.turned_at = now;
        }
        self.previous.contains(verified) || !self.current.insert(verified.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen {
            number: 0,
            at_ms: 0,
            call: Call::Other,
            method: "GET".into(),
            target: "/".into(),
            headers: Vec::new(),
            body: String::new(),
            signature: "ok".into(),
            client: None,
            transaction: None,
            repeated_signature: false,
            order_violation: false,
            final_changed: false,
            applied: false,
            order: None,
            status: None,
            code: None,
            called_first: None,
        }
    }

    #[test]
    fn the_last_calls_are_kept_and_all_are_counted() {
        let mut log = Log::new(3);
        for number in 1..=5 {
            assert_eq!(log.add(seen()), number);
        }
        log.update(1, |_| panic!("it is forgotten"));
        log.update(6, |seen| seen.applied = false);
        log.update(4, |seen| seen.applied = true);
        let listed = |after| -> Vec<_> {
            let kept = log.after(after);
            kept.map(|seen| (seen.number, seen.applied)).collect()
        };
        assert_eq!(listed(0), [(3, false), (4, true), (5, false)]);
        assert_eq!(listed(4), [(5, false)]);
        assert_eq!(listed(9), []);
        assert_eq!((log.counts.calls, log.counts.other), (5, 5));
    }

    #[test]
    fn signatures_are_remembered_for_a_whole_span() {
        let verified = |timestamp| Verified {
            client: "c".into(),
            timestamp,
            mac: [1; 32],
        };
        let mut signatures = Signatures::new(100);
        assert!(!signatures.repeats(&verified(1), 1000));
        assert!(signatures.repeats(&verified(1), 1001));
        assert!(!signatures.repeats(&verified(2), 1001));
        assert!(signatures.repeats(&verified(1), 1101));
        assert!(signatures.repeats(&verified(2), 1101));
        for now in [1202, 1303, 1404] {
            signatures.repeats(&verified(now), now);
        }
        assert!(signatures.previous.len() + signatures.current.len() <= 3);
        assert!(!signatures.repeats(&verified(1), 1405));
    }
}
