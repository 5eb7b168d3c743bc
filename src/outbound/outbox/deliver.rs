//! Works the outbox off.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::notify::Teller;
use super::types::{Delivery, Flight, Outcome, Report, State, Step, StoreFault};
use super::{Outbox, Reply};
use crate::client::Sent;
use crate::config;
use crate::failpoint;
use crate::metrics::{OutboundCall, OutboundMetrics};
use crate::outbound::limit::Limit;
use crate::outbound::status::{self, Asked};
use crate::outbound::tiki::{Tiki, TikiCall};
use crate::tiki::read_ipn_reply;

/// The path of the call, below the base URL.
pub(in crate::outbound) const IPN_PATH: &str = "/payment/ipn";

/// Between two looks when nothing is known to be due; other gates may have left something.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// At least between two looks: what another gate works on right now is due all the time.
const LOOK_AT_MOST: Duration = Duration::from_millis(20);
/// Seconds that a delivery may wait for its turn: under [`MAY_BEGIN`](super::rules::MAY_BEGIN).
const TURNS_WITHIN: usize = 30;
/// Between two tries of a store that fails.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// Between two looks for deliveries that were over for long enough, and how many are forgotten at once.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const SWEPT: usize = 500;

/// Delivers what is in the outbox, on the runtime that polls it.
pub struct Courier {
    tiki: Arc<Tiki>,
    outbox: Arc<dyn Outbox>,
    limit: Limit,
    max_deliveries: usize,
    teller: Option<Teller>,
    metrics: Arc<OutboundMetrics>,
    wake: Arc<Notify>,
    draining: CancellationToken,
    abort: CancellationToken,
    in_flight: Arc<AtomicUsize>,
}

impl Courier {
    /// A courier for this outbox. It looks again when `wake` is notified, begins nothing once `draining`
    /// is cancelled, and gives up what it began when `abort` is.
    pub fn new(
        tiki: Arc<Tiki>,
        outbox: Arc<dyn Outbox>,
        settings: &config::Outbox,
        metrics: Arc<OutboundMetrics>,
        wake: Arc<Notify>,
        in_flight: Arc<AtomicUsize>,
        [draining, abort]: [CancellationToken; 2],
    ) -> Arc<Self> {
        Arc::new(Self {
            tiki,
            limit: Limit::new(settings.rate),
            // What waits for its turn at the rate must get it while it may still begin.
            max_deliveries: settings
                .max_deliveries
                .min((settings.rate.per_second as usize).saturating_mul(TURNS_WITHIN)),
            teller: settings.notify.as_ref().map(Teller::new),
            outbox,
            metrics,
            wake,
            draining,
            abort,
            in_flight,
        })
    }

    /// Delivers until the drain, and then finishes what it began.
    pub async fn run(self: Arc<Self>) {
        let draining = self.draining.clone();
        let mut flying = JoinSet::new();
        let beside = tokio::spawn(draining.clone().run_until_cancelled_owned({
            let courier = Arc::clone(&self);
            async move { tokio::join!(courier.keep_telling(), courier.keep_sweeping()) }
        }));
        while !draining.is_cancelled() {
            let pause = self.look(&mut flying).await;
            tokio::select! {
                () = draining.cancelled() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
                Some(_) = flying.join_next() => {}
            }
            while flying.try_join_next().is_some() {}
        }
        tokio::select! {
            () = async { while flying.join_next().await.is_some() {} } => {}
            () = self.abort.cancelled() => {}
        }
        let _ = beside.await;
    }

    /// Begins what is due, as far as there is room for it. Says when to look again.
    async fn look(self: &Arc<Self>, flying: &mut JoinSet<()>) -> Duration {
        let room = self.max_deliveries.saturating_sub(flying.len());
        if room == 0 {
            return LOOK_EVERY;
        }
        let taken = match self.outbox.take(room).await {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(%error, "the outbox can't be read now: nothing is delivered");
                return STORE_PAUSE;
            }
        };
        // Due, and not to be had: another gate has it in hand, or it can't be read.
        let in_vain = taken.flights.is_empty() && taken.next_in == Some(Duration::ZERO);
        for flight in taken.flights {
            failpoint::reach("outbox_taken");
            flying.spawn(Arc::clone(self).fly(flight));
        }
        let next_in = taken.next_in.unwrap_or(LOOK_EVERY);
        match in_vain {
            true => STORE_PAUSE,
            false => next_in.clamp(LOOK_AT_MOST, LOOK_EVERY),
        }
    }

    /// One try, to its record.
    async fn fly(self: Arc<Self>, flight: Flight) {
        let _flying = Flying::begin(&self.in_flight);
        let waited = self.draining.run_until_cancelled(self.limit.wait()).await;
        let report = match waited {
            Some(()) => self.attempt(&flight).await,
            None => None,
        };
        let Some(report) = report else {
            let flights = vec![flight];
            self.surely(|| self.outbox.give_back(flights.clone())).await;
            return;
        };
        failpoint::reach("outbox_answered");
        self.metrics.attempt(report.as_str());
        let recorded = self.surely(|| self.outbox.record(flight.clone(), report.clone()));
        if let Some(delivery) = recorded.await {
            failpoint::reach("outbox_recorded");
            if let Some(outcome) = delivery.outcome {
                self.metrics.ended(outcome.as_str());
            }
            log(&delivery, &report);
        }
    }

    /// What became of the try; none where it could not be begun in its time.
    async fn attempt(&self, flight: &Flight) -> Option<Report> {
        let delivery = &flight.delivery;
        let accounts = self.tiki.accounts();
        let account = accounts.pinned(&delivery.client, &delivery.base_url);
        let (Some(account), Some(expected)) = (account, delivery.expected()) else {
            // Never so by what the listener lets in; put off like any other trouble, so that it stands
            // in nobody's way and ends in its time.
            let why = "it can't be sent as it is stored, or its account is gone";
            return Some(Report::NotSent(why.to_owned()));
        };
        let in_time = || Instant::now() < flight.valid_until;
        let deadline = self.tiki.deadline();
        let began = Instant::now();
        let (call, report) = match delivery.step {
            Step::Send => {
                let call = TikiCall::post(IPN_PATH, delivery.body.clone());
                let answered = self.tiki.call(account, &call, deadline, in_time).await;
                let report = match answered {
                    Ok(answer) => {
                        Report::Answered(read_ipn_reply(answer.status.as_u16(), &answer.body))
                    }
                    Err(fault) if fault.is_too_late() => return None,
                    Err(fault) if fault.sent == Sent::Nothing => Report::NotSent(fault.to_string()),
                    Err(fault) => Report::NoAnswer(fault.to_string()),
                };
                (OutboundCall::Ipn, report)
            }
            Step::Ask => {
                let asked = status::ask(&self.tiki, account, &expected, deadline, in_time).await;
                (OutboundCall::Transaction, Report::Asked(asked))
            }
        };
        self.metrics.call(call, began.elapsed());
        Some(report)
    }

    /// Has the store do it, however often that takes; none if the gate ends first.
    async fn surely<T>(&self, act: impl Fn() -> Reply<Result<T, StoreFault>>) -> Option<T>
    where
        T: Unpin,
    {
        loop {
            let acting = async {
                match act().await {
                    Ok(done) => Some(done),
                    Err(error) => {
                        tracing::warn!(%error, "the outbox can't be written now; trying again");
                        tokio::time::sleep(STORE_PAUSE).await;
                        None
                    }
                }
            };
            tokio::select! {
                done = acting => {
                    if done.is_some() {
                        return done;
                    }
                }
                () = self.abort.cancelled() => return None,
            }
        }
    }

    async fn keep_telling(&self) {
        let Some(teller) = &self.teller else { return };
        loop {
            let due = match self.outbox.to_tell(self.max_deliveries).await {
                Ok(due) => due,
                Err(error) => {
                    tracing::warn!(%error, "which failed deliveries to tell the backend of can't be read now");
                    Vec::new()
                }
            };
            for delivery in due {
                let heard = teller.tell(&delivery).await;
                self.surely(|| self.outbox.told(delivery.clone(), heard))
                    .await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn keep_sweeping(&self) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            while matches!(self.outbox.sweep(SWEPT).await, Ok(1..)) {
                tokio::time::sleep(STORE_PAUSE).await;
            }
        }
    }
}

/// Counts a try for as long as it lives.
struct Flying<'c>(&'c AtomicUsize);

impl<'c> Flying<'c> {
    fn begin(count: &'c AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn log(delivery: &Delivery, report: &Report) {
    let Delivery {
        id,
        client,
        tiki_transaction_id,
        transaction_id,
        tries,
        ..
    } = delivery;
    let result = report.as_str();
    match (delivery.state, delivery.outcome) {
        (State::Failed, Some(Outcome::Refused(code))) if delivery.means_refund() => {
            tracing::error!(
                tikigate.delivery = %id, tikigate.client = client, tikigate.result = result,
                tikigate.code = code.map_or_else(String::new, |code| code.to_string()),
                tiki_transaction_id, transaction_id, tikigate.tries = tries,
                "Tiki refused a payment notice for good: the customer is to be refunded"
            )
        }
        (State::Failed, Some(Outcome::Refused(code))) => tracing::error!(
            tikigate.delivery = %id, tikigate.client = client, tikigate.result = result,
            tikigate.code = code.map_or_else(String::new, |code| code.to_string()),
            tiki_transaction_id, transaction_id, tikigate.tries = tries,
            "Tiki refused a payment notice for good"
        ),
        (State::Failed, outcome) => tracing::error!(
            tikigate.delivery = %id, tikigate.client = client, tikigate.result = result,
            tikigate.outcome = outcome.map_or("", Outcome::as_str),
            tiki_transaction_id, transaction_id, tikigate.tries = tries,
            "a payment notice could not be delivered for certain: a person has to look \
             (tikigate outbox show)"
        ),
        (State::Pending, _) => tracing::warn!(
            tikigate.delivery = %id, tikigate.client = client, tikigate.result = result,
            tikigate.detail = delivery.events.last().and_then(|event| event.detail.as_deref()).unwrap_or(""),
            tikigate.tries = tries,
            "a payment notice is not delivered yet"
        ),
        (state, _) => tracing::info!(
            tikigate.delivery = %id, tikigate.client = client, tikigate.result = result,
            tikigate.state = state.as_str(), tikigate.tries = tries,
            "a payment notice is settled"
        ),
    }
    // Worth a line of its own: what Tiki said instead.
    if let Report::Asked(Asked::Other(seen)) = report {
        tracing::warn!(
            tikigate.delivery = %id, tikigate.amount = delivery.amount,
            tikigate.status = delivery.status, tikigate.tikis_amount = %seen.amount,
            tikigate.tikis_status = seen.status.as_str(), "Tiki has the transaction otherwise"
        );
    }
}
