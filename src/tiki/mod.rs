//! Tiki's partner protocol, pure: no I/O, no clock, no logging.

use std::fmt;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac as _};
use sha2::Sha256;

/// A family of signature headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// The Tini App platform's `X-Tiniapp-*`.
    TiniApp,
    /// Tiki VIP's `X-Tikivip-*`.
    TikiVip,
}

/// A message's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PayloadKind {
    /// A payment's state changed (Tiki VIP).
    TransactionIpn,
    /// An order's state changed (Tini App).
    OrderIpn,
    /// Money goes back.
    Refund,
    /// Anything signed.
    Any,
}

/// How old and how far ahead a timestamp may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Oldest.
    pub max_age: Duration,
    /// Furthest ahead.
    pub max_ahead: Duration,
}

/// A JSON pointer (RFC 6901).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(String);

/// Which fields are a message's idempotency key and which of them move money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpec {}

/// A secret's keyed HMAC state.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// Prepares the keyed state.
    pub fn from_secret(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).unwrap_or_else(|_| unreachable!()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
