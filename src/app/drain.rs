//! A gate's life: starting, serving, draining, ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::admin::Phase;
use crate::gate::Calls;

/// What remains for recording abandoned calls and closing connections.
const LAST_MOMENT: Duration = Duration::from_secs(5);

/// How long a drain takes at most.
pub(super) struct DrainTimes {
    /// While the gate is unready and still takes calls.
    pub(super) delay: Duration,
    /// For what runs then.
    pub(super) within: Duration,
    /// Between the last new connection and the first call that is refused.
    pub(super) let_in: Duration,
}

/// The signals between a gate's threads.
pub(super) struct Life {
    serving: AtomicBool,
    draining: CancellationToken,
    closing: CancellationToken,
    hurry: CancellationToken,
    abort: CancellationToken,
    ended: CancellationToken,
}

impl Life {
    pub(super) fn new() -> Self {
        let token = CancellationToken::new;
        Self {
            serving: AtomicBool::new(false),
            draining: token(),
            closing: token(),
            hurry: token(),
            abort: token(),
            ended: token(),
        }
    }

    pub(super) fn serving(&self) {
        self.serving.store(true, Ordering::Release);
    }

    pub(super) fn start_drain(&self) {
        self.draining.cancel();
    }

    pub(super) fn hurry(&self) {
        self.draining.cancel();
        self.hurry.cancel();
    }

    /// Cancelled when the drain begins.
    pub(super) fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Cancelled when the listener is to be closed.
    pub(super) fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// Cancelled when connections are to be dropped.
    pub(super) fn abort(&self) -> CancellationToken {
        self.abort.clone()
    }

    /// Cancelled when the last call has ended.
    pub(super) fn no_more_spans(&self) -> CancellationToken {
        self.ended.clone()
    }

    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(super) fn phase(&self) -> Phase {
        if self.draining.is_cancelled() {
            Phase::Draining
        } else if self.serving.load(Ordering::Acquire) {
            Phase::Serving
        } else {
            Phase::Starting
        }
    }

    /// Waits for the drain to be wanted, and carries it out. `times` is asked when it begins;
    /// `connections` tells how many are open.
    pub(super) async fn drain(
        self: Arc<Self>,
        calls: &Calls,
        times: impl Fn() -> DrainTimes,
        connections: impl Fn() -> usize,
    ) {
        self.draining.cancelled().await;
        let started = tokio::time::Instant::now();
        let DrainTimes {
            delay,
            within,
            let_in,
        } = times();
        tracing::info!("draining: unready");
        self.unless_hurried(tokio::time::sleep(delay)).await;

        tracing::info!(
            tikigate.running = calls.running(),
            tikigate.connections = connections(),
            "draining: no new connections, finishing what runs"
        );
        self.closing.cancel();
        self.unless_hurried(tokio::time::sleep(let_in)).await;
        calls.refuse_new();
        let finished = async {
            let deadline = started + delay + within;
            tokio::time::timeout_at(deadline, all_done(calls, &connections))
                .await
                .is_ok()
        };
        if self.unless_hurried(finished).await != Some(true) {
            tracing::warn!(
                tikigate.running = calls.running(),
                tikigate.connections = connections(),
                "draining: out of time, what runs is given up and recorded as unknown where it may have been sent"
            );
            calls.abandon();
            let _ = tokio::time::timeout(LAST_MOMENT, all_done(calls, &connections)).await;
        }
        self.abort.cancel();
        tracing::info!(
            tikigate.seconds = started.elapsed().as_secs_f64(),
            "drained"
        );
        self.ended.cancel();
    }

    async fn unless_hurried<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.hurry.cancelled() => None,
        }
    }
}

/// Connections end first: only they start new calls.
async fn all_done(calls: &Calls, connections: &impl Fn() -> usize) {
    const LOOK_AGAIN: Duration = Duration::from_millis(5);
    while connections() > 0 {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    calls.settled().await;
}
