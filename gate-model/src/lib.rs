//! qmail-send in Rust, for `qpatch gate simulate` and the gate's tests. [`send`] has its slots, jobs and passes.
//! [`retry`] is the gate's half of it. The mail server uses the C, c-shim/gate_retry.c; c-shim/tests/twin.rs compares
//! the two call by call, so mail that waits in a simulation waits as it does in qmail-send.

#![forbid(unsafe_code)]

mod hash;
pub mod retry;
pub mod send;

pub use hash::KEY as DOMAIN_KEY;
