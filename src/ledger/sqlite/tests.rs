//! The SQLite store passes every store's suite, and keeps what it promises about its file.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;
use crate::ledger::conformance::{Fixture, suite};
use crate::store::sqlite::Options;

fn options(directory: &Path) -> Options {
    Options {
        path: directory.join("tikigate.db"),
        watermark: directory.join("tikigate.mark"),
        require_existing: false,
        safe_filesystem: false,
        new_id: "0123456789abcdef".to_owned(),
    }
}

async fn open() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let (clock, hands) = Clock::manual(start);
    let (database, _) = Database::open(options(directory.path())).unwrap();
    let (ledger, _) = SqliteLedger::open(database, clock.clone()).await.unwrap();
    Fixture {
        ledger: Arc::new(ledger),
        clock,
        hands,
        _held: Box::new(directory),
    }
}

suite!(super::open);
