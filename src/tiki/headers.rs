//! The three headers that carry a signature, in two families of names.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::freshness::Timestamp;
use super::signature::Mac;

/// A family of signature headers (docs/protocol.md, "Signature"). The recipe is the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// The Tini App platform's `X-Tiniapp-*`.
    TiniApp,
    /// Tiki VIP's `X-Tikivip-*`.
    TikiVip,
}

impl Family {
    /// Both families, in the order of [`Family::index`].
    pub const ALL: [Family; 2] = [Family::TiniApp, Family::TikiVip];

    /// The word for it in the configuration and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Family::TiniApp => "tiniapp",
            Family::TikiVip => "tikivip",
        }
    }

    /// The family with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.as_str() == word)
    }

    /// Its place in [`Family::ALL`], and in whatever is kept per family.
    pub fn index(self) -> usize {
        match self {
            Family::TiniApp => 0,
            Family::TikiVip => 1,
        }
    }

    /// The header with the time of signing.
    pub fn timestamp_header(self) -> &'static HeaderName {
        &NAMES[self.index()].timestamp
    }

    /// The header with the client key.
    pub fn client_id_header(self) -> &'static HeaderName {
        &NAMES[self.index()].client_id
    }

    /// The header with the signature.
    pub fn signature_header(self) -> &'static HeaderName {
        &NAMES[self.index()].signature
    }

    /// This very name, if it is one of the family's three headers.
    pub fn own_header(self, name: &HeaderName) -> Option<&'static HeaderName> {
        let (family, part) = part_of(name)?;
        (family == self).then(|| match part {
            Part::Timestamp => self.timestamp_header(),
            Part::ClientId => self.client_id_header(),
            Part::Signature => self.signature_header(),
        })
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

struct Names {
    timestamp: HeaderName,
    client_id: HeaderName,
    signature: HeaderName,
}

static NAMES: [Names; 2] = [
    Names {
        timestamp: HeaderName::from_static("x-tiniapp-timestamp"),
        client_id: HeaderName::from_static("x-tiniapp-client-id"),
        signature: HeaderName::from_static("x-tiniapp-signature"),
    },
    Names {
        timestamp: HeaderName::from_static("x-tikivip-timestamp"),
        client_id: HeaderName::from_static("x-tikivip-client-id"),
        signature: HeaderName::from_static("x-tikivip-signature"),
    },
];

/// What one of a family's headers holds.
#[derive(Clone, Copy)]
enum Part {
    Timestamp,
    ClientId,
    Signature,
}

/// Whose header this is. Written out, since comparing with these is a few instructions each, where looking up
/// a name in a head is a hundred.
fn part_of(name: &HeaderName) -> Option<(Family, Part)> {
    Some(match name.as_str() {
        "x-tiniapp-timestamp" => (Family::TiniApp, Part::Timestamp),
        "x-tiniapp-client-id" => (Family::TiniApp, Part::ClientId),
        "x-tiniapp-signature" => (Family::TiniApp, Part::Signature),
        "x-tikivip-timestamp" => (Family::TikiVip, Part::Timestamp),
        "x-tikivip-client-id" => (Family::TikiVip, Part::ClientId),
        "x-tikivip-signature" => (Family::TikiVip, Part::Signature),
        _ => return None,
    })
}

/// What a request's signature headers say, well-formed but not yet checked.
#[derive(Clone, Copy, Debug)]
pub struct SignatureHeaders<'h> {
    /// Whose names they have.
    pub family: Family,
    /// When it was signed, as the sender says.
    pub timestamp: Timestamp,
    /// Who signed, as the sender says.
    pub client_id: &'h str,
    /// The signature.
    pub mac: Mac,
}

/// Why a request has no usable set of signature headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HeaderFault {
    /// One of the three, or all, are not there.
    #[error("a signature header is missing")]
    MissingHeader,
    /// One of the three occurs more than once.
    #[error("a signature header occurs more than once")]
    DuplicateHeader,
    /// Headers of both families are there.
    #[error("signature headers of both families are present")]
    MixedFamilies,
    /// The family is not accepted here.
    #[error("this family of signature headers is not enabled")]
    FamilyDisabled,
    /// The client id can't be anybody's: see [`is_client_id`].
    #[error("the client id is not one that can be configured")]
    UnknownClient,
    /// The timestamp is not 13 digits.
    #[error("the timestamp is not 13 digits of milliseconds")]
    BadTimestamp,
    /// The signature is not 64 lower-case hex digits.
    #[error("the signature is not 64 lower-case hex digits")]
    BadSignature,
}

impl HeaderFault {
    /// The stable word for it in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            HeaderFault::MissingHeader => "missing_header",
            HeaderFault::DuplicateHeader => "duplicate_header",
            HeaderFault::MixedFamilies => "mixed_families",
            HeaderFault::FamilyDisabled => "family_disabled",
            HeaderFault::UnknownClient => "unknown_client",
            HeaderFault::BadTimestamp => "bad_timestamp",
            HeaderFault::BadSignature => "bad_signature",
        }
    }
}

/// Reads the one set of signature headers that a signed request carries.
///
/// Each of the three must occur exactly once: with several values, two readers of one request could
/// each believe another. One header of the second family is enough to refuse for the same reason.
///
/// # Errors
/// The first fault found: the families before the single headers, and those before their values.
pub fn read_headers<'h>(
    headers: &'h HeaderMap,
    enabled: &[Family],
) -> Result<SignatureHeaders<'h>, HeaderFault> {
    let (family, [timestamp, client_id, signature]) = found_in(headers)?;
    if !enabled.contains(&family) {
        return Err(HeaderFault::FamilyDisabled);
    }
    let timestamp = timestamp.single()?;
    let client_id = client_id.single()?;
    let signature = signature.single()?;
    Ok(SignatureHeaders {
        family,
        client_id: client_id
            .to_str()
            .ok()
            .filter(|id| is_client_id(id))
            .ok_or(HeaderFault::UnknownClient)?,
        timestamp: Timestamp::parse(timestamp.as_bytes()).ok_or(HeaderFault::BadTimestamp)?,
        mac: Mac::parse(signature.as_bytes()).ok_or(HeaderFault::BadSignature)?,
    })
}

/// Whether this can be a client key at all: 1 to 256 visible ASCII characters.
pub fn is_client_id(id: &str) -> bool {
    (1..=256).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The headers of the one family that is there: time, client and signature. In one pass over the head, which
/// is cheaper than to look each name up.
fn found_in(headers: &HeaderMap) -> Result<(Family, [Found<'_>; 3]), HeaderFault> {
    let mut found = [[Found::default(); 3]; 2];
    for (name, value) in headers {
        if let Some((family, part)) = part_of(name) {
            found[family.index()][part as usize].note(value);
        }
    }
    let [tiniapp, tikivip] = found;
    let is_there = |found: &[Found<'_>; 3]| found.iter().any(|header| header.count > 0);
    match (is_there(&tiniapp), is_there(&tikivip)) {
        (true, true) => Err(HeaderFault::MixedFamilies),
        (true, false) => Ok((Family::TiniApp, tiniapp)),
        (false, true) => Ok((Family::TikiVip, tikivip)),
        (false, false) => Err(HeaderFault::MissingHeader),
    }
}

/// How often a header is there, and its last value.
#[derive(Clone, Copy, Default)]
struct Found<'h> {
    value: Option<&'h HeaderValue>,
    count: usize,
}

impl<'h> Found<'h> {
    fn note(&mut self, value: &'h HeaderValue) {
        self.value = Some(value);
        self.count += 1;
    }

    fn single(self) -> Result<&'h HeaderValue, HeaderFault> {
        match (self.value, self.count) {
            (None, _) => Err(HeaderFault::MissingHeader),
            (Some(value), 1) => Ok(value),
            (Some(_), _) => Err(HeaderFault::DuplicateHeader),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: &str = "8ebd092b9df2cf90e8ccbcab2ba87ee14f2abb25eb8f18b4d7286d42adcd45c2";

    fn set(family: Family) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(
            family.timestamp_header(),
            HeaderValue::from_static("1620621619569"),
        );
        headers.insert(family.client_id_header(), HeaderValue::from_static("c"));
        headers.insert(family.signature_header(), HeaderValue::from_static(MAC));
        headers
    }

    fn fault(headers: &HeaderMap) -> HeaderFault {
        read_headers(headers, &Family::ALL).unwrap_err()
    }

    #[test]
    fn a_familys_headers_are_its_own() {
        for family in Family::ALL {
            for name in [
                family.timestamp_header(),
                family.client_id_header(),
                family.signature_header(),
            ] {
                assert_eq!(family.own_header(name), Some(name));
                for other in Family::ALL.into_iter().filter(|other| *other != family) {
                    assert_eq!(other.own_header(name), None);
                }
            }
            assert_eq!(family.own_header(&http::header::HOST), None);
        }
    }

    #[test]
    fn both_families_are_read() {
        for family in Family::ALL {
            assert_eq!(Family::ALL[family.index()], family);
            assert_eq!(Family::parse(family.as_str()), Some(family));
            let headers = set(family);
            let read = read_headers(&headers, &[family]).unwrap();
            assert_eq!(read.family, family);
            assert_eq!(read.client_id, "c");
            assert_eq!(read.timestamp.as_millis(), 1_620_621_619_569);
            assert_eq!(read.mac.to_hex(), MAC);
        }
        assert_eq!(Family::parse("TikiVip"), None);
    }

    #[test]
    fn each_header_must_be_there_exactly_once() {
        let family = Family::TiniApp;
        let names = [
            family.timestamp_header(),
            family.client_id_header(),
            family.signature_header(),
        ];
        assert_eq!(fault(&HeaderMap::new()), HeaderFault::MissingHeader);
        for name in names {
            let mut headers = set(family);
            headers.remove(name);
            assert_eq!(fault(&headers), HeaderFault::MissingHeader, "{name}");

            let mut headers = set(family);
            let value = headers[name].clone();
            headers.append(name, value);
            assert_eq!(fault(&headers), HeaderFault::DuplicateHeader, "{name}");
        }
    }

    #[test]
    fn one_header_of_the_other_family_is_refused() {
        let other = Family::TikiVip;
        for name in [
            other.timestamp_header(),
            other.client_id_header(),
            other.signature_header(),
        ] {
            let mut headers = set(Family::TiniApp);
            headers.insert(name, HeaderValue::from_static(""));
            assert_eq!(fault(&headers), HeaderFault::MixedFamilies, "{name}");
        }
    }

    #[test]
    fn a_family_that_is_off_is_refused() {
        let refused = read_headers(&set(Family::TiniApp), &[Family::TikiVip]).unwrap_err();
        assert_eq!(refused, HeaderFault::FamilyDisabled);
    }

    #[test]
    fn timestamps_in_other_units_or_spellings_are_refused() {
        for text in [
            "",
            "1620621619",
            "1620621619569000",
            "-620621619569",
            "+1620621619569",
            "-1620621619569",
            " 1620621619569",
            "1620621619569 ",
            "0620621619569",
            "16206216195.9",
            "1620621619e69",
            "99999999999999999999",
        ] {
            let mut headers = set(Family::TikiVip);
            headers.insert(
                Family::TikiVip.timestamp_header(),
                HeaderValue::from_static(text),
            );
            assert_eq!(fault(&headers), HeaderFault::BadTimestamp, "{text:?}");
        }
    }

    #[test]
    fn signatures_in_other_spellings_are_refused() {
        let upper = MAC.to_uppercase();
        let long = format!("{MAC}0");
        let quoted = format!("\"{MAC}\"");
        let no_hex = MAC.replace('8', "g");
        for text in ["", &upper, &MAC[1..], &long, &quoted, &no_hex, &MAC[..62]] {
            let mut headers = set(Family::TikiVip);
            headers.insert(
                Family::TikiVip.signature_header(),
                HeaderValue::from_str(text).unwrap(),
            );
            assert_eq!(fault(&headers), HeaderFault::BadSignature, "{text:?}");
        }
    }

    #[test]
    fn client_ids_are_short_and_visible() {
        let longest = "x".repeat(256);
        for (text, good) in [
            ("a.b.c", true),
            (longest.as_str(), true),
            ("", false),
            ("a b", false),
            ("a\tb", false),
            (&format!("{longest}x"), false),
            ("kh\u{e1}ch", false),
        ] {
            let mut headers = set(Family::TikiVip);
            headers.insert(
                Family::TikiVip.client_id_header(),
                HeaderValue::from_bytes(text.as_bytes()).unwrap(),
            );
            let read = read_headers(&headers, &Family::ALL);
            assert_eq!(read.map(|read| read.client_id).ok(), good.then_some(text));
        }
    }

    #[test]
    fn faults_have_the_words_of_the_log() {
        assert_eq!(HeaderFault::UnknownClient.as_str(), "unknown_client");
        assert_eq!(HeaderFault::MixedFamilies.as_str(), "mixed_families");
    }
}
