//! The per-domain delivery gate.
//!
//! Before each delivery qmail-rspawn asks the gate whether the limit of the destination allows one more. [`gate`]
//! decides, without I/O and clock; [`host`] reads the control files and writes the status file; [`ffi`] is what C
//! calls. Only `ffi`, `bindings` and `prefetch` (one instruction) have unsafe code. `gate.h` is the contract with C.
//!
//! The crate has two forms: a static library for the mail server (`rustc --crate-type staticlib src/lib.rs`, no
//! dependencies), and a library for qpatch, which thus checks and simulates with the code that runs in the mail server.

/// Marks a place where a test can make the gate panic. Expands to nothing in the mail server.
macro_rules! fault {
    () => {
        #[cfg(feature = "panic-injection")]
        crate::panic_injection::fault();
    };
}

#[allow(missing_docs, non_camel_case_types, unreachable_pub, reason = "written by bindgen")]
mod bindings;
mod control;
mod core;
pub mod ffi;
pub mod host;
#[cfg(feature = "panic-injection")]
pub mod panic_injection;
pub mod report;
mod util;

// The folders help to read the crate. Its users need not know them.
pub use self::core::{
    command, gate, host_share, learn, linger, other_spawners, pace, rate, recall, returns, rules,
    shortage, start_log, window,
};
pub use control::{limit, literal, name, name_map, problem, rates, route, sender, site, table};
pub use host::{clock, kept, lease, process, spawner_columns, status};
pub use report::{echo, replies};
pub use util::{escape, index, memory, random, regex};
