//! Places for connections, shared by a listener's workers: how many there are, and who holds them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::LOG_EVERY;
use crate::metrics::{ConnectionRefused, ListenerName, ServerMetrics};
use crate::net::{ClientAddress, LimitKey, Peer};

/// What all workers of a listener share: the cap on connections, and each address's share of it.
#[derive(Debug)]
pub struct Shared {
    state: Mutex<State>,
    freed: Notify,
    told: Mutex<[Rarely; TOLD.len()]>,
    metrics: Arc<ServerMetrics>,
    name: ListenerName,
}

#[derive(Debug)]
struct State {
    open: usize,
    most: usize,
    /// Connections of each address that has any and is counted.
    holders: HashMap<LimitKey, usize, RandomState>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// All are taken.
    Full,
    /// The address holds as many as are left.
    OverShare,
}

impl Shared {
    /// A cap of `max_connections` (at least 1) over all workers of this listener.
    pub fn new(max_connections: usize, name: ListenerName, metrics: Arc<ServerMetrics>) -> Self {
        Self {
            state: Mutex::new(State {
                open: 0,
                most: max_connections.max(1),
                holders: HashMap::default(),
            }),
            freed: Notify::new(),
            told: Mutex::default(),
            metrics,
            name,
        }
    }

    /// Connections open now, over all workers.
    pub fn connections(&self) -> usize {
        self.state().open
    }

    /// Another cap. Connections beyond it stay; there is no place for others until enough have ended.
    pub fn resize(&self, max_connections: usize) {
        self.state().most = max_connections.max(1);
        self.freed.notify_waiters();
    }

    /// Takes a place; with a key, on account of that address.
    pub(super) fn enter(self: &Arc<Self>, key: Option<LimitKey>) -> Result<Place, NoPlace> {
        let mut state = self.state();
        let left = state.most.saturating_sub(state.open);
        if let Some(key) = key {
            state.take_share(key, left)?;
        }
        if left == 0 {
            state.give_share_back(key);
            return Err(NoPlace::Full);
        }
        state.open += 1;
        Ok(Place {
            shared: Arc::clone(self),
            key,
        })
    }

    /// Resolves when a place may have been freed since this was called.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Counts a handshake that went well.
    pub(super) fn handshake(&self, version: crate::metrics::TlsVersion) {
        self.metrics.handshake(self.name, version);
    }

    /// Counts a connection that was closed to make room.
    pub(super) fn displaced(&self) {
        self.metrics.displaced(self.name);
    }

    /// Counts a connection that is refused, and tells people of it where they may have to do something:
    /// once in a while, with how often it was not told.
    pub(super) fn refuse(&self, why: ConnectionRefused, peer: Peer) {
        self.metrics.refused(self.name, why);
        let address = ClientAddress::from(peer);
        tracing::debug!(client.address = %address, reason = why.as_str(), "connection refused");
        let Some(told) = TOLD.iter().position(|(reason, _)| *reason == why) else {
            return;
        };
        let due = {
            let mut all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            all[told].due()
        };
        if let Some(unsaid) = due {
            tracing::warn!(
                client.address = %address,
                tikigate.listener = self.name.as_str(),
                tikigate.more = unsaid,
                "{}",
                TOLD[told].1
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked did not do so between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is worth a line in the log, and what to do about it.
const TOLD: [(ConnectionRefused, &str); 4] = [
    (
        ConnectionRefused::Address,
        "a connection was closed: its address is not let in (allow, deny)",
    ),
    (
        ConnectionRefused::Share,
        "a connection was closed: its address holds as many as there are places left. If it is a proxy, \
         name it in server.trusted_proxies; if it is not, it takes more than its share",
    ),
    (
        ConnectionRefused::ProxyHeader,
        "a trusted proxy's connection was closed: it did not begin with a PROXY header. Let it send one, or \
         set server.proxy_protocol to false",
    ),
    (
        ConnectionRefused::ProxyTimeout,
        "a trusted proxy's connection was closed: its PROXY header did not come in time",
    ),
];

impl State {
    /// One more for the address, which may hold as many as there are `left`, and one in any case.
    fn take_share(&mut self, key: LimitKey, left: usize) -> Result<(), NoPlace> {
        let held = self.holders.entry(key).or_insert(0);
        if *held > 0 && *held >= left {
            return Err(NoPlace::OverShare);
        }
        *held += 1;
        Ok(())
    }

    fn give_share_back(&mut self, key: Option<LimitKey>) {
        let Some(key) = key else { return };
        if let Some(held) = self.holders.get_mut(&key) {
            *held -= 1;
            if *held == 0 {
                self.holders.remove(&key);
            }
        }
    }
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Shared>,
    key: Option<LimitKey>,
}

impl Place {
    /// Puts it on the account of this address, of which nothing was known when it was taken.
    pub(super) fn charge(&mut self, key: LimitKey) -> Result<(), NoPlace> {
        let mut state = self.shared.state();
        // Its own place is one of those that the address may have.
        let left = state.most.saturating_sub(state.open - 1);
        state.take_share(key, left)?;
        self.key = Some(key);
        Ok(())
    }

    /// Where it is a place.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.open -= 1;
        state.give_share_back(self.key);
        drop(state);
        self.shared.freed.notify_one();
    }
}

/// Keeps a line that repeats from filling the log.
#[derive(Debug, Default)]
pub(super) struct Rarely {
    last: Option<Instant>,
    unsaid: u64,
}

impl Rarely {
    /// Whether to say it now; then how often it was not said since the last time.
    pub(super) fn due(&mut self) -> Option<u64> {
        if self.last.is_some_and(|last| last.elapsed() < LOG_EVERY) {
            self.unsaid += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(most: usize) -> Arc<Shared> {
        Arc::new(Shared::new(most, ListenerName::Server, Arc::default()))
    }

    fn take_all(shared: &Arc<Shared>, key: Option<LimitKey>) -> (Vec<Place>, NoPlace) {
        let mut places = Vec::new();
        loop {
            match shared.enter(key) {
                Ok(place) => places.push(place),
                Err(why) => return (places, why),
            }
        }
    }

    const A: Option<LimitKey> = Some(LimitKey::V4(1));
    const B: Option<LimitKey> = Some(LimitKey::V4(2));
    const C: Option<LimitKey> = Some(LimitKey::V6(1));

    #[test]
    fn the_cap_counts_over_all() {
        let shared = shared(2);
        let (mut places, why) = take_all(&shared, None);
        assert_eq!((places.len(), why), (2, NoPlace::Full));
        assert_eq!(shared.connections(), 2);
        places.pop();
        assert_eq!(shared.connections(), 1);
        assert!(shared.enter(None).is_ok());
    }

    #[test]
    fn an_address_holds_half_at_most_and_two_a_third_each() {
        let shared = shared(100);
        let (a, why) = take_all(&shared, A);
        assert_eq!((a.len(), why), (50, NoPlace::OverShare));
        let (b, _) = take_all(&shared, B);
        assert_eq!(b.len(), 25);
        let (c, _) = take_all(&shared, C);
        assert_eq!(c.len(), 13, "a newcomer still finds room");
        // With the first one gone, the second one may have more.
        drop((a, c));
        let (more, _) = take_all(&shared, B);
        assert_eq!(b.len() + more.len(), 50);
        drop((b, more));
        assert_eq!(shared.connections(), 0);
        assert!(
            shared.state().holders.is_empty(),
            "entries go with the last"
        );
    }

    #[test]
    fn at_the_cap_an_address_without_a_connection_is_not_over_its_share() {
        let shared = shared(3);
        let (_places, _) = take_all(&shared, None);
        assert_eq!(shared.enter(A).unwrap_err(), NoPlace::Full);
        assert!(shared.state().holders.is_empty());
    }

    #[test]
    fn a_place_can_be_charged_later() {
        let shared = shared(4);
        let mut places: Vec<Place> = (0..3).map(|_| shared.enter(None).unwrap()).collect();
        let key = LimitKey::V4(1);
        assert_eq!(places[0].charge(key), Ok(()));
        assert_eq!(places[1].charge(key), Ok(()));
        assert_eq!(places[2].charge(key), Err(NoPlace::OverShare));
        drop(places);
        assert!(shared.state().holders.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn another_cap_takes_effect_as_connections_end() {
        let shared = shared(3);
        let (mut places, _) = take_all(&shared, None);
        shared.resize(1);
        places.truncate(1);
        assert_eq!(shared.enter(None).unwrap_err(), NoPlace::Full);
        let freed = shared.freed();
        shared.resize(2);
        freed.await;
        assert!(shared.enter(None).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_repeats_is_said_once_in_a_while() {
        let mut line = Rarely::default();
        assert_eq!(line.due(), Some(0));
        for _ in 0..5 {
            assert_eq!(line.due(), None);
        }
        tokio::time::advance(LOG_EVERY).await;
        assert_eq!(line.due(), Some(5));
    }
}
