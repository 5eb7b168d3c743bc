//! What is wrong with a configuration, and where.

use std::fmt;

use serde::Serialize;

use super::tree::{Origin, Place};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The gate doesn't start with it.
    Error,
    /// The gate starts, but somebody should look.
    Warning,
}

/// One thing that is wrong. No text in it ever holds a secret's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The file it stands in, or the name of the environment variable.
    pub file: String,
    /// The line, from 1; none for variables and for what concerns the whole file.
    pub line: Option<usize>,
    /// The column, from 1, in characters.
    pub column: Option<usize>,
    /// The key it is about, such as `routes.refund.path`; empty for the whole file.
    pub key: String,
    /// A stable word for it, such as `unknown_key`.
    pub code: &'static str,
    /// What is wrong, as a sentence.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Problem {
    /// Adds what to do about it.
    pub(crate) fn help(&mut self, help: impl Into<String>) {
        self.help = Some(help.into());
    }
}

/// `file:line:col: error[code] key: message`, and the help on a line of its own.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(column) = self.column {
            write!(f, ":{column}")?;
        }
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, ": {severity}[{}] ", self.code)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

/// Gathers problems while a configuration is read, so that all are told at once.
pub(crate) struct Problems {
    file: String,
    text: String,
    line_starts: Vec<usize>,
    found: Vec<Problem>,
    /// Every key that the schema asked for, so that tests can hold the documents to it.
    #[cfg(test)]
    pub(crate) known: std::collections::BTreeSet<String>,
}

impl Problems {
    /// For a file of this name and content.
    pub(crate) fn new(file: &str, text: &str) -> Self {
        let line_starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self {
            file: file.to_owned(),
            text: text.to_owned(),
            line_starts,
            found: Vec::new(),
            #[cfg(test)]
            known: std::collections::BTreeSet::new(),
        }
    }

    /// Adds an error.
    pub(crate) fn error(
        &mut self,
        place: &Place,
        code: &'static str,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.add(Severity::Error, place, code, message.into())
    }

    /// Adds a warning.
    pub(crate) fn warning(
        &mut self,
        place: &Place,
        code: &'static str,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.add(Severity::Warning, place, code, message.into())
    }

    /// Adds an error about a feature that this version knows by name only.
    pub(crate) fn not_available(&mut self, place: &Place, what: &str, instead: impl Into<String>) {
        self.error(
            place,
            "not_available",
            format!("{what} not available in this version"),
        )
        .help(instead);
    }

    /// Whether anything keeps the gate from starting.
    pub(crate) fn has_errors(&self) -> bool {
        self.found
            .iter()
            .any(|problem| problem.severity == Severity::Error)
    }

    /// All problems in the order of the file, those of variables last.
    pub(crate) fn into_sorted(self) -> Vec<Problem> {
        let mut found = self.found;
        found.sort_by_key(|problem| {
            let elsewhere = problem.file != self.file;
            (elsewhere, problem.line, problem.column)
        });
        found
    }

    fn add(
        &mut self,
        severity: Severity,
        place: &Place,
        code: &'static str,
        message: String,
    ) -> &mut Problem {
        let (file, position) = match &place.origin {
            Origin::Text(offset) => (self.file.clone(), Some(self.position(*offset))),
            Origin::Whole => (self.file.clone(), None),
            Origin::Variable(name) => (name.to_string(), None),
        };
        self.found.push(Problem {
            severity,
            file,
            line: position.map(|(line, _)| line),
            column: position.map(|(_, column)| column),
            key: place.key.clone(),
            code,
            message,
            help: None,
        });
        let last = self.found.len() - 1;
        &mut self.found[last]
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = self.line_starts[line.saturating_sub(1)];
        let before = self.text.get(start..offset).unwrap_or("");
        (line, before.chars().count() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: usize) -> Place {
        Place {
            key: "a.b".to_owned(),
            origin: Origin::Text(offset),
        }
    }

    #[test]
    fn a_problem_reads_as_a_compiler_would_say_it() {
        let mut problems = Problems::new("x.toml", "à = 1\nbé = 2\n");
        problems
            .error(&at(10), "bad", "is bad")
            .help("make it good");
        problems.warning(&at(0), "odd", "is odd");
        let found = problems.into_sorted();
        assert_eq!(found[0].to_string(), "x.toml:1:1: warning[odd] a.b: is odd");
        assert_eq!(
            found[1].to_string(),
            "x.toml:2:3: error[bad] a.b: is bad\n  help: make it good"
        );
    }

    #[test]
    fn variables_come_last_and_have_no_line() {
        let mut problems = Problems::new("x.toml", "a = 1\n");
        let variable = Place {
            key: "a".to_owned(),
            origin: Origin::Variable("TIKIGATE__A".into()),
        };
        problems.error(&variable, "bad", "is bad");
        problems.error(&at(0), "bad", "is bad");
        let found = problems.into_sorted();
        assert_eq!(found[1].to_string(), "TIKIGATE__A: error[bad] a: is bad");
        assert_eq!(found[1].line, None);
    }
}
