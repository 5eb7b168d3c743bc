//! Floods against the real binary, while a caller that behaves sends a modest stream of right calls.
//!
//! Under each flood every one of its calls is answered 200, and slow ones (the 99th percentile) take at
//! most three times as long as just before without the flood, or [`FLOOR`] where that is more: on a
//! machine that other tests share, and with a debug build, some milliseconds more say nothing. The strict figures come from
//! `benches/edge/floods.py`. The gate's memory stays within its bound, and what the flood took is free
//! again afterwards.
//!
//! The floods run one after the other, at low priority and with few threads, for [`SECONDS`] each;
//! `TIKIGATE_FLOODS=60` has each last a minute.

mod caller;
mod crowd;
mod memory;
mod tools;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ClientConfig;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;

use crate::support::backend::{Answer, Backend};
use crate::support::gate::{CLIENT, SECRET};
use crate::support::gate_process::{GateProcess, Setup};
use crate::support::{PATIENCE, raw};

use caller::{Caller, Figures};
use crowd::{Crowd, Manner, room_for_a_crowd};
use memory::{DEFAULTS, Sizes};
use tools::{Sent, Tool};

/// What a slow call may take whatever it took before.
const FLOOR: Duration = Duration::from_millis(200);
/// The same where each address sends the whole burst of its limit at once, some 8000 forged calls in all:
/// a debug build takes about a second to check so many signatures.
const BURST: Duration = Duration::from_millis(2500);
/// How many times as long a slow call may take under a flood.
const SLOWER: u32 = 3;
/// How long each flood lasts unless the environment says otherwise.
const SECONDS: u64 = 2;
/// How long the caller is alone before each.
const ALONE: Duration = Duration::from_millis(1200);
/// Between two looks at something that can't be waited for.
const GLANCE: Duration = Duration::from_millis(20);
/// Tries of a flood whose only fault is that calls were slow: another test may have been at work.
const TRIES: usize = 4;

/// A flood and the least that it must have done to be one.
struct Flood {
    name: &'static str,
    weapon: Weapon,
    least: usize,
    /// What a slow call may take whatever it took before.
    floor: Duration,
}

enum Weapon {
    Crowd(Crowd),
    Tool(Tool),
}

const fn crowd(name: &'static str, at_once: usize, addresses: usize, manner: Manner) -> Flood {
    let weapon = Weapon::Crowd(Crowd {
        at_once,
        addresses,
        manner,
    });
    let least = at_once / 8;
    Flood {
        name,
        weapon,
        least,
        floor: FLOOR,
    }
}

const fn tool(name: &'static str, tool: Tool, least: usize) -> Flood {
    let weapon = Weapon::Tool(tool);
    Flood {
        name,
        weapon,
        least,
        floor: FLOOR,
    }
}

/// More than there are places.
const MORE_THAN_ALL: usize = 12_000;
/// The same in a long run; the system may give fewer descriptors.
const FAR_MORE_THAN_ALL: usize = 20_000;

const FROM_ANYWHERE: [Flood; 10] = [
    crowd("silent, one address", 8000, 1, Manner::Silent),
    crowd("silent, many addresses", MORE_THAN_ALL, 400, Manner::Silent),
    crowd("slow heads", MORE_THAN_ALL, 400, Manner::SlowHead),
    crowd("slow bodies, too slow", 3000, 100, TOO_SLOW),
    crowd("slow bodies, just fast enough", 3000, 100, FAST_ENOUGH),
    Flood {
        floor: BURST,
        ..crowd("answers not read", 40, 20, Manner::NotReading)
    },
    crowd("garbage", 200, 50, Manner::Garbage),
    tool(
        "slowhttptest, heads",
        Tool::SlowHttpTest(&["-H", "-i", "1"]),
        1,
    ),
    tool(
        "slowhttptest, bodies",
        Tool::SlowHttpTest(&["-B", "-i", "1"]),
        1,
    ),
    tool("h2load", Tool::H2Load, 1),
];

/// `min_body_rate` is 256 bytes a second, after a second of grace.
const TOO_SLOW: Manner = Manner::SlowBody {
    bytes: 10,
    every: Duration::from_millis(500),
};
const FAST_ENOUGH: Manner = Manner::SlowBody {
    bytes: 150,
    every: Duration::from_millis(500),
};

const THROUGH_A_PROXY: [Flood; 5] = [
    tool("forged, many addresses", Tool::Wrk(Sent::Forged), 300),
    tool("forged, one address", Tool::Wrk(Sent::ForgedByOne), 300),
    tool("unknown client", Tool::Wrk(Sent::UnknownClient), 300),
    tool("unsigned", Tool::Wrk(Sent::Unsigned), 300),
    tool("upgrade to HTTP/2", Tool::Wrk(Sent::Upgrade), 300),
];

const AGAINST_TLS: [Flood; 3] = [
    crowd("TLS: silent", MORE_THAN_ALL, 400, Manner::Silent),
    crowd(
        "TLS: half a handshake",
        MORE_THAN_ALL,
        400,
        Manner::HalfHandshake,
    ),
    crowd("TLS: garbage", 200, 50, Manner::Garbage),
];

/// One test, so that no flood runs beside another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_behaves_is_served_through_every_flood() {
    let room = room_for_a_crowd();
    let only = std::env::var("TIKIGATE_FLOODS_ONLY").unwrap_or_default();
    let sets: [(&[Flood], Door); 3] = [
        (&FROM_ANYWHERE, Door::Open),
        (&THROUGH_A_PROXY, Door::BehindProxy),
        (&AGAINST_TLS, Door::Tls),
    ];
    for (floods, door) in sets {
        let mut wanted = floods.iter().filter(|flood| flood.name.contains(&only));
        let Some(first) = wanted.next() else { continue };
        let scene = Scene::start(door).await;
        for flood in [first].into_iter().chain(wanted) {
            scene.stand(flood, room).await;
        }
    }
}

/// Who may come in how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    /// 127.0.0.1 is a proxy that is believed about who called it.
    BehindProxy,
    Tls,
}

/// A gate with its limits as they are by default, a backend, and a caller that behaves.
struct Scene {
    gate: GateProcess,
    _backend: Backend,
    caller: Caller,
    lasts: Duration,
    sizes: Sizes,
}

impl Scene {
    async fn start(door: Door) -> Self {
        let backend = Backend::start(|_| Answer::success().into()).await;
        let certified = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let setup = Setup::new(&configuration(&backend.url(), door))
            .file("secret", SECRET.as_bytes())
            .file("tls.crt", certified.cert.pem().as_bytes())
            .file("tls.key", certified.signing_key.serialize_pem().as_bytes());
        let gate = spawn_blocking(move || setup.start()).await.unwrap();
        let tls = (door == Door::Tls).then(|| trusting(&certified));
        let caller = Caller::new(gate.address(), tls);
        let seconds = std::env::var("TIKIGATE_FLOODS").ok();
        let seconds = seconds.map_or(SECONDS, |seconds| {
            seconds.parse().expect("TIKIGATE_FLOODS=SECONDS")
        });
        let sizes = Sizes {
            tls: door == Door::Tls,
            ..DEFAULTS
        };
        Self {
            gate,
            _backend: backend,
            caller,
            lasts: Duration::from_secs(seconds),
            sizes,
        }
    }

    /// Lets the flood come.
    async fn stand(&self, flood: &Flood, room: usize) {
        let name = flood.name;
        for left in (0..TRIES).rev() {
            memory::forget_peak(self.gate.pid());
            let calm = self.gauges().await;
            let (alone, ()) = self.caller.call_during(sleep(ALONE)).await;
            let (under, done) = self.under(flood, room).await;
            let faults = alone.faults.len() + under.faults.len();
            if faults > 0 && left > 0 {
                // A machine that does nothing for a second looks to a gate like a caller who does nothing, and
                // costs one of an honest caller its connection. Once more: a gate that keeps callers out does so
                // each time.
                eprintln!("{name}: {faults} faults: {}", self.refusals().join(", "));
                self.wait_for(calm, name).await;
                continue;
            }
            for figures in [&alone, &under] {
                let why = || self.refusals().join("\n");
                assert_eq!(figures.faults, [""; 0], "{name}: {}", why());
            }
            let (before, during) = (alone.p99(), under.p99());
            let peak = memory::peak(self.gate.pid());
            eprintln!(
                "{name}: {done} done, {} answered, p99 {before:?} then {during:?}, {} MiB",
                under.answered(),
                peak >> 20
            );
            assert!(done >= flood.least, "{name}: no flood: {done}");
            let bound = memory::bound(self.sizes);
            assert!(peak <= bound, "{name}: {peak} bytes, the bound is {bound}");
            self.wait_for(calm, name).await;
            let limit = (before * SLOWER).max(flood.floor);
            if during <= limit {
                return;
            }
            assert!(left > 0, "{name}: p99 {during:?}, before {before:?}");
        }
    }

    async fn under(&self, flood: &Flood, room: usize) -> (Figures, usize) {
        let address = self.gate.address();
        match &flood.weapon {
            Weapon::Crowd(crowd) => {
                let at_once = match crowd.at_once {
                    MORE_THAN_ALL if self.lasts > Duration::from_secs(SECONDS) => FAR_MORE_THAN_ALL,
                    at_once => at_once,
                };
                let at_once = at_once.min(room);
                let running = Crowd { at_once, ..*crowd }.flood(address);
                let at_work = async {
                    sleep(self.lasts).await;
                    let enough = async {
                        while running.opened() < flood.least {
                            sleep(GLANCE).await;
                        }
                    };
                    // On a busy machine it takes longer to become a flood.
                    let _ = tokio::time::timeout(3 * PATIENCE, enough).await;
                };
                let (figures, ()) = self.caller.call_during(at_work).await;
                let opened = spawn_blocking(|| running.end()).await.unwrap();
                (figures, opened)
            }
            Weapon::Tool(tool) => {
                let directory: PathBuf = self.gate.setup().directory().to_owned();
                let running = tool.start(address, self.lasts, &directory);
                let ended = spawn_blocking(|| running.end());
                let (figures, ended) = self.caller.call_during(ended).await;
                let (done, text) = ended.unwrap();
                assert!(done > 0, "{}: {text}", flood.name);
                (figures, done)
            }
        }
    }

    /// What the gate says of calls of the caller that it did not answer well.
    fn refusals(&self) -> Vec<String> {
        let from = format!("\"{}\"", caller::ADDRESS);
        let bad = |line: &String| line.contains(&from) && !line.contains("status_code\":200");
        let lines = self.gate.lines();
        lines.into_iter().filter(bad).take(5).collect()
    }

    /// Connections and calls in flight.
    async fn gauges(&self) -> [usize; 2] {
        let address = tikigate::net::ListenAddress::Tcp(self.gate.admin_address());
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let text = raw::exchange(&address, request).await.text().to_owned();
        ["tikigate_connections ", "tikigate_in_flight "].map(|series| {
            let value = text.lines().find_map(|line| line.strip_prefix(series));
            value
                .unwrap_or_else(|| panic!("no {series}"))
                .parse()
                .unwrap()
        })
    }

    /// Waits until the gauges are what they were.
    async fn wait_for(&self, calm: [usize; 2], name: &str) {
        let began = Instant::now();
        loop {
            let now = self.gauges().await;
            if now.iter().zip(calm).all(|(now, calm)| *now <= calm) {
                return;
            }
            assert!(
                began.elapsed() < 2 * PATIENCE,
                "{name}: {now:?} connections and calls are left, there were {calm:?}"
            );
            sleep(GLANCE).await;
        }
    }
}

fn configuration(backend: &str, door: Door) -> String {
    let more = match door {
        Door::Open => "",
        Door::BehindProxy => "trusted_proxies = [\"127.0.0.1/32\"]",
        Door::Tls => "[server.tls]\ncertificate = \"tls.crt\"\nprivate_key = \"tls.key\"",
    };
    format!(
        r#"
[admin]
listen = "127.0.0.1:0"
[upstreams.legacy]
url = "{backend}"
[[clients]]
id = "{CLIENT}"
environment = "production"
secrets = [{{ name = "now", file = "secret" }}]
rate = {{ per_second = 1000, burst = 1000 }}
[[routes]]
name = "ipn"
path = "/tiki/ipn"
payload = "transaction_ipn"
[ledger]
store = "memory"
[server]
listen = "127.0.0.1:0"
workers = 2
drain_delay = "0s"
{more}
"#
    )
}

/// Speaks TLS to whoever has this certificate.
fn trusting(certified: &CertifiedKey<rcgen::KeyPair>) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}
