//! The per-domain delivery gate.
//!
//! qmail-rspawn asks it before each delivery whether the destination's limit allows one more. [`gate`] decides, with no
//! I/O and no clock; [`host`] reads the control files and writes the status file; [`ffi`] is what C sees, and the
//! only module with unsafe code, but for one instruction in `prefetch`. `gate.h` is the contract.
//!
//! The same crate is a static library for the mail server (`rustc --crate-type staticlib src/lib.rs`, no dependencies)
//! and a library for qpatch, which checks and simulates with the code that will run.

/// A place at which a test may make the gate panic. Nothing in the mail server.
macro_rules! fault {
    () => {
        #[cfg(feature = "panic-injection")]
        crate::inject::fault();
    };
}

#[allow(missing_docs, non_camel_case_types, unreachable_pub, reason = "written by bindgen")]
mod bindings;
pub mod clock;
pub mod command;
pub mod echo;
pub mod ffi;
pub mod gate;
pub mod host;
pub mod index;
#[cfg(feature = "panic-injection")]
pub mod inject;
pub mod kept;
pub mod learn;
pub mod linger;
mod list;
pub mod literal;
pub mod memory;
pub mod name;
pub mod pace;
mod prefetch;
pub mod problem;
pub mod process;
pub mod random;
pub mod recall;
pub mod regex;
pub mod replies;
pub mod report;
pub mod route;
pub mod rules;
pub mod sender;
pub mod share;
pub mod shared;
pub mod shortage;
pub mod site;
pub mod status;
pub mod table;
