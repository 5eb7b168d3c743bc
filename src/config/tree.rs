//! The configuration as a tree of values that know where they were written.

use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problems;

/// Where something was written, and under which key.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Such as `routes.refund.path`.
    pub(crate) key: String,
    /// File or variable.
    pub(crate) origin: Origin,
}

/// The source of a value.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// The byte offset in the file.
    Text(usize),
    /// An environment variable.
    Variable(Arc<str>),
    /// The file as a whole: for what is missing from it.
    Whole,
}

impl Place {
    /// The file as a whole.
    pub(crate) fn whole() -> Self {
        Self {
            key: String::new(),
            origin: Origin::Whole,
        }
    }

    /// The place of a key below this one, as long as nobody wrote it.
    pub(crate) fn child(&self, name: &str) -> Self {
        Self {
            key: join(&self.key, name),
            origin: self.origin.clone(),
        }
    }
}

/// A value with its place.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What was written.
#[derive(Clone)]
pub(crate) enum Value {
    String(String),
    Integer(Option<i64>),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    Array(Vec<Node>),
    Table(Vec<Entry>),
    /// An environment variable's text: a TOML value if that gives what the key wants, else a string.
    Raw(String),
}

/// A key of a table.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Where the name stands, for problems about the name itself.
    pub(crate) place: Place,
    pub(crate) node: Node,
}

impl Value {
    /// The type's name in a sentence.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::String(_) | Self::Raw(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
        }
    }
}

impl Node {
    /// Decides what a variable's text is: a TOML value if `wanted` likes it, else a string.
    pub(crate) fn settle(self, wanted: impl Fn(&Value) -> bool) -> Node {
        let Value::Raw(text) = self.value else {
            return self;
        };
        let place = self.place;
        if let Ok(parsed) = DeValue::parse(&text) {
            let node = from_toml(parsed, &place.key, &|_| place.origin.clone());
            if wanted(&node.value) {
                return node;
            }
        }
        Node {
            place,
            value: Value::String(text),
        }
    }
}

/// Parses a TOML document; a syntax error is reported and gives nothing.
pub(crate) fn parse(text: &str, problems: &mut Problems) -> Option<Node> {
    match DeTable::parse(text) {
        Ok(table) => Some(table_node(
            table.into_inner(),
            Place::whole(),
            &Origin::Text,
        )),
        Err(error) => {
            // Only the parser's sentence is shown: its full text quotes the line, and with it
            // perhaps a secret that somebody wrote there.
            let place = Place {
                key: String::new(),
                origin: error
                    .span()
                    .map_or(Origin::Whole, |span| Origin::Text(span.start)),
            };
            problems.error(&place, "syntax", error.message().to_owned());
            None
        }
    }
}

/// `a` and `b` as `a.b`. A name that TOML would quote is quoted, and its control characters escaped:
/// problems are read on terminals.
pub(crate) fn join(parent: &str, name: &str) -> String {
    let bare = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let name = if bare && !name.is_empty() {
        name.to_owned()
    } else {
        format!("\"{}\"", name.escape_debug())
    };
    if parent.is_empty() {
        name
    } else {
        format!("{parent}.{name}")
    }
}

type OriginOf<'a> = &'a dyn Fn(usize) -> Origin;

fn from_toml(value: Spanned<DeValue<'_>>, key: &str, origin: OriginOf<'_>) -> Node {
    let place = Place {
        key: key.to_owned(),
        origin: origin(value.span().start),
    };
    let value = match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => {
            Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok())
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(word) => Value::Boolean(word),
        DeValue::Datetime(date) => Value::Datetime(date.to_string()),
        DeValue::Array(items) => Value::Array(
            items
                .into_iter()
                .enumerate()
                .map(|(index, item)| {
                    let key = item_key(key, index, item.get_ref());
                    from_toml(item, &key, origin)
                })
                .collect(),
        ),
        DeValue::Table(table) => return table_node(table, place, origin),
    };
    Node { place, value }
}

fn table_node(table: DeTable<'_>, place: Place, origin: OriginOf<'_>) -> Node {
    let mut entries: Vec<(usize, Entry)> = table
        .into_iter()
        .map(|(name, value)| {
            let key = join(&place.key, name.get_ref());
            let start = name.span().start;
            let entry = Entry {
                place: Place {
                    key: key.clone(),
                    origin: origin(start),
                },
                node: from_toml(value, &key, origin),
                name: name.into_inner().into_owned(),
            };
            (start, entry)
        })
        .collect();
    entries.sort_by_key(|(start, _)| *start);
    Node {
        place,
        value: Value::Table(entries.into_iter().map(|(_, entry)| entry).collect()),
    }
}

/// `routes.refund` for an item that has a plain name, else `routes[0]`.
fn item_key(parent: &str, index: usize, item: &DeValue<'_>) -> String {
    let name = item
        .as_table()
        .and_then(|table| table.get("name"))
        .and_then(|name| name.get_ref().as_str())
        .filter(|name| is_plain(name));
    match name {
        Some(name) => join(parent, name),
        None => format!("{parent}[{index}]"),
    }
}

fn is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}
