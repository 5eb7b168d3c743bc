//! The PROXY header that trusted proxies send.

use std::net::SocketAddr;

use tikigate::server::proxy_protocol::{LONGEST, Parsed, parse};

/// Prefixes beyond this length are not looked at one by one: a header is decided long before.
const PREFIXES: usize = LONGEST + 8;

/// The beginning of a connection.
///
/// # Panics
/// When what is decided of a prefix is not what is decided of the whole, a header takes more bytes than
/// it may, or announces somebody that its bytes do not name.
pub fn proxy_header(data: &[u8]) {
    let whole = parse(data);
    for length in 0..=data.len().min(PREFIXES) {
        match parse(&data[..length]) {
            // Nothing that comes later takes a word back.
            decided @ (Parsed::Invalid | Parsed::Header { .. }) => {
                assert_eq!(decided, whole, "by {length} bytes");
                if let Parsed::Header { length: end, .. } = decided {
                    assert_eq!(end, length, "a header is known as soon as it is whole");
                }
                break;
            }
            Parsed::Incomplete => {
                assert!(
                    length < LONGEST,
                    "no more than {LONGEST} bytes are waited for"
                );
                assert!(
                    length < data.len() || whole == Parsed::Incomplete,
                    "{whole:?}"
                );
            }
        }
    }
    let Parsed::Header { length, source } = whole else {
        return;
    };
    let header = &data[..length];
    let named = match header.starts_with(b"PROXY ") {
        true => source_of_line(header),
        false => source_of_binary(header),
    };
    assert_eq!(source, named);
}

/// Read again, in another way: by the words of the line.
fn source_of_line(header: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(header).expect("a line is ASCII");
    let words: Vec<&str> = text.trim_end().split(' ').collect();
    if words[1] == "UNKNOWN" || words[1].starts_with("UNKNOWN") {
        return None;
    }
    assert_eq!(words.len(), 6, "{text}");
    let address = match words[1] {
        "TCP4" => format!("{}:{}", words[2], words[4]),
        "TCP6" => format!("[{}]:{}", words[2], words[4]),
        family => panic!("{family}"),
    };
    Some(address.parse().expect("an address"))
}

/// The same by the bytes' places.
fn source_of_binary(header: &[u8]) -> Option<SocketAddr> {
    assert!(matches!(header[12], 0x20 | 0x21));
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    match (header[12], header[13]) {
        (0x21, 0x11) => {
            let ip: [u8; 4] = header[16..20].try_into().expect("four bytes");
            Some((ip, port(24)).into())
        }
        (0x21, 0x21) => {
            let ip: [u8; 16] = header[16..32].try_into().expect("sixteen bytes");
            Some((ip, port(48)).into())
        }
        _ => None,
    }
}
