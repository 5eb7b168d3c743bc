//! The outbound direction: a thread with the listener, the way to Tiki, and the courier of the outbox.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::sync::Notify;

use crate::clock::Clock;
use crate::config::{self, Delivery, Settings};
use crate::gate::Common;
use crate::metrics::{ListenerName, OutboundMetrics, ServerMetrics};
use crate::net::BodyPace;
use crate::outbound::outbox::{
    Courier, MemoryOutbox, Outbox, PostgresOutbox, SqliteOutbox, StoreFault,
};
use crate::outbound::{Accounts, CallerToken, Listener, Tiki};
use crate::server::{self, PassedSockets};

use super::StartError;
use super::drain::Life;
use super::ledger::{Backing, block_on};

/// Connections for each call that may be handled at once: most of a backend's are idle.
const CONNECTIONS: usize = 4;

/// What the thread needs.
pub(super) struct Outbound {
    settings: Arc<config::Outbound>,
    accounts: Accounts,
    metrics: Arc<OutboundMetrics>,
    clock: Clock,
    listener: server::Listener,
    policy: server::CurrentPolicy,
    body_pace: BodyPace,
    connections: Arc<server::Shared>,
    outbox: Option<Arc<dyn Outbox>>,
    life: Arc<Life>,
    token: CallerToken,
}

/// What others need of it.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) address: crate::net::ListenAddress,
    pub(super) connections: Arc<server::Shared>,
    /// What the listener asks of connections.
    pub(super) policy: server::CurrentPolicy,
    pub(super) outbox: Option<Arc<dyn Outbox>>,
    /// Looks into the outbox again.
    pub(super) wake: Arc<Notify>,
    /// Deliveries that are at Tiki.
    pub(super) in_flight: Arc<AtomicUsize>,
    /// What callers must show; can be changed.
    pub(super) token: CallerToken,
}

impl Outbound {
    /// Opens the outbox and binds the listener; none where the direction is off.
    pub(super) fn prepare(
        settings: &Settings,
        common: &Arc<Common>,
        backing: &Backing,
        clock: &Clock,
        life: &Arc<Life>,
        counted: Arc<ServerMetrics>,
        passed: &mut PassedSockets,
    ) -> Result<Option<Self>, StartError> {
        let (Some(outbound), Some(accounts)) = (&settings.outbound, common.accounts()) else {
            tell_of_forgotten(backing)?;
            return Ok(None);
        };
        let outbox = match (outbound.delivery, backing) {
            (Delivery::Direct, Backing::Memory) => None,
            // With direct delivery, too: what was accepted before is still to be delivered.
            _ => Some(open(outbound, accounts, backing, clock)?),
        };
        let listener = passed
            .take_or_bind(&outbound.listen, 1)?
            .pop()
            .ok_or_else(|| StartError::Settings("outbound.listen gave no listener".to_owned()))?;
        let most = outbound.max_in_flight.saturating_mul(CONNECTIONS);
        Ok(Some(Self {
            // The token and the certificate are kept where they can be replaced.
            settings: Arc::new(config::Outbound {
                token: None,
                tls: None,
                ..config::Outbound::clone(outbound)
            }),
            accounts: accounts.clone(),
            metrics: Arc::clone(common.outbound_metrics()),
            clock: clock.clone(),
            listener,
            policy: server::Policy::outbound(outbound, &settings.server).current(),
            body_pace: BodyPace {
                within: settings.server.body_timeout,
                min_rate: settings.server.min_body_rate,
            },
            connections: Arc::new(server::Shared::new(most, ListenerName::Outbound, counted)),
            outbox,
            life: Arc::clone(life),
            token: CallerToken::new(outbound.token.as_ref()),
        }))
    }

    pub(super) fn handle(&self) -> Handle {
        Handle {
            address: self.listener.local_address(),
            connections: Arc::clone(&self.connections),
            policy: Arc::clone(&self.policy),
            outbox: self.outbox.clone(),
            wake: Arc::default(),
            in_flight: Arc::default(),
            token: self.token.clone(),
        }
    }

    /// Serves and delivers until the drain is over.
    pub(super) async fn run(self, handle: Handle) {
        let tiki = Arc::new(Tiki::new(
            self.accounts,
            self.clock,
            self.settings.timeout,
            self.settings.answer_limit,
        ));
        let metrics = &self.metrics;
        let listener = Listener::new(
            Arc::clone(&self.settings),
            self.token,
            self.body_pace,
            Arc::clone(&tiki),
            self.outbox.clone(),
            Arc::clone(&handle.wake),
            Arc::clone(metrics),
        );
        let courier = self.outbox.map(|outbox| {
            let stops = [self.life.draining(), self.life.abort()];
            let settings = &self.settings.outbox;
            Courier::new(
                tiki,
                outbox,
                settings,
                Arc::clone(metrics),
                handle.wake,
                handle.in_flight,
                stops,
            )
        });
        let delivering = async {
            if let Some(courier) = courier {
                courier.run().await;
            }
        };
        let serving = async {
            let served = server::serve(
                self.listener,
                self.policy,
                self.connections,
                listener.service(),
                self.life.closing(),
                self.life.abort(),
            );
            if let Err(error) = served.await {
                tracing::error!(%error, "the outbound listener can't serve");
            }
        };
        tokio::join!(delivering, serving);
    }
}

/// Whoever takes `[outbound]` out may not know that somebody waits for it.
fn tell_of_forgotten(backing: &Backing) -> Result<(), StartError> {
    let Backing::Sqlite(database) = backing else {
        return Ok(());
    };
    let waiting = block_on(SqliteOutbox::waiting(database))?;
    if let Ok(waiting @ 1..) = waiting {
        tracing::error!(
            tikigate.waiting = waiting,
            "payment notices were accepted and are not delivered, since the configuration has no \
             [outbound]: put it back"
        );
    }
    Ok(())
}

fn open(
    outbound: &config::Outbound,
    accounts: &Accounts,
    backing: &Backing,
    clock: &Clock,
) -> Result<Arc<dyn Outbox>, StartError> {
    let fault = |error: StoreFault| StartError::Ledger(error.to_string());
    let settings = &outbound.outbox;
    match backing {
        Backing::Memory => {
            let outbox = MemoryOutbox::new(settings, accounts, clock.clone()).map_err(fault)?;
            Ok(Arc::new(outbox))
        }
        Backing::Sqlite(database) => {
            let opening =
                SqliteOutbox::open(Arc::clone(database), settings, accounts, clock.clone());
            let (outbox, lapsed) = block_on(opening)?.map_err(fault)?;
            if lapsed > 0 {
                tracing::warn!(
                    tikigate.lapsed = lapsed,
                    "payment notices were being sent when the gate ended last: they are sent again"
                );
            }
            Ok(Arc::new(outbox))
        }
        // What another gate is trying stays its own until its time is over, also after a start.
        Backing::Postgres(store) => {
            let outbox = PostgresOutbox::new(Arc::clone(store), settings, accounts);
            Ok(Arc::new(outbox))
        }
    }
}
