//! `qpatch gate sites` with name servers on loopback.

#[path = "../common/mod.rs"]
mod common;
mod dns;
mod hostile;
mod lookup;
mod rig;
