//! What a gate does beside its calls: it shows that it lives, hears what the others ended, ends the
//! claims of those that live no more, and releases what nobody holds.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tokio_postgres::types::Type;

use super::changing::{self, CHANNEL};
use super::columns::owner_column;
use super::rows::Columns;
use super::writing::Value;
use super::{Inner, lock};
use crate::ledger::{DefineError, Fence, RecordId};
use crate::store::postgres::{Connector, Fault, Session};

/// How long a sign of life may take before its connection is given up.
const SIGN_WITHIN: Duration = Duration::from_secs(6);
/// How long that connection is waited for: see the store's own.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(300);
/// Pauses between attempts to connect.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks for records of claims that nobody confirmed.
const LOOK_FOR_ABANDONED: Duration = Duration::from_secs(5);
/// Claims that nobody confirmed and whose records are not there: of more the oldest are not looked
/// for again, and stay until this process ends.
const MISSING: usize = 10_000;

/// How long this process's claims are its own, by its own clock.
pub(super) struct Lease {
    length: Duration,
    state: Mutex<LeaseState>,
    extended: Condvar,
}

#[derive(Default)]
struct LeaseState {
    good_until: Option<Instant>,
    /// Why it isn't extended.
    fault: Option<String>,
    held_once: bool,
}

impl Lease {
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            state: Mutex::default(),
            extended: Condvar::new(),
        }
    }

    /// Until then; none if it is over.
    pub(super) fn good_until(&self) -> Option<Instant> {
        let until = lock(&self.state).good_until?;
        (until > Instant::now()).then_some(until)
    }

    /// Why nothing may be claimed, if so.
    pub(super) fn trouble(&self) -> Option<String> {
        if self.good_until().is_some() {
            return None;
        }
        let fault = lock(&self.state).fault.clone();
        Some(fault.unwrap_or_else(|| "this gate has no lease on its claims yet".to_owned()))
    }

    pub(super) fn was_ever_held(&self) -> bool {
        lock(&self.state).held_once
    }

    /// Waits for the first time that it holds, or for what stands against that.
    pub(super) fn wait_for_first(&self, within: Duration) {
        let state = lock(&self.state);
        let waits = |state: &mut LeaseState| !state.held_once && state.fault.is_none();
        let _ = self.extended.wait_timeout_while(state, within, waits);
    }

    /// The database took a sign of life that was sent then.
    fn extend(&self, sent: Instant) {
        // What the two clocks may differ by over a lease.
        let drift = self.length / 50;
        let mut state = lock(&self.state);
        state.good_until = Some(sent + self.length - drift);
        state.fault = None;
        state.held_once = true;
        self.extended.notify_all();
    }

    /// Nothing may be claimed or sent from now on.
    fn end(&self, fault: &str) {
        lock(&self.state).good_until = None;
        self.not_extended(fault);
    }

    fn not_extended(&self, fault: &str) {
        lock(&self.state).fault = Some(fault.to_owned());
        self.extended.notify_all();
    }

    fn between_signs(&self) -> Duration {
        (self.length / 10).clamp(Duration::from_millis(50), Duration::from_secs(10))
    }
}

/// Starts it all on the store's thread.
pub(super) fn start(inner: &Arc<Inner>) {
    let keeper = Arc::clone(inner);
    inner.store.spawn(move |connector| keep(keeper, connector));
    let undertaker = Arc::clone(inner);
    inner.store.spawn(move |_| end_the_dead(undertaker));
    let finder = Arc::clone(inner);
    inner.store.spawn(move |_| release_abandoned(finder));
}

/// Keeps a connection for signs of life, for ever.
async fn keep(inner: Arc<Inner>, connector: Connector) {
    let mut keeper = Keeper { inner, beats: None };
    let mut pause = PAUSE;
    loop {
        match connector.connect().await {
            Ok(mut session) => {
                pause = PAUSE;
                let fault = keeper.live(&mut session).await;
                tracing::warn!(%fault, "the ledger's lease is not extended; trying again");
                keeper.inner.lease.not_extended(&fault.to_string());
                // Closing it would not end what the server does.
                let _ = tokio::time::timeout(CATCH_UP_WITHIN, session.catch_up()).await;
            }
            Err(error) => keeper.inner.lease.not_extended(&error.to_string()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

struct Keeper {
    inner: Arc<Inner>,
    /// Signs of life that the database confirmed; none before the first.
    beats: Option<i64>,
}

impl Keeper {
    /// Signs until something is wrong.
    async fn live(&mut self, session: &mut Session) -> Fault {
        let mut ended = session.notifications();
        if let Err(fault) = self.begin(session).await {
            return fault;
        }
        loop {
            let sent = Instant::now();
            let sign = tokio::time::timeout(SIGN_WITHIN, self.sign(session)).await;
            match sign {
                Ok(Ok(())) => self.inner.lease.extend(sent),
                Ok(Err(fault)) => return fault,
                Err(_) => {
                    let text = "the server does not confirm commits in time";
                    return Fault::Unconfirmed(text.to_owned());
                }
            }
            let next = tokio::time::sleep(self.inner.lease.between_signs());
            tokio::pin!(next);
            loop {
                tokio::select! {
                    () = &mut next => break,
                    () = session.closed() => {
                        let text = "the server closed the connection";
                        return Fault::Unavailable(text.to_owned());
                    }
                    Some(record) = ended.recv() => self.tell(&record),
                }
            }
        }
    }

    /// Passes on that an attempt ended.
    fn tell(&self, record: &str) {
        if let Ok(number) = record.parse() {
            // Nobody may be waiting.
            let _ = self.inner.ended.send(RecordId(number));
        }
    }

    /// What has to be so before the first sign on a connection.
    async fn begin(&self, session: &mut Session) -> Result<(), Fault> {
        session.run(&format!("listen {CHANNEL}")).await?;
        let definitions = lock(&self.inner.definitions).clone();
        for (namespace, definition) in definitions {
            if let Err(error) = changing::define(session, &namespace, &definition).await? {
                let fault = match error {
                    DefineError::Disagrees { .. } => format!("namespace {namespace}: {error}"),
                    DefineError::Ledger(error) => error.to_string(),
                };
                self.inner.lease.end(&fault);
                return Err(Fault::Unavailable(fault));
            }
        }
        Ok(())
    }

    /// One sign of life.
    async fn sign(&mut self, session: &mut Session) -> Result<(), Fault> {
        const EXTEND: &str = "
            update tikigate.owner
            set lease_until = clock_timestamp() + make_interval(secs => $2), beats = beats + 1
            where owner = any($1) returning beats";
        const STATE: &str = "
            select current_setting('fsync') = 'on', quarantine from tikigate.ledger";
        let Some(known) = self.beats else {
            return self.register(session).await;
        };
        let [extend, state] = session.prepare([EXTEND, STATE]).await?;
        let owners = self.owners();
        let length = self.inner.lease.length.as_secs_f64();
        let parameters: [Value<'_>; 2] = [&owners, &length];
        let (begun, extended, state, committed) = tokio::join!(
            biased;
            session.begin(),
            session.query(&extend, &parameters),
            session.query_opt(&state, &[]),
            session.commit(),
        );
        begun?;
        let (extended, state) = (extended?, state?);
        committed?;
        let mut beats = Vec::with_capacity(extended.len());
        for row in &extended {
            beats.push(Columns::from(row, 0).take::<i64>()?);
        }
        let least = beats.iter().min().copied().unwrap_or_default();
        if beats.len() < owners.len() || least <= known {
            return self.went_back(session).await;
        }
        self.beats = Some(least);
        let row = state.ok_or(Fault::Corrupt("no ledger"))?;
        let mut columns = Columns::from(&row, 0);
        let safe: bool = columns.take()?;
        *lock(&self.inner.quarantine) = columns.take()?;
        if !safe {
            let text = "the database server runs with fsync = off: what it confirms can be lost. \
                        Set fsync = on";
            self.inner.lease.end(text);
            return Err(Fault::Unavailable(text.to_owned()));
        }
        Ok(())
    }

    /// The first sign: from here on the others know this process.
    async fn register(&mut self, session: &mut Session) -> Result<(), Fault> {
        const REGISTER: &str = "
            insert into tikigate.owner (owner, address, lease_until)
            select owner, host(inet_client_addr()), clock_timestamp() + make_interval(secs => $2)
            from unnest($1) owner
            on conflict (owner) do update set lease_until = excluded.lease_until
            returning beats";
        let owners = self.owners();
        let length = self.inner.lease.length.as_secs_f64();
        session.begin().await?;
        let rows = session
            .query_once(
                REGISTER,
                &[(&owners, Type::INT8_ARRAY), (&length, Type::FLOAT8)],
            )
            .await?;
        session.commit().await?;
        let row = rows.first().ok_or(Fault::Corrupt("no owner"))?;
        self.beats = Some(Columns::from(row, 0).take()?);
        Ok(())
    }

    /// Signs of life that the database confirmed are not in it any more: nor is what else it
    /// confirmed since.
    async fn went_back(&mut self, session: &mut Session) -> Result<(), Fault> {
        let cause = "the database went back to an earlier state: it lost this gate's signs of life";
        self.inner.lease.end(cause);
        tracing::error!(
            cause,
            "the ledger may have forgotten something: keys that it doesn't know are held until the \
             quarantine is lifted (tikigate ledger lift-quarantine)"
        );
        changing::enter_quarantine(session, &self.inner, cause).await?;
        self.register(session).await
    }

    fn owners(&self) -> Vec<i64> {
        let owners = self.inner.owners.iter();
        owners.map(|owner| owner_column(*owner)).collect()
    }
}

/// Ends the claims of owners whose lease is over, whoever they are.
async fn end_the_dead(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(inner.lease.between_signs()).await;
        // While the store has trouble of its own, it says so itself.
        let dead = inner
            .store
            .run(async |session: &mut Session| changing::dead_owners(session).await);
        for owner in dead.await.unwrap_or_default() {
            let ledger = Arc::clone(&inner);
            let ending = inner.store.run(async move |session: &mut Session| {
                changing::lapse_if_dead(session, &ledger, owner).await
            });
            match ending.await {
                Ok(0) => {}
                Ok(ended) => tracing::warn!(
                    tikigate.owner = format!("{:016x}", owner.0),
                    tikigate.claims = ended,
                    "a gate gave no sign of life: its claims are unknown now, or released where \
                     they may be sent again"
                ),
                Err(error) => tracing::warn!(%error, "a dead gate's claims can't be ended yet"),
            }
        }
    }
}

/// Releases claims that nobody holds, as soon as the database lets it. A claim whose commit was never
/// confirmed may come true long after: it is looked for again and again.
async fn release_abandoned(inner: Arc<Inner>) {
    let mut missing: Vec<Fence> = Vec::new();
    loop {
        let more = inner.more_abandoned.notified();
        let _ = tokio::time::timeout(LOOK_FOR_ABANDONED, more).await;
        let mut abandoned = std::mem::take(&mut missing);
        abandoned.append(&mut lock(&inner.abandoned));
        for fence in abandoned {
            let ledger = Arc::clone(&inner);
            let released = inner.store.run(async move |session: &mut Session| {
                changing::release(session, &ledger, fence).await
            });
            if !released.await.unwrap_or(false) {
                missing.push(fence);
            }
        }
        let too_many = missing.len().saturating_sub(MISSING);
        missing.drain(..too_many);
    }
}

/// Ends this process's lease and what claims it still has, since it is about to end by itself.
pub(super) async fn end_lease(session: &mut Session, inner: &Arc<Inner>) -> Result<(), Fault> {
    inner.lease.end("the ledger is closed");
    let owners: Vec<i64> = inner.owners.iter().copied().map(owner_column).collect();
    session.begin().await?;
    session
        .query_once(
            "update tikigate.owner set lease_until = clock_timestamp() where owner = any($1)",
            &[(&owners, Type::INT8_ARRAY)],
        )
        .await?;
    session.commit().await?;
    for owner in &inner.owners {
        changing::lapse(session, inner, *owner).await?;
    }
    Ok(())
}
