//! The ledger: which messages were sent, and what became of them.
//!
//! ```text
//!            claim (durable before the first byte goes out)
//!  absent ──────────────▶ claimed ──success, declined──────────────▶ done       kept; replayed from now on
//!                         ▲  │  └──nothing sent, or "not applied"──▶ released   may be claimed again, attempt + 1
//!                         │  └─────timeout, reset, crash, lapsed
//!                         │        owner, "can't say"──────────────▶ unknown    (on a resend policy: released)
//!                         └────────────────────────────────────────── released
//!  unknown ──a person: "applied"──▶ done        ──"not applied"──▶ released     ──"rejected"──▶ done (failure)
//!  unknown ──late answer of the same attempt──▶ as its class says, if nobody resolved it meanwhile
//! ```
//!
//! The transitions themselves are in `transition`, pure and shared by all stores; a store adds atomic
//! and, where it can, durable keeping. `conformance` holds the tests that every store passes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

#[cfg(test)]
mod conformance;
mod memory;
mod reply;
mod sweep;
mod transition;

pub use memory::{MemoryLedger, MemoryLimits};
pub use reply::Reply;

/// A store of records.
///
/// Calls take owned values, so that a store may queue them and commit many at once. When a reply
/// resolves, what it says is as durable as the store can make it.
///
/// **Cancellation.** Dropping a [`Reply`] leaves its call either carried out or not, never half.
/// A claim that was granted to a dropped reply is released by the store: nobody holds its fence,
/// so nothing was sent.
pub trait Ledger: Send + Sync + 'static {
    /// Ties a namespace to its definition, or checks that it is tied to the same one.
    fn define(&self, namespace: Arc<str>, definition: Definition)
    -> Reply<Result<(), DefineError>>;

    /// Asks to run a message. Atomic: of any number of claims for one key, one is granted.
    ///
    /// # Errors
    /// [`LedgerError::Full`] for a key that the ledger doesn't know, when there is no room for it.
    fn claim(&self, claim: Claim) -> Reply<Result<ClaimOutcome, LedgerError>>;

    /// Checks, just before the first byte goes out, that the fence still holds: the claim is still
    /// the owner's, the time that it asked for is not over, and no earlier attempt turned out to
    /// have succeeded.
    fn permit(&self, fence: Fence) -> Reply<Result<SendPermit, PermitError>>;

    /// Records what became of an attempt; also takes late answers. Saying the same again changes
    /// nothing and is answered the same. An answer is never refused for want of room.
    ///
    /// A record that isn't there was done and forgotten: [`Settled::Superseded`].
    fn settle(&self, fence: Fence, settlement: Settlement) -> Reply<Result<Settled, LedgerError>>;

    /// Ends an unknown record by a person's word. Compare-and-set on [`Resolution::expected`].
    ///
    /// # Errors
    /// See [`ResolveError`]. [`Resolution::force`] overrides [`ResolveError::MayStillRun`] only:
    /// after an alarm money has moved at least once, and no word makes that untrue.
    fn resolve(&self, resolution: Resolution) -> Reply<Result<Record, ResolveError>>;

    /// Declares an owner dead: its claims become unknown, or released on a resend policy, with the
    /// cause `owner_lapsed`. Returns how many.
    fn lapse(&self, owner: Owner) -> Reply<Result<u64, LedgerError>>;

    /// One record.
    fn get(&self, id: RecordId) -> Reply<Result<Option<Record>, LedgerError>>;

    /// Records in the order of their ids, after [`Filter::after`]; at most [`LIST_LIMIT`] at once.
    fn list(&self, filter: Filter) -> Reply<Result<Vec<Record>, LedgerError>>;

    /// A record's events, oldest first; none for a record that isn't there. A store may keep only
    /// the first and the latest ones and then says between them how many it dropped.
    fn events(&self, id: RecordId) -> Reply<Result<Vec<Event>, LedgerError>>;

    /// Counts and ages for metrics.
    fn stats(&self) -> Reply<Result<Stats, LedgerError>>;

    /// Forgets done records past their time, at most `limit` of them. Returns how many.
    /// Claimed, released and unknown records are never forgotten.
    ///
    /// Does nothing when the wall clock jumped by more than an hour since the last sweep, and
    /// afterwards doesn't believe a jump forward: what it would have expired is kept that much longer.
    fn sweep(&self, limit: usize) -> Reply<Result<u64, LedgerError>>;

    /// Holds every key that the ledger doesn't know, on hold policies, until lifted. So is a key
    /// that was released before: what happened to it since may be among what was forgotten.
    ///
    /// Each key that is asked for meanwhile gets an unknown record, for a person to resolve.
    fn enter_quarantine(&self, cause: String) -> Reply<Result<(), LedgerError>>;

    /// Ends the quarantine by a person's word. Keys that were asked for meanwhile stay held until
    /// each is resolved: they are the ones that Tiki sent before, perhaps.
    ///
    /// # Errors
    /// [`LedgerError::Failed`] too when name or reason is blank or too long.
    fn lift_quarantine(&self, by: String, reason: String) -> Reply<Result<(), LedgerError>>;

    /// Why unknown keys are held, if they are.
    fn quarantine(&self) -> Reply<Result<Option<String>, LedgerError>>;
}

/// Records that [`Ledger::list`] gives at most, whatever [`Filter::limit`] says.
pub const LIST_LIMIT: usize = 1000;

/// Bytes that a person's name may have in a [`Resolution`].
pub const NAME_LIMIT: usize = 128;

/// Bytes that a person's reason may have in a [`Resolution`].
pub const REASON_LIMIT: usize = 2000;

/// What a record is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Named for the payload unless the configuration says otherwise.
    pub namespace: Arc<str>,
    /// The client key of the caller.
    pub client: Arc<str>,
    /// The message's own key.
    pub message: Arc<str>,
}

/// SHA-256 over the fields that move money.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base16ct::lower::encode_string(&self.0))
    }
}

/// One process's life as an owner of claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

/// A record's number; never used twice. Shown as `rec-12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub u64);

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rec-{}", self.0)
    }
}

impl FromStr for RecordId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.strip_prefix("rec-").ok_or(())?;
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(());
        }
        digits.parse().map(Self).map_err(|_| ())
    }
}

/// What a namespace's keys are made of, as text that two configurations can be compared by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The key's fields.
    pub key: String,
    /// The fingerprint's fields.
    pub fingerprint: String,
}

/// What happens to an attempt whose outcome nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The key is held until somebody says what happened.
    Hold,
    /// The key may be claimed again.
    Resend,
}

/// Whether a key that the ledger doesn't know may be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Any key.
    Any,
    /// Only a key that has a record already: the message is outside its time window.
    KnownOnly,
}

/// A wish to run a message.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The message.
    pub key: Key,
    /// Its money fields.
    pub fingerprint: Fingerprint,
    /// Who asks.
    pub owner: Owner,
    /// Whether an unknown key will do.
    pub admission: Admission,
    /// What an unknown outcome leads to. The stricter of the stored and this one holds.
    pub policy: Policy,
    /// How long the record is kept once done. Only ever extended.
    pub keep: Duration,
    /// How long the attempt may run at most, from now, with the quiet time after it:
    /// "not applied" is refused until then.
    pub may_run_for: Duration,
    /// The route's name, for people.
    pub route: Arc<str>,
}

/// What a claim came to.
#[derive(Clone, Debug)]
pub enum ClaimOutcome {
    /// Run it.
    Granted(Fence),
    /// It ran: this is its answer.
    Done(RecordId, KeptAnswer),
    /// An attempt is running.
    Running(Fence),
    /// Nobody knows what became of it.
    Held(RecordId, Hold),
    /// Another message had this key: its money fields differ.
    Conflict(RecordId),
    /// Unknown, and [`Admission::KnownOnly`] was asked.
    Unfamiliar,
}

/// Why a key is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// An attempt's outcome is unknown.
    OutcomeUnknown,
    /// The ledger may have forgotten: see [`Ledger::enter_quarantine`].
    LedgerGap,
}

/// The right to run one attempt, and to record what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The record.
    pub record: RecordId,
    /// The owner the claim was granted to.
    pub owner: Owner,
    /// The attempt, from 1.
    pub attempt: u32,
}

/// Leave to write the first byte, for a short while.
#[derive(Clone, Copy, Debug)]
pub struct SendPermit {
    /// On the monotonic clock; a first byte later than this may not go out.
    pub valid_until: Instant,
}

/// Why an attempt may not be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PermitError {
    /// The claim was taken from its owner.
    #[error("the claim no longer holds")]
    Fenced,
    /// The store failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// What became of an attempt.
#[derive(Clone, Debug)]
pub enum Settlement {
    /// It was applied or declined for good; the answer is kept.
    Done(KeptAnswer, Cause),
    /// Certain: nothing was sent, or the backend said that it was not applied.
    Released(Cause),
    /// Nobody can say. On [`Policy::Resend`] the store releases the key instead.
    Unknown(Cause),
}

/// An answer as it is given again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAnswer {
    /// Status.
    pub status: StatusCode,
    /// Headers that were passed back.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body.
    pub body: Bytes,
}

/// Why a transition happened: a stable word such as `upstream_reset`.
pub type Cause = Cow<'static, str>;

/// What settling came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The record now says so.
    Recorded(State),
    /// The record had moved on by itself or by a person; this answer is only in its events.
    Superseded(State),
    /// A success (2xx) came in for an attempt on [`Policy::Hold`] that counted as not applied and
    /// was claimed again since: money may have moved twice. The record is not released any more.
    Alarm,
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// An attempt is running.
    Claimed,
    /// No attempt counts; it may be claimed again.
    Released,
    /// Answered for good.
    Done,
    /// Nobody knows.
    Unknown,
}

impl State {
    /// Every state, in the order of a message's life.
    pub const ALL: [State; 4] = [State::Claimed, State::Released, State::Done, State::Unknown];

    /// The word for it in commands, the API and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Claimed => "claimed",
            State::Released => "released",
            State::Done => "done",
            State::Unknown => "unknown",
        }
    }
}

impl FromStr for State {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or(())
    }
}

/// A record as a person sees it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number.
    pub id: RecordId,
    /// Its key.
    pub key: Key,
    /// The money fields' hash.
    pub fingerprint: Fingerprint,
    /// Where it stands.
    pub state: State,
    /// The attempt that counts, from 1. 0: held for a ledger gap, and none that this ledger knows of.
    pub attempt: u32,
    /// Raised by every change.
    pub version: u64,
    /// Who ran the attempt.
    pub owner: Owner,
    /// What an unknown outcome leads to.
    pub policy: Policy,
    /// The route whose claim was granted last.
    pub route: Arc<str>,
    /// First claimed.
    pub created_at: SystemTime,
    /// When it came to where it stands.
    pub updated_at: SystemTime,
    /// Until then an attempt may still be running somewhere.
    pub may_run_until: SystemTime,
    /// A done record may be forgotten from then on.
    pub expires_at: SystemTime,
    /// Set after a [`Settled::Alarm`]: the record is never released again. What would have released
    /// it makes it unknown.
    pub alarmed: bool,
    /// The answer, once done.
    pub answer: Option<KeptAnswer>,
}

/// One change of a record.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// The attempt it is about.
    pub attempt: u32,
    /// The state after it.
    pub state: State,
    /// Why, as a stable word.
    pub cause: Cause,
    /// The person who said so, and the reason given.
    pub by: Option<(String, String)>,
}

/// A person's word on an unknown record.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// The record.
    pub id: RecordId,
    /// What the person saw: (state, attempt, version). Anything else now: [`ResolveError::Changed`].
    pub expected: (State, u32, u64),
    /// What happened.
    pub verdict: Verdict,
    /// Who says so.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Says "not applied" although the attempt may still run.
    pub force: bool,
}

/// What a person says happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The backend did it: answered with this from now on.
    Applied(KeptAnswer),
    /// The backend didn't do it: may be sent again.
    NotApplied,
    /// It shall not be done: answered with this failure from now on.
    Rejected(KeptAnswer),
}

/// Why a resolution was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    /// No such record.
    #[error("there is no such record")]
    NotFound,
    /// The record is not what the person saw.
    #[error("the record has changed: it is now {} (attempt {}, version {})", .0.state.as_str(), .0.attempt, .0.version)]
    Changed(Box<Record>),
    /// Only unknown records are resolved.
    #[error("only an unknown record can be resolved; this one is {}", .0.as_str())]
    NotUnknown(State),
    /// The attempt may still reach the backend.
    #[error("the attempt may still be running")]
    MayStillRun {
        /// Until then.
        until: SystemTime,
    },
    /// After an alarm a record is not released.
    #[error(
        "an earlier attempt succeeded after it was declared not applied: the record can't be released"
    )]
    NoFurtherRelease,
    /// Name and reason are required, within [`NAME_LIMIT`] and [`REASON_LIMIT`].
    #[error("a name (up to {NAME_LIMIT} bytes) and a reason (up to {REASON_LIMIT}) are required")]
    NoReason,
    /// The store failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Why a namespace can't be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DefineError {
    /// The ledger's records were made by another definition.
    #[error("the ledger holds the namespace with another definition: {stored:?}")]
    Disagrees {
        /// What is stored.
        stored: Definition,
    },
    /// The store failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A store that can't take or give anything now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Its bound is reached by records that still hold.
    #[error("the ledger is full of records that still hold")]
    Full,
    /// It failed.
    #[error("the ledger failed: {0}")]
    Failed(String),
}

/// Which records to list.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only these.
    pub state: Option<State>,
    /// Only this route's.
    pub route: Option<String>,
    /// Only those whose message key contains this.
    pub query: Option<String>,
    /// Only those after this one.
    pub after: Option<RecordId>,
    /// At most so many.
    pub limit: usize,
}

/// Counts and ages, in the order of [`State::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records in each state.
    pub records: [u64; 4],
    /// How long the oldest record of each state has been in it; zero where there is none.
    pub oldest: [Duration; 4],
}
