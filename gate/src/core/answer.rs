//! What the gate answers, and what it is told.

#![forbid(unsafe_code)]

use crate::control::limit::PAUSE_MAX_SECS;

/// The answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Start it.
    Go,
    /// It is kept.
    Hold,
    /// Not now.
    Busy(Busy),
    /// The slot is held already: the caller is confused.
    InUse,
}

/// Not now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// The index of the key, for `Gate::key`; valid until the next call. What qmail-send is told is `Key::number`.
    pub key: u32,
    /// Seconds: until it should come again, if it is not called before, 1..=3600; of a key that is suspended, until
    /// that ends, 1..=[`SUSPENDED_MAX_SECS`].
    pub secs: u32,
    /// Why.
    pub why: BusyReason,
}

/// Why a delivery is not made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusyReason {
    /// The key is at its limit. It is away until it is called.
    AtLimit,
    /// The server has refused it, and not for its own sake. It is away until it is called.
    Refused,
    /// Nothing is to be tried for some seconds. It is away until it is called.
    Paused(PauseCause),
    /// Nor for longer than a command is held: a deferral like any other, which ages.
    Suspended(PauseCause),
    /// The domain has as many of its site's places as one domain may have. It is away until it is called.
    AtPart(u32),
}

/// Why nothing is to be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseCause {
    /// Nothing gets through to the server.
    NoConnection,
    /// This line of control/concurrencyreplies.
    Rule(u32),
}

/// What to do about a held command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextAction {
    /// Nothing.
    None,
    /// Start it: a place is taken.
    Go {
        /// Its slot.
        slot: u32,
        /// Its handle for `Gate::command`, valid until the next call.
        command: u32,
    },
    /// It was held for too long.
    Busy {
        /// Its slot, which is free now.
        slot: u32,
        /// Its handle.
        command: u32,
        /// When it should come again.
        busy: Busy,
    },
    /// qmail-send should give mail that was sent away.
    Call(Call),
}

/// How much mail qmail-send should give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// `Key::number` of the key under which it was sent away.
    pub number: u32,
    /// So many, 1 or more.
    pub most: u32,
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryEnd<'a> {
    /// It ran, and printed this.
    Reported(&'a [u8]),
    /// It never started.
    NeverStarted,
}

/// How long a delivery took, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryTimes {
    /// Its command was held for so long, 1 or more.
    pub held_ms: u32,
    /// It has run for so long since.
    pub ran_ms: u64,
}

/// Sums over all keys, those that are forgotten included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Commands that were asked for.
    pub asked: u64,
    /// Commands that were sent away.
    pub busy: u64,
    /// Commands that were held for some time.
    pub held: u64,
    /// Commands whose hold was too long; they are in `busy`, too.
    pub expired: u64,
    /// Deliveries that ran and ended.
    pub done: u64,
    /// Deliveries that were refused, and sent away because they were not really tried; they are in `busy`, too.
    pub refused: u64,
    /// Commands that were deferred because their key is suspended.
    pub suspended: u64,
}

/// The highest number of slots.
pub const SLOTS_MAX: u32 = 65534;

/// The slot of calls, and of what is asked for together.
pub const CALL_SLOT: u32 = SLOTS_MAX + 1;

/// The longest that a key is suspended, in seconds.
pub const SUSPENDED_MAX_SECS: u32 = PAUSE_MAX_SECS as u32;
