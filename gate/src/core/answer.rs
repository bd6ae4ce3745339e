//! The gate's answers, and what its caller says of deliveries that ended.

#![forbid(unsafe_code)]

use crate::control::limit::PAUSE_MAX_SECS;

/// The answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Start it.
    Go,
    /// The gate keeps it; [`NextAction`] says when it starts.
    Hold,
    /// It goes back to qmail-send.
    Busy(Busy),
    /// The slot is held already: an error of the caller.
    InUse,
}

/// Refused for now: qmail-send keeps the mail until the gate calls it, or for `secs` at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// The index of the key, for `Gate::key`; valid until the next call of the gate. qmail-send gets `Key::number`.
    pub key: u32,
    /// Seconds after which the mail comes back if it is not called before, 1..=3600; for a suspended key, seconds until
    /// the suspension ends, 1..=[`SUSPENDED_MAX_SECS`].
    pub secs: u32,
    /// The reason.
    pub why: BusyReason,
}

/// Why a delivery does not start now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusyReason {
    /// The key is at its limit. The mail is away until it is called.
    AtLimit,
    /// The key has used up a rate. The mail is away until it is called.
    AtRate,
    /// The server refused it because of the number of deliveries. The mail is away until it is called.
    Refused,
    /// Nothing starts for some seconds. The mail is away until it is called.
    Paused(PauseCause),
    /// Nothing starts for longer than a command may be held. This is an ordinary deferral, so the mail ages.
    Suspended(PauseCause),
    /// The domain has its share of its site's places, which is this number. The mail is away until it is called.
    AtDomainShare(u32),
}

/// Why nothing starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseCause {
    /// No connection to the server succeeds.
    NoConnection,
    /// A line of control/concurrencyreplies, from 1.
    Rule(u32),
}

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextAction {
    /// Nothing.
    None,
    /// Start a held command; it has a place.
    Go {
        /// Its slot.
        slot: u32,
        /// Its handle for `Gate::command`, valid until the next call of the gate.
        command: u32,
    },
    /// Send a held command back: it was held for too long.
    Busy {
        /// Its slot, which is free now.
        slot: u32,
        /// Its handle.
        command: u32,
        /// The answer to qmail-send.
        busy: Busy,
    },
    /// Call mail that is away.
    Call(Call),
}

/// How much mail qmail-send should hand out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// `Key::number` of the key under which it was sent away.
    pub number: u32,
    /// How many mails at most, 1 or more.
    pub most: u32,
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryEnd<'a> {
    /// It ran, and this is its report.
    Reported(&'a [u8]),
    /// It never started.
    NeverStarted,
}

/// How long a delivery took, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryTimes {
    /// How long its command was held, 1 or more.
    pub held_ms: u32,
    /// How long it has run since then.
    pub ran_ms: u64,
}

/// Sums over all keys, including those that are forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Commands that the caller asked for.
    pub asked: u64,
    /// Commands that were sent away.
    pub busy: u64,
    /// Commands that were held for some time.
    pub held: u64,
    /// Commands whose hold was too long; also counted in `busy`.
    pub expired: u64,
    /// Deliveries that ran and ended.
    pub done: u64,
    /// Deliveries that were refused and sent away because they did not count as attempts; also counted in `busy`.
    pub refused: u64,
    /// Commands that were deferred because their key is suspended.
    pub suspended: u64,
}

/// The highest number of slots.
pub const SLOTS_MAX: u32 = 65534;

/// The delivery number of reports that are calls, and of questions for several recipients together.
pub const CALL_SLOT: u32 = SLOTS_MAX + 1;

/// The longest suspension, in seconds.
pub const SUSPENDED_MAX_SECS: u32 = PAUSE_MAX_SECS as u32;
