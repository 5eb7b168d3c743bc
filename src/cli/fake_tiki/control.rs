//! The control API under `/_control/`: what the methods of [`FakeTiki`](super::FakeTiki) do, for a
//! process of its own. It checks no signature.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::books::Transaction;
use super::caller::{Send, Try};
use super::http::{Answer, Head};
use super::orders::Order;
use super::shared::Shared;

pub(super) const PREFIX: &str = "/_control/";

/// Answers a call of the control API.
pub(super) async fn answer(shared: &Shared, head: &Head, body: &[u8]) -> Answer {
    let result = match respond(shared, head, body).await {
        Ok(answer) => return answer,
        Err(sentence) => sentence,
    };
    Answer::sentence(400, &result)
}

async fn respond(shared: &Shared, head: &Head, body: &[u8]) -> Result<Answer, String> {
    let (path, query) = match head.target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (head.target.as_str(), None),
    };
    let name = path.strip_prefix(PREFIX).unwrap_or_default();
    if query.is_some() && name != "seen" {
        return Err(format!("{path} takes no query."));
    }
    match (head.method.as_str(), name) {
        ("PUT", "transactions") => {
            let all: Vec<Transaction> = one_or_many(body, "transaction")?;
            let count = all.len();
            all.into_iter().for_each(|it| shared.put_transaction(it));
            Ok(shown(&json!({ "put": count })))
        }
        ("GET", "transactions") => Ok(shown(&shared.transactions())),
        ("POST", "orders") => {
            let all: Vec<Order> = one_or_many(body, "order")?;
            for order in &all {
                order
                    .check()
                    .map_err(|why| format!("This order can't be used: {why}."))?;
            }
            let count = all.len();
            all.into_iter().for_each(|it| shared.push_order(it));
            Ok(shown(&json!({ "ordered": count })))
        }
        ("GET", "orders") => Ok(shown(&shared.orders())),
        ("DELETE", "orders") => {
            shared.clear_orders();
            Ok(shown(&json!({})))
        }
        ("GET", "seen") => {
            let after = match query {
                None => 0,
                Some(query) => query
                    .strip_prefix("after=")
                    .and_then(|number| number.parse().ok())
                    .ok_or("The query of seen is after=N.")?,
            };
            let (total, seen) = shared.seen_after(after);
            Ok(shown(&json!({ "total": total, "seen": seen })))
        }
        ("GET", "counts") => Ok(shown(&shared.counts())),
        ("POST", "send") => {
            let send: Send = read(body, "call")?;
            let again = send.resend;
            let (outgoing, how) = send.parts();
            let tries: Vec<Try> = if again {
                shared.resend(&outgoing, &how).await
            } else {
                shared.call_once(&outgoing).await
            }
            .map_err(|error| format!("This call can't be made: {error}."))?;
            Ok(shown(&json!({ "tries": tries })))
        }
        (method, _) => Ok(Answer::sentence(
            404,
            &format!("There is no {method} {path} in the control API."),
        )),
    }
}

fn shown(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => Answer::text(200, None, body),
        Err(error) => Answer::sentence(500, &format!("This can't be shown: {error}.")),
    }
}

fn read<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("This {what} can't be used: {error}."))
}

fn one_or_many<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<Vec<T>, String> {
    if body.trim_ascii_start().starts_with(b"[") {
        read(body, what)
    } else {
        read(body, what).map(|one| vec![one])
    }
}
