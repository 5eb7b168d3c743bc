//! The PROXY protocol, versions 1 and 2: the header by which a proxy says whose connection it passes on
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>; sections are its own).
//!
//! Read strictly, since the address in it is believed: what a sender may not write is [`Parsed::Invalid`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;
use std::str::FromStr;

/// Bytes of a header at most: of version 1 it is 107, of version 2 its fixed part and 1 KiB for addresses
/// and extensions, of which cloud providers send some 100 bytes.
pub const LONGEST: usize = FIXED + 1024;

/// Section 2.1: the longest line of version 1.
const LONGEST_LINE: usize = 107;
const LINE_BEGINS: &[u8] = b"PROXY ";

/// Section 2.2: what version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family and protocol, and the length of the rest.
const FIXED: usize = 16;

/// What the bytes at the start of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header; more is needed.
    Incomplete,
    /// No header, and nothing that comes can make it one.
    Invalid,
    /// A header. What follows is the connection's own.
    Header {
        /// Its bytes.
        length: usize,
        /// Whose connection it is; none: the proxy's own (a health check), or it can't say.
        source: Option<SocketAddr>,
    },
}

/// Looks for a header at the start of what came. It never looks beyond the header's end.
pub fn parse(bytes: &[u8]) -> Parsed {
    let (ControlFlow::Break(parsed) | ControlFlow::Continue(parsed)) = match bytes.first() {
        None => return Parsed::Incomplete,
        Some(b'P') => line(bytes),
        Some(_) => binary(bytes),
    };
    parsed
}

/// Broken off where something is missing or wrong.
type Step<T> = ControlFlow<Parsed, T>;

const INVALID: Parsed = Parsed::Invalid;

fn check(holds: bool) -> Step<()> {
    match holds {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(INVALID),
    }
}

fn valid<T>(part: Option<T>) -> Step<T> {
    part.map_or(ControlFlow::Break(INVALID), ControlFlow::Continue)
}

/// Whether the bytes begin as they must; broken off if they end before it can be told.
fn begins_with(bytes: &[u8], beginning: &[u8]) -> Step<()> {
    let there = bytes.len().min(beginning.len());
    check(bytes[..there] == beginning[..there])?;
    match there < beginning.len() {
        true => ControlFlow::Break(Parsed::Incomplete),
        false => ControlFlow::Continue(()),
    }
}

/// Version 1: `PROXY TCP4 192.0.2.7 198.51.100.1 51234 443`, ended by CR and LF.
fn line(bytes: &[u8]) -> Step<Parsed> {
    begins_with(bytes, LINE_BEGINS)?;
    let within = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = memchr::memmem::find(within, b"\r\n") else {
        return ControlFlow::Break(match within.len() {
            LONGEST_LINE => INVALID,
            _ => Parsed::Incomplete,
        });
    };
    let text = valid(std::str::from_utf8(&within[LINE_BEGINS.len()..end]).ok())?;
    let (family, rest) = match text.split_once(' ') {
        Some((family, rest)) => (family, Some(rest)),
        None => (text, None),
    };
    let source = match (family, rest) {
        // What follows, if anything does, counts for nothing.
        ("UNKNOWN", _) => None,
        ("TCP4", Some(rest)) => Some(line_source::<Ipv4Addr>(rest)?),
        ("TCP6", Some(rest)) => Some(line_source::<Ipv6Addr>(rest)?),
        _ => return ControlFlow::Break(INVALID),
    };
    ControlFlow::Continue(Parsed::Header {
        length: end + 2,
        source,
    })
}

/// Both addresses, then both ports, each behind one space.
fn line_source<A: FromStr + Into<IpAddr>>(text: &str) -> Step<SocketAddr> {
    let mut parts = text.split(' ');
    let mut next = || valid(parts.next());
    let source = valid(next()?.parse::<A>().ok())?;
    valid(next()?.parse::<A>().ok())?;
    let port = valid(decimal_port(next()?))?;
    valid(decimal_port(next()?))?;
    check(parts.next().is_none())?;
    ControlFlow::Continue(SocketAddr::new(source.into(), port))
}

/// 0 to 65535 as section 2.1 has it: digits alone, and no leading zero.
fn decimal_port(text: &str) -> Option<u16> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    (canonical && digits).then(|| text.parse().ok()).flatten()
}

/// Version 2.
fn binary(bytes: &[u8]) -> Step<Parsed> {
    begins_with(bytes, SIGNATURE)?;
    let missing = ControlFlow::Break(Parsed::Incomplete);
    // Each byte is judged as soon as it is there.
    let Some(version_and_command) = bytes.get(12) else {
        return missing;
    };
    let local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => return ControlFlow::Break(INVALID),
    };
    let Some(family) = bytes.get(13) else {
        return missing;
    };
    // Bytes of both addresses and ports. A header over TCP can't speak of datagrams. Of the proxy's own
    // connection the family counts for nothing.
    let addresses = match family {
        _ if local => 0,
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        _ => return ControlFlow::Break(INVALID),
    };
    let Some(length) = bytes.get(14..FIXED) else {
        return missing;
    };
    let rest = usize::from(u16::from_be_bytes([length[0], length[1]]));
    check(rest >= addresses && FIXED + rest <= LONGEST)?;
    let Some(block) = bytes.get(FIXED..FIXED + rest) else {
        return missing;
    };
    // What follows the addresses are extensions, of which none is needed.
    let source = match (family, &block[..addresses]) {
        (0x11, [a, b, c, d, _, _, _, _, high, low, ..]) => {
            let ip = Ipv4Addr::new(*a, *b, *c, *d);
            Some(SocketAddr::new(
                ip.into(),
                u16::from_be_bytes([*high, *low]),
            ))
        }
        (0x21, block) if !local => {
            let ip = valid(block.first_chunk::<16>())?;
            let port = valid(block.get(32..34))?;
            let port = u16::from_be_bytes([port[0], port[1]]);
            Some(SocketAddr::new(Ipv6Addr::from(*ip).into(), port))
        }
        _ => None,
    };
    ControlFlow::Continue(Parsed::Header {
        length: FIXED + rest,
        source,
    })
}

#[cfg(test)]
mod tests;
