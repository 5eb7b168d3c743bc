//! Step 5: the signature counts on this route and on no other, and what is outside its window has
//! a reason to be taken.

use std::time::{Duration, SystemTime};

use crate::ledger::Admission;

use super::arrivals::Arrivals;
use super::authenticate::Message;
use super::refusal::{Dated, Refusal};
use super::signatures::{RESEND_HORIZON, SignatureKey, Signatures};
use super::validate::{Identity, Valid};

/// A valid call whose signature is tied to its route.
#[derive(Debug)]
pub struct Bound {
    pub(super) message: Box<Message>,
    pub(super) identity: Option<Identity>,
    pub(super) standing: Standing,
    _seal: Seal,
}

#[derive(Debug)]
struct Seal;

/// What a call's time allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may run.
    Timely,
    /// It may only be answered from what the ledger knows.
    KnownOnly(Dated),
}

impl Standing {
    pub(super) fn admission(self) -> Admission {
        match self {
            Self::Timely => Admission::Any,
            Self::KnownOnly(_) => Admission::KnownOnly,
        }
    }
}

/// Ties the signature to the route. `monotonic` and `now` are the gate's two times.
///
/// # Errors
/// [`Refusal::Replayed`], [`Refusal::OutOfWindow`], [`Refusal::Overloaded`].
pub fn bind(
    signatures: &Signatures,
    arrivals: &Arrivals,
    monotonic: Duration,
    now: SystemTime,
    valid: Valid,
) -> Result<Bound, Refusal> {
    let Valid {
        message,
        dated,
        identity,
        ..
    } = valid;
    let key = SignatureKey::from(&message.mac);
    let route = message.plan.number;
    // Without a key nothing else tells the second copy of a call from the first.
    let once = identity.is_none() && !message.plan.is_safe();
    let tie = |lifetime| {
        let tied = signatures.bind(key, route, once, monotonic, lifetime);
        match tied {
            Ok(_) => arrivals.forget(key),
            Err(Refusal::Overloaded(_)) => arrivals.note(&message.mac),
            Err(_) => {}
        }
        tied
    };
    let standing = match dated {
        None => {
            tie(message.plan.signature_lifetime)?;
            Standing::Timely
        }
        Some(_) if signatures.recall(key, route, once, monotonic)? => Standing::Timely,
        Some(_) if came_in_time(arrivals, &message) => {
            tie(message.plan.signature_lifetime)?;
            Standing::Timely
        }
        Some(Dated::TooOld) if within_resend_age(&message, now) => {
            tie(RESEND_HORIZON)?;
            Standing::Timely
        }
        Some(dated) if identity.is_some() => Standing::KnownOnly(dated),
        Some(dated) => return Err(Refusal::OutOfWindow(dated)),
    };
    if standing == Standing::Timely {
        let _ = message.facts.signature.set(key);
    }
    Ok(Bound {
        message,
        identity,
        standing,
        _seal: Seal,
    })
}

fn came_in_time(arrivals: &Arrivals, message: &Message) -> bool {
    let window = &message.plan.route.windows[message.family.index()];
    arrivals.came_in_time(&message.mac, message.timestamp, window)
}

/// Whether the route takes calls of this age on its ledger's word alone (`resend_age`).
fn within_resend_age(message: &Message, now: SystemTime) -> bool {
    let rule = message.plan.route.idempotency.as_ref();
    let resend_age = rule.map_or(Duration::ZERO, |rule| rule.resend_age);
    let age = now.duration_since(message.timestamp.to_system_time());
    age.is_ok_and(|age| age <= resend_age)
}
