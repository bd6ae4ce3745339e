//! The log's time. It never goes back, even if a computer's clock did.
//!
//! Local times jump when daylight saving time begins or ends. A log does not name its time zone, so the jump itself is
//! the sign: in a night in which clocks may change, time goes back by an hour, or an hour is missing (with up to ten
//! minutes without a line). If time goes back in any other way, the clock was set back, and the log's time goes on from
//! there.
//!
//! A log may have the lines of several hosts. They share one host clock until the time of one host goes back, or ahead
//! by more than a day. That host then gets a host clock of its own, so its lines do not move the others.

use std::collections::HashMap;

use crate::qmail::log::stamp::{Basis, Stamp};

/// If time goes back by no more than this, two writers have read the clock in turn.
const JITTER_US: i64 = 5_000_000;
/// If no line comes for longer than this, part of the log is missing or the clock was wrong: no delivery takes so long.
const GAP_MAX_US: i64 = DAY_US;
/// The same, once time has gone back or ahead in that way [`JUMPS_MAX`] times: the lines of this log are in no order.
/// Each day without lines but with mail that waits takes up to 86,400 steps of the simulation.
const GAP_AFTER_JUMPS_US: i64 = 60_000_000;
const JUMPS_MAX: u64 = 10;
const DAY_US: i64 = 24 * HOUR_US;
const HOUR_US: i64 = 3_600_000_000;
/// Times without a year are read as those of a leap year.
const YEAR_US: i64 = 366 * DAY_US;
/// The 29th of February in such a year.
const LEAP_DAY: i64 = 59;
/// How long the log may be silent around a change of the clocks.
const QUIET_US: i64 = 600_000_000;

/// The log's clock: from 0 on, never back.
#[derive(Debug, Default)]
pub(super) struct LogClock {
    pub(super) now_us: u64,
    host_clocks: Vec<HostClock>,
    /// Which of them each origin has.
    of: HashMap<u64, usize>,
    pub(super) set_back: u64,
    pub(super) gaps: u64,
    /// How often daylight saving time began or ended.
    pub(super) changed: u64,
}

/// How the times of some hosts become the log's.
#[derive(Clone, Copy, Debug)]
struct HostClock {
    /// The time of the hosts at which the log's is 0.
    offset_us: i64,
    last: Stamp,
    /// There was a 29th of February.
    is_leap: bool,
    /// How many origins have it.
    origins: u32,
}

impl LogClock {
    /// The log's time of a line of this origin; the caller keeps the number of origins bounded.
    pub(super) fn at(&mut self, origin: u64, stamp: Stamp) -> u64 {
        let Stamp { us: stamp_us, basis, .. } = stamp;
        if self.host_clocks.is_empty() {
            let first = HostClock { offset_us: stamp_us, last: stamp, is_leap: false, origins: 0 };
            self.host_clocks.push(first);
        }
        let host_clocks = &mut self.host_clocks;
        let at = *self.of.entry(origin).or_insert_with(|| {
            host_clocks[0].origins += 1;
            0
        });
        let before = self.host_clocks[at];
        let host_clock = &mut self.host_clocks[at];
        let last = std::mem::replace(&mut host_clock.last, stamp);
        if basis == Basis::NewYear {
            host_clock.offset_us =
                host_clock.offset_us.saturating_add(host_clock.new_year(last, stamp_us));
        }
        let summer_us = summer(last, stamp);
        self.changed += u64::from(summer_us != 0);
        host_clock.offset_us = host_clock.offset_us.saturating_add(summer_us);
        let offset_us = host_clock.offset_us;
        let since_us = stamp_us.saturating_sub(offset_us);
        let behind_us = (self.now_us as i64).saturating_sub(since_us);
        let gap_max_us = match self.set_back + self.gaps {
            ..=JUMPS_MAX => GAP_MAX_US,
            _ => GAP_AFTER_JUMPS_US,
        };
        if behind_us > JITTER_US {
            // The log's time goes on from here.
            self.set_back += 1;
            self.split(origin, at, before, offset_us.saturating_sub(behind_us));
        } else if behind_us < -gap_max_us {
            self.gaps += 1;
            let since_us = self.now_us as i64 + gap_max_us;
            self.split(origin, at, before, stamp_us.saturating_sub(since_us));
            self.now_us = since_us as u64;
            return self.now_us;
        }
        self.now_us = self.now_us.max(u64::try_from(since_us).unwrap_or(0));
        self.now_us
    }

    /// From now on the times of an origin count from `offset_us` on. If others share its host clock, that one stays as
    /// it was `before`.
    fn split(&mut self, origin: u64, at: usize, before: HostClock, offset_us: i64) {
        let host_clock = HostClock { offset_us, origins: 1, ..self.host_clocks[at] };
        if self.host_clocks[at].origins == 1 {
            self.host_clocks[at] = host_clock;
            return;
        }
        self.host_clocks[at] = HostClock { origins: before.origins - 1, ..before };
        self.of.insert(origin, self.host_clocks.len());
        self.host_clocks.push(host_clock);
    }
}

impl HostClock {
    /// By how much the offset grows if times without a year have reached a new year, or have passed a 29th of February
    /// that this year does not have.
    fn new_year(&mut self, last: Stamp, stamp_us: i64) -> i64 {
        let (last_day, day) = (last.us.div_euclid(DAY_US), stamp_us.div_euclid(DAY_US));
        self.is_leap |= day == LEAP_DAY;
        if last.us.saturating_sub(stamp_us) > YEAR_US - 30 * DAY_US {
            self.is_leap = false;
            return -YEAR_US;
        }
        if !self.is_leap && last_day < LEAP_DAY && day > LEAP_DAY { DAY_US } else { 0 }
    }
}

/// The same for daylight saving time.
fn summer(last: Stamp, Stamp { us, basis, .. }: Stamp) -> i64 {
    let is_local = |basis| matches!(basis, Basis::Local | Basis::NewYear);
    if !is_local(basis) || last.basis != basis || !may_change(basis, us) {
        return 0;
    }
    let ahead_us = us.saturating_sub(last.us);
    let hour = |us: i64| us.div_euclid(HOUR_US);
    let to_hour = HOUR_US - last.us.rem_euclid(HOUR_US);
    if (-HOUR_US..=QUIET_US - HOUR_US).contains(&ahead_us) {
        -HOUR_US
    } else if (HOUR_US..HOUR_US + QUIET_US).contains(&ahead_us)
        && hour(us) == hour(last.us) + 2
        && to_hour <= QUIET_US
    {
        HOUR_US
    } else {
        0
    }
}

/// Whether some country changes its clocks at this time: in a night to Sunday, in spring or autumn.
fn may_change(basis: Basis, us: i64) -> bool {
    let (days, hour) = (us.div_euclid(DAY_US), us.rem_euclid(DAY_US) / HOUR_US);
    let is_sunday = match basis {
        // 1970-01-04 was one.
        Basis::Local => days.rem_euclid(7) == 3,
        // The year is unknown.
        _ => true,
    };
    let month = match basis {
        Basis::Local => crate::date::iso(days).get(5..7).and_then(|month| month.parse().ok()),
        _ => u32::try_from(days / 31 + 1).ok(),
    };
    // Dividing days by 31 may give the month before. One more month at each end does no harm.
    let is_month = month.is_some_and(|month| matches!(month, 3..=4 | 9..=11))
        || (basis == Basis::NewYear && month.is_some_and(|month| matches!(month, 2 | 8)));
    is_sunday && is_month && hour <= 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qmail::log::stamp::Precision;

    fn stamp(us: i64, basis: Basis) -> Stamp {
        Stamp { us, precision: Precision::Fine, basis }
    }

    fn seen(basis: Basis, secs: &[i64]) -> (Vec<u64>, [u64; 3]) {
        let mut clock = LogClock::default();
        let seen = secs
            .iter()
            .map(|secs| clock.at(0, stamp(secs * 1_000_000, basis)) / 1_000_000)
            .collect();
        (seen, [clock.set_back, clock.gaps, clock.changed])
    }

    /// Two hosts in turn, each with a line every 2 s. The clock of one goes back by an hour, ahead by a day, and is
    /// right again.
    #[test]
    fn a_host_whose_clock_jumps_does_not_move_the_others() {
        let mut clock = LogClock::default();
        let at = |secs: i64| stamp(secs * 1_000_000, Basis::Universal);
        let mut last_us = 0;
        for i in 0..200 {
            let jump = match i {
                60..120 => -3600,
                120..150 => 90_000,
                _ => 0,
            };
            last_us = clock.at(1, at(2 * i)).max(clock.at(2, at(2 * i + 1 + jump)));
        }
        assert_eq!((clock.set_back, clock.gaps), (3, 1));
        let secs = last_us / 1_000_000;
        // The one gap counts as a day.
        assert!((86_400..86_400 + 410).contains(&secs), "{secs}");
    }

    #[test]
    fn clocks_that_are_set_back_go_on() {
        let (secs, told) = seen(Basis::Universal, &[100, 110, 109, 112, 50, 51, 112, 3000]);
        assert_eq!(secs, [0, 10, 10, 12, 12, 13, 74, 2962]);
        assert_eq!(told, [1, 0, 0]);
        let mut clock = LogClock::default();
        let mut at = |us| clock.at(0, stamp(us, Basis::Universal)) / 1_000_000;
        assert_eq!(at(0), 0);
        assert_eq!(at(i64::MAX), 86_400);
        assert_eq!(at(i64::MAX - 10), 86_400);
        assert_eq!(at(5_000_000), 86_400);
        assert_eq!(at(7_000_000), 86_402);
        assert_eq!(at(i64::MIN), 86_402);
        assert_eq!((clock.set_back, clock.gaps), (2, 1));
    }

    /// Logs of other times, line by line: 3000 jumps ahead counted as 3000 days, which took hours to simulate.
    #[test]
    fn lines_in_no_order_do_not_make_years() {
        let ahead: Vec<i64> = (0..3000).map(|line| line * 3 * 86_400).collect();
        let mixed: Vec<i64> =
            (0..3000).map(|line| if line % 2 == 0 { line } else { line + 400_000_000 }).collect();
        let hours: Vec<i64> = (0..3000).map(|line| line % 2 * 80_000).collect();
        for secs in [ahead, mixed, hours] {
            let (seen, _) = seen(Basis::Universal, &secs);
            let days = seen.last().unwrap() / 86_400;
            assert!(days < 20, "{days} days");
        }
    }

    #[test]
    fn times_without_a_year_pass_new_year() {
        const DAY: i64 = 86_400;
        let (secs, told) =
            seen(Basis::NewYear, &[365 * DAY, 366 * DAY - 1, 0, 5, 58 * DAY, 60 * DAY - 1]);
        assert_eq!(secs[..4], [0, 86_399, 86_400, 86_405]);
        assert_eq!(told[0], 0);
    }

    #[test]
    fn times_without_a_year_pass_february_with_or_without_a_leap_day() {
        const DAY: i64 = 86_400;
        // From the 28th of February to the 1st of March, a second later.
        let (secs, told) = seen(Basis::NewYear, &[59 * DAY - 1, 60 * DAY]);
        assert_eq!((&secs[..], told), (&[0, 1][..], [0, 0, 0]));
        let (secs, told) = seen(Basis::NewYear, &[59 * DAY - 1, 59 * DAY, 60 * DAY - 1, 60 * DAY]);
        assert_eq!((&secs[..], told), (&[0, 1, 86_400, 86_401][..], [0, 0, 0]));
    }

    #[test]
    fn daylight_saving_time_begins_and_ends() {
        let local = |text: &str| {
            let line = format!("{text} new msg 1");
            crate::qmail::log::line::read(line.as_bytes(), None, 0).unwrap().stamp.unwrap()
        };
        for (texts, secs, changed) in [
            // Berlin, 2023.
            (
                ["2023-10-29 02:59:50.5", "2023-10-29 02:00:10.5", "2023-10-29 02:59:59.5"],
                [0, 20, 3609],
                1,
            ),
            (
                ["2023-03-26 01:59:50.5", "2023-03-26 03:00:10.5", "2023-03-26 03:00:20.5"],
                [0, 20, 30],
                1,
            ),
            (["Oct 29 02:59:50", "Oct 29 02:00:10", "Oct 29 03:00:00"], [0, 20, 3610], 1),
            (["Mar 26 01:59:50", "Mar 26 03:00:10", "Mar 26 03:00:20"], [0, 20, 30], 1),
            // An hour in which nothing came, at another time.
            (
                ["2023-03-26 11:59:50.5", "2023-03-26 13:00:10.5", "2023-03-26 13:00:20.5"],
                [0, 3620, 3630],
                0,
            ),
            (
                ["2023-03-27 01:59:50.5", "2023-03-27 03:00:10.5", "2023-03-27 03:00:20.5"],
                [0, 3620, 3630],
                0,
            ),
            (
                ["2023-03-26 01:30:00.5", "2023-03-26 03:00:10.5", "2023-03-26 03:00:20.5"],
                [0, 5410, 5420],
                0,
            ),
            // Times with a zone do not jump.
            (
                [
                    "2023-10-29 02:59:50.5+02:00",
                    "2023-10-29 02:00:10.5+01:00",
                    "2023-10-29 02:59:59.5+01:00",
                ],
                [0, 20, 3609],
                0,
            ),
        ] {
            let mut clock = LogClock::default();
            let seen = texts.map(|text| clock.at(0, local(text)) / 1_000_000);
            assert_eq!((seen, clock.changed, clock.set_back), (secs, changed, 0), "{texts:?}");
        }
    }
}
