//! Chance that can be had again: a small generator with a seed that is printed and can be given.

use std::time::Duration;

/// The environment variable that a seed is given in.
pub(crate) const SEED: &str = "TIKIGATE_SEED";

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The same sequence for the same seed.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator of its own for a part of the whole, the same one whatever the other parts draw.
    pub(crate) fn part(seed: u64, part: &[u64]) -> Self {
        let mut state = Self(seed);
        for number in part {
            state = Self(state.next() ^ number.wrapping_mul(0xff51_afd7_ed55_8ccd));
        }
        Self(state.next())
    }

    /// 64 even bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number from 0, less than `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True in so many of a hundred cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A time between these, in milliseconds.
    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from * 1000 + self.below((to - from) * 1000))
    }

    /// One of these.
    pub(crate) fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[usize::try_from(self.below(among.len() as u64)).unwrap()]
    }
}

/// The seed of a run: the one that [`SEED`] gives, or a new one. Printed, so that a run that failed
/// can be had again as far as the machine's timing allows.
pub(crate) fn seed(of: &str) -> u64 {
    let seed = match std::env::var(SEED) {
        Ok(text) => text.parse().expect("TIKIGATE_SEED is a number"),
        Err(_) => getrandom::u64().expect("a random number"),
    };
    println!("{of}: {SEED}={seed}");
    seed
}

mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_its_sequence_and_parts_differ() {
        let draw = |mut random: Random| [random.next(), random.next(), random.below(10)];
        assert_eq!(draw(Random::seeded(7)), draw(Random::seeded(7)));
        assert_eq!(
            draw(Random::part(7, &[1, 2])),
            draw(Random::part(7, &[1, 2]))
        );
        assert_ne!(
            draw(Random::part(7, &[1, 2])),
            draw(Random::part(7, &[2, 1]))
        );
        assert_ne!(
            draw(Random::part(7, &[1, 2])),
            draw(Random::part(8, &[1, 2]))
        );
    }
}
