//! What became of a call to the backend, for the ledger and for the caller.

use crate::client::BackendAnswer;
use crate::ledger::{Cause, KeptAnswer, LedgerError, Settlement};

use super::answer::Answer;
use super::forward::{ForwardFault, OVERLOADED};
use super::outcome::{self, Class};
use super::parcel::Parcel;
use super::refusal::{LedgerFault, Overload, Refusal};

/// What an attempt came to, for the ledger and for the caller.
pub(super) struct Understood {
    /// For the ledger.
    pub(super) settlement: Settlement,
    /// For the caller.
    pub(super) answer: Result<Answer, Refusal>,
}

/// Says what a call came to.
pub(super) fn understand(
    parcel: &Parcel,
    sent: Result<BackendAnswer, ForwardFault>,
    attempt: u32,
) -> Understood {
    match sent {
        Ok(answer) => understand_answer(parcel, &answer, attempt),
        Err(fault) => understand_fault(fault),
    }
}

fn understand_answer(parcel: &Parcel, answer: &BackendAnswer, attempt: u32) -> Understood {
    let route = &parcel.plan.route;
    let class = outcome::classify(&route.outcome, answer);
    let cause = Cause::Borrowed(class.cause());
    let with_facts = |kept: KeptAnswer| Answer {
        kept,
        replayed: false,
        attempt: Some(attempt),
    };
    let settlement = match class {
        Class::Success | Class::Declined => {
            let kept = outcome::final_answer(route, class, answer);
            let answer = Ok(with_facts(kept.clone()));
            return Understood {
                settlement: Settlement::Done(kept, cause),
                answer,
            };
        }
        Class::NotApplied => Settlement::Released(cause),
        Class::CantSay => Settlement::Unknown(cause),
    };
    let answer = outcome::passing_answer(class, answer).map(with_facts);
    Understood { settlement, answer }
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
    Understood {
        settlement,
        answer: Err(refusal),
    }
}

/// What the caller gets when the ledger failed.
pub(super) fn ledger_refusal(error: &LedgerError) -> Refusal {
    Refusal::LedgerUnavailable(match error {
        LedgerError::Full => LedgerFault::Full,
        LedgerError::Failed(_) => LedgerFault::Failed,
    })
}
