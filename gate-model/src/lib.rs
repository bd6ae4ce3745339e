//! qmail-send's half of the gate in Rust. The mail server uses the C, c-shim/gate_retry.c; `qpatch gate simulate` and
//! the gate's tests use this. c-shim/tests/twin.rs compares the two call by call, so mail that waits in a simulation
//! waits as it does in qmail-send.

#![forbid(unsafe_code)]

mod hash;
pub mod retry;

pub use hash::KEY as DOMAIN_KEY;
