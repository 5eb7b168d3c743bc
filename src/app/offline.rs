//! A ledger's file without its gate, behind an admin listener of this process's own: the commands
//! reach it as they reach a running gate's.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio_util::sync::CancellationToken;

use super::{StartError, ledger, random, runtime};
use crate::admin::{self, AdminSettings, Phase, Readiness, SendNowError, SendingNow};
use crate::clock::Clock;
use crate::config::{AdminToken, Secret, SqliteStore};
use crate::ledger::{Ledger, RecordId, SqliteReading, Stats};
use crate::outbound::outbox;
use crate::store::sqlite::Snapshot;

/// The name that changes are made under.
const HOLDER: &str = "offline";

/// A ledger's file behind an admin listener; given up when dropped.
pub struct OfflineLedger {
    directory: Directory,
    token: String,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl OfflineLedger {
    /// Opens the file at `path` to be read as it is. Backups are read this way, too.
    ///
    /// # Errors
    /// A gate uses it, or it is no ledger.
    pub fn read(path: &Path, clock: Clock) -> Result<Self, StartError> {
        let fault = |error: crate::store::sqlite::OpenError| StartError::Ledger(error.to_string());
        Snapshot::must_be_unused(path).map_err(fault)?;
        let snapshot = Snapshot::open(path).map_err(fault)?;
        if !snapshot.is_readable() {
            return Err(StartError::Ledger(format!(
                "{}: is of an older version, and its gate brings it up to date at its next start",
                path.display()
            )));
        }
        Self::serve(Arc::new(SqliteReading::new(snapshot, clock)))
    }

    /// Opens the configuration's ledger as its gate would, to be changed: claims that the gate left
    /// are ended, and a file that forgot something goes into quarantine.
    ///
    /// # Errors
    /// A gate uses it, there is none, or it can't be used.
    pub fn change(store: &SqliteStore, clock: &Clock) -> Result<Self, StartError> {
        let store = SqliteStore {
            require_existing: true,
            ..store.clone()
        };
        let (ledger, _) = ledger::open_sqlite(&store, clock)?;
        Self::serve(ledger)
    }

    fn serve(ledger: Arc<dyn Ledger>) -> Result<Self, StartError> {
        let directory = Directory::make().map_err(StartError::System)?;
        let token = format!("{:016x}{:016x}", random()?, random()?);
        let listener = UnixListener::bind(directory.socket()).map_err(StartError::System)?;
        listener.set_nonblocking(true).map_err(StartError::System)?;
        let settings = AdminSettings {
            access: admin::Access::new(
                &[AdminToken {
                    name: HOLDER.to_owned(),
                    token: Secret::new(token.clone().into_bytes()),
                }],
                Vec::new(),
            ),
            limits: admin::Limits::default(),
            admission: admin::Admission::default(),
        };
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let runtime = runtime().map_err(StartError::System)?;
        let serve = move || {
            let kept = Arc::clone(&ledger);
            runtime.block_on(async move {
                match tokio::net::UnixListener::from_std(listener) {
                    Ok(listener) => {
                        admin::serve(listener, settings, ledger, Arc::new(NoGate), stop).await;
                    }
                    Err(error) => tracing::error!(%error, "the admin listener can't be used"),
                }
            });
            ledger::close(kept.as_ref());
        };
        let thread = std::thread::Builder::new()
            .name("offline".to_owned())
            .spawn(serve)
            .map_err(StartError::System)?;
        Ok(Self {
            directory,
            token,
            shutdown,
            thread: Some(thread),
        })
    }

    /// Where its admin listener is.
    pub fn socket(&self) -> PathBuf {
        self.directory.socket()
    }

    /// The token that it wants.
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl Drop for OfflineLedger {
    /// What was committed is brought into the file, and its lock given back.
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// A directory that only this user can look into; removed when dropped.
struct Directory(PathBuf);

impl Directory {
    /// In `/tmp`, whatever `TMPDIR` says: a socket's path has 107 bytes at most.
    fn make() -> io::Result<Self> {
        let random = random().map_err(|error| io::Error::other(error.to_string()))?;
        let path = Path::new("/tmp").join(format!("tikigate-{random:016x}"));
        // In a container `/tmp` may be read-only, which its name tells better than the error alone.
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?;
        Ok(Self(path))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("admin.sock")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left behind is an empty directory of this user's.
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_dir(&self.0);
    }
}

/// What stands in for the gate that is not there.
struct NoGate;

impl admin::Control for NoGate {
    fn readiness(&self) -> Readiness {
        Readiness {
            phase: Phase::Serving,
            unready: None,
            degraded: Vec::new(),
        }
    }

    fn start_drain(&self, _: &str) {}

    fn render_metrics(&self, _: Option<&Stats>, _: Option<outbox::Stats>) -> String {
        String::new()
    }

    fn send_now(&self, _: RecordId) -> SendingNow {
        let why = "no gate is running".to_owned();
        Box::pin(std::future::ready(Err(SendNowError::Unavailable(why))))
    }
}
