//! Tiki and the ingress before gates that come and go: calls go to gates that are ready, each refund is asked
//! for until it is answered, at one gate, at two at once, or at one that nobody listens to any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tikigate::net::ListenAddress;
use tokio::task::JoinSet;

use super::{Version, blocking};
use crate::commands::{asking, run, signed};
use crate::support::gate::refund;
use crate::support::gate_process::{GateProcess, Setup};
use crate::support::random::Random;
use crate::support::raw::{RawAnswer, RawClient, exchange_if_there};

/// Between two looks at a gate's readiness.
const PROBE_EVERY: Duration = Duration::from_millis(20);
/// From a refund's first call to its answer, and from the begin of a phase to what is waited for in it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A gate among others.
pub(super) struct Pod {
    version: Version,
    number: u64,
    address: ListenAddress,
    admin: ListenAddress,
    /// What the last probe said: calls go to it.
    ready: AtomicBool,
    /// It was told to go.
    leaving: AtomicBool,
    process: Mutex<Option<GateProcess>>,
}

/// What Tiki knows of a refund.
#[derive(Default)]
struct Refund {
    answer: Option<Vec<u8>>,
    /// Whose answer was not one that was given before.
    sent_by: Option<Version>,
}

/// What callers saw since the beginning of a phase, of refunds that were first wanted in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Refunds that were answered.
    pub(super) refunds: BTreeSet<String>,
    /// Refunds that one version sent and another answered for again.
    pub(super) again: BTreeMap<(Version, Version), BTreeSet<String>>,
    /// Refunds whose two calls were under way at both versions at once, and both answered.
    pub(super) at_both: u64,
}

/// The gates and all who call them.
pub(super) struct World {
    pods: Mutex<Vec<Arc<Pod>>>,
    refunds: Mutex<BTreeMap<String, Refund>>,
    phase: AtomicU64,
    seen: Mutex<Seen>,
    /// What must not be.
    faults: Mutex<Vec<String>>,
    over: AtomicBool,
    /// Calls that met a gate which was going: no answer, or `draining`.
    met_the_end: AtomicU64,
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            pods: Mutex::default(),
            refunds: Mutex::default(),
            phase: AtomicU64::default(),
            seen: Mutex::default(),
            faults: Mutex::default(),
            over: AtomicBool::default(),
            met_the_end: AtomicU64::default(),
        })
    }

    /// Starts a gate, which is called from the moment that it is ready.
    pub(super) async fn start(self: &Arc<Self>, version: Version, setup: Setup) -> Arc<Pod> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let process = version.start(&Arc::new(setup)).await;
        let pod = Arc::new(Pod {
            version,
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            address: ListenAddress::Tcp(process.address()),
            admin: ListenAddress::Tcp(process.admin_address()),
            ready: AtomicBool::new(true),
            leaving: AtomicBool::default(),
            process: Mutex::new(Some(process)),
        });
        tokio::spawn(keep_probing(Arc::clone(&pod)));
        self.pods.lock().unwrap().push(Arc::clone(&pod));
        pod
    }

    /// Ends a gate as a pod is ended: by its own preStop hook, then SIGTERM. Returns when it has gone.
    pub(super) async fn end(&self, pod: &Arc<Pod>) {
        pod.leaving.store(true, Ordering::SeqCst);
        let mut process = pod.process.lock().unwrap().take().unwrap();
        let version = pod.version;
        let lines = blocking(move || {
            let hook = version.of(&asking(&process, &["drain", "--no-wait"]));
            run(&mut { hook }).worked();
            process.signal_terminate();
            let status = process.wait(PATIENCE);
            assert_eq!(status.code(), Some(0), "{version:?}");
            process.lines()
        })
        .await;
        let cut = lines
            .iter()
            .find(|line| line.contains("given up") || line.contains("cut short"));
        assert_eq!(cut, None, "{version:?} did not finish what ran");
        self.pods
            .lock()
            .unwrap()
            .retain(|other| other.number != pod.number);
    }

    /// What a gate of the world wrote so far.
    pub(super) fn lines(pod: &Pod) -> Vec<String> {
        pod.process.lock().unwrap().as_ref().unwrap().lines()
    }

    /// Calls the gates from now on.
    pub(super) fn call(self: &Arc<Self>, callers: u64, seed: u64) -> JoinSet<()> {
        let mut calling = JoinSet::new();
        for caller in 0..callers {
            let world = Arc::clone(self);
            let random = Random::part(seed, &[caller]);
            calling.spawn(async move { world.keep_calling(caller, random).await });
        }
        calling
    }

    /// Waits until the callers have seen enough of a new phase, and gives what they saw.
    pub(super) async fn see(&self, what: &str, enough: impl Fn(&Seen) -> bool) -> Seen {
        self.phase.fetch_add(1, Ordering::SeqCst);
        *self.seen.lock().unwrap() = Seen::default();
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.assert_well();
            let seen = self.seen.lock().unwrap().clone();
            if enough(&seen) {
                return seen;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: not seen in time: {seen:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) fn assert_well(&self) {
        let faults = self.faults.lock().unwrap();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    /// Lets the callers have their last answers.
    pub(super) async fn finish(&self, calling: JoinSet<()>) {
        self.over.store(true, Ordering::SeqCst);
        calling.join_all().await;
        self.assert_well();
    }

    /// Asks each gate once more for each refund that was wanted: the answers are those of before. Gives the
    /// refunds.
    pub(super) async fn ask_for_all_again(self: &Arc<Self>) -> BTreeSet<String> {
        let keys: BTreeSet<String> = self.refunds.lock().unwrap().keys().cloned().collect();
        let mut asking = JoinSet::new();
        for pod in self.ready() {
            let (world, keys) = (Arc::clone(self), keys.clone());
            asking.spawn(async move {
                for key in keys {
                    let (answer, _) = world.ask(&pod, &key, None).await;
                    assert!(answer.is_some(), "{key}: no answer");
                }
            });
        }
        assert!(!asking.is_empty(), "no gate is ready");
        asking.join_all().await;
        self.assert_well();
        keys
    }

    /// Calls that met a gate which was going.
    pub(super) fn met_the_end(&self) -> u64 {
        self.met_the_end.load(Ordering::SeqCst)
    }

    fn ready(&self) -> Vec<Arc<Pod>> {
        let pods = self.pods.lock().unwrap();
        let ready = pods.iter().filter(|pod| pod.ready.load(Ordering::SeqCst));
        ready.cloned().collect()
    }

    fn fault(&self, what: String) {
        self.faults.lock().unwrap().push(what);
    }

    async fn keep_calling(&self, caller: u64, mut random: Random) {
        let mut kept = BTreeMap::new();
        let mut before: Vec<String> = Vec::new();
        for number in 0.. {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let phase = self.phase.load(Ordering::SeqCst);
            let key = format!("r-{phase}-{caller}-{number}");
            self.refunds
                .lock()
                .unwrap()
                .insert(key.clone(), Refund::default());
            match random.below(100) {
                0..25 => self.ask_unheard(&key, &mut random).await,
                25..60 => self.ask_two(&key, &mut random).await,
                _ => {}
            }
            self.ask_until_answered(&key, &mut random, &mut kept).await;
            before.push(key);
            let old = random.pick(&before).clone();
            self.ask_until_answered(&old, &mut random, &mut kept).await;
        }
    }

    /// Nobody hears the answer.
    async fn ask_unheard(&self, key: &str, random: &mut Random) {
        let ready = self.ready();
        if ready.is_empty() {
            return self.fault("no gate is ready".to_owned());
        }
        let pod = random.pick(&ready);
        if let Some(mut client) = RawClient::connect_if_there(&pod.address).await {
            client.send(call(key)).await;
        }
    }

    /// At two gates at once, of two versions where there are.
    async fn ask_two(&self, key: &str, random: &mut Random) {
        let ready = self.ready();
        let Some(one) = ready.first() else { return };
        let others: Vec<_> = ready
            .iter()
            .filter(|pod| pod.number != one.number)
            .collect();
        let unlike = others.iter().find(|pod| pod.version != one.version);
        let Some(two) = unlike.or(others.first()) else {
            return;
        };
        let mut pair = [one, two];
        if random.chance(50) {
            pair.reverse();
        }
        let [(first, _), (second, _)] = {
            let (first, second) =
                tokio::join!(self.ask(pair[0], key, None), self.ask(pair[1], key, None));
            [first, second]
        };
        if first.is_some() && second.is_some() && pair[0].version != pair[1].version {
            let mut seen = self.seen.lock().unwrap();
            seen.at_both += u64::from(self.is_of_phase(key));
        }
    }

    /// At one gate after the other, until there is an answer. Connections are kept, as an ingress keeps them.
    async fn ask_until_answered(
        &self,
        key: &str,
        random: &mut Random,
        kept: &mut BTreeMap<u64, RawClient>,
    ) {
        let deadline = Instant::now() + PATIENCE;
        while self.faults.lock().unwrap().is_empty() {
            if Instant::now() > deadline {
                return self.fault(format!("{key} was never answered"));
            }
            let ready = self.ready();
            if ready.is_empty() {
                return self.fault("no gate is ready".to_owned());
            }
            let pod = random.pick(&ready);
            let (answer, connection) = self.ask(pod, key, kept.remove(&pod.number)).await;
            if let Some(connection) = connection {
                kept.insert(pod.number, connection);
            }
            if answer.is_some() {
                return;
            }
        }
    }

    /// Asks a gate once: by this connection, or a new one. The answer, if it is one; the connection, if it
    /// may be used again.
    async fn ask(
        &self,
        pod: &Pod,
        key: &str,
        kept: Option<RawClient>,
    ) -> (Option<RawAnswer>, Option<RawClient>) {
        let exchange = async {
            let mut client = match kept {
                Some(client) => client,
                None => RawClient::connect_if_there(&pod.address).await?,
            };
            client.send(call(key)).await;
            let answer = client.read_answer_or_end().await?;
            Some((answer, client))
        };
        let met = exchange.await;
        let leaving = pod.leaving.load(Ordering::SeqCst);
        let version = pod.version;
        match met {
            Some((answer, client)) if answer.status == 200 => {
                self.answered(pod, key, &answer);
                let stays = answer.header("connection") != Some("close");
                (Some(answer), stays.then_some(client))
            }
            Some((answer, _)) if leaving && answer.error_code().as_deref() == Some("draining") => {
                self.met_the_end.fetch_add(1, Ordering::SeqCst);
                (None, None)
            }
            None if leaving => {
                self.met_the_end.fetch_add(1, Ordering::SeqCst);
                (None, None)
            }
            Some((answer, _)) => {
                let (status, text) = (answer.status, answer.text());
                self.fault(format!("{key} was refused by {version:?}: {status} {text}"));
                (None, None)
            }
            None => {
                self.fault(format!("{key} got no answer of {version:?}, which stays"));
                (None, None)
            }
        }
    }

    fn answered(&self, pod: &Pod, key: &str, answer: &RawAnswer) {
        let replayed = answer.header("idempotency-replayed") == Some("true");
        let mut refunds = self.refunds.lock().unwrap();
        let refund = refunds.get_mut(key).unwrap();
        let known = refund.answer.get_or_insert_with(|| answer.body.clone());
        if *known != answer.body {
            let (now, before) = (answer.text(), String::from_utf8_lossy(known));
            self.fault(format!("{key}: {now}, and before {before}"));
        }
        if !replayed && refund.sent_by.replace(pod.version).is_some() {
            self.fault(format!("{key} has two first answers"));
        }
        if !self.is_of_phase(key) {
            return;
        }
        let mut seen = self.seen.lock().unwrap();
        seen.refunds.insert(key.to_owned());
        if let (true, Some(sent_by)) = (replayed, refund.sent_by) {
            let pair = (sent_by, pod.version);
            seen.again.entry(pair).or_default().insert(key.to_owned());
        }
    }

    fn is_of_phase(&self, key: &str) -> bool {
        let phase = self.phase.load(Ordering::SeqCst);
        key.starts_with(&format!("r-{phase}-"))
    }
}

/// As the kubelet and the ingress' list of endpoints do together.
async fn keep_probing(pod: Arc<Pod>) {
    let probe = format!(
        "GET /readyz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        pod.admin
    );
    loop {
        let answer = exchange_if_there(&pod.admin, &probe, PATIENCE).await;
        let ready = answer.is_some_and(|answer| answer.status == 200);
        pod.ready.store(ready, Ordering::SeqCst);
        if !ready && pod.leaving.load(Ordering::SeqCst) {
            return;
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

/// A refund of a payment of its own, signed now.
fn call(key: &str) -> Vec<u8> {
    let body = refund(key, "1").replace("p-1", &format!("p-{key}"));
    signed("/tiki/refund", &body).to_bytes()
}
