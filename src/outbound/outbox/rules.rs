//! What becomes of a delivery: pure, over the deliveries of one transaction.

use std::time::{Duration, SystemTime};

use super::types::{
    Accepted, Delivery, DeliveryId, Event, Outcome, Posting, Report, State, Step, Tidings, Word,
    WordFault,
};
use crate::config;
use crate::ledger::{NAME_LIMIT, REASON_LIMIT};
use crate::outbound::status::Asked;
use crate::tiki::{IpnReply, ReplyCode, TransactionStatus};

/// Tries before the status is asked (docs/protocol.md, "Retries").
pub(in crate::outbound) const TRIES: u32 = 3;

/// How long a try may take, from when it was taken to its record; after it somebody else tries.
pub(in crate::outbound) const FLIGHT: Duration = Duration::from_secs(150);
/// The part of it in which something may be begun: a call to Tiki ends within a minute of its start.
pub(in crate::outbound) const MAY_BEGIN: Duration = Duration::from_secs(60);

/// Events that are kept of a delivery: the first ones, and the latest.
const EVENTS: usize = 24;
const FIRST_EVENTS: usize = 6;
const DETAIL: usize = 80;

/// The status that is not final.
const PENDING: &str = "PENDING";

/// Further ahead than any pause: the clock was wrong when it was put off.
pub(super) const FAR_AHEAD: Duration = Duration::from_secs(2 * 86_400);

/// The generation of what is posted while the store may have forgotten something: older than any.
const DOUBTFUL: u64 = 0;

/// What a delivery takes beside its body, in bytes, with its columns, indexes and as many events as there
/// can be, but for people's reasons.
pub(in crate::outbound) const OVERHEAD: usize = 3072;

/// How deliveries are worked off, from the configuration.
#[derive(Clone, Copy, Debug)]
pub(in crate::outbound) struct Policy {
    pub(in crate::outbound) retry_after: Duration,
    pub(in crate::outbound) longest_pause: Duration,
    pub(in crate::outbound) give_up_after: Duration,
    /// Whether the backend is told of failures.
    pub(in crate::outbound) tells: bool,
}

impl From<&config::Outbox> for Policy {
    fn from(outbox: &config::Outbox) -> Self {
        Self {
            retry_after: outbox.retry_after,
            longest_pause: outbox.longest_pause,
            give_up_after: outbox.give_up_after,
            tells: outbox.notify.is_some(),
        }
    }
}

impl Policy {
    /// The pause after so many tries: doubled from one to the next, and a fourth of it left to chance,
    /// so that what failed together doesn't come again together.
    fn pause(&self, tries: u32, chance: f64) -> Duration {
        let doublings = tries.saturating_sub(1).min(30);
        let pause = self.retry_after.saturating_mul(1 << doublings);
        let pause = pause.min(self.longest_pause);
        pause.mul_f64(0.75 + 0.25 * chance.clamp(0.0, 1.0))
    }
}

/// What a posting is among those of its transaction. `Stored` has no id yet: the store gives it.
pub(super) fn post(
    siblings: &mut [Delivery],
    posting: &Posting,
    tidings: Tidings,
) -> Result<Accepted, Box<Delivery>> {
    let amount = posting.expected.amount.to_string();
    let status = posting.expected.status.as_str();
    let other_amount = siblings
        .iter()
        .find(|sibling| sibling.amount != amount && sibling.state != State::Cancelled);
    if let Some(other) = other_amount {
        let what = "this transaction was posted with another amount";
        return Ok(Accepted::Conflict(other.id, what));
    }
    let finals = siblings.iter().find(|sibling| {
        let ended = matches!(sibling.state, State::Cancelled | State::Failed);
        sibling.status != PENDING && (!ended || sibling.maybe_taken)
    });
    let known = siblings.iter().position(|one| one.status == status);
    if let Some(is_final) = finals
        && status == PENDING
    {
        // Said again, it is what it was; said for the first time, it comes too late.
        return Ok(match known.map(|index| &siblings[index]) {
            Some(known) => Accepted::Known(known.id, known.state),
            None => Accepted::Conflict(is_final.id, "this transaction has a final status already"),
        });
    }
    let place = 1 + siblings.iter().map(|one| one.place).max().unwrap_or(0);
    let accepted = match known {
        Some(index) if matches!(siblings[index].state, State::Pending | State::Delivered) => {
            let known = &siblings[index];
            return Ok(match known.base_url == posting.base_url {
                true => Accepted::Known(known.id, known.state),
                false => Accepted::Conflict(
                    known.id,
                    "it was accepted for another base URL, and goes nowhere else: cancel that delivery first",
                ),
            });
        }
        Some(index) => {
            // A repeat that comes late must not undo what was said since.
            let counts = |one: &&Delivery| {
                one.place > siblings[index].place
                    && matches!(one.state, State::Pending | State::Delivered)
            };
            if let Some(later) = siblings.iter().find(counts) {
                let what = "a later state of this transaction was posted: that one counts";
                return Ok(Accepted::Conflict(later.id, what));
            }
            let delivery = &mut siblings[index];
            reopen(delivery, tidings);
            // What it was pinned to may be gone: whoever posts says anew where it goes, and what.
            delivery.client.clone_from(&posting.client);
            delivery.base_url.clone_from(&posting.base_url);
            delivery.amount = amount;
            delivery.body = posting.body.clone();
            delivery.place = place;
            note(delivery, tidings.now, "posted_again", None, None);
            Ok(Accepted::Reopened(delivery.id))
        }
        None => Err(Box::new(first(posting, amount, place, tidings))),
    };
    for sibling in siblings.iter_mut() {
        // One that is at Tiki right now is superseded when its try is recorded.
        if sibling.place < place
            && sibling.state == State::Pending
            && sibling.flying_until.is_none()
        {
            supersede(sibling, tidings.now);
        }
    }
    accepted
}

fn first(posting: &Posting, amount: String, place: u64, tidings: Tidings) -> Delivery {
    let now = tidings.now;
    let mut delivery = Delivery {
        id: DeliveryId(0),
        client: posting.client.clone(),
        base_url: posting.base_url.clone(),
        tiki_transaction_id: posting.expected.tiki_transaction_id.clone(),
        transaction_id: posting.expected.transaction_id.clone(),
        status: posting.expected.status.as_str().to_owned(),
        amount,
        body: posting.body.clone(),
        state: State::Pending,
        step: Step::Send,
        place,
        tries: 0,
        asks: 0,
        maybe_taken: false,
        refusal: None,
        flight: 0,
        flying_until: None,
        next_at: now,
        created_at: now,
        opened_at: now,
        updated_at: now,
        generation: generation_of(tidings),
        outcome: None,
        tell_at: None,
        tellings: 0,
        held: false,
        events: Vec::new(),
    };
    note(&mut delivery, now, "posted", None, None);
    delivery
}

/// In quarantine the store may have forgotten that this very notice was sent: the status is asked first.
fn generation_of(tidings: Tidings) -> u64 {
    match tidings.quarantined {
        true => DOUBTFUL,
        false => tidings.generation,
    }
}

/// Makes a delivery that ended pending again. What may have been taken stays so: the status is asked first.
fn reopen(delivery: &mut Delivery, tidings: Tidings) {
    delivery.state = State::Pending;
    delivery.step = match delivery.maybe_taken {
        true => Step::Ask,
        false => Step::Send,
    };
    delivery.tries = 0;
    delivery.asks = 0;
    delivery.refusal = None;
    // Whoever tried it before has nothing to say of it any more.
    delivery.flight += 1;
    delivery.generation = match tidings.quarantined {
        true => DOUBTFUL,
        false => delivery.generation,
    };
    delivery.outcome = None;
    delivery.tell_at = None;
    delivery.tellings = 0;
    delivery.next_at = tidings.now;
    delivery.opened_at = tidings.now;
    delivery.updated_at = tidings.now;
}

/// Takes the delivery that is to be tried among those of one transaction, if any is: the latest, and
/// only while none of them is at Tiki. Returns its index.
pub(super) fn take(siblings: &mut [Delivery], tidings: Tidings) -> Option<usize> {
    let now = tidings.now;
    for sibling in siblings.iter_mut() {
        if sibling.flying_until.is_some_and(|until| until <= now) {
            lapse(sibling, now);
        }
    }
    if siblings.iter().any(|one| one.flying_until.is_some()) {
        return None;
    }
    let pending = |one: &&Delivery| one.state == State::Pending;
    let latest = siblings.iter().filter(pending).map(|one| one.place).max()?;
    for sibling in siblings.iter_mut() {
        if sibling.state == State::Pending && sibling.place < latest {
            supersede(sibling, now);
        }
    }
    let index = siblings
        .iter()
        .position(|one| one.place == latest && one.state == State::Pending)?;
    let delivery = &mut siblings[index];
    if delivery.next_at > now && delivery.next_at < now + FAR_AHEAD {
        return None;
    }
    delivery.opened_at = delivery.opened_at.min(now);
    if delivery.generation != tidings.generation {
        // The store forgot something since: tries of it, perhaps.
        delivery.maybe_taken = true;
        delivery.step = Step::Ask;
    }
    delivery.flight += 1;
    delivery.flying_until = Some(now + FLIGHT);
    delivery.updated_at = now;
    match delivery.step {
        Step::Send => delivery.tries = delivery.tries.saturating_add(1),
        Step::Ask => delivery.asks = delivery.asks.saturating_add(1),
    }
    Some(index)
}

/// A try whose process died, or was too slow: it may have been taken.
pub(super) fn lapse(delivery: &mut Delivery, now: SystemTime) {
    delivery.flying_until = None;
    delivery.maybe_taken |= delivery.step == Step::Send;
    note(delivery, now, "lapsed", None, None);
}

/// Gives a flight back that never began.
pub(super) fn give_back(delivery: &mut Delivery, flight: u64) -> bool {
    if delivery.flight != flight || delivery.flying_until.is_none() {
        return false;
    }
    delivery.flying_until = None;
    match delivery.step {
        Step::Send => delivery.tries = delivery.tries.saturating_sub(1),
        Step::Ask => delivery.asks = delivery.asks.saturating_sub(1),
    }
    true
}

/// Records what became of a flight, by the delivery as it was tried. Returns whether it changed anything.
pub(super) fn record(
    siblings: &mut [Delivery],
    tried: &Delivery,
    report: &Report,
    policy: Policy,
    tidings: Tidings,
) -> bool {
    let now = tidings.now;
    let Some(index) = siblings.iter().position(|one| one.id == tried.id) else {
        return false;
    };
    let overtaken = siblings
        .iter()
        .any(|one| one.place > siblings[index].place && one.state == State::Pending);
    // What Tiki took of another final state may be why it refuses this one.
    let others_taken = siblings
        .iter()
        .any(|one| one.id != tried.id && one.maybe_taken && one.status != PENDING);
    let delivery = &mut siblings[index];
    if delivery.amount != tried.amount {
        // Taken back by a person and posted again with another: that was not tried.
        return false;
    }
    if delivery.flight != tried.flight || delivery.state != State::Pending {
        // Somebody else tried since. That this one was taken is still worth knowing.
        let late = delivery.flying_until.is_none() && delivery.state == State::Pending;
        if late && *report == Report::Answered(IpnReply::Taken) {
            end(delivery, Outcome::Taken, policy, now);
            note(delivery, now, "taken_late", None, None);
            return true;
        }
        return false;
    }
    delivery.flying_until = None;
    delivery.updated_at = now;
    note(delivery, now, report.as_str(), None, detail(report));
    judge(delivery, report, others_taken, policy, tidings);
    if delivery.state == State::Pending && overtaken {
        supersede(delivery, now);
    }
    if delivery.state == State::Failed && overtaken {
        // The later state gets an answer of its own.
        supersede(delivery, now);
        delivery.tell_at = None;
    }
    true
}

fn judge(
    delivery: &mut Delivery,
    report: &Report,
    others_taken: bool,
    policy: Policy,
    tidings: Tidings,
) {
    let now = tidings.now;
    match report {
        Report::Answered(IpnReply::Taken) => end(delivery, Outcome::Taken, policy, now),
        Report::Answered(IpnReply::Refused(code)) => {
            let code = code.map(ReplyCode::number);
            if delivery.maybe_taken || others_taken {
                // An earlier try may be why it is refused now: the status decides.
                delivery.refusal = Some(code);
                delivery.step = Step::Ask;
                delivery.asks = 0;
                later(delivery, Duration::ZERO, policy, now);
            } else {
                end(delivery, Outcome::Refused(code), policy, now);
            }
        }
        Report::Answered(IpnReply::Again) | Report::NoAnswer(_) => {
            delivery.maybe_taken = true;
            unclear(delivery, policy, tidings);
        }
        Report::NotSent(_) => unclear(delivery, policy, tidings),
        Report::Asked(asked) => judge_asked(delivery, asked, policy, tidings),
    }
}

/// A try without a clear answer: after three of them the status is asked between the tries, as far as
/// any of them may have been taken.
fn unclear(delivery: &mut Delivery, policy: Policy, tidings: Tidings) {
    if delivery.tries >= TRIES && delivery.maybe_taken {
        delivery.step = Step::Ask;
    }
    let pause = policy.pause(delivery.tries, tidings.chance);
    later(delivery, pause, policy, tidings.now);
}

fn judge_asked(delivery: &mut Delivery, asked: &Asked, policy: Policy, tidings: Tidings) {
    let now = tidings.now;
    let forgot = delivery.generation != tidings.generation;
    match asked {
        Asked::Same => return end(delivery, Outcome::Confirmed, policy, now),
        // Tiki is further already: that a payment is pending is no news, and no reason for a refund.
        Asked::Later(_) => return supersede(delivery, now),
        _ => {}
    }
    // That there is no such transaction, or that it was cancelled, says that no try was taken; that the
    // question is wrong or the transaction somebody else's says nothing of it.
    let otherwise = matches!(
        asked,
        Asked::Other(_) | Asked::Refused(ReplyCode::NotFound | ReplyCode::Cancelled)
    );
    if let Some(code) = delivery.refusal {
        if let Asked::Other(seen) = asked
            && seen.status == TransactionStatus::Success
            && seen.transaction_id == delivery.transaction_id
        {
            // It is paid, if not as this notice says: whatever that means, a refund it isn't.
            return end(delivery, Outcome::Contradicted, policy, now);
        }
        if otherwise {
            return end(delivery, Outcome::Refused(code), policy, now);
        }
        let pause = policy.pause(delivery.asks, tidings.chance);
        return later(delivery, pause, policy, now);
    }
    if forgot {
        match asked {
            Asked::Other(_) => return end(delivery, Outcome::Contradicted, policy, now),
            Asked::Pending(_) | Asked::Refused(ReplyCode::NotFound | ReplyCode::Cancelled) => {
                // Now it is known what to do, and later restores are later ones.
                delivery.generation = tidings.generation;
                delivery.step = Step::Send;
                return later(delivery, Duration::ZERO, policy, now);
            }
            _ => {
                let pause = policy.pause(delivery.asks, tidings.chance);
                return later(delivery, pause, policy, now);
            }
        }
    }
    // Not delivered, as far as can be told: it is sent again. One that was opened again and asked
    // about first has not been sent at all yet.
    delivery.step = Step::Send;
    let pause = match delivery.tries {
        0 => Duration::ZERO,
        tries => policy.pause(tries, tidings.chance),
    };
    later(delivery, pause, policy, now);
}

/// Puts the next step off; beyond `give_up_after` only one last one is made.
fn later(delivery: &mut Delivery, pause: Duration, policy: Policy, now: SystemTime) {
    let last = delivery.opened_at + policy.give_up_after;
    // After a long time away nothing was tried yet.
    let tried = delivery.tries.saturating_add(delivery.asks) >= TRIES;
    if now >= last && tried {
        return end(delivery, Outcome::GaveUp, policy, now);
    }
    let next = now + pause;
    delivery.next_at = match now < last {
        true => next.min(last),
        false => next,
    };
}

fn end(delivery: &mut Delivery, outcome: Outcome, policy: Policy, now: SystemTime) {
    delivery.state = match outcome {
        Outcome::Taken | Outcome::Confirmed => State::Delivered,
        Outcome::Refused(_) | Outcome::GaveUp | Outcome::Contradicted => State::Failed,
        Outcome::Cancelled => State::Cancelled,
        Outcome::Superseded => State::Superseded,
    };
    delivery.outcome = Some(outcome);
    delivery.updated_at = now;
    delivery.flying_until = None;
    if delivery.state == State::Failed {
        delivery.tell_at = policy.tells.then_some(now);
    }
}

fn supersede(delivery: &mut Delivery, now: SystemTime) {
    delivery.state = State::Superseded;
    delivery.outcome = Some(Outcome::Superseded);
    delivery.updated_at = now;
    note(delivery, now, "superseded", None, None);
}

/// Gives up what no account delivers any more, once its time is over. Returns whether it did.
pub(super) fn give_up_held(delivery: &mut Delivery, policy: Policy, now: SystemTime) -> bool {
    let over = delivery.opened_at + policy.give_up_after <= now;
    let waits = delivery.state == State::Pending && delivery.flying_until.is_none();
    if over && waits {
        note(delivery, now, "held_too_long", None, None);
        end(delivery, Outcome::GaveUp, policy, now);
    }
    over && waits
}

/// The backend was told of a failure, or could not be. Of another one than the latest, that says nothing.
pub(super) fn told(
    delivery: &mut Delivery,
    told: &Delivery,
    heard: bool,
    policy: Policy,
    tidings: Tidings,
) {
    if delivery.tell_at.is_none() || delivery.flight != told.flight {
        return;
    }
    if heard {
        delivery.tell_at = None;
        note(delivery, tidings.now, "told", None, None);
        return;
    }
    delivery.tellings = delivery.tellings.saturating_add(1);
    delivery.tell_at = Some(tidings.now + policy.pause(delivery.tellings, tidings.chance));
}

/// A person's word.
pub(super) fn word(
    siblings: &mut [Delivery],
    id: DeliveryId,
    word: &Word,
    tidings: Tidings,
) -> Result<usize, WordFault> {
    let fits = |text: &str, most: usize| !text.trim().is_empty() && text.len() <= most;
    if !fits(&word.by, NAME_LIMIT) || !fits(&word.reason, REASON_LIMIT) {
        return Err(WordFault::Unattributed);
    }
    let index = siblings
        .iter()
        .position(|one| one.id == id)
        .ok_or(WordFault::NotFound)?;
    let now = tidings.now;
    // A later state that counts: a failed or cancelled one is in nobody's way.
    let overtaken = siblings.iter().any(|one| {
        one.place > siblings[index].place && matches!(one.state, State::Pending | State::Delivered)
    });
    let latest = siblings.iter().map(|one| one.place).max().unwrap_or(0);
    let delivery = &mut siblings[index];
    if delivery.flying_until.is_some_and(|until| until > now) {
        return Err(WordFault::InFlight);
    }
    if delivery.flying_until.is_some() {
        // Whoever tried it is gone, and may have got through.
        lapse(delivery, now);
    }
    let what = match (word.retry, delivery.state) {
        (true, State::Delivered)
        | (false, State::Delivered | State::Cancelled | State::Superseded) => {
            return Err(WordFault::Over(delivery.state));
        }
        (true, _) if overtaken => return Err(WordFault::Overtaken),
        (true, _) => {
            reopen(delivery, tidings);
            // As if it were posted now.
            delivery.place = latest + 1;
            "retry"
        }
        (false, State::Pending | State::Failed) => {
            delivery.state = State::Cancelled;
            delivery.outcome = Some(Outcome::Cancelled);
            delivery.tell_at = None;
            delivery.updated_at = now;
            "cancel"
        }
    };
    let (by, reason) = (word.by.clone(), word.reason.clone());
    note(delivery, now, what, Some(by), Some(reason));
    Ok(index)
}

fn detail(report: &Report) -> Option<String> {
    match report {
        Report::Answered(IpnReply::Refused(Some(code))) => Some(format!("code {}", code.number())),
        Report::NoAnswer(why) | Report::NotSent(why) | Report::Asked(Asked::Nothing(why)) => {
            Some(why.clone())
        }
        Report::Asked(Asked::Refused(code)) => Some(format!("code {}", code.number())),
        Report::Asked(Asked::Other(seen) | Asked::Pending(seen) | Asked::Later(seen)) => {
            Some(format!(
                "Tiki has {} of {} as {}",
                seen.amount,
                seen.transaction_id,
                seen.status.as_str()
            ))
        }
        _ => None,
    }
}

fn note(
    delivery: &mut Delivery,
    at: SystemTime,
    what: &str,
    by: Option<String>,
    detail: Option<String>,
) {
    let detail = detail.map(|text| match text.char_indices().nth(DETAIL) {
        Some((end, _)) if by.is_none() => text[..end].to_owned(),
        _ => text,
    });
    if delivery.events.len() >= EVENTS {
        delivery.events.remove(FIRST_EVENTS);
    }
    delivery.events.push(Event {
        at,
        what: what.to_owned(),
        by,
        detail,
    });
}
