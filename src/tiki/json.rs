//! JSON read strictly: what two readers could understand differently is refused.
//!
//! Keys that occur twice (compared after unescaping), byte order marks, trailing bytes, lone
//! surrogates, invalid UTF-8 and more than 64 levels are errors at any depth. Numbers keep their
//! text, because a float would change `30 digits` and `35000.50`.
//!
//! The grammar is `serde_json`'s. Each level is read as raw values and those in turn, so that a byte
//! is looked at once per level above it: for the flat messages of this protocol twice, and for the
//! worst that can be sent 65 times, which is the bound that the limit of levels is for.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Objects and arrays inside one another, at most.
const MAX_LEVELS: usize = 64;

/// A JSON value that borrows from the body where it can.
#[derive(Clone, Debug)]
pub(super) enum Value<'b> {
    Null,
    Bool(bool),
    /// The number as it is written; its grammar has been checked.
    Number(&'b str),
    String(Cow<'b, str>),
    Array(Vec<Value<'b>>),
    /// In the order of the body, no key twice.
    Object(Vec<(Cow<'b, str>, Value<'b>)>),
}

impl<'b> Value<'b> {
    /// The member of an object; none if this is none or has none of this name.
    pub(super) fn member(&self, name: &str) -> Option<&Value<'b>> {
        let Self::Object(members) = self else {
            return None;
        };
        members
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }

    /// The element of an array by an index as RFC 6901 writes it.
    pub(super) fn element(&self, index: &str) -> Option<&Value<'b>> {
        let Self::Array(elements) = self else {
            return None;
        };
        let plain = index.bytes().all(|byte| byte.is_ascii_digit())
            && (index == "0" || !index.starts_with('0'));
        if !plain {
            return None;
        }
        elements.get(index.parse::<usize>().ok()?)
    }
}

/// Why a body is not JSON that everybody reads alike. Displays as a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum JsonError {
    #[error("the body is not valid UTF-8")]
    NotUtf8,
    #[error("the body starts with a byte order mark")]
    ByteOrderMark,
    #[error("the body is empty")]
    Empty,
    #[error("the body is not valid JSON")]
    Syntax,
    #[error("the body has more than {MAX_LEVELS} levels of nesting")]
    TooDeep,
    #[error("the key `{}` occurs twice in one object", Shown(.0))]
    DuplicateKey(String),
}

/// Reads a whole body.
pub(super) fn parse(body: &[u8]) -> Result<Value<'_>, JsonError> {
    let text = std::str::from_utf8(body).map_err(|_| JsonError::NotUtf8)?;
    if text.starts_with('\u{feff}') {
        return Err(JsonError::ByteOrderMark);
    }
    let trimmed = text.trim_matches([' ', '\t', '\r', '\n']);
    match trimmed.as_bytes().first() {
        None => Err(JsonError::Empty),
        Some(b'{' | b'[') => value(trimmed, 1),
        Some(_) => {
            let raw: &RawValue = read(trimmed)?;
            value(raw.get(), 1)
        }
    }
}

/// Reads one value that starts with the text's first byte. Only containers and strings are still
/// unchecked inside; `level` is the one that a container here would be on.
fn value(text: &str, level: usize) -> Result<Value<'_>, JsonError> {
    let first = text.as_bytes().first().copied().unwrap_or_default();
    if matches!(first, b'{' | b'[') && level > MAX_LEVELS {
        return Err(JsonError::TooDeep);
    }
    match first {
        b'{' => {
            let Members(members) = read(text)?;
            refuse_duplicates(&members)?;
            let members = members
                .into_iter()
                .map(|(key, raw)| Ok((key.0, value(raw.get(), level + 1)?)));
            members.collect::<Result<_, _>>().map(Value::Object)
        }
        b'[' => {
            let Elements(elements) = read(text)?;
            let elements = elements
                .into_iter()
                .map(|raw| value(raw.get(), level + 1))
                .collect::<Result<_, _>>();
            elements.map(Value::Array)
        }
        b'"' => read(text).map(|Text(string)| Value::String(string)),
        b'n' => Ok(Value::Null),
        b't' => Ok(Value::Bool(true)),
        b'f' => Ok(Value::Bool(false)),
        _ => Ok(Value::Number(text)),
    }
}

fn read<'b, T: Deserialize<'b>>(text: &'b str) -> Result<T, JsonError> {
    serde_json::from_str(text).map_err(|_| JsonError::Syntax)
}

fn refuse_duplicates(members: &[(Text<'_>, &RawValue)]) -> Result<(), JsonError> {
    let duplicate = if members.len() <= 16 {
        members
            .iter()
            .enumerate()
            .find(|(index, (key, _))| members[..*index].iter().any(|(other, _)| other.0 == key.0))
            .map(|(_, member)| member)
    } else {
        let mut seen = HashSet::with_capacity(members.len());
        members.iter().find(|(key, _)| !seen.insert(&*key.0))
    };
    match duplicate {
        Some((key, _)) => Err(JsonError::DuplicateKey(shorten(&key.0))),
        None => Ok(()),
    }
}

fn shorten(name: &str) -> String {
    name.chars().take(64).collect()
}

/// Text from the network with its control characters escaped.
pub(super) struct Shown<'a>(pub(super) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if character.is_control() {
                character.escape_unicode().fmt(f)?;
            } else {
                fmt::Write::write_char(f, character)?;
            }
        }
        Ok(())
    }
}

/// A string, borrowed unless something in it is escaped.
#[derive(Deserialize)]
struct Text<'b>(#[serde(borrow)] Cow<'b, str>);

/// An object's members, whatever their keys: a map type would drop the first of two equal ones.
struct Members<'b>(Vec<(Text<'b>, &'b RawValue)>);

impl<'b> Deserialize<'b> for Members<'b> {
    fn deserialize<D: Deserializer<'b>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'b> Visitor<'b> for Collect {
            type Value = Members<'b>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

struct Elements<'b>(Vec<&'b RawValue>);

impl<'b> Deserialize<'b> for Elements<'b> {
    fn deserialize<D: Deserializer<'b>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'b> Visitor<'b> for Collect {
            type Value = Elements<'b>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'b>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = seq.next_element()? {
                    elements.push(element);
                }
                Ok(Elements(elements))
            }
        }
        deserializer.deserialize_seq(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(body: &str) -> JsonError {
        parse(body.as_bytes()).unwrap_err()
    }

    /// The same value as `serde_json` sees it.
    fn convert(value: &Value<'_>) -> serde_json::Value {
        match value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(bool) => (*bool).into(),
            Value::Number(text) => serde_json::from_str(text).unwrap(),
            Value::String(text) => text.as_ref().into(),
            Value::Array(elements) => elements.iter().map(convert).collect(),
            Value::Object(members) => members
                .iter()
                .map(|(key, value)| (key.to_string(), convert(value)))
                .collect(),
        }
    }

    #[test]
    fn numbers_keep_their_text_and_plain_strings_are_borrowed() {
        let value = parse(br#" {"a":35000.50,"b":["x\/y","z"],"c":1e3} "#).unwrap();
        assert!(matches!(value.member("a"), Some(Value::Number("35000.50"))));
        assert!(matches!(value.member("c"), Some(Value::Number("1e3"))));
        let list = value.member("b").unwrap();
        assert!(
            matches!(list.element("0"), Some(Value::String(Cow::Owned(text))) if text == "x/y")
        );
        assert!(matches!(
            list.element("1"),
            Some(Value::String(Cow::Borrowed("z")))
        ));
        for index in ["2", "01", "-", "-1", "+1", "", "99999999999999999999"] {
            assert!(list.element(index).is_none(), "{index:?}");
        }
    }

    #[test]
    fn what_readers_differ_on_is_refused() {
        assert_eq!(error("\u{feff}{}"), JsonError::ByteOrderMark);
        assert_eq!(error(""), JsonError::Empty);
        assert_eq!(error(" \n"), JsonError::Empty);
        for body in [
            "{}x",
            "{}{}",
            "{} \0",
            "{\"a\":NaN}",
            "NaN",
            "{\"a\":Infinity}",
            "{\"a\":01}",
            "{\"a\":+1}",
            "{\"a\":.5}",
            "{\"a\":1.}",
            "{\"a\":0x1}",
            "{'a':1}",
            "{\"a\":1,}",
            "{\"a\" 1}",
            "{\"a\":1",
            "[1,]",
            "{\"a\":tru}",
            "// x\n{}",
            "\u{a0}{}",
            "{\"a\":\"\\ud800\"}",
            "{\"\\udc00\":1}",
            "{\"a\":[{\"b\":\"\\ud800\\u0041\"}]}",
            "{\"a\":\"\n\"}",
            "{\"a\":\"\\x41\"}",
        ] {
            assert_eq!(error(body), JsonError::Syntax, "{body:?}");
        }
        for body in [
            b"{\"a\":\"\xff\"}".as_slice(),
            b"\xed\xa0\x80",
            b"\xff\xfe{\0}\0",
        ] {
            assert_eq!(parse(body).unwrap_err(), JsonError::NotUtf8);
        }
    }

    #[test]
    fn no_key_occurs_twice_at_any_depth_and_however_it_is_spelled() {
        let duplicate = |name: &str| JsonError::DuplicateKey(name.to_owned());
        assert_eq!(
            error(r#"{"amount":1,"\u0061mount":2}"#),
            duplicate("amount")
        );
        assert_eq!(error(r#"{"a":[{"b":{"c":1,"c":1}}]}"#), duplicate("c"));
        let many: String = (0..5000).map(|n| format!("\"k{n}\":0,")).collect();
        assert_eq!(
            error(&format!("{{{many}\"\\u006b4321\":0}}")),
            duplicate("k4321")
        );
        assert!(parse(format!("{{{many}\"k\":0}}").as_bytes()).is_ok());
        assert!(parse(br#"{"a":{"x":1},"b":{"x":1},"A":0}"#).is_ok());
    }

    #[test]
    fn a_name_from_the_body_is_shown_short_and_tame() {
        let long = "x".repeat(1000);
        let shown = error(&format!("{{\"{long}\":1,\"{long}\":1}}")).to_string();
        assert!(shown.len() < 120, "{shown}");
        let shown = error(r#"{"a\n\u0085":1,"a\n\u0085":1}"#).to_string();
        assert_eq!(shown, "the key `a\\u{a}\\u{85}` occurs twice in one object");
    }

    #[test]
    fn levels_are_bounded() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(parse(nested(64).as_bytes()).is_ok());
        assert_eq!(error(&nested(65)), JsonError::TooDeep);
        assert_eq!(error(&nested(200)), JsonError::TooDeep);
        assert_eq!(error(&nested(32_000)), JsonError::TooDeep);
        let objects = r#"{"a":"#.repeat(200) + "1" + &"}".repeat(200);
        assert_eq!(error(&objects), JsonError::TooDeep);
        assert_eq!(error(&"[".repeat(65_536)), JsonError::Syntax);
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            ".*".prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map(".*", inner, 0..20)
                    .prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_strict_reading_agrees_with_the_usual_one(json in any_json(), pretty in any::<bool>()) {
            let text = if pretty {
                serde_json::to_string_pretty(&json).unwrap()
            } else {
                json.to_string()
            };
            let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(convert(&parse(text.as_bytes()).unwrap()), expected);
        }

        #[test]
        fn nothing_that_the_usual_reader_refuses_is_taken(body in "[\\[\\]{}\",:0-9a\\\\u.eE+\\- tn]{0,24}") {
            if parse(body.as_bytes()).is_ok() {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&body).is_ok() || body.contains(['e', 'E']));
            }
        }
    }
}
