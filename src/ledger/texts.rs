//! How stores write times, headers, fields and rules into columns that people can read.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue};

use super::{Fields, SubjectRule};

/// Microseconds since 1970; times that no calendar holds come to its ends.
pub(in crate::ledger) fn micros(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |by| -by),
    }
}

/// How many microseconds a time is long, without the rest.
pub(in crate::ledger) fn micros_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The time of so many microseconds since 1970.
pub(in crate::ledger) fn time_of(micros: i64) -> SystemTime {
    let by = Duration::from_micros(micros.unsigned_abs());
    let moved = if micros >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(by)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(by)
    };
    moved.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A time as it comes back from the file.
pub(in crate::ledger) fn whole_micros(time: SystemTime) -> SystemTime {
    time_of(micros(time))
}

/// The only headers of most answers.
const USUAL_HEADERS: &str = r#"[["content-type","application/json"]]"#;

/// `[["content-type","application/json"]]`; a value that is no visible ASCII as `{"hex": ...}`.
pub(in crate::ledger) fn headers_text(headers: &[(HeaderName, HeaderValue)]) -> Cow<'static, str> {
    if let [(name, value)] = headers
        && name == http::header::CONTENT_TYPE
        && value == "application/json"
    {
        return Cow::Borrowed(USUAL_HEADERS);
    }
    let mut text = String::with_capacity(64 * headers.len() + 2);
    text.push('[');
    for (name, value) in headers {
        if text.len() > 1 {
            text.push(',');
        }
        text.push('[');
        push_json(&mut text, name.as_str());
        text.push(',');
        if let Ok(value) = value.to_str() {
            push_json(&mut text, value);
        } else {
            text.push_str(r#"{"hex":"#);
            push_json(&mut text, &base16ct::lower::encode_string(value.as_bytes()));
            text.push('}');
        }
        text.push(']');
    }
    text.push(']');
    Cow::Owned(text)
}

pub(in crate::ledger) fn headers_of(text: &str) -> Option<Vec<(HeaderName, HeaderValue)>> {
    if text == USUAL_HEADERS {
        let json = HeaderValue::from_static("application/json");
        return Some(vec![(http::header::CONTENT_TYPE, json)]);
    }
    let pairs: Vec<(String, serde_json::Value)> = serde_json::from_str(text).ok()?;
    let read = |(name, value): (String, serde_json::Value)| {
        let bytes = match &value {
            serde_json::Value::String(text) => text.as_bytes().to_vec(),
            other => base16ct::lower::decode_vec(other.get("hex")?.as_str()?).ok()?,
        };
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(&bytes).ok()?))
    };
    pairs.into_iter().map(read).collect()
}

/// A JSON object; its order is the fields'.
pub(in crate::ledger) fn fields_text(fields: &Fields) -> Option<String> {
    if fields.0.is_empty() {
        return None;
    }
    let mut text = String::with_capacity(160);
    for (name, value) in fields.0.iter() {
        text.push(if text.is_empty() { '{' } else { ',' });
        push_json(&mut text, name);
        text.push(':');
        push_json(&mut text, value);
    }
    text.push('}');
    Some(text)
}

/// Appends a JSON string.
pub(in crate::ledger) fn push_json(to: &mut String, text: &str) {
    let plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\' && byte != 0x7f;
    if text.bytes().all(plain) {
        to.push('"');
        to.push_str(text);
        to.push('"');
        return;
    }
    to.push_str(&serde_json::Value::from(text).to_string());
}

pub(in crate::ledger) fn fields_of(text: &str) -> Option<Fields> {
    struct Pairs(Fields);
    impl<'de> serde::Deserialize<'de> for Pairs {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Pairs;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object of texts")
                }

                fn visit_map<M: serde::de::MapAccess<'de>>(
                    self,
                    mut map: M,
                ) -> Result<Pairs, M::Error> {
                    let mut fields = Vec::with_capacity(4);
                    while let Some((name, text)) = map.next_entry::<String, String>()? {
                        fields.push((Cow::Owned(name), text));
                    }
                    Ok(Pairs(Fields(fields.into())))
                }
            }
            from.deserialize_map(Visitor)
        }
    }
    let Pairs(fields) = serde_json::from_str(text).ok()?;
    Some(fields)
}

pub(in crate::ledger) fn rule_text(rule: &SubjectRule) -> String {
    match rule {
        SubjectRule::Event { at, drop_stale } => {
            let action = if *drop_stale { "drop" } else { "mark" };
            format!("event {} {action}", micros(*at))
        }
        SubjectRule::Payment {
            amount,
            window,
            hold,
        } => {
            let action = if *hold { "hold" } else { "mark" };
            format!("payment {amount} {} {action}", window.as_secs())
        }
    }
}

pub(in crate::ledger) fn rule_of(text: &str) -> Option<SubjectRule> {
    let mut words = text.split(' ');
    let rule = match words.next()? {
        "event" => SubjectRule::Event {
            at: time_of(words.next()?.parse().ok()?),
            drop_stale: words.next()? == "drop",
        },
        "payment" => SubjectRule::Payment {
            amount: Arc::from(words.next()?),
            window: Duration::from_secs(words.next()?.parse().ok()?),
            hold: words.next()? == "hold",
        },
        _ => return None,
    };
    words.next().is_none().then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_as_they_are() {
        for micros_since in [-1_500_000, 0, 1, 1_790_000_000_123_456] {
            assert_eq!(micros(time_of(micros_since)), micros_since);
        }
    }

    #[test]
    fn headers_come_back_as_they_are() {
        let name = |name: &'static str| HeaderName::from_static(name);
        let headers = vec![
            (
                name("content-type"),
                HeaderValue::from_static("text/plain; x=\"y\""),
            ),
            (
                name("content-language"),
                HeaderValue::from_bytes(b"\xff\x80").unwrap(),
            ),
            (name("content-language"), HeaderValue::from_static("")),
        ];
        assert_eq!(headers_of(&headers_text(&headers)).unwrap(), headers);
        let usual = vec![(
            name("content-type"),
            HeaderValue::from_static("application/json"),
        )];
        assert_eq!(headers_of(&headers_text(&usual)).unwrap(), usual);
        assert_eq!(headers_of("[[\"a b\",\"c\"]]"), None);
    }

    #[test]
    fn fields_come_back_as_they_are() {
        let fields = Fields(
            [
                ("z".into(), "plain".to_owned()),
                ("a\"b".into(), "line\nend\u{7f}\\ ậ".to_owned()),
            ]
            .into(),
        );
        assert_eq!(fields_of(&fields_text(&fields).unwrap()).unwrap(), fields);
        assert_eq!(fields_text(&Fields::default()), None);
    }

    #[test]
    fn rules_come_back_as_they_are() {
        let rules = [
            SubjectRule::Event {
                at: time_of(1_640_614_773_000_000),
                drop_stale: true,
            },
            SubjectRule::Payment {
                amount: "35000.5".into(),
                window: Duration::from_secs(86_400),
                hold: false,
            },
        ];
        for rule in rules {
            assert_eq!(rule_of(&rule_text(&rule)), Some(rule));
        }
        assert_eq!(rule_of("payment 1 2 hold more"), None);
    }
}
