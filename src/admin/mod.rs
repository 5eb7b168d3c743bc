//! The admin listener: liveness, readiness, metrics, and the API over the ledger.
//!
//! ```text
//! connection   at most `Limits::connections`; a new one displaces the oldest idle one; every phase has a limit
//! ── open      GET /livez   GET /readyz   GET /metrics
//! ── /api      a known Host · no Origin on changes · a bearer token · JSON on changes, read under a limit
//!              GET /api/ledger   GET /api/ledger/{id}   GET /api/ledger/quarantine
//!              POST /api/ledger/{id}/resolve   POST /api/ledger/{id}/reopen
//!              POST /api/ledger/quarantine/lift   POST /api/drain
//!              GET /api/outbox   GET /api/outbox/{id}
//!              POST /api/outbox/{id}/retry   POST /api/outbox/{id}/cancel
//! ```
//!
//! The backend shares the loopback with this listener and a browser can be led to it, so the API trusts
//! no address: a request forged through either must not resolve a refund.

mod answer;
mod connections;
mod guard;
mod handler;
mod ledger_api;
mod outbox_api;
pub mod token;
mod view;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

pub use guard::Access;

use crate::ledger::{Ledger, RecordId, State, Stats};
use crate::outbound::outbox::{self, Outbox};

/// What the admin listener may tell of the gate and ask of it.
pub trait Control: Send + Sync + 'static {
    /// Whether calls are taken, and what is degraded.
    fn readiness(&self) -> Readiness;

    /// Starts the drain; nothing happens when it runs already. `by` is the name of the token's holder.
    fn start_drain(&self, by: &str);

    /// Every metric in Prometheus' text format. What doesn't answer is `None`.
    fn render_metrics(&self, ledger: Option<&Stats>, outbox: Option<outbox::Stats>) -> String;

    /// Sends the kept call of a released record to the backend now, as Tiki's next re-send would
    /// be, and resolves when its outcome is recorded. Dropping the future does not stop what was
    /// begun.
    fn send_now(&self, id: RecordId) -> SendingNow;

    /// The outbox, where there is one.
    fn outbox(&self) -> Option<&dyn Outbox> {
        None
    }

    /// Somebody changed what is to be delivered.
    fn outbox_changed(&self) {}
}

/// What [`Control::send_now`] comes to, on its way.
pub type SendingNow = Pin<Box<dyn Future<Output = Result<SendNow, SendNowError>> + Send>>;

/// What a call that was sent by a person's word came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendNow {
    /// The status that Tiki would have been given.
    pub status: u16,
    /// Where the record stands now.
    pub state: State,
}

/// Why a call was not sent by a person's word. Nothing was sent in any of these cases.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendNowError {
    /// The ledger keeps no call for the record: Tiki has to send it again.
    #[error("the ledger keeps no call for this record: it goes out when Tiki sends it again")]
    NoRequest,
    /// Only a released record is sent.
    #[error("only a released record is sent; this one is {}", .0.as_str())]
    NotReleased(State),
    /// It can't be sent now, and why.
    #[error("it can't be sent now: {0}")]
    Unavailable(String),
}

/// Whether the gate takes calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Where the gate is in its life.
    pub phase: Phase,
    /// Trouble of this gate's own, such as of a store that no other gate uses: another one may do
    /// better, so that calls should go there. One short sentence, with what to do.
    pub unready: Option<String>,
    /// What else is in trouble, one short sentence each. Doesn't make the gate unready: a backend or
    /// a shared store in trouble is answered by the gate's own 503s, and leaving the load balancer
    /// helps nobody.
    pub degraded: Vec<String>,
}

impl Readiness {
    /// Whether a load balancer should send calls here.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Serving && self.unready.is_none()
    }
}

/// Where the gate is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It doesn't take calls yet.
    Starting,
    /// It takes calls.
    Serving,
    /// It finishes what is in flight and takes nothing new.
    Draining,
}

impl Phase {
    /// The word for it in `/readyz`.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Draining => "draining",
        }
    }
}

/// Who may use the API, within which limits.
#[derive(Clone, Debug)]
pub struct AdminSettings {
    /// Who that is; can be changed.
    pub access: Access,
    /// Bounds of what a caller can take.
    pub limits: Limits,
}

/// Bounds of what a caller of the admin listener can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. One more displaces the oldest that is not being answered.
    pub connections: usize,
    /// From the moment a connection is ready for a request to the end of its head. A kept-alive
    /// connection may be silent no longer than this.
    pub head_within: Duration,
    /// From the end of a head to the end of its body.
    pub body_within: Duration,
    /// Body bytes at most.
    pub body: usize,
    /// How long the ledger may take to answer.
    pub ledger_within: Duration,
    /// How long an answer waits for a call that is sent by a person's word. Shorter than
    /// [`Limits::connection_lifetime`]; the call itself goes on.
    pub send_within: Duration,
    /// After this a connection is closed, whatever it does: the bound on a peer that reads slowly.
    pub connection_lifetime: Duration,
    /// How long a connection that is being closed may take to finish its answer.
    pub close_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            head_within: Duration::from_secs(5),
            body_within: Duration::from_secs(5),
            body: 16 * 1024,
            ledger_within: Duration::from_secs(5),
            send_within: Duration::from_secs(40),
            connection_lifetime: Duration::from_secs(60),
            close_within: Duration::from_secs(2),
        }
    }
}

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// On a TCP port.
    Tcp(TcpListener),
    /// On a unix socket.
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

/// Answers admin requests until `shutdown`, then finishes what is being answered within
/// [`Limits::close_within`] and returns.
pub async fn serve(
    listener: impl Into<Listener>,
    settings: AdminSettings,
    ledger: Arc<dyn Ledger>,
    control: Arc<dyn Control>,
    shutdown: CancellationToken,
) {
    let AdminSettings { access, limits } = settings;
    let desk = handler::Desk {
        access,
        limits,
        ledger,
        control,
    };
    connections::accept(listener.into(), Arc::new(desk), shutdown).await;
}
