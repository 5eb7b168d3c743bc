//! Connecting, as a step of its own: while it lasts nothing has been sent.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsConnector;

use super::stream::{Socket, TcpUnderTls};
use crate::config::{Endpoint, Trust};

/// Look-ups of one backend's name that run at once, per worker.
///
/// A look-up can't be cancelled and may block its thread for half a minute when the name server is
/// silent. Callers give up waiting long before, so without a bound their look-ups would pile up.
const LOOKUPS_AT_ONCE: usize = 4;

/// A unix listener with a full queue refuses at once; this is the pause before the next try.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(5);

/// No connection, and so nothing was sent.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", kind.as_str())]
pub struct ConnectFault {
    /// What stopped it.
    pub kind: ConnectFaultKind,
    /// The system's own words, for the log.
    pub source: io::Error,
}

/// What stopped a connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFaultKind {
    /// Nothing listens there.
    Refused,
    /// No connection within `connect_timeout`, or by the deadline.
    Timeout,
    /// The host name has no address.
    Resolve,
    /// The other end can't prove by its certificate that it is who was meant, or doesn't speak TLS.
    Tls,
    /// Anything else, such as an unreachable network or a lack of local ports.
    Other,
}

impl ConnectFaultKind {
    /// A stable word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "connect_refused",
            Self::Timeout => "connect_timeout",
            Self::Resolve => "connect_unresolved",
            Self::Tls => "connect_tls",
            Self::Other => "connect_failed",
        }
    }
}

impl fmt::Display for ConnectFaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ConnectFault {
    /// Whether this machine is to blame and not the other end: it has no descriptor or port left.
    pub fn is_our_own(&self) -> bool {
        // EMFILE, ENFILE, EADDRNOTAVAIL on Linux; the standard library has a kind for the last alone.
        self.source.kind() == io::ErrorKind::AddrNotAvailable
            || matches!(self.source.raw_os_error(), Some(23 | 24))
    }

    fn timeout() -> Self {
        Self {
            kind: ConnectFaultKind::Timeout,
            source: io::ErrorKind::TimedOut.into(),
        }
    }

    fn tls(source: io::Error) -> Self {
        Self {
            kind: ConnectFaultKind::Tls,
            source,
        }
    }

    fn unresolved(source: io::Error) -> Self {
        Self {
            kind: ConnectFaultKind::Resolve,
            source,
        }
    }
}

impl From<io::Error> for ConnectFault {
    fn from(source: io::Error) -> Self {
        let kind = match source.kind() {
            // `NotFound` is a unix socket whose file is not there.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => ConnectFaultKind::Refused,
            io::ErrorKind::TimedOut => ConnectFaultKind::Timeout,
            _ => ConnectFaultKind::Other,
        };
        Self { kind, source }
    }
}

/// An [`Endpoint`] made ready to connect to.
#[derive(Debug)]
pub(super) enum Target {
    Tcp(Host),
    Tls(Host, Trust, ServerName<'static>),
    /// The name can't be in a certificate: there is nothing to connect to.
    Nameless,
    Unix(PathBuf),
}

/// An address, or a name that has some.
#[derive(Debug)]
pub(super) enum Host {
    Address(SocketAddr),
    Name {
        host: Arc<str>,
        port: u16,
        lookups: Arc<Semaphore>,
    },
}

impl From<&Endpoint> for Target {
    fn from(endpoint: &Endpoint) -> Self {
        match endpoint {
            Endpoint::Tcp { host, port } => Self::Tcp(Host::new(host, *port)),
            Endpoint::Tls { host, port, trust } => match ServerName::try_from(host.clone()) {
                Ok(name) => Self::Tls(Host::new(host, *port), trust.clone(), name),
                Err(_) => Self::Nameless,
            },
            Endpoint::Unix(path) => Self::Unix(path.clone()),
        }
    }
}

impl Target {
    /// A connected socket, by `deadline`; looking up the name counts, and so does TLS.
    pub(super) async fn connect(&self, deadline: Instant) -> Result<Socket, ConnectFault> {
        match self {
            Self::Tcp(host) => host.connect(deadline).await.map(Socket::Tcp),
            Self::Tls(host, trust, name) => {
                let stream = TcpUnderTls::new(host.connect(deadline).await?);
                let connecting = TlsConnector::from(trust.client()).connect(name.clone(), stream);
                // Boxed, so that calls without TLS need not carry the room for it.
                let stream = Box::pin(timeout_at(deadline, connecting))
                    .await
                    .map_err(|_| ConnectFault::timeout())?
                    .map_err(ConnectFault::tls)?;
                Ok(Socket::Tls(Box::new(stream)))
            }
            Self::Nameless => {
                let fault = io::Error::other("no certificate can be for this host's name");
                Err(ConnectFault::tls(fault))
            }
            Self::Unix(path) => timeout_at(deadline, connect_unix(path))
                .await
                .map_err(|_| ConnectFault::timeout())?,
        }
    }
}

impl Host {
    fn new(host: &str, port: u16) -> Self {
        match host.parse::<IpAddr>() {
            Ok(ip) => Self::Address(SocketAddr::new(ip, port)),
            Err(_) => Self::Name {
                host: host.into(),
                port,
                lookups: Arc::new(Semaphore::new(LOOKUPS_AT_ONCE)),
            },
        }
    }

    async fn connect(&self, deadline: Instant) -> Result<TcpStream, ConnectFault> {
        match self {
            Self::Address(address) => connect_tcp(*address, deadline).await,
            Self::Name {
                host,
                port,
                lookups,
            } => {
                let addresses = timeout_at(deadline, look_up(host, *port, lookups))
                    .await
                    .map_err(|_| ConnectFault::timeout())?
                    .map_err(ConnectFault::unresolved)?;
                connect_any(&addresses, deadline).await
            }
        }
    }
}

async fn look_up(
    host: &Arc<str>,
    port: u16,
    lookups: &Arc<Semaphore>,
) -> io::Result<Vec<SocketAddr>> {
    let permit = Arc::clone(lookups)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let host = Arc::clone(host);
    tokio::task::spawn_blocking(move || {
        // Held until the look-up has really ended, whoever still waits for it.
        let _permit = permit;
        Ok((&*host, port).to_socket_addrs()?.collect())
    })
    .await
    .map_err(io::Error::other)?
}

/// Tries one address after the other. Each gets its share of the time that is left, so that one
/// that swallows packets doesn't use up the time of the next.
async fn connect_any(
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<TcpStream, ConnectFault> {
    let mut last = ConnectFault::unresolved(io::Error::new(
        io::ErrorKind::NotFound,
        "the name has no address",
    ));
    for (tried, address) in addresses.iter().enumerate() {
        let untried = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / untried;
        match connect_tcp(*address, now + share).await {
            Ok(stream) => return Ok(stream),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

async fn connect_tcp(address: SocketAddr, deadline: Instant) -> Result<TcpStream, ConnectFault> {
    let stream = timeout_at(deadline, TcpStream::connect(address))
        .await
        .map_err(|_| ConnectFault::timeout())??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn connect_unix(path: &Path) -> Result<Socket, ConnectFault> {
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(Socket::Unix(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sleep(FULL_QUEUE_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::net::TcpListener;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_tried() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let listening = listener.local_addr().unwrap();
        let refusing = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        assert!(connect_any(&[refusing, listening], soon()).await.is_ok());
        let fault = connect_any(&[refusing, refusing], soon())
            .await
            .unwrap_err();
        assert_eq!(fault.kind, ConnectFaultKind::Refused);
        let fault = connect_any(&[], soon()).await.unwrap_err();
        assert_eq!(fault.kind, ConnectFaultKind::Resolve);
    }

    #[tokio::test]
    async fn look_ups_that_hang_hold_back_further_ones() {
        let lookups = Arc::new(Semaphore::new(0));
        let target = Target::Tcp(Host::Name {
            host: "localhost".into(),
            port: 1,
            lookups: Arc::clone(&lookups),
        });
        let fault = target
            .connect(Instant::now() + Duration::from_millis(20))
            .await
            .unwrap_err();
        assert_eq!(fault.kind, ConnectFaultKind::Timeout);
        lookups.add_permits(1);
        let fault = target.connect(soon()).await.unwrap_err();
        assert_eq!(fault.kind, ConnectFaultKind::Refused);
        assert_eq!(lookups.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_unix_socket_that_is_not_there_refuses() {
        let target = Target::Unix("/nonexistent/tikigate.sock".into());
        let fault = target.connect(soon()).await.unwrap_err();
        assert_eq!(fault.kind, ConnectFaultKind::Refused);
    }
}
