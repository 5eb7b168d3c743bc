//! Addresses and connections: what the server learns of a caller before HTTP means anything.

mod caller;
mod pace;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

pub use caller::{AddressHeader, AddressRules, Networks, TrustedProxies};
pub use pace::BodyPace;

/// An HTTP request as it came off a connection, with what only the connection knows.
#[derive(Debug)]
pub struct Arrived<B> {
    /// The request as the HTTP library parsed it. In a box, since it goes through many hands.
    pub request: Box<http::Request<B>>,
    /// The other end of the connection.
    pub peer: Peer,
    /// When the first byte of this request was read; `answer_within` runs from here.
    pub first_byte: Instant,
}

/// The other end of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A TCP connection from this address.
    Tcp(SocketAddr),
    /// A process on this machine, through a unix socket.
    Unix,
}

/// Where to listen: `127.0.0.1:8080`, `[::1]:8080` or `unix:/run/tikigate.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A TCP address; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("a path must follow `unix:`".to_owned());
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            format!(
                "`{text}` is neither an address with a port, such as 127.0.0.1:8080, nor unix:/path"
            )
        })
    }
}

impl ListenAddress {
    /// The URL by which a program on the same machine reaches a listener here: one on all addresses
    /// is reached through loopback.
    pub fn local_url(&self) -> String {
        let Self::Tcp(address) = self else {
            return self.to_string();
        };
        let mut address = *address;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("http://{address}")
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The address that limits and logs use for a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientAddress {
    /// An IP address; IPv4-mapped IPv6 addresses are folded to IPv4.
    Ip(IpAddr),
    /// A local process whose address is unknown.
    Local,
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Local => f.write_str("unix"),
        }
    }
}

/// A caller's address as text, made once for the log and the backend without the formatter's detours.
#[derive(Clone, Copy)]
pub struct AddressText {
    bytes: [u8; 45],
    length: u8,
}

impl AddressText {
    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or("")
    }

    /// The text's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    fn push(&mut self, text: &[u8]) {
        let start = usize::from(self.length);
        // The longest address has 45 characters (RFC 4291, section 2.2, in full with an IPv4 part).
        let Some(room) = self.bytes.get_mut(start..start + text.len()) else {
            return;
        };
        room.copy_from_slice(text);
        self.length += text.len() as u8;
    }

    fn push_byte_as_decimal(&mut self, byte: u8) {
        let digits = [b'0' + byte / 100, b'0' + byte / 10 % 10, b'0' + byte % 10];
        let leading_zeros = usize::from(byte < 100) + usize::from(byte < 10);
        self.push(&digits[leading_zeros..]);
    }
}

impl fmt::Write for AddressText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

impl fmt::Debug for AddressText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ClientAddress {
    /// The address as text.
    pub fn text(&self) -> AddressText {
        let mut text = AddressText {
            bytes: [0; 45],
            length: 0,
        };
        match self {
            Self::Ip(IpAddr::V4(ip)) => {
                for (place, byte) in ip.octets().into_iter().enumerate() {
                    if place > 0 {
                        text.push(b".");
                    }
                    text.push_byte_as_decimal(byte);
                }
            }
            other => {
                // Writing to it can't fail.
                let _ = fmt::Write::write_fmt(&mut text, format_args!("{other}"));
            }
        }
        text
    }
}

impl From<Peer> for ClientAddress {
    fn from(peer: Peer) -> Self {
        match peer {
            Peer::Tcp(address) => Self::Ip(address.ip().to_canonical()),
            Peer::Unix => Self::Local,
        }
    }
}

/// What one limit counts as one caller: an IPv4 address, or an IPv6 /64, which one host owns whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitKey {
    /// One IPv4 address.
    V4(u32),
    /// The upper 64 bits of an IPv6 address.
    V6(u64),
    /// All local processes together.
    Local,
}

impl From<ClientAddress> for LimitKey {
    fn from(address: ClientAddress) -> Self {
        match address {
            ClientAddress::Ip(IpAddr::V4(ip)) => Self::V4(u32::from(ip)),
            ClientAddress::Ip(IpAddr::V6(ip)) => Self::V6(upper_half(ip)),
            ClientAddress::Local => Self::Local,
        }
    }
}

fn upper_half(ip: Ipv6Addr) -> u64 {
    (u128::from(ip) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> ClientAddress {
        ClientAddress::Ip(text.parse().unwrap())
    }

    #[test]
    fn an_addresss_text_is_its_display() {
        for text in [
            "0.0.0.0",
            "1.20.255.100",
            "255.255.255.255",
            "::1",
            "2001:db8:1234:5678:9abc:def0:1234:5678",
        ] {
            assert_eq!(ip(text).text().as_str(), text);
        }
        assert_eq!(ClientAddress::Local.text().as_str(), "unix");
    }

    #[test]
    fn one_ipv6_host_is_one_caller() {
        let key = |text: &str| LimitKey::from(ip(text));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:2"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }

    #[test]
    fn a_listener_on_all_addresses_is_reached_through_loopback() {
        let url = |text: &str| text.parse::<ListenAddress>().unwrap().local_url();
        assert_eq!(url("0.0.0.0:9901"), "http://127.0.0.1:9901");
        assert_eq!(url("[::]:9901"), "http://[::1]:9901");
        assert_eq!(url("10.0.0.7:9901"), "http://10.0.0.7:9901");
        assert_eq!(url("unix:/run/x.sock"), "unix:/run/x.sock");
    }

    #[test]
    fn listen_addresses_are_read_strictly() {
        assert_eq!(
            "unix:/run/x.sock".parse(),
            Ok(ListenAddress::Unix("/run/x.sock".into()))
        );
        assert!("unix:".parse::<ListenAddress>().is_err());
        assert!("localhost:80".parse::<ListenAddress>().is_err());
        assert!("127.0.0.1:0".parse::<ListenAddress>().is_ok());
    }
}
