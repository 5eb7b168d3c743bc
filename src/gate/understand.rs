//! What became of a call to the backend, for the ledger and for the caller.

use http::HeaderMap;

use crate::client::BackendAnswer;
use crate::ledger::{Cause, KeptAnswer, LedgerError, Settlement};

use super::answer::Answer;
use super::forward::{ForwardFault, OVERLOADED};
use super::outcome::{self, Class};
use super::parcel::{Parcel, emptied};
use super::refusal::{LedgerFault, Overload, Refusal};

/// What an attempt came to, for the ledger and for the caller.
pub(super) enum Understood {
    /// The backend's final word: the answer to keep and to give.
    Final {
        kept: KeptAnswer,
        cause: Cause,
        room: HeaderMap,
    },
    /// The message may come again, or is held; the caller gets an answer of the backend's all the same.
    Passing {
        settlement: Settlement,
        kept: KeptAnswer,
        room: HeaderMap,
    },
    /// The same, and there is no answer that could be given.
    Refused {
        settlement: Settlement,
        refusal: Refusal,
    },
}

impl Understood {
    /// Whether the message is done with.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Final { .. })
    }

    /// For the ledger.
    pub(super) fn settlement(&self) -> Settlement {
        match self {
            Self::Final { kept, cause, .. } => Settlement::Done(kept.clone(), cause.clone()),
            Self::Passing { settlement, .. } | Self::Refused { settlement, .. } => {
                settlement.clone()
            }
        }
    }

    /// For the caller.
    pub(super) fn answer(self, attempt: u32) -> Result<Answer, Refusal> {
        match self {
            Self::Final { kept, room, .. } | Self::Passing { kept, room, .. } => Ok(Answer {
                kept,
                replayed: false,
                attempt: Some(attempt),
                room,
            }),
            Self::Refused { refusal, .. } => Err(refusal),
        }
    }
}

/// Says what a call came to.
pub(super) fn understand(parcel: &Parcel, sent: Result<BackendAnswer, ForwardFault>) -> Understood {
    match sent {
        Ok(answer) => understand_answer(parcel, answer),
        Err(fault) => understand_fault(fault),
    }
}

fn understand_answer(parcel: &Parcel, answer: BackendAnswer) -> Understood {
    let route = &parcel.plan.route;
    let class = outcome::classify(&route.outcome, &answer);
    let cause = Cause::Borrowed(class.cause());
    let settlement = match class {
        Class::Success | Class::Declined => {
            return Understood::Final {
                kept: outcome::final_answer(route, class, &answer),
                cause,
                room: emptied(answer.headers),
            };
        }
        Class::NotApplied => Settlement::Released(cause),
        Class::CantSay => Settlement::Unknown(cause),
    };
    match outcome::passing_answer(class, &answer) {
        Ok(kept) => Understood::Passing {
            settlement,
            kept,
            room: emptied(answer.headers),
        },
        Err(refusal) => Understood::Refused {
            settlement,
            refusal,
        },
    }
}

fn understand_fault(fault: ForwardFault) -> Understood {
    let (settlement, refusal) = match fault {
        ForwardFault::NotSent(OVERLOADED) => (
            Settlement::Released(Cause::Borrowed(OVERLOADED)),
            Refusal::Overloaded(Overload::Upstream),
        ),
        ForwardFault::NotSent(word) => (
            Settlement::Released(Cause::Borrowed(word)),
            Refusal::UpstreamUnreachable(word),
        ),
        ForwardFault::Unavailable(shut) => (
            Settlement::Released(Cause::Borrowed(shut.why.as_str())),
            Refusal::from(shut),
        ),
        ForwardFault::Fenced => (
            Settlement::Released(Cause::Borrowed("fenced")),
            Refusal::LedgerUnavailable(LedgerFault::Fenced),
        ),
        ForwardFault::Ledger(error) => (
            Settlement::Released(Cause::Borrowed("ledger_unavailable")),
            ledger_refusal(&error),
        ),
        ForwardFault::TimedOut => (
            Settlement::Unknown(Cause::Borrowed("upstream_timeout")),
            Refusal::UpstreamTimeout,
        ),
        ForwardFault::MaybeSent(fault) => (
            Settlement::Unknown(Cause::Borrowed(fault.as_str())),
            Refusal::UpstreamFailed(fault),
        ),
    };
    Understood::Refused {
        settlement,
        refusal,
    }
}

/// What the caller gets when the ledger failed.
pub(super) fn ledger_refusal(error: &LedgerError) -> Refusal {
    Refusal::LedgerUnavailable(match error {
        LedgerError::Full => LedgerFault::Full,
        LedgerError::Failed(_) => LedgerFault::Failed,
    })
}
