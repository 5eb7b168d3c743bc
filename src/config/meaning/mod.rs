//! From what was written to what it means: defaults, bounds, names resolved, files read.
//!
//! Every written type is taken apart with all its fields, so that a new key doesn't build until its
//! meaning is given.

mod clients;
mod headers;
mod idempotency;
mod ledger;
mod outbound;
mod paths;
mod postgres;
mod probe;
mod routes;
mod secrets;
mod server;
mod signature;
mod sqlite;
mod tls;
mod tracing;
mod upstreams;

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::checks;
use super::problem::Problems;
use super::schema::Configuration;
use super::settings::{Expiry, Settings};
use super::tree::Place;
use super::units::{format_duration, format_size};
use super::value::{At, ByteSize, Field};
use super::watch::WatchedFile;

pub(crate) use clients::ReadClient;
pub(crate) use idempotency::ReadIdempotency;
pub(crate) use ledger::Volatility;
pub(crate) use outbound::ReadOutbound;
pub(crate) use routes::ReadRoute;
pub(crate) use server::{ReadAdmin, ReadServer};
pub(crate) use upstreams::ReadUpstream;

/// What reading needs beside the text.
pub(crate) struct Context<'a> {
    pub(crate) problems: &'a mut Problems,
    /// Relative paths start here.
    pub(crate) base: &'a Path,
    pub(crate) environment: &'a [(OsString, OsString)],
    pub(crate) now: SystemTime,
    /// Files whose content became part of the settings, in the order in which they were read.
    pub(crate) files: Vec<WatchedFile>,
    /// When the certificates in them end.
    pub(crate) certificates: Vec<Expiry>,
}

impl Context<'_> {
    /// A path as written, from the configuration's directory if it is relative.
    pub(crate) fn path(&self, written: &str) -> PathBuf {
        self.base.join(written)
    }

    /// The same of a file that is read: when it changes, the settings do.
    pub(crate) fn watched(&mut self, written: &str) -> PathBuf {
        let path = self.path(written);
        if !self.files.iter().any(|file| file.path == path) {
            self.files.push(WatchedFile::look(&path));
        }
        path
    }
}

/// Gives a configuration its meaning. `None` only if something was reported as an error.
pub(crate) fn settings(written: Configuration, context: &mut Context<'_>) -> Option<Settings> {
    let Configuration {
        server,
        admin,
        upstreams,
        signature,
        clients,
        routes,
        ledger,
        outbound,
        tracing,
        log,
    } = written;
    let server = server::server(server, context);
    let admin = server::admin(admin, context);
    let upstreams = upstreams::upstreams(upstreams, context);
    let (signature, windows) = signature::signature(signature, context.problems);
    let clients = clients::clients(clients, context);
    let routes = routes::routes(
        routes,
        &routes::Surroundings {
            upstreams: &upstreams,
            clients: &clients,
            families: &signature.families,
            windows,
        },
        context.problems,
    );
    let (ledger, volatility) = ledger::ledger(ledger, &routes, &upstreams, context);
    let outbound = outbound::outbound(outbound, &clients, context);
    let tracing = tracing::tracing(tracing, context);
    let log = ledger::log(log);

    let parts = checks::Parts {
        server: &server,
        admin: &admin,
        upstreams: &upstreams,
        clients: &clients,
        routes: &routes,
        max_remembered: signature.max_remembered,
        volatility: &volatility,
        outbound: outbound.as_ref().and_then(Option::as_ref),
        now: context.now,
    };
    checks::check(&parts, context.problems);

    Some(Settings {
        server: server.meaning?,
        admin: admin?.meaning,
        upstreams: whole(upstreams, |upstream| upstream.meaning)?,
        signature,
        clients: whole(clients, |client| client.meaning)?,
        routes: whole(routes, |route| route.meaning)?,
        ledger: ledger?,
        outbound: match outbound? {
            Some(read) => Some(Arc::new(read.meaning?)),
            None => None,
        },
        tracing: tracing?,
        log,
        certificates: std::mem::take(&mut context.certificates),
    })
}

fn whole<R, T>(read: Vec<R>, meaning: impl Fn(R) -> Option<T>) -> Option<Vec<Arc<T>>> {
    read.into_iter()
        .map(|one| meaning(one).map(Arc::new))
        .collect()
}

/// A whole number within bounds.
pub(crate) fn number(
    field: Field<u64>,
    default: u64,
    bounds: RangeInclusive<u64>,
    problems: &mut Problems,
) -> At<u64> {
    bounded(
        field.or(default),
        default,
        bounds,
        |n| n.to_string(),
        problems,
    )
}

/// A whole number within bounds, as a count of things in memory.
pub(crate) fn count(
    field: Field<u64>,
    default: u64,
    bounds: RangeInclusive<u64>,
    problems: &mut Problems,
) -> usize {
    let number = number(field, default, bounds, problems).value;
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A duration within bounds.
pub(crate) fn duration(
    field: Field<Duration>,
    default: Duration,
    bounds: RangeInclusive<Duration>,
    problems: &mut Problems,
) -> At<Duration> {
    let show = |value: &Duration| format_duration(*value);
    bounded(field.or(default), default, bounds, show, problems)
}

/// A size within bounds, in bytes.
pub(crate) fn size(
    field: Field<ByteSize>,
    default: usize,
    bounds: RangeInclusive<usize>,
    problems: &mut Problems,
) -> usize {
    let written = field.or(ByteSize(default));
    let written = At {
        place: written.place,
        value: written.value.0,
    };
    let show = |value: &usize| format_size(*value);
    bounded(written, default, bounds, show, problems).value
}

fn bounded<T: PartialOrd>(
    written: At<T>,
    default: T,
    bounds: RangeInclusive<T>,
    show: impl Fn(&T) -> String,
    problems: &mut Problems,
) -> At<T> {
    if bounds.contains(&written.value) {
        return written;
    }
    let message = format!(
        "must be between {} and {}",
        show(bounds.start()),
        show(bounds.end())
    );
    problems.error(&written.place, "out_of_bounds", message);
    At {
        place: written.place,
        value: default,
    }
}

/// A name that goes into logs and metrics: 1 to 64 letters, digits, `.`, `_` and `-`.
pub(crate) fn label(written: At<String>, problems: &mut Problems) -> Option<At<String>> {
    let fits = (1..=64).contains(&written.value.len())
        && written
            .value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !fits {
        let message = "must be 1 to 64 letters, digits, `.`, `_` or `-`";
        problems.error(&written.place, "bad_name", message);
        return None;
    }
    Some(written)
}

/// Reports every name that occurs a second time.
pub(crate) fn unique<'n>(
    names: impl Iterator<Item = (&'n Place, &'n str)>,
    what: &str,
    problems: &mut Problems,
) {
    let mut seen = std::collections::HashSet::new();
    for (place, name) in names {
        if !seen.insert(name) {
            problems.error(
                place,
                "duplicate",
                format!("another {what} has this already"),
            );
        }
    }
}
