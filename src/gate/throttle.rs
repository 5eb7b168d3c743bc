//! Step 6: the client's rate limit. It comes after authentication, so that a forger can't spend it.

use super::authenticate::Message;
use super::bind::{Bound, Standing};
use super::refusal::Refusal;
use super::validate::Identity;

/// A call that may ask the ledger to run it.
#[derive(Debug)]
pub struct Claimable {
    pub(super) message: Box<Message>,
    pub(super) identity: Option<Identity>,
    pub(super) standing: Standing,
    _seal: Seal,
}

#[derive(Debug)]
struct Seal;

/// Takes one call from the client's limit.
///
/// # Errors
/// [`Refusal::RateLimited`].
pub fn throttle(bound: Bound) -> Result<Claimable, Refusal> {
    let Bound {
        message,
        identity,
        standing,
        ..
    } = bound;
    // Old copies cost nothing to make for whoever captured one: they must not spend what new calls need.
    match standing {
        Standing::Timely => message.client.limit.take()?,
        Standing::KnownOnly(_) => message.client.dated_limit.take()?,
    }
    Ok(Claimable {
        message,
        identity,
        standing,
        _seal: Seal,
    })
}
