//! Which header names a configuration may use.

use http::HeaderName;

use crate::config::problem::Problems;
use crate::config::tree::Place;
use crate::config::value::{At, inline_secret};

/// Names that the gate or the HTTP library writes itself, or that belong to one connection (RFC 9110, 7.6.1).
const OWNED: &[&str] = &[
    "accept",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "forwarded",
    "host",
    "idempotency-key",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
];

const OWNED_PREFIXES: &[&str] = &["x-forwarded-", "x-tikigate-", "x-tiniapp-", "x-tikivip-"];

/// Words in a header's name that say that its value is a secret.
const SECRET_WORDS: &[&str] = &[
    "api-key",
    "apikey",
    "auth",
    "cookie",
    "-key",
    "password",
    "secret",
    "signature",
    "token",
];

/// A name for `set_headers`.
pub(crate) fn settable(written: &At<String>, problems: &mut Problems) -> Option<HeaderName> {
    // What the ingress spoke is the operator's to know: the gate itself hears plain HTTP.
    usable(written, &["x-forwarded-proto"], problems)
}

/// A name for `forward_headers`.
pub(crate) fn forwardable(written: &At<String>, problems: &mut Problems) -> Option<HeaderName> {
    let name = usable(written, &[], problems)?;
    if ["cookie", "authorization"].contains(&name.as_str()) {
        problems.warning(
            &written.place,
            "unsigned_credentials",
            "Tiki sends no such header, and whoever sends one is not proven by the signature",
        );
    }
    Some(name)
}

/// Checks a header's value that stands in the configuration itself.
pub(crate) fn plain_value(
    name: &At<String>,
    place: &Place,
    value: &str,
    problems: &mut Problems,
) -> Option<()> {
    let lower = name.value.to_ascii_lowercase();
    if SECRET_WORDS.iter().any(|word| lower.contains(word)) {
        inline_secret(place, problems);
        return None;
    }
    if looks_random(value) {
        problems
            .warning(place, "inline_secret", "the value looks like a secret")
            .help("if it is one, use { file = \"...\" } or { env = \"...\" }, and replace it, since it has been written down");
    }
    Some(())
}

/// A name that is safe and not the gate's own, save for `exempt` ones.
fn usable(written: &At<String>, exempt: &[&str], problems: &mut Problems) -> Option<HeaderName> {
    let Ok(name) = written.value.parse::<HeaderName>() else {
        problems.error(&written.place, "bad_header", "is no header name");
        return None;
    };
    let text = name.as_str();
    if text.contains('_') {
        problems
            .error(&written.place, "bad_header", "a header name with `_` is not safe")
            .help("many servers read `_` and `-` as the same, so that a caller could pass for another header");
        return None;
    }
    let owned =
        OWNED.contains(&text) || OWNED_PREFIXES.iter().any(|prefix| text.starts_with(prefix));
    if owned && !exempt.contains(&text) {
        let message = format!("`{text}` is the gate's own to decide about");
        problems.error(&written.place, "owned_header", message);
        return None;
    }
    Some(name)
}

/// A long word of mixed letters and digits is rarely meant for eyes.
fn looks_random(value: &str) -> bool {
    let word = value.len() >= 20
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+/=_-.".contains(&byte));
    let digits = value.bytes().filter(u8::is_ascii_digit).count();
    let letters = value.bytes().filter(u8::is_ascii_alphabetic).count();
    word && digits >= 2 && letters >= 2
}
