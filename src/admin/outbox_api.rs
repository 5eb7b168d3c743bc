//! The outbox, seen by people, who try again or take back.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{self, Answer, Fault};
use super::handler::Desk;
use super::ledger_api::words;
use super::view::time;
use crate::outbound::outbox::{
    Delivery, DeliveryId, Event, Filter, Outbox, Outcome, State, StoreFault, Word, WordFault,
};

/// Deliveries in one answer: unless asked, and at most.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 500;
/// Bytes at most of what is searched for.
const MAX_QUERY: usize = 256;

/// The body of a word on a delivery.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    reason: Option<String>,
    by: Option<String>,
}

/// `GET /api/outbox`: deliveries in the order of their ids, and where to go on.
pub(super) async fn list(desk: &Desk, query: &str) -> Result<Answer, Fault> {
    let filter = filter(query)?;
    let outbox = outbox(desk)?;
    let page = store(desk.ask(outbox.list(filter)).await?)?;
    let next = page.next.map(|next| next.to_string());
    let deliveries: Vec<_> = page.deliveries.iter().map(summary).collect();
    Ok(answer::data(
        json!({ "deliveries": deliveries, "next": next }),
    ))
}

/// `GET /api/outbox/{id}`: one delivery with its body and events.
pub(super) async fn show(desk: &Desk, id: DeliveryId) -> Result<Answer, Fault> {
    let outbox = outbox(desk)?;
    let delivery = store(desk.ask(outbox.get(id)).await?)?.ok_or(Fault::NoSuchDelivery)?;
    Ok(answer::data(full(&delivery)))
}

/// `POST /api/outbox/{id}/retry` and `/cancel`.
pub(super) async fn word(
    desk: &Desk,
    id: DeliveryId,
    retry: bool,
    holder: &str,
    body: &[u8],
) -> Result<Answer, Fault> {
    let said: Said = words::read("word on a delivery", body)?;
    let word = Word {
        retry,
        by: words::signed(holder, said.by)?,
        reason: words::reason(said.reason)?,
    };
    let outbox = outbox(desk)?;
    let done = desk.ask(outbox.word(id, word.clone())).await?;
    let delivery = done.map_err(|fault| match fault {
        WordFault::NotFound => Fault::NoSuchDelivery,
        WordFault::Store(fault) => unavailable(&fault),
        other => Fault::DeliveryRefused(other),
    })?;
    tracing::info!(
        tikigate.delivery = %id, tikigate.by = word.by, tikigate.reason = word.reason,
        tikigate.state = delivery.state.as_str(), "word on a delivery through the admin API",
    );
    if retry {
        desk.control.outbox_changed();
    }
    Ok(answer::data(full(&delivery)))
}

fn outbox(desk: &Desk) -> Result<&dyn Outbox, Fault> {
    desk.control.outbox().ok_or(Fault::NoOutbox)
}

fn store<T>(answer: Result<T, StoreFault>) -> Result<T, Fault> {
    answer.map_err(|fault| unavailable(&fault))
}

fn unavailable(fault: &StoreFault) -> Fault {
    tracing::warn!(error = %fault, "the outbox refused the admin API");
    Fault::LedgerUnavailable
}

/// `state=&transaction=&after=&limit=`, read whole or not at all.
fn filter(query: &str) -> Result<Filter, Fault> {
    let mut filter = Filter {
        limit: DEFAULT_LIMIT,
        ..Filter::default()
    };
    let mut seen = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if seen.contains(&name) {
            return Err(Fault::Malformed(format!("`{name}` is given twice")));
        }
        if value.len() > MAX_QUERY {
            let what = format!("`{name}` is longer than {MAX_QUERY} bytes");
            return Err(Fault::Malformed(what));
        }
        let given = (!value.is_empty()).then_some(&*value);
        match &*name {
            "state" => filter.state = given.map(state).transpose()?,
            "transaction" => filter.transaction = given.map(str::to_owned),
            "after" => filter.after = given.map(cursor).transpose()?,
            "limit" => filter.limit = given.map_or(Ok(DEFAULT_LIMIT), limit)?,
            _ => return Err(Fault::Malformed(format!("there is no filter `{name}`"))),
        }
        seen.push(name);
    }
    Ok(filter)
}

fn state(word: &str) -> Result<State, Fault> {
    State::parse(word).ok_or_else(|| {
        let all = State::ALL.map(State::as_str).join(", ");
        Fault::Malformed(format!("there is no state `{word}`; there are {all}"))
    })
}

fn cursor(text: &str) -> Result<DeliveryId, Fault> {
    text.parse()
        .map_err(|()| Fault::Malformed(format!("`{text}` is no delivery's id such as out-12")))
}

fn limit(text: &str) -> Result<usize, Fault> {
    match text.parse() {
        Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        _ => Err(Fault::Malformed(format!(
            "`limit` is a number from 1 to {MAX_LIMIT}"
        ))),
    }
}

fn summary(delivery: &Delivery) -> Value {
    let Delivery {
        id,
        client,
        base_url,
        tiki_transaction_id,
        transaction_id,
        status,
        amount,
        body: _,
        state,
        step,
        place: _,
        tries,
        asks,
        maybe_taken,
        refusal,
        flight: _,
        flying_until,
        next_at,
        created_at,
        opened_at,
        updated_at,
        generation: _,
        outcome,
        tell_at,
        tellings: _,
        held,
        events: _,
    } = delivery;
    let pending = *state == State::Pending;
    let code = match outcome {
        Some(Outcome::Refused(code)) => *code,
        _ => refusal.flatten(),
    };
    json!({
        "id": id.to_string(),
        "state": state.as_str(),
        "outcome": outcome.map(Outcome::as_str),
        "code": code,
        "refund_customer": delivery.means_refund(),
        "held": held,
        "client": client,
        "base_url": base_url,
        "tiki_transaction_id": tiki_transaction_id,
        "transaction_id": transaction_id,
        "status": status,
        "transaction_amount": amount,
        "next_step": pending.then(|| step.as_str()),
        "next_at": if pending { time(*next_at) } else { Value::Null },
        "in_flight": flying_until.is_some(),
        "tries": tries,
        "asks": asks,
        "maybe_taken": maybe_taken,
        "created_at": time(*created_at),
        "opened_at": time(*opened_at),
        "updated_at": time(*updated_at),
        "tells_backend": tell_at.is_some(),
    })
}

fn full(delivery: &Delivery) -> Value {
    let mut shown = summary(delivery);
    shown["body"] = json!(String::from_utf8_lossy(&delivery.body));
    shown["events"] = delivery.events.iter().map(event).collect();
    shown
}

fn event(event: &Event) -> Value {
    let Event {
        at,
        what,
        by,
        detail,
    } = event;
    json!({ "at": time(*at), "what": what, "by": by, "detail": detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_read_whole_or_not_at_all() {
        let read = filter("state=failed&transaction=T%201&after=out-7&limit=500").unwrap();
        assert_eq!(read.state, Some(State::Failed));
        assert_eq!(read.transaction.as_deref(), Some("T 1"));
        assert_eq!((read.after, read.limit), (Some(DeliveryId(7)), 500));
        for (query, complaint) in [
            ("state=lost", "there is no state `lost`; there are pending"),
            ("stat=failed", "there is no filter `stat`"),
            ("limit=1&limit=2", "`limit` is given twice"),
            ("limit=0", "`limit` is a number from 1 to 500"),
            ("after=7", "`7` is no delivery's id"),
        ] {
            match filter(query) {
                Err(Fault::Malformed(what)) => assert!(what.starts_with(complaint), "{what}"),
                other => panic!("{query}: {other:?}"),
            }
        }
    }
}
