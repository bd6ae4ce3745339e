//! When the next delivery of a key may start, if its line has rates.
//!
//! **Paced rates** (N starts within a time T) follow the generic cell rate algorithm with a burst of one (GCRA, the
//! virtual scheduling algorithm of ITU-T I.371, annex A). Each start plans the next one an interval I later. A start
//! may come earlier than planned by a tolerance D: so one that comes late, because a timer or the processor is late,
//! does not delay all that follow. With I > (T + M) / N and a margin M of at least D there are never more than N starts
//! in any time T, wherever it begins: N + 1 starts in a row take at least N * I - D > T.
//!
//! A server counts connections, and a connection begins some milliseconds after its start, on a busy machine a hundred.
//! What M has more than D is for that difference. M is a two-hundredth of T at most. So with mail always there, at
//! least 99 % of the rate is used: 99.5 %, less what the rounding to microseconds takes from a fast rate.
//!
//! A key with several paced rates has the longest interval and the smallest tolerance of all.
//!
//! **What is not known** counts as a start just now: so a rate holds also over a restart of the spawner, a change of
//! the table, and a key that was forgotten. [`ForgottenStarts`] remembers the last starts of keys that were forgotten.
//!
//! The caller passes the time in microseconds, which never goes back. After a jump forwards one delivery starts, or as
//! many as the tolerance allows: time that has passed is never made up for.

#![forbid(unsafe_code)]

use crate::control::rates::{PacedRate, Rates};
use crate::util::memory::{self, OutOfMemory};

/// The margin is this part of a rate's time.
const MARGIN_DIVISOR: u64 = 200;
/// The longest margin, in microseconds.
const MARGIN_MAX_US: u64 = 300_000;
/// The tolerance is an even interval, but at least this, in microseconds: a time-out of the spawner ends up to 3 ms
/// late on an idle machine.
const TOLERANCE_MIN_US: u64 = 5_000;
/// The longest tolerance, in microseconds: a busy machine wakes a process up within that time.
const TOLERANCE_MAX_US: u64 = 100_000;

/// How the starts of a key are spread. See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pacing {
    /// 0: not at all.
    interval_us: u64,
    tolerance_us: u64,
}

impl Pacing {
    fn of(rate: PacedRate) -> Self {
        let starts = u64::from(rate.starts.max(1));
        let time_us = u64::from(rate.secs) * 1_000_000;
        let even_us = time_us / starts;
        let margin_us = (time_us / MARGIN_DIVISOR).min(MARGIN_MAX_US);
        let tolerance_us = even_us.clamp(TOLERANCE_MIN_US, TOLERANCE_MAX_US).min(margin_us);
        Self { interval_us: (time_us + margin_us) / starts + 1, tolerance_us }
    }

    fn of_all(rates: &Rates) -> Self {
        let all = [rates.seconds, rates.minutes].into_iter().flatten().map(Self::of);
        all.reduce(|one, other| Self {
            interval_us: one.interval_us.max(other.interval_us),
            tolerance_us: one.tolerance_us.min(other.tolerance_us),
        })
        .unwrap_or_default()
    }
}

/// The rates of a key, and its starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartRate {
    pacing: Pacing,
    /// When the next start is planned.
    planned_us: u64,
    /// When the next start is allowed: [`StartRate::planned_us`] less the tolerance, or later by a window.
    due_us: u64,
    /// The key in [`crate::core::start_log`], for rates of an hour or a day; 0: there are none.
    id: u64,
    /// The fewest starts that such a rate had left after the last start.
    left: u32,
    /// The rate that the next start waits for.
    waits_for: RateKind,
}

/// A kind of rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RateKind {
    /// Spread evenly.
    #[default]
    Paced,
    /// For an hour.
    Hour,
    /// For a day.
    Day,
}

impl StartRate {
    /// No rate: a start is always allowed.
    pub const NONE: Self = Self {
        pacing: Pacing { interval_us: 0, tolerance_us: 0 },
        planned_us: 0,
        due_us: 0,
        id: 0,
        left: u32::MAX,
        waits_for: RateKind::Paced,
    };

    /// The rates of a key whose last start was at `last_us` or earlier.
    #[must_use]
    pub fn new(rates: &Rates, last_us: u64) -> Self {
        let mut rate = Self { pacing: Pacing::of_all(rates), ..Self::NONE };
        rate.plan_after(last_us);
        rate
    }

    /// The same starts under other rates. With no rates before, the last start is taken to be now.
    #[must_use]
    pub fn with(mut self, rates: &Rates, now_us: u64) -> Self {
        if Pacing::of_all(rates) != self.pacing {
            return Self::new(rates, self.last_us().unwrap_or(now_us));
        }
        self.forget_windows();
        self
    }

    /// Without the rates of an hour and a day, until [`crate::core::start_log::StartLog::attach`].
    fn forget_windows(&mut self) {
        self.due_us = self.planned_us.saturating_sub(self.pacing.tolerance_us);
        (self.id, self.left, self.waits_for) = (0, u32::MAX, RateKind::Paced);
    }

    /// A rate of an hour or a day allows the next start at this time, and has so many left until then.
    pub(crate) fn limit_by_window(&mut self, id: u64, kind: RateKind, due_us: u64, left: u32) {
        (self.id, self.left) = (id, self.left.min(left));
        if due_us > self.due_us {
            (self.due_us, self.waits_for) = (due_us, kind);
        }
    }

    /// The key in the log of starts; 0: it has no rates of an hour or a day.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The rate that the next start waits for, if it waits.
    #[must_use]
    pub fn waits_for(&self) -> RateKind {
        self.waits_for
    }

    /// The one of two whose next start is later. They belong to keys that have their starts in common.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        if other.due_us > self.due_us { other } else { self }
    }

    /// A time that is not before the last start; None: there are no paced rates, so it is not known.
    #[must_use]
    pub fn last_us(&self) -> Option<u64> {
        self.is_paced().then(|| self.planned_us.saturating_sub(self.pacing.interval_us))
    }

    /// Whether there are rates.
    #[inline]
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.is_paced() || self.id != 0
    }

    #[inline]
    fn is_paced(&self) -> bool {
        self.pacing.interval_us > 0
    }

    /// When the next start is allowed; 0 without rates.
    #[inline]
    #[must_use]
    pub fn due_us(&self) -> u64 {
        self.due_us
    }

    /// Whether a delivery may start now.
    #[inline]
    #[must_use]
    pub fn is_due(&self, now_us: u64) -> bool {
        self.due_us <= now_us
    }

    /// Notes a start. The log of starts must note it as well, for rates of an hour and a day.
    #[inline]
    pub fn started(&mut self, now_us: u64) {
        if self.is_paced() {
            let planned_us = self.planned_us.max(now_us);
            self.planned_us = planned_us.saturating_add(self.pacing.interval_us);
        }
        self.due_us = self.planned_us.saturating_sub(self.pacing.tolerance_us);
        (self.left, self.waits_for) = (u32::MAX, RateKind::Paced);
    }

    /// How many starts are allowed from now until `span_us` later, if the first comes as early as it may and each other
    /// one an interval after the one before; u32::MAX without rates. It leaves out the tolerance, which can allow a few
    /// more.
    #[must_use]
    pub fn starts_within(&self, now_us: u64, span_us: u64) -> u32 {
        if !self.is_some() {
            return u32::MAX;
        }
        let Some(left_us) = now_us.saturating_add(span_us).checked_sub(self.due_us.max(now_us))
        else {
            return 0;
        };
        let paced = match left_us.checked_div(self.pacing.interval_us) {
            None => u32::MAX,
            Some(starts) => u32::try_from(starts).unwrap_or(u32::MAX).saturating_add(1),
        };
        // When a start is due, a window has room for one at least.
        paced.min(self.left.max(1))
    }

    /// In how many microseconds so many starts are over at the earliest; 0 without rates.
    #[must_use]
    pub fn us_for(&self, starts: u32, now_us: u64) -> u64 {
        let wait_us = self.due_us.saturating_sub(now_us);
        wait_us.saturating_add(u64::from(starts).saturating_mul(self.pacing.interval_us))
    }

    /// Plans the next start for the latest time that a start at `last_us` can have left, so that the start is due one
    /// interval later.
    fn plan_after(&mut self, last_us: u64) {
        if self.is_paced() {
            let Pacing { interval_us, tolerance_us } = self.pacing;
            self.due_us = last_us.saturating_add(interval_us);
            self.planned_us = self.due_us.saturating_add(tolerance_us);
        }
    }
}

/// How many marks [`ForgottenStarts`] has: 8 KiB. Two keys with one mark delay each other by an interval at most.
const MARKS: usize = 1024;

/// The last starts of keys with rates that the gate has forgotten.
#[derive(Debug, Default)]
pub struct ForgottenStarts {
    /// No start before this time is known. In microseconds.
    since_us: u64,
    /// For keys with this low end of their hash: a time that is not before their last start. Empty until a table has
    /// rates.
    marks: Vec<u64>,
}

impl ForgottenStarts {
    /// Of starts up to now nothing is known.
    pub fn nothing_known_before(&mut self, now_us: u64) {
        self.since_us = self.since_us.max(now_us);
    }

    /// Makes room for the marks.
    ///
    /// # Errors
    /// No memory.
    pub fn prepare(&mut self) -> Result<(), OutOfMemory> {
        if self.marks.is_empty() {
            self.marks = memory::filled(0, MARKS)?;
        }
        Ok(())
    }

    /// Notes the starts of a key that is forgotten.
    pub fn forget(&mut self, hash: u64, rate: &StartRate) {
        let mark = self.marks.get_mut(hash as usize % MARKS);
        if let (Some(mark), Some(last_us)) = (mark, rate.last_us()) {
            *mark = (*mark).max(last_us);
        }
    }

    /// A time that is not before the last start of a key that is not known.
    #[must_use]
    pub fn last_us(&self, hash: u64) -> u64 {
        self.marks.get(hash as usize % MARKS).map_or(0, |&mark| mark).max(self.since_us)
    }
}
