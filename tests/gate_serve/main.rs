//! `qpatch gate serve` over real sockets of the loopback interface.

#[path = "../common/mod.rs"]
mod common;
mod http;
mod rig;
mod scrape;
