//! Limits of deliveries, and how much may stand in the control files.

#![forbid(unsafe_code)]

/// How many deliveries at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// At most so many; 0 holds everything.
    AtMost(u32),
    /// No limit.
    Unlimited,
}

impl Limit {
    /// Whether one more may start beside `running`.
    #[must_use]
    pub fn admits(self, running: u32) -> bool {
        match self {
            Self::AtMost(limit) => running < limit,
            Self::Unlimited => true,
        }
    }
}

/// What the table says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// How many deliveries of the key run at once.
    pub limit: Limit,
    /// Whether fewer do when its server objects.
    pub learning: Learning,
}

impl Cap {
    /// What no line speaks of: stock behaviour.
    pub const NONE: Self = Self { limit: Limit::Unlimited, learning: Learning::Fixed };
}

/// Whether a key's limit may be lowered by what its server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learning {
    /// It may.
    On,
    /// The configured limit counts, always.
    Fixed,
}

/// The highest limit that can be written. conf-spawn's highest is 65000, so what is above that is never reached.
pub const LIMIT_MAX: u32 = 500_000;

/// So many different groups.
pub const GROUPS_MAX: usize = 500_000;

/// The longest name of a group, in bytes.
pub const GROUP_MAX: usize = 64;

/// The most lines with a meaning in concurrencyreplies.
pub const RULES_MAX: usize = 500;

/// The most steps of all its regular expressions together.
pub const PROGRAMS_MAX: usize = 16384;

/// The longest pause in seconds.
pub const PAUSE_MAX_SECS: u16 = 7200;
