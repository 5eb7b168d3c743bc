//! Tiki's partner protocol, pure: no I/O, no clock, no logging.

use std::fmt;
use std::time::Duration;

use hmac::{Hmac, KeyInit};
use sha2::Sha256;

/// A family of signature headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// The Tini App platform's `X-Tiniapp-*`.
    TiniApp,
    /// Tiki VIP's `X-Tikivip-*`.
    TikiVip,
}

impl Family {
    /// Both families; [`Window`]s per family are in this order.
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

impl PayloadKind {
    /// Every kind.
    pub const ALL: [PayloadKind; 4] = [
        PayloadKind::TransactionIpn,
        PayloadKind::OrderIpn,
        PayloadKind::Refund,
        PayloadKind::Any,
    ];

    /// The word for it in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            PayloadKind::TransactionIpn => "transaction_ipn",
            PayloadKind::OrderIpn => "order_ipn",
            PayloadKind::Refund => "refund",
            PayloadKind::Any => "any",
        }
    }

    /// The kind with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
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

impl Pointer {
    /// Reads `/a/b`; the empty pointer is refused.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!(
                "`{text}` is no JSON pointer: it must start with `/`"
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which fields are a message's idempotency key and which of them move money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpec {}

impl KeySpec {
    /// The payload's own key and fingerprint; `any` has none.
    pub fn for_payload(kind: PayloadKind) -> Option<Self> {
        (kind != PayloadKind::Any).then_some(Self {})
    }

    /// A key and a fingerprint from the configuration.
    pub fn new(_key: Vec<Pointer>, _fingerprint: Vec<Pointer>) -> Self {
        Self {}
    }

    /// The key's fields as stable text, by which two definitions are compared.
    pub fn key_text(&self) -> String {
        String::new()
    }

    /// The fingerprint's fields as stable text.
    pub fn fingerprint_text(&self) -> String {
        String::new()
    }
}

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
