//! A ledger that fails on order, around the one in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tikigate::clock::Clock;
use tikigate::ledger::{
    Claim, ClaimOutcome, DefineError, Definition, Event, Fence, Filter, KeptRequest, Ledger,
    LedgerError, MemoryLedger, MemoryLimits, Owner, Page, PermitError, Record, RecordId, Reopening,
    Reply, Resolution, ResolveError, SendPermit, Settled, Settlement, Sighting, Stats,
};
use tokio::sync::watch;

use crate::support::backend::Hold;
use crate::support::in_time;

/// How one call of the ledger goes wrong.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    Fails,
    Full,
    /// Permits only: the claim is said to be another's.
    Fenced,
    /// Permits only: they are over when they come.
    Over,
    Panics,
    /// Answers truly, once released.
    Late(Hold),
    /// Never answers.
    Hangs,
    /// Claims only: another process is said to run it, until the hold is released.
    Elsewhere(Hold),
}

/// What is to go wrong with the next calls of one kind, and what happens after those.
#[derive(Default)]
struct Plan {
    next: VecDeque<Fault>,
    always: Option<Fault>,
}

impl Plan {
    fn take(&mut self) -> Option<Fault> {
        self.next.pop_front().or_else(|| self.always.clone())
    }
}

#[derive(Default)]
struct Plans {
    claim: Plan,
    permit: Plan,
    settle: Plan,
}

/// The ledger. Calls that no fault is planned for go through.
pub(super) struct FaultyLedger {
    inner: Arc<MemoryLedger>,
    plans: Mutex<Plans>,
    /// Calls of `settle` so far.
    settles: watch::Sender<usize>,
    /// Calls of `claim` so far.
    claims: watch::Sender<usize>,
    /// Released when the attempt elsewhere has ended.
    elsewhere: Mutex<Option<Hold>>,
}

fn failure() -> LedgerError {
    LedgerError::Failed("the disk is gone".to_owned())
}

impl FaultyLedger {
    pub(super) fn new(clock: Clock) -> Arc<Self> {
        let limits = MemoryLimits {
            max_records: 1000,
            max_bytes: 1 << 24,
        };
        Arc::new(Self {
            inner: Arc::new(MemoryLedger::new(clock, limits)),
            plans: Mutex::default(),
            settles: watch::Sender::new(0),
            claims: watch::Sender::new(0),
            elsewhere: Mutex::default(),
        })
    }

    pub(super) fn next_claim(&self, fault: Fault) {
        self.plans.lock().unwrap().claim.next.push_back(fault);
    }

    pub(super) fn next_permit(&self, fault: Fault) {
        self.plans.lock().unwrap().permit.next.push_back(fault);
    }

    pub(super) fn next_settle(&self, fault: Fault) {
        self.plans.lock().unwrap().settle.next.push_back(fault);
    }

    /// From now on every answer that is to be recorded meets this.
    pub(super) fn every_settle(&self, fault: Fault) {
        self.plans.lock().unwrap().settle.always = Some(fault);
    }

    /// Waits until so many answers were to be recorded, counting tries.
    pub(super) async fn wait_for_settles(&self, count: usize) {
        let mut settles = self.settles.subscribe();
        let reached = settles.wait_for(|settles| *settles >= count);
        in_time(&format!("{count} tries to record"), reached)
            .await
            .unwrap();
    }

    /// Claims so far.
    pub(super) fn claims(&self) -> usize {
        *self.claims.borrow()
    }

    /// Waits until so many claims were asked for.
    pub(super) async fn wait_for_claims(&self, count: usize) {
        let mut claims = self.claims.subscribe();
        let reached = claims.wait_for(|claims| *claims >= count);
        in_time(&format!("{count} claims"), reached).await.unwrap();
    }
}

impl Ledger for FaultyLedger {
    fn claim(&self, claim: Claim) -> Reply<Result<ClaimOutcome, LedgerError>> {
        self.claims.send_modify(|claims| *claims += 1);
        let fault = self.plans.lock().unwrap().claim.take();
        match fault {
            None => self.inner.claim(claim),
            Some(Fault::Full) => Reply::ready(Err(LedgerError::Full)),
            Some(Fault::Panics) => panic!("the ledger panics in a claim, as ordered"),
            Some(Fault::Hangs) => Reply::waiting(std::future::pending()),
            Some(Fault::Late(hold)) => {
                let inner = Arc::clone(&self.inner);
                Reply::waiting(async move {
                    hold.released().await;
                    inner.claim(claim).await
                })
            }
            Some(Fault::Elsewhere(hold)) => {
                *self.elsewhere.lock().unwrap() = Some(hold);
                Reply::ready(Ok(ClaimOutcome::Running(Fence {
                    record: RecordId(64),
                    owner: Owner(2),
                    attempt: 1,
                })))
            }
            Some(Fault::Fails | Fault::Fenced | Fault::Over) => Reply::ready(Err(failure())),
        }
    }

    fn permit(&self, fence: Fence) -> Reply<Result<SendPermit, PermitError>> {
        let fault = self.plans.lock().unwrap().permit.take();
        match fault {
            None => self.inner.permit(fence),
            Some(Fault::Fenced) => Reply::ready(Err(PermitError::Fenced)),
            Some(Fault::Over) => Reply::ready(Ok(SendPermit {
                valid_until: Instant::now(),
            })),
            Some(Fault::Full) => Reply::ready(Err(PermitError::Ledger(LedgerError::Full))),
            Some(Fault::Panics) => panic!("the ledger panics in a permit, as ordered"),
            Some(Fault::Hangs) => Reply::waiting(std::future::pending()),
            Some(Fault::Late(hold)) => {
                let inner = Arc::clone(&self.inner);
                Reply::waiting(async move {
                    hold.released().await;
                    inner.permit(fence).await
                })
            }
            Some(Fault::Fails | Fault::Elsewhere(_)) => {
                Reply::ready(Err(PermitError::Ledger(failure())))
            }
        }
    }

    fn settle(&self, fence: Fence, settlement: Settlement) -> Reply<Result<Settled, LedgerError>> {
        self.settles.send_modify(|settles| *settles += 1);
        let fault = self.plans.lock().unwrap().settle.take();
        match fault {
            None => self.inner.settle(fence, settlement),
            Some(Fault::Full) => Reply::ready(Err(LedgerError::Full)),
            Some(Fault::Panics) => panic!("the ledger panics in a settle, as ordered"),
            Some(Fault::Hangs) => Reply::waiting(std::future::pending()),
            Some(Fault::Late(hold)) => {
                let inner = Arc::clone(&self.inner);
                Reply::waiting(async move {
                    hold.released().await;
                    inner.settle(fence, settlement).await
                })
            }
            Some(Fault::Fails | Fault::Fenced | Fault::Over | Fault::Elsewhere(_)) => {
                Reply::ready(Err(failure()))
            }
        }
    }

    fn changed(&self, _: Fence) -> Reply<()> {
        let hold = self.elsewhere.lock().unwrap().clone();
        Reply::waiting(async move {
            match hold {
                Some(hold) => hold.released().await,
                None => std::future::pending().await,
            }
        })
    }

    fn define(
        &self,
        namespace: Arc<str>,
        definition: Definition,
    ) -> Reply<Result<(), DefineError>> {
        self.inner.define(namespace, definition)
    }

    fn resolve(&self, resolution: Resolution) -> Reply<Result<Record, ResolveError>> {
        self.inner.resolve(resolution)
    }

    fn lapse(&self, owner: Owner) -> Reply<Result<u64, LedgerError>> {
        self.inner.lapse(owner)
    }

    fn get(&self, id: RecordId) -> Reply<Result<Option<Record>, LedgerError>> {
        self.inner.get(id)
    }

    fn list(&self, filter: Filter) -> Reply<Result<Page, LedgerError>> {
        self.inner.list(filter)
    }

    fn request(&self, id: RecordId) -> Reply<Result<Option<KeptRequest>, LedgerError>> {
        self.inner.request(id)
    }

    fn reopen(&self, reopening: Reopening) -> Reply<Result<Record, ResolveError>> {
        self.inner.reopen(reopening)
    }

    fn sighted(&self, sighting: Sighting) -> Reply<Result<Record, ResolveError>> {
        self.inner.sighted(sighting)
    }

    fn events(&self, id: RecordId) -> Reply<Result<Vec<Event>, LedgerError>> {
        self.inner.events(id)
    }

    fn stats(&self) -> Reply<Result<Stats, LedgerError>> {
        self.inner.stats()
    }

    fn sweep(&self, limit: usize) -> Reply<Result<u64, LedgerError>> {
        self.inner.sweep(limit)
    }

    fn enter_quarantine(&self, cause: String) -> Reply<Result<(), LedgerError>> {
        self.inner.enter_quarantine(cause)
    }

    fn lift_quarantine(&self, by: String, reason: String) -> Reply<Result<(), LedgerError>> {
        self.inner.lift_quarantine(by, reason)
    }

    fn quarantine(&self) -> Reply<Result<Option<String>, LedgerError>> {
        self.inner.quarantine()
    }
}
