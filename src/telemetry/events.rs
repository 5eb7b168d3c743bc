//! `tracing` events, written as lines of the same shape as the access line.
//!
//! A line carries the event's fields and those of the spans around it; of equal names the innermost
//! counts. Values are formatted before any lock is taken, since a value's `Debug` may itself log.

use std::error::Error;
use std::fmt::{self, Write};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::line::Line;
use super::redact::{REDACTED, is_secret};
use super::sink::Sink;

/// The layer that takes events.
pub(super) struct EventLog {
    sink: Sink,
    buffer: usize,
}

/// A field's text is cut after this many bytes.
const TEXT_LIMIT: usize = 4096;

impl EventLog {
    pub(super) fn new(sink: Sink, buffer: usize) -> Self {
        Self { sink, buffer }
    }
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for EventLog {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut newer = Fields::default();
        values.record(&mut newer);
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            for (name, value) in newer.0 {
                fields.0.retain(|(known, _)| *known != name);
                fields.0.push((name, value));
            }
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.take_missing_from(outer);
            }
        }
        let message = fields.take_message();
        let metadata = event.metadata();
        let level = *metadata.level();
        self.sink
            .line(self.buffer, SystemTime::now(), |out, format, stamp| {
                let mut line = Line::begin(out, format, stamp, level, &message);
                line.text("target", metadata.target(), TEXT_LIMIT);
                for (name, value) in &fields.0 {
                    match value {
                        _ if is_secret(name) => line.text(*name, REDACTED, TEXT_LIMIT),
                        Value::Text(text) => line.text(*name, text, TEXT_LIMIT),
                        Value::Bare(text) => line.bare(*name, text),
                    }
                }
                line.end();
            });
    }
}

/// Fields by name, in the order they were written in.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

#[derive(Clone)]
enum Value {
    Text(String),
    /// A number or boolean, as JSON writes it.
    Bare(String),
}

/// Names that every line has already.
const TAKEN: [&str; 3] = ["time", "level", "target"];

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        if !TAKEN.contains(&field.name()) {
            self.0.push((field.name(), value));
        }
    }

    fn take_missing_from(&mut self, outer: &Self) {
        for (name, value) in &outer.0 {
            if *name != "message" && !self.0.iter().any(|(known, _)| known == name) {
                self.0.push((name, value.clone()));
            }
        }
    }

    fn take_message(&mut self) -> String {
        let Some(index) = self.0.iter().position(|(name, _)| *name == "message") else {
            return String::new();
        };
        match self.0.remove(index).1 {
            Value::Text(text) | Value::Bare(text) => text,
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Value::Text(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::Text(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}"); // a String takes everything
            source = cause.source();
        }
        self.add(field, Value::Text(text));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Bare(value.to_string()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Bare(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::Bare(value.to_string()));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.add(field, Value::Bare(value.to_string()));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.add(field, Value::Bare(value.to_string()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        let text = value.to_string();
        let value = match value.is_finite() {
            true => Value::Bare(text),
            false => Value::Text(text), // JSON has no word for it
        };
        self.add(field, value);
    }
}
