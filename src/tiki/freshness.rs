//! When a message was signed, and whether that is recent enough.

use std::fmt;
use std::time::{Duration, SystemTime};

/// The time of signing, in milliseconds since the epoch.
///
/// Exactly 13 digits (2001-09-09 to 2286-11-20), so that a time in seconds or microseconds can't be
/// mistaken for one that is decades off, and so that its decimal form is the one that was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Reads 13 ASCII digits without a leading zero; anything else is malformed.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: &[u8; 13] = text.try_into().ok()?;
        if digits[0] == b'0' {
            return None;
        }
        let mut millis = 0_u64;
        for digit in digits {
            if !digit.is_ascii_digit() {
                return None;
            }
            millis = millis * 10 + u64::from(digit - b'0');
        }
        Some(Self(millis))
    }

    /// The timestamp of a moment, cut to milliseconds; none for one that 13 digits can't say.
    pub fn from_system_time(time: SystemTime) -> Option<Self> {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let millis = u64::try_from(since.as_millis()).ok()?;
        (1_000_000_000_000..10_000_000_000_000)
            .contains(&millis)
            .then_some(Self(millis))
    }

    /// Milliseconds since the epoch.
    pub fn as_millis(self) -> u64 {
        self.0
    }

    /// The moment it names.
    pub fn to_system_time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0)
    }

    /// The 13 digits, as they are signed and sent.
    pub(super) fn digits(self) -> [u8; 13] {
        let mut digits = [b'0'; 13];
        let mut rest = self.0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        digits
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How old and how far ahead a timestamp may be. Both bounds are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Oldest. Tiki states one minute for Tini App and five for Tiki VIP.
    pub max_age: Duration,
    /// Furthest ahead: what the two clocks may differ by.
    pub max_ahead: Duration,
}

/// Where a timestamp lies in relation to a [`Window`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Inside.
    Fresh,
    /// Signed too long ago.
    TooOld,
    /// Signed in the future, further than clocks may differ.
    TooFarAhead,
}

impl Window {
    /// Where a timestamp lies at this time.
    pub fn judge(&self, timestamp: Timestamp, now: SystemTime) -> Freshness {
        match now.duration_since(timestamp.to_system_time()) {
            Ok(age) if age > self.max_age => Freshness::TooOld,
            Err(ahead) if ahead.duration() > self.max_ahead => Freshness::TooFarAhead,
            _ => Freshness::Fresh,
        }
    }
}

/// A timestamp's age in seconds; negative for one that is ahead.
pub fn age_seconds(timestamp: Timestamp, now: SystemTime) -> f64 {
    match now.duration_since(timestamp.to_system_time()) {
        Ok(age) => age.as_secs_f64(),
        Err(ahead) => -ahead.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn signed() -> Timestamp {
        Timestamp::parse(b"1667980513000").unwrap()
    }

    #[test]
    fn a_timestamp_is_its_thirteen_digits() {
        for text in ["1000000000000", "1667980513000", "9999999999999"] {
            let timestamp = Timestamp::parse(text.as_bytes()).unwrap();
            assert_eq!(timestamp.to_string(), text);
            assert_eq!(timestamp.digits(), text.as_bytes());
            assert_eq!(
                Timestamp::from_system_time(timestamp.to_system_time()),
                Some(timestamp)
            );
        }
        assert_eq!(
            Timestamp::parse("١٦٦٧٩٨٠٥١٣٠٠٠".as_bytes()),
            None,
            "digits of another script"
        );
    }

    #[test]
    fn moments_that_thirteen_digits_cannot_say_have_no_timestamp() {
        let epoch = SystemTime::UNIX_EPOCH;
        for time in [
            epoch - SECOND,
            epoch,
            epoch + Duration::from_millis(999_999_999_999),
            epoch + Duration::from_millis(10_000_000_000_000),
        ] {
            assert_eq!(Timestamp::from_system_time(time), None);
        }
    }

    #[test]
    fn both_bounds_belong_to_the_window() {
        let window = Window {
            max_age: 300 * SECOND,
            max_ahead: 60 * SECOND,
        };
        let at = signed().to_system_time();
        let nano = Duration::from_nanos(1);
        let judge = |now| window.judge(signed(), now);
        assert_eq!(judge(at), Freshness::Fresh);
        assert_eq!(judge(at + 300 * SECOND), Freshness::Fresh);
        assert_eq!(judge(at + 300 * SECOND + nano), Freshness::TooOld);
        assert_eq!(judge(at - 60 * SECOND), Freshness::Fresh);
        assert_eq!(judge(at - 60 * SECOND - nano), Freshness::TooFarAhead);
    }

    #[test]
    fn no_input_overflows() {
        let widest = Window {
            max_age: Duration::MAX,
            max_ahead: Duration::MAX,
        };
        let narrow = Window {
            max_age: Duration::ZERO,
            max_ahead: Duration::ZERO,
        };
        let last = Timestamp::parse(b"9999999999999").unwrap();
        let first = Timestamp::parse(b"1000000000000").unwrap();
        let distant = SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64);
        let ancient = SystemTime::UNIX_EPOCH - Duration::from_secs(i64::MAX as u64);
        assert_eq!(widest.judge(first, distant), Freshness::Fresh);
        assert_eq!(widest.judge(last, ancient), Freshness::Fresh);
        assert_eq!(narrow.judge(first, distant), Freshness::TooOld);
        assert_eq!(narrow.judge(last, ancient), Freshness::TooFarAhead);
        assert!(age_seconds(first, distant) > 9e18);
    }

    #[test]
    fn age_is_negative_when_ahead() {
        let at = signed().to_system_time();
        assert_eq!(age_seconds(signed(), at + 90 * SECOND), 90.0);
        assert_eq!(age_seconds(signed(), at - 2 * SECOND), -2.0);
    }
}
