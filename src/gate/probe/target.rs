//! What a look asks for: the probe's path with a message's values in it.

use http::uri::PathAndQuery;

use crate::config::ProbePart;
use crate::ledger::Fields;

/// Bytes of a path that backends surely take.
const LIMIT: usize = 6 * 1024;

/// The path, with every value percent-encoded but for unreserved characters (RFC 3986, section 2.3),
/// so that it can't end the segment or the query parameter that it stands in.
///
/// Percent-encoding can't hide a dot segment: servers decode a path before they resolve `..`. A value
/// that makes one would be about another resource, so nothing is asked then.
///
/// # Errors
/// A word for why this message can't be asked about.
pub(super) fn target(
    path: &[ProbePart],
    key: &str,
    fields: &Fields,
) -> Result<PathAndQuery, &'static str> {
    let mut target = String::with_capacity(128);
    // The path as a server may see it once it has decoded it.
    let mut decoded = String::with_capacity(128);
    let mut in_path = true;
    for part in path {
        let value = match part {
            ProbePart::Text(text) => {
                target.push_str(text);
                let path = text.split('?').next().unwrap_or_default();
                if in_path {
                    decoded.push_str(path);
                }
                in_path &= path.len() == text.len();
                continue;
            }
            ProbePart::Key => key,
            ProbePart::Field(name) => fields.get(name).unwrap_or_default(),
        };
        // `/refunds/` without the id would be answered about all of them.
        if value.is_empty() {
            return Err("missing_field");
        }
        encode(value, &mut target);
        if in_path {
            decoded.push_str(value);
        }
    }
    let mut segments = decoded.split(['/', '\\']);
    if segments.any(|segment| segment == "." || segment == "..") {
        return Err("unsafe_value");
    }
    if target.len() > LIMIT {
        return Err("too_long");
    }
    PathAndQuery::try_from(target).map_err(|_| "bad_path")
}

fn encode(value: &str, to: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            to.push(char::from(byte));
        } else {
            to.push('%');
            to.push(char::from(HEX[usize::from(byte >> 4)]));
            to.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> Vec<ProbePart> {
        vec![
            ProbePart::Text("/refunds/".to_owned()),
            ProbePart::Key,
            ProbePart::Text("/state?transaction=".to_owned()),
            ProbePart::Field("transaction_id".to_owned()),
            ProbePart::Text("&full=1".to_owned()),
        ]
    }

    fn filled(key: &str, transaction: &str) -> Result<String, &'static str> {
        let fields = Fields([("transaction_id".into(), transaction.to_owned())].into());
        target(&path(), key, &fields).map(|target| target.to_string())
    }

    #[test]
    fn values_stay_data() {
        let with = |key: &str, transaction: &str| filled(key, transaction).unwrap();
        assert_eq!(
            with("r-1.x_~", "P1"),
            "/refunds/r-1.x_~/state?transaction=P1&full=1"
        );
        for (value, encoded) in [
            ("a/b", "a%2Fb"),
            ("a?b=c", "a%3Fb%3Dc"),
            ("a#b", "a%23b"),
            ("a&full=0", "a%26full%3D0"),
            ("%2f", "%252f"),
            ("a b+c", "a%20b%2Bc"),
            ("a\r\nHost: x", "a%0D%0AHost%3A%20x"),
            ("\0", "%00"),
            ("hoàn tiền", "ho%C3%A0n%20ti%E1%BB%81n"),
            ("a;b\\c", "a%3Bb%5Cc"),
            ("{key}", "%7Bkey%7D"),
            ("...", "..."),
        ] {
            assert_eq!(
                with(value, value),
                format!("/refunds/{encoded}/state?transaction={encoded}&full=1")
            );
        }
    }

    #[test]
    fn a_value_that_makes_a_dot_segment_is_not_asked_about() {
        for value in [".", "..", "/../", "a/../b", "x/..", "..\\x", "a/./b"] {
            assert_eq!(filled(value, "p"), Err("unsafe_value"), "{value}");
            // In a query it is a text like any other.
            assert!(filled("k", value).is_ok(), "{value}");
        }
        let joined = [
            ProbePart::Text("/a/.".to_owned()),
            ProbePart::Key,
            ProbePart::Field("f".to_owned()),
        ];
        let fields = Fields([("f".into(), "/x".to_owned())].into());
        assert_eq!(target(&joined, ".", &fields), Err("unsafe_value"));
        assert!(target(&joined, "c", &fields).is_ok());
    }

    #[test]
    fn what_is_missing_or_empty_is_not_asked_about() {
        assert_eq!(filled("", "p"), Err("missing_field"));
        assert_eq!(filled("k", ""), Err("missing_field"));
        let none = Fields::default();
        assert_eq!(target(&path(), "k", &none), Err("missing_field"));
        assert_eq!(filled(&"é".repeat(LIMIT), "p"), Err("too_long"));
    }
}
