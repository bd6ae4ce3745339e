//! What the tree's qmail-send must do. Each trial queues mail, has it delivered, and compares qmail-send's log, the
//! stubs' events and the queue with the plan: no recipient is lost, none gets mail twice, and each report goes to its
//! own delivery.
//!
//! - [`every_number`]: all delivery numbers at once, with spawners that the rig plays.
//! - [`through`]: thousands of messages through the tree's own spawners and the stubs.
//! - [`capped`]: a domain at its limit, while other mail goes on (for the gate).
//! - [`restart`]: qmail-send stopped and killed with deliveries under way.
#![forbid(unsafe_code)]

mod account;
mod capped;
mod every_number;
mod plan;
mod queue;
mod restart;
mod through;
mod watchdog;

pub use account::{MESSAGES, MailFigures};
pub use capped::{CappedFigures, CappedLoad, capped};
pub use every_number::every_number;
pub use queue::empty_queue;
pub use restart::{Stop, restart};
pub use through::{Concurrency, through};
pub use watchdog::Watchdog;
