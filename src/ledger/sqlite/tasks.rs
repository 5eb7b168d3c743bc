//! What the writer does with records, one task within a batch.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rusqlite::{OptionalExtension as _, params};

use crate::clock::Clock;
use crate::ledger::transition::{self, Entry, Moment, Siblings, Step};
use crate::ledger::{
    Claim, ClaimOutcome, DefineError, Definition, Fence, LedgerError, Owner, Record, RecordId,
    ResolveError, Settled, Settlement, State, SubjectRule,
};
use crate::store::sqlite::{Batch, Job, StoreError};

use super::answers::{self, Found};
use super::failed;
use super::live::{AllTouched, LiveClaims, Touched};
use super::rows::{self, Stored, Unreadable, hash, place, week};
use crate::ledger::texts::{micros, whole_micros};

/// Records forgotten in one batch: the others in it wait for them.
const SWEEP_CHUNK: usize = 100;

/// Free pages at which some are given back to the file system, and how many at a time.
const FREE_PAGES: i64 = 1024;
const VACUUM_PAGES: u32 = 64;

const WEEK: Duration = Duration::from_secs(7 * 86_400);
/// For how long after its last change a record counts among an order's events. They come within days,
/// Tiki's re-sends within two.
const EVENTS_COUNT_FOR: Duration = WEEK.saturating_mul(8);
/// Beyond the window of a payment: an attempt that became unknown before it may run until within it.
const PAYMENTS_COUNT_BEYOND: Duration = WEEK;
/// Each week is a look-up: a window longer than records are kept finds no more for it.
const MOST_WEEKS: i64 = 530;

/// Records about one subject that are looked at, the newest first.
const SIBLINGS: i64 = 1000;

/// What is kept of the file's own journal.
const JOURNAL_ROWS: i64 = 10_000;

/// A transaction with what tasks need in it.
pub(super) struct Scope<'b, 'c> {
    batch: &'b mut Batch<'c>,
    live: &'b LiveClaims,
    now: SystemTime,
    /// What this task made of claims, for [`LiveClaims`] once the batch is committed.
    touched: AllTouched,
}

type Sql<T> = rusqlite::Result<T>;

/// A task whose work is a closure.
pub(super) struct Task<T, E, W, R> {
    work: Option<W>,
    done: Option<(Result<T, E>, AllTouched)>,
    reply: R,
    clock: Clock,
    live: Arc<LiveClaims>,
}

impl<T, E, W, R> Task<T, E, W, R>
where
    W: FnOnce(&mut Scope<'_, '_>) -> Sql<Result<T, E>>,
    R: FnOnce(Result<T, E>),
{
    pub(super) fn new(work: W, clock: &Clock, live: &Arc<LiveClaims>, reply: R) -> Self {
        Self {
            work: Some(work),
            done: None,
            reply,
            clock: clock.clone(),
            live: Arc::clone(live),
        }
    }
}

impl<T, E, W, R> Job for Task<T, E, W, R>
where
    T: Send,
    E: From<LedgerError> + Send,
    W: FnOnce(&mut Scope<'_, '_>) -> Sql<Result<T, E>> + Send,
    R: FnOnce(Result<T, E>) + Send,
{
    fn run(&mut self, batch: &mut Batch<'_>) -> Sql<()> {
        if let Some(work) = self.work.take() {
            let mut scope = Scope::new(batch, &self.clock, &self.live);
            let reply = work(&mut scope)?;
            self.done = Some((reply, scope.touched));
        }
        Ok(())
    }

    fn follow(&mut self) {
        if let Some((_, touched)) = &mut self.done {
            self.live.follow_all(touched);
        }
    }

    fn committed(self: Box<Self>) {
        if let Some((reply, _)) = self.done {
            (self.reply)(reply);
        }
    }

    fn failed(self: Box<Self>, error: &StoreError) -> Option<Box<dyn Job>> {
        self.live.forget_all();
        (self.reply)(Err(failed(error.clone()).into()));
        None
    }
}

/// A claim: should its batch fail, it is released, since nobody was told of it.
pub(super) struct ClaimTask<R> {
    claim: Option<Claim>,
    done: Option<(Result<ClaimOutcome, LedgerError>, AllTouched)>,
    reply: R,
    clock: Clock,
    live: Arc<LiveClaims>,
}

impl<R> ClaimTask<R>
where
    R: FnOnce(Result<ClaimOutcome, LedgerError>) + Send + 'static,
{
    pub(super) fn new(claim: Claim, clock: &Clock, live: &Arc<LiveClaims>, reply: R) -> Self {
        Self {
            claim: Some(claim),
            done: None,
            reply,
            clock: clock.clone(),
            live: Arc::clone(live),
        }
    }
}

impl<R> Job for ClaimTask<R>
where
    R: FnOnce(Result<ClaimOutcome, LedgerError>) + Send + 'static,
{
    fn run(&mut self, batch: &mut Batch<'_>) -> Sql<()> {
        if let Some(claim) = self.claim.take() {
            let mut scope = Scope::new(batch, &self.clock, &self.live);
            let reply = scope.claim(claim)?;
            self.done = Some((reply, scope.touched));
        }
        Ok(())
    }

    fn follow(&mut self) {
        if let Some((_, touched)) = &mut self.done {
            self.live.follow_all(touched);
        }
    }

    fn committed(self: Box<Self>) {
        if let Some((reply, _)) = self.done {
            (self.reply)(reply);
        }
    }

    fn failed(self: Box<Self>, error: &StoreError) -> Option<Box<dyn Job>> {
        self.live.forget_all();
        let undo = match &self.done {
            Some((Ok(ClaimOutcome::Granted(fence, _)), _)) => {
                Some(release(*fence, self.clock.clone(), Arc::clone(&self.live)) as Box<dyn Job>)
            }
            _ => None,
        };
        (self.reply)(Err(failed(error.clone())));
        undo
    }
}

/// Releases a claim that nobody holds; comes back until it could be carried out.
pub(super) fn release(fence: Fence, clock: Clock, live: Arc<LiveClaims>) -> Box<impl Job> {
    Box::new(Release {
        fence,
        clock,
        live,
        touched: AllTouched::new(),
    })
}

struct Release {
    fence: Fence,
    clock: Clock,
    live: Arc<LiveClaims>,
    touched: AllTouched,
}

impl Job for Release {
    fn run(&mut self, batch: &mut Batch<'_>) -> Sql<()> {
        let mut scope = Scope::new(batch, &self.clock, &self.live);
        let abandoned = Settlement::Released("claim_abandoned".into());
        if let Err(error) = scope.settle(self.fence, abandoned)? {
            tracing::error!(record = %self.fence.record, %error, "an abandoned claim could not be released");
        }
        self.touched = scope.touched;
        Ok(())
    }

    fn follow(&mut self) {
        self.live.follow_all(&mut self.touched);
    }

    fn committed(self: Box<Self>) {}

    fn failed(self: Box<Self>, _: &StoreError) -> Option<Box<dyn Job>> {
        self.live.forget_all();
        Some(self)
    }
}

/// Ends every claim, at the start: whoever made them is dead, since this process has the file.
pub(super) fn lapse_all()
-> impl FnOnce(&mut Scope<'_, '_>) -> Sql<Result<u64, LedgerError>> + Send + 'static {
    lapse(None)
}

/// Ends one owner's claims, or everybody's.
pub(super) fn lapse(
    owner: Option<Owner>,
) -> impl FnOnce(&mut Scope<'_, '_>) -> Sql<Result<u64, LedgerError>> + Send + 'static {
    move |scope| {
        let mut select = scope.batch.connection.prepare_cached(
            "SELECT id FROM records INDEXED BY records_open \
             WHERE state = 'claimed' AND state <> 'done' ORDER BY id",
        )?;
        let ids = select.query_map((), |row| row.get::<_, i64>(0))?;
        let ids: Vec<_> = ids.collect::<Sql<_>>()?;
        let mut lapsed = 0;
        for id in ids {
            let stored = scope.stored(RecordId(id.cast_unsigned()))?;
            let Ok(Some(mut stored)) = stored else {
                continue; // told when somebody asks for it
            };
            let dead = owner.unwrap_or(stored.entry.record.owner);
            let step = transition::lapse(&mut stored.entry, dead, scope.moment());
            lapsed += u64::from(scope.change(State::Claimed, stored, step)?);
        }
        if lapsed > 0 {
            scope.journal(&format!("{lapsed} claims of a dead owner ended"), None)?;
        }
        Ok(Ok(lapsed))
    }
}

impl<'b, 'c> Scope<'b, 'c> {
    fn new(batch: &'b mut Batch<'c>, clock: &Clock, live: &'b LiveClaims) -> Self {
        Self {
            batch,
            live,
            now: whole_micros(clock.now()),
            touched: AllTouched::new(),
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            now: self.now,
            generation: self.batch.meta.generation,
            quarantined: self.batch.meta.quarantine.is_some(),
        }
    }

    pub(super) fn define(
        &mut self,
        namespace: &str,
        definition: Definition,
    ) -> Sql<Result<(), DefineError>> {
        let connection = self.batch.connection;
        let mut select =
            connection.prepare_cached("SELECT key, fingerprint FROM namespaces WHERE name = ?1")?;
        let stored = select.query_row([namespace], |row| {
            Ok(Definition {
                key: row.get(0)?,
                fingerprint: row.get(1)?,
            })
        });
        match stored.optional()? {
            Some(stored) if stored == definition => Ok(Ok(())),
            Some(stored) => Ok(Err(DefineError::Disagrees { stored })),
            None => {
                let Definition { key, fingerprint } = definition;
                connection.execute(
                    "INSERT INTO namespaces (name, key, fingerprint) VALUES (?1, ?2, ?3)",
                    params![namespace, key, fingerprint],
                )?;
                self.batch.wrote();
                Ok(Ok(()))
            }
        }
    }

    fn claim(&mut self, claim: Claim) -> Sql<Result<ClaimOutcome, LedgerError>> {
        let message_hash = hash(&claim.key.message);
        let subject_hash = claim.subject.as_ref().map(|subject| hash(&subject.id));
        let any_listed = self.live.any_listed(self.batch)?;
        let known = match answers::find(self.batch, &claim, message_hash, any_listed)? {
            Found::Outcome(outcome) => return Ok(Ok(outcome)),
            Found::Record(id) => match self.stored(id)? {
                // Not to be taken for a message that never came.
                Ok(None) => {
                    let text = format!("the answer of {id} is listed, and its record is gone");
                    return Ok(Err(LedgerError::Failed(text)));
                }
                stored => stored,
            },
            Found::Nothing => Ok(None),
        };
        let known = match known {
            Ok(known) => known,
            Err(error) => return Ok(Err(LedgerError::Failed(error.to_string()))),
        };
        let siblings = match self.siblings(&claim, subject_hash, known.as_ref())? {
            Ok(siblings) => siblings,
            Err(error) => return Ok(Err(LedgerError::Failed(error.to_string()))),
        };
        let moment = self.moment();
        if let Some(mut stored) = known {
            let before = stored.entry.record.state;
            let step = transition::claim_again(&mut stored.entry, &claim, siblings, moment);
            return Ok(Ok(self.change(before, stored, step)?));
        }
        if !transition::admits(&claim) {
            return Ok(Ok(ClaimOutcome::Unfamiliar));
        }
        let id = RecordId(self.batch.meta.next_record);
        self.batch.meta.next_record += 1;
        let (entry, step) = transition::create(claim, id, siblings, moment);
        let mut stored = Stored::new(entry, message_hash, step.event);
        rows::insert(self.batch, &mut stored, subject_hash)?;
        self.batch.meta.counts[place(stored.entry.record.state)] += 1;
        self.written(stored);
        Ok(Ok(step.reply))
    }

    /// What other records say about the claim's subject.
    fn siblings(
        &mut self,
        claim: &Claim,
        subject_hash: Option<i64>,
        known: Option<&Stored>,
    ) -> Sql<Result<Siblings, Unreadable>> {
        let mut siblings = Siblings::default();
        let (Some(subject), Some(subject_hash)) = (&claim.subject, subject_hash) else {
            return Ok(Ok(siblings));
        };
        // Only a claim that may be granted is compared.
        if known.is_some_and(|known| known.entry.record.state != State::Released) {
            return Ok(Ok(siblings));
        }
        let weeks = weeks_about(&subject.rule, self.now);
        if !rows::any_about(self.batch, weeks.clone(), subject_hash)? {
            return Ok(Ok(siblings));
        }
        let select = self.batch.statement(rows::BY_SUBJECT)?;
        let own = known.map(|known| known.entry.record.id);
        for week in weeks.rev() {
            let mut found = select.query(params![
                week,
                subject_hash,
                &*subject.id,
                &*claim.key.client,
                &*claim.key.namespace,
                SIBLINGS
            ])?;
            while let Some(row) = found.next()? {
                let other = match rows::read(row) {
                    Ok(other) => other,
                    Err(error) => return Ok(Err(error)),
                };
                if Some(other.entry.record.id) != own {
                    siblings.add(&other.entry, &subject.rule, self.now);
                }
                if siblings.same_amount {
                    return Ok(Ok(siblings));
                }
            }
        }
        Ok(Ok(siblings))
    }

    pub(super) fn settle(
        &mut self,
        fence: Fence,
        settlement: Settlement,
    ) -> Sql<Result<Settled, LedgerError>> {
        let mut stored = match self.stored(fence.record)? {
            Ok(Some(stored)) => stored,
            Ok(None) => return Ok(Ok(Settled::Superseded(State::Done))),
            Err(error) => return Ok(Err(LedgerError::Failed(error.to_string()))),
        };
        let before = stored.entry.record.state;
        let step = transition::settle(&mut stored.entry, fence, settlement, self.moment());
        Ok(Ok(self.change(before, stored, step)?))
    }

    /// Somebody's word on a record: refused, or carried out and shown.
    pub(super) fn word(
        &mut self,
        id: RecordId,
        word: impl FnOnce(&mut Entry, Moment) -> Result<Step<()>, ResolveError>,
    ) -> Sql<Result<Record, ResolveError>> {
        let mut stored = match self.stored(id)? {
            Ok(Some(stored)) => stored,
            Ok(None) => return Ok(Err(ResolveError::NotFound)),
            Err(error) => return Ok(Err(LedgerError::Failed(error.to_string()).into())),
        };
        let before = stored.entry.record.state;
        match word(&mut stored.entry, self.moment()) {
            Ok(step) => {
                let record = stored.entry.record.clone();
                self.change(before, stored, step)?;
                Ok(Ok(record))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    fn stored(&mut self, id: RecordId) -> Sql<Result<Option<Stored>, Unreadable>> {
        if let Some(kept) = self.live.take_row(self.batch.opening, id) {
            return Ok(Ok(Some(kept)));
        }
        let select = self.batch.statement(rows::BY_ID)?;
        let found = select.query_row([id.0.cast_signed()], |row| Ok(rows::read(row)));
        Ok(found.optional()?.transpose())
    }

    /// Writes what a step made of a record that was in the state `before`.
    fn change<T>(&mut self, before: State, mut stored: Stored, step: Step<T>) -> Sql<T> {
        let Step {
            reply,
            event,
            changed,
        } = step;
        if changed || event.is_some() {
            stored.events.extend(event.as_ref());
            rows::update(self.batch, &mut stored)?;
            let counts = &mut self.batch.meta.counts;
            counts[place(before)] = counts[place(before)].saturating_sub(1);
            counts[place(stored.entry.record.state)] += 1;
            self.written(stored);
        } else {
            self.live.keep_row(self.batch.opening, stored);
        }
        Ok(reply)
    }

    /// A record's row is now this.
    fn written(&mut self, stored: Stored) {
        self.batch.wrote();
        self.touched.push(Touched::by(&stored.entry));
        self.live.keep_row(self.batch.opening, stored);
    }

    pub(super) fn sweep(&mut self, now: SystemTime, limit: usize) -> Sql<Result<u64, LedgerError>> {
        let connection = self.batch.connection;
        let mut delete = connection.prepare_cached(
            "DELETE FROM records WHERE id IN (SELECT id FROM records INDEXED BY records_by_expiry \
             WHERE state = 'done' AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2)",
        )?;
        let most = i64::try_from(limit.min(SWEEP_CHUNK)).unwrap_or(0);
        let forgotten = delete.execute(params![micros(now), most])? as u64;
        if forgotten == 0 {
            return Ok(Ok(0));
        }
        let done = &mut self.batch.meta.counts[place(State::Done)];
        *done = done.saturating_sub(forgotten);
        let free: i64 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        self.live.forgot_some(self.batch.opening);
        if free >= FREE_PAGES {
            connection.execute_batch(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
        }
        self.batch.wrote();
        Ok(Ok(forgotten))
    }

    pub(super) fn enter_quarantine(&mut self, cause: &str) -> Sql<Result<(), LedgerError>> {
        self.batch.meta.enter_quarantine(cause);
        self.journal(&format!("quarantine entered: {cause}"), None)?;
        Ok(Ok(()))
    }

    pub(super) fn lift_quarantine(
        &mut self,
        by: &str,
        reason: &str,
    ) -> Sql<Result<(), LedgerError>> {
        if let Some(cause) = self.batch.meta.quarantine.take() {
            self.journal(&format!("quarantine lifted: {cause}"), Some((by, reason)))?;
        }
        Ok(Ok(()))
    }

    /// Adds a line to the file's own journal, which keeps its latest lines.
    fn journal(&mut self, what: &str, by: Option<(&str, &str)>) -> Sql<()> {
        let (name, reason) = by.unzip();
        let connection = self.batch.connection;
        connection.execute(
            "INSERT INTO journal (at, what, by, reason) VALUES (?1, ?2, ?3, ?4)",
            params![micros(self.now), what, name, reason],
        )?;
        connection.execute(
            "DELETE FROM journal WHERE rowid <= (SELECT max(rowid) FROM journal) - ?1",
            [JOURNAL_ROWS],
        )?;
        self.batch.wrote();
        Ok(())
    }
}

/// The weeks that records are filed under which may say something about a subject now. Each is a look-up, in a
/// large ledger of a page of its own: so not one more than may be needed.
fn weeks_about(rule: &SubjectRule, now: SystemTime) -> RangeInclusive<i64> {
    let back = match rule {
        SubjectRule::Event { .. } => EVENTS_COUNT_FOR,
        SubjectRule::Payment { window, .. } => window.saturating_add(PAYMENTS_COUNT_BEYOND),
    };
    let this = week(now);
    let first = now.checked_sub(back).map_or(i64::MIN, week);
    // A week ahead too, should the clock have gone back.
    first.max(this - MOST_WEEKS)..=this + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_weeks_are_looked_at_as_the_window_and_a_running_attempt_reach_back() {
        let payment = |window: Duration| SubjectRule::Payment {
            amount: "1".into(),
            window,
            hold: true,
        };
        let day = WEEK / 7;
        let begin = SystemTime::UNIX_EPOCH + WEEK * 3000;
        // What changed 8 days ago still counts: in the first day of a week that is two weeks back.
        assert_eq!(weeks_about(&payment(day), begin), 2998..=3001);
        assert_eq!(weeks_about(&payment(day), begin + day / 2), 2998..=3001);
        assert_eq!(weeks_about(&payment(day), begin + day), 2999..=3001);
        assert_eq!(weeks_about(&payment(day), begin + day * 6), 2999..=3001);
        assert_eq!(weeks_about(&payment(WEEK), begin + day * 6), 2998..=3001);
        let event = SubjectRule::Event {
            at: begin,
            drop_stale: true,
        };
        assert_eq!(weeks_about(&event, begin + day), 2992..=3001);
        // Longer than anything is kept, or than there is time.
        assert_eq!(weeks_about(&payment(WEEK * 2000), begin), 2470..=3001);
        assert_eq!(weeks_about(&payment(Duration::MAX), begin), 2470..=3001);
    }
}
