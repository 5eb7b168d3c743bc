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
const ASLEEP: Duration = Duration::from_secs(18);
/// What a dead gate claimed waits for the end of its lease: meanwhile Tiki must want others.
const AT_ONCE: u64 = 100;

/// What the gates die of. They draw from one lot: a gate that has done its share would otherwise be gone
/// while the other dies.
struct Lot {
    wanted: u64,
    drawn: u64,
    deaths: BTreeMap<Died, u64>,
    /// How often each gate was stopped and went on.
    slept: [u64; GATES],
    /// Somebody has to be awake to see a lease end.
    asleep: bool,
}

impl Lot {
    fn new(wanted: u64) -> Self {
        Self {
            wanted,
            drawn: 0,
            deaths: BTreeMap::new(),
            slept: [0; GATES],
            asleep: false,
        }
    }

    fn died_at(&self, step: &'static str) -> u64 {
        self.deaths.get(&Died::At(step)).copied().unwrap_or(0)
    }

    /// How often each gate is stopped in so many lives: once in a usual run, since it takes its time, and
    /// not at all in a short one.
    fn sleeps(&self, lives: u64) -> u64 {
        match self.wanted < DEATHS {
            true => 0,
            false => 1 + lives.min(self.wanted - 1) / DEATHS,
        }
    }

    /// Whether each gate was stopped as often as the whole run has it. The lot ends no earlier: what comes
    /// beyond the wanted lives is bounded by the time that the others sleep.
    fn is_rested(&self) -> bool {
        let wanted = self.sleeps(self.wanted);
        self.slept.iter().all(|slept| *slept >= wanted)
    }

    /// The next death of this gate; none: it's enough.
    fn draw(&mut self, place: usize, random: &mut Random) -> Option<Death> {
        if self.drawn >= self.wanted && self.is_rested() {
            return None;
        }
        self.drawn += 1;
        let is_due = self.slept[place] < self.sleeps(self.drawn);
        // Not in the first lives: there would be nothing to be stopped in.
        if self.drawn > GATES as u64 && !self.asleep && is_due {
            self.asleep = true;
            // One before it asks for leave to send, the other when it has got it.
            let step = ["after_claim", "before_first_byte"][place % 2];
            return Some(Death::Asleep(step, 1 + random.below(4), ASLEEP));
        }
        Some(match random.below(10) {
            0 => Death::Starting(random.millis(0, 60)),
            1..4 => Death::After(random.below(400), random.millis(0, 20)),
            _ => {
                let rarest = STEPS.iter().min_by_key(|step| self.died_at(step));
                Death::At(rarest.unwrap(), 1 + random.below(4))
            }
        })
    }

    fn note(&mut self, place: usize, death: &Death, died: Died) {
        if let Death::Asleep(..) = death {
            self.asleep = false;
            self.slept[place] += 1;
        }
        *self.deaths.entry(died).or_default() += 1;
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
    let lot = Mutex::new(Lot::new(scaled(DEATHS)));
    let lives = async |place: usize| {
        let mut random = Random::part(seed, &[7, place as u64]);
        loop {
            let drawn = lot.lock().unwrap().draw(place, &mut random);
            let Some(death) = drawn else { break };
            let died = world.live_at(place, death.clone(), || ()).await;
            lot.lock().unwrap().note(place, &death, died);
        }
    };
    tokio::join!(lives(0), lives(1));
    over.store(true, Ordering::SeqCst);
    let crashes = crashing.await.unwrap();
    let lot = lot.into_inner().unwrap();
    println!(
        "replicas: {} lives, {crashes} crashes of the server in {:.1?}, stopped {:?}, deaths {:?}",
        lot.drawn,
        began.elapsed(),
        lot.slept,
        lot.deaths
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
    let at_steps: u64 = STEPS.iter().map(|step| lot.died_at(step)).sum();
    assert!(at_steps > 0, "nobody died at a step: {:?}", lot.deaths);
}
