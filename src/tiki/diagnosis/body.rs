//! The forms that a body takes on its way through libraries that mean the same by them.

use std::fmt::Write as _;

use super::super::amount::Decimal;
use super::super::json::{self, Value};
use super::{Cause, Variant, cause, fewest_first};

const AS_SENT: &str = "sign, send and check the same bytes, and let no JSON library in between";

/// Each form of a body, then each form with another beginning or end; fewest mistakes first.
pub(super) fn body_variants(body: &[u8]) -> Vec<Variant<Vec<u8>>> {
    let mut forms = vec![Variant::right(body.to_vec())];
    forms.extend(body_forms(body));
    let mut variants = Vec::new();
    for form in &forms {
        for (value, edge) in edges(&form.value) {
            let mut mistakes = form.mistakes.clone();
            mistakes.push(edge);
            variants.push(Variant { value, mistakes });
        }
    }
    if !body.is_empty() {
        variants.push(Variant::wrong(
            Vec::new(),
            "body_empty",
            "an empty body was signed: sign the body that is sent",
        ));
    }
    fewest_first(forms, variants)
}

/// The body without or with something at its edges.
fn edges(body: &[u8]) -> Vec<(Vec<u8>, Cause)> {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    let with = |end: &[u8]| [body, end].concat();
    let mut variants = vec![
        (
            with(b"\n"),
            cause(
                "newline_added",
                "a line feed after the body was signed too: sign the bytes that are sent and no more",
            ),
        ),
        (
            with(b"\r\n"),
            cause(
                "newline_added",
                "a carriage return and line feed after the body were signed too: sign the bytes that are sent and no more",
            ),
        ),
        (
            [MARK, body].concat(),
            cause(
                "byte_order_mark_added",
                "a byte order mark before the body was signed too: write the body without it",
            ),
        ),
    ];
    if let Some(rest) = body.strip_prefix(MARK) {
        variants.push((
            rest.to_vec(),
            cause(
                "byte_order_mark_removed",
                "the body was signed without the byte order mark it starts with: send it without, since a body with one is refused",
            ),
        ));
    }
    if body.trim_ascii_end().len() < body.len() {
        variants.push((
            body.trim_ascii_end().to_vec(),
            cause(
                "newline_missing",
                "the body was signed without the white space at its end (often a line feed): sign the bytes that are sent",
            ),
        ));
    }
    if let Ok(text) = std::str::from_utf8(body) {
        let line_ends = cause(
            "line_ends_changed",
            "the body was signed with other line ends: send it as binary data, not as text",
        );
        let unix = text.replace("\r\n", "\n");
        let dos = unix.replace('\n', "\r\n");
        variants.push((unix.into_bytes(), line_ends.clone()));
        variants.push((dos.into_bytes(), line_ends));
    }
    variants
}

/// The body as other programs write the same JSON.
fn body_forms(body: &[u8]) -> Vec<Variant<Vec<u8>>> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let (Ok(text), Ok(value)) = (std::str::from_utf8(body), json::parse(body)) else {
        return Vec::new();
    };
    let mut forms = vec![Variant::wrong(
        lay_out(text, &MINIFIED).into_bytes(),
        "body_minified",
        format!("the body was signed without white space: {AS_SENT}"),
    )];
    for layout in &PRETTY {
        forms.push(Variant::wrong(
            lay_out(text, layout).into_bytes(),
            "body_pretty_printed",
            format!(
                "the body was signed in another layout, {}: {AS_SENT}",
                layout.name
            ),
        ));
    }
    for dialect in &DIALECTS {
        let mut written = String::with_capacity(text.len());
        write_value(&value, dialect, &mut written);
        forms.push(Variant::wrong(
            written.into_bytes(),
            dialect.cause,
            format!(
                "the body was signed as {} writes it: {AS_SENT}",
                dialect.name
            ),
        ));
    }
    forms
}

/// White space around the tokens of a JSON text.
struct Layout {
    name: &'static str,
    indent: Option<&'static str>,
    colon: &'static str,
    comma: &'static str,
}

const MINIFIED: Layout = Layout {
    name: "minified",
    indent: None,
    colon: ":",
    comma: ",",
};

const PRETTY: [Layout; 6] = [
    pretty("indented by two spaces", "  ", ": "),
    pretty("indented by four spaces", "    ", ": "),
    pretty("indented by tabs", "\t", ": "),
    pretty("indented by one space", " ", ": "),
    pretty(
        "indented by two spaces, as Java's Jackson does it",
        "  ",
        " : ",
    ),
    Layout {
        name: "on one line with a space after each comma and colon",
        indent: None,
        colon: ": ",
        comma: ", ",
    },
];

const fn pretty(name: &'static str, indent: &'static str, colon: &'static str) -> Layout {
    Layout {
        name,
        indent: Some(indent),
        colon,
        comma: ",",
    }
}

/// The same tokens with other white space; the text is JSON.
fn lay_out(text: &str, layout: &Layout) -> String {
    let mut written = String::with_capacity(text.len());
    let mut level = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    let mut opened = false;
    for character in text.chars() {
        if in_string {
            written.push(character);
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
            continue;
        }
        if matches!(character, ' ' | '\t' | '\r' | '\n') {
            continue;
        }
        let closes = matches!(character, '}' | ']');
        if closes {
            level = level.saturating_sub(1);
        }
        if opened != closes {
            // After an opening bracket with something in it, or before the closing one.
            break_line(&mut written, layout, level);
        }
        opened = false;
        match character {
            ':' => written.push_str(layout.colon),
            ',' => {
                written.push_str(layout.comma);
                break_line(&mut written, layout, level);
            }
            _ => written.push(character),
        }
        in_string = character == '"';
        if matches!(character, '{' | '[') {
            level += 1;
            opened = true;
        }
    }
    written
}

fn break_line(written: &mut String, layout: &Layout, level: usize) {
    if let Some(indent) = layout.indent {
        written.push('\n');
        for _ in 0..level {
            written.push_str(indent);
        }
    }
}

/// How a language's JSON library writes what it has read.
struct Dialect {
    cause: &'static str,
    name: &'static str,
    sorts_keys: bool,
    escapes_slash: bool,
    escapes_html: bool,
    ascii_only: bool,
    plain_numbers: bool,
    spaced: bool,
}

const PLAIN: Dialect = Dialect {
    cause: "body_as_javascript",
    name: "JavaScript",
    sorts_keys: false,
    escapes_slash: false,
    escapes_html: false,
    ascii_only: false,
    plain_numbers: true,
    spaced: false,
};

const DIALECTS: [Dialect; 6] = [
    PLAIN,
    Dialect {
        cause: "body_as_go",
        name: "Go",
        sorts_keys: true,
        escapes_html: true,
        ..PLAIN
    },
    Dialect {
        cause: "body_as_go",
        name: "Go with a struct's order",
        escapes_html: true,
        ..PLAIN
    },
    Dialect {
        cause: "body_as_php",
        name: "PHP",
        escapes_slash: true,
        ascii_only: true,
        plain_numbers: false,
        ..PLAIN
    },
    Dialect {
        cause: "body_as_python",
        name: "Python",
        ascii_only: true,
        plain_numbers: false,
        spaced: true,
        ..PLAIN
    },
    Dialect {
        cause: "body_sorted",
        name: "a library that sorts keys",
        sorts_keys: true,
        plain_numbers: false,
        ..PLAIN
    },
];

fn write_value(value: &Value<'_>, dialect: &Dialect, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(text) => write_number(text, dialect, out),
        Value::String(text) => write_string(text, dialect, out),
        Value::Array(elements) => {
            out.push('[');
            for (index, element) in elements.iter().enumerate() {
                separate(index, dialect, out);
                write_value(element, dialect, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            if dialect.sorts_keys {
                members.sort_by(|(one, _), (other, _)| one.cmp(other));
            }
            out.push('{');
            for (index, (key, value)) in members.into_iter().enumerate() {
                separate(index, dialect, out);
                write_string(key, dialect, out);
                out.push_str(if dialect.spaced { ": " } else { ":" });
                write_value(value, dialect, out);
            }
            out.push('}');
        }
    }
}

fn separate(index: usize, dialect: &Dialect, out: &mut String) {
    if index > 0 {
        out.push_str(if dialect.spaced { ", " } else { "," });
    }
}

/// Beyond some 15 digits libraries round or switch to exponents, each in its own way: left as it is.
fn write_number(text: &str, dialect: &Dialect, out: &mut String) {
    let plain = Decimal::parse(text)
        .map(|number| number.to_string())
        .ok()
        .filter(|plain| dialect.plain_numbers && plain.len() <= 16);
    out.push_str(plain.as_deref().unwrap_or(text));
}

fn write_string(text: &str, dialect: &Dialect, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        let escape_code = match character {
            '"' => Err("\\\""),
            '\\' => Err("\\\\"),
            '\n' => Err("\\n"),
            '\r' => Err("\\r"),
            '\t' => Err("\\t"),
            '\u{8}' => Err("\\b"),
            '\u{c}' => Err("\\f"),
            '/' if dialect.escapes_slash => Err("\\/"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' if dialect.escapes_html => Ok(true),
            other => Ok(other < ' ' || (dialect.ascii_only && !other.is_ascii())),
        };
        match escape_code {
            Err(escape) => out.push_str(escape),
            Ok(false) => out.push(character),
            Ok(true) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a string can't fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_change_white_space_alone() {
        let text = r#" {"a" : [1, 2.50,{"b":"x \" , : { \\"}], "c":{ }, "d":[ ] } "#;
        assert_eq!(
            lay_out(text, &MINIFIED),
            r#"{"a":[1,2.50,{"b":"x \" , : { \\"}],"c":{},"d":[]}"#
        );
        assert_eq!(
            lay_out(text, &PRETTY[0]),
            "{\n  \"a\": [\n    1,\n    2.50,\n    {\n      \"b\": \"x \\\" , : { \\\\\"\n    }\n  ],\n  \"c\": {},\n  \"d\": []\n}"
        );
        assert_eq!(lay_out(r#"{"a":[1,2]}"#, &PRETTY[5]), r#"{"a": [1, 2]}"#);
    }
}
