//! The starts of a key within the last hour or day, for rates that may be used at any speed.
//!
//! A ring of cells counts the starts. A cell is a 240th of the time, so the time and a part of one more cell are
//! counted: a start counts from when it happens until all of its cell is older than the time. So in no interval of an
//! hour or a day, wherever it begins, do more deliveries start than the rate allows. The price: what was used at once
//! is free again a cell later than it might be, so that 240 of 241 parts of the rate can be used.
//!
//! The caller passes the time in microseconds, which never goes back. A window has a fixed size, 1 KB.

#![forbid(unsafe_code)]

/// How many cells the time has.
const PARTS: u64 = 240;
/// The cells of the time, and the one that is not over.
pub(crate) const CELLS: usize = PARTS as usize + 1;

/// An hour, in microseconds.
pub const HOUR_US: u64 = 3_600_000_000;
/// A day, in microseconds.
pub const DAY_US: u64 = 24 * HOUR_US;

/// The starts within the last hour or day. See the module.
#[derive(Clone, Debug)]
pub struct Window {
    /// The length of a cell, in microseconds.
    cell_us: u64,
    /// The number of the cell of the last start, from the origin of the clock on.
    newest: u64,
    /// All starts that count, up to the cell of the last start.
    total: u32,
    /// The starts in each cell: cell N is at N modulo [`CELLS`].
    counts: [u32; CELLS],
}

impl Window {
    /// No starts within this time, which is [`HOUR_US`] or [`DAY_US`].
    #[must_use]
    pub fn new(time_us: u64) -> Self {
        Self { cell_us: (time_us / PARTS).max(1), newest: 0, total: 0, counts: [0; CELLS] }
    }

    /// Counts so many starts.
    pub fn started(&mut self, now_us: u64, starts: u32) {
        self.advance(now_us);
        let count = &mut self.counts[(self.newest % CELLS as u64) as usize];
        let starts = starts.min(u32::MAX - self.total.max(*count));
        *count += starts;
        self.total += starts;
    }

    /// Forgets what is over.
    #[inline]
    pub fn advance(&mut self, now_us: u64) {
        let cell = now_us / self.cell_us;
        if cell > self.newest {
            let passed = (cell - self.newest).min(CELLS as u64);
            for old in 1..=passed {
                let count = &mut self.counts[((self.newest + old) % CELLS as u64) as usize];
                self.total = self.total.saturating_sub(std::mem::take(count));
            }
            self.newest = cell;
        }
    }

    /// How many starts counted at the last call of [`Window::advance`].
    #[inline]
    #[must_use]
    pub fn total(&self) -> u32 {
        self.total
    }

    /// How many starts count now.
    #[must_use]
    pub fn counted(&self, now_us: u64) -> u32 {
        self.cells(now_us).map(|(_, count)| count).sum()
    }

    /// When fewer than `allowed` starts count, at the earliest; not before now. None: never, because none is allowed.
    #[must_use]
    pub fn due_us(&self, now_us: u64, allowed: u32) -> Option<u64> {
        // Nearly always the total is enough; it may have cells that are over.
        if self.total < allowed {
            return Some(now_us);
        }
        let mut counted = self.counted(now_us);
        if counted < allowed {
            return Some(now_us);
        }
        for (cell, count) in self.cells(now_us) {
            counted -= count;
            if counted < allowed {
                return Some((cell + CELLS as u64).saturating_mul(self.cell_us));
            }
        }
        None
    }

    /// Restores a cell from before a restart. The cells come in the order of their numbers.
    pub(crate) fn restore(&mut self, cell: u64, starts: u32, now_us: u64) {
        self.started(cell.saturating_mul(self.cell_us).min(now_us), starts);
    }

    /// The cells that count now, the oldest first: number and starts.
    pub(crate) fn cells(&self, now_us: u64) -> impl Iterator<Item = (u64, u32)> {
        let first = (now_us / self.cell_us).max(self.newest).saturating_sub(PARTS);
        let first = first.max(self.newest.saturating_sub(PARTS));
        (first..=self.newest).map(|cell| (cell, self.counts[(cell % CELLS as u64) as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: u64 = 1_000_000;

    #[test]
    fn an_hour_is_full_until_its_first_cell_is_over() {
        let mut window = Window::new(HOUR_US);
        assert_eq!(window.due_us(7, 5), Some(7));
        for second in 0..5 {
            window.started(20 * SEC + second, 1);
        }
        assert_eq!((window.counted(20 * SEC), window.due_us(21 * SEC, 6)), (5, Some(21 * SEC)));
        // The cell of 15 s ends at 30 s; until 3630 s some hour has these five.
        assert_eq!(window.due_us(21 * SEC, 5), Some(3630 * SEC));
        assert_eq!(window.counted(3630 * SEC - 1), 5);
        assert_eq!(
            (window.counted(3630 * SEC), window.due_us(3630 * SEC, 5)),
            (0, Some(3630 * SEC))
        );
        assert_eq!(window.due_us(21 * SEC, 0), None);
        window.started(3000 * SEC, 2);
        assert_eq!(window.due_us(3000 * SEC, 2), Some(6615 * SEC));
        assert_eq!(window.due_us(3000 * SEC, 7), Some(3630 * SEC));
        window.started(u64::MAX, u32::MAX);
        window.started(u64::MAX, 1);
        assert_eq!(window.counted(u64::MAX), u32::MAX);
        assert!(window.due_us(u64::MAX, 1).is_some());
    }

    #[test]
    fn no_hour_has_more_and_nearly_all_is_used() {
        for allowed in [1, 7, 100, 5000] {
            let mut random = 88_172_645_463_325_252u64;
            let mut window = Window::new(HOUR_US);
            let mut now_us = 5 * SEC;
            let mut starts = Vec::new();
            for _ in 0..40_000 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                now_us += match random % 16 {
                    0 => random % (HOUR_US / 40),
                    1 => 0,
                    _ => random % 400_000,
                };
                if window.due_us(now_us, allowed) == Some(now_us) {
                    window.started(now_us, 1);
                    starts.push(now_us);
                }
            }
            let mut first = 0;
            for (last, &at_us) in starts.iter().enumerate() {
                while at_us - starts[first] > HOUR_US {
                    first += 1;
                }
                assert!(last + 1 - first <= allowed as usize, "{allowed}");
            }
            // With mail always there.
            let mut window = Window::new(HOUR_US);
            let (mut now_us, mut used) = (0, 0u64);
            while used < 10 * u64::from(allowed) {
                now_us = window.due_us(now_us, allowed).unwrap();
                window.started(now_us, 1);
                used += 1;
            }
            // Nine full hours lie between the first and the last batch.
            assert!(now_us as f64 <= 9.0 * HOUR_US as f64 / 0.99, "{now_us}");
        }
    }
}
