//! The calls that are running now, so that duplicates join them instead of starting another.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use foldhash::quality::RandomState;
use tokio::sync::watch;

use crate::ledger::{Fingerprint, Key};

use super::answer::Answer;
use super::refusal::{LedgerFault, Refusal};
use super::signatures::SignatureKey;

/// Duplicates that may wait for one call.
const JOINERS: usize = 256;
const SHARDS: usize = 64;

/// What makes two calls one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum RunKey {
    /// The message's key.
    Message(Key),
    /// On a route without keys: the very same signed call.
    Signature(SignatureKey),
}

/// What a running call came to.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    /// For everybody who waits.
    Shared(Result<Answer, Refusal>),
    /// For its first caller alone; others have to ask for themselves.
    Own(Refusal),
}

/// What an attempt came to that came to nothing.
pub(super) const LOST: Verdict = Verdict::Own(Refusal::LedgerUnavailable(LedgerFault::Failed));

/// How far an attempt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for the ledger.
    Claiming,
    /// An attempt of another process is running: it waits for that one's end.
    Elsewhere,
    /// It waits for the backend's cap, or for a connection.
    Waiting,
    /// A byte may have gone out.
    Sending,
}

/// A call that is running.
#[derive(Debug)]
pub(super) struct Running {
    fingerprint: Option<Fingerprint>,
    joiners: AtomicUsize,
    stage: AtomicU8,
    /// Made when the first one joins, under the shard's lock: hardly any call is joined.
    verdict: OnceLock<watch::Sender<Option<Verdict>>>,
}

impl Running {
    /// Notes that the attempt has come this far.
    pub(super) fn reach(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// Whether it has come this far.
    pub(super) fn has_reached(&self, stage: Stage) -> bool {
        self.stage.load(Ordering::Acquire) >= stage as u8
    }

    /// Waits for what it comes to.
    pub(super) async fn verdict(&self) -> Verdict {
        let verdict = self.verdict.get_or_init(watch::Sender::default);
        let mut verdict = verdict.subscribe();
        let arrived = verdict.wait_for(Option::is_some).await;
        // The sender lives in `self`, so it can't be gone.
        let verdict = arrived.ok().and_then(|verdict| verdict.clone());
        verdict.unwrap_or(Verdict::Own(Refusal::LedgerUnavailable(
            LedgerFault::Failed,
        )))
    }
}

/// How a call may go on.
pub(super) enum Entry {
    /// It is the first: run it.
    Lead(Lead),
    /// The same is running: wait for it.
    Join(Joined),
    /// The key is running with other money fields, and its claim was granted.
    Conflict,
    /// The key is running with other money fields, and the ledger has not said yet whose it is.
    Await(Joined),
    /// Too many wait for it already.
    Crowded,
}

type Shard = HashMap<RunKey, Arc<Running>, RandomState>;

/// All running calls of this process.
pub(super) struct RunningCalls {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
}

impl Default for RunningCalls {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
        }
    }
}

impl RunningCalls {
    /// Starts or joins a call.
    pub(super) fn enter(self: &Arc<Self>, key: RunKey, fingerprint: Option<Fingerprint>) -> Entry {
        let mut shard = self.shard(&key);
        if let Some(running) = shard.get(&key) {
            let same = running.fingerprint == fingerprint;
            // Only a granted claim proves that the key belongs to those money fields.
            if !same && running.has_reached(Stage::Waiting) {
                return Entry::Conflict;
            }
            if running.joiners.fetch_add(1, Ordering::Relaxed) >= JOINERS {
                running.joiners.fetch_sub(1, Ordering::Relaxed);
                return Entry::Crowded;
            }
            running.verdict.get_or_init(watch::Sender::default);
            let joined = Joined(Arc::clone(running));
            return if same {
                Entry::Join(joined)
            } else {
                Entry::Await(joined)
            };
        }
        let running = Arc::new(Running {
            fingerprint,
            joiners: AtomicUsize::new(0),
            stage: AtomicU8::new(Stage::Claiming as u8),
            verdict: OnceLock::new(),
        });
        shard.insert(key.clone(), Arc::clone(&running));
        drop(shard);
        let calls = Arc::clone(self);
        Entry::Lead(Lead {
            calls,
            key,
            running,
            finished: false,
        })
    }

    fn shard(&self, key: &RunKey) -> MutexGuard<'_, Shard> {
        lock(&self.shards[self.hasher.hash_one(key) as usize % SHARDS])
    }
}

/// A panic while the lock was held leaves a map whose entries are each whole: go on with it.
fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A duplicate's place among those who wait.
pub(super) struct Joined(Arc<Running>);

impl Joined {
    /// The call it waits for.
    pub(super) fn running(&self) -> &Running {
        &self.0
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.0.joiners.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to run a call, and the duty to say what it came to.
pub(super) struct Lead {
    calls: Arc<RunningCalls>,
    key: RunKey,
    running: Arc<Running>,
    finished: bool,
}

impl Lead {
    /// The call as others see it.
    pub(super) fn running(&self) -> &Arc<Running> {
        &self.running
    }

    /// Ends the call and tells everybody who waits. The ledger must know of it by now: the next
    /// duplicate asks there.
    pub(super) fn finish(mut self, verdict: &Verdict) {
        self.finished = true;
        self.end(verdict);
    }

    fn end(&self, verdict: &Verdict) {
        self.calls.shard(&self.key).remove(&self.key);
        // Joining takes the shard's lock: from here on nobody can.
        if let Some(waiting) = self.running.verdict.get() {
            waiting.send_replace(Some(verdict.clone()));
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody said what it came to: the call's future is gone.
            self.end(&LOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiki::Mac;

    fn key(byte: u8) -> RunKey {
        let hex = format!("{byte:02x}").repeat(32);
        RunKey::Signature(SignatureKey::from(&Mac::parse(hex.as_bytes()).unwrap()))
    }

    fn print(byte: u8) -> Option<Fingerprint> {
        Some(Fingerprint([byte; 32]))
    }

    fn lead(entry: Entry) -> Lead {
        let Entry::Lead(lead) = entry else {
            panic!("the first one leads")
        };
        lead
    }

    #[tokio::test]
    async fn duplicates_get_the_first_ones_answer() {
        let calls = Arc::new(RunningCalls::default());
        let lead = lead(calls.enter(key(1), print(1)));
        let Entry::Join(joined) = calls.enter(key(1), print(1)) else {
            panic!("it runs")
        };
        assert!(matches!(calls.enter(key(1), print(2)), Entry::Await(_)));
        lead.running().reach(Stage::Waiting);
        assert!(matches!(calls.enter(key(1), print(2)), Entry::Conflict));
        lead.finish(&Verdict::Shared(Err(Refusal::UpstreamTimeout)));
        assert!(matches!(
            joined.running().verdict().await,
            Verdict::Shared(Err(Refusal::UpstreamTimeout))
        ));
        assert!(matches!(calls.enter(key(1), print(2)), Entry::Lead(_)));
    }

    #[tokio::test]
    async fn a_lost_lead_wakes_those_who_wait() {
        let calls = Arc::new(RunningCalls::default());
        let lead = lead(calls.enter(key(1), None));
        let Entry::Join(joined) = calls.enter(key(1), None) else {
            panic!("it runs")
        };
        drop(lead);
        assert!(matches!(joined.running().verdict().await, Verdict::Own(_)));
        assert!(matches!(calls.enter(key(1), None), Entry::Lead(_)));
    }

    #[test]
    fn those_who_wait_are_bounded() {
        let calls = Arc::new(RunningCalls::default());
        let _lead = lead(calls.enter(key(1), None));
        let mut joined: Vec<_> = (0..JOINERS).map(|_| calls.enter(key(1), None)).collect();
        assert!(joined.iter().all(|entry| matches!(entry, Entry::Join(_))));
        assert!(matches!(calls.enter(key(1), None), Entry::Crowded));
        joined.pop();
        assert!(matches!(calls.enter(key(1), None), Entry::Join(_)));
    }
}
