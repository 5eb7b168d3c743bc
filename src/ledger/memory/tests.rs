//! The memory store's own: its bounds, and the conformance of every store.

use super::*;
use crate::ledger::conformance::{
    DAY, End, Fixture, KEEP, ONE, Reopened, TWO, answer, assert_is, durable_suite, event, refund,
    settlement_of, success, suite,
};
use crate::ledger::{Fields, Settlement, State, Subject, SubjectRule};

suite!(crate::ledger::memory::tests::open);
// Of the durable suite itself: that it asks for nothing that a store which loses nothing doesn't keep.
durable_suite!(crate::ledger::memory::tests::never_ending);

const ROOMY: MemoryLimits = MemoryLimits {
    max_records: 1_000_000,
    max_bytes: 1 << 30,
};

async fn open() -> Fixture {
    fixture(ROOMY).0
}

/// A store whose next process is the same one.
async fn never_ending() -> Fixture {
    let (mut fixture, inner) = fixture(ROOMY);
    fixture.reopen = Some(Box::new(move |end, ledger| {
        let inner = Arc::clone(&inner);
        Box::pin(async move {
            if end == End::Closed {
                ledger.close().await;
                inner.closed.store(false, Ordering::Release);
            }
            let mut lapsed = 0;
            for owner in [ONE, TWO] {
                lapsed += ledger.lapse(owner).await.unwrap();
            }
            Reopened { ledger, lapsed }
        })
    }));
    fixture
}

fn kept_request(bytes: usize) -> KeptRequest {
    KeptRequest {
        headers: vec![(
            HeaderName::from_static("traceparent"),
            HeaderValue::from_static("00-1"),
        )],
        body: "x".repeat(bytes).into(),
    }
}

fn fixture(limits: MemoryLimits) -> (Fixture, Arc<Inner>) {
    let (clock, hands) = Clock::manual(SystemTime::UNIX_EPOCH + 20_000 * DAY);
    let ledger = MemoryLedger::new(clock.clone(), limits);
    let inner = Arc::clone(&ledger.inner);
    let fixture = Fixture {
        ledger: Arc::new(ledger),
        clock,
        hands,
        _held: Box::new(()),
        reopen: None,
    };
    (fixture, inner)
}

#[tokio::test]
async fn a_full_ledger_refuses_rather_than_forgets() {
    let (f, _) = fixture(MemoryLimits {
        max_records: 3,
        ..ROOMY
    });
    let done = f.settled(refund("a"), success()).await;
    let running = f.granted(refund("b")).await;
    f.settled(refund("c"), Settlement::Unknown("reset".into()))
        .await;
    let full = || f.ledger.claim(refund("d"));
    assert_is!(full().await, Err(LedgerError::Full));
    // What it knows it still serves.
    assert_is!(f.claim(refund("a")).await, ClaimOutcome::Done(..));
    assert_eq!(
        f.settle(running, success()).await,
        Settled::Recorded(State::Done)
    );
    f.hands.advance(KEEP - Duration::from_secs(1));
    assert_is!(full().await, Err(LedgerError::Full));
    f.hands.advance(Duration::from_secs(1));
    assert_is!(full().await, Ok(ClaimOutcome::Granted(..)));
    assert!(f.ledger.get(done.record).await.unwrap().is_none());
    assert_eq!(f.ledger.stats().await.unwrap().records, [1, 0, 0, 1]);
}

#[tokio::test]
async fn bytes_are_bounded_by_claims_and_never_lose_an_answer() {
    let body = "x".repeat(4096).leak();
    let (f, inner) = fixture(MemoryLimits {
        max_bytes: 4096,
        ..ROOMY
    });
    let first = f.granted(refund("a")).await;
    let second = f.granted(refund("b")).await;
    for fence in [first, second] {
        assert_eq!(
            f.settle(fence, settlement_of(200, body)).await,
            Settled::Recorded(State::Done)
        );
    }
    assert!(inner.bytes.load(Ordering::Relaxed) > 2 * 4096);
    assert_is!(f.ledger.claim(refund("c")).await, Err(LedgerError::Full));
    assert_is!(f.claim(refund("b")).await, ClaimOutcome::Done(_, kept)
        if kept == answer(200, body));
}

#[tokio::test]
async fn what_is_forgotten_gives_all_its_room_back() {
    let (f, inner) = fixture(ROOMY);
    for number in 0..200_u32 {
        let claim = Claim {
            fields: Fields([("transaction_id".into(), number.to_string())].into()),
            request: number.is_multiple_of(2).then(|| kept_request(4096)),
            subject: Some(Subject {
                id: number.to_string().into(),
                rule: SubjectRule::Payment {
                    amount: "1000".into(),
                    window: DAY,
                    hold: false,
                },
            }),
            ..refund(&number.to_string())
        };
        let made = shard::first_charge(&claim);
        let before = inner.bytes.load(Ordering::Relaxed);
        let fence = f.granted(claim).await;
        assert_eq!(inner.bytes.load(Ordering::Relaxed) - before, made);
        let slot_charge = inner.home(fence.record).unwrap().charge_of(fence.record);
        assert_eq!(slot_charge, Some(made));
        f.settle(fence, Settlement::Unknown("reset".into())).await;
        f.settle(fence, success()).await;
        for _ in 0..20 {
            f.settle(fence, Settlement::Unknown("reset".into())).await;
        }
    }
    // Done at once.
    let happened = f.now();
    f.settled(event("newer", happened, true), success()).await;
    let dropped = event("older", happened - DAY, true);
    assert_is!(f.claim(dropped).await, ClaimOutcome::Dropped(..));
    assert!(inner.bytes.load(Ordering::Relaxed) > 200 * 1024);
    assert_eq!(inner.subjects.lock().unwrap().len(), 201);
    f.hands.advance(KEEP);
    assert_eq!(f.ledger.sweep(1000).await.unwrap(), 202);
    assert_eq!(inner.bytes.load(Ordering::Relaxed), 0);
    assert_eq!(inner.records.load(Ordering::Relaxed), 0);
    assert!(inner.subjects.lock().unwrap().is_empty());
}

#[tokio::test]
async fn kept_calls_count() {
    let (f, inner) = fixture(MemoryLimits {
        max_bytes: 64 << 10,
        ..ROOMY
    });
    let calling = |message: &str| Claim {
        request: Some(kept_request(60 << 10)),
        ..refund(message)
    };
    let fence = f.granted(calling("a")).await;
    assert_is!(f.ledger.claim(calling("b")).await, Err(LedgerError::Full));
    f.settle(fence, success()).await;
    // Done, its call is kept no longer.
    assert!(inner.bytes.load(Ordering::Relaxed) < 2048);
    f.granted(calling("b")).await;
}

#[tokio::test]
async fn events_are_bounded_and_say_what_is_missing() {
    let (f, _) = fixture(ROOMY);
    let mut last = f
        .settled(refund("a"), Settlement::Released("e".into()))
        .await;
    for _ in 0..20 {
        last = f
            .settled(refund("a"), Settlement::Released("e".into()))
            .await;
    }
    let events = f.events(last.record).await;
    assert_eq!(events.len(), 17);
    assert_eq!((events[0].attempt, events[3].attempt), (1, 2));
    assert_eq!(events[4].cause, "26 events not kept");
    assert_eq!(events[16].attempt, 21);
}

#[tokio::test]
async fn a_long_cause_is_cut() {
    let (f, _) = fixture(ROOMY);
    let cause = "ế".repeat(1000);
    let fence = f
        .settled(refund("a"), Settlement::Released(cause.into()))
        .await;
    let kept = f.last_cause(fence.record).await;
    assert_eq!(kept, "ế".repeat(40));
}

#[tokio::test]
async fn a_jump_of_the_clock_forgets_nothing() {
    let (f, inner) = fixture(ROOMY);
    f.settled(refund("a"), success()).await;
    let start = f.now();
    let sweep = |wall_days: u32, real_days: u32| {
        inner
            .sweep_at(start + wall_days * DAY, real_days * DAY, 100)
            .unwrap()
    };
    assert_eq!(sweep(500, 1), 0);
    assert_eq!(sweep(501, 2), 0);
    assert_eq!(sweep(898, 399), 0);
    assert_eq!(sweep(900, 401), 1);
}

#[tokio::test]
async fn lists_are_bounded_and_pages_miss_nothing() {
    let (f, _) = fixture(ROOMY);
    for number in 0..2500 {
        f.granted(refund(&number.to_string())).await;
    }
    let mut after = None;
    let mut pages = Vec::new();
    loop {
        let filter = Filter {
            after,
            limit: usize::MAX,
            ..Filter::default()
        };
        let page = f.ledger.list(filter).await.unwrap();
        assert!(page.records.is_sorted_by_key(|record| record.id));
        pages.push(page.records.len());
        assert_eq!(page.next.is_some(), pages.len() < 3);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, [LIST_LIMIT, LIST_LIMIT, 500]);
}

#[test]
fn a_kept_answer_holds_on_to_no_larger_buffer() {
    let buffer = bytes::Bytes::from("x".repeat(65_536));
    let value = HeaderValue::from_maybe_shared(buffer.slice(0..10)).unwrap();
    let mut given = answer(200, "");
    given.headers[0].1 = value;
    given.headers[0].1.set_sensitive(true);
    given.body = buffer.slice(10..20);
    let kept = detached(&given);
    assert_eq!(kept, given);
    assert!(kept.headers[0].1.is_sensitive());
    drop(given);
    assert!(buffer.is_unique());
}

#[test]
fn replies_are_send() {
    fn is_send<T: Send>() {}
    is_send::<Reply<Result<ClaimOutcome, LedgerError>>>();
}

/// What a claim and its settlement cost, in a small ledger and a large one; run by hand, in a release
/// build.
#[test]
#[ignore = "a measurement"]
fn claim_and_settle_are_cheap() {
    for count in [10_000_u32, 400_000] {
        let ledger = MemoryLedger::new(Clock::system(), ROOMY);
        let claims: Vec<_> = (0..count)
            .map(|number| refund(&format!("REFUND-REQUEST-{number}")))
            .collect();
        let kept = answer(200, "{\"data\":{\"status\":\"success\"}}");
        let started = Instant::now();
        for claim in claims {
            let Ok(ClaimOutcome::Granted(fence, _)) = now_or_never(ledger.claim(claim)) else {
                panic!("not granted");
            };
            let done = Settlement::Done(kept.clone(), "success".into());
            now_or_never(ledger.settle(fence, done)).unwrap();
        }
        println!("{count}: a pair takes {:?}", started.elapsed() / count);
        let started = Instant::now();
        now_or_never(ledger.stats()).unwrap();
        println!("{count}: stats take {:?}", started.elapsed());
    }
}

fn now_or_never<T: Unpin>(mut reply: Reply<T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(&mut reply).poll(&mut context) {
        std::task::Poll::Ready(answer) => answer,
        std::task::Poll::Pending => panic!("the memory store answers at once"),
    }
}
