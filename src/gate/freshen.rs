//! Step 3: inside its time window, or not.

use std::time::SystemTime;

use crate::tiki::Freshness;

use super::authenticate::{Authentic, Message};
use super::refusal::Dated;

/// An authentic call whose time was judged. One outside its window may only be answered from the
/// ledger, unless it is known to be a re-send of one that came in time.
#[derive(Debug)]
pub struct Freshened {
    pub(super) message: Box<Message>,
    /// On which side of the window it lies; none: inside.
    pub(super) dated: Option<Dated>,
    _seal: Seal,
}

#[derive(Debug)]
struct Seal;

/// Judges the call's timestamp against its route's window at `now`.
pub fn freshen(now: SystemTime, authentic: Authentic) -> Freshened {
    let message = authentic.message;
    let window = &message.plan.route.windows[message.family.index()];
    let dated = match window.judge(message.timestamp, now) {
        Freshness::Fresh => None,
        Freshness::TooOld => Some(Dated::TooOld),
        Freshness::TooFarAhead => Some(Dated::TooFarAhead),
    };
    Freshened {
        message,
        dated,
        _seal: Seal,
    }
}
