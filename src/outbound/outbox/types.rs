//! What the outbox keeps and says.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use crate::outbound::status::{Asked, Expected};
use crate::tiki::{IpnReply, TransactionStatus};

/// Names a delivery: `out-17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub u64);

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "out-{}", self.0)
    }
}

impl FromStr for DeliveryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.strip_prefix("out-").ok_or(())?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse().map_err(|_| ())?;
        if plain { Ok(Self(number)) } else { Err(()) }
    }
}

/// A notice of the backend, checked.
#[derive(Clone, Debug)]
pub struct Posting {
    /// The client id of the account.
    pub client: String,
    /// Where it is to go.
    pub base_url: String,
    /// What it says.
    pub expected: Expected,
    /// The bytes to be sent.
    pub body: Bytes,
}

/// What became of a posting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is stored, and will be delivered.
    Stored(DeliveryId),
    /// It is this delivery, in this state.
    Known(DeliveryId, State),
    /// It is this delivery, which had ended without being delivered and is tried again.
    Reopened(DeliveryId),
    /// It contradicts this delivery; how, in a sentence.
    Conflict(DeliveryId, &'static str),
    /// There is no room for it.
    Full,
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// It is to be delivered.
    Pending,
    /// Tiki has it.
    Delivered,
    /// It ended without Tiki having it, or without anybody knowing.
    Failed,
    /// A person took it back.
    Cancelled,
    /// A later state of its transaction took its place.
    Superseded,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Delivered,
        Self::Failed,
        Self::Cancelled,
        Self::Superseded,
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        }
    }

    /// The state of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// What is done next about a pending delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The notice is sent.
    Send,
    /// The transaction's status is asked.
    Ask,
}

impl Step {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Ask => "ask",
        }
    }

    /// The step of this word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Send, Self::Ask]
            .into_iter()
            .find(|step| step.as_str() == word)
    }
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Tiki answered that it has it.
    Taken,
    /// Tiki's status says that it has it.
    Confirmed,
    /// Tiki refused it for good, with this code if it gave one: the customer is to be refunded.
    Refused(Option<u8>),
    /// Nobody could be made sure of it in time: a person has to look.
    GaveUp,
    /// Tiki has another final state of the transaction: a person has to look.
    Contradicted,
    /// A person took it back.
    Cancelled,
    /// A later state took its place.
    Superseded,
}

impl Outcome {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Confirmed => "confirmed",
            Self::Refused(_) => "refused",
            Self::GaveUp => "gave_up",
            Self::Contradicted => "contradicted",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        }
    }

    /// Every word.
    pub const WORDS: [&'static str; 7] = [
        "taken",
        "confirmed",
        "refused",
        "gave_up",
        "contradicted",
        "cancelled",
        "superseded",
    ];

    /// As it is stored: the word, and the code behind a colon.
    pub(super) fn text(self) -> String {
        match self {
            Self::Refused(Some(code)) => format!("refused:{code}"),
            other => other.as_str().to_owned(),
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some(code) = text.strip_prefix("refused:") {
            return code.parse().ok().map(|code| Self::Refused(Some(code)));
        }
        [
            Self::Taken,
            Self::Confirmed,
            Self::Refused(None),
            Self::GaveUp,
            Self::Contradicted,
            Self::Cancelled,
            Self::Superseded,
        ]
        .into_iter()
        .find(|outcome| outcome.as_str() == text)
    }
}

/// One delivery as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its name.
    pub id: DeliveryId,
    /// The client id that signs it.
    pub client: String,
    /// The only place that it is sent to.
    pub base_url: String,
    /// Tiki's id of the transaction.
    pub tiki_transaction_id: String,
    /// The partner's.
    pub transaction_id: String,
    /// Its status. Messages of the older form have none, and mean that it was paid: `SUCCESS`.
    pub status: String,
    /// The amount, in its shortest form.
    pub amount: String,
    /// The bytes that are sent.
    pub body: Bytes,
    /// Where it stands.
    pub state: State,
    /// What is done next, while pending.
    pub step: Step,
    /// Its place among its transaction's: the later it was posted, the greater.
    pub place: u64,
    /// Times it was sent, or was about to be.
    pub tries: u32,
    /// Times that the status was asked since it was opened.
    pub asks: u32,
    /// Whether an earlier try may have been taken.
    pub maybe_taken: bool,
    /// The final refusal that waits for the status to agree.
    pub refusal: Option<Option<u8>>,
    /// Counts its flights: what is not the newest changes nothing.
    pub flight: u64,
    /// Set while it is tried; nobody else tries it until then.
    pub flying_until: Option<SystemTime>,
    /// When something is to be done.
    pub next_at: SystemTime,
    /// When it was first posted.
    pub created_at: SystemTime,
    /// When it was posted last, or opened again by a person: `give_up_after` counts from here.
    pub opened_at: SystemTime,
    /// When it changed last.
    pub updated_at: SystemTime,
    /// The store's generation when it was last known to be whole: of an older one, the status is asked
    /// before anything is sent.
    pub generation: u64,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// When the backend is to be told that it failed.
    pub tell_at: Option<SystemTime>,
    /// Times that the backend was told without an answer.
    pub tellings: u32,
    /// Whether its account is not configured here any more: it waits for that.
    pub held: bool,
    /// What happened to it, oldest first.
    pub events: Vec<Event>,
}

impl Delivery {
    /// Whether the customer is to be refunded: Tiki won't take a payment that was made, and can't have
    /// taken it.
    pub fn means_refund(&self) -> bool {
        matches!(self.outcome, Some(Outcome::Refused(_)))
            && self.status == TransactionStatus::Success.as_str()
    }

    /// What it says.
    pub fn expected(&self) -> Option<Expected> {
        Some(Expected {
            tiki_transaction_id: self.tiki_transaction_id.clone(),
            transaction_id: self.transaction_id.clone(),
            amount: crate::tiki::Decimal::parse(&self.amount).ok()?,
            status: TransactionStatus::parse(&self.status)?,
        })
    }
}

/// Something that happened to a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// What, in stable words.
    pub what: String,
    /// Who, where a person did it.
    pub by: Option<String>,
    /// Why, in a person's or the library's words.
    pub detail: Option<String>,
}

/// A delivery in this process's hands.
#[derive(Clone, Debug)]
pub struct Flight {
    /// As it is.
    pub delivery: Delivery,
    /// After this nothing of it may be begun any more.
    pub valid_until: Instant,
}

/// What a store gave to try.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// To be tried now.
    pub flights: Vec<Flight>,
    /// When the next one's time comes, as far as the store knows.
    pub next_in: Option<Duration>,
}

/// What became of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// It was sent and answered.
    Answered(IpnReply),
    /// It was sent, and not answered; why.
    NoAnswer(String),
    /// Nothing was sent; why.
    NotSent(String),
    /// The status was asked.
    Asked(Asked),
}

impl Report {
    /// The word for it in events, metrics and the log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Answered(IpnReply::Taken) => "taken",
            Self::Answered(IpnReply::Refused(_)) => "refused",
            Self::Answered(IpnReply::Again) => "unclear",
            Self::NoAnswer(_) => "no_answer",
            Self::NotSent(_) => "not_sent",
            Self::Asked(Asked::Same) => "asked_same",
            Self::Asked(Asked::Other(_)) => "asked_other",
            Self::Asked(Asked::Pending(_)) => "asked_pending",
            Self::Asked(Asked::Later(_)) => "asked_later",
            Self::Asked(Asked::Refused(_)) => "asked_refused",
            Self::Asked(Asked::Nothing(_)) => "asked_nothing",
        }
    }

    /// Every word.
    pub const WORDS: [&'static str; 11] = [
        "taken",
        "refused",
        "unclear",
        "no_answer",
        "not_sent",
        "asked_same",
        "asked_other",
        "asked_pending",
        "asked_later",
        "asked_refused",
        "asked_nothing",
    ];
}

/// What a person wants of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// To be tried again now; otherwise to be given up.
    pub retry: bool,
    /// Who says so.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// Why a person's word was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordFault {
    /// There is none of this id.
    #[error("there is no such delivery")]
    NotFound,
    /// It is at Tiki right now.
    #[error("it is being tried right now: ask again in a moment")]
    InFlight,
    /// It is over.
    #[error("it is {}, and stays so", .0.as_str())]
    Over(State),
    /// Another delivery of the transaction is in the way.
    #[error("a later state of the transaction was posted: that one counts")]
    Overtaken,
    /// Name or reason is missing or too long.
    #[error("a name and a reason are needed, and neither too long")]
    Unattributed,
    /// The store can't.
    #[error(transparent)]
    Store(#[from] StoreFault),
}

/// Which deliveries to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// In this state only.
    pub state: Option<State>,
    /// With this id of the transaction, Tiki's or the partner's.
    pub transaction: Option<String>,
    /// After this one.
    pub after: Option<DeliveryId>,
    /// At most this many.
    pub limit: usize,
}

/// Part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order of their ids.
    pub deliveries: Vec<Delivery>,
    /// Where to go on; none at the end.
    pub next: Option<DeliveryId>,
}

/// Counts and ages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// To be delivered.
    pub pending: u64,
    /// Of those, the ones whose account is not configured any more.
    pub held: u64,
    /// How long the oldest pending one has waited.
    pub oldest: Duration,
    /// Failed ones that are kept.
    pub failed: u64,
    /// Failed ones that the backend was not told of yet.
    pub untold: u64,
    /// Bytes in the store.
    pub bytes: u64,
}

/// A store that can't do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreFault(pub String);

/// What the rules know of the moment and the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tidings {
    /// The store's clock.
    pub(super) now: SystemTime,
    /// The store's generation.
    pub(super) generation: u64,
    /// Whether the store may have forgotten something, and nobody has said yet what.
    pub(super) quarantined: bool,
    /// Between 0 and 1, another one each time.
    pub(super) chance: f64,
}
