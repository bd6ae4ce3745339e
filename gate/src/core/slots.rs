//! The slots: the delivery numbers of qmail-send, whether each runs or is held, and for which domain.

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

/// A slot. While it is held, it is in two lists, the oldest hold first: the list of its key and that of all keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) state: SlotState,
    pub(super) domain: u32,
    pub(super) command: u32,
    /// How many other deliveries of its key ran when it started.
    pub(super) beside: u32,
    /// How long it was held, in milliseconds, 1 or more; 0: it was not held.
    pub(super) held_ms: u32,
    pub(super) started_in: StartedIn,
    pub(super) since_us: u64,
    /// The hash of the mail's queue number and its recipient, for [`Returns`](crate::core::returns::Returns). Set only
    /// where the mail may go back as busy.
    pub(super) mail: u64,
    /// The words of the delivery that a server may repeat in its replies. Set only if the report is read.
    pub(super) envelope: Envelope,
    pub(super) of_key: Link,
    pub(super) of_all: Link,
}
