//! The control thread: what the gate does beside calls.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminSettings, Readiness, SendNow, SendNowError, SendingNow};
use crate::clock::Clock;
use crate::gate::{Calls, Current, NotSentNow, SentNow, keep_checking, keep_looking};
use crate::ledger::{Ledger, RecordId, State, Stats};
use crate::metrics::{LedgerFigures, Metrics, OutboxFigures, StateFigures};
use crate::outbound::outbox::{self, Outbox};
use crate::server;

use super::drain::{DrainTimes, Life};
use super::outbound::Handle;
use super::readiness::{QuarantineSeen, readiness};
use super::reload::Status;
use super::sweep::{PACE, keep_sweeping};

/// What the control thread works with.
pub(super) struct Control {
    /// For what is sent and asked without a caller; its connections are this thread's.
    pub(super) gate: Current,
    pub(super) life: Arc<Life>,
    pub(super) calls: Calls,
    /// Connections that were let in have so long before calls are refused in a drain.
    pub(super) let_in: Duration,
    pub(super) configuration: Arc<Status>,
    pub(super) clock: Clock,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) connections: Arc<server::Shared>,
    pub(super) outbound: Option<Handle>,
    pub(super) quarantine: Arc<QuarantineSeen>,
}

impl Control {
    /// Serves the admin listener and expires records until the drain is over.
    pub(super) async fn run(self, listener: server::Listener, admin_settings: AdminSettings) {
        let control = Arc::new(self);
        let (listener, _file) = match listener.register() {
            Ok((server::Socket::Tcp(socket), file)) => (admin::Listener::from(socket), file),
            Ok((server::Socket::Unix(socket), file)) => (admin::Listener::from(socket), file),
            Err(error) => {
                tracing::error!(%error, "the admin listener can't be used");
                control.life.hurry();
                return;
            }
        };
        let stop_admin = CancellationToken::new();
        let admin = tokio::spawn(admin::serve(
            listener,
            admin_settings,
            Arc::clone(&control.ledger),
            Arc::clone(&control) as Arc<dyn admin::Control>,
            stop_admin.clone(),
        ));
        let seen = Arc::clone(&control.quarantine);
        let looking = tokio::spawn(seen.keep_looking(Arc::clone(&control.ledger)));
        let sweeping = tokio::spawn(keep_sweeping(Arc::clone(&control.ledger), PACE));
        let life = Arc::clone(&control.life);
        let (status, clock) = (Arc::clone(&control.configuration), control.clock.clone());
        let reminding = async move {
            let warn = |key: &str, trouble: &str| tracing::warn!(certificate = key, "{trouble}");
            status.keep_reminding(clock, warn).await;
        };
        tokio::spawn(life.draining().run_until_cancelled_owned(reminding));
        let looking_around = keep_looking(control.gate.clone());
        tokio::spawn(life.draining().run_until_cancelled_owned(looking_around));
        let checking = keep_checking(control.gate.clone());
        tokio::spawn(life.draining().run_until_cancelled_owned(checking));
        let times = || {
            let common = Arc::clone(control.gate.get().common());
            let server = &common.settings().server;
            DrainTimes {
                delay: server.drain_delay,
                within: server.drain_within,
                let_in: control.let_in,
            }
        };
        let connections = || {
            let outbound = control.outbound.as_ref();
            control.connections.connections()
                + outbound.map_or(0, |outbound| {
                    let at_tiki = outbound.in_flight.load(Ordering::Relaxed);
                    outbound.connections.connections() + at_tiki
                })
        };
        life.drain(&control.calls, times, connections).await;
        sweeping.abort();
        looking.abort();
        stop_admin.cancel();
        let _ = admin.await;
    }
}

impl admin::Control for Control {
    fn readiness(&self) -> Readiness {
        let mut degraded = self.gate.get().common().degraded();
        degraded.extend(self.configuration.degraded(self.clock.now()));
        readiness(
            self.life.phase(),
            degraded,
            self.ledger.trouble(),
            self.quarantine.cause(),
        )
    }

    fn start_drain(&self, by: &str) {
        tracing::info!(tikigate.by = by, "a drain was asked for");
        self.life.start_drain();
    }

    fn outbox(&self) -> Option<&dyn Outbox> {
        self.outbound.as_ref()?.outbox.as_deref()
    }

    fn outbox_changed(&self) {
        if let Some(outbound) = &self.outbound {
            outbound.wake.notify_one();
        }
    }

    fn render_metrics(&self, ledger: Option<&Stats>, outbox: Option<outbox::Stats>) -> String {
        let gate = self.gate.get();
        let common = gate.common();
        self.metrics
            .set_signatures_remembered(common.remembered_signatures());
        self.metrics
            .set_limited_addresses(common.limited_addresses());
        let connections = &self.metrics.sources().connections;
        connections.store(self.connections.connections(), Ordering::Relaxed);
        let addresses = common.backends().iter();
        let figures = LedgerFigures {
            outbox: outbox.map(outbox_figures),
            quarantined: self.quarantine.cause().is_some(),
            addresses: addresses.flat_map(|backend| backend.figures()).collect(),
            ..figures(ledger)
        };
        self.metrics.render(&figures)
    }

    fn send_now(&self, id: RecordId) -> SendingNow {
        let gate = self.gate.get();
        Box::pin(async move {
            match gate.send_now(id).await {
                Ok(SentNow { status, state }) => Ok(SendNow {
                    status: status.as_u16(),
                    state,
                }),
                Err(NotSentNow::NoRequest) => Err(SendNowError::NoRequest),
                Err(NotSentNow::NotReleased(state)) => Err(SendNowError::NotReleased(state)),
                Err(other) => Err(SendNowError::Unavailable(other.to_string())),
            }
        })
    }
}

fn outbox_figures(stats: outbox::Stats) -> OutboxFigures {
    let outbox::Stats {
        pending,
        held,
        oldest,
        failed,
        untold,
        bytes,
    } = stats;
    OutboxFigures {
        pending,
        held,
        oldest,
        failed,
        untold,
        bytes,
    }
}

fn figures(stats: Option<&Stats>) -> LedgerFigures {
    let of = |stats: &Stats| {
        let numbers = stats.records.into_iter().zip(stats.oldest);
        let states = State::ALL.into_iter().zip(numbers);
        states
            .map(|(state, (records, oldest))| StateFigures {
                state: state.as_str(),
                records,
                oldest,
            })
            .collect()
    };
    LedgerFigures {
        outbox: None,
        quarantined: false,
        addresses: Vec::new(),
        states: stats.map(of).unwrap_or_default(),
    }
}
