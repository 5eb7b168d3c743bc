//! Amounts as exact decimals: the text as it came, compared by value.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// An exact decimal. It keeps its text; `1e5` and `100000.0` are equal.
#[derive(Clone, Debug)]
pub struct Amount {
    text: String,
    value: Canonical,
}

/// Digits without zeros at either end, and the power of ten that they are multiplied with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Canonical {
    negative: bool,
    digits: String,
    exponent: i64,
}

/// What a number may have at most, so that nothing large comes of a short text.
const MAX_TEXT: usize = 100;
const MAX_EXPONENT: i64 = 1000;

impl Amount {
    /// Reads a number as JSON writes it; none if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, read_exponent(exponent)?),
            None => (rest, 0),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((_, "")) => return None,
            Some(parts) => parts,
            None => (mantissa, ""),
        };
        let are_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let leading_zero = whole.len() > 1 && whole.starts_with('0');
        if text.len() > MAX_TEXT
            || whole.is_empty()
            || leading_zero
            || !are_digits(whole)
            || !are_digits(fraction)
        {
            return None;
        }
        let all = format!("{whole}{fraction}");
        let significant = all.trim_end_matches('0');
        let digits = significant.trim_start_matches('0').to_owned();
        let dropped = i64::try_from(all.len() - significant.len()).ok()?;
        let places = i64::try_from(fraction.len()).ok()?;
        let is_zero = digits.is_empty();
        let value = Canonical {
            negative: negative && !is_zero,
            digits,
            exponent: if is_zero {
                0
            } else {
                exponent - places + dropped
            },
        };
        Some(Self {
            text: text.to_owned(),
            value,
        })
    }

    /// The text as it was read.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is more than nothing.
    pub fn is_positive(&self) -> bool {
        !self.value.negative && !self.value.digits.is_empty()
    }
}

fn read_exponent(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let exponent: i64 = text.parse().ok()?;
    (exponent.abs() <= MAX_EXPONENT).then_some(exponent)
}

impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eq for Amount {}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Written as a string, which no reader rounds.
impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Read from a string or a number, digit by digit.
impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let text: String = serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().to_owned());
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!("an amount is an exact decimal, not {}", raw.get()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_compared_by_value_and_exactly() {
        let read = |text: &str| Amount::parse(text).unwrap();
        for text in ["100000", "100000.0", "1e5", "1.0E+5", "10000000e-2"] {
            assert_eq!(read(text), read("100000"), "{text}");
            assert_eq!(read(text).as_str(), text);
        }
        for text in ["100000.01", "10000", "-100000", "0", "9007199254740993"] {
            assert_ne!(read(text), read("100000"), "{text}");
        }
        assert_ne!(read("9007199254740993"), read("9007199254740992"));
        assert_eq!(read("-0.00"), read("0"));
        assert!(!read("-0").is_positive() && !read("-1").is_positive());
        assert!(read("0.01").is_positive());
    }

    #[test]
    fn what_json_would_not_call_a_number_is_none() {
        for text in [
            "", "-", ".5", "5.", "01", "+1", "1e", "1e+", "1e1001", "0x1", "1,0", " 1", "NaN",
            "1e5.0",
        ] {
            assert!(Amount::parse(text).is_none(), "{text}");
        }
        assert!(Amount::parse(&"9".repeat(101)).is_none());
    }
}
