//! A world with a gate in it, or several on one ledger: the till behind them, Tiki in front, a person beside
//! them, and somebody who kills them again and again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tikigate::net::ListenAddress;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::journal::{Event, Journal};
use super::person::{self, Person, TOKEN};
use super::tiki::{self, Tiki};
use super::till::Till;
use crate::support::disk::{Disk, Number};
use crate::support::gate::{CLIENT, SECRET};
use crate::support::gate_process::{GateProcess, Setup};
use crate::support::random::Random;

/// After the last kill, all refunds must come to their ends within this.
const END_WITHIN: Duration = Duration::from_secs(240);
/// A life in which nothing happens ends after this.
const LIFE_WITHIN: Duration = Duration::from_secs(5);
/// A step that has not been come to when so much has happened for each refund that Tiki wants at once: the
/// gate is killed where it stands.
const STEP_WITHIN: u64 = 12;
/// What happens in a life after it was stopped.
const AWAKE: u64 = 30;
/// And how long it goes on at least: it has to come back to what it was at.
const AFTER_SLEEP: Duration = Duration::from_secs(1);
/// How long a sync takes: what comes in meanwhile is the next batch.
const SYNC_MICROS: u32 = 300;
/// How the fault of a ledger in quarantine begins.
pub(crate) const QUARANTINED: &str = "the ledger is in quarantine:";
/// Calls at once when every refund is asked for again.
const AGAIN_AT_ONCE: usize = 8;

/// What a world is made with.
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// The lines under `[ledger]`.
    pub(crate) ledger: String,
    /// Whether the directory `data` lies on a [`Disk`] that can lose power.
    pub(crate) on_disk: bool,
    /// What else is in the environment of the gates.
    pub(crate) environment: Vec<(String, String)>,
    /// Gates side by side.
    pub(crate) gates: usize,
    /// Refunds that Tiki wants at once.
    pub(crate) at_once: u64,
}

impl Plan {
    /// One gate.
    pub(crate) fn of_one(seed: u64, ledger: &str) -> Self {
        Self {
            seed,
            ledger: ledger.to_owned(),
            on_disk: ledger == SQLITE,
            environment: Vec::new(),
            gates: 1,
            at_once: 8,
        }
    }
}

/// The lines of a ledger on disk, in the directory `data` beside the configuration.
pub(crate) const SQLITE: &str = r#"path = "data/tikigate.db""#;

/// The lines of one that is lost with the process.
pub(crate) const MEMORY: &str = "store = \"memory\"\nallow_volatile = true";

/// A world and those who live in it.
pub(crate) struct World {
    pub(crate) setup: Arc<Setup>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) till: Arc<Till>,
    pub(crate) disk: Option<Arc<Disk>>,
    tiki: Arc<Tiki>,
    places: Vec<Arc<Place>>,
    step_within: u64,
    at_work: JoinHandle<()>,
    person: JoinHandle<()>,
}

/// Where a gate is while it lives.
struct Place {
    number: usize,
    gates: watch::Sender<Vec<Option<ListenAddress>>>,
    admins: watch::Sender<Vec<Option<ListenAddress>>>,
}

impl Place {
    fn taken_by(&self, gate: &GateProcess) {
        let (address, admin) = (gate.address(), gate.admin_address());
        self.gates
            .send_modify(|gates| gates[self.number] = Some(ListenAddress::Tcp(address)));
        self.admins
            .send_modify(|admins| admins[self.number] = Some(ListenAddress::Tcp(admin)));
    }

    fn left(&self) {
        self.gates.send_modify(|gates| gates[self.number] = None);
        self.admins.send_modify(|admins| admins[self.number] = None);
    }
}

/// How a life of the gate ends.
#[derive(Clone, Debug)]
pub(crate) enum Death {
    /// By SIGKILL, so long after so much happened in its life. Counted in events, a life on a busy
    /// machine is as rich as on an idle one.
    After(u64, Duration),
    /// By SIGKILL, so long after it was started, ready or not.
    Starting(Duration),
    /// At the n-th passing of a step.
    At(&'static str, u64),
    /// By SIGKILL, after it was stopped at the n-th passing of a step, as by SIGSTOP, for this long, and
    /// lived on a little. Nobody new comes to it while it is stopped.
    Asleep(&'static str, u64, Duration),
}

impl World {
    /// Builds a world; nothing is sent until the gate lives.
    pub(crate) async fn new(plan: Plan) -> Self {
        let Plan {
            seed,
            ledger,
            on_disk,
            environment,
            gates,
            at_once,
        } = plan;
        let journal = Arc::new(Journal::default());
        let address = address_of_its_own();
        let till = Arc::new(Till::open(address, seed, Arc::clone(&journal)).await);
        let config = configuration(address, till.address(), &ledger);
        let mut setup = Setup::new(&config)
            .file("secret", SECRET.as_bytes())
            .file("token", TOKEN.as_bytes());
        let clock = setup.directory().join("clock");
        setup = setup.environment(OFFSET, clock.to_str().unwrap());
        for (name, value) in &environment {
            setup = setup.environment(name, value);
        }
        let data = setup.directory().join("data");
        std::fs::create_dir(&data).unwrap();
        let shadow = setup.directory().join("shadow");
        let disk = on_disk.then(|| Arc::new(Disk::new(data, shadow)));
        if let Some(disk) = &disk {
            disk.tell(Number::SyncTakes, SYNC_MICROS);
            for (name, value) in disk.environment() {
                setup = setup.environment(&name, &value);
            }
        }
        let nowhere = || watch::Sender::new(vec![None; gates]);
        let (found, admins) = (nowhere(), nowhere());
        let place = |number| {
            let (gates, admins) = (found.clone(), admins.clone());
            Arc::new(Place {
                number,
                gates,
                admins,
            })
        };
        let places: Vec<_> = (0..gates).map(place).collect();
        let gates = found.subscribe();
        let tiki = Arc::new(Tiki::new(seed, at_once, Arc::clone(&journal), gates));
        let person = Arc::new(Person {
            seed,
            journal: Arc::clone(&journal),
            till: Arc::clone(&till),
            admins: admins.subscribe(),
        });
        Self {
            setup: Arc::new(setup),
            at_work: tokio::spawn(Arc::clone(&tiki).work()),
            person: tokio::spawn(person.work()),
            tiki,
            journal,
            till,
            disk,
            places,
            step_within: STEP_WITHIN * at_once,
        }
    }

    /// Moves the gate's wall clock off the true time, which the others have.
    pub(crate) fn set_clock(&self, seconds: i64) {
        set_clock(&self.setup, seconds);
    }

    /// One life of the gate on what the one before left; `trouble` comes once it is ready. Returns
    /// how it ended.
    pub(crate) async fn live(&self, death: Death, trouble: impl FnOnce() + Send + 'static) -> Died {
        self.live_at(0, death, trouble).await
    }

    /// The same, of one gate of several.
    pub(crate) async fn live_at(
        &self,
        place: usize,
        death: Death,
        trouble: impl FnOnce() + Send + 'static,
    ) -> Died {
        let (setup, journal) = (Arc::clone(&self.setup), Arc::clone(&self.journal));
        let place = Arc::clone(&self.places[place]);
        let step_within = self.step_within;
        let life = move || {
            let died = live(&setup, &journal, &death, step_within, &place, trouble);
            place.left();
            died
        };
        tokio::task::spawn_blocking(life).await.unwrap()
    }

    /// A gate that nobody kills; Tiki and the person find it.
    async fn start(&self, place: &Place) -> GateProcess {
        let setup = Arc::clone(&self.setup);
        let start = move || GateProcess::launch(setup.command("serve"), setup);
        let gate = tokio::task::spawn_blocking(start).await.unwrap();
        let gate = gate.unwrap_or_else(|fault| panic!("{fault}"));
        place.taken_by(&gate);
        gate
    }

    /// After this long without a kill, lets all that was begun come to its end, asks for every refund
    /// once more, and checks everything. Returns the faults, a sentence each.
    pub(crate) async fn reckon(mut self, after: Duration) -> Vec<String> {
        let mut gates = Vec::new();
        for place in &self.places {
            gates.push(self.start(place).await);
        }
        tokio::time::sleep(after).await;
        self.till.behave();
        self.tiki.close();
        let mut faults = Vec::new();
        if tokio::time::timeout(END_WITHIN, &mut self.at_work)
            .await
            .is_err()
        {
            faults.push("some refunds never came to an end".to_owned());
        }
        if self.person.is_finished() {
            faults.push("the person has ended".to_owned());
        }
        self.person.abort();
        self.ask_for_all_again().await;
        let admin = ListenAddress::Tcp(gates[0].admin_address());
        let records = person::all_records(&admin).await;
        faults.extend(record_faults(&self.journal, &records));
        faults.extend(quarantine_fault(&admin).await);
        faults.extend(self.journal.faults());
        for (place, mut gate) in self.places.iter().zip(gates) {
            place.left();
            let ended = tokio::task::spawn_blocking(move || gate.terminate());
            let ended = ended.await.unwrap();
            if !ended.success() {
                faults.push(format!("the last gate ended with {ended}"));
            }
        }
        faults
    }

    async fn ask_for_all_again(&self) {
        let mut asking = JoinSet::new();
        for key in self.journal.histories().into_keys() {
            if asking.len() >= AGAIN_AT_ONCE {
                asking.join_next().await;
            }
            let tiki = Arc::clone(&self.tiki);
            asking.spawn(async move { tiki.ask(&key, &tiki::signed(&key)).await });
        }
        asking.join_all().await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.at_work.abort();
        self.person.abort();
    }
}

/// How a life ended, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Died {
    /// While it started.
    Starting,
    /// Somewhere.
    Anywhere,
    /// At this step.
    At(&'static str),
}

/// A life of the gate, in this thread.
fn live(
    setup: &Arc<Setup>,
    journal: &Journal,
    death: &Death,
    step_within: u64,
    place: &Place,
    trouble: impl FnOnce(),
) -> Died {
    let mut command = setup.command("serve");
    let step = match death {
        Death::Starting(after) => {
            command.stdout(std::process::Stdio::null());
            let mut child = command.spawn().unwrap();
            std::thread::sleep(*after);
            child.kill().unwrap();
            child.wait().unwrap();
            return Died::Starting;
        }
        Death::After(..) => None,
        Death::Asleep(step, nth, _) => {
            command.env("TIKIGATE_FAILPOINT", format!("{step}=stop@{nth}"));
            None
        }
        Death::At(step, nth) => {
            command.env("TIKIGATE_FAILPOINT", format!("{step}=kill@{nth}"));
            Some(*step)
        }
    };
    let mut running = match GateProcess::launch(command, Arc::clone(setup)) {
        Ok(running) => running,
        Err(not_ready) => match (step, not_ready.status) {
            (Some(step), Some(status)) if was_killed(status) => return Died::At(step),
            _ => panic!("{not_ready}"),
        },
    };
    place.taken_by(&running);
    trouble();
    let (most, linger) = match death {
        Death::After(most, linger) => (*most, *linger),
        Death::Asleep(_, _, time) => {
            wait_until_stopped(&running);
            place.left();
            std::thread::sleep(*time);
            running.signal(Signal::CONT);
            place.taken_by(&running);
            (AWAKE, AFTER_SLEEP)
        }
        _ => (step_within, Duration::ZERO),
    };
    match (end_of(&mut running, journal, most, linger), step) {
        (Some(status), Some(step)) if was_killed(status) => Died::At(step),
        (Some(status), _) => panic!(
            "the gate ended by itself: {status}\n{}\n{}",
            running.lines().join("\n"),
            running.error_lines().join("\n")
        ),
        (None, _) => {
            running.kill();
            Died::Anywhere
        }
    }
}

/// Waits for the step that a gate is stopped at; one that doesn't come to it is stopped where it is.
fn wait_until_stopped(running: &GateProcess) {
    let stat = format!("/proc/{}/stat", running.pid());
    let deadline = Instant::now() + LIFE_WITHIN;
    loop {
        let text = std::fs::read_to_string(&stat).unwrap();
        let state = text.rsplit(')').next().unwrap().trim_start().chars().next();
        if state == Some('T') {
            return;
        }
        if Instant::now() >= deadline {
            running.signal(Signal::STOP);
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How a gate ends that is let live until so much has happened, and a little longer; none: it lives.
fn end_of(
    running: &mut GateProcess,
    journal: &Journal,
    most: u64,
    linger: Duration,
) -> Option<ExitStatus> {
    let until = journal.count() + most;
    let deadline = Instant::now() + LIFE_WITHIN;
    while journal.count() < until && Instant::now() < deadline {
        if let Some(status) = running.ends_within(Duration::ZERO) {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(linger);
    running.ends_within(Duration::ZERO)
}

fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::KILL.as_raw())
}

impl Death {
    /// A death at any moment of a life, short or long.
    pub(crate) fn by_chance(random: &mut Random) -> Self {
        match random.below(10) {
            0..2 => Self::Starting(random.millis(0, 40)),
            2..4 => Self::After(0, random.millis(0, 20)),
            _ => Self::After(random.below(30), random.millis(0, 3)),
        }
    }
}

/// Nothing was rolled back, so the ledger may not think so. Where it was, nobody in a world lifts the
/// quarantine, and it is there to be seen at the end whatever became of the records.
async fn quarantine_fault(admin: &ListenAddress) -> Option<String> {
    let told = person::ask(admin, "GET", "/api/ledger/quarantine", None).await;
    let told = told.expect("whether there is a quarantine");
    match (&told["data"]["quarantined"], &told["data"]["cause"]) {
        (Value::Bool(false), Value::Null) => None,
        (_, cause) => Some(format!("{QUARANTINED} {cause}")),
    }
}

/// What must be true of the ledger's records at the end.
fn record_faults(journal: &Journal, records: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    let histories = journal.histories();
    for (key, history) in &histories {
        let mut of_key = records.iter().filter(|record| record["key"] == **key);
        let (record, second) = (of_key.next(), of_key.next());
        if second.is_some() {
            faults.push(format!("{key} has two records"));
        }
        let sent = history
            .iter()
            .any(|event| matches!(event, Event::Forward { .. }));
        let ended = history
            .iter()
            .any(|event| matches!(event, Event::Answer { answer, .. } if answer.is_final()));
        match record.map(|record| record["state"].as_str().unwrap()) {
            None if sent => faults.push(format!("{key} was sent and has no record")),
            None if ended => faults.push(format!("{key} was answered for good and has no record")),
            Some("claimed") => faults.push(format!("{key} is claimed, and nobody runs it")),
            Some(state) if ended && state != "done" => {
                faults.push(format!("{key} was answered for good and is {state}"));
            }
            _ => {}
        }
    }
    for record in records {
        if !histories.contains_key(record["key"].as_str().unwrap()) {
            faults.push(format!("nobody asked for {record}"));
        }
        // Nothing was rolled back, so nothing may be held for a gap.
        if record["held_for"] == "ledger_gap" || record["alarmed"] == true {
            faults.push(format!("there was no cause for {record}"));
        }
    }
    faults
}

/// The variable that names the file with the clock's offset.
pub(crate) const OFFSET: &str = "TIKIGATE_CLOCK_OFFSET_FILE";

/// Moves the wall clock of a gate whose offset is read from `clock` in its directory.
pub(crate) fn set_clock(setup: &Setup, seconds: i64) {
    let clock = setup.directory().join("clock");
    // Under another name first: the gate never reads half a number.
    let fresh = clock.with_extension("new");
    std::fs::write(&fresh, seconds.to_string()).unwrap();
    std::fs::rename(fresh, clock).unwrap();
}

/// A loopback address that no other world has, in this process or another: when a gate's port is taken
/// by the next gate, Tiki and the person must not take the one for the other.
pub(crate) fn address_of_its_own() -> IpAddr {
    static WORLDS: AtomicU32 = AtomicU32::new(0);
    let world = WORLDS.fetch_add(1, Ordering::SeqCst) % 200;
    let process = std::process::id() % 60_000;
    let [_, _, high, low] = process.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(
        127,
        high,
        low,
        u8::try_from(world + 2).unwrap(),
    ))
}

/// A gate with one route, for refunds, in front of this backend.
pub(crate) fn configuration(address: IpAddr, backend: SocketAddr, ledger: &str) -> String {
    format!(
        r#"
[server]
listen = "{address}:0"
workers = 1
drain_delay = "0s"
drain_within = "20s"
per_address = {{ per_second = 100000, burst = 100000 }}
[admin]
listen = "{address}:0"
tokens = [{{ name = "person", file = "token" }}]
[upstreams.legacy]
url = "http://{backend}"
connect_timeout = "500ms"
answer_within = "1s"
settle_within = "3s"
[[clients]]
id = "{CLIENT}"
name = "wallet"
environment = "production"
secrets = [{{ name = "now", file = "secret" }}]
rate = {{ per_second = 100000, burst = 100000 }}
[[routes]]
name = "refund"
path = "{}"
method = "POST"
payload = "refund"
[ledger]
{ledger}
"#,
        tiki::PATH
    )
}
