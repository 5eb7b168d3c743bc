//! An upgrade, and the way back: the program of the previous version, which `tests/previous` builds from the
//! history, and the one of now take turns on one ledger, and share one.

mod callers;
mod file;
mod rolling;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use crate::support::gate_process::{GateProcess, NotReady, Setup};
use crate::support::samples::root;

/// The last revision of the ledgers that the previous version makes. It goes with the commit in
/// `tests/previous`.
const PREVIOUS_REVISION: i64 = 1;
/// The same of the version that is tested.
const REVISION: i64 = 2;
/// What a gate says once when it has brought a ledger from one revision to the other.
const MIGRATED: &str = "the ledger's schema was brought up to date";

/// Whose program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    Previous,
    Now,
}

impl Version {
    fn program(self) -> PathBuf {
        match self {
            Self::Previous => previous().to_owned(),
            Self::Now => PathBuf::from(env!("CARGO_BIN_EXE_tikigate")),
        }
    }

    /// The same command by this version's program.
    fn of(self, command: &Command) -> Command {
        let mut own = Command::new(self.program());
        own.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => own.env(name, value),
                None => own.env_remove(name),
            };
        }
        own
    }

    /// Starts a gate of this version.
    async fn start(self, setup: &Arc<Setup>) -> GateProcess {
        let started = self.try_start(setup).await;
        started.unwrap_or_else(|fault| panic!("{self:?}: {fault}"))
    }

    async fn try_start(self, setup: &Arc<Setup>) -> Result<GateProcess, NotReady> {
        let setup = Arc::clone(setup);
        blocking(move || GateProcess::launch(self.of(&setup.command("serve")), setup)).await
    }
}

/// The program of the previous version. Whoever asks first builds it, if `tests/run` has not.
fn previous() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = Command::new(root().join("tests/previous"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(
            built.status.success(),
            "there is no previous version to test with:\n{said}"
        );
        let path = String::from_utf8(built.stdout).unwrap();
        PathBuf::from(path.trim_end())
    })
}

/// Does what blocks, beside the backends that run on the test's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// The lines in which a gate said that it changed the schema.
fn migrations(gate: &GateProcess) -> Vec<serde_json::Value> {
    let lines = gate.lines();
    let told = lines.iter().filter(|line| line.contains(MIGRATED));
    told.map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
