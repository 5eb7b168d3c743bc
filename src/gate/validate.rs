//! Step 4: the body is the route's payload, and yields what the message is told by and what it is about.

use std::sync::Arc;

use crate::config::{Idempotency, PossibleDuplicate, StaleEvents};
use crate::ledger::{self, SubjectRule};
use crate::tiki::{self, PayloadKind, parse_message};

use super::authenticate::{ClientPlan, Message};
use super::freshen::Freshened;
use super::refusal::{Dated, Refusal};
use super::route::RoutePlan;

/// A call whose body is what its route takes.
#[derive(Debug)]
pub struct Valid {
    pub(super) message: Box<Message>,
    pub(super) dated: Option<Dated>,
    /// What duplicates are told by; none on routes without idempotency.
    pub(super) identity: Option<Identity>,
    _seal: Seal,
}

#[derive(Debug)]
struct Seal;

/// What a message is to the ledger.
#[derive(Clone, Debug)]
pub struct Identity {
    pub(super) key: ledger::Key,
    /// The hash of the fields that move money.
    pub(super) fingerprint: ledger::Fingerprint,
    /// What people search by.
    pub(super) fields: ledger::Fields,
    /// The order or payment that other messages may be about too.
    pub(super) subject: Option<ledger::Subject>,
}

/// Checks the body against the route's payload. The bytes stay as they are.
///
/// # Errors
/// [`Refusal::InvalidPayload`] naming the field.
pub fn validate(freshened: Freshened) -> Result<Valid, Refusal> {
    let Freshened { message, dated, .. } = freshened;
    let identity = identify(&message.plan, &message.client, &message.body)?;
    if let Some(identity) = &identity {
        let _ = message.facts.key.set(Arc::clone(&identity.key.message));
    }
    Ok(Valid {
        message,
        dated,
        identity,
        _seal: Seal,
    })
}

/// What duplicates of a body on a route are told by; none on routes without idempotency.
///
/// # Errors
/// [`Refusal::InvalidPayload`] naming the field.
pub(super) fn identify(
    plan: &RoutePlan,
    client: &ClientPlan,
    body: &[u8],
) -> Result<Option<Identity>, Refusal> {
    let route = &plan.route;
    if route.payload == PayloadKind::Any && route.idempotency.is_none() {
        return Ok(None);
    }
    let payload = parse_message(route.payload, body).map_err(Refusal::InvalidPayload)?;
    let Some(rule) = &route.idempotency else {
        return Ok(None);
    };
    let identity = rule
        .spec
        .extract(&payload)
        .map_err(Refusal::InvalidPayload)?;
    Ok(Some(Identity {
        key: ledger::Key {
            namespace: Arc::clone(&plan.namespace),
            client: Arc::clone(&client.id),
            message: Arc::from(identity.key),
        },
        fingerprint: ledger::Fingerprint(identity.fingerprint),
        fields: ledger::Fields(tiki::fields(&payload, &rule.spec).into()),
        subject: tiki::subject(&payload).map(|subject| compared(subject, rule)),
    }))
}

/// What the ledger compares among the messages about one subject.
fn compared(subject: tiki::Subject<'_>, rule: &Idempotency) -> ledger::Subject {
    let (id, rule) = match subject {
        tiki::Subject::Order { id, at } => {
            let rule = SubjectRule::Event {
                at,
                drop_stale: rule.stale_events == StaleEvents::Drop,
            };
            (id, rule)
        }
        tiki::Subject::Payment { id, amount } => {
            let rule = SubjectRule::Payment {
                amount: Arc::from(amount.to_string()),
                window: rule.duplicate_window,
                hold: rule.possible_duplicate == PossibleDuplicate::Hold,
            };
            (id, rule)
        }
    };
    ledger::Subject {
        id: Arc::from(id),
        rule,
    }
}
