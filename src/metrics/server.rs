//! What the listeners count before HTTP begins. One row for the process: a connection is opened once
//! for many requests.

use super::cells::Cells;
use super::exposition::{Exposition, Kind};

/// A listener of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerName {
    /// Where Tiki's calls arrive.
    Server,
    /// Where the backend's calls to Tiki arrive.
    Outbound,
    /// Probes, metrics and the API.
    Admin,
}

impl ListenerName {
    const ALL: [Self; 3] = [Self::Server, Self::Outbound, Self::Admin];

    /// Its section of the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Outbound => "outbound",
            Self::Admin => "admin",
        }
    }
}

/// Why a connection was closed before a request could come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionRefused {
    /// Its address is not let in (`allow`, `deny`).
    Address,
    /// Its address holds its share of connections already.
    Share,
    /// A trusted proxy's connection that doesn't begin with a PROXY header.
    ProxyHeader,
    /// The same, and the header wasn't there in time.
    ProxyTimeout,
    /// The two could not agree on TLS, or the caller's certificate is not one that counts.
    TlsHandshake,
    /// The handshake wasn't over in time.
    TlsTimeout,
}

impl ConnectionRefused {
    const ALL: [Self; 6] = [
        Self::Address,
        Self::Share,
        Self::ProxyHeader,
        Self::ProxyTimeout,
        Self::TlsHandshake,
        Self::TlsTimeout,
    ];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Share => "share",
            Self::ProxyHeader => "proxy_header",
            Self::ProxyTimeout => "proxy_timeout",
            Self::TlsHandshake => "tls_handshake",
            Self::TlsTimeout => "tls_timeout",
        }
    }
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2
    V1_2,
    /// 1.3
    V1_3,
}

impl TlsVersion {
    const ALL: [Self; 2] = [Self::V1_2, Self::V1_3];

    const fn as_str(self) -> &'static str {
        match self {
            Self::V1_2 => "1.2",
            Self::V1_3 => "1.3",
        }
    }
}

/// The counters of all listeners.
#[derive(Debug)]
pub struct ServerMetrics {
    listeners: [ListenerCells; ListenerName::ALL.len()],
}

#[derive(Debug)]
struct ListenerCells {
    refused: Cells,
    handshakes: Cells,
    displaced: Cells,
}

impl Default for ServerMetrics {
    fn default() -> Self {
        Self {
            listeners: ListenerName::ALL.map(|_| ListenerCells {
                refused: Cells::new(ConnectionRefused::ALL.len()),
                handshakes: Cells::new(TlsVersion::ALL.len()),
                displaced: Cells::new(1),
            }),
        }
    }
}

impl ServerMetrics {
    /// Counts a connection that was closed before a request could come.
    pub fn refused(&self, listener: ListenerName, why: ConnectionRefused) {
        self.listeners[listener as usize].refused.add(why as usize);
    }

    /// Counts a handshake that went well.
    pub fn handshake(&self, listener: ListenerName, version: TlsVersion) {
        let cells = &self.listeners[listener as usize];
        cells.handshakes.add(version as usize);
    }

    /// Counts a quiet connection that was closed to make room for another.
    pub fn displaced(&self, listener: ListenerName) {
        self.listeners[listener as usize].displaced.add(0);
    }

    pub(super) fn write(&self, out: &mut Exposition) {
        out.family(
            Kind::Counter,
            "tikigate_connections_refused_total",
            "Connections closed before a request could come, by listener and reason.",
        );
        for listener in ListenerName::ALL {
            for why in ConnectionRefused::ALL {
                let count = self.listeners[listener as usize].refused.read(why as usize);
                if count > 0 {
                    let labels = [("listener", listener.as_str()), ("reason", why.as_str())];
                    out.sample(&labels, count);
                }
            }
        }
        out.family(
            Kind::Counter,
            "tikigate_connections_displaced_total",
            "Quiet or slow connections closed to make room for others, by listener.",
        );
        for listener in [ListenerName::Server, ListenerName::Outbound] {
            let count = self.listeners[listener as usize].displaced.read(0);
            out.sample(&[("listener", listener.as_str())], count);
        }
        out.family(
            Kind::Counter,
            "tikigate_tls_handshakes_total",
            "TLS handshakes of callers that went well, by listener and version.",
        );
        for listener in ListenerName::ALL {
            for version in TlsVersion::ALL {
                let cells = &self.listeners[listener as usize].handshakes;
                let count = cells.read(version as usize);
                if count > 0 {
                    let labels = [
                        ("listener", listener.as_str()),
                        ("version", version.as_str()),
                    ];
                    out.sample(&labels, count);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_is_its_own_series() {
        let metrics = ServerMetrics::default();
        metrics.refused(ListenerName::Server, ConnectionRefused::Share);
        metrics.refused(ListenerName::Server, ConnectionRefused::Share);
        metrics.refused(ListenerName::Admin, ConnectionRefused::Address);
        metrics.handshake(ListenerName::Outbound, TlsVersion::V1_3);
        metrics.displaced(ListenerName::Server);
        let mut out = Exposition::default();
        metrics.write(&mut out);
        let text = out.finish();
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                r#"tikigate_connections_refused_total{listener="server",reason="share"} 2"#,
                r#"tikigate_connections_refused_total{listener="admin",reason="address"} 1"#,
                r#"tikigate_connections_displaced_total{listener="server"} 1"#,
                r#"tikigate_connections_displaced_total{listener="outbound"} 0"#,
                r#"tikigate_tls_handshakes_total{listener="outbound",version="1.3"} 1"#,
            ]
        );
    }
}
