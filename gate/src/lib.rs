//! The per-domain delivery gate.
//!
//! qmail-rspawn asks it before each delivery whether the destination's limit allows one more. [`gate`] decides, with no
//! I/O and no clock; [`host`] reads the control files and writes the status file; [`ffi`] is what C sees, and the
//! only module with unsafe code, but for one instruction in `prefetch`. `gate.h` is the contract.
//!
//! The same crate is a static library for the mail server (`rustc --crate-type staticlib src/lib.rs`, no dependencies)
//! and a library for qpatch, which checks and simulates with the code that will run.

/// A point in the code at which a test may make the gate panic. It is empty in the mail server.
macro_rules! fault {
    () => {
        #[cfg(feature = "panic-injection")]
        crate::inject::fault();
    };
}

#[allow(missing_docs, non_camel_case_types, unreachable_pub, reason = "written by bindgen")]
mod bindings;
mod control;
mod core;
pub mod ffi;
pub mod host;
#[cfg(feature = "panic-injection")]
pub mod inject;
pub mod report;
mod util;

// The folders are for who reads the crate; who uses it need not know them.
pub use self::core::{command, gate, learn, linger, pace, recall, returns, rules, share, shortage};
pub use control::{limit, literal, name, name_map, problem, route, sender, site, table};
pub use host::{clock, kept, process, shared, status};
pub use report::{echo, replies};
pub use util::{escape, index, memory, random, regex};
