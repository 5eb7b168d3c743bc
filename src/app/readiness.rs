//! What `/readyz` says of the ledger: its trouble, and its quarantine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::admin::{Phase, Readiness};
use crate::ledger::{Ledger, Trouble};

/// Between two looks at the quarantine. After it was lifted, probes still tell of it this long.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why the ledger is in quarantine, as it was seen last: a probe must neither wait for the store nor
/// be a way to keep it busy.
#[derive(Default)]
pub(super) struct QuarantineSeen {
    cause: Mutex<Option<String>>,
}

impl QuarantineSeen {
    /// Looks again and again. Where the ledger doesn't say, what was seen last holds.
    pub(super) async fn keep_looking(self: Arc<Self>, ledger: Arc<dyn Ledger>) {
        loop {
            if let Ok(cause) = ledger.quarantine().await {
                *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = cause;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(super) fn cause(&self) -> Option<String> {
        let cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        cause.clone()
    }
}

/// Whether calls should come here, from where the gate is in its life and what is in trouble.
pub(super) fn readiness(
    phase: Phase,
    mut degraded: Vec<String>,
    trouble: Option<Trouble>,
    quarantine: Option<String>,
) -> Readiness {
    let mut unready = None;
    match trouble {
        Some(Trouble { text, own: true }) => unready = Some(format!("ledger: {text}")),
        Some(Trouble { text, own: false }) => degraded.push(format!("ledger: {text}")),
        None => {}
    }
    if let Some(cause) = quarantine {
        degraded.push(format!(
            "the ledger is in quarantine ({cause}): on routes that hold, keys that it does not \
             know are held; `tikigate ledger lift-quarantine --reason TEXT` ends that"
        ));
    }
    Readiness {
        phase,
        unready,
        degraded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::ledger::{MemoryLedger, MemoryLimits};

    fn trouble(own: bool) -> Option<Trouble> {
        let text = "the disk is full".to_owned();
        Some(Trouble { text, own })
    }

    #[test]
    fn only_trouble_of_the_gates_own_store_makes_it_unready() {
        let fine = readiness(Phase::Serving, Vec::new(), None, None);
        assert!(fine.is_ready() && fine.degraded.is_empty());

        let own = readiness(Phase::Serving, Vec::new(), trouble(true), None);
        assert!(!own.is_ready());
        assert_eq!(own.unready.as_deref(), Some("ledger: the disk is full"));

        let shared = readiness(Phase::Serving, Vec::new(), trouble(false), None);
        assert!(shared.is_ready());
        assert_eq!(shared.degraded, ["ledger: the disk is full"]);

        let draining = readiness(Phase::Draining, Vec::new(), None, None);
        assert!(!draining.is_ready());
    }

    #[test]
    fn a_quarantine_is_told_with_its_cause_and_its_way_out() {
        let restored = Some("restored from a backup".to_owned());
        let told = readiness(Phase::Serving, vec!["x".to_owned()], None, restored);
        assert!(told.is_ready());
        assert_eq!(told.degraded.len(), 2);
        for words in ["restored from a backup", "tikigate ledger lift-quarantine"] {
            assert!(told.degraded[1].contains(words), "{told:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quarantine_that_comes_and_goes_is_noticed() {
        let limits = MemoryLimits {
            max_records: 10,
            max_bytes: 1 << 20,
        };
        let ledger: Arc<dyn Ledger> = Arc::new(MemoryLedger::new(Clock::system(), limits));
        let seen = Arc::new(QuarantineSeen::default());
        let looking = tokio::spawn(Arc::clone(&seen).keep_looking(Arc::clone(&ledger)));
        let after_a_look = || tokio::time::sleep(LOOK_EVERY * 2);
        after_a_look().await;
        assert_eq!(seen.cause(), None);
        ledger.enter_quarantine("lost".to_owned()).await.unwrap();
        after_a_look().await;
        assert_eq!(seen.cause().as_deref(), Some("lost"));
        let lifted = ledger.lift_quarantine("linh".to_owned(), "looked".to_owned());
        lifted.await.unwrap();
        after_a_look().await;
        assert_eq!(seen.cause(), None);
        looking.abort();
    }
}
