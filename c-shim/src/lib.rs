//! The C between qmail and the gate. HOOKS.md lists the calls that the patch adds to qmail's sources.
//!
//! | file | linked into | what it does |
//! | --- | --- | --- |
//! | `gate_glue.[ch]` | qmail-rspawn | asks the gate (gate.h) for spawn.c |
//! | `gate_stub.c` | qmail-lspawn | the same functions without a gate: spawn.c is in both programs |
//! | `gate_retry.[ch]` | qmail-send | keeps the mail that the gate sent back, until the gate calls it |
//! | `remote_start.[ch]` | qmail-rspawn | starts qmail-remote, by a fork server or by a quick exec |
//! | `remote_serve.c`, `remote_packet.h` | qmail-remote | is that fork server |
//!
//! qpatch writes these files into the tree that it patches. Only tests compile them (feature `compiled`).

#[cfg(feature = "compiled")]
pub mod retry;

/// gate_glue.h
pub const GLUE_H: &[u8] = include_bytes!("../gate_glue.h");
/// gate_glue.c
pub const GLUE_C: &[u8] = include_bytes!("../gate_glue.c");
/// gate_stub.c
pub const STUB_C: &[u8] = include_bytes!("../gate_stub.c");
/// gate_retry.h
pub const RETRY_H: &[u8] = include_bytes!("../gate_retry.h");
/// gate_retry.c
pub const RETRY_C: &[u8] = include_bytes!("../gate_retry.c");
/// remote_start.h
pub const REMOTE_START_H: &[u8] = include_bytes!("../remote_start.h");
/// remote_start.c
pub const REMOTE_START_C: &[u8] = include_bytes!("../remote_start.c");
/// remote_packet.h
pub const REMOTE_PACKET_H: &[u8] = include_bytes!("../remote_packet.h");
/// remote_serve.c
pub const REMOTE_SERVE_C: &[u8] = include_bytes!("../remote_serve.c");
