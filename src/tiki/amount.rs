//! Amounts of money, exact: a JSON number is never turned into a float.

use std::cmp::Ordering;
use std::fmt;

/// Digits of a number as it is written, at most.
const MAX_DIGITS: usize = 40;
/// Magnitude of a written exponent, at most.
const MAX_EXPONENT: i16 = 40;

/// Zeros before or after the digits when it is written out: as many as digits after the point and the exponent
/// can make.
const ZEROS: [u8; MAX_DIGITS + MAX_EXPONENT as usize] = [b'0'; MAX_DIGITS + MAX_EXPONENT as usize];
/// A sign, a zero, a point, further zeros and all digits.
const MAX_WRITTEN: usize = 3 + ZEROS.len() + MAX_DIGITS;

/// An exact decimal number, normalised: `1000`, `1e3` and `1000.0` are equal.
///
/// Bounded before anything is expanded: at most 40 digits and an exponent of at most ±40 as written.
/// It displays without an exponent and without needless zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Decimal {
    negative: bool,
    /// The digits' values, none leading or trailing zero; unused places are 0. Zero has none.
    digits: [u8; MAX_DIGITS],
    count: u8,
    /// The value is the digits, read as an integer, times ten to this.
    exponent: i16,
}

/// Why a text is not an amount that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    /// Not a JSON number (RFC 8259, section 6).
    #[error("must be a number")]
    NotANumber,
    /// More than 40 digits before and after the point together.
    #[error("must have at most 40 digits")]
    TooManyDigits,
    /// An exponent outside -40 to 40.
    #[error("must have an exponent from -40 to 40")]
    ExponentTooLarge,
}

impl Decimal {
    /// Reads a number as JSON writes it.
    ///
    /// # Errors
    /// When it is none, or is out of the bounds above.
    pub fn parse(text: &str) -> Result<Self, DecimalError> {
        let Written {
            negative,
            whole,
            fraction,
            exponent,
        } = Written::parse(text).ok_or(DecimalError::NotANumber)?;
        if whole.len() + fraction.len() > MAX_DIGITS {
            return Err(DecimalError::TooManyDigits);
        }
        let exponent = read_exponent(exponent).ok_or(DecimalError::ExponentTooLarge)?;

        let mut number = Self {
            negative,
            digits: [0; MAX_DIGITS],
            count: 0,
            exponent,
        };
        for digit in whole.bytes().chain(fraction.bytes()) {
            number.push(digit - b'0');
        }
        // At most 40, so that this neither wraps nor overflows.
        number.exponent -= fraction.len() as i16;
        Ok(number.normalised())
    }

    /// Whether it is below zero; `-0` is not.
    pub fn is_negative(&self) -> bool {
        self.negative
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.count == 0
    }

    /// The same number as an integer; none when it has a fraction or is out of range.
    pub fn to_i64(&self) -> Option<i64> {
        if self.exponent < 0 {
            return None;
        }
        self.to_string().parse().ok()
    }

    fn push(&mut self, digit: u8) {
        if digit == 0 && self.count == 0 {
            return;
        }
        self.digits[usize::from(self.count)] = digit;
        self.count += 1;
    }

    fn normalised(mut self) -> Self {
        while self.count > 0 && self.digits[usize::from(self.count) - 1] == 0 {
            self.count -= 1;
            self.exponent += 1;
        }
        if self.count == 0 {
            self.exponent = 0;
            self.negative = false;
        }
        self
    }

    fn compare_magnitude(&self, other: &Self) -> Ordering {
        // Where the first digit stands decides; zero stands below everything.
        let place =
            |number: &Self| (!number.is_zero()).then(|| i16::from(number.count) + number.exponent);
        place(self)
            .cmp(&place(other))
            .then_with(|| self.digits.cmp(&other.digits))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => self.compare_magnitude(other),
            (true, true) => other.compare_magnitude(self),
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As one text: to write digit by digit costs a formatter's round each.
        let mut written = [0; MAX_WRITTEN];
        let mut length = 0;
        let mut push = |bytes: &[u8]| {
            written[length..length + bytes.len()].copy_from_slice(bytes);
            length += bytes.len();
        };
        let mut digits = self.digits;
        digits.iter_mut().for_each(|digit| *digit += b'0');
        let digits = &digits[..usize::from(self.count)];
        // How many digits stand before the point; not above 80, by the bounds of `parse`.
        let whole = i16::from(self.count) + self.exponent;
        if self.negative {
            push(b"-");
        }
        match usize::try_from(whole) {
            Ok(whole) if whole >= digits.len() => {
                push(digits);
                push(&ZEROS[..whole - digits.len()]);
                if whole == 0 {
                    push(b"0");
                }
            }
            Ok(whole) if whole > 0 => {
                push(&digits[..whole]);
                push(b".");
                push(&digits[whole..]);
            }
            _ => {
                push(b"0.");
                push(&ZEROS[..usize::from(whole.unsigned_abs())]);
                push(digits);
            }
        }
        f.write_str(std::str::from_utf8(&written[..length]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The parts of a number as it is written.
struct Written<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    exponent: &'a str,
}

impl<'a> Written<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, Some(exponent)),
            None => (rest, None),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (mantissa, None),
        };
        let exponent_digits =
            exponent.map(|exponent| exponent.strip_prefix(['+', '-']).unwrap_or(exponent));
        let sound = are_digits(whole)
            && (whole == "0" || !whole.starts_with('0'))
            && fraction.is_none_or(are_digits)
            && exponent_digits.is_none_or(are_digits);
        sound.then_some(Self {
            negative,
            whole,
            fraction: fraction.unwrap_or_default(),
            exponent: exponent.unwrap_or("0"),
        })
    }
}

fn are_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn read_exponent(text: &str) -> Option<i16> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    // Leading zeros are allowed, and no limit on them: without them two digits are enough.
    let digits = digits.trim_start_matches('0');
    if digits.len() > 2 {
        return None;
    }
    let magnitude = digits
        .bytes()
        .fold(0, |value, digit| value * 10 + i16::from(digit - b'0'));
    let exponent = if negative { -magnitude } else { magnitude };
    (magnitude <= MAX_EXPONENT).then_some(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap()
    }

    #[test]
    fn spellings_of_one_amount_are_one_amount() {
        for (spellings, plain) in [
            (
                &[
                    "1000",
                    "1e3",
                    "1000.0",
                    "1E+3",
                    "10000e-1",
                    "0.1e4",
                    "1e0000000003",
                ][..],
                "1000",
            ),
            (&["35000.50", "35000.5", "3500050e-2"], "35000.5"),
            (&["0", "-0", "0.00", "0e40", "-0.0e-40"], "0"),
            (&["-1", "-1.0", "-10e-1"], "-1"),
            (&["0.001", "1e-3"], "0.001"),
            (&["12.5e-3"], "0.0125"),
            (
                &["123456789012345678901234567890"],
                "123456789012345678901234567890",
            ),
        ] {
            for spelling in spellings {
                assert_eq!(decimal(spelling).to_string(), plain, "{spelling}");
                assert_eq!(decimal(spelling), decimal(plain), "{spelling}");
            }
        }
    }

    #[test]
    fn size_is_checked_before_anything_is_expanded() {
        let forty = "9".repeat(40);
        assert_eq!(decimal(&forty).to_string(), forty);
        assert_eq!(
            decimal(&format!("{forty}e40")).to_string(),
            forty.clone() + &"0".repeat(40)
        );
        assert_eq!(
            decimal(&format!("0.{}1e-40", "0".repeat(38))).to_string(),
            format!("0.{}1", "0".repeat(78))
        );
        for (text, error) in [
            (format!("{forty}9"), DecimalError::TooManyDigits),
            (format!("0.{forty}"), DecimalError::TooManyDigits),
            ("1e41".to_owned(), DecimalError::ExponentTooLarge),
            ("0e-41".to_owned(), DecimalError::ExponentTooLarge),
            (
                "1e999999999999999999999".to_owned(),
                DecimalError::ExponentTooLarge,
            ),
        ] {
            assert_eq!(Decimal::parse(&text), Err(error), "{text}");
        }
    }

    #[test]
    fn only_json_numbers_are_numbers() {
        for text in [
            "", "-", "+1", "01", "1.", ".5", "1e", "1e+", "1e1.5", "0x10", "NaN", "Infinity", "1 ",
            " 1", "1_000", "--1", "1,5", "１",
        ] {
            assert_eq!(
                Decimal::parse(text),
                Err(DecimalError::NotANumber),
                "{text:?}"
            );
        }
    }

    #[test]
    fn integers_are_exact() {
        assert_eq!(decimal("9223372036854775807").to_i64(), Some(i64::MAX));
        assert_eq!(decimal("-9223372036854775808").to_i64(), Some(i64::MIN));
        assert_eq!(decimal("9223372036854775808").to_i64(), None);
        assert_eq!(decimal("1e40").to_i64(), None);
        assert_eq!(decimal("1.0").to_i64(), Some(1));
        assert_eq!(decimal("1.5").to_i64(), None);
        assert_eq!(decimal("-0").to_i64(), Some(0));
    }

    #[test]
    fn order_is_that_of_the_values() {
        let ascending = [
            "-1e40", "-10.5", "-10", "-1e-40", "0", "1e-40", "0.5", "0.51", "9", "10", "10.01",
            "11", "1e40",
        ];
        for pair in ascending.windows(2) {
            assert!(decimal(pair[0]) < decimal(pair[1]), "{pair:?}");
        }
        assert!(decimal("-0.1").is_negative());
        assert!(!decimal("-0").is_negative() && decimal("-0").is_zero());
    }

    proptest! {
        #[test]
        fn the_plain_form_is_the_same_number(
            text in "-?(0|[1-9][0-9]{0,19})(\\.[0-9]{1,20})?([eE][+-]?(40|[0-3]?[0-9]))?",
        ) {
            // The plain form of a large exponent may have more digits than a number may be written with.
            let number = decimal(&text);
            if let Ok(again) = Decimal::parse(&number.to_string()) {
                prop_assert_eq!(again, number);
                prop_assert_eq!(again.to_string(), number.to_string());
            }
            let float: f64 = text.parse().unwrap();
            prop_assert_eq!(number.to_string().parse::<f64>().unwrap(), float);
        }

        #[test]
        fn integers_compare_as_integers(a in any::<i64>(), b in any::<i64>()) {
            let (x, y) = (decimal(&a.to_string()), decimal(&b.to_string()));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert_eq!(x.to_i64(), Some(a));
        }
    }
}
