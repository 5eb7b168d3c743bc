//! Many refunds with many duplicates at once, in front of a backend in every mood.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tikigate::ledger::State;
use tokio::task::JoinSet;

use super::{MILLISECOND, QUICK, changed};
use crate::support::backend::{Answer, Backend, Behaviour, Hold, OnConnect, Seen};
use crate::support::gate::{Call, TestGate, refund};
use crate::support::in_time;
use crate::support::raw::RawClient;

const SEED: u64 = 0x7469_6b69_6761_7465;
const REFUNDS: usize = 300;
const COPIES: usize = 4;
const CALLERS: usize = 14;

/// Random numbers that are the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn of(name: &str) -> Self {
        Self(name.bytes().fold(SEED, |sum, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        }))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What the backend did with a refund, by its own books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Applied,
    Declined,
    /// It said so: the refund may come again.
    NotApplied,
    /// It may have applied it; the gate can't know.
    Nothing,
}

type Books = Arc<Mutex<BTreeMap<String, Vec<Told>>>>;

fn mood(seen: &Seen, books: &Books) -> Behaviour {
    let key = seen.header("idempotency-key").unwrap().to_owned();
    let attempt = seen.header("x-tikigate-attempt").unwrap();
    let mut dice = Dice::of(&format!("{key}/{attempt}"));
    let body = format!(r#"{{"refund":"{key}","attempt":{attempt}}}"#);
    let failure = r#"{"data":null,"error":{"code":"2","message":"not now"}}"#;
    let (told, behaviour): (Told, Behaviour) = match dice.below(100) {
        0..40 => (Told::Applied, Answer::json(200, &body).into()),
        40..50 => (Told::Declined, Answer::json(422, &body).into()),
        50..65 => (Told::NotApplied, Answer::json(500, failure).into()),
        65..75 => (Told::NotApplied, Answer::new(429).into()),
        75..79 => (Told::Nothing, Answer::json(503, "{}").into()),
        79..83 => (Told::Nothing, Behaviour::Close),
        83..88 => (Told::Nothing, Behaviour::Reset),
        88..92 => (Told::Nothing, Behaviour::half_a_body()),
        92..96 => (Told::Nothing, Behaviour::malformed()),
        _ => (Told::Nothing, Behaviour::half_a_head()),
    };
    let pause = match dice.below(20) {
        0..8 => Duration::ZERO,
        8..18 => MILLISECOND * (dice.below(40) as u32),
        // Longer than Tiki waits.
        _ => MILLISECOND * (400 + dice.below(300) as u32),
    };
    books.lock().unwrap().entry(key).or_default().push(told);
    slowly(behaviour, pause)
}

fn slowly(behaviour: Behaviour, pause: Duration) -> Behaviour {
    if pause.is_zero() {
        return behaviour;
    }
    let hold = Hold::new();
    let held = hold.clone();
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        held.release();
    });
    behaviour.held(&hold)
}

/// Some connections end before a request was read.
fn on_connect(number: usize) -> OnConnect {
    match Dice::of(&format!("connection {number}")).below(40) {
        0 => OnConnect::Close,
        1 => OnConnect::Reset,
        _ => OnConnect::Serve,
    }
}

/// A call with the refund it is for; some callers don't wait for the answer.
struct Job {
    key: String,
    bytes: Vec<u8>,
    hangs_up: bool,
}

fn jobs(gate: &TestGate) -> Vec<Job> {
    let mut dice = Dice::of("jobs");
    let mut jobs = Vec::new();
    for number in 0..REFUNDS {
        let key = format!("r-{number}");
        for _ in 0..COPIES {
            let amount = ["1000", "1e3", "1000.00"][dice.below(3) as usize];
            let at = gate.now() - MILLISECOND * (dice.below(200_000) as u32);
            let call = Call::post("/tiki/refund", refund(&key, amount), at);
            jobs.push(Job {
                key: key.clone(),
                bytes: call.to_bytes(),
                hangs_up: dice.below(20) == 0,
            });
        }
    }
    // Copies of one refund come close to one another, in no fixed order.
    for place in 0..jobs.len() {
        let other = (place + dice.below(16) as usize).min(jobs.len() - 1);
        jobs.swap(place, other);
    }
    jobs
}

/// An answer as a caller saw it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Heard {
    status: u16,
    body: String,
}

type Answers = HashMap<String, Vec<Heard>>;

/// Sends all jobs over some connections at once, each taking the next that is left.
async fn send_all(gate: &TestGate, jobs: Vec<Job>, answers: &mut Answers) {
    let jobs = Arc::new(Mutex::new(jobs.into_iter()));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (address, jobs) = (gate.address().clone(), Arc::clone(&jobs));
        callers.spawn(async move {
            let mut got = Vec::new();
            let mut client = RawClient::connect(&address).await;
            loop {
                let Some(job) = jobs.lock().unwrap().next() else {
                    return got;
                };
                client.send(&job.bytes).await;
                if job.hangs_up {
                    client = RawClient::connect(&address).await;
                    continue;
                }
                let answer = client.read_answer().await;
                let body = answer.text().to_owned();
                let status = answer.status;
                got.push((job.key, Heard { status, body }));
            }
        });
    }
    for (key, answer) in callers.join_all().await.into_iter().flatten() {
        answers.entry(key).or_default().push(answer);
    }
    let settled = async {
        while gate.app().running_calls() > 0 {
            tokio::time::sleep(5 * MILLISECOND).await;
        }
    };
    in_time("all calls to settle", settled).await;
}

#[tokio::test]
async fn no_refund_is_sent_twice_without_proof_and_no_answer_changes() {
    let books = Books::default();
    let written = Arc::clone(&books);
    let backend = Backend::start_with(on_connect, move |seen| mood(seen, &written)).await;
    // Every refund shall be claimed, however many fail.
    let toml = changed(&backend.url(), QUICK).replace(
        "[signature]",
        "[upstreams.legacy.breaker]\nenabled = false\n[signature]",
    );
    let gate = TestGate::with(&toml).await;
    let mut answers = Answers::new();
    send_all(&gate, jobs(&gate), &mut answers).await;
    // Two rounds more, so that what may be sent again is, and what is final is asked for again.
    for _ in 0..2 {
        let again = (0..REFUNDS).map(|number| {
            let key = format!("r-{number}");
            let call = gate.signed("/tiki/refund", &refund(&key, "1000"));
            Job {
                key,
                bytes: call.to_bytes(),
                hangs_up: false,
            }
        });
        send_all(&gate, again.collect(), &mut answers).await;
    }

    let books = books.lock().unwrap().clone();
    for (key, told) in &books {
        let (_, earlier) = told.split_last().unwrap();
        assert!(
            earlier.iter().all(|told| *told == Told::NotApplied),
            "{key} was sent again after {earlier:?}"
        );
    }
    let mut finals = 0;
    for (key, answers) in &answers {
        let told = books.get(key).map_or(&[][..], Vec::as_slice);
        let of_backend: BTreeSet<&Heard> = answers
            .iter()
            .filter(|answer| answer.status < 500)
            .collect();
        assert!(of_backend.len() <= 1, "{key} was answered {of_backend:?}");
        let Some(answer) = of_backend.first() else {
            continue;
        };
        finals += 1;
        let said = match answer.status {
            200 => Told::Applied,
            422 => Told::Declined,
            other => panic!("{key} was answered {other} {}", answer.body),
        };
        assert_eq!(told.last(), Some(&said), "{key} was answered {answer:?}");
        assert!(
            answer
                .body
                .starts_with(&format!(r#"{{"refund":"{key}","attempt":"#)),
            "{key} got the answer of another: {answer:?}"
        );
    }
    let mut states = HashMap::new();
    for number in 0..REFUNDS {
        let key = format!("r-{number}");
        let state = gate.state(&key).await.expect("every refund was claimed");
        let last = books.get(&key).and_then(|told| told.last().copied());
        let fits = match (state, last) {
            (State::Done, Some(Told::Applied | Told::Declined)) => true,
            // A connection that ended before the request was read is not in the books.
            (State::Unknown, Some(Told::Nothing | Told::NotApplied) | None) => true,
            (State::Released, Some(Told::NotApplied) | None) => true,
            _ => false,
        };
        assert!(fits, "{key} is {state:?} and the backend said {last:?}");
        *states.entry(state).or_insert(0) += 1;
    }
    // Everything that is to be proved here has happened.
    let sent_again = books.values().filter(|told| told.len() > 1).count();
    assert!(sent_again > 20, "{sent_again} were sent again");
    assert!(finals > 100, "{finals} were answered for good");
    assert!(states[&State::Done] > 100, "{states:?}");
    assert!(states[&State::Unknown] > 20, "{states:?}");
    let replays = gate
        .metric(r#"tikigate_replays_total{route="refund"}"#)
        .await;
    assert!(replays > 100.0, "{replays} replays");
}
