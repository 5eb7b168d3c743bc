//! A PostgreSQL server as a store that several gates share.
//!
//! ```text
//! callers, on any runtime ──work──▶ one thread with a runtime of its own
//!                                   ├─ workers: one connection each, one transaction at a time
//!                                   └─ whatever else was started there, with connections of its own
//! ```
//!
//! Work is handed over whole and answered through a channel, so that a caller who goes away never
//! leaves half a transaction behind. Every connection is checked before it is used ([`OpenError`]
//! says for what), and is asked for nothing while it isn't there: work is refused at once.

mod checks;
mod fault;
mod ground;
mod pool;
mod schema;
mod session;
#[cfg(test)]
mod tests;
mod tls;

/// A real server for tests, which the integration tests use as well.
#[cfg(test)]
#[path = "../../../tests/it/support/postgres.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the integration tests use the rest"
)]
pub(crate) mod server;

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::config::PostgresStore;
use pool::{Pool, Task, Work};

pub use fault::{Fault, OpenError};
pub use ground::{GROUND, Ground};
pub use session::{Connector, Session};

use schema::Migrations;

/// Work that may wait for a connection: more than the gate runs at once.
const QUEUE: usize = 4096;
/// How long [`Store::open`] waits for its first connection.
const FIRST_CONNECTION_WITHIN: Duration = Duration::from_secs(5);

/// The store. Dropping it ends its thread and closes its connections.
pub struct Store {
    work: mpsc::Sender<pool::Queued>,
    starts: mpsc::UnboundedSender<Start>,
    health: Arc<Health>,
    commits: Arc<session::Commits>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Something that runs on the store's thread beside the workers.
type Start = Box<dyn FnOnce(Connector) + Send>;

impl Store {
    /// Connects, and brings the schema up to date.
    ///
    /// A server that can't be reached now is no error: the store keeps trying and refuses work
    /// meanwhile.
    ///
    /// # Errors
    /// See [`OpenError`]: what waiting doesn't mend.
    pub fn open(settings: &PostgresStore) -> Result<Self, OpenError> {
        Self::open_knowing(schema::MIGRATIONS, settings)
    }

    fn open_knowing(migrations: Migrations, settings: &PostgresStore) -> Result<Self, OpenError> {
        let commits = Arc::new(session::Commits::default());
        let connector = Connector::new(settings, migrations, Arc::clone(&commits))?;
        let (work, queue) = mpsc::channel(QUEUE);
        let (starts, started) = mpsc::unbounded_channel();
        let health = Arc::new(Health::default());
        let (opened, opening) = std::sync::mpsc::channel();
        let pool = Pool {
            connector,
            // One connection is for what runs beside the workers.
            workers: settings.connections.saturating_sub(1).max(1),
            health: Arc::clone(&health),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| OpenError::System(error.to_string()))?;
        let thread = std::thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || LocalSet::new().block_on(&runtime, run(pool, queue, started, opened)))
            .map_err(|error| OpenError::System(error.to_string()))?;
        let store = Self {
            work,
            starts,
            health,
            commits,
            thread: Mutex::new(Some(thread)),
        };
        // The thread ends early only where it says why.
        opening.recv().unwrap_or(Ok(()))?;
        Ok(store)
    }

    /// Carries out work on one of the connections, within a few seconds.
    ///
    /// Work whose answer nobody waits for any more is not begun; work that was begun goes on to its
    /// end. An error rolls its transaction back.
    pub fn run<W, T>(&self, work: W) -> impl Future<Output = Result<T, Fault>> + Send + 'static
    where
        W: AsyncFnOnce(&mut Session) -> Result<T, Fault> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let queued = self.queue(Box::new(Task { work, reply }));
        async move {
            queued?;
            // Dropped without an answer: its time was over, or the store's.
            answer.await.unwrap_or_else(|_| Err(Fault::unconfirmed()))
        }
    }

    /// Starts something on the store's thread, to run until the store is closed.
    pub fn spawn<F>(&self, start: impl FnOnce(Connector) -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let start = move |connector| {
            tokio::task::spawn_local(start(connector));
        };
        // Refused by a closed store alone, where nothing is to run.
        let _ = self.starts.send(Box::new(start));
    }

    /// Calls `observer`, if it is the first, with the time of each commit from now on: from when it
    /// was asked for, perhaps along with the statements before it, to when it was confirmed.
    pub fn observe_commits(&self, observer: Box<dyn Fn(Duration) + Send + Sync>) {
        self.commits.observe(observer);
    }

    /// Why work is refused, if it is.
    pub fn trouble(&self) -> Option<String> {
        self.health.trouble()
    }

    /// Lets the store's thread end; work that is under way is given up.
    pub fn stop(&self) {
        self.health.close();
    }

    /// The same, and blocks until it has ended.
    pub fn close(&self) {
        self.stop();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic in it was reported when it happened.
            let _ = thread.join();
        }
    }

    fn queue(&self, work: Box<dyn Work>) -> Result<(), Fault> {
        if let Some(trouble) = self.health.trouble() {
            return Err(Fault::Unavailable(trouble));
        }
        self.work
            .try_send(pool::Queued::new(work))
            .map_err(|_| Fault::Unavailable("too much waits for the database".to_owned()))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Not waited for: the last owner may be on the store's own thread.
        self.stop();
    }
}

/// The life of the store's thread.
async fn run(
    pool: Pool,
    queue: mpsc::Receiver<pool::Queued>,
    mut started: mpsc::UnboundedReceiver<Start>,
    opened: std::sync::mpsc::Sender<Result<(), OpenError>>,
) {
    let connector = pool.connector.clone();
    let health = Arc::clone(&pool.health);
    let first = tokio::time::timeout(FIRST_CONNECTION_WITHIN, connector.connect()).await;
    let first = match first {
        Ok(Ok(session)) => Some(session),
        Ok(Err(error)) if error.is_lasting() => {
            let _ = opened.send(Err(error));
            return;
        }
        Ok(Err(error)) => {
            health.disconnected(&error.to_string());
            None
        }
        Err(_) => {
            health.disconnected("the server does not answer");
            None
        }
    };
    if let Some(trouble) = health.trouble()
        && first.is_none()
    {
        tracing::error!(
            error = trouble,
            "the database can't be used yet; trying again"
        );
    }
    let working = pool.start(queue, first);
    let _ = opened.send(Ok(()));
    loop {
        tokio::select! {
            start = started.recv() => match start {
                Some(start) => start(connector.clone()),
                None => break,
            },
            () = health.closed() => break,
        }
    }
    drop(working);
}

/// What is known of the connections, for whoever asks from outside.
#[derive(Default)]
pub(super) struct Health {
    state: Mutex<HealthState>,
    closed: tokio_util::sync::CancellationToken,
}

#[derive(Default)]
struct HealthState {
    /// Connections that take work.
    usable: usize,
    /// Why the last one went, or could not be had.
    last_fault: Option<String>,
}

impl Health {
    fn trouble(&self) -> Option<String> {
        if self.closed.is_cancelled() {
            return Some("the store is closed".to_owned());
        }
        let state = lock(&self.state);
        if state.usable > 0 {
            return None;
        }
        let fault = state.last_fault.as_deref();
        Some(fault.unwrap_or("not connected yet").to_owned())
    }

    fn connected(&self) {
        let mut state = lock(&self.state);
        state.usable += 1;
        state.last_fault = None;
    }

    /// A connection that took work takes none any more.
    fn lost(&self, fault: &str) {
        let mut state = lock(&self.state);
        state.usable = state.usable.saturating_sub(1);
        state.last_fault = Some(fault.to_owned());
    }

    /// A connection could not be had.
    fn disconnected(&self, fault: &str) {
        lock(&self.state).last_fault = Some(fault.to_owned());
    }

    fn close(&self) {
        self.closed.cancel();
    }

    async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

/// What is behind these locks is whole between any two statements: a panic elsewhere changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
