//! The three headers that Tiki signs with.

use http::{HeaderMap, HeaderName, HeaderValue};
use tikigate::tiki::{Family, HeaderFault, SigningKey, Verifier, read_headers};

/// Lines as `name: value`; what can't be a header is left out, as the HTTP library would.
///
/// # Panics
/// When what was read is not what the one set of headers says, or a fault is not one.
pub fn signature_headers(data: &[u8]) {
    let headers = header_map(data);
    let both = read_headers(&headers, &Family::ALL);
    for family in Family::ALL {
        let one = read_headers(&headers, &[family]);
        match (&both, one) {
            (Ok(read), one) if read.family != family => {
                assert_eq!(one.err(), Some(HeaderFault::FamilyDisabled));
            }
            (Ok(_), one) => assert!(one.is_ok()),
            (Err(_), one) => assert!(one.is_err()),
        }
    }
    let Ok(read) = both else {
        return;
    };
    let other = match read.family {
        Family::TiniApp => Family::TikiVip,
        Family::TikiVip => Family::TiniApp,
    };
    for name in names(other) {
        assert!(!headers.contains_key(name), "{name} beside {}", read.family);
    }
    let [timestamp, client_id, signature] = names(read.family).map(|name| {
        let values: Vec<&[u8]> = headers
            .get_all(name)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        assert_eq!(values.len(), 1, "{name}");
        values[0]
    });
    assert_eq!(timestamp, read.timestamp.to_string().as_bytes());
    assert_eq!(client_id, read.client_id.as_bytes());
    assert_eq!(signature, read.mac.to_hex().as_bytes());

    // Nobody can have guessed the MAC of this key, and the right one is found.
    let key = SigningKey::from_secret(b"only for this");
    let mut verifier = Verifier::new([&key], read.timestamp, read.client_id);
    assert_eq!(verifier.clone().finish(&read.mac), None);
    let mac = key.sign(read.timestamp, read.client_id, b"");
    assert_eq!(verifier.finish(&mac), Some(0));
}

fn names(family: Family) -> [&'static HeaderName; 3] {
    [
        family.timestamp_header(),
        family.client_id_header(),
        family.signature_header(),
    ]
}

fn header_map(data: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(200) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}
