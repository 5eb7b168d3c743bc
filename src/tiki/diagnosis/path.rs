//! The spellings of a path and query that mean the same to people, and its other beginnings.

use super::{Cause, Variant, cause, fewest_first};

/// Each spelling of a path, and each with another beginning; fewest mistakes first.
pub(super) fn path_variants(path: &str) -> Vec<Variant<Vec<u8>>> {
    let mut places = vec![Variant::right(path.to_owned())];
    places.extend(path_places(path));
    let mut variants = Vec::new();
    for place in &places {
        for (value, spelling) in spellings(&place.value) {
            let mut mistakes = place.mistakes.clone();
            mistakes.push(spelling);
            variants.push(Variant { value, mistakes });
        }
    }
    fewest_first(places, variants)
        .into_iter()
        .map(|variant| Variant {
            value: variant.value.into_bytes(),
            mistakes: variant.mistakes,
        })
        .collect()
}

/// Tiki VIP's base URLs (docs/protocol.md, "Who calls whom").
const BASES: [&str; 2] = [
    "https://api.tiki.vn/miniapp/tikivip",
    "https://api.tala.xyz/miniapp/tikivip",
];

/// The path with another beginning or without its query.
fn path_places(path: &str) -> Vec<Variant<String>> {
    let with_base = "path and query were signed together with the base URL: sign only what follows it, starting with `/`";
    let without_prefix = "a shorter path was signed than this one: leave out what a proxy or the base URL puts in front of it (`signed_path` in the gate's configuration)";
    let mut variants = Vec::new();
    for base in BASES {
        let host_end = base.len() - "/miniapp/tikivip".len();
        for base in [base, &base[host_end..], &base[..host_end]] {
            let joined = format!("{base}/{}", path.trim_start_matches('/'));
            variants.push(Variant::wrong(joined, "path_with_base_url", with_base));
        }
    }
    // `https://host/a/b?c` and `/a/b?c` without their first parts.
    let local = match path.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => path,
    };
    let query_start = local.find('?').unwrap_or(local.len());
    for (slash, _) in local[..query_start].match_indices('/').take(16) {
        variants.push(Variant::wrong(
            local[slash..].to_owned(),
            "path_without_prefix",
            without_prefix,
        ));
    }
    if let Some((before, _)) = path.split_once('?') {
        variants.push(Variant::wrong(
            before.to_owned(),
            "path_without_query",
            "the path was signed without its query: sign both as they are on the wire",
        ));
    }
    if let Some(rest) = path.strip_prefix('/') {
        variants.push(Variant::wrong(
            rest.to_owned(),
            "path_without_slash",
            "the path was signed without the slash it starts with",
        ));
    }
    variants
}

/// The path with the same characters escaped in another way.
fn spellings(path: &str) -> Vec<(String, Cause)> {
    let space = |as_what: &str| {
        let advice = format!(
            "a space was signed as {as_what}: sign the path and query as they are on the wire"
        );
        cause("path_space", advice)
    };
    let case = cause(
        "path_escape_case",
        "escapes such as `%C3` were signed in the other case: sign the path and query as they are on the wire",
    );
    let mut variants = vec![
        (path.replace("%20", "+"), space("`+`")),
        (path.replace('+', "%20"), space("`%20`")),
        (
            change_escape_case(path, u8::to_ascii_uppercase),
            case.clone(),
        ),
        (change_escape_case(path, u8::to_ascii_lowercase), case),
    ];
    let decoded = cause(
        "path_not_escaped",
        "path and query were signed with their escapes decoded: sign them as they are on the wire",
    );
    for text in [path.to_owned(), path.replace('+', " ")] {
        if let Some(text) = decode_escapes(&text) {
            variants.push((text, decoded.clone()));
        }
    }
    variants
}

fn change_escape_case(path: &str, change: fn(&u8) -> u8) -> String {
    let mut bytes = path.as_bytes().to_vec();
    for start in 0..bytes.len() {
        if bytes[start] == b'%' {
            for byte in bytes.iter_mut().skip(start + 1).take(2) {
                *byte = change(byte);
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn decode_escapes(path: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escape = (*first == b'%')
            .then(|| after.split_at_checked(2))
            .flatten();
        let byte = escape.and_then(|(digits, _)| {
            let mut byte = [0];
            base16ct::mixed::decode(digits, &mut byte).ok()?;
            Some(byte[0])
        });
        match (byte, escape) {
            (Some(byte), Some((_, after))) => {
                decoded.push(byte);
                rest = after;
            }
            _ => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_where_they_are_whole() {
        assert_eq!(decode_escapes("/a%20b%c3%A0").as_deref(), Some("/a bà"));
        assert_eq!(decode_escapes("/100%&%2").as_deref(), Some("/100%&%2"));
        assert_eq!(decode_escapes("/%ff"), None);
        assert_eq!(
            change_escape_case("/a%c3%A0%", u8::to_ascii_uppercase),
            "/a%C3%A0%"
        );
    }
}
