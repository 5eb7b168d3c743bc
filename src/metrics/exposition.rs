//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};

use super::cells::Total;

/// A family's type.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Label names and values.
pub(super) type Labels<'l> = &'l [(&'static str, &'l str)];

/// An exposition in the making: each family is declared, then its samples follow.
#[derive(Default)]
pub(super) struct Exposition {
    text: String,
    family: &'static str,
}

impl Exposition {
    /// Declares the family that the next samples belong to. `help` has no line ends or backslashes.
    pub(super) fn family(&mut self, kind: Kind, name: &'static str, help: &'static str) {
        self.family = name;
        self.write(format_args!(
            "# HELP {name} {help}\n# TYPE {name} {}\n",
            kind.as_str()
        ));
    }

    /// One sample of a counter or gauge.
    pub(super) fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        self.line("", labels, None, value);
    }

    /// All samples of one histogram.
    pub(super) fn histogram(&mut self, labels: Labels<'_>, total: &Total) {
        for (bound, count) in total.cumulative() {
            self.line("_bucket", labels, Some(bound), count);
        }
        self.line("_sum", labels, None, total.sum_seconds());
        self.line("_count", labels, None, total.count());
    }

    /// The whole text.
    pub(super) fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, bound: Option<f64>, value: impl Display) {
        self.text.push_str(self.family);
        self.text.push_str(suffix);
        let mut separator = '{';
        for (name, value) in labels {
            self.text.push(separator);
            self.text.push_str(name);
            self.text.push_str("=\"");
            self.escaped(value);
            self.text.push('"');
            separator = ',';
        }
        if let Some(bound) = bound {
            self.text.push(separator);
            separator = ',';
            match bound.is_finite() {
                true => self.write(format_args!("le=\"{bound}\"")),
                false => self.text.push_str("le=\"+Inf\""),
            }
        }
        if separator == ',' {
            self.text.push('}');
        }
        self.write(format_args!(" {value}\n"));
    }

    fn escaped(&mut self, value: &str) {
        for c in value.chars() {
            match c {
                '\\' => self.text.push_str("\\\\"),
                '"' => self.text.push_str("\\\""),
                '\n' => self.text.push_str("\\n"),
                other => self.text.push(other),
            }
        }
    }

    fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        let _ = self.text.write_fmt(arguments); // a String takes everything
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut exposition = Exposition::default();
        exposition.family(Kind::Gauge, "a_thing", "A thing.");
        exposition.sample(&[("x", "q\" b\\ n\n é"), ("y", "")], 0.5);
        exposition.sample(&[], 7);
        assert_eq!(
            exposition.finish(),
            "# HELP a_thing A thing.\n# TYPE a_thing gauge\n\
             a_thing{x=\"q\\\" b\\\\ n\\n é\",y=\"\"} 0.5\na_thing 7\n"
        );
    }
}
