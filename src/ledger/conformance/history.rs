//! Random histories against a plain model.
//!
//! The model ([`model`]) keeps, for each message, what became of every attempt, and says from that
//! what may be answered: no attempt goes out beside one that may have been applied, unless its record
//! may be sent again by its policy, or a word let it go. It knows nothing of versions or indexes.
//!
//! `TIKIGATE_HISTORIES=N` runs N histories of each store instead of the usual few hundred.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

mod model;
mod told;

use model::Model;

/// Messages of a history: one alone, two of one payment, two of one order.
const MESSAGES: usize = 5;
const PAYMENT: usize = 1;
const OTHER_PAYMENT: usize = 2;
const OLDER_EVENT: usize = 3;
const NEWER_EVENT: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Claim(Wish),
    /// One of the fences granted so far, counted from the latest.
    Settle(usize, Class),
    Permit(usize),
    /// A success of an attempt that the ledger doesn't know of.
    Stranger(usize),
    Resolve(usize, Word),
    Reopen(usize),
    Look(usize, Sight),
    Lapse(Owner),
    /// Every process ends, and one starts anew.
    Restart(End),
    Quarantine,
    Lift,
    Advance(Duration),
    Sweep,
}

/// What is claimed, and how.
#[derive(Clone, Copy, Debug)]
struct Wish {
    message: usize,
    hold: bool,
    /// Possible duplicates are held, stale events dropped.
    strict: bool,
    other_money: bool,
    known_only: bool,
    owner: Owner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Success,
    Declined,
    NotApplied,
    CannotSay,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Applied,
    Rejected,
    NotApplied,
    NotAppliedForced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    Applied,
    NotApplied,
    CannotSee,
}

fn op() -> impl Strategy<Value = Op> {
    let owner = || prop_oneof![Just(ONE), Just(TWO)];
    let message = || 0..MESSAGES;
    let seldom = || prop::bool::weighted(0.06);
    let often = prop::bool::weighted(0.6);
    let wish = (message(), often, any::<bool>(), seldom(), seldom(), owner()).prop_map(
        |(message, hold, strict, other_money, known_only, owner)| Wish {
            message,
            hold,
            strict,
            other_money,
            known_only,
            owner,
        },
    );
    let class = prop_oneof![
        2 => Just(Class::Success),
        1 => Just(Class::Declined),
        3 => Just(Class::NotApplied),
        3 => Just(Class::CannotSay),
    ];
    let fence = || prop_oneof![3 => Just(0_usize), 2 => 0_usize..8];
    let word = prop_oneof![
        1 => Just(Word::Applied),
        1 => Just(Word::Rejected),
        2 => Just(Word::NotApplied),
        3 => Just(Word::NotAppliedForced),
    ];
    let sight = prop_oneof![
        1 => Just(Sight::Applied),
        6 => Just(Sight::NotApplied),
        1 => Just(Sight::CannotSee),
    ];
    let times = [Duration::from_secs(30), MAY_RUN, 2 * DAY, KEEP];
    prop_oneof![
        16 => wish.prop_map(Op::Claim),
        14 => (fence(), class).prop_map(|(back, class)| Op::Settle(back, class)),
        1 => fence().prop_map(Op::Permit),
        1 => message().prop_map(Op::Stranger),
        4 => (message(), word).prop_map(|(message, word)| Op::Resolve(message, word)),
        3 => message().prop_map(Op::Reopen),
        5 => (message(), sight).prop_map(|(message, sight)| Op::Look(message, sight)),
        1 => owner().prop_map(Op::Lapse),
        1 => prop_oneof![Just(End::Closed), Just(End::Killed)].prop_map(Op::Restart),
        1 => Just(Op::Quarantine),
        1 => Just(Op::Lift),
        5 => prop::sample::select(times.to_vec()).prop_map(Op::Advance),
        1 => Just(Op::Sweep),
    ]
}

fn claim_of(wish: Wish) -> Claim {
    let message = wish.message.to_string();
    let happened = |hours: u32| SystemTime::UNIX_EPOCH + 19_000 * DAY + hours * DAY / 24;
    let mut claim = match wish.message {
        PAYMENT | OTHER_PAYMENT => payment(&message, wish.strict),
        OLDER_EVENT => event(&message, happened(1), wish.strict),
        NEWER_EVENT => event(&message, happened(2), wish.strict),
        _ => refund(&message),
    };
    claim.owner = wish.owner;
    claim.policy = if wish.hold {
        Policy::Hold
    } else {
        Policy::Resend
    };
    if wish.other_money {
        claim.fingerprint = Fingerprint([9; 32]);
    }
    if wish.known_only {
        claim.admission = Admission::KnownOnly;
    }
    claim
}

pub(crate) async fn random_histories_keep_the_promises(open: Open) {
    let durable = open.one().await.reopen.is_some();
    let cases = match std::env::var("TIKIGATE_HISTORIES") {
        Ok(cases) => cases.parse().expect("TIKIGATE_HISTORIES: a number"),
        // Each step of a durable store waits for the disk.
        Err(_) if durable => 60,
        Err(_) => 600,
    };
    // Proptest calls a plain function: the histories run on a thread with a runtime of its own.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let config = Config {
            cases,
            failure_persistence: None,
            max_shrink_iters: if durable { 300 } else { 20_000 },
            ..Config::default()
        };
        let histories = prop::collection::vec(op(), 1..80);
        TestRunner::new(config)
            .run(&histories, |ops| {
                runtime.block_on(follow(open, ops));
                Ok(())
            })
            .unwrap();
    })
    .join()
    .unwrap();
}

async fn follow(open: Open, ops: Vec<Op>) {
    let mut f = open.one().await;
    let mut model = Model::default();
    for op in ops {
        model.take(&mut f, op).await;
        model.compare(&f).await;
    }
}
