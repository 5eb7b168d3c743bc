//! `kill -9` at every step of the outbox: what was answered 202 is not lost, and every repeat is the
//! same transaction and status to Tiki.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tikigate::cli::fake_tiki::{Action, Call, FakeTiki, Order, Wanted};

use super::lab::notice;
use super::process::{Place, knows, tiki};
use crate::crash::killing::scaled;
use crate::support::backend::{Answer, Backend};
use crate::support::random::{Random, seed};

/// From the backend's notice to the record of what became of it.
const STEPS: [&str; 9] = [
    "outbox_stored",
    "outbox_taken",
    "outbound_before_send",
    "after_first_byte",
    "outbox_answered",
    "outbox_recorded",
    "sqlite_before_commit",
    "sqlite_after_commit",
    "sqlite_after_watermark",
];

/// Kills in a usual run, over both worlds.
const KILLS: u64 = 612;
/// Notices that a backend posts to one life at most.
const PER_LIFE: usize = 60;

struct World {
    tiki: Arc<FakeTiki>,
    place: Place,
    /// Transaction and status of each notice that was answered 202.
    accepted: Vec<(String, &'static str)>,
    deaths: BTreeMap<&'static str, u64>,
}

impl World {
    /// One life: notices are posted until the gate is dead.
    async fn live(&mut self, random: &mut Random, step: &'static str, number: u64) {
        let nth = 1 + random.below(12);
        let armed = [("TIKIGATE_FAILPOINT", format!("{step}=kill@{nth}"))];
        // It may die before it is ready: on what the life before left.
        let mut gate = self.place.start(&armed).await.ok();
        if random.chance(40) {
            self.trouble(random);
        }
        for notice_number in 0..PER_LIFE {
            let Some(gate) = &mut gate else { break };
            if gate.ends_within(Duration::ZERO).is_some() {
                break;
            }
            let id = format!("T-{number}-{notice_number}");
            knows(&self.tiki, &id);
            for status in ["PENDING", "SUCCESS"] {
                match self.place.post(&notice(&id, "1000", status)).await {
                    Some(answer) if answer.status == 202 => {
                        self.accepted.push((id.clone(), status))
                    }
                    Some(answer) => panic!("{}", answer.text()),
                    None => break,
                }
            }
        }
        let died = match &mut gate {
            None => step,
            Some(gate) => match gate.ends_within(Duration::from_millis(300)) {
                Some(_) => step,
                None => {
                    gate.kill();
                    "by hand"
                }
            },
        };
        *self.deaths.entry(died).or_default() += 1;
    }

    /// Tiki loses some answers and refuses some calls for now.
    fn trouble(&self, random: &mut Random) {
        let action = match random.below(4) {
            0 => Action::ApplyThenReset,
            1 => Action::ApplyThenClose,
            2 => Action::Code {
                code: 2,
                form: None,
                apply: true,
            },
            _ => Action::Http {
                status: 503,
                body: String::new(),
                apply: false,
            },
        };
        let times = 1 + random.below(4);
        self.tiki
            .order(Order::new(Wanted::Ipn, action).times(times))
            .unwrap();
    }

    /// What Tiki has and saw, once the outbox is empty.
    async fn reckon(self) -> (Vec<String>, BTreeMap<&'static str, u64>) {
        self.tiki.clear_orders();
        let mut gate = self.place.run().await;
        self.place.wait_until_delivered().await;
        let mut faults = Vec::new();
        if self.place.metric("tikigate_outbox_failed").await != Some(0.0) {
            faults.push("a delivery failed".to_owned());
        }
        for (id, status) in &self.accepted {
            let Some((transaction, taken)) = self.tiki.transaction(id) else {
                faults.push(format!("{id} is gone"));
                continue;
            };
            // What Tiki has as pending anyway counts as delivered, and the final state may have overtaken
            // it; that its row is over is seen by the empty outbox.
            let there = match *status {
                "SUCCESS" => taken.success > 0 && transaction.status.as_str() == "SUCCESS",
                _ => transaction.status.as_str() != "FAILURE",
            };
            if !there {
                let list = self.place.deliveries_of(id).await;
                faults.push(format!(
                    "{id} {status} was accepted and is lost: {taken:?}\n{list:#?}"
                ));
            }
        }
        let counts = self.tiki.counts();
        if counts.order_violations + counts.finals_changed + counts.refused_signatures > 0 {
            faults.push(format!("{counts:?}"));
        }
        let mut bodies: HashMap<(String, bool), String> = HashMap::new();
        for call in self.tiki.seen_after(0) {
            if call.call != Call::Ipn {
                continue;
            }
            let success = call.body.contains("SUCCESS");
            let key = (call.transaction.clone().unwrap_or_default(), success);
            let first = bodies.entry(key).or_insert_with(|| call.body.clone());
            if *first != call.body {
                faults.push(format!(
                    "a repeat says something else: {first} {}",
                    call.body
                ));
            }
        }
        gate.kill();
        (faults, self.deaths)
    }
}

async fn world(random: Random, kills: u64) -> (Vec<String>, BTreeMap<&'static str, u64>) {
    let mut random = random;
    let backend = Backend::start(|_| Answer::success().into()).await;
    let tiki = tiki().await;
    let place = Place::new(&backend.url(), &tiki.base_url(), "");
    let mut world = World {
        tiki,
        place,
        accepted: Vec::new(),
        deaths: BTreeMap::new(),
    };
    for number in 0..kills {
        let step = STEPS[usize::try_from(number).unwrap() % STEPS.len()];
        world.live(&mut random, step, number).await;
    }
    assert!(
        world.accepted.len() as u64 > kills,
        "{}",
        world.accepted.len()
    );
    world.reckon().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_it_is_killed_what_was_accepted_gets_there() {
    let kills = scaled(KILLS).max(STEPS.len() as u64 * 2);
    let seed = seed("kill -9 of the outbox");
    let share = kills / 2;
    let one = tokio::spawn(world(Random::part(seed, &[1]), share));
    let other = tokio::spawn(world(Random::part(seed, &[2]), kills - share));
    let mut deaths: BTreeMap<&str, u64> = BTreeMap::new();
    for world in [one, other] {
        let (faults, died) = world.await.unwrap();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        for (step, count) in died {
            *deaths.entry(step).or_default() += count;
        }
    }
    println!("{deaths:?}");
    for step in STEPS {
        assert!(
            deaths.contains_key(step),
            "nobody died at {step}: {deaths:?}"
        );
    }
}
