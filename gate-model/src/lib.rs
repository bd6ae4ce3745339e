//! qmail-send's half of the gate, as a model. The mail server has the C, c-shim/gate_retry.c; `qpatch gate simulate`
//! and the gate's own tests have this. The two are compared call by call (c-shim/tests/twin.rs), so what a simulation
//! says of mail that waits is what qmail-send does with it.

#![forbid(unsafe_code)]

pub mod retry;
