//! Chooses the delivery numbers that a proof tries. The random numbers come from a seed.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

/// Up to this conf-spawn every delivery number is tried.
pub const ALL_UP_TO: u32 = 4096;

/// Delivery numbers at which an implementation is likely to fail: around the limits of one byte, of the classic 509,
/// of an fd_set of 1024 bits (a delivery takes one descriptor or two), of a signed 16-bit number, and of conf-spawn.
const BOUNDARIES: [u32; 27] = [
    0, 1, 2, 127, 128, 129, 254, 255, 256, 257, 508, 509, 510, 511, 512, 1022, 1023, 1024, 1025,
    32766, 32767, 32768, 32769, 33023, 33024, 64998, 64999,
];

/// A random generator with a seed, so that a proof can be repeated.
#[derive(Debug, Clone)]
pub struct Random(qpatch_gate::random::Random);

impl Random {
    /// Returns the generator for `seed`.
    pub fn new(seed: u64) -> Random {
        Random(qpatch_gate::random::Random::new(seed))
    }

    /// Returns the next number.
    pub fn draw(&mut self) -> u64 {
        self.0.next()
    }

    /// Returns a number below `bound`; 0 if `bound` is 0. (The bias is less than one in 2^32.)
    pub fn below(&mut self, bound: u32) -> u32 {
        if bound == 0 { 0 } else { (self.draw() % u64::from(bound)) as u32 }
    }

    /// Puts `items` into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(u32::try_from(last + 1).unwrap_or(u32::MAX)) as usize;
            items.swap(last, other);
        }
    }
}

/// Returns the boundaries below `spawn`, and the largest number below it, in order.
pub fn boundaries(spawn: u32) -> Vec<u32> {
    let mut numbers: BTreeSet<u32> =
        BOUNDARIES.into_iter().filter(|number| *number < spawn).collect();
    numbers.extend(spawn.checked_sub(1));
    numbers.into_iter().collect()
}

/// Returns `count` of the `spawn` delivery numbers in random order: all boundaries, and random others. If `count` is
/// `spawn` or more, returns all.
pub fn choose(spawn: u32, count: u32, random: &mut Random) -> Vec<u32> {
    let count = count.min(spawn) as usize;
    let mut chosen: BTreeSet<u32> = boundaries(spawn).into_iter().take(count).collect();
    if count * 2 >= spawn as usize {
        let mut others: Vec<u32> = (0..spawn).filter(|number| !chosen.contains(number)).collect();
        random.shuffle(&mut others);
        chosen.extend(others.into_iter().take(count - chosen.len()));
    } else {
        while chosen.len() < count {
            chosen.insert(random.below(spawn));
        }
    }
    let mut chosen: Vec<u32> = chosen.into_iter().collect();
    random.shuffle(&mut chosen);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_end_at_the_top() {
        assert!(boundaries(0).is_empty());
        assert_eq!(boundaries(1), [0]);
        assert_eq!(boundaries(200), [0, 1, 2, 127, 128, 129, 199]);
        assert!(boundaries(65000).ends_with(&[64998, 64999]));
        assert!(boundaries(40000).ends_with(&[33024, 39999]));
    }

    #[test]
    fn a_choice_is_complete_or_has_all_boundaries_and_no_number_twice() {
        for (spawn, count) in [(1, 5), (1000, 1000), (1000, 999), (65000, 500), (65000, 40000)] {
            let chosen = choose(spawn, count, &mut Random::new(7));
            let distinct: BTreeSet<u32> = chosen.iter().copied().collect();
            assert_eq!(distinct.len(), chosen.len());
            assert_eq!(chosen.len(), count.min(spawn) as usize);
            assert!(distinct.iter().all(|number| *number < spawn));
            assert!(boundaries(spawn).iter().all(|number| distinct.contains(number)));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        assert_eq!(
            choose(65000, 300, &mut Random::new(1)),
            choose(65000, 300, &mut Random::new(1))
        );
        assert_ne!(
            choose(65000, 300, &mut Random::new(1)),
            choose(65000, 300, &mut Random::new(2))
        );
    }
}
