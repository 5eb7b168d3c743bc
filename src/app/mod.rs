//! Composition: settings in, a running gate out; and its end.
//!
//! ```text
//! worker threads   one current-thread runtime, listener and set of backend connections each
//! outbound thread  the backend's calls to Tiki, and the outbox's deliveries, where there are any
//! control thread   admin listener, expiry of records, looks at the backend, and the drain
//! traces thread    exports spans, where a collector is configured
//! reload thread    watches the configuration and its files, and swaps what changed
//! ```
//!
//! A drain goes: unready → (`drain_delay`) → listener closed, what runs is finished → (`drain_within`)
//! → what still runs is recorded as unknown → end.

mod control;
mod drain;
mod ledger;
mod listeners;
pub mod offline;
mod outbound;
mod readiness;
mod reload;
mod sweep;
pub mod upkeep;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::Notify;

use crate::admin::{self, AdminSettings};
use crate::client::kept_at_most;
use crate::clock::Clock;
use crate::config::Settings;
use crate::gate::{Calls, Common, Current, Gate};
use crate::ledger::{DefineError, Ledger, Owner};
use crate::metrics::{ListenerName, Metrics, Sources};
use crate::net::ListenAddress;
use crate::outbound::CallerToken;
use crate::server::{self, BindError};
use crate::telemetry::{self, LogHandle};
use crate::traces::Exporter;

use control::Control;
use drain::Life;
use listeners::Listeners;
use outbound::Outbound;
use readiness::QuarantineSeen;
use reload::Reloader;

pub use crate::server::{PassedError, PassedSockets};
pub use reload::Source;

/// How long connections are let finish their heads in a drain where callers would otherwise wait.
const LET_IN: Duration = Duration::from_millis(50);

/// A running gate.
pub struct App {
    address: ListenAddress,
    admin_address: ListenAddress,
    outbound: Option<outbound::Handle>,
    life: Arc<Life>,
    calls: Calls,
    ledger: Arc<dyn Ledger>,
    reload: Arc<Notify>,
    threads: Vec<JoinHandle<()>>,
    /// Spans may take a moment longer than calls.
    exporting: Option<JoinHandle<()>>,
}

/// Why a gate could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener's address can't be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A socket that was passed to the gate can't be used.
    #[error(transparent)]
    Passed(#[from] PassedError),
    /// A namespace of the configuration is not the ledger's.
    #[error("namespace {namespace}: {source}")]
    Namespace {
        /// Its name.
        namespace: Arc<str>,
        /// Why.
        source: DefineError,
    },
    /// The admin token can't be made or read.
    #[error("{0}")]
    Token(io::Error),
    /// The ledger can't be used; says what to do.
    #[error("the ledger can't be used: {0}")]
    Ledger(String),
    /// A setting that `check` should have refused.
    #[error("{0}")]
    Settings(String),
    /// The system gave no thread, runtime or random numbers.
    #[error("{0}")]
    System(io::Error),
}

impl App {
    /// Starts a gate with these settings on all its threads. Its listeners take calls when this returns.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(settings: Settings, clock: Clock, log: &LogHandle) -> Result<Self, StartError> {
        Self::start_from(None, PassedSockets::default(), settings, clock, log)
    }

    /// The same of settings that came from `source`: when it changes, the gate does. Of the sockets
    /// that were passed to it each is taken by the listener with its address.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start_from(
        source: Option<Source>,
        mut passed: PassedSockets,
        settings: Settings,
        clock: Clock,
        log: &LogHandle,
    ) -> Result<Self, StartError> {
        let settings = Arc::new(settings);
        let workers = settings.server.workers.max(1);
        let owner = Owner(random()?);
        let (ledger, backing) = ledger::open(&settings, &clock, owner)?;
        ledger::define_namespaces(&settings, ledger.as_ref())?;
        let tokens = admin::token::ensure_token(&settings.ledger.directory, &settings.admin.tokens)
            .map_err(StartError::Token)?;
        let outbound_listen = settings.outbound.as_ref().map(|outbound| &outbound.listen);
        let listens = [&settings.server.listen, &settings.admin.listen];
        passed.all_are_for(&[&listens[..], outbound_listen.as_slice()].concat())?;
        // In a socket that stays open the next gate takes what this one refuses to; what it has let in
        // already gets a moment to say what it wants.
        let let_in = match passed.is_empty() {
            true => Duration::ZERO,
            false => LET_IN,
        };
        let listeners = passed.take_or_bind(&settings.server.listen, workers)?;
        let admin_listener = passed
            .take_or_bind(&settings.admin.listen, 1)?
            .pop()
            .ok_or_else(|| StartError::Settings("admin.listen gave no listener".to_owned()))?;
        let address = listeners.first().map_or_else(
            || settings.server.listen.clone(),
            server::Listener::local_address,
        );
        let admin_address = admin_listener.local_address();

        let common = Common::new(
            Arc::clone(&settings),
            clock.clone(),
            Arc::clone(&ledger),
            owner,
        )
        .map_err(StartError::Settings)?;
        let life = Arc::new(Life::new());
        let spans = common.take_spans();
        let sources = Sources {
            log_lines_dropped: log.lines_dropped(),
            spans: spans.as_ref().map(|(_, counts)| Arc::clone(counts)),
            ..Sources::default()
        };
        let counted = Arc::clone(&sources.listeners);
        let outbound = Outbound::prepare(
            &settings,
            &common,
            &backing,
            &clock,
            &life,
            Arc::clone(&counted),
            &mut passed,
        )?;
        let outbound_handle = outbound.as_ref().map(Outbound::handle);
        server::provide_descriptors(descriptors(&settings));
        let policy = server::Policy::from(&settings.server).current();
        let connections = Arc::new(server::Shared::new(
            settings.server.max_connections,
            ListenerName::Server,
            Arc::clone(&counted),
        ));
        // One more than the workers: the control thread sends and asks too.
        let metrics = Metrics::new(Common::labels(&settings, sources), workers + 1);
        if outbound.is_some() {
            metrics.show_outbound(Arc::clone(common.outbound_metrics()));
        }
        let commits = Arc::clone(&metrics);
        ledger.observe_commits(Box::new(move |took| commits.ledger_commit(took)));

        reload::show_certificates(&metrics, &settings);
        // One for each worker, and the control thread's.
        let gates: Vec<Current> = (0..=workers)
            .map(|number| {
                Ok(Current::new(Gate::new(
                    Arc::clone(&common),
                    metrics.worker(number),
                    log.access(number),
                    random()?,
                )))
            })
            .collect::<Result<_, StartError>>()?;

        let exporter = match (spans, &settings.tracing) {
            (Some((finished, counts)), Some(tracing)) => {
                let instance = format!("{:016x}", owner.0);
                let version = env!("CARGO_PKG_VERSION");
                let exporter = Exporter::new(tracing, version, instance, finished, counts);
                Some(exporter.map_err(|error| StartError::Settings(error.to_string()))?)
            }
            _ => None,
        };

        let mut threads = Vec::with_capacity(workers + 3);
        for (gate, listener) in gates.iter().zip(listeners) {
            let number = threads.len();
            let worker = Worker {
                gate: gate.clone(),
                calls: common.calls().clone(),
                listener,
                policy: Arc::clone(&policy),
                connections: Arc::clone(&connections),
                life: Arc::clone(&life),
            };
            threads.push(spawn(format!("worker-{number}"), worker.run())?);
        }
        if let (Some(outbound), Some(handle)) = (outbound, outbound_handle.clone()) {
            threads.push(spawn("outbound".to_owned(), outbound.run(handle))?);
        }
        let listeners = Listeners {
            server: policy,
            connections: Arc::clone(&connections),
            outbound: outbound_handle
                .as_ref()
                .map(|handle| Arc::clone(&handle.policy)),
            admission: admin::Admission::new(settings.admin.addresses.clone(), counted),
        };
        let admission = listeners.admission.clone();
        let access = admin::Access::new(&tokens, settings.admin.hosts.clone());
        let configuration = Arc::new(reload::Status::new(settings.certificates.clone()));
        let asked = Arc::new(Notify::new());
        if let Some(source) = source {
            let running = reload::Running {
                common: Arc::clone(&common),
                gates: gates.clone(),
                ledger: Arc::clone(&ledger),
                metrics: Arc::clone(&metrics),
                level: log.level(),
                access: access.clone(),
                listeners,
                caller_token: outbound_handle
                    .as_ref()
                    .map_or_else(|| CallerToken::new(None), |handle| handle.token.clone()),
            };
            let reloader = Reloader::new(
                source,
                running,
                Arc::clone(&configuration),
                Arc::clone(&asked),
            );
            threads.push(spawn("reload".to_owned(), reloader.run(life.draining()))?);
        }
        let control = Control {
            gate: gates[workers].clone(),
            configuration,
            clock,
            life: Arc::clone(&life),
            calls: common.calls().clone(),
            let_in,
            ledger: Arc::clone(&ledger),
            metrics,
            connections,
            outbound: outbound_handle.clone(),
            quarantine: Arc::new(QuarantineSeen::default()),
        };
        let admin_settings = AdminSettings {
            access,
            limits: admin::Limits::default(),
            admission,
        };
        let running = control.run(admin_listener, admin_settings);
        threads.push(spawn("control".to_owned(), running)?);
        let exporting = match exporter {
            None => None,
            Some(exporter) => Some(spawn(
                "traces".to_owned(),
                exporter.run(life.no_more_spans()),
            )?),
        };
        life.serving();
        Ok(Self {
            address,
            admin_address,
            outbound: outbound_handle,
            life,
            calls: common.calls().clone(),
            ledger,
            reload: asked,
            threads,
            exporting,
        })
    }

    /// Where Tiki's calls arrive.
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Where the admin listener is.
    pub fn admin_address(&self) -> &ListenAddress {
        &self.admin_address
    }

    /// Where the backend's calls to Tiki arrive, if they do.
    pub fn outbound_address(&self) -> Option<&ListenAddress> {
        self.outbound.as_ref().map(|outbound| &outbound.address)
    }

    /// Looks into the outbox again, for whoever moved its clock.
    pub fn look_into_outbox(&self) {
        if let Some(outbound) = &self.outbound {
            outbound.wake.notify_one();
        }
    }

    /// The ledger.
    pub fn ledger(&self) -> &Arc<dyn Ledger> {
        &self.ledger
    }

    /// Calls that run detached now.
    pub fn running_calls(&self) -> usize {
        self.calls.running()
    }

    /// A handle that has the configuration read again, whether or not a file changed.
    pub fn reloader(&self) -> Reload {
        Reload(Arc::clone(&self.reload))
    }

    /// A handle that can end this gate from elsewhere.
    pub fn stopper(&self) -> Stopper {
        Stopper {
            life: Arc::clone(&self.life),
        }
    }

    /// Waits until the gate has ended. Something must have started the drain.
    pub fn wait(self) {
        for thread in self.threads {
            // A panic in it was reported when it happened.
            let _ = thread.join();
        }
        ledger::close(self.ledger.as_ref());
        if let Some(exporting) = self.exporting {
            let _ = exporting.join();
        }
    }
}

/// Starts the process's log on standard output, for [`App::start`].
///
/// # Errors
/// The system gave no thread or descriptor for it.
pub fn start_log(settings: &Settings) -> io::Result<LogHandle> {
    telemetry::init(&settings.log, settings.server.workers)
}

/// Has a gate read its configuration again.
#[derive(Clone)]
pub struct Reload(Arc<Notify>);

impl Reload {
    /// Asks for it; what becomes of it is told in the log, in `/readyz` and by the metrics.
    pub fn ask(&self) {
        self.0.notify_one();
    }
}

/// Ends a gate.
#[derive(Clone)]
pub struct Stopper {
    life: Arc<Life>,
}

impl Stopper {
    /// Starts the drain; nothing happens when it runs already.
    pub fn drain(&self) {
        self.life.start_drain();
    }

    /// Cuts a running drain short: what may have been sent is recorded as unknown now.
    pub fn hurry(&self) {
        self.life.hurry();
    }

    /// Resolves when the drain has begun.
    pub async fn draining(&self) {
        self.life.draining().cancelled().await;
    }

    /// Resolves when the gate has ended.
    pub async fn ended(&self) {
        self.life.ended().await;
    }
}

/// What one worker thread needs.
struct Worker {
    gate: Current,
    calls: Calls,
    listener: server::Listener,
    policy: server::CurrentPolicy,
    connections: Arc<server::Shared>,
    life: Arc<Life>,
}

impl Worker {
    async fn run(self) {
        let service = self.gate.service::<server::Arriving>();
        let closing = self.life.closing();
        let abort = self.life.abort();
        let served = server::serve(
            self.listener,
            self.policy,
            self.connections,
            service,
            closing,
            abort,
        )
        .await;
        if let Err(error) = served {
            tracing::error!(%error, "a worker can't serve");
        }
        // Detached calls live on this thread's runtime: it stays until the last of them is recorded.
        self.calls.settled().await;
    }
}

fn spawn(
    name: String,
    future: impl Future<Output = ()> + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let runtime = runtime().map_err(StartError::System)?;
    std::thread::Builder::new()
        .name(name)
        .spawn(move || runtime.block_on(future))
        .map_err(StartError::System)
}

/// Connections that there may be at once, of callers and to backends.
fn descriptors(settings: &Settings) -> usize {
    let workers = settings.server.workers;
    let backends = settings.upstreams.iter().map(|upstream| {
        let kept = kept_at_most(upstream.max_in_flight, workers);
        let at_all_addresses = kept.saturating_mul(workers * upstream.endpoints.len());
        upstream.max_in_flight.saturating_add(at_all_addresses)
    });
    backends.fold(settings.server.max_connections, usize::saturating_add)
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn random() -> Result<u64, StartError> {
    getrandom::u64().map_err(|error| StartError::System(io::Error::other(error.to_string())))
}
