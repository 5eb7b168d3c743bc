//! What is to be told of the configuration: in the log, and in `/readyz`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::clock::Clock;
use crate::config::Expiry;

/// Problems that are told of; the log has all.
const TOLD: usize = 20;

/// Certificates are told of this long before they end.
const AHEAD: Duration = Duration::from_secs(14 * 24 * 3600);

/// Between two warnings of certificates that are about to end.
const REMIND: Duration = Duration::from_secs(24 * 3600);

/// What became of the last change, and which certificates end soon.
#[derive(Debug, Default)]
pub(in crate::app) struct Status {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    refused: Vec<String>,
    waiting: Vec<&'static str>,
    certificates: Vec<Expiry>,
}

impl Status {
    /// Of a gate that has just started.
    pub(in crate::app) fn new(certificates: Vec<Expiry>) -> Self {
        Self {
            state: Mutex::new(State {
                certificates,
                ..State::default()
            }),
        }
    }

    pub(super) fn taken(&self, waiting: Vec<&'static str>, certificates: Vec<Expiry>) {
        *self.lock() = State {
            refused: Vec::new(),
            waiting,
            certificates,
        };
    }

    pub(super) fn refused(&self, problems: &[String]) {
        self.lock().refused = problems.to_vec();
    }

    /// Tells each day of certificates that have ended or soon will, by the key that names each and what to
    /// say; for ever. To be ended by dropping it.
    pub(in crate::app) async fn keep_reminding(
        &self,
        clock: Clock,
        mut tell: impl FnMut(&str, &str),
    ) {
        loop {
            for expiry in self.certificates() {
                if let Some(trouble) = expiry.trouble(clock.now(), AHEAD) {
                    tell(&expiry.key, &trouble);
                }
            }
            tokio::time::sleep(REMIND).await;
        }
    }

    fn certificates(&self) -> Vec<Expiry> {
        self.lock().certificates.clone()
    }

    /// What is in trouble, one sentence each.
    pub(in crate::app) fn degraded(&self, now: SystemTime) -> Vec<String> {
        let state = self.lock();
        let refused = state.refused.iter().take(TOLD);
        let mut told: Vec<String> = refused
            .map(|problem| {
                let problem = problem.replace('\n', ";");
                format!("the changed configuration is not taken: {problem}")
            })
            .collect();
        if let more @ 1.. = state.refused.len().saturating_sub(TOLD) {
            told.push(format!(
                "the changed configuration has {more} more problems: the log tells them"
            ));
        }
        if !state.waiting.is_empty() {
            let keys = state.waiting.join(", ");
            told.push(format!("changed, and waiting for a restart: {keys}"));
        }
        for expiry in &state.certificates {
            if let Some(trouble) = expiry.trouble(now, AHEAD) {
                told.push(format!("{}: {trouble}", expiry.key));
            }
        }
        told
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn expiry(not_after: SystemTime) -> Expiry {
        Expiry {
            key: "server.tls.certificate".to_owned(),
            not_after,
        }
    }

    #[test]
    fn certificates_are_told_of_from_two_weeks_on() {
        let now = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let told = |ends: SystemTime| Status::new(vec![expiry(ends)]).degraded(now);
        assert_eq!(told(now + 15 * DAY), [] as [&str; 0]);
        let soon = told(now + 13 * DAY + DAY / 2);
        assert_eq!(
            soon,
            ["server.tls.certificate: the certificate expires in 13 days"]
        );
        assert_eq!(
            told(now - DAY),
            ["server.tls.certificate: the certificate has expired"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn each_day_is_reminded_of_an_end_that_is_near() {
        let now = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let (clock, hands) = Clock::manual(now);
        let status = Status::new(vec![expiry(now + 15 * DAY)]);
        let told = std::cell::RefCell::new(Vec::new());
        let tell = |key: &str, trouble: &str| told.borrow_mut().push(format!("{key}: {trouble}"));
        // The hands move between two reminders, never at the same moment as one.
        let days = async {
            tokio::time::sleep(REMIND / 2).await;
            for _ in 0..3 {
                hands.advance(DAY);
                tokio::time::sleep(REMIND).await;
            }
        };
        tokio::select! {
            () = status.keep_reminding(clock, tell) => {}
            () = days => {}
        }
        // Reminded at once (15 days), then after each day.
        let expires =
            |days| format!("server.tls.certificate: the certificate expires in {days} days");
        assert_eq!(told.into_inner(), [expires(13), expires(12)]);
    }

    #[test]
    fn what_was_refused_is_told_until_something_is_taken() {
        let status = Status::new(Vec::new());
        let problems: Vec<String> = (0..TOLD + 3)
            .map(|n| format!("wrong {n}\n  help"))
            .collect();
        status.refused(&problems);
        let told = status.degraded(SystemTime::UNIX_EPOCH);
        assert_eq!(told.len(), TOLD + 1);
        assert!(told[0].contains("wrong 0;"), "{told:?}");
        assert!(told[TOLD].contains("3 more"), "{told:?}");
        status.taken(vec!["server.listen"], Vec::new());
        let told = status.degraded(SystemTime::UNIX_EPOCH);
        assert_eq!(told, ["changed, and waiting for a restart: server.listen"]);
    }
}
