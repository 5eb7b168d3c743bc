//! A record's events within its row: one JSON array a line, appended and never read on the way of a call.
//!
//! Beside a row of their own they would cost another insert and another index. A record keeps its
//! first and its latest ones; between them a line says how many are not there any more.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::Value;

use crate::ledger::texts::{micros, push_json, time_of};
use crate::ledger::{Event, State};

/// The first events of a record, which are always kept.
const FIRST: usize = 8;
/// All that are kept. A message that runs well has two.
const MOST: usize = 64;

/// Room for an event that is no person's word.
const USUAL_LENGTH: usize = 64;

/// A record's events as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EventText(String);

impl EventText {
    pub(super) fn stored(text: String) -> Self {
        Self(text)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn extend(&mut self, event: Option<&Event>) {
        let Some(event) = event else { return };
        if self.0.len() > MOST * 16 && self.0.lines().count() >= MOST {
            self.drop_one();
        }
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        // At once, and not in the five steps by which a text grows.
        self.0.reserve(USUAL_LENGTH);
        write(&mut self.0, event);
    }

    /// Takes the oldest that is not among the first out, and counts it in the line that stands for it.
    fn drop_one(&mut self) {
        let mut lines: Vec<_> = self.0.lines().collect();
        let dropped = lines.get(FIRST).and_then(|line| dropped_by(line));
        // The line itself takes the place of the first that goes.
        let gap = gap_line(lines[FIRST - 1], dropped.unwrap_or(1) + 1);
        lines.remove(FIRST);
        lines[FIRST] = &gap;
        self.0 = lines.join("\n");
    }

    /// Whether every line is an event.
    pub(super) fn is_whole(&self) -> bool {
        self.told().iter().all(|event| event.cause != UNREADABLE)
    }

    /// Whether some events are not kept any more.
    pub(super) fn has_gap(&self) -> bool {
        self.0.lines().any(|line| dropped_by(line).is_some())
    }

    /// The events, oldest first; what can't be read is told as such.
    pub(super) fn told(&self) -> Vec<Event> {
        self.0.lines().map(read).collect()
    }
}

/// `[micros, attempt, state, cause, by, reason]`, the last two only for a person's.
fn write(to: &mut String, event: &Event) {
    let Event {
        at,
        attempt,
        state,
        cause,
        by,
    } = event;
    // A text takes whatever is written to it.
    let _ = write!(to, "[{},{attempt},", micros(*at));
    push_json(to, state.as_str());
    to.push(',');
    push_json(to, cause);
    if let Some((name, reason)) = by {
        to.push(',');
        push_json(to, name);
        to.push(',');
        push_json(to, reason);
    }
    to.push(']');
}

/// Stands for the cause of what can't be read.
const UNREADABLE: &str = "(this event can't be read)";

const DROPPED: &str = " events not kept";

fn gap_line(before: &str, dropped: u64) -> String {
    let before = read(before);
    let mut line = String::new();
    write(
        &mut line,
        &Event {
            cause: format!("{dropped}{DROPPED}").into(),
            by: None,
            ..before
        },
    );
    line
}

fn dropped_by(line: &str) -> Option<u64> {
    read(line).cause.strip_suffix(DROPPED)?.parse().ok()
}

fn read(line: &str) -> Event {
    let parts: Vec<Value> = serde_json::from_str(line).unwrap_or_default();
    let text = |place: usize| parts.get(place).and_then(Value::as_str).map(str::to_owned);
    let at = parts.first().and_then(Value::as_i64);
    let state = text(2).and_then(|word| word.parse().ok());
    let attempt = parts.get(1).and_then(Value::as_u64);
    let readable = at.is_some() && state.is_some();
    Event {
        at: time_of(at.unwrap_or_default()),
        attempt: attempt.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        state: state.unwrap_or(State::Unknown),
        cause: match text(3).filter(|_| readable) {
            Some(cause) => Cow::Owned(cause),
            None => Cow::Borrowed(UNREADABLE),
        },
        by: text(4).map(|name| (name, text(5).unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: i64) -> Event {
        Event {
            at: time_of(number),
            attempt: 1,
            state: State::Claimed,
            cause: format!("cause {number}").into(),
            by: None,
        }
    }

    #[test]
    fn what_was_appended_is_told() {
        let mut text = EventText::default();
        text.extend(None);
        assert!(text.told().is_empty());
        text.extend(Some(&event(1)));
        let said = Event {
            by: Some(("linh".to_owned(), "the \"bank\"\nsaid so".to_owned())),
            ..event(2)
        };
        text.extend(Some(&said));
        let told = text.told();
        assert_eq!(told.len(), 2);
        assert_eq!(
            (told[0].cause.as_ref(), told[0].at),
            ("cause 1", time_of(1))
        );
        assert_eq!(told[1].by, said.by);
    }

    #[test]
    fn the_first_and_the_latest_are_kept_and_the_rest_is_counted() {
        let mut text = EventText::default();
        for number in 0..1000 {
            text.extend(Some(&event(number)));
        }
        let causes: Vec<_> = text
            .told()
            .into_iter()
            .map(|event| event.cause.into_owned())
            .collect();
        assert_eq!(causes.len(), MOST);
        assert_eq!(causes[FIRST - 1], "cause 7");
        assert_eq!(
            causes[FIRST],
            format!("{} events not kept", 1000 - MOST + 1)
        );
        assert_eq!(
            causes[FIRST + 1],
            format!("cause {}", 1000 - (MOST - FIRST - 1))
        );
        assert_eq!(causes.last().unwrap(), "cause 999");
    }

    #[test]
    fn a_damaged_line_is_told_as_such() {
        let text = EventText::stored("[1,1,\"done\",\"success\"]\n[1,".to_owned());
        let causes: Vec<_> = text
            .told()
            .into_iter()
            .map(|event| event.cause.into_owned())
            .collect();
        assert_eq!(causes, ["success", UNREADABLE]);
    }
}
