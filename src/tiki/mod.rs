//! Tiki's partner protocol, pure: no I/O, no clock, no logging. Time, secrets and bytes are passed in.
//!
//! Everything here follows Tiki's public partner documentation. A signature covers
//! `timestamp "." client_key "." signed`, where `signed` is the request body as it was sent, or, for
//! GET, path and query; the HMAC-SHA256 is taken over the base64url form of that, without padding.
//!
//! # Checking a call
//!
//! The headers are read, the body's bytes are fed in as they arrive, and only then the signature is
//! compared. What comes after (is it recent, is it the payload that was expected, was it seen before)
//! is for the caller to ask in this order.
//!
//! ```
//! use std::time::{Duration, SystemTime};
//! use tikigate::tiki::{self, Family, Freshness, PayloadKind, SigningKey, Verifier, Window};
//!
//! let key = SigningKey::from_secret(b"EhjGcsUUuRSJTHiYPbW5fxzyaKEx0JuAZIKRQ4HnIfNFidB2kMg6locQbTIEz3Vf");
//! let mut headers = http::HeaderMap::new();
//! headers.insert("x-tikivip-timestamp", "1667980513000".parse()?);
//! headers.insert("x-tikivip-client-id", "RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W".parse()?);
//! headers.insert(
//!     "x-tikivip-signature",
//!     "d5429ab6c6d10bd54d68a7564775bcf17acbb95c625150324d8192317d2dc6ae".parse()?,
//! );
//! let body = br#"{"tiki_transaction_id":"221115TIKIVIP-235784371-1668488254","transaction_amount":100000,"transaction_id":"8A43B011-0EC9-4AA5-8D83-6FE7B2BCE4EC"}"#;
//!
//! // Who says so, and is it true?
//! let sent = tiki::read_headers(&headers, &Family::ALL)?;
//! let mut verifier = Verifier::new([&key], sent.timestamp, sent.client_id);
//! for chunk in body.chunks(64) {
//!     verifier.update(chunk);
//! }
//! assert_eq!(verifier.finish(&sent.mac), Some(0));
//!
//! // Is it recent?
//! let window = Window { max_age: Duration::from_secs(300), max_ahead: Duration::from_secs(60) };
//! let now = sent.timestamp.to_system_time() + Duration::from_secs(2);
//! assert_eq!(window.judge(sent.timestamp, now), Freshness::Fresh);
//!
//! // What does it say, and which message is it?
//! let message = tiki::parse_message(PayloadKind::TransactionIpn, body)?;
//! let spec = tiki::KeySpec::for_payload(PayloadKind::TransactionIpn).ok_or("no key")?;
//! assert_eq!(
//!     spec.extract(&message)?.key,
//!     "221115TIKIVIP-235784371-1668488254|8A43B011-0EC9-4AA5-8D83-6FE7B2BCE4EC|"
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Signing a call
//!
//! ```
//! use tikigate::tiki::{SigningKey, Timestamp};
//!
//! let key = SigningKey::from_secret(b"EhjGcsUUuRSJTHiYPbW5fxzyaKEx0JuAZIKRQ4HnIfNFidB2kMg6locQbTIEz3Vf");
//! let timestamp = Timestamp::parse(b"1620621619569").ok_or("13 digits")?;
//! let mac = key.sign(timestamp, "RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W", br#"{"id":123}"#);
//! assert_eq!(mac.to_hex(), "8ebd092b9df2cf90e8ccbcab2ba87ee14f2abb25eb8f18b4d7286d42adcd45c2");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod amount;
pub mod diagnosis;
pub mod envelope;
mod fields;
mod freshness;
mod headers;
mod json;
mod key;
mod payload;
mod pointer;
mod reply;
mod signature;
mod subject;

pub use amount::{Decimal, DecimalError};
pub use diagnosis::{Case, Cause, Diagnosis, Signed, diagnose};
pub use envelope::{SUCCESS_BODY, error_body, is_error_body, reads_one_way};
pub use fields::{fields, kept_fields};
pub use freshness::{Freshness, Timestamp, Window, age_seconds};
pub use headers::{Family, HeaderFault, SignatureHeaders, is_client_id, read_headers};
pub use key::{Identity, KeySpec};
pub use payload::{
    Content, Message, OrderIpn, PayloadFault, PayloadKind, Refund, TransactionIpn,
    TransactionStatus, parse_message,
};
pub use pointer::Pointer;
pub use reply::{IpnReply, ReplyCode, StatusReply, Transaction, read_ipn_reply, read_status_reply};
pub use signature::{Mac, SigningKey, Verifier};
pub use subject::{Subject, subject};
