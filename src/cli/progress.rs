//! A line on standard error that says how far a long command is.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two looks of the line: where it is redrawn, and where each is one more line in a log.
const REDRAW_EVERY: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Tells how far a command is, now and then: on a terminal in one line that is redrawn, elsewhere in a
/// line every few seconds. A command that ends sooner says nothing.
pub(super) struct Progress<'a> {
    err: &'a mut dyn Write,
    redraws: bool,
    told: Instant,
    drawn: bool,
}

impl<'a> Progress<'a> {
    /// On `err`, which is standard error. Nothing is drawn over what the command itself writes to a
    /// terminal: `out_is_seen`.
    pub(super) fn on_stderr(err: &'a mut std::io::Stderr, out_is_seen: bool) -> Self {
        let redraws = err.is_terminal() && !out_is_seen;
        Self::new(err, redraws, Instant::now())
    }

    fn new(err: &'a mut dyn Write, redraws: bool, now: Instant) -> Self {
        Self {
            err,
            redraws,
            told: now,
            drawn: false,
        }
    }

    /// Tells what `text` says if it is time to.
    pub(super) fn tell(&mut self, text: impl FnOnce() -> String) {
        self.tell_at(Instant::now(), text);
    }

    /// Tells what is done from here on, for work that can't be told in parts.
    pub(super) fn announce(&mut self, text: &str) {
        if self.redraws {
            self.drawn = true;
            let _ = write!(self.err, "\r\x1b[K{text}").and_then(|()| self.err.flush());
        }
    }

    fn tell_at(&mut self, now: Instant, text: impl FnOnce() -> String) {
        let pause = if self.redraws {
            REDRAW_EVERY
        } else {
            LINE_EVERY
        };
        if now.duration_since(self.told) < pause {
            return;
        }
        self.told = now;
        // Where standard error is closed, the command goes on without.
        let _ = if self.redraws {
            self.drawn = true;
            write!(self.err, "\r\x1b[K{}", text()).and_then(|()| self.err.flush())
        } else {
            writeln!(self.err, "{}", text())
        };
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if self.drawn {
            let _ = write!(self.err, "\r\x1b[K").and_then(|()| self.err.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(redraws: bool, moments: &[Duration]) -> String {
        let mut err = Vec::new();
        let start = Instant::now();
        let mut progress = Progress::new(&mut err, redraws, start);
        for (number, moment) in moments.iter().enumerate() {
            progress.tell_at(start + *moment, || format!("at {number}"));
        }
        drop(progress);
        String::from_utf8(err).unwrap()
    }

    #[test]
    fn a_terminal_sees_one_line_that_goes_away() {
        let moments = [100, 300, 350, 600].map(Duration::from_millis);
        assert_eq!(told(true, &moments), "\r\x1b[Kat 1\r\x1b[Kat 3\r\x1b[K");
        assert_eq!(told(true, &[]), "");
    }

    #[test]
    fn a_log_gets_a_line_now_and_then() {
        let moments = [1, 5, 6, 9, 12].map(Duration::from_secs);
        assert_eq!(told(false, &moments), "at 1\nat 4\n");
    }
}
