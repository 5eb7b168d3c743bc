//! `[ledger]` with `store = "postgres"`.

use std::path::PathBuf;
use std::time::Duration;

use super::{Context, ReadUpstream, count, duration, secrets, tls};
use crate::config::problem::Problems;
use crate::config::schema::SecretSource;
use crate::config::settings::PostgresStore;
use crate::config::tls::PemFile;
use crate::config::units::format_duration;
use crate::config::value::{At, Field};
use crate::config::{DatabaseUrl, Secret};

/// The usual lease, unless a `settle_within` asks for more.
const USUAL_LEASE: Duration = Duration::from_secs(150);
/// What the usual lease adds to the longest `settle_within`.
const USUAL_MARGIN: Duration = Duration::from_secs(90);
/// What any lease has over the longest `settle_within`: a claim has to be recorded after its call.
const LEAST_MARGIN: Duration = Duration::from_secs(10);
const LONGEST_LEASE: Duration = Duration::from_secs(86_400);

/// The keys of this store.
pub(super) struct Keys {
    pub(super) url: Field<SecretSource>,
    pub(super) ca: Field<String>,
    pub(super) connections: Field<u64>,
    pub(super) lease: Field<Duration>,
    pub(super) require_existing: Field<bool>,
}

/// Reads them.
pub(super) fn postgres(
    keys: Keys,
    upstreams: &[ReadUpstream],
    context: &mut Context<'_>,
) -> Option<PostgresStore> {
    let Keys {
        url,
        ca,
        connections,
        lease,
        require_existing,
    } = keys;
    let url = read_url(url, context);
    let ca = read_ca(ca, context);
    let connections = count(connections, 8, 1..=64, context.problems);
    let lease = read_lease(lease, upstreams, context.problems);
    Some(PostgresStore {
        url: url?,
        ca: ca?,
        connections,
        lease,
        require_existing: require_existing.or(false).value,
    })
}

/// No message holds a byte of the URL, nor what its parser says of it: the password is in it.
fn read_url(field: Field<SecretSource>, context: &mut Context<'_>) -> Option<Secret> {
    if field.is_absent() {
        context
            .problems
            .error(
                &field.place,
                "missing",
                "is required with store = \"postgres\"",
            )
            .help("url = { env = \"DATABASE_URL\" }, or { file = \"...\" }");
        return None;
    }
    let owner = field.place.clone();
    let read = secrets::read(field.written()?.value, &owner, context)?;
    // What is no UTF-8 is no URL.
    let text = std::str::from_utf8(read.secret.expose()).unwrap_or_default();
    let Err(fault) = DatabaseUrl::parse(text) else {
        return Some(read.secret);
    };
    context
        .problems
        .error(&read.place, "bad_url", fault.to_string())
        .help("it reads postgres://USER:PASSWORD@HOST:PORT/DATABASE, with `%`, `@`, `:` and `/` inside the password as %XX");
    None
}

/// The outer `None`: something is wrong, and was reported.
fn read_ca(field: Field<String>, context: &mut Context<'_>) -> Option<Option<PathBuf>> {
    if field.is_absent() {
        return Some(None);
    }
    let At { place, value } = field.written()?;
    let path = context.watched(&value);
    match PemFile::read(&path).and_then(|file| file.certificates()) {
        Ok(certificates) => {
            tls::note_expiry(&place, &certificates, context);
            Some(Some(path))
        }
        Err(fault) => {
            context.problems.error(&place, "bad_ca", fault);
            None
        }
    }
}

/// A lease that ends while the call still runs would call it unknown, and hold it, before its time.
fn read_lease(
    field: Field<Duration>,
    upstreams: &[ReadUpstream],
    problems: &mut Problems,
) -> Duration {
    let longest = upstreams
        .iter()
        .map(|upstream| upstream.settle_within)
        .max()
        .unwrap_or_default();
    let usual = USUAL_LEASE.max(longest + USUAL_MARGIN);
    let lease = duration(field, usual, LEAST_MARGIN..=LONGEST_LEASE, problems);
    let least = longest + LEAST_MARGIN;
    if lease.value < least {
        problems
            .error(
                &lease.place,
                "short_lease",
                "would end while a call to a backend may still run, so that its outcome is called unknown too early",
            )
            .help(format!(
                "make it at least {} (the longest settle_within, and 10s), or leave it out for {}",
                format_duration(least),
                format_duration(usual)
            ));
    }
    lease.value
}
