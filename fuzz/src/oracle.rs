//! What every request must be that the gate sends to a backend.

use tikigate::tiki::{Family, Mac, SigningKey, Timestamp, Verifier};

use super::strict::Request;
use super::template::{CLIENT, SECRET};

/// The headers that the backend gets, and no others.
const KNOWN: &[&str] = &[
    "host",
    "content-length",
    "content-type",
    "connection",
    "accept",
    "traceparent",
    "tracestate",
    "x-tikivip-timestamp",
    "x-tikivip-client-id",
    "x-tikivip-signature",
    "x-tiniapp-timestamp",
    "x-tiniapp-client-id",
    "x-tiniapp-signature",
    "idempotency-key",
    "x-tikigate-attempt",
    "x-tikigate-client-id",
    "x-tikigate-partner-code",
    "x-request-id",
    "x-forwarded-for",
    "x-forwarded-proto",
];

/// The gate's headers alone, each once but for lists, and one set of signature headers whose MAC fits the body, or a
/// GET's target.
///
/// # Panics
/// When it is another one.
pub fn assert_signed(request: &Request) {
    for (name, _) in &request.headers {
        assert!(KNOWN.contains(&name.as_str()), "{name} went along");
        let may_repeat = matches!(name.as_str(), "accept" | "tracestate");
        assert!(may_repeat || request.all(name).len() == 1, "{name} twice");
    }
    let signed: &[u8] = match request.method.as_str() {
        "GET" => request.target.as_bytes(),
        _ => &request.body,
    };
    let family = Family::ALL
        .into_iter()
        .find(|family| request.one(family.signature_header().as_str()).is_some());
    let family = family.expect("a signature goes along");
    let header = |name: &http::HeaderName| request.one(name.as_str()).expect("exactly one");
    let timestamp = Timestamp::parse(header(family.timestamp_header()).as_bytes());
    let mac = Mac::parse(header(family.signature_header()).as_bytes());
    assert_eq!(header(family.client_id_header()), CLIENT);
    let key = SigningKey::from_secret(SECRET.as_bytes());
    let mut verifier = Verifier::new([&key], timestamp.expect("a timestamp"), CLIENT);
    verifier.update(signed);
    let right = verifier.finish(&mac.expect("a MAC")).is_some();
    assert!(right, "not signed: {} {}", request.method, request.target);
}
