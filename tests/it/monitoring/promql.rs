//! What an expression names: selectors with their matchers.

/// A metric's name with its matchers, as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Selector {
    pub(super) name: String,
    /// With the braces; empty without any.
    pub(super) matchers: String,
}

impl Selector {
    /// As it is written in a query.
    pub(super) fn text(&self) -> String {
        format!("{}{}", self.name, self.matchers)
    }
}

/// Words that look like a metric's name and are none. Functions and aggregations are told by what follows.
const WORDS: [&str; 11] = [
    "by",
    "on",
    "without",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
    "and",
    "or",
    "unless",
];

/// Every selector of an expression, in its order.
pub(super) fn selectors(expression: &str) -> Vec<Selector> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphanumeric() || "_:\"'([{".contains(c)) {
        rest = &rest[at..];
        let first = rest.chars().next().unwrap();
        match first {
            '"' | '\'' => rest = after(&rest[1..], first),
            '[' => rest = after(rest, ']'),
            '{' => panic!("a selector without a name in {expression}"),
            '(' => rest = &rest[1..],
            _ => {
                let end = rest
                    .find(|c: char| !(c.is_ascii_alphanumeric() || "_:.".contains(c)))
                    .unwrap_or(rest.len());
                let (word, follows) = rest.split_at(end);
                rest = follows;
                let follows = follows.trim_start();
                if first.is_ascii_digit() {
                    continue;
                }
                if WORDS.contains(&word) {
                    if let Some(labels) = follows.strip_prefix('(')
                        && !["and", "or", "unless"].contains(&word)
                    {
                        rest = after(labels, ')');
                    }
                } else if !is_call(follows) {
                    let matchers = match follows.strip_prefix('{') {
                        Some(_) => {
                            let end = end_of_matchers(follows);
                            rest = &follows[end..];
                            follows[..end].to_owned()
                        }
                        None => String::new(),
                    };
                    found.push(Selector {
                        name: word.to_owned(),
                        matchers,
                    });
                }
            }
        }
    }
    found
}

/// Whether a word before this is a function or an aggregation.
fn is_call(follows: &str) -> bool {
    follows.starts_with('(') || follows.starts_with("by ") || follows.starts_with("by(")
}

/// After the next `end`.
fn after(text: &str, end: char) -> &str {
    text.split_once(end)
        .unwrap_or_else(|| panic!("no {end} in {text}"))
        .1
}

/// Where the matchers that begin here end; a brace in a quoted value doesn't count.
fn end_of_matchers(text: &str) -> usize {
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '}' if !quoted => return at + 1,
            _ => {}
        }
    }
    panic!("no end of {text}");
}

#[test]
fn selectors_are_told_from_functions_labels_and_numbers() {
    let text = r#"histogram_quantile(0.99, sum by (job, le) (rate(a_bucket{le="{13}",x!~"b|c"}[5m]))) > 1e3
        or (count by (job) (d) unless on (job, instance) e offset 10m) and f:g:h5m == bool 2 * time()"#;
    let found: Vec<_> = selectors(text).iter().map(Selector::text).collect();
    assert_eq!(
        found,
        [r#"a_bucket{le="{13}",x!~"b|c"}"#, "d", "e", "f:g:h5m"]
    );
}
