//! Requests with gaps that only somebody who knows the secret can fill.
//!
//! A fuzzer can't guess a MAC, and a file can't hold one for a body that differs each time: so both
//! write `{signature}` where it belongs. Anything else in braces, such as JSON, stays as it is.
//!
//! | gap | becomes |
//! |---|---|
//! | `{call}` | a refund's head up to its framing: request line, host, content type, signature |
//! | `{signature}` | the three signature header lines over the body |
//! | `{signature-of TARGET}` | the same over a target, as a GET has them |
//! | `{timestamp}`, `{client}`, `{mac}` | the values alone |
//! | `{body}`, `{n}`, `{x}` | a refund; its length in decimal and in hexadecimal |
//! | `{first}`, `{rest}`, `{rest-x}` | its first 16 bytes; what is left, and that one's length in hexadecimal |
//! | `{next}`, `{next-n}` | another refund as a whole signed request; its length |
//! | `{repeat COUNT TEXT}` | the text, so many times |

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tikigate::tiki::{Family, SigningKey, Timestamp};

/// The client key of the published examples.
pub const CLIENT: &str = "RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W";
/// Its secret here.
pub const SECRET: &str = "EhjGcsUUuRSJTHiYPbW5fxzyaKEx0JuAZIKRQ4HnIfNFidB2kMg6locQbTIEz3Vf";

/// What `{repeat ...}` may add up to; a fuzzer would ask for more.
const MOST_REPEATED: usize = 256 * 1024;

/// The length of `{first}`.
const FIRST: usize = 16;

/// When the messages are signed.
pub fn start_time() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_667_980_513_000)
}

/// Fills gaps, for one request; the bodies of another number are other refunds of the same length.
#[derive(Debug)]
pub struct Template {
    /// The refund that `{body}` stands for.
    pub body: String,
    /// The refund in `{next}`.
    pub next_body: String,
}

impl Template {
    /// The refunds with this number.
    pub fn new(number: u32) -> Self {
        Self {
            body: refund(&format!("case-{number:06}")),
            next_body: refund(&format!("next-{number:06}")),
        }
    }

    /// The bytes with every gap filled.
    pub fn fill(&self, bytes: &[u8]) -> Vec<u8> {
        let mut filled = Vec::with_capacity(bytes.len() + 1024);
        let mut repeated = 0;
        let mut rest = bytes;
        while let Some(open) = rest.iter().position(|byte| *byte == b'{') {
            filled.extend_from_slice(&rest[..open]);
            rest = &rest[open..];
            let close = rest.iter().position(|byte| *byte == b'}');
            let known = close.and_then(|close| {
                let name = std::str::from_utf8(&rest[1..close]).ok()?;
                let text = self.gap(name, &mut repeated)?;
                Some((text, close + 1))
            });
            match known {
                Some((text, length)) => {
                    filled.extend_from_slice(text.as_bytes());
                    rest = &rest[length..];
                }
                None => {
                    filled.push(b'{');
                    rest = &rest[1..];
                }
            }
        }
        filled.extend_from_slice(rest);
        filled
    }

    fn gap(&self, name: &str, repeated: &mut usize) -> Option<String> {
        let (word, argument) = name.split_once(' ').unwrap_or((name, ""));
        let body = self.body.as_str();
        Some(match word {
            "call" => call(body),
            "signature" => signature(body.as_bytes()),
            "signature-of" => signature(argument.as_bytes()),
            "timestamp" => timestamp().to_string(),
            "client" => CLIENT.to_owned(),
            "mac" => mac(body.as_bytes()),
            "body" => body.to_owned(),
            "n" => body.len().to_string(),
            "x" => format!("{:x}", body.len()),
            "first" => body[..FIRST].to_owned(),
            "rest" => body[FIRST..].to_owned(),
            "rest-x" => format!("{:x}", body.len() - FIRST),
            "next" => self.next(),
            "next-n" => self.next().len().to_string(),
            "repeat" => {
                let (count, text) = argument.split_once(' ')?;
                let count: usize = count.parse().ok()?;
                *repeated = repeated.saturating_add(count.checked_mul(text.len())?);
                if *repeated > MOST_REPEATED {
                    return None;
                }
                text.repeat(count)
            }
            _ => return None,
        })
    }

    fn next(&self) -> String {
        let body = &self.next_body;
        let (call, length) = (call(body), body.len());
        format!("{call}Content-Length: {length}\r\n\r\n{body}")
    }
}

fn call(body: &str) -> String {
    format!(
        "POST /tiki/refund HTTP/1.1\r\nHost: gate.test\r\nContent-Type: application/json\r\n{}",
        signature(body.as_bytes())
    )
}

/// Each of a payment of its own: two of one payment would be told to the backend.
fn refund(id: &str) -> String {
    format!(
        r#"{{"tiki_transaction_id":"t-{id}","transaction_amount":1000,"transaction_id":"p-{id}","reason":"r","request_id":"{id}"}}"#
    )
}

fn timestamp() -> Timestamp {
    Timestamp::from_system_time(start_time()).expect("a time of 13 digits")
}

fn mac(signed: &[u8]) -> String {
    let key = SigningKey::from_secret(SECRET.as_bytes());
    key.sign(timestamp(), CLIENT, signed).to_hex()
}

fn signature(signed: &[u8]) -> String {
    let family = Family::TikiVip;
    format!(
        "{}: {}\r\n{}: {CLIENT}\r\n{}: {}\r\n",
        family.timestamp_header(),
        timestamp(),
        family.client_id_header(),
        family.signature_header(),
        mac(signed),
    )
}
