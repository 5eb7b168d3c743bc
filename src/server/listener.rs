//! Listening sockets: bound before any runtime runs, one per worker.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use socket2::{Domain, SockAddr, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use crate::net::{ListenAddress, Peer};

/// Connections that the system holds for one listener; it may have a lower limit of its own.
const BACKLOG: i32 = 4096;

/// Why an address can't be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("cannot listen on {address}: another process is listening there")]
    InUse {
        /// The address.
        address: ListenAddress,
    },
    /// A file that is no socket has the path.
    #[error("cannot listen on unix:{}: a file that is not a socket is in the way", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {source}{help}")]
    Failed {
        /// The address.
        address: ListenAddress,
        /// What the system said.
        source: io::Error,
        /// What to do, or empty.
        help: &'static str,
    },
}

/// One worker's listening socket. Bound and listening, but not yet part of a runtime.
#[derive(Debug)]
pub struct Listener {
    socket: StdSocket,
    address: ListenAddress,
    /// Somebody else holds the socket too: what waits in it is not lost when this one is closed.
    outlived: bool,
}

#[derive(Debug)]
pub(super) enum StdSocket {
    Tcp(std::net::TcpListener),
    /// With the file to remove at the end; none: it is somebody else's.
    Unix(std::os::unix::net::UnixListener, Option<Arc<SocketFile>>),
}

impl StdSocket {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone()?),
            Self::Unix(socket, file) => Self::Unix(socket.try_clone()?, file.clone()),
        })
    }
}

/// A listening socket of the current runtime.
#[derive(Debug)]
pub enum Socket {
    /// On a TCP port.
    Tcp(TcpListener),
    /// On a unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// Where it listens; the port is the one that the system chose if 0 was asked for.
    pub fn local_address(&self) -> ListenAddress {
        self.address.clone()
    }

    /// Whether the socket stays open when this listener is closed.
    pub(super) fn is_outlived(&self) -> bool {
        self.outlived
    }

    /// Makes it part of the current runtime. The file of a unix socket goes away with the last
    /// of its workers' handles.
    ///
    /// # Errors
    /// The socket can't be handed to the runtime.
    pub fn register(self) -> io::Result<(Socket, Option<Arc<SocketFile>>)> {
        match self.socket {
            StdSocket::Tcp(socket) => Ok((Socket::Tcp(TcpListener::from_std(socket)?), None)),
            StdSocket::Unix(socket, file) => {
                Ok((Socket::Unix(UnixListener::from_std(socket)?), file))
            }
        }
    }
}

/// Binds one address for `workers` (at least one) workers.
///
/// TCP: each gets a socket of its own, among which the system spreads connections
/// (`SO_REUSEPORT`); port 0 is chosen once for all. A unix socket is one that all share; a file
/// left behind by a process that is gone is removed first.
///
/// # Errors
/// The address is in use, not this machine's, not permitted, or its path is taken.
pub fn bind(address: &ListenAddress, workers: usize) -> Result<Vec<Listener>, BindError> {
    let workers = workers.max(1);
    match address {
        ListenAddress::Tcp(tcp) => bind_tcp(*tcp, workers).map_err(|error| failed(address, error)),
        ListenAddress::Unix(path) => {
            remove_stale(address, path)?;
            bind_unix(path, workers).map_err(|error| failed(address, error))
        }
    }
}

pub(super) fn failed(address: &ListenAddress, source: io::Error) -> BindError {
    let help = match (address, source.kind()) {
        (_, ErrorKind::AddrInUse) => {
            let address = address.clone();
            return BindError::InUse { address };
        }
        (ListenAddress::Tcp(tcp), ErrorKind::PermissionDenied) if tcp.port() < 1024 => {
            "; ports below 1024 are for programs with the capability CAP_NET_BIND_SERVICE: choose a higher one"
        }
        (ListenAddress::Unix(_), ErrorKind::PermissionDenied) => {
            "; the gate's user needs the right to write to the directory"
        }
        (ListenAddress::Unix(_), ErrorKind::NotFound) => "; the directory must exist",
        (ListenAddress::Tcp(_), ErrorKind::AddrNotAvailable) => {
            "; this machine has no such address: 0.0.0.0 stands for all that it has"
        }
        _ => "",
    };
    let address = address.clone();
    BindError::Failed {
        address,
        source,
        help,
    }
}

/// The first socket is bound without `SO_REUSEPORT`, so that a second process on the port is
/// told so instead of quietly taking half of the connections; it gets the option before it
/// listens, so that its siblings may join it.
fn bind_tcp(address: SocketAddr, workers: usize) -> io::Result<Vec<Listener>> {
    let first = tcp_socket(address)?;
    first.bind(&address.into())?;
    let address = first.local_addr()?.as_socket().unwrap_or(address);
    if workers > 1 {
        first.set_reuse_port(true)?;
    }
    first.listen(BACKLOG)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        let socket = tcp_socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        sockets.push(socket);
    }
    let listener = |socket: socket2::Socket| Listener {
        socket: StdSocket::Tcp(socket.into()),
        address: ListenAddress::Tcp(address),
        outlived: false,
    };
    Ok(sockets.into_iter().map(listener).collect())
}

fn tcp_socket(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // A restart need not wait for the last run's connections to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

fn bind_unix(path: &Path, workers: usize) -> io::Result<Vec<Listener>> {
    let socket = std::os::unix::net::UnixListener::bind(path)?;
    let file = Arc::new(SocketFile::of(path)?);
    socket.set_nonblocking(true)?;
    let address = ListenAddress::Unix(path.to_owned());
    shared(
        &StdSocket::Unix(socket, Some(file)),
        &address,
        workers,
        false,
    )
}

/// One socket that all workers accept from.
pub(super) fn shared(
    socket: &StdSocket,
    address: &ListenAddress,
    workers: usize,
    outlived: bool,
) -> io::Result<Vec<Listener>> {
    let listener = |socket| Listener {
        socket,
        address: address.clone(),
        outlived,
    };
    (0..workers)
        .map(|_| socket.try_clone().map(listener))
        .collect()
}

/// Removes a socket's file on which nobody answers.
fn remove_stale(address: &ListenAddress, path: &Path) -> Result<(), BindError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(address, error)),
    };
    if !metadata.file_type().is_socket() {
        let path = path.to_owned();
        return Err(BindError::NotASocket { path });
    }
    match try_connect(path) {
        // A queue that is full (WouldBlock) is somebody's, too.
        Ok(()) => Err(failed(address, ErrorKind::AddrInUse.into())),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(failed(address, ErrorKind::AddrInUse.into()))
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| failed(address, error))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(address, error)),
    }
}

fn try_connect(path: &Path) -> io::Result<()> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

/// A unix socket's file, removed at the end unless another process has put its own there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| metadata.dev() == self.device && metadata.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file is left behind");
        }
    }
}

/// A listening socket of either kind.
pub(super) trait Accept {
    /// Its connections.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Accepts the next connection.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Peer)>>;
}

impl Accept for Socket {
    /// One type for both: all that serves connections would be compiled twice.
    type Io = Either<TcpStream, UnixStream>;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Peer)>> {
        match self {
            Self::Tcp(socket) => socket.poll_accept(cx).map_ok(|(stream, address)| {
                // An answer is written at once; waiting for more to send would only delay it. Where it
                // can't be had (the caller is gone already), reading will say so.
                let _ = stream.set_nodelay(true);
                (Either::Left(stream), Peer::Tcp(address))
            }),
            Self::Unix(socket) => {
                (socket.poll_accept(cx)).map_ok(|(stream, _)| (Either::Right(stream), Peer::Unix))
            }
        }
    }
}

/// The next connection. Safe to drop: nothing accepted is lost.
pub(super) async fn next<A: Accept>(socket: &A) -> io::Result<(A::Io, Peer)> {
    std::future::poll_fn(|cx| socket.poll_accept(cx)).await
}

/// Whether a failed accept says only that one connection went away before it was taken.
pub(super) fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::Interrupted
    )
}
