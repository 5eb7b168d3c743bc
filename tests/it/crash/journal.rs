//! What happened, in its order, as the backend, Tiki and the person saw it; and what must be true of
//! it whatever the gate went through.
//!
//! It lives in the test's process, which nobody kills: it is the truth that the ledger is held against.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// How the backend answered a refund.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// 200.
    Success,
    /// 422: never will be.
    Declined,
    /// 500 with the platform's envelope: wasn't now, may be asked again.
    NotApplied,
    /// Something that says nothing, or nothing.
    CantSay,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The backend got a refund, or the beginning of one; `moved` is whether it moved money.
    Forward {
        attempt: u32,
        moved: bool,
        reply: Reply,
    },
    /// Tiki began a call.
    Asked { call: u64 },
    /// Tiki got an answer to that call.
    Answer { call: u64, answer: Given },
    /// The person began to say what became of the attempt.
    Said { attempt: u32, word: Word },
}

/// An answer as Tiki tells answers apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) status: u16,
    pub(crate) body: String,
    /// `error.code` of the gate's or the backend's envelope.
    pub(crate) code: Option<String>,
}

/// What a person says of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Applied,
    NotApplied,
    Rejected,
}

impl Word {
    /// As the admin API wants it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Word::Applied => "applied",
            Word::NotApplied => "not_applied",
            Word::Rejected => "rejected",
        }
    }
}

impl Given {
    /// Whether Tiki asks no more after it. A person's "rejected" is a 500 to Tiki, which goes on
    /// asking and gets the same; the harness counts it as an end.
    pub(crate) fn is_final(&self) -> bool {
        self.status < 500 || self.code.as_deref() == Some("rejected")
    }

    /// Whether it is one of the gate's refusals that say nothing of the message.
    fn is_about_the_moment(&self) -> bool {
        let passing = [
            "ledger_unavailable",
            "in_progress",
            "overloaded",
            "draining",
        ];
        self.code
            .as_deref()
            .is_some_and(|code| passing.contains(&code))
    }
}

/// The events of each refund, in one order.
#[derive(Default)]
pub(crate) struct Journal {
    histories: Mutex<BTreeMap<Arc<str>, Vec<Event>>>,
    count: AtomicU64,
}

impl Journal {
    /// Notes that something happened now.
    pub(crate) fn note(&self, key: &Arc<str>, event: Event) {
        let mut histories = self.histories.lock().unwrap();
        histories.entry(Arc::clone(key)).or_default().push(event);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// How much has happened so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Whether this refund's money has moved.
    pub(crate) fn moved(&self, key: &str) -> bool {
        let moved = |event: &Event| matches!(event, Event::Forward { moved: true, .. });
        let histories = self.histories.lock().unwrap();
        histories
            .get(key)
            .is_some_and(|history| history.iter().any(moved))
    }

    /// By refund, what happened to it.
    pub(crate) fn histories(&self) -> BTreeMap<Arc<str>, Vec<Event>> {
        self.histories.lock().unwrap().clone()
    }

    /// Everything that must not have happened and did, a sentence each.
    pub(crate) fn faults(&self) -> Vec<String> {
        let histories = self.histories();
        let mut faults = Vec::new();
        for (key, history) in &histories {
            let found = faults_of(history);
            if let Some(first) = found.first() {
                faults.push(format!("{key}: {first}\n  {}", told(history)));
            }
        }
        faults
    }
}

/// A history for a person to read.
fn told(history: &[Event]) -> String {
    let lines: Vec<_> = history.iter().map(|event| format!("{event:?}")).collect();
    lines.join("\n  ")
}

/// What must be true of one refund's history.
pub(crate) fn faults_of(history: &[Event]) -> Vec<String> {
    let mut faults = Vec::new();
    sent_once(history, &mut faults);
    answers_are_true(history, &mut faults);
    final_answers_stay(history, &mut faults);
    faults
}

/// Promise 2: a second time only after a proof or a declaration that the first one changed nothing.
fn sent_once(history: &[Event], faults: &mut Vec<String>) {
    let moved = |event: &&Event| matches!(event, Event::Forward { moved: true, .. });
    let times = history.iter().filter(moved).count();
    if times > 1 {
        faults.push(format!("money moved {times} times"));
    }
    let mut last: Option<u32> = None;
    let mut released = true;
    for event in history {
        match event {
            Event::Forward { attempt, reply, .. } => {
                if !released {
                    faults.push(format!(
                        "attempt {attempt} was sent, and nothing had released it"
                    ));
                }
                if last.is_some_and(|last| *attempt <= last) {
                    faults.push(format!("attempt {attempt} was sent after attempt {last:?}"));
                }
                last = Some(*attempt);
                released = *reply == Reply::NotApplied;
            }
            Event::Said { attempt, word } if last.is_none_or(|last| last <= *attempt) => {
                released |= *word == Word::NotApplied;
            }
            Event::Said { .. } | Event::Asked { .. } | Event::Answer { .. } => {}
        }
    }
}

/// What Tiki is told for good has happened.
fn answers_are_true(history: &[Event], faults: &mut Vec<String>) {
    for (place, event) in history.iter().enumerate() {
        let Event::Answer { answer, .. } = event else {
            continue;
        };
        let before = &history[..place];
        let replied = |wanted: Reply| {
            let is =
                |event: &Event| matches!(event, Event::Forward { reply, .. } if *reply == wanted);
            before.iter().any(is)
        };
        let said = |wanted: Word| {
            let is = |event: &Event| matches!(event, Event::Said { word, .. } if *word == wanted);
            before.iter().any(is)
        };
        let true_word = match (answer.status, answer.code.as_deref()) {
            (200, _) => replied(Reply::Success) || said(Word::Applied),
            (422, Some("declined")) => replied(Reply::Declined),
            (_, Some("rejected")) => said(Word::Rejected),
            (status, _) => status >= 500,
        };
        if !true_word {
            faults.push(format!("{answer:?} was given, and nothing made it so"));
        }
    }
}

/// Promise 4: a final answer, once given, is given again the same way.
fn final_answers_stay(history: &[Event], faults: &mut Vec<String>) {
    let mut given: Option<&Given> = None;
    // Calls that were on their way when the first final answer came may have got their own before it.
    let mut on_their_way = BTreeSet::new();
    for event in history {
        match event {
            Event::Asked { call } if given.is_none() => {
                on_their_way.insert(*call);
            }
            Event::Answer { call, answer } => match given {
                None if answer.is_final() => given = Some(answer),
                Some(first) if answer.is_final() && answer != first => {
                    faults.push(format!("{answer:?} was given after {first:?}"));
                }
                Some(first) if !answer.is_final() => {
                    let excused = on_their_way.contains(call) || answer.is_about_the_moment();
                    if !excused {
                        faults.push(format!("{answer:?} was given after {first:?}"));
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }
}

mod tests {
    use super::*;

    fn forward(attempt: u32, reply: Reply) -> Event {
        let moved = matches!(reply, Reply::Success);
        Event::Forward {
            attempt,
            moved,
            reply,
        }
    }

    fn moved_silently(attempt: u32) -> Event {
        Event::Forward {
            attempt,
            moved: true,
            reply: Reply::CantSay,
        }
    }

    fn said(attempt: u32, word: Word) -> Event {
        Event::Said { attempt, word }
    }

    fn answer(call: u64, status: u16, code: Option<&str>) -> Event {
        let answer = Given {
            status,
            body: format!("{status} {code:?}"),
            code: code.map(str::to_owned),
        };
        Event::Answer { call, answer }
    }

    fn asked(call: u64) -> Event {
        Event::Asked { call }
    }

    #[test]
    fn an_honest_history_is_no_fault() {
        let histories = [
            vec![asked(1), forward(1, Reply::Success), answer(1, 200, None)],
            vec![
                asked(1),
                forward(1, Reply::NotApplied),
                answer(1, 500, Some("1")),
                asked(2),
                forward(2, Reply::Declined),
                answer(2, 422, Some("declined")),
                asked(3),
                answer(3, 422, Some("declined")),
            ],
            vec![
                asked(1),
                moved_silently(1),
                asked(2),
                answer(2, 500, Some("outcome_unknown")),
                said(1, Word::Applied),
                asked(3),
                answer(3, 200, None),
                asked(4),
                answer(4, 503, Some("ledger_unavailable")),
            ],
            vec![
                asked(1),
                forward(1, Reply::CantSay),
                said(1, Word::NotApplied),
                asked(2),
                forward(2, Reply::Success),
                asked(3),
                answer(2, 200, None),
                answer(3, 503, Some("in_progress")),
            ],
            vec![
                asked(1),
                said(1, Word::Rejected),
                answer(1, 500, Some("rejected")),
            ],
        ];
        for history in histories {
            assert!(faults_of(&history).is_empty(), "{:?}", faults_of(&history));
        }
    }

    #[test]
    fn each_broken_promise_is_seen() {
        let sent_again = "nothing had released it";
        let cases = [
            (
                vec![forward(1, Reply::Success), forward(2, Reply::Success)],
                "money moved 2 times",
            ),
            (
                vec![moved_silently(1), forward(2, Reply::CantSay)],
                sent_again,
            ),
            (
                vec![
                    forward(1, Reply::CantSay),
                    said(1, Word::NotApplied),
                    forward(2, Reply::CantSay),
                    forward(3, Reply::Declined),
                ],
                sent_again,
            ),
            // A word about an attempt says nothing of a later one.
            (
                vec![
                    forward(1, Reply::NotApplied),
                    forward(2, Reply::CantSay),
                    said(1, Word::NotApplied),
                    forward(3, Reply::Declined),
                ],
                sent_again,
            ),
            (
                vec![forward(1, Reply::NotApplied), forward(1, Reply::Success)],
                "sent after attempt",
            ),
            (
                vec![forward(1, Reply::CantSay), answer(1, 200, None)],
                "nothing made it so",
            ),
            (vec![answer(1, 409, Some("replayed"))], "nothing made it so"),
            (
                vec![
                    asked(1),
                    forward(1, Reply::Success),
                    answer(1, 200, None),
                    asked(2),
                    answer(2, 500, Some("outcome_unknown")),
                ],
                "was given after",
            ),
            (
                vec![
                    asked(1),
                    asked(2),
                    forward(1, Reply::Success),
                    answer(1, 200, None),
                    answer(2, 200, Some("other")),
                ],
                "was given after",
            ),
        ];
        for (history, complaint) in cases {
            let faults = faults_of(&history);
            let seen = faults.iter().any(|fault| fault.contains(complaint));
            assert!(seen, "{history:?}\n{faults:?}");
        }
    }
}
