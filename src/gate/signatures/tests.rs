//! What is remembered, for how long, of how many, and at what cost.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::thread;

use super::bucket::SECONDS;
use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_secs(SECONDS);

fn key(number: u128) -> SignatureKey {
    SignatureKey(number)
}

#[test]
fn a_signature_belongs_to_the_route_that_took_it_first() {
    let signatures = Signatures::new(1000);
    assert_eq!(signatures.bind(key(7), 1, false, MINUTE, MINUTE), Ok(false));
    assert_eq!(signatures.bind(key(7), 1, false, MINUTE, MINUTE), Ok(true));
    assert_eq!(
        signatures.bind(key(7), 2, false, MINUTE, MINUTE),
        Err(Refusal::Replayed(Reuse::OtherRoute))
    );
    assert_eq!(
        signatures.recall(key(7), 2, false, MINUTE),
        Err(Refusal::Replayed(Reuse::OtherRoute))
    );
}

/// However many calls go out, no call that comes in finds less room; and none that went out comes in.
#[test]
fn what_the_gate_made_itself_counts_on_no_route_and_takes_nobodys_room() {
    let signatures = Signatures::new(MIN_BUCKETS);
    for number in 0..MIN_BUCKETS as u128 {
        assert!(signatures.is_ours(key(number), MINUTE, MINUTE));
    }
    assert!(
        !signatures.is_ours(key(MIN_BUCKETS as u128), MINUTE, MINUTE),
        "its own bound"
    );
    for number in 0..MIN_BUCKETS as u128 {
        let replayed = Err(Refusal::Replayed(Reuse::OtherRoute));
        assert_eq!(
            signatures.bind(key(number), 1, false, MINUTE, MINUTE),
            replayed
        );
        assert_eq!(signatures.recall(key(number), 1, false, MINUTE), replayed);
        let theirs = key(number + 1000 * MIN_BUCKETS as u128);
        assert_eq!(signatures.bind(theirs, 1, false, MINUTE, MINUTE), Ok(false));
    }
    // As long as any route would take it, and no longer.
    assert_eq!(signatures.recall(key(1), 1, false, 3 * MINUTE), Ok(false));
    assert!(signatures.is_ours(key(MIN_BUCKETS as u128), 3 * MINUTE, MINUTE));
}

#[test]
fn a_finally_answered_signature_counts_once_where_that_is_asked() {
    let signatures = Signatures::new(1000);
    assert_eq!(signatures.bind(key(7), 1, true, MINUTE, MINUTE), Ok(false));
    assert_eq!(signatures.bind(key(7), 1, true, MINUTE, MINUTE), Ok(true));
    signatures.answered(key(7));
    assert_eq!(
        signatures.bind(key(7), 1, true, MINUTE, MINUTE),
        Err(Refusal::Replayed(Reuse::Answered))
    );
    assert_eq!(signatures.bind(key(7), 1, false, MINUTE, MINUTE), Ok(true));
}

#[test]
fn entries_go_when_their_time_is_over_and_stay_when_extended() {
    let signatures = Signatures::new(1000);
    assert_eq!(
        signatures.bind(key(64), 1, false, MINUTE, MINUTE),
        Ok(false)
    );
    assert_eq!(
        signatures.bind(key(128), 1, false, MINUTE, MINUTE),
        Ok(false)
    );
    assert_eq!(signatures.recall(key(128), 1, false, MINUTE), Ok(false));
    signatures.expect_again(key(128), MINUTE);
    let later = 3 * MINUTE;
    assert_eq!(signatures.recall(key(64), 1, false, later), Ok(false));
    assert_eq!(signatures.recall(key(128), 1, false, later), Ok(true));
    assert_eq!(signatures.len(later), 1);
    let last = MINUTE + RESEND_HORIZON;
    assert_eq!(signatures.recall(key(128), 1, false, last), Ok(true));
    let last = last + Duration::from_nanos(1);
    assert_eq!(signatures.recall(key(128), 1, false, last), Ok(false));
    assert_eq!(signatures.len(last), 0);
}

#[test]
fn an_outage_leaves_half_of_the_memory_to_new_calls() {
    let signatures = Signatures::new(4);
    let calls: Vec<_> = (0..4)
        .map(|number| key(number * MIN_BUCKETS as u128))
        .collect();
    for call in &calls {
        assert_eq!(signatures.bind(*call, 1, false, MINUTE, MINUTE), Ok(false));
        signatures.expect_again(*call, MINUTE);
    }
    let later = 3 * MINUTE;
    let kept = calls
        .iter()
        .filter(|call| signatures.recall(**call, 1, false, later) == Ok(true));
    assert_eq!(kept.count(), 2);
    assert_eq!(
        signatures.bind(key(4 * MIN_BUCKETS as u128), 1, false, later, MINUTE),
        Ok(false)
    );
    // Where their time is over, others find room.
    let much_later = MINUTE + RESEND_HORIZON + MINUTE;
    assert_eq!(
        signatures.bind(calls[0], 1, false, much_later, MINUTE),
        Ok(false)
    );
    signatures.expect_again(calls[0], much_later);
    assert_eq!(
        signatures.recall(calls[0], 1, false, much_later + 2 * MINUTE),
        Ok(true)
    );
}

#[test]
fn a_full_memory_refuses_rather_than_forgets() {
    let signatures = Signatures::new(1);
    assert_eq!(signatures.bind(key(0), 1, false, MINUTE, MINUTE), Ok(false));
    assert_eq!(
        signatures.bind(key(64), 1, false, MINUTE, MINUTE),
        Err(Refusal::Overloaded(Overload::Signatures))
    );
    assert_eq!(signatures.bind(key(0), 1, false, MINUTE, MINUTE), Ok(true));
    let later = 2 * MINUTE + Duration::from_nanos(1);
    assert_eq!(signatures.bind(key(64), 1, false, later, MINUTE), Ok(false));
}

#[test]
fn a_full_memory_takes_as_many_again_as_are_over() {
    let max = 10_000;
    let signatures = Signatures::new(max);
    let mut random = Random(1);
    let full = Err(Refusal::Overloaded(Overload::Signatures));
    for number in 0..max {
        let lifetime = if number % 4 == 0 { MINUTE } else { 2 * MINUTE };
        let tied = signatures.bind(random.key(), 1, false, MINUTE, lifetime);
        assert_eq!(tied, Ok(false));
    }
    let refused = random.key();
    assert_eq!(signatures.bind(refused, 1, false, MINUTE, MINUTE), full);
    assert_eq!(signatures.bind(refused, 1, false, 2 * MINUTE, MINUTE), full);
    let later = 2 * MINUTE + Duration::from_nanos(1);
    assert_eq!(signatures.bind(refused, 1, false, later, MINUTE), Ok(false));
    assert_eq!(signatures.len(later), max - max / 4 + 1);
    for _ in 1..max / 4 {
        let tied = signatures.bind(random.key(), 1, false, later, MINUTE);
        assert_eq!(tied, Ok(false));
    }
    assert_eq!(signatures.bind(random.key(), 1, false, later, MINUTE), full);
}

#[test]
fn a_signature_whose_time_is_over_is_not_known() {
    let signatures = Signatures::new(1000);
    let lifetime = Duration::from_millis(1500);
    assert_eq!(
        signatures.bind(key(7), 1, true, MINUTE, lifetime),
        Ok(false)
    );
    signatures.answered(key(7));
    // To the end of the moment, so that none goes early.
    let last = MINUTE + MOMENT;
    for now in [MINUTE, MINUTE + lifetime, last] {
        assert!(signatures.knows(key(7), now));
        assert_eq!(
            signatures.recall(key(7), 1, true, now),
            Err(Refusal::Replayed(Reuse::Answered))
        );
    }
    let over = last + Duration::from_nanos(1);
    assert!(!signatures.knows(key(7), over));
    assert_eq!(signatures.recall(key(7), 2, true, over), Ok(false));
    assert_eq!(signatures.bind(key(7), 2, true, over, lifetime), Ok(false));
    assert!(!signatures.is_answered(key(7)));
}

/// The time of a call may end while it runs.
#[test]
fn a_call_that_outlasts_its_signature_is_expected_again() {
    let signatures = Signatures::new(1000);
    assert_eq!(signatures.bind(key(7), 1, true, MINUTE, MINUTE), Ok(false));
    let later = 3 * MINUTE;
    signatures.expect_again(key(7), later);
    assert_eq!(signatures.recall(key(7), 1, true, later), Ok(true));
}

/// Over ninety days: an entry counts three of them.
#[test]
fn a_bucket_that_is_never_empty_forgets_in_time() {
    let signatures = Signatures::new(1000);
    let lifetime = Duration::from_secs(45 * 3600);
    let place = |number: u32| key(u128::from(number) * MIN_BUCKETS as u128);
    let late = |number: u32| place(1000 + number);
    let replayed = Err(Refusal::Replayed(Reuse::Answered));
    for number in 4..100 {
        let now = number * lifetime / 2;
        for key in [place(number), late(number)] {
            assert_eq!(signatures.bind(key, 1, true, now, lifetime), Ok(false));
        }
        signatures.answered(place(number));
        // Its time ends in this moment, and counts once more from here.
        signatures.expect_again(late(number - 2), now);
        for known in (number - 2..=number).filter(|known| *known >= 4) {
            assert_eq!(signatures.recall(place(known), 1, true, now), replayed);
        }
        assert!(!signatures.knows(place(number - 3), now));
        assert!(!signatures.knows(late(number - 4), now));
        if number >= 7 {
            assert_eq!(signatures.recall(late(number - 3), 1, true, now), Ok(true));
        }
    }
}

/// It is refused and not forgotten early.
#[test]
fn a_signature_that_lives_too_long_is_refused() {
    let signatures = Signatures::new(1000);
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let full = Err(Refusal::Overloaded(Overload::Signatures));
    assert_eq!(
        signatures.bind(key(1), 1, false, days(3), days(3)),
        Ok(false)
    );
    assert!(signatures.knows(key(1), days(6)));
    assert_eq!(signatures.bind(key(2), 1, false, days(3), days(4)), full);
    assert_eq!(signatures.len(days(3)), 1);
}

#[test]
fn routes_are_told_apart_however_many_there_are() {
    let signatures = Signatures::new(1000);
    let routes = [0, 1, 62, 63, 64, 127, 65_536, 1 << 40];
    for (number, route) in routes.into_iter().enumerate() {
        let key = key(number as u128 * MIN_BUCKETS as u128);
        assert_eq!(
            signatures.bind(key, route, false, MINUTE, MINUTE),
            Ok(false)
        );
        for other in routes {
            let tied = signatures.bind(key, other, false, MINUTE, MINUTE);
            let here = match other == route {
                true => Ok(true),
                false => Err(Refusal::Replayed(Reuse::OtherRoute)),
            };
            assert_eq!(tied, here);
        }
    }
    let far = || lock(&signatures.buckets[0]).remembers_far_routes();
    assert!(far());
    assert_eq!(signatures.len(3 * MINUTE), 0);
    assert!(!far(), "forgotten with the signatures");
}

/// What a memory takes beside itself, for each of `max` entries.
fn cost(signatures: &Signatures, max: usize) -> f64 {
    let buckets = signatures.buckets.iter();
    let entries: usize = buckets.map(|bucket| lock(bucket).bytes()).sum();
    let bytes = entries + size_of_val(&signatures.buckets[..]);
    bytes as f64 / max as f64
}

/// Also where buckets are as empty as they can be when all is full, and not only while it grows.
#[test]
fn a_signature_costs_less_than_eleven_bytes() {
    for max in [100_000, 92_160] {
        let signatures = Signatures::new(max);
        let mut random = Random(2);
        for _ in 0..max {
            let tied = signatures.bind(random.key(), 1, false, MINUTE, MINUTE);
            assert_eq!(tied, Ok(false));
        }
        let grown = cost(&signatures, max);
        assert!(grown < 11.0, "{max}: {grown}");
        // Each second a sixtieth goes and as much comes.
        let lifetime = MINUTE - MOMENT - Duration::from_secs(1);
        for second in 0..90 {
            let now = 2 * MINUTE + Duration::from_secs(second + 1);
            for _ in 0..max / 60 {
                let tied = signatures.bind(random.key(), 1, false, now, lifetime);
                assert_eq!(tied, Ok(false));
            }
        }
        let steady = cost(&signatures, max);
        assert!(steady < 11.0, "{max}: {steady}");
        // What was needed once isn't kept.
        assert_eq!(signatures.len(10 * MINUTE), 0);
        let empty = cost(&signatures, max);
        assert!(empty < 1.0, "{max}: {empty}");
    }
}

/// Half of the signatures come by all threads, half by one of them.
#[test]
fn no_bound_is_passed_and_no_signature_tied_twice_by_several_at_once() {
    let signatures = Signatures::new(1000);
    let new = AtomicUsize::new(0);
    let tie = |key| {
        let tied = signatures.bind(key, 1, false, MINUTE, MINUTE);
        new.fetch_add(usize::from(tied == Ok(false)), Ordering::Relaxed);
        signatures.expect_again(key, MINUTE);
    };
    thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let (mut common, mut own) = (Random(3), Random(thread + 10));
                for _ in 0..2000 {
                    tie(common.key());
                    tie(own.key());
                }
            });
        }
    });
    assert_eq!(new.load(Ordering::Relaxed), 1000);
    assert_eq!(signatures.len(MINUTE), 1000);
    assert_eq!(signatures.counts.expected.current(), 500);
}

#[test]
fn what_is_over_goes_while_others_come() {
    let signatures = Signatures::new(100_000);
    let mut random = Random(5);
    let buckets = signatures.buckets.len();
    for _ in 0..10 * buckets {
        let tied = signatures.bind(random.key(), 1, false, MINUTE, MINUTE);
        assert_eq!(tied, Ok(false));
    }
    for _ in 0..buckets {
        let tied = signatures.bind(random.key(), 1, false, 3 * MINUTE, MINUTE);
        assert_eq!(tied, Ok(false));
    }
    assert_eq!(signatures.counts.all.current(), buckets);
}

#[test]
fn late_resends_whose_time_is_over_leave_their_half_to_others() {
    let signatures = Signatures::new(4);
    let expect = |number, now| {
        assert_eq!(
            signatures.bind(key(number), 1, false, now, MINUTE),
            Ok(false)
        );
        signatures.expect_again(key(number), now);
        signatures.recall(key(number), 1, false, now) == Ok(true)
    };
    assert!(expect(40, MINUTE) && expect(41, MINUTE));
    assert!(!expect(42, MINUTE), "the half");
    let later = 2 * MINUTE + RESEND_HORIZON;
    assert!(expect(1, later) && expect(2, later));
    assert!(!expect(3, later), "the half");
}

/// Numbers without a pattern, the same ones in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn key(&mut self) -> SignatureKey {
        SignatureKey(u128::from(self.next()) << 64 | u128::from(self.next()))
    }
}

/// The same memory without any thought of its size.
struct Model {
    entries: HashMap<SignatureKey, Remembered>,
    max: usize,
    expected: usize,
}

struct Remembered {
    route: usize,
    answered: bool,
    expected_again: bool,
    expires: Duration,
}

fn whole_moments(time: Duration) -> Duration {
    MOMENT * time.as_nanos().div_ceil(MOMENT.as_nanos()) as u32
}

impl Model {
    fn judge(&self, key: SignatureKey, route: usize, once: bool) -> Result<bool, Refusal> {
        match self.entries.get(&key) {
            None => Ok(false),
            Some(entry) if entry.route != route => Err(Refusal::Replayed(Reuse::OtherRoute)),
            Some(entry) if entry.answered && once => Err(Refusal::Replayed(Reuse::Answered)),
            Some(_) => Ok(true),
        }
    }

    fn bind(
        &mut self,
        key: SignatureKey,
        route: usize,
        once: bool,
        expires: Duration,
    ) -> Result<bool, Refusal> {
        if self.judge(key, route, once)? {
            return Ok(true);
        }
        if self.entries.len() == self.max {
            return Err(Refusal::Overloaded(Overload::Signatures));
        }
        let entry = Remembered {
            route,
            answered: false,
            expected_again: false,
            expires: whole_moments(expires),
        };
        self.entries.insert(key, entry);
        Ok(false)
    }

    fn recall(&self, key: SignatureKey, route: usize, once: bool) -> Result<bool, Refusal> {
        let known = self.judge(key, route, once)?;
        Ok(known && self.entries[&key].expected_again)
    }

    fn expect_again(&mut self, key: SignatureKey, now: Duration) {
        let Entry::Occupied(mut entry) = self.entries.entry(key) else {
            return;
        };
        let entry = entry.get_mut();
        if !entry.expected_again {
            if self.expected == self.max.div_ceil(2) {
                return;
            }
            self.expected += 1;
            entry.expected_again = true;
        }
        entry.expires = entry.expires.max(whole_moments(now + RESEND_HORIZON));
    }

    fn forget_expired(&mut self, now: Duration) {
        let expected = &mut self.expected;
        self.entries.retain(|_, entry| {
            let lives = entry.expires >= now;
            *expected -= usize::from(!lives && entry.expected_again);
            lives
        });
    }
}

/// 200,000 signatures over five days, in a memory that is full in some of them.
#[test]
fn it_remembers_what_a_plain_map_would() {
    const ROUTES: [usize; 6] = [0, 1, 2, 62, 63, 70_000];
    let max = 12_000;
    let signatures = Signatures::new(max);
    let mut model = Model {
        entries: HashMap::new(),
        max,
        expected: 0,
    };
    let mut random = Random(4);
    let mut keys = Vec::new();
    let mut now = Duration::ZERO;
    let (mut taken, mut full, mut half) = (0, 0, 0);
    while keys.len() < 200_000 {
        if random.below(1000) == 0 {
            now += Duration::from_millis(random.next() % (30 * 60_000));
            model.forget_expired(now);
            assert_eq!(signatures.len(now), model.entries.len());
        }
        let lately = keys.len().min(2 * max);
        let new = lately == 0 || random.below(2) == 0;
        let key = match new {
            true => random.key(),
            false => keys[keys.len() - 1 - random.below(lately)],
        };
        let (route, once) = (ROUTES[random.below(ROUTES.len())], random.below(2) == 0);
        // Mostly the route that it is of.
        let owner = model.entries.get(&key).map(|entry| entry.route);
        let route = owner.filter(|_| random.below(4) > 0).unwrap_or(route);
        match if new { 0 } else { random.below(16) } {
            0..6 => {
                let lifetime = Duration::from_millis(random.next() % (6 * 3_600_000));
                let tied = signatures.bind(key, route, once, now, lifetime);
                assert_eq!(tied, model.bind(key, route, once, now + lifetime));
                taken += usize::from(tied == Ok(false));
                full += usize::from(matches!(tied, Err(Refusal::Overloaded(_))));
            }
            6..10 => {
                let recalled = signatures.recall(key, route, once, now);
                assert_eq!(recalled, model.recall(key, route, once));
            }
            10 => {
                signatures.answered(key);
                if let Some(entry) = model.entries.get_mut(&key) {
                    entry.answered = true;
                }
            }
            11..14 if owner.is_some() => {
                signatures.expect_again(key, now);
                model.expect_again(key, now);
                half += usize::from(model.expected == max.div_ceil(2));
            }
            _ => {
                assert_eq!(signatures.knows(key, now), owner.is_some());
                if let Some(entry) = model.entries.get(&key) {
                    assert_eq!(signatures.is_answered(key), entry.answered);
                }
            }
        }
        if new {
            keys.push(key);
        }
    }
    assert!(taken > 50_000, "{taken}");
    assert!(full > 0 && half > 0, "{full} {half}");
    assert!(now > 2 * RESEND_HORIZON, "{now:?}");
}
