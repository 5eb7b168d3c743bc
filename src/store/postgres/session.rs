//! One connection that was checked, with what a transaction on it needs.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;

use super::fault::{Fault, OpenError};
use super::schema::{self, Migrations};
use super::{checks, tls};
use crate::config::{DatabaseUrl, PostgresStore};

/// What the server's own views call these connections, unless the URL says otherwise.
pub(super) const APPLICATION: &str = "tikigate";

/// What every session is set to. The timeouts are well inside a call's `answer_within`, and the last
/// one takes the locks of a gate that was stopped in the middle of a transaction. A commit waits for
/// as much as the server is set up to wait for, and never for less than its own disk and the
/// synchronous standbys.
const SET_UP: &str = "\
    set statement_timeout = '5s';
    set lock_timeout = '3s';
    set idle_in_transaction_session_timeout = '10s';
    set client_min_messages = warning;
    set default_transaction_isolation = 'read committed';
    set search_path = pg_catalog;
    set timezone = 'UTC';
    set jit = off;
    select set_config('synchronous_commit', 'on', false)
        where current_setting('synchronous_commit') <> 'remote_apply';";

/// From the first packet to a server that is known to be fit.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// A server's answer to something that needs no disk.
const GIVE_UP_WITHIN: Duration = Duration::from_secs(2);

/// One attempt to connect, to each of the URL's hosts.
const CONNECT_WITHIN: Duration = Duration::from_secs(4);
/// A silent connection is asked for life after this, and given up some three times later.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long what was written may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// What the URL says, with an end to every silence.
fn bounded(mut config: Config) -> Config {
    config
        .connect_timeout(CONNECT_WITHIN)
        .keepalives_idle(KEEPALIVE)
        .keepalives_interval(KEEPALIVE / 2)
        .keepalives_retries(3)
        .tcp_user_timeout(UNACKNOWLEDGED);
    if config.get_hosts().len().max(config.get_hostaddrs().len()) > 1 {
        // Of several servers, the one that is the primary now.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    if config.get_application_name().is_none() {
        config.application_name(APPLICATION);
    }
    config
}

/// Makes sessions. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    config: Arc<Config>,
    tls: Option<MakeRustlsConnect>,
    require_existing: bool,
    migrations: Migrations,
    memory: Arc<checks::Memory>,
    commits: Arc<Commits>,
}

/// Who is told how long each commit took.
#[derive(Default)]
pub(super) struct Commits(OnceLock<Box<dyn Fn(Duration) + Send + Sync>>);

impl Commits {
    /// The first observer stays.
    pub(super) fn observe(&self, observer: Box<dyn Fn(Duration) + Send + Sync>) {
        let _ = self.0.set(observer);
    }
}

impl Connector {
    pub(super) fn new(
        settings: &PostgresStore,
        migrations: Migrations,
        commits: Arc<Commits>,
    ) -> Result<Self, OpenError> {
        // What is no UTF-8 is no URL.
        let url = std::str::from_utf8(settings.url.expose()).unwrap_or_default();
        let url = DatabaseUrl::parse(url).map_err(|fault| OpenError::Url(fault.to_string()))?;
        let tls = match url.verified {
            true => Some(tls::verifying(settings.ca.as_deref())?),
            false => None,
        };
        Ok(Self {
            config: Arc::new(bounded(url.config)),
            tls,
            require_existing: settings.require_existing,
            migrations,
            memory: Arc::default(),
            commits,
        })
    }

    /// A session with a server that passed every check and has the schema. Runs on the store's
    /// thread only.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn connect(&self) -> Result<Session, OpenError> {
        let opening = tokio::time::timeout(OPEN_WITHIN, self.open()).await;
        let silent = |_| OpenError::Unreachable("it does not answer".to_owned());
        let (mut session, server) = opening.map_err(silent)??;
        schema::bring_up_to_date(&session, &server, self.require_existing, self.migrations).await?;
        checks::identity(&session, &server, &self.memory).await?;
        session.shard = checks::take_shard(&session).await?;
        Ok(session)
    }

    async fn open(&self) -> Result<(Session, checks::Server), OpenError> {
        let config = &self.config;
        let session = match &self.tls {
            Some(tls) => {
                let (client, connection) = config.connect(tls.clone()).await?;
                Session::new(client, connection, &self.commits)
            }
            None => {
                let (client, connection) = config.connect(NoTls).await?;
                Session::new(client, connection, &self.commits)
            }
        };
        session.client.batch_execute(SET_UP).await?;
        let server = checks::server(&session).await?;
        Ok((session, server))
    }
}

/// A connection. One transaction at a time; dropping it closes the connection at once, whatever is
/// under way on it.
pub struct Session {
    pub(super) client: Client,
    statements: HashMap<&'static str, Statement>,
    in_transaction: Cell<bool>,
    incoming: Rc<Incoming>,
    driver: JoinHandle<()>,
    shard: i32,
    commits: Arc<Commits>,
}

/// What the server says unasked.
#[derive(Default)]
struct Incoming {
    warnings: Cell<u64>,
    last_warning: RefCell<String>,
    notifications: RefCell<Option<mpsc::UnboundedSender<String>>>,
    closed: CancellationToken,
}

impl Session {
    fn new<S, T>(client: Client, connection: Connection<S, T>, commits: &Arc<Commits>) -> Self
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
    {
        let incoming = Rc::new(Incoming::default());
        let driver = tokio::task::spawn_local(drive(connection, Rc::clone(&incoming)));
        Self {
            client,
            statements: HashMap::new(),
            in_transaction: Cell::new(false),
            incoming,
            driver,
            shard: 0,
            commits: Arc::clone(commits),
        }
    }

    /// Prepares statements, each once for the life of the connection.
    ///
    /// # Errors
    /// The server's.
    pub async fn prepare<const N: usize>(
        &mut self,
        texts: [&'static str; N],
    ) -> Result<[Statement; N], Fault> {
        let mut prepared = Vec::with_capacity(N);
        for text in texts {
            if let Some(known) = self.statements.get(text) {
                prepared.push(known.clone());
                continue;
            }
            let statement = self.client.prepare(text).await?;
            self.statements.insert(text, statement.clone());
            prepared.push(statement);
        }
        prepared
            .try_into()
            .map_err(|_| Fault::Corrupt("a statement is missing"))
    }

    /// Runs a statement. Several that are polled together go out together, in the order of their
    /// first polls, and share one round trip.
    ///
    /// # Errors
    /// The server's.
    pub async fn query(
        &self,
        statement: &Statement,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Fault> {
        Ok(self.client.query(statement, parameters).await?)
    }

    /// Runs a statement that gives one row, or none.
    ///
    /// # Errors
    /// The server's.
    pub async fn query_opt(
        &self,
        statement: &Statement,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Fault> {
        Ok(self.client.query_opt(statement, parameters).await?)
    }

    /// Runs a statement that is planned for just these values, and not kept.
    ///
    /// # Errors
    /// The server's.
    pub async fn query_once(
        &self,
        text: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Fault> {
        Ok(self.client.query_typed(text, parameters).await?)
    }

    /// Runs a statement and says how many rows it changed.
    ///
    /// # Errors
    /// The server's.
    pub async fn execute(
        &self,
        statement: &Statement,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Fault> {
        Ok(self.client.execute(statement, parameters).await?)
    }

    /// Runs a statement that takes and gives nothing.
    ///
    /// # Errors
    /// The server's.
    pub async fn run(&self, text: &str) -> Result<(), Fault> {
        Ok(self.client.batch_execute(text).await?)
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// The server's.
    pub async fn begin(&self) -> Result<(), Fault> {
        self.in_transaction.set(true);
        self.run("begin").await
    }

    /// Commits. May go out together with the statements before it: when one of them failed, this
    /// rolls back, and their error is the one to look at.
    ///
    /// # Errors
    /// [`Fault::Unconfirmed`], also for a commit that the server says it made by itself alone: a
    /// standby that takes over might not have it.
    pub async fn commit(&self) -> Result<(), Fault> {
        let began = Instant::now();
        let warnings = self.incoming.warnings.get();
        let committed = self.client.batch_execute("commit").await;
        if let Err(error) = committed {
            let text = super::fault::describe(&error);
            return Err(Fault::Unconfirmed(format!("a commit failed: {text}")));
        }
        self.in_transaction.set(false);
        if self.incoming.warnings.get() != warnings {
            let warning = self.incoming.last_warning.borrow().clone();
            return Err(Fault::Unconfirmed(format!(
                "a commit is not safe: {warning}"
            )));
        }
        if let Some(observe) = self.commits.0.get() {
            observe(began.elapsed());
        }
        Ok(())
    }

    /// Ends a transaction that changed nothing, or shall not.
    ///
    /// # Errors
    /// The server's.
    pub async fn rollback(&self) -> Result<(), Fault> {
        if !self.in_transaction.get() {
            return Ok(());
        }
        self.run("rollback").await?;
        self.in_transaction.set(false);
        Ok(())
    }

    /// Brings the session out of whatever transaction it is in; `false` if it can't be used again.
    pub(super) async fn is_usable_again(&self) -> bool {
        if self.client.is_closed() {
            return false;
        }
        if !self.in_transaction.get() {
            return true;
        }
        let rolled_back = tokio::time::timeout(GIVE_UP_WITHIN, self.rollback()).await;
        matches!(rolled_back, Ok(Ok(())))
    }

    /// Waits for the answer to whatever was asked last and given up; the session is of no use before.
    ///
    /// # Errors
    /// The server's.
    pub async fn catch_up(&self) -> Result<(), Fault> {
        self.in_transaction.set(true);
        self.rollback().await
    }

    /// Resolves when the connection is gone.
    pub async fn closed(&self) {
        self.incoming.closed.cancelled().await;
    }

    /// The payloads of notifications, from now on. Channels are listened to with [`Session::run`].
    pub fn notifications(&self) -> mpsc::UnboundedReceiver<String> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.incoming.notifications.replace(Some(sender));
        receiver
    }

    /// A number that no other connection to this database has now: which part of the kept counts it
    /// adds to, so that commits don't wait for each other there.
    pub fn shard(&self) -> i32 {
        self.shard
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Moves bytes until the connection ends.
async fn drive<S, T>(mut connection: Connection<S, T>, incoming: Rc<Incoming>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let _closes = incoming.closed.clone().drop_guard();
    loop {
        // A notice comes before the answer that it belongs to, and is counted before that is given.
        match poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => {
                incoming.warnings.set(incoming.warnings.get() + 1);
                *incoming.last_warning.borrow_mut() = notice.message().to_owned();
            }
            Some(Ok(AsyncMessage::Notification(notification))) => {
                if let Some(sender) = &*incoming.notifications.borrow() {
                    let _ = sender.send(notification.payload().to_owned());
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(
                    error = super::fault::describe(&error),
                    "a database connection ended"
                );
                return;
            }
            None => return,
        }
    }
}
