//! The person who resolves what nobody else can know: goes by what the backend really did, through the
//! admin API.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tikigate::net::ListenAddress;

use super::journal::{Event, Journal, Word};
use super::tiki::{Whereabouts, gate_at};
use super::till::Till;
use crate::support::random::Random;
use crate::support::raw::exchange_if_there;

/// The holder's token; a test sets it up as `token`.
pub(crate) const TOKEN: &str = "the-token-of-the-person-in-the-crash-tests";
/// The admin API answers within this, or not at all.
const PATIENCE: Duration = Duration::from_secs(8);

/// A person with the books of the backend at hand.
pub(crate) struct Person {
    pub(crate) seed: u64,
    pub(crate) journal: Arc<Journal>,
    pub(crate) till: Arc<Till>,
    /// Of each gate.
    pub(crate) admins: Whereabouts,
}

impl Person {
    /// Looks for held refunds and resolves them, for ever.
    pub(crate) async fn work(self: Arc<Self>) {
        for round in 0.. {
            let mut random = Random::part(self.seed, &[2, round]);
            tokio::time::sleep(random.millis(40, 160)).await;
            // Some stay held for a while.
            if random.chance(80) {
                self.resolve_what_is_held(&mut random).await;
            }
        }
    }

    async fn resolve_what_is_held(&self, random: &mut Random) {
        let place = usize::try_from(random.below(1 << 16)).unwrap();
        let Some(admin) = gate_at(&self.admins, place).await else {
            return;
        };
        let list = "/api/ledger?state=unknown&limit=100";
        let Some(held) = ask(&admin, "GET", list, None).await else {
            return;
        };
        // What the dead gate sent last may still be on its way into the till's books.
        self.till.has_caught_up().await;
        // A ledger that can't be read now is asked again.
        for record in held["data"]["records"].as_array().into_iter().flatten() {
            self.resolve(&admin, record, random).await;
        }
    }

    async fn resolve(&self, admin: &ListenAddress, record: &Value, random: &mut Random) {
        let key = Arc::<str>::from(record["key"].as_str().unwrap());
        let word = if self.journal.moved(&key) {
            Word::Applied
        } else if random.chance(15) {
            Word::Rejected
        } else {
            Word::NotApplied
        };
        let attempt = u32::try_from(record["attempt"].as_u64().unwrap()).unwrap();
        // Noted before it is said: the gate may die in between, and then nobody knows who heard it.
        self.journal.note(&key, Event::Said { attempt, word });
        let seen = json!({
            "state": record["state"], "attempt": attempt, "version": record["version"],
        });
        let body = json!({
            "verdict": word.as_str(), "reason": "by the till's journal", "expected": seen,
            // The till has caught up: the attempt is over, whatever the clock says.
            "force": word == Word::NotApplied,
        });
        let target = format!("/api/ledger/{}/resolve", record["id"].as_str().unwrap());
        let _ = ask(admin, "POST", &target, Some(&body)).await;
    }
}

/// Asks the admin API; none if it isn't there.
pub(crate) async fn ask(
    admin: &ListenAddress,
    method: &str,
    target: &str,
    body: Option<&Value>,
) -> Option<Value> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let answer = exchange_if_there(admin, request, PATIENCE).await?;
    serde_json::from_slice(&answer.body).ok()
}

/// Every record of the ledger.
pub(crate) async fn all_records(admin: &ListenAddress) -> Vec<Value> {
    let mut records = Vec::new();
    let mut after = String::new();
    loop {
        let target = format!("/api/ledger?limit=500&after={after}");
        let page = ask(admin, "GET", &target, None)
            .await
            .expect("a list of the ledger");
        let data = &page["data"];
        records.extend(data["records"].as_array().expect("records").iter().cloned());
        match data["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => return records,
        }
    }
}
