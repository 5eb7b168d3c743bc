//! The ledger that the settings name: opened before anything is served, closed after everything.

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::{PostgresStore, Settings, SqliteStore, Store};
use crate::gate::Common;
use crate::ledger::{Ledger, MemoryLedger, MemoryLimits, Owner, PostgresLedger, SqliteLedger};
use crate::store::postgres;
use crate::store::sqlite::{Database, Options};

use super::{StartError, random, runtime};

/// What a ledger keeps its records in, for what else is kept there.
pub(super) enum Backing {
    Memory,
    Sqlite(Arc<Database>),
    Postgres(Arc<postgres::Store>),
}

/// Opens the ledger for a process that claims as `owner`. Claims of a process that died with it end
/// here, unless others share the ledger: then they end with the dead one's lease.
pub(super) fn open(
    settings: &Settings,
    clock: &Clock,
    owner: Owner,
) -> Result<(Arc<dyn Ledger>, Backing), StartError> {
    match &settings.ledger.store {
        Store::Memory {
            max_records,
            max_bytes,
        } => {
            let limits = MemoryLimits {
                max_records: *max_records,
                max_bytes: *max_bytes,
            };
            let ledger = MemoryLedger::new(clock.clone(), limits);
            Ok((Arc::new(ledger), Backing::Memory))
        }
        Store::Sqlite(store) => {
            let (ledger, database) = open_sqlite(store, clock)?;
            Ok((ledger, Backing::Sqlite(database)))
        }
        Store::Postgres(store) => {
            let (ledger, store) = open_postgres(store, clock, owner)?;
            Ok((ledger, Backing::Postgres(store)))
        }
    }
}

fn open_postgres(
    settings: &PostgresStore,
    clock: &Clock,
    owner: Owner,
) -> Result<(Arc<dyn Ledger>, Arc<postgres::Store>), StartError> {
    let store =
        postgres::Store::open(settings).map_err(|error| StartError::Ledger(error.to_string()))?;
    let store = Arc::new(store);
    let ledger = PostgresLedger::open(
        Arc::clone(&store),
        clock.clone(),
        settings.lease,
        vec![owner],
    );
    if let Some(trouble) = ledger.trouble() {
        tracing::error!(
            trouble = trouble.text,
            "the ledger takes no calls until this is over"
        );
    }
    Ok((Arc::new(ledger), store))
}

pub(super) fn open_sqlite(
    store: &SqliteStore,
    clock: &Clock,
) -> Result<(Arc<dyn Ledger>, Arc<Database>), StartError> {
    let SqliteStore {
        path,
        watermark,
        require_existing,
        allow_unsafe_filesystem,
        holds,
    } = store;
    let options = Options {
        path: path.clone(),
        watermark: watermark.clone(),
        require_existing: *require_existing,
        safe_filesystem: *holds && !allow_unsafe_filesystem,
        new_id: format!("{:016x}", random()?),
    };
    let (database, opened) =
        Database::open(options).map_err(|error| StartError::Ledger(error.to_string()))?;
    for warning in &opened.warnings {
        tracing::warn!(tikigate.ledger = %path.display(), "the ledger may be lost: {warning}");
    }
    if opened.created {
        tracing::info!(tikigate.ledger = %path.display(), "a new ledger was made");
    }
    let database = Arc::new(database);
    let opening = SqliteLedger::open(Arc::clone(&database), clock.clone());
    let (ledger, lapsed) =
        block_on(opening)?.map_err(|error| StartError::Ledger(error.to_string()))?;
    if lapsed > 0 {
        tracing::warn!(
            tikigate.lapsed = lapsed,
            "calls were running when the gate ended last: those that must not be sent twice are held now"
        );
    }
    // Found just now, or at a start before and not lifted since.
    let quarantine = block_on(async { ledger.quarantine().await })?;
    if let Ok(Some(cause)) = quarantine {
        tracing::error!(
            tikigate.ledger = %path.display(), cause,
            "the ledger may have forgotten something: refunds that it doesn't know are held until a person \
             lifts the quarantine (tikigate ledger lift-quarantine)"
        );
    }
    Ok((Arc::new(ledger), database))
}

/// Ties the routes' namespaces to their definitions before anything is served.
pub(super) fn define_namespaces(
    settings: &Settings,
    ledger: &dyn Ledger,
) -> Result<(), StartError> {
    block_on(async {
        for (namespace, definition) in Common::namespaces(settings) {
            ledger
                .define(Arc::clone(&namespace), definition)
                .await
                .map_err(|source| StartError::Namespace { namespace, source })?;
        }
        Ok(())
    })?
}

/// Gives the ledger up, when nothing uses it any more.
pub(super) fn close(ledger: &dyn Ledger) {
    // Without a runtime the next start finds the ledger as after a crash, which it is made for.
    let _ = block_on(async { ledger.close().await });
}

/// On a thread of its own, so that a gate can be started from within somebody's runtime.
pub(super) fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> Result<T, StartError> {
    let run = || {
        let runtime = runtime().map_err(StartError::System)?;
        Ok(runtime.block_on(future))
    };
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
