//! The log's time, which goes on whatever the computer's clock did.

/// A clock that goes back by no more than this was read by two writers in turn.
const JITTER_US: i64 = 5_000_000;
/// Without a line for longer than this, part of the log is missing, or the clock was wrong. No delivery takes so long.
const GAP_MAX_US: i64 = DAY_US;
const DAY_US: i64 = 86_400_000_000;
const YEAR_US: i64 = 365 * DAY_US;

/// The log's clock: from 0 on, never back.
#[derive(Debug, Default)]
pub(super) struct Clock {
    pub(super) now_us: u64,
    pub(super) offset_us: Option<i64>,
    pub(super) set_back: u64,
    pub(super) gaps: u64,
}

impl Clock {
    pub(super) fn at(&mut self, stamp_us: i64) -> u64 {
        let mut offset_us = *self.offset_us.get_or_insert(stamp_us);
        let mut since_us = stamp_us.saturating_sub(offset_us);
        let mut behind_us = (self.now_us as i64).saturating_sub(since_us);
        if behind_us > YEAR_US - 30 * DAY_US && (0..YEAR_US + DAY_US).contains(&stamp_us) {
            // Syslog's new year.
            offset_us -= YEAR_US;
            since_us += YEAR_US;
            behind_us -= YEAR_US;
            self.offset_us = Some(offset_us);
        }
        if behind_us > JITTER_US {
            // Whatever clock it is now, it goes on from here.
            self.set_back += 1;
            self.offset_us = Some(offset_us.saturating_sub(behind_us));
        } else if behind_us < -GAP_MAX_US {
            self.gaps += 1;
            let since_us = self.now_us as i64 + GAP_MAX_US;
            self.offset_us = Some(stamp_us.saturating_sub(since_us));
            self.now_us = since_us as u64;
            return self.now_us;
        }
        self.now_us = self.now_us.max(u64::try_from(since_us).unwrap_or(0));
        self.now_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_are_set_back_go_on() {
        let mut clock = Clock::default();
        let secs = [100, 110, 109, 112, 50, 51, 112, 3000];
        let seen = secs.map(|secs| clock.at(secs * 1_000_000) / 1_000_000);
        assert_eq!(seen, [0, 10, 10, 12, 12, 13, 74, 2962]);
        assert_eq!((clock.set_back, clock.gaps), (1, 0));
        assert_eq!(clock.at(i64::MAX), clock_secs(2962 + 86_400));
        assert_eq!(clock.at(i64::MAX - 10), clock_secs(2962 + 86_400));
        assert_eq!(clock.at(5_000_000), clock_secs(2962 + 86_400));
        assert_eq!(clock.at(7_000_000), clock_secs(2964 + 86_400));
        assert_eq!((clock.set_back, clock.gaps), (2, 1));
    }

    fn clock_secs(secs: u64) -> u64 {
        secs * 1_000_000
    }

    #[test]
    fn a_year_that_nobody_knows_ends() {
        let mut clock = Clock::default();
        let seen = [364 * DAY_US, YEAR_US - 1_000_000, 0, 5_000_000].map(|stamp| clock.at(stamp));
        assert_eq!(seen.map(|us| us / 1_000_000), [0, 86_399, 86_400, 86_405]);
        assert_eq!((clock.set_back, clock.gaps), (0, 0));
    }
}
