//! Who dies first in a pod: the backend, the gate, or both at once, in the middle of refunds, and in the
//! order that native sidecars are ended in. The backend is a process of its own (PHP), which books what it
//! was asked in a file that outlives it.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tikigate::net::ListenAddress;
use tokio::task::JoinSet;

use crate::commands::{ask, setup, signed};
use crate::support::gate::{changed, refund};
use crate::support::gate_process::{GateProcess, Setup};
use crate::support::random::{self, Random};
use crate::support::raw::exchange_if_there;

/// Pods that live and die in each way; `TIKIGATE_PODS` sets another number.
const PODS: u64 = 2;
/// Callers at once.
const CALLERS: u64 = 6;
/// Until every refund has come to an end after the last death.
const END_WITHIN: Duration = Duration::from_secs(60);

fn pods() -> u64 {
    std::env::var("TIKIGATE_PODS").map_or(PODS, |pods| pods.parse().unwrap())
}

/// Pays what it is asked, as often as it is asked, and takes a moment for it: before it books, or after.
const TILL: &str = r#"<?php
$call = json_decode(file_get_contents('php://input'), true);
$key = $call['request_id'];
$slow = crc32($key) % 4;
if ($slow == 1) { usleep(4000); }
file_put_contents(__DIR__ . '/book', $key . "\n", FILE_APPEND | LOCK_EX);
if ($slow == 2) { usleep(4000); }
header('Content-Type: application/json');
echo '{"data":{"status":"success"}}';
"#;

/// The backend's container: its process comes and goes, its volume stays.
struct Backend {
    directory: PathBuf,
    address: SocketAddr,
    process: Mutex<Option<Child>>,
}

impl Backend {
    fn new(directory: &Path) -> Self {
        fs::write(directory.join("till.php"), TILL).unwrap();
        fs::write(directory.join("book"), "").unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            directory: directory.to_owned(),
            address: free.local_addr().unwrap(),
            process: Mutex::default(),
        }
    }

    fn start(&self) {
        let child = Command::new("php")
            .args(["-S", &self.address.to_string(), "till.php"])
            .current_dir(&self.directory)
            .env("PHP_CLI_SERVER_WORKERS", "2")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        *self.process.lock().unwrap() = Some(child);
        let deadline = Instant::now() + END_WITHIN;
        while std::net::TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < deadline, "PHP did not start");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it as its container ends: all of its processes at once.
    fn end(&self, signal: Signal) {
        let Some(mut child) = self.process.lock().unwrap().take() else {
            return;
        };
        let main = rustix::process::Pid::from_child(&child);
        let workers = children_of(child.id());
        // The workers first: they would outlive a parent that was killed.
        for worker in workers.into_iter().chain([main]) {
            let _ = rustix::process::kill_process(worker, signal);
        }
        let _ = child.wait();
    }

    /// How often each refund was paid.
    fn book(&self) -> BTreeMap<String, u32> {
        let mut book = BTreeMap::new();
        for key in fs::read_to_string(self.directory.join("book"))
            .unwrap()
            .lines()
        {
            *book.entry(key.to_owned()).or_default() += 1;
        }
        book
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.end(Signal::KILL);
    }
}

fn children_of(pid: u32) -> Vec<rustix::process::Pid> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let ids = listed.split_whitespace().filter_map(|id| id.parse().ok());
    ids.filter_map(rustix::process::Pid::from_raw).collect()
}

/// How a pod ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    /// The backend crashes; the gate goes on and sees it come back.
    BackendFirst,
    /// The gate crashes; the backend goes on.
    GateFirst,
    /// The node goes: both at once.
    BothAtOnce,
    /// An orderly end with a native sidecar: the preStop hook starts the gate's drain, the backend ends
    /// after its own sleep, then the gate gets its SIGTERM.
    InOrder,
    /// The same without a drain: the backend ends at once, the gate is told afterwards.
    BackendThenSignal,
}

const DEATHS: [Death; 5] = [
    Death::BackendFirst,
    Death::GateFirst,
    Death::BothAtOnce,
    Death::InOrder,
    Death::BackendThenSignal,
];

/// What Tiki was told last of each refund.
type Told = Arc<Mutex<BTreeMap<String, u16>>>;

/// Asks for one refund after the other, and again for what got no final answer.
async fn caller(address: ListenAddress, name: String, told: Told, over: Arc<AtomicBool>) {
    for number in 0.. {
        let key = format!("{name}-{number}");
        for _ in 0..3 {
            if over.load(Ordering::SeqCst) {
                return;
            }
            if ask_for(&address, &key, &told).await {
                break;
            }
        }
    }
}

/// Whether the answer was final.
async fn ask_for(address: &ListenAddress, key: &str, told: &Told) -> bool {
    let call = signed("/tiki/refund", &refund(key, "1")).to_bytes();
    let answer = exchange_if_there(address, call, Duration::from_secs(8)).await;
    let status = answer.as_ref().map_or(0, |answer| answer.status);
    told.lock().unwrap().insert(key.to_owned(), status);
    let fits = matches!(status, 0 | 200 | 500 | 502 | 503 | 504);
    assert!(fits, "{key} was answered {status}: it would be lost");
    status == 200
}

fn carry_out(death: Death, mut gate: GateProcess, backend: &Backend) {
    match death {
        Death::BackendFirst => {
            backend.end(Signal::KILL);
            std::thread::sleep(Duration::from_millis(100));
            backend.start();
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(gate.terminate().code(), Some(0));
        }
        Death::GateFirst => gate.kill(),
        Death::BothAtOnce => {
            gate.signal(Signal::KILL);
            backend.end(Signal::KILL);
            gate.kill();
        }
        Death::InOrder => {
            ask(&gate, &["drain", "--within", "30"]).worked();
            backend.end(Signal::TERM);
            // It may have ended by itself: the drain was over.
            if gate.ends_within(Duration::ZERO).is_none() {
                gate.signal_terminate();
            }
            assert_eq!(gate.wait(Duration::from_secs(20)).code(), Some(0));
        }
        Death::BackendThenSignal => {
            backend.end(Signal::TERM);
            assert_eq!(gate.terminate().code(), Some(0));
        }
    }
}

async fn ensure_running(backend: &Arc<Backend>) {
    let backend = Arc::clone(backend);
    let starting = tokio::task::spawn_blocking(move || {
        if backend.process.lock().unwrap().is_none() {
            backend.start();
        }
    });
    starting.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_first_each_refund_is_paid_at_most_once_and_answered_as_it_was() {
    let seed = random::seed("pods");
    let volume = tempfile::tempdir().unwrap();
    let backend = Arc::new(Backend::new(volume.path()));
    let toml = changed(
        &format!("http://{}", backend.address),
        &[
            ("answer_within = \"1s\"", "answer_within = \"3s\""),
            (
                "store = \"memory\"\nallow_volatile = true",
                "path = \"tikigate.db\"",
            ),
            // A breaker would keep refunds away from the deaths that are to be met.
            (
                "settle_within = \"4s\"",
                "settle_within = \"4s\"\nbreaker = { enabled = false }",
            ),
        ],
    );
    let setup: Arc<Setup> = Arc::new(setup(&toml));
    let told = Told::default();
    let start = || {
        let setup = Arc::clone(&setup);
        tokio::task::spawn_blocking(move || {
            GateProcess::launch(setup.command("serve"), setup)
                .unwrap_or_else(|fault| panic!("{fault}"))
        })
    };
    for pod in 0..pods() * DEATHS.len() as u64 {
        let death = DEATHS[(pod % DEATHS.len() as u64) as usize];
        ensure_running(&backend).await;
        let gate = start().await.unwrap();
        let address = ListenAddress::Tcp(gate.address());
        let over = Arc::new(AtomicBool::new(false));
        let mut callers = JoinSet::new();
        for place in 0..CALLERS {
            let name = format!("r-{pod}-{place}");
            callers.spawn(caller(
                address.clone(),
                name,
                Arc::clone(&told),
                Arc::clone(&over),
            ));
        }
        let busy = backend.book().len() + 10 + Random::part(seed, &[pod]).below(20) as usize;
        let deadline = Instant::now() + END_WITHIN;
        while backend.book().len() < busy {
            assert!(Instant::now() < deadline, "the pod does no work");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let beside = Arc::clone(&backend);
        tokio::task::spawn_blocking(move || carry_out(death, gate, &beside))
            .await
            .unwrap();
        over.store(true, Ordering::SeqCst);
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
        if matches!(death, Death::InOrder) {
            // The backend outlived all that it was asked: nothing of this pod is open.
            let told = told.lock().unwrap();
            let book = backend.book();
            let mine = format!("r-{pod}-");
            for (key, _) in book.iter().filter(|(key, _)| key.starts_with(&mine)) {
                assert_eq!(
                    told[key], 200,
                    "{key} was paid, and its answer lost by the drain"
                );
            }
        }
    }

    // The last pod: Tiki asks again for everything that it has no final answer to.
    ensure_running(&backend).await;
    let gate = start().await.unwrap();
    let address = ListenAddress::Tcp(gate.address());
    let keys: Vec<(String, u16)> = told.lock().unwrap().clone().into_iter().collect();
    let mut asking = JoinSet::new();
    for place in 0..CALLERS as usize {
        let (address, told) = (address.clone(), Arc::clone(&told));
        let mine: Vec<String> = keys
            .iter()
            .skip(place)
            .step_by(CALLERS as usize)
            .map(|(key, _)| key.clone())
            .collect();
        asking.spawn(async move {
            for key in mine {
                ask_for(&address, &key, &told).await;
            }
        });
    }
    asking.join_all().await;
    let mut held = 0;
    for (key, before) in &keys {
        let status = told.lock().unwrap()[key];
        let final_now = status == 200;
        match before {
            200 => assert_eq!(status, 200, "{key}: a final answer was taken back"),
            // Nobody knows whether it was paid: it is held, and not tried again.
            _ if !final_now => {
                assert_eq!(status, 500, "{key}");
                held += 1;
            }
            _ => {}
        }
    }
    let book = backend.book();
    let twice: Vec<_> = book.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "paid twice: {twice:?}");
    for (key, status) in told.lock().unwrap().iter() {
        assert!(
            *status != 200 || book.contains_key(key),
            "{key} was answered as paid and was not"
        );
    }
    println!(
        "pods: {} refunds, {} paid, {held} held in the end",
        keys.len(),
        book.len()
    );
    // In half of the deaths something was under way whose outcome nobody could know.
    assert!(held > 0, "no death came in the middle of a refund");
}
