//! `kill -9`, at random moments and at each named step.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::world::{Death, Died, MEMORY, Plan, SQLITE, World};
use crate::support::random::{self, Random};

/// The environment variable with the number of kills, for a longer or a shorter run.
const KILLS: &str = "TIKIGATE_KILLS";
/// Kills in a usual run.
const USUAL: u64 = 1000;
/// Gates that are killed side by side.
const WORLDS: u64 = 4;

/// Steps of an attempt, on every store.
pub(super) const STEPS: [&str; 9] = [
    "before_claim",
    "after_claim",
    "before_first_byte",
    "after_first_byte",
    "after_answer",
    "before_record",
    "after_record",
    "before_reply",
    "after_reply",
];

/// The same on SQLite, with those of a batch.
pub(super) const SQLITE_STEPS: [&str; 12] = [
    "before_claim",
    "after_claim",
    "before_first_byte",
    "after_first_byte",
    "after_answer",
    "before_record",
    "after_record",
    "before_reply",
    "after_reply",
    "sqlite_before_commit",
    "sqlite_after_commit",
    "sqlite_after_watermark",
];

/// Lives and deaths in worlds side by side.
struct Reckoning {
    faults: Vec<String>,
    deaths: BTreeMap<Died, u64>,
}

async fn kill(
    of: &'static str,
    ledger: &str,
    steps: &'static [&'static str],
    kills: u64,
) -> Reckoning {
    let seed = random::seed(of);
    let began = Instant::now();
    let mut worlds = JoinSet::new();
    for number in 0..WORLDS {
        let mut plan = Plan::of_one(Random::part(seed, &[number]).next(), ledger);
        // Its syncs cost nothing: a kill says nothing about them, and there are many.
        plan.on_disk = true;
        let share = kills / WORLDS + u64::from(number < kills % WORLDS);
        worlds.spawn(lives(plan, steps, share));
    }
    let mut reckoning = Reckoning {
        faults: Vec::new(),
        deaths: BTreeMap::new(),
    };
    while let Some(world) = worlds.join_next().await {
        let world = world.unwrap();
        reckoning.faults.extend(world.faults);
        for (died, count) in world.deaths {
            *reckoning.deaths.entry(died).or_default() += count;
        }
    }
    let took = began.elapsed();
    let rate = kills as f64 / took.as_secs_f64();
    println!(
        "{of}: {kills} kills in {took:.1?}, {rate:.1} a second: {:?}",
        reckoning.deaths
    );
    reckoning
}

async fn lives(plan: Plan, steps: &[&'static str], kills: u64) -> Reckoning {
    let mut random = Random::part(plan.seed, &[3]);
    let world = World::new(plan).await;
    let mut deaths = BTreeMap::new();
    for number in 0..kills {
        let death = if random.chance(60) {
            let step = steps[usize::try_from(number).unwrap() % steps.len()];
            // Mostly soon: the first calls of a life follow on what the one before left.
            let most = 1 << random.below(5);
            let nth = 1 + random.below(most);
            Death::At(step, nth)
        } else {
            Death::by_chance(&mut random)
        };
        *deaths.entry(world.live(death, || ()).await).or_default() += 1;
    }
    let faults = world.reckon(Duration::ZERO).await;
    Reckoning { faults, deaths }
}

/// Of a thing that is done so often in a usual run, how often it is done in this one.
pub(crate) fn scaled(usual: u64) -> u64 {
    match std::env::var(KILLS) {
        Ok(text) => {
            let kills: u64 = text.parse().expect("TIKIGATE_KILLS is a number");
            (usual * kills / USUAL).max(1)
        }
        Err(_) => usual,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_it_is_killed_each_refund_is_sent_once_and_answered_the_same() {
    let reckoning = kill("kill -9", SQLITE, &SQLITE_STEPS, scaled(USUAL)).await;
    assert!(
        reckoning.faults.is_empty(),
        "{}",
        reckoning.faults.join("\n")
    );
    for step in SQLITE_STEPS {
        assert!(
            reckoning.deaths.contains_key(&Died::At(step)),
            "nobody died at {step}: {:?}",
            reckoning.deaths
        );
    }
}

/// What shows that the harness sees nothing where there is nothing: without a kill, a ledger in memory
/// keeps every promise, whatever the till does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_in_peace_keeps_every_promise() {
    let seed = random::seed("peace");
    let plan = Plan::of_one(seed, MEMORY);
    let faults = World::new(plan).await.reckon(Duration::from_secs(3)).await;
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What shows that the harness sees anything at all: a ledger in memory is lost with each kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_in_memory_moves_money_twice() {
    let reckoning = kill("memory", MEMORY, &STEPS, 40).await;
    let twice = |fault: &String| fault.contains("money moved 2 times");
    assert!(
        reckoning.faults.iter().any(twice),
        "no fault was seen in {} of them",
        reckoning.faults.len()
    );
}
