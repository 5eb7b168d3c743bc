//! Prometheus scrapes gates under load with the shipped rules. First nothing is wrong, and no alert is
//! pending or firing; then each trouble is made to happen, and its alert fires, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tikigate::cli::fake_tiki::{FakeTiki, Options};
use tokio::task::JoinSet;

use super::gates::{Gate, Plan, notice_of};
use super::prometheus::{Labels, Prometheus};
use super::{dashboard, troubles};
use crate::support::backend::{Answer, Backend, Behaviour, Hold};
use crate::support::disk::Disk;
use crate::support::gate::{CLIENT, SECRET};
use crate::support::postgres::Server;

/// Each duration of the rules is divided by this, so that five minutes are five seconds.
const DIVISOR: u64 = 60;
/// How long nothing is wrong: longer than any alert but the slowest burn rates waits, at this pace.
const QUIET: Duration = Duration::from_secs(16);
/// From the troubles to the last alert.
const FIRES_WITHIN: Duration = Duration::from_secs(90);
/// Between two calls to a gate under load.
const CALL_EVERY: Duration = Duration::from_millis(250);
/// Between two looks at the alerts.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What must fire: the gate or, where it says so, the job; the alert; its severity; more labels.
type Expected = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

const EXPECTED: [Expected; 35] = [
    (
        "refunds",
        "TikigateRefundHeld",
        "warning",
        &[("state", "unknown")],
    ),
    (
        "refunds",
        "TikigateRefundHeldLong",
        "critical",
        &[("state", "unknown")],
    ),
    (
        "refunds",
        "TikigatePossibleDuplicate",
        "warning",
        &[("route", "refund"), ("action", "marked")],
    ),
    (
        "refunds",
        "TikigateSignedCallLost",
        "critical",
        &[("route", "refund"), ("error", "conflict")],
    ),
    (
        "refunds",
        "TikigateCallsLost",
        "warning",
        &[("error", "body_too_large")],
    ),
    ("forged", "TikigateSignatureFailures", "critical", &[]),
    ("forged", "TikigateNothingAuthentic", "critical", &[]),
    ("forged", "TikigateNothingRouted", "warning", &[]),
    ("forged", "TikigateLogLinesDropped", "warning", &[]),
    ("clock", "TikigateClockOff", "warning", &[]),
    (
        "clock",
        "TikigateOutOfWindow",
        "warning",
        &[("reason", "too_old")],
    ),
    (
        "clock",
        "TikigateOverloaded",
        "warning",
        &[("error", "rate_limited"), ("reason", "client")],
    ),
    (
        "backend",
        "TikigateBreakerOpen",
        "warning",
        &[("upstream", "legacy"), ("address", BACKEND)],
    ),
    (
        "unhealthy",
        "TikigateBackendUnhealthy",
        "warning",
        &[("upstream", "legacy"), ("address", BACKEND)],
    ),
    (
        "unhealthy",
        "TikigateBackendGone",
        "critical",
        &[("upstream", "legacy")],
    ),
    (
        "backend",
        "TikigateBackendGone",
        "critical",
        &[("upstream", "legacy")],
    ),
    ("job tikigate-slow", "TikigateAnswersLate", "critical", &[]),
    (
        "job tikigate-slow",
        "TikigateAnswersLateSlowly",
        "warning",
        &[],
    ),
    (
        "database",
        "TikigateLedgerUnavailable",
        "critical",
        &[("reason", "failed")],
    ),
    ("database", "TikigateLedgerSilent", "critical", &[]),
    ("disk", "TikigateLedgerSlow", "warning", &[]),
    ("restarts", "TikigateRestarts", "warning", &[]),
    ("restarts", "TikigateLedgerQuarantined", "critical", &[]),
    (
        "edge",
        "TikigateCertificateExpires",
        "warning",
        &[("certificate", "server.tls.certificate")],
    ),
    (
        "edge",
        "TikigateConnectionsRefused",
        "warning",
        &[("listener", "server"), ("reason", "address")],
    ),
    (
        "configuration",
        "TikigateConfigurationRefused",
        "warning",
        &[],
    ),
    ("configuration", "TikigateRestartNeeded", "warning", &[]),
    (
        "configuration",
        "TikigateCertificateExpiresNow",
        "critical",
        &[("certificate", "server.tls.client_ca")],
    ),
    ("outbound", "TikigateNoticeFailed", "critical", &[]),
    ("outbound", "TikigateNoticeHeld", "critical", &[]),
    ("outbound", "TikigateNoticeOld", "critical", &[]),
    ("outbound", "TikigateNoticeUntold", "warning", &[]),
    ("paused", "TikigateLateSuccess", "critical", &[]),
    ("killed", "TikigateDown", "critical", &[]),
    ("job", "TikigateAbsent", "critical", &[]),
];

/// What the troubles bring along, sooner or later: gates that are restarted or stopped don't answer
/// meanwhile, and a refund is held until the person has spoken.
const BESIDES: [(&str, &str); 5] = [
    ("restarts", "TikigateDown"),
    ("outbound", "TikigateDown"),
    ("paused", "TikigateDown"),
    ("other", "TikigateRefundHeld"),
    ("paused", "TikigateRefundHeld"),
];

/// In place of the address of the backend that goes away.
const BACKEND: &str = "the backend";

/// Labels of an alert as [`EXPECTED`] has them, by the instance's or the job's name.
fn expected_labels(expected: &Expected, backend: &str) -> Labels {
    let (whose, alert, severity, more) = expected;
    let mut labels = Labels::new();
    let mut put = |name: &str, value: &str| {
        labels.insert(name.to_owned(), value.to_owned());
    };
    put("alertname", alert);
    put("severity", severity);
    match whose.strip_prefix("job") {
        Some("") => {}
        Some(job) => put("job", job.trim()),
        None => {
            put("job", "tikigate");
            put("instance", whose);
        }
    }
    for (name, value) in *more {
        put(name, if *value == BACKEND { backend } else { value });
    }
    labels
}

/// Everything that was ever pending or firing.
#[derive(Default)]
struct Seen {
    pending: BTreeSet<Labels>,
    firing: BTreeSet<Labels>,
}

impl Seen {
    async fn look(&mut self, prometheus: &Prometheus) {
        for (labels, state) in prometheus.alerts().await {
            match state.as_str() {
                "firing" => self.firing.insert(labels),
                _ => self.pending.insert(labels),
            };
        }
    }

    fn all(&self) -> BTreeSet<Labels> {
        self.pending.union(&self.firing).cloned().collect()
    }
}

/// Well-formed signed calls to these gates, one after the other, until it is dropped.
struct Load {
    _calls: JoinSet<()>,
    /// Nothing is wrong: each call must be answered 200.
    strict: Arc<AtomicBool>,
    wrong: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Load {
    fn on(gates: &[&Arc<Gate>]) -> Self {
        let strict = Arc::new(AtomicBool::new(true));
        let wrong = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut calls = JoinSet::new();
        for gate in gates {
            let (gate, strict, wrong) = (Arc::clone(gate), strict.clone(), wrong.clone());
            calls.spawn(async move {
                for n in 0.. {
                    let answer = gate.try_send(&notice_of(&format!("load-{n}"))).await;
                    let status = answer.map(|answer| answer.status);
                    if strict.load(Ordering::SeqCst) && status != Some(200) {
                        wrong
                            .lock()
                            .unwrap()
                            .push(format!("{}: {status:?}", gate.name));
                    }
                    tokio::time::sleep(CALL_EVERY).await;
                }
            });
        }
        Self {
            _calls: calls,
            strict,
            wrong,
        }
    }

    /// From now on anything may be answered; up to now all was 200.
    fn end_of_quiet(&self) {
        self.strict.store(false, Ordering::SeqCst);
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}

async fn generous() -> Backend {
    Backend::start(|_| Answer::success().into()).await
}

/// A backend that never answers refunds of `p-hangs`, says nothing of use when asked, and takes its time
/// for what is slow.
async fn moody() -> Backend {
    Backend::start(|seen| match seen.text() {
        "" => Answer::json(200, "{}").into(),
        body if body.contains("hangs") => Behaviour::Silence,
        body if body.contains("slow-") => {
            let hold = Hold::new();
            let release = hold.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(13_300)).await;
                release.release();
            });
            Behaviour::from(Answer::success()).held(&hold)
        }
        _ => Answer::success().into(),
    })
    .await
}

fn on_postgres(url: &str, backend: &Backend) -> Plan {
    let mut plan = Plan::before(&backend.url());
    plan.upstream = "answer_within = \"2s\"\nsettle_within = \"2s\"";
    plan.ledger =
        "store = \"postgres\"\nurl = { env = \"DATABASE_URL\" }\nlease = \"12s\"".to_owned();
    plan.environment = vec![("DATABASE_URL".to_owned(), url.to_owned())];
    plan
}

async fn own_server() -> (Server, String) {
    let start = || {
        let server = Server::start(&[]);
        let url = server.url(&server.create_database());
        (server, url)
    };
    tokio::task::spawn_blocking(start).await.unwrap()
}

async fn shared_url() -> String {
    let url = || Server::shared().url(&Server::shared().create_database());
    tokio::task::spawn_blocking(url).await.unwrap()
}

fn with_certificates(mut plan: Plan, server: &'static str) -> Plan {
    let directory = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
    for name in ["gate", "authority"] {
        troubles::certificate(directory.path(), name, 90);
    }
    plan.server = server;
    plan.files = vec![
        ("gate.crt", read("gate.crt")),
        ("gate.key", read("gate.key")),
        ("authority.crt", read("authority.crt")),
    ];
    plan
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_alert_fires_at_its_trouble_and_none_without() {
    let began = Instant::now();
    let (usual, moody, gone) = tokio::join!(generous(), moody(), generous());
    let ((server, url), shared) = tokio::join!(own_server(), shared_url());
    let tiki = Arc::new(
        FakeTiki::start(Options::default().client(CLIENT, SECRET))
            .await
            .unwrap(),
    );
    let plan = || Plan::before(&usual.url());

    let mut traced = plan();
    traced.more = format!("[tracing]\nendpoint = \"{}\"\n", usual.url());
    let mut hanging = Plan::before(&moody.url());
    hanging.upstream = "answer_within = \"1s\"\nsettle_within = \"2s\"";
    hanging.refund = "idempotency = { probe = { path = \"/state/{key}\", \
                      applied = { status = 200, pointer = \"/state\", equals = \"done\" } } }";
    let mut unread = plan();
    // Its log's reader goes after some lines.
    unread.through = Some("exec \"$@\" > >(sed -u 20q)");
    let mut limited = plan();
    limited.rate = "{ per_second = 10, burst = 30 }";
    let mut left = Plan::before(&gone.url());
    left.upstream = "breaker = { open_for = \"60s\" }";
    let mut checked = Plan::before(&gone.url());
    checked.upstream = "health = { path = \"/health\", every = \"200ms\" }";
    let mut patient = Plan::before(&moody.url());
    patient.upstream = "answer_within = \"14s\"";
    let mut stopping = on_postgres(&shared, &usual);
    stopping.environment.push((
        "TIKIGATE_FAILPOINT".to_owned(),
        "after_answer=stop".to_owned(),
    ));
    let mut notices = plan();
    notices.more = format!(
        "[outbound]\nlisten = \"{{ip}}:8090\"\nretry_after = \"50ms\"\nlongest_pause = \"200ms\"\n\
         notify_url = \"http://127.0.0.1:1/undelivered\"\n\
         [[outbound.accounts]]\nclient = \"wallet\"\nbase_url = \"{}\"",
        tiki.base_url()
    );
    let edge = with_certificates(
        plan(),
        "tls = { certificate = \"gate.crt\", private_key = \"gate.key\" }\ndeny = [\"127.9.9.9\"]",
    );
    let configured = with_certificates(
        plan(),
        "tls = { certificate = \"gate.crt\", private_key = \"gate.key\", client_ca = \"authority.crt\" }",
    );
    let mut disk = None;
    let on_disk = Gate::of_job("tikigate", "disk", plan(), |setup, _| {
        let path = |name: &str| setup.directory().join(name);
        let made = Disk::new(path("data"), path("shadow"));
        let variables = made.environment();
        disk = Some(made);
        variables
    });
    let (calm, refunds, forged, clock, backend, slow) = tokio::join!(
        Gate::start("calm", traced),
        Gate::start("refunds", hanging),
        Gate::start("forged", unread),
        Gate::start("clock", limited),
        Gate::start("backend", left),
        Gate::of_job("tikigate-slow", "slow", patient, |_, _| Vec::new()),
    );
    let (on_disk, database, restarts, edge, configuration, outbound) = tokio::join!(
        on_disk,
        Gate::start("database", on_postgres(&url, &usual)),
        Gate::start("restarts", plan()),
        Gate::start("edge", edge),
        Gate::start("configuration", configured),
        Gate::start("outbound", notices),
    );
    let (paused, other, killed, unhealthy) = tokio::join!(
        Gate::start("paused", stopping),
        Gate::start("other", on_postgres(&shared, &usual)),
        Gate::start("killed", plan()),
        Gate::start("unhealthy", checked),
    );
    let disk = disk.unwrap();
    let gates = [
        &calm,
        &refunds,
        &forged,
        &clock,
        &backend,
        &slow,
        &on_disk,
        &database,
        &restarts,
        &edge,
        &configuration,
        &outbound,
        &paused,
        &other,
        &killed,
        &unhealthy,
    ];
    // Not `refunds`: when its clock goes, calls would be out of their window.
    let load = Load::on(&[&calm, &clock, &backend, &slow, &on_disk, &database, &killed]);
    tiki.put_transaction(
        tikigate::cli::fake_tiki::Transaction::pending("T-1", "p-T-1", "1000", CLIENT).unwrap(),
    );
    troubles::post_notice(&outbound, "T-1").await;

    let targets: Vec<_> = gates.iter().map(|gate| gate.target()).collect();
    let prometheus = Prometheus::start(DIVISOR, &targets).await;
    let up = format!("count(up == 1) == {}", targets.len());
    prometheus.wait_for(&up).await;
    let mut seen = Seen::default();
    let quiet = Instant::now();
    while quiet.elapsed() < QUIET {
        seen.look(&prometheus).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    assert_eq!(seen.all(), BTreeSet::new(), "alerts without a trouble");
    assert_evaluated(&prometheus).await;
    // The calls came to be counted: what was quiet was not idle.
    let busy =
        "count(sum by (instance) (rate(tikigate_requests_total{code=\"200\"}[5s])) > 1) == 7";
    prometheus.wait_for(busy).await;
    load.end_of_quiet();

    let trouble = Instant::now();
    let making = async {
        drop(gone);
        killed.kill();
        troubles::disk_slow(&disk);
        tokio::join!(
            troubles::refunds(&refunds),
            troubles::forged(&forged),
            troubles::clock(&clock),
            troubles::backend_gone(&backend),
            troubles::slow(&slow),
            troubles::database_gone(&database, server),
            troubles::restarts(&restarts, &prometheus),
            troubles::edge(&edge),
            troubles::configuration(&configuration),
            troubles::outbound(&outbound, &tiki),
            troubles::late_success(&paused, &other),
        );
    };
    let address = backend_address(&prometheus).await;
    let mut expected: BTreeMap<Labels, bool> = EXPECTED
        .iter()
        .map(|expected| (expected_labels(expected, &address), false))
        .collect();
    let absent = expected_labels(EXPECTED.last().unwrap(), "");
    expected.remove(&absent);
    let watching = async {
        while expected.values().any(|fired| !fired) {
            seen.look(&prometheus).await;
            for (labels, fired) in &mut expected {
                *fired |= seen.firing.contains(labels);
            }
            if trouble.elapsed() > FIRES_WITHIN {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::join!(making, watching);
    let missing: Vec<_> = expected.iter().filter(|(_, fired)| !**fired).collect();
    assert!(
        missing.is_empty(),
        "never fired: {missing:#?}\n{}",
        prometheus.log()
    );
    dashboard::assert_all_show_data(&prometheus).await;

    // At last nobody is watched any more.
    prometheus.scrape(&[]);
    while !seen.firing.contains(&absent) {
        assert!(
            trouble.elapsed() < 2 * FIRES_WITHIN,
            "TikigateAbsent never fired"
        );
        seen.look(&prometheus).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let besides = |labels: &Labels| {
        let of = |name: &str| labels.get(name).map_or("", String::as_str);
        BESIDES.contains(&(of("instance"), of("alertname")))
    };
    let unexpected: Vec<_> = seen
        .all()
        .into_iter()
        .filter(|labels| !expected.contains_key(labels) && *labels != absent && !besides(labels))
        .collect();
    assert!(
        unexpected.is_empty(),
        "without a trouble of theirs: {unexpected:#?}"
    );
    println!(
        "started in {:?}, quiet for {QUIET:?}, {:?} of troubles",
        quiet - began,
        trouble.elapsed()
    );
}

/// The address that the gate `backend` calls, as its metrics have it.
async fn backend_address(prometheus: &Prometheus) -> String {
    let series = prometheus
        .query("tikigate_upstream_healthy{instance=\"backend\"}")
        .await;
    series[0].0["address"].clone()
}

/// Every alert is in the list of what must fire, and every rule was evaluated without an error.
async fn assert_evaluated(prometheus: &Prometheus) {
    let rules = prometheus.rules().await;
    let mut alerts = BTreeSet::new();
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        if rule["type"] == "alerting" {
            alerts.insert(rule["name"].as_str().unwrap().to_owned());
        }
    }
    let listed: BTreeSet<_> = EXPECTED
        .iter()
        .map(|(_, alert, ..)| (*alert).to_owned())
        .collect();
    assert_eq!(alerts, listed, "each alert has its trouble here");
}
