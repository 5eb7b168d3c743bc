//! Where a command finds its ledger: at a running gate, or in a file whose gate is stopped.

use std::fs;
use std::path::Path;

use super::{Args, Command};
use crate::app::offline::OfflineLedger;
use crate::cli::admin_client::{AdminClient, ClientError};
use crate::cli::failure::Failure;
use crate::clock::Clock;
use crate::config::{self, Settings, SqliteStore, Store};

/// A way to the ledger.
pub(super) struct Place {
    pub(super) client: AdminClient,
    /// Behind the client; given up with it.
    _offline: Option<OfflineLedger>,
}

impl Place {
    /// Finds the ledger that the command is about.
    ///
    /// # Errors
    /// There is no way to it.
    pub(super) fn find(args: &Args) -> Result<Self, Failure> {
        let Some(file) = &args.file else {
            return Ok(Self {
                client: AdminClient::with_token(&args.admin)?,
                _offline: None,
            });
        };
        if let Command::Resolve(resolve) = &args.command
            && resolve.send_now
        {
            let why = "--send-now needs a running gate: leave --file out";
            return Err(Failure::Usage(why.to_owned()));
        }
        if !file.exists() {
            return Err(Failure::Other(format!(
                "{}: there is no such file",
                file.display()
            )));
        }
        let config = args.admin.gate.config.as_deref();
        let offline = if args.command.changes() {
            OfflineLedger::change(&store_of(file, config)?, &Clock::system())
        } else {
            OfflineLedger::read(file, Clock::system())
        };
        let offline = offline.map_err(|error| Failure::Other(error.to_string()))?;
        let time_zone = match (config, settings(config)) {
            (_, Ok(settings)) => Some(settings.ledger.time_zone),
            (Some(_), Err(failure)) => return Err(failure),
            (None, Err(_)) => None,
        };
        let client = AdminClient::of_socket(&offline.socket(), offline.token(), time_zone)?;
        Ok(Self {
            client,
            _offline: Some(offline),
        })
    }
}

/// The configuration's SQLite file.
///
/// # Errors
/// The configuration can't be read, or its ledger is no file.
pub(super) fn configured(config: Option<&Path>) -> Result<SqliteStore, Failure> {
    match settings(config)?.ledger.store {
        Store::Sqlite(store) => Ok(store),
        Store::Memory { .. } => Err(Failure::Other(
            "the configuration's ledger is in the gate's memory: there is no file of it".to_owned(),
        )),
        Store::Postgres(_) => Err(Failure::Other(
            "the configuration's ledger is in PostgreSQL: use pg_dump and its kind".to_owned(),
        )),
    }
}

/// The configuration's store, if `file` is its ledger.
///
/// A file without its watermark is not changed: with a few changes it could catch up with what its
/// watermark says, and then nobody would notice any more that it had been an old one.
fn store_of(file: &Path, config: Option<&Path>) -> Result<SqliteStore, Failure> {
    let needed = |why: String| {
        Failure::Usage(format!(
            "to change a ledger's file, its watermark is needed: name the configuration whose ledger it \
             is (--config FILE): {why}"
        ))
    };
    let store = configured(config).map_err(|failure| needed(failure.to_string()))?;
    if !same_file(&store.path, file) {
        return Err(needed(format!(
            "the configuration's ledger is {}",
            store.path.display()
        )));
    }
    Ok(store)
}

fn settings(config: Option<&Path>) -> Result<Settings, Failure> {
    let path = config::default_path(config.map(Path::to_owned));
    let environment: Vec<_> = std::env::vars_os().collect();
    match config::load(&path, &environment) {
        Ok(loaded) => Ok(loaded.settings),
        Err(problems) => {
            let problem = problems.first().map(ToString::to_string);
            let problem = problem.unwrap_or_default();
            Err(ClientError::BadConfig { problem }.into())
        }
    }
}

/// Whether two paths lead to one file.
pub(super) fn same_file(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    one == other || real(one).is_some_and(|one| Some(one) == real(other))
}
