//! A stand-in for Tiki's partner API, for tests and demonstrations: it checks every call strictly and
//! by code of its own, keeps books, breaks on order, and makes Tiki's calls to a gate.
//!
//! It imports nothing of this crate, so that it can't share a mistake with the gate.

mod amount;
mod books;
mod caller;
mod command;
mod connection;
mod control;
mod http;
mod orders;
mod seen;
mod shared;
mod signature;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use amount::Amount;
pub use books::{Status, Taken, Transaction};
pub use caller::{Outgoing, Reply, Resending, Try};
pub use command::{Args, run};
pub use orders::{Action, Call, Form, Order, Wanted};
pub use seen::{CalledFirst, Counts, Seen};
use shared::Shared;
pub use signature::Family;

/// Milliseconds since the epoch.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How a stand-in is to be.
#[derive(Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The path below which the API is.
    pub base_path: String,
    /// The names of the signature's headers.
    pub family: Family,
    /// Client ids and secrets. Several secrets of one client are all right; the first one signs.
    pub clients: Vec<(String, Vec<u8>)>,
    /// Files with the certificates and the private key, in PEM. With them it speaks TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// An IPN for an unknown transaction makes it.
    pub auto_create: bool,
    /// The form in which IPNs are answered.
    pub envelope: Form,
    /// How old a timestamp may be.
    pub max_age: Duration,
    /// How far ahead a timestamp may be.
    pub max_ahead: Duration,
    /// Refuses a signature that came before, instead of only noting it.
    pub strict_repeats: bool,
    /// How many calls are listed.
    pub seen_kept: usize,
    /// The wall clock.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            base_path: "/miniapp/tikivip".to_owned(),
            family: Family::default(),
            clients: Vec::new(),
            tls: None,
            auto_create: false,
            envelope: Form::default(),
            max_age: Duration::from_secs(300),
            max_ahead: Duration::from_secs(60),
            strict_repeats: false,
            seen_kept: 10_000,
            clock: shared::system_clock(),
        }
    }
}

impl Options {
    /// With one more client, or one more secret of a client.
    pub fn client(mut self, id: impl Into<String>, secret: impl Into<Vec<u8>>) -> Self {
        self.clients.push((id.into(), secret.into()));
        self
    }
}

impl Transaction {
    /// A pending one; none if the amount is no exact decimal.
    pub fn pending(
        tiki_transaction_id: impl Into<String>,
        partner_transaction_id: impl Into<String>,
        amount: &str,
        client: impl Into<String>,
    ) -> Option<Self> {
        Some(Self {
            tiki_transaction_id: tiki_transaction_id.into(),
            partner_transaction_id: partner_transaction_id.into(),
            amount: Amount::parse(amount)?,
            status: Status::Pending,
            client: client.into(),
        })
    }
}

/// A stand-in for Tiki, on the runtime on which it was started. Dropping it closes its listener and
/// resets its connections.
pub struct FakeTiki {
    address: SocketAddr,
    base_path: String,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    running: Mutex<Running>,
}

/// What runs between a start and a stop.
#[derive(Default)]
struct Running {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl FakeTiki {
    /// Starts one.
    ///
    /// # Errors
    /// The address can't be listened on, or the files for TLS can't be used.
    pub async fn start(options: Options) -> io::Result<Self> {
        let tls = options.tls.as_ref().map(acceptor).transpose()?;
        let shared = Arc::new(Shared::new(&options));
        let listener = TcpListener::bind(options.listen).await?;
        let fake = Self {
            address: listener.local_addr()?,
            base_path: options.base_path.trim_end_matches('/').to_owned(),
            tls,
            shared,
            running: Mutex::new(Running::default()),
        };
        fake.run(listener);
        Ok(fake)
    }

    fn run(&self, listener: TcpListener) {
        let running = Running::default();
        let (stop, tasks) = (running.stop.clone(), running.tasks.clone());
        let (tls, shared) = (self.tls.clone(), Arc::clone(&self.shared));
        running.tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((socket, _)) = accepted else {
                    // Too many files are open, most likely: some will be closed.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                // Before anything can end its task.
                if connection::prepare(&socket).is_err() {
                    continue;
                }
                let serve = connection::serve(socket, tls.clone(), Arc::clone(&shared));
                let stop = stop.clone();
                tasks.spawn(async move { stop.run_until_cancelled(serve).await });
            }
        });
        self.replace_running(running);
    }

    fn replace_running(&self, running: Running) -> Running {
        let mut place = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *place, running)
    }

    /// Closes the listener and resets all connections; returns when that is done. Books, orders and
    /// what was seen stay.
    pub async fn stop(&self) {
        let running = self.replace_running(Running::default());
        running.stop.cancel();
        running.tasks.close();
        running.tasks.wait().await;
    }

    /// Listens again on the same address, after [`stop`](Self::stop).
    ///
    /// # Errors
    /// Somebody else has the address.
    pub async fn start_again(&self) -> io::Result<()> {
        self.stop().await;
        self.run(TcpListener::bind(self.address).await?);
        Ok(())
    }

    /// Where it listens; the same after it was stopped and started again.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Scheme and address, `http://127.0.0.1:4711`.
    pub fn origin(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Where the API is, `http://127.0.0.1:4711/miniapp/tikivip`.
    pub fn base_url(&self) -> String {
        self.origin() + &self.base_path
    }

    /// Adds a transaction, or replaces it.
    pub fn put_transaction(&self, transaction: Transaction) {
        self.shared.put_transaction(transaction);
    }

    /// All transactions, by id.
    pub fn transactions(&self) -> Vec<Transaction> {
        self.shared.transactions()
    }

    /// A transaction and how often it was taken.
    pub fn transaction(&self, id: &str) -> Option<(Transaction, Taken)> {
        self.shared.transaction(id)
    }

    /// Orders a fault, after those that are ordered already.
    ///
    /// # Errors
    /// A sentence: it can't be done.
    pub fn order(&self, order: Order) -> Result<(), String> {
        order.check()?;
        self.shared.push_order(order);
        Ok(())
    }

    /// The orders with times left.
    pub fn orders(&self) -> Vec<Order> {
        self.shared.orders()
    }

    /// Forgets all orders.
    pub fn clear_orders(&self) {
        self.shared.clear_orders();
    }

    /// The listed calls with a number above this one.
    pub fn seen_after(&self, number: u64) -> Vec<Seen> {
        self.shared.seen_after(number).1
    }

    /// Totals.
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }

    /// Waits until this many calls were seen in all. They need not be answered by then.
    pub async fn wait_for_calls(&self, total: u64) {
        self.shared.wait_for_calls(total).await;
    }

    /// Makes a signed call.
    ///
    /// # Errors
    /// `InvalidInput`: it can't be made. Otherwise no answer came, within a minute.
    pub async fn call(&self, outgoing: &Outgoing) -> io::Result<Reply> {
        self.shared.call(outgoing).await
    }

    /// Makes a signed call and repeats it as Tiki does: after a 5xx, no answer in time or a broken
    /// connection, seven times at most.
    ///
    /// # Errors
    /// `InvalidInput`: it can't be made.
    pub async fn resend(&self, outgoing: &Outgoing, how: &Resending) -> io::Result<Vec<Try>> {
        self.shared.resend(outgoing, how).await
    }
}

fn acceptor((certificate, key): &(PathBuf, PathBuf)) -> io::Result<TlsAcceptor> {
    let unusable = |file: &PathBuf, error: &dyn std::fmt::Display| {
        io::Error::other(format!("{}: {error}", file.display()))
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(certificate, &error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| {
            config
                .with_no_client_auth()
                .with_single_cert(chain, private)
        })
        .map_err(|error| unusable(certificate, &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
