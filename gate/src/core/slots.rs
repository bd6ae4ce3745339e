//! The slots, and the state of each.

#![forbid(unsafe_code)]

use crate::core::learn::StartedIn;
use crate::report::echo::Envelope;
use crate::util::list::Link;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    Free,
    Running,
    Held,
}

/// A link in two lists of held slots: that of its key, and that of all, oldest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) state: SlotState,
    pub(super) domain: u32,
    pub(super) command: u32,
    /// Other deliveries of its key that ran when it started.
    pub(super) beside: u32,
    /// The length of its hold in milliseconds, 1 or more; 0: it was not held.
    pub(super) held_ms: u32,
    pub(super) started_in: StartedIn,
    pub(super) since_us: u64,
    /// What [`Returns`] knows the mail by: a hash of its queue number and its recipient. Only where that may be asked.
    pub(super) mail: u64,
    /// The words of the delivery that a server may repeat. Only if the report is read.
    pub(super) envelope: Envelope,
    pub(super) of_key: Link,
    pub(super) of_all: Link,
}
