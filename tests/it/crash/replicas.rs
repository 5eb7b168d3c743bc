//! Two gates on one ledger in PostgreSQL, each killed and stopped by itself, and the server crashed under
//! them. Tiki sends a copy here and its copy there; the person resolves through either.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::killing::{STEPS, scaled};
use super::world::{Death, Died, Plan, World};
use crate::support::postgres::Server;
use crate::support::random::{self, Random};

/// Gates of the ledger.
const GATES: usize = 2;
/// Deaths of the gates in a usual run.
const DEATHS: u64 = 40;
/// The shortest with a world's deadlines.
const LEASE: Duration = Duration::from_secs(13);
/// A gate that was stopped this long has lost its claims, to a gate that was awake to notice.
const ASLEEP: Duration = Duration::from_secs(16);
/// What a dead gate claimed waits for the end of its lease: meanwhile Tiki must want others.
const AT_ONCE: u64 = 100;

/// The next death of a gate.
fn next(random: &mut Random, number: u64) -> Death {
    // The first of each gate, so that the rest of the run goes on meanwhile; and a few later ones.
    if number == 1 || random.chance(3) {
        return Death::Asleep(ASLEEP);
    }
    if random.chance(50) {
        let step = STEPS[usize::try_from(number).unwrap() % STEPS.len()];
        return Death::At(step, 1 + random.below(8));
    }
    match random.below(10) {
        0 => Death::Starting(random.millis(0, 60)),
        _ => Death::After(random.below(1000), random.millis(0, 20)),
    }
}

/// Crashes of the server until the gates have died often enough. Returns how many there were.
fn crash(server: &Mutex<Server>, over: &AtomicBool, random: &mut Random) -> u64 {
    let mut crashes = 0;
    let mut pause = Instant::now() + random.millis(2000, 5000);
    while !over.load(Ordering::SeqCst) {
        if Instant::now() < pause {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        let mut server = server.lock().unwrap();
        server.end("QUIT");
        std::thread::sleep(random.millis(0, 300));
        server.begin();
        crashes += 1;
        pause = Instant::now() + random.millis(4000, 9000);
    }
    crashes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_of_two_gates_and_their_server_each_refund_is_sent_once() {
    let seed = random::seed("replicas");
    let start = || {
        let server = Server::start(&[]);
        let url = server.url(&server.create_database());
        (server, url)
    };
    let (server, url) = tokio::task::spawn_blocking(start).await.unwrap();
    let ledger = format!(
        "store = \"postgres\"\nurl = {{ env = \"DATABASE_URL\" }}\nconnections = 4\nlease = \"{}s\"",
        LEASE.as_secs()
    );
    let plan = Plan {
        environment: vec![("DATABASE_URL".to_owned(), url)],
        gates: GATES,
        at_once: AT_ONCE,
        ..Plan::of_one(seed, &ledger)
    };
    let world = World::new(plan).await;
    let began = Instant::now();
    let over = Arc::new(AtomicBool::new(false));
    let server = Arc::new(Mutex::new(server));
    let crashing = {
        let (server, over) = (Arc::clone(&server), Arc::clone(&over));
        let mut random = Random::part(seed, &[6]);
        tokio::task::spawn_blocking(move || crash(&server, &over, &mut random))
    };
    let lives = async |place: usize| {
        let mut random = Random::part(seed, &[7, place as u64]);
        let mut deaths = BTreeMap::<Died, u64>::new();
        for number in 0..scaled(DEATHS).div_ceil(GATES as u64) {
            let death = next(&mut random, number);
            *deaths
                .entry(world.live_at(place, death, || ()).await)
                .or_default() += 1;
        }
        deaths
    };
    let deaths = tokio::join!(lives(0), lives(1));
    over.store(true, Ordering::SeqCst);
    let crashes = crashing.await.unwrap();
    println!(
        "replicas: {crashes} crashes of the server in {:.1?}, deaths {deaths:?}",
        began.elapsed()
    );
    let journal = Arc::clone(&world.journal);
    let faults = world.reckon(Duration::ZERO).await;
    println!(
        "replicas: {} refunds, {:.1?} in all",
        journal.histories().len(),
        began.elapsed()
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(crashes > 0, "the server never crashed");
}
