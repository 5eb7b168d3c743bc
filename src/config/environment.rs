//! Overrides from the environment: `TIKIGATE__SERVER__LISTEN=127.0.0.1:8080` sets `server.listen`.
//!
//! A double underscore goes one level down. An item of a list is named by its number, or by its
//! `name` (or `id`) with everything but letters and digits as an underscore:
//! `TIKIGATE__ROUTES__REFUND__BODY_LIMIT`, `TIKIGATE__ROUTES__0__BODY_LIMIT`.

use std::ffi::OsString;
use std::sync::Arc;

use super::problem::Problems;
use super::tree::{Entry, Node, Origin, Place, Value};

const PREFIX: &str = "TIKIGATE__";

/// Lays the overrides over what the file says. What can't be laid is reported by its variable.
pub(crate) fn overlay(
    root: &mut Node,
    environment: &[(OsString, OsString)],
    problems: &mut Problems,
) {
    let mut overrides: Vec<_> = environment
        .iter()
        .filter_map(|(name, value)| {
            let name = name.to_string_lossy();
            let path = name.strip_prefix(PREFIX)?.to_owned();
            Some((name.into_owned(), path, value))
        })
        .collect();
    // A variable for a whole table comes before those that refine it.
    overrides.sort_by_cached_key(|(_, path, _)| path.to_ascii_lowercase());
    for (name, path, value) in overrides {
        let origin = Origin::Variable(Arc::from(name));
        let place = Place {
            key: path.replace("__", ".").to_ascii_lowercase(),
            origin: origin.clone(),
        };
        let segments: Vec<&str> = path.split("__").collect();
        if segments.iter().any(|segment| segment.is_empty()) {
            problems.error(&place, "bad_variable", "the variable names no key");
            continue;
        }
        let Some(value) = value.to_str() else {
            problems.error(&place, "bad_variable", "the variable's value is not UTF-8");
            continue;
        };
        if let Err(Refused(code, message)) = set(root, &segments, value, &origin) {
            problems.error(&place, code, message);
        }
    }
}

struct Refused(&'static str, &'static str);

fn set(node: &mut Node, segments: &[&str], value: &str, origin: &Origin) -> Result<(), Refused> {
    let Some((segment, rest)) = segments.split_first() else {
        if matches!(node.value, Value::Raw(_)) {
            return Err(Refused(
                "bad_variable",
                "another variable sets this key too",
            ));
        }
        node.place.origin = origin.clone();
        node.value = Value::Raw(value.to_owned());
        return Ok(());
    };
    settle_container(node);
    match &mut node.value {
        Value::Table(entries) => {
            let known = entries
                .iter()
                .position(|entry| plain(&entry.name) == plain(segment));
            if let Some(at) = known {
                return set(&mut entries[at].node, rest, value, origin);
            }
            let mut entry = absent(&node.place, segment, origin);
            if rest.is_empty() {
                entry.node.value = Value::Raw(value.to_owned());
            } else {
                set(&mut entry.node, rest, value, origin)?;
            }
            entries.push(entry);
            Ok(())
        }
        Value::Array(items) => set(item(items, segment)?, rest, value, origin),
        _ => Err(Refused(
            "bad_variable",
            "the variable names a key below one that is no table",
        )),
    }
}

/// A variable that gives a whole table or list may be refined by a longer one.
fn settle_container(node: &mut Node) {
    if matches!(node.value, Value::Raw(_)) {
        *node = node
            .clone()
            .settle(|value| matches!(value, Value::Table(_) | Value::Array(_)));
    }
}

fn absent(parent: &Place, segment: &str, origin: &Origin) -> Entry {
    let name = segment.to_ascii_lowercase();
    let place = Place {
        key: parent.child(&name).key,
        origin: origin.clone(),
    };
    Entry {
        name,
        place: place.clone(),
        node: Node {
            place,
            value: Value::Table(Vec::new()),
        },
    }
}

fn item<'n>(items: &'n mut [Node], segment: &str) -> Result<&'n mut Node, Refused> {
    let missing = Refused(
        "no_such_item",
        "the list has no item of this number or name",
    );
    if let Ok(index) = segment.parse::<usize>() {
        return items.get_mut(index).ok_or(missing);
    }
    let mut named = items
        .iter()
        .enumerate()
        .filter(|(_, node)| label(node).is_some_and(|label| plain(label) == plain(segment)))
        .map(|(index, _)| index);
    let index = named.next().ok_or(missing)?;
    if named.next().is_some() {
        return Err(Refused(
            "no_such_item",
            "the list has several items of this name; use the item's number",
        ));
    }
    Ok(&mut items[index])
}

fn label(node: &Node) -> Option<&str> {
    let Value::Table(entries) = &node.value else {
        return None;
    };
    let text = |wanted: &str| {
        let entry = entries.iter().find(|entry| entry.name == wanted)?;
        match &entry.node.value {
            Value::String(text) | Value::Raw(text) => Some(text.as_str()),
            _ => None,
        }
    };
    text("name").or_else(|| text("id"))
}

fn plain(name: &str) -> String {
    name.chars()
        .map(|letter| match letter {
            'a'..='z' | '0'..='9' => letter,
            'A'..='Z' => letter.to_ascii_lowercase(),
            _ => '_',
        })
        .collect()
}
