//! A caller that re-sends like Tiki, with its clock sped up: until it has a final answer, signed anew or
//! unchanged, now and then several copies at once, and sometimes once more after the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tikigate::net::ListenAddress;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::journal::{Event, Given, Journal};
use crate::support::gate::Call;
use crate::support::random::Random;
use crate::support::raw::exchange_if_there;

/// Tiki gives up on a call after this.
const PATIENCE: Duration = Duration::from_secs(8);

/// Where each gate is, while it runs.
pub(crate) type Whereabouts = watch::Receiver<Vec<Option<ListenAddress>>>;

/// The gate at this place, or the next one that is there; waits for one. None: the world has ended.
pub(crate) async fn gate_at(gates: &Whereabouts, place: usize) -> Option<ListenAddress> {
    let mut gates = gates.clone();
    let there = gates.wait_for(|gates| gates.iter().any(Option::is_some));
    let there = there.await.ok()?;
    let places = (0..there.len()).map(|next| (place + next) % there.len());
    places.into_iter().find_map(|place| there[place].clone())
}

/// The route that refunds are sent to.
pub(crate) const PATH: &str = "/tiki/refund";

/// Tiki.
pub(crate) struct Tiki {
    pub(crate) seed: u64,
    pub(crate) journal: Arc<Journal>,
    /// Copies of a call come to one after the other.
    pub(crate) gates: Whereabouts,
    /// Refunds that are wanted at once.
    at_once: u64,
    calls: AtomicU64,
    /// No new refunds any more.
    closing: AtomicBool,
}

impl Tiki {
    pub(crate) fn new(seed: u64, at_once: u64, journal: Arc<Journal>, gates: Whereabouts) -> Self {
        Self {
            seed,
            journal,
            gates,
            at_once,
            calls: AtomicU64::default(),
            closing: AtomicBool::default(),
        }
    }

    /// Wants refunds until [`Tiki::close`], and ends when each of them has its final answer.
    pub(crate) async fn work(self: Arc<Self>) {
        let mut lanes = JoinSet::new();
        for lane in 0..self.at_once {
            let tiki = Arc::clone(&self);
            lanes.spawn(async move {
                for number in 0.. {
                    if tiki.closing.load(Ordering::SeqCst) {
                        return;
                    }
                    let random = Random::part(tiki.seed, &[1, lane, number]);
                    tiki.refund(&format!("r-{lane}-{number}"), random).await;
                }
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane.unwrap();
        }
    }

    /// Wants nothing new any more.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// One refund to its end.
    async fn refund(self: &Arc<Self>, key: &str, mut random: Random) {
        let key = Arc::<str>::from(key);
        let mut call = signed(&key);
        loop {
            if self.ask_copies(&key, &call, &mut random).await {
                break;
            }
            tokio::time::sleep(random.millis(30, 200)).await;
            if random.chance(50) {
                call = signed(&key);
            }
        }
        if random.chance(25) {
            tokio::time::sleep(random.millis(0, 400)).await;
            self.ask_copies(&key, &call, &mut random).await;
        }
    }

    /// Asks, now and then several times at once; whether an answer was final.
    async fn ask_copies(
        self: &Arc<Self>,
        key: &Arc<str>,
        call: &Call,
        random: &mut Random,
    ) -> bool {
        let copies = if random.chance(15) { 3 } else { 1 };
        let mut asking = JoinSet::new();
        for _ in 0..copies {
            let (tiki, key, call) = (Arc::clone(self), Arc::clone(key), call.clone());
            asking.spawn(async move { tiki.ask(&key, &call).await });
        }
        let mut over = false;
        while let Some(answer) = asking.join_next().await {
            over |= answer.unwrap().is_some_and(|answer| answer.is_final());
        }
        over
    }

    /// Asks once; the answer, if one came.
    pub(crate) async fn ask(&self, key: &Arc<str>, call: &Call) -> Option<Given> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let address = gate_at(&self.gates, usize::try_from(number).unwrap()).await?;
        self.journal.note(key, Event::Asked { call: number });
        let answer = exchange_if_there(&address, call.to_bytes(), PATIENCE).await?;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        let envelope: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        let given = Given {
            status: answer.status,
            code: envelope["error"]["code"].as_str().map(str::to_owned),
            body,
        };
        let event = Event::Answer {
            call: number,
            answer: given.clone(),
        };
        self.journal.note(key, event);
        Some(given)
    }
}

/// The refund with this key, signed now.
pub(crate) fn signed(key: &str) -> Call {
    // Each one is of a payment of its own: a second refund of one payment is another matter.
    let body = format!(
        r#"{{"tiki_transaction_id":"t-{key}","transaction_amount":1000,"transaction_id":"p-{key}","reason":"Khách đổi ý","request_id":"{key}"}}"#
    );
    Call::post(PATH, body, SystemTime::now())
}
