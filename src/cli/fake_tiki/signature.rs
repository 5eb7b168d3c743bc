//! Signatures, made and checked by code of its own: a mistake of the gate's code must not pass here
//! because it is made twice.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The two families of header names.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// `X-Tikivip-...`.
    #[default]
    Tikivip,
    /// `X-Tiniapp-...`.
    Tiniapp,
}

impl Family {
    /// The names of timestamp, client id and signature.
    pub(super) fn names(self) -> [&'static str; 3] {
        match self {
            Self::Tikivip => [
                "X-Tikivip-Timestamp",
                "X-Tikivip-Client-Id",
                "X-Tikivip-Signature",
            ],
            Self::Tiniapp => [
                "X-Tiniapp-Timestamp",
                "X-Tiniapp-Client-Id",
                "X-Tiniapp-Signature",
            ],
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Tikivip => Self::Tiniapp,
            Self::Tiniapp => Self::Tikivip,
        }
    }
}

/// How old and how far ahead of the clock a timestamp may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) age: Duration,
    pub(super) ahead: Duration,
}

/// The clients and their secrets.
pub(super) struct Keys {
    family: Family,
    secrets: HashMap<String, Vec<Hmac<Sha256>>>,
}

/// A signature that was right. Two calls with the same one are the same message sent twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Verified {
    pub(super) client: String,
    pub(super) timestamp: u64,
    pub(super) mac: [u8; 32],
}

impl Keys {
    /// Several secrets of one client stand under the same id.
    pub(super) fn new<'a>(
        family: Family,
        clients: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Self {
        let mut secrets: HashMap<String, Vec<Hmac<Sha256>>> = HashMap::new();
        for (client, secret) in clients {
            // HMAC takes keys of any length, so that there is no error to tell.
            if let Ok(key) = Hmac::new_from_slice(secret) {
                secrets.entry(client.to_owned()).or_default().push(key);
            }
        }
        Self { family, secrets }
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }

    /// Checks the three headers over `signed`; the error is a sentence that says what is wrong.
    pub(super) fn verify(
        &self,
        headers: &[(String, String)],
        signed: &[u8],
        now: u64,
        window: Window,
    ) -> Result<Verified, String> {
        for name in self.family.other().names() {
            if all(headers, name).next().is_some() {
                return Err(format!("{name} is of the other family"));
            }
        }
        let [timestamp, client, signature] = self.family.names();
        let timestamp = read_timestamp(only(headers, timestamp)?)?;
        let client = only(headers, client)?;
        let signature = only(headers, signature)?;
        let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if signature.len() != 64 || !signature.bytes().all(lower_hex) {
            return Err("the signature is not 64 lower-case hex digits".to_owned());
        }
        let mut mac = [0; 32];
        base16ct::lower::decode(signature, &mut mac)
            .map_err(|_| "the signature is not hex".to_owned())?;
        let age = now.saturating_sub(timestamp);
        if u128::from(age) > window.age.as_millis() {
            return Err(format!("the timestamp is {age} ms old"));
        }
        let ahead = timestamp.saturating_sub(now);
        if u128::from(ahead) > window.ahead.as_millis() {
            return Err(format!("the timestamp is {ahead} ms ahead"));
        }
        let secrets = self
            .secrets
            .get(client)
            .ok_or_else(|| format!("the client {client:?} is unknown"))?;
        let encoded = encode(timestamp, client, signed);
        let is_right = |key: &Hmac<Sha256>| {
            let mut key = key.clone();
            key.update(encoded.as_bytes());
            key.verify_slice(&mac).is_ok()
        };
        if !secrets.iter().any(is_right) {
            return Err("the signature is not that of the message".to_owned());
        }
        Ok(Verified {
            client: client.to_owned(),
            timestamp,
            mac,
        })
    }

    /// The three headers of a call by `client`, signed with its first secret; none if it is unknown.
    pub(super) fn sign(
        &self,
        family: Family,
        client: &str,
        signed: &[u8],
        now: u64,
    ) -> Option<[(&'static str, String); 3]> {
        let mut key = self.secrets.get(client)?.first()?.clone();
        key.update(encode(now, client, signed).as_bytes());
        let mac = base16ct::lower::encode_string(&key.finalize().into_bytes());
        let [timestamp, id, signature] = family.names();
        Some([
            (timestamp, format!("{now:013}")),
            (id, client.to_owned()),
            (signature, mac),
        ])
    }
}

fn encode(timestamp: u64, client: &str, signed: &[u8]) -> String {
    let mut payload = format!("{timestamp:013}.{client}.").into_bytes();
    payload.extend_from_slice(signed);
    URL_SAFE_NO_PAD.encode(payload)
}

fn read_timestamp(text: &str) -> Result<u64, String> {
    if text.len() != 13 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("the timestamp is not 13 digits".to_owned());
    }
    text.parse()
        .map_err(|_| "the timestamp is not a number".to_owned())
}

/// The values of a header, whatever the spelling of its name.
pub(super) fn all<'h>(
    headers: &'h [(String, String)],
    name: &str,
) -> impl Iterator<Item = &'h str> {
    headers
        .iter()
        .filter(move |(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

/// The value of a header that has to be there exactly once.
pub(super) fn only<'h>(headers: &'h [(String, String)], name: &str) -> Result<&'h str, String> {
    let mut values = all(headers, name);
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value),
        (None, _) => Err(format!("there is no {name}")),
        (Some(_), Some(_)) => Err(format!("there is more than one {name}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const NOW: u64 = 1_667_980_513_000;
    const WINDOW: Window = Window {
        age: Duration::from_secs(300),
        ahead: Duration::from_secs(60),
    };

    fn vectors() -> Vec<Value> {
        let text = include_str!("../../../tests/data/signature.json");
        let vectors: Vec<Value> = serde_json::from_str(text).unwrap();
        assert!(vectors.len() >= 14);
        vectors
    }

    fn headers_of(family: Family, values: [&str; 3]) -> Vec<(String, String)> {
        let names = family.names().map(str::to_owned);
        names.into_iter().zip(values.map(str::to_owned)).collect()
    }

    #[test]
    fn every_vector_is_verified_and_signed_alike() {
        for vector in vectors() {
            let text = |name: &str| vector[name].as_str().unwrap();
            let (client, signed) = (text("client_id"), text("signed").as_bytes());
            let now: u64 = text("timestamp").parse().unwrap();
            for family in [Family::Tikivip, Family::Tiniapp] {
                let other = (client, &b"another secret"[..]);
                let keys = Keys::new(family, [other, (client, text("secret").as_bytes())]);
                let headers = headers_of(family, [text("timestamp"), client, text("signature")]);
                let verified = keys.verify(&headers, signed, now, WINDOW);
                assert_eq!(verified.unwrap().client, client, "{}", text("name"));

                let keys = Keys::new(family, [(client, text("secret").as_bytes())]);
                let made = keys.sign(family, client, signed, now).unwrap();
                assert_eq!(made[2].1, text("signature"), "{}", text("name"));
                assert_eq!(encode(now, client, signed), text("encoded_payload"));
            }
        }
    }

    fn keys() -> Keys {
        Keys::new(
            Family::Tikivip,
            [("c-1", &b"secret one"[..]), ("c-2", b"secret two")],
        )
    }

    fn signed_headers(client: &str, timestamp: u64, signed: &[u8]) -> Vec<(String, String)> {
        keys()
            .sign(Family::Tikivip, client, signed, timestamp)
            .unwrap()
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec()
    }

    #[test]
    fn any_other_byte_of_the_message_is_refused() {
        let body = br#"{"id":123}"#;
        let headers = signed_headers("c-1", NOW, body);
        keys().verify(&headers, body, NOW, WINDOW).unwrap();
        for place in 0..body.len() {
            let mut other = body.to_vec();
            other[place] ^= 1;
            let refused = keys().verify(&headers, &other, NOW, WINDOW);
            assert!(refused.unwrap_err().contains("not that of the message"));
        }
        for other in [&body[1..], &body[..9], &[&body[..], b" "].concat(), b""] {
            assert!(keys().verify(&headers, other, NOW, WINDOW).is_err());
        }
    }

    #[test]
    fn each_mutation_of_the_headers_is_refused() {
        let (body, good) = (b"{}", signed_headers("c-1", NOW, b"{}"));
        let with = |place: usize, value: &str| {
            let mut headers = good.clone();
            headers[place].1 = value.to_owned();
            keys().verify(&headers, body, NOW, WINDOW).unwrap_err()
        };
        for bad in [
            "166798051300",
            "01667980513000",
            "+667980513000",
            "1667980513.00",
            "",
            "166798051300\u{661}",
        ] {
            assert!(with(0, bad).contains("13 digits"), "{bad}");
        }
        assert!(with(0, "1667980513001").contains("not that of the message"));
        assert!(with(1, "c-2").contains("not that of the message"));
        assert!(with(1, "c-3").contains("unknown"));
        assert!(with(1, "C-1").contains("unknown"));
        let signature = good[2].1.clone();
        assert!(with(2, &signature.to_uppercase()).contains("lower-case"));
        assert!(with(2, &signature[1..]).contains("64"));
        assert!(with(2, &format!("{signature}0")).contains("64"));
        for place in 0..64 {
            let mut other = signature.clone();
            let changed = if &other[place..=place] == "0" {
                "1"
            } else {
                "0"
            };
            other.replace_range(place..=place, changed);
            assert!(with(2, &other).contains("not that of the message"));
        }
    }

    #[test]
    fn each_header_is_there_exactly_once_and_none_of_the_other_family() {
        let good = signed_headers("c-1", NOW, b"{}");
        let refusal =
            |headers: &[(String, String)]| keys().verify(headers, b"{}", NOW, WINDOW).unwrap_err();
        for place in 0..3 {
            let mut less = good.clone();
            less.remove(place);
            assert!(refusal(&less).contains("there is no"));
            let mut twice = good.clone();
            twice.push((good[place].0.to_uppercase(), good[place].1.clone()));
            assert!(refusal(&twice).contains("more than one"));
            let mut mixed = good.clone();
            mixed.push((Family::Tiniapp.names()[place].to_lowercase(), "1".into()));
            assert!(refusal(&mixed).contains("other family"));
        }
        let other = good
            .iter()
            .map(|(name, value)| (name.replace("Tikivip", "Tiniapp"), value.clone()))
            .collect::<Vec<_>>();
        assert!(refusal(&other).contains("other family"));
    }

    #[test]
    fn the_window_ends_where_it_says() {
        for (timestamp, fits) in [
            (NOW - 300_000, true),
            (NOW - 300_001, false),
            (NOW + 60_000, true),
            (NOW + 60_001, false),
        ] {
            let headers = signed_headers("c-1", timestamp, b"{}");
            let verified = keys().verify(&headers, b"{}", NOW, WINDOW);
            assert_eq!(verified.is_ok(), fits, "{timestamp}");
        }
    }
}
