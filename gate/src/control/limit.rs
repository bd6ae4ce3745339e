//! Limits of deliveries, and how much may stand in the control files.

#![forbid(unsafe_code)]

use crate::control::rates::Rates;

/// How many deliveries at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// At most this many; 0 holds everything.
    AtMost(u32),
    /// No limit.
    Unlimited,
}

/// What the table says about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// How many deliveries of the key run at once.
    pub limit: Limit,
    /// Whether the limit falls when the server objects.
    pub learning: Learning,
    /// How many of its deliveries may start within a time.
    pub rates: Rates,
}

impl Cap {
    /// For a domain that no line matches: no limit, as in stock qmail.
    pub const NONE: Self =
        Self { limit: Limit::Unlimited, learning: Learning::Fixed, rates: Rates::NONE };
}

/// Whether the replies of the server may lower a key's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learning {
    /// They may.
    On,
    /// The limit stays as configured.
    Fixed,
}

/// The highest limit that a line may have. conf-spawn is at most 65000, so a limit above that is never reached.
pub const LIMIT_MAX: u32 = 500_000;

/// The most groups in a table.
pub const GROUPS_MAX: usize = 500_000;

/// The most lines without a group that have rates.
pub const RATED_MAX: usize = 500_000;

/// The longest name of a group, in bytes.
pub const GROUP_MAX: usize = 64;

/// The most lines with a meaning in concurrencyreplies.
pub const RULES_MAX: usize = 500;

/// The most steps of all regular expressions of that file together.
pub const PROGRAMS_MAX: usize = 16384;

/// The longest pause in seconds.
pub const PAUSE_MAX_SECS: u16 = 7200;
