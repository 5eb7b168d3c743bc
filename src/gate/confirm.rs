//! Asks Tiki whether it stands by an IPN, on routes with `confirm`, before the call is forwarded.

use tokio::time::Instant;

use crate::outbound::confirm::{Confirmed, Confirms};
use crate::outbound::{Accounts, Expected, Tiki};
use crate::tiki::{Content, PayloadKind, parse_message};

use super::Gate;
use super::parcel::Parcel;
use super::refusal::Refusal;

/// One worker's way of asking: connections of its own, and what all workers share.
pub(super) struct Confirmer {
    pub(super) tiki: Tiki,
}

/// What is left of Tiki's time for the backend, whatever the question takes.
const MARGIN: std::time::Duration = std::time::Duration::from_millis(500);

/// What confirming needs, of the whole gate.
pub(super) struct Outbound {
    pub(super) accounts: Accounts,
    pub(super) confirms: Confirms,
}

/// Asks about the parcel's transaction, by `send_by` at the latest.
///
/// # Errors
/// [`Refusal::Unconfirmed`] where Tiki says something else, [`Refusal::NotConfirmed`] where it says
/// nothing that counts.
pub(super) async fn confirm(gate: &Gate, parcel: &Parcel, send_by: Instant) -> Result<(), Refusal> {
    let unanswered = Refusal::NotConfirmed(crate::outbound::confirm::Doubt::NoAnswer);
    let (Some(outbound), Some(confirmer)) = (&gate.common.outbound, &gate.confirmer) else {
        // `check` refuses such a route.
        return Err(unanswered);
    };
    let message = parse_message(PayloadKind::TransactionIpn, &parcel.body)
        .map_err(Refusal::InvalidPayload)?;
    let Content::TransactionIpn(ipn) = message.content() else {
        return Err(unanswered);
    };
    let expected = Expected::from(ipn);
    let deadline = send_by - MARGIN;
    let asking = outbound
        .confirms
        .confirm(&confirmer.tiki, &parcel.client.id, &expected, deadline);
    match asking.await {
        Confirmed::Yes => Ok(()),
        Confirmed::NotYet(doubt) => Err(Refusal::NotConfirmed(doubt)),
        Confirmed::No(seen) => {
            tracing::error!(
                tikigate.request_id = %parcel.facts.request_id,
                tikigate.client = parcel.client.client.name,
                tiki_transaction_id = expected.tiki_transaction_id,
                transaction_id = expected.transaction_id,
                transaction_amount = %expected.amount,
                status = expected.status.as_str(),
                tikis_transaction_id = seen.tiki_transaction_id,
                tikis_partner_transaction_id = seen.transaction_id,
                tikis_amount = %seen.amount,
                tikis_status = seen.status.as_str(),
                "a signed notice is not what Tiki says of the transaction: it was refused"
            );
            Err(Refusal::Unconfirmed)
        }
    }
}
