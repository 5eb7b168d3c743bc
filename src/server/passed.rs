//! Listening sockets that whoever starts the gate opened for it: systemd's socket activation
//! (`sd_listen_fds(3)`). Connections wait in them while the gate is started anew.

use std::io;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;

use super::listener::{BindError, Listener, StdSocket, bind, failed, shared};
use crate::net::ListenAddress;

/// Sockets that no listener has taken yet.
#[derive(Debug, Default)]
pub struct PassedSockets(Vec<(ListenAddress, StdSocket)>);

/// Why passed sockets can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// One is nothing that connections come from.
    #[error(
        "socket {number} of those passed by systemd (LISTEN_FDS) is not a TCP or unix stream socket: {source}"
    )]
    NoListener {
        /// Its place, from 1.
        number: usize,
        /// What the system said.
        source: io::Error,
    },
    /// One is bound to nothing that a configuration could name.
    #[error("socket {number} of those passed by systemd (LISTEN_FDS) has no address")]
    NoAddress {
        /// Its place, from 1.
        number: usize,
    },
    /// No listener is configured for it.
    #[error(
        "systemd passes a socket on {0}, where no listener of the configuration is: set `server.listen`, \
         `admin.listen` or `outbound.listen` to exactly this address, or the socket's line (ListenStream=) to \
         theirs: a port alone, such as ListenStream=8080, is [::]:8080"
    )]
    Unwanted(ListenAddress),
}

impl PassedSockets {
    /// Those that this process was given, by `LISTEN_FDS` and `LISTEN_PID`. The variables are taken
    /// out of the environment, so call this before there are threads.
    ///
    /// # Errors
    /// One of them can't be a listener.
    pub fn from_environment() -> Result<Self, PassedError> {
        let mut passed = ListenFd::from_env();
        let sockets = (0..passed.len()).map(|index| take(&mut passed, index));
        sockets.collect::<Result<_, _>>().map(Self)
    }

    /// The one on this address, shared by all workers; where there is none, the address is bound
    /// ([`bind`](super::bind)).
    ///
    /// # Errors
    /// Those of binding.
    pub fn take_or_bind(
        &mut self,
        address: &ListenAddress,
        workers: usize,
    ) -> Result<Vec<Listener>, BindError> {
        let Some(place) = self.0.iter().position(|(of, _)| of == address) else {
            return bind(address, workers);
        };
        let (_, socket) = self.0.swap_remove(place);
        shared(&socket, address, workers.max(1), true).map_err(|error| failed(address, error))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that each is for one of these listeners: in one that nobody reads, calls would wait for
    /// ever.
    ///
    /// # Errors
    /// One is for none of them.
    pub fn all_are_for(&self, listeners: &[&ListenAddress]) -> Result<(), PassedError> {
        let unwanted = self
            .0
            .iter()
            .find(|(address, _)| !listeners.contains(&address));
        unwanted.map_or(Ok(()), |(address, _)| {
            Err(PassedError::Unwanted(address.clone()))
        })
    }
}

fn take(passed: &mut ListenFd, index: usize) -> Result<(ListenAddress, StdSocket), PassedError> {
    let number = index + 1;
    let failed = |source| PassedError::NoListener { number, source };
    let listens = |socket: socket2::SockRef<'_>| match socket.is_listener().map_err(failed)? {
        true => Ok(()),
        // `Accept=yes`, for one: a connection instead of what connections come from.
        false => Err(failed(io::Error::other(
            "it does not listen (Accept=no is needed)",
        ))),
    };
    if let Ok(Some(socket)) = passed.take_tcp_listener(index) {
        listens((&socket).into())?;
        let address = ListenAddress::Tcp(socket.local_addr().map_err(failed)?);
        socket.set_nonblocking(true).map_err(failed)?;
        return Ok((address, StdSocket::Tcp(socket)));
    }
    let socket: UnixListener = passed
        .take_unix_listener(index)
        .map_err(failed)?
        .ok_or(PassedError::NoAddress { number })?;
    listens((&socket).into())?;
    let address = socket.local_addr().map_err(failed)?;
    let path = address
        .as_pathname()
        .ok_or(PassedError::NoAddress { number })?;
    let address = ListenAddress::Unix(path.to_owned());
    socket.set_nonblocking(true).map_err(failed)?;
    // Its file is systemd's to remove.
    Ok((address, StdSocket::Unix(socket, None)))
}
