//! Request paths.

use http::uri::PathAndQuery;

use crate::config::problem::Problems;
use crate::config::value::At;

/// Checks a route's path: it is compared byte for byte with what callers send.
pub(crate) fn route_path(written: At<String>, problems: &mut Problems) -> Option<At<String>> {
    let fault = path_fault(&written.value).or_else(|| {
        written
            .value
            .contains('?')
            .then_some("must not hold a query: POST routes take none, and GET routes take any")
    });
    report(written, fault, problems)
}

/// Checks the path that the backend gets; a fixed query is allowed.
pub(crate) fn upstream_path(written: At<String>, problems: &mut Problems) -> Option<At<String>> {
    let fault = path_fault(&written.value);
    report(written, fault, problems)
}

fn report(
    written: At<String>,
    fault: Option<&'static str>,
    problems: &mut Problems,
) -> Option<At<String>> {
    let Some(fault) = fault else {
        return Some(written);
    };
    problems.error(&written.place, "bad_path", fault);
    None
}

fn path_fault(text: &str) -> Option<&'static str> {
    let path = text.split('?').next().unwrap_or(text);
    if !path.starts_with('/') {
        return Some("must start with `/`");
    }
    if text.len() > 1024 {
        return Some("must be at most 1024 bytes");
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("must be printable ASCII without spaces; other characters are sent as %XX");
    }
    if text.contains('#') || path.contains('\\') {
        return Some("must not hold `#` or a backslash");
    }
    if !whole_escapes(text) {
        return Some("holds a `%` that two hexadecimal digits don't follow");
    }
    if path.split('/').any(is_dot_segment) {
        return Some(
            "must not hold `.` or `..` as a segment, however spelled: servers resolve them",
        );
    }
    match text.parse::<PathAndQuery>() {
        Ok(parsed) if parsed.as_str() == text => None,
        _ => Some("holds a character that a request line can't"),
    }
}

fn is_dot_segment(segment: &str) -> bool {
    let plain = segment.to_ascii_lowercase().replace("%2e", ".");
    plain == "." || plain == ".."
}

fn whole_escapes(text: &str) -> bool {
    text.split('%')
        .skip(1)
        .all(|after| after.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_two_servers_could_read_differently_are_refused() {
        for path in [
            "/",
            "/tiki/refund",
            "/tiki//refund",
            "/index.php",
            "/a/..b",
            "/a%2fb",
            "/caf%C3%A9",
        ] {
            assert_eq!(path_fault(path), None, "{path}");
        }
        for path in [
            "",
            "tiki",
            "/a b",
            "/à",
            "/a#b",
            "/a/./b",
            "/a/..",
            "/a/%2e/b",
            "/%2E%2e/b",
            "/.%2e",
            "/a\\b",
            "/a%2",
            "/a%zz",
            "/a\u{7f}",
            "/a<b",
        ] {
            assert!(path_fault(path).is_some(), "{path}");
        }
    }

    #[test]
    fn only_the_upstreams_path_carries_a_query() {
        let mut problems = Problems::new("", "");
        let at = |text: &str| At {
            place: crate::config::tree::Place::whole(),
            value: text.to_owned(),
        };
        assert!(upstream_path(at("/index.php?route=refund/../x"), &mut problems).is_some());
        assert!(problems.into_sorted().is_empty());
        let mut problems = Problems::new("", "");
        assert!(route_path(at("/refund?x=1"), &mut problems).is_none());
        assert_eq!(problems.into_sorted().len(), 1);
    }
}
