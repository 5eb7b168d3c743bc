//! Which message is it, and does it move the same money: idempotency key and fingerprint.

use std::borrow::Cow;

use sha2::{Digest as _, Sha256};

use super::amount::Decimal;
use super::json::Value;
use super::payload::{Message, PayloadFault, PayloadKind, check_id};
use super::pointer::Pointer;

/// Which fields are a message's idempotency key and which of them move money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpec {
    key: Vec<Part>,
    fingerprint: Vec<Part>,
}

/// One part of a key or fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// The places it may stand at; the first that has a value other than null counts.
    places: Vec<Pointer>,
    optional: bool,
}

/// What tells a message from others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Equal for copies of one message. Of several parts: each with `%` and `|` as `%25` and `%7C`,
    /// joined by `|`; a part that is not there is empty. Of one part: its text as it is.
    pub key: String,
    /// SHA-256 over the fields that move money, by value and not by spelling: `1000`, `1e3` and
    /// `1000.0` are one amount.
    pub fingerprint: [u8; 32],
}

impl KeySpec {
    /// The payload's own key and fingerprint; `any` has none.
    pub fn for_payload(kind: PayloadKind) -> Option<Self> {
        match kind {
            PayloadKind::TransactionIpn => {
                let id = || Part {
                    places: vec![
                        Pointer::of_name("tiki_transaction_id"),
                        Pointer::of_name("reference_transaction_id"),
                    ],
                    optional: false,
                };
                let status = || Part {
                    places: vec![Pointer::of_name("status")],
                    optional: true,
                };
                let key = vec![id(), Part::named("transaction_id"), status()];
                let mut fingerprint = key.clone();
                fingerprint.push(Part::named("transaction_amount"));
                Some(Self { key, fingerprint })
            }
            PayloadKind::OrderIpn => Some(Self {
                key: vec![Part::named("message_id")],
                fingerprint: ["id", "status", "grand_total"]
                    .map(|name| Part {
                        places: vec![Pointer::of_name("order").child(name)],
                        optional: false,
                    })
                    .into(),
            }),
            PayloadKind::Refund => Some(Self {
                key: vec![Part::named("request_id")],
                fingerprint: [
                    "tiki_transaction_id",
                    "transaction_id",
                    "transaction_amount",
                ]
                .map(Part::named)
                .into(),
            }),
            PayloadKind::Any => None,
        }
    }

    /// A key, of at least one part, and a fingerprint from the configuration.
    ///
    /// Every part of the key is required. A part of the fingerprint may be absent, and is then
    /// different from every value: refusing the message instead would lose a notice for good because
    /// of a field that the payload calls optional.
    pub fn new(key: Vec<Pointer>, fingerprint: Vec<Pointer>) -> Self {
        let parts = |pointers: Vec<Pointer>, optional| {
            pointers
                .into_iter()
                .map(|pointer| Part {
                    places: vec![pointer],
                    optional,
                })
                .collect()
        };
        Self {
            key: parts(key, false),
            fingerprint: parts(fingerprint, true),
        }
    }

    /// Reads a message's key and fingerprint.
    ///
    /// # Errors
    /// When a required part is not there, a part of the key is no id (1 to 256 bytes without control
    /// characters) or number, or a part of the fingerprint is an object or array.
    pub fn extract(&self, message: &Message<'_>) -> Result<Identity, PayloadFault> {
        let document = message.document();
        Ok(Identity {
            key: self.extract_key(document)?,
            fingerprint: self.extract_fingerprint(document)?,
        })
    }

    /// The key's fields as stable text, by which two definitions are compared.
    pub fn key_text(&self) -> String {
        text_of(&self.key)
    }

    /// The fingerprint's fields as stable text.
    pub fn fingerprint_text(&self) -> String {
        text_of(&self.fingerprint)
    }

    /// Every place that the key and the fingerprint are looked for at, in their order.
    pub(super) fn pointers(&self) -> impl Iterator<Item = &Pointer> {
        let parts = self.key.iter().chain(&self.fingerprint);
        parts.flat_map(|part| &part.places)
    }

    fn extract_key(&self, document: &Value<'_>) -> Result<String, PayloadFault> {
        if let [part] = self.key.as_slice() {
            return Ok(part.key_text(document)?.unwrap_or_default().into_owned());
        }
        let mut joined = String::with_capacity(96);
        for (index, part) in self.key.iter().enumerate() {
            if index > 0 {
                joined.push('|');
            }
            push_escaped(&mut joined, &part.key_text(document)?.unwrap_or_default());
        }
        Ok(joined)
    }

    /// Each part is tagged with its position and type and preceded by its length, so that no two
    /// lists of values are hashed alike.
    fn extract_fingerprint(&self, document: &Value<'_>) -> Result<[u8; 32], PayloadFault> {
        let mut hash = Sha256::new_with_prefix(b"tikigate fingerprint 1\0");
        for (position, part) in (0_u64..).zip(&self.fingerprint) {
            hash.update(position.to_be_bytes());
            let decimal;
            let (tag, bytes) = match part.find(document)? {
                None => (0, &[][..]),
                Some((_, Value::String(text))) => (1, text.as_bytes()),
                Some((pointer, Value::Number(text))) => {
                    decimal = read_decimal(pointer, text)?.to_string();
                    (2, decimal.as_bytes())
                }
                Some((_, Value::Bool(true))) => (3, &b"true"[..]),
                Some((_, Value::Bool(false))) => (3, &b"false"[..]),
                Some((pointer, _)) => {
                    let problem = "must be a string, a number, true or false";
                    return Err(PayloadFault::field(pointer.as_str(), problem));
                }
            };
            hash.update([tag]);
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        }
        Ok(hash.finalize().into())
    }
}

impl Part {
    fn named(name: &str) -> Self {
        Self {
            places: vec![Pointer::of_name(name)],
            optional: false,
        }
    }

    /// The value and where it stood; none if it is optional and not there.
    fn find<'s, 'v, 'b>(
        &'s self,
        document: &'v Value<'b>,
    ) -> Result<Option<(&'s Pointer, &'v Value<'b>)>, PayloadFault> {
        let found = self
            .places
            .iter()
            .filter_map(|pointer| Some((pointer, pointer.find(document)?)))
            .find(|(_, value)| !matches!(value, Value::Null));
        match (found, self.places.first()) {
            (None, Some(pointer)) if !self.optional => {
                Err(PayloadFault::field(pointer.as_str(), "is required"))
            }
            _ => Ok(found),
        }
    }

    fn key_text<'v>(&self, document: &'v Value<'_>) -> Result<Option<Cow<'v, str>>, PayloadFault> {
        let Some((pointer, value)) = self.find(document)? else {
            return Ok(None);
        };
        match value {
            Value::String(text) => {
                check_id(text).map_err(|problem| PayloadFault::field(pointer.as_str(), problem))?;
                Ok(Some(Cow::Borrowed(text)))
            }
            Value::Number(text) => Ok(Some(read_decimal(pointer, text)?.to_string().into())),
            _ => Err(PayloadFault::field(
                pointer.as_str(),
                "must be a string or a number",
            )),
        }
    }
}

/// Appends a part of a key, of which `|` then separates it from the next.
fn push_escaped(to: &mut String, part: &str) {
    let mut rest = part;
    while let Some(place) = memchr::memchr2(b'%', b'|', rest.as_bytes()) {
        let (plain, marked) = rest.split_at(place);
        to.push_str(plain);
        to.push_str(if marked.starts_with('%') {
            "%25"
        } else {
            "%7C"
        });
        rest = &marked[1..];
    }
    to.push_str(rest);
}

fn read_decimal(pointer: &Pointer, text: &str) -> Result<Decimal, PayloadFault> {
    Decimal::parse(text).map_err(|error| PayloadFault::field(pointer.as_str(), error.to_string()))
}

/// `/a|/b,/c`: alternatives and parts; these signs inside a pointer as `%XX`.
///
/// Whether a part may be absent is left out: for every message that two such definitions both take,
/// keys and fingerprints are the same.
fn text_of(parts: &[Part]) -> String {
    let part = |part: &Part| {
        let places: Vec<_> = part.places.iter().map(escape_pointer).collect();
        places.join("|")
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

fn escape_pointer(pointer: &Pointer) -> String {
    let mut escaped = String::with_capacity(pointer.as_str().len());
    for character in pointer.as_str().chars() {
        match character {
            '%' => escaped.push_str("%25"),
            '|' => escaped.push_str("%7C"),
            ',' => escaped.push_str("%2C"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::payload::parse_message;
    use super::*;

    fn identify(spec: &KeySpec, kind: PayloadKind, body: &str) -> Result<Identity, PayloadFault> {
        spec.extract(&parse_message(kind, body.as_bytes()).unwrap())
    }

    fn own(kind: PayloadKind, body: &str) -> Identity {
        identify(&KeySpec::for_payload(kind).unwrap(), kind, body).unwrap()
    }

    fn configured(key: &[&str], fingerprint: &[&str]) -> KeySpec {
        let pointers = |list: &[&str]| {
            list.iter()
                .map(|text| Pointer::parse(text).unwrap())
                .collect()
        };
        KeySpec::new(pointers(key), pointers(fingerprint))
    }

    fn refund(amount: &str) -> String {
        format!(
            r#"{{"tiki_transaction_id":"t-1","transaction_amount":{amount},"transaction_id":"p-1","reason":"x","request_id":"r|%1"}}"#
        )
    }

    #[test]
    fn a_refund_is_known_by_its_request_and_its_money() {
        let first = own(PayloadKind::Refund, &refund("1000"));
        assert_eq!(first.key, "r|%1");
        for same in ["1e3", "1000.0", "10000E-1"] {
            assert_eq!(own(PayloadKind::Refund, &refund(same)), first, "{same}");
        }
        let rewritten = r#"{ "request_id": "\u0072|%1", "reason": "another", "transaction_id": "p-1",
            "transaction_amount": 1000, "tiki_transaction_id": "t\u002d1", "new": 1 }"#;
        assert_eq!(own(PayloadKind::Refund, rewritten), first);

        for (from, to) in [("1000", "1000.01"), ("t-1", "t-2"), ("p-1", "p-2")] {
            let other = own(PayloadKind::Refund, &refund("1000").replace(from, to));
            assert_eq!(other.key, first.key);
            assert_ne!(other.fingerprint, first.fingerprint, "{to}");
        }
        let swapped = refund("1000")
            .replace("t-1", "x")
            .replace("p-1", "t-1")
            .replace("x", "p-1");
        assert_ne!(
            own(PayloadKind::Refund, &swapped).fingerprint,
            first.fingerprint
        );
    }

    #[test]
    fn a_transaction_is_known_by_either_name_of_its_id() {
        let kind = PayloadKind::TransactionIpn;
        let earlier =
            r#"{"tiki_transaction_id":"t|1","transaction_amount":5,"transaction_id":"p%1"}"#;
        let later = earlier.replace("tiki_", "reference_");
        let null = earlier.replace("{", r#"{"reference_transaction_id":null,"status":null,"#);
        assert_eq!(own(kind, earlier).key, "t%7C1|p%251|");
        assert_eq!(own(kind, &later), own(kind, earlier));
        assert_eq!(own(kind, &null), own(kind, earlier));

        let paid = earlier.replace("{", r#"{"status":"SUCCESS","#);
        assert_eq!(own(kind, &paid).key, "t%7C1|p%251|SUCCESS");
        assert_ne!(own(kind, &paid).fingerprint, own(kind, earlier).fingerprint);
        let more = earlier.replace(":5", ":6");
        assert_eq!(own(kind, &more).key, own(kind, earlier).key);
        assert_ne!(own(kind, &more).fingerprint, own(kind, earlier).fingerprint);
    }

    #[test]
    fn an_order_message_is_known_by_its_own_id() {
        let kind = PayloadKind::OrderIpn;
        let body = r#"{"message_id":"m-1","message_type":"notification","message_created_at":"2022-11-09T07:55:13Z","order":{"id":"1","status":"canceled","grand_total":0,"tiki_order_id":"2","tiki_order_code":"3"}}"#;
        assert_eq!(own(kind, body).key, "m-1");
        for (from, to) in [
            (":0,", ":1,"),
            ("canceled", "online_paid"),
            (":\"1\"", ":\"9\""),
        ] {
            let other = own(kind, &body.replace(from, to));
            assert_eq!(other.key, "m-1");
            assert_ne!(other.fingerprint, own(kind, body).fingerprint, "{to}");
        }
    }

    #[test]
    fn keys_of_several_parts_are_not_confused() {
        let spec = configured(&["/a", "/b"], &[]);
        let key = |body: &str| identify(&spec, PayloadKind::Any, body).unwrap().key;
        assert_eq!(key(r#"{"a":"x","b":1e3}"#), "x|1000");
        assert_ne!(key(r#"{"a":"x|y","b":"z"}"#), key(r#"{"a":"x","b":"y|z"}"#));
        assert_ne!(
            key(r#"{"a":"x%7Cy","b":"z"}"#),
            key(r#"{"a":"x|y","b":"z"}"#)
        );
    }

    #[test]
    fn parts_of_a_key_are_ids_or_numbers() {
        let spec = configured(&["/a/0"], &["/f"]);
        let problem = |body: &str| {
            identify(&spec, PayloadKind::Any, body)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(problem("{}"), "`/a/0` is required");
        assert_eq!(problem("[]"), "`/a/0` is required");
        assert_eq!(problem(r#"{"a":[null]}"#), "`/a/0` is required");
        assert_eq!(problem(r#"{"a":[""]}"#), "`/a/0` must not be empty");
        assert_eq!(
            problem(r#"{"a":["\u0000"]}"#),
            "`/a/0` must not have control characters"
        );
        for wrong in ["true", "{}", "[]"] {
            assert_eq!(
                problem(&format!(r#"{{"a":[{wrong}]}}"#)),
                "`/a/0` must be a string or a number"
            );
        }
        assert_eq!(
            problem(r#"{"a":[1e99]}"#),
            "`/a/0` must have an exponent from -40 to 40"
        );
        assert_eq!(
            problem(r#"{"a":[1],"f":{}}"#),
            "`/f` must be a string, a number, true or false"
        );
    }

    #[test]
    fn values_of_a_fingerprint_are_told_apart() {
        let spec = configured(&["/k"], &["/a", "/b"]);
        let bodies = [
            r#"{"k":1}"#,
            r#"{"k":1,"a":""}"#,
            r#"{"k":1,"b":""}"#,
            r#"{"k":1,"a":"1"}"#,
            r#"{"k":1,"a":1}"#,
            r#"{"k":1,"b":1}"#,
            r#"{"k":1,"a":true}"#,
            r#"{"k":1,"a":"true"}"#,
            r#"{"k":1,"a":"ab","b":"c"}"#,
            r#"{"k":1,"a":"a","b":"bc"}"#,
        ];
        let fingerprints: std::collections::HashSet<_> = bodies
            .iter()
            .map(|body| identify(&spec, PayloadKind::Any, body).unwrap().fingerprint)
            .collect();
        assert_eq!(fingerprints.len(), bodies.len());
        assert_eq!(
            identify(&spec, PayloadKind::Any, r#"{"k":1,"a":null}"#),
            identify(&spec, PayloadKind::Any, bodies[0])
        );
    }

    /// Records outlive releases: a change here makes every kept message look like a conflict.
    #[test]
    fn fingerprints_stay_what_they_were() {
        let identity = own(PayloadKind::Refund, &refund("1000"));
        assert_eq!(
            base16ct::lower::encode_string(&identity.fingerprint),
            "6d5c0cf9cca2132b201fda4aeba010c826ae021af74e3387e202496bcb503387"
        );
    }

    #[test]
    fn definitions_have_stable_texts() {
        let text = |kind| {
            let spec = KeySpec::for_payload(kind).unwrap();
            (spec.key_text(), spec.fingerprint_text())
        };
        let ipn = "/tiki_transaction_id|/reference_transaction_id,/transaction_id,/status";
        assert_eq!(
            text(PayloadKind::TransactionIpn),
            (ipn.to_owned(), format!("{ipn},/transaction_amount"))
        );
        assert_eq!(
            text(PayloadKind::OrderIpn),
            (
                "/message_id".to_owned(),
                "/order/id,/order/status,/order/grand_total".to_owned()
            )
        );
        assert_eq!(
            text(PayloadKind::Refund),
            (
                "/request_id".to_owned(),
                "/tiki_transaction_id,/transaction_id,/transaction_amount".to_owned()
            )
        );
        let written_out = configured(
            &["/request_id"],
            &[
                "/tiki_transaction_id",
                "/transaction_id",
                "/transaction_amount",
            ],
        );
        let same = (written_out.key_text(), written_out.fingerprint_text());
        assert_eq!(same, text(PayloadKind::Refund));
        assert_eq!(
            identify(&written_out, PayloadKind::Refund, &refund("7")).unwrap(),
            own(PayloadKind::Refund, &refund("7"))
        );
        assert_eq!(KeySpec::for_payload(PayloadKind::Any), None);
        assert_eq!(configured(&["/a,b|c%"], &[]).key_text(), "/a%2Cb%7Cc%25");
    }
}
