//! Durations such as `5s` or `43h36m`, and sizes such as `64KiB`.

use std::time::Duration;

const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

const SIZES: [(&str, usize); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// The longest duration that a configuration may name: ten years.
const LONGEST: u64 = 3650 * 86_400_000;

/// What is said of a text that is no duration.
pub(crate) const DURATION_HELP: &str = "write whole numbers with a unit, the largest unit first: \"500ms\", \"5s\", \"1m\", \"43h36m\", \"400d\"";

/// What is said of a text that is no size.
pub(crate) const SIZE_HELP: &str =
    "write a whole number of bytes, or one with a unit: 65536, \"64KiB\", \"1MiB\", \"1GiB\"";

/// Reads a duration; each unit at most once and the largest first.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total: u64 = 0;
    let mut smallest = u64::MAX;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = leading_number(rest)?;
        let unit_length = after
            .bytes()
            .take_while(|byte| byte.is_ascii_alphabetic())
            .count();
        let (unit, remaining) = after.split_at(unit_length);
        let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        if scale >= smallest {
            return None;
        }
        smallest = scale;
        total = total.checked_add(number.checked_mul(scale)?)?;
        rest = remaining;
    }
    (total <= LONGEST).then(|| Duration::from_millis(total))
}

/// Reads a size with a unit, in bytes.
pub(crate) fn size(text: &str) -> Option<usize> {
    let (number, unit) = leading_number(text)?;
    let scale = SIZES.iter().find(|(name, _)| *name == unit)?.1;
    usize::try_from(number).ok()?.checked_mul(scale)
}

/// Writes a duration as [`duration`] reads it; below a millisecond is cut off.
pub(crate) fn format_duration(value: Duration) -> String {
    let mut rest = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, scale) in UNITS {
        if rest >= scale {
            text.push_str(&format!("{}{unit}", rest / scale));
            rest %= scale;
        }
    }
    text
}

/// Writes a size as [`size`] reads it.
pub(crate) fn format_size(value: usize) -> String {
    let exact = SIZES
        .into_iter()
        .find(|(_, scale)| value >= *scale && value.is_multiple_of(*scale));
    match exact {
        Some((unit, scale)) => format!("{}{unit}", value / scale),
        None => "0B".to_owned(),
    }
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_strictly() {
        for (text, millis) in [
            ("500ms", 500),
            ("5s", 5_000),
            ("1m", 60_000),
            ("43h36m", 156_960_000),
            ("400d", 34_560_000_000),
            ("0s", 0),
        ] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "+1s",
            "1.5s",
            "5 s",
            " 5s",
            "5S",
            "5sec",
            "1s1s",
            "1s1m",
            "1µs",
            "99999999999999999999s",
            "3651d",
            "18446744073709551615d",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_read_strictly() {
        assert_eq!(size("64KiB"), Some(65_536));
        assert_eq!(size("1MiB"), Some(1 << 20));
        assert_eq!(size("7B"), Some(7));
        for text in [
            "",
            "64",
            "64KB",
            "64k",
            "64kib",
            "-1B",
            "1.5MiB",
            "99999999999999999999B",
        ] {
            assert_eq!(size(text), None, "{text}");
        }
        assert_eq!(size("18446744073709551615GiB"), None);
    }

    #[test]
    fn what_is_written_can_be_read_again() {
        for millis in [0, 1, 999, 1_000, 61_001, 86_400_000, 156_960_000] {
            let value = Duration::from_millis(millis);
            assert_eq!(duration(&format_duration(value)), Some(value));
        }
        for bytes in [0, 1, 1023, 1024, 65_536, 1 << 20, (1 << 30) + 1] {
            assert_eq!(size(&format_size(bytes)), Some(bytes));
        }
    }
}
