//! Headers by hand, and the properties that hold for all of them.

use proptest::prelude::*;

use super::*;

fn header(length: usize, source: Option<&str>) -> Parsed {
    let source = source.map(|text| text.parse().unwrap());
    Parsed::Header { length, source }
}

fn binary_header(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([command, family]);
    bytes.extend((block.len() as u16).to_be_bytes());
    bytes.extend(block);
    bytes
}

const V4_BLOCK: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0xc8, 0x22, 1, 0xbb];

fn v6_block() -> Vec<u8> {
    let ends = ["2001:db8::7", "2001:db8::1"].map(|text| text.parse::<Ipv6Addr>().unwrap());
    [&ends[0].octets()[..], &ends[1].octets(), &V4_BLOCK[8..]].concat()
}

#[test]
fn lines_say_who_calls() {
    for (text, source) in [
        (
            "PROXY TCP4 192.0.2.7 198.51.100.1 51234 443\r\n",
            Some("192.0.2.7:51234"),
        ),
        (
            "PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n",
            Some("0.0.0.0:0"),
        ),
        (
            "PROXY TCP6 2001:db8::7 2001:db8::1 51234 443\r\n",
            Some("[2001:db8::7]:51234"),
        ),
        (
            "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
             ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
        ),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ffff::1 nonsense \x7f\n\r\n", None),
    ] {
        let expected = header(text.len(), source);
        assert_eq!(parse(text.as_bytes()), expected, "{text}");
        let followed = format!("{text}GET / HTTP/1.1\r\n\r\n");
        assert_eq!(parse(followed.as_bytes()), expected, "{text}");
    }
}

#[test]
fn a_line_is_read_to_the_letter() {
    for text in [
        "PROXY\tTCP4 192.0.2.7 198.51.100.1 1 2\r\n",
        "proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
        "PROXY tcp4 192.0.2.7 198.51.100.1 1 2\r\n",
        "PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
        "PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1\r\n",
        "PROXY TCP4\r\n",
        "PROXY \r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1 -2\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1 00\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1 0x2\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1 \u{0661}\r\n",
        "PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n",
        "PROXY TCP4 192.0.2 198.51.100.1 1 2\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.256 1 2\r\n",
        "PROXY TCP4 192.0.2.7 2001:db8::1 1 2\r\n",
        "PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
        "PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n",
        "PROXY TCP6 [2001:db8::7] 2001:db8::1 1 2\r\n",
        "PROXY TCP6 fe80::7%eth0 2001:db8::1 1 2\r\n",
        "PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
        "PROXY UNKNOWNX\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "\r\n\r\n\0\r\nQUIT\r",
        "\x16\x03\x01",
    ] {
        assert_eq!(parse(text.as_bytes()), Parsed::Invalid, "{text}");
    }
    // Without its CR it has not ended, and does not within its length.
    let bare = "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n";
    assert_eq!(parse(bare.as_bytes()), Parsed::Incomplete);
    let followed = format!("{bare}{}", "x".repeat(LONGEST_LINE));
    assert_eq!(parse(followed.as_bytes()), Parsed::Invalid);
}

#[test]
fn a_line_has_107_bytes_at_most() {
    let line = |fill| format!("PROXY UNKNOWN {}\r\n", "x".repeat(fill));
    let longest = line(LONGEST_LINE - "PROXY UNKNOWN \r\n".len());
    assert_eq!(parse(longest.as_bytes()), header(107, None));
    let over = line(longest.len() - "PROXY UNKNOWN \r\n".len() + 1);
    assert_eq!(parse(over.as_bytes()), Parsed::Invalid);
    assert_eq!(parse(&over.as_bytes()[..106]), Parsed::Incomplete);
    assert_eq!(parse(&over.as_bytes()[..107]), Parsed::Invalid);
}

#[test]
fn binary_headers_say_who_calls() {
    let v4 = binary_header(0x21, 0x11, &V4_BLOCK);
    assert_eq!(parse(&v4), header(28, Some("192.0.2.7:51234")));
    let v6 = binary_header(0x21, 0x21, &v6_block());
    assert_eq!(parse(&v6), header(52, Some("[2001:db8::7]:51234")));
    // Extensions are passed over.
    let extended = binary_header(0x21, 0x11, &[&V4_BLOCK[..], &[0xea, 0, 1, 7]].concat());
    assert_eq!(parse(&extended), header(32, Some("192.0.2.7:51234")));
    // The proxy's own connection, whatever else the header says; and unknown or unix callers.
    for (command, family, block) in [
        (0x20, 0x00, &[][..]),
        (0x20, 0x11, &V4_BLOCK),
        (0x20, 0x12, &[1, 2, 3]),
        (0x20, 0x21, &[]),
        (0x20, 0xff, &[]),
        (0x21, 0x00, &[]),
        (0x21, 0x00, &[1, 2, 3]),
        (0x21, 0x31, &[0; 216]),
    ] {
        let bytes = binary_header(command, family, block);
        assert_eq!(parse(&bytes), header(bytes.len(), None), "{bytes:?}");
    }
}

#[test]
fn a_binary_header_is_read_to_the_letter() {
    for (command, family, block) in [
        (0x11, 0x11, &V4_BLOCK[..]),
        (0x31, 0x11, &V4_BLOCK),
        (0x22, 0x11, &V4_BLOCK),
        (0x2f, 0x11, &V4_BLOCK),
        // Datagrams, and protocols that there aren't.
        (0x21, 0x12, &V4_BLOCK),
        (0x21, 0x22, &[0; 36]),
        (0x21, 0x32, &[0; 216]),
        (0x21, 0x10, &V4_BLOCK),
        (0x21, 0x01, &[]),
        (0x21, 0x41, &V4_BLOCK),
        // Shorter than its addresses.
        (0x21, 0x11, &V4_BLOCK[..11]),
        (0x21, 0x21, &[0; 35]),
        (0x21, 0x31, &[0; 215]),
    ] {
        let bytes = binary_header(command, family, block);
        assert_eq!(parse(&bytes), Parsed::Invalid, "{bytes:?}");
    }
    let longest = binary_header(0x21, 0x11, &[7; LONGEST - FIXED]);
    assert!(matches!(
        parse(&longest),
        Parsed::Header {
            length: LONGEST,
            ..
        }
    ));
    let over = binary_header(0x21, 0x11, &[7; LONGEST - FIXED + 1]);
    assert_eq!(
        parse(&over[..FIXED]),
        Parsed::Invalid,
        "told by its length alone"
    );
}

/// Any header that a sender may write, with the address in it.
fn headers() -> impl Strategy<Value = (Vec<u8>, Option<SocketAddr>)> {
    let v4 = (any::<[Ipv4Addr; 2]>(), any::<[u16; 2]>());
    let v6 = (any::<[Ipv6Addr; 2]>(), any::<[u16; 2]>());
    let extensions = prop::collection::vec(any::<u8>(), 0..900);
    let source = |ip: IpAddr, port| Some(SocketAddr::new(ip, port));
    prop_oneof![
        (v4.clone()).prop_map(move |([from, to], [port, own])| {
            let text = format!("PROXY TCP4 {from} {to} {port} {own}\r\n");
            (text.into_bytes(), source(from.into(), port))
        }),
        (v6.clone()).prop_map(move |([from, to], [port, own])| {
            let text = format!("PROXY TCP6 {from} {to} {port} {own}\r\n");
            (text.into_bytes(), source(from.into(), port))
        }),
        "PROXY UNKNOWN( [ -~]{0,80})?\r\n".prop_map(|text| (text.into_bytes(), None)),
        (v4, extensions.clone()).prop_map(move |(([from, to], [port, own]), more)| {
            let (port_bytes, own) = (port.to_be_bytes(), own.to_be_bytes());
            let block = [&from.octets()[..], &to.octets(), &port_bytes, &own, &more].concat();
            (binary_header(0x21, 0x11, &block), source(from.into(), port))
        }),
        (v6, extensions.clone()).prop_map(move |(([from, to], [port, own]), more)| {
            let (port_bytes, own) = (port.to_be_bytes(), own.to_be_bytes());
            let block = [&from.octets()[..], &to.octets(), &port_bytes, &own, &more].concat();
            (binary_header(0x21, 0x21, &block), source(from.into(), port))
        }),
        (any::<u8>(), extensions)
            .prop_map(|(family, more)| (binary_header(0x20, family, &more), None)),
    ]
}

proptest! {
    #[test]
    fn a_header_is_the_same_whatever_follows(
        (bytes, source) in headers(),
        follows in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let length = bytes.len();
        let expected = Parsed::Header { length, source };
        prop_assert_eq!(parse(&[bytes, follows].concat()), expected);
    }

    #[test]
    fn a_header_is_incomplete_to_its_last_byte((bytes, _) in headers()) {
        for end in 0..bytes.len() {
            prop_assert_eq!(parse(&bytes[..end]), Parsed::Incomplete);
        }
    }

    #[test]
    fn what_is_settled_stays_so(
        (mut bytes, _) in headers(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let mut settled = None;
        for end in 0..=bytes.len() {
            let parsed = parse(&bytes[..end]);
            if let Some(settled) = settled {
                prop_assert_eq!(parsed, settled);
            } else if parsed != Parsed::Incomplete {
                settled = Some(parsed);
            }
        }
    }

    #[test]
    fn nothing_is_waited_for_beyond_the_longest(bytes in prop::collection::vec(any::<u8>(), LONGEST)) {
        let line = [&b"PROXY "[..], &bytes].concat();
        let binary = [&SIGNATURE[..], &bytes].concat();
        for bytes in [bytes, line, binary] {
            match parse(&bytes) {
                Parsed::Incomplete => prop_assert!(false, "still waiting"),
                Parsed::Header { length, .. } => prop_assert!(length <= bytes.len()),
                Parsed::Invalid => {}
            }
        }
    }
}
