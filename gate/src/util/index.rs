//! A hash index over entries that are stored elsewhere: positions by hash, with removal.

#![forbid(unsafe_code)]

use crate::util::memory::{self, OutOfMemory};

const EMPTY: u64 = 0;

/// The smallest size, in elements of 8 bytes. The gate has a few hundred keys, in use or remembered. With this size
/// most of them have their home to themselves, and the processor predicts where a search ends. With 1024 elements ask
/// and done took 129 ns instead of 116 (gate/benches/gate.rs, a table of 1000 domains).
const SIZE_MIN: usize = 4096;

/// Open addressing with linear probing. A removal shifts back what follows, so there are no tombstones. The upper half
/// of an element is the upper half of the hash, which says where it belongs; the lower half is the position plus one.
#[derive(Debug, Default)]
pub struct Index {
    elements: Vec<u64>,
    len: usize,
}

/// Where an element or a hash belongs. Both have it in their upper half.
#[inline]
fn home(hash: u64) -> usize {
    (hash >> 32) as usize
}

impl Index {
    /// The position of the entry with this hash for which `same` says yes.
    #[inline]
    pub fn find(&self, hash: u64, same: impl Fn(u32) -> bool) -> Option<u32> {
        let mask = self.elements.len().checked_sub(1)?;
        let mut slot = home(hash) & mask;
        loop {
            let element = self.elements[slot];
            if element == EMPTY {
                return None;
            }
            if element >> 32 == hash >> 32 && same(element as u32 - 1) {
                return Some(element as u32 - 1);
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Inserts a position that is not there yet.
    ///
    /// # Errors
    /// No memory.
    pub fn insert(&mut self, hash: u64, position: u32) -> Result<(), OutOfMemory> {
        if (self.len + 1) * 2 > self.elements.len() {
            self.grow()?;
        }
        self.place(hash >> 32 << 32 | (u64::from(position) + 1));
        self.len += 1;
        Ok(())
    }

    fn place(&mut self, element: u64) {
        let mask = self.elements.len() - 1;
        let mut slot = home(element) & mask;
        while self.elements[slot] != EMPTY {
            slot = (slot + 1) & mask;
        }
        self.elements[slot] = element;
    }

    fn grow(&mut self) -> Result<(), OutOfMemory> {
        let size = (self.elements.len() * 2).max(SIZE_MIN);
        let elements = memory::filled(EMPTY, size)?;
        let old = std::mem::replace(&mut self.elements, elements);
        for element in old {
            if element != EMPTY {
                self.place(element);
            }
        }
        Ok(())
    }

    /// Removes a position that was inserted with this hash.
    pub fn remove(&mut self, hash: u64, position: u32) {
        let Some(mask) = self.elements.len().checked_sub(1) else { return };
        let wanted = u64::from(position) + 1;
        let mut slot = home(hash) & mask;
        while self.elements[slot] & 0xffff_ffff != wanted {
            if self.elements[slot] == EMPTY {
                return;
            }
            slot = (slot + 1) & mask;
        }
        self.len -= 1;
        // Close the gap: an element may move back if its home is not between the gap and itself.
        let mut gap = slot;
        loop {
            slot = (slot + 1) & mask;
            let element = self.elements[slot];
            if element == EMPTY {
                break;
            }
            if (slot.wrapping_sub(home(element)) & mask) >= (slot.wrapping_sub(gap) & mask) {
                self.elements[gap] = element;
                gap = slot;
            }
        }
        self.elements[gap] = EMPTY;
    }

    /// How many positions it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes that it occupies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.elements.capacity() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::random::Random;
    use std::collections::HashMap;

    #[test]
    fn agrees_with_a_map() {
        // Few different bits where it counts, so that there are long runs; and enough positions for it to grow.
        let mut random = Random::new(4);
        let mut index = Index::default();
        let mut model: HashMap<u32, u64> = HashMap::new();
        let mut has_grown = false;
        for step in 0..50_000 {
            let position = (random.next() % 5000) as u32;
            if let Some(hash) = model.remove(&position) {
                assert_eq!(index.find(hash, |found| found == position), Some(position));
                index.remove(hash, position);
                assert_eq!(index.find(hash, |found| found == position), None);
            } else {
                let hash = random.next() & 0x0000_007f_ffff_ffff | u64::from(position % 8) << 39;
                index.insert(hash, position).unwrap();
                model.insert(position, hash);
            }
            assert_eq!(index.len(), model.len());
            has_grown |= index.elements.len() > SIZE_MIN;
            if step % 1000 == 0 {
                for (&position, &hash) in &model {
                    assert_eq!(index.find(hash, |found| found == position), Some(position));
                }
            }
        }
        assert!(has_grown);
    }
}
