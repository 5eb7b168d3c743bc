//! `[ledger]` and `[log]`.

use std::path::{Path, PathBuf};

use super::{Context, ReadRoute, ReadUpstream, count, postgres, size, sqlite};
use crate::config::problem::Problems;
use crate::config::schema::{self, StoreWord};
use crate::config::settings::{Ledger, Log, LogFormat, OnUnknown, Store};
use crate::config::tree::Place;
use crate::config::value::{At, Field};
use crate::tiki::PayloadKind;
use tracing::level_filters::LevelFilter;

/// Whether the ledger forgets at exit, and whether that was accepted.
pub(crate) struct Volatility {
    pub(crate) volatile: bool,
    pub(crate) allowed: bool,
}

/// Reads `[ledger]`. What its store must be like depends on what the routes keep in it.
pub(crate) fn ledger(
    written: schema::Ledger,
    routes: &[ReadRoute],
    upstreams: &[ReadUpstream],
    context: &mut Context<'_>,
) -> (Option<Ledger>, Volatility) {
    let schema::Ledger {
        store,
        allow_volatile,
        max_records,
        max_bytes,
        time_zone,
        path,
        watermark,
        allow_unsafe_filesystem,
        url,
        ca,
        connections,
        lease,
        require_existing,
    } = written;
    // Left out means SQLite, so that a money ledger is never volatile by accident.
    let store = store.or(StoreWord::Sqlite).value;
    use StoreWord::{Memory, Postgres, Sqlite};
    let known = [
        (place_of(&allow_volatile), &[Memory][..]),
        (place_of(&max_records), &[Memory]),
        (place_of(&max_bytes), &[Memory]),
        (place_of(&path), &[Sqlite]),
        (place_of(&watermark), &[Sqlite]),
        (place_of(&allow_unsafe_filesystem), &[Sqlite]),
        (place_of(&url), &[Postgres]),
        (place_of(&ca), &[Postgres]),
        (place_of(&connections), &[Postgres]),
        (place_of(&lease), &[Postgres]),
        (place_of(&require_existing), &[Sqlite, Postgres]),
    ];
    let of_this_store = known
        .into_iter()
        .filter_map(|(place, stores)| Some((place?, stores)))
        .all(|(place, stores)| belongs(place, stores, store, context.problems));

    let volatility = Volatility {
        volatile: store == Memory,
        allowed: allow_volatile.or(false).value,
    };
    let meaning = match store {
        Memory => Some(Store::Memory {
            max_records: count(max_records, 1_000_000, 1..=1_000_000_000, context.problems),
            max_bytes: size(max_bytes, 512 << 20, 64 << 10..=64 << 30, context.problems),
        }),
        Sqlite => {
            let keys = sqlite::Keys {
                path,
                watermark,
                require_existing,
                allow_unsafe_filesystem,
            };
            sqlite::sqlite(keys, routes.iter().any(holds), context).map(Store::Sqlite)
        }
        Postgres => {
            let keys = postgres::Keys {
                url,
                ca,
                connections,
                lease,
                require_existing,
            };
            postgres::postgres(keys, upstreams, context).map(Store::Postgres)
        }
    };
    let time_zone = time_zone_name(time_zone, context.problems);
    let ledger = || {
        let store = meaning.filter(|_| of_this_store)?;
        Some(Ledger {
            directory: directory(&store, context.base),
            store,
            time_zone: time_zone?,
        })
    };
    (ledger(), volatility)
}

fn place_of<T>(field: &Field<T>) -> Option<Place> {
    (!field.is_absent()).then(|| field.place.clone())
}

/// A key that another store reads would be without effect, and whoever wrote it believes otherwise.
fn belongs(place: Place, stores: &[StoreWord], store: StoreWord, problems: &mut Problems) -> bool {
    if stores.contains(&store) {
        return true;
    }
    let names: Vec<String> = stores
        .iter()
        .map(|store| format!("\"{}\"", store.as_str()))
        .collect();
    problems
        .error(
            &place,
            "other_store",
            format!(
                "belongs to store = {}, and the ledger's is \"{}\"",
                names.join(" or "),
                store.as_str()
            ),
        )
        .help("take the key out, or write the store that it belongs to");
    false
}

/// Whether a route's records must not be forgotten.
fn holds(route: &ReadRoute) -> bool {
    let held = |on_unknown| on_unknown == OnUnknown::Hold;
    route.payload == Some(PayloadKind::Refund)
        || (route.idempotency.as_ref()).is_some_and(|keyed| held(keyed.on_unknown.value))
}

/// A made admin token lies beside the ledger, where the gate can write for certain.
fn directory(store: &Store, base: &Path) -> PathBuf {
    match store {
        Store::Sqlite(store) => store.path.parent().unwrap_or(base).to_path_buf(),
        Store::Memory { .. } | Store::Postgres(_) => base.to_path_buf(),
    }
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

/// Reads `[log]`.
pub(crate) fn log(written: schema::Log) -> Log {
    let schema::Log { format, level } = written;
    Log {
        format: format.or(LogFormat::Json).value,
        level: level.or(LevelFilter::INFO).value,
    }
}
