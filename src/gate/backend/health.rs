//! Asks addresses whether they are well, beside calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Uri};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{ConnectionKind, Upstream};
use crate::config::HealthCheck;

use super::super::current::Current;
use super::super::parcel::add_secrets;
use super::{Address, Backend};

/// Bytes of an answer that are read; its status is what counts.
const ANSWER_LIMIT: usize = 64 * 1024;

/// Between two looks whether another configuration has taken its place.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A pause is made longer by up to one in so many of itself, so that checks don't come in step.
const JITTER: u32 = 10;

/// What checks say of an address. Well until they say otherwise.
#[derive(Debug)]
pub(super) struct Health {
    well: AtomicBool,
    /// Checks one after the other that say the opposite of `well`.
    against: AtomicU32,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            well: AtomicBool::new(true),
            against: AtomicU32::new(0),
        }
    }
}

impl Health {
    pub(super) fn is_well(&self) -> bool {
        self.well.load(Ordering::Relaxed)
    }

    /// Takes a check's word; what it is from now on, if that changed. One task asks at a time.
    fn note(&self, good: bool, settings: &HealthCheck) -> Option<bool> {
        let well = self.is_well();
        if good == well {
            self.against.store(0, Ordering::Relaxed);
            return None;
        }
        let against = self.against.fetch_add(1, Ordering::Relaxed) + 1;
        let enough = match good {
            true => settings.healthy_after,
            false => settings.unhealthy_after,
        };
        if against < enough {
            return None;
        }
        self.against.store(0, Ordering::Relaxed);
        self.well.store(good, Ordering::Relaxed);
        Some(good)
    }
}

/// Checks the addresses of those backends that want it, for ever: to be ended by dropping it. When
/// another configuration takes its place, its backends are checked instead. The connections belong to
/// the runtime that polls it.
pub async fn keep_checking(current: Current) {
    loop {
        let common = Arc::clone(current.get().common());
        let mut checks = JoinSet::new();
        for backend in common.backends() {
            for index in 0..backend.addresses.len() {
                checks.spawn(keep_checking_one(Arc::clone(backend), index));
            }
        }
        while Arc::ptr_eq(current.get().common(), &common) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        // Dropping the set ends its checks.
    }
}

async fn keep_checking_one(backend: Arc<Backend>, index: usize) {
    let settings = &backend.settings;
    let (Some(check), Some(address)) = (&settings.health, backend.addresses.get(index)) else {
        return;
    };
    let upstream = Upstream::to(Arc::clone(settings), index);
    loop {
        let good = is_good(&upstream, check).await;
        take_word(&backend, address, check, good);
        tokio::time::sleep(check.every + jitter(check.every)).await;
    }
}

/// Takes a check's word: good, or what was wrong.
pub(super) fn take_word(
    backend: &Backend,
    address: &Address,
    check: &HealthCheck,
    good: Result<(), String>,
) {
    let is_good = good.is_ok();
    let (upstream, text) = (&address.upstream, &address.text);
    match address.health.note(is_good, check) {
        None => {}
        Some(true) => tracing::info!(
            tikigate.upstream = upstream,
            tikigate.address = text,
            "the address is well again by its checks"
        ),
        Some(false) => tracing::warn!(
            tikigate.upstream = upstream,
            tikigate.address = text,
            error = good.err(),
            "the address is unwell by its checks: it is not called"
        ),
    }
    if is_good && address.health.is_well() {
        close_if_due(backend, address);
    }
}

/// A good check is as good a trial as a call, and no call has to dare.
fn close_if_due(backend: &Backend, address: &Address) {
    let now = || backend.clock.monotonic();
    if address.breaker.state(now()) != super::State::HalfOpen {
        return;
    }
    if let Ok(trial) = address.breaker.admit(now) {
        address.note(address.breaker.succeeded(trial, now()));
    }
}

/// Whether the address answers with a status from 200 to 399, connecting anew, within the timeout.
async fn is_good(upstream: &Upstream, check: &HealthCheck) -> Result<(), String> {
    let request = request(upstream, check).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + check.timeout;
    let reserved = upstream
        .reserve(ConnectionKind::Fresh, deadline)
        .await
        .map_err(|fault| fault.to_string())?;
    let answer = reserved
        .send(request, deadline, ANSWER_LIMIT)
        .await
        .map_err(|fault| fault.to_string())?;
    match answer.status.as_u16() {
        200..=399 => Ok(()),
        other => Err(format!("status {other}")),
    }
}

fn request(upstream: &Upstream, check: &HealthCheck) -> Result<Request<Bytes>, http::Error> {
    let settings = upstream.settings();
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = Uri::from(PathAndQuery::try_from(check.path.as_str())?);
    let headers = request.headers_mut();
    headers.insert(HOST, settings.host.clone());
    headers.insert(USER_AGENT, HeaderValue::from_static("tikigate"));
    add_secrets(settings, headers)?;
    Ok(request)
}

fn jitter(every: Duration) -> Duration {
    let most = u64::try_from((every / JITTER).as_nanos()).unwrap_or(u64::MAX);
    // Where the system gives no random numbers, checks come in step: no harm worth a failure.
    let random = getrandom::u64().unwrap_or_default();
    Duration::from_nanos(random % most.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_several_checks_to_change_the_word() {
        let settings = HealthCheck {
            path: "/".to_owned(),
            every: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            healthy_after: 2,
            unhealthy_after: 3,
        };
        let health = Health::default();
        let said = [
            (false, None),
            (false, None),
            (true, None),
            (false, None),
            (false, None),
            (false, Some(false)),
            (false, None),
            (true, None),
            (false, None),
            (true, None),
            (true, Some(true)),
            (false, None),
        ];
        for (number, (good, change)) in said.into_iter().enumerate() {
            assert_eq!(health.note(good, &settings), change, "{number}");
        }
        assert!(health.is_well());
    }
}
