//! `[ledger]`, `[outbound]` and `[log]`.

use super::{Context, count, size};
use crate::config::problem::Problems;
use crate::config::schema::{self, StoreWord};
use crate::config::settings::{Ledger, Log, LogFormat, Store};
use crate::config::value::{At, Field};
use tracing::level_filters::LevelFilter;

const INSTEAD: &str = "write store = \"memory\" under [ledger], and allow_volatile = true with it for refunds and routes that hold";

/// Whether the ledger forgets at exit, and whether that was accepted.
pub(crate) struct Volatility {
    pub(crate) volatile: bool,
    pub(crate) allowed: bool,
}

/// Reads `[ledger]`.
pub(crate) fn ledger(
    written: schema::Ledger,
    context: &mut Context<'_>,
) -> (Option<Ledger>, Volatility) {
    let schema::Ledger {
        store,
        allow_volatile,
        max_records,
        max_bytes,
        time_zone,
        path,
        url,
        watermark,
        require_existing,
    } = written;
    let problems = &mut *context.problems;
    let left_out = store.is_absent();
    // Left out means SQLite, so that a money ledger is never volatile by accident.
    let store = store.or(StoreWord::Sqlite);
    let what = match store.value {
        StoreWord::Memory => None,
        StoreWord::Sqlite if left_out => Some("the default store, \"sqlite\", is"),
        StoreWord::Sqlite => Some("the store \"sqlite\" is"),
        StoreWord::Postgres => Some("the store \"postgres\" is"),
    };
    match what {
        Some(what) => problems.not_available(&store.place, what, INSTEAD),
        None => {
            let durable = [
                (&path.place, path.is_absent()),
                (&url.place, url.is_absent()),
                (&watermark.place, watermark.is_absent()),
                (
                    &require_existing.place,
                    require_existing.peek() != Some(&true),
                ),
            ];
            for (place, unused) in durable {
                if !unused {
                    let instead = "take the key out: a ledger in memory has nothing on disk";
                    problems.not_available(place, "a ledger that outlives the process is", instead);
                }
            }
        }
    }
    let volatility = Volatility {
        // An unavailable store was reported already; routes need not complain as well.
        volatile: store.value == StoreWord::Memory,
        allowed: allow_volatile.or(false).value,
    };
    let store = Store::Memory {
        max_records: count(max_records, 1_000_000, 1..=1_000_000_000, problems),
        max_bytes: size(max_bytes, 512 << 20, 64 << 10..=64 << 30, problems),
    };
    let ledger = time_zone_name(time_zone, problems).map(|time_zone| Ledger {
        store,
        time_zone,
        directory: context.base.to_path_buf(),
    });
    (ledger, volatility)
}

fn time_zone_name(field: Field<String>, problems: &mut Problems) -> Option<String> {
    let Some(At { place, value }) = field.written() else {
        return Some("Asia/Ho_Chi_Minh".to_owned());
    };
    if jiff::tz::TimeZone::get(&value).is_ok() {
        return Some(value);
    }
    if jiff::tz::db().available().next().is_none() {
        problems
            .warning(
                &place,
                "no_time_zones",
                "can't be checked: there is no time zone database here",
            )
            .help("install tzdata, or dates are shown in UTC");
        return Some(value);
    }
    problems
        .error(&place, "unknown_time_zone", "is no time zone")
        .help("write an IANA name, such as \"Asia/Ho_Chi_Minh\" or \"UTC\"");
    None
}

/// Reads `[outbound]`.
pub(crate) fn outbound(written: Field<schema::Outbound>, problems: &mut Problems) {
    if let Some(At { place, value }) = written.written() {
        let schema::Outbound = value;
        let instead =
            "take [outbound] out, and let the backend sign its own calls as it does today";
        problems.not_available(&place, "the outbound direction is", instead);
    }
}

/// Reads `[log]`.
pub(crate) fn log(written: schema::Log) -> Log {
    let schema::Log { format, level } = written;
    Log {
        format: format.or(LogFormat::Json).value,
        level: level.or(LevelFilter::INFO).value,
    }
}
