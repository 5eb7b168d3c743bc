//! Step 6: the client's limits: its rate, and its share of all that is in flight. They come after
//! authentication, so that a forger can't spend them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::authenticate::{ClientPlan, Message};
use super::bind::{Bound, Standing};
use super::crowd::Crowd;
use super::refusal::{Overload, Refusal};
use super::validate::Identity;

/// A call that may ask the ledger to run it.
#[derive(Debug)]
pub struct Claimable {
    pub(super) message: Box<Message>,
    pub(super) identity: Option<Identity>,
    pub(super) standing: Standing,
    /// Its place among its client's calls; for as long as its caller waits.
    pub(super) share: Share,
    _seal: Seal,
}

#[derive(Debug)]
struct Seal;

/// A call's place among its client's calls; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share(Arc<ClientPlan>);

impl Share {
    fn take(client: &Arc<ClientPlan>) -> (Self, usize) {
        let before = client.usage.in_flight.fetch_add(1, Ordering::Relaxed);
        (Self(Arc::clone(client)), before + 1)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.usage.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all clients' calls take places of.
pub struct Room<'r> {
    pub(super) crowd: &'r Crowd,
    /// `server.max_in_flight`
    pub(super) max_in_flight: usize,
    /// Whether clients can be in each other's way.
    pub(super) shared: bool,
}

/// Takes one call from the client's limits.
///
/// # Errors
/// [`Refusal::RateLimited`], [`Refusal::Overloaded`].
pub fn throttle(room: &Room<'_>, bound: Bound) -> Result<Claimable, Refusal> {
    let Bound {
        message,
        identity,
        standing,
        ..
    } = bound;
    // Old copies cost nothing to make for whoever captured one: they must not spend what new calls need.
    match standing {
        Standing::Timely => message.client.usage.limit.take()?,
        Standing::KnownOnly(_) => message.client.usage.dated_limit.take()?,
    }
    let (share, own) = Share::take(&message.client);
    if room.shared && !room.crowd.is_fair_to_others(own, room.max_in_flight) {
        return Err(Refusal::Overloaded(Overload::ClientShare));
    }
    Ok(Claimable {
        message,
        identity,
        standing,
        share,
        _seal: Seal,
    })
}
