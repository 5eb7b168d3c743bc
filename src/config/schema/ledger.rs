//! `[ledger]` and `[log]`.

use std::time::Duration;

use super::SecretSource;
use crate::config::settings::LogFormat;
use crate::config::value::{ByteSize, Field, Table, words};
use tracing::level_filters::LevelFilter;

pub(crate) struct Ledger {
    pub(crate) store: Field<StoreWord>,
    pub(crate) allow_volatile: Field<bool>,
    pub(crate) max_records: Field<u64>,
    pub(crate) max_bytes: Field<ByteSize>,
    pub(crate) time_zone: Field<String>,
    pub(crate) path: Field<String>,
    pub(crate) watermark: Field<String>,
    pub(crate) allow_unsafe_filesystem: Field<bool>,
    pub(crate) url: Field<SecretSource>,
    pub(crate) ca: Field<String>,
    pub(crate) connections: Field<u64>,
    pub(crate) lease: Field<Duration>,
    pub(crate) require_existing: Field<bool>,
}

impl Ledger {
    pub(crate) fn read(table: &mut Table<'_>) -> Self {
        Self {
            store: table.field("store"),
            allow_volatile: table.field("allow_volatile"),
            max_records: table.field("max_records"),
            max_bytes: table.field("max_bytes"),
            time_zone: table.field("time_zone"),
            path: table.field("path"),
            watermark: table.field("watermark"),
            allow_unsafe_filesystem: table.field("allow_unsafe_filesystem"),
            url: table.field("url"),
            ca: table.field("ca"),
            connections: table.field("connections"),
            lease: table.field("lease"),
            require_existing: table.field("require_existing"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreWord {
    Memory,
    Sqlite,
    Postgres,
}

impl StoreWord {
    /// As it is written.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

words!(StoreWord {
    "sqlite" => StoreWord::Sqlite,
    "postgres" => StoreWord::Postgres,
    "memory" => StoreWord::Memory,
});

pub(crate) struct Log {
    pub(crate) format: Field<LogFormat>,
    pub(crate) level: Field<LevelFilter>,
}

impl Log {
    pub(crate) fn read(table: &mut Table<'_>) -> Self {
        Self {
            format: table.field("format"),
            level: table.field("level"),
        }
    }
}

words!(LogFormat {
    "json" => LogFormat::Json,
    "text" => LogFormat::Text,
});

words!(LevelFilter {
    "off" => LevelFilter::OFF,
    "error" => LevelFilter::ERROR,
    "warn" => LevelFilter::WARN,
    "info" => LevelFilter::INFO,
    "debug" => LevelFilter::DEBUG,
    "trace" => LevelFilter::TRACE,
});
