//! What is not shown, or not as it came.

use std::fmt;

use super::line::Escaping;

/// Shows a text from the network in an error or event: escaped, and at most 200 bytes of it.
#[derive(Clone, Copy)]
pub struct Shown<'a>(pub &'a str);

const SHOWN_LIMIT: usize = 200;

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text) = self;
        let shown = &text[..text.floor_char_boundary(SHOWN_LIMIT)];
        let mut escaped = Vec::with_capacity(shown.len());
        fmt::Write::write_str(&mut Escaping(&mut escaped), shown)?;
        f.write_str(&String::from_utf8_lossy(&escaped))?;
        if shown.len() < text.len() {
            f.write_str("…")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What stands in place of a value that must not be shown.
pub(super) const REDACTED: &str = "[redacted]";

/// Whether a field of an event bears a secret's name. Secrets have a type that hides them; this
/// catches the bytes that were taken out of it and then logged by mistake. A secret's *name* goes
/// under a longer one, such as `secret.name`.
pub(super) fn is_secret(field: &str) -> bool {
    let last = field.rsplit('.').next().unwrap_or(field);
    matches!(
        last,
        "authorization"
            | "body"
            | "mac"
            | "password"
            | "private_key"
            | "secret"
            | "signature"
            | "token"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_text_is_escaped_and_bounded() {
        assert_eq!(Shown("a\u{1b}[31m\nb").to_string(), "a\\u001b[31m\\nb");
        let long = "ä".repeat(101);
        assert_eq!(Shown(&long).to_string(), format!("{}…", "ä".repeat(100)));
        assert_eq!(Shown(&long[2..]).to_string(), "ä".repeat(100));
    }

    #[test]
    fn secrets_are_known_by_name() {
        assert!(is_secret("signature") && is_secret("tiki.secret"));
        assert!(!is_secret("secret.name") && !is_secret("http.request.body.size"));
    }
}
