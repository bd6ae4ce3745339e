//! How a number changed over a simulation, in bounded memory: for `--html`.
//!
//! A curve has at most [`BINS_MAX`] bins. When time goes on beyond the last one, two bins become one. A bin has the
//! highest value within it, so no peak is lost. Bins in which nothing changed are not stored.

/// The most bins of a curve.
const BINS_MAX: u32 = 240;
/// How long the first bins are, in microseconds.
const FIRST_WIDTH_US: u64 = 10_000;
/// How many texts of servers a key keeps.
const WORDS_KEPT: usize = 5;
/// The most bytes of a server's text.
pub(super) const WORDS_MAX: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bin {
    at: u32,
    /// The highest value.
    peak: u32,
    /// The value at its end.
    last: u32,
}

/// A number over time.
#[derive(Debug)]
pub(super) struct Curve {
    width_us: u64,
    bins: Vec<Bin>,
}

impl Default for Curve {
    fn default() -> Self {
        Self { width_us: FIRST_WIDTH_US, bins: Vec::new() }
    }
}

impl Curve {
    /// The number is `value` from now on. Time does not go back; if it seems to, the value counts for the last bin.
    pub(super) fn set(&mut self, now_us: u64, value: u32) {
        while now_us / self.width_us >= u64::from(BINS_MAX) {
            self.width_us *= 2;
            let mut merged: Vec<Bin> = Vec::with_capacity(self.bins.len());
            for bin in &self.bins {
                let at = bin.at / 2;
                match merged.last_mut() {
                    Some(last) if last.at == at => {
                        (last.peak, last.last) = (last.peak.max(bin.peak), bin.last);
                    }
                    _ => merged.push(Bin { at, ..*bin }),
                }
            }
            self.bins = merged;
        }
        let at = (now_us / self.width_us) as u32;
        match self.bins.last_mut() {
            Some(bin) if bin.at >= at => (bin.peak, bin.last) = (bin.peak.max(value), value),
            last => {
                let before = last.map_or(0, |bin| bin.last);
                self.bins.push(Bin { at, peak: value.max(before), last: value });
            }
        }
    }

    /// The highest value in each of `columns` equal parts of the time from 0 to `end_us`.
    pub(super) fn columns(&self, end_us: u64, columns: usize) -> Vec<u32> {
        let mut peaks = vec![0; columns];
        let of = |us: u64| {
            ((u128::from(us) * columns as u128 / u128::from(end_us.max(1))) as usize)
                .min(columns - 1)
        };
        for (index, bin) in self.bins.iter().enumerate() {
            let from_us = u64::from(bin.at) * self.width_us;
            let to_us = from_us + self.width_us;
            for peak in &mut peaks[of(from_us)..=of(to_us - 1)] {
                *peak = (*peak).max(bin.peak);
            }
            // Until the next one the value stays.
            let next_us =
                self.bins.get(index + 1).map_or(end_us, |next| u64::from(next.at) * self.width_us);
            if bin.last > 0 && next_us > to_us {
                for peak in &mut peaks[of(to_us)..=of(next_us - 1)] {
                    *peak = (*peak).max(bin.last);
                }
            }
        }
        peaks
    }

    /// The highest value.
    pub(super) fn peak(&self) -> u32 {
        self.bins.iter().map(|bin| bin.peak).max().unwrap_or(0)
    }
}

/// Ends of the classes of waits, in seconds: up to a second, ten seconds, and so on. Longer ones are the last class.
pub(super) const WAIT_CLASSES_SECS: [u64; 5] = [1, 10, 60, 600, 3600];

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerWords {
    pub(super) text: Vec<u8>,
    pub(super) times: u64,
}

/// What is remembered of a key for a picture.
#[derive(Debug, Default)]
pub(super) struct KeyCurves {
    /// What ran in the log.
    pub(super) before: Curve,
    /// What runs with limits.
    pub(super) running: Curve,
    /// What waits with limits.
    pub(super) waiting: Curve,
    /// How many waited how long.
    pub(super) waits: [u64; WAIT_CLASSES_SECS.len() + 1],
    /// Refusals in the server's words.
    pub(super) words: Vec<ServerWords>,
    /// Refusals whose words are not kept.
    pub(super) other_words: u64,
}

impl KeyCurves {
    /// Counts a delivery that has waited.
    pub(super) fn waited(&mut self, us: u64) {
        let class = WAIT_CLASSES_SECS.iter().position(|&secs| us < secs * 1_000_000);
        self.waits[class.unwrap_or(WAIT_CLASSES_SECS.len())] += 1;
    }

    /// Counts a refusal. Texts that differ only in digits are the same one.
    pub(super) fn said(&mut self, text: &[u8]) {
        let is_same = |other: &[u8]| {
            let plain = |byte: &u8| !byte.is_ascii_digit();
            text.iter().filter(|byte| plain(byte)).eq(other.iter().filter(|byte| plain(byte)))
        };
        match self.words.iter().position(|words| is_same(&words.text)) {
            Some(at) => self.words[at].times += 1,
            None if self.words.len() < WORDS_KEPT => {
                self.words.push(ServerWords { text: text.to_vec(), times: 1 });
            }
            None => self.other_words += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_peak_is_lost_and_memory_is_bounded() {
        let mut curve = Curve::default();
        for step in 0..100_000u64 {
            curve.set(step * 1_000_000, if step == 77_777 { 9 } else { (step % 2) as u32 });
        }
        assert!(curve.bins.len() <= BINS_MAX as usize);
        assert_eq!(curve.peak(), 9);
        let columns = curve.columns(100_000_000_000, 100);
        assert_eq!(columns.iter().filter(|&&peak| peak == 9).count(), 1, "{columns:?}");
        assert!(columns.iter().all(|&peak| peak >= 1), "{columns:?}");
    }

    #[test]
    fn a_value_stays_until_it_changes() {
        let mut curve = Curve::default();
        curve.set(100_000, 3);
        curve.set(800_000, 0);
        assert_eq!(curve.columns(1_000_000, 10), [0, 3, 3, 3, 3, 3, 3, 3, 3, 0]);
        assert_eq!(Curve::default().columns(0, 3), [0, 0, 0]);
    }

    #[test]
    fn words_that_differ_in_digits_are_one() {
        let mut curves = KeyCurves::default();
        for number in 0..20 {
            curves.said(format!("421 too many, id {number}").as_bytes());
        }
        for number in 0..6u8 {
            curves.said(&[b'a' + number]);
        }
        assert_eq!((curves.words.len(), curves.words[0].times, curves.other_words), (5, 20, 2));
    }
}
