//! One log line, appended to a buffer without allocating: JSON, or text for eyes.
//!
//! Keys are the code's own and written as they are. Values may come from the network: control
//! characters (C0, DEL, C1), line and paragraph separators and the marks that reorder text on a screen
//! are escaped as in JSON, in both formats. In text a value is quoted unless it is plainly one word, so
//! that no value can look like another field.

use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::Level;

use crate::config::LogFormat;

/// A field's name.
pub(super) trait Key {
    /// Appends it with what stands around it.
    fn write(self, out: &mut Vec<u8>, format: LogFormat);
}

impl Key for &str {
    fn write(self, out: &mut Vec<u8>, format: LogFormat) {
        match format {
            LogFormat::Json => {
                out.extend_from_slice(b",\"");
                out.extend_from_slice(self.as_bytes());
                out.extend_from_slice(b"\":");
            }
            LogFormat::Text => {
                out.push(b' ');
                out.extend_from_slice(self.as_bytes());
                out.push(b'=');
            }
        }
    }
}

/// A name that was put together when the program was compiled: see [`named`].
#[derive(Clone, Copy)]
pub(super) struct Name {
    pub(super) json: &'static str,
    pub(super) text: &'static str,
}

impl Key for Name {
    fn write(self, out: &mut Vec<u8>, format: LogFormat) {
        let name = match format {
            LogFormat::Json => self.json,
            LogFormat::Text => self.text,
        };
        out.extend_from_slice(name.as_bytes());
    }
}

/// A [`Name`].
macro_rules! named {
    ($name:literal) => {
        Name {
            json: concat!(",\"", $name, "\":"),
            text: concat!(" ", $name, "="),
        }
    };
}
pub(super) use named;

/// The line being written.
pub(super) struct Line<'b> {
    out: &'b mut Vec<u8>,
    format: LogFormat,
}

impl<'b> Line<'b> {
    /// Starts a line with its time, level and message.
    pub(super) fn begin(
        out: &'b mut Vec<u8>,
        format: LogFormat,
        time: &[u8],
        level: Level,
        message: &str,
    ) -> Self {
        let (word, padded) = level_words(level);
        match format {
            LogFormat::Json => {
                out.extend_from_slice(b"{\"time\":\"");
                out.extend_from_slice(time);
                out.extend_from_slice(b"\",\"level\":\"");
                out.extend_from_slice(word.as_bytes());
                out.extend_from_slice(b"\",\"message\":\"");
                escape(out, message);
                out.push(b'"');
            }
            LogFormat::Text => {
                out.extend_from_slice(time);
                out.push(b' ');
                out.extend_from_slice(padded.as_bytes());
                out.push(b' ');
                escape(out, message);
            }
        }
        Self { out, format }
    }

    /// A text of at most `limit` bytes; the rest is cut off and replaced by an ellipsis.
    pub(super) fn text(&mut self, key: impl Key, value: &str, limit: usize) {
        key.write(self.out, self.format);
        let shown = &value[..value.floor_char_boundary(limit)];
        let cut = shown.len() < value.len();
        let quoted = self.format == LogFormat::Json || cut || !is_word(shown);
        self.quote(quoted);
        escape(self.out, shown);
        if cut {
            self.out.extend_from_slice("…".as_bytes());
        }
        self.quote(quoted);
    }

    /// A word of our own making, such as an id or an address, in which nothing needs to be escaped. In
    /// text it is not quoted.
    pub(super) fn word(&mut self, key: impl Key, value: &str) {
        key.write(self.out, self.format);
        let quoted = self.format == LogFormat::Json;
        self.quote(quoted);
        self.out.extend_from_slice(value.as_bytes());
        self.quote(quoted);
    }

    /// A whole number.
    pub(super) fn number(&mut self, key: impl Key, value: u64) {
        key.write(self.out, self.format);
        push_number(self.out, value);
    }

    /// A duration in milliseconds with three decimals.
    pub(super) fn millis(&mut self, key: impl Key, value: Duration) {
        key.write(self.out, self.format);
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        push_number(self.out, micros / 1_000);
        self.out.push(b'.');
        push_three_digits(self.out, micros % 1_000);
    }

    /// Something that is written as it is in both formats: a number or a boolean.
    pub(super) fn bare(&mut self, key: impl Key, value: &str) {
        key.write(self.out, self.format);
        self.out.extend_from_slice(value.as_bytes());
    }

    /// Ends the line.
    pub(super) fn end(self) {
        match self.format {
            LogFormat::Json => self.out.extend_from_slice(b"}\n"),
            LogFormat::Text => self.out.push(b'\n'),
        }
    }

    fn quote(&mut self, quoted: bool) {
        if quoted {
            self.out.push(b'"');
        }
    }
}

/// The level's word, and the same as wide as the widest.
fn level_words(level: Level) -> (&'static str, &'static str) {
    match level {
        Level::ERROR => ("error", "ERROR"),
        Level::WARN => ("warn", "WARN "),
        Level::INFO => ("info", "INFO "),
        Level::DEBUG => ("debug", "DEBUG"),
        Level::TRACE => ("trace", "TRACE"),
    }
}

/// Escapes what is printed into it, piece by piece.
pub(super) struct Escaping<'b>(pub(super) &'b mut Vec<u8>);

impl Write for Escaping<'_> {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        escape(self.0, piece);
        Ok(())
    }
}

/// Appends `value` as the inside of a JSON string.
pub(super) fn escape(out: &mut Vec<u8>, value: &str) {
    let mut rest = value;
    while let Some(position) = rest.bytes().position(|byte| SUSPECT[usize::from(byte)]) {
        // A suspect byte is ASCII or begins a character, so both cuts are at boundaries.
        let (clean, from_suspect) = rest.split_at(position);
        out.extend_from_slice(clean.as_bytes());
        let mut chars = from_suspect.chars();
        if let Some(suspect) = chars.next() {
            escape_char(out, suspect);
        }
        rest = chars.as_str();
    }
    out.extend_from_slice(rest.as_bytes());
}

/// Bytes that a character which must be escaped may begin with.
const SUSPECT: [bool; 256] = {
    let mut suspect = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        suspect[byte] = byte < 0x20
            || byte == b'"' as usize
            || byte == b'\\' as usize
            || byte == 0x7F
            || byte == 0xC2 // C1 controls
            || byte == 0xD8 // U+061C
            || byte == 0xE2 // U+2000 to U+206F
            || byte == 0xEF; // U+FEFF
        byte += 1;
    }
    suspect
};

fn escape_char(out: &mut Vec<u8>, c: char) {
    match c {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        hidden if is_hidden(hidden) => push_unicode_escape(out, hidden),
        shown => out.extend_from_slice(shown.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// Controls and separators, and marks that change the order in which their neighbours are shown.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{FEFF}' | '\u{061C}')
        || matches!(c, '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}')
}

/// All hidden characters are below U+10000, so that four digits are enough.
fn push_unicode_escape(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        let digit = (u32::from(c) >> shift) & 0xF;
        out.push(char::from_digit(digit, 16).map_or(b'0', |digit| digit as u8));
    }
}

fn is_word(value: &str) -> bool {
    let word_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@+~*".contains(&byte);
    !value.is_empty() && value.bytes().all(word_byte)
}

fn push_number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20]; // as many as the largest has
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

fn push_three_digits(out: &mut Vec<u8>, value: u64) {
    for divisor in [100, 10, 1] {
        out.push(b'0' + (value / divisor % 10) as u8);
    }
}

/// Writes times as RFC 3339 in UTC with milliseconds. Keeps the last second's text, as most lines
/// share theirs with the line before.
#[derive(Debug)]
pub(super) struct Stamp {
    second: u64,
    /// `2026-11-23T14:07:41.123Z`
    text: [u8; 24],
}

impl Stamp {
    pub(super) fn new() -> Self {
        Self {
            second: 0,
            text: *b"1970-01-01T00:00:00.000Z",
        }
    }

    /// The time's text. A time outside the years 1970 to 9999 is shown as the nearest within.
    pub(super) fn at(&mut self, time: SystemTime) -> &[u8] {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = since_epoch.as_secs();
        if second != self.second {
            self.second = second;
            self.write_second(second);
        }
        let millis = since_epoch.subsec_millis();
        for (place, divisor) in [(20, 100), (21, 10), (22, 1)] {
            self.text[place] = b'0' + (millis / divisor % 10) as u8;
        }
        &self.text
    }

    fn write_second(&mut self, second: u64) {
        let known = i64::try_from(second)
            .ok()
            .and_then(|second| jiff::Timestamp::from_second(second).ok());
        // As far as jiff's times go, its text for a whole second is `2026-11-23T14:07:41Z`.
        let text = known.unwrap_or(jiff::Timestamp::MAX).to_string();
        if let Some((prefix, _)) = text.as_bytes().split_at_checked(19) {
            self.text[..19].copy_from_slice(prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(nanos)
    }

    #[test]
    fn times_match_jiffs_across_boundaries() {
        let mut stamp = Stamp::new();
        let leap_day = 1_709_164_800_000_000_000; // 2024-02-29T00:00:00Z
        let starts = [
            0,
            1_667_980_513_999_000_000,
            leap_day,
            1_798_761_599_000_000_000,
        ];
        let steps = [
            0,
            1,
            999_999,
            1_000_000,
            999_999_999,
            1_000_000_000,
            59_999_000_000,
        ];
        let days = [0, 60_000_000_000, 3_600_000_000_000, 86_400_000_000_000];
        for start in starts {
            for nanos in days
                .iter()
                .flat_map(|day| steps.map(|step| start + day + step))
            {
                let millis = i64::try_from(nanos / 1_000_000).unwrap();
                let expected = jiff::Timestamp::from_millisecond(millis).unwrap();
                let shown = std::str::from_utf8(stamp.at(at(nanos))).unwrap();
                assert_eq!(shown, format!("{expected:.3}"));
            }
        }
    }

    #[test]
    fn times_go_back_too_and_stay_in_range() {
        let mut stamp = Stamp::new();
        assert_eq!(stamp.at(at(61_000_000_000)), b"1970-01-01T00:01:01.000Z");
        assert_eq!(stamp.at(at(5_000_000)), b"1970-01-01T00:00:00.005Z");
        let before = UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(stamp.at(before), b"1970-01-01T00:00:00.000Z");
        let far = UNIX_EPOCH + Duration::from_secs(1 << 50);
        assert_eq!(stamp.at(far)[..10], *b"9999-12-30");
    }

    fn escaped(value: &str) -> String {
        let mut out = Vec::new();
        escape(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_character_survives_and_none_drives_a_terminal() {
        for c in ('\0'..='\u{FFFF}').chain(['🦀', '\u{E0041}', char::MAX]) {
            let shown = escaped(&format!("a{c}b"));
            let read: String = serde_json::from_str(&format!("\"{shown}\"")).unwrap();
            assert_eq!(read, format!("a{c}b"));
            let dangerous =
                |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202E}');
            assert!(!shown.contains(dangerous), "U+{:04X}", u32::from(c));
        }
    }

    #[test]
    fn ordinary_text_is_left_alone() {
        let text = "Hoàn tiền 35.000 ₫ – “đã nhận” 日本語 🦀 ©";
        assert_eq!(escaped(text), text);
    }

    #[test]
    fn numbers_are_written_whole() {
        for value in [0, 9, 10, 99, 1_000, u64::MAX] {
            let mut out = Vec::new();
            push_number(&mut out, value);
            assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out, LogFormat::Text, b"T", Level::INFO, "m");
        line.text("k", "éé", 3);
        line.text("whole", "éé", 4);
        line.end();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "T INFO  m k=\"é…\" whole=\"éé\"\n"
        );
    }

    #[test]
    fn durations_have_three_decimals() {
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out, LogFormat::Text, b"T", Level::WARN, "m");
        line.millis("d", Duration::from_micros(1_000_007));
        line.end();
        assert_eq!(out, b"T WARN  m d=1000.007\n");
    }
}
