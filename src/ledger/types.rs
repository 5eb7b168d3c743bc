//! What a ledger is asked with and what it says: plain values, the same for every store.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

#[cfg(doc)]
use super::{Ledger, ResolveError};

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
    /// None, and no record is claimed again: the message can't be run now.
    AnswersOnly,
}

/// The fields of a message that people search by and probes ask with, by name, such as
/// `transaction_id` or `order.id`. Texts as they were sent; amounts as exact decimals. A copy shares them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub Arc<[(Cow<'static, str>, String)]>);

impl Fields {
    /// The field with this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, text)| text.as_str())
    }

    /// Whether any field has exactly this text.
    pub fn mentions(&self, text: &str) -> bool {
        self.0.iter().any(|(_, value)| value == text)
    }
}

/// A call as it can be sent to the backend again.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptRequest {
    /// Those of the caller's headers that went to the backend.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body as received.
    pub body: Bytes,
}

impl fmt::Debug for KeptRequest {
    /// Bodies don't belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptRequest({} bytes)", self.body.len())
    }
}

/// What a message is about, besides itself: other messages about the same are looked at within the
/// claim, so that two at once can't both miss each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The order's or the payment's id; within the record's namespace and client.
    pub id: Arc<str>,
    /// What is compared.
    pub rule: SubjectRule,
}

/// What is compared among the messages about one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubjectRule {
    /// Events have an order: one that is older than the newest that was passed on is stale.
    Event {
        /// When it happened, by its sender.
        at: SystemTime,
        /// Answer a stale one with success instead of passing it on. Only a newer one that the
        /// backend is known to have taken makes it so; without this, one that may be running does too.
        drop_stale: bool,
    },
    /// A second payment of the same amount within the window may be the first one again.
    Payment {
        /// The amount, normalised.
        amount: Arc<str>,
        /// How long ago the other may have changed last.
        window: Duration,
        /// Hold it for a person instead of passing it on with a mark.
        hold: bool,
    },
}

/// What the backend is told of a message besides the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// A newer event about the same subject was passed on before.
    pub stale_event: bool,
    /// Another message may have moved the same money.
    pub possible_duplicate: bool,
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
    /// What people search by.
    pub fields: Fields,
    /// The call, on routes that hold.
    pub request: Option<KeptRequest>,
    /// What else it is compared with.
    pub subject: Option<Subject>,
}

/// What a claim came to.
#[derive(Clone, Debug)]
pub enum ClaimOutcome {
    /// Run it.
    Granted(Fence, Marks),
    /// It ran: this is its answer.
    Done(RecordId, KeptAnswer),
    /// It is a stale event and shall not run: this is its answer from now on.
    Dropped(RecordId, KeptAnswer),
    /// An attempt is running.
    Running(Fence),
    /// Nobody knows what became of it.
    Held(RecordId, Hold),
    /// Another message had this key: its money fields differ.
    Conflict(RecordId),
    /// Unknown, and [`Admission::Any`] was not asked.
    Unfamiliar,
    /// Its record was released and may be claimed again, but [`Admission::AnswersOnly`] was asked.
    Claimable,
}

/// Why a key is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// An attempt's outcome is unknown.
    OutcomeUnknown,
    /// The ledger may have forgotten: see [`Ledger::enter_quarantine`].
    LedgerGap,
    /// Another message may have moved the same money, and the route wants a person to look.
    PossibleDuplicate,
}

impl Hold {
    /// Every reason.
    pub const ALL: [Hold; 3] = [
        Hold::OutcomeUnknown,
        Hold::LedgerGap,
        Hold::PossibleDuplicate,
    ];

    /// The word for it in the API, the log and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Hold::OutcomeUnknown => "outcome_unknown",
            Hold::LedgerGap => "ledger_gap",
            Hold::PossibleDuplicate => "possible_duplicate",
        }
    }
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
    /// A success (2xx) came in on [`Policy::Hold`] for an attempt that counts as not applied: it was
    /// claimed again since, the ledger has forgotten the attempt, or a person ended the message as
    /// rejected. Money may have moved twice, or has moved unsaid. The record is not released any more.
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
    /// What people search by.
    pub fields: Fields,
    /// What the backend was told with the attempt that counts.
    pub marks: Marks,
    /// Why it is held, while it is unknown.
    pub hold: Option<Hold>,
    /// Whether its state is a person's or a probe's word.
    pub declared: bool,
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

/// A person's wish to take a word back.
#[derive(Clone, Debug)]
pub struct Reopening {
    /// The record.
    pub id: RecordId,
    /// What the person saw, as in [`Resolution::expected`].
    pub expected: (State, u32, u64),
    /// Who wants it.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// What a look at the backend said of an unknown record.
///
/// "Applied" ends the record at once. "Not applied" releases it only when it was said twice,
/// [`SIGHTING_PAUSE`] apart with nothing else said between, with the attempt over for certain both
/// times, and once in a record's life: after the attempt that this allows only a person releases it
/// again. In a quarantine it counts only for what was claimed or held since, as a later attempt may
/// have been forgotten. Everything else keeps holding. After a [`Reopening`] a look changes nothing
/// until a person has spoken. A record that is held as a possible duplicate was never sent, so that
/// a look says nothing of it.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// The record.
    pub id: RecordId,
    /// What was looked into, as in [`Resolution::expected`].
    pub expected: (State, u32, u64),
    /// What was seen.
    pub seen: Seen,
}

/// What a look at the backend saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The backend did it: answered with this from now on.
    Applied(KeptAnswer),
    /// The backend didn't do it.
    NotApplied,
    /// Neither, and why, as a stable word.
    CantSay(Cause),
}

/// How long after a first "not applied" a second one counts.
pub const SIGHTING_PAUSE: Duration = Duration::from_secs(60);

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

/// What is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One short sentence, with what to do where a person has to do something.
    pub text: String,
    /// The store is this process's own, so that another replica may well take calls: unready.
    /// Otherwise leaving the load balancer helps nobody.
    pub own: bool,
}

/// Some records of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In the order of their ids.
    pub records: Vec<Record>,
    /// Where to go on ([`Filter::after`]); none: these were the last.
    pub next: Option<RecordId>,
}

/// Which records to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only these.
    pub state: Option<State>,
    /// Only this route's.
    pub route: Option<String>,
    /// Only those whose message key is exactly this: found at once.
    pub key: Option<String>,
    /// Only those whose message key contains this.
    pub query: Option<String>,
    /// Only those of which a field is exactly this: a transaction's or an order's id.
    pub reference: Option<String>,
    /// Only those first claimed at this time or later.
    pub created_from: Option<SystemTime>,
    /// Only those first claimed before this time.
    pub created_until: Option<SystemTime>,
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
