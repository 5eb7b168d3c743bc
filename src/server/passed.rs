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
         `admin.listen` or `outbound.listen` to this address, or take the socket's line (ListenStream=) away"
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
        shared(&socket, address, workers.max(1)).map_err(|error| failed(address, error))
    }

    /// Checks that each was taken: on one that nobody reads, calls would wait for ever.
    ///
    /// # Errors
    /// One is left.
    pub fn all_taken(&self) -> Result<(), PassedError> {
        self.0.first().map_or(Ok(()), |(address, _)| {
            Err(PassedError::Unwanted(address.clone()))
        })
    }
}

fn take(passed: &mut ListenFd, index: usize) -> Result<(ListenAddress, StdSocket), PassedError> {
    let number = index + 1;
    let failed = |source| PassedError::NoListener { number, source };
    if let Ok(Some(socket)) = passed.take_tcp_listener(index) {
        let address = ListenAddress::Tcp(socket.local_addr().map_err(failed)?);
        socket.set_nonblocking(true).map_err(failed)?;
        return Ok((address, StdSocket::Tcp(socket)));
    }
    let socket: UnixListener = passed
        .take_unix_listener(index)
        .map_err(failed)?
        .ok_or(PassedError::NoAddress { number })?;
    let address = socket.local_addr().map_err(failed)?;
    let path = address
        .as_pathname()
        .ok_or(PassedError::NoAddress { number })?;
    let address = ListenAddress::Unix(path.to_owned());
    socket.set_nonblocking(true).map_err(failed)?;
    // Its file is systemd's to remove.
    Ok((address, StdSocket::Unix(socket, None)))
}
