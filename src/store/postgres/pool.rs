//! The workers: each has a connection, takes one piece of work after another, and gets itself a new
//! connection when its own is gone.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;

use super::Health;
use super::fault::Fault;
use super::session::{Connector, Session};

/// How long work waits for a connection, and how long it may then take: together well inside a
/// call's `answer_within`, which leaves room for the call itself.
const BEGIN_WITHIN: Duration = Duration::from_secs(3);
const WORK_WITHIN: Duration = Duration::from_secs(6);

/// How long a connection is waited for whose work took too long. Closing it would not end what the
/// server does, and asking the server to would make it call a commit done that no standby has; so
/// it counts among the connections until it answers.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(300);

/// Pauses between attempts to connect.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Work, ready to be run on any session.
pub(super) trait Work: Send {
    /// Runs it, and gives its answer to whoever waits.
    fn run<'a>(self: Box<Self>, session: &'a mut Session)
    -> Pin<Box<dyn Future<Output = ()> + 'a>>;

    /// Answers without having done anything.
    fn refuse(self: Box<Self>, fault: Fault);
}

/// Work with its way back.
pub(super) struct Task<W, T> {
    pub(super) work: W,
    pub(super) reply: oneshot::Sender<Result<T, Fault>>,
}

impl<W, T> Work for Task<W, T>
where
    W: AsyncFnOnce(&mut Session) -> Result<T, Fault> + Send + 'static,
    T: Send + 'static,
{
    fn run<'a>(
        self: Box<Self>,
        session: &'a mut Session,
    ) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(async move {
            let Self { work, reply } = *self;
            if reply.is_closed() {
                return;
            }
            let answer = work(session).await;
            // Nobody waits any more: what the answer holds is dropped, and knows what to do then.
            let _ = reply.send(answer);
        })
    }

    fn refuse(self: Box<Self>, fault: Fault) {
        let _ = self.reply.send(Err(fault));
    }
}

/// Work that waits for a connection.
pub(super) struct Queued {
    work: Box<dyn Work>,
    since: Instant,
}

impl Queued {
    pub(super) fn new(work: Box<dyn Work>) -> Self {
        Self {
            work,
            since: Instant::now(),
        }
    }
}

type Queue = Rc<Mutex<mpsc::Receiver<Queued>>>;

/// What the workers are made of.
pub(super) struct Pool {
    pub(super) connector: Connector,
    pub(super) workers: usize,
    pub(super) health: Arc<Health>,
}

impl Pool {
    /// Starts the workers, the first perhaps with a connection; dropping what is returned ends them.
    pub(super) fn start(
        self,
        queue: mpsc::Receiver<Queued>,
        mut first: Option<Session>,
    ) -> JoinSet<()> {
        let queue = Rc::new(Mutex::new(queue));
        let mut working = JoinSet::new();
        if first.is_some() {
            self.health.connected();
        }
        for _ in 0..self.workers {
            let worker = Worker {
                connector: self.connector.clone(),
                health: Arc::clone(&self.health),
                queue: Rc::clone(&queue),
            };
            working.spawn_local(worker.run(first.take()));
        }
        working
    }
}

struct Worker {
    connector: Connector,
    health: Arc<Health>,
    queue: Queue,
}

impl Worker {
    async fn run(self, mut first: Option<Session>) {
        loop {
            let mut session = match first.take() {
                Some(session) => session,
                None => {
                    let session = self.connect().await;
                    self.health.connected();
                    session
                }
            };
            let fault = self.work_on(&mut session).await;
            self.health.lost(&fault);
            self.catch_up(session).await;
        }
    }

    /// Takes work until the connection is of no more use; says why it isn't.
    async fn work_on(&self, session: &mut Session) -> String {
        loop {
            let queued = tokio::select! {
                queued = self.next() => queued,
                () = session.closed() => return "the server closed the connection".to_owned(),
            };
            if queued.since.elapsed() > BEGIN_WITHIN {
                let text = "the database is too slow for what is asked of it";
                queued.work.refuse(Fault::Unavailable(text.to_owned()));
                continue;
            }
            let running = queued.work.run(session);
            if tokio::time::timeout(WORK_WITHIN, running).await.is_err() {
                return "the server does not confirm commits in time; if it waits for a synchronous \
                        standby, bring that back"
                    .to_owned();
            }
            if !session.is_usable_again().await {
                return "the connection to the server broke".to_owned();
            }
        }
    }

    /// Waits for a server that is slow; nothing where the connection is gone.
    async fn catch_up(&self, session: Session) {
        let caught_up = tokio::time::timeout(CATCH_UP_WITHIN, session.catch_up());
        tokio::pin!(caught_up);
        loop {
            tokio::select! {
                _ = &mut caught_up => return,
                queued = self.unserved() => queued,
            }
        }
    }

    async fn connect(&self) -> Session {
        let mut pause = PAUSE;
        loop {
            let connecting = self.connector.connect();
            tokio::pin!(connecting);
            let connected = loop {
                tokio::select! {
                    connected = &mut connecting => break connected,
                    () = self.unserved() => {}
                }
            };
            match connected {
                Ok(session) => return session,
                Err(error) => {
                    tracing::warn!(%error, "the database can't be used; trying again");
                    self.health.disconnected(&error.to_string());
                }
            }
            let over = tokio::time::sleep(pause);
            tokio::pin!(over);
            loop {
                tokio::select! {
                    () = &mut over => break,
                    () = self.unserved() => {}
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Refuses a piece of work that no worker can do now; pending while one can.
    async fn unserved(&self) {
        /// Between two looks whether anybody works.
        const LOOK: Duration = Duration::from_millis(50);
        loop {
            let Some(trouble) = self.health.trouble() else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let queued = tokio::select! {
                queued = self.next() => queued,
                () = tokio::time::sleep(LOOK) => continue,
            };
            queued.work.refuse(Fault::Unavailable(trouble));
            return;
        }
    }

    /// The next piece of work; pending for ever once the store is closed, which ends the worker too.
    async fn next(&self) -> Queued {
        let taken = self.queue.lock().await.recv().await;
        match taken {
            Some(queued) => queued,
            None => std::future::pending().await,
        }
    }
}
