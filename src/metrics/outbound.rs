//! What the outbound direction counts. One row for the process: its calls are few beside inbound ones.

use std::time::Duration;

use super::cells::{self, Cells, Histogram};
use super::exposition::{Exposition, Kind};
use super::{CODES, FIRST_CODE, code_cell};

/// A kind of call to Tiki.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboundCall {
    /// `payment/ipn`
    Ipn,
    /// `transaction`
    Transaction,
    /// `webview`
    Webview,
    /// Anything else below the base URL.
    Other,
    /// `transaction`, for the sake of an inbound IPN.
    Confirm,
}

impl OutboundCall {
    const ALL: [Self; 5] = [
        Self::Ipn,
        Self::Transaction,
        Self::Webview,
        Self::Other,
        Self::Confirm,
    ];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipn => "ipn",
            Self::Transaction => "transaction",
            Self::Webview => "webview",
            Self::Other => "other",
            Self::Confirm => "confirm",
        }
    }
}

/// What came of asking Tiki about an inbound IPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// Tiki says the same.
    Confirmed,
    /// Tiki says something else.
    Unconfirmed,
    /// Nothing that counts, yet.
    NotYet,
}

impl Confirmation {
    const ALL: [Self; 3] = [Self::Confirmed, Self::Unconfirmed, Self::NotYet];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Unconfirmed => "unconfirmed",
            Self::NotYet => "not_yet",
        }
    }
}

/// The counters.
#[derive(Debug)]
pub struct OutboundMetrics {
    /// Words of what can come of a try from the outbox.
    results: &'static [&'static str],
    attempts: Cells,
    /// Words of how a delivery can end.
    outcomes: &'static [&'static str],
    ended: Cells,
    seconds: Vec<Histogram>,
    codes: Vec<Cells>,
    confirmations: Cells,
}

impl OutboundMetrics {
    /// With a counter for each of these words.
    pub fn new(results: &'static [&'static str], outcomes: &'static [&'static str]) -> Self {
        let calls = OutboundCall::ALL;
        Self {
            results,
            attempts: Cells::new(results.len()),
            outcomes,
            ended: Cells::new(outcomes.len()),
            seconds: calls.map(|_| Histogram::new(&cells::DURATION)).into(),
            codes: calls.map(|_| Cells::new(CODES + 1)).into(),
            confirmations: Cells::new(Confirmation::ALL.len()),
        }
    }

    /// Counts a call to Tiki: from connecting to the end of its answer, or to the fault.
    pub fn call(&self, call: OutboundCall, took: Duration) {
        self.seconds[call as usize].observe_duration(took);
    }

    /// Counts an answer to the backend.
    pub fn answered(&self, call: OutboundCall, status: u16) {
        self.codes[call as usize].add(code_cell(status));
    }

    /// Counts a try from the outbox by its word.
    pub fn attempt(&self, result: &str) {
        if let Some(slot) = self.results.iter().position(|word| *word == result) {
            self.attempts.add(slot);
        }
    }

    /// Counts a delivery that ended, by how.
    pub fn ended(&self, outcome: &str) {
        if let Some(slot) = self.outcomes.iter().position(|word| *word == outcome) {
            self.ended.add(slot);
        }
    }

    /// Counts a question for the sake of an inbound IPN.
    pub fn confirmation(&self, confirmation: Confirmation) {
        self.confirmations.add(confirmation as usize);
    }

    pub(super) fn write(&self, out: &mut Exposition, outbox: Option<&OutboxFigures>) {
        out.family(
            Kind::Counter,
            "tikigate_outbound_requests_total",
            "Calls of the backend to Tiki that were answered, by call and HTTP status.",
        );
        for call in OutboundCall::ALL {
            for cell in 0..=CODES {
                let count = self.codes[call as usize].read(cell);
                if count > 0 {
                    let code = match cell {
                        CODES => "other".to_owned(),
                        _ => (FIRST_CODE + cell).to_string(),
                    };
                    out.sample(&[("call", call.as_str()), ("code", &code)], count);
                }
            }
        }
        out.family(
            Kind::Histogram,
            "tikigate_outbound_seconds",
            "Calls to Tiki, from connecting to the end of the answer.",
        );
        for call in OutboundCall::ALL {
            let total = Histogram::total(
                &cells::DURATION,
                std::iter::once(&self.seconds[call as usize]),
            );
            if total.count() > 0 {
                out.histogram(&[("call", call.as_str())], &total);
            }
        }
        out.family(
            Kind::Counter,
            "tikigate_confirmations_total",
            "Questions to Tiki about its own IPNs before they were forwarded, by what it said.",
        );
        for confirmation in Confirmation::ALL {
            let count = self.confirmations.read(confirmation as usize);
            out.sample(&[("result", confirmation.as_str())], count);
        }
        out.family(
            Kind::Counter,
            "tikigate_outbox_attempts_total",
            "Tries of the outbox, by what came of them.",
        );
        for (slot, result) in self.results.iter().enumerate() {
            out.sample(&[("result", result)], self.attempts.read(slot));
        }
        out.family(
            Kind::Counter,
            "tikigate_outbox_ended_total",
            "Tries of the outbox that ended a delivery, by how it ended.",
        );
        for (slot, outcome) in self.outcomes.iter().enumerate() {
            out.sample(&[("outcome", outcome)], self.ended.read(slot));
        }
        let Some(outbox) = outbox else { return };
        let mut gauge = |name, help, value: f64| {
            out.family(Kind::Gauge, name, help);
            out.sample(&[], value);
        };
        gauge(
            "tikigate_outbox_pending",
            "Notices that Tiki doesn't have yet.",
            outbox.pending as f64,
        );
        gauge(
            "tikigate_outbox_held",
            "Pending notices whose account is not configured any more.",
            outbox.held as f64,
        );
        gauge(
            "tikigate_outbox_oldest_seconds",
            "How long the oldest pending notice has waited; 0 where there is none.",
            outbox.oldest.as_secs_f64(),
        );
        gauge(
            "tikigate_outbox_failed",
            "Notices that failed for good and are kept.",
            outbox.failed as f64,
        );
        gauge(
            "tikigate_outbox_untold",
            "Failed notices that the backend was not told of yet.",
            outbox.untold as f64,
        );
        gauge(
            "tikigate_outbox_bytes",
            "Bytes of the outbox, of which outbound.max_bytes are allowed.",
            outbox.bytes as f64,
        );
    }
}

/// What the outbox holds at the time of a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxFigures {
    /// To be delivered.
    pub pending: u64,
    /// Of those, held.
    pub held: u64,
    /// How long the oldest pending one has waited.
    pub oldest: Duration,
    /// Failed ones that are kept.
    pub failed: u64,
    /// Failed ones that the backend was not told of yet.
    pub untold: u64,
    /// Bytes in the store.
    pub bytes: u64,
}
