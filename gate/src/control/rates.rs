//! The rates of a line of concurrencydomains: how many deliveries may start within a time.
//!
//! `N/s`, `N/m`, `N/Xs` and `N/Xm` mean at most N starts in every second or minute, or in every X of them, wherever
//! that time begins; the starts are spread evenly. `N/h` and `N/d` mean at most N starts in every hour or day, at any
//! speed that the others allow. All rates of a line hold together. [`crate::core::rate`] keeps them, and
//! [`crate::control::words`] reads them.

#![forbid(unsafe_code)]

use std::fmt;

/// The highest rate, in starts a second. It is several times what one qmail-send can do, and the rounding of the
/// pace to microseconds stays below 1 %.
pub const RATE_MAX: u32 = 10_000;

/// The longest time of a rate, in seconds: an hour.
pub const RATE_SECS_MAX: u32 = 3600;

/// A rate whose starts are spread evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacedRate {
    /// The most starts within the time, 1 or more.
    pub starts: u32,
    /// The time in seconds, 1..=[`RATE_SECS_MAX`].
    pub secs: u32,
}

impl PacedRate {
    /// Whether this one allows fewer starts a second; of two that allow as many, the one with the shorter time is
    /// lower, because it is the stricter one.
    #[must_use]
    pub fn is_lower(self, other: Self) -> bool {
        let (own, others) = (
            u64::from(self.starts) * u64::from(other.secs),
            u64::from(other.starts) * u64::from(self.secs),
        );
        (own, self.secs) < (others, other.secs)
    }

    /// The lower of two, or the one that there is.
    fn lower(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) if other.is_lower(one) => Some(other),
            (one, other) => one.or(other),
        }
    }
}

/// The rates of a line, one for each unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// That in seconds: `20/s`, `1/10s`.
    pub seconds: Option<PacedRate>,
    /// That in minutes: `600/m`, `1/5m`.
    pub minutes: Option<PacedRate>,
    /// Starts an hour, 1 or more: `5000/h`.
    pub hour: Option<u32>,
    /// Starts a day, 1 or more: `50000/d`.
    pub day: Option<u32>,
}

impl Rates {
    /// No rates.
    pub const NONE: Self = Self { seconds: None, minutes: None, hour: None, day: None };

    /// Whether there are none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// The paced one that allows the fewest starts a second.
    #[must_use]
    pub fn slowest(&self) -> Option<PacedRate> {
        PacedRate::lower(self.seconds, self.minutes)
    }

    /// Whether there is a rate for an hour or a day.
    #[inline]
    #[must_use]
    pub fn has_long(&self) -> bool {
        self.hour.is_some() || self.day.is_some()
    }

    /// The lowest of each unit.
    #[must_use]
    pub fn lowest(self, other: Self) -> Self {
        Self {
            seconds: PacedRate::lower(self.seconds, other.seconds),
            minutes: PacedRate::lower(self.minutes, other.minutes),
            hour: self.hour.into_iter().chain(other.hour).min(),
            day: self.day.into_iter().chain(other.day).min(),
        }
    }
}

impl fmt::Display for Rates {
    /// As in the table: `20/s,600/m`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for rate in [self.seconds, self.minutes].into_iter().flatten() {
            write!(f, "{comma}{rate}")?;
            comma = ",";
        }
        for (rate, unit) in [(self.hour, 'h'), (self.day, 'd')] {
            if let Some(starts) = rate {
                write!(f, "{comma}{starts}/{unit}")?;
                comma = ",";
            }
        }
        Ok(())
    }
}

impl fmt::Display for PacedRate {
    /// As in the table: `20/s`, `1/10s`, `600/m`. A rate of whole minutes is shown in minutes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match self.secs {
            secs if secs % 60 == 0 => (secs / 60, 'm'),
            secs => (secs, 's'),
        };
        match number {
            1 => write!(f, "{}/{unit}", self.starts),
            number => write!(f, "{}/{number}{unit}", self.starts),
        }
    }
}
