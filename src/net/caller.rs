//! Who a caller is, behind proxies that are trusted to say so, and whether its address is let in.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{ClientAddress, Peer};

/// Some networks, and perhaps the unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// IP networks; single addresses are networks of one.
    pub networks: Vec<ipnet::IpNet>,
    /// Whether callers through the unix socket are among them (the word `unix` in a list).
    pub unix: bool,
}

impl Networks {
    /// Whether there is nothing among them.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }

    /// Whether the address is among them.
    pub fn contain(&self, address: ClientAddress) -> bool {
        match address {
            ClientAddress::Ip(ip) => self.networks.iter().any(|network| network.contains(&ip)),
            ClientAddress::Local => self.unix,
        }
    }
}

/// Whose calls are let in by where they come from (`allow` and `deny`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressRules {
    /// Only these, unless it is empty: then all.
    pub allow: Networks,
    /// None of these, even if they are allowed.
    pub deny: Networks,
}

impl AddressRules {
    /// Whether every address is let in.
    pub fn let_all_in(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Whether the address is let in.
    pub fn permit(&self, address: ClientAddress) -> bool {
        !self.deny.contain(address) && (self.allow.is_empty() || self.allow.contain(address))
    }
}

/// The header in which trusted proxies say who called them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressHeader {
    /// `X-Forwarded-For`, as nearly all proxies write it.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Proxies that are believed about who called them (`server.trusted_proxies`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// Where they are.
    pub networks: Networks,
    /// In which header they say it. The other one is not looked at: a proxy passes on what its
    /// caller wrote there.
    pub header: AddressHeader,
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl TrustedProxies {
    /// Whether this end of a connection is one of them.
    pub fn contain(&self, address: ClientAddress) -> bool {
        self.networks.contain(address)
    }

    /// The caller's address: the peer's, or, behind trusted proxies, the right-most one in their
    /// header that is not itself a trusted proxy's.
    ///
    /// An entry that is no IP address ends the search: what stands left of it was written by
    /// somebody nobody vouches for, so the last believed address is taken.
    pub fn client_address(&self, peer: Peer, headers: &HeaderMap) -> ClientAddress {
        let peer = ClientAddress::from(peer);
        if !self.contain(peer) {
            return peer;
        }
        match self.header {
            AddressHeader::XForwardedFor => {
                let entries = from_the_right(headers, &X_FORWARDED_FOR);
                self.last_believed(peer, entries.map(address))
            }
            AddressHeader::Forwarded => {
                let entries = from_the_right(headers, &http::header::FORWARDED);
                self.last_believed(peer, entries.map(forwarded_for))
            }
        }
    }

    fn last_believed(
        &self,
        peer: ClientAddress,
        entries: impl Iterator<Item = Option<IpAddr>>,
    ) -> ClientAddress {
        let mut believed = peer;
        for entry in entries {
            let Some(ip) = entry else {
                return believed;
            };
            believed = ClientAddress::Ip(ip.to_canonical());
            if !self.contain(believed) {
                return believed;
            }
        }
        believed
    }
}

/// The entries of a header's lines, the last one first. A comma inside of a quoted string separates
/// too: what it cuts is no address then, and ends the search.
fn from_the_right<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'h [u8]> + use<'h> {
    let mut lines = headers.get_all(name).iter();
    std::iter::from_fn(move || lines.next_back())
        .map(HeaderValue::as_bytes)
        .flat_map(|line| line.rsplit(|byte| *byte == b','))
}

fn address(entry: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(entry).ok()?.trim().parse().ok()
}

/// The `for` of one element of `Forwarded`: `192.0.2.7`, `"192.0.2.7:80"`, `"[2001:db8::1]"` or
/// `"[2001:db8::1]:80"` (RFC 7239, section 6). `unknown` and obfuscated names are no address, and so
/// is an element with two of it.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(element).ok()?;
    let mut nodes = text.split(';').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then_some(value)
    });
    let (Some(node), None) = (nodes.next(), nodes.next()) else {
        return None;
    };
    let node = node.trim();
    let Some(quoted) = node.strip_prefix('"') else {
        // A token holds neither colons nor brackets.
        return node.parse::<std::net::Ipv4Addr>().ok().map(IpAddr::V4);
    };
    let node = quoted.strip_suffix('"')?;
    if let Some(rest) = node.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        let ip = host.parse::<std::net::Ipv6Addr>().ok()?;
        return (port.is_empty() || is_port(port)).then_some(IpAddr::V6(ip));
    }
    let (host, port) = node.split_once(':').map_or((node, None), |(host, port)| {
        (host, Some(format!(":{port}")))
    });
    let ip = host.parse::<std::net::Ipv4Addr>().ok()?;
    port.is_none_or(|port| is_port(&port))
        .then_some(IpAddr::V4(ip))
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| {
        !port.is_empty()
            && (port.bytes().all(|byte| byte.is_ascii_digit())
                // A port may be obfuscated; who called is clear all the same.
                || port.strip_prefix('_').is_some_and(|name| !name.is_empty()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(name: &'static str, lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_str(line).unwrap());
        }
        headers
    }

    fn forwarded(of: &[&str]) -> HeaderMap {
        lines("x-forwarded-for", of)
    }

    fn ip(text: &str) -> ClientAddress {
        ClientAddress::Ip(text.parse().unwrap())
    }

    fn tcp(text: &str) -> Peer {
        Peer::Tcp(text.parse().unwrap())
    }

    fn networks(of: &[&str]) -> Networks {
        Networks {
            networks: of.iter().map(|text| text.parse().unwrap()).collect(),
            unix: false,
        }
    }

    fn proxies() -> TrustedProxies {
        TrustedProxies {
            networks: networks(&["10.0.0.0/8", "fd00::/8"]),
            header: AddressHeader::XForwardedFor,
        }
    }

    #[test]
    fn nobody_else_is_believed() {
        let headers = forwarded(&["203.0.113.9"]);
        assert_eq!(
            proxies().client_address(tcp("198.51.100.1:5"), &headers),
            ip("198.51.100.1")
        );
        assert_eq!(
            proxies().client_address(Peer::Unix, &headers),
            ClientAddress::Local
        );
    }

    #[test]
    fn the_right_most_untrusted_entry_is_the_caller() {
        let peer = tcp("10.0.0.1:5");
        let spoofed = forwarded(&["1.1.1.1, 203.0.113.9", "10.2.2.2"]);
        assert_eq!(proxies().client_address(peer, &spoofed), ip("203.0.113.9"));
        assert_eq!(
            proxies().client_address(peer, &forwarded(&["203.0.113.9, nonsense"])),
            ip("10.0.0.1")
        );
        assert_eq!(
            proxies().client_address(peer, &forwarded(&[])),
            ip("10.0.0.1")
        );
        assert_eq!(
            proxies().client_address(tcp("[::ffff:10.0.0.1]:5"), &forwarded(&["203.0.113.9"])),
            ip("203.0.113.9")
        );
    }

    #[test]
    fn forwarded_is_read_from_the_right_too_and_only_the_chosen_header_counts() {
        let peer = tcp("10.0.0.1:5");
        let mut proxies = proxies();
        proxies.header = AddressHeader::Forwarded;
        for (written, seen) in [
            ("for=203.0.113.9", "203.0.113.9"),
            (
                "For=\"203.0.113.9:4711\";proto=https;by=10.0.0.1",
                "203.0.113.9",
            ),
            ("proto=http; for=203.0.113.9", "203.0.113.9"),
            ("for=1.1.1.1, for=203.0.113.9, for=10.2.2.2", "203.0.113.9"),
            ("for=\"[2001:db8::1]\"", "2001:db8::1"),
            ("for=\"[2001:db8::1]:_x\"", "2001:db8::1"),
            // No address: the last believed one stays.
            ("for=203.0.113.9, for=unknown", "10.0.0.1"),
            ("for=203.0.113.9, for=_hidden", "10.0.0.1"),
            ("for=203.0.113.9, proto=http", "10.0.0.1"),
            ("for=203.0.113.9;for=203.0.113.8", "10.0.0.1"),
            ("for=203.0.113.9:4711", "10.0.0.1"),
            ("for=2001:db8::1", "10.0.0.1"),
            ("for=\"203.0.113.9:\"", "10.0.0.1"),
            ("for=\"203.0.113.9", "10.0.0.1"),
            ("for=\"[2001:db8::1]x\"", "10.0.0.1"),
        ] {
            let headers = lines("forwarded", &[written]);
            assert_eq!(
                proxies.client_address(peer, &headers),
                ip(seen),
                "{written}"
            );
        }
        let other = forwarded(&["203.0.113.9"]);
        assert_eq!(proxies.client_address(peer, &other), ip("10.0.0.1"));
    }

    #[test]
    fn deny_wins_over_allow_and_an_empty_list_allows_all() {
        let rules = |allow: &[&str], deny: &[&str]| AddressRules {
            allow: networks(allow),
            deny: networks(deny),
        };
        assert!(rules(&[], &[]).permit(ip("192.0.2.1")));
        assert!(rules(&[], &[]).permit(ClientAddress::Local));
        assert!(rules(&["192.0.2.0/24"], &[]).permit(ip("192.0.2.1")));
        assert!(!rules(&["192.0.2.0/24"], &[]).permit(ip("192.0.3.1")));
        assert!(!rules(&["192.0.2.0/24"], &[]).permit(ClientAddress::Local));
        assert!(!rules(&["192.0.2.0/24"], &["192.0.2.1/32"]).permit(ip("192.0.2.1")));
        assert!(!rules(&[], &["2001:db8::/32"]).permit(ip("2001:db8::1")));
    }
}
