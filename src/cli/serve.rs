//! `tikigate serve`: runs the gate.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use sd_notify::NotifyState;

use crate::app::{self, App, PassedError, PassedSockets, Reload, Source, Stopper};
use crate::clock::Clock;
use crate::config::{self, Problem};

use super::exit;

/// Run the gate
///
/// SIGTERM or SIGINT starts the drain: the gate turns unready, closes its listener, finishes what
/// runs (at most `server.drain_within`), and exits. A second signal cuts the drain short: what may
/// have been sent is then recorded as unknown.
///
/// The configuration and every file that it names (secrets, certificates) are watched: a change is
/// taken without a dropped call, or refused as a whole, with every problem in the log and in /readyz.
/// SIGHUP has them read again at once.
///
/// Under systemd it says when it is ready and when it drains (Type=notify), and takes the sockets that
/// it is passed (socket activation) for the listeners with their addresses.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate serve --config /etc/tikigate/tikigate.toml\n  \
    TIKIGATE__SERVER__LISTEN=127.0.0.1:8080 tikigate serve\n  \
    tikigate check --config F      (first: are there problems in it?)")]
pub struct Args {
    /// The configuration. Left out: $TIKIGATE_CONFIG, else /etc/tikigate/tikigate.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Runs the command until the gate has drained.
pub fn run(args: Args) -> ExitCode {
    // First, while there are no threads that could look at the environment.
    let passed = PassedSockets::from_environment();
    let path = config::default_path(args.config);
    let environment: Vec<_> = std::env::vars_os().collect();
    let (source, result) = Source::read(path, environment);
    let loaded = match result {
        Ok(loaded) => loaded,
        Err(problems) => {
            tell(&problems);
            return ExitCode::from(exit::CONFIGURATION);
        }
    };
    tell(&loaded.warnings);
    match serve(source, passed, loaded.settings) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            // Where standard error is closed, the exit code has to do.
            let _ = writeln!(io::stderr(), "tikigate serve: {error:#}");
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn tell(problems: &[Problem]) {
    let mut err = io::stderr().lock();
    for problem in problems {
        let _ = writeln!(err, "{problem}");
    }
}

fn serve(
    source: Source,
    passed: Result<PassedSockets, PassedError>,
    settings: config::Settings,
) -> anyhow::Result<()> {
    let passed = passed?;
    let log = app::start_log(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut signals = {
        let _entered = runtime.enter();
        Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        }
    };
    let workers = settings.server.workers;
    let app = App::start_from(Some(source), passed, settings, Clock::system(), &log)?;
    tracing::info!(
        server.address = %app.address(), admin.address = %app.admin_address(),
        tikigate.workers = workers, service.version = env!("CARGO_PKG_VERSION"),
        "listening"
    );
    tell_manager(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("serving on {}", app.address())),
    ]);
    let stopper = app.stopper();
    let reload = app.reloader();
    runtime.block_on(async {
        tokio::join!(signals.watch(&stopper, &reload), tell_of_drain(&stopper))
    });
    app.wait();
    log.flush();
    Ok(())
}

/// Tells the service manager, where there is one that asked (`NOTIFY_SOCKET`).
fn tell_manager(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told of the gate's state");
    }
}

/// The drain may have been asked for by a signal or through the admin API.
async fn tell_of_drain(stopper: &Stopper) {
    stopper.draining().await;
    tell_manager(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// The signals that a gate listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Reads the configuration again on SIGHUP. Drains on the first of the others, hurries on the
    /// second, and returns when the gate has ended, for which the admin API can be the reason as well.
    async fn watch(&mut self, stopper: &Stopper, reload: &Reload) {
        let mut drain_asked = false;
        loop {
            tokio::select! {
                () = stopper.ended() => return,
                _ = self.hangup.recv() => {
                    reload.ask();
                    continue;
                }
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            if drain_asked {
                tracing::warn!("a second signal: the drain is cut short");
                stopper.hurry();
            }
            drain_asked = true;
            stopper.drain();
        }
    }
}
