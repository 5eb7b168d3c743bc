//! A connection's first steps: whose it is, by its PROXY header, and its TLS handshake.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::Service;
use super::connection::{Closing, Connections};
use super::places::Place;
use super::policy::Policy;
use super::proxy_protocol::{self, Parsed};
use super::stream::Activity;
use super::wire::Wire;
use crate::config::ListenerTls;
use crate::metrics::{ConnectionRefused, TlsVersion};
use crate::net::{ClientAddress, LimitKey, Peer};

/// How long these steps may still take when the server closes.
const CLOSING_GRACE: Duration = Duration::from_secs(1);

/// How long a caller whose handshake failed is given to read why and close, and how much of what it still
/// sends is read meanwhile: closing a socket that holds unread bytes resets it, and the reset may
/// overtake the alert.
const ALERT_GRACE: Duration = Duration::from_secs(1);
const ALERT_BYTES: usize = 64 * 1024;

/// A connection that was accepted.
pub(super) struct Entrant {
    pub(super) peer: Peer,
    /// Whether it is a trusted proxy's.
    pub(super) trusted: bool,
    pub(super) place: Place,
    pub(super) policy: Arc<Policy>,
    pub(super) activity: Arc<Activity>,
    pub(super) closing: Arc<Closing>,
    pub(super) accepted: Instant,
}

/// Serves a connection to its end; its place is given back with the future.
pub(super) fn attend<I, S>(
    io: I,
    entrant: Entrant,
    connections: &Connections<S>,
) -> impl Future<Output = ()> + Send + use<I, S>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service,
{
    let connections = connections.clone();
    async move {
        let mut entrant = entrant;
        let ahead = if entrant.trusted && entrant.policy.proxy_protocol {
            // Boxed, as is TLS below: plain connections need not carry the room for it.
            let reading = Box::pin(async move {
                let mut io = io;
                let header = entrant.within(read_header(&mut io)).await;
                let ahead = entrant.introduce(header)?;
                Some((io, entrant, ahead))
            });
            match reading.await {
                Some(introduced) => introduced,
                None => return,
            }
        } else {
            (io, entrant, Bytes::new())
        };
        let (io, mut entrant, ahead) = ahead;
        let wire = Wire::new(io, ahead);
        let (stream, entrant) = match entrant.policy.tls.clone() {
            None => (Either::Left(wire), entrant),
            Some(tls) => {
                let shaking_hands = Box::pin(async move {
                    let wire = wire.noting_progress(Arc::clone(&entrant.activity));
                    let stream = entrant.shake_hands(wire, &tls).await?;
                    entrant.activity.entered();
                    Some((Either::Right(Box::new(stream)), entrant))
                });
                match shaking_hands.await {
                    Some(ready) => ready,
                    None => return,
                }
            }
        };
        connections.serve(stream, entrant).await;
    }
}

/// A PROXY header that was read.
struct Header {
    source: Option<std::net::SocketAddr>,
    /// What was read behind it.
    ahead: Bytes,
}

impl Entrant {
    /// Runs a step until it is done, its time is over, or the server has been closing for a moment.
    async fn within<T>(&self, step: impl Future<Output = T>) -> Option<T> {
        let deadline = match &self.policy.tls {
            Some(tls) => tls.handshake_timeout,
            None => self.policy.limits.header_timeout,
        };
        let over = async {
            tokio::select! {
                () = sleep_until(self.accepted + deadline) => {}
                () = async {
                    self.closing.has_begun().await;
                    sleep(CLOSING_GRACE).await;
                } => {}
            }
        };
        tokio::select! {
            biased;
            done = step => Some(done),
            () = over => None,
        }
    }

    fn refuse(&self, why: ConnectionRefused) {
        self.place.shared().refuse(why, self.peer);
    }

    /// Takes on the identity that the header announces, if that one is let in.
    fn introduce(&mut self, header: Option<Result<Header, io::Error>>) -> Option<Bytes> {
        let header = match header {
            Some(Ok(header)) => header,
            Some(Err(_)) => {
                self.refuse(ConnectionRefused::ProxyHeader);
                return None;
            }
            None => {
                self.refuse(ConnectionRefused::ProxyTimeout);
                return None;
            }
        };
        // Without a source it is the proxy's own connection, and stays exempt.
        let Some(source) = header.source else {
            return Some(header.ahead);
        };
        self.peer = Peer::Tcp(source);
        let address = ClientAddress::from(self.peer);
        self.trusted = self.policy.trusts(address);
        if self.trusted {
            return Some(header.ahead);
        }
        if !self.policy.addresses.permit(address) {
            self.refuse(ConnectionRefused::Address);
            return None;
        }
        if self.policy.fair_shares && self.place.charge(LimitKey::from(address)).is_err() {
            self.refuse(ConnectionRefused::Share);
            return None;
        }
        Some(header.ahead)
    }

    async fn shake_hands<I>(
        &mut self,
        wire: Wire<I>,
        tls: &ListenerTls,
    ) -> Option<TlsStream<Wire<I>>>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let accepting = TlsAcceptor::from(tls.server()).accept(wire);
        let Some(accepted) = self.within(accepting.into_fallible()).await else {
            self.refuse(ConnectionRefused::TlsTimeout);
            return None;
        };
        match accepted {
            Ok(stream) => {
                let version = match stream.get_ref().1.protocol_version() {
                    Some(rustls::ProtocolVersion::TLSv1_2) => TlsVersion::V1_2,
                    _ => TlsVersion::V1_3,
                };
                self.place.shared().handshake(version);
                Some(stream)
            }
            Err((error, wire)) => {
                tracing::debug!(peer = ?self.peer, %error, "TLS handshake failed");
                self.refuse(ConnectionRefused::TlsHandshake);
                let _ = timeout(ALERT_GRACE, see_off(wire)).await;
                None
            }
        }
    }
}

/// Reads until the header is whole.
async fn read_header<I: AsyncRead + Unpin>(io: &mut I) -> io::Result<Header> {
    let mut bytes = BytesMut::with_capacity(256);
    loop {
        match progress(&bytes)? {
            ControlFlow::Break((length, source)) => {
                let _ = bytes.split_to(length);
                let ahead = bytes.freeze();
                return Ok(Header { source, ahead });
            }
            // The reading is bounded: within its longest length a header is whole or none.
            ControlFlow::Continue(()) => {
                if io.read_buf(&mut bytes).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
}

type Found = (usize, Option<std::net::SocketAddr>);

fn progress(bytes: &[u8]) -> io::Result<ControlFlow<Found>> {
    match proxy_protocol::parse(bytes) {
        Parsed::Header { length, source } => Ok(ControlFlow::Break((length, source))),
        Parsed::Invalid => Err(io::ErrorKind::InvalidData.into()),
        Parsed::Incomplete => Ok(ControlFlow::Continue(())),
    }
}

async fn see_off<I: AsyncRead + AsyncWrite + Unpin>(mut wire: Wire<I>) -> io::Result<()> {
    wire.shutdown().await?;
    let mut scratch = vec![0; 4096];
    let mut left = ALERT_BYTES;
    while left > 0 {
        match wire.read(&mut scratch).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
