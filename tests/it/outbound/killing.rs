//! `kill -9` at every step of the outbox: what was answered 202 is not lost, and every repeat is the
//! same transaction and status to Tiki.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::Duration;

use tikigate::cli::fake_tiki::{Action, Call, FakeTiki, Order, Wanted};

use super::lab::notice;
use super::process::{Place, knows, tiki};
use crate::crash::killing::scaled;
use crate::support::backend::{Answer, Backend};
use crate::support::disk::{Disk, Number};
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
    /// What the ledger lies on, where that loses power.
    disk: Option<Disk>,
    deaths: BTreeMap<&'static str, u64>,
}

impl World {
    /// One life: notices are posted until the gate is dead.
    async fn live(&mut self, random: &mut Random, step: &'static str, number: u64) {
        let nth = 1 + random.below(12);
        let mut armed = vec![(
            "TIKIGATE_FAILPOINT".to_owned(),
            format!("{step}=kill@{nth}"),
        )];
        if let Some(disk) = &self.disk {
            armed.extend(disk.environment());
        }
        // It may die before it is ready: on what the life before left.
        let mut gate = match self.place.start(&armed).await {
            Ok(gate) => Some(gate),
            Err(fault) => {
                let died = fault.status.and_then(|status| status.signal());
                assert_eq!(died, Some(9), "{fault}");
                None
            }
        };
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
            // Before it was ready, on what the life before left.
            None => step,
            Some(gate) => match gate.ends_within(Duration::from_millis(300)) {
                Some(status) => {
                    assert_eq!(status.signal(), Some(9), "{status}");
                    step
                }
                None => {
                    gate.kill();
                    "by hand"
                }
            },
        };
        *self.deaths.entry(died).or_default() += 1;
        drop(gate);
        if let Some(disk) = &self.disk {
            match random.below(3) {
                0 => {}
                1 => disk.lose_power(Some(random)),
                _ => disk.lose_power(None),
            }
        }
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
        let environment = self.disk.as_ref().map(Disk::environment);
        let started = self.place.start(&environment.unwrap_or_default()).await;
        let mut gate = started.unwrap_or_else(|fault| panic!("{fault}"));
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
        if let Some(disk) = &self.disk
            && disk.told(Number::Syncs) == 0
        {
            faults.push("the gate was not on the disk".to_owned());
        }
        (faults, self.deaths)
    }
}

async fn world(
    random: Random,
    kills: u64,
    loses_power: bool,
) -> (Vec<String>, BTreeMap<&'static str, u64>) {
    let mut random = random;
    let backend = Backend::start(|_| Answer::success().into()).await;
    let tiki = tiki().await;
    let place = Place::new(&backend.url(), &tiki.base_url(), "");
    let disk = loses_power.then(|| {
        let directory = place.data();
        let shadow = directory.with_file_name("shadow");
        Disk::new(directory, shadow)
    });
    let mut world = World {
        disk,
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
    let one = tokio::spawn(world(Random::part(seed, &[1]), share, false));
    let other = tokio::spawn(world(Random::part(seed, &[2]), kills - share, false));
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

/// What a killed process wrote lives on in the page cache; what a disk without power was not told to
/// keep does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_power_loss_takes_what_was_accepted_gets_there() {
    let random = Random::seeded(seed("power losses of the outbox"));
    let (faults, deaths) = world(random, scaled(90), true).await;
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    println!("{deaths:?}");
}
