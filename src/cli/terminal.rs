//! Text from the network, made safe to look at.

use std::fmt::Write;

/// The text with everything that could move a terminal's cursor, recolour it or reorder what stands
/// on the line replaced by `\u{…}`.
pub(super) fn escape(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unsafe(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Finished JSON with the same characters as `\uXXXX`, which they may be wherever they occur: in
/// strings. Line ends between values stay.
pub(super) fn escape_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for character in json.chars() {
        if character == '\n' || !is_unsafe(character) {
            shown.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string can't fail.
            let _ = write!(shown, "\\u{unit:04x}");
        }
    }
    shown
}

/// Control characters (C0, DEL, C1), and the format characters that reorder or hide text.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        assert_eq!(escape("Hoàn tiền 42"), "Hoàn tiền 42");
        assert_eq!(
            escape("a\u{1b}[2J\u{9b}1m\nb"),
            "a\\u{1b}[2J\\u{9b}1m\\u{a}b"
        );
        assert_eq!(escape("x\u{202e}y"), "x\\u{202e}y");
    }

    #[test]
    fn escaped_json_means_the_same() {
        let value = serde_json::json!({ "key": "a\u{9b}b\u{202e}c\u{e0041}\u{7f}\u{1b}\n" });
        let shown = escape_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(
            shown.chars().all(|c| c == '\n' || !is_unsafe(c)),
            "{shown:?}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
            value
        );
    }
}
