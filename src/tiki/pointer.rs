//! JSON pointers (RFC 6901).

use super::json::Value;

/// Names one place in a JSON document, such as `/order/id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    text: String,
    /// The parts between the slashes, unescaped.
    tokens: Vec<String>,
}

impl Pointer {
    /// Reads `/a/b`, with `~1` for `/` and `~0` for `~`. The empty pointer, which names the whole
    /// document, is refused: no field is meant by it.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix('/') else {
            return Err(format!(
                "`{text}` is no JSON pointer: it must start with `/`"
            ));
        };
        let tokens = path
            .split('/')
            .map(unescape)
            .collect::<Option<_>>()
            .ok_or_else(|| {
                format!("`{text}` is no JSON pointer: `~` must be followed by `0` or `1`")
            })?;
        Ok(Self {
            text: text.to_owned(),
            tokens,
        })
    }

    /// The pointer to a member of the whole document; the name has neither `/` nor `~`.
    pub(super) fn of_name(name: &str) -> Self {
        Self {
            text: format!("/{name}"),
            tokens: vec![name.to_owned()],
        }
    }

    /// The pointer to a member of what this one names; the name has neither `/` nor `~`.
    pub(super) fn child(mut self, name: &str) -> Self {
        self.text.push('/');
        self.text.push_str(name);
        self.tokens.push(name.to_owned());
        self
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What stands at this place.
    pub fn lookup<'v>(&self, value: &'v serde_json::Value) -> Option<&'v serde_json::Value> {
        value.pointer(&self.text)
    }

    /// What stands at this place of a strictly read document.
    pub(super) fn find<'v, 'b>(&self, value: &'v Value<'b>) -> Option<&'v Value<'b>> {
        self.tokens.iter().try_fold(value, |value, token| {
            value.member(token).or_else(|| value.element(token))
        })
    }
}

fn unescape(token: &str) -> Option<String> {
    let mut plain = String::with_capacity(token.len());
    let mut rest = token.chars();
    while let Some(character) = rest.next() {
        plain.push(match character {
            '~' => match rest.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            other => other,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::*;

    /// The document and the answers of RFC 6901, section 5.
    #[test]
    fn both_kinds_of_documents_are_read_as_the_rfc_says() {
        let text = r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
        let usual: serde_json::Value = serde_json::from_str(text).unwrap();
        let strict = json::parse(text.as_bytes()).unwrap();
        for (pointer, expected) in [
            ("/", 0),
            ("/a~1b", 1),
            ("/c%d", 2),
            ("/e^f", 3),
            ("/g|h", 4),
            ("/i\\j", 5),
            ("/k\"l", 6),
            ("/ ", 7),
            ("/m~0n", 8),
        ] {
            let pointer = Pointer::parse(pointer).unwrap();
            assert_eq!(pointer.lookup(&usual), Some(&expected.into()));
            let expected = expected.to_string();
            assert!(
                matches!(pointer.find(&strict), Some(json::Value::Number(text)) if *text == expected),
                "{pointer:?}"
            );
        }
        let element = Pointer::parse("/foo/1").unwrap();
        assert_eq!(element.lookup(&usual), Some(&"baz".into()));
        assert!(matches!(element.find(&strict), Some(json::Value::String(text)) if text == "baz"));
        for nowhere in ["/foo/2", "/foo/01", "/foo/-", "/foo/0/x", "/bar", "/a/b"] {
            let pointer = Pointer::parse(nowhere).unwrap();
            assert_eq!(pointer.lookup(&usual), None, "{nowhere}");
            assert!(pointer.find(&strict).is_none(), "{nowhere}");
        }
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        for text in ["", "a", "a/b", "#/a", "/~", "/~2", "/a~/b"] {
            assert!(Pointer::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            Pointer::parse("/~01").unwrap(),
            Pointer {
                text: "/~01".to_owned(),
                tokens: vec!["~1".to_owned()]
            }
        );
    }
}
