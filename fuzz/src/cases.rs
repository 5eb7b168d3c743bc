//! The files of `tests/data/hostile/`: requests with what must become of them.
//!
//! ```text
//! # Why, for people: an RFC's section, or the trick's name.
//! == a length beside a coding
//! | POST /tiki/refund HTTP/1.1\r\n
//! | Host: gate.test\r\n
//! | {signature}Content-Length: {n}\r\n
//! | Transfer-Encoding: chunked\r\n
//! | \r\n
//! | {x}\r\n{body}\r\n0\r\n\r\n
//! = 400 malformed_request framing
//! = closed
//! ```
//! Lines with `|` are joined without their ends and without the space behind the bar; `\r`, `\n`,
//! `\t`, `\0`, `\\` and `\xNN` are escapes, and [`template`](super::template) lists the gaps. `.`
//! alone on a line stands for nothing more coming: the caller closes its half of the connection.
//! Each `=` is an answer, in their order; the last says what the connection is good for then.

/// One request, or what its sender takes for one.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name, of one file.
    pub name: String,
    /// Its line in the file, from 1.
    pub line: usize,
    /// The bytes, with gaps.
    pub template: Vec<u8>,
    /// Whether the caller says that it has sent all.
    pub ends: bool,
    /// What is answered, in this order, as [`Case`]'s module shows it.
    pub answers: Vec<String>,
    /// Whether a request behind it is answered.
    pub open: bool,
}

/// Reads a file.
///
/// # Panics
/// When it is not written as described, with the line.
pub fn read(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut complete = true;
    for (number, line) in (1..).zip(text.lines()) {
        let wrong = |what: &str| -> ! { panic!("line {number}: {what}: {line}") };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix("== ") {
            if !complete {
                wrong("the case before has no end");
            }
            complete = false;
            cases.push(Case {
                name: name.to_owned(),
                line: number,
                template: Vec::new(),
                ends: false,
                answers: Vec::new(),
                open: false,
            });
            continue;
        }
        let Some(case) = cases.last_mut().filter(|_| !complete) else {
            wrong("belongs to no case");
        };
        if let Some(bytes) = line.strip_prefix("| ") {
            match unescape(bytes) {
                Some(bytes) => case.template.extend(bytes),
                None => wrong("an unknown escape"),
            }
        } else if line == "." {
            case.ends = true;
        } else if let Some(answer) = line.strip_prefix("= ") {
            complete = matches!(answer, "open" | "closed");
            case.open = answer == "open";
            if !complete {
                case.answers.push(answer.to_owned());
            }
        } else {
            wrong("is none of `== `, `| `, `.`, `= `");
        }
    }
    assert!(complete, "the last case has no end");
    cases
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, behind @ ..] = rest {
        rest = behind;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let (escape, behind) = rest.split_first()?;
        rest = behind;
        bytes.push(match escape {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => {
                let (digits, behind) = rest.split_at_checked(2)?;
                rest = behind;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            _ => return None,
        });
    }
    Some(bytes)
}
