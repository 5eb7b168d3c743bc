//! The rules, one by one.

mod doubts;
mod history;

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::rules::{self, Policy, TRIES};
use super::types::{
    Accepted, Delivery, DeliveryId, Outcome, Posting, Report, State, Step, Tidings, Word, WordFault,
};
use crate::outbound::status::{Asked, Expected, Seen};
use crate::tiki::{Decimal, IpnReply, ReplyCode, TransactionStatus};

const POLICY: Policy = Policy {
    retry_after: Duration::from_secs(1),
    longest_pause: Duration::from_secs(60),
    give_up_after: Duration::from_secs(3600),
    tells: true,
};

/// The deliveries of one transaction, and a clock.
struct Bench {
    deliveries: Vec<Delivery>,
    now: SystemTime,
    generation: u64,
    quarantined: bool,
}

fn posting(status: Option<&str>, amount: &str) -> Posting {
    let status_of = |word| TransactionStatus::parse(word).unwrap();
    Posting {
        client: "c".to_owned(),
        base_url: "https://tiki".to_owned(),
        expected: Expected {
            tiki_transaction_id: "T".to_owned(),
            transaction_id: "p".to_owned(),
            amount: Decimal::parse(amount).unwrap(),
            status: status.map_or(TransactionStatus::Success, status_of),
        },
        body: Bytes::from_static(b"{}"),
    }
}

impl Bench {
    fn new() -> Self {
        Self {
            deliveries: Vec::new(),
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            generation: 1,
            quarantined: false,
        }
    }

    fn tidings(&self) -> Tidings {
        Tidings {
            now: self.now,
            generation: self.generation,
            quarantined: self.quarantined,
            chance: 1.0,
        }
    }

    fn post(&mut self, status: Option<&str>, amount: &str) -> Accepted {
        let tidings = self.tidings();
        match rules::post(&mut self.deliveries, &posting(status, amount), tidings) {
            Ok(accepted) => accepted,
            Err(mut first) => {
                first.id = DeliveryId(self.deliveries.len() as u64 + 1);
                let id = first.id;
                self.deliveries.push(*first);
                Accepted::Stored(id)
            }
        }
    }

    /// Takes what is due, waiting for it if need be; its id, flight and step.
    fn take(&mut self) -> Option<(DeliveryId, u64, Step)> {
        let pending = self
            .deliveries
            .iter()
            .filter(|one| one.state == State::Pending);
        self.now = pending.map(|one| one.next_at).max()?.max(self.now);
        let tidings = self.tidings();
        let index = rules::take(&mut self.deliveries, tidings)?;
        let taken = &self.deliveries[index];
        Some((taken.id, taken.flight, taken.step))
    }

    fn record(&mut self, (id, flight, _): (DeliveryId, u64, Step), report: Report) -> &Delivery {
        let tidings = self.tidings();
        let mut tried = self.get(id).clone();
        tried.flight = flight;
        rules::record(&mut self.deliveries, &tried, &report, POLICY, tidings);
        self.get(id)
    }

    /// Takes and records.
    fn turn(&mut self, step: Step, report: Report) -> &Delivery {
        let taken = self.take().unwrap();
        assert_eq!(taken.2, step);
        self.record(taken, report)
    }

    fn get(&self, id: DeliveryId) -> &Delivery {
        self.deliveries.iter().find(|one| one.id == id).unwrap()
    }

    fn word(&mut self, id: u64, retry: bool) -> Result<(), WordFault> {
        let word = Word {
            retry,
            by: "linh".to_owned(),
            reason: "looked".to_owned(),
        };
        let tidings = self.tidings();
        rules::word(&mut self.deliveries, DeliveryId(id), &word, tidings).map(|_| ())
    }
}

fn refused(code: ReplyCode) -> Report {
    Report::Answered(IpnReply::Refused(Some(code)))
}

const TAKEN: Report = Report::Answered(IpnReply::Taken);
const UNCLEAR: Report = Report::Answered(IpnReply::Again);

fn lost() -> Report {
    Report::NoAnswer("reset".to_owned())
}

fn not_sent() -> Report {
    Report::NotSent("refused".to_owned())
}

fn seen(status: TransactionStatus) -> Seen {
    Seen {
        tiki_transaction_id: "T".to_owned(),
        transaction_id: "p".to_owned(),
        amount: Decimal::parse("1000").unwrap(),
        status,
    }
}

fn other() -> Report {
    Report::Asked(Asked::Other(seen(TransactionStatus::Failure)))
}

const FINAL: [ReplyCode; 5] = [
    ReplyCode::InvalidRequest,
    ReplyCode::NotFound,
    ReplyCode::NotThisPartners,
    ReplyCode::WrongAmount,
    ReplyCode::Cancelled,
];

#[test]
fn a_first_answer_counts_as_it_is() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.post(Some("SUCCESS"), "1000"),
        Accepted::Stored(DeliveryId(1))
    );
    let done = bench.turn(Step::Send, TAKEN);
    assert_eq!(
        (done.state, done.outcome, done.tell_at),
        (State::Delivered, Some(Outcome::Taken), None)
    );
    assert_eq!(bench.take(), None);
    for code in FINAL {
        let mut bench = Bench::new();
        bench.post(Some("SUCCESS"), "1000");
        // Nothing went out before: what was not sent can't have been taken.
        bench.turn(Step::Send, not_sent());
        let now = bench
            .take()
            .map(|taken| bench.record(taken, refused(code)).clone())
            .unwrap();
        assert_eq!(now.outcome, Some(Outcome::Refused(Some(code.number()))));
        assert_eq!((now.state, now.tell_at), (State::Failed, Some(bench.now)));
    }
}

#[test]
fn after_a_try_that_may_have_been_taken_a_refusal_waits_for_the_status() {
    for earlier in [lost(), UNCLEAR] {
        for code in FINAL {
            let start = || {
                let mut bench = Bench::new();
                bench.post(Some("SUCCESS"), "1000");
                bench.turn(Step::Send, earlier.clone());
                let waiting = bench.turn(Step::Send, refused(code));
                assert_eq!((waiting.state, waiting.step), (State::Pending, Step::Ask));
                bench
            };
            let delivered = start().turn(Step::Ask, Report::Asked(Asked::Same)).clone();
            assert_eq!(delivered.outcome, Some(Outcome::Confirmed));
            let failed = start().turn(Step::Ask, other()).clone();
            assert_eq!(failed.outcome, Some(Outcome::Refused(Some(code.number()))));
            // What says nothing decides nothing, however often.
            let mut bench = start();
            for nothing in [
                Report::Asked(Asked::Nothing("503".to_owned())),
                Report::Asked(Asked::Pending(seen(TransactionStatus::Pending))),
                Report::Asked(Asked::Refused(ReplyCode::InvalidRequest)),
                Report::Asked(Asked::Refused(ReplyCode::NotThisPartners)),
            ] {
                assert_eq!(bench.turn(Step::Ask, nothing).state, State::Pending);
            }
            while bench.deliveries[0].state == State::Pending {
                bench.turn(Step::Ask, Report::Asked(Asked::Nothing(String::new())));
            }
            let given_up = &bench.deliveries[0];
            assert_eq!(
                given_up.outcome,
                Some(Outcome::GaveUp),
                "never a refund by silence"
            );
        }
    }
}

#[test]
fn three_unclear_tries_and_then_the_status_is_asked_between_further_ones() {
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    let began = bench.now;
    for _ in 0..TRIES {
        bench.turn(Step::Send, UNCLEAR);
    }
    let took = bench.now.duration_since(began).unwrap();
    assert_eq!(took, Duration::from_secs(3), "pauses of 1 s and 2 s");
    bench.turn(Step::Ask, Report::Asked(Asked::Nothing(String::new())));
    bench.turn(Step::Send, lost());
    bench.turn(
        Step::Ask,
        Report::Asked(Asked::Pending(seen(TransactionStatus::Pending))),
    );
    bench.turn(Step::Send, UNCLEAR);
    assert_eq!(
        bench.turn(Step::Ask, Report::Asked(Asked::Same)).state,
        State::Delivered
    );

    // As long as nothing was ever sent there is nothing to ask about.
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    while bench.deliveries[0].state == State::Pending {
        bench.turn(Step::Send, not_sent());
    }
    let delivery = &bench.deliveries[0];
    assert_eq!(delivery.outcome, Some(Outcome::GaveUp));
    assert_eq!(
        bench.now,
        delivery.opened_at + POLICY.give_up_after,
        "the last try is at the end"
    );
    assert!(delivery.tries > 50, "{}", delivery.tries);
    assert_eq!(delivery.events.len(), 24, "what is kept of it is bounded");
}

#[test]
fn the_same_is_one_delivery_and_another_amount_is_refused() {
    let mut bench = Bench::new();
    bench.post(Some("PENDING"), "1000");
    assert_eq!(
        bench.post(Some("PENDING"), "1e3"),
        Accepted::Known(DeliveryId(1), State::Pending)
    );
    for status in [Some("PENDING"), Some("SUCCESS"), None] {
        assert!(matches!(
            bench.post(status, "1001"),
            Accepted::Conflict(DeliveryId(1), _)
        ));
    }
    bench.turn(Step::Send, TAKEN);
    assert_eq!(
        bench.post(Some("PENDING"), "1000"),
        Accepted::Known(DeliveryId(1), State::Delivered)
    );
    // The older form of the message has no status, and means that it was paid.
    bench.post(Some("SUCCESS"), "1000");
    assert_eq!(
        bench.post(None, "1000"),
        Accepted::Known(DeliveryId(2), State::Pending)
    );
    // A person who took it back has spoken on its amount, too.
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    bench.word(1, false).unwrap();
    assert_eq!(
        bench.post(Some("SUCCESS"), "1001"),
        Accepted::Reopened(DeliveryId(1))
    );
    assert_eq!(bench.deliveries[0].amount, "1001");
}

#[test]
fn a_later_state_takes_the_place_of_one_that_is_not_delivered() {
    let mut bench = Bench::new();
    bench.post(Some("PENDING"), "1000");
    bench.turn(Step::Send, lost());
    assert_eq!(
        bench.post(Some("SUCCESS"), "1000"),
        Accepted::Stored(DeliveryId(2))
    );
    assert_eq!(bench.get(DeliveryId(1)).state, State::Superseded);
    assert_eq!(bench.turn(Step::Send, TAKEN).id, DeliveryId(2));
    // It comes too late, and not twice.
    assert_eq!(
        bench.post(Some("PENDING"), "1000"),
        Accepted::Known(DeliveryId(1), State::Superseded)
    );
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    assert!(matches!(
        bench.post(Some("PENDING"), "1000"),
        Accepted::Conflict(DeliveryId(1), _)
    ));
}

#[test]
fn while_one_is_at_tiki_the_next_one_waits() {
    let mut bench = Bench::new();
    bench.post(Some("PENDING"), "1000");
    let flying = bench.take().unwrap();
    bench.post(Some("SUCCESS"), "1000");
    assert_eq!(
        bench.get(DeliveryId(1)).state,
        State::Pending,
        "it is at Tiki"
    );
    assert_eq!(bench.take(), None);
    assert_eq!(bench.word(1, false), Err(WordFault::InFlight));
    assert_eq!(bench.record(flying, UNCLEAR).state, State::Superseded);
    assert_eq!(bench.take().unwrap().0, DeliveryId(2));

    // Refused for good, it is not what the customer is refunded for: the later state is asked, too.
    let mut bench = Bench::new();
    bench.post(Some("PENDING"), "1000");
    let flying = bench.take().unwrap();
    bench.post(Some("SUCCESS"), "1000");
    let ended = bench.record(flying, refused(ReplyCode::WrongAmount));
    assert_eq!((ended.state, ended.tell_at), (State::Superseded, None));
}

#[test]
fn a_try_whose_process_died_may_have_been_taken() {
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    let dead = bench.take().unwrap();
    bench.now += rules::FLIGHT;
    let second = bench.take().unwrap();
    assert!(bench.get(DeliveryId(1)).maybe_taken);
    // What the dead one says now changes nothing while another is at Tiki.
    assert_eq!(
        bench.record(dead, refused(ReplyCode::NotFound)).state,
        State::Pending
    );
    assert_eq!(
        bench.record(second, refused(ReplyCode::NotFound)).step,
        Step::Ask
    );
    // But that it was taken after all is worth knowing.
    assert_eq!(bench.record(dead, TAKEN).state, State::Delivered);
}

#[test]
fn a_flight_that_never_began_leaves_no_trace() {
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    let before = bench.deliveries[0].clone();
    let (_, flight, _) = bench.take().unwrap();
    assert!(rules::give_back(&mut bench.deliveries[0], flight));
    let after = &bench.deliveries[0];
    assert_eq!(
        (after.tries, after.maybe_taken),
        (before.tries, before.maybe_taken)
    );
    assert!(!rules::give_back(&mut bench.deliveries[0], flight));
}

#[test]
fn after_the_store_forgot_the_status_is_asked_before_anything_is_sent() {
    let forgetful = || {
        let mut bench = Bench::new();
        bench.post(Some("SUCCESS"), "1000");
        bench.generation += 1;
        bench
    };
    let mut bench = forgetful();
    for nothing in [
        Report::Asked(Asked::Nothing(String::new())),
        Report::Asked(Asked::Refused(ReplyCode::NotThisPartners)),
    ] {
        assert_eq!(bench.turn(Step::Ask, nothing).step, Step::Ask);
    }
    bench.turn(
        Step::Ask,
        Report::Asked(Asked::Refused(ReplyCode::NotFound)),
    );
    // What was sent before it forgot may have been taken.
    assert_eq!(
        bench.turn(Step::Send, refused(ReplyCode::WrongAmount)).step,
        Step::Ask
    );

    assert_eq!(
        forgetful()
            .turn(Step::Ask, Report::Asked(Asked::Same))
            .outcome,
        Some(Outcome::Confirmed)
    );
    assert_eq!(
        forgetful().turn(Step::Ask, other()).outcome,
        Some(Outcome::Contradicted)
    );
}

#[test]
fn what_is_pending_no_more_is_no_reason_for_a_refund() {
    let mut bench = Bench::new();
    bench.post(Some("PENDING"), "1000");
    bench.turn(Step::Send, lost());
    bench.turn(Step::Send, refused(ReplyCode::Cancelled));
    let later = Report::Asked(Asked::Later(seen(TransactionStatus::Success)));
    assert_eq!(bench.turn(Step::Ask, later).state, State::Superseded);
}

#[test]
fn people_try_again_and_take_back() {
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    bench.turn(Step::Send, lost());
    bench.word(1, false).unwrap();
    assert_eq!(bench.deliveries[0].state, State::Cancelled);
    assert_eq!(bench.take(), None);
    assert_eq!(bench.word(1, false), Err(WordFault::Over(State::Cancelled)));
    bench.word(1, true).unwrap();
    // An earlier try may have been taken: first the question.
    bench.turn(
        Step::Ask,
        Report::Asked(Asked::Refused(ReplyCode::NotFound)),
    );
    bench.turn(Step::Send, TAKEN);
    assert_eq!(bench.word(1, true), Err(WordFault::Over(State::Delivered)));
    assert_eq!(bench.word(2, true), Err(WordFault::NotFound));
    let events = &bench.deliveries[0].events;
    let said: Vec<_> = events.iter().filter(|event| event.by.is_some()).collect();
    assert_eq!(said.len(), 2);
    assert_eq!(said[0].detail.as_deref(), Some("looked"));

    // What a later state took the place of stays so.
    let mut bench = Bench::new();
    bench.post(Some("PENDING"), "1000");
    bench.post(Some("SUCCESS"), "1000");
    assert_eq!(bench.word(1, true), Err(WordFault::Overtaken));
    let anonymous = Word {
        retry: true,
        by: " ".to_owned(),
        reason: "x".to_owned(),
    };
    let tidings = bench.tidings();
    assert_eq!(
        rules::word(&mut bench.deliveries, DeliveryId(2), &anonymous, tidings),
        Err(WordFault::Unattributed)
    );
}

#[test]
fn the_backend_is_told_until_it_hears() {
    let mut bench = Bench::new();
    bench.post(Some("SUCCESS"), "1000");
    bench.turn(Step::Send, refused(ReplyCode::WrongAmount));
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let tidings = bench.tidings();
        let told = bench.deliveries[0].clone();
        rules::told(&mut bench.deliveries[0], &told, false, POLICY, tidings);
        let tell_at = bench.deliveries[0].tell_at.unwrap();
        pauses.push(tell_at.duration_since(bench.now).unwrap());
    }
    assert_eq!(pauses, [1, 2, 4].map(Duration::from_secs));
    let tidings = bench.tidings();
    let told = bench.deliveries[0].clone();
    rules::told(&mut bench.deliveries[0], &told, true, POLICY, tidings);
    assert_eq!(bench.deliveries[0].tell_at, None);
    // Opened again it may fail again, and is told again.
    assert_eq!(
        bench.post(Some("SUCCESS"), "1000"),
        Accepted::Reopened(DeliveryId(1))
    );
    bench.turn(Step::Send, refused(ReplyCode::WrongAmount));
    assert!(bench.deliveries[0].tell_at.is_some());
}
