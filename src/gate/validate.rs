//! Step 4: the body is the route's payload, and yields the message's key and money fields.

use std::sync::Arc;

use crate::ledger;
use crate::tiki::{PayloadKind, parse_message};

use super::authenticate::Message;
use super::freshen::Freshened;
use super::refusal::{Dated, Refusal};

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

/// A message's key in the ledger and the hash of the fields that move money.
#[derive(Clone, Debug)]
pub struct Identity {
    pub(super) key: ledger::Key,
    pub(super) fingerprint: ledger::Fingerprint,
}

/// Checks the body against the route's payload. The bytes stay as they are.
///
/// # Errors
/// [`Refusal::InvalidPayload`] naming the field.
pub fn validate(freshened: Freshened) -> Result<Valid, Refusal> {
    let Freshened { message, dated, .. } = freshened;
    let identity = identify(&message)?;
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

fn identify(message: &Message) -> Result<Option<Identity>, Refusal> {
    let route = &message.plan.route;
    if route.payload == PayloadKind::Any && route.idempotency.is_none() {
        return Ok(None);
    }
    let payload = parse_message(route.payload, &message.body).map_err(Refusal::InvalidPayload)?;
    let Some(rule) = &route.idempotency else {
        return Ok(None);
    };
    let identity = rule
        .spec
        .extract(&payload)
        .map_err(Refusal::InvalidPayload)?;
    Ok(Some(Identity {
        key: ledger::Key {
            namespace: Arc::clone(&message.plan.namespace),
            client: Arc::clone(&message.client.id),
            message: Arc::from(identity.key),
        },
        fingerprint: ledger::Fingerprint(identity.fingerprint),
    }))
}
