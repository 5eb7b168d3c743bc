//! Readers: from a tree of values to typed fields, each of which remembers its place.

use std::time::Duration;

use super::problem::Problems;
use super::tree::{Entry, Node, Place, Value};
use super::units;

/// A value and where it was written, or where it would have been.
#[derive(Clone)]
pub(crate) struct At<T> {
    pub(crate) place: Place,
    pub(crate) value: T,
}

/// A key of the schema: left out, written wrongly (and reported), or there.
pub(crate) struct Field<T> {
    pub(crate) place: Place,
    content: Content<T>,
}

enum Content<T> {
    Absent,
    Wrong,
    There(T),
}

impl<T> Field<T> {
    /// The value, or the default. A wrong value gives the default too: it has been reported.
    pub(crate) fn or(self, default: T) -> At<T> {
        let value = match self.content {
            Content::There(value) => value,
            Content::Absent | Content::Wrong => default,
        };
        At {
            place: self.place,
            value,
        }
    }

    /// The value, if a right one was written.
    pub(crate) fn written(self) -> Option<At<T>> {
        match self.content {
            Content::There(value) => Some(At {
                place: self.place,
                value,
            }),
            Content::Absent | Content::Wrong => None,
        }
    }

    /// The value; that it is missing is reported.
    pub(crate) fn required(self, problems: &mut Problems) -> Option<At<T>> {
        if self.is_absent() {
            problems.error(&self.place, "missing", "is required");
        }
        self.written()
    }

    /// The value, left where it is.
    pub(crate) fn peek(&self) -> Option<&T> {
        match &self.content {
            Content::There(value) => Some(value),
            Content::Absent | Content::Wrong => None,
        }
    }

    /// Whether the key was left out.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self.content, Content::Absent)
    }
}

/// A type that can be read from one value. `None` means that a problem was reported.
pub(crate) trait FromNode: Sized {
    /// Reads it.
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self>;
}

/// A table that is being read. Names are asked for one by one; what was never asked for is unknown.
pub(crate) struct Table<'p> {
    place: Place,
    entries: Vec<Entry>,
    known: Vec<&'static str>,
    /// Whether an unknown key here that looks like a secret is called one.
    secretive: bool,
    pub(crate) problems: &'p mut Problems,
}

impl Table<'_> {
    /// Says that people tend to write secrets here.
    pub(crate) fn secretive(&mut self) {
        self.secretive = true;
    }

    /// Reads the key.
    pub(crate) fn field<T: FromNode>(&mut self, name: &'static str) -> Field<T> {
        match self.take(name) {
            None => Field {
                place: self.place.child(name),
                content: Content::Absent,
            },
            Some(node) => Field {
                place: node.place.clone(),
                content: match T::from_node(node, self.problems) {
                    Some(value) => Content::There(value),
                    None => Content::Wrong,
                },
            },
        }
    }

    /// Reads a table below this one; left out, it is read as an empty one.
    pub(crate) fn section<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Table<'_>) -> T,
    ) -> T {
        let (place, entries) = match self.take(name) {
            None => (self.place.child(name), Vec::new()),
            Some(node) => {
                let place = node.place.clone();
                let entries = entries(node, self.problems).unwrap_or_default();
                (place, entries)
            }
        };
        read_entries(place, entries, self.problems, read)
    }

    fn take(&mut self, name: &'static str) -> Option<Node> {
        self.known.push(name);
        #[cfg(test)]
        self.problems
            .known
            .insert(super::tree::join(&self.place.key, name));
        let at = self.entries.iter().position(|entry| entry.name == name)?;
        Some(self.entries.remove(at).node)
    }

    fn report_unknown(self) {
        for entry in self.entries {
            if self.secretive && is_inline_secret(&entry) {
                inline_secret(&entry.place, self.problems);
                continue;
            }
            let problem = self
                .problems
                .error(&entry.place, "unknown_key", "this key is not known");
            match nearest(&entry.name, self.known.iter().copied()) {
                Some(name) => problem.help(format!("did you mean `{name}`?")),
                None => problem.help(format!("known here: {}", self.known.join(", "))),
            }
        }
    }
}

/// Reads a node as a table with known keys.
pub(crate) fn table<T>(
    node: Node,
    problems: &mut Problems,
    read: impl FnOnce(&mut Table<'_>) -> T,
) -> Option<T> {
    let place = node.place.clone();
    let entries = entries(node, problems)?;
    Some(read_entries(place, entries, problems, read))
}

/// Reports a secret that was written into the configuration, without a byte of it.
pub(crate) fn inline_secret(place: &Place, problems: &mut Problems) {
    problems
        .error(
            place,
            "inline_secret",
            "a secret is never written into the configuration",
        )
        .help("put it into a file or an environment variable: { file = \"...\" } or { env = \"...\" }, and replace it, since it has been written down");
}

/// Reports a value of the wrong type, without the value.
pub(crate) fn wrong_type(node: &Node, wanted: &str, problems: &mut Problems) {
    let message = format!("must be {wanted}, and is {}", node.value.kind());
    problems.error(&node.place, "wrong_type", message);
}

/// The name nearest to one that isn't known, if any is near.
pub(crate) fn nearest<'n>(written: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let written = written.to_ascii_lowercase().replace('-', "_");
    known
        .map(|name| {
            let plain = name.to_ascii_lowercase().replace('-', "_");
            (strsim::damerau_levenshtein(&written, &plain), name)
        })
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

fn is_inline_secret(entry: &Entry) -> bool {
    let name = entry.name.to_ascii_lowercase();
    let says_secret = ["secret", "value", "key", "token", "password", "hmac"]
        .iter()
        .any(|word| name.contains(word));
    let says_where = ["file", "path", "env"]
        .iter()
        .any(|word| name.contains(word));
    let scalar = !matches!(entry.node.value, Value::Array(_) | Value::Table(_));
    says_secret && !says_where && scalar
}

fn entries(node: Node, problems: &mut Problems) -> Option<Vec<Entry>> {
    let node = node.settle(|value| matches!(value, Value::Table(_)));
    match node.value {
        Value::Table(entries) => Some(entries),
        _ => {
            wrong_type(&node, "a table", problems);
            None
        }
    }
}

fn read_entries<T>(
    place: Place,
    entries: Vec<Entry>,
    problems: &mut Problems,
    read: impl FnOnce(&mut Table<'_>) -> T,
) -> T {
    let mut table = Table {
        place,
        entries,
        known: Vec::new(),
        secretive: false,
        problems,
    };
    let value = read(&mut table);
    table.report_unknown();
    value
}

/// Implements [`FromNode`] for an enum by its words.
macro_rules! words {
    ($type:ty { $($word:literal => $value:expr),+ $(,)? }) => {
        impl $crate::config::value::FromNode for $type {
            fn from_node(
                node: $crate::config::tree::Node,
                problems: &mut $crate::config::problem::Problems,
            ) -> Option<Self> {
                let place = node.place.clone();
                let text = String::from_node(node, problems)?;
                match text.as_str() {
                    $($word => Some($value),)+
                    _ => {
                        $crate::config::value::unknown_word(&place, &text, &[$($word),+], problems);
                        None
                    }
                }
            }
        }
    };
}
pub(crate) use words;

/// Reports a word that is none of those a key takes.
pub(crate) fn unknown_word(
    place: &Place,
    written: &str,
    words: &'static [&'static str],
    problems: &mut Problems,
) {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    let problem = problems.error(
        place,
        "unknown_word",
        format!("must be one of {}", quoted.join(", ")),
    );
    if let Some(word) = nearest(written, words.iter().copied()) {
        problem.help(format!("did you mean \"{word}\"?"));
    }
}

impl FromNode for String {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = node.settle(|value| matches!(value, Value::String(_)));
        match node.value {
            Value::String(text) => Some(text),
            _ => {
                wrong_type(&node, "a string", problems);
                None
            }
        }
    }
}

impl FromNode for bool {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = node.settle(|value| matches!(value, Value::Boolean(_)));
        match node.value {
            Value::Boolean(word) => Some(word),
            _ => {
                wrong_type(&node, "true or false", problems);
                None
            }
        }
    }
}

impl FromNode for u64 {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = node.settle(|value| matches!(value, Value::Integer(_)));
        match node.value {
            Value::Integer(number) => {
                let number = number.and_then(|number| u64::try_from(number).ok());
                if number.is_none() {
                    problems.error(
                        &node.place,
                        "out_of_bounds",
                        "must be zero or more, and below 2^63",
                    );
                }
                number
            }
            _ => {
                wrong_type(&node, "an integer", problems);
                None
            }
        }
    }
}

impl FromNode for Duration {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = node.settle(|value| matches!(value, Value::String(_)));
        let read = match &node.value {
            Value::String(text) => units::duration(text),
            _ => None,
        };
        if read.is_none() {
            problems
                .error(&node.place, "bad_duration", "is no duration")
                .help(units::DURATION_HELP);
        }
        read
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ByteSize(pub(crate) usize);

impl FromNode for ByteSize {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = node.settle(|value| matches!(value, Value::String(_) | Value::Integer(_)));
        let read = match &node.value {
            Value::String(text) => units::size(text),
            Value::Integer(Some(number)) => usize::try_from(*number).ok(),
            _ => None,
        };
        if read.is_none() {
            problems
                .error(&node.place, "bad_size", "is no size")
                .help(units::SIZE_HELP);
        }
        read.map(ByteSize)
    }
}

/// A list. All its items are read, so that all problems are told; one wrong item makes it wrong.
impl<T: FromNode> FromNode for Vec<At<T>> {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let node = node.settle(|value| matches!(value, Value::Array(_)));
        let Value::Array(items) = node.value else {
            wrong_type(&node, "an array", problems);
            return None;
        };
        let read: Vec<Option<At<T>>> = items
            .into_iter()
            .map(|item| read_at(item, problems))
            .collect();
        read.into_iter().collect()
    }
}

/// A table whose keys are names that the writer chose. One wrong value makes it wrong.
pub(crate) struct Named<T>(pub(crate) Vec<(At<String>, At<T>)>);

impl<T: FromNode> FromNode for Named<T> {
    fn from_node(node: Node, problems: &mut Problems) -> Option<Self> {
        let entries = entries(node, problems)?;
        let read: Vec<Option<_>> = entries
            .into_iter()
            .map(|entry| {
                let value = read_at(entry.node, problems)?;
                let name = At {
                    place: entry.place,
                    value: entry.name,
                };
                Some((name, value))
            })
            .collect();
        read.into_iter().collect::<Option<Vec<_>>>().map(Self)
    }
}

fn read_at<T: FromNode>(node: Node, problems: &mut Problems) -> Option<At<T>> {
    let place = node.place.clone();
    let value = T::from_node(node, problems)?;
    Some(At { place, value })
}
