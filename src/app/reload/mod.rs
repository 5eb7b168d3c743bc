//! A changed configuration, taken while calls run.
//!
//! ```text
//! a file changed ─┐                                          ┌▶ taken: gates, listeners, tokens, level swapped
//! SIGHUP ─────────┴▶ read and checked whole ─▶ made ─▶ defined ┤
//!                    (every problem at once)    (in the ledger) └▶ refused: what runs stays as it is
//! ```
//! All or nothing: everything that can fail comes before the first swap. A call that has begun ends
//! with the settings that it began with.

mod restart;
mod status;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Access};
use crate::config::{self, Loaded, Reading, Settings, WatchedFile};
use crate::gate::{Common, Current};
use crate::ledger::Ledger;
use crate::metrics::{Metrics, Sources};
use crate::outbound::CallerToken;
use crate::telemetry::LogLevel;

pub(super) use status::Status;

use super::listeners::Listeners;

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Between two tries of a change that was refused for a reason that may pass.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// How long the ledger may take to learn of a new namespace.
const DEFINING: Duration = Duration::from_secs(10);

/// Where the settings came from, to be read again when it changes.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    environment: Vec<(OsString, OsString)>,
    files: Vec<WatchedFile>,
}

impl Source {
    /// Reads the configuration at `path` with the overrides and secrets of `environment`.
    pub fn read(
        path: PathBuf,
        environment: Vec<(OsString, OsString)>,
    ) -> (Self, Result<Loaded, Vec<config::Problem>>) {
        let Reading { result, files } = config::load_watched(&path, &environment);
        let source = Self {
            path,
            environment,
            files,
        };
        (source, result)
    }

    /// The files as they stand now.
    fn look(&self) -> Vec<WatchedFile> {
        let files = self.files.iter();
        files.map(|file| WatchedFile::look(&file.path)).collect()
    }
}

/// What a reload swaps.
pub(super) struct Running {
    pub(super) common: Arc<Common>,
    /// The workers' gates, in the order of their numbers in the metrics.
    pub(super) gates: Vec<Current>,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) level: LogLevel,
    pub(super) access: Access,
    pub(super) listeners: Listeners,
    pub(super) caller_token: CallerToken,
}

/// Watches the configuration and takes what changes.
pub(super) struct Reloader {
    source: Source,
    running: Running,
    status: Arc<Status>,
    asked: Arc<Notify>,
}

/// Why a change was not taken.
enum Refused {
    /// It is wrong: all of it, in words for people.
    Wrong(Vec<String>),
    /// It can't be taken now.
    NotNow(String),
}

impl Reloader {
    pub(super) fn new(
        source: Source,
        running: Running,
        status: Arc<Status>,
        asked: Arc<Notify>,
    ) -> Self {
        Self {
            source,
            running,
            status,
            asked,
        }
    }

    /// Takes changes until `ended`.
    pub(super) async fn run(mut self, ended: CancellationToken) {
        let reloading = async {
            let mut again_at = None;
            loop {
                self.wait_for_a_reason(again_at).await;
                again_at = match self.reload().await {
                    Ok(()) => None,
                    Err(Refused::NotNow(_)) => Some(Instant::now() + TRY_AGAIN),
                    Err(Refused::Wrong(_)) => None,
                };
            }
        };
        ended.run_until_cancelled(reloading).await;
    }

    /// Resolves when the files have changed and stand still, when somebody asks, or at `again_at`.
    async fn wait_for_a_reason(&self, again_at: Option<Instant>) {
        let changed = async {
            let mut seen = self.source.files.clone();
            loop {
                sleep(LOOK_EVERY).await;
                let now = self.source.look();
                // Whoever writes several files, or one in pieces, shall be done.
                if now != self.source.files && now == seen {
                    return;
                }
                seen = now;
            }
        };
        let again = async {
            match again_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = again => {}
            () = self.asked.notified() => {}
        }
    }

    /// Reads everything anew and takes it, or says why not.
    async fn reload(&mut self) -> Result<(), Refused> {
        let (source, result) =
            Source::read(self.source.path.clone(), self.source.environment.clone());
        let known = std::mem::replace(&mut self.source, source).files;
        if result.is_err() {
            // A file whose name can't be read any more may be what has to be mended.
            for file in known {
                if !self
                    .source
                    .files
                    .iter()
                    .any(|other| other.path == file.path)
                {
                    self.source.files.push(WatchedFile::look(&file.path));
                }
            }
        }
        let taken = match result {
            Ok(loaded) => self.take(loaded).await,
            Err(problems) => Err(Refused::Wrong(
                problems.iter().map(ToString::to_string).collect(),
            )),
        };
        match &taken {
            Ok(()) => {}
            Err(Refused::Wrong(problems)) => self.refuse(problems),
            Err(Refused::NotNow(problem)) => self.refuse(std::slice::from_ref(problem)),
        }
        taken
    }

    fn refuse(&self, problems: &[String]) {
        for problem in problems {
            tracing::error!(problem, "the changed configuration is not taken");
        }
        self.status.refused(problems);
        self.running.metrics.configuration().refused();
    }

    async fn take(&mut self, loaded: Loaded) -> Result<(), Refused> {
        let wrong = |problem: String| Refused::Wrong(vec![problem]);
        let Loaded {
            mut settings,
            warnings,
        } = loaded;
        let before = Arc::clone(self.running.common.settings());
        let waiting = restart::keep(&mut settings, &before).map_err(wrong)?;
        let settings = Arc::new(settings);
        let common = self
            .running
            .common
            .renewed(Arc::clone(&settings))
            .map_err(wrong)?;
        let tokens = admin::token::ensure_token(&settings.ledger.directory, &settings.admin.tokens)
            .map_err(|error| wrong(error.to_string()))?;
        self.define(&before, &settings).await?;

        // Nothing below can fail.
        let running = &mut self.running;
        let labels = Common::labels(&settings, Sources::default());
        running.metrics.renew(labels.routes, labels.secrets);
        common.renew_accounts();
        common.resize_caps();
        for (number, current) in running.gates.iter().enumerate() {
            let metrics = running.metrics.worker(number);
            current.replace(current.get().renewed(Arc::clone(&common), metrics));
        }
        running.common = common;
        running.listeners.renew(&settings);
        running.access.renew(&tokens, settings.admin.hosts.clone());
        let outbound = settings.outbound.as_ref();
        let token = outbound.and_then(|outbound| outbound.token.as_ref());
        running.caller_token.renew(token);
        running.level.set(settings.log.level);
        for warning in &warnings {
            tracing::warn!(problem = %warning, "the configuration has something to look at");
        }
        if !waiting.is_empty() {
            tracing::warn!(
                keys = waiting.join(", "),
                "changed, and left as it was until the gate is restarted"
            );
        }
        running.metrics.configuration().taken(!waiting.is_empty());
        show_certificates(&running.metrics, &settings);
        self.status.taken(waiting, settings.certificates.clone());
        tracing::info!(
            routes = settings.routes.len(),
            clients = settings.clients.len(),
            upstreams = settings.upstreams.len(),
            "the changed configuration is in force"
        );
        Ok(())
    }

    /// Ties namespaces that are new to their definitions.
    async fn define(&self, before: &Settings, settings: &Settings) -> Result<(), Refused> {
        let known = Common::namespaces(before);
        let mut new = Common::namespaces(settings);
        new.retain(|namespace| !known.contains(namespace));
        for (namespace, definition) in new {
            let defining = self
                .running
                .ledger
                .define(Arc::clone(&namespace), definition);
            match timeout(DEFINING, defining).await {
                Ok(Ok(())) => {}
                Ok(Err(error @ crate::ledger::DefineError::Ledger(_))) => {
                    return Err(Refused::NotNow(format!("namespace {namespace}: {error}")));
                }
                Ok(Err(error)) => {
                    return Err(Refused::Wrong(vec![format!(
                        "namespace {namespace}: {error}"
                    )]));
                }
                Err(_) => {
                    return Err(Refused::NotNow(format!(
                        "namespace {namespace}: the ledger gave no answer"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Has the metrics tell until when the certificates hold.
pub(super) fn show_certificates(metrics: &Metrics, settings: &Settings) {
    let ends = settings.certificates.iter();
    let ends = ends.map(|expiry| (expiry.key.clone(), expiry.not_after));
    metrics.configuration().certificates(ends.collect());
}
